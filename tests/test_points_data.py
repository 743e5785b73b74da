"""Point labels from the click to the canvas: made as PointSup makes them, read as PointSup writes them, and where they
belong after every augmentation.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import calm, data_config, encode, image_record, object_record, smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.config import AugmentConfig
from leanmask.data.annotation import points_of
from leanmask.data.check import check
from leanmask.data.coco import AnnotationStore
from leanmask.data.dataset import TrainDataset
from leanmask.data.layout import locate
from leanmask.data.splits import SplitOptions, split
from leanmask.data.views.augment import random_frame
from leanmask.data.views.copy_paste import Scene, paste
from leanmask.data.views.targets import place, to_target
from leanmask.data.withholding.clicks import (
    biased_pixels,
    boundary_distances,
    labels_at,
    pixels_near_boundary,
    random_pixels,
    rle_of,
)
from leanmask.errors import ConfigError, DataError
from leanmask.geometry import Frame
from leanmask.records import Supervision

seeds = st.integers(0, 2**32 - 1)
TRAIN = "annotations/instances_train.json"
SIDE = 96  # of the canvas, pixels
Rows = dict[int, dict[str, Any]]


def rows(folder: Path, name: str = TRAIN) -> Rows:
    return {row["id"]: row for row in json.loads((folder / name).read_text())["annotations"]}


# Points near the boundary


def blob(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A mask of one to three discs and rectangles."""
    mask = np.zeros(size, dtype=np.uint8)
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    for _ in range(int(rng.integers(1, 4))):
        (y, x), (ry, rx) = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.1, 0.4, 2) * min(size)
        disc = ((ys - y) / ry) ** 2 + ((xs - x) / rx) ** 2 <= 1
        rectangle = (abs(ys - y) <= ry) & (abs(xs - x) <= rx)
        mask |= disc if rng.random() < 0.5 else rectangle
    return mask


@settings(deadline=None)
@given(seed=seeds, density=st.floats(0.01, 0.99), speckled=st.booleans())
def test_pixels_near_the_boundary_are_those_a_naive_search_finds(seed: int, density: float, speckled: bool) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 50, size=2).tolist()
    mask = (rng.random((height, width)) < density).astype(np.uint8) if speckled else blob((height, width), rng)
    x, y = rng.uniform(-3, width - 1), rng.uniform(-3, height - 1)
    box = [x, y, rng.uniform(4, width + 4), rng.uniform(4, height + 4)]
    low = np.maximum(box[:2], 0)
    high = np.minimum([x + box[2], y + box[3]], [width, height])
    columns = range(math.floor(low[0]), math.ceil(high[0]))
    lines = range(math.floor(low[1]), math.ceil(high[1]))
    every = np.array([(column, line) for column in columns for line in lines])
    reach = max(0.1 * (high - low).min(), 1)
    rle = encode(mask)
    expected = every[boundary_distances(rle, every) <= reach]
    assert sorted(map(tuple, pixels_near_boundary(rle, box).tolist())) == sorted(map(tuple, expected.tolist()))


@settings(deadline=None)
@given(seed=seeds, low=st.floats(0, 1), high=st.floats(0, 1), few=st.integers(1, 30))
def test_biased_points_nest_and_a_larger_bias_only_adds(seed: int, low: float, high: float, few: int) -> None:
    low, high = sorted((low, high))
    plain = random_pixels([5, 4, 30, 20], (40, 60), 30, seed, 1)
    near = np.array([[100 + i, 200 + i] for i in range(50)])
    mild, heavy = (biased_pixels(plain, near, bias, seed, 1) for bias in (low, high))
    assert (biased_pixels(plain[:few], near, high, seed, 1) == heavy[:few]).all()
    assert (biased_pixels(plain, near, 0.0, seed, 1) == plain).all()
    assert (biased_pixels(plain, near, 1.0, seed, 1) >= 100).all()
    moved = (mild != plain).any(axis=1)
    assert (heavy[moved] == mild[moved]).all()
    assert (biased_pixels(plain, near[:0], 1.0, seed, 1) == plain).all()


