"""benchmarks/retrieval_precision.py and longtail_prior.py at tiny sizes, against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_helpers import benchmark_script

from leanmask.data.coco import AnnotationStore, ClassMap
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.layout import locate, locate_unlabelled
from leanmask.data.unlabelled import open_pool
from leanmask.retrieval.retrieve import RetrieveOptions, retrieve
from leanmask.summary import TrainSummary


@pytest.fixture(scope="module")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "tail"
    write_digits(out, DigitsSpec(train=20, tune=4, val=1, unlabelled=40, size_px=64, longtail=True))
    return out


def test_precision_of_what_is_found(trained: TrainSummary, tail: Path, tmp_path: Path) -> None:
    row = benchmark_script("retrieval_precision").measure(trained.folder, tail, 3, tmp_path)
    retrieve(tail, tail / "unlabelled", tmp_path / "own.json", RetrieveOptions(neighbours=3, model=str(trained.folder)))
    truth = json.loads((tail / "truth" / "instances_unlabelled.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    files = {image["id"]: image["file_name"] for image in truth["images"]}
    pairs = {(files[each["image_id"]], names[each["category_id"]]) for each in truth["annotations"]}
    found = json.loads((tmp_path / "own.json").read_text())["images"]
    right = [(Path(image["file_name"]).name, image["retrieved_for"]) in pairs for image in found]
    assert row["images"] == len(found) > 3
    assert row["precision"] == pytest.approx(sum(right) / len(right), abs=1e-4)
    shares = {name: sum((file, name) in pairs for file in files.values()) / 40 for name in names.values()}
    chance = sum(shares[image["retrieved_for"]] for image in found) / len(found)
    assert row["precision_at_random"] == pytest.approx(chance, abs=1e-4)


def test_classes_without_the_prior(trained: TrainSummary, tail: Path) -> None:
    module, files = benchmark_script("longtail_prior"), locate(tail)["tune"]
    assert files.annotations is not None
    probabilities, classes = module.found_objects(trained.folder, AnnotationStore.open(files.annotations, files.images))
    assert probabilities.shape == (len(classes), 10)
    found = torch.tensor([[0.6, 0.3], [0.5, 0.1], [0.2, 0.1]]), torch.tensor([1, 0, 1])
    plain = module.measure(found, [9, 1], ["f", "r"], 0.0)
    assert (plain["right"], plain["right_f"], plain["right_r"]) == (0.3333, 1.0, 0.0)
    assert (plain["confident"], plain["confident_right"]) == (0.6667, 0.5)
    evened = module.measure(found, [9, 1], ["f", "r"], 1.0)  # 0.6 : 0.3 becomes 0.6 / 9 : 0.3
    assert (evened["right"], evened["right_f"], evened["right_r"]) == (0.6667, 0.0, 1.0)


def test_random_images_are_as_many_as_were_found(tail: Path, tmp_path: Path) -> None:
    found = {"info": {}, "images": [{"id": 1, "file_name": "x", "width": 64, "height": 64}] * 7, "annotations": []}
    (tmp_path / "found.json").write_text(json.dumps(found))
    out = tmp_path / "random.json"
    benchmark_script("retrieval_precision").keep_random(tmp_path / "found.json", tail / "unlabelled", out)
    chosen = {image["file_name"] for image in json.loads(out.read_text())["images"]}
    assert len(chosen) == 7
    assert all(Path(name).parent == (tail / "unlabelled").resolve() and Path(name).is_file() for name in chosen)
    assert len(open_pool([locate_unlabelled(out)], ClassMap(("one",), (1,)))) == 7
