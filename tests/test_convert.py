"""Label Studio and CVAT, both ways: round trips, the documented examples, and what is refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as Xml
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import Outcome

from leanmask.data.convert.brush import decode_brush, encode_brush
from leanmask.data.convert.cvat import from_cvat, read_cvat, to_cvat
from leanmask.data.convert.label_studio import file_name, from_label_studio, labelling_config, to_label_studio
from leanmask.data.convert.shapes import mask_from_runs, row_runs
from leanmask.data.convert.translate import ConvertOptions, convert
from leanmask.data.files import read_json
from leanmask.data.grouping import Totals, group_images
from leanmask.data.layout import locate
from leanmask.errors import ConfigError, DataError

CLASSES = {"boat": 3, "buoy": 9}
SIZE = (48, 64)


def blob(seed: int) -> dict[str, Any]:
    """A mask of several parts with a hole, as RLE with text."""
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[10:30, 12 + seed : 40] = 1
    mask[15:20, 20:25] = 0
    mask[40:44, 50:60] = 1
    rle = encode(mask)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def mixed() -> dict[str, Any]:
    """Every kind of label, crowds, pseudo-labels of two models, and images of every state."""
    polygon = [[10.0, 10.5, 30.0, 10.5, 30.0, 24.0, 10.0, 24.0]]
    pseudo = {"score": 0.75, "provenance": "leanmask run-a"}
    categories = [{"id": number, "name": name} for name, number in CLASSES.items()]
    rows = [
        {
            "id": 7,
            "image_id": 1,
            "category_id": 3,
            "iscrowd": 0,
            "segmentation": polygon,
        },
        {"id": 2, "image_id": 1, "category_id": 9, "iscrowd": 0, "segmentation": blob(0)},
        {"id": 3, "image_id": 1, "category_id": 9, "iscrowd": 0, "bbox": [1.25, 2.5, 30.0, 20.0]},
        {"id": 4, "image_id": "two", "category_id": 3, "iscrowd": 0, "bbox": [5.0, 6.0, 20.0, 15.0]},
        {"id": 5, "image_id": "two", "category_id": 3, "iscrowd": 0, "point": [12.5, 30.25]},
        {"id": 6, "image_id": "two", "category_id": 3, "iscrowd": 1, "bbox": [0.0, 0.0, 64.0, 9.0]},
        {"id": 40, "image_id": 3, "category_id": 9, "iscrowd": 0, "segmentation": blob(3), **pseudo},
        {"id": 41, "image_id": 3, "category_id": 9, "iscrowd": 0, "bbox": [3.0, 3.0, 9.0, 9.0], **pseudo},
    ]
    rows[0]["bbox"] = [10.0, 10.5, 20.0, 13.5]
    rows[7]["weight"] = 0.5
    rows[3] |= {"point_coords": [[6, 7], [24, 20], [63, 47]], "point_labels": [0, 1, 1]}
    images = [{"id": key, "file_name": f"{key}.png", "width": 64, "height": 48} for key in (1, "two", 3, 4, 5)]
    images[2]["exhaustive"] = images[4]["exhaustive"] = False
    images[3]["exhaustive"] = True
    return {
        "images": images,
        "annotations": rows,
        "categories": categories,
    }


def plain(content: dict[str, Any]) -> dict[Any, Any]:
    """What must survive: the rows without what follows from their masks, and what is said of images."""
    derived = {"area"}
    rows = {}
    for row in content["annotations"]:
        left_out = derived | ({"bbox"} if row.get("segmentation") else set())
        rows[row["id"]] = {key: value for key, value in row.items() if key not in left_out}
    return {"rows": rows, "images": content["images"]}


def test_label_studio_there_and_back() -> None:
    content = mixed()
    tasks, left = to_label_studio(content)
    assert not left
    back, left = from_label_studio(json.loads(json.dumps(tasks)), CLASSES, {"5.png": SIZE, "4.png": SIZE})
    assert not left
    found, expected = plain(back), plain(content)
    for image in expected["images"]:  # an image that somebody has labelled or not says so in any case
        image.setdefault("exhaustive", None)
    for image in found["images"]:
        image.setdefault("exhaustive", None)
    assert found == expected


def test_cvat_there_and_back(tmp_path: Path) -> None:
    content = mixed()
    written, left = to_cvat(content)
    assert not left
    (tmp_path / "a.xml").write_bytes(written)
    back, left = from_cvat(read_cvat(tmp_path / "a.xml"), CLASSES)
    assert not left
    assert plain(back) == plain(content)


def test_points_that_somebody_removed_in_cvat_are_gone(tmp_path: Path) -> None:
    """The order is then that of the file: what told it counts other points."""
    root = Xml.fromstring(to_cvat(mixed())[0])
    shape = next(each for each in root.iter("points") if ";" in each.attrib["points"])
    shape.set("points", shape.attrib["points"].split(";")[1])
    back, _ = from_cvat(root, CLASSES)
    (row,) = (row for row in back["annotations"] if row["id"] == 4)
    assert (row["point_coords"], row["point_labels"]) == ([[63, 47], [6, 7]], [1, 0])


def test_an_object_of_a_class_alone_is_counted_as_left_out() -> None:
    content = mixed()
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 3}]
    assert to_label_studio(content)[1] == to_cvat(content)[1] == {"objects of which only the class is known": 1}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_brush_masks_there_and_back(height: int, width: int, seed: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    assert np.array_equal(decode_brush(encode_brush(mask), (height, width), "here"), mask)
    assert np.array_equal(mask_from_runs(row_runs(mask), (height, width), "here"), mask)


def test_brush_of_long_runs() -> None:
    mask = np.zeros((400, 500), dtype=np.uint8)
    mask[100:, :] = 1
    data = encode_brush(mask)
    assert len(data) < 100
    assert np.array_equal(decode_brush(data, mask.shape, "here"), mask)


def oracle_decode(data: list[int]) -> list[int]:
    """rle-pack's decoder as its documentation has it, a bit at a time."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        run = read(1)
        length = read(sizes[read(2)]) + 1
        out += [read(word)] * length if run else [read(word) for _ in range(length)]
    return out


