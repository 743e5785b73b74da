"""PointWSSIS end to end: weak labels in every form, stages that leave files a person can open, kill and resume, masks
for points and refined masks as verbs, and input that cannot be used.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_helpers import annotation, data_config, encode, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from run_helpers import TINY, train
from safetensors.torch import load_file

from leanmask.benchmark.arms import arms_of
from leanmask.benchmark.table import BenchOptions, bench
from leanmask.config import merge
from leanmask.data.check import check
from leanmask.data.coco import AnnotationStore, ClassMap
from leanmask.data.dataset import EvalDataset
from leanmask.data.layout import locate
from leanmask.data.splits import split
from leanmask.data.weak import read_labels, read_published_predictions, read_weak
from leanmask.engine.trainer import kept_steps
from leanmask.errors import CheckpointError, ConfigError, DataError, RunError
from leanmask.evaluation.mask_quality import mask_quality
from leanmask.inference import pseudo_points as points
from leanmask.inference.predict import evaluate, load
from leanmask.inference.pseudo_masks import plain_rle
from leanmask.inference.pseudo_points import PointOptions, pseudo_points
from leanmask.inference.refine import RefineOptions, refine, with_refined
from leanmask.inference.strong_weak import Work, point_masks, refined_masks, with_complete_points, write_rough
from leanmask.labels.boxes import boxes_without_mask
from leanmask.labels.points import holds_point, never_empty, published_choice, twins
from leanmask.methods.base import TrainStage
from leanmask.run import resume
from leanmask.settings import resolve
from leanmask.stages import StagedRun
from leanmask.summary import TrainSummary

SMALL = {"tower_channels": 16, "tower_convs": 1, "kernel_channels": 16, "mask_channels": 16, "fpn_channels": 32}
MODEL = {"name": "solov2", "backbone": "tiny", **SMALL, "candidates": 10, "detections_per_image": 5}
METHOD = {"name": "pointwssis", "online": True, "refiner": {"size_px": 32}, "refiner_steps_fraction": 0.5}
SETTINGS = merge(TINY, {"model": MODEL, "method": METHOD, "train": {"steps": 2}, "evaluation": {"who": ["teacher"]}})
STAGES = ["1-labels", "2-teacher", "3-rough", "4-refiner", "5-pseudo", "6-refined", "7-student", "8-online"]


class Killed(Exception):
    """Stands in for a kill."""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def weak(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 of 16 images with masks, a point per object on the others."""
    out = tmp_path_factory.mktemp("data") / "weak"
    split(digits, out, "weak-semi-40")
    return out


