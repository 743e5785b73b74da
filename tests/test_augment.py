"""Augmentation: images and annotations follow one frame; photometric changes are as stated and move nothing."""

from __future__ import annotations

import colorsys
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import calm, smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torchvision.transforms import functional as reference

from leanmask.config import AugmentConfig
from leanmask.data.views.augment import (
    ERASINGS,
    brightness,
    check_augment,
    contrast,
    erase,
    fitted_frame,
    hue,
    random_frame,
    recolour,
    saturation,
    strong_view,
)
from leanmask.data.views.canvas import PADDING_RGB, UnreadableImage, image_size, read_canvas
from leanmask.errors import ConfigError, DataError
from leanmask.geometry import Frame, transform_points

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")

seeds = st.integers(0, 2**32 - 1)
image_sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


# Geometry


@given(seeds, image_sizes, st.floats(0.1, 1), st.floats(1, 3))
def test_random_frames_cover_the_canvas_as_far_as_they_can(
    seed: int, size: tuple[int, int], low: float, high: float
) -> None:
    frame = random_frame(size, 64, AugmentConfig(scale_jitter=(low, high)), np.random.default_rng(seed))
    (height, width), (sx, sy) = size, frame.scale
    fit = min(64 / height, 64 / width)
    assert low * fit * width - 0.5 <= max(sx * width, 1)
    assert sx * width <= max(high * fit * width + 0.5, 1)
    assert low * fit * height - 0.5 <= max(sy * height, 1)
    assert sy * height <= max(high * fit * height + 0.5, 1)
    for extent, (start, end) in zip(
        (sx * width, sy * height),
        ((frame.content_box[0], frame.content_box[2]), (frame.content_box[1], frame.content_box[3])),
        strict=True,
    ):
        assert end - start == pytest.approx(min(round(extent), 64))
        assert start == pytest.approx(round(start))  # whole pixels, so that no canvas pixel is half padding


def test_random_frames_use_their_whole_range() -> None:
    config = AugmentConfig(scale_jitter=(0.5, 2.0), flip_probability=0.5)
    frames = [random_frame((50, 100), 64, config, np.random.default_rng([1, n])) for n in range(400)]
    scales = np.array([frame.scale[0] for frame in frames]) / 0.64
    assert scales.min() < 0.6
    assert scales.max() > 1.9
    flips = np.mean([frame.flip_width is not None for frame in frames])
    assert 0.4 < flips < 0.6
    cropped = [frame for frame in frames if frame.scale[0] > 0.8]
    assert len({frame.shift[0] for frame in cropped}) > 20  # crops start anywhere
    assert all(64 - frame.scale[0] * 100 - 1 <= frame.shift[0] <= 0 for frame in cropped)
    corrected = np.corrcoef([frame.shift[0] for frame in cropped], [frame.shift[1] for frame in cropped])[0, 1]
    assert abs(corrected) < 0.3  # the axes are independent (detectron2's are not)


