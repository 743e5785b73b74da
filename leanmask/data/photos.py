"""Images that nobody annotated, straight from their files: what `leanmask predict` segments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leanmask.data.coco import ClassMap, ImageRecord
from leanmask.data.files import image_files
from leanmask.data.image_files import open_image
from leanmask.errors import DataError
from leanmask.paths import OneOrMorePaths, as_paths


@dataclass(frozen=True)
class Photos:
    """Image files to be segmented, in the form that `EvalDataset` reads; ids are running numbers from 1."""

    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]  # (width, height), as the file stores its pixels
    classes: ClassMap

    @staticmethod
    def find(images: OneOrMorePaths, classes: ClassMap, lenient: bool = False) -> Photos:
        """Image files, and all images below folders. Raises DataError for what does not exist or is no image; with
        `lenient`, files that are no images stay in and fail when they are read.
        """
        paths: list[Path] = []
        named = as_paths(images)
        for item in named:
            if not item.exists():
                raise DataError(f"{item} does not exist; name image files or folders of images")
            paths += image_files(item, recursive=True) if item.is_dir() else [item]
        if not paths:
            raise DataError(f"no images in {', '.join(map(str, named))}" if named else "no images: none is named")
        return Photos(tuple(paths), tuple(_stored_size(path, lenient) for path in paths), classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageRecord:
        width, height = self.sizes[index]
        nothing = np.zeros((0, 4))
        return ImageRecord(index + 1, self.paths[index], width, height, False, (), nothing)

    @property
    def root(self) -> Path:
        """The folder that all files are in or below."""
        return Path(os.path.commonpath([path.parent.absolute() for path in self.paths]))

    def to_json(self, sizes: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
        """COCO's `images` and `categories`, file names as seen from `info.image_folder`. sizes: (height, width) by
        image id, as shown; images that it does not have are left out.
        """
        root = self.root
        rows = [
            {
                "id": number,
                "file_name": self.paths[number - 1].absolute().relative_to(root).as_posix(),
                "width": width,
                "height": height,
                "exhaustive": False,
            }
            for number, (height, width) in sizes.items()
        ]
        return {"images": rows, "categories": self.categories(), "info": {"image_folder": str(root)}}

    def categories(self) -> list[dict[str, Any]]:
        """COCO's."""
        names = zip(self.classes.ids, self.classes.names, strict=True)
        return [{"id": key, "name": name} for key, name in names]


def _stored_size(path: Path, lenient: bool) -> tuple[int, int]:
    try:
        with open_image(path) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        if lenient:
            return 1, 1
        raise DataError(f"{path} is not an image that can be read: {error}") from None
