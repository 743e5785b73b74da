"""benchmarks/semi_sweeps.py at tiny sizes: a sweep is kept and not repeated; qualities are measured against truth."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from run_helpers import benchmark_script

from leanmask.benchmark import table as table_module
from leanmask.benchmark.arms import SEMI
from leanmask.benchmark.table import BenchOptions
from leanmask.config import apply_overrides
from leanmask.data.digits import DigitsSpec
from leanmask.methods.pldc import PLDCConfig

SHORT = (
    "model.backbone=tiny", "train.steps=2", "data.image_size=64", "data.workers=0", "train.batch_size=2",
    "evaluation.pictures=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark_script("semi_sweeps")


@pytest.fixture
def options(tmp_path: Path) -> BenchOptions:
    sizes = DigitsSpec(train=8, tune=2, val=1, size_px=64)
    folders = {"work": tmp_path / "work", "results": tmp_path / "results"}
    return BenchOptions(arms=("no_correction",), split="tune", overrides=SHORT, digits=sizes, **folders)


def test_every_point_of_every_sweep_is_a_setting(script: ModuleType) -> None:
    arm = SEMI["pldc"].settings
    for points in script.SWEEPS.values():
        assert len(set(points)) == len(points)
        assert () in points
        for point in points:
            assert (PLDCConfig(**apply_overrides(arm, point)["method"]) == PLDCConfig(**arm["method"])) == (point == ())


def test_a_sweep_is_kept_and_the_qualities_are_measured(
    script: ModuleType, options: BenchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = (("method.unlabelled_weight=2.0",), ())
    rows = script.sweep("semi-25", points, options)
    assert [row["overrides"] for row in rows] == [[*SHORT, *point] for point in points]
    assert json.loads((options.results / "tune-semi-25.json").read_text()) == rows

    def never(*_: object) -> None:
        raise AssertionError("a finished row was trained again")

    monkeypatch.setattr(table_module, "run_task", never)
    assert script.sweep("semi-25", points, options) == rows
    found = script.trust("semi-25", options)
    assert (found["what"], found["arm"], found["steps"]) == ("semi_trust", "no_correction", 2)
    assert found["overall"]["count"] > 0
    assert set(found["bins"]) == {"class_quality", "mask_quality", "product"}


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        (["threshold"], "there is no sweep 'threshold'"),
        (["weight", "method.clas_quality=0.5"], "unknown setting 'method.clas_quality'; did you mean 'class_quality'"),
        (["weight", "--arm", "pldcc"], "unknown arm 'pldcc' of semi-5; did you mean 'pldc'"),
    ],
)
def test_a_mistake_is_a_sentence(
    script: ModuleType,
    told: list[str],
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", ["semi_sweeps.py", *told, *folders])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert answer in capsys.readouterr().err


def test_ctrl_c_between_trainings_is_a_sentence(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["semi_sweeps.py", "weight"])
    monkeypatch.setattr(script, "sweep", interrupted)
    with pytest.raises(SystemExit, match="130"):
        script.main()
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
