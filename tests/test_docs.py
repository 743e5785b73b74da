"""The generated documentation is that of the code, and links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generate: ModuleType) -> None:
    for name, write in generate.PAGES.items():
        found = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert found == write(), f"docs/{name} is out of date; run: python docs/generate.py"


@pytest.fixture
def rows(generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes a file of rows where the pages read them, from (arm, model, seed, AP) each and what they share."""
    for name in generate.DATA:
        shutil.copy(ROOT / "benchmarks" / "results" / f"{name}-budget.json", tmp_path)
    monkeypatch.setattr(generate, "RESULTS", tmp_path)

    def write(name: str, *found: tuple[str, str, int, float], **shared: Any) -> None:
        machine = {"cores": 2, "threads": 1, "capability": "AVX2", "precision": "fp32"}
        usual = {"split": "val", "overrides": [], "steps": 400, "train_seconds": 90.0, "machine": machine} | shared
        told = [
            {
                "arm": arm,
                "model": f"{model}-lite0",
                "seed": seed,
                "metrics": {"AP": ap, "AP50": ap, "AP75": ap},
                **usual,
            }
            for arm, model, seed, ap in found
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")

    return write


def test_pages_say_what_the_rows_say(generate: ModuleType, rows: Callable[..., None]) -> None:
    rows("animals-full", ("full", "mask_rcnn", 0, 0.42), ("full", "mask_rcnn", 1, 0.38), ("full", "solov2", 0, 0.3))
    rows("animals-sparse-10", ("baseline", "mask_rcnn", 0, 0.2), ("maskbooster", "mask_rcnn", 0, 0.3))
    rows("nuclei-points-10", ("points", "mask_rcnn", 0, 0.25))
    page = generate.results()
    line = "sparse-10 | animals, mask_rcnn | 20.0 | 30.0 | 40.0 ± 2.8 | 50 % of the gap | 1, 1, 2 | 1.5, 1.5 |"
    assert line in page
    assert "points-10 | nuclei, mask_rcnn | – | 25.0 | – | – | 1 | 1.5 |" in page  # without its upper bound
    assert "20.0 becomes 30.0, AP75 20.0 and 30.0, where all masks make 40.0 ± 2.8" in page
    assert "AVX2, in fp32, 1 of 2 cores" in page
    assert "[animals-sparse-10]" in page
    assert "semi-10 | not measured" in page
    labels = generate.which_labels()
    assert "| animals | sparse-10 | mask_rcnn | MaskBooster | 1.3 | 30.0 | 75 % | 1 |" in labels
    assert "| animals | full | solov2 | the labels alone | 7.5 | 30.0 | 100 % | 1 |" in labels
    assert generate.labels_chart().count("<svg") == 1


def test_pages_leave_out_other_settings_and_splits(generate: ModuleType, rows: Callable[..., None]) -> None:
    rows("facades-sparse-1", ("baseline", "mask_rcnn", 0, 0.2), ("maskbooster", "mask_rcnn", 0, 0.3), split="tune")
    rows("nuclei-semi-10", ("baseline", "mask_rcnn", 0, 0.2), overrides=["optim.lr=0.1"])
    page = generate.results()
    assert "| facades, mask_rcnn |" not in page
    assert "| nuclei, mask_rcnn |" not in page
    assert page.count("not measured |") == len(generate.CLAIMS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
