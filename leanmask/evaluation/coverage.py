"""Whether masks or boxes of a truth can be measured: by masks where every object has one, else by boxes."""

from __future__ import annotations

from dataclasses import dataclass

from leanmask.errors import ConfigError, DataError, suggest
from leanmask.evaluation.coco_files import CocoTruth
from leanmask.evaluation.coco_rows import Kind, is_crowd

IOUS = ("mask", "box")


@dataclass(frozen=True)
class Measured:
    """What AP is of. iou: "mask" or "box". note: a sentence where boxes were not asked for, else None."""

    iou: str
    note: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """As `evaluate_results` wants them: with masks, boxes are measured beside them."""
        return ("segm", "bbox") if self.iou == "mask" else ("bbox",)


def measured_by(truth: CocoTruth, iou: str | None = None) -> Measured:
    """Masks, or boxes where an object of an exhaustively annotated image has no mask: then all objects count by their
    boxes, for AP of the masks alone would call findings of the others wrong. A mask has a box, too; crowd regions do
    not matter.

    iou: what the user asked for, None = as above. Raises ConfigError for another word, DataError, with the annotation,
    where an object has neither mask nor box.
    """
    if iou is not None and iou not in IOUS:
        raise ConfigError(f"iou is '{iou}'{suggest(iou, IOUS)}")
    if iou == "mask":
        return Measured("mask")
    objects = [row for row in truth.annotations if row["image_id"] in truth.exhaustive_images and not is_crowd(row)]
    unmasked = [row for row in objects if not row.get("segmentation")]
    for row in unmasked:
        if not row.get("bbox"):
            raise DataError(
                f"annotation {row.get('id')!r} (image {row['image_id']!r}) of {truth.name} has neither mask nor box, "
                'so it cannot be scored; give it one, or mark the image with "exhaustive": false to leave it out'
            )
    if iou == "box":
        return Measured("box")
    if not unmasked:
        return Measured("mask")
    which = f"{len(unmasked)} of {len(objects)} objects" if len(unmasked) < len(objects) else "the objects"
    return Measured("box", f"{which} of {truth.name} have a box and no mask, so box AP is measured, not mask AP")
