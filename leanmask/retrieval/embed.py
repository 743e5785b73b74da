"""Images and objects as vectors: by a model of timm or transformers with weights from this machine, which sees whole
pictures, or by a run's own network, which finds objects in them and compares objects with objects.

Letters: B pictures, V vectors of one, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.ops import nms

from leanmask.data.image_files import open_image
from leanmask.data.views.augment import fitted_frame
from leanmask.data.views.canvas import draw_canvas
from leanmask.devices import default_device
from leanmask.errors import CheckpointError, ConfigError
from leanmask.geometry import Frame, transform_boxes
from leanmask.inference.predict import Loaded, load, weights_path
from leanmask.models.backbone import normalise
from leanmask.models.spec import IMAGENET_MEAN, IMAGENET_STD, PREFIX, Triple
from leanmask.models.timm_backbones import own_normalisation, require_timm_name, with_file
from leanmask.records import Instances, Proposals
from leanmask.retrieval.index import FloatArray

TRANSFORMERS = "transformers:"
SIDE_PX, SHORT_SIDE_PX = 224, 256  # DINOv2's evaluation transform: resize to 256, centre crop of 224
MOST_OBJECTS = 12  # of an image that a run's own network compares: the most confident ones
SAME_OBJECT_IOU = 0.7  # boxes of two classes that overlap more are one object

Box = tuple[float, float, float, float]


class Embedder(Protocol):
    """Pictures to vectors. name: says which model and weights, so that vectors of different ones are never mixed.
    vectors: V.
    """

    @property
    def name(self) -> str: ...

    @property
    def vectors(self) -> int: ...

    def __call__(self, pictures: Sequence[Image.Image]) -> FloatArray:
        """(B, V, D) float32 of upright RGB pictures; zeros, which are like nothing, for objects that are not there."""
        ...

    def objects(self, picture: Image.Image, boxes: Sequence[Box], margin: float) -> FloatArray:
        """(n, D) float32 of objects with known boxes, n >= 1, in one picture. margin: of the longer side, for models
        that see an object as a picture of its own.
        """
        ...


@dataclass(frozen=True, eq=False)
class PictureEmbedder:
    """A picture is one vector, and an object is a picture cut out. embed: (B, 3, S, S) RGB in [0, 1] to (B, D).
    side_px: S.
    """

    name: str
    embed: Callable[[Tensor], Tensor]
    side_px: int
    device: torch.device
    vectors: int = 1

    def __call__(self, pictures: Sequence[Image.Image]) -> FloatArray:
        batch = torch.stack([_prepared(picture, self.side_px) for picture in pictures]).to(self.device)
        with torch.inference_mode():
            found: FloatArray = self.embed(batch)[:, None].float().cpu().numpy()
        return found

    def objects(self, picture: Image.Image, boxes: Sequence[Box], margin: float) -> FloatArray:
        return self([crop_of(picture, box, margin) for box in boxes])[:, 0]


@dataclass(frozen=True, eq=False)
class ObjectEmbedder:
    """A picture is the objects that a trained network finds in it, each as what the network tells its class from. In
    fp32 whatever the run's precision, for vectors of a store are compared whichever machine made them.
    """

    name: str
    loaded: Loaded
    vectors: int = MOST_OBJECTS

    def __call__(self, pictures: Sequence[Image.Image]) -> FloatArray:
        images, frames = self._on_canvas(pictures)
        with torch.inference_mode():
            found = self.loaded.model.predict(images, [frame.content_box for frame in frames], self._compared)
        boxes = [each.boxes for each in found]
        described = self._described(images, boxes).split([len(each) for each in boxes])
        rows = [F.pad(each, (0, 0, 0, self.vectors - len(each))) for each in described]
        stacked: FloatArray = torch.stack(rows).cpu().numpy()
        return stacked

    def objects(self, picture: Image.Image, boxes: Sequence[Box], margin: float) -> FloatArray:
        images, frames = self._on_canvas([picture])
        placed = transform_boxes(np.array(boxes, dtype=np.float64), frames[0].matrix)
        described: FloatArray = self._described(images, [torch.from_numpy(placed).to(images)]).cpu().numpy()
        return described

    def _compared(self, found: Instances) -> Tensor:
        """(N,) bool: the most confident detections, each object once."""
        assert found.scores is not None, "a prediction has scores"
        best = nms(found.boxes.float(), found.scores.float(), SAME_OBJECT_IOU)[: self.vectors]
        return torch.isin(torch.arange(len(found), device=best.device), best)

    def _described(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(K, D) of boxes (n, 4) of each image, in the network frame."""
        counts = torch.tensor([len(each) for each in boxes], device=images.device)
        index = torch.arange(len(boxes), device=images.device).repeat_interleave(counts)
        proposals = Proposals(image_index=index, boxes=torch.cat(list(boxes)), object_index=index, categories=index * 0)
        with torch.inference_mode():
            return self.loaded.model.describe(images, proposals)

    def _on_canvas(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, list[Frame]]:
        """(B, 3, S, S) RGB in [0, 1] as in training, and how the pictures lie there."""
        side = self.loaded.config.data.image_size
        frames = [fitted_frame((picture.height, picture.width), side) for picture in pictures]
        canvases = [draw_canvas(picture, frame) for picture, frame in zip(pictures, frames, strict=True)]
        images = torch.from_numpy(np.stack(canvases)).to(self.loaded.device).permute(0, 3, 1, 2)
        return images.float() / 255, frames


