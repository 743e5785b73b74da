"""Sampling of mask crops and RoIAlign by matrix products, against torchvision's kernel on dense masks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from leanmask.masks import Crops
from leanmask.models.mask_losses import MaskGrid, has_mask, mask_loss, mask_targets, sample_masks
from leanmask.models.pooling import RoIPool, box_levels
from leanmask.records import Instances, MaskPredictions, Supervision, Target

CANVAS = (72, 96)


def random_crops(count: int, canvas: tuple[int, int], seed: int) -> Crops:
    """Blobs with random regions, some of them at the border, every fourth one missing."""
    generator = torch.Generator().manual_seed(seed)
    crops, regions = [], []
    for i in range(count):
        if i % 4 == 3:
            regions.append([0, 0, 0, 0])
            crops.append(torch.zeros(0, 0, dtype=torch.uint8))
            continue
        w, h = (int(torch.randint(1, side // 2, (1,), generator=generator)) for side in (canvas[1], canvas[0]))
        x = [0, canvas[1] - w, int(torch.randint(0, canvas[1] - w, (1,), generator=generator))][i % 3]
        y = [0, canvas[0] - h, int(torch.randint(0, canvas[0] - h, (1,), generator=generator))][i % 3]
        regions.append([x, y, w, h])
        crops.append((torch.rand(h, w, generator=generator) < 0.6).to(torch.uint8))
    return Crops.join(crops, torch.tensor(regions))


def dense(crops: Crops, canvas: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(crops), *canvas)
    for mask, crop, (x, y, w, h) in zip(masks, crops, crops.regions.tolist(), strict=True):
        mask[y : y + h, x : x + w] = crop
    return masks


def random_boxes(count: int, canvas: tuple[int, int], seed: int) -> Tensor:
    """Boxes inside the canvas, of all sizes, some over the whole of it and some thinner than a pixel."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([canvas[1], canvas[0]])
    boxes = ends.reshape(count, 4)
    boxes[0] = torch.tensor([0.0, 0.0, canvas[1], canvas[0]])
    boxes[1:2, 2] = boxes[1:2, 0] + 0.3
    return boxes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([7, 14, 28]), aligned=st.booleans())
def test_masks_are_those_of_roi_align(seed: int, size: int, aligned: bool) -> None:
    crops, boxes = random_crops(8, CANVAS, seed), random_boxes(30, CANVAS, seed)
    index = torch.randint(0, 8, (30,), generator=torch.Generator().manual_seed(seed))
    rois = torch.cat([index[:, None].float(), boxes], dim=1)
    expected = roi_align(dense(crops, CANVAS)[:, None], rois, (size, size), 1.0, -1, aligned)[:, 0]
    result = sample_masks(crops, index, boxes, MaskGrid(size, CANVAS, aligned))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_no_box_and_no_mask() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_masks(Crops.none(2), none, torch.zeros(0, 4), MaskGrid(28, CANVAS)).shape == (0, 28, 28)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert sample_masks(Crops.none(2), torch.tensor([1]), boxes, MaskGrid(28, CANVAS)).sum() == 0


def targets_with(kinds: list[Supervision], weights: list[float], seed: int = 0) -> Target:
    crops = random_crops(len(kinds), CANVAS, seed)
    instances = Instances(
        boxes=random_boxes(len(kinds), CANVAS, seed),
        categories=torch.arange(len(kinds)),
        supervision=torch.tensor([int(kind) for kind in kinds]),
        weights=torch.tensor(weights),
        masks=crops,
    )
    return Target(instances=instances, ignore=torch.zeros(0, 4))


def predictions_for(objects: list[int], image: list[int], seed: int = 0) -> MaskPredictions:
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor(objects)
    return MaskPredictions(
        image_index=torch.tensor(image),
        boxes=random_boxes(len(objects), CANVAS, seed + 1),
        object_index=index,
        categories=index,
        logits=torch.randn(len(objects), 3, 28, 28, generator=generator).requires_grad_(),
    )


GRID = MaskGrid(28, CANVAS)
MASK, BOX = Supervision.MASK, Supervision.BOX


def test_loss_is_the_mean_over_proposals_with_a_mask() -> None:
    targets = [targets_with([MASK, BOX, MASK], [1.0, 1.0, 0.5]), targets_with([BOX, MASK], [1.0, 1.0], seed=1)]
    objects, image = [0, 1, 2, 2, 0, 1], [0, 0, 0, 0, 1, 1]
    predictions = predictions_for(objects, image)
    expected = []
    for row, (i, k) in enumerate(zip(image, objects, strict=True)):
        instances = targets[i].instances
        if instances.supervision[k] == MASK:
            roi = torch.cat([torch.zeros(1), predictions.boxes[row]])[None]
            truth = roi_align(dense(instances.masks, CANVAS)[None, k : k + 1], roi, (28, 28), 1.0)[0, 0]
            loss = F.binary_cross_entropy_with_logits(predictions.logits[row, k], truth)
            expected.append(loss * instances.weights[k])
    torch.testing.assert_close(mask_loss(predictions, targets, GRID), torch.stack(expected).mean())


