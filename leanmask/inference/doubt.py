"""How unsure a run is: about the masks of objects with a box, and about what is on images without labels.

Student and teacher of the run's last checkpoint are compared where both are there.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from leanmask.data.coco import ImageRecord
from leanmask.data.dataset import EvalDataset, ImageSource
from leanmask.data.loader import evaluation_batches
from leanmask.engine.checkpoint import fit_weights, load_weights
from leanmask.evaluation.predictions import predict_views
from leanmask.inference.predict import Loaded
from leanmask.labels.boxes import boxes_without_mask
from leanmask.labels.weigh import mask_uncertainty
from leanmask.labels.worth import Doubt
from leanmask.records import Views
from leanmask.reports.folders import trainings

LEAST_SCORE = 0.3  # of a prediction that is taken for an expected object

OnProgress = Callable[[int, int], None]


@dataclass
class Doubts:
    """objects: of the objects with a box and without a mask, by annotation id; not of those that are smaller than a
    pixel at the network's size. expected: of every image that nobody has labelled, the class index (None = a class that
    the data do not have) and doubt of each object that is predicted there.
    """

    objects: dict[int, Doubt] = field(default_factory=dict)
    expected: dict[int | str, list[tuple[int | None, Doubt]]] = field(default_factory=dict)


def networks(loaded: Loaded, run: Path) -> list[Loaded]:
    """The run's best network, or student and teacher of the last checkpoint of its last training where it has both."""
    last = trainings(run)[-1] / "checkpoints" / "last"
    paths = [last / f"{who}.safetensors" for who in ("student", "teacher")]
    if not all(path.is_file() for path in paths):
        return [loaded]
    found = []
    for path in paths:
        model = copy.deepcopy(loaded.model)
        fit_weights(model, load_weights(path)[0], path)
        found.append(dataclasses.replace(loaded, model=model.eval()))
    return found


def measure_doubt(loaded: list[Loaded], source: ImageSource, on_progress: OnProgress | None = None) -> Doubts:
    """Ask one or two networks about every image of a source; the last one is whose predictions count."""
    doubts, done = Doubts(), 0
    main = loaded[-1]
    bare = {record.id for record in (source[index] for index in range(len(source))) if is_bare(record)}
    dataset = EvalDataset(source, main.config.data)
    batches = evaluation_batches(dataset, main.config.evaluation.batch_size, workers=main.config.data.workers)
    for views in batches:
        _about_boxes(loaded, views, doubts)
        if bare.intersection(views.image_ids):
            _about_images(main, views, bare, doubts)
        done += len(views)
        if on_progress:
            on_progress(done, len(dataset))
    return doubts


def _about_boxes(loaded: list[Loaded], views: Views, doubts: Doubts) -> None:
    main = loaded[-1]
    moved = views.to(main.device)
    proposals, lacking = boxes_without_mask(moved.targets)
    if not len(proposals.boxes):
        return
    grids = []
    for each in loaded:
        lower = each.precision == "bf16"
        with torch.inference_mode(), torch.autocast(each.device.type, torch.bfloat16, enabled=lower):
            said = each.model.predict_masks(moved.weak, proposals, fine=True)
        grids.append(said.of_category().float().sigmoid())
    unsure = mask_uncertainty(grids[-1]).mean((1, 2)).tolist()
    apart = (1 - _iou(grids[0] > 0.5, grids[-1] > 0.5)).tolist() if len(grids) > 1 else [None] * len(unsure)
    ids = [int(number) for instances in lacking for number in (instances.ids if instances.ids is not None else ())]
    for number, mask, disagreement in zip(ids, unsure, apart, strict=True):
        doubts.objects[number] = Doubt(0.0, mask, disagreement)  # a person said the class


def _iou(one: Tensor, other: Tensor) -> Tensor:
    common, united = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return torch.where(united > 0, common / united.clamp(min=1), 1.0)


def is_bare(record: ImageRecord) -> bool:
    """Whether nobody has labelled an image: it has no objects that count, and nobody says that there are none."""
    return not record.counted and not record.exhaustive


def _about_images(main: Loaded, views: Views, bare: Set[int | str], doubts: Doubts) -> None:
    found = predict_views(main.model, views, main.device, main.precision)
    for image_id, predicted in zip(views.image_ids, found, strict=True):
        if image_id not in bare:
            continue
        assert predicted.scores is not None, "a prediction has scores"
        kept = predicted.scores >= LEAST_SCORE
        pairs = zip(predicted.categories[kept].tolist(), predicted.scores[kept].tolist(), strict=True)
        # A score of one half is all doubt; near 0 or 1 the network has made up its mind.
        doubts.expected[image_id] = [(category, Doubt(1 - score, 1 - abs(2 * score - 1))) for category, score in pairs]