def test_brush_against_a_naive_decoder() -> None:
    mask = (np.random.default_rng(5).random((9, 13)) < 0.4).astype(np.uint8)
    assert oracle_decode(encode_brush(mask)) == np.repeat(mask.reshape(-1) * 255, 4).tolist()


def test_brush_reads_single_words_too() -> None:
    """What other encoders write: records without repetition."""
    bits = f"{8:032b}" + f"{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    bits += "0" + "01" + f"{7:04b}" + "".join(f"{value:08b}" for value in (0, 0, 0, 0, 9, 9, 9, 255))
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode_brush(data, (1, 2), "here").tolist() == [[0, 1]]


@pytest.mark.parametrize("damage", [lambda data: data[:5], lambda data: [], lambda data: [*data[:-3], 999]])
def test_damaged_brushes_are_refused(damage: Callable[[list[int]], list[int]]) -> None:
    with pytest.raises(DataError, match="task 3: the brush mask is damaged"):
        decode_brush(damage(encode_brush(np.ones((5, 7), dtype=np.uint8))), (5, 7), "task 3")


def test_a_brush_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"35 pixels, the image 36 \(6 x 6\)"):
        decode_brush(encode_brush(np.ones((5, 7), dtype=np.uint8)), (6, 6), "task 3")


# As in Label Studio's documentation of exports, predictions and tags.
DOCUMENTED = [
    {
        "id": 1,
        "data": {"image": "http://host/data/upload/1/photo%201.jpg"},
        "annotations": [
            {
                "id": 1001,
                "was_cancelled": False,
                "result": [
                    {
                        "id": "Dx_aB91ISN",
                        "from_name": "label",
                        "to_name": "image",
                        "type": "rectanglelabels",
                        "original_width": 600,
                        "original_height": 403,
                        "image_rotation": 0,
                        "value": {
                            "x": 10.0,
                            "y": 20.0,
                            "width": 50.0,
                            "height": 60.0,
                            "rotation": 0,
                            "rectanglelabels": ["boat"],
                        },
                    },
                    {"id": "c", "type": "choices", "value": {"choices": ["blurry"]}, "from_name": "q"},
                ],
            }
        ],
    },
    {
        "id": 2,
        "data": {"image": "/data/local-files/?d=folder/photo2.jpg"},
        "predictions": [
            {
                "model_version": "one",
                "score": 0.5,
                "result": [
                    {
                        "id": "r1",
                        "from_name": "label",
                        "to_name": "image",
                        "type": "polygonlabels",
                        "original_width": 200,
                        "original_height": 100,
                        "score": 0.9,
                        "value": {"points": [[10, 10], [50, 10], [50, 80]], "polygonlabels": ["buoy"]},
                    }
                ],
            }
        ],
    },
]


