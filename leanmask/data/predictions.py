"""The results of `leanmask predict`, read together with the list of images and classes that lies beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from leanmask.data.files import read_json, why
from leanmask.errors import DataError
from leanmask.paths import image_path

IMAGES_NAME = "images.json"  # what `predict` writes beside its results
RESULT_KEYS = {"image_id", "category_id", "score"}
Row = dict[str, Any]


def is_results(content: Any) -> bool:
    """Whether the content of a JSON file is a list of COCO results; an empty list may be one."""
    return isinstance(content, list) and all(isinstance(row, dict) and row.keys() >= RESULT_KEYS for row in content)


@dataclass(frozen=True)
class Predictions:
    """A results file. rows: its results. header: COCO's `images`, `categories` and `info` of the file beside it."""

    path: Path
    rows: list[Row]
    header: dict[str, Any]

    def to_coco(self) -> dict[str, Any]:
        """A COCO file of the predictions: `exhaustive: false` on every image, an object counts as much as its score."""
        known = {image["id"] for image in self.header["images"]}
        annotations = []
        for number, row in enumerate(self.rows, 1):
            if row["image_id"] not in known:
                raise DataError(
                    f"result {number - 1} of {self.path} is of image {row['image_id']!r}, which {IMAGES_NAME} beside "
                    "it does not have"
                )
            own = {"id": number, **row, "iscrowd": 0, "provenance": "leanmask predict"}
            if isinstance(row.get("segmentation"), dict):
                own["area"] = int(coco_mask.area(_rle(row["segmentation"])))
            annotations.append(own)
        images = [{**image, "exhaustive": False} for image in self.header["images"]]
        return {**self.header, "images": images, "annotations": annotations}

    def in_ids_of(self, annotations: Path, folder: Path) -> tuple[list[Row], list[str]]:
        """The rows with the image ids of another COCO file whose images lie in `folder`, matched by file, and sentences
        about what does not match. Raises DataError where no image does, or a category id means another class there.
        """
        truth = read_json(annotations)
        self._require_classes(truth, annotations)
        own = Path(str(self.header.get("info", {}).get("image_folder", "")))
        ids = {
            image_path(folder, str(row.get("file_name"))).resolve(): row.get("id") for row in truth.get("images") or ()
        }
        by_name: dict[str, list[Any]] = {}
        for path, key in ids.items():
            by_name.setdefault(path.name, []).append(key)
        found: dict[Any, Any] = {}
        for image in self.header["images"]:
            path = image_path(own, str(image["file_name"])).resolve()
            alike = by_name.get(path.name, [])
            key = ids.get(path, alike[0] if len(alike) == 1 else None)
            if key is not None:
                found[image["id"]] = key
        if not found:
            raise DataError(
                f"none of the {len(self.header['images'])} images that {self.path} is about is one of {annotations}"
            )
        rows = [{**row, "image_id": found[row["image_id"]]} for row in self.rows if row["image_id"] in found]
        notes = []
        if len(found) < len(self.header["images"]):
            lost = len(self.header["images"]) - len(found)
            notes.append(f"{lost} of {len(self.header['images'])} predicted images are not in {annotations.name}")
        if missing := len(ids) - len(set(found.values())):
            notes.append(f"{missing} of {len(ids)} images were not predicted and count as without any object found")
        least = self.header.get("info", {}).get("score")
        if isinstance(least, int | float) and least > 0:
            notes.append(
                f"the file holds objects with a score of at least {least:g} only; AP also counts those below, so "
                "evaluating the run itself says more"
            )
        return rows, notes

    def _require_classes(self, truth: Row, annotations: Path) -> None:
        theirs = {row.get("id"): row.get("name") for row in truth.get("categories") or ()}
        for row in self.header["categories"]:
            if row["id"] in theirs and theirs[row["id"]] != row["name"]:
                raise DataError(
                    f"category id {row['id']} is '{row['name']}' in {self.path} and '{theirs[row['id']]}' in "
                    f"{annotations}"
                )


def read_predictions(path: Path, content: Any = None) -> Predictions | None:
    """A COCO results file with the images and classes beside it; None where no such list lies there.

    content: of the file, where it was read before. Raises DataError for files that are broken.
    """
    beside = path.with_name(IMAGES_NAME)
    if not beside.is_file():
        return None
    header = read_json(beside)
    if not all(isinstance(header.get(key), list) for key in ("images", "categories")):
        raise DataError(f"{beside} has no lists 'images' and 'categories', as `leanmask predict` writes them")
    if content is None:
        content = _content(path)
    if not is_results(content):
        raise DataError(f"{path} is no list of COCO results")
    return Predictions(path, content, header)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None


def _rle(segmentation: Row) -> Row:
    counts = segmentation["counts"]
    return {**segmentation, "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
