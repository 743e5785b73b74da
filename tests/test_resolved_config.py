"""A run's configuration says every setting: nothing that is null has its value in the code, and what an older version
wrote still means what it meant.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from leanmask.benchmark.arms import JUDGE
from leanmask.config import merge
from leanmask.errors import ConfigError
from leanmask.inference.predict import load
from leanmask.methods.base import TrainStage
from leanmask.models import MODELS, timm_backbones
from leanmask.models.backbone_config import BackboneConfig
from leanmask.models.spec import IMAGENET_MEAN, IMAGENET_STD
from leanmask.run import train
from leanmask.settings import RunConfig, resolve, stored
from leanmask.stages import StagedRun
from leanmask.summary import TrainSummary

BACKBONES = ("lite0", "lite2", "tiny", "resnet50", "timm:convnext_atto", "timm:eva02_tiny_patch14_224")
CASES = [(name, backbone) for name in MODELS for backbone in BACKBONES] + [("mask2former", "swin_large")]
# What null itself means something in: no windows, from scratch, all classes.
MEANT = {"window", "weights", "federated_classes"}


def config_of(name: str, backbone: str, **given: Any) -> RunConfig:
    model = {"name": name, "backbone": backbone, **given}
    return resolve({"data": {"path": "."}, "method": "supervised", "model": model})


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_no_value_is_left_to_the_code(name: str, backbone: str) -> None:
    config = config_of(name, backbone)
    written = config.model_dump(mode="json")
    assert {key for key, value in written["model"].items() if value is None} <= MEANT
    assert "auto" not in written["model"].values()
    assert isinstance(written["optim"]["backbone_lr_factor"], float)
    again = resolve(written)
    assert again == config
    assert again.model_dump(mode="json") == written


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_a_preset_is_a_setting(name: str) -> None:
    kind = MODELS[name].Config
    assert issubclass(kind, BackboneConfig)
    for preset in (kind.PUBLISHED, kind.SMALL):
        for field in dataclasses.fields(preset):
            assert kind.model_fields[field.name].default is None, field.name  # else the preset's number were ignored
    assert config_of(name, "lite1").model.sizes() == kind.SMALL
    sizes = config_of(name, "resnet18").model.sizes()
    assert sizes == kind.PUBLISHED


def test_what_auto_and_null_become() -> None:
    found = {backbone: config_of("mask_rcnn", backbone) for backbone in BACKBONES}
    told = {name: (each.model.weights, each.model.norm, each.model.trainable_layers) for name, each in found.items()}
    assert told == {
        "lite0": ("imagenet", "frozen_batch", 5),
        "lite2": ("imagenet", "frozen_batch", 5),
        "tiny": (None, "group", 5),
        "resnet50": ("DEFAULT", "frozen_batch", 3),
        "timm:convnext_atto": ("DEFAULT", "frozen_batch", 5),
        "timm:eva02_tiny_patch14_224": ("DEFAULT", "frozen_batch", 5),
    }
    assert resolve({"data": {"path": "."}, "method": "supervised", "model": "solov2"}).model.backbone == "lite0"
    rates = [each.optim.backbone_lr_factor for each in found.values()]
    assert rates == [0.3, 0.3, 1.0, 1.0, 0.3, 0.3]
    scratch = config_of("mask_rcnn", "lite0", weights=None)
    assert (scratch.model.norm, scratch.optim.backbone_lr_factor) == ("own", 1.0)
    assert config_of("mask_rcnn", "resnet50", weights=None).model.norm == "group"
    large = config_of("mask2former", "swin_large").model
    assert (large.weights, large.queries) == ("facebook/mask2former-swin-large-coco-instance", 200)
    windowed = found["timm:eva02_tiny_patch14_224"].model
    assert (windowed.window, windowed.global_blocks) == (16, (2, 5, 8, 11))
    assert config_of("mask_rcnn", "timm:eva02_tiny_patch14_224", window=None).model.global_blocks == ()
    assert windowed.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"image_std": [0.2, 0, 0.2]}, r"'model.image_std.1' is 0: input should be greater than 0"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, r"'model.image_mean.1' is nan: input should be a finite number"),
        ({"image_mean": [0.5]}, "model.image_mean"),
        ({"backbone": "lite3"}, r"'lite3' is unknown.*did you mean 'lite"),
        ({"backbone": 3}, "'model.backbone' is 3"),
        ({"weights": 3}, "'model.weights' is 3"),
        ({"weights": ""}, "'model.weights' is '': string should have at least 1 character"),
        ({"backbone": "tiny", "window": 0}, "model.window.*greater than or equal to 1"),
        ({"backbone": "timm:eva02_tiny_patch14_224", "backbone_options": [3]}, "'model.backbone_options' is"),
        ({"level_maps": [0, 1]}, "five numbers from 0 to 4, or none"),
    ],
)
def test_mistakes(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve({"data": {"path": "."}, "method": "supervised", "model": {"name": "solov2", **given}})


def old_settings(**given: Any) -> dict[str, Any]:
    """What the version before wrote, as far as it matters."""
    model = {"name": "mask_rcnn", "backbone": "tiny", "weights": None, "norm": None, "fpn_channels": None, **given}
    optim = {"backbone_lr_factor": 1.0}
    return {"data": {"path": "."}, "method": {"name": "supervised"}, "model": model, "optim": optim}


def test_what_an_older_version_wrote_means_what_it_meant() -> None:
    tiny = stored(old_settings())
    assert (tiny.model.backbone, tiny.model.weights, tiny.model.norm) == ("tiny", None, "group")
    eva = stored(old_settings(backbone="timm:eva02_tiny_patch14_224", weights="x.pth", window=None, norm="group"))
    assert (eva.model.image_mean, eva.model.image_std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (eva.model.window, eva.model.norm, eva.optim.backbone_lr_factor) == (16, "own", 1.0)
    scratch = stored(old_settings(backbone="resnet50"))
    assert (scratch.model.weights, scratch.model.norm) == (None, "group")
    staged = old_settings(name="solov2") | {"method": {"name": "pointwssis", "refiner": {"backbone": "resnet18"}}}
    assert stored(staged).method.refiner == {"backbone": "resnet18", "weights": None}
    staged["method"] = {"name": "pointwssis", "refiner": {"weights": None}}
    assert stored(staged).method.refiner == {}  # it began with the teacher's, whatever it said
    assert stored(tiny.model_dump(mode="json")) == tiny
    judged = {"name": "pldc", "judge": "python:leanmask.bench.handwriting:handwriting_judge"}
    assert stored(old_settings() | {"method": judged}).method.judge == JUDGE  # its package has another name now


def without_normalisation(source: Path, target: Path) -> None:
    """A weights file as the version before wrote it."""
    with safe_open(source, "pt") as opened:
        metadata = dict(opened.metadata())
    config = json.loads(metadata["config"])
    for name in ("image_mean", "image_std", "global_blocks"):
        del config["model"][name]
    config["model"] |= {"norm": None, "fpn_channels": None, "window": None}
    save_file(load_file(source), target, metadata | {"config": json.dumps(config)})


def test_an_older_weights_file_loads_and_predicts_as_before(trained: TrainSummary, tmp_path: Path) -> None:
    source = trained.folder / "best.safetensors"
    without_normalisation(source, tmp_path / "old.safetensors")
    new, old = load(source), load(tmp_path / "old.safetensors")
    assert new.config.model == old.config.model
    assert old.model.mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)


def test_a_run_of_the_default_backbone_needs_its_weights_only_to_begin(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    settings = {**TINY, "model": {}, "method": {"name": "supervised"}}
    train(digits, tmp_path / "run", settings=settings, plan=False, on_progress=lambda *said: notes.append(said[2]))
    assert any("weights: loaded imagenet into lite0" in note for note in notes)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["model"]["backbone"], written["model"]["image_mean"]) == ("lite0", [0.5, 0.5, 0.5])
    assert written["optim"]["backbone_lr_factor"] == 0.3

    def gone(backbone: str) -> None:
        raise AssertionError("the package was read")

    monkeypatch.setattr(timm_backbones, "packaged_weights", gone)
    loaded = load(tmp_path / "run")
    with safe_open(tmp_path / "run" / "best.safetensors", "pt") as opened:
        told = json.loads(opened.metadata()["preprocessing"])
    assert told["mean"] == loaded.model.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert told["std"] == loaded.model.std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_a_start_that_was_normalised_otherwise_is_refused(trained: TrainSummary, digits: Path, tmp_path: Path) -> None:
    settings = merge(TINY, {"model": {"image_mean": [0.5, 0.5, 0.5]}, "method": {"name": "supervised"}})
    settings = merge(settings, {"train": {"student_weights": str(trained.folder / "best.safetensors")}})
    with pytest.raises(ConfigError, match=r"was trained with model\.image_mean=\[0\.485.*this run has \[0\.5, 0\.5"):
        train(digits, tmp_path / "run", settings=settings)


def test_a_stage_with_another_model_sees_what_the_runs_backbone_sees(tmp_path: Path, trained: TrainSummary) -> None:
    def refiner(model: dict[str, Any], **own: Any) -> Any:
        settings = {"data": {"path": "."}, "model": {"name": "solov2", **model}}
        config = resolve(settings | {"method": {"name": "pointwssis", "refiner": own}})
        staged = StagedRun(config, tmp_path, "student", lambda *_: trained, None, {})
        (stage,) = [each for each in staged.stages if isinstance(each, TrainStage) and each.name == "refiner"]
        return staged.settings_of(stage).model

    teacher = str(tmp_path / "2-teacher" / "best.safetensors")
    lite = refiner({"backbone": "lite0", "image_mean": [0.4, 0.5, 0.5]})
    assert (lite.backbone, lite.weights, lite.norm) == ("lite0", teacher, "frozen_batch")
    assert lite.image_mean == (0.4, 0.5, 0.5)
    same = refiner({"backbone": "resnet18", "weights": None})
    assert (same.weights, same.norm, same.decoder_norm) == (teacher, "group", "batch")
    other = refiner({"backbone": "tiny"}, backbone="lite1")
    assert (other.weights, other.norm, other.image_mean) == ("imagenet", "frozen_batch", (0.5, 0.5, 0.5))
    assert refiner({"backbone": "lite0"}, weights=None).weights is None
