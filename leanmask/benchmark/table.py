"""`leanmask bench PROTOCOL`: train every row of a protocol's table, skip what is there, write after each row."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from filelock import FileLock

from leanmask.benchmark.arms import (
    LONGTAIL_PROTOCOL,
    OWN_DATA,
    PLAN_MINUTES,
    PRESET,
    SOLOV2_MINUTES,
    USUAL_MODEL,
    Arm,
    arms_of,
    in_order,
    metrics_of,
    model_of,
)
from leanmask.benchmark.commit import commit
from leanmask.benchmark.names import folder_name
from leanmask.benchmark.stage_quality import stage_quality
from leanmask.config import apply_overrides, load_yaml, merge
from leanmask.data.coco import write_json
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.splits import SplitOptions, split
from leanmask.devices import machine
from leanmask.errors import ConfigError, suggest
from leanmask.options import FROM_ONE, check_fields, require_options
from leanmask.paths import settle_fields
from leanmask.planning.plan import PLANNED_FOR, plan
from leanmask.processes import end_with_parent
from leanmask.reports.tables import Table, benchmark_table
from leanmask.run import resume, train
from leanmask.settings import load_config
from leanmask.summary import OnStep

Row = dict[str, Any]
OnProgress = Callable[[float, int, str], None]
SPLIT_PREFIX = "split."
ROW_KEY = ("protocol", "arm", "model", "seed", "steps", "split", "overrides")
LONGTAIL_UNLABELLED = 2000  # images
POLL_SECONDS, TELL_EVERY_STEPS = 0.5, 5


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and where to keep it.

    seeds: seeds 0 to seeds-1, each for split and training. arms: rows, None = all. data: a fully labelled data set,
    None = digits. split: what is reported on, "val"; "tune" to choose settings. work: data sets and runs. results:
    folder of the raw JSON. jobs: runs at the same time, with one thread each when above 1. overrides: dotted settings
    for every row, and options of the split as split.point_noise=0.05; they go into the rows. digits: sizes of the
    embedded data set, None = the default ones. model: what every row trains, None = the protocol's own. Raises
    ConfigError for values that cannot be.
    """

    seeds: int = 1
    arms: tuple[str, ...] | None = None
    data: Path | None = None
    split: str = "val"
    work: Path = Path("runs/bench")
    results: Path = Path("benchmarks/results")
    jobs: int = 1
    overrides: tuple[str, ...] = ()
    digits: DigitsSpec | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        settle_fields(self, texts=("arms", "overrides"), paths=("data", "work", "results"))
        check_fields(self, seeds=FROM_ONE, jobs=FROM_ONE)


@dataclass(frozen=True)
class BenchTable:
    """The raw rows and their table of means over seeds."""

    rows: list[Row]
    table: Table


@dataclass(frozen=True)
class Task:
    """One row to be trained: everything a worker process needs."""

    protocol: str
    name: str
    arm: Arm
    seed: int
    options: BenchOptions
    run: Path


def bench(
    protocol: str, options: BenchOptions = BenchOptions(), *, on_progress: OnProgress | None = None
) -> BenchTable:
    """Build a protocol's table. Resumable: finished rows are kept, interrupted runs continue.

    on_progress: called with (finished runs, all runs, what is going on); unfinished runs count by their steps. Raises
    ConfigError or DataError for an unknown protocol or arm.
    """
    require_options(options, BenchOptions)
    arms, options = chosen_arms(protocol, options.arms, options.data), _with_model(protocol, options)
    paths = list(dict.fromkeys((results_path(protocol, options), results_path("full", options))))
    tasks = [_task(protocol, name, arm, seed, options) for seed in range(options.seeds) for name, arm in arms.items()]
    done = [row for path in paths for row in read_rows(path)]
    missing = [task for task in tasks if not any(_is_row(row, task) for row in done)]
    missing.sort(key=lambda task: task.arm.stage is not None)  # no process waits for a run that another one trains
    for task in missing:
        prepare_data(task)
    for row in run_tasks(missing, options.jobs, on_progress):
        add_row(results_path(row["protocol"], options), row)
    known = [row for path in paths for row in read_rows(path) if any(_is_row(row, task) for task in tasks)]
    rows = in_order(protocol, known)
    return BenchTable(rows, benchmark_table(rows, metrics_of(protocol)))


