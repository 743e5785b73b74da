"""Box AP where it is asked for, and where a validation split has objects with boxes alone."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from run_helpers import TINY, Outcome, train

from leanmask.config import merge
from leanmask.errors import ConfigError, DataError
from leanmask.evaluation.coco_files import CocoTruth
from leanmask.evaluation.coverage import measured_by
from leanmask.evaluation.validator import score_results
from leanmask.inference.predict import EvaluateOptions, evaluate
from leanmask.reports.collect import read_run
from leanmask.reports.page import headline

Cli = Callable[..., Outcome]
Row = dict[str, Any]
SHORT = merge(TINY, {"method": {"name": "supervised"}, "train": {"steps": 1}, "evaluation": {"pictures": 1}})


def with_val(digits: Path, out: Path, change: Callable[[int, Row], None]) -> Path:
    """A copy of the data set; `change` takes each validation annotation with its number."""
    shutil.copytree(digits, out)
    path = out / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for number, row in enumerate(content["annotations"]):
        change(number, row)
    path.write_text(json.dumps(content))
    return out


def unmask(_number: int, row: Row) -> None:
    row["segmentation"] = []


def unmask_every_other(number: int, row: Row) -> None:
    if number % 2:
        del row["segmentation"]


@pytest.fixture(scope="module")
def boxed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_val(digits, tmp_path_factory.mktemp("boxed") / "digits", unmask)


def shaken(truth: Row) -> list[Row]:
    """Results near the truth: boxes that are moved by some pixels, one in five of another class."""
    ids = [row["id"] for row in truth["categories"]]
    rows = []
    for number, row in enumerate(truth["annotations"]):
        x, y, w, h = row["bbox"]
        box = [x + number % 4, y + number % 3, max(w - number % 5, 1), h]
        category = ids[0] if number % 5 == 0 else row["category_id"]
        rows.append(
            {"image_id": row["image_id"], "category_id": category, "score": 0.9 - 0.01 * number % 0.7, "bbox": box}
        )
    return rows


def test_it_is_that_of_pycocotools(boxed: Path) -> None:
    path = boxed / "annotations" / "instances_val.json"
    truth = json.loads(path.read_text())
    results = shaken(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(path))
        oracle = COCOeval(known, known.loadRes([dict(row) for row in results]), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    for iou in (None, "box"):
        found = score_results(path, results, iou=iou)
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
        measured = [found.metrics[f"box_{name}"] for name in names]
        wanted = [float("nan") if value == -1 else value for value in oracle.stats]
        assert measured == pytest.approx(wanted, abs=1e-6, nan_ok=True)
        assert 0.05 < measured[0] < 0.95
        assert found.iou == "box"
        assert "AP" not in found.metrics
        means = [row["AP"] for row in found.per_class if row["AP"] == row["AP"]]
        assert sum(means) / len(means) == pytest.approx(measured[0])


def test_lvis_has_it_too(boxed: Path) -> None:
    truth = json.loads((boxed / "annotations" / "instances_val.json").read_text())
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for number, row in enumerate(truth["categories"]):
        row["frequency"] = "rcf"[number % 3]
    opened = CocoTruth.open(truth)
    found = score_results(opened, shaken(truth), "lvis")  # type: ignore[arg-type]
    assert found.iou == "box"
    assert 0 < found.metrics["box_AP"] < 1
    assert {"box_APr", "box_APc", "box_APf"} <= found.metrics.keys()
    assert found.summary.startswith("boxes")


@pytest.mark.parametrize(
    ("change", "iou", "said"),
    [
        (lambda number, row: None, "mask", None),
        (unmask, "box", "the objects of .* have a box and no mask, so box AP is measured"),
        (unmask_every_other, "box", r"\d+ of \d+ objects of .* have a box and no mask, so box AP is measured"),
        (lambda number, row: row.update(iscrowd=1, segmentation=[]), "mask", None),
    ],
)
def test_what_is_measured_follows_the_truth(
    digits: Path, change: Callable[[int, Row], None], iou: str, said: str | None
) -> None:
    content = json.loads((digits / "annotations" / "instances_val.json").read_text())
    for number, row in enumerate(content["annotations"]):
        change(number, row)
    found = measured_by(CocoTruth.open(content))
    assert found.iou == iou
    assert (found.note is None) == (said is None)
    if said is not None and found.note is not None:
        assert re.search(said, found.note)
    assert measured_by(CocoTruth.open(content), "box").note is None, "what was asked for needs no sentence"


def test_bad_input(digits: Path) -> None:
    content = json.loads((digits / "annotations" / "instances_val.json").read_text())
    with pytest.raises(ConfigError, match="iou is 'boxes'; did you mean 'box'"):
        measured_by(CocoTruth.open(content), "boxes")
    with pytest.raises(ConfigError, match="allowed: box, mask"):
        EvaluateOptions(iou="segm")
    with pytest.raises(ConfigError, match="calibration is measured on masks"):
        EvaluateOptions(iou="box", calibration=True)
    row = content["annotations"][0]
    row.update(segmentation=[], bbox=None, point=[3, 3])
    with pytest.raises(DataError, match=f"annotation {row['id']} .* has neither mask nor box"):
        measured_by(CocoTruth.open(content))
    for image in content["images"]:
        image["exhaustive"] = image["id"] != row["image_id"]
    assert measured_by(CocoTruth.open(content)).iou == "mask", "an image that is left out needs nothing"
    row.update(bbox=[1, 1, 3, 3])
    content["images"] = [image | {"exhaustive": True} for image in content["images"]]
    with pytest.raises(DataError, match=r"has no mask.*--iou box"):
        score_results(CocoTruth.open(content), [], iou="mask")  # type: ignore[arg-type]


def test_a_training_with_boxed_validation_images(leanmask: Cli, boxed: Path, digits: Path, tmp_path: Path) -> None:
    """It measures box AP, says so once, and keeps the network that is best by it."""
    notes: list[str] = []
    settings = merge(SHORT, {"evaluation": {"calibration": True}})
    done = train(boxed, tmp_path / "run", settings=settings, on_progress=lambda step, total, note: notes.append(note))
    assert sum("so box AP is measured, not mask AP" in note for note in notes) == 1
    assert any(note.startswith("step 1 of 1: student box AP") for note in notes)
    assert done.best is not None
    assert done.best["iou"] == "box"
    assert done.best["metrics"]["box_AP"] == done.best["AP"]
    assert f"best.safetensors is the {done.best['who']} of step 1: box AP" in done.to_text()
    page = read_run(tmp_path / "run")
    assert "reaches a box AP of" in headline([page], ["a"])
    assert page.kept is not None
    assert any("measured on masks, and was left out" in note for note in page.kept.notes)
    table = leanmask("evaluate", tmp_path / "run", boxed)
    assert table.code == 0
    assert "box AP" in table.out
    assert "so box AP is measured" in table.err
    asked = leanmask("evaluate", tmp_path / "run", digits, "--iou", "box", "--json")
    assert json.loads(asked.out)["iou"] == "box"
    wrong = leanmask("evaluate", tmp_path / "run", boxed, "--iou", "mask")
    assert wrong.code == 2
    assert "--iou box" in wrong.err
    assert evaluate(tmp_path / "run", digits).iou == "mask"


def test_a_validation_split_of_points_measures_nothing_and_says_which_object(digits: Path, tmp_path: Path) -> None:
    def to_point(number: int, row: Row) -> None:
        if number == 3:
            x, y, w, h = row.pop("bbox")
            row.update(segmentation=[], point=[x + w / 2, y + h / 2])

    data = with_val(digits, tmp_path / "digits", to_point)
    notes: list[str] = []
    done = train(data, tmp_path / "run", settings=SHORT, on_progress=lambda step, total, note: notes.append(note))
    assert any("has neither mask nor box" in note and "nothing is measured" in note for note in notes)
    assert done.best is not None
    assert done.best["AP"] is None
    assert "best.safetensors is the teacher of step 1\n" in done.to_text() + "\n"
