"""Mask2Former: transformers' network and checkpoints, matching and losses against naive oracles, partial labels, the
verbs, and training.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import torch.nn.functional as F
from run_helpers import TINY, train
from safetensors.torch import load_file, save_file
from test_mask_rcnn import CLASSES, NOTHING, dense_masks, empty_target, point_target, target_of, total
from test_pldc import FACTS, views_of
from test_points import pointed
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from leanmask.config import merge
from leanmask.errors import CheckpointError
from leanmask.geometry import Frame
from leanmask.masks import Crops
from leanmask.methods.pldc import PLDC, PLDCConfig
from leanmask.models import MODELS, mask2former_network, query_losses
from leanmask.models.canvas_masks import over_boxes, soft_crops, tight_crops
from leanmask.models.mask2former import Mask2Former, Mask2FormerConfig, best_queries
from leanmask.models.mask2former_network import build_network
from leanmask.models.matching import BACKGROUND, IGNORED
from leanmask.models.points import Importance, regular_points, sample_grids
from leanmask.models.query_losses import QueryLoss, QueryLossSettings, QueryOutputs, box_fit, dice_losses, match
from leanmask.records import Instances, MaskPredictions, Proposals, Supervision, Target
from leanmask.run import resume

LOSSES = {"loss_class", "loss_mask", "loss_dice"}
SMALL = {"channels": 32, "heads": 2, "queries": 8, "encoder_layers": 1, "encoder_feedforward": 32}
SMALL |= {"decoder_layers": 2, "feedforward": 32}
CANVAS = (64, 96)


def tiny(**settings: object) -> Mask2Former:
    torch.manual_seed(0)
    return Mask2Former(Mask2FormerConfig(**{"backbone": "tiny", **settings}), CLASSES)


def criterion(points: int = 64) -> QueryLoss:
    return QueryLoss(QueryLossSettings(2.0, 5.0, 5.0, 0.1, Importance(points)), CLASSES)


def said(layers: int = 2, images: int = 1, queries: int = 6, seed: int = 0) -> QueryOutputs:
    """Random logits, masks in blobs."""
    torch.manual_seed(seed)
    coarse = torch.randn(layers * images, queries, 4, 6) * 4
    masks = F.interpolate(coarse, size=(16, 24), mode="bilinear").view(layers, images, queries, 16, 24)
    return QueryOutputs(torch.randn(layers, images, queries, CLASSES + 1), masks)


def replaced(target: Target, **fields: object) -> Target:
    return Target(instances=target.instances.replace(**fields), ignore=target.ignore, exhaustive=target.exhaustive)


# The network


@pytest.fixture
def swin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin, thin and shallow."""
    sizes = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
    monkeypatch.setitem(mask2former_network.SWIN, "swin_tiny", sizes)


