"""MaskBooster against a scripted teacher, its limits, and the parts of its ablation table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from leanmask.geometry import Frame
from leanmask.masks import Crops, Grids
from leanmask.methods.base import TrainingFacts
from leanmask.methods.maskbooster import MaskBooster, MaskBoosterConfig, lacks_mask
from leanmask.methods.supervised import Supervised, SupervisedConfig
from leanmask.models.base import Model, finite_zero
from leanmask.records import Batch, Instances, MaskPredictions, Proposals, Supervision, Target, Views

FACTS = TrainingFacts(total_steps=100)


class OneMaskPerObject(Model):
    """Proposes every object's own box and says the same logits everywhere; records what it was asked."""

    num_classes = 3

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.asked: list[Proposals] = []
        self.saw: list[Tensor] = []

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        self.saw.append(images)
        counts = [len(target.instances) for target in targets]
        proposals = Proposals(
            image_index=torch.arange(len(targets)).repeat_interleave(torch.tensor(counts)),
            boxes=torch.cat([target.instances.boxes for target in targets]) + torch.tensor([-4.0, 0.0, 0.0, 0.0]),
            object_index=torch.cat([torch.arange(count) for count in counts]),
            categories=torch.cat([target.instances.categories for target in targets]),
        )
        return {"loss_box": (self.logits**2).sum() + finite_zero(self)}, self._say(proposals)

    def predict(self, images: Tensor, content: object = None, worth: object = None) -> list[Instances]:
        return [Instances.empty() for _ in images]

    def predict_masks(self, images: Tensor, proposals: Proposals) -> MaskPredictions:
        self.asked.append(proposals)
        self.saw.append(images)
        return self._say(proposals)

    def _say(self, proposals: Proposals) -> MaskPredictions:
        logits = self.logits[None, :, None, None].expand(len(proposals.boxes), -1, 4, 4)
        return MaskPredictions(
            image_index=proposals.image_index,
            boxes=proposals.boxes,
            object_index=proposals.object_index,
            categories=proposals.categories,
            logits=logits,
        )


def make_views(kinds: Sequence[Sequence[Supervision]]) -> Views:
    targets = []
    for row in kinds:
        count = len(row)
        instances = Instances(
            boxes=torch.tensor([[8.0, 8.0, 24.0, 24.0]]).repeat(count, 1),
            categories=torch.arange(count) % 3,
            supervision=torch.tensor([int(kind) for kind in row], dtype=torch.int64),
            weights=torch.ones(count),
            masks=Crops.none(count),
        )
        targets.append(Target(instances=instances, ignore=torch.zeros(0, 4)))
    images = torch.rand(len(kinds), 3, 32, 32)
    frame = Frame(image_size=(32, 32), canvas_size=(32, 32), scale=(1, 1), shift=(0, 0))
    return Views(
        weak=images,
        strong=1 - images,
        targets=tuple(targets),
        frames=(frame,) * len(kinds),
        image_ids=tuple(range(len(kinds))),
        files=("a.png",) * len(kinds),
    )


MIXED = [[Supervision.MASK, Supervision.BOX], [], [Supervision.BOX, Supervision.POINTS]]


def run(config: MaskBoosterConfig, step: int, kinds: Sequence[Sequence[Supervision]] = MIXED):  # type: ignore[no-untyped-def]
    student, teacher = OneMaskPerObject([1.0, -1.0, 0.5]), OneMaskPerObject([2.0, -2.0, 1.0])
    batch = Batch(labelled=make_views(kinds))
    return MaskBooster(config, FACTS).losses(student, teacher, batch, step), student, teacher, batch


def test_only_objects_without_a_mask_are_asked_about() -> None:
    _, _, teacher, batch = run(MaskBoosterConfig(), step=50)
    (asked,) = teacher.asked
    assert asked.image_index.tolist() == [0, 2, 2]
    assert asked.object_index.tolist() == [1, 0, 1]
    assert asked.boxes[:, 0].tolist() == [4.0, 4.0, 4.0]  # the student's proposals, not the given boxes
    assert torch.equal(teacher.saw[0], batch.labelled.weak)


def test_student_sees_the_strong_view() -> None:
    _, student, _, batch = run(MaskBoosterConfig(), step=50)
    assert torch.equal(student.saw[0], batch.labelled.strong)


def test_binary_loss_equals_the_hand_worked_one() -> None:
    config = MaskBoosterConfig(soft_weight=0, binary_weight=0.5, start_fraction=0, ramp_fraction=0, box_agreement=False)
    outcome, *_ = run(config, step=50, kinds=[[Supervision.BOX]])
    # Category 0, student logit 1, teacher 2: object inside the box. The proposal reaches 4 px further left than the box
    # of 16 px, in a grid of 4 cells over 20 px: cell centres at 6.5, 11.5, ... so the first column is
    # background (6.5 < 8).
    inside = torch.nn.functional.softplus(torch.tensor(-1.0))
    outside = torch.nn.functional.softplus(torch.tensor(1.0))
    expected = 0.5 * (0.75 * inside + 0.25 * outside)
    torch.testing.assert_close(outcome.losses["loss_pseudo_binary"], expected)


def test_doubtful_pseudo_masks_count_less() -> None:
    plain, *_ = run(
        MaskBoosterConfig(start_fraction=0, ramp_fraction=0, box_agreement=False), step=0, kinds=[[Supervision.BOX]]
    )
    doubted, *_ = run(MaskBoosterConfig(start_fraction=0, ramp_fraction=0), step=0, kinds=[[Supervision.BOX]])
    # The pseudo-mask fills the grid's last three columns, x from 9 to 24, of a box from 8 to 24.
    for name in ("loss_pseudo_binary", "loss_pseudo_soft"):
        torch.testing.assert_close(doubted.losses[name], plain.losses[name] * 15 / 16)