def test_the_bias_is_the_share_of_points_near_the_boundary_and_they_are_uniform_there() -> None:
    mask = np.zeros((60, 60), dtype=np.uint8)
    mask[20:40, 10:50] = 1
    rle, box = encode(mask), [10.0, 20.0, 40.0, 20.0]
    near = pixels_near_boundary(rle, box)  # within 2 pixels of the rectangle's edge, inside
    assert len(near) == 40 * 20 - 36 * 16
    plain = random_pixels(box, (60, 60), 20000, 0, 1)
    for bias in (0.25, 0.75):
        found = biased_pixels(plain, near, bias, 0, 1)
        close = boundary_distances(rle, found) <= 2
        assert abs(close.mean() - (bias + (1 - bias) * len(near) / 800)) < 0.02
    everywhere = biased_pixels(plain, near, 1.0, 0, 1)
    counts = np.unique(everywhere, axis=0, return_counts=True)[1]
    assert len(counts) == len(near)
    assert (abs(counts - 20000 / len(near)) < 50).all()


def test_no_bias_gives_the_points_of_before_and_a_bias_keeps_the_format(digits: Path, tmp_path: Path) -> None:
    split(digits, tmp_path / "plain", "points-10", seed=3)
    split(digits, tmp_path / "none", "points-10", seed=3, options=SplitOptions(point_bias=0))
    half = SplitOptions(point_bias=0.5)
    split(digits, tmp_path / "half", "points-10", seed=3, options=half)
    split(digits, tmp_path / "again", "points-10", seed=3, options=half)
    split(digits, tmp_path / "five", "points-5", seed=3, options=half)
    split(digits, tmp_path / "all", "points-10", seed=3, options=SplitOptions(point_bias=1))
    plain, biased, few = (rows(tmp_path / name) for name in ("plain", "half", "five"))
    source = rows(digits)
    assert (tmp_path / "none" / TRAIN).read_bytes() == (tmp_path / "plain" / TRAIN).read_bytes()
    assert (tmp_path / "again" / TRAIN).read_bytes() == (tmp_path / "half" / TRAIN).read_bytes() != plain
    for number, row in biased.items():
        assert list(row) == list(plain[number])
        assert {key: row[key] for key in row if "point" not in key} == {
            key: value for key, value in plain[number].items() if "point" not in key
        }
        assert (row["point_coords"][:5], row["point_labels"][:5]) == (
            few[number]["point_coords"],
            few[number]["point_labels"],
        )
        rle = rle_of(source[number], (64, 64))
        assert labels_at(rle, np.array(row["point_coords"])).tolist() == row["point_labels"]
    for number, row in rows(tmp_path / "all").items():
        reach = max(0.1 * min(row["bbox"][2:]), 1)
        assert (boundary_distances(rle_of(source[number], (64, 64)), np.array(row["point_coords"])) <= reach).all()
    moved = [row["point_coords"] != plain[number]["point_coords"] for number, row in biased.items()]
    assert np.mean(moved) > 0.9


def test_the_points_of_a_seed_never_change() -> None:
    """A change here would give every user other splits for the same seed."""
    assert random_pixels([5.5, 4, 30, 20.25], (40, 60), 3, 0, 17).tolist() == [[19, 7], [29, 9], [33, 23]]
    near = np.array([[i, i] for i in range(40)])
    assert biased_pixels(np.full((4, 2), 99), near, 0.5, 0, 17).tolist() == [[99, 99], [36, 36], [14, 14], [99, 99]]


def test_a_bias_is_for_points_alone(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="point_bias is for points-N; protocol 'boxes'"):
        split(digits, tmp_path / "out", "boxes", options=SplitOptions(point_bias=0.1))
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"point_bias is .*; allowed: 0 to 1"):
            SplitOptions(point_bias=wrong)


# The command line


