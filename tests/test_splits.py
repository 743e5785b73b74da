"""Protocols: what is kept, what is hidden, that chance nests, and that every click tells the truth of its pixel."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from leanmask.data.coco import AnnotationStore
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.layout import locate
from leanmask.data.splits import SplitOptions, parse_protocol, split
from leanmask.data.withholding.chance import count_of, shuffled, stable_number
from leanmask.data.withholding.clicks import (
    boundary_distances,
    labels_at,
    mass_centre,
    random_beside,
    random_inside,
    random_pixels,
    rle_of,
)
from leanmask.data.withholding.protocols import VOC_CLASSES
from leanmask.errors import ConfigError, DataError, RunError

TRAIN, TRUTH = "annotations/instances_train.json", "truth/instances_train.json"
Content = dict[str, Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("source") / "digits"
    write_digits(out, DigitsSpec(train=40, tune=2, val=3, unlabelled=2, size_px=64))
    return out


def load(folder: Path, name: str = TRAIN) -> Content:
    return json.loads((folder / name).read_text())


def rows(folder: Path, name: str = TRAIN) -> dict[int, Content]:
    return {row["id"]: row for row in load(folder, name)["annotations"]}


def with_masks(folder: Path) -> set[int]:
    return {number for number, row in rows(folder).items() if row.get("segmentation")}


def image_ids(folder: Path, name: str = TRAIN) -> set[int]:
    return {image["id"] for image in load(folder, name)["images"]}


def square(number: int, image_id: int, category_id: int, box: tuple[int, int, int, int], **fields: Any) -> Content:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(box), "area": w * h}
    return {**row, "iscrowd": 0, "segmentation": [polygon], **fields}


def write_squares(folder: Path, annotations: list[Content], names: tuple[str, ...] = ("cat", "dog", "kite")) -> Path:
    """A hand-made data set: ids with holes, classes with sparse ids, and whatever annotations are given."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 30, "height": 20, "licence": "own"}
        for number in (7, 3, 90)
    ]
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(names)]
    content = {"info": {"by": "me"}, "images": images, "annotations": annotations, "categories": categories}
    (folder / TRAIN).write_text(json.dumps(content))
    return folder


SQUARES = [
    square(5, 7, 10, (2, 3, 8, 6)),
    square(6, 7, 20, (12, 1, 10, 10)),
    square(1, 3, 30, (0, 0, 30, 20)),
    square(9, 3, 10, (20, 10, 10, 10), iscrowd=1),
    square(4, 90, 20, (1, 1, 5, 5)),
]


@pytest.mark.parametrize(
    "protocol",
    ["full", "sparse-10", "points-3", "boxes", "semi-10", "weak-semi-10", "partial", "mixed-3000", "mixed-9000"],
)
def test_every_protocol_can_be_opened_and_hides_nothing_of_the_truth(
    digits: Path, tmp_path: Path, protocol: str
) -> None:
    summary = split(digits, tmp_path / "out", protocol, seed=1)
    found, source = locate(tmp_path / "out"), load(digits)
    store = AnnotationStore.open(found["train"].annotations, found["train"].images)
    census = store.census()
    assert len(store) == census.images == summary.images
    assert sum(census.objects.values()) == summary.objects
    assert census.objects["mask"] == summary.masks
    assert census.objects["box"] + census.objects["points"] == summary.boxes
    assert all(store[i].path.exists() for i in range(len(store)))
    truth = load(tmp_path / "out", TRUTH)
    assert {row["id"] for row in truth["annotations"]} == set(rows(tmp_path / "out"))
    originals = {row["id"]: row for row in source["annotations"]}
    assert all(row == originals[row["id"]] for row in truth["annotations"])
    assert truth["categories"] == source["categories"]
    for name in ("tune", "val"):
        assert found[name].annotations is not None
        assert found[name].annotations.samefile(digits / f"annotations/instances_{name}.json")
    assert set(image_ids(tmp_path / "out")) <= set(image_ids(digits))


