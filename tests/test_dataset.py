"""Targets follow the canvas exactly; no annotated object becomes background; streams repeat."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import (
    annotation,
    calm,
    data_config,
    encode,
    image_record,
    mixed_rows,
    object_record,
    open_store,
    smooth_picture,
    write_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leanmask.config import AugmentConfig
from leanmask.data.coco import AnnotationStore
from leanmask.data.dataset import MOST_FAILURES, EvalDataset, Sample, TrainDataset, collate
from leanmask.data.views.augment import fitted_frame, random_frame
from leanmask.data.views.copy_paste import Scene, box_share, paste
from leanmask.data.views.targets import place, to_target
from leanmask.errors import ConfigError, DataError
from leanmask.geometry import Frame, transform_boxes, transform_points
from leanmask.records import Supervision, Target

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

seeds = st.integers(0, 2**32 - 1)
WILD = AugmentConfig(scale_jitter=(0.4, 2.5))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANMASK_CACHE", str(tmp_path_factory.mktemp("cache")))


def whole(side: int = 100) -> Frame:
    return fitted_frame((side, side), side)


def shifted(dx: float, dy: float = 0.0, side: int = 100) -> Frame:
    return Frame((side, side), (side, side), (1.0, 1.0), (dx, dy))


def full_mask(target: Target, index: int, side: int) -> np.ndarray:
    full = np.zeros((side, side), dtype=np.uint8)
    x, y, w, h = target.instances.masks.regions[index].tolist()
    full[y : y + h, x : x + w] = list(target.instances.masks)[index].numpy()
    return full


def ellipse(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mask, and its centre and radii in pixels."""
    centre = rng.uniform(0.25, 0.75, 2) * size[::-1]
    radii = rng.uniform(0.1, 0.25, 2) * min(size)
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    inside = ((np.stack([xs, ys], -1) - centre) / radii) ** 2
    return (inside.sum(-1) <= 1).astype(np.uint8), centre, radii


# One object at a time


@given(seeds, st.booleans())
def test_points_follow_the_mask_through_every_geometry(seed: int, as_rle: bool) -> None:
    """A point well inside a big object stays on its mask, one well outside stays off it."""
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(60, 200)), int(rng.integers(60, 200)))
    mask, centre, radii = ellipse(size, rng)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    segmentation: Any = encode(mask) if as_rle else [centre + radii * circle]
    reach = rng.uniform(0, 2, 20)
    points = centre + radii * reach[:, None] * circle[rng.integers(0, 60, 20)]
    labels = (reach < 1).astype(np.int64)
    frame = random_frame(size, 96, WILD, rng)
    record = object_record(
        segmentation=segmentation, supervision=Supervision.MASK, points_xy=points, point_labels=labels
    )
    placement = place(image_record([record], size), frame)
    mapped = transform_points(points, frame.matrix)
    if not placement.objects:
        return
    target = to_target(placement)
    full = full_mask(target, 0, 96)
    on_canvas = ((mapped >= 0) & (mapped < 96)).all(1)
    assert np.allclose(target.instances.points[0].numpy(), mapped, atol=1e-3)
    assert np.array_equal(target.instances.point_labels[0].numpy(), np.where(on_canvas, labels, -1))
    # Rasterising and resampling may err by a pixel of the image and one of the canvas at the outline.
    margin = (1.5 + 1.5 / min(frame.scale)) / radii.min()
    sure = on_canvas & (np.abs(reach - 1) > margin)
    columns, rows = np.floor(mapped[sure]).astype(int).T
    assert np.array_equal(full[rows, columns], labels[sure])


@given(seeds, st.booleans())
def test_boxes_are_tight_around_crops(seed: int, as_rle: bool) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(40, 200)), int(rng.integers(40, 200)))
    mask, centre, radii = ellipse(size, rng)
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    polygon = centre + radii * np.stack([np.cos(angles), np.sin(angles)], -1)
    frame = random_frame(size, 96, WILD, rng)
    record = object_record(segmentation=encode(mask) if as_rle else [polygon], supervision=Supervision.MASK)
    for item in place(image_record([record], size), frame).objects:
        x, y, w, h = item.region
        assert item.crop[0].any()
        assert item.crop[-1].any()
        assert item.crop[:, 0].any()
        assert item.crop[:, -1].any()
        assert np.abs(item.box - [x, y, x + w, y + h]).max() < 1
        assert (item.box >= 0).all()
        assert (item.box <= 96).all()


