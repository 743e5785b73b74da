"""What each row of a benchmark table is: protocol, method and settings. Chosen on `tune`, reported on `val`.

One preset for all protocols, so that arms are shared between tables (`full` is trained once per seed and model). The
baseline of a method differs from it in the method alone; `baseline` of the sparse protocols is the published one (no
strong view, the student is evaluated), `ema_aug` adds the strong view and evaluates the EMA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanmask.benchmark.handwriting import OUTSIDE_KNOWLEDGE
from leanmask.config import apply_overrides, merge
from leanmask.data.withholding.protocols import FORMS, parse_protocol
from leanmask.errors import ConfigError, suggest

USUAL_MODEL = "mask_rcnn"

# Of digits: sized so that a supervised run takes about two minutes on one core, teacher and student about three.
PRESET: dict[str, Any] = {
    "model": {"name": "mask_rcnn", "backbone": "lite0"},
    "data": {"image_size": 128, "workers": 1},
    # The published blur, up to 2 px, is for images of about 800 px; on `tune` at 128 px, from scratch, it took 6 points
    # of box AP and 4 of mask AP from MaskBooster (benchmarks/results/from-scratch/tune-sparse-0.4.json).
    "augment": {"scale_jitter": [0.8, 1.25], "blur_radius_px": [0.1, 0.5]},
    "optim": {"optimiser": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup_steps": 50, "clip_norm": 5.0},
    "train": {"steps": 400, "batch_size": 8, "checkpoint_every_steps": 250, "log_every_steps": 25},
}

# Of a user's data: the plan's choices but for these, which an arm makes.
OWN_DATA: dict[str, Any] = {
    "method": {"name": "supervised"},
    "augment": {"copy_paste_probability": 0.0},
    "train": {"checkpoint_every_steps": 250, "log_every_steps": 25, "eval_every_steps": 0},
    "evaluation": {"pictures": 0},
}
# Of the supervised training, on all cores: the dearest one of a table, PL-DC with as many unlabelled images, takes 2.4
# times as long and is to stay under six. What solov2 is for are stages, each of which is a supervised training.
PLAN_MINUTES, SOLOV2_MINUTES = 2.5, 5.0


# CopyPaste into every image where few images, or objects, have masks; in every arm but the upper bound and the plain
# baseline. MaskBooster has it where masks are rarest alone (COCO 0.1 %, 860 masks); 10 % of digits are 395 masks, and a
# step of eight images sees three of them. With so few, boxes and masks fall behind together: on `tune` at sparse-10,
# mask and box AP are 26.7 and 34.9 without pasting, 32.4 and 40.1 with half of the images pasted into, 34.3 and 42.5
# with all (from-scratch/tune-sparse-10.json); at semi-5, mask AP 21.7 without and 27.8 with it, for SOLOv2 25.7
# and 33.1 (tune-semi-5.json, tune-weak-semi-5.json there). Where all masks are there it did not help. All from scratch.
PASTED_UP_TO_PERCENT = 10.0
COPY_PASTE = {"augment": {"copy_paste_probability": 1.0}}
UNPASTED = "unpasted"


@dataclass(frozen=True)
class Arm:
    """One row: settings on top of the preset, which network is reported, and on what split it trains (None = the
    protocol's). run_of, stage: the arm whose run, of several trainings, has this one's as its first ones, and the last
    of them; it is that arm's settings that are trained, once for both.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    who: str = "teacher"
    protocol: str | None = None
    run_of: str | None = None
    stage: str | None = None

    def note(self, overrides: Sequence[str] = ()) -> dict[str, str]:
        """{"note": a sentence} where the numbers depend on knowledge from outside the data; otherwise nothing."""
        told = apply_overrides(self.settings, overrides)
        return {"note": OUTSIDE_KNOWLEDGE} if told.get("method", {}).get("judge") == JUDGE else {}


def _maskbooster(**settings: Any) -> dict[str, Any]:
    return {"method": {"name": "maskbooster", **settings}}


SPARSE: dict[str, Arm] = {
    "baseline": Arm({"method": {"name": "supervised"}, "augment": {"strong": False}}, who="student"),
    "ema_aug": Arm({"method": {"name": "supervised"}}),
    "binary": Arm(_maskbooster(soft_weight=0.0)),
    "soft": Arm(_maskbooster(binary_weight=0.0)),
    "maskbooster": Arm(_maskbooster()),
    "full": Arm({"method": {"name": "supervised"}}, protocol="full"),
}

# points-N. self_training is two trainings of that length.
POINTS: dict[str, Arm] = {
    "points": Arm({"method": {"name": "supervised"}, "model": {"points_kept": 1.0}}),
    "points_subsampled": Arm({"method": {"name": "supervised"}, "model": {"points_kept": 0.5}}),
    "self_training": Arm({"method": {"name": "self_training"}}),
    "full": SPARSE["full"],
}

# semi-P. What corrects categories here has seen real handwriting that neither train nor val uses: outside knowledge,
# which the rows say of themselves. On a user's data nobody corrects.
JUDGE = "python:leanmask.benchmark.handwriting:handwriting_judge"


# Chosen on `tune` of digits at 5 % (from-scratch/tune-semi-5.json). Networks from scratch learn where objects are long
# before what they are, so pseudo-labels start late, and at first the judge alone says what they are. As the judge mends
# classes, the teacher need not be sure of them: mask AP 37.9, 35.5 with the thresholds of UNJUDGED. Without a judge it
# is the other way round: 27.4 and 31.3. Without pseudo-labels: 27.8.
_TUNED = {"burn_in_fraction": 0.4, "judge": JUDGE, "judge_share": 1.0, "class_quality": 0.5, "mask_quality": 0.7}
UNJUDGED = {"judge": None, "class_quality": 0.7, "mask_quality": 0.8}


def _pldc(**settings: Any) -> dict[str, Any]:
    return {"method": {"name": "pldc", **_TUNED, **settings}}


SEMI: dict[str, Arm] = {
    UNPASTED: Arm({"method": {"name": "supervised"}}),
    "baseline": Arm({"method": {"name": "supervised"}}),
    "pldc": Arm(_pldc()),
    "no_thresholds": Arm(_pldc(filter="coupled")),
    "no_correction": Arm(_pldc(**UNJUDGED)),
    "no_uncertainty": Arm(_pldc(pixel_weight="none")),
    "guided_distillation": Arm({"method": {"name": "guided_distillation"}}),
    "full": SPARSE["full"],
}

# weak-semi-P. Every training of an arm has the preset's steps (the refiner's too; `online` half of them more), so a
# student has as many as `baseline` and `full`, after a teacher with as many. One run makes three rows: `baseline` is
# its teacher, and `online` goes on where `pointwssis` ends.
_ONLINE = {"method": {"name": "pointwssis", "online": True}}
WEAK_SEMI: dict[str, Arm] = {
    UNPASTED: Arm({"method": {"name": "supervised"}, "data": {"train_split": "strong"}}),
    "baseline": Arm(_ONLINE, run_of="online", stage="teacher"),
    "rough": Arm({"method": {"name": "pointwssis", "refine": False}}),
    "pointwssis": Arm(_ONLINE, run_of="online", stage="student"),
    "online": Arm(_ONLINE),
    "full": SPARSE["full"],
}


# longtail: digits whose classes have a long tail, with unlabelled images; measured by LVIS's protocol. Repeat-factor
# sampling in every arm, as on LVIS: its threshold of 0.001 is ten times the share of the images that a rare class is
# on, which is 0.1 here. On `tune`, supervised, it takes APr from 7.9 to 22.0 and AP from 28.0 to 33.9; pasting beside
# it brings nothing, 18.9 and 33.6 (from-scratch/tune-longtail.json).
LONGTAIL_PROTOCOL = "longtail"
_LVIS = {"evaluation": {"protocol": "lvis", "calibration": True}, "data": {"repeat_threshold": 0.1}}


# On `tune`, from scratch, the published student falls behind supervised training (AP 31.3 and APr 17.9, 33.9 and 22.0):
# it learns that rare digits are the frequent ones they look like, of which its teacher is sure. Without the labels'
# frequencies in its targets (how far was read off from-scratch/longtail_prior.json) it reaches 35.5 and 26.4, and 37.2
# and 29.2 where the teacher's labels are not smoothed. They are the frequencies of a teacher that saw nothing else, so
# it stays as it is till late.
def _better(**settings: Any) -> Arm:
    return Arm(merge({"method": {"name": "better_labels", "frozen_fraction": 0.9, **settings}}, _LVIS))


def _smoothed(**settings: Any) -> Arm:
    return Arm(merge({"method": {"name": "smoothed", **settings}}, _LVIS))


# `soft` calibrates nothing, so its teacher has all labels, as `frequency` has.
_SOFT = _better(calibrate=False)
LONGTAIL: dict[str, Arm] = {
    "baseline": Arm(merge({"method": {"name": "supervised"}}, _LVIS)),
    "uniform": _smoothed(smoothing="uniform"),
    "similarity": _smoothed(gamma=0.0),
    "frequency": dataclasses.replace(_SOFT, run_of="soft", stage="teacher"),
    "one_hot": _better(targets="one_hot", calibrate=False),
    "soft": _SOFT,
    "better_labels": _better(),
    "adjusted": _better(logit_adjustment=0.75, smoothing="none"),
}


@dataclass(frozen=True)
class Arms:
    """The rows of the tables of one kind of protocol, in order. model: what they train where none is named. unpasted:
    the rows without CopyPaste where few masks or images are labelled; None = all. metrics: columns.
    """

    rows: dict[str, Arm]
    model: str = USUAL_MODEL
    unpasted: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ("AP", "AP50", "AP75")


# By what a protocol is called, with a letter for its number.
TABLES: dict[str, Arms] = {
    "sparse-R": Arms(SPARSE, unpasted=("baseline", "full")),
    "points-N": Arms(POINTS),
    "semi-P": Arms(SEMI, unpasted=(UNPASTED, "full")),
    "weak-semi-P": Arms(WEAK_SEMI, model="solov2", unpasted=(UNPASTED, "full")),
    LONGTAIL_PROTOCOL: Arms(LONGTAIL, model="cascade_mask_rcnn", metrics=("AP", "APr", "APc", "APf", "ECE")),
    "full": Arms({"full": SPARSE["full"]}),
}


def model_of(protocol: str) -> str:
    """The model of a protocol's table, where none is named. Raises as `arms_of`."""
    return _table(protocol)[0].model


def _unjudged(arms: dict[str, Arm]) -> dict[str, Arm]:
    """Arms on data whose classes the handwriting judge knows nothing of; `no_correction` would be `pldc` again."""
    return {
        name: dataclasses.replace(arm, settings=merge(arm.settings, {"method": UNJUDGED})) if arm.note() else arm
        for name, arm in arms.items()
        if name != "no_correction"
    }


def arms_of(protocol: str, own_data: bool = False) -> dict[str, Arm]:
    """The rows of a protocol's table, in order. own_data: on a user's data set, where no judge is at hand. Raises
    ConfigError for a protocol that has none, DataError for one whose number cannot be.
    """
    table, amount = _table(protocol)
    rows = _unjudged(table.rows) if own_data else table.rows
    return rows if table.unpasted is None else _pasted(rows, amount, but=table.unpasted)


def metrics_of(protocol: str) -> tuple[str, ...]:
    """The columns of a protocol's table, or the usual ones where it has none."""
    table = TABLES.get(_form(protocol))
    return table.metrics if table else Arms.metrics


def in_order(protocol: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measured rows in the order of the protocol's table; those of arms that it has not come after them."""
    table = TABLES.get(_form(protocol))
    names = list(table.rows) if table else []
    return sorted(rows, key=lambda row: names.index(row["arm"]) if row["arm"] in names else len(names))


def _table(protocol: str) -> tuple[Arms, float]:
    """A protocol's table and the number in its name."""
    form = _form(protocol)
    if form not in TABLES:
        raise ConfigError(f"no benchmark table for '{protocol}'{suggest(protocol, TABLES)}")
    return TABLES[form], 0.0 if form == LONGTAIL_PROTOCOL else parse_protocol(protocol).amount


def _form(protocol: str) -> str:
    """A protocol's name with a letter for its number, as it stands in `TABLES` if it has a table."""
    return FORMS.get(protocol.rpartition("-")[0] or protocol, protocol)


def _pasted(arms: dict[str, Arm], percent: float, but: Sequence[str]) -> dict[str, Arm]:
    """With CopyPaste in all arms but these, where no more than `percent` of the masks or images are labelled;
    otherwise as they are, and no row of its own for what is not pasted into.
    """
    if percent > PASTED_UP_TO_PERCENT:
        return {name: arm for name, arm in arms.items() if name != UNPASTED}
    return {
        name: arm if name in but else dataclasses.replace(arm, settings=merge(arm.settings, COPY_PASTE))
        for name, arm in arms.items()
    }
