"""Checkpoints that are killed, damaged, foreign or without room on the disk: a sentence, and nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
import torch
from torch import nn

from leanmask.config import OptimConfig
from leanmask.engine import checkpoint
from leanmask.engine.checkpoint import (
    Live,
    fit_weights,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from leanmask.engine.optim import build_optimiser
from leanmask.engine.rng import capture_rng
from leanmask.engine.trainer import train
from leanmask.errors import CheckpointError, RunError


def alive(folder: Path, **changes: Any) -> Live:
    job = fakes.make_job(folder, **changes)
    return Live(job.student, job.teacher.model, build_optimiser(job.student, job.optim), job.method)


def save(folder: Path, step: int, live: Live | None = None) -> Live:
    live = live or alive(folder)
    with torch.no_grad():
        live.student.backbone.weight.fill_(float(step))
    save_checkpoint(folder, live, {"step": step}, [capture_rng()])
    return live


def loaded_step(folder: Path) -> int:
    live = alive(folder)
    progress, _ = load_checkpoint(folder, live)
    assert live.student.backbone.weight.flatten()[0].item() == progress["step"]
    return progress["step"]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    job = fakes.make_job(tmp_path)
    train(job)
    other = alive(tmp_path, student=fakes.FakeModel())
    progress, rng = load_checkpoint(tmp_path / "checkpoints", other)
    assert fakes.same(job.student.state_dict(), other.student.state_dict())
    assert fakes.same(job.teacher.model.state_dict(), other.teacher.state_dict())
    assert len(other.optimiser.state_dict()["state"]) == len(list(other.student.parameters()))
    assert (progress["step"], len(rng)) == (4, 1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last"]


def test_a_kill_at_any_moment_of_saving_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk is the last one once; what is there then must load as the old or the new one."""
    calls = count_disk_calls(monkeypatch, tmp_path / "count")
    assert calls > 8
    seen = set()
    for last_call in range(calls):
        folder = tmp_path / str(last_call)
        live = save(folder, 1)
        with monkeypatch.context() as patch:
            kill_after(patch, last_call)
            with pytest.raises(KilledError):
                save(folder, 2, live)
        seen.add(step := loaded_step(folder))
        assert step in (1, 2), last_call
        save(folder, 3, live)  # and the rest does not disturb the next one
        assert loaded_step(folder) == 3
        assert sorted(path.name for path in folder.iterdir()) == ["last"]
    assert seen == {1, 2}


class KilledError(BaseException):
    """Stands for kill -9: nothing after it runs, so no handler of ours may catch it."""


def kill_after(patch: pytest.MonkeyPatch, calls: int, report: list[int] | None = None) -> None:
    left = [calls]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            if report is not None:
                report.append(1)
            return function(*args, **kwargs)

        return call

    patch.setattr(os, "fsync", dying(os.fsync))
    patch.setattr(Path, "rename", dying(Path.rename))
    patch.setattr(checkpoint.shutil, "rmtree", dying(shutil.rmtree))
    patch.setattr(Path, "mkdir", dying(Path.mkdir))