def test_boxes_of_whole_masks_are_exact_and_of_cut_ones_recomputed() -> None:
    triangle = [np.array([[10.3, 10.2], [50.6, 10.2], [10.3, 70.9]])]
    record = object_record(segmentation=triangle, supervision=Supervision.MASK, box_xyxy=[0, 0, 99, 99])
    (item,) = place(image_record([record], (100, 100)), whole()).objects
    assert item.box.tolist() == pytest.approx([10.3, 10.2, 50.6, 70.9])  # its own, whatever the file's box says
    (item,) = place(image_record([record], (100, 100)), shifted(-30.3)).objects
    assert item.box[[0, 1, 2]].tolist() == pytest.approx([0, 10.2, 20.3])
    assert 39 <= item.box[3] <= 43  # the right half of a triangle is lower than the whole: 10.2 + 60.7 * 20.3 / 40.3


@given(seeds)
def test_boxes_without_masks_are_mapped_and_clipped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 100, (2, 2)), axis=0)
    box = corners.reshape(-1)
    frame = random_frame((100, 100), 96, WILD, rng)
    mapped = transform_boxes(box[None], frame.matrix)[0]
    clipped = np.clip(mapped, 0, 96)
    width, height = clipped[2:] - clipped[:2]
    share = width * height / np.prod(mapped[2:] - mapped[:2])
    placement = place(image_record([object_record(box_xyxy=box)], (100, 100)), frame)
    if min(width, height) < 1 or share < 0.05:
        assert not placement.objects
        assert len(placement.ignore) == (min(width, height) > 0)
        assert all(np.allclose(found, clipped) for found in placement.ignore)
    else:
        assert np.allclose(placement.objects[0].box, clipped)
        assert not placement.ignore


def test_a_mask_that_is_cropped_away_leaves_nothing() -> None:
    square = encode(np.pad(np.ones((10, 10)), 45))
    record = object_record(segmentation=square, supervision=Supervision.MASK)
    placement = place(image_record([record], (100, 100)), shifted(-80))
    assert (placement.objects, placement.ignore, placement.exhaustive) == ((), (), True)


@pytest.mark.parametrize("as_rle", [True, False])
def test_a_mask_too_small_for_the_canvas_becomes_an_ignore_region(as_rle: bool) -> None:
    mask = np.zeros((1000, 1000), dtype=np.uint8)
    mask[501:504, 503:506] = 1
    polygon = [np.array([[503.0, 501.0], [506.0, 501.0], [506.0, 504.0], [503.0, 504.0]])]
    record = object_record(segmentation=encode(mask) if as_rle else polygon, supervision=Supervision.MASK)
    placement = place(image_record([record], (1000, 1000)), fitted_frame((1000, 1000), 64))
    assert not placement.objects
    assert placement.ignore[0].tolist() == pytest.approx([503 * 0.064, 501 * 0.064, 506 * 0.064, 504 * 0.064])


def test_a_lone_point_that_is_cropped_makes_the_image_partial() -> None:
    point = object_record(
        supervision=Supervision.POINT, points_xy=np.array([[20.0, 50.0]]), point_labels=np.ones(1, np.int64)
    )
    record = image_record([point], (100, 100))
    target = to_target(place(record, whole()))
    assert target.exhaustive
    assert torch.isnan(target.instances.boxes).all()
    assert target.instances.points.tolist() == [[[20.0, 50.0]]]
    gone = to_target(place(record, shifted(-30)))
    assert len(gone.instances) == 0
    assert not gone.exhaustive


def test_crowds_are_ignored_and_clipped() -> None:
    crowds = np.array([[-5.0, 10.0, 20.0, 30.0], [90.0, 90.0, 95.0, 95.0]])
    record = image_record([], (100, 100), crowd_boxes_xyxy=crowds)
    assert to_target(place(record, shifted(10))).ignore.tolist() == [[5, 10, 30, 30]]
    assert to_target(place(record, whole())).ignore.shape == (2, 4)


