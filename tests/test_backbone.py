"""Backbones and pretrained weights: shapes, what is frozen, what loads, and the sentence when something does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.ops import FrozenBatchNorm2d

from leanmask.errors import CheckpointError
from leanmask.models import weights as weights_module
from leanmask.models.backbone import BackboneSpec, build_backbone
from leanmask.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from leanmask.models.weight_files import read_state
from leanmask.models.weights import load_pretrained


@pytest.mark.parametrize("name", ["tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnext101"])
def test_every_backbone_gives_five_maps(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(name, "group", 32, 5))
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [tuple(m.shape[1:]) for m in maps.values()] == [
        (32, 16, 24),
        (32, 8, 12),
        (32, 4, 6),
        (32, 2, 3),
        (32, 1, 2),
    ]


@pytest.mark.parametrize(
    ("layers", "learning"),
    [(0, set()), (2, {"layer4", "layer3"}), (5, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"})],
)
def test_trainable_layers(layers: int, learning: set[str]) -> None:
    backbone = build_backbone(BackboneSpec("tiny", "group", 16, layers))
    found = {name.split(".")[0] for name, p in backbone.body.named_parameters() if p.requires_grad}
    assert found == learning
    assert all(p.requires_grad for p in backbone.fpn.parameters())


def test_norms() -> None:
    frozen = build_backbone(BackboneSpec("resnet18", "frozen_batch", 16, 5))
    assert any(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    grouped = build_backbone(BackboneSpec("resnet18", "group", 16, 5))
    assert any(isinstance(m, nn.GroupNorm) for m in grouped.modules())


def test_backbone_parameters_are_the_body_that_learns() -> None:
    model = MaskRCNN(MaskRCNNConfig(backbone="tiny", trainable_layers=1), 3)
    assert {id(p) for p in model.backbone_parameters()} == {id(p) for p in model.backbone.body.layer4.parameters()}


def config(path: Path, **settings: object) -> MaskRCNNConfig:
    return MaskRCNNConfig(backbone="resnet18", weights=str(path), fpn_channels=32, box_channels=32, **settings)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_classifiers_file_loads_into_the_backbone(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    source, path = resnet18(weights=None), tmp_path / f"resnet18{suffix}"
    source.bn1.running_mean.normal_()
    state = source.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = MaskRCNN(config(path), 3)
    assert torch.equal(model.backbone.body.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    assert torch.equal(model.backbone.body.bn1.running_mean, source.bn1.running_mean)
    assert str(path) in model.weights_note
    skipped = MaskRCNN(config(path), 3, pretrained=False)
    assert not torch.equal(skipped.backbone.body.conv1.weight, source.conv1.weight)


def test_a_detector_of_other_classes_loads_but_for_its_predictors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "coco.pth"
    coco = MaskRCNN(MaskRCNNConfig(backbone="tiny"), 90)
    torch.save({"model": coco.state_dict()}, path)
    model = MaskRCNN(MaskRCNNConfig(backbone="tiny", weights=str(path)), 3)
    assert torch.equal(model.roi_heads.box_head.fc6.weight, coco.roi_heads.box_head.fc6.weight)
    assert model.roi_heads.box_predictor.cls_score.weight.shape[0] == 4
    for name in ("box_predictor.cls_score.weight", "box_predictor.bbox_pred.bias", "mask_fcn_logits.weight"):
        assert name in model.weights_note
    same = MaskRCNN(MaskRCNNConfig(backbone="tiny", weights=str(path)), 90)
    assert "but for" not in same.weights_note


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(resnet50(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match="do not fit"):
        MaskRCNN(config(path), 3)


def test_half_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    state = MaskRCNN(MaskRCNNConfig(backbone="tiny"), 3).state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("rpn.")}, path)
    with pytest.raises(CheckpointError, match=r"lack rpn\.head"):
        MaskRCNN(MaskRCNNConfig(backbone="tiny", weights=str(path)), 3)


class Evil:
    """Pickled as a call; loading it must not run the call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_state(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    for name in ("text.pth", "text.safetensors", "evil.pth", "list.pth", "cut.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_unknown_names() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'IMAGENET1K_V1'"):
        MaskRCNN(MaskRCNNConfig(backbone="resnet18", weights="IMAGENET1K"), 3)
    with pytest.raises(CheckpointError, match="tiny"):
        MaskRCNN(MaskRCNNConfig(backbone="tiny", weights="DEFAULT"), 3)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        url = "https://weights.example/resnet18.pth"

        def get_state_dict(self, **_: object) -> dict[str, torch.Tensor]:
            raise OSError("no route to host")

    monkeypatch.setattr(weights_module, "_choices", lambda backbone: {"DEFAULT": Offline()})
    with pytest.raises(CheckpointError, match=r"cannot download weights 'DEFAULT'.*no route"):
        load_pretrained(nn.Identity(), BackboneSpec("resnet18", "group", 16, 5), "DEFAULT")


def test_detector_weights_have_torchvisions_name() -> None:
    assert "COCO_V1" in weights_module._choices("resnet50")
    assert set(weights_module._choices("resnext101")) >= {"DEFAULT", "IMAGENET1K_V2"}
    assert weights_module._choices("tiny") == {}
