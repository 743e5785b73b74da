"""Tiny COCO files with partial labels, and their stores, for the tests of reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leanmask.data.coco import AnnotationStore

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 25.0, 10.0, 25.0]]
CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}]


def image(number: int | str = 1, **fields: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 60, "height": 40, **fields}


def row(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 7, **fields}


def write(folder: Path, rows: list[dict[str, Any]], images: list[dict[str, Any]] | None = None, **fields: Any) -> Path:
    content = {
        "images": [image()] if images is None else images,
        "annotations": rows,
        "categories": CATEGORIES,
        **fields,
    }
    path = folder / "file.json"
    path.write_text(json.dumps(content))
    return path


def store(folder: Path, *rows: dict[str, Any], **options: Any) -> AnnotationStore:
    return AnnotationStore.open(write(folder, list(rows)), folder, **options)
