"""COCO's panoptic format: one PNG per image whose pixels hold a segment's id (R + 256 G + 65536 B), and `segments_info`
with the class of every segment. https://cocodataset.org/#format-data

Segments of thing classes become objects with masks; stuff (`isthing` 0) has no instances and is counted in `Left`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from leanmask.data.annotation import Row
from leanmask.data.convert.shapes import Left, segmentation_from
from leanmask.data.grouping import categories_of, rows_of
from leanmask.data.image_files import open_image
from leanmask.errors import DataError
from leanmask.paths import image_path

Ids = npt.NDArray[np.int64]


def from_panoptic(
    content: Mapping[str, Any], path: Path, masks: Path | None, known: Mapping[str, int] | None = None
) -> tuple[dict[str, Any], Left]:
    """A COCO instance file's content of a panoptic one. masks: the folder of its PNG files; None = beside it. known:
    class ids by name to use instead of the file's.

    An image with a panoptic annotation and no thing on it is `exhaustive`: somebody looked. Raises DataError with file
    and image when something cannot be used.
    """
    names = dict(categories_of(dict(content), path))
    things = {row["id"]: row["name"] for row in rows_of(dict(content), "categories", path) if row.get("isthing", 1)}
    if not things:
        raise DataError(f"{path} has no thing class (isthing 1), so it has no objects; all {len(names)} are stuff")
    ids = _class_ids(things, known, path)
    images = {image.get("id"): image for image in rows_of(dict(content), "images", path)}
    rows: list[Row] = []
    left: Left = Counter()
    looked_at: set[Any] = set()
    annotations = rows_of(dict(content), "annotations", path)
    folder = masks or _mask_folder(annotations, path)
    for annotation in annotations:
        where = f"{path}: image {annotation.get('image_id')!r}"
        image = images.get(annotation.get("image_id"))
        if image is None:
            raise DataError(f"{where}: its annotation belongs to an image that the file does not have")
        size = image.get("height"), image.get("width")
        pixels = _segment_ids(image_path(folder, str(annotation.get("file_name"))), size, where)
        looked_at.add(image["id"])
        segments = annotation.get("segments_info")
        if not isinstance(segments, list):
            raise DataError(f"{where}: segments_info must be a list, found {segments!r}")
        for segment, found in _regions(pixels, segments, left, where):
            category = segment.get("category_id")
            if category not in names:
                raise DataError(f"{where}: segment {segment['id']} has category id {category!r}, which the file lacks")
            if category not in things:
                left["segments of stuff classes (isthing 0)"] += 1
                continue
            rows.append({"id": len(rows) + 1, "image_id": image["id"], "category_id": ids[things[category]], **found})
            rows[-1]["iscrowd"] = int(bool(segment.get("iscrowd")))
    left["stuff classes (isthing 0)"] += len(names) - len(things)
    with_objects = {row["image_id"] for row in rows}
    bare = looked_at - with_objects
    return {
        **{key: value for key, value in content.items() if key in ("info", "licenses")},
        "images": [{**image, "exhaustive": True} if key in bare else image for key, image in images.items()],
        "annotations": rows,
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }, +left


def _class_ids(things: Mapping[int, str], known: Mapping[str, int] | None, path: Path) -> dict[str, int]:
    own = {name: number for number, name in sorted(things.items())}
    if known is None:
        return own
    unknown = [name for name in own if name not in known]
    if unknown:
        raise DataError(f"{path}: class '{unknown[0]}' is not among the known classes: {', '.join(known)}")
    return dict(known)


def _mask_folder(annotations: list[Row], path: Path) -> Path:
    """The folder beside the file, or the file's own, that has the PNG files."""
    if not annotations:
        raise DataError(f"{path} has no annotations")
    first = str(annotations[0].get("file_name"))
    places = [path.with_suffix(""), path.parent, path.parent.parent / path.stem]
    places += sorted(place for place in path.parent.iterdir() if place.is_dir())
    found = next((place for place in places if (place / first).is_file()), None)
    if found is None:
        shown = ", ".join(map(str, places[:3]))
        raise DataError(f"the PNG masks of {path}, such as {first}, are not in {shown}; name their folder (--masks)")
    return found


def _segment_ids(path: Path, size: tuple[Any, Any], where: str) -> Ids:
    """(H, W) ids of the segments of an image."""
    try:
        with open_image(path) as picture:
            colours = np.asarray(picture.convert("RGB"), dtype=np.int64)
    except FileNotFoundError:
        raise DataError(f"{where}: its mask {path} does not exist") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: its mask {path} cannot be read: {error}") from None
    if colours.shape[:2] != size:
        raise DataError(
            f"{where}: its mask {path} has {colours.shape[1]} x {colours.shape[0]} pixels, the image "
            f"{size[1]} x {size[0]}"
        )
    ids: Ids = colours @ np.array([1, 256, 65536], dtype=np.int64)
    return ids


def _regions(pixels: Ids, segments: list[Any], left: Left, where: str) -> Iterator[tuple[Row, Row]]:
    """Every segment with pixels, and the mask, box and area that these give."""
    values, places = np.unique(pixels, return_inverse=True)
    numbers = places.reshape(pixels.shape) + 1
    boxes = ndimage.find_objects(numbers)
    position = {int(value): place for place, value in enumerate(values)}
    seen: set[int] = set()
    for segment in segments:
        number = segment.get("id") if isinstance(segment, dict) else None
        if type(number) is not int or number in seen:
            raise DataError(f"{where}: a segment needs an `id` of its own, found {segment!r}")
        seen.add(number)
        if number not in position:
            left["segments without a pixel in the PNG"] += 1
            continue
        place = position[number]
        rows, columns = boxes[place]
        crop = (numbers[rows, columns] == place + 1).astype(np.uint8)
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        height, width = pixels.shape
        mask = segmentation_from(crop, (columns.start, rows.start), (height, width))
        yield segment, {"segmentation": mask, "bbox": [float(edge) for edge in box], "area": float(crop.sum())}
    left["regions of the PNG that no segment names"] += len(set(position) - seen - {0})
