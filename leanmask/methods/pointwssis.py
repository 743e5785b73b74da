"""PointWSSIS (Kim et al. 2023): a few images with full masks, all others with one point and a class per object.

    strong images --train--> teacher --early weights, asked at points--> rough masks of strong images --train--> refiner
    weak images --points--> teacher: best pyramid level per point --rough masks--> refiner --> pseudo-masks
    strong images + pseudo-masks --train--> student  [--online: the student teaches itself on, points supervising]

Every point gets one mask, of the class that the person gave, however unsure the network is; the published rule, a mask
NMS that may take a point's mask away, is `rule="published"`. Strong and pseudo-labels count the same, as published.

Where this differs from the authors' code: the refiner is chosen on strong images that are held back from its training
(theirs consumes 1,000 weak images' true masks), its rough masks are asked for at points as on weak images, and it sees
a class in the same channel in training and in use. `online` is not in the paper, nor are points off the centre
(`point_at`), for which cells elsewhere are asked too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from leanmask.methods.base import (
    EmaConfig,
    LabelSplitStage,
    PointMaskStage,
    RefineStage,
    RoughMaskStage,
    Stage,
    StagedMethod,
    TrainStage,
)
from leanmask.supervision import PointAt


class PointWSSISConfig(EmaConfig):
    """Teacher, refiner, pseudo-masks and student; needs a model that takes points (solov2)."""

    name: Literal["pointwssis"] = "pointwssis"
    refine: bool = Field(True, description="False: the student learns from the teacher's rough masks")
    rule: Literal["one", "published"] = Field(
        "one", description="one mask per point, or the published NMS, after which some points have none"
    )
    point_at: PointAt = Field(
        "centre",
        description="where the points of weak images are: at mass centres, or anywhere on the objects; those of strong "
        "images, which the refiner learns with, are put there too, and networks are asked accordingly (model.point_at)",
    )
    rough_fractions: tuple[float, ...] = Field(
        (0.2, 0.4),
        min_length=1,
        description="shares of the teacher's training whose weights make the refiner's rough masks; published: about "
        "0.5 and 0.83 of trainings that see an image a few times, here a small strong set is known by heart by then",
    )
    held_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the strong images on which the refiner is chosen, not trained"
    )
    refiner: dict[str, Any] = Field(
        {}, description="settings of the model mask_refine; its backbone and weights are the teacher's where not given"
    )
    refiner_steps_fraction: float = Field(1.0, gt=0, description="length of the refiner's training over train.steps")
    online: bool = Field(False, description="afterwards the student goes on with an online teacher (MaskBooster)")
    online_steps_fraction: float = Field(0.5, gt=0, description="length of that training over train.steps")
    online_lr_fraction: float = Field(0.1, gt=0, description="its learning rate over optim.lr")


class PointWSSIS(StagedMethod):
    """Trainings on strong images, on rough masks, and on strong and pseudo-labels."""

    Config = PointWSSISConfig
    config: PointWSSISConfig

    def stages(self) -> tuple[Stage, ...]:
        """ "labels", "teacher", "rough" and "refiner", "pseudo", "refined", "student", "online"."""
        given = self.config
        keep = {"train": {"keep_weights_fractions": list(given.rough_fractions)}} if given.refine else {}
        stages: list[Stage] = [
            LabelSplitStage("labels", point_at=given.point_at),
            TrainStage("teacher", self._supervised() | keep, data="labels"),
        ]
        if given.refine:
            stages += [
                RoughMaskStage("rough", teacher="teacher", data="labels", held_fraction=given.held_fraction),
                self._refiner(),
            ]
        stages.append(PointMaskStage("pseudo", teacher="teacher", data="labels", rule=given.rule))
        if given.refine:
            stages.append(RefineStage("refined", refiner="refiner", data="pseudo"))
        stages.append(TrainStage("student", self._supervised(), data=stages[-1].name))
        if given.online:
            stages.append(self._online())
        return tuple(stages)

    def _supervised(self) -> dict[str, Any]:
        return {"method": {"name": "supervised", **self._ema()}, **self._asked()}

    def _asked(self) -> dict[str, Any]:
        return {"model": {"point_at": "random"}} if self.config.point_at == "random" else {}

    def _ema(self) -> dict[str, Any]:
        return {key: getattr(self.config, key) for key in EmaConfig.model_fields}

    def _refiner(self) -> TrainStage:
        settings = self._supervised() | {"model": {**self.config.refiner, "name": "mask_refine"}}
        settings |= {"data": {"val_split": "held"}}
        share = self.config.refiner_steps_fraction
        return TrainStage("refiner", settings, data="rough", encoder="teacher", steps_fraction=share, evaluations=5)

    def _online(self) -> TrainStage:
        """On what the user labelled, not on pseudo-masks, so that points alone supervise and no old mask is defended;
        but with weak images as complete as the pseudo-labels took them to be. The split that a user has marks them
        incomplete, since most models cannot tell an unknown extent from background; then the classes would learn from
        positive cells alone on most images. SOLOv2 learns classes at centres, and leaves the cells around points out.

        Teacher and student begin as the finished student: neither has a random start to forget, and a learning rate as
        high as a new network's would take both back to coarse masks, which they would then teach each other.
        """
        method = {"name": "maskbooster", "start_fraction": 0.0, "ramp_fraction": 0.1, "soft_weight": 0.0, **self._ema()}
        given = self.config
        return TrainStage(
            "online",
            {"method": {**method, "ema_warmup_steps": 1}, "data": {"train_split": "online"}, **self._asked()},
            data="labels",
            student="student",
            steps_fraction=given.online_steps_fraction,
            lr_fraction=given.online_lr_fraction,
        )
