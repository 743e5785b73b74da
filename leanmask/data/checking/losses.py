"""What a repaired copy would lose of the labels, so that a repair that deletes much is no silent success."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from leanmask.data.annotation import Row
from leanmask.data.checking.repair_images import Copy
from leanmask.data.checking.splits import hashable, load
from leanmask.data.layout import SplitFiles
from leanmask.errors import DataError

MOST_LOST = 0.1  # of the annotations of a split, or of its masks, boxes or points
KINDS = {"masks": ("segmentation",), "boxes": ("bbox",), "points": ("point_coords", "point")}


def losses_of(copies: Sequence[Copy], unreadable: Mapping[str, SplitFiles]) -> list[str]:
    """Every loss that is too large to be a repair, in words; empty where there is none. unreadable: splits whose file
    cannot be read, and whose labels are all lost.
    """
    lost = []
    for name, files in unreadable.items():
        try:
            load(name, files)
        except DataError as error:
            lost.append(f"all labels of split '{name}' ({error})")
    return [*lost, *(loss for copy in copies for loss in _losses(copy))]


def require_kept(losses: Sequence[str], out: Path) -> None:
    """Raise DataError when there are losses."""
    if losses:
        raise DataError(
            f"the repair would lose {'; '.join(losses)}. Nothing was written to {out}: look at what `leanmask check` "
            "says without --fix, or repair all the same with --fix --drop"
        )


def _losses(copy: Copy) -> Iterator[str]:
    where = f"of split '{copy.split.name}'"
    removed = sum(after is None for _, after in copy.outcomes)
    if removed > MOST_LOST * len(copy.outcomes):
        yield f"{removed} of {len(copy.outcomes)} annotations {where}"
    for kind, keys in KINDS.items():
        had = [after for before, after in copy.outcomes if _has(before, keys)]
        gone = sum(after is None or not _has(after, keys) for after in had)
        if gone > MOST_LOST * len(had):
            yield f"{'all' if gone == len(had) else f'{gone} of'} {len(had)} {kind} {where}"
    had_class = Counter(hashable(before.get("category_id")) for before, _ in copy.outcomes)
    kept_class = Counter(hashable(before.get("category_id")) for before, after in copy.outcomes if after is not None)
    for row in copy.split.categories:
        number = hashable(row.get("id"))
        if had_class[number] and not kept_class[number]:
            yield f"all {had_class[number]} annotations of class '{row.get('name')}' {where}"


def _has(row: Row, keys: Sequence[str]) -> bool:
    return any(row.get(key) for key in keys)
