"""Guided distillation (Berrada et al. 2024): a teacher is trained on the labels first and stays frozen while the
student starts from scratch on labels and pseudo-labels; then teacher := student, and the EMA.

    labels --train--> teacher --frozen--> pseudo-labels --> student from scratch; then teacher := student

The published baseline of PL-DC: a threshold on the class alone, weight 2 for the unlabelled loss, no pixel weights, no
erasing. Unlike the authors' code:

- lengths are shares of the training: the teacher is trained as long as the student and stays frozen for
  `frozen_fraction` of it (published: 50,000 steps of 368,750);
- the labelled images are shown in the strong view (published: flip, scale and crop alone) and all alike often;
  `data.repeat_threshold=10` balances the classes as published;
- the unlabelled images hold none of the labelled ones (published: all training images);
- masks of at most 5 pixels of the network's input are left out (published: a sum of probabilities of at most 5 at
  stride 4, about 80 such pixels);
- a batch without any pseudo-object teaches nothing, and more than `pldc`'s `most_pseudo` labelled rates of them lose
  weight (published: neither);
- the better of student and teacher is kept (published: the student).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from leanmask.methods.base import EmaConfig, Stage, StagedMethod, TrainStage


class GuidedDistillationConfig(EmaConfig):
    """A frozen teacher first; the student is trained with PL-DC's engine without its parts."""

    name: Literal["guided_distillation"] = "guided_distillation"
    ema_keep: float = Field(0.9996, ge=0, lt=1, description="share of the teacher kept at each update (published)")
    frozen_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of the second training before the teacher follows; published 50,000 steps"
    )
    class_quality: float = Field(0.7, ge=0, le=1, description="least class probability of a pseudo-object (published)")
    unlabelled_weight: float = Field(2.0, ge=0, description="weight of the losses of pseudo-labels (published)")


class GuidedDistillation(StagedMethod):
    """Two trainings: a teacher on the labels, and the student that it guides."""

    Config = GuidedDistillationConfig
    config: GuidedDistillationConfig

    def stages(self) -> tuple[Stage, ...]:
        """ "teacher", then "student"."""
        given = self.config
        ema = {key: getattr(given, key) for key in EmaConfig.model_fields}
        student = {
            "name": "pldc",
            "burn_in_fraction": 0.0,
            "frozen_fraction": given.frozen_fraction,
            "class_quality": given.class_quality,
            "mask_quality": 0.0,
            "doubtful": 1.0,
            "pixel_weight": "none",
            "unlabelled_weight": given.unlabelled_weight,
        }
        return (
            TrainStage("teacher", {"method": {"name": "supervised", **ema}}),
            TrainStage("student", {"method": {**student, **ema}}, teacher="teacher"),
        )
