"""Backbones of the timm library by their names there, with a feature pyramid: convolutional and hierarchical ones
through their own maps, plain vision transformers (EVA-02, DINOv2, DINOv3, ...) through a simple feature pyramid (Li et
al. 2022, "Exploring plain vision transformer backbones for object detection").

Letters: B images, C channels, H W rows and columns of a map, T tokens, D width of a transformer.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from leanmask.errors import CheckpointError, ConfigError, suggest
from leanmask.models.packaged_weights import packaged_weights
from leanmask.models.spec import IMAGENET_MEAN, IMAGENET_STD, LITE, PREFIX, BackboneSpec, Triple, timm_name
from leanmask.models.weight_files import read_state

PATCH_PX = 16
STRIDES = (4, 8, 16, 32)
PUBLISHED_WINDOW = 16  # tokens along one side, in EVA-02's detectors at 1024 px
MISMATCHES_TOLD = 3
PACKAGED = "imagenet"  # the name of the weights that packages carry
DOWNLOAD = "DEFAULT"
# Options of a backbone come with files of weights, which anybody may have made. No path and no address is among them:
# timm would load what is there.
NAMED_OPTIONS = ("act_layer", "norm_layer")


def timm_names() -> list[str]:
    """Names of all of timm's models, without the prefix."""
    return list(timm.list_models())


def require_timm_name(name: str) -> None:
    """Raise ConfigError, offering the nearest, when timm has no model `name` (with prefix)."""
    names = timm_names()
    plain = name.removeprefix(PREFIX)
    if plain not in names:
        near = suggest(plain, names)
        raise ConfigError(f"timm has no model '{plain}'{near}; `leanmask doctor --backbones` lists all")


