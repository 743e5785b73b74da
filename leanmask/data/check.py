"""Checks a data set before any training: every problem with its place, what is labelled how, and a repaired copy."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.data.checking.images import Probe, probe, probe_all
from leanmask.data.checking.repair import write_repaired
from leanmask.data.checking.repair_images import Copy, Repair
from leanmask.data.checking.splits import (
    Loaded,
    Problem,
    annotation_problems,
    census,
    class_problems,
    file_problems,
    image_problems,
    label_problems,
    load,
    same_content_problems,
)
from leanmask.data.coco import Census
from leanmask.data.layout import SplitFiles, locate
from leanmask.errors import ConfigError, DataError, RunError, suggest
from leanmask.paths import as_path

EXIF = ("error", "apply", "ignore")


@dataclass(frozen=True)
class CheckReport:
    """What `check` found. census: by split. fixed: folder of the repaired copy, with what was changed in `repairs` and
    the problems that are `left` in it.
    """

    problems: tuple[Problem, ...]
    census: dict[str, Census]
    repairs: tuple[Repair, ...] = ()
    fixed: Path | None = None
    left: tuple[Problem, ...] = ()

    @property
    def errors(self) -> int:
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def ok(self) -> bool:
        """No errors; warnings may be there."""
        return self.errors == 0

    @property
    def usable(self) -> bool:
        """No errors in the repaired copy where there is one, else in the data."""
        return self.ok if self.fixed is None else bool(self.census) and not self._errors_left()

    def _errors_left(self) -> list[Problem]:
        return [problem for problem in self.left if problem.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "errors": self.errors,
            "warnings": len(self.problems) - self.errors,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "census": {name: counted.to_json() for name, counted in self.census.items()},
            "repairs": [dataclasses.asdict(repair) for repair in self.repairs],
            "usable": self.usable,
            "left": [dataclasses.asdict(problem) for problem in self.left],
            "fixed": None if self.fixed is None else str(self.fixed),
        }

    def to_text(self, limit: int = 50) -> str:
        """For people: the census, the first `limit` problems and repairs, and one line that sums up."""
        lines = [line for name, counted in self.census.items() for line in _census_lines(name, counted)]
        lines += [_problem_line(problem) for problem in self.problems[:limit]]
        if len(self.problems) > limit:
            rest = Counter(problem.code for problem in self.problems[limit:])
            lines.append("and " + ", ".join(f"{count} x {code}" for code, count in rest.most_common()))
        lines.append(f"{self.errors} errors, {len(self.problems) - self.errors} warnings")
        if self.fixed is not None:
            lines += [f"repair: {repair.describe()}" for repair in self.repairs[:limit]]
            more = max(len(self.repairs) - limit, 0)
            lines += [f"and {more} more repairs"] if more else []
            lines.append(f"wrote a repaired copy with {len(self.repairs)} changes to {self.fixed}")
            still = self._errors_left()
            lines.append(f"the copy has {len(still) or 'no'} error{'s' * (len(still) != 1)}")
            lines += [_problem_line(problem) for problem in still[:limit]]
        return "\n".join(lines)


def check(
    data: str | Path,
    *,
    fix: Path | None = None,
    drop: bool = False,
    exif: str = "error",
    on_progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every annotation and decode every image of a data set.

    data: as for `locate`. fix: new folder for a repaired copy of the annotation files and a data.yaml (images are
    referred to, not copied). drop: repair even where more than a tenth of the labels of a split, all labels of one
    kind, or all of one class are lost. exif: as `DataConfig.exif`. on_progress: called with images done and in all.
    Raises DataError when the data set cannot be found, or when a repair would lose that much and `drop` is not set,
    RunError when `fix` cannot be written; either way nothing is written. Problems in the data are returned, not raised.
    """
    if exif not in EXIF:
        raise DataError(f"exif is '{exif}'{suggest(exif, EXIF)}")
    if drop and fix is None:
        raise ConfigError("--drop is for a repair; name the new folder for the repaired copy, too: --fix NEW")
    fix = None if fix is None else as_path(fix)
    if fix is not None and fix.exists() and (not fix.is_dir() or any(fix.iterdir())):
        raise RunError(f"{fix} exists already and is not an empty folder; name a new folder for the repaired copy")
    located = locate(data)
    looked = _look(located, data, exif, lambda paths: probe_all(paths, on_progress))
    if fix is None:
        return CheckReport(looked.problems, looked.census)
    repairs = write_repaired([Copy(split, looked.probes, exif) for split in looked.splits], located, fix, drop)
    known = {os.path.realpath(path): found for path, found in looked.probes.items()}  # nothing is decoded twice
    copied = _look(
        locate(fix) if looked.splits else {},
        fix,
        exif,
        lambda paths: {path: known.get(os.path.realpath(path)) or probe(path) for path in paths},
    )
    return CheckReport(looked.problems, looked.census, tuple(repairs), fix, copied.problems)


