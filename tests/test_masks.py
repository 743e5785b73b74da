"""Masks against pycocotools and naive oracles: RLE text, crops, resampling on the canvas, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from leanmask.errors import DataError
from leanmask.geometry import Frame, transform_points
from leanmask.masks import Crops, Grids, Rles, to_rles
from leanmask.rle import decode_counts, encode_crop, network_crop, polygon_crop, rle_crop, segmentation_bounds

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

seeds = st.integers(0, 2**32 - 1)


def random_mask(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blobs, noise, full, empty, or whole columns: what RLE has corner cases for."""
    kind = rng.integers(5)
    if kind == 0:
        return np.zeros((height, width), dtype=np.uint8)
    if kind == 1:
        return np.ones((height, width), dtype=np.uint8)
    if kind == 2:
        return (rng.random((height, width)) < rng.random()).astype(np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        y, x = int(rng.integers(height)), int(rng.integers(width))
        mask[y : y + int(rng.integers(1, height + 1)), x : x + int(rng.integers(1, width + 1))] = 1
    if kind == 3:
        mask[:, int(rng.integers(width)) :] = 1
    return mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask))


def frame_of(size: tuple[int, int], canvas: tuple[int, int], **given: Any) -> Frame:
    return Frame(
        image_size=size,
        canvas_size=canvas,
        scale=given.get("scale", (1.0, 1.0)),
        shift=given.get("shift", (0.0, 0.0)),
        flip_width=given.get("flip_width"),
    )


def on_canvas(crop: np.ndarray, region: tuple[int, int, int, int], canvas: tuple[int, int]) -> np.ndarray:
    full = np.zeros(canvas, dtype=np.uint8)
    x, y, w, h = region
    assert 0 <= x <= x + w <= canvas[1]
    assert 0 <= y <= y + h <= canvas[0]
    assert crop.shape == (h, w)
    full[y : y + h, x : x + w] = crop
    return full


# RLE text


@given(seeds, st.integers(1, 40), st.integers(1, 40))
def test_decode_counts_gives_the_runs(seed: int, height: int, width: int) -> None:
    mask = random_mask(np.random.default_rng(seed), height, width)
    rle = encode(mask)
    flat = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    for counts in (rle["counts"], rle["counts"].decode(), runs.tolist()):
        assert decode_counts(counts).tolist() == runs.tolist()


def test_decode_counts_of_large_images() -> None:
    mask = np.zeros((3000, 4000), dtype=np.uint8)
    mask[1000:2000, 1500:2500] = 1
    mask[2999, 3999] = 1
    runs = decode_counts(encode(mask)["counts"])
    assert runs.sum() == mask.size
    assert runs[1::2].sum() == mask.sum()


@pytest.mark.parametrize("counts", ["é0", "0\n", b"\xff0", "0 0", "o", b"1`"])
def test_decode_counts_names_broken_text(counts: str | bytes) -> None:
    with pytest.raises(DataError, match="RLE counts"):
        decode_counts(counts)


def test_decode_counts_of_nothing() -> None:
    assert decode_counts(b"").tolist() == []
    assert decode_counts([]).tolist() == []


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_rle_crop_is_a_cut_out_of_the_decoded_mask(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, height, width)
    x, y = int(rng.integers(-width, 2 * width)), int(rng.integers(-height, 2 * height))
    w, h = int(rng.integers(0, 2 * width)), int(rng.integers(0, 2 * height))
    padded = np.pad(mask, ((height, 4 * height), (width, 4 * width)))
    expected = padded[y + height : y + height + h, x + width : x + width + w]
    assert np.array_equal(rle_crop(encode(mask), (x, y, w, h)), expected)


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_encode_crop_equals_pycocotools(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(-10, width + 3)), int(rng.integers(-10, height + 3))
    w, h = int(rng.integers(0, 15)), int(rng.integers(0, 15))
    crop = random_mask(rng, max(h, 1), max(w, 1))[:h, :w]
    padded = np.zeros((height + 60, width + 60), dtype=np.uint8)
    padded[y + 20 : y + 20 + h, x + 20 : x + 20 + w] = crop
    expected = padded[20 : 20 + height, 20 : 20 + width]
    rle = encode_crop(crop, (x, y, w, h), (height, width))
    assert np.array_equal(coco_mask.decode(rle), expected)
    assert rle["counts"] == encode(expected)["counts"]
    assert rle["size"] == [height, width]


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_bounds_of_rle_are_tight(seed: int, height: int, width: int) -> None:
    mask = random_mask(np.random.default_rng(seed), height, width)
    bounds = segmentation_bounds(encode(mask))
    if not mask.any():
        assert bounds is None
        return
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert bounds == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_bounds_of_rle_skip_empty_runs() -> None:
    # Zero-long runs of ones and of zeros: legal, though pycocotools never writes them.
    assert segmentation_bounds({"size": [4, 3], "counts": [2, 0, 3, 2, 5]}) == (1.0, 1.0, 2.0, 3.0)
    assert segmentation_bounds({"size": [4, 3], "counts": [4, 2, 0, 2, 4]}) == (1.0, 0.0, 2.0, 4.0)
    assert segmentation_bounds({"size": [4, 3], "counts": [12]}) is None
    assert segmentation_bounds([]) is None


