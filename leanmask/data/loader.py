"""Batches for every step and every process, the same whatever the number of loader processes.

A loader process makes a whole batch. Pixels travel in shared memory as uint8, everything else as one pickle.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import pickle
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leanmask.data.dataset import EvalDataset, Sample, TrainDataset, assemble, collate
from leanmask.errors import ConfigError, DataError, LeanmaskError
from leanmask.records import Batch, Views

Job = tuple[Sequence[int], ...]  # for every data set, the positions of its samples in one batch
_PREFETCHED = 2  # batches that a loader process makes ahead


@dataclass(frozen=True)
class BatchSizes:
    """Images per step over all processes."""

    labelled: int
    unlabelled: int = 0


class StepLoader:
    """The batches of training steps. Step s takes positions s * B to (s + 1) * B of each stream, B its own batch size,
    and every process a contiguous equal share of them.
    """

    def __init__(
        self,
        labelled: TrainDataset,
        unlabelled: TrainDataset | None,
        sizes: BatchSizes,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        """Raises ConfigError when a batch cannot be shared out equally, or there is no unlabelled data to fill it."""
        if sizes.unlabelled and unlabelled is None:
            raise ConfigError(
                f"{sizes.unlabelled} unlabelled images per step are asked for, but data.unlabelled is empty"
            )
        for name, size in (("batch_size", sizes.labelled), ("unlabelled_batch_size", sizes.unlabelled)):
            if size % world:
                raise ConfigError(f"{name} {size} cannot be shared by {world} processes; it must be a multiple of them")
        self.sizes, self.rank, self.world, self.workers = sizes, rank, world, workers
        self._datasets: tuple[TrainDataset, ...] = (labelled,)
        if unlabelled is not None and sizes.unlabelled:
            self._datasets = (labelled, unlabelled)

    def iterate(self, start_step: int) -> Iterator[Batch]:
        """This process's batches from `start_step` on, without end. Raises DataError as the data sets do."""
        jobs = (self._job(step) for step in itertools.count(start_step))
        for views in _work(self._datasets, jobs, self.workers):
            yield Batch(labelled=views[0], unlabelled=views[1] if len(views) > 1 else None)

    def _job(self, step: int) -> Job:
        sizes = (self.sizes.labelled, self.sizes.unlabelled)[: len(self._datasets)]
        shares = [size // self.world for size in sizes]
        starts = [step * size + self.rank * share for size, share in zip(sizes, shares, strict=True)]
        return tuple(range(start, start + share) for start, share in zip(starts, shares, strict=True))


def evaluation_batches(
    dataset: EvalDataset, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0
) -> Iterator[Views]:
    """Images rank, rank + world, ... in order, `batch_size` at a time (the last may be smaller).

    Raises DataError for an image that cannot be read: an evaluation never leaves one out.
    """
    mine = range(rank, len(dataset), world)
    jobs = ((mine[start : start + batch_size],) for start in range(0, len(mine), batch_size))
    for (views,) in _work((dataset,), jobs, workers):
        yield views


def _work(datasets: Sequence[Any], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Views, ...]]:
    if workers == 0:
        for job in jobs:
            yield tuple(_pinned(collate(samples)) for samples in _samples(datasets, job))
        return
    # Without a generator of its own, DataLoader would draw from torch's global one, and a resumed run would differ.
    parcels = DataLoader(
        _Jobs(datasets),
        sampler=jobs,
        batch_size=None,
        collate_fn=_untouched,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=_PREFETCHED,
        generator=torch.Generator(),
    )
    try:
        for parcel in parcels:
            if isinstance(parcel, _Failure):
                raise parcel.error
            yield tuple(_pinned(_unpack(part)) for part in parcel)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            "a loader process ended unexpectedly, most often for lack of memory or of shared memory (/dev/shm); "
            f"try fewer data.workers than {workers}"
        ) from error


def _samples(datasets: Sequence[Any], job: Job) -> list[list[Sample]]:
    return [[dataset[position] for position in positions] for dataset, positions in zip(datasets, job, strict=True)]


def _pinned(views: Views) -> Views:
    if not torch.cuda.is_available():
        return views
    weak = views.weak.pin_memory()
    return dataclasses.replace(
        views, weak=weak, strong=weak if views.strong is views.weak else views.strong.pin_memory()
    )


@dataclass(frozen=True)
class _Failure:
    """A user's mistake found in a loader process, on its way to the caller."""

    error: LeanmaskError


@dataclass(frozen=True, eq=False)
class _Parcel:
    """Samples on their way between processes. weak, strong: (B, 3, S, S) uint8. rest: everything but pixels."""

    weak: Tensor
    strong: Tensor | None
    rest: bytes


class _Jobs(Dataset[Any]):
    """A data set whose items are whole batches, so that one loader process makes one batch."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = datasets

    def __getitem__(self, job: Job) -> tuple[_Parcel, ...] | _Failure:
        try:
            return tuple(_pack(samples) for samples in _samples(self.datasets, job))
        except LeanmaskError as error:
            return _Failure(error)


def _pack(samples: Sequence[Sample]) -> _Parcel:
    strong = [sample.strong for sample in samples if sample.strong is not None]
    none = torch.zeros(0, dtype=torch.uint8)
    rest = io.BytesIO()
    _TensorsAsArrays(rest, protocol=5).dump([dataclasses.replace(sample, weak=none, strong=None) for sample in samples])
    return _Parcel(
        torch.stack([sample.weak for sample in samples]),
        torch.stack(strong) if strong else None,
        rest.getvalue(),
    )


def _unpack(parcel: _Parcel) -> Views:
    return assemble(parcel.weak, parcel.strong, pickle.loads(parcel.rest))


class _TensorsAsArrays(pickle.Pickler):
    """Pickles the many small tensors of targets by value: in shared memory each would cost a file descriptor."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def _untouched(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one saves, ends, and takes its loaders with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
