"""Images and crops as vectors: by a model of timm or transformers with weights from this machine, or by a run's own
backbone.

Letters: B pictures, D numbers of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from leanmask.devices import default_device
from leanmask.errors import CheckpointError, ConfigError
from leanmask.inference import load, weights_path
from leanmask.models.base import Model
from leanmask.models.timm_backbones import PREFIX, is_timm, require_timm_name, timm_library
from leanmask.records import Proposals
from leanmask.retrieval.index import FloatArray

TRANSFORMERS = "transformers:"
SIDE_PX, SHORT_SIDE_PX = 224, 256  # DINOv2's evaluation transform: resize to 256, centre crop of 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Embedder:
    """Pictures to vectors. name: says which model and weights, so that vectors of different ones are never mixed.
    embed: (B, 3, S, S) RGB in [0, 1] to (B, D). side_px: S.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    side_px: int
    device: torch.device

    def __call__(self, pictures: Sequence[Image.Image]) -> FloatArray:
        """(B, D) float32 vectors of upright RGB pictures."""
        batch = torch.stack([_prepared(picture, self.side_px) for picture in pictures]).to(self.device)
        with torch.inference_mode():
            found: FloatArray = self.embed(batch).float().cpu().numpy()
        return found


def load_embedder(name: str, weights: str | None = None, device: str | None = None) -> Embedder:
    """name: a run folder or weights file of leanmask; timm:NAME; or transformers:FOLDER, a model saved on this machine.
    weights: timm's, a local file, or DEFAULT to download them. Raises ConfigError or CheckpointError.
    """
    place = torch.device(device) if device else default_device()
    if is_timm(name):
        return _timm(name, weights, place)
    if name.startswith(TRANSFORMERS):
        return _transformers(name, place)
    path = weights_path(Path(name))
    loaded = load(path, device=str(place))
    stat = path.stat()
    own = f"leanmask:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    return Embedder(own, lambda images: _whole(loaded.model, images), loaded.config.data.image_size, place)


def _whole(model: Model, images: Tensor) -> Tensor:
    count, (height, width) = len(images), images.shape[-2:]
    index = torch.arange(count, device=images.device)
    boxes = torch.tensor([[0.0, 0.0, width, height]], device=images.device).expand(count, -1)
    return model.embed(images, Proposals(image_index=index, boxes=boxes, object_index=index, categories=index * 0))


def _timm(name: str, weights: str | None, place: torch.device) -> Embedder:
    require_timm_name(name)
    if weights is None:
        raise ConfigError(
            f"name the weights of {name} with --weights: a local file, or DEFAULT to download timm's; an untrained "
            "network finds nothing"
        )
    overlay = {} if weights == "DEFAULT" else {"pretrained_cfg_overlay": {"file": weights}}
    if overlay and not Path(weights).is_file():
        raise CheckpointError(f"weights file {weights} does not exist")
    plain, size = name.removeprefix(PREFIX), {}
    if hasattr(timm_library().get_pretrained_cfg(plain), "input_size") and "dinov2" in plain:
        size = {"img_size": SIDE_PX}  # trained at 518 px; the usual retrieval feature is that of 224
    try:
        network = timm_library().create_model(plain, pretrained=True, num_classes=0, **size, **overlay)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"weights '{weights}' do not fit {name}: {' '.join(str(error).split())[:300]}") from None
    side = SIDE_PX if size else network.pretrained_cfg["input_size"][-1]
    return Embedder(f"{name}:{weights}", _normalised(network.to(place).eval()), side, place)


def _transformers(name: str, place: torch.device) -> Embedder:
    from transformers import AutoModel  # noqa: PLC0415 (a second to import, and seldom needed)

    folder = Path(name.removeprefix(TRANSFORMERS))
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; save the model there with `hf download NAME --local-dir {folder}` where there is "
            "a network"
        )
    try:
        network = AutoModel.from_pretrained(folder, local_files_only=True).to(place).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no model of transformers: {' '.join(str(error).split())[:300]}"
        ) from None

    def first_token(images: Tensor) -> Tensor:
        found: Tensor = network(pixel_values=images).last_hidden_state[:, 0]
        return found

    return Embedder(name, _normalised(first_token), SIDE_PX, place)


def _normalised(network: nn.Module | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def embed(images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
        result: Tensor = network((images - mean) / std)
        return result

    return embed


def _prepared(picture: Image.Image, side: int) -> Tensor:
    """(3, side, side): the shorter side resized (bicubic) to 8/7 of `side`, and the centre cut out."""
    short = round(side * SHORT_SIDE_PX / SIDE_PX)
    scale = short / min(picture.size)
    size = (max(side, round(picture.width * scale)), max(side, round(picture.height * scale)))
    resized = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def crop_of(picture: Image.Image, box: Box, margin: float) -> Image.Image:
    """A square around a box (xyxy, pixels), `margin` of the longer side more on every side, cut at the picture."""
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0) * (0.5 + margin)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    left, top = max(0, int(x - half)), max(0, int(y - half))
    right, bottom = min(picture.width, int(x + half) + 1), min(picture.height, int(y + half) + 1)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def read_upright(path: Path) -> Image.Image | None:
    """The picture as it is shown (EXIF rotation applied), RGB; None when it cannot be read."""
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception:  # whatever decoders raise on damaged bytes
        return None