def count_disk_calls(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    live = save(folder, 1)
    report: list[int] = []
    with monkeypatch.context() as patch:
        kill_after(patch, 10**6, report)
        save(folder, 2, live)
    return len(report)


def test_a_full_disk_is_a_sentence_and_the_previous_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = save(tmp_path, 1)
    for fails_at in range(4):
        with monkeypatch.context() as patch:
            fill_disk(patch, fails_at)
            with pytest.raises(RunError, match=r"of step 2 in .*: No space left on device; the previous .* is intact"):
                save(tmp_path, 2, live)
        assert loaded_step(tmp_path) == 1
        assert not (tmp_path / "new").exists(), "the room is given back"


def fill_disk(patch: pytest.MonkeyPatch, fails_at: int) -> None:
    left, write = [fails_at], checkpoint._write

    def full(path: Path, content: bytes) -> dict[str, Any]:
        if left[0] == 0:
            path.write_bytes(bytes(content)[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return write(path, content)

    patch.setattr(checkpoint, "_write", full)


@pytest.mark.parametrize(
    ("fails_at", "what"), [(4, "cannot write the weights"), (7, "cannot save a checkpoint of step 4")]
)
def test_a_full_disk_ends_the_training_with_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, what: str
) -> None:
    with monkeypatch.context() as patch:
        fill_disk(patch, fails_at)  # the checkpoint of step 2 has four files, then come the best weights
        with pytest.raises(RunError, match=what + r".*: No space left on device"):
            train(fakes.make_job(tmp_path))
    whole = fakes.make_job(tmp_path / "whole")
    train(whole)
    resumed = fakes.make_job(tmp_path)
    train(resumed, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))


def test_no_permission_is_a_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    with pytest.raises(RunError, match=r"cannot save a checkpoint of step 1 in .*(Not a directory|File exists)"):
        save(blocked / "checkpoints", 1, alive(tmp_path))
    with pytest.raises(RunError, match=r"cannot write the weights .*(Not a directory|File exists)"):
        save_weights(blocked / "best.safetensors", nn.Linear(1, 1), {})
    assert blocked.read_text() == "mine"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["student.safetensors", "teacher.safetensors", "rest.pt", "checkpoint.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, "truncated|damaged"), (flip_a_bit, "damaged"), (Path.unlink, "not complete|no checkpoint")],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    save(tmp_path, 1)
    index = tmp_path / "last" / "checkpoint.json"
    if name == "checkpoint.json" and damage is flip_a_bit:
        index.write_text(index.read_text().replace("student", "studend"))
    else:
        damage(tmp_path / "last" / name)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path, alive(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "files": {}, "progress": {"step": 1}}']
)
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "last" / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged"):
        load_checkpoint(tmp_path, alive(tmp_path))


def test_another_version_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    index = tmp_path / "last" / "checkpoint.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 7, "leanmask": "9.1"}))
    with pytest.raises(
        CheckpointError, match=r"has checkpoint format 7 \(written by leanmask 9\.1\); leanmask .* reads"
    ):
        load_checkpoint(tmp_path, alive(tmp_path))


def test_nothing_there(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_checkpoint(tmp_path, alive(tmp_path))


def test_another_model_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"fit the model, which has no 'norm\.num_batches_tracked'"):
        load_checkpoint(tmp_path, alive(tmp_path, student=fakes.FakeModel(norm="group")))
    wider = fakes.FakeModel()
    wider.head = nn.Conv2d(8, 5, 1)
    with pytest.raises(CheckpointError, match=r"'head\.weight' is \(3, 8, 1, 1\), the model's is \(5, 8, 1, 1\)"):
        load_checkpoint(tmp_path, alive(tmp_path, student=wider))


def test_other_optimiser_settings_keep_every_moment_with_its_parameter(tmp_path: Path) -> None:
    train(fakes.make_job(tmp_path))
    same = alive(tmp_path)
    load_checkpoint(tmp_path / "checkpoints", same)
    moments = {name: same.optimiser.state[p]["exp_avg"] for name, p in same.student.named_parameters()}
    for config in (OptimConfig(weight_decay=0), OptimConfig(backbone_lr_factor=0.1)):  # one group, and four
        live = alive(tmp_path, optim=config)
        load_checkpoint(tmp_path / "checkpoints", live)
        for name, parameter in live.student.named_parameters():
            assert torch.equal(live.optimiser.state[parameter]["exp_avg"], moments[name]), name
        shapes = {group["weight_decay"] for group in live.optimiser.param_groups}
        assert shapes == ({0.0} if config.weight_decay == 0 else {0.0, config.weight_decay})
    frozen = alive(tmp_path, optim=OptimConfig(backbone_lr_factor=0))
    with pytest.raises(CheckpointError, match=r"does not fit the optimiser: 'backbone\.bias' is optimised in only one"):
        load_checkpoint(tmp_path / "checkpoints", frozen)


class Malice:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save_malice", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_loading_never_runs_code(tmp_path: Path, save_malice: Callable[[Any, Path], Any]) -> None:
    save(tmp_path, 1)
    path, trap = tmp_path / "last" / "rest.pt", tmp_path / "trap"
    save_malice({"optimiser": Malice(trap), "method": None, "rng": []}, path)
    index = tmp_path / "last" / "checkpoint.json"
    content = json.loads(index.read_text())
    content["files"]["rest.pt"] = {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path, alive(tmp_path))
    assert not trap.exists()


def test_weights_and_metadata_come_back(tmp_path: Path) -> None:
    model = fakes.FakeModel().to(memory_format=torch.channels_last)
    path = tmp_path / "new folder" / "best.safetensors"
    save_weights(path, model, {"who": "teacher", "step": 7, "AP": 0.25, "classes": {"names": ["é"]}})
    weights, metadata = load_weights(path)
    assert fakes.same(weights, model.state_dict())
    assert metadata == {
        "format": "pt",
        "who": "teacher",
        "step": "7",
        "AP": "0.25",
        "classes": '{"names": ["\\u00e9"]}',
    }
    assert [file.name for file in path.parent.iterdir()] == ["best.safetensors"]


def test_shared_tensors_are_saved_twice_and_fit_again(tmp_path: Path) -> None:
    model = fakes.FakeModel()
    model.tied = model.backbone
    save_weights(tmp_path / "w.safetensors", model, {})
    weights, _ = load_weights(tmp_path / "w.safetensors")
    fit_weights(model, weights, tmp_path)
    assert torch.equal(weights["tied.weight"], weights["backbone.weight"])


def test_a_full_disk_does_not_replace_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "best.safetensors", fakes.FakeModel()
    save_weights(path, model, {"step": 1})
    fill_disk(monkeypatch, 0)
    with pytest.raises(RunError, match=r"cannot write the weights .*No space left on device"):
        save_weights(path, model, {"step": 2})
    assert load_weights(path)[1]["step"] == "1"
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not weights at all", None])
def test_weights_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "best.safetensors"
    if content is None:
        save_weights(path, fakes.FakeModel(), {})
        truncate(path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is truncated or no safetensors file"):
        load_weights(path)
    with pytest.raises(CheckpointError, match="there are no weights at"):
        load_weights(tmp_path / "other.safetensors")
