"""Records: equal lengths, selection in every field at once, and views that stay one tensor."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.geometry import Frame
from leanmask.masks import Crops, Rles
from leanmask.records import Batch, Instances, MaskPredictions, Supervision, Target, Views

settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")


def instances(count: int) -> Instances:
    """Objects whose every field tells their number."""
    numbers = torch.arange(count)
    regions = torch.stack([numbers, numbers, numbers % 3 + 1, torch.ones_like(numbers)], dim=1)
    crops = [torch.full((1, n % 3 + 1), n, dtype=torch.uint8) for n in range(count)]
    return Instances(
        boxes=numbers[:, None].expand(-1, 4).float(),
        categories=numbers,
        supervision=numbers % 5,
        weights=numbers.float() / 100,
        scores=numbers.float(),
        class_probabilities=numbers[:, None].expand(-1, 3).float(),
        masks=Crops.join(crops, regions),
        points=numbers[:, None, None].expand(-1, 2, 2).float(),
        point_labels=numbers[:, None].expand(-1, 2),
        ids=numbers + 1000,
        provenance=tuple(f"object {n}" for n in range(count)),
    )


def views(count: int, same: bool) -> Views:
    weak = torch.rand(count, 3, 4, 4)
    frame = Frame((4, 4), (4, 4), (1.0, 1.0), (0.0, 0.0))
    target = Target(instances=instances(2), ignore=torch.zeros(0, 4))
    return Views(
        weak=weak,
        strong=weak if same else torch.rand(count, 3, 4, 4),
        targets=(target,) * count,
        frames=(frame,) * count,
        image_ids=tuple(range(count)),
        files=("a.png",) * count,
    )


@given(st.integers(0, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_selection_takes_the_same_objects_in_every_field(count: int, seed: int, by_mask: bool) -> None:
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(rng.random(count) < 0.5) if by_mask else rng.integers(0, max(count, 1), 5 if count else 0)
    index = torch.from_numpy(np.isin(np.arange(count), chosen)) if by_mask else torch.from_numpy(chosen)
    found = instances(count)[index]
    expected = chosen.tolist()
    assert len(found) == len(expected)
    assert found.categories.tolist() == expected
    assert found.boxes[:, 3].tolist() == expected
    assert found.scores.tolist() == expected
    assert found.class_probabilities[:, 1].tolist() == expected
    assert found.points[:, 0, 1].tolist() == expected
    assert found.point_labels[:, 1].tolist() == expected
    assert (found.ids - 1000).tolist() == expected
    assert list(found.provenance) == [f"object {n}" for n in expected]
    assert [sorted(set(crop.reshape(-1).tolist())) for crop in found.masks] == [[n] for n in expected]
    assert found.masks.regions[:, 0].tolist() == expected


def test_fields_of_different_length_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="different length"):
        instances(3).replace(scores=torch.zeros(2))
    with pytest.raises(AssertionError, match="different length"):
        instances(3).replace(masks=Rles(()))


def test_records_are_frozen_and_know_their_fields() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        instances(1).scores = torch.zeros(1)
    with pytest.raises(TypeError):
        instances(1).replace(score=torch.zeros(1))


def test_optional_fields_stay_absent() -> None:
    bare = Instances(
        boxes=torch.zeros(2, 4),
        categories=torch.zeros(2, dtype=torch.int64),
        supervision=torch.zeros(2, dtype=torch.int64),
        weights=torch.ones(2),
    )
    assert bare[torch.tensor([0])].masks is None
    assert bare.to("cpu").provenance is None


def test_empty_instances_are_whole() -> None:
    empty = Instances.empty()
    assert len(empty) == 0
    assert len(empty[torch.zeros(0, dtype=torch.bool)]) == 0
    assert empty.boxes.shape == (0, 4)
    assert len(empty.masks) == 0


def test_has_mask_is_full_supervision_alone() -> None:
    assert instances(10).has_mask.tolist() == [n % 5 == Supervision.MASK for n in range(10)]
    assert Supervision.NONE < Supervision.POINT < Supervision.BOX < Supervision.POINTS < Supervision.MASK


def test_moving_keeps_everything() -> None:
    target = Target(instances=instances(3), ignore=torch.ones(1, 4), exhaustive=False, pixel_weights=instances(3).masks)
    moved = target.to("cpu")
    assert moved.exhaustive is False
    assert moved.ignore.tolist() == [[1.0] * 4]
    assert moved.instances.provenance == target.instances.provenance
    assert torch.equal(moved.pixel_weights.data, target.pixel_weights.data)


@pytest.mark.parametrize("same", [True, False])
def test_views_that_are_one_tensor_stay_one(same: bool) -> None:
    batch = Batch(labelled=views(2, same), unlabelled=views(1, same)).to("cpu")
    assert (batch.labelled.strong is batch.labelled.weak) == same
    assert (batch.unlabelled.strong is batch.unlabelled.weak) == same
    assert len(batch.labelled) == 2
    assert Batch(labelled=views(1, same)).to("cpu").unlabelled is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_that_are_one_tensor_stay_one_on_another_device() -> None:
    moved = views(2, same=True).to("cuda")
    assert moved.strong is moved.weak
    assert moved.targets[0].instances.masks.data.is_cuda


def test_mask_predictions_pick_the_channel_of_the_class() -> None:
    logits = torch.rand(3, 4, 2, 2)
    categories = torch.tensor([3, 0, 2])
    predictions = MaskPredictions(
        image_index=torch.tensor([0, 0, 1]),
        boxes=torch.zeros(3, 4),
        object_index=torch.tensor([0, -1, 2]),
        categories=categories,
        logits=logits,
    )
    assert all(torch.equal(predictions.of_category()[k], logits[k, c]) for k, c in enumerate(categories.tolist()))
    agnostic = dataclasses.replace(predictions, logits=logits[:, :1])
    assert torch.equal(agnostic.of_category(), logits[:, 0])
    proposals = predictions.proposals()
    assert torch.equal(proposals.object_index, predictions.object_index)
    assert torch.equal(proposals.categories, categories)
    assert len(predictions) == 3