def test_documented_label_studio_tasks() -> None:
    content, left = from_label_studio(DOCUMENTED, CLASSES, {})
    box, polygon = content["annotations"]
    assert box["bbox"] == pytest.approx([60, 80.6, 300, 241.8])
    assert polygon["segmentation"] == [[20, 10, 100, 10, 100, 80]]
    assert (polygon["score"], polygon["provenance"], polygon["category_id"]) == (0.9, "one", 9)
    assert [image["file_name"] for image in content["images"]] == ["photo 1.jpg", "folder/photo2.jpg"]
    assert [image.get("exhaustive") for image in content["images"]] == [None, False]
    assert left == {"regions of type choices": 1}


def test_a_corrected_prediction_counts_no_more() -> None:
    task = json.loads(json.dumps(DOCUMENTED[1]))
    region = {**task["predictions"][0]["result"][0], "id": "new"}
    task["annotations"] = [{"result": [region], "parent_prediction": 5}]
    content, _ = from_label_studio([task], CLASSES, {})
    assert [row.get("provenance") for row in content["annotations"]] == [None]


def test_a_turned_rectangle_becomes_a_polygon() -> None:
    task = json.loads(json.dumps(DOCUMENTED[0]))
    task["annotations"][0]["result"][0]["value"] |= {"x": 50, "y": 50, "width": 10, "height": 10, "rotation": 90}
    content, _ = from_label_studio([task], CLASSES, {})
    assert content["annotations"][0]["bbox"] == pytest.approx([300 - 40.3, 201.5, 40.3, 60])


def test_addresses_of_images() -> None:
    assert file_name("/data/local-files/?d=sub/a%20b.png") == "sub/a b.png"
    assert file_name("s3://bucket/dir/c.jpg") == "c.jpg"
    assert file_name("d.jpg") == "d.jpg"


def test_the_interface_names_what_the_regions_use() -> None:
    root = Xml.fromstring(labelling_config(['a "quoted" & b', "c"]))
    controls = {element.get("name"): [label.get("value") for label in element] for element in root}
    tasks, _ = to_label_studio(mixed())
    made = [item for task in tasks for item in (*task["annotations"], *task["predictions"])]
    used = {region["from_name"] for item in made for region in item["result"]}
    assert used <= controls.keys()
    assert controls["point"] == ['a "quoted" & b', "c", "background"]


# As in CVAT's documentation of the XML format.
CVAT_XML = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>t</name><mode>annotation</mode></task></meta>
  <image id="0" name="filename000.jpg" width="640" height="480">
    <box label="boat" occluded="0" xtl="80.94" ytl="109.60" xbr="580.79" ybr="473.13" z_order="0" source="manual"/>
    <polygon label="buoy" source="auto" occluded="0" points="10.0,10.0;20.0,10.0;20.0,30.0" z_order="1"></polygon>
    <mask label="boat" source="manual" occluded="0" rle="1, 2, 2, 1" left="7" top="9" width="3" height="2" z_order="0"/>
    <points label="buoy" points="57.90,93.50" occluded="0" z_order="5"/>
    <box label="boat" xtl="10" ytl="20" xbr="30" ybr="40" rotation="90.0"/>
    <polyline label="boat" points="1,1;2,2"/>
    <tag label="good_frame" source="manual"/>
  </image>
