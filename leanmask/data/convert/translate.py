"""`leanmask convert`: reads one format, writes another. The user's files are only read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanmask.data.annotation import supervision_of
from leanmask.data.convert import cvat, label_studio, panoptic
from leanmask.data.convert.shapes import Left, categories_from
from leanmask.data.files import read_any_json, write_atomically, write_json
from leanmask.data.formats import LABEL_STUDIO, PANOPTIC, explain, format_of, read_instances
from leanmask.data.grouping import Totals, categories_of, group_images
from leanmask.data.layout import locate
from leanmask.data.predictions import IMAGES_NAME, is_results, read_predictions
from leanmask.data.views.canvas import image_size
from leanmask.errors import ConfigError, DataError, suggest
from leanmask.options import check_fields, require_options
from leanmask.paths import as_path, image_path, settle_fields

FORMATS = ("coco", "label-studio", "cvat")


@dataclass(frozen=True)
class ConvertOptions:
    """to: the format to write. split: which one, where a data set is converted. images: their folder, to read sizes
    that a file does not tell. like: a data set whose class ids to use. prefix: what comes before file names in Label
    Studio. masks: the folder of a panoptic file's PNG masks; None = the one beside it.
    Raises ConfigError for values that cannot be.
    """

    to: str = "coco"
    split: str = "train"
    images: Path | None = None
    like: Path | None = None
    prefix: str = label_studio.LOCAL_FILES
    masks: Path | None = None

    def __post_init__(self) -> None:
        settle_fields(self, paths=("images", "like", "masks"))
        check_fields(self)
        if self.to not in FORMATS:
            raise ConfigError(f"unknown format '{self.to}'{suggest(self.to, FORMATS)}")


@dataclass(frozen=True)
class Converted:
    """What was written. objects: by kind of label. left_out: what the format cannot say. config: of Label Studio.
    split: the one of a data set, None for a file. others: images of its other splits, which are not written.
    """

    out: Path
    images: int
    objects: dict[str, int]
    left_out: dict[str, int]
    config: Path | None = None
    split: str | None = None
    others: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "out": str(self.out), "config": str(self.config) if self.config else None}

    def to_text(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.objects.items()) or "none"
        lines = [f"{self.images} images, objects by label: {kinds}: {self.out}"]
        if self.others:
            rest = ", ".join(f"{name} ({count} images): --split {name}" for name, count in self.others.items())
            lines.append(f"split {self.split} alone; {rest}")
        lines += [f"left out: {count} {what}" for what, count in self.left_out.items()]
        lines += [f"labelling interface for the project's settings: {self.config}"] if self.config else []
        return "\n".join(lines)


def convert(source: str | Path, out: str | Path, options: ConvertOptions = ConvertOptions()) -> Converted:
    """Convert a data set's split, a COCO file (.json, instances or panoptic), the results of `leanmask predict`
    (.json), Label Studio's export (.json) or CVAT's (.xml) into a new file.

    Raises DataError for what cannot be read or exists already, ConfigError for an unknown format.
    """
    require_options(options, ConvertOptions)
    source, out = as_path(source).expanduser(), as_path(out)
    if out.exists():
        raise DataError(f"{out} exists already and is never overwritten; give another name")
    content, left = _read(source, options)
    told = (options.split, _others(source, options.split)) if _is_data_set(source) else (None, {})
    config: Path | None = None
    if options.to == "coco":
        write_json(out, content)
    elif options.to == "cvat":
        written, more = cvat.to_cvat(content)
        left += more
        write_atomically(out, written)
    else:
        tasks, more = label_studio.to_label_studio(content, options.prefix)
        left += more
        config = out.with_name(f"{out.stem}-interface.xml")
        names = [row["name"] for row in content["categories"]]
        write_atomically(config, label_studio.labelling_config(names).encode())
        write_json(out, tasks)
    kinds = Counter(supervision_of(row).name.lower() for row in content["annotations"])
    return Converted(out, len(content["images"]), dict(sorted(kinds.items())), dict(left), config, *told)


def _read(source: Path, options: ConvertOptions) -> tuple[dict[str, Any], Left]:
    known = None if options.like is None else _known_classes(options.like, options.split)
    if _is_data_set(source):
        source = _annotations(source, options.split)
    if source.suffix.lower() == ".xml":
        root = cvat.read_cvat(source)
        return cvat.from_cvat(root, categories_from(cvat.class_names(root), known))
    content = read_any_json(source)
    if format_of(content) == PANOPTIC:
        return panoptic.from_panoptic(content, source, options.masks, known)
    if isinstance(content, dict):
        return _coco(content, source), Left()
    if is_results(content) and (content or source.with_name(IMAGES_NAME).is_file()):
        return _predicted(source, content), Left()
    if format_of(content) not in (LABEL_STUDIO, None):
        raise DataError(str(explain(content, source)))
    categories = categories_from(label_studio.class_names(content), known)
    try:
        return label_studio.from_label_studio(content, categories, _sizes(content, options.images))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{source} is no export of Label Studio that can be read: {error!r}") from None


def _is_data_set(source: Path) -> bool:
    return source.is_dir() or source.suffix.lower() in (".yaml", ".yml")


def _others(data: Path, split: str) -> dict[str, int]:
    """Images of the other splits that have annotations, by name."""
    files = {name: found.annotations for name, found in locate(data).items() if name != split}
    return {name: len(read_instances(path)["images"]) for name, path in files.items() if path is not None}


def _annotations(data: Path, split: str) -> Path:
    splits = locate(data)
    if split not in splits:
        raise DataError(f"{data} has no split '{split}'{suggest(split, splits)}")
    annotations = splits[split].annotations
    if annotations is None:
        raise DataError(f"split '{split}' of {data} is a folder of images without annotations")
    return annotations


def _coco(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a COCO file, looked through row by row."""
    if (sentence := explain(content, path)) is not None:
        raise DataError(sentence)
    for _ in group_images(content, path, Totals()):
        pass
    return content


def _predicted(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO of a results file that `leanmask predict` wrote, looked through row by row."""
    found = read_predictions(path, rows)
    if found is None:
        raise DataError(
            f"{path} is a list of COCO results, which names no files and classes; `leanmask predict` writes them "
            f"beside it, as {IMAGES_NAME}"
        )
    return _coco(found.to_coco(), path)


def _known_classes(data: Path, split: str) -> dict[str, int]:
    path = data if data.suffix.lower() == ".json" else _annotations(data, split)
    return {name: number for number, name in categories_of(read_instances(path), path)}


def _sizes(tasks: Any, images: Path | None) -> Mapping[str, tuple[int, int]]:
    """Sizes of the images that tasks name and that lie in the folder."""
    found: dict[str, tuple[int, int]] = {}
    for task in tasks if images is not None else ():
        name = label_studio.file_name(str(task["data"].get("image", "")))
        assert images is not None
        for path in (image_path(images, name), images / image_path(Path(), name).name):
            if path.is_file():
                found[name] = image_size(path, "apply")
                break
    return found
