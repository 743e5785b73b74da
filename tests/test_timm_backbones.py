"""timm's networks as backbones: strides, shapes, gradients, odd sizes, windows, weights, and unknown names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from run_helpers import Outcome
from safetensors.torch import save_file

from leanmask.errors import CheckpointError, ConfigError
from leanmask.models.backbone import BackboneSpec, build_backbone
from leanmask.models.cascade_mask_rcnn import CascadeMaskRCNN, CascadeMaskRCNNConfig
from leanmask.models.timm_backbones import PlainTransformer, join_windows, split_windows
from leanmask.retrieval.embed import load_embedder
from leanmask.settings import resolve

THIN = (("depth", 4), ("embed_dim", 32), ("num_heads", 2))
FAMILIES: dict[str, tuple[tuple[str, Any], ...]] = {
    "timm:resnet10t": (),
    "timm:convnext_atto": (("depths", (1, 1, 1, 1)), ("dims", (8, 8, 16, 16))),
    "timm:swin_tiny_patch4_window7_224": (
        ("embed_dim", 8),
        ("depths", (1, 1, 1, 1)),
        ("num_heads", (1, 1, 2, 2)),
        ("img_size", 64),
        ("strict_img_size", False),
    ),
    "timm:vit_small_patch14_dinov2": THIN,
    "timm:vit_small_patch16_dinov3": THIN,
    "timm:eva02_tiny_patch14_224": THIN,
}


def spec(name: str, **given: Any) -> BackboneSpec:
    return BackboneSpec(
        **{"name": name, "norm": "own", "channels": 16, "trainable_layers": 5, "options": FAMILIES[name]} | given
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_strides_shapes_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(spec(name))
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "0": (1, 16, 16, 24),
        "1": (1, 16, 8, 12),
        "2": (1, 16, 4, 6),
        "3": (1, 16, 2, 3),
        "pool": (1, 16, 1, 2),
    }
    sum(value.square().sum() for value in maps.values()).backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in without if "fc_norm" not in n], without
    with torch.no_grad():  # an odd size is padded, not refused
        odd = backbone(torch.rand(1, 3, 75, 101))
    assert all(value.isfinite().all() for value in odd.values())
    assert tuple(odd["2"].shape[-2:]) in {(5, 7), (6, 8)}  # 75 x 101 px, padded to a multiple of 16 or 32


@pytest.mark.parametrize(("height", "width", "side"), [(5, 7, 3), (4, 4, 4), (6, 3, 3), (1, 9, 4)])
def test_windows_are_joined_as_they_were_split(height: int, width: int, side: int) -> None:
    tokens = torch.randn(2, height, width, 5)
    parts, padded = split_windows(tokens, side)
    assert parts.shape[1:] == (side, side, 5)
    assert torch.equal(parts[0], torch.nn.functional.pad(tokens[0], (0, 0, 0, side, 0, side))[:side, :side])
    assert torch.equal(join_windows(parts, padded, (height, width)), tokens)


def test_windowed_blocks_do_not_look_beyond_their_window() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 48:, 48:] = 0
    for blocks, reaches in (((), False), ((3,), True)):
        body = build_backbone(spec("timm:eva02_tiny_patch14_224", window=2, global_blocks=blocks)).body.eval()
        with torch.no_grad():
            before, after = body(images)["0"], body(changed)["0"]
        assert torch.allclose(before[..., 0, 0], after[..., 0, 0], atol=1e-6) != reaches
        assert not torch.allclose(before[..., 3, 3], after[..., 3, 3])


def test_published_eva02_large() -> None:
    with torch.device("meta"):
        large = CascadeMaskRCNNConfig(backbone="timm:eva02_large_patch14_224", weights=None).backbone_spec()
        body = build_backbone(large).body
    assert isinstance(body, PlainTransformer)
    assert (len(body.network.blocks), body.width, body.window) == (24, 1024, 16)
    assert body.global_blocks == {5, 11, 17, 23}
    width, hidden = 1024, 1024 * 4 * 2 // 3
    attention = 4 * width * width + 3 * width  # q, k, v, projection; k has no bias
    mlp = 2 * (width * hidden + hidden) + hidden * width + width + 2 * hidden  # SwiGLU with a norm inside
    blocks = 24 * (attention + mlp + 2 * 2 * width)
    rest = 3 * 16 * 16 * width + width + (1 + 16 * 16) * width + 2 * width  # patches, positions, last norm
    assert sum(p.numel() for p in body.parameters()) == blocks + rest


def test_a_cascade_learns_with_a_plain_transformer() -> None:
    config = CascadeMaskRCNNConfig(
        backbone="timm:vit_small_patch16_dinov3",
        weights=None,
        backbone_options=dict(THIN),
        fpn_channels=16,
        box_channels=16,
        box_convs=1,
        mask_channels=8,
        mask_convs=1,
        rpn_before_nms=(32, 32),
        rpn_after_nms=(32, 16),
    )
    model = CascadeMaskRCNN(config, 3)
    found = model.eval().predict(torch.rand(1, 3, 64, 64))
    assert len(found) == 1
    assert model.backbone_parameters()


def test_a_local_file_is_loaded_and_another_shape_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "small.safetensors"
    source = timm.create_model("vit_small_patch14_dinov2", img_size=56, **dict(THIN))
    save_file(source.state_dict(), path)
    settings = {
        "backbone": "timm:vit_small_patch14_dinov2",
        "weights": str(path),
        "fpn_channels": 16,
        "box_channels": 16,
    }
    model = CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings, backbone_options=dict(THIN)), 3)
    own = model.backbone.body.network
    assert torch.equal(own.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert own.patch_embed.proj.weight.shape[-1] == 16  # resampled from 14
    assert str(path) in model.weights_note
    wider = dict(THIN) | {"embed_dim": 48}
    with pytest.raises(CheckpointError, match=r"do not fit .*size mismatch for .*;.*size mismatch"):
        CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings, backbone_options=wider), 3)
    with pytest.raises(CheckpointError, match="does not exist"):
        CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings | {"weights": "none.pth"}, backbone_options=dict(THIN)), 3)


class Payload:
    """What a pickle runs when it is read without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_nothing_in_a_file_of_weights_is_run(tmp_path: Path) -> None:
    """Neither in the file, nor in one that options name, which come with a file of weights."""
    evil, mark = tmp_path / "evil.pth", tmp_path / "run"
    torch.save({"state_dict": Payload(mark)}, evil)
    settings = {"backbone": "timm:resnet10t", "fpn_channels": 16, "box_channels": 16}
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings, weights=str(evil)), 3)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_embedder("timm:resnet10t", str(evil))
    for options in (
        {"checkpoint_path": str(evil)},
        {"pretrained_cfg_overlay": {"file": str(evil)}},
        {"pretrained_cfg": str(evil)},
        {"depth": [1, str(evil)]},
    ):
        with pytest.raises(ConfigError, match=r"model.backbone_options.\w+ is .*allowed are numbers"):
            CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings, weights=None, backbone_options=options), 3)
        with pytest.raises(ConfigError, match="allowed are numbers"):  # asked for its depth when settings are checked
            CascadeMaskRCNNConfig(backbone="timm:eva02_tiny_patch14_224", weights=None, backbone_options=options)
    assert not mark.exists()


