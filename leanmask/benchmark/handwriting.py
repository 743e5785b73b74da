"""A judge of categories for the embedded benchmark: a small network that knows real handwriting, in place of CLIP.

What it knows is *outside knowledge*: it learns in seconds from the tenth of the handwriting samples that is in no split
of any digits data set (`scenes.TURNS`), drawn on the photographs' training parts, so it has seen no stroke of the
images that a method trains on or is measured on. Numbers of a method that asks it must say so, see `OUTSIDE_KNOWLEDGE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanmask.data.digits import CLASS_NAMES
from leanmask.data.scenes import COUNT_RANGE, Scene, compose, sample_pools
from leanmask.errors import ConfigError, suggest
from leanmask.labels.correct import box_crops
from leanmask.records import Instances

OUTSIDE_KNOWLEDGE = "with outside knowledge: a classifier of real handwriting samples that are in no split"
LEARN, MEASURE = ("reserved", "train"), ("tune", "tune")  # handwriting samples, photographs' parts
SIDE_PX, MARGIN = 32, 0.1
BOX_NOISE = 0.05  # of a learned box's edges, as a share of its longer side: a teacher's boxes are not exact
RIM_PX = 3  # of a cut-out, mostly background
BATCH, PEAK_LR = 64, 8e-3


@dataclass(frozen=True)
class HandwritingSpec:
    """How much the judge learns. scenes: images drawn for it. passes: over their objects. size_px: side of an image."""

    scenes: int = 2400
    passes: int = 3
    size_px: int = 128
    seed: int = 0


class HandwritingJudge:
    """Class probabilities of digits from cut-outs of their boxes, a `labels.correct.CategoryJudge`."""

    def __init__(self, network: nn.Module, class_names: Sequence[str]) -> None:
        """network: (K, 2, side, side), see `ink_maps`, to logits (K, 10) of the digits 0-9. class_names: the data's, in
        its order.

        Raises ConfigError for a class that is no digit.
        """
        self.network = network.eval()
        self.digits = _digits_of(class_names)

    @torch.no_grad()
    def __call__(self, images: Tensor, instances: Sequence[Instances]) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            crops = box_crops(images, [each.boxes for each in instances], SIDE_PX, MARGIN)
            logits = self.network.to(images.device)(ink_maps(crops))
        probabilities = logits[:, self.digits.to(images.device)].softmax(1)
        return list(probabilities.split([len(each) for each in instances]))


def handwriting_judge(
    class_names: Sequence[str] = CLASS_NAMES, spec: HandwritingSpec | None = None
) -> HandwritingJudge:
    """A judge, trained on the spot; the same for the same spec. Leaves torch's random numbers alone."""
    spec = spec or HandwritingSpec()
    _digits_of(class_names)  # checked before anything is drawn
    maps, digits = _samples(LEARN, spec, BOX_NOISE)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(spec.seed)
        network = _network()
        _fit(network, maps, digits, spec.passes)
    return HandwritingJudge(network, class_names)


@torch.no_grad()
def held_out_accuracy(judge: HandwritingJudge, scenes: int = 300, seed: int = 0) -> float:
    """Share of objects whose digit is the judge's most probable one, on handwriting and backgrounds of `tune`, exact
    boxes; classes that the judge was not asked for do not count.
    """
    maps, digits = _samples(MEASURE, HandwritingSpec(scenes=scenes, seed=seed), 0.0)
    said = judge.digits[judge.network(maps)[:, judge.digits].argmax(1)]
    asked = torch.isin(digits, judge.digits)
    return float((said == digits)[asked].float().mean())


