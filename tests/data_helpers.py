"""Tiny images, annotation records and COCO folders for the tests of the data room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from leanmask.config import AugmentConfig, DataConfig
from leanmask.data.coco import AnnotationStore, ImageRecord, ObjectRecord
from leanmask.records import Supervision


def data_config(side_px: int = 64, **given: Any) -> DataConfig:
    return DataConfig(path="unused", image_size=side_px, **given)


def calm(**given: Any) -> AugmentConfig:
    """No augmentation but what is given."""
    settings: dict[str, Any] = {"flip_probability": 0, "scale_jitter": (1.0, 1.0), "strong": False}
    return AugmentConfig(**{**settings, **given})


def smooth_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture without fine detail, so that resampling hardly changes it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def object_record(number: int = 1, **given: Any) -> ObjectRecord:
    """A box-only object; give what differs."""
    values: dict[str, Any] = {
        "id": number,
        "category": 0,
        "box_xyxy": np.full(4, np.nan),
        "supervision": Supervision.BOX,
        "segmentation": None,
        "points_xy": np.zeros((0, 2)),
        "point_labels": np.zeros(0, dtype=np.int64),
        "crowd": False,
        "weight": 1.0,
        "provenance": "human",
    }
    given = {key: np.asarray(value, dtype=np.float64) if key == "box_xyxy" else value for key, value in given.items()}
    return ObjectRecord(**{**values, **given})


def image_record(objects: list[ObjectRecord], size: tuple[int, int], **given: Any) -> ImageRecord:
    values: dict[str, Any] = {
        "id": 1,
        "path": Path("none.png"),
        "width": size[1],
        "height": size[0],
        "exhaustive": True,
        "objects": tuple(objects),
        "crowd_boxes_xyxy": np.zeros((0, 4)),
    }
    return ImageRecord(**{**values, **given})


def annotation(number: int, image_id: int, box_xywh: list[float], kind: str = "mask", **given: Any) -> dict[str, Any]:
    """One COCO row: a rectangle with a polygon (mask), without one (box), or as classified points."""
    x, y, w, h = box_xywh
    row: dict[str, Any] = {
        "id": number,
        "image_id": image_id,
        "category_id": 7,
        "bbox": box_xywh,
        "area": w * h,
        "iscrowd": 0,
    }
    if kind == "mask":
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if kind == "points":
        row["point_coords"] = [[int(x + w / 2), int(y + h / 2)], [int(x), int(y)]]
        row["point_labels"] = [1, 0]
    return {**row, **given}


def write_folder(folder: Path, count: int, rows: list[dict[str, Any]], size: tuple[int, int] = (48, 64)) -> Path:
    """A COCO data set of `count` smooth PNG images with ids from 1; returns the annotation file."""
    (folder / "images").mkdir(parents=True)
    images = []
    for number in range(1, count + 1):
        name = f"{number:03}.png"
        smooth_picture(*size, seed=number).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": size[1], "height": size[0]})
    path = folder / "instances.json"
    content = {"images": images, "annotations": rows, "categories": [{"id": 7, "name": "thing"}]}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Per image one mask, one box and one object with points."""
    boxes = ([5.0, 6.0, 20.0, 15.0], [30.0, 10.0, 25.0, 30.0], [8.0, 26.0, 14.0, 18.0])
    return [
        annotation(3 * image + place, image, box, kind)
        for image in range(1, count + 1)
        for place, (box, kind) in enumerate(zip(boxes, ("mask", "box", "points"), strict=True))
    ]


def open_store(folder: Path, count: int = 6, rows: list[dict[str, Any]] | None = None) -> AnnotationStore:
    path = write_folder(folder, count, mixed_rows(count) if rows is None else rows)
    return AnnotationStore.open(path, folder / "images", unannotated="negative")
