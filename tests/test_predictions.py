"""Result rows from a model's predictions: frames, ids, pasted masks, memory, and files that cannot be written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from leanmask.errors import RunError
from leanmask.evaluation import predictions
from leanmask.evaluation.coco_ap import evaluate_results
from leanmask.evaluation.predictions import image_results, predict_results, write_results
from leanmask.geometry import Frame
from leanmask.masks import Crops, Grids, to_rles
from leanmask.models.base import Model
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target, Views

CLASS_IDS = (40, 3, 11)


def whole(size: tuple[int, int] = (128, 128)) -> Frame:
    return Frame(size, size, (1.0, 1.0), (0.0, 0.0))


def blobs(count: int, seed: int = 0, cells: int = 28) -> Tensor:
    """(count, cells, cells) probabilities: noisy discs."""
    generator = torch.Generator().manual_seed(seed)
    ys, xs = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    centre = torch.rand(count, 2, 1, 1, generator=generator) * cells
    radius = torch.rand(count, 1, 1, generator=generator) * cells / 2 + 2
    distance = ((ys - centre[:, 0]) ** 2 + (xs - centre[:, 1]) ** 2).sqrt()
    return torch.sigmoid(radius - distance + torch.randn(count, cells, cells, generator=generator) / 2)


def boxes(count: int, seed: int = 0, side: float = 128) -> Tensor:
    """Boxes that all reach into the image (torchvision cannot paste others), some over its edge."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side * 0.7 - side * 0.1
    return torch.cat([corner, corner + (0.12 + torch.rand(count, 2, generator=generator) / 2) * side], dim=1)


def predicted(values: Tensor, at: Tensor, scores: Tensor | None = None) -> Instances:
    count = len(at)
    return Instances(
        boxes=at,
        categories=torch.arange(count) % 3,
        supervision=torch.full((count,), int(Supervision.NONE)),
        weights=torch.ones(count),
        scores=torch.linspace(0.9, 0.1, count) if scores is None else scores,
        masks=Grids(values, at),
    )


class Echo(Model):
    """Predicts what it was given, image by image, and remembers how it was called."""

    def __init__(self, answers: Sequence[Instances]) -> None:
        super().__init__()
        self.num_classes = 3
        self.answers = list(answers)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.linear = nn.Linear(4, 4)
        self.calls: list[dict[str, Any]] = []

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        raise AssertionError("predicting does not ask for losses")

    def predict_masks(self, images: Tensor, proposals: Proposals) -> MaskPredictions:
        raise AssertionError("predicting does not ask for masks of boxes")

    def predict(self, images: Tensor, content: Any = None, worth: Any = None) -> list[Instances]:
        self.calls.append(
            {
                "training": [self.training, self.frozen.training, self.linear.training],
                "content": content,
                "dtype": self.linear(torch.ones(1, 4)).dtype,
                "inference": torch.is_inference_mode_enabled(),
            }
        )
        answers, self.answers = self.answers[: len(images)], self.answers[len(images) :]
        return answers