def ink_maps(crops: Tensor) -> Tensor:
    """(K, 2, side, side) of RGB cut-outs (K, 3, side, side), freed of their colours, which say nothing about a digit:
    how far a pixel is from the colours of the rim, in their own spread; and whether it is nearer to what stands out
    most, the ink, or to the rim.
    """
    if len(crops) == 0:
        return crops[:, :2]
    crops = F.layer_norm(crops, crops.shape[1:])
    inner = slice(RIM_PX, -RIM_PX)
    rim = torch.ones(SIDE_PX, SIDE_PX, dtype=torch.bool, device=crops.device)
    rim[inner, inner] = False
    mean = crops[:, :, rim].mean(2, keepdim=True)
    spread = crops[:, :, rim] - mean
    covariance = spread @ spread.transpose(1, 2) / spread.shape[2] + 0.02 * torch.eye(3, device=crops.device)
    pixels = crops.flatten(2)
    away = ((pixels - mean) * torch.linalg.solve(covariance, pixels - mean)).sum(1).clamp(min=0).sqrt()
    standing_out = away * (away > away.quantile(0.75, 1, keepdim=True))
    ink = (pixels * standing_out[:, None]).sum(2, keepdim=True) / standing_out.sum(1)[:, None, None].clamp(min=1e-6)
    from_ink, from_rim = ((pixels - colour).square().sum(1).sqrt() for colour in (ink, mean))
    nearer = 2 * (from_rim - from_ink) / (from_rim + from_ink + 0.1)
    return torch.stack([away.log1p() - 1.2, nearer], 1).unflatten(2, (SIDE_PX, SIDE_PX))


def _digits_of(class_names: Sequence[str]) -> Tensor:
    for name in class_names:
        if name not in CLASS_NAMES:
            raise ConfigError(f"the handwriting judge knows digits only, not '{name}'{suggest(name, CLASS_NAMES)}")
    return torch.tensor([CLASS_NAMES.index(name) for name in class_names])


def _network() -> nn.Sequential:
    def block(inside: int, outside: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]

    return nn.Sequential(
        *block(2, 16, 5, 2),
        *block(16, 32, 3, 2),
        *block(32, 64, 3, 1),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(64 * (SIDE_PX // 4) ** 2, 10),
    )


def _fit(network: nn.Module, maps: Tensor, digits: Tensor, passes: int) -> None:
    steps = len(digits) // BATCH
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LR, total_steps=max(steps * passes, 1))
    for _ in range(passes):
        for chosen in torch.randperm(len(digits))[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(network(maps[chosen]), digits[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def _samples(source: tuple[str, str], spec: HandwritingSpec, noise: float) -> tuple[Tensor, Tensor]:
    """(K, 2, side, side) maps of drawn objects and their (K,) digits. source: whose handwriting, whose photographs."""
    rng = np.random.default_rng([spec.seed, len(source[0])])
    crops, digits = [], []
    for scene in _scenes(rng, source, spec):
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        boxes = _visible_boxes(scene)
        longer = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
        boxes = boxes + noise * longer * rng.normal(size=boxes.shape)
        crops.append(box_crops(image, [torch.from_numpy(boxes).float()], SIDE_PX, MARGIN))
        digits += [item.digit for item in scene.objects]
    maps = [ink_maps(part) for part in torch.cat(crops).split(512)]
    return torch.cat(maps), torch.tensor(digits)


def _scenes(rng: np.random.Generator, source: tuple[str, str], spec: HandwritingSpec) -> Iterator[Scene]:
    pools = sample_pools(source[0])
    for _ in range(spec.scenes):
        drawn = rng.integers(10, size=rng.integers(COUNT_RANGE[0], COUNT_RANGE[1] + 1))
        scene = compose(rng, source[1], [int(rng.choice(pools[digit])) for digit in drawn], spec.size_px)
        if scene.objects:
            yield scene


def _visible_boxes(scene: Scene) -> np.ndarray:
    """(N, 4) xyxy tight boxes of what is to be seen of each object, pixels."""
    boxes = []
    for item in scene.objects:
        rows, columns = np.flatnonzero(item.visible.any(axis=1)), np.flatnonzero(item.visible.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    corners = np.array([item.region[:2] for item in scene.objects])
    return np.array(boxes, dtype=np.float64) + np.tile(corners, 2)
