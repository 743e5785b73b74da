"""The parts of the training loop against naive oracles, and the loop itself under bad input."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import engine_fakes as fakes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from leanmask import run as run_module
from leanmask.config import OptimConfig, TrainConfig
from leanmask.devices import default_device
from leanmask.engine.checkpoint import load_weights
from leanmask.engine.interrupts import Interrupts
from leanmask.engine.journal import Journal
from leanmask.engine.meter import Meter
from leanmask.engine.optim import build_optimiser, lr_factor, set_lr
from leanmask.engine.rng import capture_rng, restore_rng, untouched_rng
from leanmask.engine.step import NonFinite, TrainStep, read_numbers, require_finite, split_batch, to_device
from leanmask.engine.trainer import train
from leanmask.errors import ConfigError, RunError, TrainingStopped
from leanmask.methods.base import StepLosses
from leanmask.records import Batch

NAN, INF = float("nan"), float("inf")


# --- one step ---


@pytest.mark.parametrize(("value", "word"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf")])
def test_losses_that_are_not_finite_are_named_with_their_images(value: float, word: str) -> None:
    with pytest.raises(NonFinite, match=rf"^mask is {word}; images: a\.png, b\.png$"):
        require_finite({"box": 1.0, "mask": value}, ["a.png", "b.png"])
    require_finite({"box": 0.0, "mask": -3e38}, ["a.png"])


def test_numbers_are_read_as_they_are() -> None:
    outcome = StepLosses({"a": torch.tensor(1.5), "b": torch.tensor([2.5])}, {"a": torch.tensor(3), "ramp": 0.25})
    assert read_numbers(outcome) == ({"a": 1.5, "b": 2.5}, {"a": 3.0, "ramp": 0.25})


def test_the_step_gives_float32_losses_of_the_method() -> None:
    student = fakes.FakeModel()
    method = fakes.FakeMethod(1, noise=False)
    batch = next(fakes.fake_batches(0))
    with torch.autocast("cpu", torch.bfloat16):
        outcome = TrainStep(student, method)(batch, student, 0)
    assert outcome.losses.keys() == {"class", "flat", "agree"}
    assert {loss.dtype for loss in outcome.losses.values()} == {torch.float32}


@settings(max_examples=20, deadline=None)
@given(parts=st.integers(1, 4), size=st.integers(1, 3), unlabelled=st.booleans())
def test_micro_batches_are_the_batch_in_order(parts: int, size: int, unlabelled: bool) -> None:
    batch = Batch(
        labelled=dataclasses.replace(fakes.fake_views(parts * size, 1), skipped=("broken.png",)),
        unlabelled=fakes.fake_views(2 * parts * size, 2) if unlabelled else None,
    )
    micro = split_batch(batch, parts)
    assert [len(part.labelled) for part in micro] == [size] * parts
    assert torch.equal(torch.cat([part.labelled.weak for part in micro]), batch.labelled.weak)
    assert all(part.labelled.strong is part.labelled.weak for part in micro)
    for field in ("targets", "frames", "image_ids", "files", "skipped"):
        assert sum((getattr(part.labelled, field) for part in micro), ()) == getattr(batch.labelled, field)
    assert sum(len(part.unlabelled) for part in micro if part.unlabelled) == (2 * parts * size if unlabelled else 0)


def test_an_accumulation_that_does_not_divide_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate=3 does not divide the 4 labelled images"):
        split_batch(Batch(labelled=fakes.fake_views(4, 0)), 3)


def test_moving_keeps_values_and_the_identity_of_the_views() -> None:
    batch = next(fakes.fake_batches(0))
    moved = to_device(batch, torch.device("cpu"), channels_last=True)
    assert torch.equal(moved.labelled.weak, batch.labelled.weak)
    assert moved.labelled.weak.is_contiguous(memory_format=torch.channels_last)
    assert moved.labelled.strong is moved.labelled.weak


# --- optimiser and rates ---


def test_learning_rate_by_hand() -> None:
    config = OptimConfig(warmup_steps=10, warmup_factor=0.1, schedule="cosine")
    assert lr_factor(0, 100, config) == pytest.approx(0.1)
    assert lr_factor(5, 100, config) == pytest.approx(0.55)
    assert lr_factor(10, 100, config) == 1.0
    assert lr_factor(55, 100, config) == pytest.approx(0.5)
    assert lr_factor(100, 100, config) == pytest.approx(0.0)
    steps = OptimConfig(warmup_steps=0, schedule="step", step_fractions=(0.5, 0.75))
    assert [lr_factor(step, 8, steps) for step in (0, 3, 4, 5, 6, 7)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_factor(7, 8, OptimConfig(warmup_steps=0, schedule="constant")) == 1.0


@given(
    step=st.integers(0, 200),
    total=st.integers(1, 200),
    warmup=st.integers(0, 300),
    schedule=st.sampled_from(["cosine", "step", "constant"]),
)
def test_learning_rate_rises_in_the_warm_up_and_never_after(step: int, total: int, warmup: int, schedule: str) -> None:
    config = OptimConfig(warmup_steps=warmup, schedule=schedule)
    rate, following = lr_factor(step, total, config), lr_factor(step + 1, total, config)
    assert 0 <= rate <= 1
    if step + 1 < min(warmup, total):
        assert following > rate
    elif step >= min(warmup, total):
        assert following <= rate


def test_weight_decay_spares_norms_and_biases_and_the_backbone_has_its_own_rate() -> None:
    student = fakes.FakeModel()
    optimiser = build_optimiser(student, OptimConfig(lr=1.0, warmup_steps=0, weight_decay=0.1, backbone_lr_factor=0.5))
    set_lr(optimiser, 50, 100, OptimConfig(lr=1.0, warmup_steps=0))
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]
    }
    assert found == {
        "backbone.weight": (pytest.approx(0.25), 0.1),
        "backbone.bias": (pytest.approx(0.25), 0.0),
        "norm.weight": (pytest.approx(0.5), 0.0),
        "norm.bias": (pytest.approx(0.5), 0.0),
        "head.weight": (pytest.approx(0.5), 0.1),
        "head.bias": (pytest.approx(0.5), 0.0),
    }


def test_a_frozen_backbone_does_not_move_and_the_rest_does(tmp_path: Path) -> None:
    job = fakes.make_job(tmp_path, optim=OptimConfig(backbone_lr_factor=0.0, warmup_steps=0))
    before = {name: value.clone() for name, value in job.student.named_parameters()}
    train(job)
    still = {name for name, value in job.student.named_parameters() if torch.equal(value, before[name])}
    assert still == {"backbone.weight", "backbone.bias"}


def naive_training(student: fakes.FakeModel, steps: int, optim: OptimConfig) -> None:
    """What train() must do, written down without any of its parts: SGD with momentum, clipping, cosine."""
    method, moments = fakes.FakeMethod(steps, noise=False), {}
    teacher = fakes.FakeModel(norm="group", dropout=0.0)
    teacher.load_state_dict(student.state_dict())
    for step, batch in zip(range(steps), fakes.fake_batches(0), strict=False):
        losses = method.losses(student, teacher, batch, step).losses
        gradients = torch.autograd.grad(sum(losses.values()), list(student.parameters()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        rate = optim.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(student.parameters(), gradients, strict=True)):
                clipped = gradient * min(1.0, optim.clip_norm / norm) + optim.weight_decay * parameter
                moments[index] = optim.momentum * moments[index] + clipped if index in moments else clipped
                parameter -= rate * moments[index]
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                keep = method.momentum(step)
                mine.copy_(keep * mine + (1 - keep) * theirs)


def test_training_equals_the_loop_written_by_hand(tmp_path: Path) -> None:
    optim = OptimConfig(optimiser="sgd", lr=0.1, warmup_steps=0, clip_norm=0.5, weight_decay=0.01)
    student, expected = fakes.FakeModel(norm="group", dropout=0.0), fakes.FakeModel(norm="group", dropout=0.0)
    expected.load_state_dict(student.state_dict())
    method = fakes.FakeMethod(6, noise=False)
    train(fakes.make_job(tmp_path, student=student, method=method, steps=6, optim=optim, precision="fp32"))
    naive_training(expected, 6, optim)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def equal_objects(start_step: int) -> Iterator[Batch]:
    """Every image has two objects, so that micro-batches and the whole batch have the same counts per image."""
    while True:
        yield Batch(
            labelled=fakes.fake_views(4, start_step, lambda image: 2), unlabelled=fakes.fake_views(2, 50 + start_step)
        )
        start_step += 1


def test_accumulation_is_the_whole_batch_where_objects_are_spread_evenly(tmp_path: Path) -> None:
    students = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        students.append(student := fakes.FakeModel(norm="group", dropout=0.0))
        job = fakes.make_job(
            tmp_path / str(accumulate),
            student=student,
            method=fakes.FakeMethod(4, noise=False),
            batches=equal_objects,
            accumulate=accumulate,
            precision="fp32",
            optim=OptimConfig(optimiser="sgd", lr=0.1, warmup_steps=0),
        )
        train(job)
    for ours, theirs in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --- losses that are not finite ---


class Poisoned(fakes.FakeMethod):
    """The loss of chosen steps is not finite, or its gradient alone."""

    def __init__(self, steps: int, bad: Sequence[int], gradient_only: bool = False) -> None:
        super().__init__(steps)
        self.bad, self.gradient_only = bad, gradient_only

    def losses(self, student: fakes.FakeModel, teacher: fakes.FakeModel, batch: Batch, step: int) -> StepLosses:
        outcome = super().losses(student, teacher, batch, step)
        if step in self.bad:
            zero = student.head.bias.sum() * 0
            spoiled = zero.sqrt() if self.gradient_only else zero + NAN
            return StepLosses(outcome.losses | {"mask": spoiled}, outcome.counts)
        return outcome


@pytest.mark.parametrize(
    ("gradient_only", "words"),
    [(False, "mask is nan; images: images/1_0.png"), (True, "the gradient is nan though the losses are finite")],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_step_is_skipped_whole_and_named(
    tmp_path: Path, gradient_only: bool, words: str, accumulate: int
) -> None:
    states: list[dict[str, Tensor]] = []
    job = fakes.make_job(
        tmp_path,
        method=Poisoned(4, [1], gradient_only),
        accumulate=accumulate,
        on_progress=lambda *_: states.append({name: v.clone() for name, v in fakes.everything(job).items()}),
    )
    result = train(job)
    assert fakes.same(states[0], states[1]), "weights, teacher and running statistics"
    assert not fakes.same(states[1], states[2])
    assert result.skipped_steps == 1
    event = fakes.read_lines(tmp_path, "event")[0]
    assert event["step"] == 2
    assert words in event["message"]
    assert [line["step"] for line in fakes.read_lines(tmp_path, "train")] == [1, 3, 4]


def test_an_image_of_nan_does_not_spoil_the_running_statistics(tmp_path: Path) -> None:
    def batches(start_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(fakes.fake_batches(start_step)):
            if step == 2:
                batch.labelled.weak[1] = NAN
            yield batch

    job = fakes.make_job(tmp_path, batches=batches)
    assert train(job).skipped_steps == 1
    assert all(bool(value.isfinite().all()) for value in fakes.everything(job).values())


def test_bad_steps_in_a_row_stop_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    method = Poisoned(20, [2, 3, 5, 6, 7])
    with pytest.raises(
        TrainingStopped,
        match=r"stopped at step 8 of 20: 3 steps in a row were not finite, the last: mask is nan; "
        r"images: images/7_0\.png.*leanmask train --resume",
    ):
        train(fakes.make_job(tmp_path, steps=20, max_bad_steps=3, method=method))
    resumed = fakes.make_job(tmp_path, steps=20, max_bad_steps=3, method=fakes.FakeMethod(20))
    result = train(resumed, resume=True)
    assert (result.steps, result.skipped_steps) == (20, 5)
    assert all(bool(value.isfinite().all()) for value in fakes.everything(resumed).values())


# --- evaluation, journal, progress ---


def test_the_best_of_student_and_teacher_is_kept_and_named(tmp_path: Path) -> None:
    scores = {2: (0.1, 0.3), 4: (0.2, 0.25), 6: (0.3, NAN)}
    snapshots = {}

    def evaluate(step: int) -> dict[str, dict[str, float]]:
        snapshots[step] = {name: v.clone() for name, v in job.teacher.model.state_dict().items()}
        student, teacher = scores[step]
        return {"student": {"AP": student, "AP50": 0.5}, "teacher": {"AP": teacher, "per_class": [{"name": "a"}]}}

    job = fakes.make_job(tmp_path, steps=6, eval_every_steps=2, evaluate=evaluate)
    result = train(job)
    assert result.best == {"who": "teacher", "step": 2, "AP": 0.3}
    weights, metadata = load_weights(tmp_path / "best.safetensors")
    assert fakes.same(weights, snapshots[2])
    assert (metadata["who"], metadata["step"], metadata["AP"], metadata["licence"]) == (
        "teacher",
        "2",
        "0.3",
        "Apache-2.0",
    )
    lines = fakes.read_lines(tmp_path, "eval")
    assert [(line["step"], line["who"], line["metrics"]["AP"]) for line in lines][-1] == (6, "teacher", None)
    assert lines[0]["metrics"] == {"AP": 0.1, "AP50": 0.5}
    assert lines[1]["per_class"] == [{"name": "a"}]


def test_pseudo_label_quality_has_its_own_line(tmp_path: Path) -> None:
    def evaluate(step: int) -> dict[str, dict[str, float]]:
        return {"student": {"AP": 0.1}, "pseudo": {"precision": 0.5, "count": 3}}

    train(fakes.make_job(tmp_path, evaluate=evaluate))
    assert fakes.read_lines(tmp_path, "pseudo") == [{"kind": "pseudo", "step": 4, "precision": 0.5, "count": 3}]


def test_without_any_evaluation_the_last_teacher_is_kept(tmp_path: Path) -> None:
    job = fakes.make_job(tmp_path, evaluate=lambda step: None)
    assert train(job).best == {"who": "teacher", "step": 4, "AP": None}
    assert fakes.same(load_weights(tmp_path / "best.safetensors")[0], job.teacher.model.state_dict())


def test_evaluation_finds_the_modes_it_needs_and_training_its_own(tmp_path: Path) -> None:
    def evaluate(step: int) -> None:
        assert not job.teacher.model.training
        job.student.eval()
        job.teacher.model.train()

    def check(step: int, total: int, losses: object) -> None:
        assert job.student.training
        assert not job.teacher.model.training

    job = fakes.make_job(tmp_path, evaluate=evaluate, eval_every_steps=1, on_progress=check)
    train(job)


def test_the_journal_has_means_between_lines_and_tensorboard_the_same(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    train(
        fakes.make_job(tmp_path, log_every_steps=2, on_progress=lambda step, total, losses: seen.append(dict(losses)))
    )
    lines = fakes.read_lines(tmp_path, "train")
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0].keys() == {"kind", "step", "losses", "counts", "lr", "seconds_step", "seconds_data"}
    assert lines[1]["losses"]["class"] == pytest.approx((seen[2]["class"] + seen[3]["class"]) / 2)
    assert lines[1]["counts"].keys() == {"pseudo_objects", "teacher_score", "seen", "gradient_norm"}
    assert 0 <= lines[1]["seconds_data"] < lines[1]["seconds_step"]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    curve = [(event.step, event.value) for event in board.Scalars("train/losses/class")]
    assert curve == [(line["step"], pytest.approx(line["losses"]["class"])) for line in lines]
    assert board.Scalars("eval/teacher/metrics/AP")[0].step == 4


def test_tensorboard_has_the_ap_of_each_class_that_has_one(tmp_path: Path) -> None:
    rows = [{"name": "cat", "AP": 0.25}, {"name": "big dog", "AP": 0.5}, {"name": "none here", "AP": float("nan")}]
    with Journal(tmp_path) as journal:
        journal.write("eval", 3, {"who": "teacher", "metrics": {"AP": 0.375}, "per_class": rows})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("per_class_AP/teacher/")]
    assert len(tags) == 2
    assert [(event.step, event.value) for event in board.Scalars("per_class_AP/teacher/cat")] == [(3, 0.25)]
    assert "big dog" in str(fakes.read_lines(tmp_path, "eval")), "the journal has them as they came"


def test_progress_is_told_after_every_step(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    train(fakes.make_job(tmp_path, log_every_steps=10, on_progress=lambda step, total, _: steps.append((step, total))))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_files_that_could_not_be_read_are_named_once(tmp_path: Path) -> None:
    def batches(start_step: int) -> Iterator[Batch]:
        for batch in fakes.fake_batches(start_step):
            yield dataclasses.replace(batch, labelled=dataclasses.replace(batch.labelled, skipped=("bad.png",)))

    result = train(fakes.make_job(tmp_path, batches=batches, log_every_steps=4))
    assert result.unreadable == ("bad.png",)
    assert train(fakes.make_job(tmp_path, batches=batches), resume=True).unreadable == ("bad.png",)
    messages = [line["message"] for line in fakes.read_lines(tmp_path, "event")]
    assert messages == ["cannot read bad.png; the next image took its place", "resumed at step 4"]


@pytest.mark.parametrize(
    "tail", [b"", b'{"kind": "train", "step": 3, "lo', b"\xff\xfe", b"[1]\n", b'{"kind": "event"}\n']
)
def test_a_journal_goes_on_at_a_step(tmp_path: Path, tail: bytes) -> None:
    with Journal(tmp_path) as journal:
        for step in (1, 2, 3):
            journal.write("train", step, {"losses": {"mask": INF if step == 2 else 0.5}})
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    with Journal(tmp_path, keep_steps=2) as journal:
        journal.event(2, "grüße")
    lines = fakes.read_lines(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("event", 2)]
    assert lines[1]["losses"] == {"mask": None}
    assert lines[2]["message"] == "grüße"


def test_a_journal_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"cannot write .*journal\.jsonl: "):
        Journal(tmp_path / "file")
    if Path("/dev/full").exists():
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "journal.jsonl").symlink_to("/dev/full")
        journal = Journal(tmp_path / "run", active=False)
        journal.event(0, "silent processes write nothing")


def test_trackers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.trackers: .*nonsense"):
        train(fakes.make_job(tmp_path, trackers=("nonsense",)))


def test_a_further_tracker_gets_the_numbers(tmp_path: Path) -> None:
    train(fakes.make_job(tmp_path, trackers=("tensorboard",)))
    assert list((tmp_path / "trackers").rglob("events.*"))


# --- small tools ---


def draw() -> tuple[float, ...]:
    return fakes.random.random(), float(fakes.np.random.normal()), float(torch.rand(()))


def test_random_states_come_back_and_stay_untouched() -> None:
    fakes.np.random.normal()  # leaves a second number waiting inside the generator
    state = capture_rng()
    first = [draw(), draw()]
    restore_rng(state)
    with untouched_rng():
        draw()
    assert [draw(), draw()] == first


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_the_meter_takes_means(values: list[float]) -> None:
    meter = Meter()
    for index, value in enumerate(values):
        meter.add("losses", {"a": value} | ({"b": 1.0} if index == 0 else {}))
        if index == len(values) // 2:
            state, meter = meter.state_dict(), Meter()
            meter.load_state_dict(state)
    assert meter.take() == ({"losses": {"a": pytest.approx(sum(values) / len(values)), "b": 1.0}}, [])
    assert meter.take() == ({}, [])


def test_the_second_ctrl_c_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.wanted
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_loader_processes_ignore_ctrl_c_and_obey_a_kill(number: int, code: int) -> None:
    def work() -> None:
        ready.set()
        time.sleep(1)

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with Interrupts() as interrupts:
        process = context.Process(target=work)
        process.start()
        ready.wait(10)
        os.kill(process.pid, number)
        process.join(20)
        assert process.exitcode == code
        assert not interrupts.wanted


def test_a_loader_that_dies_of_ctrl_c_is_an_interruption(tmp_path: Path) -> None:
    def batches(start_step: int) -> Iterator[Batch]:
        yield from [batch for batch, _ in zip(fakes.fake_batches(0), range(3), strict=False)]
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    with pytest.raises(RunError, match="stopped at step 3 of 9"):
        train(fakes.make_job(tmp_path, steps=9, batches=batches))
    with pytest.raises(RuntimeError, match="our own mistake"):
        train(fakes.make_job(tmp_path / "other", batches=broken_loader()))


def broken_loader() -> Callable[[int], Iterator[Batch]]:
    def batches(start_step: int) -> Iterator[Batch]:
        yield from []
        raise RuntimeError("our own mistake")

    return batches


@pytest.mark.parametrize(
    ("on_cpu", "asked", "repeatable"), [(True, None, True), (False, None, False), (False, True, True)]
)
def test_repeatable_kernels_are_for_cpus_and_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, asked: bool | None, repeatable: bool
) -> None:
    monkeypatch.setattr(run_module, "use_cpu", lambda: on_cpu)
    try:
        run_module.seed_everything(TrainConfig(deterministic=asked))
        assert torch.are_deterministic_algorithms_enabled() == repeatable
    finally:
        torch.use_deterministic_algorithms(False)


def test_commands_stay_off_the_gpu_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for told, device in (("true", "cpu"), ("false", "cuda")):
        monkeypatch.setenv("ACCELERATE_USE_CPU", told)
        assert default_device().type == device
