"""What to label next: gains, greed against all subsets, reasons, the queue, and the benchmark of its worth."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import Outcome

from leanmask.benchmark.suggest import ARMS, bench_suggest, seconds_of
from leanmask.benchmark.table import BenchOptions
from leanmask.costs import LabelCosts
from leanmask.data.appearance import _grouped, looks
from leanmask.data.coco import AnnotationStore
from leanmask.data.splits import split
from leanmask.errors import ConfigError, DataError, counted
from leanmask.inference.doubt import networks
from leanmask.inference.predict import evaluate, load
from leanmask.labels.worth import Candidate, Doubt, Shelf, Shopping, best_offer, choose, doubted_together, share_of_mask
from leanmask.suggestions import Suggested, Suggestion, SuggestOptions, suggest
from leanmask.summary import TrainSummary

BOX = share_of_mask(0)


def thing(number: int, category: int = 0, look: int = 0, doubt: Doubt | None = Doubt()) -> Candidate:
    return Candidate(number, "object", ((category, doubt),), look, BOX)


def test_published_shares() -> None:
    assert share_of_mask(10) == pytest.approx(36.1 / 37.2)
    assert BOX < share_of_mask(5) < share_of_mask(10) < share_of_mask(20) < 1
    assert share_of_mask(1000) == share_of_mask(20)


def test_doubt_grows_with_each_of_its_parts_and_never_vanishes() -> None:
    assert Doubt(0, 0, 0).total == pytest.approx(0.02)
    assert Doubt(0.5, 0, None).total == Doubt(0, 0.5, 0).total == Doubt(0, 0, 0.5).total == 0.5
    assert Doubt(0.5, 0.5, 0.5).total == pytest.approx(0.875)
    assert Doubt(1, 0.3).total == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 1)), max_size=12), st.floats(1, 400))
def test_choices_fit_the_time_and_are_greedy(things: list[tuple[int, int, float]], seconds: float) -> None:
    candidates = [thing(n, c, look, Doubt(0, d)) for n, (c, look, d) in enumerate(things)]
    shopping, shelf = Shopping(seconds), Shelf()
    chosen = choose(candidates, shopping, shelf)
    assert sum(choice.seconds for choice in chosen) <= seconds
    assert len({choice.candidate.target for choice in chosen}) == len(chosen)
    # A naive greedy over everything, with a shelf of its own, chooses the same gains.
    naive, left, waiting = Shelf(), seconds, doubted_together(candidates)
    for choice in chosen:
        offers = [(best_offer(item, shopping, naive, left), item) for item in waiting]
        best = max(offer.gain / offer.seconds for offer, _ in offers if offer)
        assert choice.gain / choice.seconds == pytest.approx(best)
        waiting = [item for item in waiting if item.target != choice.candidate.target]
        left -= choice.seconds
        naive.add("mask", choice.candidate, share_of_mask(10) if choice.kind == "points" else 1.0)
    assert not any(best_offer(item, shopping, naive, left) for item in waiting)


def test_rare_classes_and_new_looks_come_first() -> None:
    shelf = Shelf()
    for number in range(9):
        shelf.add("mask", thing(100 + number, category=0, look=0), 1.0)
    common, rare, new_look = thing(1, 0, 0), thing(2, 1, 0), thing(3, 0, 5)
    order = [choice.candidate.target for choice in choose([common, rare, new_look], Shopping(1e4), shelf)]
    assert order[-1] == 1
    assert set(order) == {1, 2, 3}


def test_doubt_comes_first_and_points_before_masks() -> None:
    sure, unsure = thing(1, 0, 0, doubt=Doubt(0, 0.1)), thing(2, 1, 1, doubt=Doubt(0, 0.9))
    first, *_ = choose([sure, unsure], Shopping(9), Shelf())
    assert (first.candidate.target, first.kind, first.seconds) == (2, "points", 9)
    cheap = LabelCosts(mask_seconds=8, box_seconds=7)
    assert choose([sure], Shopping(100, costs=cheap), Shelf())[0].kind == "mask"
    assert choose([sure], Shopping(8), Shelf()) == []  # too little time for anything
    pointed = Candidate(1, "object", ((0, Doubt()),), 0, share_of_mask(10))
    assert [choice.kind for choice in choose([pointed], Shopping(100), Shelf())] == ["mask"]
    assert choose([pointed], Shopping(100, masks=False), Shelf()) == []


def test_an_object_is_as_much_in_doubt_as_objects_like_it() -> None:
    hidden, like, other = thing(1, 0, 0, Doubt(1, 0.9)), thing(2, 0, 0, Doubt(0, 0.1)), thing(3, 1, 1, Doubt(1, 0.6))
    pooled = {each.target: each.objects[0] for each in doubted_together([hidden, like, other])}
    assert pooled[1] == pooled[2] == (0, Doubt(0.0, pytest.approx(0.5)))
    assert pooled[3] == (1, Doubt(0.0, pytest.approx(0.6)))  # its class is known: nobody buys it
    first, *_ = choose([hidden, like, other], Shopping(9), Shelf())
    assert first.candidate.target == 3
    # Class and look each have a say, student and teacher too; an image keeps what is expected there.
    mixed = [thing(1, 0, 0, Doubt(0, 0.4, 0.2)), thing(2, 0, 1, Doubt(0, 0.8, 0.4)), thing(3, 1, 1, Doubt(0, 0.2, 0.0))]
    of_class, of_look = (0.6, 0.3), (0.5, 0.2)
    _, doubt = next(each.objects[0] for each in doubted_together(mixed) if each.target == 2)
    assert (doubt.mask, doubt.disagreement) == pytest.approx(
        tuple(math.sqrt(one * two) for one, two in zip(of_class, of_look, strict=True))
    )
    image = Candidate("a", "image", ((None, Doubt(0.3, 0.2)),), 0, 0.0)
    assert doubted_together([image]) == [image]


def test_of_equal_doubt_the_typical_object_comes_first() -> None:
    odd, typical = dataclasses.replace(thing(1), typical=0.3), dataclasses.replace(thing(2), typical=0.9)
    first, *_ = choose([odd, typical], Shopping(9), Shelf())
    assert first.candidate.target == 2


def test_what_no_network_was_asked_about_is_as_doubtful_as_its_likes() -> None:
    asked, like, alone = thing(1, 0, 0, Doubt(0, 0.2)), thing(2, 0, 0, None), thing(3, 1, 1, None)
    pooled = {each.target: each.objects[0][1] for each in doubted_together([asked, like, alone])}
    assert pooled[1] == pooled[2] == Doubt(0.0, pytest.approx(0.2))
    assert pooled[3] == Doubt(0.0, 1.0)


def test_only_missing_points_are_bought() -> None:
    some = dataclasses.replace(thing(1), has=share_of_mask(8), points=8)
    (choice,) = choose([some], Shopping(50, points=10), Shelf())
    assert (choice.kind, choice.points) == ("points", 2)
    assert choice.seconds == pytest.approx(1.8)
    assert choice.share == pytest.approx(share_of_mask(10) - share_of_mask(8))
    shelf = Shelf()
    shelf.add("mask", some, some.has)  # as what is labelled already is counted
    choose([some], Shopping(50, points=10), shelf)
    assert shelf.counts["mask", "class", 0] == pytest.approx(share_of_mask(10))
    masked = dataclasses.replace(thing(2), points=None)  # a pseudo-mask is learned instead of points
    assert [choice.kind for choice in choose([masked], Shopping(100), Shelf())] == ["mask"]


def test_an_unknown_class_is_no_rarer_than_the_commonest() -> None:
    shelf = Shelf()
    for number in range(9):
        shelf.add("box", thing(number, category=number // 6, look=1), 1.0)
    assert shelf.rarity("box", None, 0) == shelf.rarity("box", 0, 0) < shelf.rarity("box", 1, 0)
    assert Shelf().rarity("box", None, 0) == 1


def test_an_image_is_priced_by_what_is_expected_there() -> None:
    image = Candidate("a", "image", ((None, Doubt()),) * 4, 0, 0.0)
    (choice,) = choose([image], Shopping(1000, costs=LabelCosts(spotting_seconds=3)), Shelf())
    assert (choice.kind, choice.seconds) == ("boxes", 40)


@pytest.mark.parametrize(
    "wrong", [{"hours": 0}, {"hours": math.nan}, {"points": 0}, {"expected_objects": -3}, {"exif": "turn"}]
)
def test_impossible_options_are_refused_before_anything_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="allowed: "):
        SuggestOptions(**{"hours": 1.0, **wrong})


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="allowed: above 0"):
        Shopping(seconds)


def test_looks_are_groups_of_alike(digits: Path) -> None:
    store = AnnotationStore.open(digits / "annotations" / "instances_train.json", digits / "images")
    records = [store[index] for index in range(len(store))]
    boxes = [np.asarray([item.box_xyxy for item in record.objects]).reshape(-1, 4) for record in records]
    groups = looks(records, boxes, "error")
    assert [len(own.group) for own in groups] == [len(own.typical) for own in groups] == [len(own) for own in boxes]
    again = looks(records, boxes, "error")
    assert all(np.array_equal(a.group, b.group) for a, b in zip(groups, again, strict=True))
    assert all(np.array_equal(a.typical, b.typical) for a, b in zip(groups, again, strict=True))
    assert len(set(itertools.chain(*(own.group.tolist() for own in groups)))) > 1


def test_the_middle_of_a_look_is_its_most_typical_member() -> None:
    rng = np.random.default_rng(0)
    around = [centre + rng.normal(0, 0.1, (30, 4)) for centre in (np.zeros(4), np.full(4, 5.0))]
    described = np.concatenate([*around, np.full((1, 4), 7.5)])
    groups, typical = _grouped(described)
    assert ((typical > 0) & (typical <= 1)).all()
    for group in np.unique(groups):
        members = groups == group
        far = np.linalg.norm(described[members] - described[members].mean(0), axis=1)
        assert typical[members].argmax() == far.argmin()
    assert typical[-1] == typical.min()  # the one that is like none
    assert (_grouped(np.zeros((50, 4)))[1] == 1).all()


@pytest.fixture(scope="module")
def boxed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("suggest") / "boxed"
    split(digits, out, "boxes")
    return out


def test_without_a_run(boxed: Path, tmp_path: Path) -> None:
    found = suggest(boxed, SuggestOptions(hours=0.02), out=tmp_path / "queue.json")
    assert sum(item.seconds for item in found.items) <= 72
    assert len(found.items) == 8
    queue = json.loads((tmp_path / "queue.json").read_text())
    assert queue["leanmask_queue"] == 1
    item = queue["items"][0]
    assert item["kind"] == "points"
    assert item["points"] == 10
    assert "10 points on '" in item["why"]
    assert item["why"].endswith(".")
    assert suggest(boxed, SuggestOptions(hours=0.02)).items == found.items
    with pytest.raises(DataError, match="exists already"):
        suggest(boxed, SuggestOptions(hours=1), out=tmp_path / "queue.json")


def test_with_a_run(boxed: Path, trained: TrainSummary) -> None:
    found = suggest(boxed, SuggestOptions(hours=0.02, run=trained.folder))
    assert found.items
    assert all("student and teacher differ by" in item.why for item in found.items)
    assert len({item.gain for item in found.items}) > 1


def test_pseudo_masks_and_rejected_objects(boxed: Path, trained: TrainSummary, tmp_path: Path) -> None:
    """Of a pseudo-masked object a mask is for sale alone; one that somebody rejected is none any more."""
    content = json.loads((boxed / "annotations" / "instances_train.json").read_text())
    pseudo, rejected, accepted, *_ = content["annotations"]
    size = next(image for image in content["images"] if image["id"] == pseudo["image_id"])
    outline = [0, 0, size["width"] / 2, 0, size["width"] / 2, size["height"] / 2]
    pseudo |= {"segmentation": [outline], "provenance": "leanmask a", "score": 0.5}
    accepted |= {"segmentation": [outline], "provenance": "human", "score": 0.5}
    rejected["weight"] = 0.0
    named = yaml.safe_load((boxed / "data.yaml").read_text())["splits"]
    splits = {name: {key: str((boxed / at).resolve()) for key, at in files.items()} for name, files in named.items()}
    splits["train"]["annotations"] = "train.json"
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"splits": splits}))
    for run in (None, trained.folder):
        found = suggest(tmp_path, SuggestOptions(hours=100.0, run=run))
        kinds = {item.annotation_id: item.kind for item in found.items}
        assert kinds[pseudo["id"]] == "mask"
        assert not {rejected["id"], accepted["id"]} & kinds.keys()
        assert len(kinds) == len(content["annotations"]) - 2


def test_a_staged_runs_networks_are_those_of_its_last_training(trained: TrainSummary, tmp_path: Path) -> None:
    assert len(networks(load(trained.folder), trained.folder)) == 2
    run = tmp_path / "staged"
    shutil.copytree(trained.folder, run / "3-student")
    shutil.copyfile(trained.folder / "best.safetensors", run / "best.safetensors")
    stages = [{"name": "labels", "folder": "1-labels", "trains": True}]
    stages += [{"name": "pseudo", "folder": "2-pseudo", "trains": False}]
    stages += [{"name": "student", "folder": "3-student", "trains": True}]
    (run / "stages.json").write_text(json.dumps({"stages": stages}))
    assert len(networks(load(run), run)) == 2


def test_images_without_labels(digits: Path, trained: TrainSummary, tmp_path: Path) -> None:
    split(digits, tmp_path / "semi", "semi-20")
    for run in (None, trained.folder):
        found = suggest(tmp_path / "semi", SuggestOptions(hours=0.05, run=run, split="unlabelled"))
        assert {item.kind for item in found.items} == {"boxes"}
        assert "Boxes on image" in found.items[0].why
    # An untrained run sees nothing: as many objects as the user expects, and it is said.
    usual = SuggestOptions(hours=0.05, run=trained.folder, split="unlabelled", expected_objects=3)
    item = suggest(tmp_path / "semi", usual).items[0]
    assert item.seconds == pytest.approx(3 * LabelCosts().object_seconds(box=True))
    assert "the run sees nothing there, 3 objects are usual" in item.why
    with pytest.raises(DataError, match="did you mean 'train'"):
        suggest(digits, SuggestOptions(hours=1, split="trian"))


def test_the_verb_and_annotate_follow_the_queue(leanmask: Callable[..., Outcome], boxed: Path, tmp_path: Path) -> None:
    from leanmask.annotate.work import AnnotateOptions, Work

    queue = tmp_path / "queue.json"
    outcome = leanmask("suggest", boxed, "--hours", 0.01, "--out", queue)
    assert outcome.code == 0
    assert "points on 4 objects: 0.01 of 0.01 hours" in " ".join(outcome.out.split())
    work = Work.open(boxed, AnnotateOptions(queue=queue, store=tmp_path / "store.sqlite"))
    desk, masks = work.desk()
    ids = [item["annotation_id"] for item in json.loads(queue.read_text())["items"]]
    assert [unit.target for unit in desk.dealer.units] == ids
    assert masks == 0
    work.close()
    # Two people label what the overlap says, also from a queue.
    twice = Work.open(boxed, AnnotateOptions(queue=queue, store=tmp_path / "twice.sqlite", overlap=1.0))
    assert {unit.needed for unit in twice.desk()[0].dealer.units} == {2}
    twice.close()
    assert leanmask("suggest", boxed, "--hours", -1).code == 2


def test_without_a_name_the_queue_goes_beside_the_labels(
    leanmask: Callable[..., Outcome], boxed: Path, tmp_path: Path
) -> None:
    data = tmp_path / "boxed"
    shutil.copytree(boxed, data, symlinks=True)
    outcomes = [leanmask("suggest", data, "--hours", 0.01) for _ in range(2)]
    queues = [data / "labelling" / name for name in ("queue.json", "queue-2.json")]
    for outcome, queue in zip(outcomes, queues, strict=True):
        assert outcome.code == 0, outcome.err
        assert len(json.loads(queue.read_text())["items"]) == 4
        assert f"leanmask annotate {data} --queue {queue}" in " ".join(outcome.out.split())


def test_seconds_of_the_protocol() -> None:
    assert seconds_of("sparse-1") is None
    assert seconds_of("suggest-90.5") == 90.5
    with pytest.raises(ConfigError, match="suggest-3600"):
        seconds_of("suggest")


def test_the_benchmark_spends_equal_seconds(digits: Path, tmp_path: Path) -> None:
    overrides = ("model.backbone=tiny", "train.steps=1", "data.image_size=64", "data.workers=0", "train.batch_size=2")
    options = BenchOptions(data=digits, work=tmp_path / "work", results=tmp_path / "results", overrides=overrides)
    table = bench_suggest("suggest-200", options)
    assert [row["arm"] for row in table.rows] == list(ARMS)
    bought = {row["arm"]: row["bought"] for row in table.rows}
    assert all(100 < own["seconds"] <= 200 for own in bought.values())
    assert bought["random_points"]["points"] == 22
    assert bought["random_masks"]["mask"] == 2
    assert all("AP" in row["metrics"] for row in table.rows)
    assert bench_suggest("suggest-200", options).rows == table.rows  # nothing is trained twice
    runs = {path.name for path in (tmp_path / "work" / "runs").iterdir() if path.is_dir()}
    tuning = dataclasses.replace(options, split="tune", arms=("random_points",))
    assert [row["split"] for row in bench_suggest("suggest-200", tuning).rows] == ["tune"]
    (other,) = {
        path.name for path in (tmp_path / "work" / "runs").iterdir() if path.is_dir()
    } - runs  # not the other split's run
    assert "-tune-" in other
    with pytest.raises(ConfigError, match="did you mean 'suggest_run'"):
        bench_suggest("suggest-200", BenchOptions(arms=("sugest_run",)))


def with_classes(data: Path, folder: Path, change: Callable[[dict[str, Any]], None], name: str = "train") -> Path:
    """The same data with the annotations of one split changed, and the new categories in all of them."""
    named = yaml.safe_load((data / "data.yaml").read_text())["splits"]
    splits = {split: {key: str((data / at).resolve()) for key, at in files.items()} for split, files in named.items()}
    for split_name in ("train", "val"):
        content = json.loads(Path(splits[split_name]["annotations"]).read_text())
        if split_name == name:
            change(content)
            categories = content["categories"]
        splits[split_name]["annotations"] = f"{split_name}.json"
        (folder / f"{split_name}.json").write_text(json.dumps(content))
    for path in (folder / "train.json", folder / "val.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "categories": categories}))
    (folder / "data.yaml").write_text(yaml.safe_dump({"splits": splits}))
    return folder


def add_zebra(content: dict[str, Any]) -> None:
    """A class that sorts before all others, so that every index changes, with one object."""
    content["categories"] = [{"id": -5, "name": "zebra"}, *content["categories"]]
    content["annotations"][0]["category_id"] = -5


def test_a_class_that_a_run_has_never_seen(boxed: Path, trained: TrainSummary, tmp_path: Path) -> None:
    before = suggest(boxed, SuggestOptions(hours=100.0, run=trained.folder))
    found = suggest(with_classes(boxed, tmp_path, add_zebra), SuggestOptions(hours=100.0, run=trained.folder))
    assert {item.annotation_id for item in found.items} == {item.annotation_id for item in before.items}
    assert f"{trained.folder} does not know 'zebra': the masks of such objects are in full doubt" in found.notes
    assert sum("of 'zebra'" in item.why or "on 'zebra'" in item.why for item in found.items) == 1


def test_a_run_is_measured_on_a_class_it_has_never_seen(sparse: Path, trained: TrainSummary, tmp_path: Path) -> None:
    data = with_classes(sparse, tmp_path, add_zebra, name="val")
    found = evaluate(trained.folder, data, out=tmp_path / "out")
    (note,) = [note for note in found.notes if "zebra" in note]
    assert note.startswith(f"{trained.folder} does not know 'zebra': the objects count as missed")
    assert [each.get("AP") for each in found.per_class if each["name"] == "zebra"] == [0]
    assert note in json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"]


def test_an_id_of_two_classes_is_refused(sparse: Path, trained: TrainSummary, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "zebra"

    data = with_classes(sparse, tmp_path, rename)
    with pytest.raises(DataError, match=r"is class 'zebra' in the data but '.*' in .*; give a class the same id"):
        suggest(data, SuggestOptions(hours=1, run=trained.folder))
    with pytest.raises(DataError, match=r"is class 'zebra' in .*val\.json but"):
        evaluate(trained.folder, data, out=tmp_path / "out")


def test_one_of_something_is_said_in_the_singular() -> None:
    items = tuple(Suggestion(kind, 1, None, 0, 36.0, 1.0, "why") for kind in ("boxes", "points", "mask"))
    said = Suggested("data", "train", None, 1, items)
    assert said.to_text().startswith("boxes on 1 image, points on 1 object, 1 mask: 0.03 of 1 hour\n")
    assert said.table().title == "What to label in 1 hour"
    assert [counted(number, "hour") for number in (0, 1.0, 0.5, 2000)] == [
        "0 hours",
        "1 hour",
        "0.5 hours",
        "2,000 hours",
    ]