def test_the_channel_that_fits_the_box_is_the_pseudo_mask() -> None:
    views, teacher = make_views([[Supervision.BOX] * 3]), OneMaskPerObject([2.0, -2.0, 1.0])
    facts = TrainingFacts(total_steps=100, masks_per_class=(3, 0, 5))
    (borrowed,) = MaskBooster(MaskBoosterConfig(), facts).pseudo_labels(teacher, views)
    (alone,) = MaskBooster(MaskBoosterConfig(borrow=False), facts).pseudo_labels(teacher, views)
    assert isinstance(borrowed.masks, Grids)
    assert isinstance(alone.masks, Grids)
    # The second class's own channel sees nothing: the mean of the two classes with masks fills the box, as it should.
    expected = torch.sigmoid(torch.tensor([2.0, (2.0 + 1.0) / 2, 1.0]))
    torch.testing.assert_close(borrowed.masks.values[:, 0, 0], expected)
    torch.testing.assert_close(alone.masks.values[:, 0, 0], torch.sigmoid(torch.tensor([2.0, -2.0, 1.0])))


def test_box_prior_can_be_switched_off() -> None:
    config = MaskBoosterConfig(soft_weight=0, start_fraction=0, ramp_fraction=0, box_prior=False, box_agreement=False)
    outcome, *_ = run(config, step=0, kinds=[[Supervision.BOX]])
    expected = torch.nn.functional.softplus(torch.tensor(-1.0))
    torch.testing.assert_close(outcome.losses["loss_pseudo_binary"], expected)


def test_soft_loss_is_the_weighted_divergence() -> None:
    config = MaskBoosterConfig(binary_weight=0, soft_weight=3, start_fraction=0, ramp_fraction=0, box_agreement=False)
    outcome, student, teacher, _ = run(config, step=0)
    p, q = torch.softmax(teacher.logits, 0), torch.softmax(student.logits, 0)
    torch.testing.assert_close(outcome.losses["loss_pseudo_soft"], 3 * (p * (p / q).log()).sum())
    assert set(outcome.losses) == {"loss_box", "loss_pseudo_soft"}


@pytest.mark.parametrize("ramp", [0.4, 0.8])
def test_pseudo_losses_are_scaled_by_the_ramp(ramp: float) -> None:
    full, *_ = run(MaskBoosterConfig(start_fraction=0, ramp_fraction=0), step=20)
    part, *_ = run(MaskBoosterConfig(start_fraction=0, ramp_fraction=ramp), step=round(50 * ramp))
    torch.testing.assert_close(part.losses["loss_pseudo_binary"], 0.5 * full.losses["loss_pseudo_binary"])
    torch.testing.assert_close(part.losses["loss_pseudo_soft"], 0.5 * full.losses["loss_pseudo_soft"])


def test_before_the_ramp_the_teacher_is_not_asked() -> None:
    outcome, _, teacher, _ = run(MaskBoosterConfig(start_fraction=0.5), step=49)
    assert set(outcome.losses) == {"loss_box"}
    assert not teacher.asked


def test_weights_of_zero_are_supervised_training() -> None:
    outcome, student, _, batch = run(MaskBoosterConfig(binary_weight=0, soft_weight=0), step=99)
    plain = Supervised(SupervisedConfig(), FACTS).losses(student, student, batch, 99)
    assert set(outcome.losses) == set(plain.losses)
    for name, value in plain.losses.items():
        assert torch.equal(outcome.losses[name], value)


def test_all_masks_given_leave_nothing_to_teach() -> None:
    outcome, student, *_ = run(
        MaskBoosterConfig(start_fraction=0, ramp_fraction=0), step=0, kinds=[[Supervision.MASK] * 2]
    )
    assert outcome.losses["loss_pseudo_binary"].item() == 0.0
    assert outcome.losses["loss_pseudo_soft"].item() == 0.0
    sum(outcome.losses.values()).backward()  # type: ignore[union-attr]
    assert student.logits.grad is not None


def test_no_gradient_reaches_the_teacher() -> None:
    outcome, student, teacher, _ = run(MaskBoosterConfig(start_fraction=0, ramp_fraction=0), step=0)
    torch.stack(list(outcome.losses.values())).sum().backward()
    assert teacher.logits.grad is None
    assert student.logits.grad is not None


def test_objects_of_weight_zero_are_left_out() -> None:
    views = make_views([[Supervision.BOX, Supervision.BOX]])
    instances = views.targets[0].instances
    target = Target(instances=instances.replace(weights=torch.tensor([1.0, 0.0])), ignore=torch.zeros(0, 4))
    _, said = OneMaskPerObject([0.0, 0.0, 0.0])(views.strong, [target])
    assert lacks_mask(said, [target]).tolist() == [True, False]


def test_pseudo_labels_name_their_objects() -> None:
    views = make_views(MIXED)
    labels = MaskBooster(MaskBoosterConfig(borrow=False), FACTS).pseudo_labels(
        OneMaskPerObject([2.0, -2.0, 1.0]), views
    )
    assert [len(instances) for instances in labels] == [1, 0, 2]
    assert labels[0].categories.tolist() == [1]
    assert labels[2].scores is not None
    # Category 0 is predicted object everywhere with sigmoid(2), category 1 nowhere.
    assert labels[2].scores.tolist() == pytest.approx([torch.sigmoid(torch.tensor(2.0)).item(), 0.0])


def test_momentum_warms_up_to_the_published_rate() -> None:
    method = MaskBooster(MaskBoosterConfig(), FACTS)
    assert method.momentum(0) == pytest.approx(0.1)
    assert method.momentum(10**6) == 0.999
    assert method.momentum(5) < method.momentum(6)
