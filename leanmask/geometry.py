"""Boxes and the one affine matrix between an image and the network's input.

Frames. *Image frame*: pixels of the image as the user's file describes it. *Network frame*: pixels of the canvas that
the network sees. In both, coordinates are continuous, x to the right, y down, and pixel (i, j) covers [j, j+1) x [i,
i+1), so its centre is (j + 0.5, i + 0.5). Letters: N boxes, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """How one image lies on the network's canvas: scale and shift per axis, and an optional mirror.

    A point (x, y) of the image frame lies at (scale_x * x + shift_x, scale_y * y + shift_y) before the mirror; the
    mirror maps x to `flip_width - x`. All numbers are pixels.
    """

    image_size: tuple[int, int]  # (height, width) of the image, pixels
    canvas_size: tuple[int, int]  # (height, width) of the network's input, pixels
    scale: tuple[float, float]  # (x, y), canvas pixels per image pixel
    shift: tuple[float, float]  # (x, y), canvas pixels
    flip_width: float | None = None  # mirrored about this width (canvas pixels), None = not mirrored

    @property
    def matrix(self) -> FloatArray:
        """(2, 3) affine matrix from image frame to network frame."""
        (sx, sy), (tx, ty) = self.scale, self.shift
        if self.flip_width is not None:
            sx, tx = -sx, self.flip_width - tx
        return np.array([[sx, 0.0, tx], [0.0, sy, ty]])

    @property
    def inverse(self) -> FloatArray:
        """(2, 3) affine matrix from network frame to image frame."""
        matrix = self.matrix
        sx, sy = matrix[0, 0], matrix[1, 1]
        return np.array([[1 / sx, 0.0, -matrix[0, 2] / sx], [0.0, 1 / sy, -matrix[1, 2] / sy]])

    @property
    def content_box(self) -> tuple[float, float, float, float]:
        """xyxy part of the canvas (network frame) that the image covers; the rest is padding."""
        box = transform_boxes(np.array([[0.0, 0.0, self.image_size[1], self.image_size[0]]]), self.matrix)[0]
        height, width = self.canvas_size
        x0, x1 = np.clip(box[[0, 2]], 0, width)
        y0, y1 = np.clip(box[[1, 3]], 0, height)
        return float(x0), float(y0), float(x1), float(y1)


def transform_points(points_xy: FloatArray, matrix: FloatArray) -> FloatArray:
    """Map (..., 2) points with a (2, 3) affine matrix."""
    return np.asarray(points_xy, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


def transform_boxes(boxes_xyxy: FloatArray, matrix: FloatArray) -> FloatArray:
    """Map (N, 4) xyxy boxes with an axis-aligned (2, 3) affine matrix; mirrored corners are put back in order. NaN rows
    stay NaN.
    """
    corners = transform_points(np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 2, 2), matrix)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def xywh_to_xyxy(boxes_xywh: FloatArray) -> FloatArray:
    """(N, 4) COCO boxes x, y, width, height to corners x0, y0, x1, y1."""
    boxes = np.asarray(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes_xyxy: FloatArray) -> FloatArray:
    """(N, 4) corners x0, y0, x1, y1 to COCO boxes x, y, width, height."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
