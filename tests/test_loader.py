"""Batches are the same for any number of loader processes, shared out equally between ranks, and resume anywhere."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from data_helpers import calm, data_config, open_store, write_folder
from torch import Tensor

from leanmask.config import AugmentConfig
from leanmask.data.coco import AnnotationStore
from leanmask.data.dataset import EvalDataset, TrainDataset
from leanmask.data.loader import BatchSizes, StepLoader, evaluation_batches
from leanmask.errors import ConfigError, DataError
from leanmask.records import Batch, Target, Views


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANMASK_CACHE", str(tmp_path_factory.mktemp("cache")))


def streams(folder: Path) -> tuple[TrainDataset, TrainDataset]:
    config = AugmentConfig(copy_paste_probability=0.3)
    labelled = TrainDataset(open_store(folder / "a", count=5), data_config(), config, seed=0)
    write_folder(folder / "b", 4, [])
    store = AnnotationStore.open(None, folder / "b" / "images")
    return labelled, TrainDataset(store, data_config(), AugmentConfig(), seed=0)


def take(loader: StepLoader, start: int, count: int) -> list[Batch]:
    return list(itertools.islice(loader.iterate(start), count))


def tensors_of(target: Target) -> list[Tensor]:
    found = target.instances
    assert found.ids is not None
    optional = [] if found.points is None else [found.points, found.point_labels]
    fields = [found.boxes, found.categories, found.supervision, found.weights, found.ids, target.ignore]
    return [*fields, found.masks.data, found.masks.regions, *optional]  # type: ignore[union-attr, list-item]


def assert_same(first: Views, second: Views) -> None:
    assert torch.equal(first.weak, second.weak)
    assert torch.equal(first.strong, second.strong)
    assert (first.strong is first.weak) == (second.strong is second.weak)
    assert (first.frames, first.files, first.image_ids) == (second.frames, second.files, second.image_ids)
    for one, other in zip(first.targets, second.targets, strict=True):
        assert one.exhaustive == other.exhaustive
        assert one.instances.provenance == other.instances.provenance
        for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def assert_same_batches(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert_same(one.labelled, other.labelled)
        assert (one.unlabelled is None) == (other.unlabelled is None)
        if one.unlabelled is not None and other.unlabelled is not None:
            assert_same(one.unlabelled, other.unlabelled)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(tmp_path: Path, workers: int) -> None:
    labelled, unlabelled = streams(tmp_path)
    sizes = BatchSizes(3, 2)
    alone = take(StepLoader(labelled, unlabelled, sizes), 0, 5)
    assert_same_batches(alone, take(StepLoader(labelled, unlabelled, sizes, workers=workers), 0, 5))
    assert len(alone[0].labelled) == 3
    assert alone[0].unlabelled is not None
    assert len(alone[0].unlabelled) == 2


def test_tensors_from_loader_processes_may_be_written(tmp_path: Path) -> None:
    labelled, _ = streams(tmp_path)
    (batch,) = take(StepLoader(labelled, None, BatchSizes(2), workers=1), 0, 1)
    boxes, weak = batch.labelled.targets[0].instances.boxes, batch.labelled.weak
    wanted = boxes + 1, weak * 0.5
    boxes.add_(1)
    weak.mul_(0.5)
    assert torch.equal(boxes, wanted[0])
    assert torch.equal(weak, wanted[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_the_stream(tmp_path: Path, workers: int) -> None:
    labelled, unlabelled = streams(tmp_path)
    loader = StepLoader(labelled, unlabelled, BatchSizes(2, 4), workers=workers)
    assert_same_batches(take(loader, 0, 7)[4:], take(loader, 4, 3))


def test_step_s_takes_its_positions(tmp_path: Path) -> None:
    labelled, unlabelled = streams(tmp_path)
    batches = take(StepLoader(labelled, unlabelled, BatchSizes(2, 3)), 6, 2)
    for step, batch in zip((6, 7), batches, strict=True):
        expected = [labelled[position].file for position in (2 * step, 2 * step + 1)]
        assert list(batch.labelled.files) == expected
        assert batch.unlabelled is not None
        assert list(batch.unlabelled.files) == [unlabelled[3 * step + i].file for i in range(3)]


def test_ranks_together_see_the_global_batch(tmp_path: Path) -> None:
    labelled, unlabelled = streams(tmp_path)
    whole = take(StepLoader(labelled, unlabelled, BatchSizes(4, 2)), 3, 2)
    shares = [take(StepLoader(labelled, unlabelled, BatchSizes(4, 2), rank, 2), 3, 2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.labelled.weak, torch.cat([share[step].labelled.weak for share in shares]))
        assert batch.labelled.files == sum((share[step].labelled.files for share in shares), ())
        assert batch.unlabelled is not None
        assert batch.unlabelled.files == sum((share[step].unlabelled.files for share in shares), ())  # type: ignore[union-attr]


def test_without_unlabelled_images_there_is_no_such_batch(tmp_path: Path) -> None:
    labelled, unlabelled = streams(tmp_path)
    assert take(StepLoader(labelled, unlabelled, BatchSizes(2)), 0, 1)[0].unlabelled is None
    assert take(StepLoader(labelled, None, BatchSizes(2)), 0, 1)[0].unlabelled is None
    with pytest.raises(ConfigError, match=r"data\.unlabelled is empty"):
        StepLoader(labelled, None, BatchSizes(2, 2))


@pytest.mark.parametrize(
    ("sizes", "name"), [(BatchSizes(3, 2), "batch_size 3"), (BatchSizes(2, 3), "unlabelled_batch_size 3")]
)
def test_batches_that_cannot_be_shared_are_named(tmp_path: Path, sizes: BatchSizes, name: str) -> None:
    labelled, unlabelled = streams(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} cannot be shared by 2 processes"):
        StepLoader(labelled, unlabelled, sizes, rank=0, world=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_randomness_is_left_alone(tmp_path: Path, workers: int) -> None:
    labelled, _ = streams(tmp_path)
    before = torch.get_rng_state()
    take(StepLoader(labelled, None, BatchSizes(2), workers=workers), 0, 2)
    list(evaluation_batches(EvalDataset(labelled.store, data_config()), 2, 0, 1, workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_keep_their_sentence(tmp_path: Path, workers: int) -> None:
    store = open_store(tmp_path, count=2)
    dataset = TrainDataset(store, data_config(), calm(), seed=0)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"garbage")
    with pytest.raises(DataError) as alone:
        dataset[0]
    with pytest.raises(DataError) as caught:
        take(StepLoader(dataset, None, BatchSizes(1), workers=workers), 0, 1)
    assert str(caught.value) == str(alone.value)
    with pytest.raises(DataError, match=r"^image \S*001\.png cannot be read: [^\n]*$"):
        list(evaluation_batches(EvalDataset(store, data_config()), 1, 0, 1, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_files_reach_the_batch(tmp_path: Path, workers: int) -> None:
    store = open_store(tmp_path, count=4)
    (tmp_path / "images" / "003.png").write_bytes(b"garbage")
    loader = StepLoader(TrainDataset(store, data_config(), calm(), seed=0), None, BatchSizes(4), workers=workers)
    (batch,) = take(loader, 0, 1)
    assert [Path(file).name for file in batch.labelled.skipped] == ["003.png"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_shows_every_image_to_one_rank_in_order(tmp_path: Path, workers: int, world: int) -> None:
    dataset = EvalDataset(open_store(tmp_path, count=7), data_config())
    seen = []
    for rank in range(world):
        batches = list(evaluation_batches(dataset, 2, rank, world, workers))
        mine = [number for views in batches for number in views.image_ids]
        assert mine == sorted(mine)
        assert all(len(views) <= 2 for views in batches)
        assert all(views.strong is views.weak for views in batches)
        seen += mine
    assert sorted(seen) == list(range(1, 8))
    assert list(evaluation_batches(dataset, 2, 7, 8, workers)) == []


def test_a_killed_loader_process_is_one_sentence(tmp_path: Path) -> None:
    labelled, _ = streams(tmp_path)
    before = set(children())
    batches = StepLoader(labelled, None, BatchSizes(2), workers=1).iterate(0)
    next(batches)
    (worker,) = set(children()) - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(DataError, match=r"fewer data\.workers than 1"):
        list(itertools.islice(batches, 50))


def children(pid: int | None = None) -> list[int]:
    pid = os.getpid() if pid is None else pid
    found = Path(f"/proc/{pid}/task/{pid}/children")
    if not found.exists():
        pytest.skip("needs Linux's /proc")
    return [int(pid) for pid in found.read_text().split()]


def test_loader_processes_end_with_their_iterator(tmp_path: Path) -> None:
    labelled, _ = streams(tmp_path)
    before = set(children())
    batches = StepLoader(labelled, None, BatchSizes(2), workers=2).iterate(0)
    next(batches)
    assert len(set(children()) - before) == 2
    batches.close()  # type: ignore[attr-defined]
    assert set(children()) <= before


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


SCRIPT = """
import sys
from pathlib import Path
from data_helpers import calm, data_config, open_store
from leanmask.data.dataset import TrainDataset
from leanmask.data.loader import BatchSizes, StepLoader

dataset = TrainDataset(open_store(Path(sys.argv[1]), count=4), data_config(512), calm(), seed=0)
try:
    for _ in StepLoader(dataset, None, BatchSizes(2), workers=2).iterate(0):
        sys.stdout.write("batch\\n")
        sys.stdout.flush()
except KeyboardInterrupt:
    sys.stdout.write("stopped\\n")
"""


@contextmanager
def endless(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own group that loads batches, larger than a pipe holds, in two more; stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "batch\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def test_ctrl_c_ends_loader_processes_silently(tmp_path: Path) -> None:
    with endless(tmp_path / "data") as process:
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        out, err = process.communicate(timeout=30)
    assert out.endswith("stopped\n")
    assert err == ""
    assert process.returncode == 0


def test_loader_processes_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    with endless(tmp_path / "data") as process:
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
        process.wait(timeout=30)
        deadline = time.monotonic() + 20
        while any(map(running, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(running, workers))
