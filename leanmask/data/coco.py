"""COCO files with partial labels: classes, records of images and objects, the census, and the store workers share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from leanmask.data.annotation import Row, box_of, points_of, rough_of, segmentation_of, supervision_of, weight_of
from leanmask.data.federated import known_categories
from leanmask.data.files import read_json, write_json
from leanmask.data.grouping import ANNOTATED, EXHAUSTIVE, PARTIAL, file_pack, folder_pack
from leanmask.data.pack import Pack
from leanmask.data.views.canvas import image_size
from leanmask.errors import DataError, counted, suggest
from leanmask.geometry import FloatArray
from leanmask.paths import image_path
from leanmask.rle import Segmentation
from leanmask.supervision import Supervision

__all__ = [
    "AnnotationStore",
    "Census",
    "ClassMap",
    "ImageRecord",
    "ObjectRecord",
    "read_json",
    "write_json",
]


NAMED = 5  # classes of a sentence about many


@dataclass(frozen=True)
class ClassMap:
    """The user's classes: position in both tuples is the contiguous index that networks use. owner: whose
    they are, for errors.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    owner: str = dataclasses.field(default="the training data", compare=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _index(self) -> dict[int, int]:
        return {category_id: index for index, category_id in enumerate(self.ids)}

    def index_of(self, category_id: int) -> int:
        """Contiguous index of the user's category id. Raises DataError for an id that is not in the map."""
        if category_id not in self._index:
            raise DataError(f"category id {category_id} is unknown; known: {', '.join(map(str, self.ids))}")
        return self._index[category_id]

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "ids": list(self.ids)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> ClassMap:
        return ClassMap(tuple(map(str, content["names"])), tuple(map(int, content["ids"])))

    def require(self, other: ClassMap, where: str) -> None:
        """Raise DataError when `other` (the classes of file `where`) has a class that is not in this map."""
        known = dict(zip(self.names, self.ids, strict=True))
        for name, category_id in zip(other.names, other.ids, strict=True):
            if name not in known:
                raise DataError(f"{where} has class '{name}' which {self.owner} does not have{suggest(name, known)}")
            if known[name] != category_id:
                raise DataError(
                    f"{where} gives class '{name}' the id {category_id} but {self.owner} gives it {known[name]}; "
                    "give a class the same id in every file"
                )

    def joined(self, other: ClassMap, where: str) -> ClassMap:
        """These classes, followed by those that only `other` (the classes of `where`) has. Raises DataError when one
        name or one id stands for different things.
        """
        known, by_id = dict(zip(self.names, self.ids, strict=True)), dict(zip(self.ids, self.names, strict=True))
        new = []
        for name, category_id in zip(other.names, other.ids, strict=True):
            if known.get(name, category_id) != category_id:
                raise DataError(
                    f"{where} gives class '{name}' the id {category_id} but {self.owner} gives it {known[name]}; "
                    "give a class the same id in every file"
                )
            if by_id.get(category_id, name) != name:
                raise DataError(
                    f"id {category_id} is class '{name}' in {where} but '{by_id[category_id]}' in {self.owner}; "
                    "give a class the same id in every file"
                )
            new += [] if name in known else [(name, category_id)]
        names, ids = (*self.names, *(name for name, _ in new)), (*self.ids, *(number for _, number in new))
        return dataclasses.replace(self, names=names, ids=ids)


@dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One annotation, image frame, pixels. rough: masks that are to be improved, beside the true one; training draws
    one, else it is the last. box_xyxy: (4,) NaN where unknown. points_xy: (P, 2) continuous, with point_labels: (P,) 1
    object, 0 background. category: contiguous index. weight: trust in [0, 1].
    """

    id: int
    category: int
    box_xyxy: FloatArray
    supervision: Supervision
    segmentation: Segmentation | None
    points_xy: FloatArray
    point_labels: npt.NDArray[np.int64]
    crowd: bool
    weight: float
    provenance: str
    rough: tuple[Segmentation, ...] = ()


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and what is known about it. exhaustive: what is not annotated is background. objects: without crowds,
    which are crowd_boxes_xyxy: (R, 4), pixels of the image frame. known_categories: contiguous indices of the classes
    of which everything is annotated, where the file says so (LVIS); None = all, where the image is exhaustive.
    """

    id: int | str
    path: Path
    width: int
    height: int
    exhaustive: bool
    objects: tuple[ObjectRecord, ...]
    crowd_boxes_xyxy: FloatArray
    known_categories: tuple[int, ...] | None = None

    @property
    def counted(self) -> tuple[ObjectRecord, ...]:
        """The objects that are labels: without those of weight 0, which somebody has rejected."""
        return tuple(item for item in self.objects if item.weight > 0)


@dataclass(frozen=True)
class Census:
    """How much of what was labelled. Kinds are the names of `Supervision` in lower case.

    negative_images: nothing is there; unlabelled_images: nobody looked; undecided_images: no annotations, and the user
    has not said which of the two (only `check` leaves images undecided). one_label_points: objects whose classified
    points are all object or all background. class_images: how many images have an object of each class. rejected: rows
    of weight 0, which are neither objects nor background and count nowhere else.
    """

    images: int
    exhaustive_images: int
    unlabelled_images: int
    negative_images: int
    objects: dict[str, int]
    per_class: dict[str, dict[str, int]]
    crowds: int
    one_label_points: int = 0
    undecided_images: int = 0
    class_images: dict[str, int] = dataclasses.field(default_factory=dict)
    rejected: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """One line: images, and objects by what was labelled, most effort first."""
        names = [kind.name.lower() for kind in sorted(Supervision, reverse=True)]
        kinds = ", ".join(f"{self.objects[name]} {name}" for name in names if self.objects[name])
        unlabelled = f" ({self.unlabelled_images} unlabelled)" if self.unlabelled_images else ""
        one_label = f" ({self.one_label_points} with points of one label only)" if self.one_label_points else ""
        crowds = f"; {counted(self.crowds, 'crowd')}" if self.crowds else ""
        rejected = f"; {self.rejected} rejected" if self.rejected else ""
        objects = f"objects by label: {kinds or 'none'}{one_label}{crowds}{rejected}"
        return f"{counted(self.images, 'image')}{unlabelled}; {objects}"

    def empty_classes(self) -> str | None:
        """A sentence that names the classes without an object; None where each has one."""
        empty = [name for name, kinds in self.per_class.items() if not sum(kinds.values())]
        if not empty:
            return None
        shown = ", ".join(f"'{name}'" for name in empty[:NAMED])
        more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
        return f"no object of {len(empty)} of {len(self.per_class)} classes: {shown}{more}"

    @staticmethod
    def count(flags: npt.NDArray[np.uint8], unannotated: str, names: dict[int, str], totals: dict[str, Any]) -> Census:
        """flags: (images,) bits of grouping.py. names: class name by category id. totals: JSON of grouping.Totals."""
        kinds = [kind.name.lower() for kind in Supervision]
        found = {name: totals["objects"].get(str(category_id), {}) for category_id, name in names.items()}
        per_class = {name: {kind: counts.get(kind, 0) for kind in kinds} for name, counts in found.items()}
        bare = (flags & ANNOTATED) == 0
        undeclared = bare & ((flags & (EXHAUSTIVE | PARTIAL)) == 0)
        partial = ((flags & PARTIAL) != 0) | (undeclared & (unannotated != "negative"))
        undecided = undeclared & (unannotated == "error")
        return Census(
            images=len(flags),
            exhaustive_images=int((~partial).sum()),
            unlabelled_images=int((bare & partial & ~undecided).sum()),
            negative_images=int((bare & ~partial).sum()),
            objects={kind: sum(counts[kind] for counts in per_class.values()) for kind in kinds},
            per_class=per_class,
            crowds=totals["crowds"],
            one_label_points=totals["one_label_points"],
            undecided_images=int(undecided.sum()),
            class_images={name: totals["images"].get(str(category_id), 0) for category_id, name in names.items()},
            rejected=totals["rejected"],
        )


_COMPARED = ("bbox", "segmentation", "iscrowd")


class AnnotationStore:
    """The images of one split, read from a memory-mapped pack. A pickled store holds paths, not annotations."""

    def __init__(self, pack: Pack, images: Path, classes: ClassMap, unannotated: str) -> None:
        """Use `open`. images: the folder. unannotated: what an image without annotations and `exhaustive` means."""
        self.classes = classes
        self.images = images
        self._pack = pack
        self._unannotated = unannotated
        own = ClassMap.from_json(pack.meta()["classes"])
        self._own_to_shared = {i: classes.index_of(i) for i in own.ids}

    @classmethod
    def open(
        cls,
        annotations: Path | None,
        images: Path,
        *,
        unannotated: str = "error",
        classes: ClassMap | None = None,
        only_images: bool = False,
    ) -> AnnotationStore:
        """Open a COCO file and its image folder; `annotations` None takes a plain folder as unlabelled images.

        unannotated: "error", "negative" or "unlabelled", see `DataConfig`. classes: those of the training data, which
        this file must not exceed. only_images: take the file's images as unlabelled and nothing else of it. Raises
        DataError that names file, image and annotation when something cannot be used.
        """
        if unannotated not in ("error", "negative", "unlabelled"):
            raise DataError(f"unannotated is '{unannotated}'; allowed: error, negative, unlabelled")
        if annotations is None:
            pack, where = folder_pack(Path(images)), Path(images)
        else:
            pack, where = file_pack(Path(annotations), only_images), Path(annotations)
        if len(pack) == 0:
            raise DataError(f"{where} has no images")
        own = ClassMap.from_json(pack.meta()["classes"])
        if classes is not None and not only_images:
            classes.require(own, str(where))
        store = cls(pack, Path(images), own if classes is None else classes, unannotated)
        store._require_decided(where)
        return store

    def _require_decided(self, where: Path) -> None:
        undecided = np.flatnonzero(self._pack.flags == 0)
        if self._unannotated != "error" or len(undecided) == 0:
            return
        first = ", ".join(str(self._pack[int(i)]["image"]["id"]) for i in undecided[:5])
        raise DataError(
            f"{where}: {len(undecided)} of {len(self)} images have no annotations (ids {first}"
            f"{', ...' if len(undecided) > 5 else ''}). Say what that means: data.unannotated=negative (nothing is "
            "there) or data.unannotated=unlabelled (nobody looked)"
        )

    def __len__(self) -> int:
        return len(self._pack)

    def __getitem__(self, index: int) -> ImageRecord:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        piece = self._pack[index]
        image, path = piece["image"], image_path(self.images, piece["image"]["file_name"])
        width, height = (image["width"], image["height"]) if "width" in image else _size_of(path)
        records = [self._object(row) for row in piece["annotations"]]
        crowds = [record.box_xyxy for record in records if record.crowd]
        return ImageRecord(
            id=image["id"],
            path=path,
            width=width,
            height=height,
            exhaustive=self._exhaustive(int(self._pack.flags[index])),
            objects=tuple(record for record in records if not record.crowd),
            crowd_boxes_xyxy=np.stack(crowds) if crowds else np.zeros((0, 4)),
            known_categories=self._known(image, piece["annotations"]),
        )

    def _known(self, image: Row, rows: list[Row]) -> tuple[int, ...] | None:
        found = known_categories(image, (row["category_id"] for row in rows))
        return None if found is None else tuple(self._own_to_shared[category_id] for category_id in found)

    def paths(self) -> Iterator[Path]:
        """The image files, in order."""
        for index in range(len(self)):
            yield image_path(self.images, self._pack[index]["image"]["file_name"])

    def _exhaustive(self, flag: int) -> bool:
        if flag & (EXHAUSTIVE | PARTIAL):
            return bool(flag & EXHAUSTIVE)
        return bool(flag & ANNOTATED) or self._unannotated == "negative"

    def _object(self, row: Row) -> ObjectRecord:
        segmentation = segmentation_of(row)
        points_xy, point_labels = points_of(row)
        return ObjectRecord(
            id=row["id"],
            category=self._own_to_shared[row["category_id"]],
            box_xyxy=box_of(row, segmentation),
            supervision=supervision_of(row),
            segmentation=segmentation,
            points_xy=points_xy,
            point_labels=point_labels,
            crowd=bool(row.get("iscrowd")),
            weight=weight_of(row),
            provenance=str(row.get("provenance", "human")),
            rough=rough_of(row),
        )

    def fingerprint(self) -> str:
        """Of what is annotated on which images: the same for a copy of the file in another place or order, another
        where anything that a score depends on differs. File names count, pixels do not.
        """
        own = ClassMap.from_json(self._pack.meta()["classes"])
        names = dict(zip(own.ids, own.names, strict=True))
        digests = []
        for index in range(len(self)):
            piece = self._pack[index]
            image = {key: piece["image"].get(key) for key in ("id", "file_name", "width", "height")}
            rows = [
                json.dumps([names[row["category_id"]], *(row.get(key) for key in _COMPARED)], sort_keys=True)
                for row in piece["annotations"]
            ]
            told = [image, self._exhaustive(int(self._pack.flags[index])), sorted(rows)]
            digests.append(hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest())
        everything = json.dumps([sorted(names.items()), sorted(digests)])
        return hashlib.blake2b(everything.encode(), digest_size=16).hexdigest()

    def census(self) -> Census:
        """Images and objects by kind of supervision."""
        meta = self._pack.meta()
        own = ClassMap.from_json(meta["classes"])
        ids = dict(zip(own.names, own.ids, strict=True))
        free = min(own.ids, default=0) - 1  # for classes of the training data that this file does not have
        names = {ids.get(name, free - i): name for i, name in enumerate(self.classes.names)}
        return Census.count(np.asarray(self._pack.flags), self._unannotated, names, meta)


def _size_of(path: Path) -> tuple[int, int]:
    height, width = image_size(path, "ignore")
    return width, height
