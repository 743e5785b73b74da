"""What labels cost: the published totals, purchases that never overspend, and data sets of every kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotate_helpers import write_photos
from coco_helpers import CATEGORIES, SQUARE, image, row
from hypothesis import given
from hypothesis import strategies as st
from run_helpers import Outcome

import leanmask as api
from leanmask.annotate.store import Answer
from leanmask.annotate.work import AnnotateOptions, Work
from leanmask.costs import COCO_SPOTTING_SECONDS, LabelCosts
from leanmask.data.splits import split
from leanmask.data.withholding.chance import count_of
from leanmask.data.withholding.withhold import row_seconds
from leanmask.errors import ConfigError, DataError
from leanmask.labels.budget import SCHEMES, Counts, Scheme, budget_units, buy, buy_boxes_then_masks, price
from leanmask.spending import paid_seconds

COCO = Counts(objects=849_949, images=118_287)
ON_COCO = LabelCosts(spotting_seconds=COCO_SPOTTING_SECONDS)
BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
BOX = [10.0, 10.0, 20.0, 15.0]

costs_of_any_kind = st.builds(
    lambda box, more, point, spotting: LabelCosts(box + more, box, point, spotting),
    *(st.floats(0, 100) for _ in range(4)),
)
counts_of_any_size = st.builds(Counts, objects=st.integers(0, 10**6), images=st.integers(0, 10**6))


def write_data(folder: Path, rows: list[dict[str, Any]], images: list[dict[str, Any]]) -> Path:
    """A data set with a train split; no image is opened."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": rows, "categories": CATEGORIES}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


