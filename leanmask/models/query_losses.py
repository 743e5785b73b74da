"""How queries learn from what is known of an image's objects: one-to-one matching and losses at points (Mask2Former,
Cheng et al. 2022, sections 3.2 and 3.3; Pointly-Supervised, section 4, for classified points), with partial labels.

Every object is matched by what is known of it (mask, classified points, box; and class) and teaches what is known:
class always, mask from a mask or from points. Letters: L outputs of the decoder, B images, Q queries, N objects of one
image, C categories (no-object is one more, the last), P points, K matched pairs, h w rows and columns of a query's
mask. Coordinates of points are (x, y) as a share of the canvas, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leanmask.distributed import global_mean
from leanmask.masks import Crops
from leanmask.models.class_losses import soft_classes
from leanmask.models.mask_losses import mask_values_at, read_masks
from leanmask.models.matching import BACKGROUND, IGNORED, OVERLAP_FRACTION, has_box, of_object
from leanmask.models.points import Importance, PointTargets, important_points, point_losses, sample_grids
from leanmask.records import Supervision, Target

OUTSIDE_POINTS = 32  # places outside a box that say background to an object known by its box and points
DOUBTED_COST_FACTOR = 1e-3  # objects of weight 0 choose among the queries that trusted objects leave
WORST_COST = 1e6  # instead of what is not finite


@dataclass(frozen=True)
class QueryLossSettings:
    """The weights of class, mask (cross-entropy) and dice, in matching and in losses alike, that of no-object in the
    class loss, and the points per mask.
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    no_object_weight: float
    importance: Importance


@dataclass(frozen=True, eq=False)
class QueryOutputs:
    """What the queries say, fp32, before the first decoder layer and after every one, which makes L: classes
    (L, B, Q, C + 1) logits, masks (L, B, Q, h, w) logits over the whole canvas.
    """

    classes: Tensor
    masks: Tensor