def test_frames_depend_on_the_generator_alone() -> None:
    config = AugmentConfig()
    first, second = (random_frame((50, 70), 64, config, np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert first != random_frame((50, 70), 64, config, np.random.default_rng(4))


@given(image_sizes)
def test_fitted_frames_show_the_whole_image_top_left(size: tuple[int, int]) -> None:
    frame = fitted_frame(size, 96)
    x0, y0, x1, y1 = frame.content_box
    assert (x0, y0) == (0, 0)
    assert max(x1, y1) == pytest.approx(96)
    corner = transform_points(np.array([size[1], size[0]]), frame.matrix)
    assert corner.tolist() == pytest.approx([x1, y1])


@pytest.mark.parametrize(
    "given", [{"scale_jitter": (0.0, 1.0)}, {"scale_jitter": (2.0, 1.0)}, {"blur_radius_px": (2, 1)}]
)
def test_empty_ranges_are_named(given: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match=f"augment.{next(iter(given))}"):
        check_augment(AugmentConfig(**given))


# Images on the canvas


def ramp(height: int, width: int) -> Image.Image:
    """Red grows with x, green with y: a pixel tells where it came from."""
    ys, xs = np.mgrid[:height, :width] + 0.5
    return Image.fromarray(np.stack([xs / width * 255, ys / height * 255, 0 * xs], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(60, 80), (700, 500), (37, 211), (1201, 1603)])
def test_pixels_lie_where_the_frame_says(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    """At random frames of random scales, large JPEGs (decoded at reduced size) included."""
    path = save(
        ramp(*size), tmp_path / f"ramp.{suffix}", **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {})
    )
    for seed in range(12):
        config = AugmentConfig(scale_jitter=(0.3, 2.5))
        frame = random_frame(size, 96, config, np.random.default_rng(seed))
        canvas = read_canvas(path, frame, "error")
        x0, y0, x1, y1 = (round(edge) for edge in frame.content_box)
        centres = np.stack(np.meshgrid(np.arange(96) + 0.5, np.arange(96) + 0.5), axis=-1)
        expected = transform_points(centres, frame.inverse) / (size[1], size[0]) * 255
        # Averaging at the image's border moves a pixel's colour inwards by at most half a canvas or image pixel.
        per_pixel = [255 / size[axis] * max(0.5, 0.5 / frame.scale[1 - axis]) for axis in (1, 0)]
        wrong = np.abs(canvas[y0:y1, x0:x1, :2] - expected[y0:y1, x0:x1])
        assert (wrong <= np.array(per_pixel) + 3).all(), (seed, wrong.max())
        inner = wrong[2:-2, 2:-2]
        assert inner.size == 0 or inner.mean() < 1.5
        outside = np.ones((96, 96), dtype=bool)
        outside[y0:y1, x0:x1] = False
        assert (canvas[outside] == PADDING_RGB).all()


def test_a_large_jpeg_is_as_if_it_were_decoded_whole(tmp_path: Path) -> None:
    picture = smooth_picture(1001, 1507)
    lossless, jpeg = save(picture, tmp_path / "a.png"), save(picture, tmp_path / "a.jpg", quality=95, subsampling=0)
    frame = fitted_frame((1001, 1507), 128)
    difference = read_canvas(lossless, frame, "error").astype(int) - read_canvas(jpeg, frame, "error")
    assert np.abs(difference).max() <= 6
    assert np.abs(difference).mean() < 1.5


def test_mirroring_twice_is_identity(tmp_path: Path) -> None:
    path = save(smooth_picture(40, 70), tmp_path / "a.png")
    for scale in (0.5, 1.0, 1.7):
        config = calm(scale_jitter=(scale, scale))
        plain = random_frame((40, 70), 64, config, np.random.default_rng(0))
        mirrored = random_frame(
            (40, 70), 64, config.model_copy(update={"flip_probability": 1}), np.random.default_rng(0)
        )
        assert (plain.flip_width, mirrored.flip_width) == (None, 64.0)
        once = read_canvas(path, mirrored, "error")
        assert np.array_equal(once[:, ::-1], read_canvas(path, plain, "error"))
        assert not np.array_equal(once, read_canvas(path, plain, "error"))


def test_an_unscaled_image_is_copied_bit_for_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(pixels), tmp_path / "a.png")
    assert np.array_equal(read_canvas(path, fitted_frame((64, 64), 64), "error"), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_common_kind_of_pixel_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = smooth_picture(32, 32).convert("L")
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 256) if mode == "I;16" else grey.convert(mode)
    path = save(picture, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    canvas = read_canvas(path, fitted_frame((32, 32), 32), "error")
    expected = np.asarray(grey.convert("1" if mode == "1" else "L"), dtype=int) * (255 if mode == "1" else 1)
    assert np.abs(canvas - expected[..., None]).max() <= 2


def test_32_bit_pixels_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.ones((8, 8), dtype=np.float32)), tmp_path / "a.tif")
    with pytest.raises(DataError, match="32-bit"):
        read_canvas(path, fitted_frame((8, 8), 32), "error")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(Image.fromarray(noise), path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "text": b"<html>not found</html>", "truncated": whole[: len(whole) // 2]}[damage]
        )
    with pytest.raises(UnreadableImage, match="broken") as caught:
        read_canvas(path, fitted_frame((64, 64), 64), "error")
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_size_that_contradicts_the_annotations_is_named(tmp_path: Path) -> None:
    path = save(smooth_picture(40, 70), tmp_path / "a.png")
    with pytest.raises(DataError, match="70 x 40 pixels, but its annotations say 40 x 70"):
        read_canvas(path, fitted_frame((70, 40), 64), "error")


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_rotations(tmp_path: Path, orientation: int) -> None:
    upright = ramp(40, 60)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL transposition that makes a viewer show `upright`
    stored = upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / "a.png", exif=exif)
    shown = (40, 60)
    assert image_size(path, "apply") == shown
    assert image_size(path, "ignore") == stored.size[::-1]
    canvas = read_canvas(path, fitted_frame(shown, 64), "apply")
    expected = read_canvas(save(upright, tmp_path / "b.png"), fitted_frame(shown, 64), "error")
    assert np.abs(canvas.astype(int) - expected).max() <= 1
    raw = read_canvas(path, fitted_frame(stored.size[::-1], 64), "ignore")
    plain = read_canvas(save(stored, tmp_path / "c.png"), fitted_frame(stored.size[::-1], 64), "error")
    assert np.array_equal(raw, plain)
    with pytest.raises(DataError, match=f"orientation {orientation}.*data.exif"):
        read_canvas(path, fitted_frame(shown, 64), "error")


# Photometric changes


