"""The rules of a plan, in the order in which they are asked: from what is known of the data and the machine to one
setting each, with its reason. A rule may look at what was chosen before it, and at what the user has set.

A rule returns None where the setting's default is right, or where it is not the model's. What a number was found with
stands beside it; `benchmarks/results` has the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from leanmask.config import get_setting
from leanmask.models import MODELS
from leanmask.models.spec import SMALL_BACKBONES
from leanmask.models.two_stage import TwoStage
from leanmask.planning.fingerprint import Fingerprint, Machine

SMALLEST_OBJECT_PX = 12.0  # three cells of the finest map: what a tenth of the objects may be below
VISIBLE_PX = 4.0  # one cell: smaller objects cannot be found
SIDES = {"cpu": (192, 384), "gpu": (512, 1024)}  # least and most, pixels
MOST_ENLARGED = 1.5  # over the images' own side: more shows nothing that is not there
CROWDED = 30  # objects on an image, from which on proposals run out
EPOCHS = {"cpu": 12.0, "gpu": 36.0}
LEAST_STEPS, MOST_STEPS = 300, 20_000
FEW_MASKS, FEW_IMAGES = 0.1, 50  # share of the objects that have a mask, labelled images: below, objects are pasted
HIDING = 0.35  # side of an object over its image's, from which on its copies hide other objects
RARE = 0.05  # share of the images that a class is on
CANVAS_GB = {"small": 0.35, "large": 2.5}  # memory of a training step per image of 512 px, with room to spare


@dataclass(frozen=True)
class Choice:
    """A setting by its dotted name, its value, and why. given: the user has set it, so no rule was asked."""

    setting: str
    value: Any
    why: str
    given: bool = False

    def to_text(self) -> str:
        return f"{self.setting} = {_shown(self.value)} ({self.why})"


@dataclass(frozen=True)
class Known:
    """What a rule may look at. settings: what is set so far, the user's and the plan's, nested."""

    data: Fingerprint
    machine: Machine
    settings: Mapping[str, Any]
    coco_weights: str | None  # for a GPU: where weights of a whole detector are from; None = they cannot be had

    def __getitem__(self, setting: str) -> Any:
        return get_setting(self.settings, setting)

    @property
    def place(self) -> str:
        return "gpu" if self.machine.gpu else "cpu"

    def px(self, side: float) -> float:
        """A share of an image's longest side in pixels of the network's input."""
        return side * float(self["data.image_size"])

    @property
    def two_stage(self) -> bool:
        return issubclass(MODELS[self["model.name"]], TwoStage)

    @property
    def small(self) -> bool:
        return self["model.backbone"] in SMALL_BACKBONES


Rule = tuple[str, Callable[[Known], tuple[Any, str] | None]]


def method(known: Known) -> tuple[Any, str]:
    data, labels = known.data, known.data.labels
    masks, boxes, points, single = (labels.get(kind, 0) for kind in ("mask", "box", "points", "point"))
    if single and masks and data.point_images:
        return "pointwssis", f"{data.mask_images} images have masks, {data.point_images} one point per object"
    if boxes and masks:
        return "maskbooster", f"{masks} objects have a mask, {boxes} only a box: it learns their masks"
    if points:
        return "supervised", f"{points} objects have a box and classified points, which teach masks as they are"
    if masks and data.pool_images + data.unlabelled_images:
        return "supervised", "every labelled object has a mask; see the note on unlabelled images"
    return "supervised", "every object has a mask"


def model(known: Known) -> tuple[Any, str]:
    if known["method.name"] == "pointwssis":
        return "solov2", "pointwssis asks a network for masks at points, which it can do"
    return "mask_rcnn", "the quickest of the models on any kind of label"


def backbone(known: Known) -> tuple[Any, str]:
    if known.place == "gpu" and known.coco_weights and known["model.name"] in ("mask_rcnn", "pointrend"):
        return "resnet50", f"a GPU, and weights of a detector that has seen COCO are at hand ({known.coco_weights})"
    if known.place == "gpu" and known.coco_weights and known["model.name"] == "mask2former":
        return "swin_tiny", f"a GPU, and weights of a network that has seen COCO are at hand ({known.coco_weights})"
    why = "features of ImageNet that come with leanmask, fast on a processor"
    if known.place == "gpu":
        why = "features of ImageNet that come with leanmask; larger weights need a network or a filled cache"
    return "lite0", why


def weights(known: Known) -> tuple[Any, str] | None:
    if (
        known["model.backbone"] == "resnet50"
        and known.coco_weights
        and known["model.name"] in ("mask_rcnn", "pointrend")
    ):
        return "COCO_V1", "torchvision's Mask R-CNN, trained on COCO"
    return None


def image_size(known: Known) -> tuple[Any, str]:
    least, most = SIDES[known.place]
    side, own = known.data.object_side, known.data.image_side
    if side.p10 <= 0:
        return least, "no object has a box: the least that is usual"
    wanted = SMALLEST_OBJECT_PX / side.p10
    allowed = max(least, min(most, MOST_ENLARGED * own.p50))
    chosen = _rounded(min(max(wanted, least), allowed), 32)
    tenth = f"a tenth of the objects is smaller than {side.p10 * chosen:.0f} px then"
    if wanted > allowed:
        limit = (
            f"the images have {own.p50:.0f} px" if allowed < most else f"more takes too long on a {known.place.upper()}"
        )
        return chosen, f"{tenth}; {limit}"
    return chosen, tenth


def anchor_sizes(known: Known) -> tuple[Any, str] | None:
    if not known.two_stage or known["model.weights"] == "COCO_V1":
        return None
    small, large = known.px(known.data.object_side.p10), known.px(known.data.object_side.p95)
    # A pyramid's anchors span 16 to 1: the first one fits the small objects, unless the last would be far too large.
    first = next(size for size in (8, 16, 32) if min(small, large / 8) <= 1.5 * size or size == 32)
    sizes = [first * 2**level for level in range(5)]
    return sizes, f"objects are {small:.0f} px (a tenth is smaller) to {large:.0f} px (a twentieth is larger)"


def _crowded(known: Known) -> bool:
    return known.data.objects_per_image.p95 > CROWDED


def proposals_before(known: Known) -> tuple[Any, str] | None:
    if not known.two_stage or not known.small or not _crowded(known):
        return None
    return [1000, 1000], f"up to {known.data.objects_per_image.most:.0f} objects on an image"


def proposals_after(known: Known) -> tuple[Any, str] | None:
    if not known.two_stage or not known.small or not _crowded(known):
        return None
    most = _rounded(min(max(500, 2 * known.data.objects_per_image.most), 1000), 100)
    return [500, most], f"up to {known.data.objects_per_image.most:.0f} objects on an image"


def proposals_per_image(known: Known) -> tuple[Any, str] | None:
    if not known.two_stage or not known.small or not _crowded(known):
        return None
    return 128, "a quarter of them are objects, and images have many"


def detections(known: Known) -> tuple[Any, str] | None:
    most = known.data.objects_per_image.most
    if most <= 80 or known["model.name"] == "mask_refine":
        return None
    return _rounded(1.1 * most, 50), f"an image has up to {most:.0f} objects"


def queries(known: Known) -> tuple[Any, str] | None:
    most, usual = known.data.objects_per_image.most, 40 if known.small else 100
    if known["model.name"] != "mask2former" or most <= 0.75 * usual or known["model.backbone"] == "swin_tiny":
        return None
    return _rounded(min(1.5 * most, 300), 20), f"an image has up to {most:.0f} objects, each of which takes a query"


def grids(known: Known) -> tuple[Any, str] | None:
    if known["model.name"] != "solov2" or not known.small or not _crowded(known):
        return None
    return [64, 40, 28, 16, 8], "an object takes the cell of its centre, and many objects are close together"


def batch_size(known: Known) -> tuple[Any, str]:
    side = known["data.image_size"]
    wanted = 8 if side <= 256 or known.place == "gpu" else 4
    each = CANVAS_GB["small" if known.small else "large"] * (side / 512) ** 2
    fits = max(int(0.7 * known.machine.memory_gb / each), 1)
    if fits < wanted:
        return 2 ** int(math.log2(fits)), f"what {known.machine.memory_gb:.0f} GB of memory hold at {side} px"
    return wanted, "usual" if wanted == 8 else f"images of {side} px take long on a processor"


def steps(known: Known) -> tuple[Any, str]:
    """Before the time is known; `plan` shortens it to what the user's minutes allow."""
    images = known.data.labelled_images
    passes = EPOCHS[known.place]
    wanted = passes * images / known["train.batch_size"]
    chosen = _rounded(min(max(wanted, LEAST_STEPS), MOST_STEPS), 50)
    done = chosen * known["train.batch_size"] / max(images, 1)
    return chosen, f"{done:.0f} passes over {images} labelled images"


