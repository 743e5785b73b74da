"""Reviewing the pseudo-masks of objects that a person has boxed and pointed at already, as self-training makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_helpers import train
from test_annotate import ONE_STEP, export, said, session

from leanmask.annotate.export import join
from leanmask.annotate.tasks import is_predicted
from leanmask.data.check import check
from leanmask.data.splits import split
from leanmask.data.withholding.clicks import random_pixels

DECISIONS = ("accept", "reject", "cuts_off", "wrong_class")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture
def pointed(digits: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A data set with points, and its file with the pseudo-masks of self-training: here the true ones."""
    split(digits, tmp_path / "points", "points-4")
    content = read(tmp_path / "points" / "annotations" / "instances_train.json")
    truth = {row["id"]: row for row in read(digits / "annotations" / "instances_train.json")["annotations"]}
    own = {"score": 0.9, "weight": 1.0, "provenance": "leanmask self/1-labels"}
    content["annotations"] = [
        {**row, "segmentation": truth[row["id"]]["segmentation"], **own} for row in content["annotations"]
    ]
    content["info"] = {**content.get("info", {}), "image_folder": str(digits / "images")}
    pseudo = tmp_path / "pseudo.json"
    pseudo.write_text(json.dumps(content))
    return tmp_path / "points", pseudo


def test_what_a_person_said_of_an_object_stays(pointed: tuple[Path, Path]) -> None:
    data, pseudo = pointed
    before = {row["id"]: row for row in read(data / "annotations" / "instances_train.json")["annotations"]}
    work = session(data, review=pseudo)
    ids = [unit.target for unit in work.desk()[0].dealer.units]
    assert sorted(ids) == sorted(before)
    decided = dict(zip(ids, DECISIONS, strict=False))
    export(work, [said(place, "review", key, 0, value) for place, (key, value) in enumerate(decided.items())])
    folder = data / "labelling" / "review-pseudo"
    after = {row["id"]: row for row in read(folder / "instances_train.json")["annotations"]}
    assert sorted(after) == sorted(before)  # none is there twice
    for number, decision in decided.items():
        row = dict(after[number])
        assert row.pop("review")["decision"] == decision
        assert row["bbox"] == before[number]["bbox"]
        assert row["point_labels"] == before[number]["point_labels"]
        if decision in ("reject", "cuts_off"):
            assert row == before[number]
        else:
            assert row["segmentation"]
            assert row["weight"] == (1.0 if decision == "accept" else 0.0)
    reviewed = {row["id"]: row for row in read(folder / "reviewed.json")["annotations"]}
    for number, decision in decided.items():
        if decision in ("reject", "cuts_off"):
            assert {key: reviewed[number].get(key) for key in ("segmentation", "score")} == dict.fromkeys(
                ("segmentation", "score")
            )
            assert reviewed[number]["point_coords"] == before[number]["point_coords"]
    assert check(folder).ok
    assert train(folder, data.parent / "run", settings=ONE_STEP).steps == 1


def test_a_persons_masks_are_not_up_for_review(pointed: tuple[Path, Path]) -> None:
    data, pseudo = pointed
    content = read(pseudo)
    drawn = content["annotations"][0]
    del drawn["provenance"], drawn["score"]
    pseudo.write_text(json.dumps(content))
    work = session(data, review=pseudo)
    assert sorted(unit.target for unit in work.desk()[0].dealer.units) == sorted(
        row["id"] for row in content["annotations"] if row is not drawn
    )
    work.close()
    assert is_predicted({"score": 0.5})
    assert is_predicted({"provenance": "leanmask a"})
    assert not is_predicted({"provenance": "human"})


def test_equal_ids_alone_do_not_make_the_same_object() -> None:
    def content(box: list[float], **more: Any) -> dict[str, Any]:
        row = {"id": 1, "image_id": 7, "category_id": 3, "bbox": box, "area": 4, "iscrowd": 0, **more}
        images = [{"id": 7, "file_name": "a.png", "width": 9, "height": 9}]
        return {"images": images, "annotations": [row], "categories": [{"id": 3, "name": "boat"}]}

    mine, theirs = content([0, 0, 2, 2]), content([5, 5, 2, 2], score=0.5)
    before = {1: theirs["annotations"][0]}
    whole = join(mine, theirs, before, (Path("images"), Path("images")))
    assert [(row["id"], row["bbox"]) for row in whole["annotations"]] == [(1, [0, 0, 2, 2]), (2, [5, 5, 2, 2])]


def test_points_that_the_file_has_are_not_asked_again(pointed: tuple[Path, Path], tmp_path: Path) -> None:
    """A queue that wants two more points asks for the next two that `split --points` would draw."""
    data, _ = pointed
    row = read(data / "annotations" / "instances_train.json")["annotations"][0]
    item = {"kind": "points", "image_id": row["image_id"], "annotation_id": row["id"], "points": 2}
    queue = tmp_path / "queue.json"
    queue.write_text(json.dumps({"leanmask_queue": 1, "items": [item]}))
    work = session(data, queue=queue)
    desk, _ = work.desk()
    (unit,) = desk.claim("anna", "tab", 1)
    source = work.source
    thing = source.things[source.thing_index[row["id"]]]
    assert thing.box_xywh is not None
    drawn = random_pixels(list(thing.box_xywh), source.size_of(thing.picture), 6, 0, row["id"]).tolist()
    assert row["point_coords"] == drawn[:4]
    assert unit["points"] == drawn[4:]
    answers = [said(place, "points", row["id"], place, value) for place, value in enumerate(("object", "background"))]
    (found,) = (each for each in export(work, answers)["annotations"] if each["id"] == row["id"])
    assert found["point_coords"] == drawn
    assert found["point_labels"] == [*row["point_labels"], 1, 0]
    assert found["point_provenance"][:4] == [None] * 4  # as many as there are points
    assert [about["annotator"] for about in found["point_provenance"][4:]] == ["anna", "anna"]
    assert check(data / "labelling").ok


def test_check_passes_what_a_review_exports(pointed: tuple[Path, Path]) -> None:
    """A network's mask may fit the box badly; that a person accepted it, or re-classified it, is no broken file."""
    data, pseudo = pointed
    content = read(pseudo)
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w / 3, y, x + w / 3, y + h / 3, x, y + h / 3]]
    pseudo.write_text(json.dumps(content))
    work = session(data, review=pseudo)
    ids = [unit.target for unit in work.desk()[0].dealer.units]
    answers = [
        said(place, "review", key, 0, DECISIONS[place % len(DECISIONS)] if place % 2 else "accept")
        for place, key in enumerate(ids)
    ]
    export(work, answers)
    folder = data / "labelling" / "review-pseudo"
    for exported in (folder, folder / "reviewed.json"):
        report = check(exported)
        assert report.ok, report.to_text()
        assert "box-pseudo-mask" in {problem.code for problem in report.problems}
