"""Plans: what is read off the data, that rules follow the data, the machine and the user, and the plan as a file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_helpers import Outcome

from leanmask.config import DataConfig, commented_yaml, get_setting, set_setting
from leanmask.data.layout import locate
from leanmask.data.splits import split
from leanmask.errors import ConfigError, DataError, RunError
from leanmask.methods import METHODS, STAGED
from leanmask.planning import plan as plan_module
from leanmask.planning import published
from leanmask.planning.fingerprint import Fingerprint, Machine, Spread, fingerprint
from leanmask.planning.plan import PLANNED_FOR, choose, plan, require_fitting
from leanmask.planning.timing import METHOD_STEPS, seconds_per_step
from leanmask.run import train
from leanmask.settings import load_config, resolve

LAPTOP, SERVER = Machine(4, 16.0), Machine(16, 80.0, "Some GPU")
REAL = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for in a network."""
    monkeypatch.setattr(plan_module, "coco_weights", lambda model: None)


def spread(least: float, p10: float, p50: float, p95: float, most: float) -> Spread:
    return Spread(least, least, p10, p50, p95, p95, most)


def data(**changes: Any) -> Fingerprint:
    """Photographs with a few large objects, all of them with a mask."""
    usual = Fingerprint(
        classes=("cat", "dog"),
        images=400,
        unlabelled_images=0,
        pool_images=0,
        labels={"mask": 500, "points": 0, "box": 0, "point": 0, "none": 0},
        mask_images=400,
        point_images=0,
        class_objects={"cat": 250, "dog": 250},
        class_images={"cat": 220, "dog": 220},
        image_side=spread(640, 640, 640, 640, 640),
        object_side=spread(0.1, 0.2, 0.5, 0.9, 1.0),
        aspect=spread(0.5, 0.6, 1, 1.6, 2),
        objects_per_image=spread(1, 1, 1, 3, 5),
        val_images=80,
    )
    return dataclasses.replace(usual, **changes)


def chosen(found: Fingerprint, machine: Machine = LAPTOP, **settings: Any) -> dict[str, Any]:
    """The plan's settings by dotted name."""
    given = {"data": {"path": "."}}
    for name, value in settings.items():
        given = set_setting(given, name.replace("__", "."), value)
    return {choice.setting: choice.value for choice in choose(found, machine, given, None).choices}


def test_the_fingerprint_counts_what_is_there(digits: Path) -> None:
    found = fingerprint(locate(digits), DataConfig(path=str(digits)))
    truth = json.loads((digits / "annotations" / "instances_train.json").read_text())
    boxes = [row["bbox"] for row in truth["annotations"]]
    assert found.images == len(truth["images"]) == found.labelled_images
    assert found.labels["mask"] == len(boxes) == found.objects
    sides = sorted((box[2] * box[3]) ** 0.5 / 64 for box in boxes)
    assert found.object_side.least == pytest.approx(sides[0], abs=1e-4)
    assert found.object_side.most == pytest.approx(sides[-1], abs=1e-4)
    assert found.image_side.p50 == 64
    assert found.val_images == 6
    assert found.mask_images == 16
    counts = [sum(row["image_id"] == image["id"] for row in truth["annotations"]) for image in truth["images"]]
    assert found.objects_per_image.most == max(counts)


@pytest.mark.parametrize(
    ("protocol", "method"),
    [("full", "supervised"), ("sparse-20", "maskbooster"), ("points-5", "supervised"), ("semi-20", "supervised"),
     ("weak-semi-20", "pointwssis"), ("boxes", "supervised")],
)  # fmt: skip
def test_the_method_follows_the_labels(digits: Path, tmp_path: Path, protocol: str, method: str) -> None:
    split(digits, tmp_path / "data", protocol)
    made = plan(tmp_path / "data", overrides=["model.backbone=tiny"])
    assert made.settings["method"]["name"] == method
    assert made.settings["model"]["name"] == ("solov2" if method == "pointwssis" else "mask_rcnn")
    resolve(made.settings)
    no_masks = any("no masks can be learned" in remark for remark in made.remarks)
    assert no_masks == (protocol == "boxes")
    assert any("--method pldc" in remark for remark in made.remarks) == (protocol == "semi-20")