@pytest.mark.parametrize("protocol", ["sparse-10", "points-2", "semi-10", "weak-semi-10", "mixed-3000"])
def test_the_same_seed_gives_the_same_split_and_another_does_not(digits: Path, tmp_path: Path, protocol: str) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        split(digits, tmp_path / name, protocol, seed=seed)
    assert load(tmp_path / "a") == load(tmp_path / "b") != load(tmp_path / "c")


def test_sparse_keeps_all_boxes_and_exactly_the_share_of_masks(digits: Path, tmp_path: Path) -> None:
    source = rows(digits)
    kept = []
    for rate in (1, 10, 40):
        out = tmp_path / str(rate)
        summary = split(digits, out, f"sparse-{rate}")
        assert summary.masks == len(with_masks(out)) == max(1, math.floor(rate / 100 * len(source) + 0.5))
        kept.append(with_masks(out))
        for number, row in rows(out).items():
            if number in kept[-1]:
                assert row == source[number]
            else:
                assert set(row) == {"id", "image_id", "category_id", "iscrowd", "bbox", "area"}
                assert row["bbox"] == source[number]["bbox"]
                assert row["area"] == row["bbox"][2] * row["bbox"][3]
        expected = 79.2 * summary.masks + 7 * (len(source) - summary.masks)
        assert summary.seconds == pytest.approx(expected, abs=0.06)
    assert kept[0] < kept[1] < kept[2]


def test_the_order_of_the_file_does_not_matter(digits: Path, tmp_path: Path) -> None:
    content = load(digits)
    content["annotations"].reverse()
    content["images"].reverse()
    other = tmp_path / "reversed"
    (other / "annotations").mkdir(parents=True)
    (other / "images").mkdir()
    (other / TRAIN).write_text(json.dumps(content))
    for protocol in ("sparse-10", "points-2", "weak-semi-10", "mixed-3000"):
        split(digits, tmp_path / f"{protocol}-a", protocol)
        split(other, tmp_path / f"{protocol}-b", protocol)
        assert rows(tmp_path / f"{protocol}-a") == rows(tmp_path / f"{protocol}-b")


def test_boxes_have_no_trace_of_masks(digits: Path, tmp_path: Path) -> None:
    split(digits, tmp_path / "out", "boxes")
    assert "segmentation" not in (tmp_path / "out" / TRAIN).read_text()


def test_points_are_the_masks_pixels_in_pointsups_format(digits: Path, tmp_path: Path) -> None:
    split(digits, tmp_path / "five", "points-5")
    summary = split(digits, tmp_path / "ten", "points-10")
    source = rows(digits)
    few, many = rows(tmp_path / "five"), rows(tmp_path / "ten")
    published = load(tmp_path / "ten", "annotations/instances_train_n10_v1_without_masks.json")
    assert published == load(tmp_path / "ten")
    for number, row in many.items():
        assert set(row) == {
            *("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
            "point_coords",
            "point_labels",
        }
        mask = decode(source[number])
        x, y, width, height = row["bbox"]
        for (px, py), label in zip(row["point_coords"], row["point_labels"], strict=True):
            assert type(px) is type(py) is type(label) is int
            assert x <= px < x + width
            assert y <= py < y + height
            assert label == mask[py, px]
        assert row["point_coords"][:5] == few[number]["point_coords"]
        assert row["point_labels"][:5] == few[number]["point_labels"]
    labels = [label for row in many.values() for label in row["point_labels"]]
    assert 0.2 < np.mean(labels) < 0.8
    assert summary.points == len(labels) == 10 * len(source)


def decode(row: Content) -> np.ndarray:
    rle = row["segmentation"]
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})


@pytest.mark.parametrize("where", ["random", "boundary"])
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.5, 1.0])
def test_exactly_the_share_of_points_is_wrong(digits: Path, tmp_path: Path, where: str, noise: float) -> None:
    options = SplitOptions(point_noise=noise, noise_where=where)  # type: ignore[arg-type]
    split(digits, tmp_path / "clean", "points-4")
    summary = split(digits, tmp_path / "noisy", "points-4", options=options)
    clean, noisy = rows(tmp_path / "clean"), rows(tmp_path / "noisy")
    source = rows(digits)
    right, wrong = [], []
    for number, row in noisy.items():
        assert row["point_coords"] == clean[number]["point_coords"]
        mask = decode(source[number]).astype(bool) if where == "boundary" and noise == 0.05 else None
        for k, (x, y) in enumerate(row["point_coords"]):
            flipped = row["point_labels"][k] != clean[number]["point_labels"][k]
            (wrong if flipped else right).append(0.0 if mask is None else naive_distance(mask, x, y))
    assert len(wrong) == summary.noisy_points == math.floor(noise * (len(right) + len(wrong)) + 0.5)
    if where == "boundary" and noise == 0.05:
        assert max(wrong) <= min(right)