@pytest.fixture(scope="module")
def staged(weak: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    return train(weak, tmp_path_factory.mktemp("runs") / "wssis", settings=SETTINGS)


# Stages


def test_stages_leave_folders_that_one_can_open(staged: TrainSummary, weak: Path) -> None:
    folder = staged.folder
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == STAGES
    assert staged.steps == 2 + 1 + 2 + 1
    assert (folder / "best.safetensors").read_bytes() == (folder / "8-online" / "best.safetensors").read_bytes()
    given = read(weak / "annotations" / "instances_train.json")
    strong = read(folder / "1-labels" / "instances_train_s.json")
    assert all(row["segmentation"] and len(row["point"]) == 2 for row in strong["annotations"])
    for name, file in (("5-pseudo", "instances_train_sw.json"), ("6-refined", "instances_train_sw_refined.json")):
        found = read(folder / name / file)
        assert {image["id"] for image in found["images"]} == {image["id"] for image in given["images"]}
        assert all(image.get("exhaustive", True) for image in found["images"])
        by_id = {row["id"]: row for row in found["annotations"]}
        assert by_id.keys() == {row["id"] for row in given["annotations"]}
        for row in given["annotations"]:
            own = by_id[row["id"]]
            assert own["category_id"] == row["category_id"]
            if row.get("segmentation"):  # a person's mask stays as it is
                assert own["segmentation"] == row["segmentation"]
                assert "provenance" not in own
                continue
            assert own["point"] == row["point"]
            assert own["weight"] == 1.0
            assert "2-teacher" in own["provenance"]
            assert name == "6-refined" or "refined" not in own["provenance"]
            assert own["area"] == coco_mask.area(own["segmentation"]) > 0
            assert bool(own.get("misses_point")) != holds_point(own["segmentation"], row["point"])
        # A refinement that finds nothing keeps the rough mask as it is, but not all can have found nothing.
        assert any("4-refiner" in row.get("provenance", "") for row in by_id.values()) == (name == "6-refined")
        quality = read(folder / name / "quality.json")
        assert quality["count"] == sum("provenance" in row for row in found["annotations"])
        assert check(folder / name).ok
    evaluated = evaluate(folder, weak).metrics["AP"]
    assert evaluated == pytest.approx(staged.metrics["teacher"]["AP"], abs=1e-6)


def test_a_training_split_may_have_any_name(weak: Path, tmp_path: Path) -> None:
    data = edited(weak, tmp_path / "data", lambda content: None, train="mine")
    settings = merge(SETTINGS, {"data": {"train_split": "mine"}, "train": {"steps": 1}})
    done = train(data, tmp_path / "run", settings=settings)
    assert [each.folder.name for each in done.stages] == ["2-teacher", "4-refiner", "7-student", "8-online"]
    assert next(iter(locate(done.folder / "6-refined"))) == "mine"


def test_the_refiner_never_sees_a_weak_image(staged: TrainSummary) -> None:
    folder = staged.folder
    strong = {image["id"] for image in read(folder / "1-labels" / "instances_train_s.json")["images"]}
    parts = [read(folder / "3-rough" / f"instances_{name}_rough.json") for name in ("train", "held")]
    trained, held = ({image["id"] for image in part["images"]} for part in parts)
    assert held
    assert trained | held == strong
    assert not trained & held
    masks = [len(row.get("rough_segmentations", ())) for part in parts for row in part["annotations"]]
    assert max(masks) == len(kept_steps((0.2, 0.4), 2)) == 1
    config = yaml.safe_load((folder / "4-refiner" / "config.yaml").read_text())
    assert config["data"]["val_split"] == "held"  # the best refiner is chosen on strong images that are held back
    assert config["train"]["eval_every_steps"] == 1
    assert config["model"]["name"] == "mask_refine"
    assert config["model"]["weights"] == str(folder / "2-teacher" / "best.safetensors")
    splits = locate(folder / "3-rough")
    assert splits["train"].truth is None
    assert splits["held"].truth is None


@pytest.mark.parametrize("point_at", ["centre", "random"])
def test_every_network_but_the_refiner_knows_where_points_are(staged: TrainSummary, point_at: str) -> None:
    config = resolve(merge(SETTINGS, {"method": {"point_at": point_at}, "data": {"path": str(staged.folder)}}))
    run = StagedRun(config, staged.folder, "online", lambda *_: staged, None, {})
    told = {each.name: run.settings_of(each) for each in run.stages if isinstance(each, TrainStage)}
    assert list(told) == ["teacher", "refiner", "student", "online"]
    for name, given_settings in told.items():
        model = given_settings.model_dump()["model"]
        assert model.get("point_at") == (None if name == "refiner" else point_at)
        assert model["backbone"] == MODEL.get("backbone", "tiny")
        assert name == "refiner" or {key: model[key] for key in MODEL} == MODEL


def test_students_start_and_learn_from_what_they_should(staged: TrainSummary, weak: Path) -> None:
    configs = {
        name: yaml.safe_load((staged.folder / name / "config.yaml").read_text()) for name in STAGES if name[0] in "278"
    }
    assert configs["2-teacher"]["data"]["path"] == str(staged.folder / "1-labels")
    assert configs["7-student"]["data"]["path"] == str(staged.folder / "6-refined")
    assert configs["7-student"]["train"]["student_weights"] is None
    assert configs["8-online"]["data"]["path"] == str(staged.folder / "1-labels")
    assert configs["8-online"]["data"]["train_split"] == "online"
    assert configs["8-online"]["method"]["name"] == "maskbooster"
    # It goes on from a finished network, which a new one's learning rate and a forgetful average would undo.
    assert configs["8-online"]["method"]["ema_warmup_steps"] == 1
    rates = [configs[name]["optim"]["lr"] for name in ("2-teacher", "7-student", "8-online")]
    assert rates == pytest.approx([rates[0], rates[0], 0.1 * rates[0]])
    assert configs["8-online"]["train"]["student_weights"] == str(staged.folder / "7-student" / "best.safetensors")
    kept = list((staged.folder / "2-teacher" / "weights").iterdir())
    assert [path.name for path in kept] == ["step-0000001.safetensors"]
    assert load(kept[0]).model.takes_points


def test_online_classes_learn_what_is_background_on_weak_images_too(staged: TrainSummary, weak: Path) -> None:
    files = locate(staged.folder / "1-labels")["online"]
    store = AnnotationStore.open(files.annotations, files.images)
    assert all(store[index].exhaustive for index in range(len(store)))
    given = read(weak / "annotations" / "instances_train.json")
    assert not all(image.get("exhaustive", True) for image in given["images"])
    found = read(files.annotations)
    assert found["annotations"] == given["annotations"]  # the points, no pseudo-mask
    assert [image["id"] for image in found["images"]] == [image["id"] for image in given["images"]]
    assert files.truth is not None
    labels = read_labels(weak / "annotations" / "instances_train.json", store)
    assert with_complete_points(labels, "random") == given  # the cell of the centre is not known then


@pytest.mark.parametrize("killed_in", ["refiner: loss", "refined: image"])
def test_killed_and_resumed_equals_uninterrupted(
    weak: Path, staged: TrainSummary, tmp_path: Path, killed_in: str
) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if note.startswith(killed_in):
            raise Killed

    out = tmp_path / staged.folder.name
    for stage in STAGES[:3] if killed_in[:7] == "refiner" else STAGES[:5]:
        shutil.copytree(staged.folder / stage, out / stage)
    for name in ("config.yaml", "stages.json"):
        text = (staged.folder / name).read_text().replace(str(staged.folder), str(out))
        (out / name).write_text(text)
    for path in out.glob("*/config.yaml"):
        path.write_text(path.read_text().replace(str(staged.folder), str(out)))
    with pytest.raises(Killed):
        resume(out, on_progress=kill)
    assert resume(out).steps == staged.steps
    found, expected = (load_file(folder / "best.safetensors") for folder in (out, staged.folder))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    refined = [folder / "6-refined" / "instances_train_sw_refined.json" for folder in (out, staged.folder)]
    assert read(refined[0])["annotations"] == read(refined[1])["annotations"]


def test_every_arm_of_the_benchmark_runs(digits: Path, tmp_path: Path) -> None:
    short = ("model.backbone=tiny", "train.steps=1", "data.image_size=64", "data.workers=0", "train.batch_size=2")
    small = ("model.tower_channels=16", "model.candidates=10", "model.detections_per_image=5")
    assert list(arms_of("weak-semi-5")) == ["unpasted", "baseline", "rough", "pointwssis", "online", "full"]
    options = BenchOptions(data=digits, work=tmp_path / "w", results=tmp_path / "r", overrides=(*short, *small))
    rows = bench("weak-semi-40", options).rows
    assert {row["model"] for row in rows} == {"solov2-tiny"}
    # Teacher, refiner and student, and for `online` at least one step more: it goes on with the run of `pointwssis`.
    steps = {row["arm"]: row["steps"] for row in rows}
    assert steps == {"baseline": 1, "rough": 2, "pointwssis": 3, "online": 4, "full": 1}
    runs = {
        path.name.removeprefix(f"{digits.name}-solov2-weak-semi-40-").split("-")[0]: path
        for path in tmp_path.glob("w/runs/d*")
    }
    assert set(runs) >= {"rough", "online"}
    assert not {"baseline", "pointwssis"} & set(runs)
    measured = {row["arm"]: row.get("pseudo", {}) for row in rows}
    assert {arm: list(found) for arm, found in measured.items()} == {
        "baseline": [],
        "rough": ["rough"],
        "pointwssis": ["rough", "refined"],
        "online": ["rough", "refined"],
        "full": [],
    }
    assert measured["online"]["refined"] == read(runs["online"] / "6-refined" / "quality.json")
    assert {"small", "medium", "large"} == measured["rough"]["rough"]["by_size"].keys()


def test_a_row_that_is_a_stage_trains_no_further(digits: Path, tmp_path: Path) -> None:
    short = ("model.backbone=tiny", "train.steps=1", "data.image_size=64", "data.workers=0", "train.batch_size=2")
    options = BenchOptions(
        data=digits, work=tmp_path / "w", results=tmp_path / "r", overrides=short, arms=("baseline",)
    )
    assert [row["steps"] for row in bench("weak-semi-40", options).rows] == [1]
    (run,) = tmp_path.glob("w/runs/d*")
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == STAGES[:2]


def test_the_teacher_is_the_baseline(weak: Path, staged: TrainSummary, tmp_path: Path) -> None:
    strong = merge(SETTINGS, {"data": {"train_split": "strong"}}) | {"method": {"name": "supervised"}}
    run = train(weak, tmp_path / "strong", settings=strong).folder
    found, expected = (load_file(folder / "best.safetensors") for folder in (staged.folder / "2-teacher", run))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_finished_run_says_what_it_was_until_a_stage(staged: TrainSummary) -> None:
    assert [each.folder.name for each in staged.stages] == ["2-teacher", "4-refiner", "7-student", "8-online"]
    *before, student, last = staged.stages
    found = resume(staged.folder, until="student")
    assert found.to_json()["metrics"] == student.to_json()["metrics"]  # without those that are not a number
    assert found.steps == staged.steps - last.steps == sum(each.steps for each in (*before, student))
    assert found.folder == staged.folder
    assert found.left == staged.left == ()
    whole = resume(staged.folder, until="online")
    assert (whole.steps, whole.left) == (staged.steps, ())
    assert whole.to_json()["best"] == staged.to_json()["best"]


def test_stages_one_by_one_make_the_same_run(weak: Path, staged: TrainSummary, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = train(weak, out, settings=SETTINGS, until="labels")
    assert (first.steps, first.metrics, first.left[0]) == (0, {}, "teacher")
    assert "left to do: teacher, rough" in first.to_text()
    told = []
    resume(out, until="refined", on_progress=lambda step, total, note: told.append((step, total)))
    assert told[-1] == (3, 3)  # of what was asked for, not of the whole run
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == STAGES[:6]
    with pytest.raises(CheckpointError, match="written when its last stage is done"):
        load(out)
    assert resume(out).left == ()
    found, expected = (load_file(folder / "best.safetensors") for folder in (out, staged.folder))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("pointwssis", r"no stage 'techer'; did you mean 'teacher'\?"),
        ("supervised", "no stage 'techer': it is a single"),
    ],
)
def test_a_stage_that_is_none(weak: Path, tmp_path: Path, method: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train(weak, tmp_path / "run", settings=SETTINGS | {"method": {"name": method}}, until="techer")
    assert not (tmp_path / "run").exists()


# Bad input


def edited(weak: Path, out: Path, change: Callable[[dict[str, Any]], None], train: str = "train") -> Path:
    """A copy of the data set whose training file is changed; train: what that split is called in it."""
    named = yaml.safe_load((weak / "data.yaml").read_text())["splits"]
    splits = {
        name: {key: str((weak / value).resolve()) for key, value in files.items()}
        for name, files in named.items()
        if name in ("train", "val")
    }
    content = read(Path(splits["train"]["annotations"]))
    change(content)
    out.mkdir()
    (out / "train.json").write_text(json.dumps(content))
    splits["train"]["annotations"] = "train.json"
    splits[train] = splits.pop("train")
    (out / "data.yaml").write_text(yaml.safe_dump({"splits": splits}))
    return out


def only(content: dict[str, Any], masks: bool) -> None:
    kept = {row["image_id"] for row in content["annotations"] if bool(row.get("segmentation")) == masks}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    content["images"] = [image for image in content["images"] if image["id"] in kept]


def first_point(content: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in content["annotations"] if "point" in row)


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no strong image": (lambda content: only(content, False), "no fully labelled image"),
    "no weak image": (lambda content: only(content, True), "no image with points"),
    "point outside": (
        lambda content: first_point(content).update(point=[70.0, 3.0]),
        r"\(70, 3\) lies outside the image",
    ),
    "no point": (lambda content: first_point(content).pop("point"), "neither a point nor a box or mask"),
    "unknown class": (lambda content: first_point(content).update(category_id=99), "99"),
    "nothing": (lambda content: content.update(images=[], annotations=[]), "no images"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_said_before_anything_is_written(weak: Path, tmp_path: Path, name: str) -> None:
    change, says = MISTAKES[name]
    data = edited(weak, tmp_path / "data", change)
    with pytest.raises(DataError, match=says) as told:
        train(data, tmp_path / "run", settings=SETTINGS)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_models_and_splits_that_cannot_do_it_are_refused_at_once(weak: Path, tmp_path: Path) -> None:
    settings = merge(SETTINGS, {"data": {"val_split": "valid"}})
    with pytest.raises(DataError, match="no split 'valid'; did you mean 'val'"):
        train(weak, tmp_path / "run", settings=settings)
    named = edited(weak, tmp_path / "data", lambda content: None, train="weak")
    with pytest.raises(DataError, match=r"split 'weak'.*stages write one of this name"):
        train(named, tmp_path / "run", settings=merge(SETTINGS, {"data": {"train_split": "weak"}}))
    settings = merge(SETTINGS, {"method": {"refiner": {"size": 3}}})
    with pytest.raises(ConfigError, match=r"unknown setting 'model\.size'"):
        train(weak, tmp_path / "run", settings=settings)
    with pytest.raises(ConfigError, match="mask_rcnn takes no points"):
        train(weak, tmp_path / "run", settings={**SETTINGS, "model": {"name": "mask_rcnn"}})
    assert not (tmp_path / "run").exists()


def test_a_class_that_no_strong_image_shows_is_a_warning(weak: Path, tmp_path: Path) -> None:
    def lose(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 50, "name": "eleven"})
        first_point(content)["category_id"] = 50

    notes: list[str] = []

    def stop(step: int, total: int, note: str) -> None:
        notes.append(note)
        if note.startswith("teacher"):
            raise Killed

    with pytest.raises(Killed):
        train(edited(weak, tmp_path / "data", lose), tmp_path / "run", settings=SETTINGS, on_progress=stop)
    assert notes[0].startswith("labels: no fully labelled image shows ")
    assert "eleven" in notes[0]
    assert "class-agnostic" in notes[0]


def test_a_refiner_needs_rough_masks_to_learn_from(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rough_segmentations"):
        train(
            digits,
            tmp_path / "run",
            settings=merge(TINY, {"model": {"name": "mask_refine"}, "method": {"name": "supervised"}}),
        )


# Weak files


def test_points_are_read_in_every_form(tmp_path: Path) -> None:
    square = annotation(3, 1, [10.0, 10.0, 6.0, 4.0])
    rows = [
        {"id": 1, "image_id": 1, "category_id": 7, "point": [3.5, 4.25]},
        {"id": 2, "image_id": 1, "category_id": 7, "point_coords": [[5, 6]], "point_labels": [1]},
        square,
        annotation(4, 1, [20.0, 10.0, 8.0, 4.0], "box"),
        annotation(5, 1, [0.0, 0.0, 9.0, 9.0], "box", iscrowd=1),
    ]
    path = write_folder(tmp_path / "data", 1, rows)
    found = read_weak(path, ClassMap(("thing",), (7,)))
    assert [row["point"] for row in found["annotations"]] == [[3.5, 4.25], [5.5, 6.5], [13.0, 12.0], [24.0, 12.0]]
    assert all("segmentation" not in row and "area" not in row for row in found["annotations"])


def test_published_subsets_give_mass_centres_and_no_mask(digits: Path, weak: Path) -> None:
    """Ordinary COCO with masks, as the published `_w` files are, is read as the split's own points."""
    store = AnnotationStore.open(weak / "annotations" / "instances_train_40p_w.json", weak)
    own = {row["id"]: row["point"] for row in read(weak / "annotations" / "instances_train_40p_w.json")["annotations"]}
    found = read_weak(weak / "truth" / "instances_train.json", store.classes)
    for row in found["annotations"]:
        assert "segmentation" not in row
        if row["id"] in own:
            np.testing.assert_allclose(row["point"], own[row["id"]])


def test_a_box_beside_a_mask_is_not_told_and_an_explicit_point_wins_over_a_box(
    staged: TrainSummary, tmp_path: Path
) -> None:
    corner = [[10.0, 10.0, 40.0, 10.0, 10.0, 40.0]]  # a triangle: its mass centre is not the middle of its box
    rows = [
        annotation(1, 1, [10.0, 10.0, 30.0, 30.0], segmentation=corner),
        annotation(2, 1, [10.0, 10.0, 30.0, 30.0], "box", point=[12.0, 13.0]),
        annotation(3, 1, [10.0, 10.0, 30.0, 30.0], "points", point=[12.0, 13.0]),
    ]
    path = write_folder(tmp_path / "data", 1, rows)
    found = read_weak(path, ClassMap(("thing",), (7,)))["annotations"]
    assert found[0].keys() == {"id", "image_id", "category_id", "point"}
    assert max(found[0]["point"]) < 21
    assert min(found[0]["point"]) > 19
    assert found[1]["bbox"] == found[2]["bbox"] == rows[1]["bbox"]
    (tmp_path / "weak.json").write_text(json.dumps({**read(path), "annotations": found}))
    store = AnnotationStore.open(tmp_path / "weak.json", path.parent / "images")
    target = EvalDataset(store, data_config())[0].target
    assert target.instances.boxes.isnan().all(1).tolist() == [True, False, False]
    proposals, _ = boxes_without_mask([target], points=True)
    places = torch.tensor([found[0]["point"], [12.0, 13.0], [12.0, 13.0]])
    torch.testing.assert_close(proposals.points, places)
    with torch.no_grad():
        model = load(staged.folder / "2-teacher").model
        cells, _ = model.best_cells(model.say(torch.rand(1, 3, 64, 64)), proposals, (64, 64))
    at_point = model.layout.cells_at(places, (64, 64))
    assert (at_point == cells[:, None]).any(1).all()


def test_published_predictions_have_their_point_in_the_box(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "data", 2, [annotation(1, 1, [1.0, 1.0, 5.0, 5.0])], size=(40, 80))
    mask = np.zeros((40, 80), dtype=np.uint8)
    mask[10:20, 30:50] = 1
    instance = {"image_id": 2, "category_id": 0, "bbox": [2500.0, 5000.0, -2500.0, -5000.0], "score": 1.0}
    torch.save([{"image_id": 2, "instances": [{**instance, "segmentation": encode(mask)}]}], tmp_path / "p.pth")
    (row,) = read_published_predictions(tmp_path / "p.pth", path)["annotations"]
    assert row["point"] == [40.0, 10.0]  # (y, x) in ten-thousandths of height and width
    assert row["category_id"] == 7
    assert coco_mask.area(row["segmentation"]) == 200
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no prediction file of PointWSSIS"):
        read_published_predictions(tmp_path / "bad.pth", path)


def test_the_split_names_strong_and_weak_images(weak: Path) -> None:
    splits = locate(weak)
    counts = {name: len(read(splits[name].annotations)["images"]) for name in ("train", "strong", "weak")}
    assert counts == {"train": 16, "strong": 6, "weak": 10}


# Verbs


def weak_file(weak: Path) -> Path:
    return weak / "annotations" / "instances_train_40p_w.json"


def test_masks_for_points(staged: TrainSummary, weak: Path, tmp_path: Path, leanmask: Callable) -> None:
    teacher, out = staged.folder / "2-teacher", tmp_path / "masks.json"
    done = leanmask("pseudo", teacher, "--points", weak_file(weak), "--out", out, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["masks"] == told["objects"] == len(read(weak_file(weak))["annotations"])
    same = read(staged.folder / "5-pseudo" / "instances_train_w_masks.json")
    assert read(out)["annotations"] == same["annotations"]
    assert not list(tmp_path.glob(".*"))
    again = leanmask("pseudo", teacher, "--points", weak_file(weak), "--out", out)
    assert again.code == 2
    assert "never overwritten" in again.err
    refined = tmp_path / "refined.json"
    done = leanmask("pseudo", staged.folder, "--points", weak_file(weak), "--refined", "--out", refined)
    assert done.code == 0, done.err
    assert any("refined by" in row["provenance"] for row in read(refined)["annotations"])
    assert not list(tmp_path.glob(".*"))


def test_thousands_of_points_on_one_image(staged: TrainSummary, weak: Path, tmp_path: Path) -> None:
    content = read(weak_file(weak))
    rng = np.random.default_rng(0)
    row = {key: content["annotations"][0][key] for key in ("image_id", "category_id")}
    spots = rng.uniform(0, 64, (2000, 2)).tolist()
    content["annotations"] = [{"id": number, **row, "point": spot} for number, spot in enumerate(spots, start=1)]
    content["images"] = [image for image in content["images"] if image["id"] == row["image_id"]]
    (tmp_path / "w.json").write_text(json.dumps(content))
    images = locate(weak)["train"].images
    out = tmp_path / "masks.json"
    summary = pseudo_points(staged.folder / "2-teacher", tmp_path / "w.json", out, PointOptions(images=images))
    assert summary.masks == summary.objects == 2000
    assert [each["point"] for each in read(out)["annotations"]] == spots


def test_mistakes_in_asking_for_points(
    staged: TrainSummary, trained: TrainSummary, weak: Path, tmp_path: Path, leanmask: Callable
) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(ConfigError, match="finds masks for boxes, not for points"):
        pseudo_points(trained.folder, weak_file(weak), out)
    with pytest.raises(RunError, match="no trained refiner"):
        pseudo_points(staged.folder / "2-teacher", weak_file(weak), out, PointOptions(refined=True))
    content = read(weak_file(weak))
    content["categories"].append({"id": 50, "name": "eleven"})
    (tmp_path / "w.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="'eleven'"):
        pseudo_points(staged.folder / "2-teacher", tmp_path / "w.json", out, PointOptions(images=weak))
    content["annotations"] = []
    (tmp_path / "e.json").write_text(json.dumps({**content, "categories": content["categories"][:-1]}))
    with pytest.raises(DataError, match="no object"):
        pseudo_points(staged.folder / "2-teacher", tmp_path / "e.json", out, PointOptions(images=weak))
    content["annotations"] = [{**read(weak_file(weak))["annotations"][0], "point": [3.0, 64.5]}]
    (tmp_path / "o.json").write_text(json.dumps({**content, "categories": content["categories"][:-1]}))
    with pytest.raises(DataError, match=r"annotation \d+: point \(3, 64.5\) lies outside the image of 64 x 64"):
        pseudo_points(staged.folder / "2-teacher", tmp_path / "o.json", out, PointOptions(images=weak))
    for flag in (
        ("--review", tmp_path / "r.html"),
        ("--class-quality", "0.5"),
        ("--mask-quality", "0.8"),
        ("--polygons",),
    ):
        unread = leanmask("pseudo", staged.folder, "--points", weak_file(weak), "--out", out, *flag)
        assert unread.code == 2
        assert f"{flag[0]} is for objects that a network found" in unread.err
    for flag in (("--refined",), ("--refiner", staged.folder), ("--rule", "one"), ("--point-at", "random")):
        unread = leanmask("pseudo", staged.folder, weak, "--out", out, *flag)
        assert unread.code == 2
        assert f"{flag[0]} is for objects that have a point" in unread.err
    assert leanmask("pseudo", staged.folder, "--out", out).code == 2
    wrong = leanmask("pseudo", staged.folder, "--points", weak_file(weak), "--out", out, "--rule", "publishd")
    assert wrong.code == 2
    assert "did you mean 'published'" in wrong.err
    wrong = leanmask("pseudo", staged.folder, "--points", weak_file(weak), "--out", out, "--point-at", "center")
    assert wrong.code == 2
    assert "did you mean 'centre'" in wrong.err
    with pytest.raises(ConfigError, match=r"rule is 'publishd'; did you mean 'published'\?"):
        PointOptions(rule="publishd")  # type: ignore[arg-type]
    assert not out.exists()


def test_one_may_say_where_points_are_to_a_network_that_was_not_told(
    leanmask: Callable[..., Any], staged: TrainSummary, weak: Path, tmp_path: Path
) -> None:
    teacher, found = staged.folder / "2-teacher", {}
    for name, flags in {"untold": (), "centre": ("--point-at", "centre"), "random": ("--point-at", "random")}.items():
        out = tmp_path / f"{name}.json"
        done = leanmask("pseudo", teacher, "--points", weak_file(weak), "--out", out, *flags)
        assert done.code == 0, done.err
        found[name] = read(out)["annotations"]
    assert found["centre"] == found["untold"]
    assert found["random"] != found["untold"]


def test_unfinished_masks_for_points_go_on(staged: TrainSummary, weak: Path, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done >= 4:
            raise Killed

    out, teacher = tmp_path / "masks.json", staged.folder / "2-teacher"
    with pytest.raises(Killed):
        pseudo_points(teacher, weak_file(weak), out, on_progress=kill)
    with pytest.raises(RunError, match="other rule"):
        pseudo_points(teacher, weak_file(weak), out, PointOptions(rule="published"))
    with pytest.raises(RunError, match="other point_at"):
        pseudo_points(teacher, weak_file(weak), out, PointOptions(point_at="random"))
    seen: list[int] = []
    pseudo_points(teacher, weak_file(weak), out, on_progress=lambda done, _: seen.append(done))
    assert seen[0] > 4
    same = read(staged.folder / "5-pseudo" / "instances_train_w_masks.json")
    assert read(out)["annotations"] == same["annotations"]


def test_refined_masks_for_points_never_go_on_from_another_runs_rough_ones(
    staged: TrainSummary, weak: Path, tmp_path: Path
) -> None:
    def kill(done: int, total: int) -> None:
        passes.append(done)
        if passes != sorted(passes):  # images are counted anew: the refiner's pass has begun
            raise Killed

    passes: list[int] = []
    out, teacher, refiner = tmp_path / "masks.json", staged.folder / "2-teacher", staged.folder / "4-refiner"
    with pytest.raises(Killed):
        pseudo_points(teacher, weak_file(weak), out, PointOptions(refiner=refiner), on_progress=kill)
    images = locate(weak)["train"].images
    fewer = read(weak_file(weak))
    fewer["annotations"] = fewer["annotations"][:1]
    (tmp_path / "w.json").write_text(json.dumps(fewer))
    options = PointOptions(refiner=refiner, images=images)
    with pytest.raises(RunError, match=r"unfinished work.*other weights"):
        pseudo_points(staged.folder / "7-student", weak_file(weak), out, options)
    with pytest.raises(RunError, match=r"unfinished work.*other points"):
        pseudo_points(teacher, tmp_path / "w.json", out, options)
    passes.clear()
    pseudo_points(teacher, weak_file(weak), out, options, on_progress=lambda done, _: passes.append(done))
    assert passes == sorted(passes)  # the rough masks were all there
    assert not list(tmp_path.glob(".*"))


def test_a_refiner_is_looked_at_before_the_rough_masks_are_made(
    staged: TrainSummary, weak: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("work was begun")

    out, teacher, refiner = tmp_path / "masks.json", staged.folder / "2-teacher", staged.folder / "4-refiner"
    with pytest.raises(ConfigError, match="refines no masks"):
        pseudo_points(teacher, weak_file(weak), out, PointOptions(refiner=teacher), on_progress=never)
    of_others = dataclasses.replace(load(staged.folder / "4-refiner"), classes=ClassMap(("thing",), (7,)))
    monkeypatch.setattr(points, "load_refiner", lambda refiner: of_others)
    with pytest.raises(DataError, match="which the training data does not have"):
        pseudo_points(teacher, weak_file(weak), out, PointOptions(refiner=refiner), on_progress=never)
    assert not list(tmp_path.glob(".*"))


def test_a_refinement_that_ends_short_of_its_point_is_not_taken() -> None:
    rough = disc(12, 12, 10)
    row = {"id": 1, "segmentation": {**rough, "counts": rough["counts"].decode()}, "point": [5.0, 12.0]}

    def refined(x: float, radius: float, hole: float = 0.0, point: tuple[float, float] = (5.0, 12.0)) -> dict[str, Any]:
        mask = coco_mask.decode(disc(x, 12, radius)) - coco_mask.decode(disc(x, 12, hole))
        content = {"annotations": [{**row, "point": list(point)}]}
        fields = {1: {"segmentation": plain_rle(encode(mask)), "score": 0.5}}
        return with_refined(content, fields, "refined by a test")["annotations"][0]

    assert refined(20, 6) == row  # it has moved on to something else
    assert "refined" in refined(12, 9)["provenance"]
    ring = refined(12, 9, hole=4, point=(12.0, 12.0))  # the mass centre of a ring is in its hole
    assert "refined" in ring["provenance"]
    assert ring["misses_point"]
    both_miss = refined(30, 6, point=(39.0, 39.0))
    assert "refined" in both_miss["provenance"]


def stage_work(staged: TrainSummary, out: Path) -> Work:
    """The work of a stage that is no training, as the run of `staged` would do it in `out`."""
    config = resolve(yaml.safe_load((staged.folder / "config.yaml").read_text()))
    return Work(config, staged.folder, out, lambda done, total: None, lambda note: None)


@pytest.mark.parametrize("with_objects", [0, 1, 2])
def test_only_images_with_rough_masks_are_held_back(tmp_path: Path, with_objects: int) -> None:
    rows = [annotation(number, number, [5.0, 6.0, 20.0, 15.0]) for number in range(1, with_objects + 1)]
    path = write_folder(tmp_path / "data", 6, [{**row, "rough_segmentations": [row["segmentation"]]} for row in rows])
    split_of = {"annotations": str(path), "images": str(path.parent / "images")}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"splits": {"train": split_of, "val": split_of}}))
    # Of all six images this seed draws one without objects first.
    own = {"data": {"path": str(tmp_path / "data.yaml")}, "train": {"seed": 3}}
    config = resolve(merge(SETTINGS, own))
    notes: list[str] = []
    work = Work(config, tmp_path, tmp_path / "rough", lambda done, total: None, notes.append)
    work.out.mkdir()
    if not with_objects:
        with pytest.raises(RunError, match="no early network found a mask"):
            write_rough(work, read(path), work.splits["train"], 0.2)
        return
    write_rough(work, read(path), work.splits["train"], 0.2)
    parts = {name: read(work.out / f"instances_{name}_rough.json") for name in ("train", "held")}
    assert [len(part["annotations"]) for part in parts.values()] == [1, 1]
    assert len(parts["held"]["images"]) == 1
    assert len(parts["train"]["images"]) == (6 if with_objects == 1 else 5)
    assert [note[:46] for note in notes] == ["only one fully labelled image has objects: the"] * (with_objects == 1)


def test_strong_masks_stay_and_are_not_measured_whoever_made_them(staged: TrainSummary, tmp_path: Path) -> None:
    before = shutil.copytree(staged.folder / "5-pseudo", tmp_path / "5-pseudo")
    content = read(before / "instances_train_sw.json")
    strong = [row["id"] for row in content["annotations"] if "provenance" not in row]
    content["annotations"] = [{"provenance": "a tool", **row} for row in content["annotations"]]
    (before / "instances_train_sw.json").write_text(json.dumps(content))
    data = yaml.safe_load((before / "data.yaml").read_text())
    data["splits"]["train"]["images"] = str(locate(staged.folder / "5-pseudo")["train"].images)
    data["splits"] = {"train": {**data["splits"]["train"], "truth": None}}
    (before / "data.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "6").mkdir()
    refined_masks(stage_work(staged, tmp_path / "6"), staged.folder / "4-refiner", before)
    after = {row["id"]: row for row in read(tmp_path / "6" / "instances_train_sw_refined.json")["annotations"]}
    assert strong
    assert all(after[key] == row for row in content["annotations"] if (key := row["id"]) in strong)
    assert read(tmp_path / "6" / "quality.json") == read(staged.folder / "6-refined" / "quality.json")


def test_a_point_whose_mask_was_merged_counts_0(staged: TrainSummary, weak: Path, tmp_path: Path) -> None:
    labels = shutil.copytree(staged.folder / "1-labels", tmp_path / "labels")
    content = read(labels / "instances_train_w.json")
    first = content["annotations"][0]
    second = next(row for row in content["annotations"][1:] if row["image_id"] == first["image_id"])
    second |= {"point": first["point"], "category_id": first["category_id"]}
    (labels / "instances_train_w.json").write_text(json.dumps(content))
    data = yaml.safe_load((labels / "data.yaml").read_text())
    named = {name: locate(staged.folder / "1-labels")[name] for name in ("train", "weak")}
    for name, files in named.items():
        data["splits"][name]["images"] = str(files.images)
    data["splits"] = {name: {**data["splits"][name], "truth": None} for name in named}
    (labels / "data.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "5").mkdir()
    point_masks(stage_work(staged, tmp_path / "5"), staged.folder / "2-teacher", labels, "published")
    rows = [
        row
        for row in read(tmp_path / "5" / "instances_train_sw.json")["annotations"]
        if row["id"] in {row["id"] for row in content["annotations"]}
    ]
    assert any(row.get("merged") for row in rows)
    quality = read(tmp_path / "5" / "quality.json")
    assert quality == mask_quality(rows, locate(weak)["train"].truth).to_json()
    assert quality["count"] == sum(bool(row.get("segmentation")) for row in rows) < len(rows)


def test_the_published_rule_may_take_a_points_mask(staged: TrainSummary, weak: Path, tmp_path: Path) -> None:
    content = read(weak_file(weak))
    row = content["annotations"][0]
    content["annotations"].append({**row, "id": 9999, "point": [row["point"][0], row["point"][1] + 0.1]})
    (tmp_path / "w.json").write_text(json.dumps(content))
    images = locate(weak)["train"].images
    masks = {}
    for rule in ("one", "published"):
        out = tmp_path / f"{rule}.json"
        summary = pseudo_points(
            staged.folder / "2-teacher", tmp_path / "w.json", out, PointOptions(rule=rule, images=images)
        )
        masks[rule] = {each["id"]: each for each in read(out)["annotations"]}
        whole = {image["id"]: image["exhaustive"] for image in read(out)["images"]}[row["image_id"]]
        assert whole == (rule == "one")  # an object without a mask is not background
        assert (summary.merged > 0) == (rule == "published")
    assert masks["one"][9999]["same_as"] == row["id"]
    assert masks["one"][9999]["segmentation"] == masks["one"][row["id"]]["segmentation"]
    left = [bool(masks["published"][key].get("segmentation")) for key in (row["id"], 9999)]
    assert sorted(left) == [False, True]


def test_anybodys_masks_are_refined(staged: TrainSummary, weak: Path, tmp_path: Path, leanmask: Callable) -> None:
    """A person's polygons and RLE; crowds and objects without a mask are left as they are."""
    truth = read(weak / "truth" / "instances_train.json")
    chosen = {image["id"] for image in truth["images"][:3]}
    rows = [row for row in truth["annotations"] if row["image_id"] in chosen]
    x, y, w, h = rows[0]["bbox"]
    rows[0] = {**rows[0], "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
    rows[1] = {**{key: value for key, value in rows[1].items() if key != "segmentation"}}
    rows[2] = {**rows[2], "provenance": "another model"}
    (tmp_path / "masks.json").write_text(json.dumps({**truth, "images": truth["images"][:3], "annotations": rows}))
    images = locate(weak)["train"].images
    command = ("refine", tmp_path / "masks.json", "--refiner", staged.folder, "--images", images)
    done = leanmask(*command, "--out", tmp_path / "new.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["objects"] == len(rows) - 1
    found = read(tmp_path / "new.json")["annotations"]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert found[1] == rows[1]
    assert any("refined by leanmask" in row.get("provenance", "") for row in found)
    assert leanmask(*command, "--out", tmp_path / "new.json").code == 2
    refine(tmp_path / "masks.json", staged.folder / "4-refiner", tmp_path / "few.json", RefineOptions(images, True))
    few = read(tmp_path / "few.json")["annotations"]
    assert [row == old for row, old in zip(few, rows, strict=True)] == [row is not rows[2] for row in rows]
    with pytest.raises(ConfigError, match="refines no masks"):
        refine(tmp_path / "masks.json", staged.folder / "2-teacher", tmp_path / "no.json", RefineOptions(images))
    with pytest.raises(DataError, match="no mask to refine"):
        refine(weak_file(weak), staged.folder, tmp_path / "no.json")


# Choices and measures


def disc(x: float, y: float, radius: float, size: int = 40) -> dict[str, Any]:
    rows, columns = np.mgrid[:size, :size] + 0.5
    return encode((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def naive_choice(masks: list[Any], categories: list[int], scores: list[float]) -> set[int]:
    dense = [coco_mask.decode(mask).astype(bool) for mask in masks]
    left: list[int] = []
    for place in sorted(range(len(masks)), key=lambda i: -scores[i]):
        rivals = [other for other in left if categories[other] == categories[place]]
        if all((dense[place] & dense[o]).sum() <= 0.5 * (dense[place] | dense[o]).sum() for o in rivals):
            left.append(place)
    return set(left)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(5, 35), st.integers(5, 35), st.integers(3, 9), st.integers(0, 1), st.floats(0, 1)),
        max_size=7,
        unique_by=lambda item: item[4],
    )
)
def test_the_published_choice(discs: list[tuple[int, int, int, int, float]]) -> None:
    masks = [disc(x, y, radius) for x, y, radius, _, _ in discs]
    categories, scores = [item[3] for item in discs], [item[4] for item in discs]
    kept = published_choice(masks, categories, np.array(scores))
    assert {i for i, left in enumerate(kept) if left} == naive_choice(masks, categories, scores)


def test_points_on_masks() -> None:
    mask = disc(20, 10, 5)
    assert holds_point(mask, (20.0, 10.0))
    assert not holds_point(mask, (10.0, 20.0))
    assert not holds_point(mask, (39.99, 39.99))
    assert twins([mask, disc(5, 5, 3), disc(20, 10, 5), mask], [1, 1, 1, 2]) == [None, None, 0, None]


def test_masks_for_points_are_never_empty() -> None:
    faint = torch.full((2, 3, 3), 0.01)
    faint[0, 1, 1], faint[1, 0, 0] = 0.2, 0.9
    found = never_empty(faint)
    assert (found[0] > 0.5).nonzero().tolist() == [[1, 1]]
    assert torch.equal(found[1], faint[1])
    assert (never_empty(torch.zeros(1, 2, 2)) <= 0.5).all()


def test_quality_by_size() -> None:
    images = [{"id": 1, "width": 40, "height": 40}]
    objects = [(10, 10, 3), (30, 10, 5), (20, 28, 8)]
    rows = [
        {"id": i, "image_id": 1, "category_id": 7, "segmentation": disc(x, y, r), "iscrowd": 0}
        for i, (x, y, r) in enumerate(objects, start=1)
    ]
    for row in rows:
        row["segmentation"]["counts"] = row["segmentation"]["counts"].decode()
        row["area"] = int(coco_mask.area(row["segmentation"]))
        row["bbox"] = coco_mask.toBbox(row["segmentation"]).tolist()
    truth = {"images": images, "annotations": rows, "categories": [{"id": 7, "name": "thing"}]}
    said = [dict(rows[0]), {**rows[1], "segmentation": None}, {**rows[2], "misses_point": True}]
    found = mask_quality(said, truth)
    assert found.mask_iou == pytest.approx(2 / 3)
    assert (found.count, found.precision, found.missed_point) == (2, 1.0, 0.5)
    assert found.recall == pytest.approx(2 / 3)
    assert [part["mask_iou"] for part in found.by_size.values()] == [1.0, 0.0, 1.0]
    assert mask_quality([], truth).to_json()["mask_iou"] is None
    with pytest.raises(DataError, match="annotation id 77"):
        mask_quality([{**rows[0], "id": 77}], truth)


def test_weights_are_kept_after_shares_of_the_training() -> None:
    assert kept_steps((0.5, 0.2, 1.0), 10) == (2, 5, 10)
    assert kept_steps((0.001, 0.002), 10) == (1,)
    assert kept_steps((), 10) == ()