def learning_rate(known: Known) -> tuple[Any, str]:
    if known.small:
        return 1e-3, "AdamW with small heads"
    return 1e-4, "AdamW on a large network that has learned"


def weight_decay(known: Known) -> tuple[Any, str]:
    return 0.05, "usual with AdamW"


def warmup(known: Known) -> tuple[Any, str]:
    return max(min(100, known["train.steps"] // 6), 1), "a sixth of the training, at most 100 steps"


def blur(known: Known) -> tuple[Any, str]:
    most = round(2.0 * known["data.image_size"] / 800, 1)
    return [0.1, max(most, 0.2)], "published: 2 px for images of 800 px"


def copy_paste(known: Known) -> tuple[Any, str] | None:
    """Few masks come into every step so, but a large copy hides what else is on the image: on animals, at a tenth of
    the masks, box AP is 34.0 with pasting and 36.9 without (animals-sparse-10.json, first seed).
    """
    data = known.data
    masks = data.labels.get("mask", 0)
    if not masks or known["method.name"] == "pointwssis" or data.object_side.p50 > HIDING:
        return None
    if masks < FEW_MASKS * data.objects:
        return 1.0, f"only {masks} of {data.objects} objects have a mask: they are pasted into other images"
    if data.labelled_images < FEW_IMAGES and data.pool_images:
        return 1.0, f"only {data.labelled_images} images are labelled: their objects are pasted into each other"
    return None


def repeat_threshold(known: Known) -> tuple[Any, str] | None:
    data = known.data
    shares = {name: count / max(data.labelled_images, 1) for name, count in data.class_images.items() if count}
    if len(shares) < 2 or min(shares.values()) >= RARE:
        return None
    rare = sorted(name for name, share in shares.items() if share < RARE)
    named = ", ".join(rare[:3]) + (f" and {len(rare) - 3} more" if len(rare) > 3 else "")
    return 2 * RARE, f"few images show {named}; they are drawn more often"


def evaluations(known: Known) -> tuple[Any, str] | None:
    if not known.data.val_images:
        return None
    patience = known["train.patience"] or 0
    points = max(4, patience + 2)
    why = "four points of a curve" if points == 4 else f"{points} points of a curve, so that train.patience can act"
    return max(known["train.steps"] // points, 1), why


def evaluated(known: Known) -> tuple[Any, str] | None:
    if known.place == "gpu" or not known.data.val_images:
        return None
    return [
        "teacher"
    ], "the average of the student's last weights is nearly always the better network, and one is quicker"


def evaluated_detections(known: Known) -> tuple[Any, str]:
    most = known.data.objects_per_image.most
    if most <= 80:
        return 100, "the standard; no image has as many objects"
    return max(_rounded(1.1 * most, 50), 100), f"an image has up to {most:.0f} objects"


def exif(known: Known) -> tuple[Any, str] | None:
    applied, ignored = (known.data.exif.get(kind, 0) for kind in ("apply", "ignore"))
    if bool(applied) == bool(ignored):
        return None  # of annotations of both kinds training stops at the first
    if applied:
        return "apply", f"{applied} images or more are turned by EXIF, and annotated as they are shown"
    return "ignore", f"{ignored} images or more are turned by EXIF, and annotated as they are stored"


def workers(known: Known) -> tuple[Any, str]:
    if known.place == "gpu":
        return max(min(known.machine.cores - 1, 8), 1), "processor cores that feed the GPU"
    return max(min(known.machine.cores // 2, 2), 1), "the other cores compute"


RULES: tuple[Rule, ...] = (
    ("method.name", method),
    ("model.name", model),
    ("model.backbone", backbone),
    ("model.weights", weights),
    ("data.exif", exif),
    ("data.image_size", image_size),
    ("model.anchor_sizes", anchor_sizes),
    ("model.rpn_before_nms", proposals_before),
    ("model.rpn_after_nms", proposals_after),
    ("model.proposals_per_image", proposals_per_image),
    ("model.grids", grids),
    ("model.queries", queries),
    ("model.detections_per_image", detections),
    ("data.repeat_threshold", repeat_threshold),
    ("data.workers", workers),
    ("augment.copy_paste_probability", copy_paste),
    ("augment.blur_radius_px", blur),
    ("train.batch_size", batch_size),
    ("train.steps", steps),
    ("optim.lr", learning_rate),
    ("optim.weight_decay", weight_decay),
    ("optim.warmup_steps", warmup),
    ("train.eval_every_steps", evaluations),
    ("evaluation.who", evaluated),
    ("evaluation.max_detections", evaluated_detections),
)


def remarks(known: Known) -> tuple[str, ...]:
    """Sentences about data that no setting mends."""
    data, found = known.data, []
    labels, side = data.labels, data.object_side
    seen = known.px(side.p95)
    if data.objects and side.p95 and seen < VISIBLE_PX:
        found.append(
            f"nearly all objects are smaller than {VISIBLE_PX:.0f} px at data.image_size={known['data.image_size']} "
            f"and cannot be found; cut the images into tiles, or set a larger data.image_size "
            f"({_rounded(SMALLEST_OBJECT_PX / side.p50, 32)} would show half of them at {SMALLEST_OBJECT_PX:.0f} px)"
        )
    elif data.objects and side.p10 and known.px(side.p10) < VISIBLE_PX:
        found.append(
            f"a tenth of the objects is smaller than {VISIBLE_PX:.0f} px at data.image_size={known['data.image_size']} "
            "and will hardly be found; tiles or a larger data.image_size help"
        )
    if data.image_side.least and data.image_side.least < 32:
        found.append(f"some images are only {data.image_side.least:.0f} px large; they are enlarged")
    if labels.get("box") and not labels.get("mask") and not labels.get("points"):
        found.append("no object has a mask or classified points, so no masks can be learned, only boxes and classes")
    if known["method.name"] == "supervised" and labels.get("mask") and data.pool_images:
        # On animals at 10 % of the images it fell behind (benchmarks/results/animals-semi-10.json).
        found.append(
            f"{data.pool_images} unlabelled images are not learned from: on photographs, in trainings as short as on a "
            "processor, PL-DC gained nothing (docs/results.md); --method pldc learns from them"
        )
    if not data.val_images:
        found.append(
            "there is no validation image that is fully annotated, so nothing will be measured; `leanmask split DATA "
            "NEW --val 20%` makes a split of such"
        )
    return tuple(found)


def _rounded(value: float, to: int) -> int:
    return max(round(value / to) * to, to)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