def naive_distance(mask: np.ndarray, x: int, y: int) -> float:
    other_y, other_x = np.nonzero(mask != mask[y, x])
    return float(np.hypot(other_x - x, other_y - y).min()) if len(other_x) else math.inf


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.02, 0.98))
def test_lookups_equal_the_decoded_mask(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 14, size=2).tolist()
    mask = rng.random((height, width)) < density
    mask[0, 0], mask[-1, -1] = True, False
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    ys, xs = (grid.reshape(-1) for grid in np.mgrid[:height, :width])
    pixels = np.stack([xs, ys], axis=1)
    assert (labels_at(rle, pixels) == mask[ys, xs]).all()
    expected = [naive_distance(mask, x, y) for x, y in pixels.tolist()]
    assert np.allclose(boundary_distances(rle, pixels), expected)
    centre = mass_centre(rle)
    assert centre is not None
    assert np.allclose(centre, [np.nonzero(mask)[1].mean() + 0.5, np.nonzero(mask)[0].mean() + 0.5])
    inside = random_inside(rle, seed, 1)
    assert inside is not None
    assert mask[int(inside[1]), int(inside[0])]


def test_points_of_polygons_equal_pycocotools(tmp_path: Path) -> None:
    star = [10.2, 0.5, 13.7, 8.1, 25.0, 8.9, 16.4, 12.3, 19.9, 19.0, 10.5, 14.2]
    data = write_squares(
        tmp_path / "data", [square(5, 7, 10, (10, 0, 15, 19), segmentation=[star, [0, 0, 4, 0, 4, 4]])]
    )
    split(data, tmp_path / "out", "points-200", seed=2)
    mask = COCO(str(data / TRAIN)).annToMask(load(data)["annotations"][0])
    row = rows(tmp_path / "out")[5]
    assert row["point_labels"] == [mask[y, x] for x, y in row["point_coords"]]
    assert len(set(row["point_labels"])) == 2
    assert (tmp_path / "out" / "annotations/instances_train_n200_v3_without_masks.json").exists()


def test_an_empty_mask_has_no_point_to_click_on() -> None:
    rle = coco_mask.encode(np.zeros((4, 5), dtype=np.uint8, order="F"))
    assert mass_centre(rle) is None
    assert random_inside(rle, 0, 1) is None
    assert np.isinf(boundary_distances(rle, np.array([[1, 1]]))).all()


@settings(deadline=None)
@given(
    box=st.tuples(st.floats(-3, 25), st.floats(-3, 15), st.floats(0.1, 40), st.floats(0.1, 40)),
    seed=st.integers(0, 99),
)
def test_random_points_lie_in_box_and_image(box: tuple[float, float, float, float], seed: int) -> None:
    x, y, width, height = box
    if x + width <= 0 or y + height <= 0:
        with pytest.raises(DataError, match="outside the image"):
            random_pixels(list(box), (20, 30), 5, seed, 1)
        return
    points = random_pixels(list(box), (20, 30), 50, seed, 1)
    assert (points >= [max(math.floor(x), 0), max(math.floor(y), 0)]).all()
    assert (points <= [min(x + width, 29), min(y + height, 19)]).all()
    assert (points[:7] == random_pixels(list(box), (20, 30), 7, seed, 1)).all()


def test_random_points_are_uniform() -> None:
    points = random_pixels([4, 2, 10, 5], (20, 30), 20000, 0, 1)
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=(np.arange(4, 15), np.arange(2, 8)))[0]
    assert counts.sum() == 20000
    assert (abs(counts - 400) < 100).all()


