"""Better (pseudo-)labels: smoothed teacher, calibration on held-back images, soft student; end to end and in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import TINY, benchmark_script, train
from safetensors.torch import load_file
from test_cascade import SMALL
from test_pldc import FACTS, FOUND, Teacher, views_of

from leanmask.benchmark.arms import LONGTAIL
from leanmask.benchmark.table import BenchOptions, bench
from leanmask.config import merge
from leanmask.data.coco import AnnotationStore
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.layout import locate
from leanmask.data.unlabelled import open_pool
from leanmask.errors import ConfigError, DataError, RunError
from leanmask.inference.calibration import hold_back
from leanmask.labels.calibrate import read_calibration
from leanmask.labels.select import measure
from leanmask.methods.better_labels import BetterLabels, BetterLabelsConfig
from leanmask.methods.smoothed import Smoothed, SmoothedConfig
from leanmask.methods.soft_student import SoftStudent, SoftStudentConfig
from leanmask.models.class_losses import softmax_loss
from leanmask.records import Batch, Supervision
from leanmask.reports.page import write_report
from leanmask.run import resume
from leanmask.summary import TrainSummary

SETTINGS = merge(
    TINY,
    {
        "model": {"name": "cascade_mask_rcnn", "backbone": "tiny", **SMALL},
        "method": {"name": "better_labels", "class_quality": 0.0, "mask_quality": 0.0, "uniform_fraction": 0.0},
        "train": {"steps": 2},
        "evaluation": {"protocol": "lvis", "calibration": True, "who": ["teacher"]},
    },
)


class Killed(Exception):
    """Stands in for a process that dies."""


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "tail"
    write_digits(out, DigitsSpec(train=20, tune=0, val=4, unlabelled=4, size_px=64, longtail=True))
    return out


@pytest.fixture(scope="module")
def better(tail: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    return train(tail, tmp_path_factory.mktemp("runs") / "better", settings=SETTINGS)


def test_the_whole_method(better: TrainSummary, tail: Path, tmp_path: Path) -> None:
    stages = sorted(path.name for path in better.folder.iterdir() if path.is_dir())
    assert stages == ["1-held", "2-teacher", "3-calibration", "4-student"]
    assert better.steps == 4
    assert {"AP", "APr", "APc", "APf", "ECE"} <= better.metrics["teacher"].keys()
    errors = read_calibration(better.folder / "3-calibration" / "calibration.json")
    assert list(errors) == list(AnnotationStore.open(*_train(tail)).classes.names)
    rows = [json.loads(line) for line in (better.folder / "4-student" / "journal.jsonl").read_text().splitlines()]
    assert any(row.get("counts", {}).get("pseudo_objects", 0) > 0 for row in rows)
    page = write_report([better.folder], tmp_path / "report.html").read_text()
    assert "training images with the class" in page
    assert "share of right results" in page


def test_killed_between_stages_and_resumed(tail: Path, better: TrainSummary, tmp_path: Path) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if note.startswith("student: loss"):
            raise Killed

    out = tmp_path / better.folder.name
    with pytest.raises(Killed):
        train(tail, out, settings=SETTINGS, on_progress=kill)
    resume(out)
    found, expected = (load_file(folder / "best.safetensors") for folder in (out, better.folder))
    assert all((found[name] == expected[name]).all() for name in expected)


def test_the_benchmarks_reliability_is_the_runs(better: TrainSummary) -> None:
    measured = benchmark_script("longtail_reliability").measured
    for stage in ("2-teacher", "4-student"):
        row = measured(stage, better.folder / stage)
        results = json.loads((better.folder / stage / "evaluation/teacher/coco_instances_results.json").read_text())
        bins = row["bins"]
        assert sum(each["count"] for each in bins) == len(results)
        naive = sum(each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins if each["count"])
        assert row["ece"] == pytest.approx(naive / len(results), abs=1e-3)
    with pytest.raises(RunError, match="is no run folder"):
        measured("held", better.folder / "1-held")


def test_without_calibration_the_teacher_is_a_smoothed_training(tail: Path, tmp_path: Path) -> None:
    uncalibrated = train(tail, tmp_path / "soft", settings=merge(SETTINGS, {"method": {"calibrate": False}})).folder
    alone = SETTINGS | {"method": {"name": "smoothed", "uniform_fraction": 0.0}}
    run = train(tail, tmp_path / "smoothed", settings=alone).folder
    found, expected = (load_file(folder / "best.safetensors") for folder in (uncalibrated / "1-teacher", run))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_held_back_images_leave_no_class_without_any(tail: Path, tmp_path: Path) -> None:
    splits = locate(tail)
    count = hold_back(splits, "train", 0.3, 0, tmp_path)
    parts = [
        AnnotationStore.open(tmp_path / f"instances_{name}.json", splits["train"].images) for name in ("train", "held")
    ]
    assert count == len(parts[1]) == 6
    assert len(parts[0]) + count == 20
    before = AnnotationStore.open(*_train(tail)).census().class_images
    after = parts[0].census().class_images
    assert all(after[name] > 0 for name, images in before.items() if images)
    assert locate(tmp_path)["held"].images.resolve() == splits["train"].images.resolve()
    again = tmp_path / "again"
    hold_back(splits, "train", 0.3, 0, again)
    assert (again / "instances_held.json").read_bytes() == (tmp_path / "instances_held.json").read_bytes()


def test_nothing_to_hold_back_is_said(sparse: Path, tmp_path: Path) -> None:
    content = json.loads((sparse / "annotations" / "instances_train.json").read_text())
    for row in content["annotations"]:
        row.pop("segmentation", None)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    (tmp_path / "data.yaml").write_text(
        f"splits: {{train: {{annotations: boxes.json, images: {locate(sparse)['train'].images.resolve()}}}}}"
    )
    with pytest.raises(DataError, match=r"no image of .* can be held back"):
        hold_back(locate(tmp_path), "train", 0.3, 0, tmp_path / "out")


def test_ablations_are_settings() -> None:
    def names(**settings: Any) -> list[str]:
        return [stage.name for stage in BetterLabels(BetterLabelsConfig(**settings)).stages()]

    assert names() == ["held", "teacher", "calibration", "student"]
    assert names(calibrate=False) == ["teacher", "student"]
    assert set(LONGTAIL) == {
        "baseline",
        "uniform",
        "similarity",
        "frequency",
        "one_hot",
        "soft",
        "better_labels",
        "adjusted",
    }


def student(tmp_path: Path, errors: dict[str, float] | None, **settings: Any) -> SoftStudent:
    path = None
    if errors is not None:
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps({"per_class": [{"name": name, "error": error} for name, error in errors.items()]}))
    given = {"filter": "decoupled", "class_quality": 0.85, "mask_quality": 0.9} | settings
    return SoftStudent(SoftStudentConfig(calibration=None if path is None else str(path), **given), FACTS)


def test_soft_and_corrected_targets(tmp_path: Path) -> None:
    plain = student(tmp_path, None).pseudo_targets(Teacher(FOUND), views_of(), 50)[0][0]
    probabilities = plain.instances.class_probabilities
    assert probabilities is not None
    assert FOUND.class_probabilities is not None
    torch.testing.assert_close(probabilities[0], FOUND.class_probabilities[0])
    # The teacher is too sure of "cell" by 0.1 and too modest about "dust" by 0.2; lambda is 2.
    method = student(tmp_path, {"cell": -0.1, "dust": 0.2})
    target, counts = method.pseudo_targets(Teacher(FOUND), views_of(), 50)
    corrected = target[0].instances.class_probabilities
    assert corrected is not None
    torch.testing.assert_close(corrected[0], torch.tensor([0.7, 0.4]))
    assert counts["pseudo_objects"] == 0  # 0.9 became 0.7, below 0.85
    assert student(tmp_path, None, targets="one_hot").soft_classes(FOUND) is None
    with pytest.raises(ConfigError, match="lacks the classes dust"):
        student(tmp_path, {"cell": 0.0})
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match="no calibration as leanmask writes it"):
        read_calibration(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="cannot read the calibration"):
        read_calibration(tmp_path / "none.json")


def test_frequencies_are_taken_out_before_errors_are_added(tmp_path: Path) -> None:
    assert FACTS.objects_per_class == (30, 10)
    found = student(tmp_path, None, logit_adjustment=1.0, doubtful=0.1).predictions(Teacher(FOUND), views_of())[0]
    assert found.class_probabilities is not None
    torch.testing.assert_close(found.class_probabilities[2], torch.tensor([0.5, 1.2]) * 0.9 / 1.7)
    assert measure(found).class_quality[2] < 0.3  # it was found as "cell"
    method = student(tmp_path, {"cell": 0.1, "dust": 0.0}, logit_adjustment=1.0, doubtful=0.1)
    both = method.predictions(Teacher(FOUND), views_of())[0].class_probabilities
    assert both is not None
    torch.testing.assert_close(both[2], found.class_probabilities[2] + torch.tensor([0.2, 0.0]))


def test_a_soft_target_is_what_the_student_learns(tmp_path: Path) -> None:
    target = student(tmp_path, None).pseudo_targets(Teacher(FOUND), views_of(), 50)[0][0]
    assert target.instances.supervision[0] == Supervision.MASK
    soft = target.instances.class_probabilities
    assert soft is not None
    row = torch.cat([torch.zeros(1), soft[0] / soft[0].sum()])[None]
    logits = torch.zeros(1, 3, requires_grad=True)
    softmax_loss(logits, row).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((1, 3), 1 / 3) - row)


class Recorder:
    """A student that keeps its targets; as a teacher, its embeddings are the categories' unit vectors."""

    def __call__(self, images: Any, targets: Any) -> Any:
        self.targets = targets
        return {"loss": torch.zeros(())}, None

    def embed(self, images: Any, proposals: Any) -> Any:
        return torch.eye(3)[proposals.categories]