def own_normalisation(name: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the images that timm's weights of this backbone were trained on, RGB in [0, 1];
    ImageNet's where timm has no weights.
    """
    known = timm.get_pretrained_cfg(timm_name(name))
    if known is None:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = (tuple(float(value) for value in values) for values in (known.mean, known.std))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def last_of_quarters(name: str, options: dict[str, Any]) -> tuple[int, ...]:
    """The blocks of a plain transformer that see all tokens where the others see windows: each quarter's last."""
    spec = BackboneSpec(name, "own", 1, 5, tuple(options.items()))
    plain = _plain_options(spec)
    if plain is None:
        return ()
    with torch.device("meta"):
        depth = len(_create(spec, plain, False).blocks)
    return tuple(depth * part // 4 - 1 for part in (1, 2, 3, 4))


def build_timm(spec: BackboneSpec, stem: bool = False) -> tuple[FeatureMaps | PlainTransformer, list[int]]:
    """As `build_body`, for a network of timm."""
    if spec.trainable_layers not in (0, 5):
        raise ConfigError(
            f"model.trainable_layers is {spec.trainable_layers}; for backbones of timm it is 0 (frozen) or 5 (all)"
        )
    if spec.norm not in ("own", "frozen_batch"):
        raise ConfigError(f"model.norm is {spec.norm}; for backbones of timm it is frozen_batch or own")
    body: FeatureMaps | PlainTransformer
    plain = _plain_options(spec)
    if plain is not None:
        if stem:
            raise ConfigError(f"{spec.name} has one map, at stride 16; this model needs one at stride 2, too")
        body = PlainTransformer(_create(spec, plain, False), spec)
        widths = [body.width]
    else:
        strides = (2, *STRIDES) if stem else STRIDES
        network = _create(spec, {"features_only": True}, False)
        found = list(network.feature_info.reduction())
        if not set(strides) <= set(found):
            raise ConfigError(f"{spec.name} has maps at strides {found}; this model needs {list(strides)}")
        body = FeatureMaps(network, [found.index(stride) for stride in strides], ["stem"] if stem else [])
        widths = body.widths
    if spec.norm == "frozen_batch":
        body.network = freeze_batch_norm_2d(body.network)
    body.requires_grad_(spec.trainable_layers > 0)
    return body, widths


def _create(spec: BackboneSpec, more: dict[str, Any], pretrained: bool, file: str | None = None) -> Any:
    for key, value in spec.options:
        if not (_is_number(value) or (key in NAMED_OPTIONS and isinstance(value, str))):
            raise ConfigError(
                f"model.backbone_options.{key} is {value!r}; allowed are numbers, yes and no, lists of them, and names "
                f"for {' and '.join(NAMED_OPTIONS)}"
            )
    name = timm_name(spec.name)
    make = partial(timm.create_model, name, pretrained=pretrained, **more, **dict(spec.options))
    try:
        return with_file(make, file, spec.name) if file else make()
    except (TypeError, AttributeError) as error:
        told = ", ".join(f"{key}={value}" for key, value in spec.options)
        raise ConfigError(
            f"timm cannot build '{name}' for detection with these options ({told or 'none'}): {error}"
        ) from None


def _is_number(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_number(each) for each in value)
    return value is None or isinstance(value, bool | int | float)


def with_file(make: Callable[..., Any], file: str, name: str) -> Any:
    """A network of timm with the weights of a local file. make: `timm.create_model` with its other arguments. name: of
    the network, for errors. The file is read here: timm's own reader has executed what pickled files told it to.

    timm also takes files that lack tensors, or all of them, and says nothing. A tensor that was not loaded is random:
    it differs between two networks of different seeds. Raises CheckpointError.
    """
    state = read_state(Path(file))
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):
            torch.manual_seed(seed)
            source = {"state_dict": dict(state), "file": None, "url": None, "hf_hub_id": None, "source": ""}
            networks.append(make(pretrained_cfg_overlay=source))
    first, second = (network.state_dict() for network in networks)
    lost = [key for key, value in first.items() if not torch.equal(value, second[key])]
    if lost:
        told = ", ".join(lost[:MISMATCHES_TOLD])
        raise CheckpointError(
            f"weights '{file}' do not fit {name}: they lack {len(lost)} of its {len(first)} tensors, such as {told}"
        )
    return networks[0]


def _plain_options(spec: BackboneSpec) -> dict[str, Any] | None:
    """What makes a plain transformer of patches of 16 px for any image size; None for other networks.

    A model of other patches keeps its grid of positions; timm resamples its patches when weights are loaded, as the
    published detectors do (14 to 16 px).
    """
    name = timm_name(spec.name)
    if timm.model_entrypoint(name).__module__ not in ("timm.models.vision_transformer", "timm.models.eva"):
        return None
    found = re.search(r"patch(\d+)", name)
    patch = int(found.group(1)) if found else PATCH_PX
    size = timm.get_pretrained_cfg(name).input_size[-1]
    return {"num_classes": 0, "dynamic_img_size": True, "patch_size": PATCH_PX, "img_size": size // patch * PATCH_PX}


class FeatureMaps(nn.Module):
    """A timm network's maps at strides 4, 8, 16 and 32, as "0" to "3", sizes rounded up. network: made with
    features_only. chosen: the numbers of these maps among the network's. before: names of maps in front of them.
    """

    def __init__(self, network: Any, chosen: Sequence[int], before: Sequence[str] = ()) -> None:
        super().__init__()
        self.network, self.chosen = network, list(chosen)
        self.names = [*before, *(str(level) for level in range(len(STRIDES)))]
        channels = network.feature_info.channels()
        self.widths = [channels[index] for index in chosen]

    def forward(self, images: Any) -> dict[str, Tensor]:
        if isinstance(images, Tensor):  # what MaskRefineNet gives is of the right size
            height, width = images.shape[-2:]
            right, below = -width % STRIDES[-1], -height % STRIDES[-1]
            images = F.pad(images, (0, right, 0, below)) if right or below else images
        maps = self.network(images)
        found = OrderedDict()
        for name, index, width in zip(self.names, self.chosen, self.widths, strict=True):
            each = maps[index]
            if each.shape[1] != width:  # some networks (Swin) keep channels last
                each = each.permute(0, 3, 1, 2).contiguous()
            found[name] = each
        return found


class PlainTransformer(nn.Module):
    """A plain vision transformer's last map, {"0": (B, D, H / 16, W / 16)}, sizes rounded up.

    Class and register tokens are left out, as in ViTDet. Where `spec.window` (tokens) is set, all blocks but
    `spec.global_blocks` see windows of that many tokens along a side.
    """

    def __init__(self, network: Any, spec: BackboneSpec) -> None:
        super().__init__()
        if getattr(network, "rope_mixed", False):
            raise ConfigError(f"{spec.name} has rotary positions of its own in every block, which is not supported")
        network.cls_token = network.reg_token = None
        for block in network.blocks:  # rotary positions skip so many tokens at the front
            block.attn.num_prefix_tokens = 0
        self.network, self.width = network, int(network.embed_dim)
        self.window, self.global_blocks = spec.window, set(spec.global_blocks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % PATCH_PX, 0, -height % PATCH_PX))
        network = self.network
        tokens = network.patch_embed(images)  # (B, H, W, D)
        size = (int(tokens.shape[1]), int(tokens.shape[2]))
        tokens = network.norm_pre(self._with_positions(tokens, size))
        whole, windowed = self._rotary(size), self._rotary((self.window or 0,) * 2)
        for number, block in enumerate(network.blocks):
            if self.window is None or number in self.global_blocks or max(size) <= self.window:
                tokens = _run(block, tokens.flatten(1, 2), whole).view(tokens.shape)
            else:
                parts, padded = split_windows(tokens, self.window)
                parts = _run(block, parts.flatten(1, 2), windowed).view(parts.shape)
                tokens = join_windows(parts, padded, size)
        return {"0": network.norm(tokens).permute(0, 3, 1, 2).contiguous()}

    def _with_positions(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        table = self.network.pos_embed
        if table is None:
            return tokens
        rows, columns = self.network.patch_embed.grid_size
        table = table[:, table.shape[1] - rows * columns :]  # those of class and register tokens come first
        grid = table.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        if (rows, columns) != size:
            grid = F.interpolate(grid.float(), size=size, mode="bicubic", antialias=True).to(tokens)
        return tokens + grid.permute(0, 2, 3, 1)

    def _rotary(self, size: tuple[int, int]) -> Tensor | None:
        rope = getattr(self.network, "rope", None)
        return None if rope is None or 0 in size else rope.get_embed(shape=list(size))


def _run(block: nn.Module, tokens: Tensor, rope: Tensor | None) -> Tensor:
    """One block on tokens (B, T, D) without class or register tokens."""
    result: Tensor = block(tokens) if rope is None else block(tokens, rope=rope)
    return result


def split_windows(tokens: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, H, W, D) to (B * windows, side, side, D), padded with zeros at the bottom and right, and the padded size."""
    batch, height, width, channels = tokens.shape
    tokens = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = tokens.shape[1] // side, tokens.shape[2] // side
    parts = tokens.view(batch, rows, side, columns, side, channels).transpose(2, 3)
    return parts.reshape(-1, side, side, channels), (rows * side, columns * side)


def join_windows(parts: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The inverse of `split_windows`: (B, H, W, D) with (H, W) = `size`."""
    side, channels = parts.shape[1], parts.shape[3]
    rows, columns = padded[0] // side, padded[1] // side
    tokens = parts.view(-1, rows, columns, side, side, channels).transpose(2, 3)
    return tokens.reshape(-1, *padded, channels)[:, : size[0], : size[1]].contiguous()


class SimplePyramid(nn.Module):
    """Maps at strides 4, 8, 16, 32 and 64 from the one at 16: transposed convolutions, the map itself, pooling."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = max(width // 2, 1), max(width // 4, 1)
        up = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, 2), LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, 2, 2)
        )
        scales: list[tuple[nn.Module, int]] = [
            (up, quarter),
            (nn.ConvTranspose2d(width, half, 2, 2), half),
            (nn.Identity(), width),
            (nn.MaxPool2d(2), width),
        ]
        self.levels = nn.ModuleList(_level(scale, wide, channels) for scale, wide in scales)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        found = OrderedDict((str(place), level(maps["0"])) for place, level in enumerate(self.levels))
        found["pool"] = F.max_pool2d(found["3"], kernel_size=1, stride=2)
        return found


def _level(scale: nn.Module, width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        scale,
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def load_timm(body: FeatureMaps | PlainTransformer, spec: BackboneSpec, weights: str) -> str:
    """Load weights into a body: "imagenet" (of `lite0` to `lite2`, from a package), "DEFAULT" (timm's own, downloaded)
    or a local file in timm's format, whose positions and patches are resampled where they differ. Returns a sentence.
    Raises CheckpointError.
    """
    if spec.name in LITE and weights == PACKAGED:
        found = packaged_weights(spec.name)
    elif weights == PACKAGED or (spec.name in LITE and weights == DOWNLOAD):
        own = PACKAGED if spec.name in LITE else DOWNLOAD
        raise CheckpointError(
            f"no weights '{weights}' for backbone {spec.name}; there are {own}, a local file, or null (from scratch)"
        )
    else:
        found = _timm_weights(spec, weights)
    state = {name: found[name] for name in body.network.state_dict() if name in found}
    missing, _ = body.network.load_state_dict(state, strict=False)
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lost:
        raise CheckpointError(f"weights '{weights}' of {spec.name} lack {lost[0]} and {len(lost) - 1} more")
    return f"loaded {weights}"


def _timm_weights(spec: BackboneSpec, weights: str) -> dict[str, Tensor]:
    plain = _plain_options(spec)
    more = {"features_only": True} if plain is None else plain
    try:
        return dict(_create(spec, more, True, None if weights == DOWNLOAD else weights).state_dict())
    except Exception as error:  # the hub's client, which timm downloads with, fails in any way
        if isinstance(error, ConfigError | CheckpointError):
            raise
        lines = [line.strip() for line in str(error).split("\n") if line.strip()] or [type(error).__name__]
        told = lines[1 : 1 + MISMATCHES_TOLD] or lines[:1]
        if weights == DOWNLOAD and "size mismatch" not in str(error):
            raise CheckpointError(
                f"cannot download timm's weights of {spec.name} ({lines[0]}); give a local file in timm's format as "
                "model.weights, or null to start from scratch"
            ) from None
        raise CheckpointError(f"weights '{weights}' do not fit {spec.name}: {'; '.join(told)}") from None