def test_semi_keeps_whole_images_and_nests(digits: Path, tmp_path: Path) -> None:
    labelled = []
    for share in (5, 20, 50):
        out = tmp_path / str(share)
        summary = split(digits, out, f"semi-{share}")
        labelled.append(image_ids(out))
        bare = load(out, "annotations/instances_unlabelled.json")
        assert len(labelled[-1]) == summary.images == share * 40 / 100
        assert image_ids(out, "annotations/instances_unlabelled.json") == image_ids(digits) - labelled[-1]
        assert bare["annotations"] == []
        assert all(set(i) == {"id", "file_name", "width", "height", "exhaustive"} for i in bare["images"])
        assert not any(image["exhaustive"] for image in bare["images"])
        hidden = rows(out, "truth/instances_unlabelled.json")
        assert {**hidden, **rows(out)} == rows(digits)
        found = locate(out)
        store = AnnotationStore.open(found["unlabelled"].annotations, found["unlabelled"].images)
        assert store.census().unlabelled_images == summary.unlabelled_images == 40 - summary.images
        assert found["unlabelled_extra"].images.samefile(digits / "unlabelled")
    assert labelled[0] < labelled[1] < labelled[2]


@pytest.mark.parametrize("where", ["centre", "random"])
def test_weak_semi_has_points_on_the_rest_and_the_same_strong_images_as_semi(
    digits: Path, tmp_path: Path, where: str
) -> None:
    split(digits, tmp_path / "semi", "semi-10")
    out, source = tmp_path / "weak", rows(digits)
    options = SplitOptions(point_at=where)  # type: ignore[arg-type]
    summary = split(digits, out, "weak-semi-10", options=options)
    strong, weak = (load(out, f"annotations/instances_train_10p_{letter}.json") for letter in "sw")
    assert {image["id"] for image in strong["images"]} == image_ids(tmp_path / "semi")
    assert {image["id"] for image in weak["images"]} == image_ids(digits) - image_ids(tmp_path / "semi")
    assert {row["id"]: row for row in strong["annotations"]} == rows(tmp_path / "semi")
    assert all(image["exhaustive"] is False for image in weak["images"])
    assert len(weak["annotations"]) == summary.points == len(source) - summary.masks
    for row in weak["annotations"]:
        assert set(row) == {"id", "image_id", "category_id", "iscrowd", "point"}
        ys, xs = np.nonzero(decode(source[row["id"]]))
        if where == "centre":
            assert row["point"] == pytest.approx([xs.mean() + 0.5, ys.mean() + 0.5])
        else:
            assert tuple(row["point"]) in {(x + 0.5, y + 0.5) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)}
    combined = {row["id"]: row for row in [*strong["annotations"], *weak["annotations"]]}
    assert combined == rows(out)


def test_partial_keeps_masks_of_the_first_half_of_classes(digits: Path, tmp_path: Path) -> None:
    summary = split(digits, tmp_path / "out", "partial")
    assert summary.mask_classes == ("zero", "one", "two", "three", "four")
    assert all((row["category_id"] <= 5) == bool(row.get("segmentation")) for row in rows(tmp_path / "out").values())
    assert load(tmp_path / "out", "split.json")["mask_classes"] == list(summary.mask_classes)