def test_checkpoints_of_transformers_give_its_logits(swin: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Mask2FormerConfig(backbone="swin_tiny", weights=None, **SMALL)
    build_network(config.backbone_spec(), config.preset(), CLASSES).save_pretrained(tmp_path)
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    ours = Mask2Former(config.model_copy(update={"weights": str(tmp_path)}), CLASSES).eval()
    assert ours.weights_note == f"loaded {tmp_path}"
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(pixel_values=(images - ours.mean) / ours.std, output_auxiliary_logits=True)
        outputs = ours.outputs(images)
    assert outputs.classes.shape == (3, 2, 8, CLASSES + 1)
    assert outputs.masks.shape == (3, 2, 8, 16, 24)
    assert torch.equal(outputs.classes[-1], expected.class_queries_logits)
    assert torch.equal(outputs.masks[-1], expected.masks_queries_logits)
    assert torch.equal(outputs.masks[0], expected.auxiliary_logits[0]["masks_queries_logits"])


def test_checkpoints_of_other_classes_or_sizes(swin: None, tmp_path: Path) -> None:
    config = Mask2FormerConfig(backbone="swin_tiny", weights=None, **SMALL)
    build_network(config.backbone_spec(), config.preset(), 3).save_pretrained(tmp_path)
    ours = Mask2Former(config.model_copy(update={"weights": str(tmp_path)}), CLASSES)
    assert "class_predictor" in ours.weights_note
    assert Mask2Former(config.model_copy(update={"weights": str(tmp_path)}), 3).weights_note == f"loaded {tmp_path}"
    other = config.model_copy(update={"weights": str(tmp_path), "queries": 9, "decoder_layers": 1})
    with pytest.raises(CheckpointError, match=r"set model\.queries=8, model\.decoder_layers=2"):
        Mask2Former(other, CLASSES)
    with pytest.raises(CheckpointError, match=r"model\.backbone=swin_tiny"):
        Mask2Former(Mask2FormerConfig(backbone="tiny", weights=str(tmp_path)), CLASSES)


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = "facebook/mask2former-swin-tiny-coco-instance"
    with pytest.raises(CheckpointError, match=f"hf download {name} --local-dir FOLDER"):
        Mask2Former(Mask2FormerConfig(backbone="swin_tiny", weights=name), CLASSES)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        tiny(weights=str(tmp_path))
    with pytest.raises(CheckpointError, match="no weights 'IMAGENET1K_V9'"):
        tiny(backbone="resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(CheckpointError, match="none that backbone swin_tiny can take"):
        Mask2Former(Mask2FormerConfig(backbone="swin_tiny", weights="DEFAULT"), CLASSES)


def test_damaged_checkpoints(swin: None, tmp_path: Path) -> None:
    config = Mask2FormerConfig(backbone="swin_tiny", weights=str(tmp_path), **SMALL)
    network = build_network(config.backbone_spec(), config.preset(), CLASSES)
    network.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.transformer_module.queries_features.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack model\.transformer_module\.queries_features"):
        Mask2Former(config, CLASSES)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot load weights"):
        Mask2Former(config, CLASSES)


def test_own_weights_load_for_other_classes(tmp_path: Path) -> None:
    path = f"{tmp_path}/own.pth"
    model = tiny()
    torch.save(model.state_dict(), path)
    again = Mask2Former(Mask2FormerConfig(backbone="tiny", weights=path), 3)
    assert "class_predictor.weight" in again.weights_note
    own, theirs = again.state_dict(), model.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in own if "class_predictor" not in name)


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = Mask2Former(Mask2FormerConfig(backbone="resnet50", weights=None, norm="batch"), 80)
    count = sum(p.numel() for p in model.parameters())
    assert 43.9e6 < count < 44.1e6  # the paper's 44 M
    decoder = model.network.model.transformer_module.decoder
    assert len(decoder.layers) == 9
    assert model.preset.train_points == 12_544
    assert model.network.class_predictor.out_features == 81
    assert sum(p.numel() for p in tiny().parameters()) < 5e6
    assert MODELS["mask2former"].Config is Mask2FormerConfig
    assert Mask2FormerConfig(backbone="tiny", queries=33).preset().queries == 33


# Matching


def test_matching_against_all_permutations() -> None:
    torch.manual_seed(0)
    for queries, objects in ((5, 3), (4, 4), (3, 5), (4, 0)):
        costs = torch.randn(2, queries, objects)
        (found,) = match([costs])
        for table, rows in zip(costs, found, strict=True):
            few = min(queries, objects)
            best = min(
                (
                    sum(float(table[q, o]) for q, o in zip(qs, os, strict=True))
                    for qs in itertools.permutations(range(queries), few)
                    for os in itertools.combinations(range(objects), few)
                ),
                default=0.0,
            )
            matched = [(q, int(o)) for q, o in enumerate(rows) if o >= 0]
            assert len({o for _, o in matched}) == few == len(matched)
            assert sum(float(table[q, o]) for q, o in matched) == pytest.approx(best, abs=1e-5)


def test_costs_against_a_loop() -> None:
    loss, outputs = criterion(), said(layers=1)
    target = target_of([[8, 8, 40, 60], [30, 4, 90, 40]])
    facts = loss.evidence(target, CANVAS)
    shared = sample_grids(outputs.masks[:, 0], facts.shared[None]).transpose(1, 2)
    costs = loss.costs(outputs.classes[:, 0], outputs.masks[:, 0], shared, facts)[0]
    dense = dense_masks(target, CANVAS).float()
    for query, index in itertools.product(range(6), range(2)):
        x = sample_grids(outputs.masks[0, :, [query]], facts.shared[None])[0, :, 0]
        t = sample_grids(dense[None, [index]], facts.shared[None])[0, :, 0]
        p = x.sigmoid()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        likely = outputs.classes[0, 0, query].softmax(0)[index]
        expected = -2 * likely + 5 * F.binary_cross_entropy(p, t) + 5 * dice
        torch.testing.assert_close(costs[query, index], expected, atol=1e-4, rtol=1e-4)


def test_what_is_not_finite_is_never_chosen() -> None:
    outputs = said(layers=1)
    outputs.masks[0, 0, 2] = float("nan")
    outputs.classes[0, 0, 3] = float("inf")
    loss = criterion()
    for supervision in (Supervision.MASK, Supervision.BOX):
        target = target_of([[8, 8, 40, 60], [30, 4, 90, 40]], supervision)
        assigned = loss.assign(outputs, [loss.evidence(target, CANVAS)])[0, 0]
        assert (assigned >= 0).sum() == 2
        assert (assigned[2:4] < 0).all()


def test_box_fit() -> None:
    masks = torch.full((1, 3, 16, 24), -20.0)
    masks[0, 0, 4:8, 6:12] = 20.0
    masks[0, 1] = 20.0
    boxes = torch.tensor([[6 / 24, 4 / 16, 12 / 24, 8 / 16], [0.0, 0.0, 1.0, 1.0]])
    fit = box_fit(masks, boxes)[0]
    torch.testing.assert_close(fit, torch.tensor([[1.0, 1 / 16], [1 / 16, 1.0], [0.0, 0.0]]), atol=1e-4, rtol=0)


def _blocks(places: list[tuple[int, int]]) -> Tensor:
    """(Q, 16, 24) logits that are positive in a block of 4 x 4 cells each."""
    masks = torch.full((len(places), 16, 24), -8.0)
    for mask, (x, y) in zip(masks, places, strict=True):
        mask[y : y + 4, x : x + 4] = 8.0
    return masks


PLACES = [(0, 0), (8, 0), (16, 0), (0, 8), (8, 8), (16, 8)]  # cells; a cell is 4 pixels
OBJECTS = {name: [4.0 * x, 4.0 * y, 4.0 * x + 16, 4.0 * y + 16] for name, (x, y) in zip("abcdef", PLACES, strict=True)}


def blocks(places: list[tuple[int, int]] = PLACES) -> QueryOutputs:
    masks = _blocks(places)
    return QueryOutputs(torch.zeros(1, 1, len(places), CLASSES + 1), masks[None, None])


def assigned(target: Target, outputs: QueryOutputs | None = None) -> list[int]:
    torch.manual_seed(0)
    loss = criterion(2000)
    return loss.assign(outputs or blocks(), [loss.evidence(target, CANVAS)])[0, 0].tolist()


@pytest.mark.parametrize("supervision", [Supervision.MASK, Supervision.BOX])
def test_masks_and_boxes_find_their_query(supervision: Supervision) -> None:
    target = target_of([OBJECTS["e"], OBJECTS["b"]], supervision)
    assert assigned(target) == [-1, 1, -1, -1, 0, -1]


def test_points_and_single_points_find_their_query() -> None:
    box = OBJECTS["f"]
    inside, outside = [box[0] + 8, box[1] + 8], [4.0, 4.0]
    assert assigned(pointed([[inside, [box[0] + 1, box[1] + 1]]], [[1, 1]], [box])) == [-1] * 5 + [0]
    assert assigned(point_target([inside, outside])) == [1, -1, -1, -1, -1, 0]


def test_classes_decide_where_masks_are_equal() -> None:
    outputs = blocks([PLACES[0]] * 3)
    outputs.classes[0, 0, 1, 0] = 4.0
    assert assigned(target_of([OBJECTS["a"]]), outputs) == [-1, 0, -1]
    soft = torch.tensor([[0.1, 0.9, 0.0, 0.0, 0.0]])
    outputs.classes[0, 0, 2, 1] = 4.0
    assert assigned(replaced(target_of([OBJECTS["a"]]), class_probabilities=soft), outputs) == [-1, -1, 0]


def test_missing_is_not_negative() -> None:
    target = target_of([OBJECTS["a"]])
    unlabelled = Target(instances=target.instances, ignore=target.ignore, exhaustive=False)
    outputs = blocks([*PLACES, PLACES[0]])  # the last is a duplicate of the first
    found = assigned(unlabelled, outputs)
    assert sorted([found[0], found[6]]) == [BACKGROUND, 0]
    assert found[1:6] == [IGNORED] * 5
    crowd = Target(instances=target.instances, ignore=torch.tensor([OBJECTS["c"]]))
    assert assigned(crowd) == [0, -1, IGNORED, -1, -1, -1]
    unknown = replaced(target_of([OBJECTS["a"], OBJECTS["b"]]), supervision=torch.tensor([4, 0]))
    unknown.instances.boxes[1] = float("nan")  # a class and nothing else: it may be anywhere
    assert assigned(unknown) == [0] + [IGNORED] * 5


def test_weight_0_takes_a_query_out_but_none_from_a_trusted_object() -> None:
    both = target_of([OBJECTS["a"], OBJECTS["a"]], weights=[0.0, 1.0])
    outputs = blocks()
    outputs.classes[0, 0, 0, 0] = 9.0  # it would suit the doubted object, class 0, better
    found = assigned(both, outputs)
    assert found[0] == 1
    doubted = target_of([OBJECTS["b"]], Supervision.NONE, weights=[0.0])
    found = assigned(doubted, blocks([PLACES[1], *PLACES]))
    assert sorted([found.pop(2), found.pop(0)]) == [IGNORED, 0]
    assert found == [BACKGROUND] * 5


# Losses


def test_dice() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    ones = torch.ones_like(mask)
    assert dice_losses((mask - 0.5) * 200, mask, ones).item() == pytest.approx(0.0, abs=1e-6)
    assert dice_losses(torch.zeros(1, 4), mask, ones).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))
    assert dice_losses(torch.zeros(1, 4), mask, mask).item() == pytest.approx(1 - (2 * 1 + 1) / (1 + 2 + 1))