def chosen_arms(protocol: str, names: Sequence[str] | None, data: Path | None = None) -> dict[str, Arm]:
    """The arms of a protocol (on `data`), or those that were named. Raises ConfigError for a name that is none."""
    arms = arms_of(protocol, own_data=data is not None)
    for name in names or ():
        if name not in arms:
            raise ConfigError(f"unknown arm '{name}' of {protocol}{suggest(name, arms)}")
    return {name: arms[name] for name in names or arms}


def run_folders(protocol: str, options: BenchOptions) -> list[Path]:
    """The run folders behind a table, in its order."""
    arms, options = chosen_arms(protocol, options.arms, options.data), _with_model(protocol, options)
    return [
        _task(protocol, name, arm, seed, options).run for seed in range(options.seeds) for name, arm in arms.items()
    ]


def results_path(protocol: str, options: BenchOptions) -> Path:
    """`<protocol>.json`, with the data set's name in front when it is not digits and the split's when it is not val."""
    parts = [options.data.name if options.data else "", "" if options.split == "val" else options.split, protocol]
    return options.results / ("-".join(part for part in parts if part) + ".json")


def read_rows(path: Path) -> list[Row]:
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def add_row(path: Path, row: Row) -> None:
    """Append a row, atomically; of several benchmarks that add the same one to a file the first is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        rows = read_rows(path)
        if "arm" not in row or not any(all(row[key] == each.get(key) for key in ROW_KEY) for each in rows):
            write_json(path, [*rows, row], overwrite=True)


def _task(protocol: str, name: str, arm: Arm, seed: int, options: BenchOptions) -> Task:
    own = arm.protocol or protocol
    data = options.data.name if options.data else "digits"
    run = arm.run_of or name
    key = folder_name([data, *unusual(options), own, run, f"seed{seed}", *options.overrides])
    return Task(own, name, arm, seed, options, options.work / "runs" / key)


def _with_model(protocol: str, options: BenchOptions) -> BenchOptions:
    return dataclasses.replace(options, model=options.model or model_of(protocol))


def unusual(options: BenchOptions) -> list[str]:
    """Model and split where they are not the usual ones: parts of a run folder's name, so that no two rows share it."""
    model = [options.model] if options.model and options.model != USUAL_MODEL else []
    return model + ([options.split] if options.split != BenchOptions.split else [])


def _network(options: BenchOptions) -> str:
    """What rows call the model: its name and its backbone's, as in mask_rcnn-lite0."""
    told = [override for override in options.overrides if override not in _of_split(options.overrides)]
    return f"{options.model}-{apply_overrides(usual_settings(options), told)['model']['backbone']}"


def usual_settings(options: BenchOptions) -> dict[str, Any]:
    """What all arms have in common: the preset for digits; for a data set of the user what a plan of it says, with all
    labels there, so that both sides of a comparison train alike. The plan is made once and kept in the work folder.
    """
    if options.data is None:
        return merge(PRESET, {"model": {"name": options.model}})
    path = options.work / "data" / f"{folder_name([options.data.name, str(options.model)])}-plan.yaml"
    with _alone(path):
        if not path.is_file():
            given = merge(OWN_DATA, {"model": {"name": options.model}})
            minutes = SOLOV2_MINUTES if options.model == "solov2" else PLAN_MINUTES
            plan(options.data, settings=given, minutes=minutes).write(path)
    settings = load_yaml(path)
    settings.pop(PLANNED_FOR)
    return settings