def test_partial_with_chosen_classes_and_with_voc(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data", SQUARES)
    split(data, tmp_path / "kite", "partial", options=SplitOptions(mask_classes=("kite",)))
    split(data, tmp_path / "voc", "partial", options=SplitOptions(mask_classes=("voc",)))
    split(data, tmp_path / "rest", "partial", options=SplitOptions(mask_classes=("nonvoc",)))
    assert with_masks(tmp_path / "kite") == with_masks(tmp_path / "rest") == {1}
    assert with_masks(tmp_path / "voc") == {5, 6, 4}
    assert len(VOC_CLASSES) == len(set(VOC_CLASSES)) == 20
    with pytest.raises(DataError, match=r"no class 'kit'.*did you mean 'kite'"):
        split(data, tmp_path / "no", "partial", options=SplitOptions(mask_classes=("kit",)))
    with pytest.raises(DataError, match="with and without"):
        split(data, tmp_path / "no", "partial", options=SplitOptions(mask_classes=("cat", "dog", "kite")))


def test_mixed_spends_its_seconds_evenly_and_nests(digits: Path, tmp_path: Path) -> None:
    order = {"point": 0, "box": 1, "points": 2, "mask": 3}
    before: dict[int, int] = {}
    for budget in (1500, 3000, 6000, 12000, 13500):
        out = tmp_path / str(budget)
        summary = split(digits, out, f"mixed-{budget}")
        assert budget - 6 * 79.2 < summary.seconds <= budget or summary.masks == summary.objects
        now = {number: order[kind_of(row)] for number, row in rows(out).items()}
        assert all(now[number] >= level for number, level in before.items())
        before = now
        if summary.unlabelled_images:
            spent = dict.fromkeys(order, 0.0)
            for row in rows(out).values():
                spent[kind_of(row)] += {"mask": 79.2, "points": 16.0, "box": 7.0}[kind_of(row)]
            assert sum(spent.values()) == pytest.approx(summary.seconds)
            # One image may be ahead: at most six masks.
            assert (
                max(spent[k] for k in ("mask", "points", "box")) - min(spent[k] for k in ("mask", "points", "box"))
                <= 6 * 79.2
            )
    assert summary.masks == summary.objects, "money for everything buys all masks"
    assert image_ids(out) == image_ids(digits)


def kind_of(row: Content) -> str:
    if row.get("segmentation"):
        return "mask"
    return "points" if row.get("point_coords") else "box" if row.get("bbox") else "point"


def test_mixed_takes_shares_and_single_points(digits: Path, tmp_path: Path) -> None:
    options = SplitOptions(mix={"mask": 3, "point": 1}, mix_points=4)
    split(digits, tmp_path / "out", "mixed-6000", options=options)
    found = load(tmp_path / "out")
    kinds = {row["image_id"]: kind_of(row) for row in found["annotations"]}
    assert set(kinds.values()) == {"mask", "point"}
    for image in found["images"]:
        assert image.get("exhaustive", True) == (kinds[image["id"]] == "mask")
    with pytest.raises(DataError, match="do not buy the first image"):
        split(digits, tmp_path / "poor", "mixed-10")


def test_crowds_keep_a_box_alone_and_are_not_counted(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data", SQUARES)
    for protocol in ("sparse-50", "boxes", "points-3", "weak-semi-34"):
        summary = split(data, tmp_path / protocol, protocol, seed=0)
        crowd = rows(tmp_path / protocol)[9]
        assert summary.objects == 4
        assert crowd["bbox"] == [20, 10, 10, 10]
        if protocol != "weak-semi-34" or crowd["image_id"] not in strong_of(tmp_path / protocol):
            assert not {"segmentation", "point_coords", "point"} & set(crowd)
    assert rows(tmp_path / "sparse-50").keys() == {5, 6, 1, 9, 4}


def strong_of(folder: Path) -> set[int]:
    return image_ids(folder, "annotations/instances_train_34p_s.json")


def test_images_and_users_fields_stay(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data", SQUARES)
    split(data, tmp_path / "out", "sparse-50")
    found = load(tmp_path / "out")
    assert [image["id"] for image in found["images"]] == [7, 3, 90]
    assert all(image["licence"] == "own" for image in found["images"])
    assert found["info"] == {"by": "me"}
    assert locate(tmp_path / "out")["train"].images.samefile(data / "images")


def test_missing_labels_are_named(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data", [*SQUARES, square(77, 3, 10, (1, 1, 4, 4), segmentation=[])])
    for protocol in ("full", "sparse-1", "points-2", "semi-50", "weak-semi-50", "partial", "mixed-100"):
        with pytest.raises(DataError, match="image 3, annotation 77 has no mask"):
            split(data, tmp_path / "out", protocol)
    split(data, tmp_path / "boxes", "boxes")
    neither = write_squares(tmp_path / "more", [square(8, 3, 10, (1, 1, 4, 4), segmentation=[], bbox=[])])
    with pytest.raises(DataError, match="image 3, annotation 8 has no box"):
        split(neither, tmp_path / "out", "boxes")
    outside = write_squares(tmp_path / "outside", [square(8, 3, 10, (40, 1, 4, 4))])
    with pytest.raises(DataError, match=r"image 3, annotation 8: bbox .* outside the image"):
        split(outside, tmp_path / "out", "points-2")
    assert not (tmp_path / "out").exists()


def test_a_mask_without_pixels_is_named(tmp_path: Path) -> None:
    empty = {"size": [20, 30], "counts": [600]}
    data = write_squares(tmp_path / "data", [square(8, 7, 10, (1, 1, 4, 4), segmentation=empty), *SQUARES[2:]])
    seed = next(seed for seed in range(9) if shuffled([7, 3, 90], seed, "image")[0] != 7)
    with pytest.raises(DataError, match="image 7, annotation 8 has a mask without a pixel"):
        split(data, tmp_path / "out", "weak-semi-34", seed=seed)


def test_a_box_is_made_from_the_mask_when_the_file_has_none(tmp_path: Path) -> None:
    data = write_squares(tmp_path / "data", [square(8, 7, 10, (2, 3, 8, 6), bbox=None)])
    split(data, tmp_path / "out", "boxes")
    assert rows(tmp_path / "out")[8]["bbox"] == [2, 3, 8, 6]


def test_nothing_is_overwritten_and_failures_leave_nothing(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(RunError, match="not an empty folder"):
        split(digits, tmp_path / "mine", "boxes")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(DataError, match="does not exist"):
        split(tmp_path / "nowhere", tmp_path / "out", "boxes")
    write_squares(tmp_path / "untrained", SQUARES)
    (tmp_path / "untrained" / TRAIN).rename(tmp_path / "untrained" / "annotations" / "instances_val.json")
    with pytest.raises(DataError, match="no split 'train'"):
        split(tmp_path / "untrained", tmp_path / "out", "boxes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sparce-1", r"did you mean 'sparse-R'\? \(protocols: full, sparse-R"),
        ("quantum", "allowed: boxes, full, mixed-T"),
        ("sparse", "R = a percentage"),
        ("sparse-0", "R = a percentage"),
        ("sparse-101", "R = a percentage"),
        ("points-2.5", "N = a whole number"),
        ("points-0", "N = a whole number"),
        ("boxes-3", "no number"),
        ("mixed-0", "T = annotation seconds"),
        ("longtail", "digits --longtail"),
        ("", "unknown protocol"),
        ("semi-nan", "unknown protocol"),
    ],
)
def test_unknown_protocols_are_answered_with_the_list(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_protocol(name)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_exactly_the_share_of_single_points_misses_its_object(digits: Path, tmp_path: Path, share: float) -> None:
    split(digits, tmp_path / "clean", "weak-semi-10")
    summary = split(digits, tmp_path / "missed", "weak-semi-10", options=SplitOptions(point_displaced=share))
    clean, missed, source = rows(tmp_path / "clean"), rows(tmp_path / "missed"), rows(digits)
    moved = [number for number, row in missed.items() if row != clean[number]]
    points = sum("point" in row for row in clean.values())
    assert len(moved) == summary.noisy_points == math.floor(share * points + 0.5)
    assert f"({len(moved)} wrong)" in summary.to_text()
    for number in moved:
        assert {**missed[number], "point": 0} == {**clean[number], "point": 0}
        mask, (x, y) = decode(source[number]), missed[number]["point"]
        assert mask[int(y), int(x)] == 0
        left, top, width, height = source[number]["bbox"]
        margin = max(0.1 * min(width, height), 1)
        assert left - margin <= x <= left + width + margin
        assert top - margin <= y <= top + height + margin
    with pytest.raises(ConfigError, match="point_displaced is for weak-semi-P"):
        split(digits, tmp_path / "no", "points-4", options=SplitOptions(point_displaced=0.5))


def test_nothing_is_beside_an_object_that_fills_the_image() -> None:
    everything = np.ones((4, 6), dtype=np.uint8, order="F")
    assert random_beside(coco_mask.encode(everything), 0, 1) is None
    assert random_beside(coco_mask.encode(0 * everything), 0, 1) is None
    everything[1, 2] = 0
    found = random_beside(coco_mask.encode(everything), 0, 1)
    assert found is not None
    assert found.tolist() == [2.5, 1.5]


@pytest.mark.parametrize(
    ("name", "kind", "amount"),
    [("sparse-0.4", "sparse", 0.4), ("weak-semi-5", "weak-semi", 5), ("points-10", "points", 10), ("full", "full", 0)],
)
def test_protocol_names_are_read(name: str, kind: str, amount: float) -> None:
    assert (parse_protocol(name).kind, parse_protocol(name).amount) == (kind, amount)


@pytest.mark.parametrize(
    "wrong",
    [
        {"point_noise": 1.5},
        {"point_noise": math.nan},
        {"noise_where": "edge"},
        {"point_at": "corner"},
        {"point_displaced": -0.1},
        {"mix": {"masks": 1}},
        {"mix": {"mask": -1}},
        {"mix": {}},
        {"mix_points": 0},
    ],
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SplitOptions(**wrong)


def test_options_that_a_protocol_does_not_have_are_errors(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="point_noise is for points-N"):
        split(digits, tmp_path / "out", "boxes", options=SplitOptions(point_noise=0.1))
    with pytest.raises(ConfigError, match="mask_classes is for partial"):
        split(digits, tmp_path / "out", "boxes", options=SplitOptions(mask_classes=("one",)))


@settings(deadline=None)
@given(items=st.lists(st.integers(), unique=True, max_size=30), seed=st.integers(0, 9), data=st.data())
def test_the_order_of_a_part_is_the_order_of_the_whole(items: list[int], seed: int, data: st.DataObject) -> None:
    part = data.draw(st.lists(st.sampled_from(items), unique=True)) if items else []
    whole = shuffled(items, seed, "object")
    assert shuffled(part, seed, "object") == [item for item in whole if item in set(part)]


@settings(deadline=None)
@given(total=st.integers(0, 5000), low=st.floats(0, 1), high=st.floats(0, 1))
def test_counts_are_rounded_and_grow_with_the_share(total: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert 0 <= count_of(low, total) <= count_of(high, total) <= total
    assert abs(count_of(high, total) - high * total) <= max(0.5 + 1e-9, 1 - high * total)
    assert count_of(1, total) == total


def test_stable_numbers_never_change() -> None:
    """A change here would give every user other splits for the same seed."""
    assert stable_number(0, "object", 1) == stable_number(0, "object", 1) != stable_number(0, "object", 2)
    assert shuffled(range(8), 0, "object") == [2, 0, 5, 7, 3, 4, 6, 1]


@pytest.mark.parametrize("name", ["facades", "nuclei"])
def test_real_data_can_be_split(tmp_path: Path, name: str) -> None:
    data = next(
        (p / "shared" / "data" / name for p in Path(__file__).resolve().parents if (p / "shared").exists()), None
    )
    if data is None or not data.exists():
        pytest.skip(f"{name} is not on this machine")
    summary = split(data, tmp_path / "out", "sparse-10")
    assert summary.masks == math.floor(summary.objects / 10 + 0.5)
    sizes = {image["id"]: (image["height"], image["width"]) for image in load(tmp_path / "out")["images"]}
    masks = [row for row in load(tmp_path / "out", TRUTH)["annotations"] if not row.get("iscrowd")]
    assert all(coco_mask.area(rle_of(row, sizes[row["image_id"]])) > 0 for row in masks[:50])


def test_what_somebody_rejected_stays_rejected(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["weight"] = 0.0
    path.write_text(json.dumps(content))
    for protocol in ("full", "boxes", "sparse-20", "points-5", "semi-100", "weak-semi-20"):
        summary = split(data, tmp_path / protocol, protocol)
        assert summary.objects == len(content["annotations"]) - 1
        files = locate(tmp_path / protocol)["train"]
        counted = AnnotationStore.open(files.annotations, files.images, unannotated="negative").census()
        assert (counted.rejected, sum(counted.objects.values())) == (1, summary.objects), protocol
