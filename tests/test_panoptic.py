"""COCO panoptic files become instance files: things as objects with masks, stuff counted, mistakes in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from run_helpers import Outcome

from leanmask.data.check import check
from leanmask.data.convert.translate import ConvertOptions, convert
from leanmask.errors import DataError

Content = dict[str, Any]
BIG = 70_000  # an id of all three bytes


def segments() -> np.ndarray:
    """(40, 60) ids: two things that touch, a crowd, stuff, and nothing."""
    ids = np.zeros((40, 60), dtype=np.int64)
    ids[30:] = 9
    ids[5:20, 10:20] = 3
    ids[5:20, 20:25] = BIG
    ids[22:28, 40:50] = 300
    ids[2, 2] = 3  # a second part
    return ids


def write(root: Path) -> Path:
    masks = root / "panoptic_val"
    masks.mkdir(parents=True)
    (root / "images").mkdir()
    for number, ids in ((1, segments()), (2, np.where(segments() == 9, 9, 0))):
        Image.new("RGB", (60, 40), (number, 0, 0)).save(root / "images" / f"{number}.jpg")
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(
            masks / f"{number}.png"
        )
    stuff = {"id": 9, "category_id": 50, "iscrowd": 0, "area": 600}
    info = [
        {"id": 3, "category_id": 7, "iscrowd": 0},
        {"id": BIG, "category_id": 7, "iscrowd": 0},
        {"id": 300, "category_id": 2, "iscrowd": 1},
        stuff,
    ]
    content = {
        "info": {"year": 2026},
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in (1, 2)],
        "annotations": [
            {"image_id": 1, "file_name": "1.png", "segments_info": info},
            {"image_id": 2, "file_name": "2.png", "segments_info": [stuff]},
        ],
        "categories": [
            {"id": 7, "name": "cat", "isthing": 1},
            {"id": 2, "name": "people", "isthing": 1},
            {"id": 50, "name": "grass", "isthing": 0},
        ],
    }
    path = root / "panoptic_val.json"
    path.write_text(json.dumps(content))
    return path


def test_things_become_objects_with_masks(tmp_path: Path) -> None:
    path = write(tmp_path)
    told = convert(path, tmp_path / "out" / "labels.json")
    assert told.objects == {"mask": 3}
    assert told.left_out == {"segments of stuff classes (isthing 0)": 2, "stuff classes (isthing 0)": 1}
    content = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert content["categories"] == [{"id": 2, "name": "people"}, {"id": 7, "name": "cat"}]
    rows = content["annotations"]
    assert [(row["category_id"], row["iscrowd"]) for row in rows] == [(7, 0), (7, 0), (2, 1)]
    for row, number in zip(rows, (3, BIG, 300), strict=True):
        mask = coco_mask.decode(row["segmentation"])
        assert (mask == (segments() == number)).all()
        assert row["area"] == mask.sum()
        assert row["bbox"] == coco_mask.toBbox(row["segmentation"]).tolist()
    assert [image.get("exhaustive") for image in content["images"]] == [None, True]  # somebody looked at the second


def test_what_check_says_of_it_leads_to_data_that_pass(leanmask: Callable[..., Outcome], tmp_path: Path) -> None:
    path = write(tmp_path / "data")
    refused = leanmask("check", tmp_path / "data")
    assert refused.code == 2
    assert f"`leanmask convert {path} labels.json` reads it" in refused.err
    done = leanmask("convert", path, tmp_path / "data" / "labels.json")
    assert done.code == 0, done.err
    assert "left out: 2 segments of stuff classes" in done.out
    report = check(tmp_path / "data")
    assert report.ok, report.to_text()
    assert (report.census["train"].objects["mask"], report.census["train"].crowds) == (2, 1)
    assert report.census["train"].negative_images == 1


def test_a_data_set_whose_split_is_panoptic_is_converted(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "data.yaml").write_text("splits: {train: {annotations: panoptic_val.json, images: images}}")
    assert convert(tmp_path, tmp_path / "a.json").objects == {"mask": 3}
    (tmp_path / "panoptic_val").rename(tmp_path / "elsewhere")
    assert convert(path, tmp_path / "b.json").objects == {"mask": 3}  # one folder beside
    (tmp_path / "elsewhere").rename(tmp_path.parent / "far")
    with pytest.raises(DataError, match=r"1\.png, are not in .*--masks"):
        convert(path, tmp_path / "c.json")
    assert convert(path, tmp_path / "c.json", ConvertOptions(masks=tmp_path.parent / "far")).objects == {"mask": 3}


def _segment(content: Content, place: int, **fields: Any) -> None:
    content["annotations"][0]["segments_info"][place].update(fields)


MISTAKES: list[tuple[Callable[[Content], Any], str]] = [
    (lambda c: _segment(c, 0, id=BIG), "a segment needs an `id` of its own"),
    (lambda c: _segment(c, 0, category_id=99), "category id 99, which the file lacks"),
    (lambda c: c["annotations"][0].update(file_name="7.png"), "are not in"),
    (lambda c: c["annotations"][1].update(file_name="3.png"), "image 2: its mask .*3.png does not exist"),
    (lambda c: c["images"][0].update(width=61), "image 1: its mask .* has 60 x 40 pixels, the image 61 x 40"),
    (lambda c: c["annotations"][0].update(image_id=5), "image 5: its annotation belongs to an image"),
    (lambda c: c["annotations"][0].update(segments_info=None), "segments_info must be a list"),
    (lambda c: [row.update(isthing=0) for row in c["categories"]], "no thing class"),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES, ids=[str(i) for i in range(len(MISTAKES))])
def test_mistakes_are_sentences(tmp_path: Path, spoil: Callable[[Content], Any], message: str) -> None:
    path = write(tmp_path)
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        convert(path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_what_png_and_file_do_not_share_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = json.loads(path.read_text())
    _segment(content, 0, id=4)
    path.write_text(json.dumps(content))
    told = convert(path, tmp_path / "out.json")
    assert told.objects == {"mask": 2}
    assert told.left_out["segments without a pixel in the PNG"] == 1
    assert told.left_out["regions of the PNG that no segment names"] == 1
