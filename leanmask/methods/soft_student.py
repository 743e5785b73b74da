"""The student of `better_labels` (Porcher et al. 2024, section 3.2), on PL-DC's engine: the teacher's class
probabilities are the targets, corrected by how wrong its confidence is for each class.

    weak view -> teacher -> probabilities + strength * calibration errors, cut to [0, 1] -> strong view -> student

Beyond the paper. `logit_adjustment`: before that, the labels' class frequencies are taken out of the probabilities; the
teacher has learned how seldom rare classes are among the labels, and says so of images that may have many of them.

What becomes an object is chosen after the correction, with a threshold per class that starts lower for rare classes
(PL-DC's adaptive ones), so that one threshold does not drop the classes the teacher is too modest about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from leanmask.errors import ConfigError
from leanmask.labels.calibrate import corrected, read_calibration
from leanmask.labels.prior import without_prior
from leanmask.methods.base import TrainingFacts
from leanmask.methods.pldc import PLDC, PLDCConfig
from leanmask.models.base import Model
from leanmask.records import Instances, Views


class SoftStudentConfig(PLDCConfig):
    """Pseudo-labels with soft classes, corrected by the teacher's calibration."""

    name: Literal["soft_student"] = "soft_student"  # type: ignore[assignment]
    ema_keep: float = Field(0.999, ge=0, lt=1, description="share of the teacher kept at each update")
    burn_in_fraction: float = Field(0.0, ge=0, lt=1, description="share of the training on labels alone")
    filter: Literal["decoupled", "coupled", "adaptive"] = Field(
        "adaptive", description="a threshold per class that starts lower for rare ones and follows; see pldc"
    )
    class_quality: float = Field(0.5, ge=0, le=1, description="least corrected class probability of a pseudo-object")
    mask_quality: float = Field(0.7, ge=0, le=1, description="least mean probability inside its mask")
    targets: Literal["soft", "one_hot"] = Field(
        "soft", description="the teacher's class probabilities, or its best class alone"
    )
    logit_adjustment: float = Field(
        0.0, ge=0, description="how far class frequencies of the labels are taken out of the teacher's classes; ours"
    )
    calibration: str | None = Field(None, description="calibration.json of the teacher; null = no correction")
    calibration_strength: float = Field(2.0, ge=0, description="lambda, how strongly it is corrected (published)")


class SoftStudent(PLDC):
    """PL-DC with other class targets; see the module's text."""

    Config = SoftStudentConfig
    config: SoftStudentConfig

    def __init__(self, config: SoftStudentConfig, facts: TrainingFacts) -> None:
        super().__init__(config, facts)
        self.errors: Tensor | None = None
        if config.calibration is not None:
            known = read_calibration(Path(config.calibration))
            unknown = [name for name in facts.class_names if name not in known]
            if unknown:
                raise ConfigError(f"{config.calibration} lacks the classes {', '.join(unknown[:5])} of the data")
            self.errors = torch.tensor([known[name] for name in facts.class_names])

    def predictions(self, teacher: Model, views: Views) -> list[Instances]:
        """What the teacher finds, with corrected class probabilities."""
        found = super().predictions(teacher, views)
        return [instances.replace(class_probabilities=self.adjust(_probabilities(instances))) for instances in found]

    def likely(self, instances: Instances) -> Tensor:
        """See `PLDC.likely`; by the corrected classes."""
        return super().likely(instances.replace(class_probabilities=self.adjust(_probabilities(instances))))

    def adjust(self, probabilities: Tensor) -> Tensor:
        """(N, C) class probabilities without the labels' frequencies and with the calibration errors, where asked."""
        even = without_prior(probabilities, self.facts.objects_per_class, self.config.logit_adjustment)
        return even if self.errors is None else corrected(even, self.errors, self.config.calibration_strength)

    def soft_classes(self, instances: Instances) -> Tensor | None:
        """See `PLDC.soft_classes`."""
        return _probabilities(instances) if self.config.targets == "soft" else None


def _probabilities(instances: Instances) -> Tensor:
    assert instances.class_probabilities is not None, "predictions keep their class probabilities"
    return instances.class_probabilities