# Polygons


def random_polygon(rng: np.random.Generator, size: float, corners: int) -> np.ndarray:
    centre, radius = rng.uniform(0, size, 2), rng.uniform(1, size / 2, corners)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    return centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@given(seeds, st.integers(1, 3))
def test_polygon_crop_equals_the_whole_image_rasterised(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [np.clip(random_polygon(rng, 40, int(rng.integers(3, 9))), 0, 40) for _ in range(parts)]
    flat = [polygon.reshape(-1).tolist() for polygon in polygons]
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, 40, 40)))
    x0, y0, x1, y1 = segmentation_bounds(polygons)
    x, y = int(np.floor(x0)), int(np.floor(y0))
    w, h = int(np.ceil(x1)) - x, int(np.ceil(y1)) - y
    crop = polygon_crop(polygons, (x, y, w, h))
    assert np.array_equal(on_canvas(crop, (x, y, w, h), (40, 40)), whole)


def test_polygon_crop_of_an_empty_region() -> None:
    square = [np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])]
    assert polygon_crop(square, (0, 0, 0, 4)).shape == (4, 0)
    assert polygon_crop(square, (0, 0, 3, -1)).shape == (0, 3)


# Image frame to canvas


@given(seeds, st.booleans())
def test_network_crop_at_scale_one_moves_whole_pixels(seed: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 30, 2))
    canvas = tuple(int(n) for n in rng.integers(8, 40, 2))
    shift = tuple(int(n) for n in rng.integers(-20, 20, 2))
    mask = random_mask(rng, height, width)
    frame = frame_of((height, width), canvas, shift=shift, flip_width=float(canvas[1]) if flip else None)
    padded = np.pad(mask, ((60, 60), (60, 60)))
    top, left = 60 - shift[1], 60 - shift[0]
    expected = padded[top : top + canvas[0], left : left + canvas[1]]
    expected = expected[:, ::-1] if flip else expected
    crop, region = network_crop(encode(mask), frame.matrix, canvas)
    assert np.array_equal(on_canvas(crop, region, canvas), expected)
    if not expected.any():
        assert region == (0, 0, 0, 0)


@given(seeds, st.integers(2, 5), st.booleans())
def test_network_crop_enlarges_like_nearest_within_a_rim(seed: int, factor: int, flip: bool) -> None:
    """Away from the mask's outline by one image pixel, every canvas pixel has the value of the image pixel below it."""
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, 12, 10)
    canvas = (12 * factor, 10 * factor)
    frame = frame_of((12, 10), canvas, scale=(factor, factor), flip_width=float(canvas[1]) if flip else None)
    crop, region = network_crop(encode(mask), frame.matrix, canvas)
    full = on_canvas(crop, region, canvas)
    full = full[:, ::-1] if flip else full
    padded = np.pad(mask, 1)
    around = np.stack([padded[dy : dy + 12, dx : dx + 10] for dy in range(3) for dx in range(3)])
    sure_one, sure_zero = (np.kron(part, np.ones((factor, factor))) > 0 for part in (around.min(0), 1 - around.max(0)))
    assert full[sure_one].all()
    assert not full[sure_zero].any()