def test_small_objects_get_larger_images_and_smaller_anchors() -> None:
    large, small = chosen(data()), chosen(data(object_side=spread(0.01, 0.02, 0.05, 0.2, 0.4)))
    assert large["data.image_size"] == 192
    assert small["data.image_size"] == 384
    assert small["model.anchor_sizes"][0] == 8 < large["model.anchor_sizes"][0]
    assert small["train.batch_size"] < large["train.batch_size"]
    assert chosen(data(), SERVER)["data.image_size"] == 512


def test_images_are_not_enlarged_beyond_what_they_show() -> None:
    found = data(object_side=spread(0.01, 0.02, 0.05, 0.2, 0.4), image_side=spread(200, 200, 200, 200, 200))
    assert chosen(found)["data.image_size"] == 288


def test_many_objects_raise_every_limit() -> None:
    crowded = data(objects_per_image=spread(1, 5, 50, 150, 369))
    for model, names in {
        "mask_rcnn": ("model.rpn_before_nms", "model.rpn_after_nms", "model.detections_per_image"),
        "solov2": ("model.grids", "model.detections_per_image"),
        "mask2former": ("model.queries", "model.detections_per_image"),
    }.items():
        many, few = chosen(crowded, model__name=model), chosen(data(), model__name=model)
        assert set(names) <= many.keys()
        assert not set(names) & few.keys()
        assert many["model.detections_per_image"] >= 369
        assert many["evaluation.max_detections"] >= 369
        resolve({**choose(crowded, LAPTOP, {"data": {"path": "."}, "model": {"name": model}}, None).settings})


def test_rare_classes_are_drawn_more_often() -> None:
    assert "data.repeat_threshold" not in chosen(data())
    assert chosen(data(class_images={"cat": 390, "dog": 8}))["data.repeat_threshold"] > 8 / 400


def test_few_masks_are_pasted_where_they_hide_little() -> None:
    assert "augment.copy_paste_probability" not in chosen(data())
    labels, small = {"mask": 5, "box": 495, "points": 0, "point": 0, "none": 0}, spread(0.01, 0.05, 0.1, 0.2, 0.4)
    assert chosen(data(labels=labels, object_side=small))["augment.copy_paste_probability"] == 1.0
    assert "augment.copy_paste_probability" not in chosen(data(labels=labels))
    assert "augment.copy_paste_probability" not in chosen(data(object_side=small))