def test_everything_said_about_an_object_is_kept() -> None:
    kinds = [
        object_record(11, box_xyxy=[1, 2, 30, 40], category=3, weight=0.25, provenance="round 1"),
        object_record(12, segmentation=encode(np.ones((100, 100))), supervision=Supervision.MASK, category=1),
        object_record(
            13,
            box_xyxy=[5, 5, 50, 50],
            supervision=Supervision.POINTS,
            points_xy=np.array([[10.5, 10.5], [40.5, 30.5], [99.5, 99.5]]),
            point_labels=np.array([1, 0, 1]),
        ),
    ]
    target = to_target(place(image_record(kinds, (100, 100), exhaustive=False), whole()))
    found = target.instances
    assert not target.exhaustive
    assert found.ids.tolist() == [11, 12, 13]
    assert found.categories.tolist() == [3, 1, 0]
    assert found.weights.tolist() == [0.25, 1, 1]
    assert found.supervision.tolist() == [Supervision.BOX, Supervision.MASK, Supervision.POINTS]
    assert found.provenance == ("round 1", "human", "human")
    assert found.boxes.dtype == torch.float32
    assert found.masks.data.dtype == torch.uint8
    assert found.masks.regions.tolist() == [[0, 0, 0, 0], [0, 0, 100, 100], [0, 0, 0, 0]]
    assert found.point_labels.tolist() == [[-1] * 3, [-1] * 3, [1, 0, 1]]
    assert found.points.shape == (3, 3, 2)


def test_an_image_without_objects_has_a_whole_target() -> None:
    target = to_target(place(image_record([], (10, 10)), whole(32)))
    assert target.instances.boxes.shape == target.ignore.shape == (0, 4)
    assert target.instances.points is None
    assert len(target.instances.masks) == len(target.instances.ids) == 0
    assert target.instances.provenance == ()


def target_bytes(target: Target) -> int:
    found = target.instances
    tensors = [found.boxes, found.categories, found.supervision, found.weights, found.ids, target.ignore]
    tensors += [found.masks.data, found.masks.regions]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("as_rle", [True, False])
