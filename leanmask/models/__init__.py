"""Networks, each with the three verbs of models/base.py. A new model is its file and one line in `MODELS`."""

from leanmask.models.base import Model
from leanmask.models.cascade_mask_rcnn import CascadeMaskRCNN
from leanmask.models.implicit_pointrend import ImplicitPointRend
from leanmask.models.mask2former import Mask2Former
from leanmask.models.mask_rcnn import MaskRCNN
from leanmask.models.mask_refine import MaskRefineNet
from leanmask.models.pointrend import PointRend
from leanmask.models.solov2 import SOLOv2

MODELS: dict[str, type[Model]] = {
    "mask_rcnn": MaskRCNN,
    "cascade_mask_rcnn": CascadeMaskRCNN,
    "pointrend": PointRend,
    "implicit_pointrend": ImplicitPointRend,
    "mask2former": Mask2Former,
    "solov2": SOLOv2,
    "mask_refine": MaskRefineNet,
}
