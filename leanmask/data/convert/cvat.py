"""CVAT's "CVAT for images 1.1": https://docs.cvat.ai/docs/other/xml_format. Places are pixels of the image.

Boxes are `box`, masks of one polygon `polygon`, other masks `mask` (runs of the crop, row by row, zeros first), points
`points`; shapes of one `group_id` are one object. What CVAT has no field for are attributes of the labels, which the
file declares: `annotation_id`, `score`, `provenance`, `crowd`, `weight`, and `point` (object or background).
"""

from __future__ import annotations

import xml.etree.ElementTree as Xml
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanmask.data.annotation import Row, is_number
from leanmask.data.convert.shapes import (
    HUMAN,
    Ids,
    Left,
    is_pseudo,
    mask_from_runs,
    mask_of,
    names_of,
    rotated,
    row_runs,
    rows_by_image,
    segmentation_from,
    single_polygon,
    with_region,
)
from leanmask.errors import DataError

ATTRIBUTES = {
    "annotation_id": ("text", ""),
    "score": ("text", ""),
    "provenance": ("text", HUMAN),
    "crowd": ("checkbox", "false"),
    "weight": ("text", ""),
    "point": ("select", "object\nbackground"),
    "order": ("text", ""),  # of classified points, which are in two shapes there
    "exhaustive": ("text", ""),
}
SHAPES = ("box", "polygon", "mask", "points")
IMAGE_TAG = "leanmask"  # a tag of the image that carries its id and whether it is annotated exhaustively


def to_cvat(content: Mapping[str, Any]) -> tuple[bytes, Left]:
    """The XML of a COCO file's content."""
    names, left = names_of(content), Left()
    root = Xml.Element("annotations")
    Xml.SubElement(root, "version").text = "1.1"
    _declare(Xml.SubElement(Xml.SubElement(root, "meta"), "task"), [*names.values(), IMAGE_TAG], len(content["images"]))
    rows, group = rows_by_image(content), 0
    for number, image in enumerate(content["images"]):
        about = {"id": number, "name": image["file_name"], "width": image["width"], "height": image["height"]}
        element = Xml.SubElement(root, "image", {key: str(value) for key, value in about.items()})
        tag = Xml.SubElement(element, "tag", {"label": IMAGE_TAG, "source": "manual"})
        _say(tag, {"annotation_id": image["id"], "exhaustive": image.get("exhaustive")})
        for row in rows[image["id"]]:
            group += 1
            shapes = list(_shapes(row, names[row["category_id"]], image, group))
            left["objects of which only the class is known"] += not shapes
            element.extend(shapes)
    Xml.indent(root)
    return Xml.tostring(root, encoding="utf-8", xml_declaration=True), +left


def _declare(task: Xml.Element, names: Sequence[str], size: int) -> None:
    for key, value in (("name", "leanmask"), ("size", str(size)), ("mode", "annotation")):
        Xml.SubElement(task, key).text = value
    labels = Xml.SubElement(task, "labels")
    for name in names:
        label = Xml.SubElement(labels, "label")
        Xml.SubElement(label, "name").text = name
        Xml.SubElement(label, "type").text = "tag" if name == IMAGE_TAG else "any"
        attributes = Xml.SubElement(label, "attributes")
        for key, (kind, values) in ATTRIBUTES.items():
            attribute = Xml.SubElement(attributes, "attribute")
            told = {"name": key, "mutable": "False", "input_type": kind, "values": values}
            for field, value in {**told, "default_value": values.partition("\n")[0]}.items():
                Xml.SubElement(attribute, field).text = value


