"""A validation split out of the labelled training images: a fixed share by the hash of names, with pictures that are
nearly the same on one side.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.data.annotation import Row
from leanmask.data.hashed import in_share
from leanmask.data.near_duplicates import MOST_PATCHED_IMAGES, group_near_duplicates
from leanmask.errors import ConfigError, DataError
from leanmask.paths import image_path

SHOWN = 5
FAR = 1.5  # times the share that was asked for, or one over it: then it is said


@dataclass(frozen=True)
class HeldOut:
    """The rows of both sides. notes: what is unusual about them, in sentences."""

    train_images: list[Row]
    val_images: list[Row]
    train: list[Row]
    val: list[Row]
    notes: tuple[str, ...]


def hold_out(
    content: dict[str, Any],
    folder: Path,
    share: float,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> HeldOut:
    """Put about `share` (a fraction between 0 and 1) of the labelled images of a COCO file's content aside, groups of
    near-duplicates as a whole, and at least one group on each side. The same images stay in it whatever others come; a
    larger share has all that a smaller one has. Images that are not annotated exhaustively stay in training, unless one
    that is nearly the same is put aside.

    folder: where the images are. seed: another one gives another share. Raises ConfigError for a share that cannot be,
    DataError when there are not two groups of labelled images.
    """
    if not 0 < share < 1:
        raise ConfigError(f"val is {share:g}; a share above 0 and below 1, such as 0.2 or 20%, is put aside")
    images: list[Row] = content["images"]
    rows: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    groups = group_near_duplicates([image_path(folder, image["file_name"]) for image in images], on_progress)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups.labels.tolist()):
        members[group].append(place)
    labelled = {place for place, image in enumerate(images) if _measurable(image, rows[image["id"]])}
    keys = {
        group: _key(min(str(images[place]["file_name"]) for place in places), seed)
        for group, places in members.items()
        if labelled.intersection(places)
    }
    if len(keys) < 2:
        raise DataError(
            f"nothing can be put aside: {len(labelled)} of {len(images)} images are annotated exhaustively, and those "
            f"that are nearly the same count as one, which makes {len(keys)}; each side needs one"
        )
    chosen, taken = _choose(keys, share)
    aside = {place for group in chosen for place in members[group]}
    val_images = [image for place, image in enumerate(images) if place in aside]
    train_images = [image for place, image in enumerate(images) if place not in aside]
    train, val = ([row for image in part for row in rows[image["id"]]] for part in (train_images, val_images))
    notes = list(_group_notes(members))
    if taken != share:
        notes.append(f"the share was taken as {taken:.0%}, so that each side has an image")
    elif not 1 / FAR <= (reached := len(aside & labelled) / len(labelled)) / share <= FAR:
        notes.append(
            f"val has {reached:.0%} of the labelled images, where {share:.0%} was asked for: groups stay whole"
        )
    if not groups.by_parts:
        notes.append(
            f"more than {MOST_PATCHED_IMAGES} images: only whole pictures and names were compared, so tiles that "
            "overlap may be on both sides"
        )
    if groups.unreadable:
        listed = ", ".join(str(path) for path in groups.unreadable[:SHOWN])
        notes.append(f"{len(groups.unreadable)} images cannot be read and were compared with none: {listed}")
    names = {row["id"]: str(row["name"]) for row in content["categories"]}
    notes += _class_notes(names, train, val)
    return HeldOut(train_images, val_images, train, val, tuple(notes))


def _measurable(image: Row, rows: Sequence[Row]) -> bool:
    """Whether all that is on an image is annotated, so that a network can be measured on it."""
    return image.get("exhaustive") is True or (bool(rows) and image.get("exhaustive") is not False)


def _key(name: str, seed: int) -> str:
    return name if seed == 0 else f"{seed}:{name}"


def _choose(keys: dict[int, str], share: float) -> tuple[list[int], float]:
    """The groups in the share, which grows or shrinks until each side has one; and that share."""

    def inside(taken: float) -> list[int]:
        return [group for group, key in keys.items() if in_share(key, taken)]

    found = inside(share)
    if 0 < len(found) < len(keys):
        return found, share
    low, high = (share, 1.0) if not found else (0.0, share)
    for _ in range(60):  # to where the first group comes in, or the last one goes out
        middle = (low + high) / 2
        enough = bool(inside(middle)) if not found else len(inside(middle)) == len(keys)
        low, high = (low, middle) if enough else (middle, high)
    taken = low if found else high
    return inside(taken), taken


def _group_notes(members: dict[int, list[int]]) -> Sequence[str]:
    several = [places for places in members.values() if len(places) > 1]
    if not several:
        return ()
    total = sum(map(len, several))
    return (
        f"{total} images are nearly the same as others ({len(several)} groups); each group is on one side as a whole",
    )


def _class_notes(names: dict[int, str], train: Sequence[Row], val: Sequence[Row]) -> list[str]:
    """Classes that have objects on one side alone, or on none."""
    counts = [Counter(row["category_id"] for row in part if not row.get("iscrowd")) for part in (train, val)]
    notes = []
    for mine, other, where in (
        (counts[0], counts[1], "in train: not learned"),
        (counts[1], counts[0], "in val: nothing is measured of it"),
    ):
        lacking = [name for key, name in names.items() if other[key] and not mine[key]]
        notes += [f"no object of {_listed(lacking)} {where}"] if lacking else []
    empty = [name for key, name in names.items() if not counts[0][key] and not counts[1][key]]
    return [*notes, *([f"no object at all of {_listed(empty)}"] if empty else [])]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more
