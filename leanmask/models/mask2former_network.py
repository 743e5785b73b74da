"""transformers' Mask2Former as our network: backbone, pixel decoder and transformer decoder built from our settings,
and its published checkpoints.

Backbones are those of all models (see backbone.py) or transformers' Swin; only with Swin do checkpoints of the hub fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from transformers import Mask2FormerConfig as NetworkConfig
from transformers import Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig
from transformers.modeling_outputs import BackboneOutput

from leanmask.errors import CheckpointError
from leanmask.models.backbone import build_body
from leanmask.models.spec import BackboneSpec
from leanmask.models.timm_backbones import PlainTransformer, SimplePyramid
from leanmask.models.weight_files import State, read_state
from leanmask.models.weights import FILE_SUFFIXES, load_backbone

STAGES = ("stage1", "stage2", "stage3", "stage4")
CLASS_HEAD = "class_predictor."
SWIN: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "swin_large": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
LARGE_QUERIES = 200  # of the published swin_large
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


class Encoder(nn.Module):
    """A backbone's four maps in the form in which transformers' pixel decoder takes them; those of a plain transformer
    are made by a simple feature pyramid.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.body, self.channels = build_body(spec)
        self.pyramid: nn.Module | None = None
        if isinstance(self.body, PlainTransformer):
            self.pyramid, self.channels = SimplePyramid(self.body.width, spec.channels), [spec.channels] * len(STAGES)

    def forward(self, images: Tensor) -> BackboneOutput:
        maps = self.body(images)
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        return BackboneOutput(feature_maps=tuple(maps.values())[: len(STAGES)])


def published_name(backbone: str) -> str:
    """The hub name of the published model of COCO instances with one of `SWIN`'s backbones."""
    return f"facebook/mask2former-{backbone.replace('_', '-')}-coco-instance"


class WithAnyBackbone(NetworkConfig):
    """The configuration of a network whose backbone is replaced: that of the stand-in is not to be warned of."""

    backbones_supported: ClassVar[list[str]] = ["swin", "resnet"]


def build_network(backbone: BackboneSpec, size: NetworkSize, num_classes: int) -> nn.Module:
    """transformers' network with random weights. backbone: its name may be one of `SWIN`'s. Raises ConfigError."""
    if backbone.name in SWIN:
        swin = SwinConfig(**SWIN[backbone.name], drop_path_rate=DROP_PATH_RATE, out_features=list(STAGES))
        return _network(swin, size, num_classes)
    encoder = Encoder(backbone)
    # transformers takes the maps' widths from a backbone of its own, which then makes room.
    stand_in = ResNetConfig(
        embedding_size=8, hidden_sizes=encoder.channels, depths=[1] * 4, layer_type="basic", out_features=list(STAGES)
    )
    network = _network(stand_in, size, num_classes)
    cast(Any, network).model.pixel_level_module.encoder = encoder
    return network


def _network(backbone: Any, size: NetworkSize, num_classes: int) -> nn.Module:
    config = WithAnyBackbone(
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


def load_weights(network: nn.Module, backbone: BackboneSpec, weights: str) -> str:
    """Load `weights` and say what was loaded.

    weights: a folder or hub name of a Mask2Former in transformers' format; a .safetensors or .pth file of a
    Mask2Former that leanmask trained; or what `weights.load_backbone` takes for the backbone. A class head of
    other classes is left out. Raises CheckpointError.
    """
    if weights.endswith(FILE_SUFFIXES):
        state = read_state(Path(weights))
        if any(name.startswith("network.") for name in state):
            own = {name.removeprefix("network."): value for name, value in state.items()}
            return _fill(network, own, weights)
    elif "/" in weights or Path(weights).is_dir():
        return _fill(network, _published(cast(Any, network).config, weights), weights)
    if backbone.name in SWIN:
        raise CheckpointError(
            f"weights '{weights}' are none that backbone {backbone.name} can take; give a folder or hub name in "
            "transformers' format, such as facebook/mask2former-swin-tiny-coco-instance"
        )
    return load_backbone(cast(Any, network).model.pixel_level_module.encoder, backbone, weights)


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
            "--local-dir FOLDER) and give the folder as model.weights, or start from scratch with model.weights=null"
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
    kinds = [name for name in SWIN if _same_swin(theirs, SWIN[name])]
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