class Known(IntEnum):
    """What of an object can be matched."""

    NOTHING = 0
    BOX = 1
    POINTS = 2
    MASK = 3


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of the N objects of one image.

    known: (N,) int64 `Known`. classes: (N, C) probabilities. weights: (N,). boxes: (N, 4) xyxy, share of the canvas.
    shared: (P, 2) random places, the same for all objects. masks: (N, P) value of each object's mask there. regions:
    (N, P) bool, inside the object's mask or, without one, its box. ignored: (P,) bool, inside an ignore region. points:
    the classified points (N, P'), weight 1 where they count; None when no object has any. exhaustive: whatever is not
    labelled is background.
    """

    known: Tensor
    classes: Tensor
    weights: Tensor
    boxes: Tensor
    shared: Tensor
    masks: Tensor
    regions: Tensor
    ignored: Tensor
    points: PointTargets | None
    exhaustive: bool


@dataclass(frozen=True, eq=False)
class Pairs:
    """K matched pairs as `mask_losses.Matched` wants them: boxes (K, 4) are the canvas; query_index (K,)."""

    boxes: Tensor
    image_index: Tensor
    query_index: Tensor
    object_index: Tensor

    def __getitem__(self, index: Tensor) -> Pairs:
        return Pairs(self.boxes[index], self.image_index[index], self.query_index[index], self.object_index[index])

    def __len__(self) -> int:
        return len(self.boxes)


class QueryLoss:
    """Matching and losses of all decoder outputs; see the module's text."""

    def __init__(self, settings: QueryLossSettings, num_classes: int) -> None:
        self.settings, self.num_classes = settings, num_classes

    def __call__(
        self, outputs: QueryOutputs, targets: Sequence[Target], canvas: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """ "loss_class", "loss_mask" and "loss_dice", weighted and summed over the outputs; and the last output's
        assignment (B, Q) int64: object index, BACKGROUND (no-object) or IGNORED. canvas: (height, width), pixels.

        The class loss is a mean over the queries that learn, each counting with its class weight; mask and dice are
        means over the trusted objects with a mask or points. Both over all processes.
        """
        with torch.autocast(outputs.masks.device.type, enabled=False):
            evidence = [self.evidence(target, canvas) for target in targets]
            assigned = self.assign(outputs, evidence)
            taught = [(facts.known >= Known.POINTS) & (facts.weights > 0) for facts in evidence]
            mask, dice = self.mask_losses(outputs.masks, assigned, targets, evidence, canvas)
            count = torch.cat(taught).sum()
            losses = {
                "loss_class": self.settings.class_weight * self.class_loss(outputs.classes, assigned, evidence),
                "loss_mask": self.settings.mask_weight * global_mean(mask, count),
                "loss_dice": self.settings.dice_weight * global_mean(dice, count),
            }
        return losses, assigned[-1]

    @torch.no_grad()
    def evidence(self, target: Target, canvas: tuple[int, int]) -> Evidence:
        """Put together what is known of one image; draws the shared points."""
        instances = target.instances
        size = instances.boxes.new_tensor([canvas[1], canvas[0]]).float()
        shared = torch.rand(self.settings.importance.points, 2, device=size.device)
        masked, boxed, pointed = _is_masked(target), has_box(target), _is_pointed(target)
        known = torch.where(boxed, int(Known.BOX), int(Known.NOTHING))
        known = torch.where(pointed, int(Known.POINTS), known)
        known = torch.where(masked, int(Known.MASK), known)
        boxes = (instances.boxes.float() / size.repeat(2)).nan_to_num(nan=0.0)
        masks = _masks_at(target, shared * size, masked)
        in_boxes = _inside(shared, boxes) & boxed[:, None]
        return Evidence(
            known=known,
            classes=soft_classes(target, self.num_classes),
            weights=instances.weights,
            boxes=boxes,
            shared=shared,
            masks=masks,
            regions=torch.where(masked[:, None], masks > 0.5, in_boxes),
            ignored=_inside(shared, target.ignore.float() / size.repeat(2)).any(0),
            points=_known_points(target, shared[:OUTSIDE_POINTS], in_boxes[:, :OUTSIDE_POINTS] | ~boxed[:, None], size),
            exhaustive=target.exhaustive and not bool((known == Known.NOTHING).any()),
        )

    @torch.no_grad()
    def assign(self, outputs: QueryOutputs, evidence: Sequence[Evidence]) -> Tensor:
        """(L, B, Q) int64: the object that each query learns from, BACKGROUND (no-object) or IGNORED (no loss).

        IGNORED are, among the queries without an object, those whose mask lies mostly in an ignore region or on an
        object of weight 0, and, where the image is not exhaustively labelled, all that do not lie mostly on a trusted
        object.
        """
        shared = [
            sample_grids(outputs.masks[:, image], facts.shared.expand(len(outputs.masks), -1, -1)).transpose(1, 2)
            for image, facts in enumerate(evidence)
        ]
        costs = [
            self.costs(outputs.classes[:, image], outputs.masks[:, image], said, facts)
            for image, (said, facts) in enumerate(zip(shared, evidence, strict=True))
        ]
        assigned = []
        for said, facts, objects in zip(shared, evidence, match(costs), strict=True):
            known = torch.nonzero(facts.known != Known.NOTHING)[:, 0]
            rows = torch.where(_teaches_nothing(said, facts), IGNORED, BACKGROUND)
            found = objects.to(rows.device)
            if len(known):
                rows = torch.where(found >= 0, known[found.clamp(min=0)], rows)
            assigned.append(rows)
        return torch.stack(assigned, dim=1)

    def costs(self, classes: Tensor, masks: Tensor, shared: Tensor, facts: Evidence) -> Tensor:
        """(L, Q, M) finite cost of each query for each of the M objects of which something is known, in their order.

        classes: (L, Q, C + 1). masks: (L, Q, h, w). shared: (L, Q, P) the masks' logits at the shared points.
        """
        settings = self.settings
        probabilities = classes.softmax(-1)[..., :-1]
        costs = -settings.class_weight * probabilities @ facts.classes.T
        kinds = facts.known.tolist()
        for kind in (Known.MASK, Known.POINTS, Known.BOX):
            rows = torch.tensor([row for row, found in enumerate(kinds) if found == kind], device=masks.device)
            if len(rows) == 0:
                continue
            if kind == Known.MASK:
                surprise, dice = _grid_costs(shared, facts.masks[rows])
            elif kind == Known.POINTS:
                assert facts.points is not None
                surprise, dice = _point_costs(masks, facts.points, rows)
            else:
                surprise = dice = 1 - box_fit(masks, facts.boxes[rows])
            costs[..., rows] += settings.mask_weight * surprise + settings.dice_weight * dice
        costs = costs.nan_to_num(nan=WORST_COST).clamp(-WORST_COST, WORST_COST)
        costs = costs * torch.where(facts.weights > 0, 1.0, DOUBTED_COST_FACTOR)
        return costs[..., facts.known != Known.NOTHING]

    def class_loss(self, classes: Tensor, assigned: Tensor, evidence: Sequence[Evidence]) -> Tensor:
        """Cross-entropy of logits (L, B, Q, C + 1), weighted mean over the queries of each output, sum over outputs."""
        said = classes.log_softmax(-1)
        total, count = said.new_zeros(len(said)), said.new_zeros(len(said))
        for image, facts in enumerate(evidence):
            # The last rows are those of IGNORED (-2) and BACKGROUND (-1).
            nothing = F.one_hot(said.new_tensor([self.num_classes]).long(), self.num_classes + 1).to(said)
            wanted = torch.cat([F.pad(facts.classes, (0, 1)), nothing, nothing])
            last = said.new_tensor([0.0, self.settings.no_object_weight])
            index = assigned[:, image]
            surprise = -(wanted[index] * said[:, image]).sum(-1)
            total = total + (surprise * torch.cat([facts.weights, last])[index]).sum(1)
            count = count + torch.cat([(facts.weights > 0).to(said), last])[index].sum(1)
        return global_mean(total, count).sum()

    def mask_losses(
        self,
        masks: Tensor,
        assigned: Tensor,
        targets: Sequence[Target],
        evidence: Sequence[Evidence],
        canvas: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Sums over outputs and trusted objects of cross-entropy and dice of masks (L, B, Q, h, w)."""
        totals = [masks.new_zeros(()), masks.new_zeros(())]
        for layer, objects in zip(masks, assigned, strict=True):
            pairs = matched_pairs(objects, canvas)
            known = of_object([facts.known for facts in evidence], pairs.image_index, pairs.object_index)
            trust = of_object([facts.weights for facts in evidence], pairs.image_index, pairs.object_index)
            for kind, losses in ((Known.MASK, self._from_masks), (Known.POINTS, self._from_points)):
                chosen = (known == kind) & (trust > 0)
                if not bool(chosen.any()):
                    continue
                own, some = layer[pairs.image_index, pairs.query_index][chosen], pairs[chosen]
                surprise, dice = losses(own, some, targets, evidence)
                totals = [totals[0] + surprise.sum(), totals[1] + (dice * trust[chosen]).sum()]
        return totals[0], totals[1]

    def _from_masks(
        self, own: Tensor, pairs: Pairs, targets: Sequence[Target], evidence: Sequence[Evidence]
    ) -> tuple[Tensor, Tensor]:
        coords = important_points(own.detach(), self.settings.importance)
        wanted = mask_values_at(pairs, targets, coords)
        said = sample_grids(own[:, None], coords)[..., 0]
        return point_losses(said, wanted), dice_losses(said, wanted.labels, torch.ones_like(said))

    def _from_points(
        self, own: Tensor, pairs: Pairs, targets: Sequence[Target], evidence: Sequence[Evidence]
    ) -> tuple[Tensor, Tensor]:
        surprise, dice = own.new_zeros(len(own)), own.new_zeros(len(own))
        for image, facts in enumerate(evidence):
            rows = torch.nonzero(pairs.image_index == image)[:, 0]
            if len(rows) == 0 or facts.points is None:
                continue
            index = pairs.object_index[rows]
            coords, labels, counted = (part[index] for part in vars(facts.points).values())
            said = sample_grids(own[rows][:, None], coords)[..., 0]
            even = counted * (counted.shape[1] / counted.sum(1, keepdim=True).clamp(min=1))
            wanted = PointTargets(coords, labels, even * facts.weights[index][:, None])
            surprise = surprise.index_add(0, rows, point_losses(said, wanted))
            dice = dice.index_add(0, rows, dice_losses(said, labels, counted))
        return surprise, dice


def match(costs: Sequence[Tensor]) -> list[Tensor]:
    """Cheapest one-to-one assignment of each output of each image: from (L, Q, N) per image to (L, Q) int64 on the CPU,
    the column that a row has got or -1. One transfer from the device for all.
    """
    flat = torch.cat([cost.reshape(-1) for cost in costs]).double().cpu()
    found = []
    for cost, part in zip(costs, flat.split([cost.numel() for cost in costs]), strict=True):
        rows = torch.full(cost.shape[:2], -1, dtype=torch.int64)
        for row, table in zip(rows, part.view(cost.shape), strict=True):
            queries, objects = linear_sum_assignment(table.numpy())
            row[torch.from_numpy(queries)] = torch.from_numpy(objects)
        found.append(rows)
    return found


def matched_pairs(assigned: Tensor, canvas: tuple[int, int]) -> Pairs:
    """The queries of (B, Q) that have an object, image by image."""
    image, query = torch.nonzero(assigned >= 0, as_tuple=True)
    whole = torch.tensor([0.0, 0.0, canvas[1], canvas[0]], device=assigned.device)
    return Pairs(whole.expand(len(image), 4), image, query, assigned[image, query])


def dice_losses(logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    """(K,) 1 - (2 sum(p t) + 1) / (sum p + sum t + 1) over the counted points of logits (K, P) and labels (K, P)."""
    p, t = logits.float().sigmoid() * counted, labels * counted
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def box_fit(masks: Tensor, boxes: Tensor) -> Tensor:
    """(..., Q, N) in [0, 1]: how well the soft extent of mask logits (..., Q, h, w) agrees with boxes (N, 4), xyxy as
    shares of the canvas.

    Mask and box are projected on both axes by their maximum, as in BoxInst (Tian et al. 2021, section 3.1); the fit is
    the product of the two overlaps sum(min) / sum(max).
    """
    across = _overlap(masks.amax(-2).sigmoid(), boxes[:, 0], boxes[:, 2])
    return across * _overlap(masks.amax(-1).sigmoid(), boxes[:, 1], boxes[:, 3])


def _overlap(profile: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """(..., Q, N) from profiles (..., Q, n) and intervals (N,), share of the axis."""
    count = profile.shape[-1]
    cells = torch.arange(count, device=profile.device)
    covered = torch.minimum(cells + 1, count * end[:, None]) - torch.maximum(cells, count * start[:, None])
    covered, profile = covered.clamp(0, 1), profile[..., None, :]
    both = torch.minimum(profile, covered).sum(-1)
    return both / torch.maximum(profile, covered).sum(-1).clamp(min=1e-6)


def _is_masked(target: Target) -> Tensor:
    """(N,) bool: labelled with a mask of which something lies on the canvas, whatever its weight."""
    masks = target.instances.masks
    if not isinstance(masks, Crops):
        return torch.zeros_like(target.instances.has_mask)
    return target.instances.has_mask & (masks.regions[:, 2:] > 0).all(1)


def _is_pointed(target: Target) -> Tensor:
    """(N,) bool: labelled with one or more classified points of which one lies on the canvas, whatever its weight."""
    instances = target.instances
    if instances.point_labels is None:
        return torch.zeros_like(instances.has_mask)
    by_points = (instances.supervision == Supervision.POINTS) | (instances.supervision == Supervision.POINT)
    return by_points & (instances.point_labels >= 0).any(1)


def _inside(places: Tensor, boxes: Tensor) -> Tensor:
    """(N, P) bool: places (P, 2) in boxes (N, 4)."""
    return ((places >= boxes[:, None, :2]) & (places <= boxes[:, None, 2:])).all(-1)


def _masks_at(target: Target, places: Tensor, masked: Tensor) -> Tensor:
    """(N, P) value at places (P, 2), pixels, of the masks marked in (N,); 0 for the others."""
    values = places.new_zeros(len(masked), len(places))
    rows = torch.nonzero(masked)[:, 0]
    if len(rows):
        assert isinstance(target.instances.masks, Crops), "targets carry their masks as crops"
        values[rows] = read_masks(target.instances.masks, rows, places.expand(len(rows), -1, -1))
    return values


def _known_points(target: Target, outside: Tensor, doubtful: Tensor, size: Tensor) -> PointTargets | None:
    """An object's own points, and as background the places `outside` (P', 2) that are not `doubtful` (N, P')."""
    instances = target.instances
    if instances.points is None or instances.point_labels is None or len(instances) == 0:
        return None
    coords = torch.cat([instances.points.float() / size, outside.expand(len(instances), -1, -1)], dim=1)
    labels = torch.cat([instances.point_labels.clamp(min=0), torch.zeros_like(doubtful, dtype=torch.int64)], dim=1)
    counted = torch.cat([instances.point_labels >= 0, ~doubtful], dim=1)
    return PointTargets(coords.nan_to_num(nan=0.0), labels.float(), counted.float())


def _grid_costs(said: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice (L, Q, N) of logits (L, Q, P) against mask values (N, P) at the same points."""
    surprise = F.softplus(said).mean(-1, keepdim=True) - said @ masks.T / said.shape[-1]
    p = said.sigmoid()
    dice = 1 - (2 * p @ masks.T + 1) / (p.sum(-1, keepdim=True) + masks.sum(-1) + 1)
    return surprise, dice


def _point_costs(masks: Tensor, points: PointTargets, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice (L, Q, N) of mask logits (L, Q, h, w) at each object's own points."""
    coords, labels, counted = points.coords[rows], points.labels[rows], points.weights[rows]
    places = coords.reshape(1, -1, 2).expand(len(masks), -1, -1)
    said = sample_grids(masks, places).transpose(1, 2).unflatten(2, labels.shape)
    surprise = ((F.softplus(said) - said * labels) * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    p, t = said.sigmoid() * counted, labels * counted
    dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
    return surprise, dice


def _teaches_nothing(said: Tensor, facts: Evidence) -> Tensor:
    """(L, Q) bool: a query with mask logits (L, Q, P) at the shared points is not known to be no-object."""
    mask = (said > 0).to(said)
    area = mask.sum(-1)

    def mostly_on(regions: Tensor) -> Tensor:
        return ((mask @ regions.to(said).T) > OVERLAP_FRACTION * area[..., None]).any(-1)

    nothing = mostly_on(torch.cat([facts.ignored[None], facts.regions[facts.weights <= 0]]))
    if facts.exhaustive:
        return nothing
    return nothing | ~mostly_on(facts.regions[facts.weights > 0])
