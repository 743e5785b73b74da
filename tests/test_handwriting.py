"""The benchmark's stand-in for CLIP: knows handwriting that no split has, and is the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leanmask.benchmark.handwriting import (
    LEARN,
    OUTSIDE_KNOWLEDGE,
    HandwritingJudge,
    HandwritingSpec,
    handwriting_judge,
    held_out_accuracy,
)
from leanmask.data.digits import CLASS_NAMES, DigitsSpec, draw_scene
from leanmask.data.scenes import SPLITS, sample_pools
from leanmask.errors import ConfigError
from leanmask.labels.correct import CategoryJudge
from leanmask.records import Instances

SMALL = HandwritingSpec(scenes=60, passes=1)


@pytest.fixture(scope="module")
def judge() -> HandwritingJudge:
    return handwriting_judge()


def boxed(boxes: list[list[float]]) -> Instances:
    return Instances(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        categories=torch.zeros(len(boxes), dtype=torch.int64),
        supervision=torch.zeros(len(boxes), dtype=torch.int64),
        weights=torch.ones(len(boxes)),
    )


def test_it_reads_handwriting_that_it_has_not_seen(judge: HandwritingJudge) -> None:
    assert held_out_accuracy(judge) > 0.85


def test_what_it_learns_from_is_in_no_split() -> None:
    own = set(np.concatenate(sample_pools(LEARN[0])).tolist())
    assert LEARN == ("reserved", "train")
    assert len(own) > 150
    for split in SPLITS:
        assert not own & set(np.concatenate(sample_pools(split)).tolist())
    assert "outside knowledge" in OUTSIDE_KNOWLEDGE


def test_it_judges_the_objects_of_a_batch(judge: HandwritingJudge) -> None:
    asked: CategoryJudge = judge
    scenes = [draw_scene(DigitsSpec(), "tune", index) for index in range(40)]
    images = torch.stack([torch.from_numpy(scene.image.copy()).permute(2, 0, 1) / 255 for scene in scenes])
    boxes = [[[x, y, x + w, y + h] for x, y, w, h in (item.region for item in scene.objects)] for scene in scenes]
    found = asked(images, [boxed(each) for each in boxes])
    right = []
    for scene, probabilities in zip(scenes, found, strict=True):
        assert probabilities.shape == (len(scene.objects), 10)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(len(scene.objects)))
        right += (probabilities.argmax(1) == torch.tensor([item.digit for item in scene.objects])).tolist()
    assert sum(right) / len(right) > 0.8
    assert [tuple(each.shape) for each in asked(images[:2], [boxed([]), boxed([])])] == [(0, 10), (0, 10)]


def test_it_answers_in_the_order_of_the_classes(judge: HandwritingJudge) -> None:
    names = ("nine", "two", "five")
    some = HandwritingJudge(judge.network, names)
    image, instances = torch.rand(1, 3, 64, 64), [boxed([[4.0, 4, 40, 60]])]
    whole = judge(image, instances)[0][:, [9, 2, 5]]
    torch.testing.assert_close(some(image, instances)[0], whole / whole.sum(1, keepdim=True))
    assert held_out_accuracy(some, scenes=30) > 0.9


def test_it_is_the_same_every_time_and_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    judges = [handwriting_judge(spec=spec) for spec in (SMALL, SMALL, HandwritingSpec(60, 1, seed=1))]
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in each.network.parameters()]) for each in judges]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_class_that_is_no_digit_is_an_error() -> None:
    with pytest.raises(ConfigError, match="knows digits only, not 'nin'; did you mean 'nine'"):
        handwriting_judge((*CLASS_NAMES[:9], "nin"))
