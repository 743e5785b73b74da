"""Images are opened by known formats, and as regular files, in one place."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from leanmask.data.checking.images import probe
from leanmask.data.files import read_json
from leanmask.data.image_files import open_image
from leanmask.data.pack import cache_key
from leanmask.data.views.canvas import UnreadableImage, image_size
from leanmask.errors import DataError
from leanmask.retrieval.embed import read_upright

PACKAGE = Path(__file__).parent.parent / "leanmask"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.fixture
def photo_of_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An EPS file by the name of a photograph; to decode it starts Ghostscript."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", start)
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    return path


def test_an_eps_file_starts_no_program(photo_of_another_format: Path) -> None:
    path = photo_of_another_format
    with Image.open(path) as opened:
        assert opened.format == "EPS"  # so Pillow alone would take it
    for source in (path, path.read_bytes()):
        with pytest.raises(OSError, match="cannot identify"):
            open_image(source)
    assert probe(path).fault is not None
    assert read_upright(path) is None
    with pytest.raises(UnreadableImage):
        image_size(path, "ignore")


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that nobody writes to; who waits for it is let go after five seconds, and the test fails."""
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    waited = threading.Event()

    def let_go() -> None:
        waited.set()
        os.close(os.open(path, os.O_RDWR))

    timer = threading.Timer(5, let_go)
    timer.start()
    yield path
    timer.cancel()
    assert not waited.is_set()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX's")
def test_a_pipe_is_not_waited_for(pipe: Path) -> None:
    with pytest.raises(OSError, match="no regular file"):
        open_image(pipe)
    fault = probe(pipe).fault
    assert fault is not None
    assert "no regular file" in fault.message
    assert read_upright(pipe) is None
    with pytest.raises(UnreadableImage, match="no regular file"):
        image_size(pipe, "ignore")
    with pytest.raises(DataError, match="no regular file"):
        read_json(pipe)
    with pytest.raises(DataError, match="no regular file"):
        cache_key(pipe, "test")


def test_nobody_else_opens_images() -> None:
    """Pictures that leanmask itself wrote are its own to open."""
    own = {"data/image_files.py", "reports/evaluation_pictures.py"}
    for path in PACKAGE.rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "Image.open" not in calls or path.relative_to(PACKAGE).as_posix() in own, path