def views(frames: Sequence[Frame], ids: Sequence[int | str]) -> Views:
    height, width = frames[0].canvas_size
    images = torch.zeros(len(frames), 3, height, width)
    target = Target(instances=Instances.empty(), ignore=torch.zeros(0, 4))
    return Views(
        weak=images,
        strong=images,
        targets=(target,) * len(frames),
        frames=tuple(frames),
        image_ids=tuple(ids),
        files=tuple(f"{i}.png" for i in ids),
    )


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def decoded(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.stack([coco_mask.decode(row["segmentation"]) for row in rows]).astype(bool)


def edge_boxes() -> Tensor:
    """Boxes whose padded edges fall on whole pixels up to rounding, where the last bit decides."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.randint(-3, 60, (200, 2), generator=generator).float() + 1 / 3
    return torch.cat([corner, corner + torch.randint(4, 60, (200, 2), generator=generator) * (28 / 30)], dim=1)


PASTED = {
    "anywhere": (blobs(200), boxes(200)),
    "whole pixels": (blobs(200), boxes(200).round()),
    "thin": (blobs(200), torch.cat([boxes(200)[:, :2], boxes(200)[:, :2] + 0.4], dim=1).clamp(min=0)),
    "binary": ((blobs(200) > 0.5).float(), boxes(200).round()),
    "rounding": (blobs(200), edge_boxes()),
    "14 cells": (blobs(100, cells=14), boxes(100)),
}


@pytest.mark.parametrize("size", [(128, 128), (97, 131)])
@pytest.mark.parametrize("name", PASTED)
def test_masks_are_those_of_torchvision_exactly(name: str, size: tuple[int, int]) -> None:
    values, at = PASTED[name]
    expected = (paste_masks_in_image(values[:, None], at, size)[:, 0] > 0.5).numpy()
    found = [coco_mask.decode(rle) for rle in to_rles(Grids(values, at), whole(size))]
    assert expected.any(axis=(1, 2)).mean() > 0.3
    assert (np.stack(found) == expected).all()


def test_rows_are_in_the_image_frame_with_the_users_ids() -> None:
    frame = Frame((60, 100), (128, 128), (1.28, 1.28), (0.0, 10.0))
    at = torch.tensor([[12.8, 22.8, 64.0, 61.2], [100.0, 0.0, 128.0, 128.0]])
    found = predicted(torch.ones(2, 28, 28), at)
    rows = list(image_results("scan", frame, found, CLASS_IDS))
    assert [row["category_id"] for row in rows] == [40, 3]
    assert [row["image_id"] for row in rows] == ["scan", "scan"]
    assert [row["score"] for row in rows] == pytest.approx([0.9, 0.1])
    assert rows[0]["bbox"] == pytest.approx([10, 10, 40, 30], abs=1e-3)
    assert rows[1]["bbox"] == pytest.approx([78.125, 0, 21.875, 60], abs=1e-3)  # cut off at the image
    assert all(set(row) == {"image_id", "category_id", "score", "bbox", "segmentation"} for row in rows)
    masks = decoded(rows)
    assert masks.shape == (2, 60, 100)
    expected = np.zeros((60, 100), dtype=bool)
    expected[10:40, 10:50] = True
    assert (masks[0] ^ expected).sum() <= 2 * (30 + 40)  # half a cell of blur around the edge
    json.dumps(rows, allow_nan=False)


def test_a_mirrored_frame_mirrors_back() -> None:
    plain = Frame((64, 96), (64, 96), (1.0, 1.0), (0.0, 0.0))
    mirrored = Frame((64, 96), (64, 96), (1.0, 1.0), (0.0, 0.0), flip_width=96.0)
    values, at = blobs(12), boxes(12, side=60).round().clamp(min=0)
    at[:, 2:] = torch.maximum(at[:, 2:], at[:, :2] + 3)
    turned = torch.stack([96 - at[:, 2], at[:, 1], 96 - at[:, 0], at[:, 3]], dim=1)
    expected = list(image_results(1, plain, predicted(values, at), CLASS_IDS))
    found = list(image_results(1, mirrored, predicted(values.flip(2), turned), CLASS_IDS))
    assert len(found) == len(expected) > 6
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
        assert ours["segmentation"] == theirs["segmentation"]


def test_empty_masks_are_dropped_and_crops_are_written() -> None:
    values = torch.stack([torch.ones(28, 28), torch.zeros(28, 28), torch.full((28, 28), 0.5)])
    rows = list(image_results(1, whole(), predicted(values, boxes(3).abs()), CLASS_IDS))
    assert [row["category_id"] for row in rows] == [40]
    crops = Crops.join([torch.ones(4, 6, dtype=torch.uint8)], torch.tensor([[10, 20, 6, 4]]))
    crops = Crops.concatenate([crops, Crops.none(2)])
    rows = list(image_results(1, whole(), predicted(values, boxes(3)).replace(masks=crops), CLASS_IDS))
    assert len(rows) == 1
    assert decoded(rows)[0, 20:24, 10:16].all()
    assert decoded(rows).sum() == 24
    assert list(image_results(1, whole(), Instances.empty().replace(scores=torch.zeros(0)), CLASS_IDS)) == []


@pytest.mark.parametrize("field", ["boxes", "scores"])
def test_a_diverged_model_is_named(field: str) -> None:
    found = predicted(blobs(3), boxes(3).abs())
    broken = getattr(found, field).clone()
    broken[1] = float("nan")
    with pytest.raises(RunError, match="not finite for image 'scan-7'"):
        list(image_results("scan-7", whole(), found.replace(**{field: broken}), CLASS_IDS))


def test_the_model_predicts_in_eval_and_gets_its_modes_back() -> None:
    frame = Frame((100, 64), (128, 128), (1.28, 1.28), (0.0, 0.0))
    model = Echo([predicted(blobs(2, seed), boxes(2, seed).abs()) for seed in range(3)])
    model.train()
    model.frozen.eval()
    stream = predict_results(model, [views([frame] * 2, [5, 6]), views([frame], ["x"])], CLASS_IDS, "cpu", "bf16")
    first = next(stream)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert [model.training, model.frozen.training, model.linear.training] == [True, False, True]
    ids = [first["image_id"], *(row["image_id"] for row in stream)]
    assert list(dict.fromkeys(ids)) == [5, 6, "x"]
    assert [call["training"] for call in model.calls] == [[False] * 3] * 2
    assert all(call["inference"] for call in model.calls)
    assert model.calls[0]["dtype"] == torch.bfloat16
    assert model.calls[0]["content"] == [frame.content_box] * 2


def test_fp32_means_no_autocast() -> None:
    model = Echo([predicted(blobs(1), boxes(1).abs())])
    list(predict_results(model, [views([whole()], [1])], CLASS_IDS, torch.device("cpu"), "fp32"))
    assert model.calls[0]["dtype"] == torch.float32


def test_images_are_predicted_only_when_rows_are_taken() -> None:
    model = Echo([predicted(blobs(2), boxes(2).abs())] * 3)
    stream = predict_results(model, (views([whole()], [i]) for i in range(3)), CLASS_IDS, "cpu", "fp32")
    assert model.calls == []
    next(stream)
    assert len(model.calls) == 1


def test_predictions_of_the_truth_score_one(tmp_path: Path) -> None:
    found = predicted(torch.ones(3, 28, 28), torch.tensor([[4.0, 4, 40, 44], [60, 8, 120, 70], [10, 70, 90, 120]]))
    rows = list(image_results(7, whole(), found, CLASS_IDS))
    truth = {
        "images": [{"id": 7, "width": 128, "height": 128}],
        "categories": [{"id": key, "name": str(key)} for key in CLASS_IDS],
        "annotations": [{**row, "id": number, "iscrowd": 0} for number, row in enumerate(rows, 1)],
    }
    model = Echo([found])
    path = tmp_path / "results.json"
    assert write_results(predict_results(model, [views([whole()], [7])], CLASS_IDS, "cpu", "fp32"), path) == 3
    metrics = evaluate_results(truth, path).metrics
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["box_AP"] == pytest.approx(1)


ROWS = [{"image_id": i, "score": 0.5, "text": "é"} for i in range(3)]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_written_rows_are_a_json_list(tmp_path: Path, count: int) -> None:
    path = tmp_path / "results.json"
    assert write_results(iter(ROWS[:count]), path) == count
    assert json.loads(path.read_text()) == ROWS[:count]
    assert names(tmp_path) == ["results.json"]


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("mine")
    with pytest.raises(RunError, match=r"results\.json exists already"):
        write_results(ROWS, path)
    assert path.read_text() == "mine"
    write_results(ROWS, path, overwrite=True)
    assert json.loads(path.read_text()) == ROWS


def test_a_stream_that_breaks_leaves_what_was_there(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise FileNotFoundError(errno.ENOENT, "an image went away")

    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(FileNotFoundError, match="an image went away"):  # not our file: not "cannot write"
        write_results(rows(), path, overwrite=True)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "results.json"
    path.write_text("before")
    if call == "fsync":
        monkeypatch.setattr(predictions.os, "fsync", full)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    rows: Any = ROWS
    if call == "write":
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        path = tmp_path / "full.json"
        (tmp_path / f".full.json.{os.getpid()}.part").symlink_to("/dev/full")
        rows = ({"text": "x" * 1000} for _ in range(100))
    with pytest.raises(RunError, match=r"cannot write .*json: No space left"):
        write_results(rows, path, overwrite=True)
    assert names(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "before"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*results\.json: No such file"):
        write_results(ROWS, tmp_path / "absent" / "results.json")


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results([{"score": float("nan")}], tmp_path / "results.json")
    assert names(tmp_path) == []