def _of_split(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that are about the split, such as split.point_noise=0.05."""
    return [override for override in overrides if override.startswith(SPLIT_PREFIX)]


def _split_options(overrides: Sequence[str]) -> SplitOptions:
    found = apply_overrides({}, [override.removeprefix(SPLIT_PREFIX) for override in overrides])
    names = [each.name for each in dataclasses.fields(SplitOptions)]
    for name in found:
        if name not in names:
            raise ConfigError(f"unknown option split.{name}{suggest(name, names)}")
    return SplitOptions(**found)


def is_row(row: Row, name: str, seed: int, options: BenchOptions) -> bool:
    """Whether a row of a protocol's file is that of an arm and a seed under these options."""
    same = (row["arm"], row["seed"], row.get("overrides", [])) == (name, seed, list(options.overrides))
    return same and row["model"] == _network(options)


def _is_row(row: Row, task: Task) -> bool:
    return row["protocol"] == task.protocol and is_row(row, task.name, task.seed, task.options)


def prepare_data(task: Task) -> Path:
    """The task's data set: digits written and split once, kept in the work folder."""
    options = task.options
    if task.protocol == LONGTAIL_PROTOCOL:
        return _longtail(task)
    source = options.data or options.work / "data" / "digits"
    if options.data is None:
        with _alone(source):
            if not (source / "annotations").is_dir():
                write_digits(source, options.digits or DigitsSpec())
    told = _of_split(options.overrides)
    out = options.work / "data" / folder_name([source.name, task.protocol, f"seed{task.seed}", *told])
    with _alone(out):
        if not (out / "data.yaml").is_file():
            split(source, out, task.protocol, seed=task.seed, options=_split_options(told))
    return out


def _longtail(task: Task) -> Path:
    """Digits with a long tail and unlabelled images, another set for every seed; or the user's data as it is."""
    options = task.options
    if options.data is not None:
        return options.data
    out = options.work / "data" / f"digits-longtail-seed{task.seed}"
    with _alone(out):
        if not (out / "data.yaml").is_file():
            spec = options.digits or DigitsSpec(unlabelled=LONGTAIL_UNLABELLED)
            write_digits(out, dataclasses.replace(spec, longtail=True, seed=task.seed))
    return out


def _alone(folder: Path) -> FileLock:
    """One process at a time writes a folder: several may build tables in the same work folder, or rows of one run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def run_tasks(tasks: Sequence[Task], jobs: int, on_progress: OnProgress | None) -> Iterator[Row]:
    """The rows of all tasks as they are finished, `jobs` at a time, each in a process of its own when above 1."""
    shares: dict[int, float] = {}

    def report(number: int, step: int, total: int, note: str) -> None:
        shares[number] = step / total
        if on_progress:
            task = tasks[number]
            on_progress(sum(shares.values()), len(tasks), f"{task.name} seed {task.seed}: step {step}, {note}")

    if jobs == 1:
        for number, task in enumerate(tasks):
            yield run_task(task, None, partial(report, number))
        return
    context = multiprocessing.get_context("spawn")
    news: Queue[tuple[int, int, int, str]] = context.Queue()
    with ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=_listen, initargs=(news,)) as pool:
        waiting = {pool.submit(_run_and_tell, number, task) for number, task in enumerate(tasks)}
        while waiting:
            finished, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not news.empty():
                report(*news.get())
            for future in finished:
                yield future.result()


_NEWS: list[Any] = []  # of a worker process: the queue to its parent


def _listen(news: Any) -> None:
    _NEWS.append(news)
    end_with_parent()  # a training saves and goes on to the next row when it is asked to stop


def _run_and_tell(number: int, task: Task) -> Row:
    def report(step: int, total: int, note: str) -> None:
        if step % TELL_EVERY_STEPS == 0 or step == total:
            _NEWS[0].put((number, step, total, note))

    return run_task(task, 1, report)


def run_task(task: Task, threads: int | None, on_progress: OnStep | None) -> Row:
    """Train (or go on with) one row and return it, measured on the reported split."""
    usual = merge(usual_settings(task.options), {"evaluation": {"who": [task.arm.who]}})
    own = {"train": {"seed": task.seed, "threads": threads}, "data": {"val_split": task.options.split}}
    settings = merge(merge(usual, task.arm.settings), own)
    with _alone(task.run):  # two rows may share a run
        until = task.arm.stage
        if (task.run / "config.yaml").is_file():
            summary = resume(task.run, until=until, on_progress=on_progress)
        else:
            data = prepare_data(task)
            told = _of_split(task.options.overrides)
            overrides = [override for override in task.options.overrides if override not in told]
            summary = train(
                data, task.run, settings=settings, overrides=overrides, plan=False, until=until, on_progress=on_progress
            )
    return {
        "protocol": task.protocol,
        "arm": task.name,
        "model": _network(task.options),
        "seed": task.seed,
        "steps": summary.steps,
        "who": task.arm.who,
        "split": task.options.split,
        "overrides": list(task.options.overrides),
        **task.arm.note(task.options.overrides),
        "metrics": {name: round(value, 5) for name, value in summary.metrics[task.arm.who].items() if value == value},
        **stage_quality(task.run, task.arm.stage),
        "train_seconds": round(summary.seconds, 1),
        "commit": commit(),
        "machine": machine(load_config(task.run).train.precision),
    }
