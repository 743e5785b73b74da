"""The stages of PointWSSIS that are no trainings: strong and weak images apart, rough masks for the refiner, and the
data sets that students learn from. Each writes a COCO data set that a person can open; data.yaml is written last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pycocotools import mask as coco_mask

from leanmask.data.annotation import ROUGH
from leanmask.data.coco import AnnotationStore
from leanmask.data.files import read_json, write_json
from leanmask.data.layout import SplitFiles, locate
from leanmask.data.weak import Labels, read_labels, with_points
from leanmask.data.withholding.chance import count_of, shuffled
from leanmask.engine.distributed import start_processes
from leanmask.engine.trainer import KEPT_FOLDER
from leanmask.errors import DataError, RunError, suggest
from leanmask.evaluation.mask_quality import mask_quality
from leanmask.inference.calibration import CALIBRATION_FILE
from leanmask.inference.predict import load
from leanmask.inference.pseudo_masks import (
    DATA_FILE,
    QUALITY_FILE,
    OnProgress,
    PseudoJob,
    Rows,
    make_pseudo_masks,
    read_rows,
    write_data,
)
from leanmask.inference.pseudo_points import PointOptions, pseudo_points, require_points
from leanmask.inference.refine import RefineOptions, refine
from leanmask.settings import RunConfig
from leanmask.settling import has_validation

Row = dict[str, Any]
STRONG, WEAK, STRONG_WEAK, REFINED = (f"instances_train_{letter}.json" for letter in ("s", "w", "sw", "sw_refined"))
ONLINE = "instances_train_online.json"
TEACHER_MASKS = "instances_train_w_masks.json"
ROUGH_FILES = {"train": "instances_train_rough.json", "held": "instances_held_rough.json"}
OWN_SPLITS = ("weak", "online", "held")


@dataclass(frozen=True)
class Work:
    """One stage's work: the run's settings and folder, where it goes, and whom to tell."""

    config: RunConfig
    run: Path
    out: Path
    report: OnProgress
    tell: Callable[[str], None]

    @property
    def splits(self) -> dict[str, SplitFiles]:
        return locate(self.config.data.path)

    def train_of(self, folder: Path) -> SplitFiles:
        """The training split of an earlier stage's data set, which has the name that the user's has."""
        return locate(folder)[self.config.data.train_split]


def read_split(work: Work) -> Labels:
    """The user's training data by how it is labelled. Raises DataError when it, or the data to measure on, cannot be
    used.
    """
    data = work.config.data
    measured_on = (data.val_split,) if has_validation(work.splits, data) else ()
    for name in (data.train_split, *measured_on):
        if name in OWN_SPLITS:
            raise DataError(f"split '{name}' of {data.path}: stages write one of this name; call it something else")
        if name not in work.splits:
            raise DataError(f"{data.path} has no split '{name}'{suggest(name, work.splits)}")
        files = work.splits[name]
        if files.annotations is None:
            raise DataError(f"split '{name}' of {data.path} has images but no annotation file")
    files = work.splits[data.train_split]
    assert files.annotations is not None
    store = AnnotationStore.open(files.annotations, files.images, unannotated=data.unannotated)
    return read_labels(files.annotations, store)


def split_labels(work: Work, labels: Labels, point_at: str) -> None:
    """`instances_train_s.json` and `instances_train_w.json` of the user's training data, and both together as they are
    labelled, for an online teacher. See `LabelSplitStage`.
    """
    files = work.splits[work.config.data.train_split]
    unlearned = labels.unlearned_classes()
    if unlearned:
        names = ", ".join(unlearned)
        work.tell(f"no fully labelled image shows {names}: the masks of these classes are class-agnostic guesses")
    strong = with_points(labels, labels.strong, point_at, work.config.train.seed)
    write_json(work.out / STRONG, labels.part(labels.strong, strong), overwrite=True)
    write_json(work.out / WEAK, labels.part(labels.weak, labels.of(labels.weak)), overwrite=True)
    write_json(work.out / ONLINE, with_complete_points(labels, point_at), overwrite=True)
    parts = {"train": work.out / STRONG, "weak": work.out / WEAK, "online": work.out / ONLINE}
    named = {name: SplitFiles(path, files.images, files.truth) for name, path in parts.items()}
    write_data(_with_train(work, named), work.out)


def with_complete_points(labels: Labels, point_at: str) -> Row:
    """The user's training file. Where points are mass centres, weak images are exhaustive: every object has its point
    (as `PointOptions.complete` has it), and what a model leaves out around a point holds every cell that may be the
    object's centre. Of a random point that is not so: the centre's cell would be called background.
    """
    weak = {image["id"] for image in labels.weak if point_at == "centre"}
    images = [{**image, "exhaustive": True} if image["id"] in weak else image for image in labels.content["images"]]
    return {**labels.content, "images": images}


def rough_masks(work: Work, teacher: Path, data: Path, held_fraction: float) -> None:
    """Strong images with a rough mask per kept network for every object. See `RoughMaskStage`."""
    kept = sorted((teacher / KEPT_FOLDER).glob("*.safetensors"))
    if not kept:
        raise RunError(f"{teacher} kept no early weights; rough masks are made by them (train.keep_weights_fractions)")
    files, state = work.train_of(data), start_processes()
    found = []
    for number, weights in enumerate(kept):
        loaded = load(weights, device=str(state.device))
        require_points(loaded, teacher)
        job = PseudoJob({"train": files}, "train", "", state.process_index, state.num_processes, by_point=True)
        make_pseudo_masks(loaded, job, work.out / weights.stem, _later(work.report, number, len(kept)))
        state.wait_for_everyone()
        found.append(read_rows(job.shares(work.out / weights.stem)))
    if state.is_main_process:
        assert files.annotations is not None
        content = read_json(files.annotations)
        write_rough(work, {**content, "annotations": _with_rough(content, found)}, files, held_fraction)
        for weights in kept:
            job.shares(work.out / weights.stem).remove()
            (work.out / weights.stem).rmdir()
    state.wait_for_everyone()


def _with_rough(content: Row, found: Sequence[Rows]) -> list[Row]:
    """The annotations with the masks of every network that found one."""
    rows = []
    for row in content["annotations"]:
        masks = [masks_of[row["id"]]["segmentation"] for masks_of in found if row["id"] in masks_of]
        masks = [mask for mask in masks if coco_mask.area(mask) > 0]
        rows.append({**row, ROUGH: masks} if masks else row)
    return rows


def _later(report: OnProgress, number: int, count: int) -> OnProgress:
    return lambda done, total: report(number * total + done, count * total)


def write_rough(work: Work, content: Row, files: SplitFiles, held_fraction: float) -> None:
    """The data set that a refiner learns from, a share of its images with rough masks, at least one, held back to
    choose the refiner on. Raises RunError when there is no rough mask.
    """
    images, useful = content["images"], {row["image_id"] for row in content["annotations"] if row.get(ROUGH)}
    if not useful:
        raise RunError("no early network found a mask at any point of the fully labelled images; train for longer")
    order = shuffled([image["id"] for image in images if image["id"] in useful], work.config.train.seed, "held")
    held = set(order[: min(count_of(held_fraction, len(order)), len(order) - 1) or len(order)])
    if held == useful:
        work.tell("only one fully labelled image has objects: the refiner is chosen on the one that it learns from")
    chosen = {"train": [i for i in images if held == useful or i["id"] not in held]}
    chosen["held"] = [image for image in images if image["id"] in held]
    named = {}
    for name, part in chosen.items():
        ids = {image["id"] for image in part}
        rows = [row for row in content["annotations"] if row["image_id"] in ids]
        write_json(work.out / ROUGH_FILES[name], {**content, "images": part, "annotations": rows}, overwrite=True)
        named[name] = SplitFiles(work.out / ROUGH_FILES[name], files.images, None)
    write_data(_with_train(work, named), work.out)


def point_masks(work: Work, teacher: Path, data: Path, rule: Literal["one", "published"]) -> None:
    """Strong images and weak ones with the teacher's masks: `instances_train_sw.json`. See `PointMaskStage`."""
    weak, strong, masks = locate(data)["weak"], work.train_of(data), work.out / TEACHER_MASKS
    assert weak.annotations is not None
    assert strong.annotations is not None
    if not masks.is_file():
        options = PointOptions(rule=rule, images=weak.images)
        summary = pseudo_points(teacher, weak.annotations, masks, options, on_progress=work.report)
        work.tell(summary.to_text())
    if start_processes().is_main_process:
        found = {row["id"]: row for row in read_json(masks)["annotations"]}
        whole = {image["id"]: image for image in read_json(masks)["images"]}
        content, more = read_json(strong.annotations), read_json(weak.annotations)
        rows = [row if row.get("segmentation") else {**row, **found.get(row["id"], {})} for row in more["annotations"]]
        images = [whole[image["id"]] for image in more["images"]]
        both = {"images": [*content["images"], *images], "annotations": [*content["annotations"], *rows]}
        _write_student(work, {**content, **both}, STRONG_WEAK)
    start_processes().wait_for_everyone()


