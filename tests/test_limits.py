"""Where methods must agree with plain supervised training, and runs with themselves: to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import TINY, train
from safetensors.torch import load_file

from leanmask.config import merge
from leanmask.run import resume

OFF = {"name": "maskbooster", "binary_weight": 0.0, "soft_weight": 0.0}


class Killed(Exception):
    """Stands in for a kill: leaves training without any clean-up of its own."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Student and teacher of the last checkpoint."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "checkpoints" / "last").glob("*.safetensors")):
        found |= {f"{path.stem}/{name}": value for name, value in load_file(path).items()}
    assert found
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four uninterrupted steps of MaskBooster."""
    out = tmp_path_factory.mktemp("limits") / "whole"
    train(sparse, out, settings=merge(TINY, {"train": {"steps": 4}}))
    return out


@pytest.mark.parametrize("killed_after", [1, 3])
def test_killed_and_resumed_equals_uninterrupted(sparse: Path, whole: Path, tmp_path: Path, killed_after: int) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == killed_after:
            raise Killed

    settings = merge(TINY, {"train": {"steps": 4}})
    with pytest.raises(Killed):
        train(sparse, tmp_path / "run", settings=settings, on_progress=kill)
    resume(tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(whole))


def test_another_seed_is_another_run(sparse: Path, whole: Path, tmp_path: Path) -> None:
    train(sparse, tmp_path / "run", settings=merge(TINY, {"train": {"steps": 4, "seed": 1}}))
    assert not same(weights(tmp_path / "run"), weights(whole))


def test_maskbooster_without_pseudo_labels_is_supervised(sparse: Path, whole: Path, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    for name, method in (("supervised", {"name": "supervised"}), ("off", OFF)):
        settings = merge(TINY, {"train": {"steps": 4}, "method": method})
        train(sparse, tmp_path / name, settings=settings)
        found.append(weights(tmp_path / name))
    assert same(*found)
    assert not same(found[0], weights(whole))  # and with pseudo-labels it is not


def test_maskbooster_with_all_masks_is_supervised(digits: Path, tmp_path: Path) -> None:
    found = []
    for method in ("supervised", "maskbooster"):
        train(digits, tmp_path / method, settings=merge(TINY, {"method": {"name": method}}))
        found.append(weights(tmp_path / method))
    assert same(*found)
