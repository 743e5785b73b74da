"""Label-efficient training methods, each a file. A new method is its file and one line in `METHODS`."""

from leanmask.methods.base import Method
from leanmask.methods.maskbooster import MaskBooster
from leanmask.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "maskbooster": MaskBooster,
}