@dataclass(frozen=True)
class _Looked:
    """A data set, looked through."""

    splits: list[Loaded]
    probes: dict[Path, Probe]
    problems: tuple[Problem, ...]
    census: dict[str, Census]


def _look(
    located: dict[str, SplitFiles], data: str | Path, exif: str, read: Callable[[list[Path]], dict[Path, Probe]]
) -> _Looked:
    problems: list[Problem] = []
    splits = _load_all(located, problems)
    paths = [path for split in splits for image in split.images if (path := split.path_of(image)) is not None]
    probes = read(paths)
    reference, reference_name = _reference_classes(splits)
    for split in splits:
        problems += class_problems(split, reference, reference_name)
        problems += file_problems(split)
        problems += image_problems(split, probes, exif)
        problems += annotation_problems(split)
    counted = {split.name: census(split) for split in splits}
    for split in splits:
        problems += label_problems(split, counted[split.name])
    problems += same_content_problems(splits, probes)
    if located and "train" not in located:
        found = ", ".join(f"'{name}'" for name in located)
        message = (
            f"no split is called 'train', which training needs unless data.train_split names another; found {found}"
        )
        problems.append(Problem("warning", "no-train", message, next(iter(located)), str(data)))
    problems.sort(key=lambda problem: problem.severity)
    return _Looked(splits, probes, tuple(problems), counted)


def _load_all(located: dict[str, SplitFiles], problems: list[Problem]) -> list[Loaded]:
    splits = []
    for name, files in located.items():
        try:
            splits.append(load(name, files))
        except DataError as error:
            problems.append(
                Problem("error", "file-unreadable", str(error), name, str(files.annotations or files.images))
            )
    return splits


def _reference_classes(splits: Sequence[Loaded]) -> tuple[dict[str, int], str]:
    """Name -> id of the training split, or of the first one that has classes."""
    ordered = sorted((split for split in splits if split.categories), key=lambda split: split.name != "train")
    if not ordered:
        return {}, "train"
    rows = [row for row in ordered[0].categories if isinstance(row.get("name"), str) and type(row.get("id")) is int]
    return {row["name"]: row["id"] for row in reversed(rows)}, ordered[0].name


def _census_lines(name: str, found: Census) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in reversed(found.objects.items()) if count) or "no objects"
    images = {
        "exhaustive": found.exhaustive_images,
        "negative": found.negative_images,
        "unlabelled": found.unlabelled_images,
        "undecided": found.undecided_images,
    }
    shown = ", ".join(f"{count} {word}" for word, count in images.items() if count)
    extra = f", {found.crowds} crowds" if found.crowds else ""
    extra += f", {found.one_label_points} with points of one label only" if found.one_label_points else ""
    extra += f", {found.rejected} rejected" if found.rejected else ""
    return [f"{name}: {found.images} images ({shown}); {kinds}{extra}"]


def _problem_line(problem: Problem) -> str:
    place = [f"split {problem.split}", problem.file]
    place += [] if problem.image_id is None else [f"image {problem.image_id}"]
    place += [] if problem.annotation_id is None else [f"annotation {problem.annotation_id}"]
    return f"{problem.severity} [{problem.code}] {', '.join(place)}: {problem.message}"