def load_embedder(name: str, weights: str | None = None, device: str | None = None) -> Embedder:
    """name: a run folder or weights file of leanmask; timm:NAME; or transformers:FOLDER, a model saved on this machine.
    weights: timm's, a local file, or DEFAULT to download them. Raises ConfigError or CheckpointError.
    """
    place = torch.device(device) if device else default_device()
    if name.startswith(PREFIX):
        return _timm(name, weights, place)
    if name.startswith(TRANSFORMERS):
        return _transformers(name, place)
    path = weights_path(Path(name))
    loaded = load(path, device=str(place))
    stat = path.stat()
    own = f"leanmask:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{MOST_OBJECTS} objects"
    return ObjectEmbedder(own, loaded)


def _timm(name: str, weights: str | None, place: torch.device) -> Embedder:
    require_timm_name(name)
    if weights is None:
        raise ConfigError(
            f"name the weights of {name} with --weights: a local file, or DEFAULT to download timm's; an untrained "
            "network finds nothing"
        )
    plain, size = name.removeprefix(PREFIX), {}
    if hasattr(timm.get_pretrained_cfg(plain), "input_size") and "dinov2" in plain:
        size = {"img_size": SIDE_PX}  # trained at 518 px; the usual retrieval feature is that of 224
    make = partial(timm.create_model, plain, pretrained=True, num_classes=0, **size)
    try:
        network = make() if weights == "DEFAULT" else with_file(make, weights, name)
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"weights '{weights}' do not fit {name}: {' '.join(str(error).split())[:300]}") from None
    side = SIDE_PX if size else network.pretrained_cfg["input_size"][-1]
    mean, std = own_normalisation(name)
    # Vectors of a store that was made when all networks saw ImageNet's numbers are not mixed with others.
    seen = f"{name}:{weights}" + ("" if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD) else f":{mean}:{std}")
    return PictureEmbedder(seen, _normalised(network.to(place).eval(), mean, std), side, place)


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

    return PictureEmbedder(name, _normalised(first_token, IMAGENET_MEAN, IMAGENET_STD), SIDE_PX, place)


def _normalised(
    network: nn.Module | Callable[[Tensor], Tensor], mean: Triple, std: Triple
) -> Callable[[Tensor], Tensor]:
    def embed(images: Tensor) -> Tensor:
        both = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
        result: Tensor = network(normalise(images, *both))
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
        with open_image(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception:  # whatever decoders raise on damaged bytes
        return None
