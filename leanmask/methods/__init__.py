"""Label-efficient training methods, each a file. A new method is its file and one line in `METHODS`, or in `STAGED`
when it consists of several trainings.
"""

from leanmask.methods.base import Method, StagedMethod
from leanmask.methods.better_labels import BetterLabels
from leanmask.methods.guided_distillation import GuidedDistillation
from leanmask.methods.maskbooster import MaskBooster
from leanmask.methods.pldc import PLDC
from leanmask.methods.pointwssis import PointWSSIS
from leanmask.methods.self_training import SelfTraining
from leanmask.methods.smoothed import Smoothed
from leanmask.methods.soft_student import SoftStudent
from leanmask.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "maskbooster": MaskBooster,
    "pldc": PLDC,
    "smoothed": Smoothed,
    "soft_student": SoftStudent,
}

STAGED: dict[str, type[StagedMethod]] = {
    "self_training": SelfTraining,
    "guided_distillation": GuidedDistillation,
    "pointwssis": PointWSSIS,
    "better_labels": BetterLabels,
}
