"""From a model to COCO results: predictions in the image frame, one mask at a time, streamed to disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from leanmask.errors import RunError
from leanmask.geometry import Frame, transform_boxes, xyxy_to_xywh
from leanmask.masks import to_rles
from leanmask.models.base import Model, Worth
from leanmask.records import Instances, Views

_BOX_DECIMALS = 3  # a thousandth of a pixel; half the bytes of a full number


def predict_results(
    model: Model,
    batches: Iterable[Views],
    classes_ids: Sequence[int],
    device: torch.device | str,
    precision: str,
    worth: Worth | None = None,
) -> Iterator[dict[str, Any]]:
    """COCO result rows of every image, in the image frame and the user's ids, one by one.

    classes_ids: the user's category id of each class index. precision: "bf16" runs the model under autocast. worth: see
    `Model.predict`. Rows are {image_id, category_id, score, bbox (x, y, width, height, cut off at the image),
    segmentation (RLE, counts as text)}; predictions whose mask is empty at 0.5 are left out. Memory holds one mask
    beside the network's own output. The model's training mode is put back after every batch. Raises RunError when the
    model says NaN.
    """
    for views in batches:
        for image_id, frame, found in zip(
            views.image_ids, views.frames, predict_views(model, views, device, precision, worth), strict=True
        ):
            yield from image_results(image_id, frame, found, classes_ids)


def image_results(
    image_id: int | str, frame: Frame, found: Instances, classes_ids: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Result rows of one image; `found` (network frame) must have scores and masks. See `predict_results`."""
    assert found.scores is not None, "a prediction has scores"
    assert found.masks is not None, "a prediction has masks"
    boxes = transform_boxes(found.boxes.double().cpu().numpy(), frame.inverse)
    scores = found.scores.double().cpu().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise RunError(
            f"the model predicts numbers that are not finite for image {image_id!r}; its weights have diverged"
        )
    height, width = frame.image_size
    boxes = xyxy_to_xywh(np.clip(boxes, 0, (width, height, width, height))).round(_BOX_DECIMALS).tolist()
    categories = found.categories.tolist()
    for category, score, box, rle in zip(categories, scores.tolist(), boxes, to_rles(found.masks, frame), strict=True):
        if coco_mask.area(rle) == 0:
            continue
        counts = rle["counts"]
        yield {
            "image_id": image_id,
            "category_id": classes_ids[category],
            "score": score,
            "bbox": box,
            "segmentation": {
                "size": list(rle["size"]),
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            },
        }


def write_results(rows: Iterable[dict[str, Any]], path: Path, *, overwrite: bool = False) -> int:
    """Write rows as a JSON list while they come, and return how many there were.

    The file appears when it is complete: what was there before stays until then. Raises RunError when it exists and
    `overwrite` is False, or when it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise RunError(f"{path} exists already; remove it or choose another name")
    count = 0
    with _replacing(path) as write:
        write("[")
        for row in rows:
            write((",\n" if count else "\n") + json.dumps(row, allow_nan=False))
            count += 1
        write("\n]\n")
    return count


@contextmanager
def _replacing(path: Path) -> Iterator[Callable[[str], None]]:
    """A `write` to a temporary file beside `path` that takes its place when the block ends well, and goes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file = temporary.open("w", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(path, error) from None

    def write(text: str) -> None:
        try:
            file.write(text)
        except OSError as error:
            raise _cannot_write(path, error) from None

    try:
        yield write
        try:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
        except OSError as error:
            raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):  # closing flushes, which fails once more on a full disk
            file.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(f"cannot write {path}: {error.strerror or error}")


def predict_views(
    model: Model, views: Views, device: torch.device | str, precision: str, worth: Worth | None = None
) -> list[Instances]:
    """A model's predictions for the weak views, in the network frame; its training mode is put back. worth: see
    `Model.predict`.
    """
    place = torch.device(device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
            images = views.weak.to(place, non_blocking=True)
            targets = [target.to(place, non_blocking=True) for target in views.targets]
            return model.predict_for(images, targets, [frame.content_box for frame in views.frames], worth)
    finally:
        for module, training in modes:
            module.training = training
