"""Two processes (gloo, CPU) do what one process does with the joined batch."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest
import torch

from leanmask.config import OptimConfig
from leanmask.distributed import global_count
from leanmask.engine.checkpoint import load_weights
from leanmask.engine.distributed import agree, everyones, mean_numbers, share_module, world_size
from leanmask.engine.trainer import train
from leanmask.errors import RunInterrupted, TrainingStopped
from leanmask.methods.base import StepLosses
from leanmask.models.base import Model
from leanmask.records import Batch, Views

STEPS, WORLD = 4, 2
OBJECTS: dict[str, Callable[[int], int]] = {
    "both have objects": lambda image: 1 + image,
    "one has none": lambda image: 0 if image < 2 else 3,
    "nobody has any": lambda image: 0,
}


def share(views: Views, rank: int, world: int) -> Views:
    """The images of one process: a contiguous part of the joined batch."""
    size = len(views) // world
    part = slice(rank * size, (rank + 1) * size)
    fields = ("weak", "targets", "frames", "image_ids", "files")
    chosen = {field: getattr(views, field)[part] for field in fields}
    return dataclasses.replace(views, **chosen, strong=chosen["weak"])


def batches_of(objects: Callable[[int], int], rank: int, world: int) -> Callable[[int], Iterator[Batch]]:
    def batches(start_step: int) -> Iterator[Batch]:
        while True:
            labelled, unlabelled = fakes.fake_views(4, start_step, objects), fakes.fake_views(4, 100 + start_step)
            yield Batch(labelled=share(labelled, rank, world), unlabelled=share(unlabelled, rank, world))
            start_step += 1

    return batches


def job_of(folder: Path, name: str, rank: int, world: int, **changes: Any) -> Any:
    torch.manual_seed(0)
    optim = OptimConfig(optimiser="sgd", lr=0.05, warmup_steps=0)
    settings: dict[str, Any] = {
        "student": fakes.FakeModel(norm="group", dropout=0.0),
        "method": fakes.FakeMethod(STEPS, noise=False),
        "batches": batches_of(OBJECTS.get(name, OBJECTS["both have objects"]), rank, world),
        "precision": "fp32",
        "optim": optim,
    }
    return fakes.make_job(folder / name, **(settings | changes))


class BadOnSecond(fakes.FakeMethod):
    """Only the second process has losses that are not finite, in chosen steps."""

    def __init__(self, rank: int, bad: tuple[int, ...]) -> None:
        super().__init__(STEPS, noise=False)
        self.rank, self.bad = rank, bad

    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        outcome = super().losses(student, teacher, batch, step)
        if self.rank == 1 and step in self.bad:
            return StepLosses(outcome.losses | {"flat": outcome.losses["flat"] * float("nan")}, outcome.counts)
        return outcome


def in_each_process(folder: Path) -> None:
    """All the scenes in one pair of processes, because starting them takes most of the time."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    for name in OBJECTS:
        train(job_of(folder, name, rank, world))
    train(job_of(folder, "accumulated", rank, world, accumulate=2))
    train(job_of(folder, "bad on one", rank, world, method=BadOnSecond(rank, (1,))))
    report = {"stopped": stopped(folder, rank, world), "interrupted": interrupted(folder, rank, world)}
    report["noisy"] = noisy_and_resumed(folder, rank, world)
    report["helpers"] = helpers(rank)
    report["early"] = stopped_early(folder, rank, world)
    (folder / f"report_{rank}.json").write_text(json.dumps(report))


def stopped(folder: Path, rank: int, world: int) -> str:
    try:
        train(job_of(folder, "stopped", rank, world, method=BadOnSecond(rank, (1, 2)), max_bad_steps=2))
    except TrainingStopped as error:
        return str(error)
    return "went on"


def interrupted(folder: Path, rank: int, world: int) -> str:
    """Only the second process hears the signal; both stop at the same step."""
    base = batches_of(OBJECTS["both have objects"], rank, world)

    def batches(start_step: int) -> Iterator[Batch]:
        for number, batch in enumerate(base(start_step)):
            if rank == 1 and number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    try:
        train(job_of(folder, "interrupted", rank, world, batches=batches))
    except RunInterrupted as error:
        return str(error)
    return "went on"


def stopped_early(folder: Path, rank: int, world: int) -> list[Any]:
    """Only the first process measures; the second must not go on alone."""

    def evaluate(step: int) -> dict[str, dict[str, float]]:
        return {"teacher": {"AP": 0.5 - step / 100}} if rank == 0 else {}

    result = train(job_of(folder, "early", rank, world, evaluate=evaluate, eval_every_steps=1, patience=2))
    return [result.steps, result.best, result.stopped_early]


