"""A page of pseudo-labels, the least certain first: where a person's look is worth most."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from leanmask.errors import DataError, RunError
from leanmask.paths import PathLike, as_path, image_path
from leanmask.reports.overlays import decode, open_upright, to_rle
from leanmask.reports.page import write_page
from leanmask.reports.pictures import Picture, draw_picture, read_json
from leanmask.version import __version__

TEMPLATE = "review.html.j2"
MARGIN = 0.6  # of the object's longer side, shown around it
LEAST_SIDE_PX = 48


def write_review(pseudo: PathLike, out: PathLike, *, images: PathLike | None = None, most: int = 200) -> Path:
    """Write a page with the `most` least certain objects of a file that `leanmask pseudo` wrote, and return its path.

    Certainty is class quality times mask quality. images: folder that the file names are relative to, by default the
    one that the file itself remembers. Raises DataError for a file without qualities, RunError when `out` exists.
    """
    out = as_path(out)
    if out.exists():
        raise RunError(f"{out} exists already and is not overwritten; choose another name")
    content = read_json(as_path(pseudo))
    folder = as_path(images) if images is not None else Path(str(content.get("info", {}).get("image_folder", "")))
    rows = heapq.nsmallest(most, content.get("annotations", ()), key=certainty)
    images_by_id = {image["id"]: image for image in content.get("images", ())}
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    drawn: dict[Any, Picture] = {}
    of_images: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)  # each is read once, however large it is
    for row in rows:
        of_images[row["image_id"]].append(row)
    for image_id, own in of_images.items():
        record = images_by_id.get(image_id)
        if record is None:
            raise DataError(f"annotation {own[0]['id']} is of image {image_id!r}, which the file does not have")
        size = (record["width"], record["height"]) if {"width", "height"} <= record.keys() else None
        path = image_path(folder, record["file_name"])
        image = open_upright(path, size)
        drawn |= {row["id"]: _picture(row, image, path.name, names) for row in own}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        version=__version__,
        source=str(pseudo),
        total=len(content.get("annotations", ())),
        pictures=[drawn[row["id"]] for row in rows],
    )
    write_page(out, page)
    return out


def certainty(row: Mapping[str, Any]) -> float:
    """Class quality times mask quality. Raises DataError where a row has none."""
    try:
        return float(row["class_quality"]) * float(row["mask_quality"])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"annotation {row.get('id')} has no class_quality and mask_quality; this page shows what `leanmask pseudo` "
            "has written"
        ) from None


def _picture(row: Mapping[str, Any], image: Image.Image, file: str, names: Mapping[int, str]) -> Picture:
    caption = (
        f"{names.get(row['category_id'], row['category_id'])}: class {row['class_quality']:.2f}, "
        f"mask {row['mask_quality']:.2f}; {file}, annotation {row['id']}"
    )
    window = _window(row["bbox"], image)
    return draw_picture(caption, image.crop(window), [_inside(row, window, image)], names)


def _inside(row: Mapping[str, Any], window: tuple[int, int, int, int], image: Image.Image) -> dict[str, Any]:
    """The row in the frame of a window of its image."""
    left, top, right, bottom = window
    x, y, width, height = row["bbox"]
    moved = {**row, "bbox": [x - left, y - top, width, height], "segmentation": []}
    rle = to_rle(row.get("segmentation"), *image.size)
    if rle is not None:
        part = np.asfortranarray(decode(rle)[top:bottom, left:right].astype(np.uint8))
        moved["segmentation"] = coco_mask.encode(part)
    return moved


def _window(bbox: list[float], image: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) around an object, whole pixels of the image."""
    x, y, width, height = bbox
    reach = max(width, height, LEAST_SIDE_PX) * (0.5 + MARGIN)
    centre_x, centre_y = x + width / 2, y + height / 2
    left, top = max(round(centre_x - reach), 0), max(round(centre_y - reach), 0)
    return left, top, min(round(centre_x + reach), image.width), min(round(centre_y + reach), image.height)
