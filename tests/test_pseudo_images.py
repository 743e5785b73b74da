"""`leanmask pseudo`: labels for unlabelled images as a COCO file, through kills, bad files and other tools."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from run_helpers import TINY, train

from leanmask.cli import runs
from leanmask.data.check import check
from leanmask.data.layout import locate
from leanmask.errors import RunError
from leanmask.inference.polygons import to_polygons
from leanmask.inference.pseudo_images import PseudoOptions, pseudo
from leanmask.inference.shares import Shares
from leanmask.reports import review
from leanmask.reports.overlays import open_upright
from leanmask.reports.review import write_review
from leanmask.summary import TrainSummary

ALL = PseudoOptions(class_quality=0.02, mask_quality=0.3, area_px=0)  # an untrained network is sure of nothing


@pytest.fixture
def photos(digits: Path, tmp_path: Path) -> Path:
    """Five images of which the third is cut off in the middle and the fourth is no image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    images = sorted(locate(digits)["val"].images.glob("val*"))[:4]
    for number, path in enumerate(images):
        shutil.copy(path, folder / ("more" if number == 3 else ".") / f"{number}{path.suffix}")
    broken = folder / f"2{images[2].suffix}"
    broken.write_bytes(broken.read_bytes()[:200])
    (folder / "3.png").write_text("no image")
    return folder


def test_what_is_written_and_what_is_left_out(trained: TrainSummary, photos: Path, tmp_path: Path) -> None:
    summary = pseudo(trained.folder, [photos], tmp_path / "pseudo.json", ALL)
    content = json.loads((tmp_path / "pseudo.json").read_text())
    assert (summary.images, len(summary.skipped)) == (3, 2)
    assert {Path(name).name[0] for name in summary.skipped} == {"2", "3"}
    assert "2 files could not be read" in summary.to_text()
    assert sorted(image["file_name"].split(".")[0] for image in content["images"]) == ["0", "1", "more/3"]
    assert all(image["exhaustive"] is False for image in content["images"])
    rows = content["annotations"]
    assert len(rows) == summary.objects == sum(summary.per_class.values()) > 0
    assert [row["id"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert row["class_quality"] >= ALL.class_quality - 1e-4
        assert row["mask_quality"] >= ALL.mask_quality - 1e-4
        assert row["area"] == coco_mask.area(row["segmentation"]) > 0
        assert row["provenance"] == f"leanmask {trained.folder.name}"
    assert list(tmp_path.glob(".*parts")) == []
    with pytest.raises(RunError, match="never overwritten"):
        pseudo(trained.folder, [photos], tmp_path / "pseudo.json", ALL)


def test_where_nothing_passes_one_is_told_how_near_the_best_came(
    trained: TrainSummary, photos: Path, tmp_path: Path
) -> None:
    all_of_it = pseudo(trained.folder, [photos], tmp_path / "all.json", PseudoOptions(0.0, 0.0, 0))
    rows = json.loads((tmp_path / "all.json").read_text())["annotations"]
    best = {name: max(row[name] for row in rows) for name in ("class_quality", "mask_quality")}
    assert all_of_it.best == best
    assert "nothing passed" not in all_of_it.to_text()
    nothing = pseudo(trained.folder, [photos], tmp_path / "none.json", PseudoOptions(class_quality=1.0))
    assert nothing.objects == 0
    assert nothing.best["class_quality"] == best["class_quality"]
    assert f"the best that was seen: class quality {best['class_quality']:.2f}, mask quality" in nothing.to_text()
    empty = dataclasses.replace(nothing, best=dict.fromkeys(best, 0.0))
    assert "found no object at all" in empty.to_text()


@pytest.mark.parametrize("polygons", [False, True])
def test_it_is_training_data(trained: TrainSummary, digits: Path, tmp_path: Path, polygons: bool) -> None:
    files = locate(digits)
    options = PseudoOptions(class_quality=0.02, mask_quality=0.3, polygons=polygons)
    pseudo(trained.folder, [files["tune"].images / f"tune_{i:06d}.jpg" for i in range(4)], tmp_path / "p.json", options)
    content = json.loads((tmp_path / "p.json").read_text())
    splits = {
        "train": {"annotations": str(tmp_path / "p.json"), "images": content["info"]["image_folder"]},
        "val": {"annotations": str(files["val"].annotations), "images": str(files["val"].images)},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"splits": splits}))
    assert check(tmp_path / "data.yaml").ok
    assert train(tmp_path / "data.yaml", tmp_path / "run", settings=TINY).steps == 3


@pytest.mark.parametrize("to", ["cvat", "label-studio"])
def test_other_tools_take_it(leanmask: Callable, trained: TrainSummary, photos: Path, tmp_path: Path, to: str) -> None:
    """From the run to the other tool and back: every object, its mask to the pixel, and that a network made it."""
    pseudo(trained.folder, [photos], tmp_path / "pseudo.json", ALL)
    there = tmp_path / ("there.xml" if to == "cvat" else "there.json")
    done = leanmask("convert", tmp_path / "pseudo.json", there, "--to", to, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["left_out"] == {}
    back = leanmask("convert", there, tmp_path / "back.json", "--like", tmp_path / "pseudo.json")
    assert back.code == 0, back.err
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("pseudo.json", "back.json"))
    assert [image["file_name"] for image in again["images"]] == [image["file_name"] for image in first["images"]]
    assert all(image["exhaustive"] is False for image in again["images"])
    rows = {row["id"]: row for row in again["annotations"]}
    assert len(rows) == len(first["annotations"]) > 0
    for row in first["annotations"]:
        same = rows[row["id"]]
        assert same["category_id"] == row["category_id"]
        assert same["provenance"] == row["provenance"]
        assert coco_mask.iou([same["segmentation"]], [row["segmentation"]], [0])[0, 0] == 1.0