def _say(element: Xml.Element, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value is not None:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            Xml.SubElement(element, "attribute", {"name": key}).text = text


def _shapes(row: Row, label: str, image: Row, group: int) -> Iterator[Xml.Element]:
    source = "auto" if is_pseudo(row) else "manual"
    base = {"label": label, "source": source, "occluded": "0", "z_order": "0"}
    coords = row.get("point_coords") or []
    if coords:
        base["group_id"] = str(group)
    known = {"annotation_id": row["id"], "crowd": bool(row["iscrowd"]) if row.get("iscrowd") else None}
    known |= {key: row.get(key) for key in ("score", "provenance", "weight")}
    shape = _region(row, image, base)
    if shape is None and row.get("point"):
        shape = Xml.Element("points", {**base, "points": _text([row["point"]])})
        known["point"] = "object"
    if shape is not None:
        _say(shape, known)
        yield shape
    labels = row.get("point_labels") or []
    for value, name in ((1, "object"), (0, "background")):
        order = [place for place, said in enumerate(labels) if said == value]
        if order:
            own = [(coords[place][0] + 0.5, coords[place][1] + 0.5) for place in order]
            points = Xml.Element("points", {**base, "points": _text(own)})
            told = {"point": name, "order": ",".join(map(str, order))}
            _say(points, {**told, **({} if shape is not None else known)})
            yield points


def _region(row: Row, image: Row, base: Mapping[str, str]) -> Xml.Element | None:
    polygon = single_polygon(row)
    if polygon is not None:
        return Xml.Element("polygon", {**base, "points": _text(polygon.tolist())})
    if row.get("segmentation"):
        crop, (x, y) = mask_of(row, (image["height"], image["width"]))
        place = {"left": x, "top": y, "width": crop.shape[1], "height": crop.shape[0]}
        told = {key: str(value) for key, value in place.items()}
        return Xml.Element("mask", {**base, "rle": ", ".join(map(str, row_runs(crop))), **told})
    if row.get("bbox"):
        x, y, w, h = row["bbox"]
        corners = {"xtl": x, "ytl": y, "xbr": x + w, "ybr": y + h}
        return Xml.Element("box", {**base, **{key: repr(float(value)) for key, value in corners.items()}})
    return None


def _text(points: Sequence[Sequence[float]]) -> str:
    return ";".join(f"{float(x)!r},{float(y)!r}" for x, y in points)


def read_cvat(path: Path) -> Xml.Element:
    """The root of a CVAT file. Raises DataError when it is no XML of CVAT for images."""
    try:
        root = Xml.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (Xml.ParseError, OSError) as error:
        raise DataError(f"{path} is not valid XML: {error}") from None
    if root.tag != "annotations":
        raise DataError(f"{path} is no file of CVAT: its root is <{root.tag}>, not <annotations>")
    if root.find("track") is not None:
        raise DataError(f"{path} is of CVAT for video; export the task as 'CVAT for images 1.1'")
    return root


def class_names(root: Xml.Element) -> set[str]:
    """The labels of the shapes."""
    return {shape.get("label", "") for image in root.iter("image") for shape in image if shape.tag in SHAPES}


def from_cvat(root: Xml.Element, categories: Mapping[str, int]) -> tuple[dict[str, Any], Left]:
    """A COCO file's content of CVAT's. categories: ids by name. Raises DataError with the image when something cannot
    be used.
    """
    shapes = [shape for image in root.iter("image") for shape in image if shape.tag in SHAPES]
    ids, left = Ids(number for shape in shapes if (number := _number(shape)) is not None), Left()
    images: list[Row] = []
    rows: list[Row] = []
    for place, element in enumerate(root.iter("image"), start=1):
        image = _image(element, place)
        images.append(image)
        groups: defaultdict[str, list[Xml.Element]] = defaultdict(list)
        for number, shape in enumerate(element):
            if shape.tag in SHAPES:
                group = shape.get("group_id", "0")
                groups[f"group {group}" if group != "0" else f"shape {number}"].append(shape)
            elif not (shape.tag == "tag" and shape.get("label") == IMAGE_TAG):
                left[f"shapes of type {shape.tag}"] += 1
        rows += [_row(group, image, categories, ids) for group in groups.values()]
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    return {"images": images, "annotations": rows, "categories": listed}, +left


def _image(element: Xml.Element, place: int) -> Row:
    try:
        width, height = int(element.attrib["width"]), int(element.attrib["height"])
        image: Row = {"id": place, "file_name": element.attrib["name"], "width": width, "height": height}
    except (KeyError, ValueError):
        raise DataError(f"image {place} of the CVAT file needs name, width and height") from None
    for tag in element.iter("tag"):
        told = _attributes(tag)
        if tag.get("label") == IMAGE_TAG and told.get("annotation_id"):
            number = told["annotation_id"]
            image["id"] = int(number) if number.isdigit() else number
            image |= {"exhaustive": told["exhaustive"] == "true"} if told.get("exhaustive") else {}
    return image


def _attributes(element: Xml.Element) -> dict[str, str]:
    return {item.get("name", ""): (item.text or "").strip() for item in element.findall("attribute")}


def _number(shape: Xml.Element) -> int | None:
    text = _attributes(shape).get("annotation_id", "")
    return int(text) if text.isdigit() else None


def _row(group: Sequence[Xml.Element], image: Row, categories: Mapping[str, int], ids: Ids) -> Row:
    where = f"image {image['file_name']}"
    first = next((shape for shape in group if shape.tag != "points"), group[0])
    label = first.get("label", "")
    if label not in categories:
        raise DataError(f"{where}: a shape has the label '{label}', which is no class")
    told = _attributes(first)
    number = next((found for shape in group if (found := _number(shape)) is not None), None)
    row: Row = {"id": ids.take(number), "image_id": image["id"], "category_id": categories[label]}
    row["iscrowd"] = int(told.get("crowd") == "true")
    row |= {key: float(told[key]) for key in ("score", "weight") if _is_float(told.get(key))}
    if told.get("provenance", HUMAN) != HUMAN or first.get("source") == "auto":
        row["provenance"] = told.get("provenance") or "auto"
    try:
        row |= _geometry([shape for shape in group if shape.tag != "points"], image, where)
        return row | _points([shape for shape in group if shape.tag == "points"], alone=first.tag == "points")
    except (KeyError, ValueError) as error:
        raise DataError(f"{where}: a {first.tag} of '{label}' cannot be read: {error}") from None


def _is_float(text: str | None) -> bool:
    try:
        return is_number(float(text or "x"))
    except ValueError:
        return False


def _geometry(shapes: Sequence[Xml.Element], image: Row, where: str) -> Row:
    """The region of an object: one box, or everything that its polygons and masks cover."""
    size = (image["height"], image["width"])
    if not shapes:
        return {}
    if len(shapes) == 1 and shapes[0].tag == "box" and not float(shapes[0].get("rotation", 0)):
        x0, y0, x1, y1 = (float(shapes[0].attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    polygons = [_polygon(shape) for shape in shapes if shape.tag != "mask"]
    masks = [shape for shape in shapes if shape.tag == "mask"]
    if not masks:
        return with_region({"segmentation": polygons}, size)
    whole = np.zeros(size, dtype=np.uint8)
    for shape in masks:
        left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
        runs = [int(part) for part in shape.attrib["rle"].split(",")]
        crop = mask_from_runs(runs, (height, width), where)
        whole[top : top + height, left : left + width] |= crop[: size[0] - top, : size[1] - left]
    if polygons:
        crop, (x, y) = mask_of({"segmentation": polygons}, size)
        whole[y : y + crop.shape[0], x : x + crop.shape[1]] |= crop
    return with_region({"segmentation": segmentation_from(whole, (0, 0), size)}, size)


def _polygon(shape: Xml.Element) -> list[float]:
    if shape.tag == "polygon":
        return [number for point in _pairs(shape) for number in point]
    x0, y0, x1, y1 = (float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    # CVAT turns about the centre.
    corners = rotated((x0, y0, x1 - x0, y1 - y0), float(shape.get("rotation", 0)), ((x0 + x1) / 2, (y0 + y1) / 2))
    return [number for corner in corners for number in corner]


def _pairs(shape: Xml.Element) -> list[tuple[float, float]]:
    parts = (pair.split(",") for pair in shape.attrib["points"].split(";"))
    return [(float(x), float(y)) for x, y in parts]


def _points(shapes: Sequence[Xml.Element], alone: bool) -> Row:
    """Classified points of an object, in the order that they had unless somebody has added or removed some; a single
    point that is all there is of one is its `point`.
    """
    labelled = [(pair, _attributes(shape).get("point", "object")) for shape in shapes for pair in _pairs(shape)]
    if alone and len(labelled) == 1 and labelled[0][1] == "object":
        return {"point": list(labelled[0][0])}
    if not labelled:
        return {}
    order = [place for shape in shapes for place in _attributes(shape).get("order", "").split(",")]
    if sorted(order) == sorted(map(str, range(len(labelled)))):
        labelled = [labelled[order.index(str(place))] for place in range(len(labelled))]
    coords = [[int(np.floor(x)), int(np.floor(y))] for (x, y), _ in labelled]
    return {"point_coords": coords, "point_labels": [int(name == "object") for _, name in labelled]}
