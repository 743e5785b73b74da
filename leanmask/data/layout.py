"""Where a data set's files are: folder layouts that users have, and the small YAML for everything else."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leanmask.data.files import IMAGE_SUFFIXES, image_files, why
from leanmask.data.formats import describe_folder, explain_file
from leanmask.data.single_file import SPLIT_NAMES, find_single, first_name, folder_of_images, image_folders
from leanmask.errors import DataError, suggest
from leanmask.paths import as_path, image_path

YAML_SUFFIXES = (".yaml", ".yml")
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled", "unlabelled2017", "unlabeled2017")
ALL_LABELS = "labels.json"  # in `LABELLING` of a folder of photographs that are labelled here, and there alone
LABELLING = "labelling"  # the folder in a data set where its answers and the labels made of them are kept
ROBOFLOW = {"train": "train", "valid": "val", "val": "val", "test": "test"}
LOOKED_FOR = (
    "data.yaml with `splits`, annotations/instances_*.json beside images/ (or train2017/ as COCO has it), "
    "Roboflow's train/_annotations.coco.json, or a single COCO file beside its images"
)


@dataclass(frozen=True)
class SplitFiles:
    """One split. annotations: a COCO file, None for a plain folder of unlabelled images. images: their folder. truth:
    complete annotations that training never opens, to measure pseudo-labels.
    """

    annotations: Path | None
    images: Path
    truth: Path | None


def locate(data: str | Path) -> dict[str, SplitFiles]:
    """The splits of a data set: a folder, a YAML file that names annotation files and image folders, or a COCO file
    near its images, which is "train".

    Raises DataError that says what was looked for, and offers the nearest existing path.
    """
    path = as_path(data).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist{_nearest(path)}")
    if path.is_file():
        if path.suffix.lower() == ".json":
            return {"train": _alone(path)}
        if path.suffix.lower() not in YAML_SUFFIXES:
            if sentence := explain_file(path):
                raise DataError(sentence)
            raise DataError(f"{path} is a single file; give the data set's folder, or a YAML file naming its splits")
        return _from_yaml(path, _read_yaml(path))
    splits = _own_splits(path) or _described(path / LABELLING)
    if splits:
        return splits
    seen = describe_folder(path) + _labels_above(path)
    seen = f" {seen}." if seen else ""
    raise DataError(f"{path} is no data set that leanmask knows.{seen} Looked for {LOOKED_FOR}")


def _own_splits(folder: Path) -> dict[str, SplitFiles]:
    """The splits of a folder without those of its labelling folder; none where it has images alone."""
    splits = _described(folder) or _instances_files(folder) or _roboflow(folder)
    labelled_here = all((folder / LABELLING / name).is_file() for name in (ALL_LABELS, "data.yaml"))
    if splits or labelled_here:
        return splits
    return {name: SplitFiles(annotations, images, None) for name, (annotations, images) in find_single(folder).items()}


def _described(folder: Path) -> dict[str, SplitFiles]:
    described = folder / "data.yaml"
    if described.is_file() and "splits" in (content := _read_yaml(described)):
        return _from_yaml(described, content)
    return {}


def labelled_data(data: str | Path) -> Path:
    """The data set that a path is about when something is labelled there: for a labelling folder, such as
    photos/labelling or mydata-labelling beside mydata.yaml, the data set that it belongs to; else the path itself.
    """
    path = as_path(data).expanduser()
    place = Path.cwd() / path if path.name else path.resolve()  # "." has no name
    stores = place.is_dir() and any(place.glob("*.sqlite"))
    if stores and place.name == LABELLING:
        return path.parent if path.name == LABELLING else place.parent
    if stores and place.name.endswith(f"-{LABELLING}"):
        stem = place.name.removesuffix(f"-{LABELLING}")
        described = [place.with_name(stem + suffix) for suffix in YAML_SUFFIXES]
        return next((each for each in described if each.is_file()), path)
    return path


def photo_folder(data: str | Path) -> Path | None:
    """Where the images of a folder are that has images alone, perhaps labelled ones (see `labelled_data`); None for
    everything else.
    """
    path = labelled_data(data)
    if not path.is_dir() or _own_splits(path):
        return None
    try:
        return locate_unlabelled(path).images
    except DataError:
        return path if (path / LABELLING / "data.yaml").is_file() else None


def locate_unlabelled(source: str | Path) -> SplitFiles:
    """A folder of images, perhaps in folders below it, or a COCO file (only its images are read) beside, or one level
    below, its image folder.

    Raises DataError when neither is found.
    """
    path = as_path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist{_nearest(path)}")
    if path.is_dir():
        for folder in (path, path / "images"):
            if folder.is_dir() and _holds_images(folder):
                return SplitFiles(None, folder, None)
        if image_files(path, recursive=True):  # sorted into folders, by day or by patient
            return SplitFiles(None, path, None)
        raise DataError(f"{path} has no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    if path.suffix.lower() != ".json":
        raise DataError(f"{path} is neither a folder of images nor a COCO file (.json)")
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    images = _image_folder(root, _without_points(path.stem.removeprefix("instances_").removeprefix("image_info_")))
    return SplitFiles(path, _folder_of_named(path, images, root) or path.parent, None)


def locate_images(annotations: str | Path, folder: str | Path | None = None) -> SplitFiles:
    """A COCO file and the folder of its images: the one given, the one that a data.yaml beside or one level above names
    for this file, or as for `locate_unlabelled`. Raises DataError when there is none.
    """
    path = Path(annotations)
    if folder is not None:
        if not Path(folder).is_dir():
            raise DataError(f"{folder} is no folder of images")
        return SplitFiles(path, Path(folder), None)
    if not path.is_file():
        raise DataError(f"{path} does not exist{_nearest(path)}")
    return _named_in_yaml(path) or locate_unlabelled(path)


def _named_in_yaml(path: Path) -> SplitFiles | None:
    """The split of a data.yaml beside or one level above a COCO file that names it."""
    for place in (path.parent, path.parent.parent):
        described = place / "data.yaml"
        if described.is_file() and "splits" in (content := _read_yaml(described)):
            named = _from_yaml(described, content).values()
            found = next((each for each in named if each.annotations and each.annotations.samefile(path)), None)
            if found is not None:
                return found
    return None


def _labels_above(folder: Path) -> str:
    """A sentence where a COCO file one or two folders above names the images of this one."""
    folder = folder.absolute()
    for above in (folder.parent, folder.parent.parent):
        try:
            splits = _instances_files(above) or find_single(above, below=False)
        except (DataError, OSError):
            continue
        named = [found.images if isinstance(found, SplitFiles) else found[1] for found in splits.values()]
        # Where file names begin with the folder's own name, the images are said to be in the folder above.
        if folder in named or (above == folder.parent and above in named):
            return f". The labels of its images are further up: give {above}"
    return ""


def _alone(path: Path) -> SplitFiles:
    """A COCO file and the folder near it that has its images. Raises DataError when there is none."""
    if sentence := explain_file(path):
        raise DataError(sentence)
    named = _named_in_yaml(path)
    if named is not None:
        return named
    near = [*image_folders(path, path.parent), *image_folders(path, path.absolute().parent.parent)]
    return SplitFiles(path, folder_of_images(path, list(dict.fromkeys(near))), None)


def _nearest(path: Path) -> str:
    ancestor = path
    while not ancestor.exists() and ancestor != ancestor.parent:
        missing, ancestor = ancestor.name, ancestor.parent
    if not ancestor.is_dir():
        return ""
    near = difflib.get_close_matches(missing, [entry.name for entry in ancestor.iterdir()], n=1)
    return f"; did you mean '{ancestor / near[0]}'?" if near else f"; {ancestor.absolute()} has no '{missing}'"


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())


def _image_folder(root: Path, name: str) -> Path | None:
    """The folder of split `name` (perhaps with COCO's year) in the places where people keep images."""
    split = _without_year(name)
    places = (root / "images" / name, root / name, root / "images" / split, root / split, root / "images")
    return next((place for place in places if place.is_dir()), None)


def _folder_of_named(path: Path, images: Path | None, root: Path) -> Path | None:
    """The folder in which the images of a COCO file are as it names them, where `images` has not the first of them."""
    first = first_name(path)
    if first is None or (images is not None and image_path(images, first).is_file()):
        return images
    places = [*([] if images is None else [images]), *image_folders(path, root)]
    try:
        return folder_of_images(path, list(dict.fromkeys(places)))
    except DataError:  # none is there
        return images


def _without_points(name: str) -> str:
    """PointSup's tool appends to the name of the file that it takes the masks from, whose images these still are."""
    return re.sub(r"_n\d+_v\d+_without_masks$", "", name) or name


def _without_year(name: str) -> str:
    return re.sub(r"_?(19|20)\d\d$", "", name) or name


def _instances_files(root: Path) -> dict[str, SplitFiles]:
    splits: dict[str, SplitFiles] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        name = _without_points(path.stem.removeprefix("instances_"))
        images = _image_folder(root, name) or (root if _holds_images(root) else None)
        images = _folder_of_named(path, images, root)
        if images is None:
            raise DataError(f"no images found for {path}: looked for images/ and {name}/ in {root}")
        split = _without_year(name)
        split = SPLIT_NAMES.get(split.lower(), split)
        if split in splits:
            raise DataError(
                f"{splits[split].annotations} and {path} are both split '{split}'; name the one you mean in a YAML: "
                f"splits: {{{split}: {{annotations: {path}, images: {images}}}}}"
            )
        splits[split] = SplitFiles(path, images, None)
    if {name.lower() for name in splits} == {"default"}:  # CVAT's name for all that it exports
        splits = {"train": next(iter(splits.values()))}
    if splits and "unlabelled" not in splits:
        found = next((root / name for name in UNLABELLED_FOLDERS if (root / name).is_dir()), None)
        if found is not None and _holds_images(found):
            splits["unlabelled"] = SplitFiles(None, found, None)
    return splits


def _roboflow(root: Path) -> dict[str, SplitFiles]:
    splits: dict[str, SplitFiles] = {}
    for folder, split in ROBOFLOW.items():
        path = root / folder / "_annotations.coco.json"
        if path.is_file() and split not in splits:
            splits[split] = SplitFiles(path, path.parent, None)
    return splits


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {why(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a mapping with `splits`")
    return content


def _from_yaml(path: Path, content: dict[str, Any]) -> dict[str, SplitFiles]:
    for key in content:
        if key != "splits":
            raise DataError(f"{path}: unknown key '{key}'{suggest(str(key), ['splits'])}")
    splits = content.get("splits")
    if not isinstance(splits, dict) or not splits:
        raise DataError(f"{path} needs `splits`, a mapping such as {{train: {{annotations: a.json, images: folder}}}}")
    return {str(name): _yaml_split(path, str(name), entry) for name, entry in splits.items()}


def _yaml_split(path: Path, name: str, entry: Any) -> SplitFiles:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: split '{name}' must be a mapping with `images` and `annotations`")
    for key, value in entry.items():
        if key not in ("annotations", "images", "truth"):
            raise DataError(
                f"{path}: split '{name}' has the unknown key '{key}'"
                f"{suggest(str(key), ['annotations', 'images', 'truth'])}"
            )
        if value is not None and not isinstance(value, str):
            raise DataError(f"{path}: split '{name}': {key} must be a path, found {value!r}")
    if not entry.get("images"):
        raise DataError(f"{path}: split '{name}' does not say where its `images` are")
    found = {key: (path.parent / Path(value).expanduser()) for key, value in entry.items() if value}
    for key, place in found.items():
        if not (place.is_dir() if key == "images" else place.is_file()):
            kind = "folder" if key == "images" else "file"
            raise DataError(f"{path}: split '{name}': {key} names the {kind} {place}, which does not exist")
    return SplitFiles(found.get("annotations"), found["images"], found.get("truth"))
