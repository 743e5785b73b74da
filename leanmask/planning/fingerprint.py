"""What a plan knows of a data set and of the machine: a few numbers, read in seconds whatever the data set's size."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from leanmask.config import DataConfig
from leanmask.data.coco import AnnotationStore
from leanmask.data.layout import SplitFiles
from leanmask.data.unlabelled import SPLIT, open_pool, unlabelled_sources
from leanmask.data.views.canvas import Exif, UnreadableImage, image_size
from leanmask.devices import cores, use_cpu
from leanmask.settling import annotated, labelled_census
from leanmask.supervision import Supervision

READ_IMAGES = 2000  # of a larger split so many are looked at, evenly spread
OPENED_IMAGES = 200  # likewise, whose files are opened
EXIF: tuple[Exif, Exif] = ("apply", "ignore")
GIB = 1024**3


@dataclass(frozen=True)
class Spread:
    """How a number is spread over the objects or images: its 5, 10, 50, 90 and 95 % quantiles, and the extremes."""

    least: float
    p5: float
    p10: float
    p50: float
    p90: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """All zeros where there is no value."""
        found = (
            np.quantile(np.asarray(values, dtype=np.float64), (0, 0.05, 0.1, 0.5, 0.9, 0.95, 1)) if values else [0] * 7
        )
        return cls(*(round(float(value), 4) for value in found))


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers. Objects are those of the training split without crowds and without what somebody has
    rejected (weight 0).

    classes: names, in the order of their ids.
    images: of the training split; unlabelled_images of them are images where nobody looked.
    pool_images: further unlabelled images, of `data.unlabelled` or the split "unlabelled".
    labels: objects by what was labelled: "mask", "points", "box", "point", "none".
    mask_images: images with a mask; point_images: images of whose objects all are known by a point alone.
    class_objects, class_images: objects, and images with an object, of each class.
    image_side: longest side of an image, pixels.
    object_side: square root of a box's area over the image's longest side.
    aspect: height over width of a box.
    objects_per_image: over the images that have any.
    val_images: of the validation split that are annotated exhaustively, so that something can be measured.
    exif: of the images looked at that an EXIF rotation turns, how many are annotated as they are shown ("apply") and as
    they are stored ("ignore"), by the size that is stated.
    """

    classes: tuple[str, ...]
    images: int
    unlabelled_images: int
    pool_images: int
    labels: dict[str, int]
    mask_images: int
    point_images: int
    class_objects: dict[str, int]
    class_images: dict[str, int]
    image_side: Spread
    object_side: Spread
    aspect: Spread
    objects_per_image: Spread
    val_images: int
    exif: Mapping[str, int] = field(default_factory=dict)

    @property
    def labelled_images(self) -> int:
        return self.images - self.unlabelled_images

    @property
    def objects(self) -> int:
        return sum(self.labels.values())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.labels.items() if count)
        pool = (
            f", {self.unlabelled_images + self.pool_images} unlabelled"
            if self.unlabelled_images + self.pool_images
            else ""
        )
        side, many = self.object_side, self.objects_per_image
        return (
            f"{self.labelled_images} labelled images{pool}, {len(self.classes)} classes; objects by label: {kinds}; "
            f"images of {self.image_side.p50:.0f} px; half of the objects below {100 * side.p50:.0f} % of the image's "
            f"side, a tenth below {100 * side.p10:.1f} %; {many.p50:.0f} objects on an image, at most {many.most:.0f}"
        )


@dataclass(frozen=True)
class Machine:
    """What training runs on. gpu: its name, None = the processor. memory_gb: of the GPU, else of the machine."""

    cores: int
    memory_gb: float
    gpu: str | None = None

    @classmethod
    def here(cls) -> Machine:
        if not use_cpu() and torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0)
            return cls(cores(), found.total_memory / GIB, found.name)
        if not use_cpu():
            return cls(cores(), _memory(), str(torch.accelerator.current_accelerator()))
        return cls(cores(), _memory())

    def to_text(self) -> str:
        return f"{self.gpu or f'{self.cores} processor cores'}, {self.memory_gb:.0f} GB"


def _memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        return 8.0  # systems that do not tell


def fingerprint(splits: Mapping[str, SplitFiles], data: DataConfig) -> Fingerprint:
    """Look at the splits that `data` names. Raises DataError where the training split cannot be used."""
    files = annotated(splits, data.train_split, data)
    store = AnnotationStore.open(files.annotations, files.images, unannotated=data.unannotated)
    census = labelled_census(store, files.annotations)
    image_sides, sides, aspects, counts = [], [], [], []
    masks = points = 0
    looked_at = range(0, len(store), max(1, -(-len(store) // READ_IMAGES)))
    for index in looked_at:
        record = store[index]
        objects = record.counted
        longest = max(record.width, record.height)
        image_sides.append(longest)
        boxes = np.array([each.box_xyxy for each in objects]).reshape(-1, 4)
        width, height = (boxes[:, 2:] - boxes[:, :2])[np.isfinite(boxes).all(1)].T
        area = np.maximum(width * height, 1e-6)
        sides += (np.sqrt(area) / longest).tolist()
        aspects += (np.maximum(height, 1e-3) / np.maximum(width, 1e-3)).tolist()
        counts += [len(objects)] if objects else []
        kinds = {each.supervision for each in objects}
        masks += Supervision.MASK in kinds
        points += bool(kinds) and kinds == {Supervision.POINT}
    share = len(store) / len(looked_at)
    return Fingerprint(
        classes=tuple(store.classes.names),
        images=census.images,
        unlabelled_images=census.unlabelled_images,
        pool_images=_pool_images(splits, data, store),
        labels=census.objects,
        mask_images=round(masks * share),
        point_images=round(points * share),
        class_objects={name: sum(kinds.values()) for name, kinds in census.per_class.items()},
        class_images=census.class_images,
        image_side=Spread.of(image_sides),
        object_side=Spread.of(sides),
        aspect=Spread.of(aspects),
        objects_per_image=Spread.of(counts),
        val_images=_val_images(splits, data),
        exif=_turned(store),
    )


def _turned(store: AnnotationStore) -> dict[str, int]:
    found: Counter[str] = Counter()
    for index in range(0, len(store), max(1, -(-len(store) // OPENED_IMAGES))):
        record = store[index]
        try:
            shown, stored = (image_size(record.path, exif) for exif in EXIF)
        except UnreadableImage:
            continue  # the loader's to name
        if shown != stored:
            stated = (record.height, record.width)
            found.update(kind for kind, size in zip(EXIF, (shown, stored), strict=True) if size == stated)
    return dict(found)


def _pool_images(splits: Mapping[str, SplitFiles], data: DataConfig, store: AnnotationStore) -> int:
    if not data.unlabelled and SPLIT not in splits:
        return 0
    return len(open_pool(unlabelled_sources(data.unlabelled, splits), store.classes))


def _val_images(splits: Mapping[str, SplitFiles], data: DataConfig) -> int:
    files = splits.get(data.val_split)
    if files is None or files.annotations is None:
        return 0
    return (
        AnnotationStore.open(files.annotations, files.images, unannotated=data.unannotated).census().exhaustive_images
    )
