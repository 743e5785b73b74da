"""The affine matrix between image and canvas, and box formats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.geometry import Frame, transform_boxes, transform_points, xywh_to_xyxy, xyxy_to_xywh

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

sizes = st.tuples(st.integers(1, 500), st.integers(1, 500))
scales = st.floats(0.05, 20)
shifts = st.floats(-300, 300)
frames = st.builds(
    Frame,
    image_size=sizes,
    canvas_size=sizes,
    scale=st.tuples(scales, scales),
    shift=st.tuples(shifts, shifts),
    flip_width=st.none() | st.floats(1, 500),
)
points = st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), max_size=5)


@given(frames, points)
def test_matrix_is_scale_then_shift_then_mirror(frame: Frame, pairs: list[tuple[float, float]]) -> None:
    found = transform_points(np.array(pairs).reshape(-1, 2), frame.matrix)
    for (x, y), mapped in zip(pairs, found, strict=True):
        across = frame.scale[0] * x + frame.shift[0]
        expected = (
            across if frame.flip_width is None else frame.flip_width - across,
            frame.scale[1] * y + frame.shift[1],
        )
        assert mapped == pytest.approx(expected, abs=1e-6)


@given(frames, points)
def test_inverse_undoes_the_matrix(frame: Frame, pairs: list[tuple[float, float]]) -> None:
    there = transform_points(np.array(pairs).reshape(-1, 2), frame.matrix)
    assert np.allclose(transform_points(there, frame.inverse), np.array(pairs).reshape(-1, 2), atol=1e-6)


@given(frames, points)
def test_mirroring_twice_is_identity(frame: Frame, pairs: list[tuple[float, float]]) -> None:
    width = 321.0
    mirror = Frame((1, 1), (1, 1), (1.0, 1.0), (0.0, 0.0), flip_width=width).matrix
    xy = np.array(pairs).reshape(-1, 2)
    assert np.allclose(transform_points(transform_points(xy, mirror), mirror), xy)
    plain = dataclasses.replace(frame, flip_width=None)
    mirrored = dataclasses.replace(frame, flip_width=width)
    again = transform_points(transform_points(xy, mirrored.matrix), mirror)
    assert np.allclose(again, transform_points(xy, plain.matrix), atol=1e-6)


@given(frames)
def test_content_box_holds_exactly_the_canvas_pixels_of_the_image(frame: Frame) -> None:
    x0, y0, x1, y1 = frame.content_box
    height, width = frame.canvas_size
    assert 0 <= x0 <= x1 <= width
    assert 0 <= y0 <= y1 <= height
    centres = np.random.default_rng(0).uniform((0, 0), (width, height), (50, 2))
    back = transform_points(centres, frame.inverse)
    rows, columns = frame.image_size
    inside = ((back > 1e-6) & (back < (columns - 1e-6, rows - 1e-6))).all(axis=1)
    outside = ((back < -1e-6) | (back > (columns + 1e-6, rows + 1e-6))).any(axis=1)
    in_box = ((centres >= (x0, y0)) & (centres <= (x1, y1))).all(axis=1)
    assert in_box[inside].all()
    assert not in_box[outside].any()


@given(frames, st.lists(st.tuples(*[st.floats(-100, 100)] * 2, *[st.floats(0, 100)] * 2), max_size=4))
def test_boxes_are_mapped_corner_by_corner(frame: Frame, rows: list[tuple[float, float, float, float]]) -> None:
    boxes = xywh_to_xyxy(np.array(rows).reshape(-1, 4))
    found = transform_boxes(boxes, frame.matrix)
    for box, mapped in zip(boxes, found, strict=True):
        corners = transform_points(np.array([[box[i], box[j]] for i in (0, 2) for j in (1, 3)]), frame.matrix)
        assert mapped.tolist() == pytest.approx([*corners.min(axis=0), *corners.max(axis=0)])
    assert np.allclose(xyxy_to_xywh(boxes), np.array(rows).reshape(-1, 4))


def test_unknown_boxes_stay_unknown() -> None:
    frame = Frame((10, 10), (20, 20), (2.0, 2.0), (0.0, 0.0), flip_width=20.0)
    boxes = transform_boxes(np.array([[np.nan] * 4, [1.0, 2.0, 3.0, 4.0]]), frame.matrix)
    assert np.isnan(boxes[0]).all()
    assert boxes[1].tolist() == [14.0, 4.0, 18.0, 8.0]
    assert transform_boxes(np.zeros((0, 4)), frame.matrix).shape == (0, 4)
    assert xywh_to_xyxy(np.zeros((0, 4))).shape == xyxy_to_xywh(np.zeros((0, 4))).shape == (0, 4)
