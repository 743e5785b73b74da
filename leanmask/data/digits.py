"""Writes the embedded benchmark "digits", handwriting in photographs, as an ordinary COCO data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from leanmask.data.files import write_json
from leanmask.data.new_folder import new_folder
from leanmask.data.scenes import COUNT_RANGE, SPLITS, DrawnObject, Scene, compose, sample_pools
from leanmask.errors import ConfigError
from leanmask.geometry import FloatArray
from leanmask.options import check_fields
from leanmask.rle import encode_crop

# The category id is the digit + 1.
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Long tail: from the most frequent digit to the rarest; each rare one is easily taken for a frequent one: 9/4, 7/1, 8/3
TAIL_ORDER = (3, 1, 4, 0, 6, 2, 5, 9, 7, 8)
TAIL_SHIFT, TAIL_POWER = 6, 8  # the r-th class (r = 1..10) is drawn in proportion to (r + 6) ** -8
MEAN_COUNT = sum(COUNT_RANGE) / 2
IMAGES_PER_SPLIT = 10_000_000  # image ids of split k start behind k times this
RARE_IMAGES, COMMON_IMAGES = 10, 100  # LVIS: rare <= 10 training images, common <= 100, frequent above

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DigitsSpec:
    """Size of a digits data set.

    train, tune, val, unlabelled: images per split. seed: another one gives other images of the same handwriting.
    size_px: side of the square images. longtail: class frequencies of the training images fall by a power law.
    Raises ConfigError for sizes that cannot be.
    """

    train: int = 1000
    tune: int = 250
    val: int = 500
    unlabelled: int = 0
    seed: int = 0
    size_px: int = 128
    longtail: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (*SPLITS, "seed"):
            if not 0 <= getattr(self, name) < IMAGES_PER_SPLIT:
                raise ConfigError(f"digits: {name} is {getattr(self, name)}; allowed: 0 to {IMAGES_PER_SPLIT - 1}")
        if self.train == 0:
            raise ConfigError("digits: train is 0; a data set needs at least one training image")
        if not 32 <= self.size_px <= 4096:
            raise ConfigError(f"digits: size_px is {self.size_px}; allowed: 32 to 4096")

    def images(self) -> dict[str, int]:
        """Number of images of every split that has any."""
        return {split: count for split in SPLITS if (count := getattr(self, split))}


def write_digits(out: Path, spec: DigitsSpec, on_progress: Progress | None = None) -> None:
    """Write the data set to the new folder `out`; `on_progress(done, total)` counts images.

    Gives images/*.jpg, annotations/instances_{train,tune,val}.json (masks as compressed RLE, exactly the drawn pixels),
    unlabelled/*.jpg with truth/instances_unlabelled.json (for measuring only), and data.yaml naming all of them. Image
    i of a split depends on (seed, split, i), `size_px` and `longtail` alone, ids included, so a larger set contains the
    smaller. Raises RunError when `out` is not new or cannot be written.
    """
    total, done = sum(spec.images().values()), 0
    frequencies: list[dict[str, Any]] = []
    with new_folder(Path(out)) as folder:
        for split, count in spec.images().items():  # train first: the other files state its class frequencies
            pictures = folder / ("unlabelled" if split == "unlabelled" else "images")
            pictures.mkdir(exist_ok=True)
            content = _empty_file(spec, split)
            for index in range(count):
                scene = draw_scene(spec, split, index)
                _add(content, scene, split, index)
                Image.fromarray(scene.image).save(pictures / _file_name(split, index), quality=95, subsampling=0)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            if spec.longtail:
                frequencies = frequencies or _frequencies(content)
                _add_lvis_fields(content, frequencies)
            write_json(folder / _annotation_file(split), content)
        (folder / "data.yaml").write_text(_data_yaml(spec), encoding="utf-8")


def draw_scene(spec: DigitsSpec, split: str, index: int) -> Scene:
    """Image `index` of `split`, with at least one visible object."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    while True:
        tail = spec.longtail and split == "train"
        digits = _tail_digits(rng, spec.seed, index) if tail else _even_digits(rng)
        pools = sample_pools(split)
        samples = [int(rng.choice(pools[digit])) for digit in digits]
        scene = compose(rng, split, samples, spec.size_px)
        if scene.objects:  # below 64 px every digit of an image can be too small to count
            return scene


def tail_rates() -> FloatArray:
    """(10,) expected objects of each digit per training image under `longtail`."""
    weights = (np.arange(1, 11) + TAIL_SHIFT) ** -float(TAIL_POWER)
    rates = np.empty(10)
    rates[list(TAIL_ORDER)] = weights / weights.sum() * MEAN_COUNT
    return rates


def _even_digits(rng: np.random.Generator) -> list[int]:
    count = rng.integers(COUNT_RANGE[0], COUNT_RANGE[1] + 1)
    return [int(digit) for digit in rng.integers(10, size=count)]


def _tail_digits(rng: np.random.Generator, seed: int, index: int) -> list[int]:
    rates = tail_rates()
    offsets = _tail_offsets(seed)
    # Classes seen in fewer than one image of ten come at even distances, not by chance, so that none of them is missing
    # from a set or frequent by luck; still image i alone decides.
    rare = [
        digit
        for digit in TAIL_ORDER
        if rates[digit] < 0.1
        and np.floor((index + 1) * rates[digit] + offsets[digit]) > np.floor(index * rates[digit] + offsets[digit])
    ]
    others = np.flatnonzero(rates >= 0.1)
    count = max(int(rng.integers(COUNT_RANGE[0], COUNT_RANGE[1] + 1)) - len(rare), 0)
    chosen = rng.choice(others, size=count, p=rates[others] / rates[others].sum())
    return [int(digit) for digit in rng.permutation([*rare, *chosen])]


@cache
def _tail_offsets(seed: int) -> FloatArray:
    return np.random.default_rng([seed, len(SPLITS)]).random(10)


def _file_name(split: str, index: int) -> str:
    return f"{split}_{index:06d}.jpg"


def _annotation_file(split: str) -> str:
    return f"truth/instances_{split}.json" if split == "unlabelled" else f"annotations/instances_{split}.json"


def _empty_file(spec: DigitsSpec, split: str) -> dict[str, Any]:
    settings = {"seed": spec.seed, "size_px": spec.size_px, "longtail": spec.longtail}
    return {
        "info": {"description": "leanmask digits: handwriting in photographs", "split": split, **settings},
        "images": [],
        "annotations": [],
        "categories": [{"id": digit + 1, "name": name} for digit, name in enumerate(CLASS_NAMES)],
    }


def _add(content: dict[str, Any], scene: Scene, split: str, index: int) -> None:
    image_id = SPLITS.index(split) * IMAGES_PER_SPLIT + index + 1
    height, width = scene.image.shape[:2]
    image = {"id": image_id, "file_name": _file_name(split, index), "width": width, "height": height}
    content["images"].append({**image, "photograph": scene.photograph, "photograph_crop_xywh": list(scene.crop)})
    for order, item in enumerate(scene.objects):
        content["annotations"].append(_annotation(item, image_id, image_id * 10 + order, (height, width)))


def _annotation(item: DrawnObject, image_id: int, annotation_id: int, size: tuple[int, int]) -> dict[str, Any]:
    rle = encode_crop(item.visible.astype(np.uint8), item.region, size)
    rows, columns = np.flatnonzero(item.visible.any(axis=1)), np.flatnonzero(item.visible.any(axis=0))
    x0, y0 = item.region[0] + int(columns[0]), item.region[1] + int(rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": item.digit + 1,
        "bbox": [x0, y0, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1],
        "area": int(item.visible.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
        "handwriting": item.sample,
    }


def _frequencies(train: dict[str, Any]) -> list[dict[str, Any]]:
    instances = Counter(annotation["category_id"] for annotation in train["annotations"])
    pairs = {(annotation["image_id"], annotation["category_id"]) for annotation in train["annotations"]}
    images = Counter(category_id for _, category_id in pairs)

    def letter(count: int) -> str:
        return "r" if count <= RARE_IMAGES else "c" if count <= COMMON_IMAGES else "f"

    return [
        {"frequency": letter(images[i]), "image_count": images[i], "instance_count": instances[i]} for i in range(1, 11)
    ]


def _add_lvis_fields(content: dict[str, Any], frequencies: list[dict[str, Any]]) -> None:
    for category, fields in zip(content["categories"], frequencies, strict=True):
        category.update(fields)
    present: dict[int, set[int]] = {}
    for annotation in content["annotations"]:
        present.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    for image in content["images"]:
        image["neg_category_ids"] = sorted(set(range(1, 11)) - present.get(image["id"], set()))
        image["not_exhaustive_category_ids"] = []


def _data_yaml(spec: DigitsSpec) -> str:
    splits = {}
    for split in spec.images():
        kind = {"truth": _annotation_file(split)} if split == "unlabelled" else {"annotations": _annotation_file(split)}
        splits[split] = {**kind, "images": "unlabelled" if split == "unlabelled" else "images"}
    return str(yaml.safe_dump({"splits": splits}, sort_keys=False))
