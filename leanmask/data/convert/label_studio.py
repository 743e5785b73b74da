"""Label Studio's task JSON: https://labelstud.io/guide/export and /guide/predictions. Places are per cent of the image.

One task per image. What a person made is in `annotations`, what a network made in `predictions` with its score. Boxes
are `rectanglelabels`, masks of one polygon `polygonlabels`, other masks `brushlabels`; a classified point is a
`keypointlabels` region whose `parentID` is its object's box, labelled with the class, or "background" beside the
object. The region's id carries the annotation's id, `meta.text` what else it says (crowd, weight).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from leanmask.data.annotation import Row, is_number
from leanmask.data.convert.brush import decode_brush, encode_brush
from leanmask.data.convert.shapes import (
    BACKGROUND,
    HUMAN,
    Ids,
    Left,
    is_pseudo,
    mask_of,
    names_of,
    rotated,
    rows_by_image,
    segmentation_from,
    single_polygon,
    with_region,
)
from leanmask.errors import DataError

Region = dict[str, Any]
PREFIX, TOLD = "leanmask-", ("iscrowd", "weight")
CONTROLS = {"rectanglelabels": "box", "polygonlabels": "polygon", "brushlabels": "brush", "keypointlabels": "point"}
LOCAL_FILES = "/data/local-files/?d="  # how Label Studio addresses its local storage


def labelling_config(names: Sequence[str]) -> str:
    """The labelling interface that the regions belong to."""
    tags = {"RectangleLabels": "box", "PolygonLabels": "polygon", "BrushLabels": "brush", "KeyPointLabels": "point"}
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
    for tag, name in tags.items():
        labels = [*names, BACKGROUND] if name == "point" else names
        inside = "".join(f"<Label value={quoteattr(label)}/>" for label in labels)
        lines.append(f'  <{tag} name="{name}" toName="image">{inside}</{tag}>')
    return "\n".join([*lines, "</View>\n"])


def to_label_studio(content: Mapping[str, Any], prefix: str = LOCAL_FILES) -> tuple[list[dict[str, Any]], Left]:
    """Tasks of a COCO file's content. prefix: what comes before a file's name in the address of its image."""
    names, left = names_of(content), Left()
    rows, tasks = rows_by_image(content), []
    for number, image in enumerate(content["images"], start=1):
        data = {"image": prefix + image["file_name"], "leanmask_image_id": image["id"]}
        if "exhaustive" in image:
            data["leanmask_exhaustive"] = image["exhaustive"]
        human: list[Region] = []
        models: defaultdict[str, list[Region]] = defaultdict(list)
        for row in rows[image["id"]]:
            regions = list(_regions(row, image, names))
            left["objects of which only the class is known"] += not regions
            (models[str(row["provenance"])] if is_pseudo(row) else human).extend(regions)
        task: dict[str, Any] = {"id": number, "data": data}
        looked_at = human or image.get("exhaustive") is True
        task["annotations"] = [{"result": human, "was_cancelled": False}] if looked_at else []
        task["predictions"] = [
            {"model_version": model, "score": _mean(regions), "result": regions} for model, regions in models.items()
        ]
        tasks.append(task)
    return tasks, +left


def _mean(regions: Sequence[Region]) -> float:
    return round(float(np.mean([region.get("score", 1.0) for region in regions])), 4)


def _regions(row: Row, image: Row, names: Mapping[int, str]) -> Iterator[Region]:
    height, width = image["height"], image["width"]
    label, own = names[row["category_id"]], f"{PREFIX}{row['id']}"
    meta = {key: row[key] for key in TOLD if row.get(key)}

    def region(kind: str, number: str, value: dict[str, Any], of: str = label) -> Region:
        found: Region = {"id": number, "from_name": CONTROLS[kind], "to_name": "image", "type": kind}
        found |= {"original_width": width, "original_height": height, "image_rotation": 0}
        found |= {"value": {**value, kind: [of]}}
        if number == own:
            found |= {"meta": {"text": [json.dumps(meta, sort_keys=True)]}} if meta else {}
            found |= {"score": row["score"]} if is_number(row.get("score")) else {}
        return found

    polygon = single_polygon(row)
    if polygon is not None:
        yield region("polygonlabels", own, {"points": (100 * polygon / [width, height]).tolist(), "closed": True})
    elif row.get("segmentation"):
        crop, (x, y) = mask_of(row, (height, width))
        whole = np.zeros((height, width), dtype=np.uint8)
        whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        yield region("brushlabels", own, {"format": "rle", "rle": encode_brush(whole)})
    elif row.get("bbox"):
        x, y, w, h = row["bbox"]
        place = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        yield region("rectanglelabels", own, {**place, "rotation": 0})
    elif row.get("point"):
        yield region("keypointlabels", own, _spot(row["point"], width, height))
    pairs = zip(row.get("point_coords") or (), row.get("point_labels") or (), strict=True)
    for place_in, ((x, y), on_object) in enumerate(pairs):
        value = _spot((x + 0.5, y + 0.5), width, height)
        yield {
            **region("keypointlabels", f"{own}-{place_in}", value, label if on_object else BACKGROUND),
            "parentID": own,
        }


def _spot(point: Sequence[float], width: int, height: int) -> dict[str, Any]:
    return {"x": 100 * point[0] / width, "y": 100 * point[1] / height, "width": 0.5}


def class_names(tasks: Sequence[Any]) -> set[str]:
    """The labels that regions have, but for that of background points."""
    found = {
        label
        for task in tasks
        for _, region in _all_regions(task)
        for label in region.get("value", {}).get(region.get("type"), ())
        if region.get("type") in CONTROLS
    }
    return {label for label in found if label != BACKGROUND}


def from_label_studio(
    tasks: Sequence[Any], categories: Mapping[str, int], sizes: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Any], Left]:
    """A COCO file's content of exported tasks. categories: ids by name. sizes: (height, width) of the images, by file
    name, for tasks whose regions do not tell them. Raises DataError with the task when something cannot be used.
    """
    wanted = [number for task in tasks for _, region in _all_regions(task) if (number := _number(region)) is not None]
    ids, left = Ids(wanted), Left()
    images: list[Row] = []
    rows: list[Row] = []
    for place, task in enumerate(tasks, start=1):
        image = _image(task, place, sizes)
        images.append(image)
        rows += _rows(task, image, categories, (ids, left))
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": rows, "categories": listed}, +left


def _all_regions(task: Any) -> Iterator[tuple[str, Region]]:
    """Every region with who made it: "human" or the model's version. Work that was cancelled, and predictions that a
    person has corrected since, do not count.
    """
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        raise DataError("Label Studio's export must be a list of tasks with `data` each")
    made = [item for item in task.get("annotations") or () if not item.get("was_cancelled")]
    for item in made[-1:]:  # the newest, where several people did the same task
        yield from ((HUMAN, region) for region in item.get("result") or ())
    if not any(item.get("parent_prediction") for item in made):
        for item in task.get("predictions") or ():
            if isinstance(item, dict):
                model = str(item.get("model_version") or "model")
                yield from ((model, region) for region in item.get("result") or ())


def _number(region: Region) -> int | None:
    text = str(region.get("id", ""))
    tail = text.removeprefix(PREFIX)
    return int(tail) if text != tail and tail.isdigit() else None


def file_name(address: str) -> str:
    """The file of an image's address: what local storage names, else the last part of the path."""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(PurePosixPath(parts.path).name)


