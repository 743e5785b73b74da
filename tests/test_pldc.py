"""PL-DC: what becomes of a teacher's predictions, and the limits in which it is supervised training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_helpers import TINY, train
from safetensors.torch import load_file
from torch import Tensor

from leanmask.config import merge
from leanmask.data.layout import locate
from leanmask.data.splits import split
from leanmask.errors import ConfigError, DataError
from leanmask.geometry import Frame
from leanmask.masks import Crops, Grids
from leanmask.methods.base import TrainingFacts
from leanmask.methods.pldc import PLDC, PLDCConfig
from leanmask.models.base import only_worth
from leanmask.records import Batch, Instances, Target, Views
from leanmask.run import resume

SIDE = 32
FACTS = TrainingFacts(100, objects_per_class=(30, 10), class_names=("cell", "dust"), labelled_images=10)


class Teacher:
    """Predicts what it is told."""

    def __init__(self, *found: Instances) -> None:
        self.found = list(found)

    def predict(self, images: Tensor, content: Any = None, worth: Any = None) -> list[Instances]:
        return only_worth(self.found, worth)


def predicted(probabilities: list[list[float]], values: list[float]) -> Instances:
    """Objects with the given class probabilities whose masks have one value everywhere, side by side."""
    count = len(values)
    table = torch.tensor(probabilities).reshape(count, 2)
    boxes = torch.tensor([[8.0 * i, 4.0, 8.0 * i + 8, 20.0] for i in range(count)]).reshape(-1, 4)
    grids = torch.tensor(values)[:, None, None].expand(-1, 14, 14).contiguous()
    return Instances(
        boxes=boxes,
        categories=table.argmax(1),
        supervision=torch.zeros(count, dtype=torch.int64),
        weights=torch.ones(count),
        scores=table.amax(1),
        class_probabilities=table,
        masks=Grids(grids, boxes),
    )


def views_of(count: int = 1) -> Views:
    images = torch.rand(count, 3, SIDE, SIDE)
    frames = tuple(Frame((SIDE, SIDE), (SIDE, SIDE), (1.0, 1.0), (0.0, 0.0)) for _ in range(count))
    nothing = Target(instances=Instances.empty(), exhaustive=False, ignore=torch.zeros(0, 4))
    names = tuple(f"{i}.png" for i in range(count))
    return Views(weak=images, strong=images, targets=(nothing,) * count, frames=frames, image_ids=names, files=names)


def method(**settings: Any) -> PLDC:
    return PLDC(PLDCConfig(**settings), FACTS)


# Class quality 0.9 / 0.9 / 0.5 / 0.2, mask quality 0.95 / 0.7 / 0.95 / 0.95.
FOUND = predicted([[0.9, 0.0], [0.05, 0.9], [0.5, 0.4], [0.2, 0.1]], [0.95, 0.7, 0.95, 0.95])


def test_trusted_doubtful_and_dropped() -> None:
    targets, counts = method().pseudo_targets(Teacher(FOUND), views_of(), 50)
    (target,) = targets
    assert target.exhaustive
    # The first is trusted; the second's mask and the third's class are not; the fourth is nothing at all.
    assert target.instances.weights.tolist() == [1, 0, 0]
    assert target.instances.has_mask.tolist() == [True, False, False]
    assert target.instances.categories.tolist() == [0, 1, 0]
    assert counts["pseudo_objects"] == 1
    assert float(counts["teacher_score"]) == pytest.approx(0.9)
    published = method(doubtful=1.0).pseudo_targets(Teacher(FOUND), views_of(), 50)[0][0]
    assert published.instances.weights.tolist() == [1]


def test_pixels_are_weighted_by_certainty() -> None:
    target = method().pseudo_targets(Teacher(FOUND), views_of(), 50)[0][0]
    masks, weights = target.instances.masks, target.pixel_weights
    assert isinstance(masks, Crops)
    assert weights is not None
    assert torch.equal(masks.regions, weights.regions)
    inside = next(iter(masks)).bool()
    middle = next(iter(weights))[inside]
    assert masks.data.dtype == torch.uint8
    assert float(middle.median()) == pytest.approx(0.9, abs=1e-4)  # 2 * |0.95 - 0.5|
    assert method(pixel_weight="none").pseudo_targets(Teacher(FOUND), views_of(), 50)[0][0].pixel_weights is None
    boundary = method(pixel_weight="boundary").pseudo_targets(Teacher(FOUND), views_of(), 50)[0][0].pixel_weights
    assert float(next(iter(boundary)).mean()) == pytest.approx(3.0, rel=1e-4)


def test_the_coupled_filter_lets_one_quality_make_up_for_the_other() -> None:
    found = predicted([[0.8, 0.1], [0.99, 0.0]], [0.99, 0.8])
    assert method().pseudo_targets(Teacher(found), views_of(), 50)[1]["pseudo_objects"] == 0
    assert method(filter="coupled").pseudo_targets(Teacher(found), views_of(), 50)[1]["pseudo_objects"] == 2


def test_the_coupled_threshold_is_the_product_of_the_two() -> None:
    found = predicted([[0.8, 0.1]], [0.8])  # product 0.64
    for settings, kept in (({}, 0), ({"class_quality": 0.7}, 1), ({"class_quality": 0.7, "coupled_quality": 0.7}, 0)):
        counts = method(filter="coupled", **settings).pseudo_targets(Teacher(found), views_of(), 50)[1]
        assert counts["pseudo_objects"] == kept


def test_adaptive_thresholds_follow_and_are_saved() -> None:
    one = method(filter="adaptive", ema_keep=0.5)
    before = one.state_dict()
    one.pseudo_targets(Teacher(FOUND, FOUND), views_of(2), 50)
    assert one.state_dict() != before
    other = method(filter="adaptive", ema_keep=0.5)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.state_dict() == one.state_dict()
    after = one.state_dict()
    one.pseudo_labels(Teacher(FOUND), views_of())  # looking at them moves nothing
    assert one.state_dict() == after


def judge(class_names: Any) -> Any:
    """Says "dust" of everything."""
    assert tuple(class_names) == FACTS.class_names

    def opinion(images: Tensor, instances: list[Instances]) -> list[Tensor]:
        return [torch.tensor([[0.0, 1.0]]).expand(len(each), -1) for each in instances]

    return opinion


def test_a_judge_corrects_what_is_kept_and_fades() -> None:
    corrects = method(judge="python:test_pldc:judge", burn_in_fraction=0.2)
    found = predicted([[0.9, 0.1], [0.5, 0.4]], [0.95, 0.95])

    def categories(step: int) -> list[int]:
        return corrects.pseudo_targets(Teacher(found), views_of(), step)[0][0].instances.categories.tolist()

    # Right after burn-in the judge has half the say: 0.5 * 0.1 + 0.5 > 0.5 * 0.9. The doubtful one keeps its class.
    assert categories(20) == [1, 0]
    assert categories(60) == [0, 0]
    assert categories(99) == [0, 0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("klip:x", "judge 'klip:x' is none; did you mean 'clip'"),
        ("python:nowhere:judge", "cannot be imported"),
        ("python:test_pldc:nobody", "cannot be imported"),
        ("clip:", "write clip:MODEL"),
    ],
)
def test_unknown_judges(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        method(judge=name)


def test_a_function_is_not_told_where_to_look() -> None:
    with pytest.raises(ConfigError, match=r"method.judge_look is for clip: and open_clip:"):
        method(judge="python:test_pldc:judge", judge_look="masks")


def test_momentum() -> None:
    burning = method(burn_in_fraction=0.2, ema_keep=0.95, ema_warmup_steps=1)
    assert [burning.momentum(step) for step in (0, 18, 19, 20, 90)] == [0.95, 0.95, 0.0, 0.95, 0.95]
    frozen = method(burn_in_fraction=0.0, frozen_fraction=0.3, ema_keep=0.95, ema_warmup_steps=1)
    assert [frozen.momentum(step) for step in (0, 28, 29, 30)] == [1.0, 1.0, 0.0, 0.95]


def test_restraint() -> None:
    """Four labelled objects per image; up to three times as many pseudo-objects count fully."""
    assert [method().restraint(count) for count in (0, 1, 12, 24)] == [0.0, 1.0, 1.0, 0.5]


@pytest.fixture(scope="module")
def semi(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "semi"
    split(digits, out, "semi-25")
    return out


# An untrained teacher believes in little: thresholds at which something is kept at all.
LOW: dict[str, Any] = {"class_quality": 0.02, "mask_quality": 0.4, "burn_in_fraction": 0.25}


def settings_of(steps: int = 4, **own: Any) -> dict[str, Any]:
    return merge(TINY, {"method": {"name": "pldc", **LOW, **own}, "train": {"steps": steps}})


def weights(run: Path, part: str = "student") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / "last" / f"{part}.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return sum(float((one[key].double() - two[key].double()).square().sum()) for key in one) ** 0.5


@pytest.fixture(scope="module")
def whole(semi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(semi, tmp_path_factory.mktemp("pldc") / "whole", settings=settings_of(filter="adaptive")).folder


def test_it_learns_from_pseudo_labels_and_measures_them(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "journal.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert "loss_unlabelled_mask" not in steps[0]["losses"]
    assert any(row["losses"].get("loss_unlabelled_mask", 0) > 0 for row in steps[1:])
    assert any(row["kind"] == "pseudo" for row in rows)


def test_killed_and_resumed_equals_uninterrupted(semi: Path, whole: Path, tmp_path: Path) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(semi, tmp_path / "run", settings=settings_of(filter="adaptive"), on_progress=kill)
    resume(tmp_path / "run")
    for part in ("student", "teacher"):
        assert same(weights(tmp_path / "run", part), weights(whole, part))


def test_weight_zero_is_supervised_training(semi: Path, tmp_path: Path) -> None:
    train(semi, tmp_path / "off", settings=settings_of(2, unlabelled_weight=0.0, ema_keep=0.9))
    supervised = merge(TINY, {"method": {"name": "supervised"}, "train": {"steps": 2}})
    train(semi, tmp_path / "plain", settings=supervised)
    assert same(weights(tmp_path / "off"), weights(tmp_path / "plain"))


def test_nothing_of_the_unlabelled_images_annotations_is_read(semi: Path, whole: Path, tmp_path: Path) -> None:
    """With the complete annotations in place of the empty ones, the same network comes out."""
    complete = json.loads((semi / "truth" / "instances_unlabelled.json").read_text())
    assert complete["annotations"]
    source = semi / "annotations" / "instances_unlabelled.json"
    empty = source.read_bytes()
    try:
        source.write_text(json.dumps(complete))
        train(semi, tmp_path / "run", settings=settings_of(filter="adaptive"))
    finally:
        source.write_bytes(empty)
    assert same(weights(tmp_path / "run"), weights(whole))


def test_mask2former_learns_from_pseudo_labels_and_a_killed_run_resumes_to_the_same_weights(
    semi: Path, tmp_path: Path
) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    own = {"name": "mask2former", "channels": 32, "heads": 2, "queries": 8, "detections_per_image": 8}
    thin = {"encoder_layers": 1, "encoder_feedforward": 32, "decoder_layers": 2, "feedforward": 32}
    settings = merge(settings_of(class_quality=0.01), {"model": own | thin, "evaluation": {"who": ["teacher"]}})
    train(semi, tmp_path / "whole", settings=settings)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()]
    learned = [row["losses"] for row in rows if row["kind"] == "train"][1:]
    names = ("class", "mask", "dice")
    assert all(any(losses.get(f"loss_unlabelled_{name}", 0) > 0 for losses in learned) for name in names)
    with pytest.raises(KeyboardInterrupt):
        train(semi, tmp_path / "killed", settings=settings, on_progress=kill)
    resume(tmp_path / "killed")
    for part in ("student", "teacher"):
        assert same(weights(tmp_path / "killed", part), weights(tmp_path / "whole", part))


def test_guided_distillation_is_led_by_the_first_stages_teacher_and_then_follows(semi: Path, tmp_path: Path) -> None:
    """Four steps of the student, frozen for the first three: until then its teacher is the first stage's best."""

    def kill(step: int, total: int, note: str) -> None:
        if step == 4 + 3:  # after the checkpoint of the student's step 2
            raise KeyboardInterrupt

    guided = {"name": "guided_distillation", "frozen_fraction": 0.75, "class_quality": 0.02, "ema_warmup_steps": 1}
    settings = merge(TINY, {"method": guided, "train": {"steps": 4}})
    with pytest.raises(KeyboardInterrupt):
        train(semi, tmp_path / "run", settings=settings, on_progress=kill)
    first = load_file(tmp_path / "run" / "1-teacher" / "best.safetensors")
    student = tmp_path / "run" / "2-student"
    assert same(weights(student, "teacher"), first)
    early = weights(student)
    resume(tmp_path / "run")
    assert not same(weights(student, "teacher"), first)
    # One update of the EMA after teacher := student: near the student, far from the first teacher.
    assert not same(weights(student, "teacher"), weights(student))
    assert not same(weights(student, "teacher"), early)
    assert apart(weights(student, "teacher"), weights(student)) < 0.5 * apart(weights(student, "teacher"), first)


