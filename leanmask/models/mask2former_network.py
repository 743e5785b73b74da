"""transformers' Mask2Former as our network: backbone, pixel decoder and transformer decoder built from our settings,
and its published checkpoints.

Backbones are ours and torchvision's (see backbone.py) or transformers' Swin; only with Swin do checkpoints of the
model hub fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from transformers import Mask2FormerConfig as NetworkConfig
from transformers import Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.modeling_outputs import BackboneOutput

from leanmask.errors import CheckpointError
from leanmask.models.backbone import BackboneName, BackboneSpec, build_backbone
from leanmask.models.weights import FILE_SUFFIXES, State, load_pretrained, read_state

SwinName = Literal["swin_tiny", "swin_small", "swin_base", "swin_large"]
AnyBackbone = Literal[BackboneName, SwinName]
STAGES = ("stage1", "stage2", "stage3", "stage4")
CLASS_HEAD = "class_predictor."
SWIN: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "swin_large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
DROP_PATH_RATE = 0.3  # of the published Swin models


@dataclass(frozen=True)
class NetworkSize:
    """The numbers of the network; the defaults are the published ones. decoder_layers: one prediction is made before
    the first of them, so there are so many and one more.
    """

    channels: int = 256
    heads: int = 8
    queries: int = 100
    encoder_layers: int = 6
    encoder_feedforward: int = 1024
    decoder_layers: int = 9
    feedforward: int = 2048


class ResNetEncoder(nn.Module):
    """A ResNet's four maps in the form in which transformers' pixel decoder takes them."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        pyramid = build_backbone(spec)  # whose upper part is not needed here
        self.body = pyramid.body
        assert isinstance(pyramid, BackboneWithFPN), "Mask2Former's backbones are ours, torchvision's or Swin"
        self.channels = [block[0].in_channels for block in pyramid.fpn.inner_blocks]

    def forward(self, images: Tensor) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.body(images).values()))


def build_network(backbone: BackboneSpec | str, size: NetworkSize, num_classes: int) -> nn.Module:
    """transformers' network with random weights. backbone: a ResNet's spec, or one of `SWIN`'s names."""
    if isinstance(backbone, str):
        swin = SwinConfig(**SWIN[backbone], drop_path_rate=DROP_PATH_RATE, out_features=list(STAGES))
        return _network(swin, size, num_classes)
    encoder = ResNetEncoder(backbone)
    # transformers takes the maps' widths from a backbone of its own, which then makes room; both double at each map.
    stand_in = SwinConfig(
        embed_dim=encoder.channels[0], depths=[1] * 4, num_heads=[1] * 4, mlp_ratio=0.1, out_features=list(STAGES)
    )
    network = _network(stand_in, size, num_classes)
    cast(Any, network).model.pixel_level_module.encoder = encoder
    return network


def _network(backbone: Any, size: NetworkSize, num_classes: int) -> nn.Module:
    config = NetworkConfig(
        backbone_config=backbone,
        num_labels=num_classes,
        feature_size=size.channels,
        mask_feature_size=size.channels,
        hidden_dim=size.channels,
        num_attention_heads=size.heads,
        num_queries=size.queries,
        encoder_layers=size.encoder_layers,
        encoder_feedforward_dim=size.encoder_feedforward,
        decoder_layers=size.decoder_layers + 1,
        dim_feedforward=size.feedforward,
        output_auxiliary_logits=True,
    )
    network = Mask2FormerForUniversalSegmentation(config)
    network.criterion = None  # ours is in query_losses.py
    return cast(nn.Module, network)


