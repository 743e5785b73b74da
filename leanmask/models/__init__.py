"""Networks, each with the three verbs of models/base.py. A new model is its file and one line in `MODELS`."""

from leanmask.models.mask_rcnn import MaskRCNN

MODELS = {"mask_rcnn": MaskRCNN}