def test_a_file_in_which_tensors_are_missing_is_refused(tmp_path: Path) -> None:
    """timm loads what fits, be it nothing."""
    whole = timm.create_model("resnet10t", features_only=True).state_dict()
    lacking = {name: value for name, value in whole.items() if name != "layer2.0.conv1.weight"}
    settings = {"backbone": "timm:resnet10t", "fpn_channels": 16, "box_channels": 16}
    for state, sentence in (
        ({"x": torch.ones(3)}, r"lack \d+ of its \d+ tensors, such as conv1"),
        (lacking, r"lack 1 of its \d+ tensors, such as layer2.0.conv1.weight"),
    ):
        path = tmp_path / "part.safetensors"
        save_file(state, path)
        with pytest.raises(CheckpointError, match=sentence):
            CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings, weights=str(path)), 3)
        with pytest.raises(CheckpointError, match=sentence):
            load_embedder("timm:resnet10t", str(path))


def test_a_file_of_timm_in_another_wrapping(tmp_path: Path) -> None:
    """As timm's own training saves it, of several processes."""
    source = timm.create_model("resnet10t", features_only=True)
    path = tmp_path / "model_best.pth.tar.pth"
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in source.state_dict().items()}, "epoch": 3}, path
    )
    settings = {"backbone": "timm:resnet10t", "weights": str(path), "fpn_channels": 16, "box_channels": 16}
    model = CascadeMaskRCNN(CascadeMaskRCNNConfig(**settings), 3)
    own = model.backbone.body.network.state_dict()  # its norms are frozen and count no batches
    kept = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(own[name], value) for name, value in kept.items())


def test_unknown_names_offer_the_nearest() -> None:
    def told(name: str) -> None:
        resolve({"data": {"path": "."}, "method": "supervised", "model": {"name": "mask_rcnn", "backbone": name}})

    with pytest.raises(ConfigError, match=r"model.backbone 'resnet5' is unknown.*did you mean 'resnet50'"):
        told("resnet5")
    with pytest.raises(ConfigError, match=r"timm has no model 'eva02_large_patch14_22'.*did you mean 'eva02_large"):
        told("timm:eva02_large_patch14_22")
    with pytest.raises(ConfigError, match="trainable_layers is 3"):
        build_backbone(spec("timm:resnet10t", trainable_layers=3))
    with pytest.raises(ConfigError, match=r"cannot build 'convnext_atto' .*wings=2"):
        build_backbone(spec("timm:convnext_atto", options=(("wings", 2),)))


def test_frozen_norms_and_layers() -> None:
    frozen = build_backbone(spec("timm:resnet10t", norm="frozen_batch", trainable_layers=0))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.body.parameters())
    assert all(p.requires_grad for p in frozen.fpn.parameters())


def test_doctor_lists_them(leanmask: Callable[..., Outcome]) -> None:
    names = json.loads(leanmask("doctor", "--backbones", "--json").out)
    assert {"tiny", "resnet50", "timm:eva02_large_patch14_224"} <= set(names)
