"""docs/python.md as a user types it: its blocks in order, on tiny data and with a smaller training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import leanmask

PAGE = Path(__file__).parent.parent / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORTER = {
    'overrides={"train.steps": 400, "train.seed": 1}': "overrides=SMALL",
    'overrides="train.steps=400"': "overrides=SMALL[:1]",
    "steps=800": "steps=3",
}
SMALL = ["train.steps=2", "model.backbone=tiny", "data.workers=0", "evaluation.pictures=0"]
VERBS = ("train", "evaluate", "predict", "pseudo", "resume", "suggest", "write_report")


def test_the_page_runs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    blocks = BLOCK.findall(text)
    for verb in VERBS:
        assert any(f"leanmask.{verb}(" in block for block in blocks), verb
    shutil.copytree(digits, tmp_path / "mydata")
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((digits / "images").glob("val*"))[:2]:
        shutil.copy(path, photos)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"SMALL": SMALL}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "trained 2 steps" in printed
    assert "missing.jpg does not exist" in printed
    assert names["done"].steps == 3
    for name in ("predictions", "pseudo.json", "review.html", "queue.json", "report.html", "runs/b/best.safetensors"):
        assert (tmp_path / name).exists(), name
    assert not (tmp_path / "more").exists()


def test_every_name_of_the_page_is_public() -> None:
    named = set(re.findall(r"\bleanmask\.(\w+)", "".join(BLOCK.findall(PAGE.read_text(encoding="utf-8")))))
    assert named - {"errors"} <= set(leanmask.__all__)