def test_300_objects_at_1024_px_take_under_15_mb(as_rle: bool) -> None:
    """Measured: 0.73 MB, where dense masks would take 300 MB."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(300):
        x, y = rng.integers(0, 974, 2)
        w, h = rng.integers(25, 76, 2)
        polygon = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], dtype=np.float64)
        mask = np.zeros((1050, 1050), dtype=np.uint8)
        mask[y : y + h, x : x + w] = 1
        segmentation: Any = encode(mask) if as_rle else [polygon]
        records.append(object_record(number, segmentation=segmentation, supervision=Supervision.MASK))
    target = to_target(place(image_record(records, (1050, 1050)), fitted_frame((1050, 1050), 1024)))
    assert len(target.instances) == 300
    assert target_bytes(target) < 1.2e6
    assert len(pickle.dumps(target)) < 15e6


# CopyPaste


def scene(records: list[Any], value: int, frame: Frame | None = None, **given: Any) -> Scene:
    frame = frame or whole()
    pixels = np.full((*frame.canvas_size, 3), value, dtype=np.uint8)
    return Scene(pixels, frame, place(image_record(records, frame.image_size, **given), frame))


def rectangle(number: int, box: list[int], **given: Any) -> Any:
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return object_record(
        number, **{"segmentation": encode(mask), "supervision": Supervision.MASK, "box_xyxy": box, **given}
    )


def pasted(onto: list[Any], donor: list[Any], **given: Any) -> Scene:
    return paste(scene(onto, 10, **given), scene(donor, 200), np.random.default_rng(0))


def ids(found: Scene) -> list[int]:
    return [item.source.id for item in found.placement.objects]


def test_pixels_and_masks_are_pasted_together() -> None:
    found = pasted([rectangle(1, [10, 10, 60, 60])], [rectangle(2, [40, 40, 80, 80])])
    assert ids(found) == [1, 2]
    assert (found.pixels[40:80, 40:80] == 200).all()
    assert (found.pixels == 200).sum() == 40 * 40 * 3
    below, above = found.placement.objects
    assert above.source.supervision == Supervision.MASK
    assert above.box.tolist() == [40, 40, 80, 80]
    assert below.crop.sum() == 50 * 50 - 20 * 20
    assert below.box.tolist() == [10, 10, 60, 60]


def test_covered_masks_get_a_new_box_or_go() -> None:
    cut = pasted([rectangle(1, [10, 10, 60, 60])], [rectangle(2, [30, 0, 70, 100])])
    assert cut.placement.objects[0].box.tolist() == [10, 10, 30, 60]
    assert cut.placement.objects[0].crop.sum() == 20 * 50
    # At 100 px mmdetection's 10 px and 300 mask pixels become 1.25 px and 4.7 pixels.
    sliver = pasted([rectangle(1, [10, 10, 60, 13])], [rectangle(2, [11, 0, 70, 100])])
    assert ids(sliver) == [2]
    assert [box.tolist() for box in sliver.placement.ignore] == [[10, 10, 11, 13]]
    hidden = pasted([rectangle(1, [10, 10, 60, 60])], [rectangle(2, [5, 5, 65, 65])])
    assert ids(hidden) == [2]
    assert hidden.placement.ignore == ()


def test_boxes_without_masks_stay_while_half_is_visible() -> None:
    box = object_record(1, box_xyxy=[10, 10, 50, 50])
    assert ids(pasted([box], [rectangle(2, [10, 10, 29, 50])])) == [1, 2]
    gone = pasted([box], [rectangle(2, [10, 10, 31, 50])])
    assert ids(gone) == [2]
    assert [found.tolist() for found in gone.placement.ignore] == [[10, 10, 50, 50]]


def test_points_below_a_paste_are_not_points_any_more() -> None:
    points = {"points_xy": np.array([[15.0, 15.0], [45.0, 45.0]]), "point_labels": np.array([1, 0])}
    record = object_record(1, box_xyxy=[10, 10, 50, 50], supervision=Supervision.POINTS, **points)
    found = pasted([record], [rectangle(2, [40, 40, 60, 60])])
    assert found.placement.objects[0].labels.tolist() == [1, -1]
    lone = object_record(1, supervision=Supervision.POINT, **points)
    assert not pasted([lone], [rectangle(2, [0, 0, 30, 30])]).placement.exhaustive
    assert pasted([lone], [rectangle(2, [60, 60, 70, 70])]).placement.exhaustive


def test_only_masks_drawn_by_people_are_pasted() -> None:
    donors = [
        object_record(2, box_xyxy=[0, 0, 50, 50]),
        rectangle(3, [10, 10, 20, 20], provenance="teacher"),
        rectangle(4, [10, 10, 20, 20], supervision=Supervision.NONE),
    ]
    onto = scene([rectangle(1, [0, 0, 9, 9])], 10)
    assert paste(onto, scene(donors, 200), np.random.default_rng(0)) is onto
    assert paste(onto, scene([], 200), np.random.default_rng(0)) is onto


def test_what_lies_on_a_pasted_object_comes_along() -> None:
    wall, window, car = rectangle(2, [0, 0, 60, 60]), rectangle(3, [10, 10, 20, 20]), rectangle(4, [80, 80, 99, 99])
    door = object_record(5, box_xyxy=[30, 30, 40, 50])
    seen = set()
    for seed in range(40):
        found = paste(scene([], 10), scene([wall, window, car, door], 200), np.random.default_rng(seed))
        chosen = ids(found)
        seen.add(tuple(chosen))
        assert 2 not in chosen or 3 in chosen
        assert [box.tolist() for box in found.placement.ignore] == ([[30, 30, 40, 50]] if 2 in chosen else [])
    assert {(3,), (4,), (2, 3), (2, 3, 4)} <= seen


def test_pastes_stay_on_the_content() -> None:
    frame = fitted_frame((50, 100), 100)  # lower half is padding
    onto = Scene(np.full((100, 100, 3), 10, np.uint8), frame, place(image_record([], (50, 100)), frame))
    found = paste(onto, scene([rectangle(2, [20, 30, 40, 90])], 200), np.random.default_rng(0))
    assert found.placement.objects[0].region == (20, 30, 20, 20)
    assert (found.pixels[50:] == 10).all()
    assert paste(onto, scene([rectangle(2, [20, 60, 40, 90])], 200), np.random.default_rng(0)) is onto


@given(seeds)
def test_no_visible_mask_overlaps_a_paste(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(first: int) -> list[Any]:
        corners = rng.integers(0, 90, (5, 2))
        ends = corners + rng.integers(3, 50, (5, 2))
        return [rectangle(first + i, [*corners[i], *np.minimum(ends[i], 100)]) for i in range(5)]

    onto = scene(some(1), 10)
    found = paste(onto, scene(some(100), 200), rng)
    target = to_target(found.placement)
    painted = (found.pixels == 200).all(-1)
    union = np.zeros((100, 100), dtype=bool)
    for index, number in enumerate(target.instances.ids.tolist()):
        mask = full_mask(target, index, 100) > 0
        if number < 100:
            assert not (mask & painted).any()
        else:
            union |= mask
    assert np.array_equal(union, painted)
    assert (onto.pixels == 10).all()


def test_share_of_a_box() -> None:
    cover = np.zeros((10, 10), dtype=np.uint8)
    cover[:, :5] = 1
    assert box_share(np.array([0.0, 0.0, 10.0, 10.0]), cover) == 0.5
    assert box_share(np.array([2.2, 2.2, 2.4, 2.4]), cover) == 1
    assert box_share(np.full(4, np.nan), cover) == 0


# Streams


def same(first: Sample, second: Sample) -> bool:
    strong = first.strong is None if second.strong is None else torch.equal(first.strong, second.strong)
    return (
        torch.equal(first.weak, second.weak)
        and strong
        and first.frame == second.frame
        and first.file == second.file
        and torch.equal(first.target.instances.boxes, second.target.instances.boxes)
        and torch.equal(first.target.instances.masks.data, second.target.instances.masks.data)
    )


def test_positions_give_the_same_sample_in_any_order(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    config = AugmentConfig(copy_paste_probability=0.5)
    first, second = (TrainDataset(store, data_config(), config, seed=3) for _ in range(2))
    forwards = [first[position] for position in range(15)]
    backwards = [second[position] for position in reversed(range(15))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))
    other = TrainDataset(store, data_config(), config, seed=4)
    assert not all(same(other[position], forwards[position]) for position in range(15))
    assert not same(first[0], next(sample for sample in forwards[6:] if sample.file == forwards[0].file))


def test_every_epoch_shows_every_image_once_in_another_order(tmp_path: Path) -> None:
    dataset = TrainDataset(open_store(tmp_path, count=8), data_config(), calm(), seed=0)
    epochs = [[dataset[position].image_id for position in range(8 * e, 8 * e + 8)] for e in range(3)]
    assert all(sorted(epoch) == list(range(1, 9)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_weak_and_strong_views_share_their_geometry(tmp_path: Path) -> None:
    """With the photometric part off, the views are equal to the pixel; with it on, geometry and targets are unmoved."""
    store = open_store(tmp_path)
    still = AugmentConfig(colour_probability=0, grey_probability=0, blur_probability=0)
    plain = TrainDataset(store, data_config(), still, seed=1)
    noisy = TrainDataset(store, data_config(), AugmentConfig(erase=True), seed=1)
    weak_only = TrainDataset(store, data_config(), AugmentConfig(strong=False), seed=1)
    changed = 0
    for position in range(6):
        a, b, c = plain[position], noisy[position], weak_only[position]
        assert torch.equal(a.weak, a.strong)
        assert torch.equal(a.weak, b.weak)
        assert torch.equal(a.weak, c.weak)
        assert a.frame == b.frame == c.frame
        assert torch.equal(a.target.instances.boxes, b.target.instances.boxes)
        assert c.strong is None
        changed += not torch.equal(b.weak, b.strong)
    assert changed >= 4


def test_masks_lie_on_their_objects_in_the_picture(tmp_path: Path) -> None:
    """Bright squares on black: after every augmentation the masks are where it is bright."""
    pixels = np.zeros((80, 120, 3), dtype=np.uint8)
    pixels[20:50, 30:80] = 255
    path = write_folder(tmp_path, 1, [annotation(1, 1, [30.0, 20.0, 50.0, 30.0])], size=(80, 120))
    Image.fromarray(pixels).save(tmp_path / "images" / "001.png")
    store = AnnotationStore.open(path, tmp_path / "images")
    dataset = TrainDataset(store, data_config(96), AugmentConfig(scale_jitter=(0.5, 2.0), strong=False), seed=0)
    for position in range(40):
        sample = dataset[position]
        x0, y0, x1, y1 = (round(edge) for edge in sample.frame.content_box)
        bright = sample.weak[0, y0:y1, x0:x1].numpy() > 127
        mask = full_mask(sample.target, 0, 96)[y0:y1, x0:x1] > 0 if len(sample.target.instances) else 0 * bright
        assert (bright != mask).sum() <= 2 * (x1 - x0 + y1 - y0), position
        assert abs(int(bright.sum()) - int(np.sum(mask))) <= (x1 - x0 + y1 - y0)


def test_copy_paste_puts_masks_of_other_images_into_both_views(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    config = calm(strong=True, colour_probability=0, grey_probability=0, blur_probability=0, copy_paste_probability=1)
    dataset = TrainDataset(store, data_config(), config, seed=0)
    foreign = 0
    for position in range(12):
        sample = dataset[position]
        assert torch.equal(sample.weak, sample.strong)
        from_other = sample.target.instances.ids // 3 != sample.image_id
        foreign += int(from_other.sum())
        assert (sample.target.instances.supervision[from_other] == Supervision.MASK).all()
    assert foreign == 12


def test_copy_paste_without_any_mask_is_a_mistake(tmp_path: Path) -> None:
    store = open_store(tmp_path, rows=[annotation(1, 1, [5.0, 5.0, 9.0, 9.0], "box")])
    with pytest.raises(ConfigError, match="no object has a mask"):
        TrainDataset(store, data_config(), calm(copy_paste_probability=0.1), seed=0)


def test_the_only_image_with_masks_is_not_pasted_onto_itself(tmp_path: Path) -> None:
    store = open_store(tmp_path, count=1)
    sample = TrainDataset(store, data_config(), calm(copy_paste_probability=1), seed=0)[0]
    assert sample.target.instances.ids.tolist() == [3, 4, 5]


def test_unlabelled_folders_say_nothing_about_background(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, [])
    store = AnnotationStore.open(None, tmp_path / "images")
    for position in range(3):
        target = TrainDataset(store, data_config(), AugmentConfig(), seed=0)[position].target
        assert len(target.instances) == 0
        assert not target.exhaustive


def test_partially_annotated_images_are_flagged(tmp_path: Path) -> None:
    assert all(
        sample.target.exhaustive for sample in map(EvalDataset(open_store(tmp_path), data_config()).__getitem__, [0, 1])
    )
    record = image_record([], (10, 10), exhaustive=False)
    assert not to_target(place(record, whole(32))).exhaustive


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated"])
def test_a_damaged_image_is_replaced_and_named(tmp_path: Path, damage: str, labelled: bool) -> None:
    path = write_folder(tmp_path, 6, mixed_rows(6))
    store = AnnotationStore.open(path if labelled else None, tmp_path / "images")
    dataset = TrainDataset(store, data_config(), calm(), seed=0)
    position = next(p for p in range(12) if dataset[p].image_id == 2 and dataset[p + 1].image_id != 2)
    broken = tmp_path / "images" / "002.png"
    content = broken.read_bytes()
    if damage == "missing":
        broken.unlink()
    else:
        broken.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"garbage")
    sample = dataset[position]
    assert len(sample.skipped) == 1
    assert "002.png" in sample.skipped[0]
    expected = dataset[position + 1]
    assert sample.file == expected.file
    assert torch.equal(sample.weak, expected.weak)
    assert not any(dataset[p].skipped for p in range(6) if dataset.image_index(p) != dataset.image_index(position))
    assert collate([sample, expected]).skipped == sample.skipped


def test_images_that_cannot_be_read_in_a_row_end_training(tmp_path: Path) -> None:
    store = open_store(tmp_path, count=3)
    dataset = TrainDataset(store, data_config(), calm(), seed=0)
    for broken in (tmp_path / "images").iterdir():
        broken.write_bytes(b"")
    with pytest.raises(DataError, match=f"{MOST_FAILURES} images in a row") as caught:
        dataset[0]
    assert all(str(caught.value).count(f"{number:03}.png") == 1 for number in (1, 2, 3))


def test_an_image_of_another_size_than_its_annotations_is_a_mistake(tmp_path: Path) -> None:
    store = open_store(tmp_path, count=1)
    smooth_picture(10, 20).save(tmp_path / "images" / "001.png")
    for dataset in (TrainDataset(store, data_config(), calm(), seed=0), EvalDataset(store, data_config())):
        with pytest.raises(DataError, match=r"001\.png is 20 x 10 pixels, but its annotations say 64 x 48"):
            dataset[0]


class NoImages:
    def __len__(self) -> int:
        return 0


def test_a_store_without_images_is_a_mistake() -> None:
    with pytest.raises(DataError, match="no images to train on"):
        TrainDataset(NoImages(), data_config(), calm(), seed=0)  # type: ignore[arg-type]


def test_turned_photos_of_a_plain_folder(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth_picture(40, 80).save(tmp_path / "phone.jpg", exif=exif)
    store = AnnotationStore.open(None, tmp_path)
    for mode, size in (("apply", (80, 40)), ("ignore", (40, 80))):
        assert EvalDataset(store, data_config(exif=mode))[0].frame.image_size == size
        assert TrainDataset(store, data_config(exif=mode), AugmentConfig(), 0)[0].frame.image_size == size
    with pytest.raises(DataError, match="EXIF"):
        EvalDataset(store, data_config())[0]


# Evaluation and batches


def test_evaluation_shows_whole_images_in_order(tmp_path: Path) -> None:
    dataset = EvalDataset(open_store(tmp_path, count=3), data_config())
    samples = [dataset[index] for index in range(len(dataset))]
    assert [sample.image_id for sample in samples] == [1, 2, 3]
    assert all(sample.frame == fitted_frame((48, 64), 64) for sample in samples)
    assert all(sample.strong is None for sample in samples)
    assert samples[0].target.instances.boxes.tolist() == [[5, 6, 25, 21], [30, 10, 55, 40], [8, 26, 22, 44]]


def test_evaluation_never_leaves_an_image_out(tmp_path: Path) -> None:
    dataset = EvalDataset(open_store(tmp_path, count=2), data_config())
    (tmp_path / "images" / "002.png").write_bytes(b"garbage")
    assert dataset[0].image_id == 1
    with pytest.raises(DataError, match=r"002\.png"):
        dataset[1]


def test_a_batch_holds_its_samples(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    dataset = TrainDataset(store, data_config(), AugmentConfig(), seed=0)
    samples = [dataset[position] for position in range(4)]
    views = collate(samples)
    assert views.weak.shape == views.strong.shape == (4, 3, 64, 64)
    assert views.weak.dtype == torch.float32
    assert 0 <= views.weak.min() < 0.5 < views.weak.max() <= 1
    assert all(torch.equal((views.strong[i] * 255).round().byte(), samples[i].strong) for i in range(4))
    assert views.image_ids == tuple(sample.image_id for sample in samples)
    assert all(target is sample.target for target, sample in zip(views.targets, samples, strict=True))
    weak_only = collate([EvalDataset(store, data_config())[0]])
    assert weak_only.strong is weak_only.weak


def test_datasets_travel_to_other_processes(tmp_path: Path) -> None:
    dataset = TrainDataset(open_store(tmp_path), data_config(), AugmentConfig(copy_paste_probability=0.5), seed=0)
    content = pickle.dumps(dataset)
    assert len(content) < 10_000
    assert same(pickle.loads(content)[5], dataset[5])