MIXED = [
    row(1, bbox=BOX, segmentation=SQUARE),
    row(2, segmentation=SQUARE),
    row(3, bbox=BOX),
    row(4, bbox=BOX, point_coords=[[11, 11], [12, 12], [29, 24]], point_labels=[1, 1, 0]),
    row(5, point=[12.5, 12.5]),
    row(6),
    row(7, bbox=BOX, segmentation=SQUARE, iscrowd=1),
]
MIXED_SECONDS = 2 * 79.2 + 7 + (7 + 3 * 0.9) + 0.9


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Every kind of label on one image, and an image that holds nothing."""
    return write_data(tmp_path / "mixed", MIXED, [image(1), image(2, exhaustive=True)])


@pytest.fixture
def open_ended(tmp_path: Path) -> Path:
    """One image with a mask, two without any annotation: one said to be unlabelled, nothing said of the other."""
    return write_data(tmp_path / "open", MIXED[:1], [image(1), image(2, exhaustive=False), image(3)])


@pytest.mark.parametrize(("scheme", "days"), [("boxes", 493), ("points-10", 582), ("full", 1204)])
def test_published_days_of_coco(scheme: str, days: int) -> None:
    assert math.floor(price(BY_NAME[scheme], COCO, ON_COCO).days) == days


@pytest.mark.parametrize(("fraction", "units"), [(0.001, 7.9), (0.01, 8.7), (0.1, 16.4), (1.0, 93.8)])
def test_published_units_of_maskbooster(fraction: float, units: float) -> None:
    assert round(budget_units(round(fraction * 860_000), 860_000), 1) == units
    scheme = Scheme("sparse", mask_fraction=fraction, box=True)
    assert price(scheme, Counts(860_000, 118_287), LabelCosts()).units == budget_units(scheme.masks(860_000), 860_000)


def test_units_do_not_price_points() -> None:
    assert {scheme.name for scheme in SCHEMES if price(scheme, COCO, ON_COCO).units is None} == {
        *("points-1", "points-5", "points-10", "points-20", "point")
    }


@pytest.mark.parametrize(
    ("labels", "seconds"),
    [
        ({"mask": True}, 79.2),
        ({"mask": True, "box": True, "points": 4}, 79.2),
        ({"box": True}, 7.0),
        ({"box": True, "points": 10}, 16.0),
        ({"points": 1}, 0.9),
        ({}, 0.0),
    ],
)
def test_price_of_one_object(labels: dict[str, Any], seconds: float) -> None:
    assert LabelCosts().object_seconds(**labels) == pytest.approx(seconds)
    assert ON_COCO.object_seconds(**labels) == pytest.approx(seconds + 43.2)
    assert ON_COCO.object_seconds(**labels, crowd=True) == 0


def test_price_of_a_row() -> None:
    assert sum(map(row_seconds, MIXED)) == pytest.approx(MIXED_SECONDS)
    assert sum(row_seconds(found, ON_COCO) for found in MIXED) == pytest.approx(MIXED_SECONDS + 6 * 43.2)


@given(counts_of_any_size, costs_of_any_kind, st.floats(0, 1e6))
def test_a_purchase_never_overspends(counts: Counts, costs: LabelCosts, hours: float) -> None:
    for scheme in SCHEMES:
        bought = buy(scheme, counts, costs, hours)
        assert bought.seconds == scheme.seconds(bought.objects, costs) <= hours * 3600
        assert 0 <= bought.masks <= bought.objects <= counts.objects
        assert bought.images <= counts.images
        if bought.objects < counts.objects:  # one more would have been too much
            assert scheme.seconds(bought.objects + 1, costs) > hours * 3600
    bought = buy_boxes_then_masks(counts, costs, hours)
    assert bought.seconds <= hours * 3600
    assert bought.objects == buy(BY_NAME["boxes"], counts, costs, hours).objects
    assert bought.masks == 0 or bought.objects == counts.objects


@given(counts_of_any_size, costs_of_any_kind, st.sampled_from(SCHEMES))
def test_the_price_of_everything_buys_everything(counts: Counts, costs: LabelCosts, scheme: Scheme) -> None:
    hours = math.nextafter(price(scheme, counts, costs).hours * (1 + 1e-12), math.inf)
    bought = buy(scheme, counts, costs, hours)
    assert bought.objects == counts.objects
    assert bought.share == 1
    assert bought.images == counts.images


@given(st.integers(0, 10**7), st.floats(0, 1))
def test_masks_are_counted_as_split_counts_them(objects: int, fraction: float) -> None:
    assert Scheme("sparse", mask_fraction=fraction, box=True).masks(objects) == count_of(fraction, objects)


def test_masks_after_all_boxes() -> None:
    counts, costs = Counts(1000, 100), LabelCosts()
    boxes_hours = 7000 / 3600
    assert buy_boxes_then_masks(counts, costs, boxes_hours / 2).objects == 500
    assert buy_boxes_then_masks(counts, costs, boxes_hours / 2).masks == 0
    ten = buy_boxes_then_masks(counts, costs, (7000 + 10 * 72.2 + 1) / 3600)
    assert (ten.objects, ten.masks) == (1000, 10)
    assert ten.seconds == pytest.approx(Scheme("sparse", mask_fraction=0.01, box=True).seconds(1000, costs))
    assert buy_boxes_then_masks(counts, costs, 1e6).masks == 1000


def test_nothing_costs_nothing() -> None:
    empty = Counts(0, 0)
    for scheme in SCHEMES:
        assert price(scheme, empty, ON_COCO).seconds == 0
        assert buy(scheme, empty, ON_COCO, 5).objects == 0
        assert buy(scheme, COCO, ON_COCO, 0).objects == 0
        assert buy(scheme, COCO, LabelCosts(0, 0, 0), 0).objects == COCO.objects
    assert buy_boxes_then_masks(empty, ON_COCO, 5).seconds == 0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_values(value: float, mixed: Path) -> None:
    for name in ("mask_seconds", "box_seconds", "point_seconds", "spotting_seconds"):
        with pytest.raises(ConfigError, match=name):
            LabelCosts(**{name: value})
    with pytest.raises(ConfigError, match="hours"):
        buy(SCHEMES[0], COCO, ON_COCO, value)
    with pytest.raises(ConfigError, match="hours"):
        api.budget(mixed, hours=value)


def test_a_box_is_no_dearer_than_a_mask() -> None:
    with pytest.raises(ConfigError, match="follows from it"):
        LabelCosts(mask_seconds=5)
    assert LabelCosts(mask_seconds=5, box_seconds=5).object_seconds(mask=True) == 5


@pytest.mark.parametrize("counts", [(-1, 5), (5, -1), (10**15, 5)])
def test_bad_counts(counts: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="number of"):
        Counts(*counts)


def test_mixed_labels_are_paid_by_kind(mixed: Path) -> None:
    told = api.budget(mixed, hours=1)
    assert told.paid_seconds == pytest.approx(MIXED_SECONDS)
    assert told.census.objects == {"mask": 2, "points": 1, "box": 1, "point": 1, "none": 1}
    assert told.objects == 6
    assert {found.scheme: found.seconds for found in told.prices}["full"] == pytest.approx(6 * 79.2)
    assert [found.scheme for found in told.purchases] == [*BY_NAME, "sparse"]
    content = json.loads(json.dumps(told.to_json(), allow_nan=False))
    assert content["prices"][0]["days"] == pytest.approx(6 * 79.2 / 86400)
    assert content["costs"]["spotting_seconds"] == 0


@pytest.mark.parametrize("protocol", ["full", "sparse-10", "points-5", "boxes"])
def test_a_split_costs_what_its_scheme_costs(digits: Path, tmp_path: Path, protocol: str) -> None:
    summary = split(digits, tmp_path / "out", protocol)
    told = api.budget(tmp_path / "out")
    expected = {found.scheme: found.seconds for found in told.prices}[protocol]
    assert told.paid_seconds == pytest.approx(expected)
    assert summary.seconds == pytest.approx(expected, abs=0.1)


def test_unknown_objects_are_not_estimated(open_ended: Path) -> None:
    told = api.budget(open_ended, hours=40)
    assert told.objects is None
    assert told.paid_seconds == pytest.approx(79.2)
    assert told.prices == told.purchases == ()
    assert "unknown: 2 of 3 images" in told.to_text()
    text = told.to_text()
    assert "What labelling an object costs" in text
    assert "objects in 40 hours" in text
    assert f"{40 * 3600 // 7}".replace("20571", "20,571") in text, "boxes"
    known = api.budget(open_ended, hours=40, objects=100)
    assert known.prices[0].masks == 100
    assert "What 40 hours of work can buy" in known.to_text()
    with pytest.raises(DataError, match="1 annotated object, more than the 0"):
        api.budget(open_ended, objects=0)


def test_images_alone(tmp_path: Path) -> None:
    write_data(tmp_path / "bare", [], [image(1, exhaustive=False)])
    told = api.budget(tmp_path / "bare")
    assert (told.paid_seconds, told.objects) == (0, None)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "data.yaml").write_text("splits: {train: {images: photos}}")
    told = api.budget(tmp_path / "data.yaml", objects=12)
    assert (told.paid_seconds, told.objects, told.prices[0].masks) == (0, 12, 12)


def test_a_folder_of_photographs_before_and_after_anything_is_labelled(
    leanmask: Callable[..., Outcome], tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", count=8)
    told = api.budget(photos)
    assert (told.split, told.census.images, told.objects, told.paid_seconds) == ("all images", 8, None, 0)
    assert "objects by label: none" in told.to_text()
    for option in ("--objects-per-image", "--objects:"):
        assert option in told.summary()
    assert "=" not in told.summary(), "no Python on the command line"
    shown = leanmask("budget", photos, "--hours", 1)
    assert "objects in 1 hour" in " ".join(shown.out.split())
    assert "1 hours" not in shown.out
    told = api.budget(photos, hours=1, objects_per_image=2.5)
    assert told.objects == 20
    assert {each.scheme: each.masks for each in told.prices}["full"] == 20
    assert told == api.budget(photos, hours=1, objects=20)
    shown = leanmask("budget", photos, "--objects-per-image", 2.5, "--hours", 1)
    assert shown.code == 0
    assert "What labelling all 20 objects of all images costs" in " ".join(shown.out.split())
    assert not (photos / "labelling").exists()
    work = Work.open(photos, AnnotateOptions(boxes=True, classes=("cat",)))
    for position in range(3):
        detail = {"box": [1.0, 2.0, 30.0, 40.0], "category_id": 1}
        work.store.save(Answer(f"answer-{position}", "boxes", 0, position, "box", "anna", 1.0, detail=detail))
    work.store.save(Answer("answer-9", "boxes", 0, -1, "done", "anna", 1.0, detail={"exhaustive": True}))
    work.close()
    for data in (photos, photos / "labelling"):
        told = api.budget(data, objects_per_image=2)
        assert (told.census.images, told.objects, told.paid_seconds) == (8, 16, 21)
    (photos / "photo0.jpg").unlink()
    told = api.budget(photos, objects_per_image=2)
    assert (told.census.images, told.paid_seconds) == (7, 0)
    assert "photo0.jpg" in told.summary()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--objects", 5, "--objects-per-image", 5], "5 objects and 5 per image are both said; give one of them"),
        (["--objects-per-image", -1], "objects per image is -1.0; allowed: 0 or more"),
        (["--objects-per-image", "nan"], "objects per image is nan"),
        (["--split", "train"], "holds images only: label some"),
    ],
)
def test_mistakes_about_a_folder_of_photographs(
    leanmask: Callable[..., Outcome], tmp_path: Path, options: list[object], says: str
) -> None:
    failed = leanmask("budget", write_photos(tmp_path / "photos", count=1), *options)
    assert failed.code == 2
    assert says in " ".join(failed.err.split())


def test_an_empty_data_set(tmp_path: Path) -> None:
    told = api.budget(write_data(tmp_path / "empty", [], [image(1, exhaustive=True)]), hours=1)
    assert told.objects == 0
    assert all(found.seconds == 0 for found in told.prices)
    assert "What labelling all 0 objects of train costs" in told.to_text()


def test_command_line(leanmask: Callable[..., Outcome], mixed: Path) -> None:
    shown = leanmask("budget", mixed, "--hours", 40, "--spotting", 43.2)
    assert shown.code == 0
    text = " ".join(shown.out.split())
    assert "What labelling all 6 objects of train costs" in text
    assert "What 40 hours of work can buy" in text
    assert "43.2 to find and name" in text
    content = json.loads(leanmask("budget", mixed, "--hours", 40, "--spotting", 43.2, "--json").out)
    assert content == api.budget(mixed, hours=40, costs=ON_COCO).to_json()
    assert "What" not in leanmask("budget", mixed, "--objects", 6).out.replace("What labelling all", "")
    assert "leanmask budget " in leanmask("budget", "--help").out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--hours", -1], "hours is -1.0; allowed: 0 or more"),
        (["--hours", "nan"], "hours is nan"),
        (["--spotting", -1], "spotting_seconds is -1.0"),
        (["--objects", 2], "more than the 2"),
        (["--objects", 10**15], "number of objects"),
        (["--split", "trian"], "did you mean 'train'"),
    ],
)
def test_a_mistake_is_a_sentence(
    leanmask: Callable[..., Outcome], mixed: Path, options: list[object], says: str
) -> None:
    failed = leanmask("budget", mixed, *options)
    assert failed.code == 2
    assert says in " ".join(failed.err.split())
    assert "Traceback" not in failed.err
    assert failed.out == ""


def test_pseudo_labels_are_not_paid_as_drawn_masks(tmp_path: Path) -> None:
    made = {"bbox": BOX, "segmentation": SQUARE, "provenance": "leanmask a"}
    found = {**made, "score": 0.7, "class_quality": 0.8, "mask_quality": 0.9}
    accepted = {**found, "provenance": "human", "weight": 1.0}
    accepted["review"] = {"decision": "accept", "before": {"provenance": "leanmask a"}}
    prices = [({"bbox": BOX, "segmentation": SQUARE}, 79.2), (found, 0), (accepted, 0), ({**found, "weight": 0}, 0)]
    prices += [({**made, "weight": 1.0}, 7), ({**made, "point": [12.0, 12.0]}, 0.9)]
    for fields, seconds in prices:
        assert paid_seconds(row(**fields), LabelCosts()) == pytest.approx(seconds)
    rows = [row(number, **fields) for number, (fields, _) in enumerate(prices, start=1)]
    told = api.budget(write_data(tmp_path / "reviewed", rows, [image(1, exhaustive=True)]))
    assert (told.objects, told.census.rejected) == (5, 1)
    assert told.paid_seconds == pytest.approx(sum(seconds for _, seconds in prices))
