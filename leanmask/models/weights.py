"""Pretrained weights: a torchvision name or a local file, loaded without unpickling code, and a sentence on what was
left out.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from leanmask.errors import CheckpointError, suggest
from leanmask.models.backbone import TORCHVISION_NAMES
from leanmask.models.spec import BackboneSpec, is_timm
from leanmask.models.timm_backbones import FeatureMaps, PlainTransformer, load_timm
from leanmask.models.weight_files import State, read_state

MISMATCHES_TOLD = 3
FILE_SUFFIXES = (".pth", ".pt", ".safetensors")
# The layers whose size depends on the number of classes, the only ones that may be left out.
CLASS_LAYERS = (
    "roi_heads.box_predictor.",
    "roi_heads.box_predictors.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)
MASK_BRANCH = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")  # of Mask R-CNN


def load_pretrained(model: nn.Module, spec: BackboneSpec, weights: str, fresh: tuple[str, ...] = ()) -> str:
    """Load `weights` into a detector whose backbone's parameters are named `backbone.body.*`.

    weights: what the backbone's source calls them (torchvision: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT for the backbone,
    COCO_V1 for the whole Mask R-CNN of resnet50; timm: see `load_timm`) or a file (.pth, .pt, .safetensors) of a
    detector or of a classifier. Class-dependent layers of another size are left out. fresh: prefixes of the model's
    parameters that stay as they are when the weights are of a detector with another mask branch. Returns a sentence on
    what was loaded. Raises CheckpointError.
    """
    state = _state_of(spec, weights)
    if state is not None and _is_detector(state):
        return _fill(model, state, weights, fresh)
    return f"{_fill_body(model.get_submodule('backbone.body'), spec, weights, state)} into {spec.name}"


def load_backbone(module: nn.Module, spec: BackboneSpec, weights: str) -> str:
    """Load the backbone's part of `weights` into a backbone with a pyramid, or into one whose network is `body` alone.

    weights: as for `load_pretrained`; of a detector everything but the backbone is left out, and so is its pyramid
    where this one has none or one of another size. Returns a sentence on what was loaded. Raises CheckpointError.
    """
    state = _state_of(spec, weights)
    if state is None or not _is_detector(state):
        return f"{_fill_body(module.get_submodule('body'), spec, weights, state)} into {spec.name}"
    whole = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    own = module.state_dict()
    fits = all(name in own and own[name].shape == value.shape for name, value in whole.items())
    if fits:
        return f"{_fill(module, whole, weights)} into the backbone and its pyramid"
    body = {name.removeprefix("body."): value for name, value in whole.items() if name.startswith("body.")}
    return f"{_fill(module.get_submodule('body'), body, weights)} into the backbone"


def _state_of(spec: BackboneSpec, weights: str) -> State | None:
    """The tensors of a file, or of torchvision's weights; None where timm has them."""
    if weights.endswith(FILE_SUFFIXES):
        return read_state(Path(weights))
    return None if is_timm(spec.name) else _download(spec.name, weights)


def _is_detector(state: State) -> bool:
    return any(name.startswith("backbone.") for name in state)


def _fill_body(body: nn.Module, spec: BackboneSpec, weights: str, state: State | None) -> str:
    if isinstance(body, FeatureMaps | PlainTransformer):
        return load_timm(body, spec, weights)  # which reads a file itself, as it resamples what differs
    assert state is not None, "only timm's weights are not read here"
    return _fill(body, {name: value for name, value in state.items() if not name.startswith("fc.")}, weights)


def _download(backbone: str, name: str) -> State:
    choices = _choices(backbone)
    if name not in choices:
        raise CheckpointError(
            f"no weights '{name}' for backbone {backbone}{suggest(name, choices)}; "
            f"a local file ends in {', '.join(FILE_SUFFIXES)}, and null starts from scratch"
        )
    chosen = choices[name]
    try:
        return dict(chosen.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot download weights '{name}' ({chosen.url}): {error}; download them where there is a network and "
            "give the file's path as model.weights, or start from scratch with model.weights=null"
        ) from None


def _choices(backbone: str) -> dict[str, WeightsEnum]:
    if backbone not in TORCHVISION_NAMES:
        return {}
    enum = get_model_weights(TORCHVISION_NAMES[backbone])
    choices = {name: enum[name] for name in enum.__members__}
    if backbone == "resnet50":
        choices["COCO_V1"] = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    return choices


def _fill(module: nn.Module, state: State, source: str, fresh: tuple[str, ...] = ()) -> str:
    own = module.state_dict()
    other_branch = bool(fresh) and not any(name.startswith(fresh) for name in state)
    if other_branch:
        state = {name: value for name, value in state.items() if not name.startswith(MASK_BRANCH)}
    left_out = sorted(
        name
        for name, value in state.items()
        if name.startswith(CLASS_LAYERS + fresh) and name in own and own[name].shape != value.shape
    )
    kept = {name: value for name, value in state.items() if name not in left_out}
    try:
        missing, unexpected = module.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n")[1:]]
        told = "; ".join(lines[:MISMATCHES_TOLD]) if lines else str(error)
        more = f" and {len(lines) - MISMATCHES_TOLD} more" if len(lines) > MISMATCHES_TOLD else ""
        raise CheckpointError(f"weights '{source}' do not fit this model: {told}{more}") from None
    # Counters of batch norms mean nothing to frozen ones, and the other way round.
    lost = [name for name in missing if name not in left_out and not name.endswith("num_batches_tracked")]
    if other_branch:
        lost = [name for name in lost if not name.startswith(fresh)]
    if lost or unexpected:
        strange = f"lack {lost[0]} and {len(lost) - 1} more" if lost else f"hold unknown {unexpected[0]}"
        raise CheckpointError(f"weights '{source}' do not fit this model: they {strange}")
    if other_branch:
        left_out = [*left_out, "the mask branch"]
    if left_out:
        return f"loaded {source} but for {', '.join(left_out)}, which start from scratch (other classes or branch)"
    return f"loaded {source}"