def test_little_memory_gives_small_batches() -> None:
    assert chosen(data(), Machine(2, 0.2))["train.batch_size"] == 2
    assert chosen(data(), Machine(2, 0.001))["train.batch_size"] == 1


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.001, 1), st.floats(0.001, 1), st.integers(20, 8000), st.integers(1, 2000), st.integers(1, 100_000),
    st.sampled_from(["mask_rcnn", "solov2", "mask2former", "pointrend"]), st.sampled_from([LAPTOP, SERVER]),
)  # fmt: skip
def test_every_plan_is_valid(
    small: float, large: float, side: int, many: int, images: int, model: str, machine: Machine
) -> None:
    small, large = sorted((small, large))
    found = data(
        images=images,
        object_side=spread(small, small, (small + large) / 2, large, large),
        image_side=spread(side, side, side, side, side),
        objects_per_image=spread(1, 1, max(many // 2, 1), many, many),
    )
    made = choose(found, machine, {"data": {"path": "."}, "model": {"name": model, "backbone": "tiny"}}, None)
    config = resolve(made.settings)
    assert config.data.image_size % 32 == 0
    assert all(choice.why for choice in made.choices)


def test_what_the_user_set_is_kept_and_followed() -> None:
    usual, own = chosen(data()), chosen(data(), data__image_size=512, train__steps=77)
    assert own["data.image_size"] == 512
    assert own["train.steps"] == 77
    assert own["model.anchor_sizes"][0] > usual["model.anchor_sizes"][0]
    assert own["train.batch_size"] == 4
    made = choose(data(), LAPTOP, {"data": {"path": ".", "image_size": 512}}, None)
    assert not any("data.image_size" in line for line in made.to_lines())


def test_minutes_bound_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    given_settings = {"data": {"path": "."}}
    free = choose(data(), LAPTOP, given_settings, None)
    assert free.settings["train"]["steps"] == 600  # twelve passes over 400 images in batches of 8
    passes = 4 * data().val_images / 8  # of the teacher, which takes a third of a step of 8 images each time
    assert free.seconds == pytest.approx(0.5 * (600 + passes / 3))
    assert "evaluations included" in free.to_text()
    short = choose(data(), LAPTOP, given_settings, 2.0)
    assert short.settings["train"]["steps"] == 200
    assert "2 minutes" in short.reasons["train.steps"]
    assert "600" in short.reasons["train.steps"]
    monkeypatch.setattr(plan_module, "seconds_per_step", lambda config: 60.0)
    assert choose(data(), LAPTOP, given_settings, 2.0).settings["train"]["steps"] == 20
    with pytest.raises(ConfigError, match="minutes is -1"):
        plan(".", minutes=-1)


def test_patience_has_evaluations_to_count() -> None:
    own = chosen(data(), train__patience=8, train__steps=200)
    assert own["train.steps"] // own["train.eval_every_steps"] >= 10


def test_epochs_of_the_user_become_the_planned_steps(digits: Path) -> None:
    made = plan(digits, overrides=["train.epochs=5", "train.batch_size=8", "model.backbone=tiny"])
    assert made.settings["train"]["steps"] == 10
    assert made.settings["train"]["eval_every_steps"] == 2


def test_a_gpu_takes_weights_of_coco_where_they_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(data(), SERVER)["model.backbone"] == "lite0"
    monkeypatch.setattr(plan_module, "coco_weights", lambda model: "torch's cache")
    found = chosen(data(), SERVER)
    assert (found["model.backbone"], found["model.weights"]) == ("resnet50", "COCO_V1")
    assert "model.anchor_sizes" not in found
    assert chosen(data(), SERVER, model__name="mask2former")["model.backbone"] == "swin_tiny"
    assert chosen(data(), LAPTOP)["model.backbone"] == "lite0"


def test_weights_of_coco_are_found_in_the_cache_and_never_missed_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(published, "reachable", lambda url: False)
    monkeypatch.setattr(published, "try_to_load_from_cache", lambda *_: None)
    assert published.coco_weights("mask_rcnn") is None
    assert published.coco_weights("mask2former") is None
    assert published.coco_weights("solov2") is None
    name = Path(published.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url).name
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).touch()
    assert published.coco_weights("mask_rcnn") == "torch's cache"
    monkeypatch.setattr(published, "reachable", lambda url: True)
    assert published.coco_weights("mask2former") == "the network"


def test_objects_too_small_to_see_are_said_with_what_helps() -> None:
    tiny = data(object_side=spread(0.001, 0.001, 0.004, 0.008, 0.01), image_side=spread(4000, 4000, 4000, 4000, 4000))
    told = choose(tiny, LAPTOP, {"data": {"path": "."}}, None).remarks
    assert any("cannot be found" in remark and "tiles" in remark and "data.image_size" in remark for remark in told)
    assert not choose(data(), LAPTOP, {"data": {"path": "."}}, None).remarks


def test_images_below_32_px_are_said_and_trained_on(digits: Path, tmp_path: Path) -> None:
    rows = json.loads((digits / "annotations" / "instances_train.json").read_text())
    small = tmp_path / "small"
    (small / "images").mkdir(parents=True)
    (small / "annotations").mkdir()
    images = [{**image, "width": 20, "height": 20} for image in rows["images"][:4]]
    for image in images:
        Image.new("RGB", (20, 20), (90, 120, 30)).save(small / "images" / image["file_name"])
    objects = [
        {"id": n, "image_id": image["id"], "category_id": rows["categories"][0]["id"], "bbox": [2, 2, 10, 12],
         "area": 120, "iscrowd": 0, "segmentation": [[2, 2, 12, 2, 12, 14, 2, 14]]}
        for n, image in enumerate(images, 1)
    ]  # fmt: skip
    content = json.dumps({"images": images, "annotations": objects, "categories": rows["categories"]})
    for name in ("train", "val"):
        (small / "annotations" / f"instances_{name}.json").write_text(content)
    told: list[str] = []
    short = ["model.backbone=tiny", "train.steps=1", "data.workers=0", "data.image_size=32"]
    summary = train(small, tmp_path / "run", overrides=short, tell=told.append)
    assert summary.steps == 1
    assert any("only 20 px" in line for line in told)


@pytest.mark.parametrize(
    ("stated", "chosen_exif"),
    [({"shown"}, "apply"), ({"stored"}, "ignore"), ({"shown", "stored"}, None), (set[str](), None)],
)
def test_turned_photographs_are_read_as_they_were_annotated(
    digits: Path, tmp_path: Path, stated: set[str], chosen_exif: str | None
) -> None:
    """By the size that the annotations state; where they are of both kinds, nobody can choose."""
    shutil.copytree(digits, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        del row["segmentation"]  # in the image's size
        row["bbox"] = [8, 8, 20, 20]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    for row, kind in zip(content["images"], sorted(stated), strict=False):
        image = next((tmp_path / "data").rglob(Path(row["file_name"]).name))
        Image.new("RGB", (64, 48)).save(image, exif=exif)
        row["width"], row["height"] = (48, 64) if kind == "shown" else (64, 48)
    path.write_text(json.dumps(content))
    made = plan(tmp_path / "data", overrides=["model.backbone=tiny"])
    assert get_setting(made.settings, "data.exif") == chosen_exif
    assert ("data.exif" in made.reasons) == (chosen_exif is not None)


def test_a_plan_is_a_file_that_train_takes(digits: Path, tmp_path: Path, leanmask: Callable[..., Outcome]) -> None:
    out = tmp_path / "plan.yaml"
    done = leanmask("plan", digits, "--out", out, "model.backbone=tiny", "--steps", 2)
    assert done.code == 0
    assert "data.image_size = " in done.out
    text = out.read_text()
    assert "  # " in text
    content = yaml.safe_load(text)
    assert content[PLANNED_FOR]["classes"][:2] == ["zero", "one"]
    assert leanmask("plan", digits, "--out", out).code == 2  # nothing is overwritten
    run = tmp_path / "run"
    done = leanmask("train", digits, "--config", out, "--out", run, "data.workers=0", "data.image_size=64")
    assert done.code == 0, done.err
    config = load_config(run)
    assert config.train.steps == 2
    assert config.train.batch_size == content["train"]["batch_size"]


def test_train_prints_every_choice_and_writes_its_reason(
    digits: Path, tmp_path: Path, leanmask: Callable[..., Outcome]
) -> None:
    run = tmp_path / "run"
    done = leanmask("train", digits, "--out", run, "model.backbone=tiny", "train.steps=2", "data.workers=0")
    assert done.code == 0, done.err
    text = (run / "config.yaml").read_text()
    for name in ("method.name", "data.image_size", "train.batch_size", "optim.lr"):
        assert f"{name} = " in done.err
    assert "train.steps" not in done.err.split("training")[0]
    line = next(line for line in text.splitlines() if line.strip().startswith("image_size:"))
    assert "# a tenth of the objects" in line
    assert "steps: 2  # set by you" in text


def test_a_plan_for_other_data_is_refused(digits: Path, tmp_path: Path) -> None:
    made = plan(digits, overrides=["model.backbone=tiny"])
    told = yaml.safe_load(made.to_yaml())
    require_fitting(told[PLANNED_FOR], made.data)
    with pytest.raises(ConfigError, match=r"other data.*cat, dog.*planned_for"):
        plan(digits, settings={**told, PLANNED_FOR: {**told[PLANNED_FOR], "classes": ["cat", "dog"]}})
    with pytest.raises(ConfigError, match="times as small"):
        require_fitting({"object_side": made.data.object_side.p50 / 3}, made.data)
    with pytest.raises(ConfigError, match="must be what"):
        plan(digits, settings={PLANNED_FOR: "yes"})
    # More labels of the same kind are the same data.
    plan(digits, settings={**told, PLANNED_FOR: {**told[PLANNED_FOR], "images": 3}})
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    with pytest.raises(RunError, match="exists already"):
        train(digits, tmp_path / "there")


def test_mistakes_are_sentences(digits: Path, leanmask: Callable[..., Outcome]) -> None:
    for arguments, said in {
        ("train.stepps=3",): "did you mean 'steps'",
        ("model.anchors=[1]",): "unknown setting 'model.anchors'",
        ("--method", "boosting"): "unknown method",
        ("--model", "mask_rcn"): "did you mean 'mask_rcnn'",
        ("model.backbone=lite9",): "did you mean",
        ("--minutes", "0"): "minutes is 0",
        ("data.image_size=100",): "data.image_size",
        ("data.image_size=large",): "data.image_size",
        ("train.epochs=0",): "train.epochs",
        ("data.train_split=trian",): "did you mean 'train'",
        ("--config", "nowhere.yaml"): "nowhere.yaml",
    }.items():
        done = leanmask("plan", digits, "model.backbone=tiny", *arguments)
        assert done.code == 2, arguments
        assert said in done.err.replace("\n", " "), (arguments, done.err)
        assert "Traceback" not in done.err
    with pytest.raises(DataError):
        plan("no/such/folder")


def test_without_a_plan_the_defaults_are_taken(digits: Path, tmp_path: Path) -> None:
    settings = {
        "model": {"backbone": "tiny"},
        "train": {"steps": 1, "batch_size": 2},
        "data": {"image_size": 64, "workers": 0},
    }
    train(digits, tmp_path / "run", settings=settings, plan=False)
    assert load_config(tmp_path / "run").optim.warmup_steps == 100
    with pytest.raises(ConfigError, match="minutes shorten a plan"):
        train(digits, tmp_path / "other", settings=settings, plan=False, minutes=3)


def test_a_step_is_timed_and_every_method_has_its_price(digits: Path) -> None:
    assert METHOD_STEPS.keys() == (METHODS | STAGED).keys()
    settings = {
        "data": {"path": str(digits), "image_size": 64},
        "model": {"name": "mask_rcnn", "backbone": "tiny"},
        "method": {"name": "supervised"},
        "train": {"batch_size": 2, "precision": "fp32", "channels_last": True},
    }
    before = torch.random.get_rng_state()
    alone = seconds_per_step(resolve(settings))
    assert 0 < alone < 30
    assert torch.equal(before, torch.random.get_rng_state())


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = PLAIN | st.lists(PLAIN, max_size=3)
REASONS = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Z")))


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), VALUES | st.dictionaries(st.text(), VALUES, min_size=1), max_size=4), REASONS)
def test_settings_with_reasons_are_the_same_settings(found: dict[str, Any], reason: str) -> None:
    parts = {a: part for a, part in found.items() if isinstance(part, dict)}
    reasons = dict.fromkeys(found, reason) | {f"{a}.{b}": reason for a, part in parts.items() for b in part}
    assert (yaml.safe_load(commented_yaml(found, reasons)) or {}) == found


def test_dotted_settings() -> None:
    settings = set_setting({"a": {"b": 1}}, "a.c", None)
    assert settings == {"a": {"b": 1, "c": None}}
    assert get_setting(settings, "a.c", 5) is None
    assert get_setting(settings, "a.b.c", 5) == 5


@pytest.mark.parametrize("name", ["animals", "facades", "nuclei"])
def test_plans_of_photographs(name: str) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"the data set {name} is not here")
    made = plan(REAL / name)
    assert made.settings["model"]["backbone"] == "lite0"
    assert made.settings["data"]["image_size"] == {"animals": 192, "facades": 384, "nuclei": 384}[name]
    assert made.data.objects_per_image.most == {"animals": 7, "facades": 94, "nuclei": 369}[name]