def load_weights(network: nn.Module, backbone: str, weights: str) -> str:
    """Load `weights` and say what was loaded.

    weights: a folder or hub name of a Mask2Former in transformers' format; a .safetensors or .pth file of a
    Mask2Former that leanmask trained; or what `weights.load_pretrained` takes for a ResNet backbone. A class head of
    other classes is left out. Raises CheckpointError.
    """
    if weights.endswith(FILE_SUFFIXES):
        state = read_state(Path(weights))
        if any(name.startswith("network.") for name in state):
            own = {name.removeprefix("network."): value for name, value in state.items()}
            return _fill(network, own, weights)
    elif "/" in weights or Path(weights).is_dir():
        return _fill(network, _published(cast(Any, network).config, weights), weights)
    if backbone in SWIN:
        raise CheckpointError(
            f"weights '{weights}' are none that backbone {backbone} can take; give a folder or hub name in "
            "transformers' format, such as facebook/mask2former-swin-tiny-coco-instance"
        )
    body = cast(Any, network).model.pixel_level_module.encoder.body
    # load_pretrained knows detectors, whose backbone has this name.
    return load_pretrained(nn.ModuleDict({"backbone": nn.ModuleDict({"body": body})}), backbone, weights)


def _published(own: NetworkConfig, weights: str) -> State:
    folder = Path(weights).is_dir()
    if folder and not (Path(weights) / "config.json").is_file():
        raise CheckpointError(f"weights folder {weights} has no config.json, so it is not in transformers' format")
    try:
        config = NetworkConfig.from_pretrained(weights)
        differences = _differences(own, config)
        if differences:
            raise CheckpointError(
                f"weights '{weights}' are of a network of another size; set {', '.join(differences)} to use them"
            )
        network, found = Mask2FormerForUniversalSegmentation.from_pretrained(weights, output_loading_info=True)
    except CheckpointError:
        raise
    except Exception as error:  # readers of damaged files, and the hub's client, fail in any way
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        help_ = (
            ""
            if folder
            else f"; where there is no network, download them elsewhere (hf download {weights} "
            "--local-dir FOLDER) and give the folder as weights"
        )
        raise CheckpointError(f"cannot load weights '{weights}' ({reason}){help_}") from None
    lost = sorted(name for name in found["missing_keys"] if not name.startswith("criterion."))
    if lost:
        raise CheckpointError(f"weights '{weights}' lack {lost[0]} and {len(lost) - 1} more")
    state = network.state_dict()
    return {name: value for name, value in state.items() if not name.startswith("criterion.")}


def _differences(own: Any, other: Any) -> list[str]:
    """The settings that would make our network as large as the other, as overrides."""
    names = {
        "channels": "hidden_dim",
        "heads": "num_attention_heads",
        "queries": "num_queries",
        "encoder_layers": "encoder_layers",
        "encoder_feedforward": "encoder_feedforward_dim",
        "decoder_layers": "decoder_layers",
        "feedforward": "dim_feedforward",
    }
    found = []
    mine, theirs = own.backbone_config, other.backbone_config
    kinds = [name for name in get_args(SwinName) if _same_swin(theirs, SWIN[name])]
    if mine.model_type != "swin" or not kinds or not _same_swin(mine, SWIN[kinds[0]]):
        found.append(f"model.backbone={kinds[0] if kinds else 'something else (theirs is not known here)'}")
    for name, field in names.items():
        if getattr(own, field) != getattr(other, field):
            found.append(f"model.{name}={getattr(other, field) - (name == 'decoder_layers')}")
    return found


def _same_swin(config: Any, sizes: dict[str, Any]) -> bool:
    return config.model_type == "swin" and all(_plain(getattr(config, key)) == sizes[key] for key in sizes)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _fill(network: nn.Module, state: State, source: str) -> str:
    own = network.state_dict()
    left_out = [name for name in state if name.startswith(CLASS_HEAD) and own[name].shape != state[name].shape]
    kept = {name: value for name, value in state.items() if name not in left_out}
    try:
        missing, unexpected = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n")[1:]]
        raise CheckpointError(f"weights '{source}' do not fit this model: {lines[0] if lines else error}") from None
    lost = [name for name in missing if name not in left_out]
    if lost or unexpected:
        strange = f"lack {lost[0]} and {len(lost) - 1} more" if lost else f"hold unknown {unexpected[0]}"
        raise CheckpointError(f"weights '{source}' do not fit this model: they {strange}")
    if left_out:
        return f"loaded {source} but for {', '.join(left_out)}, which start from scratch (other classes)"
    return f"loaded {source}"
