"""Unlabelled images: where they come from, that nothing but the images is read, and that none leaks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from leanmask.data.coco import AnnotationStore
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.splits import split
from leanmask.data.unlabelled import ImagePool, open_pool, require_apart, unlabelled_sources
from leanmask.errors import DataError


@pytest.fixture(scope="module")
def semi(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "semi"
    split(digits, out, "semi-25")
    return out


def stores(data: Path) -> dict[str, AnnotationStore]:
    found = locate(data)
    return {name: AnnotationStore.open(found[name].annotations, found[name].images) for name in ("train", "val")}


def pool_of(data: Path, *sources: Path | str) -> ImagePool:
    named = [str(source) for source in sources]
    return open_pool(unlabelled_sources(named, locate(data)), stores(data)["train"].classes)


def test_a_semi_split_brings_its_own(semi: Path) -> None:
    pool = pool_of(semi)
    assert len(pool) == 12
    assert len(list(pool.paths())) == len({path.name for path in pool.paths()}) == 12
    for index in range(len(pool)):
        assert not pool[index].objects
        assert not pool[index].exhaustive
    require_apart(pool, stores(semi))


def test_several_sources_follow_each_other(semi: Path, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    for number, path in enumerate(list(pool_of(semi).paths())[:3]):
        shutil.copy(path, folder / f"{number}.png")
    pool = pool_of(semi, folder, digits / "annotations" / "instances_tune.json", folder)
    assert len(pool) == 3 + 4 + 3
    names = [pool[index].path.name for index in range(len(pool))]
    assert names[:3] == names[-3:] == ["0.png", "1.png", "2.png"]
    assert names == [path.name for path in pool.paths()]


def test_annotations_are_never_read(digits: Path, tmp_path: Path) -> None:
    """A file full of nonsense annotations is as good as one without any."""
    content = json.loads((digits / "annotations" / "instances_tune.json").read_text())
    content["annotations"] = [{"id": "x", "image_id": None, "segmentation": 7, "category_id": []}]
    content["categories"] = [{"id": 99, "name": "something else"}]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_pool.json").write_text(json.dumps(content))
    images = locate(digits)["tune"].images
    sources = [SplitFiles(tmp_path / "annotations" / "instances_pool.json", images, None)]
    pool = open_pool(sources, stores(digits)["train"].classes)
    assert len(pool) == 4
    assert not any(pool[index].objects for index in range(4))


def test_nothing_is_named(digits: Path) -> None:
    with pytest.raises(DataError, match=r"--unlabelled .*or give the data set a split 'unlabelled'"):
        unlabelled_sources([], locate(digits))


def test_folders_below_a_folder_are_searched(digits: Path, tmp_path: Path) -> None:
    images = list(pool_of(digits, digits / "annotations" / "instances_tune.json").paths())[:3]
    for place, path in zip(("b.png", "a/deep/c.png", "a/b.png"), images, strict=True):
        (tmp_path / "pool" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "pool" / place)
    found = [path.relative_to(tmp_path / "pool").as_posix() for path in pool_of(digits, tmp_path / "pool").paths()]
    assert found == ["a/b.png", "a/deep/c.png", "b.png"]
    (tmp_path / "pool" / "b.png").unlink()
    assert len(pool_of(digits, tmp_path / "pool")) == 2


def test_an_empty_folder(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        pool_of(digits, tmp_path)


@pytest.mark.parametrize("purpose", ["train", "val"])
def test_known_images_are_found_by_path_and_by_content(digits: Path, tmp_path: Path, purpose: str) -> None:
    known = stores(digits)
    first = next(known[purpose].paths())
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "a.png").symlink_to(first)
    with pytest.raises(DataError, match=f"a.png is one of the {purpose} images"):
        require_apart(pool_of(digits, tmp_path / "link"), known)
    (tmp_path / "copy").mkdir()
    shutil.copy(first, tmp_path / "copy" / "b.png")
    with pytest.raises(DataError, match=f"b.png has the same content as .*{first.name}, one of the {purpose} images"):
        require_apart(pool_of(digits, tmp_path / "copy"), known)


def test_a_file_whose_images_are_elsewhere(digits: Path, tmp_path: Path) -> None:
    shutil.copy(digits / "annotations" / "instances_tune.json", tmp_path / "pool.json")
    with pytest.raises(DataError, match=r"the images of .*pool.json are not in"):
        pool_of(digits, tmp_path / "pool.json")


def test_files_of_equal_size_are_told_apart(digits: Path, tmp_path: Path) -> None:
    first = next(stores(digits)["val"].paths())
    content = bytearray(first.read_bytes())
    content[-20] ^= 1
    (tmp_path / "c.png").write_bytes(bytes(content))
    (tmp_path / "missing.png").symlink_to(tmp_path / "nowhere.png")
    assert (tmp_path / "c.png").stat().st_size == first.stat().st_size
    require_apart(pool_of(digits, tmp_path), stores(digits))
    (tmp_path / "c.png").write_bytes(first.read_bytes())  # one byte decides
    with pytest.raises(DataError, match=r"c\.png has the same content"):
        require_apart(pool_of(digits, tmp_path), stores(digits))
