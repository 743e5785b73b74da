"""Answers to COCO: the file that `leanmask train` reads. The same answers always give the same bytes; nothing that a
person was unsure about becomes a label, and the user's own files are only read.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.annotate.source import Source, Thing
from leanmask.annotate.store import FINISHED, Answer
from leanmask.annotate.tasks import drawn_things, pixels_of
from leanmask.data.annotation import Row, segmentation_of
from leanmask.data.hashed import in_share
from leanmask.data.withholding.clicks import innermost_pixel, rle_of
from leanmask.errors import DataError
from leanmask.paths import image_path

LABELS = {"object": 1, "background": 0}
OF_MASK = ("segmentation", "area", "score", "class_quality", "mask_quality", "provenance")  # of a pseudo-mask
OF_PERSON = ("bbox", "point", "point_coords")  # what makes a pseudo-mask one of an object that a person labelled


@dataclass(frozen=True)
class Exported:
    """What an export holds. images, objects: of all that the file lists, with what reviews have brought in. disputed:
    points left out because as many people said object as background. unsure: answers that are no label. decisions: of a
    review, by what was decided.
    """

    images: int
    objects: int
    pointed_objects: int
    points: int
    boxes: int
    unsure: int
    disputed: int
    decisions: Mapping[str, int]

    def to_text(self) -> str:
        """One sentence."""
        if self.decisions:
            told = ", ".join(f"{count} {value.replace('_', ' ')}" for value, count in sorted(self.decisions.items()))
            return f"{self.objects} objects on {self.images} images; decided: {told}"
        parts = [f"{self.points} points on {self.pointed_objects} objects"] if self.points else []
        parts += [f"{self.boxes} boxes drawn"] if self.boxes else []
        parts += [f"{self.unsure} unsure and left out"] if self.unsure else []
        parts += [f"{self.disputed} disputed and left out"] if self.disputed else []
        return "; ".join([*filter(None, [", ".join(parts)]), f"{self.objects} objects on {self.images} images in all"])


def export_labels(source: Source, answers: Sequence[Answer], seed: int) -> tuple[dict[str, Any], Exported]:
    """The source with what people drew and pointed at, as a COCO file's content.

    Objects get `point_coords`, `point_labels` and, in the same order, `point_provenance` (who, when, seconds); drawn
    boxes become annotations with `box_provenance`. Where people disagree about a point the majority counts. seed: that
    the points were drawn with.
    """
    drawn = [thing for thing in drawn_things(source, answers) if thing.picture not in source.gone]
    by_object = _by_object(answer for answer in answers if answer.kind == "points" and answer.position >= 0)
    counts: Counter[str] = Counter()
    rows = [_pointed(source, thing, thing.row, by_object.get(thing.id, ()), (seed, counts)) for thing in source.things]
    for thing in drawn:
        row = _drawn_row(source, thing)
        rows.append(_pointed(source, thing, row, by_object.get(thing.id, ()), (seed, counts)))
    content = {**source.content, "images": _images(source, answers), "annotations": rows}
    content["categories"] = [{"id": key, "name": name} for key, name in source.categories.items()]
    found = Exported(
        images=len(content["images"]),
        objects=len(rows),
        pointed_objects=counts["objects"],
        points=counts["points"],
        boxes=len(drawn),
        unsure=sum(answer.value == "unsure" for answer in answers),
        disputed=counts["disputed"],
        decisions={},
    )
    return content, found


def _by_object(answers: Iterable[Answer]) -> dict[int, list[Answer]]:
    found: defaultdict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.target].append(answer)
    return found


def _pointed(source: Source, thing: Thing, row: Row, answers: Sequence[Answer], told: tuple[int, Counter[str]]) -> Row:
    """A row with the points that people classified."""
    seed, counts = told
    votes: defaultdict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.value in LABELS:
            votes[answer.position].append(answer)
    if not votes or thing.box_xywh is None:
        return row
    pixels = pixels_of(thing, source.size_of(thing.picture), seed, max(votes) + 1)
    coords, labels = (list(row.get(key) or ()) for key in ("point_coords", "point_labels"))
    provenance = list(row.get("point_provenance") or [None] * len(coords))  # of another tool's points nobody told it
    for position in sorted(votes):
        given = Counter(answer.value for answer in votes[position])
        if given["object"] == given["background"]:
            counts["disputed"] += 1
            continue
        (value, _), *_ = given.most_common()
        first = next(answer for answer in votes[position] if answer.value == value)
        coords.append(pixels[position])
        labels.append(LABELS[value])
        provenance.append(first.provenance())
    if not coords:
        return row
    counts["objects"] += 1
    counts["points"] += len(coords)
    return {**row, "point_coords": coords, "point_labels": labels, "point_provenance": provenance}


def _drawn_row(source: Source, thing: Thing) -> Row:
    assert thing.box_xywh is not None, "a drawn object is its box"
    x, y, w, h = thing.box_xywh
    image_id = source.pictures[thing.picture].id
    about = {"id": thing.id, "image_id": image_id, "category_id": thing.category_id}
    return {**about, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "provenance": "human", **thing.row}


def _images(source: Source, answers: Sequence[Answer]) -> list[Row]:
    """The images, with what people said about them. What nobody finished of a plain folder stays unlabelled."""
    finished: dict[int, bool] = {}
    for answer in answers:
        if answer.kind == "boxes" and answer.value == FINISHED:
            finished.setdefault(answer.target, bool((answer.detail or {}).get("exhaustive", False)))
    if not source.plain:
        rows = source.content["images"]
        return [{**row, "exhaustive": finished[n]} if n in finished else row for n, row in enumerate(rows)]
    rows = []
    for number, picture in enumerate(source.pictures):
        if number in source.gone:
            continue
        try:
            height, width = source.size_of(number)
        except DataError:
            continue  # a file that is no picture cannot have been labelled
        name = picture.path.relative_to(source.images).as_posix()
        row = {"id": picture.id, "file_name": name, "width": width, "height": height}
        rows.append({**row, "exhaustive": finished.get(number, False)})
    return rows


def export_review(source: Source, answers: Sequence[Answer]) -> tuple[dict[str, Any], Exported]:
    """A file of pseudo-labels with what people decided, each decision in `review`.

    Accepted and re-classified ones count fully (weight 1) and are a person's from then on; `review.before` keeps where
    they are from. Rejected ones, and those of a wrong class that nobody corrected, get weight 0: training leaves the
    place alone, as object and as background. Where the mask cuts off, the class and one point inside the mask are kept.
    Of an object with classified points, which a person made, only the mask goes in either case. What was not decided
    stays as it was.
    """
    decided = {answer.target: answer for answer in answers if answer.kind == "review" and answer.position >= 0}
    rows = [_reviewed(source, thing, decided.get(thing.id)) for thing in source.things]
    content = {**source.content, "annotations": rows}
    content["categories"] = [{"id": key, "name": name} for key, name in source.categories.items()]
    decisions = Counter(answer.value for answer in decided.values())
    unsure = decisions["unsure"]
    return content, Exported(len(content["images"]), len(rows), 0, 0, 0, unsure, 0, dict(decisions))


def _reviewed(source: Source, thing: Thing, answer: Answer | None) -> Row:
    row = thing.row
    if answer is None or answer.value not in ("accept", "reject", "wrong_class", "cuts_off"):
        return row
    review = {"decision": answer.value, **answer.provenance()}
    corrected = (answer.detail or {}).get("category_id")
    before = {"provenance": row["provenance"]} if "provenance" in row else {}
    own = {"weight": 1.0, "provenance": "human"}
    if answer.value == "accept":
        return {**row, **own, "review": {**review, "before": before}}
    if answer.value == "wrong_class" and corrected is not None:
        before["category_id"] = row["category_id"]
        return {**row, **own, "category_id": corrected, "review": {**review, "before": before}}
    if row.get("point_coords") and answer.value in ("reject", "cuts_off"):
        return {**{key: value for key, value in row.items() if key not in OF_MASK}, "review": review}
    point = _point_inside(source, thing) if answer.value == "cuts_off" else None
    if point is None:
        return {**row, "weight": 0.0, "review": review}
    kept = {key: value for key, value in row.items() if key not in ("segmentation", "bbox", "area")}
    return {**kept, "point": point, "weight": 1.0, "review": review}


def _point_inside(source: Source, thing: Thing) -> list[float] | None:
    """The centre of the pixel that lies deepest inside a pseudo-mask, where it is most likely right."""
    if segmentation_of(thing.row) is None:
        return None
    found = innermost_pixel(rle_of(thing.row, source.size_of(thing.picture)))
    return None if found is None else (found + 0.5).tolist()


def join(
    train: Mapping[str, Any],
    reviewed: Mapping[str, Any],
    before: Mapping[Any, Row],
    folders: tuple[Path, Path],
    first: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """A training file with reviewed pseudo-labels: new objects are added, under new ids where images are new; an object
    that the training file has, with its id and all that a person said of it, gets its pseudo-mask there, or stays as it
    was where the mask was rejected or cuts off.

    before: the pseudo-labels by id as they were reviewed. folders: of the images of the two files. first: the lowest
    ids that new images and new objects may get. Raises DataError where the files give a class different ids.
    """
    own, other = ({row["name"]: row["id"] for row in content["categories"]} for content in (train, reviewed))
    wrong = [name for name, number in other.items() if own.get(name) != number]
    if wrong:
        raise DataError(f"class '{wrong[0]}' of the pseudo-labels has another id in the training data, or none there")
    place, there = (Path(os.path.realpath(folder)) for folder in folders)
    images, rows = list(train["images"]), list(train["annotations"])
    known = {os.path.realpath(image_path(place, row["file_name"])): row["id"] for row in images}
    free = max((row["id"] for row in images if isinstance(row["id"], int)), default=0)
    free = max(free, first[0] - 1)
    image_ids: dict[Any, Any] = {}
    for image in reviewed["images"]:
        path = os.path.realpath(image_path(there, image["file_name"]))
        if path not in known:
            free += 1
            known[path] = free
            images.append({**image, "id": free, "file_name": Path(os.path.relpath(path, place)).as_posix()})
        image_ids[image["id"]] = known[path]
    places = {row["id"]: position for position, row in enumerate(rows)}
    number = max(max(places, default=0), first[1] - 1)
    for row in reviewed["annotations"]:
        found = {**row, "image_id": image_ids[row["image_id"]]}
        position = places.get(row["id"])
        if position is not None and is_same(rows[position], before[row["id"]], found["image_id"]):
            rows[position] = _decided(rows[position], found)
            continue
        number += 1
        rows.append({**found, "id": number})
    return {**train, "images": images, "annotations": rows}


def is_same(mine: Row, pseudo: Row, image_id: Any) -> bool:
    """Whether a pseudo-label is of an object that the training file has."""
    said = [key for key in OF_PERSON if mine.get(key)]
    return mine["image_id"] == image_id and bool(said) and all(mine[key] == pseudo.get(key) for key in said)


def _decided(mine: Row, reviewed: Row) -> Row:
    refused = reviewed.get("review", {}).get("decision") in ("reject", "cuts_off")
    return {**mine, "review": reviewed["review"]} if refused else reviewed


def by_split(
    content: Mapping[str, Any], known: Mapping[Any, str], share: float
) -> tuple[dict[str, dict[str, Any]], dict[Any, str], list[str]]:
    """A labelled folder of images as splits, the split of every image id, and sentences about what is not as usual.

    known: the splits of images that have one; "train" and "val" are for ever. Of the others, those with labels come
    into one: an image whose objects are all labelled into "val" when its name is in the fixed `share` (0-1) of names,
    and into "train" else; an image where something may be missing into "train", because nothing can be measured on it.
    What nobody has labelled is "unlabelled". An image stays in "train" when a class, or every image, would be missing
    there without it. A split without images is left out.
    """
    classes: defaultdict[Any, set[int]] = defaultdict(set)
    for row in content["annotations"]:
        if row.get("weight", 1.0) > 0:  # a rejected pseudo-label alone is no label
            classes[row["image_id"]].add(row["category_id"])
    splits: dict[Any, str] = {}
    waiting = []
    for image in content["images"]:
        before = known.get(image["id"], "")
        labelled = image["id"] in classes or bool(image.get("exhaustive"))
        if before == "val" or (before == "train" and labelled):
            splits[image["id"]] = before
        elif not labelled:
            splits[image["id"]] = "unlabelled"
        elif image.get("exhaustive") and not before and in_share(image["file_name"], share):
            waiting.append(image)
        else:
            splits[image["id"]] = "train"
    trained = [number for number, split in splits.items() if split == "train"]
    covered: set[int] = set().union(*(classes[number] for number in trained))
    names = {row["id"]: row["name"] for row in content["categories"]}
    notes = []
    for image in waiting:
        missing = sorted(names[number] for number in classes[image["id"]] - covered)
        if not missing and trained:
            splits[image["id"]] = "val"
            continue
        splits[image["id"]] = "train"
        trained.append(image["id"])
        covered |= classes[image["id"]]
        why = f"has the only objects of {', '.join(missing)}" if missing else "is the only one with labels"
        notes.append(f"{image['file_name']} would be for validation, but {why} and is trained on")
    parts = {name: _part(content, {n for n in splits if splits[n] == name}) for name in sorted(set(splits.values()))}
    if "unlabelled" in parts:
        parts["unlabelled"]["annotations"] = []
    return parts, splits, notes


def _part(content: Mapping[str, Any], kept: Set[Any]) -> dict[str, Any]:
    images = [dict(row) for row in content["images"] if row["id"] in kept]
    return {**content, "images": images, "annotations": [r for r in content["annotations"] if r["image_id"] in kept]}
