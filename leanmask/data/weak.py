"""Weak labels: one point and a class per object. Reading them from every form that they come in, and telling the images
that are fully labelled from those that are not.

Forms of a point: `point` (leanmask's own), a single `point_coords`, the middle of a `bbox` and, as PointWSSIS's
published subsets have it, the mass centre of a `segmentation`. Everything is in the image frame, pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanmask.data.annotation import Row, Size, box_of, points_of, segmentation_of
from leanmask.data.coco import AnnotationStore, ClassMap
from leanmask.data.files import read_json
from leanmask.data.withholding.clicks import mass_centre, random_inside, rle_of
from leanmask.errors import DataError

KEPT = ("id", "image_id", "category_id", "iscrowd")
DRAWN = ("bbox", "point_coords", "point_labels")  # what a person may have drawn besides
PREDICTION_UNIT = 10_000  # of the points in PointWSSIS's prediction files: parts of the image's height and width


@dataclass(frozen=True)
class Labels:
    """A COCO file's images by how they are labelled. strong: every object has a mask (or nothing is there). weak: some
    have a point or box alone. Images that nobody labelled are in neither. rows: annotations by image id. sizes:
    (height, width) by image id.
    """

    source: str
    content: Mapping[str, Any]
    strong: tuple[Row, ...]
    weak: tuple[Row, ...]
    rows: Mapping[Any, tuple[Row, ...]]
    sizes: Mapping[Any, Size]

    def part(self, images: Iterable[Row], rows: Iterable[Row]) -> dict[str, Any]:
        """A COCO file with these images and annotations."""
        return {**self.content, "images": list(images), "annotations": list(rows)}

    def of(self, images: Iterable[Row]) -> list[Row]:
        """The annotations of some images."""
        return [row for image in images for row in self.rows.get(image["id"], ())]

    def unlearned_classes(self) -> tuple[str, ...]:
        """Names of classes that weak images have and strong ones do not."""
        strong, weak = ({row["category_id"] for row in self.of(images)} for images in (self.strong, self.weak))
        return tuple(each["name"] for each in self.content["categories"] if each["id"] in weak - strong)


def read_labels(annotations: Path, store: AnnotationStore) -> Labels:
    """Sort the images of a file that `store` has opened (and so checked). Raises DataError where an object without a
    mask has no point either, where a point lies outside its image, and when there are no strong or no weak images.
    """
    content = read_json(annotations)
    rows: dict[Any, list[Row]] = {}
    for row in content["annotations"]:
        rows.setdefault(row["image_id"], []).append(row)
    strong, weak, sizes = [], [], {}
    for index, image in enumerate(content["images"]):
        record = store[index]
        sizes[image["id"]] = (record.height, record.width)
        objects = [row for row in rows.get(image["id"], ()) if not row.get("iscrowd")]
        if not objects:
            strong += [image] if record.exhaustive else []
        elif all(row.get("segmentation") for row in objects):
            strong.append(image)
        else:
            weak.append(image)
            for row in objects:
                if not row.get("segmentation"):
                    point_of(row, sizes[image["id"]], _where(annotations, row))
    if not any(rows.get(image["id"]) for image in strong):
        raise DataError(f"{annotations} has no fully labelled image, so no network could learn masks; label some")
    if not weak:
        raise DataError(f"{annotations} has no image with points: every object has a mask; use --method supervised")
    own_rows = {key: tuple(own) for key, own in rows.items()}
    return Labels(str(annotations), content, tuple(strong), tuple(weak), own_rows, sizes)


def with_points(labels: Labels, images: Iterable[Row], where: str, seed: int) -> list[Row]:
    """The annotations of fully labelled images, each object with the `point` that a person would have given it: the
    mass centre of its mask (`where` "centre") or a random pixel inside ("random"). Points that are given stay.
    """
    found = []
    for image in images:
        for row in labels.rows.get(image["id"], ()):
            if row.get("iscrowd") or row.get("point"):
                found.append(row)
                continue
            rle = rle_of(row, labels.sizes[image["id"]])
            point = mass_centre(rle) if where == "centre" else random_inside(rle, seed, row["id"])
            found.append(row if point is None else {**row, "point": point.tolist()})
    return found


def read_weak(path: Path, classes: ClassMap) -> dict[str, Any]:
    """A COCO file of weak labels in which every object has a `point` and nothing tells more of its shape than a box.

    classes: those of the network that is asked; masks in the file are read for their mass centre alone, and what stands
    beside a mask, such as its box, is not kept: it would tell a network more than a point does. Raises DataError for
    what is broken, for classes that the network does not know, for points outside their image, objects without any of
    the forms of a point, and a file without objects.
    """
    store = AnnotationStore.open(path, path.parent, unannotated="unlabelled")
    classes.require(store.classes, str(path))
    content = read_json(path)
    records = (store[index] for index in range(len(store)))
    sizes = {record.id: (record.height, record.width) for record in records}
    rows = []
    for row in content["annotations"]:
        if not row.get("iscrowd"):
            point = point_of(row, sizes[row["image_id"]], _where(path, row))
            rows.append({**{key: row[key] for key in _kept(row) if row.get(key)}, "point": list(point)})
    if not rows:
        raise DataError(f"{path} has no object; weak labels are one point and a class per object")
    return {**content, "annotations": rows}


def _kept(row: Row) -> tuple[str, ...]:
    if row.get("segmentation"):
        return KEPT
    # With an explicit point, classified ones of a box would only blur where the object is.
    return (*KEPT, "bbox") if row.get("point") else KEPT + DRAWN


def point_of(row: Row, size: Size, where: str) -> tuple[float, float]:
    """xy of the row's point in the first form that it has. size: (H, W). where: names file, image and annotation.
    Raises DataError when it has none or the point lies outside the image.
    """
    found = _given_point(row, size)
    if found is None:
        raise DataError(f"{where} has neither a point nor a box or mask to take one from")
    x, y = found
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        raise DataError(f"{where}: point ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} pixels")
    return x, y


def _given_point(row: Row, size: Size) -> tuple[float, float] | None:
    points, labels = points_of(row)
    if row.get("point") or (len(points) and not row.get("bbox") and (labels == 1).any()):
        chosen = row["point"] if row.get("point") else points[labels == 1][0]
        return float(chosen[0]), float(chosen[1])
    if row.get("segmentation"):
        centre = mass_centre(rle_of(row, size))
        return None if centre is None else (float(centre[0]), float(centre[1]))
    x0, y0, x1, y1 = box_of(row, segmentation_of(row)).tolist()
    if x0 != x0:
        return None
    width, height = float(size[1]), float(size[0])
    return (max(x0, 0.0) + min(x1, width)) / 2, (max(y0, 0.0) + min(y1, height)) / 2


def _where(path: Path, row: Row) -> str:
    return f"{path}, image {row['image_id']}, annotation {row['id']}"


def read_published_predictions(path: Path, like: Path) -> dict[str, Any]:
    """PointWSSIS's file of a teacher's predictions (`instances_predictions.pth`) as a COCO file with rough masks.

    Its items are {image_id, instances: [{category_id (index from 0), bbox, score, segmentation}]}, and of `bbox` only
    the first two numbers mean something: y and x of the point, in ten-thousandths of the image's height and width.
    like: a COCO file with the same images and categories. Raises DataError when it is no such file. Nothing in it is
    executed.
    """
    reference = read_json(like)
    images = {image["id"]: image for image in reference["images"]}
    categories = sorted(category["id"] for category in reference["categories"])
    try:
        items = torch.load(path, map_location="cpu", weights_only=True)
        rows = [_published_row(instance, images, categories) for item in items for instance in item["instances"]]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:  # bytes that are no such file make the reader fail in any way
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise DataError(f"{path} is no prediction file of PointWSSIS for the images of {like} ({reason})") from None
    numbered = [{"id": number, **row} for number, row in enumerate(rows, start=1)]
    used = {row["image_id"] for row in numbered}
    return {**reference, "images": [images[key] for key in images if key in used], "annotations": numbered}


def _published_row(instance: Mapping[str, Any], images: Mapping[Any, Row], categories: list[int]) -> Row:
    image = images[instance["image_id"]]
    y, x = instance["bbox"][:2]
    mask = instance["segmentation"]
    counts = mask["counts"]
    return {
        "image_id": instance["image_id"],
        "category_id": categories[instance["category_id"]],
        "point": [x / PREDICTION_UNIT * image["width"], y / PREDICTION_UNIT * image["height"]],
        "score": min(max(float(instance["score"]), 0.0), 1.0),
        "segmentation": {
            "size": list(mask["size"]),
            "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        },
        "provenance": "PointWSSIS's teacher",
        "iscrowd": 0,
    }
