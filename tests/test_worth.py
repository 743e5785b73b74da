"""Detections that nobody wants cost no mask, and leaving them out changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import test_cascade
import test_mask2former
import test_mask_rcnn
import test_point_models
import test_solov2
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pldc import Teacher, method, predicted, views_of
from torch import Tensor

from leanmask.masks import Crops, Grids
from leanmask.models.base import Model, Worth
from leanmask.models.two_stage import TwoStage
from leanmask.records import Instances

MODELS = {
    "mask_rcnn": test_mask_rcnn.tiny,
    "cascade_mask_rcnn": test_cascade.cascade,
    "pointrend": lambda: test_point_models.tiny("pointrend"),
    "implicit_pointrend": lambda: test_point_models.tiny("implicit_pointrend"),
    "solov2": lambda: test_solov2.tiny(class_floor=0.0, score_floor=0.0),
    "mask2former": test_mask2former.tiny,
}


def every_third(found: Instances) -> Tensor:
    return torch.arange(len(found)) % 3 == 0


def nothing(found: Instances) -> Tensor:
    return torch.zeros(len(found), dtype=torch.bool)


def numbers(found: Instances) -> Tensor:
    """The masks' probabilities."""
    assert isinstance(found.masks, Crops | Grids)
    return found.masks.data if isinstance(found.masks, Crops) else found.masks.values


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_wanted_are_as_they_are_among_all(name: str) -> None:
    torch.manual_seed(0)
    model: Model = MODELS[name]().eval()
    images = torch.rand(2, 3, 64, 64)
    everything, some = model.predict(images), model.predict(images, None, every_third)
    assert sum(map(len, everything)) > 6
    for each, wanted in zip(everything, some, strict=True):
        expected = each[every_third(each)]
        assert torch.equal(wanted.boxes, expected.boxes)
        torch.testing.assert_close(wanted.scores, expected.scores)
        torch.testing.assert_close(numbers(wanted), numbers(expected), atol=1e-5, rtol=1e-4)
    assert [len(each) for each in model.predict(images, None, nothing)] == [0, 0]


@torch.no_grad()
def test_masks_are_made_of_the_wanted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = test_mask_rcnn.tiny().eval()
    assert isinstance(model, TwoStage)
    made: list[int] = []
    own = model.roi_heads.own_masks

    def counting(features: Any, boxes: Tensor, *more: Tensor) -> Tensor:
        made.append(len(boxes))
        return own(features, boxes, *more)

    monkeypatch.setattr(model.roi_heads, "own_masks", counting)
    found = model.predict(torch.rand(1, 3, 64, 64), None, every_third)
    assert made == [len(found[0])]


class Whole(Teacher):
    """Says everything, whatever is wanted."""

    def predict(self, images: Tensor, content: Any = None, worth: Worth | None = None) -> list[Instances]:
        return self.found


QUALITY = st.sampled_from([0.05, 0.2, 0.3, 0.31, 0.5, 0.7, 0.86, 0.95])


@settings(max_examples=60, deadline=None)
@given(
    objects=st.lists(st.tuples(QUALITY, QUALITY), max_size=6),
    how=st.sampled_from(["decoupled", "coupled", "adaptive"]),
    doubtful=st.sampled_from([0.0, 0.3, 0.9]),
    product=st.sampled_from([None, 0.2, 0.8]),
)
def test_pseudo_targets_are_those_of_everything(
    objects: list[tuple[float, float]], how: str, doubtful: float, product: float | None
) -> None:
    found = predicted([[quality, 0.0] for quality, _ in objects], [quality for _, quality in objects])
    made = [
        method(filter=how, doubtful=doubtful, coupled_quality=product).pseudo_targets(teacher(found), views_of(), 50)
        for teacher in (Teacher, Whole)
    ]
    assert made[0][1].keys() == made[1][1].keys()
    assert all(float(value) == float(made[1][1][name]) for name, value in made[0][1].items())
    (ours,), (theirs,) = made[0][0], made[1][0]
    for name in ("boxes", "categories", "supervision", "weights"):
        assert torch.equal(getattr(ours.instances, name), getattr(theirs.instances, name))
    for one, other in ((ours.instances.masks, theirs.instances.masks), (ours.pixel_weights, theirs.pixel_weights)):
        assert isinstance(one, Crops)
        assert isinstance(other, Crops)
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.regions, other.regions)