def _rectangles(boxes: list[list[float]], **given: object) -> Target:
    target = target_of(boxes, **given)
    crops = target.instances.masks
    return replaced(target, masks=Crops(torch.ones_like(crops.data), crops.regions))


def test_losses_against_full_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With points on the masks' own grid the losses are those of dense masks."""

    def regular(logits: Tensor, how: Importance) -> Tensor:
        y, x = torch.meshgrid((torch.arange(16) + 0.5) / 16, (torch.arange(24) + 0.5) / 24, indexing="ij")
        return torch.stack([x, y], dim=-1).view(1, -1, 2).expand(len(logits), -1, -1)

    monkeypatch.setattr(query_losses, "important_points", regular)
    outputs = said(layers=2, images=2)
    boxes = [[[8, 8, 40, 60], [32, 4, 88, 40]], [[0, 0, 48, 32]]]
    targets = [_rectangles(boxes[0], weights=[1.0, 0.5]), _rectangles(boxes[1])]
    weights = [[1.0, 0.5], [1.0]]
    loss = criterion()
    chosen = loss.assign(outputs, [loss.evidence(target, CANVAS) for target in targets])
    monkeypatch.setattr(loss, "assign", lambda *_: chosen)
    losses, last = loss(outputs, targets, CANVAS)
    assert torch.equal(last, chosen[-1])
    classes, bce, dice = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for layer in range(2):
        surprise, count = torch.zeros(()), 0.0
        for image, query in itertools.product(range(2), range(6)):
            found = int(chosen[layer, image, query])
            log_p = outputs.classes[layer, image, query].log_softmax(0)
            weight = weights[image][found] if found >= 0 else 0.1
            surprise -= weight * log_p[found if found >= 0 else CLASSES]
            count += 1.0 if found >= 0 else 0.1
            if found < 0:
                continue
            x0, y0, x1, y1 = (edge // 4 for edge in boxes[image][found])
            t = torch.zeros(16, 24)
            t[y0:y1, x0:x1] = 1
            p = outputs.masks[layer, image, query].sigmoid()
            bce += weight * F.binary_cross_entropy(p, t)
            dice += weight * (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        classes += surprise / count
    for name, expected in (("class", 2 * classes), ("mask", 5 * bce / 3), ("dice", 5 * dice / 3)):
        torch.testing.assert_close(losses[f"loss_{name}"], expected, atol=1e-4, rtol=1e-4)


def test_soft_classes_and_pixel_weights() -> None:
    outputs = blocks()
    target = target_of([OBJECTS["a"]])
    loss = criterion(500)
    soft = replaced(target, class_probabilities=torch.tensor([[1.0, 3.0, 0.0, 0.0, 0.0]]))
    outputs.classes[0, 0, 0, :2] = torch.tensor([2.0, 1.0])
    log_p = outputs.classes[0, 0].log_softmax(1)
    expected = 2 * (-(0.25 * log_p[0, 0] + 0.75 * log_p[0, 1]) - 0.1 * log_p[1:, CLASSES].sum()) / 1.5
    torch.testing.assert_close(loss(outputs, [soft], CANVAS)[0]["loss_class"], expected)
    crops = target.instances.masks
    doubt = Target(
        instances=target.instances,
        ignore=target.ignore,
        pixel_weights=Crops(torch.full_like(crops.data, 0.0, dtype=torch.float32), crops.regions),
    )
    results = []
    for chosen in (target, doubt):
        torch.manual_seed(0)
        results.append(loss(outputs, [chosen], CANVAS)[0])
    assert results[1]["loss_mask"] < results[0]["loss_mask"]
    assert results[1]["loss_dice"] == results[0]["loss_dice"]


def test_points_teach_inside_and_outside_their_box() -> None:
    box = OBJECTS["f"]
    inside = [box[0] + 8, box[1] + 8]
    target = pointed([[inside, [box[0] + 1, box[1] + 1]]], [[1, -1]], [box])
    masks = torch.full((1, 1, 1, 16, 24), 3.0)
    masks.requires_grad_()
    losses, _ = criterion()(QueryOutputs(torch.zeros(1, 1, 1, CLASSES + 1), masks), [target], CANVAS)
    losses["loss_mask"].backward()
    gradient = masks.grad[0, 0, 0]
    assert (gradient[9:11, 17:19] < 0).all()  # towards object, at the point
    outside = gradient.clone()
    outside[7:13, 15:21] = 0
    assert (outside >= 0).all()
    assert outside.sum() > 0  # towards background
    assert int((gradient < 0).sum()) == 4


@pytest.mark.parametrize("kind", ["mask", "box", "points"])
def test_weight_0_equals_absence_where_nothing_is_known_to_be_background(kind: str) -> None:
    boxes = [OBJECTS["a"], OBJECTS["e"]]
    if kind == "points":
        centres = [[[x0 + 8, y0 + 8]] for x0, y0, _, _ in boxes]
        target = pointed(centres, [[1], [1]], boxes)
    else:
        target = target_of(boxes, Supervision.MASK if kind == "mask" else Supervision.BOX)
    weightless = replaced(target, weights=torch.tensor([1.0, 0.0]))
    absent = target.instances[torch.tensor([0])]
    results = []
    for instances in (weightless.instances, absent):
        torch.manual_seed(0)
        known = Target(instances=instances, ignore=target.ignore, exhaustive=False)
        results.append(criterion()(said(seed=3), [known], CANVAS)[0])
    for name in LOSSES:
        torch.testing.assert_close(results[0][name], results[1][name], msg=name)


def test_more_objects_than_queries() -> None:
    losses, found = criterion()(said(queries=2), [target_of(list(OBJECTS.values()))], CANVAS)
    assert (found >= 0).all()
    assert all(torch.isfinite(loss) for loss in losses.values())


# The model


@pytest.mark.parametrize("targets", NOTHING.values(), ids=NOTHING.keys())
def test_batches_that_lack_something_train(targets: list[Target]) -> None:
    model = tiny().train()
    losses, predictions = model(torch.rand(2, 3, 64, 64), targets)
    assert set(losses) == LOSSES
    assert (losses["loss_mask"] > 0) == (targets is NOTHING["points only"])
    assert torch.isfinite(total(losses))
    total(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert len(predictions) == (1 if targets is NOTHING["boxes only"] else 0)


def every_kind() -> list[Target]:
    box = [10.0, 10.0, 50.0, 60.0]
    return [
        target_of([box, [60, 60, 90, 90]]),
        pointed([[[30.0, 30.0], [12.0, 12.0]]], [[1, 0]], [box]),
        target_of([box, [20, 30, 70, 70]], Supervision.BOX),
        point_target([[30.0, 40.0]]),
        empty_target(),
        empty_target(exhaustive=False),
    ]


def test_every_kind_of_label_in_one_batch() -> None:
    model = tiny().train()
    losses, predictions = model(torch.rand(6, 3, 96, 96), every_kind())
    assert all(loss.dim() == 0 and loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    assert predictions.image_index.tolist() == [1, 2, 2]
    assert sorted(predictions.object_index.tolist()) == [0, 0, 1]
    assert predictions.logits.shape == (3, 1, 14, 14)
    assert predictions.logits.requires_grad
    total(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_bfloat16_and_channels_last() -> None:
    model = tiny().to(memory_format=torch.channels_last).train()
    images = torch.rand(6, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    results = []
    for lower in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            losses, predictions = model(images, every_kind())
            total(losses).backward()
        results.append(losses)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name in LOSSES:
        torch.testing.assert_close(results[1][name], results[0][name], rtol=0.05, atol=0.05)
    assert predictions.logits.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = model.eval().predict(images)[0]
    assert found.scores.dtype == found.boxes.dtype == found.masks.data.dtype == torch.float32


def test_tight_crops_are_those_of_the_enlarged_masks() -> None:
    masks = said(queries=8).masks[0, 0] - 1.0
    masks[3] = -5.0
    limit = (5.3, 2.0, 80.6, 64.0)
    crops, certainty = tight_crops(masks, limit, 4)
    large = F.interpolate(masks[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    seen = torch.zeros_like(large, dtype=torch.bool)
    seen[:, 2:64, 5:81] = True
    for logits, known, crop, region, sure in zip(large, seen, crops, crops.regions, certainty, strict=True):
        rows, columns = torch.nonzero((logits > 0) & known, as_tuple=True)
        if len(rows) == 0:
            assert crop.numel() == 0
            assert sure == 0
            continue
        x, y, w, h = region.tolist()
        assert (x, y) == (columns.min(), rows.min())
        assert (x + w - 1, y + h - 1) == (columns.max(), rows.max())
        torch.testing.assert_close(crop, logits[y : y + h, x : x + w].sigmoid())
        torch.testing.assert_close(sure, logits[rows, columns].sigmoid().mean())


def test_soft_crops_keep_the_doubtful_rim() -> None:
    """Of the dense masks everything above the floor; box and certainty are those of the tight crops."""
    masks = said(queries=8).masks[0, 0] - 1.0
    masks[3] = -1.0  # doubtful everywhere, and nowhere a mask
    limit = (5.3, 2.0, 80.6, 64.0)
    crops, tight, certainty = soft_crops(masks, limit, 4)
    narrow, sure = tight_crops(masks, limit, 4)
    assert torch.equal(tight, narrow.regions)
    torch.testing.assert_close(certainty, sure)
    assert crops.regions[3].tolist() == [0, 0, 0, 0]
    large = F.interpolate(masks[None], scale_factor=4, mode="bilinear", align_corners=False)[0].sigmoid()
    seen = torch.zeros_like(large)
    seen[:, 2:64, 5:81] = large[:, 2:64, 5:81]
    for index, (crop, (x, y, w, h)) in enumerate(zip(crops, crops.regions.tolist(), strict=True)):
        torch.testing.assert_close(crop, seen[index, y : y + h, x : x + w])
        rest = seen[index].clone()
        rest[y : y + h, x : x + w] = 0
        assert crop.numel() == 0 or float(rest.max()) <= 0.01
    assert int(crops.regions[:, 2:].prod(1).sum()) > int(narrow.regions[:, 2:].prod(1).sum())


@pytest.mark.parametrize("pixel_weight", ["uncertainty", "boundary"])
def test_a_pixel_beside_the_mask_is_doubted_as_much_as_the_teacher_does(
    monkeypatch: pytest.MonkeyPatch, pixel_weight: str
) -> None:
    """A blurred rectangle: PL-DC's weights over the whole canvas, also where the teacher says 0.45."""
    logits = torch.full((1, 1, 1, 16, 24), -8.0)
    logits[..., 4:10, 6:15] = 8.0
    logits = F.avg_pool2d(logits[0, 0], 5, stride=1, padding=2, count_include_pad=False)[None, None]
    classes = torch.tensor([[[[6.0] + [0.0] * CLASSES]]])
    teacher = tiny()
    monkeypatch.setattr(teacher, "outputs", lambda images, last_only: QueryOutputs(classes, logits))
    views = replace(views_of(), weak=torch.zeros(1, 3, *CANVAS), frames=(Frame(CANVAS, CANVAS, (1, 1), (0, 0)),))
    method = PLDC(PLDCConfig(mask_quality=0.5, pixel_weight=pixel_weight), FACTS)
    (target,), _ = method.pseudo_targets(teacher, views, 50)
    dense = F.interpolate(logits[0], scale_factor=4, mode="bilinear", align_corners=False)[0, 0].sigmoid()
    weights, (x, y, w, h) = target.pixel_weights, target.pixel_weights.regions[0].tolist()
    assert torch.equal(weights.regions, target.instances.masks.regions)
    found = torch.ones_like(dense)
    found[y : y + h, x : x + w] = next(iter(weights))
    beside = (dense > 0.4) & (dense < 0.5)
    box = target.instances.boxes[0].long().tolist()
    assert beside[: box[1]].any()
    if pixel_weight == "uncertainty":
        assert float((found - 2 * (dense - 0.5).abs()).abs().max()) < 0.03
    else:
        change = F.conv2d(dense[None, None], 9.0 * torch.eye(9)[4].view(1, 1, 3, 3) - 1, padding=1)[0, 0].abs()
        factor = 3 / change[y : y + h, x : x + w].mean()
        torch.testing.assert_close(found[beside], factor * change[beside], atol=0, rtol=0.05)


def test_predictions() -> None:
    content = [(0.0, 0.0, 96.0, 40.5), (10.2, 20.0, 96.0, 96.0)]
    model, images = tiny(score_floor=0.02).eval(), torch.rand(2, 3, 96, 96)
    outputs = model.outputs(images)
    for image, (found, limit) in enumerate(zip(model.predict(images, content), content, strict=True)):
        assert 0 < len(found) <= 100
        assert isinstance(found.masks, Crops)
        edges = torch.tensor(limit)
        assert (found.boxes >= edges[:2].repeat(2)).all()
        assert (found.boxes <= edges[2:].repeat(2)).all()
        assert (found.scores.diff() <= 0).all()
        assert (found.scores > 0.02).all()
        assert found.class_probabilities.shape == (len(found), CLASSES)
        assert (found.class_probabilities.sum(1) < 1).all()
        own = found.class_probabilities[torch.arange(len(found)), found.categories]
        certainty = torch.stack([crop[crop > 0.5].mean() for crop in found.masks])
        torch.testing.assert_close(found.scores, own * certainty, atol=1e-5, rtol=1e-5)
        known = outputs.classes[-1, image].softmax(-1)[:, :-1]
        assert ((found.class_probabilities[:, None] - known).abs().amax(2).amin(1) < 1e-6).all()
    assert len(tiny(score_floor=1.0).eval().predict(images)[0]) == 0


def proposals_of(boxes: list[list[float]], categories: list[int], images: list[int]) -> Proposals:
    return Proposals(
        image_index=torch.tensor(images),
        boxes=torch.tensor(boxes),
        object_index=torch.zeros(len(boxes), dtype=torch.int64),
        categories=torch.tensor(categories),
    )


def test_the_best_query_of_a_box() -> None:
    outputs = blocks([*PLACES, PLACES[0]])
    outputs.classes[0, 0, 6, 2] = 3.0
    proposals = proposals_of([OBJECTS["e"], OBJECTS["a"], OBJECTS["a"]], [1, 2, 1], [0, 0, 0])
    assert best_queries(outputs.classes[0], outputs.masks[0], proposals).tolist() == [4, 6, 0]


def test_predict_masks_in_the_order_of_the_proposals() -> None:
    model, images = tiny().eval(), torch.rand(2, 3, 96, 96)
    boxes = [[10.0, 10.0, 50.0, 60.0], [20.0, 30.0, 70.0, 70.0], [0.0, 0.0, 96.0, 96.0], [5.0, 60.0, 33.0, 90.0]]
    proposals = proposals_of(boxes, [0, 1, 2, 0], [1, 0, 1, 0])
    order = torch.tensor([2, 0, 3, 1])
    shuffled = proposals[order]
    with torch.no_grad():
        for fine, cells in ((False, 14), (True, 56)):
            found, again = (model.predict_masks(images, given, fine) for given in (proposals, shuffled))
            assert found.logits.shape == (4, 1, cells, cells)
            assert torch.equal(found.boxes, proposals.boxes)
            torch.testing.assert_close(again.logits, found.logits[order])
        none = proposals_of([], [], [])
        empty = Proposals(**{**vars(none), "boxes": torch.zeros(0, 4)})
        assert model.predict_masks(images, empty).logits.shape == (0, 1, 14, 14)


def test_grids_over_boxes() -> None:
    masks = said(queries=3).masks[0, 0]
    whole = over_boxes(masks, torch.tensor([[0.0, 0.0, 96.0, 64.0]]).expand(3, 4), 8, 4)
    large = F.interpolate(masks[:, None], size=(64, 96), mode="bilinear", align_corners=False)
    expected = sample_grids(large, regular_points(8, masks).expand(3, -1, -1))[..., 0].view(3, 1, 8, 8)
    torch.testing.assert_close(whole, expected, atol=0.3, rtol=0)  # bilinear twice
    edge = over_boxes(torch.ones(1, 16, 24), torch.tensor([[-4.0, -4.0, 8.0, 8.0]]), 4, 4)
    assert torch.equal(edge, torch.ones(1, 1, 4, 4))


def test_the_models_own_mask_loss() -> None:
    model, logits, masks = tiny(), torch.randn(3, 1, 4, 4), (torch.rand(3, 4, 4) > 0.5).float()
    index = torch.zeros(3, dtype=torch.int64)
    predictions = MaskPredictions(
        image_index=index, boxes=torch.zeros(3, 4), object_index=index, categories=index, logits=logits
    )
    weights = torch.tensor([1.0, 0.5, 0.0])
    bce = F.binary_cross_entropy_with_logits(logits[:, 0], masks, reduction="none").mean((1, 2))
    dice = dice_losses(logits.flatten(1), masks.flatten(1), torch.ones(3, 16))
    expected = ((5 * bce + 5 * dice) * weights).sum() / 3
    torch.testing.assert_close(model.mask_loss(predictions, masks, weights), expected)
    torch.testing.assert_close(model.mask_loss(predictions, masks, weights[:, None, None].expand(3, 4, 4)), expected)


@pytest.mark.parametrize("kind", ["mask", "points"])
def test_a_few_steps_learn_an_image(kind: str) -> None:
    model = tiny(queries=8, decoder_layers=2).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.rand(1, 3, 64, 64) * 0.2
    images[0, :, 10:50, 8:40] += 0.7
    box = [8.0, 10.0, 40.0, 50.0]
    target = _rectangles([box])
    if kind == "points":
        points = torch.rand(20, 2) * torch.tensor([32.0, 40.0]) + torch.tensor([8.0, 10.0])
        target = pointed([points.tolist()], [[1] * 20], [box])
    for _ in range(60):
        losses, _ = model(images, [target])
        optimiser.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    found: Instances = model.eval().predict(images)[0]
    assert found.scores[0] > 0.5
    assert found.categories[0] == 0
    assert (found.boxes[0] - torch.tensor(box)).abs().max() < 6
    with torch.no_grad():
        grid = model.predict_masks(images, proposals_of([box], [0], [0]), fine=True).of_category()
    assert (grid > 0).float().mean() > 0.8


@pytest.mark.parametrize("method", ["supervised", "self_training"])
def test_training(method: str, sparse: Path, tmp_path: Path) -> None:
    own = {"model": {"name": "mask2former", "backbone": "tiny"}, "method": {"name": method}, "train": {"steps": 2}}
    summary = train(sparse, tmp_path / "run", settings=merge(TINY, own))
    assert summary.steps == (4 if method == "self_training" else 2)


def test_maskbooster_wraps_it_and_a_killed_run_resumes_to_the_same_weights(sparse: Path, tmp_path: Path) -> None:
    def kill(step: int, total: int, note: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    boosted = {
        "model": {"name": "mask2former", "backbone": "tiny"},
        "method": {"name": "maskbooster", "start_fraction": 0},
    }
    settings = merge(merge(TINY, boosted), {"method": {"ramp_fraction": 0}, "train": {"steps": 4}})
    train(sparse, tmp_path / "whole", settings=settings)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()]
    assert any(row["losses"]["loss_pseudo_binary"] > 0 for row in rows if row["kind"] == "train")
    with pytest.raises(KeyboardInterrupt):
        train(sparse, tmp_path / "killed", settings=settings, on_progress=kill)
    resume(tmp_path / "killed")
    for part in ("student", "teacher"):
        path = Path("checkpoints") / "last" / f"{part}.safetensors"
        one, two = (load_file(tmp_path / run / path) for run in ("whole", "killed"))
        assert all(torch.equal(one[key], two[key]) for key in one)
