"""What the labels of a data set have cost, what labelling all of it costs under each scheme, and what hours buy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.annotate.labels import labelling_folder, refresh_labels
from leanmask.annotate.photos import photo_files
from leanmask.annotate.tasks import is_predicted
from leanmask.costs import LabelCosts
from leanmask.data.annotation import Row, is_rejected
from leanmask.data.coco import AnnotationStore, Census
from leanmask.data.grouping import file_pack
from leanmask.data.layout import ALL_LABELS, SplitFiles, labelled_data, locate, photo_folder
from leanmask.data.withholding.withhold import row_seconds
from leanmask.errors import ConfigError, DataError, counted, suggest
from leanmask.labels.budget import SCHEMES, Counts, Price, Purchase, buy, buy_boxes_then_masks, price, seconds_of
from leanmask.options import require_kind, require_options
from leanmask.reports.layout import NOTHING, Table, count, render_markdown
from leanmask.supervision import Supervision

ALL_IMAGES = "all images"


@dataclass(frozen=True)
class Budget:
    """The result of `budget`. paid_seconds: for what a person has made of every annotation of the split, see
    `paid_seconds`. objects: that the split has, None when nobody knows; `prices` and `purchases` are empty then.
    hours: what `purchases` spend.
    split: ALL_IMAGES for a folder of images alone. notes: sentences about what has changed in such a folder.
    """

    data: str
    split: str
    census: Census
    costs: LabelCosts
    paid_seconds: float
    objects: int | None
    prices: tuple[Price, ...]
    hours: float | None
    purchases: tuple[Purchase, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "split": self.split,
            "census": self.census.to_json(),
            "costs": dataclasses.asdict(self.costs),
            "paid_seconds": self.paid_seconds,
            "objects": self.objects,
            "prices": [found.to_json() for found in self.prices],
            "hours": self.hours,
            "purchases": [found.to_json() for found in self.purchases],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """The summary, and the tables in Markdown."""
        return "\n\n".join([self.summary(), *(render_markdown(table).strip() for table in self.tables())])

    def summary(self) -> str:
        """What is labelled, what that has cost, and whether the number of objects is known."""
        paid = self.paid_seconds / 3600
        lines = [
            *self.notes,
            f"{self.split}: {self.census.to_text()}",
            f"Paid for so far: {paid:,.2f} hours ({paid / 24:,.2f} days of 24 hours).",
        ]
        if self.objects is None:
            partial, known = self.census.images - self.census.exhaustive_images, _known(self.census)
            lines.append(
                f"The number of objects is unknown: {partial:,} of {self.census.images:,} images are not said to be "
                "annotated exhaustively. Say it with --objects-per-image, or for all images together with --objects: "
                f"{known} if there is nothing but what is annotated."
            )
        return "\n".join(lines)

    def tables(self) -> list[Table]:
        """Prices and, where hours were given, purchases; where the number of objects is unknown, prices of one."""
        if self.objects is None:
            return [_object_table(self)]
        tables = [_price_table(self)]
        return tables if self.hours is None else [*tables, _purchase_table(self.purchases, self.hours)]


def budget(
    data: str | Path,
    *,
    hours: float | None = None,
    costs: LabelCosts = LabelCosts(),
    split: str | None = None,
    objects: int | None = None,
    objects_per_image: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Budget:
    """Price the labels of a split: those that are there, and those of every object under each scheme, from nothing.

    data: also a folder of images alone, of which nothing or some is labelled. hours: also say what these buy. split:
    None = "train"; of a folder of images alone, all of them. objects: how many the split has, annotated or not, or
    objects_per_image: so many on average; one of them is needed where images are not annotated exhaustively, because
    nobody knows then, and nothing is estimated. on_progress: called with images done and in all. Raises DataError when
    the data cannot be used or has more objects than were said, ConfigError for hours, objects or costs that cannot be.
    """
    require_options(costs, LabelCosts)
    require_kind("objects", objects, int | None)
    require_kind("objects_per_image", objects_per_image, float | None)
    if hours is not None:
        seconds_of(hours)  # bad ones are refused before anything is read
    if objects is not None and objects_per_image is not None:
        raise ConfigError(
            f"{counted(objects, 'object')} and {objects_per_image:g} per image are both said; give one of them"
        )
    if objects_per_image is not None and not 0 <= objects_per_image < math.inf:
        raise ConfigError(f"objects per image is {objects_per_image}; allowed: 0 or more")
    notes = refresh_labels(data)
    photos = photo_folder(data)
    if photos is not None and split is None:
        annotations, census, split = *_photo_labels(data, photos), ALL_IMAGES
    else:
        split = split or "train"
        files = _files(data, split)
        annotations = files.annotations
        # An image that nothing is said about may hold anything, as if nobody had looked.
        census = AnnotationStore.open(annotations, files.images, unannotated="unlabelled").census()
    said = objects if objects_per_image is None else round(objects_per_image * census.images)
    total = _total(census, said, f"split '{split}' of {data}" if split != ALL_IMAGES else str(data))
    prices: tuple[Price, ...] = ()
    purchases: tuple[Purchase, ...] = ()
    if total is not None:
        counts = Counts(total, census.images)
        prices = tuple(price(scheme, counts, costs) for scheme in SCHEMES)
        purchases = () if hours is None else _purchases(counts, costs, hours)
    paid = _paid(annotations, costs, on_progress)
    return Budget(str(data), split, census, costs, paid, total, prices, hours, purchases, tuple(notes))


def _photo_labels(data: str | Path, photos: Path) -> tuple[Path | None, Census]:
    """The file of all labels of a folder of images alone, None while there is none, and what is labelled."""
    labels = labelling_folder(labelled_data(data)) / ALL_LABELS
    if labels.is_file():
        return labels, AnnotationStore.open(labels, photos, unannotated="unlabelled").census()
    images = len(photo_files(photos))
    return None, Census(images, 0, images, 0, {kind.name.lower(): 0 for kind in Supervision}, {}, 0)


def _files(data: str | Path, split: str) -> SplitFiles:
    splits = locate(data)
    if split not in splits:
        raise DataError(f"{data} has no split '{split}'{suggest(split, splits)}")
    return splits[split]


def _known(census: Census) -> int:
    return sum(census.objects.values())


def _total(census: Census, objects: int | None, where: str) -> int | None:
    """The number of objects, None when it is unknown. Raises DataError when the data has more than were said."""
    known = _known(census)
    if objects is None:
        return known if census.exhaustive_images == census.images else None
    if objects < known:
        raise DataError(f"{where} has {counted(known, 'annotated object')}, more than the {objects} said to be all")
    return objects


def _purchases(counts: Counts, costs: LabelCosts, hours: float) -> tuple[Purchase, ...]:
    return (*(buy(scheme, counts, costs, hours) for scheme in SCHEMES), buy_boxes_then_masks(counts, costs, hours))


def paid_seconds(row: Row, costs: LabelCosts) -> float:
    """What a person has made of a row. Nobody drew the mask of a pseudo-label, also of an accepted one: a box, a point
    or classified points that it was made from are paid. A decision of a review has no price, nor has what it rejected.
    """
    if is_rejected(row):
        return 0.0
    before = (row.get("review") or {}).get("before")
    if not is_predicted(row if before is None else {**row, "provenance": before.get("provenance")}):
        return row_seconds(row, costs)
    drawn = {key: value for key, value in row.items() if key != "segmentation"}
    if "class_quality" in row:  # a network found the object
        if not row.get("point_coords"):
            return 0.0
        drawn = {key: row[key] for key in ("point_coords", "point_labels")}
    elif row.get("point"):
        drawn.pop("bbox", None)  # of the mask
    return row_seconds(drawn, costs)


def _paid(annotations: Path | None, costs: LabelCosts, on_progress: Callable[[int, int], None] | None) -> float:
    # The census does not count points, so the rows are read, an image at a time.
    if annotations is None:
        return 0.0
    pack, seconds = file_pack(annotations, False), 0.0
    for index in range(len(pack)):
        seconds += sum(paid_seconds(row, costs) for row in pack[index]["annotations"])
        if on_progress:
            on_progress(index + 1, len(pack))
    return seconds


def _prices_note(costs: LabelCosts) -> str:
    return (
        f"Seconds per object: {costs.spotting_seconds:g} to find and name it, then {costs.mask_seconds:g} for a mask "
        f"(its box follows), {costs.box_seconds:g} for a box, {costs.point_seconds:g} for a point."
    )


def _object_table(told: Budget) -> Table:
    headers, rows = ["scheme", "s per object"], []
    if told.hours is not None:
        headers.append(f"objects in {counted(told.hours, 'hour')}")
    for scheme in SCHEMES:
        each = scheme.object_seconds(told.costs)
        row = [scheme.name, f"{each:.1f}"]
        if told.hours is not None:
            row.append(count(math.floor(seconds_of(told.hours) / each)) if each else NOTHING)
        rows.append(row)
    return Table("What labelling an object costs, on average", tuple(headers), rows, note=_prices_note(told.costs))


def _price_table(told: Budget) -> Table:
    objects, costs = told.objects or 0, told.costs
    rows = [
        [
            found.scheme,
            *(count(number) for number in (found.masks, found.boxes, found.points)),
            f"{found.seconds / objects:.1f}" if objects else NOTHING,
            *(f"{number:,.2f}" for number in (found.hours, found.days)),
            NOTHING if found.units is None else f"{found.units:,.2f}",
        ]
        for found in told.prices
    ]
    note = f"{_prices_note(costs)} Days of 24 hours. Units are MaskBooster's."
    headers = ("scheme", "masks", "boxes", "points", "s per object", "hours", "days", "units")
    title = f"What labelling all {counted(objects, 'object')} of {told.split} costs, from nothing"
    return Table(title, headers, rows, note=note)


def _purchase_table(purchases: tuple[Purchase, ...], hours: float) -> Table:
    rows = [
        [
            found.scheme,
            count(found.objects),
            f"{100 * found.share:.1f} %",
            count(found.images),
            count(found.masks),
            f"{found.seconds / 3600:,.2f}",
        ]
        for found in purchases
    ]
    note = (
        "Images: fully labelled ones, if each holds as many objects as the average. sparse: boxes for all objects "
        "first, then as many masks as the hours allow."
    )
    headers = ("scheme", "objects", "of all", "images", "of them masks", "hours spent")
    return Table(f"What {counted(hours, 'hour')} of work can buy, from nothing", headers, rows, note=note)