@given(seeds, st.booleans())
def test_network_crop_reduces_with_antialiasing(seed: int, flip: bool) -> None:
    """Of a mask scaled by 1/4 the area stays within what its outline explains, and deep pixels keep their value."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((80, 96), dtype=np.uint8)
    y, x = rng.integers(0, 40, 2)
    h, w = rng.integers(16, 40, 2)
    mask[y : y + h, x : x + w] = 1
    frame = frame_of((80, 96), (20, 24), scale=(0.25, 0.25), flip_width=24.0 if flip else None)
    crop, region = network_crop(encode(mask), frame.matrix, (20, 24))
    full = on_canvas(crop, region, (20, 24))
    full = full[:, ::-1] if flip else full
    assert abs(int(full.sum()) - h * w / 16) <= (h + w) / 4 + 4
    cells = mask.reshape(20, 4, 24, 4)
    padded = np.pad(cells.min((1, 3)), 1)
    deep = np.stack([padded[dy : dy + 20, dx : dx + 24] for dy in range(3) for dx in range(3)]).min(0) > 0
    assert full[deep].all()
    assert not full[np.pad(cells.max((1, 3)), 1)[1:-1, 1:-1] == 0].any()


@given(seeds)
def test_network_crop_of_polygons_maps_vertices_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale, shift = tuple(rng.uniform(0.3, 3, 2)), tuple(rng.uniform(-10, 10, 2))
    flip = 40.0 if rng.random() < 0.5 else None
    frame = frame_of((40, 40), (40, 40), scale=scale, shift=shift, flip_width=flip)
    polygon = random_polygon(rng, 40, 6)
    crop, region = network_crop([polygon], frame.matrix, (40, 40))
    full = on_canvas(crop, region, (40, 40))
    mapped = transform_points(polygon, frame.matrix)
    inside = winding_contains(mapped, 40)
    far = np.abs(distance_to_outline(mapped, 40)) > 1.0  # COCO's rasteriser may err by half a pixel at the outline
    assert np.array_equal(full[far] > 0, inside[far])


def grid_centres(side: int) -> np.ndarray:
    ys, xs = np.mgrid[:side, :side] + 0.5
    return np.stack([xs, ys], axis=-1)


def winding_contains(polygon: np.ndarray, side: int) -> np.ndarray:
    """Even-odd rule at pixel centres, one edge at a time."""
    centres, inside = grid_centres(side), np.zeros((side, side), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (y0 > centres[..., 1]) != (y1 > centres[..., 1])
        at = x0 + (centres[..., 1] - y0) / (y1 - y0 if y1 != y0 else 1) * (x1 - x0)
        inside ^= crosses & (centres[..., 0] < at)
    return inside


def distance_to_outline(polygon: np.ndarray, side: int) -> np.ndarray:
    centres, best = grid_centres(side), np.full((side, side), np.inf)
    for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        along = end - start
        t = np.clip(((centres - start) @ along) / max(along @ along, 1e-12), 0, 1)
        best = np.minimum(best, np.linalg.norm(centres - (start + t[..., None] * along), axis=-1))
    return best


def test_network_crop_of_nothing() -> None:
    matrix = frame_of((10, 10), (10, 10)).matrix
    away = frame_of((10, 10), (10, 10), shift=(50.0, 0.0)).matrix
    full = encode(np.ones((10, 10), dtype=np.uint8))
    for segmentation, at in ((encode(np.zeros((10, 10), dtype=np.uint8)), matrix), ([], matrix), (full, away)):
        crop, region = network_crop(segmentation, at, (10, 10))
        assert crop.shape == (0, 0)
        assert region == (0, 0, 0, 0)


# The way back


@given(seeds, st.booleans())
def test_crops_come_back_to_the_image_they_came_from(seed: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(2, 30, 2))
    mask = random_mask(rng, height, width)
    factor = int(rng.integers(1, 4))
    canvas = (height * factor + 3, width * factor + 5)
    flip_width = float(canvas[1]) if flip else None
    frame = frame_of((height, width), canvas, scale=(factor, factor), shift=(2.0, 1.0), flip_width=flip_width)
    # Enlarged by repetition, so that the way back is exact.
    large = np.zeros(canvas, dtype=np.uint8)
    large[1 : 1 + height * factor, 2 : 2 + width * factor] = np.kron(mask, np.ones((factor, factor), dtype=np.uint8))
    large = np.ascontiguousarray(large[:, ::-1]) if flip else large
    x0 = (canvas[1] - 2 - width * factor) if flip else 2
    region = (x0, 1, width * factor, height * factor)
    cut = torch.from_numpy(np.ascontiguousarray(large[1 : 1 + region[3], x0 : x0 + region[2]]))
    (rle,) = to_rles(Crops.join([cut], torch.tensor([region])), frame)
    assert np.array_equal(coco_mask.decode(rle), mask)


def test_crops_that_do_not_exist_come_back_empty() -> None:
    rles = list(to_rles(Crops.none(2), frame_of((7, 9), (20, 20))))
    assert [int(coco_mask.area(rle)) for rle in rles] == [0, 0]
    assert rles[0]["size"] == [7, 9]


@given(seeds)
def test_reduced_and_enlarged_masks_come_back_close(seed: int) -> None:
    """There and back through an odd scale: what is two image pixels and two canvas pixels from the outline is right."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 50), dtype=np.uint8)
    y, x = rng.integers(0, 20, 2)
    h, w = rng.integers(12, 30, 2)
    mask[y : y + h, x : x + w] = 1
    scale = tuple(rng.uniform(0.4, 3, 2))
    canvas = (int(60 * scale[1]) + 1, int(50 * scale[0]) + 1)
    flip = float(canvas[1]) if rng.random() < 0.5 else None
    frame = frame_of((60, 50), canvas, scale=scale, flip_width=flip)
    crop, region = network_crop(encode(mask), frame.matrix, canvas)
    (rle,) = to_rles(Crops.join([torch.from_numpy(crop)], torch.tensor([region])), frame)
    wrong = coco_mask.decode(rle) != mask
    rim = int(np.ceil(1 / min(scale))) + 1
    core = mask.copy()
    core[:] = 0
    core[max(y - rim, 0) : y + h + rim, max(x - rim, 0) : x + w + rim] = 1
    core[y + rim : y + h - rim, x + rim : x + w - rim] = 0
    assert not (wrong & (core == 0)).any()


