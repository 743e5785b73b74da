"""The nouns every room shares: the instances of an image, a target, what a mask branch said, and a batch.

Records are frozen: changing one makes a new one, and a misspelt field fails. Letters: N objects, K proposals, C
categories, P points, B images, H W rows and columns of the network's canvas. Unless said otherwise coordinates are in
the network frame (see geometry.py), boxes are xyxy in pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from leanmask.geometry import Frame
from leanmask.masks import Crops, Masks
from leanmask.supervision import Supervision

__all__ = ["Batch", "Instances", "MaskPredictions", "Proposals", "Supervision", "Target", "Views"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Instances:
    """The objects of one image: fields of equal length N.

    boxes: (N, 4) float32 xyxy, a row of NaN where unknown. categories: (N,) int64 contiguous class index. supervision:
    (N,) int64 `Supervision`. weights: (N,) float32 trust in [0, 1]; 0 takes the object out of every loss without making
    it background. scores: (N,) confidence of predictions. class_probabilities: (N, C) soft classes. masks: see
    masks.py. rough: masks that are to be improved, as Crops, not existing for objects without one. points: (N, P, 2)
    xy, point_labels: (N, P) int64, 1 object, 0 background, -1 ignore. ids: (N,) int64 annotation ids of the user's
    file. provenance: N strings, "human" or what produced the object.
    """

    boxes: Tensor
    categories: Tensor
    supervision: Tensor
    weights: Tensor
    scores: Tensor | None = None
    class_probabilities: Tensor | None = None
    masks: Masks | None = None
    rough: Masks | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    ids: Tensor | None = None
    provenance: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {f.name: len(value) for f in dataclasses.fields(self) if (value := getattr(self, f.name)) is not None}
        assert len(set(lengths.values())) == 1, f"fields of different length: {lengths}"

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def __getitem__(self, index: Tensor) -> Instances:
        """The objects that a boolean (N,) or integer (M,) tensor selects, in every field."""
        chosen = torch.arange(len(self))[index.cpu()].tolist()

        def pick(value: Any) -> Any:
            return tuple(value[i] for i in chosen) if isinstance(value, tuple) else value[index]

        return dataclasses.replace(self, **{name: pick(value) for name, value in self._present()})

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields exchanged."""
        return dataclasses.replace(self, **fields)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Instances:
        moved = {n: v.to(device, non_blocking=non_blocking) for n, v in self._present() if not isinstance(v, tuple)}
        return dataclasses.replace(self, **moved)

    def _present(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) is not None]

    @property
    def has_mask(self) -> Tensor:
        """(N,) bool: labelled with a full mask."""
        return self.supervision == Supervision.MASK

    @property
    def object_points(self) -> Tensor:
        """(N, 2) xy of each object's first visible object point, NaN where it has none."""
        if self.points is None or self.point_labels is None:
            return self.boxes.new_full((len(self), 2), torch.nan)
        shown = self.point_labels == 1
        first = self.points[torch.arange(len(self), device=shown.device), shown.int().argmax(1)]
        return torch.where(shown.any(1, keepdim=True), first, torch.nan)

    @property
    def named_points(self) -> Tensor:
        """(N, 2) xy where a person said that each object is, NaN where nobody did: `object_points`, but for objects
        with a box and classified points, which lie anywhere in the object.
        """
        drawn = (self.supervision == Supervision.POINTS) & self.boxes.isfinite().all(1)
        return torch.where(drawn[:, None], torch.nan, self.object_points)

    @staticmethod
    def empty(device: torch.device | str = "cpu") -> Instances:
        return Instances(
            boxes=torch.zeros(0, 4, device=device),
            categories=torch.zeros(0, dtype=torch.int64, device=device),
            supervision=torch.zeros(0, dtype=torch.int64, device=device),
            weights=torch.zeros(0, device=device),
            masks=Crops.none(0).to(device),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """What a model may learn from one image, in the frame of the network's input.

    instances: the labelled (or pseudo-labelled) objects, with `masks` as Crops. exhaustive: everything that is not
    labelled is background; when False, unlabelled places are unknown and give no negatives. ignore: (R, 4) xyxy boxes
    of crowds and other regions that are neither object nor background. pixel_weights: one float crop per object at the
    same regions as its mask, weight of each pixel in the mask loss; None = 1 everywhere. known_categories: (M,) int64
    classes of which everything in the image is labelled, so that elsewhere there is none (LVIS); the other classes
    learn from their own labelled objects alone. None = all classes.
    """

    instances: Instances
    exhaustive: bool = True
    ignore: Tensor
    pixel_weights: Crops | None = None
    known_categories: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        return dataclasses.replace(
            self,
            instances=self.instances.to(device, non_blocking),
            ignore=self.ignore.to(device, non_blocking=non_blocking),
            pixel_weights=None if self.pixel_weights is None else self.pixel_weights.to(device, non_blocking),
            known_categories=(
                None if self.known_categories is None else self.known_categories.to(device, non_blocking=non_blocking)
            ),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskPredictions:
    """What a model's mask branch said for K proposals. The shared mask loss and MaskBooster work on this record alone.

    image_index: (K,) int64 which image of the batch. boxes: (K, 4) xyxy region that the h x w grid covers.
    object_index: (K,) int64 the matched object among `targets[image_index].instances`, -1 when there is none.
    categories: (K,) int64 class of that object. logits: (K, C, h, w), or (K, 1, h, w) from a class-agnostic branch.
    points: (K, 2) xy on the object, NaN where none is known; None = of models that do not look at points.
    box_known: (K,) bool, False where nobody drew the object's box and `boxes` only says where the grid lies; None =
    all are known.
    """

    image_index: Tensor
    boxes: Tensor
    object_index: Tensor
    categories: Tensor
    logits: Tensor
    points: Tensor | None = None
    box_known: Tensor | None = None

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def __getitem__(self, index: Tensor) -> MaskPredictions:
        """The predictions that a boolean (K,) or integer (M,) tensor selects."""
        return dataclasses.replace(self, **_rows(self, index))

    def of_category(self) -> Tensor:
        """(K, h, w) logits of each proposal's own class (of the only channel where the branch is class-agnostic)."""
        if self.logits.shape[1] == 1:
            return self.logits[:, 0]
        return self.logits[torch.arange(len(self), device=self.logits.device), self.categories]

    def proposals(self) -> Proposals:
        return Proposals(
            image_index=self.image_index,
            boxes=self.boxes,
            object_index=self.object_index,
            categories=self.categories,
            points=self.points,
            box_known=self.box_known,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Proposals:
    """Where boxes are scored and masks asked for: boxes (K, 4) xyxy, with the image they are in, the object they belong
    to (-1 = none, background) and its class (0 where background). points: (K, 2) xy on the objects, NaN where none is
    known; models that take points find the object by it, and need no box then (NaN). box_known: (K,) bool, False where
    a box is no more than the region that the mask's grid shall cover, so that it says nothing of the object; None = all
    are known.
    """

    image_index: Tensor
    boxes: Tensor
    object_index: Tensor
    categories: Tensor
    points: Tensor | None = None
    box_known: Tensor | None = None

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    @property
    def known_boxes(self) -> Tensor:
        """(K, 4) xyxy float32 boxes, NaN where they say nothing of the object."""
        boxes = self.boxes.float()
        return boxes if self.box_known is None else torch.where(self.box_known[:, None], boxes, torch.nan)

    def __getitem__(self, index: Tensor) -> Proposals:
        """The proposals that a boolean (K,) or integer (M,) tensor selects."""
        return dataclasses.replace(self, **_rows(self, index))

    def predictions(self, logits: Tensor) -> MaskPredictions:
        """What a mask branch said for these proposals: logits (K, C, S, S)."""
        return MaskPredictions(**vars(self), logits=logits)


def _rows(record: MaskPredictions | Proposals, index: Tensor) -> dict[str, Tensor]:
    present = [(f.name, getattr(record, f.name)) for f in dataclasses.fields(record)]
    return {name: value[index] for name, value in present if value is not None}


@dataclass(frozen=True, eq=False, kw_only=True)
class Views:
    """B images in a weak and a strong view that share one geometry, so that teacher output is student target with no
    warping.

    weak, strong: (B, 3, H, W) float32 RGB in [0, 1]; strong is the same tensor as weak where no strong view was asked
    for. targets: B targets (without any objects for unlabelled images). frames: how each image lies on the canvas.
    image_ids: the user's ids. files: paths, to name images in messages. skipped: files that could not be read and were
    replaced by the next image of the stream.
    """

    weak: Tensor
    strong: Tensor
    targets: tuple[Target, ...]
    frames: tuple[Frame, ...]
    image_ids: tuple[int | str, ...]
    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.weak.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Views:
        weak = self.weak.to(device, non_blocking=non_blocking)
        same = self.strong is self.weak
        return dataclasses.replace(
            self,
            weak=weak,
            strong=weak if same else self.strong.to(device, non_blocking=non_blocking),
            targets=tuple(target.to(device, non_blocking) for target in self.targets),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """One step's images: a labelled stream and, for methods that want it, an unlabelled one."""

    labelled: Views
    unlabelled: Views | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        unlabelled = None if self.unlabelled is None else self.unlabelled.to(device, non_blocking)
        return Batch(labelled=self.labelled.to(device, non_blocking), unlabelled=unlabelled)