</annotations>"""


def test_documented_cvat(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(CVAT_XML)
    content, left = from_cvat(read_cvat(tmp_path / "a.xml"), CLASSES)
    box, polygon, mask, point, turned = content["annotations"]
    assert box["bbox"] == pytest.approx([80.94, 109.60, 499.85, 363.53])
    assert polygon["provenance"] == "auto"
    assert polygon["segmentation"] == [[10, 10, 20, 10, 20, 30]]
    assert mask["bbox"] == [8, 9, 2, 2]
    assert mask["area"] == 3
    assert point["point"] == [57.9, 93.5]
    assert turned["bbox"] == pytest.approx([10, 20, 20, 20])
    assert left == {"shapes of type polyline": 1, "shapes of type tag": 1}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("1, 2, 2, 1", "1, 2, 2", r"image filename000.jpg: the runs of a mask add up to 5 of its 6 pixels"),
        ('label="boat" occluded', 'label="ship" occluded', "a shape has the label 'ship'"),
        ('xtl="80.94"', 'xtl="left"', "a box of 'boat' cannot be read"),
        ("57.90,93.50", "57.90", "a points of 'buoy' cannot be read"),
        ('width="640"', 'width="wide"', "image 1 of the CVAT file needs name, width and height"),
        ("</annotations>", "", "not valid XML"),
        ("annotations>", "data>", "its root is <data>"),
        ("<image", '<track id="1"/><image', "CVAT for video"),
    ],
)
def test_bad_cvat_is_a_sentence(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "a.xml").write_text(CVAT_XML.replace(old, new))
    with pytest.raises(DataError, match=says):
        from_cvat(read_cvat(tmp_path / "a.xml"), CLASSES)


def test_files_there_and_back_stay_readable(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(mixed()))
    for tool, name in (("label-studio", "tasks.json"), ("cvat", "a.xml")):
        made = convert(path, tmp_path / name, ConvertOptions(to=tool))
        assert made.objects == {"box": 3, "mask": 3, "point": 1, "points": 1}
        (tmp_path / "images").mkdir(exist_ok=True)
        from PIL import Image

        for number in (4, 5):
            Image.new("RGB", (64, 48)).save(tmp_path / "images" / f"{number}.png")
        back = tmp_path / f"{tool}.json"
        told = convert(tmp_path / name, back, ConvertOptions(images=tmp_path / "images", like=path))
        assert told.objects == made.objects
        assert list(group_images(json.loads(back.read_text()), back, Totals()))


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(mixed()))
    with pytest.raises(DataError, match="exists already"):
        convert(path, path)
    with pytest.raises(ConfigError, match="did you mean 'cvat'"):
        ConvertOptions(to="cvatt")
    (tmp_path / "tasks.json").write_text(json.dumps([{"data": {"image": "a.jpg"}}]))
    with pytest.raises(DataError, match="does not say how large its image is; give --images"):
        convert(tmp_path / "tasks.json", tmp_path / "new.json")
    (tmp_path / "odd.json").write_text(json.dumps([{"id": 1}]))
    with pytest.raises(DataError, match="list of tasks"):
        convert(tmp_path / "odd.json", tmp_path / "new.json")
    (tmp_path / "a.xml").write_text(CVAT_XML)
    other = {**mixed(), "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="class 'boat' is not among the known classes"):
        convert(tmp_path / "a.xml", tmp_path / "new.json", ConvertOptions(like=tmp_path / "other.json"))
    background = {**mixed(), "categories": [{"id": 3, "name": "background"}, {"id": 9, "name": "buoy"}]}
    with pytest.raises(DataError, match="a class is called 'background'"):
        to_cvat(background)


def test_the_verb(leanmask: Callable[..., Outcome], digits: Path, tmp_path: Path) -> None:
    there = leanmask("convert", digits, tmp_path / "tasks.json", "--to", "label-studio", "--json")
    assert there.code == 0
    told = json.loads(there.out)
    assert told["images"] == 16
    assert Path(told["config"]).is_file()
    back = leanmask("convert", tmp_path / "tasks.json", tmp_path / "back.json", "--like", digits)
    assert back.code == 0
    original = json.loads((digits / "annotations" / "instances_train.json").read_text())
    again = json.loads((tmp_path / "back.json").read_text())
    kept = {row["id"]: (row["category_id"], row["segmentation"]) for row in original["annotations"]}
    assert {row["id"]: (row["category_id"], row["segmentation"]) for row in again["annotations"]} == kept


@pytest.mark.parametrize("to", ["coco", "label-studio", "cvat"])
def test_splits_that_are_not_converted_are_said(digits: Path, tmp_path: Path, to: str) -> None:
    images = {name: len(read_json(files.annotations or "")["images"]) for name, files in locate(digits).items()}
    train = convert(digits, tmp_path / "train", ConvertOptions(to=to))
    assert train.images == images["train"]
    assert "split train alone; " in train.to_text()
    assert f"val ({images['val']} images): --split val" in train.to_text()
    assert train.to_json()["others"]["val"] == images["val"]
    val = convert(digits, tmp_path / "val", ConvertOptions(to=to, split="val"))
    assert f"train ({images['train']} images): --split train" in val.to_text()
    (tmp_path / "one.json").write_text(locate(digits)["val"].annotations.read_text())  # type: ignore[union-attr]
    assert "--split" not in convert(tmp_path / "one.json", tmp_path / "alone", ConvertOptions(to=to)).to_text()