def refined_masks(work: Work, refiner: Path, data: Path) -> None:
    """The same with refined masks: `instances_train_sw_refined.json`. See `RefineStage`."""
    files = work.train_of(data)
    assert files.annotations is not None
    made = work.out / f"unmeasured_{REFINED}"
    if not made.is_file():
        # A strong image's mask may say who made it, and is the user's label all the same.
        options = RefineOptions(images=files.images, predicted_only=True, only=weak_ids(work))
        work.tell(refine(files.annotations, refiner, made, options, on_progress=work.report).to_text())
    if start_processes().is_main_process:
        _write_student(work, read_json(made), REFINED)
        made.unlink()
    start_processes().wait_for_everyone()


def _write_student(work: Work, content: Row, name: str) -> None:
    """The data set, and the quality of its predicted masks where the truth is known."""
    files = work.splits[work.config.data.train_split]
    write_json(work.out / name, content, overwrite=True)
    if files.truth is not None:
        ids = weak_ids(work)
        predicted = [row for row in content["annotations"] if row["id"] in ids]
        write_json(work.out / QUALITY_FILE, mask_quality(predicted, files.truth).to_json(), overwrite=True)
    write_data(_with_train(work, {"train": SplitFiles(work.out / name, files.images, files.truth)}), work.out)


def weak_ids(work: Work) -> frozenset[int]:
    """Annotation ids of the objects that the user gave no mask, crowds left out."""
    files = work.splits[work.config.data.train_split]
    assert files.annotations is not None
    rows = read_json(files.annotations)["annotations"]
    return frozenset(row["id"] for row in rows if not row.get("segmentation") and not row.get("iscrowd"))


def _with_train(work: Work, named: Mapping[str, SplitFiles]) -> dict[str, SplitFiles]:
    """The user's splits with the training split exchanged for `named`; the first of these has its name."""
    train = work.config.data.train_split
    others = {name: files for name, files in work.splits.items() if name not in (train, *named)}
    own = {train if name == "train" else name: files for name, files in named.items()}
    return {**own, **others}


def is_done(out: Path) -> bool:
    """Whether a stage that is no training is complete."""
    return (out / DATA_FILE).is_file() or (out / CALIBRATION_FILE).is_file()