def test_few_masks_can_weigh_as_among_many() -> None:
    """Mean over all proposals: two of five have a mask, so the loss is two fifths; with all masks nothing changes."""
    among_all = dataclasses.replace(GRID, mask_mean="positives")
    predictions = predictions_for([0, 1, 2, 1, 1], [0, 0, 0, 0, 0])
    few, all_of_them = targets_with([MASK, BOX, MASK], [1.0] * 3), targets_with([MASK] * 3, [1.0] * 3)
    loss = mask_loss(predictions, [few], GRID)
    assert loss > 0
    torch.testing.assert_close(mask_loss(predictions, [few], among_all), loss * 2 / 5)
    torch.testing.assert_close(
        mask_loss(predictions, [all_of_them], among_all), mask_loss(predictions, [all_of_them], GRID)
    )


def test_only_the_objects_own_channel_and_masked_objects_get_a_gradient() -> None:
    targets = [targets_with([MASK, BOX, MASK], [1.0, 1.0, 0.0])]
    predictions = predictions_for([0, 1, 2], [0, 0, 0])
    mask_loss(predictions, targets, GRID).backward()
    gradient = predictions.logits.grad.abs().sum(dim=(2, 3))
    assert gradient[0, 0] > 0
    gradient[0, 0] = 0
    assert gradient.sum() == 0


def test_no_mask_at_all_is_zero_with_a_gradient_of_zero() -> None:
    predictions = predictions_for([0, 1], [0, 0])
    loss = mask_loss(predictions, [targets_with([BOX, BOX], [1.0, 1.0])], GRID)
    loss.backward()
    assert loss == 0
    assert predictions.logits.grad.abs().sum() == 0


def test_a_mask_that_left_the_canvas_teaches_nothing() -> None:
    target = targets_with([MASK] * 4, [1.0] * 4)  # the fourth crop is empty
    assert has_mask(target).tolist() == [True, True, True, False]


def test_pixel_weights_scale_cells_and_are_one_outside_their_crop() -> None:
    target = targets_with([MASK], [0.5])
    x, y, w, h = target.instances.masks.regions[0].tolist()
    weights = Crops(torch.zeros(w * h), target.instances.masks.regions)
    weighted = dataclasses.replace(target, pixel_weights=weights)
    boxes = torch.tensor([[x, y, x + w, y + h], [0.0, 0.0, *reversed(CANVAS)]], dtype=torch.float32)
    none = torch.zeros(2, dtype=torch.int64)
    predictions = MaskPredictions(
        image_index=none, boxes=boxes, object_index=none, categories=none, logits=torch.zeros(2, 3, 28, 28)
    )
    _, result = mask_targets(predictions, [weighted], MaskGrid(28, CANVAS, aligned=True))
    assert result[0].max() < 0.3  # cells at the rim reach over it by half a pixel
    assert result[0, 4:-4, 4:-4].max() < 1e-6
    assert result[1].max() == 0.5
    expected = 0.5 * (
        1 - sample_masks(Crops(1 - weights.data, weights.regions), none, boxes, MaskGrid(28, CANVAS, True))
    )
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("way", ["bags", "kernel", "products"])
def test_pooling_is_torchvisions(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs by bags; a GPU's two ways are the same on a CPU."""
    pool = RoIPool(7)
    if way != "bags":
        monkeypatch.setattr(pool, "_bags", pool._by_level)
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: way == "products")
    torch.manual_seed(0)
    canvas = (256, 320)
    maps = [torch.randn(3, 8, canvas[0] // s, canvas[1] // s, requires_grad=True) for s in (4, 8, 16, 32)]
    boxes, image = random_boxes(60, canvas, 5), torch.randint(0, 3, (60,))
    boxes[2] = torch.tensor([0.0, 0.0, 1000.0, 600.0])  # reaches the last level, and beyond the maps
    assert len(box_levels(boxes, 4).unique()) == 4
    reference = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    order = image.argsort(stable=True)
    per_image = [boxes[image == i] for i in range(3)]
    expected = reference({str(i): m for i, m in enumerate(maps)}, per_image, [canvas] * 3)
    result = pool(maps, boxes, image)
    torch.testing.assert_close(result[order], expected, atol=1e-4, rtol=1e-4)
    signal = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * signal).sum(), maps)
    found = torch.autograd.grad((result[order] * signal).sum(), maps)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_pooling_a_box_that_is_not_a_number_says_so() -> None:
    """A network that diverges is to be found out by its loss, not by a crash."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [float("nan")] * 4])
    pooled = RoIPool(7)([torch.ones(1, 8, 16, 16)], boxes, torch.zeros(2).long())
    assert pooled.isnan().flatten(1).all(1).tolist() == [False, True]


def test_pooling_no_box() -> None:
    assert RoIPool(7)([torch.zeros(1, 8, 16, 16)], torch.zeros(0, 4), torch.zeros(0).long()).shape == (0, 8, 7, 7)