def noisy_and_resumed(folder: Path, rank: int, world: int) -> list[float]:
    """Dropout, BatchNorm and noise that differ between the processes; two steps and two more are four."""
    optim = OptimConfig(schedule="constant", warmup_steps=0)

    def job(name: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        changes |= {"student": fakes.FakeModel(), "method": fakes.FakeMethod(STEPS), "precision": "bf16"}
        made = job_of(folder, name, rank, world, optim=optim, **changes)
        torch.manual_seed(rank)
        return made

    train(job("noisy parts", steps=2))
    resumed = job("noisy parts")
    torch.manual_seed(99)
    train(resumed, resume=True)
    whole = job("noisy whole")
    train(whole)
    assert fakes.same(fakes.everything(whole), fakes.everything(resumed))
    return [float(value.double().sum()) for value in fakes.everything(resumed).values()]


def helpers(rank: int) -> dict[str, Any]:
    module = torch.nn.BatchNorm1d(2)
    module.running_mean.fill_(float(rank))
    module.register_buffer("flags", torch.tensor([rank == 0, rank == 1]))
    share_module(module)
    return {
        "count": global_count(torch.tensor([2 * rank, 4])).tolist(),
        "agree": agree([rank, 1 - rank, 0], torch.device("cpu")),
        "everyones": everyones({"rank": rank}),
        "shared": [module.running_mean.tolist(), module.flags.tolist()],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", OBJECTS)
def test_two_processes_equal_one_with_the_joined_batch(folder: Path, tmp_path: Path, name: str) -> None:
    job = job_of(tmp_path, name, 0, 1)
    train(job)
    for who, ours in (("student", job.student), ("teacher", job.teacher.model)):
        theirs, _ = load_weights(folder / name / f"checkpoints/last/{who}.safetensors")
        for key, value in ours.state_dict().items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-6)
    ours_lines = fakes.read_lines(tmp_path / name, "train")
    their_lines = fakes.read_lines(folder / name, "train")
    assert len(ours_lines) == len(their_lines) == STEPS
    for ours_line, their_line in zip(ours_lines, their_lines, strict=True):
        assert ours_line["losses"] == pytest.approx(their_line["losses"], rel=1e-4, abs=1e-6)


def test_the_joined_batch_is_not_what_one_process_alone_has(tmp_path: Path) -> None:
    """The comparison above would notice: half of the images train other weights."""
    joined, half = job_of(tmp_path, "joined", 0, 1), job_of(tmp_path, "half", 0, 2)
    train(joined)
    train(half)
    assert not torch.allclose(joined.student.head.weight, half.student.head.weight, rtol=1e-3)


def test_accumulation_takes_part_in_both_processes(folder: Path, tmp_path: Path) -> None:
    """With two objects per image, two times two micro-batches are the joined batch."""
    theirs, _ = load_weights(folder / "accumulated/checkpoints/last/student.safetensors")
    start = fakes.make_job(tmp_path, student=job_of(tmp_path, "x", 0, 1).student).student.state_dict()
    assert all(bool(value.isfinite().all()) for value in theirs.values())
    assert not torch.equal(theirs["head.weight"], start["head.weight"])
    assert len(fakes.read_lines(folder / "accumulated", "train")) == STEPS


def test_a_bad_loss_in_one_process_skips_the_step_in_both(folder: Path) -> None:
    events = fakes.read_lines(folder / "bad on one", "event")
    assert [line["step"] for line in events] == [2]
    assert "flat is nan; images: images/1_2.png" in events[0]["message"], "the second process's images"
    assert [line["step"] for line in fakes.read_lines(folder / "bad on one", "train")] == [1, 3, 4]


def test_both_processes_stop_together(folder: Path) -> None:
    reports = [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(WORLD)]
    assert reports[0]["stopped"] == reports[1]["stopped"]
    assert "stopped at step 3 of 4: 2 steps in a row were not finite" in reports[0]["stopped"]
    assert reports[0]["interrupted"] == reports[1]["interrupted"]
    assert "stopped at step 2 of 4" in reports[0]["interrupted"]


def test_both_processes_stop_early_together(folder: Path) -> None:
    first, second = (json.loads((folder / f"report_{rank}.json").read_text())["early"] for rank in range(WORLD))
    assert first == second
    assert first[:2] == [3, {"who": "teacher", "step": 1, "AP": 0.49}]


def test_resumed_processes_go_on_bit_for_bit_and_stay_equal(folder: Path) -> None:
    reports = [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(WORLD)]
    assert reports[0]["noisy"] == reports[1]["noisy"], "weights, teacher and running statistics"


def test_what_processes_tell_each_other(folder: Path) -> None:
    for rank in range(WORLD):
        found = json.loads((folder / f"report_{rank}.json").read_text())["helpers"]
        assert found == {
            "count": [1.0, 4.0],
            "agree": [1, 1, 0],
            "everyones": [{"rank": 0}, {"rank": 1}],
            "shared": [[0.0, 0.0], [True, False]],
        }


def test_a_single_process_agrees_with_itself() -> None:
    assert world_size() == 1
    assert agree([0, 3], torch.device("cpu")) == [0, 3]
    assert everyones("a") == ["a"]
    count = torch.tensor([3, 0])
    assert global_count(count).tolist() == [3.0, 0.0]
    assert mean_numbers([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}


if __name__ == "__main__":
    in_each_process(Path(sys.argv[1]))
