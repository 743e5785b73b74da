"""Batches for every step and every process, the same whatever the number of loader processes.

A loader process makes a whole batch and sends it through its pipe, pixels as uint8. Shared memory was no faster when
measured, containers often have little of it, and a killed process leaves its handles in disorder.
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
from leanmask.devices import default_device
from leanmask.errors import ConfigError, DataError, LeanmaskError
from leanmask.processes import end_with_parent
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
    dataset: EvalDataset, batch_size: int, rank: int = 0, world: int = 1, workers: int = 0, skip: int = 0
) -> Iterator[Views]:
    """Images rank, rank + world, ... in order, `batch_size` at a time (the last may be smaller), without the first
    `skip` of them.

    Raises DataError for an image that cannot be read: an evaluation never leaves one out.
    """
    mine = range(rank, len(dataset), world)[skip:]
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
            f"a loader process ended unexpectedly, most often for lack of memory; try fewer data.workers than {workers}"
        ) from None


def _samples(datasets: Sequence[Any], job: Job) -> list[list[Sample]]:
    return [[dataset[position] for position in positions] for dataset, positions in zip(datasets, job, strict=True)]


def _pinned(views: Views) -> Views:
    if default_device().type != "cuda":
        return views
    weak = views.weak.pin_memory()
    return dataclasses.replace(
        views, weak=weak, strong=weak if views.strong is views.weak else views.strong.pin_memory()
    )


@dataclass(frozen=True)
class _Failure:
    """A user's mistake found in a loader process, on its way to the caller."""

    error: LeanmaskError


class _Jobs(Dataset[Any]):
    """A data set whose items are whole batches, so that one loader process makes one batch."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = datasets

    def __getitem__(self, job: Job) -> tuple[bytes, ...] | _Failure:
        try:
            return tuple(_pack(samples) for samples in _samples(self.datasets, job))
        except LeanmaskError as error:
            return _Failure(error)


def _pack(samples: Sequence[Sample]) -> bytes:
    strong = [sample.strong for sample in samples if sample.strong is not None]
    weak = torch.stack([sample.weak for sample in samples])
    none = torch.zeros(0, dtype=torch.uint8)
    rest = [dataclasses.replace(sample, weak=none, strong=None) for sample in samples]
    parcel = io.BytesIO()
    _TensorsAsArrays(parcel, protocol=5).dump((weak, torch.stack(strong) if strong else None, rest))
    return parcel.getvalue()


def _unpack(parcel: bytes) -> Views:
    return assemble(*pickle.loads(parcel))


class _TensorsAsArrays(pickle.Pickler):
    """Pickles tensors by value; torch's own way for other processes would put each of them into shared memory."""

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
    end_with_parent()  # half a batch in the pipe of a parent that was killed would keep it waiting
