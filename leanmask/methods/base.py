"""What a method promises: one function from (student, teacher, batch, step) to losses, like its paper's figure; or, for
systems of several trainings, the list of their stages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from leanmask.config import Frozen
from leanmask.models.base import Model
from leanmask.records import Batch, Instances, Views
from leanmask.supervision import PointAt


class EmaConfig(Frozen):
    """How the teacher follows the student; part of every method's config."""

    ema_keep: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="share of the teacher kept at each update (0.999: MaskBooster), at most; see ema_warmup_steps",
    )
    ema_warmup_steps: float = Field(
        10,
        ge=1,
        description="the teacher forgets its random start: keep at most (1 + step) / (this + step). With 10 that is "
        "0.994 at step 1,500; ema_keep 0.999 and 0.9996 are reached at steps 8,990 and 22,490, and are the same before",
    )


@dataclass(frozen=True)
class TrainingFacts:
    """What a method may know of the training besides its batches. total_steps: student updates. masks_per_class: how
    many objects of each class (contiguous index) have a true mask in the training data; empty = not known.
    objects_per_class: the same for all labelled objects. class_names: in the order of the contiguous index.
    labelled_images: how many images the labelled objects are on. images_per_class: how many of them have each class.
    """

    total_steps: int
    masks_per_class: tuple[int, ...] = ()
    objects_per_class: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    labelled_images: int = 0
    images_per_class: tuple[int, ...] = ()


@dataclass(frozen=True)
class StepLosses:
    """One step's outcome.

    losses: named scalars that the trainer adds up. counts: detached numbers for the journal (pseudo objects per image,
    ramp, ...). events: sentences for the journal, about what a person should know.
    """

    losses: dict[str, Tensor]
    counts: dict[str, Tensor | float] = field(default_factory=dict)
    events: tuple[str, ...] = ()


class Method(ABC):
    """A label-efficient way of training. Has no parameters of its own; never looks inside a model."""

    Config: ClassVar[type[EmaConfig]]
    uses_unlabelled: ClassVar[bool] = False
    notice: str | None = None  # a sentence for the user, before the first step

    def __init__(self, config: EmaConfig, facts: TrainingFacts) -> None:
        self.config = config
        self.facts = facts

    @abstractmethod
    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        """The losses of student update number `step` (from 0). The teacher is in eval mode and takes no gradient."""

    def momentum(self, step: int) -> float:
        """Share of the teacher that is kept after update `step` (from 0); 0 would make it a copy of the student."""
        return min(self.config.ema_keep, (1 + step) / (self.config.ema_warmup_steps + step))

    def pseudo_labels(self, teacher: Model, views: Views) -> list[Instances] | None:
        """What the teacher would tell the student about these images now, to be measured against hidden truth.

        One Instances per image with masks and scores; `ids` name the labelled objects they belong to where there are
        such. None when the method makes no pseudo-labels.
        """
        return None


@dataclass(frozen=True)
class TrainStage:
    """One training. settings: on top of the run's own, its method among them; a `model` of another name takes none of
    the run's but the backbone's. data: the earlier stage whose data set it learns from, None = the user's. teacher,
    student: the earlier stage whose best network the teacher, the student starts as, None = a copy of the student, a
    new network. encoder: the earlier stage whose backbone the model starts with, where it is the same one. It has
    `steps_fraction` of `train.steps`, `lr_fraction` of `optim.lr`, and is measured `evaluations` times, 0 = as often as
    the run says. calibration: the earlier stage whose calibration the method gets.
    """

    name: str
    settings: Mapping[str, Any]
    data: str | None = None
    teacher: str | None = None
    student: str | None = None
    encoder: str | None = None
    steps_fraction: float = 1.0
    lr_fraction: float = 1.0
    evaluations: int = 0
    calibration: str | None = None


@dataclass(frozen=True)
class PseudoMaskStage:
    """A copy of the user's training data in which every object that has a box but no mask gets one, by the best network
    of the training stage `teacher`.
    """

    name: str
    teacher: str


@dataclass(frozen=True)
class LabelSplitStage:
    """The user's training data in two files: fully labelled (strong) images, which become the data set's `train`, and
    images whose objects have points (weak). Strong objects get a point as weak ones have it (see `data.weak`).
    """

    name: str
    point_at: PointAt


@dataclass(frozen=True)
class RoughMaskStage:
    """The strong images of stage `data`, with the masks that the kept early weights of the training stage `teacher`
    have for their points, as rough masks beside the true ones; a share of the images becomes the split "held".
    """

    name: str
    teacher: str
    data: str
    held_fraction: float


@dataclass(frozen=True)
class PointMaskStage:
    """Strong images of stage `data`, and weak ones with the masks that the best network of the training stage `teacher`
    has for their points. rule: "one" mask per point, or "published".
    """

    name: str
    teacher: str
    data: str
    rule: Literal["one", "published"]


@dataclass(frozen=True)
class RefineStage:
    """The data set of stage `data` with its predicted masks improved by the best network of stage `refiner`."""

    name: str
    refiner: str
    data: str


@dataclass(frozen=True)
class HoldBackStage:
    """The user's data set without a share of its fully labelled training images, which become its split "held"."""

    name: str
    fraction: float


@dataclass(frozen=True)
class CalibrateStage:
    """How far the best network of the training stage `teacher` can be trusted, per class, on what stage `data` held."""

    name: str
    teacher: str
    data: str


Stage = (
    TrainStage
    | PseudoMaskStage
    | LabelSplitStage
    | RoughMaskStage
    | PointMaskStage
    | RefineStage
    | HoldBackStage
    | CalibrateStage
)


class StagedMethod(ABC):
    """A method that is a list of stages, each a folder that the next one reads and a person can open."""

    Config: ClassVar[type[EmaConfig]]

    def __init__(self, config: EmaConfig) -> None:
        self.config = config

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run; each trains for `train.steps`."""