@given(seeds, st.integers(1, 30))
def test_grids_are_pasted_as_torchvision_does(seed: int, cells: int) -> None:
    rng = np.random.default_rng(seed)
    x0, y0 = rng.uniform(0, 30, 2)
    box = [x0, y0, x0 + rng.uniform(1, 30), y0 + rng.uniform(1, 30)]
    values = torch.from_numpy(rng.random((1, cells, cells), dtype=np.float32))
    boxes = torch.tensor([box], dtype=torch.float64)
    expected = paste_masks_in_image(values[:, None], boxes, (64, 64), padding=1)[0, 0] > 0.5
    (rle,) = to_rles(Grids(values, boxes), frame_of((64, 64), (64, 64)))
    assert np.array_equal(coco_mask.decode(rle) > 0, expected.numpy())


def test_grids_of_a_mirrored_frame_are_mirrored_back() -> None:
    values = torch.zeros(1, 8, 8)
    values[:, :, :4] = 1.0  # the left half, as the mirrored network sees it
    frame = frame_of((40, 40), (40, 40), flip_width=40.0)
    (rle,) = to_rles(Grids(values, torch.tensor([[2.0, 8.0, 18.0, 24.0]])), frame)
    columns = coco_mask.decode(rle).any(0).nonzero()[0]
    assert columns.min() >= 29  # the box lies at 22..38 in the image; its right half is the object
    assert columns.max() <= 38


def test_rles_pass_through() -> None:
    items = (encode(np.ones((3, 4), dtype=np.uint8)),)
    assert list(to_rles(Rles(items), frame_of((3, 4), (8, 8)))) == list(items)


# Containers


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6), seeds)
def test_crops_keep_their_masks_apart(sizes: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [torch.from_numpy(rng.integers(0, 2, (h, w), dtype=np.uint8)) for w, h in sizes]
    regions = torch.tensor([[0, 0, w, h] for w, h in sizes], dtype=torch.int64).reshape(-1, 4)
    crops = Crops.join(parts, regions)
    assert len(crops) == len(sizes)
    assert all(torch.equal(found, part) for found, part in zip(crops, parts, strict=True))
    keep = torch.from_numpy(rng.random(len(sizes)) < 0.5)
    kept = crops[keep]
    assert torch.equal(kept.regions, regions[keep])
    assert all(torch.equal(a, parts[i]) for a, i in zip(kept, keep.nonzero()[:, 0].tolist(), strict=True))
    twice = Crops.concatenate([kept, crops])
    assert [part.tolist() for part in twice] == [part.tolist() for part in [*kept, *crops]]


def test_an_empty_selection_keeps_its_type() -> None:
    crops = Crops.join([torch.ones(2, 2)], torch.tensor([[0, 0, 2, 2]]))
    none = crops[torch.zeros(1, dtype=torch.bool)]
    assert len(none) == 0
    assert none.data.dtype == torch.float32
    assert list(none) == []


def test_grids_and_rles_select_by_index() -> None:
    grids = Grids(torch.arange(12.0).reshape(3, 2, 2), torch.arange(12.0).reshape(3, 4))
    assert torch.equal(grids[torch.tensor([2, 0])].values[:, 0, 0], torch.tensor([8.0, 0.0]))
    rles = Rles(tuple({"size": [1, n], "counts": b""} for n in (1, 2, 3)))
    assert [rle["size"][1] for rle in rles[torch.tensor([True, False, True])].items] == [1, 3]
    assert len(rles) == 3


def test_memory_of_a_crop_does_not_depend_on_the_canvas() -> None:
    rle = encode(np.pad(np.ones((20, 20), dtype=np.uint8), 490))
    crop, _ = network_crop(rle, frame_of((1000, 1000), (4096, 4096)).matrix, (4096, 4096))
    assert crop.nbytes == 400