def _image(task: Any, place: int, sizes: Mapping[str, tuple[int, int]]) -> Row:
    data = task["data"]
    name = file_name(str(data.get("image", "")))
    regions = [region for _, region in _all_regions(task)]
    told = next(((r["original_height"], r["original_width"]) for r in regions if r.get("original_height")), None)
    size = told or sizes.get(name)
    if size is None:
        raise DataError(f"task {task.get('id', place)} ({name}) does not say how large its image is; give --images")
    image = {"id": data.get("leanmask_image_id", place), "file_name": name, "width": size[1], "height": size[0]}
    exhaustive = data.get("leanmask_exhaustive")
    looked_at = any(not item.get("was_cancelled") for item in task.get("annotations") or ())
    if exhaustive is None and not regions:
        exhaustive = looked_at
    elif exhaustive is None and not looked_at:
        exhaustive = False  # a network's labels alone
    return image if exhaustive is None else {**image, "exhaustive": bool(exhaustive)}


def _rows(task: Any, image: Row, categories: Mapping[str, int], told: tuple[Ids, Left]) -> list[Row]:
    ids, left = told
    where = f"task {task.get('id')} ({image['file_name']})"
    rows: dict[str, Row] = {}
    children: list[Region] = []
    for maker, region in _all_regions(task):
        if region.get("type") not in CONTROLS:
            left[f"regions of type {region.get('type')}"] += 1
        elif region.get("parentID") and region["type"] == "keypointlabels":
            children.append(region)
        else:
            row = _row(region, image, categories, where)
            about = {"id": ids.take(_number(region)), "image_id": image["id"]}
            model = {} if maker == HUMAN else {"provenance": maker}
            score = {"score": float(region["score"])} if is_number(region.get("score")) else {}
            rows[str(region.get("id"))] = {**about, **row, **model, **score}
    for region in children:
        parent = rows.get(str(region["parentID"]))
        if parent is None:
            left["points whose object is missing"] += 1
            continue
        x, y = _place(region["value"], image)
        parent.setdefault("point_coords", []).append([int(np.floor(x)), int(np.floor(y))])
        parent.setdefault("point_labels", []).append(int(_label(region, where) != BACKGROUND))
    return list(rows.values())