def test_points_and_noise_on_the_command_line(leanmask: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    long = ("--protocol", "points-4", "--noise", "0.05", "--noise-at", "boundary", "--bias", "0.5", "--json")
    short = ("--points", "4", "--noise", "5%", "--noise-where", "boundary", "--bias", "0.5", "--json")
    found = [leanmask("split", digits, tmp_path / str(i), *given) for i, given in enumerate((long, short))]
    assert [outcome.code for outcome in found] == [0, 0]
    assert (tmp_path / "0" / TRAIN).read_bytes() == (tmp_path / "1" / TRAIN).read_bytes()
    summary = json.loads(found[0].out)
    assert (summary["protocol"], summary["points"]) == ("points-4", 4 * summary["objects"])
    assert summary["noisy_points"] == math.floor(0.05 * summary["points"] + 0.5)
    options = json.loads((tmp_path / "1" / "split.json").read_text())["options"]
    assert (options["point_noise"], options["noise_where"], options["point_bias"]) == (0.05, "boundary", 0.5)
    assert leanmask("split", digits, tmp_path / "both", "--protocol", "points-4", "--points", 4).code == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "--points N, or --protocol full, sparse-R, points-N"),
        (["--protocol", "points-5", "--points", "10"], "--protocol points-5 and --points 10"),
        (["--protocol", "boxes", "--points", "10"], "--protocol boxes and --points 10"),
        (["--protocol", "point-10", "--points", "10"], "unknown protocol 'point-10'"),
        (["--points", "0"], "--points"),
        (["--points", "3", "--noise", "5"], "'5' is no share"),
        (["--points", "3", "--noise", "105%"], "'105%' is no share"),
        (["--points", "3", "--noise", "some"], "'some' is no share"),
        (["--points", "3", "--noise", "nan"], "'nan' is no share"),
        (["--points", "3", "--noise-where", "edge"], "noise_where is 'edge'; allowed: boundary, random"),
        (["--points", "3", "--bias", "2"], "--bias"),
        (["--protocol", "boxes", "--noise", "5%"], "point_noise is for points-N"),
    ],
)
def test_mistakes_about_points_are_sentences(
    leanmask: Callable[..., Any], digits: Path, tmp_path: Path, given: list[str], says: str
) -> None:
    outcome = leanmask("split", digits, tmp_path / "out", *given)
    assert outcome.code == 2
    assert says in " ".join(outcome.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


# PointSup's files

# One annotation as detectron2's prepare_coco_point_annotations_without_masks.py writes it: no segmentation, crowds too.
POINTSUP = {
    "info": {"description": "COCO 2017 Dataset", "year": 2017},
    "licenses": [{"id": 1, "name": "Attribution License"}],
    "images": [
        {"license": 1, "file_name": "000000000009.jpg", "height": 48, "width": 64, "id": 9},
        {"license": 1, "file_name": "000000000025.jpg", "height": 48, "width": 64, "id": 25},
    ],
    "annotations": [
        {
            "area": 312.25,
            "iscrowd": 0,
            "image_id": 9,
            "bbox": [10.5, 5.25, 30.0, 20.0],
            "category_id": 18,
            "id": 156,
            "point_coords": [[12, 7], [40, 24], [10, 5], [25, 15], [25, 15]],
            "point_labels": [1, 0, 0, 1, 1],
        },
        {
            "area": 90.0,
            "iscrowd": 0,
            "image_id": 25,
            "bbox": [40.0, 30.0, 24.0, 18.0],
            "category_id": 44,
            "id": 157,
            "point_coords": [[63, 47], [40, 30]],
            "point_labels": [0, 0],
        },
        {
            "area": 800.0,
            "iscrowd": 1,
            "image_id": 25,
            "bbox": [0.0, 0.0, 20.0, 48.0],
            "category_id": 18,
            "id": 900100000158,
            "point_coords": [[3, 3], [19, 40]],
            "point_labels": [1, 0],
        },
    ],
    "categories": [
        {"supercategory": "animal", "id": 18, "name": "dog"},
        {"supercategory": "kitchen", "id": 44, "name": "bottle"},
    ],
}
POINTSUP_NAME = "instances_train2017_n5_v1_without_masks.json"


def pointsup_folder(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    for image in POINTSUP["images"]:
        picture = smooth_picture(48, 64, seed=image["id"])  # type: ignore[index]
        picture.save(root / "train2017" / image["file_name"])  # type: ignore[index]
    (root / "annotations" / POINTSUP_NAME).write_text(json.dumps(POINTSUP))
    return root


@pytest.mark.parametrize("how", ["folder", "yaml"])
def test_pointsups_file_is_read_as_it_is(tmp_path: Path, cache: Path, how: str) -> None:
    root = pointsup_folder(tmp_path / "coco")
    data = root
    if how == "yaml":
        data = tmp_path / "mine.yaml"
        data.write_text(
            f"splits:\n  train: {{annotations: coco/annotations/{POINTSUP_NAME}, images: coco/train2017}}\n"
        )
    report = check(data)
    assert report.problems == ()
    assert report.census["train"].objects == {"none": 0, "point": 0, "box": 0, "points": 2, "mask": 0}
    assert (report.census["train"].crowds, report.census["train"].one_label_points) == (1, 1)
    assert "2 points, 1 crowds, 1 with points of one label only" in report.to_text()
    files = locate(data)["train"]
    store = AnnotationStore.open(files.annotations, files.images)
    assert store.census() == report.census["train"]
    assert "2 points (1 with points of one label only); 1 crowd" in store.census().to_text()
    dog = store[0].objects[0]
    assert (dog.supervision, dog.segmentation, dog.category) == (Supervision.POINTS, None, 0)
    assert dog.points_xy.tolist() == [[12.5, 7.5], [40.5, 24.5], [10.5, 5.5], [25.5, 15.5], [25.5, 15.5]]
    assert dog.point_labels.tolist() == [1, 0, 0, 1, 1]
    dataset = TrainDataset(store, data_config(128), calm(), seed=0)
    samples = {sample.image_id: sample for sample in (dataset[0], dataset[1])}
    target = samples[9].target
    assert target.exhaustive
    assert target.instances.ids.tolist() == [156]
    assert target.instances.supervision.tolist() == [int(Supervision.POINTS)]
    assert target.instances.points is not None
    assert target.instances.point_labels is not None
    # 64 x 48 on a canvas of 128: twice as large, and placed where the frame says.
    down = samples[9].frame.shift[1]
    assert np.allclose(target.instances.points[0].numpy(), 2 * dog.points_xy + [0, down])
    assert np.allclose(target.instances.boxes[0].numpy(), [21, 10.5 + down, 81, 50.5 + down])
    assert target.instances.point_labels.tolist() == [[1, 0, 0, 1, 1]]
    assert not any(crop.any() for crop in target.instances.masks)
    other = samples[25].target
    assert other.instances.ids.tolist() == [157]
    assert len(other.ignore) == 1


def test_pointsups_file_beside_cocos_own_must_be_chosen(tmp_path: Path) -> None:
    root = pointsup_folder(tmp_path / "coco")
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"both split 'train'; name the one you mean in a YAML: splits: ") as raised:
        locate(root)
    suggested = tmp_path / "suggested.yaml"
    suggested.write_text(str(raised.value)[str(raised.value).index("splits: {") :])
    assert locate(suggested)["train"].annotations == root / "annotations" / POINTSUP_NAME


def test_pointsups_file_without_its_images_says_where_they_were_looked_for(tmp_path: Path) -> None:
    root = pointsup_folder(tmp_path / "coco")
    (root / "train2017").rename(root / "elsewhere")
    assert locate(root)["train"].images == root / "elsewhere"  # it has what the file names
    shutil.rmtree(root / "elsewhere")
    with pytest.raises(
        DataError, match=rf"no images found for .*{POINTSUP_NAME}: looked for images/ and train2017/ in"
    ):
        locate(root)


# Geometry


def polygon(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random star-shaped outline, often concave, that may reach out of the image."""
    corners = int(rng.integers(3, 12))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.1, 0.5, corners) * min(size)
    centre = rng.uniform(0.2, 0.8, 2) * size[::-1]
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def outline_distances(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """(P,) distance of (P, 2) points from the sides of a closed (V, 2) polygon."""
    start, side = outline, np.roll(outline, -1, axis=0) - outline
    along = ((points[:, None] - start) * side).sum(-1) / (side**2).sum(-1)
    nearest = start + np.clip(along, 0, 1)[..., None] * side
    return np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)


@dataclass(frozen=True)
class Labelled:
    """A mask with points on it. row: the points as COCO has them. distances: from the mask's boundary, image pixels."""

    segmentation: Any
    row: dict[str, Any]
    distances: np.ndarray
    size: tuple[int, int]


def random_object(rng: np.random.Generator, as_rle: bool) -> Labelled:
    size = (int(rng.integers(30, 200)), int(rng.integers(30, 200)))
    pixels = np.stack([rng.integers(0, size[1], 40), rng.integers(0, size[0], 40)], axis=1)
    if as_rle:
        rle = drawn = encode(blob(size, rng))
        distances = boundary_distances(rle, pixels) - 0.5  # from the middle of a pixel to the edge of the other one
    else:
        outline = polygon(size, rng)
        rle, drawn = rle_of({"segmentation": [outline.reshape(-1).tolist()]}, size), [outline]
        distances = outline_distances(pixels + 0.5, outline)
    row = {"point_coords": pixels.tolist(), "point_labels": labels_at(rle, pixels).tolist()}
    return Labelled(drawn, row, distances, size)


@settings(deadline=None, max_examples=300)
@given(seed=seeds, as_rle=st.booleans(), zoom=st.sampled_from([(1.0, 1.0), (0.1, 2.0), (0.4, 4.0)]))
def test_points_stay_on_their_side_of_the_mask_under_every_geometry(
    seed: int, as_rle: bool, zoom: tuple[float, float]
) -> None:
    rng = np.random.default_rng(seed)
    made = random_object(rng, as_rle)
    frame = random_frame(made.size, SIDE, AugmentConfig(scale_jitter=zoom), rng)
    points_xy, labels = points_of(made.row)
    record = object_record(
        segmentation=made.segmentation, supervision=Supervision.MASK, points_xy=points_xy, point_labels=labels
    )
    placement = place(image_record([record], made.size), frame)
    if not placement.objects:
        return
    item, target = placement.objects[0], to_target(placement).instances
    naive = mapped_by_hand(made.row["point_coords"], frame)
    assert np.allclose(item.points, naive, rtol=0, atol=1e-9)
    assert target.points is not None
    assert target.point_labels is not None
    assert np.allclose(target.points[0].numpy(), naive, rtol=1e-6, atol=1e-5)
    shown = ((naive >= 0) & (naive < SIDE)).all(axis=1)
    assert target.point_labels[0].tolist() == np.where(shown, labels, -1).tolist()
    canvas = np.zeros((SIDE, SIDE), dtype=np.uint8)
    x, y, width, height = item.region
    canvas[y : y + height, x : x + width] = item.crop
    # Rasterising and resampling move an outline by up to a pixel, of the image or of the canvas, whichever is larger.
    sure = shown & (made.distances > max(1, 1 / min(frame.scale)))
    columns, lines = np.floor(naive[sure]).astype(int).T
    assert (canvas[lines, columns] == labels[sure]).all()


def mapped_by_hand(point_coords: list[list[int]], frame: Frame) -> np.ndarray:
    """(P, 2) where pixel indices lie on the canvas: the middle of the pixel, scaled, shifted and then mirrored."""
    mapped = [
        (frame.scale[0] * (x + 0.5) + frame.shift[0], frame.scale[1] * (y + 0.5) + frame.shift[1])
        for x, y in point_coords
    ]
    return np.array([(x if frame.flip_width is None else frame.flip_width - x, y) for x, y in mapped])


def scene(seed: int, first_id: int, value: int) -> Scene:
    """A canvas of one value with three objects that have points: a mask, a polygon and a box."""
    rng = np.random.default_rng(seed)
    made = [random_object(rng, as_rle) for as_rle in (True, False, False)]
    size = made[0].size
    frame = random_frame(size, SIDE, AugmentConfig(scale_jitter=(0.4, 2.0)), rng)
    objects = []
    for number, item in enumerate(made):
        pixels = np.minimum(item.row["point_coords"], np.array(size[::-1]) - 1)
        points, labels = points_of({**item.row, "point_coords": pixels.tolist()})
        given: dict[str, Any] = {"points_xy": points, "point_labels": labels}
        if number == 2:
            box = [0, 0, size[1] * 0.7, size[0] * 0.7]
            objects.append(object_record(first_id + 2, box_xyxy=box, supervision=Supervision.POINTS, **given))
        else:
            drawn = {"segmentation": item.segmentation, "supervision": Supervision.MASK}
            objects.append(object_record(first_id + number, **drawn, **given))
    pixels = np.full((SIDE, SIDE, 3), value, dtype=np.uint8)
    return Scene(pixels, frame, place(image_record(objects, size), frame))


@settings(deadline=None, max_examples=100)
@given(seed=seeds)
def test_copy_paste_hides_exactly_the_points_below_what_it_pastes(seed: int) -> None:
    onto, donor = scene(seed, 1, 10), scene(seed + 1, 11, 200)
    found = paste(onto, donor, np.random.default_rng(seed))
    covered = found.pixels[..., 0] == 200
    before = {item.source.id: item for item in (*onto.placement.objects, *donor.placement.objects)}
    x0, y0, x1, y1 = (round(edge) for edge in onto.frame.content_box)
    for item in found.placement.objects:
        known = before[item.source.id]
        assert (item.points == known.points).all()
        columns, lines = np.clip(np.floor(item.points), 0, SIDE - 1).astype(int).T
        if item.source.id > 10:
            hidden = (columns < x0) | (columns >= x1) | (lines < y0) | (lines >= y1)
        else:
            hidden = covered[lines, columns]
        assert item.labels.tolist() == np.where(hidden, -1, known.labels).tolist()