def test_folders_of_photographs_as_people_have_them(semi: Path, tmp_path: Path) -> None:
    """Sorted into folders, with EXIF rotations, one cut off: trained on, and what could not be read is counted."""
    sources = sorted(locate(semi)["unlabelled"].images.glob("train*"))[:1]
    for number in range(4):
        place = tmp_path / "pool" / f"day{number}"
        place.mkdir(parents=True)
        image = Image.open(sources[0]).resize((48 + number, 64))
        exif = image.getexif()
        exif[0x0112] = 6  # shown turned by a quarter
        image.save(place / "a.jpg", exif=exif)
    broken = tmp_path / "pool" / "day3" / "a.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    told = {"data": {"unlabelled": [str(tmp_path / "pool")]}, "train": {"batch_size": 4}, "evaluation": {"who": []}}
    summary = train(semi, tmp_path / "run", settings=merge(settings_of(2, burn_in_fraction=0.0), told))
    assert summary.unreadable == (str(broken),)
    assert f"1 image files could not be read: {broken}" in summary.to_text()
    assert summary.to_json()["unreadable"] == [str(broken)]


def test_unlabelled_images_that_leak_are_an_error_before_anything_is_written(semi: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    rows = json.loads((semi / "annotations" / "instances_train.json").read_text())["images"]
    shutil.copy(locate(semi)["train"].images / rows[0]["file_name"], tmp_path / "pool" / "copy.jpg")
    told = merge(settings_of(), {"data": {"unlabelled": [str(tmp_path / "pool")]}})
    with pytest.raises(DataError, match="one of the labelled images"):
        train(semi, tmp_path / "run", settings=told)
    assert not (tmp_path / "run").exists()
    plain = merge(TINY, {"method": {"name": "supervised"}, "data": {"unlabelled": [str(tmp_path)]}})
    with pytest.raises(ConfigError, match="learns nothing from unlabelled images"):
        train(semi, tmp_path / "run", settings=plain)


def test_classes_that_nothing_is_kept_of_are_told() -> None:
    method = PLDC(PLDCConfig(burn_in_fraction=0.0), FACTS)
    sure = predicted([[0.95, 0.05]] * 3, [0.95, 0.95, 0.97])
    batch = Batch(labelled=views_of(), unlabelled=views_of())

    def student(images: Tensor, targets: Any) -> tuple[dict[str, Tensor], None]:
        return {"loss_mask": images.mean()}, None

    told: list[str] = []
    for step in range(400):
        told += method.losses(student, Teacher(sure), batch, step % 100).events  # type: ignore[arg-type]
    assert len(told) == 1
    assert "of dust (0.00 an image, labelled 1.00)" in told[0]


@pytest.mark.parametrize(
    ("settings", "lower"),
    [
        ({}, "lower method.class_quality or method.mask_quality"),
        ({"filter": "coupled"}, "lower method.coupled_quality$"),
        ({"filter": "coupled", "coupled_quality": 0.9}, "lower method.coupled_quality$"),
    ],
)
def test_thresholds_that_keep_nothing_are_told_once(settings: dict[str, Any], lower: str) -> None:
    unsure = predicted([[0.5, 0.1], [0.3, 0.4]], [0.6, 0.7])
    batch = Batch(labelled=views_of(), unlabelled=views_of())

    def student(images: Tensor, targets: Any) -> tuple[dict[str, Tensor], None]:
        return {"loss_mask": images.mean()}, None

    def told(one: PLDC, teacher: Teacher, steps: int) -> list[str]:
        found = [one.losses(student, teacher, batch, 50).events for _ in range(steps)]  # type: ignore[arg-type]
        return [sentence for events in found for sentence in events if "nothing was kept" in sentence]

    one = method(**settings)
    assert told(one, Teacher(unsure), 150) == []
    other = method(**settings)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    (sentence,) = told(other, Teacher(unsure), 250)
    assert "kept on 200 images; the best class quality seen is 0.50, mask quality 0.70" in sentence
    assert re.search(lower, sentence)
    assert told(other, Teacher(predicted([[0.99, 0.0]], [0.99])), 1) == []
    assert len(told(other, Teacher(unsure), 200)) == 1
