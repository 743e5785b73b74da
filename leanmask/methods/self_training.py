"""Self-training from human boxes (Cheng, Parkhi and Kirillov 2022, "Self-training with points"): the boxes stay a
person's, only masks are predicted.

    labels --train--> network --masks for the given boxes--> data set with masks --train--> network

Works for whatever teaches the first network some masks: classified points, a few full masks, or both; objects with a
box alone take part in the second training with their pseudo-mask. The paper trains both alike, once.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from leanmask.methods.base import EmaConfig, PseudoMaskStage, Stage, StagedMethod, TrainStage


class SelfTrainingConfig(EmaConfig):
    """Two trainings with pseudo-masks for human boxes in between."""

    name: Literal["self_training"] = "self_training"
    first: Literal["supervised", "maskbooster"] = Field(
        "supervised", description="method of the first training; the later ones are supervised by the pseudo-masks"
    )
    rounds: int = Field(1, ge=1, description="how often pseudo-masks are made and trained on; the paper has 1")


class SelfTraining(StagedMethod):
    """Train, predict masks for the given boxes, train on them."""

    Config = SelfTrainingConfig
    config: SelfTrainingConfig

    def stages(self) -> tuple[Stage, ...]:
        """ "labels", then for every round "pseudo" and "student" (numbered from the second round on)."""
        stages: list[Stage] = [TrainStage("labels", self._method(self.config.first))]
        for number in range(1, self.config.rounds + 1):
            ending = "" if number == 1 else f"-{number}"
            stages.append(PseudoMaskStage(f"pseudo{ending}", teacher=stages[-1].name))
            stages.append(TrainStage(f"student{ending}", self._method("supervised"), data=f"pseudo{ending}"))
        return tuple(stages)

    def _method(self, name: str) -> dict[str, Any]:
        ema = {key: getattr(self.config, key) for key in EmaConfig.model_fields}
        return {"method": {"name": name, **ema}}
