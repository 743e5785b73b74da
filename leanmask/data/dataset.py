"""Images of a store as samples: an endless shuffled stream for training, and the images in order for evaluation.

What a position of the stream yields depends on the seed and the position alone. Letters: B images, S side of the square
canvas in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from leanmask.config import AugmentConfig, DataConfig
from leanmask.data.coco import ImageRecord
from leanmask.data.repeat import Repeats, repeat_factors
from leanmask.data.views.augment import check_augment, fitted_frame, random_frame, strong_view
from leanmask.data.views.canvas import Exif, UnreadableImage, image_size, read_canvas
from leanmask.data.views.copy_paste import Scene, can_be_pasted, paste
from leanmask.data.views.targets import IntArray, place, to_target
from leanmask.errors import ConfigError, DataError
from leanmask.geometry import Frame
from leanmask.records import Instances, Target, Views
from leanmask.rle import ByteArray

MOST_FAILURES = 10  # unreadable images in a row before training gives up


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One image on its canvas. weak, strong: (3, S, S) uint8 RGB; strong is None where no strong view was asked for.
    skipped: files that could not be read and that this image replaces.
    """

    weak: Tensor
    strong: Tensor | None
    target: Target
    frame: Frame
    image_id: int | str
    file: str
    skipped: tuple[str, ...] = ()


class ImageSource(Protocol):
    """What images are read from: an `AnnotationStore`, several, or files that nobody annotated."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ImageRecord: ...


class TrainDataset(Dataset[Sample]):
    """The endless stream of augmented images. Every epoch is a permutation of all images, by seed and epoch; with
    `data.repeat_threshold` images of rare classes stand in it more often (repeat.py).
    """

    def __init__(self, store: ImageSource, data: DataConfig, augment: AugmentConfig, seed: int) -> None:
        """Raises DataError for a store without images, ConfigError where CopyPaste has no mask to paste or a range of
        `augment` is empty."""
        if len(store) == 0:
            raise DataError("there are no images to train on: the annotation file lists none, or the folder holds none")
        check_augment(augment)
        self.store, self.augment, self.seed = store, augment, seed
        self.side_px: int = data.image_size
        self.exif: Exif = data.exif
        self._donors = _images_with_masks(store) if augment.copy_paste_probability > 0 else np.zeros(0, dtype=np.int64)
        if augment.copy_paste_probability > 0 and len(self._donors) == 0:
            raise ConfigError(
                "augment.copy_paste_probability is above 0, but no object has a mask that could be pasted"
            )
        self._order: tuple[int, IntArray] = (-1, self._donors)
        self._repeats: Repeats | None = None
        if data.repeat_threshold > 0:
            self._repeats = Repeats(repeat_factors(_classes_of_images(store), data.repeat_threshold), seed)

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position of the endless stream.

        An image that cannot be read is replaced by the one at the next position and listed in `skipped`. Raises
        DataError after ten of them in a row, and for images that contradict their annotations.
        """
        failures: list[UnreadableImage] = []
        for attempt in range(MOST_FAILURES):
            try:
                sample = self._draw(position + attempt)
            except UnreadableImage as failure:
                failures.append(failure)
            else:
                return dataclasses.replace(sample, skipped=_files(failures))
        files = ", ".join(_files(failures))
        raise DataError(f"{MOST_FAILURES} images in a row cannot be read ({failures[0].reason}): {files}")

    def image_index(self, position: int) -> int:
        """Which image of the store stands at a position of the stream."""
        if self._repeats is not None:
            return self._repeats.image_index(position)
        epoch, place_in_epoch = divmod(position, len(self.store))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.store))
        return int(self._order[1][place_in_epoch])

    def _draw(self, position: int) -> Sample:
        rng = np.random.default_rng([self.seed, 1, position])
        index = self.image_index(position)
        record = _one_rough(self.store[index], rng)
        scene = self._scene(record, rng)
        if rng.random() < self.augment.copy_paste_probability:
            scene = self._pasted(scene, index, rng)
        strong = strong_view(scene.pixels, self.augment, rng) if self.augment.strong else None
        return _sample(scene, strong, record)

    def _scene(self, record: ImageRecord, rng: np.random.Generator) -> Scene:
        frame = random_frame(_size(record, self.exif), self.side_px, self.augment, rng)
        return Scene(read_canvas(record.path, frame, self.exif), frame, place(record, frame))

    def _pasted(self, scene: Scene, index: int, rng: np.random.Generator) -> Scene:
        donor = self._donor(index, rng)
        if donor is None:
            return scene
        return paste(scene, self._scene(self.store[donor], rng), rng, self.augment.copy_paste_box_covered)

    def _donor(self, index: int, rng: np.random.Generator) -> int | None:
        """Another image that has masks."""
        others = self._donors[self._donors != index]
        return int(rng.choice(others)) if len(others) else None


