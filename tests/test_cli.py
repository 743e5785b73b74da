"""Every verb as its user types it: help, JSON, exit codes, and one sentence for every mistake."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from run_helpers import Outcome
from typer.main import get_group

from leanmask.cli.shared import app
from leanmask.cli.verbs import VERBS as FILES_OF_VERBS
from leanmask.machine_check import OPTIONAL
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]
VERBS = tuple(verb for verbs in FILES_OF_VERBS.values() for verb in verbs)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(leanmask: Cli, verb: str) -> None:
    outcome = leanmask(verb, "--help")
    assert outcome.code == 0
    assert "leanmask " + verb in outcome.out


def test_no_verb_shows_them_all(leanmask: Cli) -> None:
    outcome = leanmask("--help")
    assert all(verb in outcome.out for verb in VERBS)


def test_every_verb_is_listed_with_its_file() -> None:
    for file, verbs in FILES_OF_VERBS.items():
        importlib.import_module(file)
        found = [
            command.name or command.callback.__name__
            for command in app.registered_commands
            if command.callback.__module__ == file
        ]
        assert found == list(verbs)
        commands = get_group(app).commands
        assert {verb: commands[verb].help for verb in verbs} == verbs


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["trian"], 2), (["check", "--help"], 0)])
def test_nothing_heavy_is_loaded_to_show_the_verbs(arguments: list[str], code: int) -> None:
    program = (
        "import sys; from leanmask.cli import main; sys.argv = ['leanmask', *sys.argv[1:]]\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    if "trian" in arguments:
        assert "'train'" in done.stderr


def test_version(leanmask: Cli) -> None:
    assert leanmask("--version").out.startswith("leanmask ")


def test_digits_and_split(leanmask: Cli, tmp_path: Path) -> None:
    made = leanmask("digits", tmp_path / "d", "--train", 4, "--tune", 1, "--val", 2, "--size", 64, "--json")
    assert made.code == 0
    assert json.loads(made.out)["images"] == 7
    parted = leanmask("split", tmp_path / "d", tmp_path / "s", "--protocol", "sparse-50", "--json")
    assert parted.code == 0
    assert json.loads(parted.out)["masks"] > 0
    assert (tmp_path / "s" / "data.yaml").is_file()
    again = leanmask("digits", tmp_path / "d")
    assert again.code == 2
    assert str(tmp_path / "d") in again.err


def test_check_of_good_and_bad_data(leanmask: Cli, digits: Path, sparse: Path, tmp_path: Path) -> None:
    assert leanmask("check", digits).code == 0
    good = leanmask("check", sparse, "--json")
    assert good.code == 0
    assert json.loads(good.out)["census"]["train"]["objects"]["mask"] > 0
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    row = {"id": 1, "file_name": "gone.png", "width": 8, "height": 8}
    content = {"images": [row], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    bad = leanmask("check", tmp_path)
    assert bad.code == 1
    assert "gone.png" in bad.out


def test_train_report_evaluate_predict(leanmask: Cli, sparse: Path, trained: TrainSummary, tmp_path: Path) -> None:
    evaluated = leanmask("evaluate", trained.folder, sparse, "--json")
    assert evaluated.code == 0
    assert json.loads(evaluated.out)["metrics"].keys() >= {"AP", "AP50", "box_AP"}
    table = leanmask("evaluate", trained.folder, sparse)
    assert "Average Precision" in table.out
    assert "three" in table.out  # the table per class
    results = trained.folder / "evaluation" / "teacher" / "coco_instances_results.json"
    assert leanmask("evaluate", results, sparse).code == 0
    page = leanmask("report", trained.folder, "--out", tmp_path / "report.html")
    assert page.code == 0
    assert "<html" in (tmp_path / "report.html").read_text()
    Image.new("RGB", (50, 40)).save(tmp_path / "photo.png")
    seen = leanmask("predict", trained.folder, tmp_path / "photo.png", "--out", tmp_path / "p", "--score", 0, "--json")
    assert seen.code == 0
    rows = json.loads((tmp_path / "p" / "coco_instances_results.json").read_text())
    assert {tuple(row["segmentation"]["size"]) for row in rows} <= {(40, 50)}
    assert {row["category_id"] for row in rows} <= set(range(1, 11))
    assert len(list((tmp_path / "p" / "overlays").iterdir())) == 1


def test_train_from_the_command_line(leanmask: Cli, sparse: Path, tmp_path: Path) -> None:
    settings = ("data.image_size=64", "data.workers=0", "train.batch_size=2", "evaluation.who=[teacher]")
    out = tmp_path / "run"
    done = leanmask("train", sparse, *settings, "--method", "supervised", "--out", out, "--steps", 1, "--json")
    assert done.code == 0
    assert json.loads(done.out)["steps"] == 1
    assert (out / "best.safetensors").is_file()
    again = leanmask("train", sparse, "--out", out)
    assert again.code == 2
    assert "--resume" in again.err
    resumed = leanmask("train", "--resume", out, "--json")
    assert resumed.code == 0
    assert json.loads(resumed.out)["steps"] == 1


def test_doctor(leanmask: Cli) -> None:
    outcome = leanmask("doctor", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert isinstance(found["trials"]["cpu"], float)
    cpu = found["precision"]["cpu"]
    assert set(cpu["step_seconds"]) == {"fp32", "bf16"}
    assert all(seconds > 0 for seconds in cpu["step_seconds"].values())
    assert found["trials"]["cpu"] == cpu["step_seconds"][cpu["precision"]]
    # What is installed goes by other names than what is imported: faiss-cpu is faiss.
    for name in OPTIONAL:
        assert (found["packages"][name] is not None) == (importlib.util.find_spec(name) is not None), name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "DATA", "train.stpes=5", "--out", "OUT"], "did you mean 'steps'"),
        (["train", "DATA", "--method", "maskboster", "--out", "OUT"], "did you mean 'maskbooster'"),
        (["train", "DATA", "train.steps=many", "--out", "OUT"], "train.steps"),
        (["train", "DATA", "model.backbone=tinny", "--out", "OUT"], "model.backbone"),
        (["train", "nowhere", "--out", "OUT"], "nowhere"),
        (["train", "DATA"], "--out RUN"),
        (["train", "--resume", "nowhere"], "no run folder"),
        (["evaluate", "nowhere", "DATA"], "nowhere"),
        (["evaluate", "RUN", "DATA", "--split", "vall"], "did you mean 'val'"),
        (["predict", "RUN", "nothing.png", "--out", "OUT"], "nothing.png"),
        (["split", "DATA", "OUT", "--protocol", "sprase-1"], "sparse"),
        (["bench", "sparse-x"], "sparse"),
        (["bench", "sparse-1", "--arms", "maskboost"], "maskbooster"),
        (["bench", "sparse-1", "point-10"], "did you mean 'points-N'"),
        (["bench", "sparse-1", "points-10", "--arms", "points"], "unknown arm 'points' of sparse-1"),
        (["bench", "train.steps=5"], "name a protocol"),
        (["bench", "sparse-1", "speed"], "measured alone"),
        (["bench", "speed", "--arms", "matrix_nsm"], "no measurement 'matrix_nsm'; did you mean 'matrix_nms'?"),
        (["report", "DATA", "--out", "OUT"], "DATA"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_mistake_is_a_sentence(
    leanmask: Cli, digits: Path, trained: TrainSummary, tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {"DATA": str(digits), "RUN": str(trained.folder), "OUT": str(tmp_path / "out")}
    outcome = leanmask(*(places.get(argument, argument) for argument in arguments))
    text = " ".join(outcome.err.split())
    assert outcome.code == 2
    assert places.get(says, says) in text or places.get(says, says) in outcome.err.replace("\n", "")
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_errors_are_json_for_machines(leanmask: Cli) -> None:
    outcome = leanmask("train", "nowhere", "--out", "x", "--json")
    assert outcome.code == 2
    assert "nowhere" in json.loads(outcome.out)["error"]


def test_ctrl_c_is_a_sentence_too(leanmask: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leanmask.cli.data.check_data", interrupted)
    outcome = leanmask("check", digits)
    assert outcome.code == 130
    assert "stopped by Ctrl-C" in outcome.err
