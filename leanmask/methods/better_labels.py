"""Better (pseudo-)labels (Porcher et al. 2024): a long tail of classes, and unlabelled images.

    labels but a held-back part --smoothed--> teacher --held-back part--> calibration errors
    labels + unlabelled images --teacher's soft classes, corrected--> student, and the EMA

The teacher learns from labels smoothed towards similar and rare classes; the student from the teacher's class
probabilities, corrected per class; labelled and unlabelled losses count alike. Each part is a setting, which makes the
ablation table: `smoothing`, `gamma=0`, `targets=one_hot`, `calibrate=false`. `logit_adjustment` is not the paper's; see
soft_student.py.

The paper tunes on 85 % of the labels and trains its teacher on all of them; here the calibration is measured on images
that the teacher has not seen, so the teacher has 85 % and the student all.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from leanmask.methods.base import CalibrateStage, EmaConfig, HoldBackStage, Stage, StagedMethod, TrainStage


class BetterLabelsConfig(EmaConfig):
    """Teacher with smoothed labels, its calibration, and a student with soft, corrected targets."""

    name: Literal["better_labels"] = "better_labels"
    smoothing: Literal["similarity", "uniform", "none"] = Field(
        "similarity", description="of the teacher's labels: towards similar classes, towards all alike, or none"
    )
    epsilon: float = Field(0.1, ge=0, le=1, description="share of a label that is spread (published)")
    gamma: float = Field(1.5, ge=0, description="how strongly rare classes are preferred (published); 0 = not at all")
    reading: Literal["row", "column"] = Field("row", description="of the published product; see smoothed")
    uniform_fraction: float = Field(0.25, ge=0, lt=1, description="see smoothed; 0 with pretrained weights")
    held_fraction: float = Field(
        0.15, gt=0, lt=1, description="share of the labelled images that only calibrate the teacher (published)"
    )
    targets: Literal["soft", "one_hot"] = Field("soft", description="the student's classes on unlabelled images")
    calibrate: bool = Field(True, description="correct them by the teacher's calibration errors")
    calibration_strength: float = Field(2.0, ge=0, description="lambda (published)")
    logit_adjustment: float = Field(
        0.0,
        ge=0,
        description="how far the labels' class frequencies are taken out of the student's targets; 0 = published",
    )
    frozen_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of the student's training before the teacher follows"
    )
    class_quality: float = Field(0.5, ge=0, le=1, description="least corrected class probability of a pseudo-object")
    mask_quality: float = Field(0.7, ge=0, le=1, description="least mean probability inside its mask")
    unlabelled_weight: float = Field(1.0, ge=0, description="weight of the losses of pseudo-labels (published)")


class BetterLabels(StagedMethod):
    """Teacher, calibration, student."""

    Config = BetterLabelsConfig
    config: BetterLabelsConfig

    def stages(self) -> tuple[Stage, ...]:
        """ "held", "teacher", "calibration" and "student"; without `calibrate` just teacher and student."""
        teacher = TrainStage("teacher", self._method("smoothed", "smoothing", *_SMOOTHING))
        student = self._method("soft_student", "targets", "logit_adjustment", "calibration_strength", *_STUDENT)
        if not self.config.calibrate:
            return teacher, TrainStage("student", student, teacher="teacher")
        return (
            HoldBackStage("held", self.config.held_fraction),
            TrainStage("teacher", teacher.settings, data="held"),
            CalibrateStage("calibration", teacher="teacher", data="held"),
            TrainStage("student", student, teacher="teacher", calibration="calibration"),
        )

    def _method(self, name: str, *keys: str) -> dict[str, Any]:
        return {
            "method": {"name": name, **{key: getattr(self.config, key) for key in (*keys, *EmaConfig.model_fields)}}
        }


_SMOOTHING = ("epsilon", "gamma", "reading", "uniform_fraction")
_STUDENT = ("frozen_fraction", "class_quality", "mask_quality", "unlabelled_weight")
