"""The store as workers see it: small to send, safe to open at once, its cache; and writing JSON safely."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_helpers import SQUARE, image, row, store, write

from leanmask.data import pack as pack_module
from leanmask.data.coco import AnnotationStore, read_json, write_json
from leanmask.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


def large(folder: Path, images: int = 200, each: int = 100) -> Path:
    rows = [
        row(i, image_id=i % images + 1, bbox=[1, 1, 20, 20], segmentation=SQUARE) for i in range(1, images * each + 1)
    ]
    return write(folder, rows, [image(i) for i in range(1, images + 1)])


def test_a_pickled_store_is_small_and_reads_the_same(tmp_path: Path) -> None:
    opened = AnnotationStore.open(large(tmp_path), tmp_path)
    sent = pickle.dumps(opened)
    assert (tmp_path / "file.json").stat().st_size > 1_000_000
    assert len(sent) < 10_000
    copy = pickle.loads(sent)
    assert len(copy) == len(opened) == 200
    assert [found.id for found in copy[17].objects] == [found.id for found in opened[17].objects]
    assert len(copy[-1].objects) == 100
    with pytest.raises(IndexError):
        copy[200]


def _open_in_process(path: Path, folder: Path, queue: Any) -> None:
    opened = AnnotationStore.open(path, folder)
    queue.put((len(opened), sum(len(record.objects) for record in opened)))


def test_two_processes_may_open_at_once(tmp_path: Path, cache: Path) -> None:
    path = large(tmp_path, each=20)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_open_in_process, args=(path, tmp_path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [(200, 4000)] * 3
    for worker in workers:
        worker.join()
    assert len(list((cache / "annotations").iterdir())) == 1


def test_the_cache_follows_the_content(tmp_path: Path, cache: Path) -> None:
    assert len(store(tmp_path, row(bbox=[1, 1, 2, 2]))[0].objects) == 1
    assert len(store(tmp_path, row(bbox=[1, 1, 2, 2]), row(2, bbox=[1, 1, 2, 2]))[0].objects) == 2
    packs = list((cache / "annotations").iterdir())
    assert len(packs) == 2
    for found in packs:  # damaged: noticed and written anew
        content = (found / "images.bin").read_bytes()
        (found / "images.bin").write_bytes(content.replace(b'"id":1', b'"id":9'))
    assert store(tmp_path, row(bbox=[1, 1, 2, 2]))[0].objects[0].id == 1
    for found in packs:
        (found / "images.bin").write_bytes(b"")
    assert len(store(tmp_path, row(bbox=[1, 1, 2, 2]))[0].objects) == 1


def test_what_nobody_opens_is_forgotten(tmp_path: Path, cache: Path) -> None:
    """Opening a store keeps it; a new one sweeps out those that were opened last long ago."""
    rows = [[row(number, bbox=[1, 1, 2, 2])] for number in (1, 2, 3)]
    for number in (0, 1):
        store(tmp_path, *rows[number])
    unfinished = cache / "annotations" / ".v3-of-a-killed-process"
    unfinished.mkdir()
    long_ago = time.time() - (pack_module.DAYS_KEPT + 1) * 24 * 3600
    for found in (cache / "annotations").iterdir():
        os.utime(found, (long_ago, long_ago))
    store(tmp_path, *rows[1])
    store(tmp_path, *rows[2])
    left = list((cache / "annotations").iterdir())
    assert len(left) == 2
    assert unfinished not in left
    for number in (1, 2):
        store(tmp_path, *rows[number])
    assert set((cache / "annotations").iterdir()) == set(left)  # these are the two that were opened


def test_a_cache_that_cannot_be_written_is_replaced(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    opened = store(tmp_path, row(bbox=[1, 1, 2, 2]))
    assert opened[0].objects[0].id == 1
    assert list(tmp_path.glob("leanmask-*/annotations/*"))
    monkeypatch.setattr(pack_module.tempfile, "tempdir", str(cache))
    with pytest.raises(DataError, match="LEANMASK_CACHE"):
        store(tmp_path, row(bbox=[1, 1, 2, 3]))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="modes and owners are POSIX's")
def test_a_cache_that_others_may_write_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without $LEANMASK_CACHE: somebody else's folder in the shared temporary one holds what somebody else wants."""
    monkeypatch.delenv("LEANMASK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    store(tmp_path, row(bbox=[1, 1, 2, 2]))
    folder = tmp_path / "home" / ".cache" / "leanmask" / "annotations"
    key = next(folder.iterdir()).name
    assert pack_module.find_pack(key) is not None
    for part in (folder, folder.parent):
        part.chmod(0o777)
        assert pack_module.find_pack(key) is None
        part.chmod(0o700)
    mine = os.getuid()
    monkeypatch.setattr(pack_module.os, "getuid", lambda: mine + 1)
    assert pack_module.find_pack(key) is None
    monkeypatch.setattr(pack_module.Path, "chmod", lambda *_: None)
    with pytest.raises(DataError, match="another user's, or others may write there"):
        store(tmp_path, row(bbox=[1, 1, 2, 3]))


def test_write_json_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"n": np.float32(0.5), "a": np.arange(2), "counts": b"abc", "p": Path("x")})
    assert read_json(path) == {"n": 0.5, "a": [0, 1], "counts": "abc", "p": "x"}
    with pytest.raises(DataError, match="exists already"):
        write_json(path, {})
    write_json(path, {"new": 1}, overwrite=True)
    assert read_json(path) == {"new": 1}
    with pytest.raises(DataError, match="NaN"):
        write_json(path, {"n": float("nan")}, overwrite=True)
    assert read_json(path) == {"new": 1}
    with pytest.raises(DataError, match="cannot write"):
        write_json(path / "below.json", {})


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_failed_writes_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "a.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=message):
        write_json(path, {"a": 1}, overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    assert read_json(path) == {}