def test_killed_and_started_again_loses_and_repeats_nothing(
    trained: TrainSummary, digits: Path, tmp_path: Path
) -> None:
    images = [locate(digits)["val"].images]
    one = PseudoOptions(class_quality=0.02, mask_quality=0.3, batch_size=1)
    pseudo(trained.folder, images, tmp_path / "whole.json", one)
    count = len(json.loads((tmp_path / "whole.json").read_text())["images"])

    class Killed(Exception):
        pass

    def kill_at(stop: int) -> Callable[[int, int], None]:
        def kill(done: int, total: int) -> None:
            assert total == count
            if done == stop:
                raise Killed

        return kill

    for stop in (1, 4):
        with pytest.raises(Killed):
            pseudo(trained.folder, images, tmp_path / "out.json", one, on_progress=kill_at(stop))
        assert not (tmp_path / "out.json").exists()
    part = tmp_path / ".out.json.parts" / "share-1-of-1.jsonl"
    part.write_text(part.read_text()[:-10])  # killed in the middle of a line
    with pytest.raises(RunError, match="made with other options"):
        pseudo(trained.folder, images, tmp_path / "out.json", ALL)
    pseudo(trained.folder, images, tmp_path / "out.json", one)
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_shares_of_several_processes_are_read_in_order(tmp_path: Path) -> None:
    def batches(rank: int) -> Iterator[list[int]]:
        yield [rank, rank + 3]
        yield [rank + 6] if rank < 2 else []

    for rank in range(3):
        share = Shares(tmp_path / "work", rank, 3)
        assert sum(share.append(batches(rank))) == share.done()
    assert list(Shares(tmp_path / "work", 0, 3).read()) == list(range(8))
    Shares(tmp_path / "work", 0, 3).remove()
    assert list((tmp_path / "work").iterdir()) == []


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_polygons_are_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :80]
    mask = np.zeros((60, 80), dtype=bool)
    for _ in range(int(rng.integers(1, 4))):
        cx, cy, rx, ry = rng.uniform([0, 0, 4, 4], [80, 60, 20, 20])
        mask |= ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    mask[0, 0] = True
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    polygons = to_polygons(rle)
    again = coco_mask.merge(coco_mask.frPyObjects(polygons, 60, 80))
    # Holes are filled, and thin corners round off; both are small here.
    assert float(coco_mask.iou([again], [rle], [0])[0, 0]) > 0.85


def test_review_shows_the_least_certain_first(trained: TrainSummary, photos: Path, tmp_path: Path) -> None:
    pseudo(trained.folder, [photos], tmp_path / "pseudo.json", ALL)
    page = write_review(tmp_path / "pseudo.json", tmp_path / "review.html", most=5).read_text()
    rows = json.loads((tmp_path / "pseudo.json").read_text())["annotations"]
    doubtful = sorted(rows, key=lambda row: row["class_quality"] * row["mask_quality"])[:5]
    places = [page.index(f"annotation {row['id']}</figcaption>") for row in doubtful]
    assert places == sorted(places)
    assert page.count("<figure>") == 5
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(RunError, match="not overwritten"):
        write_review(tmp_path / "pseudo.json", tmp_path / "review.html")


def test_the_review_page_reads_every_image_once_and_turns_it_as_its_labels_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "grey").save(tmp_path / "turned.jpg", exif=exif)
    mask = np.zeros((60, 40), dtype=np.uint8)
    mask[50:58, 4:30] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    row = {"category_id": 1, "image_id": 1, "bbox": [4, 50, 26, 8], "mask_quality": 0.9}
    row["segmentation"] = {"size": [60, 40], "counts": rle["counts"].decode()}
    content = {
        "images": [{"id": 1, "file_name": "turned.jpg", "width": 40, "height": 60}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**row, "id": number, "class_quality": 1 / number} for number in range(1, 5)],
    }
    (tmp_path / "pseudo.json").write_text(json.dumps(content))
    opened: list[Path] = []

    def counting(path: Path, size: tuple[int, int] | None) -> Image.Image:
        opened.append(path)
        return open_upright(path, size)

    monkeypatch.setattr(review, "open_upright", counting)
    page = write_review(tmp_path / "pseudo.json", tmp_path / "review.html", images=tmp_path).read_text()
    assert opened == [tmp_path / "turned.jpg"]
    assert [page.index(f"annotation {number}</figcaption>") for number in (4, 3, 2, 1)] == sorted(
        page.index(f"annotation {number}</figcaption>") for number in (4, 3, 2, 1)
    )


def test_the_command_line(leanmask: Callable, trained: TrainSummary, photos: Path, tmp_path: Path) -> None:
    flags = ["--class-quality", 0.02, "--mask-quality", 0.3, "--polygons", "--json"]
    done = leanmask(
        "pseudo", trained.folder, photos, "--out", tmp_path / "p.json", "--review", tmp_path / "r.html", *flags
    )
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["skipped"]) == 2
    assert Image.open(photos / "0.jpg").size == (64, 64)
    assert (tmp_path / "r.html").is_file()
    none = leanmask("pseudo", trained.folder, tmp_path / "nothing", "--out", tmp_path / "q.json")
    assert none.code == 2
    assert "does not exist" in none.err


def test_of_several_processes_the_first_writes_the_review_page(
    leanmask: Callable, trained: TrainSummary, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / "p.json", tmp_path / "r.html"
    monkeypatch.setattr(runs, "start_processes", lambda: SimpleNamespace(is_main_process=False))
    done = leanmask("pseudo", trained.folder, photos / "0.jpg", "--out", out, "--review", page)
    assert done.code == 0, done.err
    assert out.is_file()
    assert not page.exists()
