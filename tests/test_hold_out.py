"""A validation split out of labelled images: by hash, near-duplicates on one side, nothing of the user's changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data_helpers import annotation
from PIL import Image, ImageEnhance
from run_helpers import TINY, Outcome, train

from leanmask.data.check import check
from leanmask.data.hashed import in_share
from leanmask.data.hold_out import hold_out
from leanmask.data.layout import locate
from leanmask.data.near_duplicates import group_near_duplicates
from leanmask.data.splits import split
from leanmask.errors import ConfigError, DataError

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
SIZE = (192, 256)


def photograph(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture that is even in no place: blobs of every size, as photographs have them."""
    rng = np.random.default_rng(seed)
    height, width = size
    found = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        found += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 5
    return Image.fromarray(found.astype(np.uint8))


def variants(picture: Image.Image) -> dict[str, Image.Image]:
    w, h = picture.size
    return {
        "recompressed": picture,
        "half": picture.resize((w // 2, h // 2)),
        "darker": ImageEnhance.Brightness(picture).enhance(0.6),
        "mirrored": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "turned": picture.rotate(90, expand=True),
        "moved": picture.crop((6, 5, w, h)),  # a burst
        "cropped": picture.crop((w // 8, h // 8, w, h)),
    }


def groups(paths: list[Path]) -> list[set[str]]:
    labels = group_near_duplicates(paths).labels.tolist()
    return [
        {path.name for path, own in zip(paths, labels, strict=True) if own == label} for label in sorted(set(labels))
    ]


def test_each_kind_of_copy_is_found_and_other_pictures_stay_apart(tmp_path: Path) -> None:
    others = []
    for seed in range(6):
        photograph(seed).save(tmp_path / f"{seed}.png")
        others.append(tmp_path / f"{seed}.png")
    for name, copy in variants(photograph(0)).items():
        copy.save(tmp_path / f"{name}.jpg", quality=85)
        found = groups([*others, tmp_path / f"{name}.jpg"])
        assert {"0.png", f"{name}.jpg"} in found, name
        assert len(found) == 6


def test_tiles_that_overlap_are_one_group_and_neighbours_of_neighbours_too(tmp_path: Path) -> None:
    wide = photograph(3, (256, 640))
    for place in range(3):
        wide.crop((190 * place, 0, 190 * place + 256, 256)).save(tmp_path / f"t{place}.png")
    photograph(4, (256, 256)).save(tmp_path / "other.png")
    paths = [tmp_path / f"{name}.png" for name in ("t0", "t2", "other", "t1")]
    assert groups(paths) == [{"t0.png", "t1.png", "t2.png"}, {"other.png"}]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("cat_jpg.rf.0123456789abcdef.png", "cat_jpg.rf.fedcba9876543210.png", True),
        ("cat.png", "cat_aug3.png", True),
        ("cat.png", "cat (2).png", True),
        ("cat_x0_y512.png", "cat_x512_y0.png", True),
        ("cat_tile_4.png", "cat_tile_5.png", True),
        ("IMG_0001.png", "IMG_0002.png", False),
        ("2024_01_15.png", "2024_01_16.png", False),
    ],
)
def test_names_of_copies(tmp_path: Path, first: str, second: str, same: bool) -> None:
    photograph(1).save(tmp_path / first)
    photograph(2).save(tmp_path / second)
    assert (len(groups([tmp_path / first, tmp_path / second])) == 1) == same


def test_even_and_broken_pictures_are_alone(tmp_path: Path) -> None:
    for name, value in (("black", 0), ("white", 255)):
        Image.new("L", (64, 64), value).save(tmp_path / f"{name}.png")
    Image.fromarray(np.full((64, 64), 3000, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    paths = sorted(tmp_path.glob("*.png"))
    found = group_near_duplicates(paths)
    assert sorted(found.labels.tolist()) == [0, 1, 2, 3]
    assert found.unreadable == (tmp_path / "broken.png",)


def test_unrelated_photographs_stay_apart() -> None:
    folder = REAL_DATA / "animals" / "images"
    if not folder.is_dir():
        pytest.skip("the data set animals is not on this machine")
    paths = sorted(folder.iterdir())[:60]
    assert len(groups(paths)) == len(paths)


def write(root: Path, count: int = 12, copies: tuple[int, ...] = (0, 1), **fields: Any) -> Path:
    """A folder with one annotation file; of some pictures there is a second, nearly the same."""
    (root / "images").mkdir(parents=True)
    images, rows = [], []
    names = [*((f"{n:02}", n) for n in range(count)), *((f"again-{n:02}", n) for n in copies)]
    for number, (name, seed) in enumerate(names, start=1):
        picture = photograph(seed, (96, 128))
        picture = picture.crop((2, 2, 128, 96)).resize((128, 96)) if name.startswith("again") else picture
        picture.save(root / "images" / f"{name}.jpg")
        images.append({"id": number, "file_name": f"{name}.jpg", "width": 128, "height": 96})
        rows.append(annotation(number, number, [10.0, 10.0, 40.0, 30.0], category_id=7 if number > 1 else 8))
    categories = [{"id": 7, "name": "thing"}, {"id": 8, "name": "rare"}, {"id": 9, "name": "none"}]
    path = root / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories, **fields}))
    return path


def stems(out: Path, name: str) -> set[str]:
    content = json.loads((out / "annotations" / f"instances_{name}.json").read_text())
    return {Path(image["file_name"]).stem for image in content["images"]}


def test_a_folder_with_one_annotation_file(leanmask: Callable[..., Outcome], tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "new" / "out"
    write(data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    done = leanmask("split", data, out, "--val", "30%")
    assert done.code == 0, done.err
    assert "4 images are nearly the same as others (2 groups)" in done.out
    assert "no object of 'rare' in " in done.out
    assert "no object at all of 'none'" in done.out
    train_names, val_names = stems(out, "train"), stems(out, "val")
    assert not train_names & val_names
    assert len(train_names | val_names) == 14
    for copy in ("00", "01"):
        assert (copy in val_names) == (f"again-{copy}" in val_names)
    for name in ("02", "05", "11"):
        assert (name in val_names) == in_share(f"{name}.jpg", 0.3)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert not list(out.rglob("*.jpg"))
    assert set(locate(out)) == {"train", "val"}
    assert check(out).ok
    assert yaml.safe_load((out / "data.yaml").read_text())["splits"]["val"]["images"] == "../../data/images"


def test_more_images_and_a_larger_share_keep_what_was_put_aside(tmp_path: Path) -> None:
    few, many = write(tmp_path / "few", 8, ()), write(tmp_path / "many", 14, ())

    def aside(path: Path, share: float, seed: int = 0) -> set[str]:
        found = hold_out(json.loads(path.read_text()), path.parent / "images", share, seed)
        return {image["file_name"] for image in found.val_images}

    known = {f"{n:02}.jpg" for n in range(8)}
    assert aside(few, 0.4) == aside(many, 0.4) & known
    assert aside(few, 0.4) < aside(few, 0.7)
    assert aside(many, 0.4, seed=1) != aside(many, 0.4)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_each_side_has_an_image(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "data", 4, ())
    found = hold_out(json.loads(path.read_text()), path.parent / "images", share)
    assert sorted((len(found.train_images), len(found.val_images))) == [1, 3]
    assert any("so that each side has an image" in note for note in found.notes)


def test_images_that_are_not_annotated_completely_stay_in_training(tmp_path: Path) -> None:
    path = write(tmp_path / "data", 8, ())
    content = json.loads(path.read_text())
    for image in content["images"][:6]:
        image["exhaustive"] = False
    found = hold_out(content, path.parent / "images", 0.9)
    assert {image["file_name"] for image in found.val_images} <= {"06.jpg", "07.jpg"}


def test_a_protocol_takes_labels_from_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "data")
    told = split(tmp_path / "data", tmp_path / "out", "boxes", val=0.3)
    assert (told.masks, told.boxes) == (0, told.images)
    assert told.images + told.val_images == 14
    val = json.loads((tmp_path / "out/annotations/instances_val.json").read_text())
    assert all(row["segmentation"] for row in val["annotations"])
    truth = json.loads((tmp_path / "out/truth/instances_train.json").read_text())
    assert {image["id"] for image in truth["images"]}.isdisjoint(image["id"] for image in val["images"])


def test_mistakes_are_sentences(leanmask: Callable[..., Outcome], digits: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data", 3, ())
    assert "--val 20%" in leanmask("split", tmp_path / "data", tmp_path / "out").err
    with pytest.raises(DataError, match=r"has a split 'val' already .*instances_train.json OUT --val SHARE"):
        split(digits, tmp_path / "out", val=0.2)
    for share in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            split(path, tmp_path / "out", val=share)
    same = json.loads(path.read_text())
    same["images"], same["annotations"] = same["images"][:1], same["annotations"][:1]
    with pytest.raises(DataError, match=r"1 of 1 images are annotated exhaustively"):
        hold_out(same, path.parent / "images", 0.5)
    assert not (tmp_path / "out").exists()
    split(digits / "annotations" / "instances_train.json", tmp_path / "again", val=0.2)


def test_training_without_a_validation_split_says_so_and_names_the_command(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data, 4, ())
    notes: list[str] = []
    summary = train(data, tmp_path / "run", settings=TINY, on_progress=lambda step, total, note: notes.append(note))
    assert summary.metrics == {}
    assert summary.best is not None
    assert summary.best["who"] == "teacher"
    told = "\n".join(notes)
    assert "has no split 'val': nothing is measured" in told
    assert f"`leanmask split {data.absolute()} NEW --val 20%` makes one" in told
    assert "no object of 1 of 3 classes: 'none'" in told
    assert set(json.loads((tmp_path / "run" / "data.json").read_text())["census"]) == {"train"}
    with pytest.raises(DataError, match="no split 'vall'"):
        train(data, tmp_path / "other", settings=TINY, overrides=["data.val_split=vall"])
    described = {"train": {"annotations": "labels.json", "images": "images"}}
    described["valid"] = described["train"]
    (data / "data.yaml").write_text(yaml.safe_dump({"splits": described}))
    with pytest.raises(DataError, match="no split 'val'; did you mean 'valid'"):
        train(data, tmp_path / "other", settings=TINY)


def test_a_share_that_groups_move_far_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "data", 3, ())
    content = json.loads(path.read_text())
    for number in range(20):  # a burst by its names
        name = f"02_copy{number}.jpg"
        (path.parent / "images" / name).write_bytes((path.parent / "images" / "02.jpg").read_bytes())
        content["images"].append({**content["images"][2], "id": 100 + number, "file_name": name})
        content["annotations"].append({**content["annotations"][2], "id": 100 + number, "image_id": 100 + number})
    found = hold_out(content, path.parent / "images", 0.5)
    reached = len(found.val_images) / 23
    assert len(found.val_images) in (1, 2, 21, 22)
    assert any(f"val has {reached:.0%} of the labelled images, where 50% was asked for" in note for note in found.notes)