def _label(region: Region, where: str) -> str:
    labels = region["value"].get(region["type"])
    if not isinstance(labels, list) or len(labels) != 1:
        raise DataError(f"{where}: region {region.get('id')!r} must have one label, found {labels!r}")
    return str(labels[0])


def _place(value: Mapping[str, Any], image: Row) -> tuple[float, float]:
    # Per cent and back leaves the last digits uncertain, and a pixel's centre must not become its neighbour's.
    return round(value["x"] * image["width"] / 100, 6), round(value["y"] * image["height"] / 100, 6)


def _row(region: Region, image: Row, categories: Mapping[str, int], where: str) -> Row:
    size, value, kind = (image["height"], image["width"]), region["value"], region["type"]
    label = _label(region, where)
    if label not in categories:
        raise DataError(f"{where}: region {region.get('id')!r} has the label '{label}', which is no class of an object")
    row: Row = {"category_id": categories[label], "iscrowd": 0, **_told(region)}
    if kind == "keypointlabels":
        return {**row, "point": list(_place(value, image))}
    if kind == "brushlabels":
        mask = decode_brush(value["rle"], size, where)
        return with_region({**row, "segmentation": segmentation_from(mask, (0, 0), size)}, size)
    if kind == "polygonlabels":
        corners = np.asarray(value["points"], dtype=np.float64) * [image["width"], image["height"]] / 100
        return with_region({**row, "segmentation": [corners.round(6).ravel().tolist()]}, size)
    x, y = _place(value, image)
    w, h = _place({"x": value["width"], "y": value["height"]}, image)
    if value.get("rotation"):
        corners = np.asarray(rotated((x, y, w, h), float(value["rotation"]), (x, y)))
        return with_region({**row, "segmentation": [corners.ravel().tolist()]}, size)
    return {**row, "bbox": [x, y, w, h], "area": w * h}


def _told(region: Region) -> dict[str, Any]:
    """What the region's meta says that we once wrote there."""
    for text in region.get("meta", {}).get("text", ()) if isinstance(region.get("meta"), dict) else ():
        try:
            found = json.loads(text)
        except (TypeError, ValueError):
            continue
        if isinstance(found, dict):
            return {key: found[key] for key in TOLD if key in found}
    return {}
