"""What a file of annotations is when it is no COCO instance file, so that a person is told which command reads it, or
that none does yet.
"""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as Xml
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmask.data.annotation import ROUGH, Row, is_number
from leanmask.data.files import IMAGE_SUFFIXES, read_any_json
from leanmask.errors import DataError

READ = "COCO instance files; `leanmask convert` also reads COCO panoptic files, Label Studio's JSON and CVAT's XML"
LISTS = ("images", "annotations", "categories")
LABELS = ("segmentation", "bbox", "point_coords", "point_labels", "point", ROUGH)
MOST_ENTRIES, DEPTH, SAMPLED = 20_000, 2, 3  # of a folder that is described
MASK_FOLDERS = re.compile(
    r"masks?|panoptic\w*|labels?|gt\w*|ground_?truth|segmentation\w*|annotations?|instances?", re.IGNORECASE
)
MASK_ENDING = re.compile(r"[-_. ](mask|masks|label|labels|gt\w*|seg|instance|instance_?ids|label_?ids)$", re.IGNORECASE)
YOLO_LINE = re.compile(r"\d+(\s+-?\d+(\.\d*)?(e-?\d+)?){4,}\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """name: as its makers call it. command: the one that reads a file of it, {} for the file; None = none does yet."""

    name: str
    command: str | None = None


PANOPTIC = Format("COCO panoptic", "leanmask convert {} labels.json")
LABEL_STUDIO = Format("Label Studio", "leanmask convert {} labels.json --images FOLDER")
CVAT = Format("CVAT", "leanmask convert {} labels.json")
CAPTIONS, RESULTS = Format("COCO captions"), Format("COCO results")
LABELME, VIA, CREATE_ML = Format("LabelMe"), Format("VGG Image Annotator"), Format("CreateML")
SUPERVISELY, SCALABEL = Format("Supervisely"), Format("Scalabel")
VOC, YOLO, PNG = Format("Pascal VOC"), Format("YOLO"), Format("PNG mask")


def format_of(content: Any) -> Format | None:
    """Which other format a JSON file's content is; None for COCO instances and for what nobody knows."""
    if isinstance(content, list):
        return _format_of_list(content)
    if not isinstance(content, dict):
        return None
    rows = _rows(content.get("annotations"))
    if any("segments_info" in row for row in rows):
        return PANOPTIC
    if any("caption" in row for row in rows) and not any("category_id" in row for row in rows):
        return CAPTIONS
    if isinstance(content.get("shapes"), list) and ("imagePath" in content or "imageData" in content):
        return LABELME
    pictures = [item for item in content.values() if isinstance(item, dict)]
    if "_via_img_metadata" in content or any("regions" in item and "filename" in item for item in pictures):
        return VIA
    objects = _rows(content.get("objects"))
    return SUPERVISELY if any("classTitle" in item for item in objects) else None


def _format_of_list(content: Sequence[Any]) -> Format | None:
    rows = _rows(content)
    if not rows:
        return None
    first = rows[0].keys()
    if "image_id" in first:
        return RESULTS if {"bbox", "segmentation", "score", "keypoints"} & first else CAPTIONS
    if isinstance(rows[0].get("data"), dict):
        return LABEL_STUDIO
    if {"image", "annotations"} <= first or {"imagefilename", "annotation"} <= first:
        return CREATE_ML
    return SCALABEL if {"name", "labels"} <= first else None


def _rows(value: Any) -> list[Row]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def explain(content: Any, path: Path | str) -> str | None:
    """One sentence about a JSON file that is no COCO instance file, or whose labels are where nobody looks for them;
    None where nothing is known against it.
    """
    found = format_of(content)
    if found is not None:
        return f"{path} is a {found.name} file: {_reader(found, str(path))}"
    if not isinstance(content, dict):
        return None
    return _misplaced(content, path) or _unread(content, path)


def _reader(found: Format, path: str) -> str:
    if found.command is None:
        return f"no command of leanmask reads it yet; read are {READ}"
    return f"`{found.command.format(path)}` reads it"


def _misplaced(content: Mapping[str, Any], path: Path | str) -> str | None:
    """A sentence where the rows of annotations are under another key."""
    if content.get("annotations") or not _rows(content.get("images")):
        return None
    for key, value in content.items():
        if key not in LISTS and (rows := _rows(value)) and "image_id" in rows[0]:
            return (
                f"{path} has no annotations under 'annotations', but {len(rows)} rows with an image_id under '{key}'; "
                "rename that key to 'annotations'"
            )
    for key, value in _rows(content["images"])[0].items():
        if (rows := _rows(value)) and set(LABELS) & rows[0].keys():
            return (
                f"{path} has no list 'annotations': its images carry their own, under '{key}'; COCO has one list of "
                "all annotations, each with its image_id"
            )
    return None


def _unread(content: Mapping[str, Any], path: Path | str) -> str | None:
    """A sentence where no annotation has a label that is read, but some have shapes under other keys."""
    rows = _rows(content.get("annotations"))
    if not rows or any(row.get(key) for row in rows for key in LABELS):
        return None
    counts = Counter(key for row in rows for key, value in row.items() if key not in LABELS and _is_shape(value))
    if not counts:
        return None
    key, count = counts.most_common(1)[0]
    if "keypoints" in counts:
        return (
            f"{path} is a COCO keypoint file: its {len(rows)} annotations have keypoints, but neither masks, boxes nor "
            f"points of leanmask, and no command of leanmask reads keypoints yet; read are {READ}"
        )
    return (
        f"{path} has {len(rows)} annotations without segmentation, bbox or points, and {count} of them have '{key}', "
        "which is not read; COCO's keys are segmentation and bbox"
    )


def _is_shape(value: Any) -> bool:
    """Whether a value can be a box, a polygon, points or an RLE: at least two numbers, or lists of such."""
    if isinstance(value, dict):
        return "counts" in value or any(_is_shape(item) for item in value.values())
    if not isinstance(value, list) or not value:
        return False
    return (len(value) > 1 and all(map(is_number, value))) or all(_is_shape(item) for item in value)


def explain_file(path: Path) -> str | None:
    """`explain` of a file by what is in it; also of XML and text files of other formats."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return explain(read_any_json(path), path)
    found = _format_of_file(path, suffix)
    return None if found is None else f"{path} is a {found.name} file: {_reader(found, str(path))}"


def read_instances(path: Path | str) -> dict[str, Any]:
    """The content of a COCO instance file. Raises DataError when it is missing, broken or of another format, and names
    the command that reads that.
    """
    content = read_any_json(path)
    if (sentence := explain(content, path)) is not None:
        raise DataError(sentence)
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, found {type(content).__name__}")
    return content


def describe_folder(root: Path) -> str:
    """What lies in a folder that is no data set, in a sentence or two: images, annotations by format, and how these are
    read. Empty where there is neither. Looks at names, and into a few files of each folder.
    """
    entries = list(_entries(root))
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES]
    masks = _masks(images, root)
    found: defaultdict[Format, list[Path]] = defaultdict(list)
    sentences: list[str] = []
    for (_, suffix), paths in _by_folder(entries).items():
        kind = next((kind for path in paths[:SAMPLED] if (kind := _format_of_file(path, suffix))), None)
        if kind is not None:
            found[kind] += paths
        elif suffix == ".json":
            sentences += [sentence for path in paths[:SAMPLED] if (sentence := _what_is_wrong(path))]
    if masks and PANOPTIC not in found:  # else they are its own
        found[PNG] += sorted(masks)
    for kind, paths in found.items():
        shown = f"{kind.name} ({os.path.relpath(paths[0], root)}{', ...' if len(paths) > 1 else ''})"
        sentences.append(f"{shown}: {_reader(kind, str(paths[0]))}")
    pictures = len(images) - len(masks)
    if not sentences:
        hint = f"label some (leanmask annotate {root} --boxes --classes NAME,NAME), or name it in data.unlabelled"
        return f"It holds images only: {hint}" if pictures else ""
    seen = [f"{len(paths)} {kind.name} file{'s' * (len(paths) > 1)}" for kind, paths in found.items()]
    return f"It holds {' and '.join([f'{pictures} images', *seen])}. {'. '.join(sentences)}"


def _what_is_wrong(path: Path) -> str | None:
    """Why a JSON file near images cannot be the annotations; None where it may be about something else."""
    try:
        return explain(read_any_json(path), path)
    except DataError as error:
        return str(error)


def _entries(root: Path) -> Iterator[Path]:
    """Files down to `DEPTH` folders below `root`, sorted, and no more than can be looked at in a second."""
    count = 0
    for place, folders, names in os.walk(root):
        depth = len(Path(place).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < DEPTH else []
        for name in sorted(names):
            count += 1
            if count > MOST_ENTRIES:
                return
            yield Path(place, name)


def _by_folder(paths: Sequence[Path]) -> dict[tuple[Path, str], list[Path]]:
    found: defaultdict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in (".json", ".xml", ".txt"):
            found[path.parent, path.suffix.lower()].append(path)
    return found


def _format_of_file(path: Path, suffix: str) -> Format | None:
    try:
        if suffix == ".json":
            return format_of(json.loads(path.read_bytes()))
        if suffix == ".xml":
            root = Xml.parse(path).getroot()
            return {"annotation": VOC, "annotations": CVAT}.get(root.tag)
        if suffix != ".txt":
            return None
        with path.open(encoding="utf-8") as file:
            line = file.readline()
    except (OSError, ValueError, Xml.ParseError, RecursionError):
        return None  # what cannot be read is no hint
    return YOLO if YOLO_LINE.fullmatch(line) else None


def _masks(images: Sequence[Path], root: Path) -> set[Path]:
    """The PNG files that are masks of other images here, by their names and those of their folders."""
    stems: defaultdict[str, set[Path]] = defaultdict(set)
    for path in images:
        stems[path.stem].add(path.parent)
    found: set[Path] = set()
    for path in images:
        if path.suffix.lower() != ".png":
            continue
        bare = MASK_ENDING.sub("", path.stem)
        named = MASK_FOLDERS.fullmatch(path.parent.name) and path.parent != root
        if (bare != path.stem and bare in stems) or (named and stems[path.stem] - {path.parent}):
            found.add(path)
    return found
