"""Shared fixtures: a tiny digits data set, a sparse split of it, one trained run that many tests look at, a browser."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from annotate_helpers import chromium
from run_helpers import TINY, Outcome, train

from leanmask.cli import main
from leanmask.data import pack as pack_module
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import split
from leanmask.planning import plan as plan_module
from leanmask.summary import TrainSummary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


# Files that take a minute or more: first, or one of the processes waits for the other at the end.
SLOW_FILES = ("test_torchrun", "test_pointwssis", "test_bench", "test_resume", "test_point_models", "test_speed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in SLOW_FILES)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu() -> None:
    """Many tests compare bit for bit, which GPUs do not promise. To see the others there: ACCELERATE_USE_CPU=false."""
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """Shells start jobs in the background with Ctrl-C ignored, and so are the processes that tests start from there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stores that tests open are cached apart from those of the person who runs them."""
    os.environ["LEANMASK_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _untimed_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan measures a few steps of the training; here every step takes half a second (see test_planning.py)."""
    monkeypatch.setattr(plan_module, "seconds_per_step", lambda config: 0.5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for one test alone."""
    monkeypatch.setenv("LEANMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pack_module.tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training, 4 tuning, 6 validation images of 64 px, fully labelled."""
    out = tmp_path_factory.mktemp("data") / "digits"
    write_digits(out, DigitsSpec(train=16, tune=4, val=6, size_px=64))
    return out


@pytest.fixture(scope="session")
def sparse(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a fifth of the masks."""
    out = tmp_path_factory.mktemp("data") / "sparse"
    split(digits, out, "sparse-20")
    return out


@pytest.fixture(scope="session")
def trained(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSummary:
    """A finished MaskBooster run of three steps."""
    return train(sparse, tmp_path_factory.mktemp("runs") / "boosted", settings=TINY)


@pytest.fixture
def leanmask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process: leanmask("check", folder) -> code, output, error stream."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["leanmask", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page in a browser of its own; an error on any page fails the test."""
    contexts, errors = [], []

    def opening(url: str, **given: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **given})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert not errors