class EvalDataset(Dataset[Sample]):
    """Images in order, without augmentation, each fitted into the canvas's top left corner. every: 2 = each second."""

    def __init__(self, store: ImageSource, data: DataConfig, every: int = 1) -> None:
        self.store = store
        self.side_px: int = data.image_size
        self.exif: Exif = data.exif
        self.every = every

    def __len__(self) -> int:
        return -(-len(self.store) // self.every)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for images that are missing, damaged, or contradict their annotations."""
        record = self.store[index * self.every]
        frame = fitted_frame(_size(record, self.exif), self.side_px)
        scene = Scene(read_canvas(record.path, frame, self.exif), frame, place(record, frame))
        return _sample(scene, None, record)


class ReadableOrBlank(EvalDataset):
    """Images in order; one that cannot be read is a black canvas that names its file in `skipped`."""

    def __getitem__(self, index: int) -> Sample:
        try:
            return super().__getitem__(index)
        except DataError:
            record = self.store[index * self.every]
            side = self.side_px
            return Sample(
                weak=torch.zeros(3, side, side, dtype=torch.uint8),
                strong=None,
                target=Target(instances=Instances.empty(), ignore=torch.zeros(0, 4)),
                frame=Frame((side, side), (side, side), (1.0, 1.0), (0.0, 0.0)),
                image_id=record.id,
                file=str(record.path),
                skipped=(str(record.path),),
            )


def collate(samples: Sequence[Sample]) -> Views:
    """B samples as one batch: pixels become float32 in [0, 1]; without strong views `strong` is `weak`."""
    weak = torch.stack([sample.weak for sample in samples])
    strong = [sample.strong for sample in samples if sample.strong is not None]
    return assemble(weak, torch.stack(strong) if strong else None, samples)


def assemble(weak: Tensor, strong: Tensor | None, samples: Sequence[Sample]) -> Views:
    """As `collate`, from (B, 3, S, S) uint8 pixels that are stacked already; those of the samples are not looked at."""
    weak = weak.float().div_(255)
    return Views(
        weak=weak,
        strong=weak if strong is None else strong.float().div_(255),
        targets=tuple(sample.target for sample in samples),
        frames=tuple(sample.frame for sample in samples),
        image_ids=tuple(sample.image_id for sample in samples),
        files=tuple(sample.file for sample in samples),
        skipped=tuple(chain.from_iterable(sample.skipped for sample in samples)),
    )


def _files(failures: Sequence[UnreadableImage]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(failure.path for failure in failures))


def _one_rough(record: ImageRecord, rng: np.random.Generator) -> ImageRecord:
    """The image with one, at random, of the masks that are to be improved, for objects that have several."""
    if all(len(item.rough) < 2 for item in record.objects):
        return record
    number = int(rng.integers(max(len(item.rough) for item in record.objects)))
    objects = [
        dataclasses.replace(item, rough=item.rough[number % len(item.rough) :][:1]) if item.rough else item
        for item in record.objects
    ]
    return dataclasses.replace(record, objects=tuple(objects))


def _size(record: ImageRecord, exif: Exif) -> tuple[int, int]:
    """(height, width). An image nobody annotated has no frame of its own: its size is that of the turned picture."""
    annotated = record.objects or len(record.crowd_boxes_xyxy)
    return image_size(record.path, exif) if exif == "apply" and not annotated else (record.height, record.width)


def _sample(scene: Scene, strong: ByteArray | None, record: ImageRecord) -> Sample:
    return Sample(
        weak=_channels_first(scene.pixels),
        strong=None if strong is None else _channels_first(strong),
        target=to_target(scene.placement),
        frame=scene.frame,
        image_id=record.id,
        file=str(record.path),
    )


def _channels_first(pixels: ByteArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _classes_of_images(store: ImageSource) -> list[set[int]]:
    return [{item.category for item in store[index].counted} for index in range(len(store))]


def _images_with_masks(store: ImageSource) -> IntArray:
    found = [index for index in range(len(store)) if any(map(can_be_pasted, store[index].objects))]
    return np.array(found, dtype=np.int64)
