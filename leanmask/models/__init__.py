"""Networks, each with the three verbs of models/base.py. A new model is its file and one line in `MODELS`."""

from leanmask.models.implicit_pointrend import ImplicitPointRend
from leanmask.models.mask_rcnn import MaskRCNN
from leanmask.models.pointrend import PointRend
from leanmask.models.two_stage import TwoStage

MODELS: dict[str, type[TwoStage]] = {
    "mask_rcnn": MaskRCNN,
    "pointrend": PointRend,
    "implicit_pointrend": ImplicitPointRend,
}