def test_the_teachers_labels_are_smoothed(tail: Path) -> None:
    model, views = Recorder(), views_of()
    views = type(views)(**{**vars(views), "targets": (_with_objects(),)})
    for settings, expected in (
        ({"smoothing": "none"}, [1.0, 0.0]),
        ({"smoothing": "uniform"}, [0.95, 0.05]),
        ({"uniform_fraction": 0.5}, [0.95, 0.05]),
        ({"uniform_fraction": 0.0, "gamma": 0.0}, [0.9 + 0.1 * 0.7311, 0.1 * 0.2689]),
    ):
        method = Smoothed(SmoothedConfig(**settings), FACTS)
        method.losses(model, model, Batch(labelled=views), 0)  # type: ignore[arg-type]
        soft = model.targets[0].instances.class_probabilities
        torch.testing.assert_close(soft[0], torch.tensor(expected), atol=1e-4, rtol=0)
    again = Smoothed(SmoothedConfig(), FACTS)
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.table, method.table)


def _with_objects() -> Any:
    from test_mask_rcnn import target_of

    return target_of([[2, 2, 20, 20], [8, 8, 30, 30]])


def _train(data: Path) -> tuple[Path | None, Path]:
    files = locate(data)["train"]
    return files.annotations, files.images


def test_without_unlabelled_images_nothing_is_written(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="learns from unlabelled images"):
        train(digits, tmp_path / "run", settings=SETTINGS)
    assert not (tmp_path / "run").exists()
    assert open_pool.__doc__


def test_arms_of_the_benchmark(tmp_path: Path) -> None:
    tiny = DigitsSpec(train=20, tune=0, val=3, unlabelled=3, size_px=64)
    short = ("train.steps=1", "train.batch_size=2", "data.image_size=64", "data.workers=0")
    quick = ("model.backbone=tiny", *short, "model.fpn_channels=16")
    wanted = ("frequency", "better_labels")
    options = BenchOptions(
        work=tmp_path / "w",
        results=tmp_path / "r",
        arms=wanted,
        digits=tiny,
        overrides=quick,
    )
    found = bench("longtail", options)
    assert [row["arm"] for row in found.rows] == list(wanted)
    assert {row["model"] for row in found.rows} == {"cascade_mask_rcnn-tiny"}
    assert all("APc" in row["metrics"] and "ECE" in row["metrics"] for row in found.rows)
    assert bench("longtail", options).rows == found.rows
    assert {"APr", "ECE"} <= set(found.table.headers)
