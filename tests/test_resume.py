"""Four steps equal two, a save, a load and two more, to the last bit; and so does a training that was killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
import torch

from leanmask.config import OptimConfig
from leanmask.engine.checkpoint import CHECKPOINTS, checkpoint_step, load_weights
from leanmask.engine.trainer import train
from leanmask.errors import DataError, RunError, RunInterrupted
from leanmask.records import Batch


class Pause(Exception):
    """Ends a training between two steps, as a crash would."""


def crash_after(steps: int) -> Callable[[int, int, object], None]:
    def on_progress(step: int, total: int, losses: object) -> None:
        if step > steps:
            raise Pause

    return on_progress


VARIANTS = {
    "adamw bf16": {"precision": "bf16"},
    "fp32, contiguous": {"precision": "fp32", "channels_last": False},
    "sgd": {"optim": OptimConfig(optimiser="sgd", warmup_steps=0, schedule="step")},
    "accumulated": {"accumulate": 2},
    "unclipped": {"optim": OptimConfig(clip_norm=None)},
    "log windows across the checkpoint": {"log_every_steps": 3},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_two_and_two_steps_are_four(tmp_path: Path, changes: dict[str, object]) -> None:
    whole = fakes.make_job(tmp_path / "whole", **changes)
    result = train(whole)
    with pytest.raises(Pause):
        train(fakes.make_job(tmp_path / "parts", on_progress=crash_after(2), **changes))
    resumed = fakes.make_job(tmp_path / "parts", **changes)
    torch.rand(17)  # the random streams of the resumed process stand elsewhere
    again = train(resumed, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))
    assert torch.equal(whole.method.seen, resumed.method.seen)
    assert (result.steps, result.best) == (again.steps, again.best)


def test_the_journal_of_a_resumed_run_is_that_of_a_whole_one(tmp_path: Path) -> None:
    train(fakes.make_job(tmp_path / "whole", steps=7, log_every_steps=3))
    with pytest.raises(Pause):
        train(fakes.make_job(tmp_path / "parts", steps=7, log_every_steps=3, on_progress=crash_after(4)))
    with (tmp_path / "parts" / "journal.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "los')
    train(fakes.make_job(tmp_path / "parts", steps=7, log_every_steps=3), resume=True)

    def numbers(folder: Path) -> list[object]:
        return [
            {key: value for key, value in line.items() if not key.startswith("seconds")}
            for line in fakes.read_lines(folder)
            if line["kind"] != "event"
        ]

    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert [line["step"] for line in fakes.read_lines(tmp_path / "parts", "train")] == [3, 6, 7]
    assert [line["message"] for line in fakes.read_lines(tmp_path / "parts", "event")] == ["resumed at step 4"]


def test_evaluating_more_often_does_not_change_training(tmp_path: Path) -> None:
    seldom = fakes.make_job(tmp_path / "seldom")
    train(seldom)
    often = fakes.make_job(tmp_path / "often", eval_every_steps=1)
    train(often)
    assert fakes.same(fakes.everything(seldom), fakes.everything(often))


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    whole = fakes.make_job(tmp_path / "whole")
    train(whole)
    with pytest.raises(Pause):
        train(fakes.make_job(tmp_path / "parts", on_progress=crash_after(0)))
    resumed = fakes.make_job(tmp_path / "parts")
    train(resumed, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = train(fakes.make_job(tmp_path))
    weights, _ = load_weights(tmp_path / "best.safetensors")
    again = train(fakes.make_job(tmp_path), resume=True)
    assert (again.steps, again.best) == (4, first.best)
    assert fakes.same(weights, load_weights(tmp_path / "best.safetensors")[0])
    assert len(fakes.read_lines(tmp_path, "eval")) == 2


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path: Path) -> None:
    train(fakes.make_job(tmp_path))
    with pytest.raises(RunError, match=r"is at step 4, train\.steps is only 3"):
        train(fakes.make_job(tmp_path, steps=3), resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    whole = fakes.make_job(tmp_path / "whole", eval_every_steps=3)
    train(whole)
    before = signal.getsignal(number)

    def interrupt(step: int, total: int, losses: object) -> None:
        if step == 3:
            os.kill(os.getpid(), number)

    job = fakes.make_job(tmp_path / "parts", eval_every_steps=3, on_progress=interrupt)
    with pytest.raises(RunInterrupted, match=r"stopped at step 3 of 4; .*leanmask train --resume .*parts"):
        train(job)
    assert signal.getsignal(number) == before
    resumed = fakes.make_job(tmp_path / "parts", eval_every_steps=3)
    train(resumed, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))
    whole_evaluations = fakes.read_lines(tmp_path / "whole", "eval")
    assert fakes.read_lines(tmp_path / "parts", "eval") == whole_evaluations
    assert [line["step"] for line in whole_evaluations] == [3, 3, 4, 4]


def test_an_evaluation_whose_loader_is_killed_is_made_up_for(tmp_path: Path) -> None:
    """As by SIGTERM to all processes of a training, which schedulers send."""
    whole = fakes.make_job(tmp_path / "whole", eval_every_steps=2)
    train(whole)
    job = fakes.make_job(tmp_path / "parts", eval_every_steps=2)

    def killed(step: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    with pytest.raises(RunInterrupted, match="stopped at step 2 of 4"):
        train(replace(job, evaluate=killed))
    resumed = fakes.make_job(tmp_path / "parts", eval_every_steps=2)
    train(resumed, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))
    assert fakes.read_lines(tmp_path / "parts", "eval") == fakes.read_lines(tmp_path / "whole", "eval")


def test_what_was_learned_before_data_failed_is_kept(tmp_path: Path) -> None:
    whole = fakes.make_job(tmp_path / "whole")
    train(whole)

    def failing(start_step: int) -> Iterator[Batch]:
        yield from itertools.islice(fakes.fake_batches(start_step), 3 - start_step)
        raise DataError("images/ is gone")

    with pytest.raises(DataError, match="is gone"):
        train(fakes.make_job(tmp_path / "parts", batches=failing, checkpoint_every_steps=100))
    assert checkpoint_step(tmp_path / "parts" / CHECKPOINTS) == 3
    resumed = fakes.make_job(tmp_path / "parts", checkpoint_every_steps=100)
    train(resumed, resume=True)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    steps = 25
    whole = fakes.make_job(tmp_path / "whole", steps=steps, checkpoint_every_steps=3, eval_every_steps=10)
    train(whole)
    folder = tmp_path / "killed"
    for lines_before_kill in (5, 16):
        with start(folder, steps, 0.05) as process:
            wait_for_lines(folder, lines_before_kill, process)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    with start(folder, steps, 0.0) as process:
        assert process.wait(timeout=120) == 0
    assert json.loads((folder / "checkpoints/last/checkpoint.json").read_text())["progress"]["step"] == steps
    for who in ("student", "teacher"):
        ours, _ = load_weights(tmp_path / f"whole/checkpoints/last/{who}.safetensors")
        theirs, _ = load_weights(folder / f"checkpoints/last/{who}.safetensors")
        assert fakes.same(ours, theirs)
    assert [line["step"] for line in fakes.read_lines(folder, "train")] == list(range(1, steps + 1))
    ours, whose = load_weights(tmp_path / "whole/best.safetensors")
    theirs, whose_killed = load_weights(folder / "best.safetensors")
    assert fakes.same(ours, theirs)
    assert whose == whose_killed


def start(folder: Path, steps: int, pause_seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, fakes.__file__, str(folder), str(steps), str(pause_seconds)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, env=os.environ | threads, stderr=subprocess.DEVNULL)


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        journal = folder / "journal.jsonl"
        if journal.exists() and journal.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the training wrote fewer than {count} lines")
