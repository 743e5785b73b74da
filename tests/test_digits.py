"""The embedded benchmark: the same every time, splits that share nothing, masks that are what was drawn."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from leanmask.data import digits, scenes
from leanmask.data.digits import CLASS_NAMES, DigitsSpec, draw_scene, tail_rates, write_digits
from leanmask.errors import ConfigError, RunError

SPEC = DigitsSpec(train=12, tune=3, val=5, unlabelled=4, seed=3, size_px=64)
FILES = {split: f"annotations/instances_{split}.json" for split in ("train", "tune", "val")}
FILES["unlabelled"] = "truth/instances_unlabelled.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "new" / "data"
    write_digits(out, SPEC)
    return out


def load(data: Path, split: str) -> dict[str, Any]:
    return json.loads((data / FILES[split]).read_text())


def decode(annotation: dict[str, Any]) -> np.ndarray:
    rle = annotation["segmentation"]
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)


def test_files_and_counts(data: Path) -> None:
    for split, count in SPEC.images().items():
        content = load(data, split)
        folder = data / ("unlabelled" if split == "unlabelled" else "images")
        assert len(content["images"]) == count
        assert [category["name"] for category in content["categories"]] == list(CLASS_NAMES)
        for image in content["images"]:
            with Image.open(folder / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (64, 64)
    assert len(list((data / "images").iterdir())) == 12 + 3 + 5
    assert sorted(path.name for path in data.iterdir()) == ["annotations", "data.yaml", "images", "truth", "unlabelled"]


def test_ids_are_unique_over_all_splits(data: Path) -> None:
    contents = [load(data, split) for split in FILES]
    for key in ("images", "annotations"):
        ids = [row["id"] for content in contents for row in content[key]]
        assert len(ids) == len(set(ids)) > 0


def test_the_same_again_and_another_seed_differs(data: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "again", SPEC)
    names = sorted(path.relative_to(data) for path in data.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    for name in names:
        assert (data / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    other = draw_scene(dataclasses.replace(SPEC, seed=4), "train", 0)
    assert not np.array_equal(other.image, draw_scene(SPEC, "train", 0).image)


def test_a_larger_set_contains_the_smaller(data: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "small", dataclasses.replace(SPEC, train=5, tune=0, val=2, unlabelled=1))
    for split in ("train", "val", "unlabelled"):
        small, large = load(tmp_path / "small", split), load(data, split)
        assert small["images"] == large["images"][: len(small["images"])]
        assert small["annotations"] == large["annotations"][: len(small["annotations"])]
    assert not (tmp_path / "small" / FILES["tune"]).exists()
    for picture in (tmp_path / "small" / "images").iterdir():
        assert picture.read_bytes() == (data / "images" / picture.name).read_bytes()


def test_masks_boxes_and_areas_agree(data: Path) -> None:
    for split in FILES:
        content = load(data, split)
        taken = {image["id"]: np.zeros((64, 64), dtype=int) for image in content["images"]}
        for annotation in content["annotations"]:
            mask = decode(annotation)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum() >= scenes.MIN_VISIBLE_PX
            assert annotation["category_id"] == scenes.handwriting()[1][annotation["handwriting"]] + 1
            taken[annotation["image_id"]] += mask
        assert all(count.sum() > 0 and count.max() == 1 for count in taken.values()), "visible parts never overlap"


def test_written_masks_are_the_drawn_ones(data: Path) -> None:
    content = load(data, "train")
    for index, image in enumerate(content["images"]):
        drawn = draw_scene(SPEC, "train", index).objects
        written = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        assert len(drawn) == len(written)
        for item, row in zip(drawn, written, strict=True):
            x, y, width, height = item.region
            expected = np.zeros((64, 64), dtype=bool)
            expected[y : y + height, x : x + width] = item.visible
            assert np.array_equal(decode(row), expected)


def test_visible_parts_equal_a_naive_painter(monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs: list[scenes.Glyph] = []
    draw = scenes.draw_glyph

    def plain(rng: np.random.Generator, sample: int, size_px: int) -> scenes.Glyph:
        colour = np.array([255.0, 40.0 * (len(glyphs) + 1), 0.0])
        glyphs.append(dataclasses.replace(draw(rng, sample, size_px), colour=colour, grain=0.0))
        return glyphs[-1]

    monkeypatch.setattr(scenes, "draw_glyph", plain)
    occluded = 0
    for seed in range(8):
        glyphs.clear()
        scene = scenes.compose(np.random.default_rng(seed), "train", [0, 1, 2, 3, 4], 64)
        owner, pure = np.full((64, 64), -1), np.full((64, 64), -1)
        for order, glyph in enumerate(glyphs):
            coverage = scenes.glyph_coverage(glyph.sample, glyph.side_px, glyph.turn_degrees)
            height, width = coverage.shape
            left, top = int(glyph.place[0] * (65 - width)), int(glyph.place[1] * (65 - height))
            for y, x in itertools.product(range(height), range(width)):
                if coverage[y, x] >= 0.5:
                    owner[top + y, left + x] = order
                if coverage[y, x] > 0:
                    pure[top + y, left + x] = order if coverage[y, x] == 1 else -1
        kept = {item.sample: item for item in scene.objects}
        for order, glyph in enumerate(glyphs):
            naive = owner == order
            assert (glyph.sample in kept) == (naive.sum() >= 20)
            if glyph.sample in kept:
                x, y, width, height = kept[glyph.sample].region
                assert np.array_equal(naive[y : y + height, x : x + width], kept[glyph.sample].visible)
                occluded += not kept[glyph.sample].visible.any(axis=1).all()
            assert (scene.image[pure == order] == glyph.colour).all()
    assert occluded, "some object was hidden in part, or the test shows nothing"


def test_glyphs_look_like_their_handwriting() -> None:
    grey, _ = scenes.handwriting()
    for sample in range(0, 1797, 60):
        shape = scenes.glyph_coverage(sample, 64.0, 0.0)
        cells = grey[sample, 2:-2, 2:-2]
        enlarged = np.kron(cells, np.ones((8, 8))) > scenes.STROKE_LEVEL
        rows, columns = np.flatnonzero(enlarged.any(axis=1)), np.flatnonzero(enlarged.any(axis=0))
        tight = Image.fromarray(enlarged[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        blocky = np.asarray(tight.resize(shape.shape[::-1]))
        smooth = shape >= 0.5
        assert (smooth & blocky).sum() / (smooth | blocky).sum() > 0.6, sample


def test_glyph_sizes_and_turns_are_in_range() -> None:
    rng = np.random.default_rng(0)
    drawn = [scenes.draw_glyph(rng, 0, 128) for _ in range(300)]
    sides = np.array([glyph.side_px for glyph in drawn]) / 128
    turns = np.array([glyph.turn_degrees for glyph in drawn])
    assert 0.18 <= sides.min() < 0.2
    assert 0.43 < sides.max() <= 0.45
    assert -20 <= turns.min() < -17
    assert 17 < turns.max() <= 20


def test_splits_share_no_handwriting(data: Path) -> None:
    pools = {split: scenes.sample_pools(split) for split in (*scenes.SPLITS, "reserved")}
    for digit in range(10):
        members = np.concatenate([pool[digit] for pool in pools.values()])
        assert sorted(members) == np.flatnonzero(scenes.handwriting()[1] == digit).tolist()
        assert 0.09 <= len(pools["reserved"][digit]) / len(members) <= 0.11
        assert 0.43 <= len(pools["train"][digit]) / len(members) <= 0.47
    for split in FILES:
        allowed = set(np.concatenate(pools[split]).tolist())
        assert {row["handwriting"] for row in load(data, split)["annotations"]} <= allowed


def test_splits_share_no_background(data: Path) -> None:
    for name in scenes.PHOTOGRAPHS:
        cover = np.zeros(scenes.photograph(name).shape[:2], dtype=int)
        for split in scenes.SPLITS:
            x, y, width, height = scenes.part_of(name, split)
            cover[y : y + height, x : x + width] += 1
            assert min(width, height) >= scenes.CROP_RANGE_PX[1]
        assert cover.max() == 1
    for split in FILES:
        for image in load(data, split)["images"]:
            x, y, width, height = scenes.part_of(image["photograph"], split)
            left, top, w, h = image["photograph_crop_xywh"]
            assert x <= left
            assert y <= top
            assert left + w <= x + width
            assert top + h <= y + height


def test_long_tail_has_frequent_common_and_rare_classes(tmp_path: Path) -> None:
    write_digits(tmp_path / "tail", DigitsSpec(train=1000, tune=2, val=3, unlabelled=2, size_px=64, longtail=True))
    train, val = load(tmp_path / "tail", "train"), load(tmp_path / "tail", "val")
    assert [category["frequency"] for category in train["categories"]] == list("ffcffccrrr")
    for category in train["categories"]:
        rows = [row for row in train["annotations"] if row["category_id"] == category["id"]]
        assert category["instance_count"] == len(rows) > 0
        assert category["image_count"] == len({row["image_id"] for row in rows})
        assert (category["frequency"] == "r") == (category["image_count"] <= 10)
    assert val["categories"] == train["categories"]
    for content in (train, val, load(tmp_path / "tail", "unlabelled")):
        for image in content["images"]:
            present = {row["category_id"] for row in content["annotations"] if row["image_id"] == image["id"]}
            assert set(image["neg_category_ids"]) == set(range(1, 11)) - present
            assert image["not_exhaustive_category_ids"] == []


def test_long_tail_rates_follow_the_power_law() -> None:
    rates = tail_rates()
    assert rates.sum() == pytest.approx(4)
    ordered = rates[list(digits.TAIL_ORDER)]
    assert ordered[0] / ordered[9] == pytest.approx((16 / 7) ** 8)
    assert (np.diff(ordered) < 0).all()


def test_refuses_a_folder_with_anything_in_it_and_takes_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="not an empty folder"):
        write_digits(tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    with pytest.raises(RunError, match="not an empty folder"):
        write_digits(tmp_path / "note.txt", SPEC)
    (tmp_path / "empty").mkdir()
    write_digits(tmp_path / "empty", DigitsSpec(train=1, tune=0, val=0, size_px=32))
    assert (tmp_path / "empty" / "data.yaml").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(digits, "write_json", full)
    with pytest.raises(RunError, match="disk is full"):
        write_digits(tmp_path / "out", SPEC)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"), [("train", 0), ("train", -1), ("val", -1), ("seed", -1), ("size_px", 16), ("unlabelled", 10**8)]
)
def test_bad_sizes_are_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=field):
        DigitsSpec(**{field: value})


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_digits(tmp_path / "out", DigitsSpec(train=3, tune=1, val=0, size_px=32), lambda *n: seen.append(n))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_tiny_images_always_have_an_object() -> None:
    spec = DigitsSpec(train=60, size_px=32)
    assert all(draw_scene(spec, "train", index).objects for index in range(60))