@given(st.floats(0, 2), seeds)
def test_single_colour_changes_equal_pillow(factor: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    mean_grey = float(np.asarray(image.convert("L"), dtype=float).mean())
    for ours, theirs in (
        (brightness(factor), ImageEnhance.Brightness),
        (contrast(factor, mean_grey), ImageEnhance.Contrast),
        (saturation(factor), ImageEnhance.Color),
    ):
        difference = np.asarray(recolour(image, ours), dtype=int) - np.asarray(theirs(image).enhance(factor))
        assert np.abs(difference).max() <= 2, theirs


@given(st.floats(-0.5, 0.5))
def test_hue_turns_colours_and_keeps_luma_and_greys(turns: float) -> None:
    matrix, shift = hue(turns)
    luma = np.array([0.299, 0.587, 0.114])
    assert np.allclose(luma @ matrix, luma, atol=1e-9)
    assert np.allclose(matrix @ np.ones(3), 1, atol=1e-3)
    assert not shift.any()
    back, _ = hue(-turns)
    assert np.allclose(back @ matrix, np.eye(3), atol=1e-9)


def test_hue_turns_the_same_way_as_torchvision() -> None:
    """HSV's angle agrees; its own turn keeps the largest and smallest channel, ours the luma."""
    patch = Image.new("RGB", (2, 2), (170, 100, 100))
    for turns in (-0.1, -0.05, 0.05, 0.1):
        ours, theirs = (
            colorsys.rgb_to_hsv(*np.asarray(image)[0, 0].tolist())[0]
            for image in (recolour(patch, hue(turns)), reference.adjust_hue(patch, turns))
        )
        assert abs((ours - theirs + 0.5) % 1 - 0.5) < 0.05


def test_nothing_happens_at_probability_zero() -> None:
    pixels = np.asarray(smooth_picture(32, 32)).copy()
    config = AugmentConfig(colour_probability=0, grey_probability=0, blur_probability=0)
    for seed in range(20):
        assert np.array_equal(strong_view(pixels, config, np.random.default_rng(seed)), pixels)


def test_grey_and_blur_are_pillows() -> None:
    image = smooth_picture(40, 40)
    pixels = np.asarray(image).copy()
    only = {"colour_probability": 0, "grey_probability": 0, "blur_probability": 0}
    grey = strong_view(pixels, AugmentConfig(**{**only, "grey_probability": 1}), np.random.default_rng(0))
    assert np.abs(grey.astype(int) - np.asarray(image.convert("L"))[..., None]).max() <= 1
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    config = AugmentConfig(**{**only, "blur_probability": 1, "blur_radius_px": (2.0, 2.0)})
    assert strong_view(noise, config, np.random.default_rng(0)).std() < 0.4 * noise.std()
    assert np.array_equal(
        strong_view(np.full((9, 9, 3), 77, np.uint8), config, np.random.default_rng(0))[0, 0], [77] * 3
    )


def test_strong_views_do_not_touch_their_source_and_repeat() -> None:
    pixels = np.asarray(smooth_picture(48, 48)).copy()
    before = pixels.copy()
    config = AugmentConfig(erase=True)
    views = [strong_view(pixels, config, np.random.default_rng(seed)) for seed in (*range(10), *range(10))]
    assert np.array_equal(pixels, before)
    assert all(np.array_equal(a, b) for a, b in zip(views[:10], views[10:], strict=True))
    assert all(view.shape == pixels.shape and view.dtype == np.uint8 for view in views)
    assert len({view.tobytes() for view in views[:10]}) > 7


def test_colours_stay_near_their_average_over_many_draws() -> None:
    """The jitter is symmetric: a middle grey patch keeps its brightness on average, and really varies."""
    pixels = np.full((8, 8, 3), 110, dtype=np.uint8)
    config = AugmentConfig(grey_probability=0, blur_probability=0, colour_probability=1)
    means = np.array([strong_view(pixels, config, np.random.default_rng(n)).mean() for n in range(300)])
    assert abs(means.mean() - 110) < 6
    assert 66 - 1 <= means.min() < 75
    assert 145 < means.max() <= 154 + 1


def test_erasing_covers_areas_of_the_stated_size() -> None:
    shares, filled = [], []
    for seed in range(300):
        pixels = np.full((64, 64, 3), 77, dtype=np.uint8)
        erase(pixels, np.random.default_rng(seed))
        changed = (pixels != 77).any(axis=-1)
        shares.append(changed.mean())
        filled.append(pixels[changed])
    assert max(shares) <= sum(areas[1] for _, areas, _ in ERASINGS) + 0.02
    untouched = np.mean([share == 0 for share in shares])
    assert 0.02 < untouched < 0.25  # (1 - 0.7) (1 - 0.5) (1 - 0.3) = 0.105, and some rectangles do not fit
    values = np.concatenate(filled).astype(int)
    assert 0.45 < (values == 0).mean() < 0.55  # half of N(0, 1) lies below 0
    assert 0.12 < (values == 255).mean() < 0.2  # 16 % above 1


def test_torch_is_not_needed_for_randomness() -> None:
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    strong_view(np.zeros((32, 32, 3), np.uint8), AugmentConfig(erase=True), np.random.default_rng(0))
    random_frame((30, 40), 64, AugmentConfig(), np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_frames_of_extreme_images_have_at_least_one_pixel(tmp_path: Path) -> None:
    path = save(smooth_picture(1, 3000), tmp_path / "line.png")
    frame = fitted_frame((1, 3000), 64)
    assert isinstance(frame, Frame)
    assert frame.content_box == (0.0, 0.0, 64.0, 1.0)
    assert read_canvas(path, frame, "error").shape == (64, 64, 3)
