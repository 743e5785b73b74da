"""What unlabelled images cost: a PL-DC step beside a labelled-only one, and `leanmask pseudo` beside bare inference.

Both on a network that has learnt for a while: what an untrained one predicts is neither as much nor as sure.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from leanmask.benchmark.arms import PRESET, SEMI
from leanmask.benchmark.speed_steps import CPU, on_batch, session_on, stepper, to_cpu
from leanmask.benchmark.turns import in_turns, medians
from leanmask.config import merge
from leanmask.data.dataset import EvalDataset
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.data.layout import locate
from leanmask.data.loader import evaluation_batches
from leanmask.data.photos import Photos
from leanmask.data.splits import split
from leanmask.evaluation.predictions import predict_views
from leanmask.inference.predict import Loaded, load
from leanmask.inference.pseudo_images import PseudoOptions, pseudo, sure_of_class
from leanmask.labels.select import class_quality
from leanmask.methods.pldc import PLDC
from leanmask.models.base import Worth
from leanmask.records import Views
from leanmask.run import train
from leanmask.session import Session

LEARNT_STEPS = 250


def semi_speed(rounds: int = 20, learnt_steps: int = LEARNT_STEPS) -> dict[str, Any]:
    """Seconds of a step with as many unlabelled images as labelled ones and of a step with the labelled ones alone, in
    turns; the ratio of medians. As many pseudo-objects are trusted as the labelled images have; no judge.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits", DigitsSpec(train=128, tune=1, val=1))
        split(folder / "digits", folder / "semi", "semi-50")
        arms = {"labelled": SEMI["baseline"].settings, "semi": SEMI["no_correction"].settings}
        sessions = {arm: session_on(folder / "semi", settings, folder / arm) for arm, settings in arms.items()}
        batches = sessions["semi"].loader.iterate(0)
        semi, steps = sessions["semi"], {arm: stepper(session) for arm, session in sessions.items()}
        for _ in range(learnt_steps):
            steps["labelled"](to_cpu(next(batches)))
        for model in (semi.student, semi.teacher.model):
            model.load_state_dict(sessions["labelled"].student.state_dict())
        trusted = _trust_as_many_as_labelled(semi, to_cpu(next(batches)).unlabelled)
        spent = in_turns(lambda: on_batch(steps, next(batches)), rounds)
    ratio = spent["semi"].median / spent["labelled"].median
    return {**medians(spent), "ratio": ratio, "rounds": rounds, "pseudo_objects": trusted}


def _trust_as_many_as_labelled(session: Session, views: Views | None) -> float:
    """Set the threshold of class quality so that the teacher's pseudo-objects are as many as labelled images have;
    returns how many that are per image.
    """
    assert isinstance(session.method, PLDC)
    assert views is not None
    found = session.teacher.model.predict(views.weak, [frame.content_box for frame in views.frames])
    ordered = torch.cat([class_quality(instances) for instances in found]).sort(descending=True).values
    facts = session.method.facts
    wanted = round(len(views) * sum(facts.objects_per_class) / facts.labelled_images)
    limit = float(ordered[min(wanted, len(ordered)) - 1])
    session.method.fixed = dataclasses.replace(session.method.fixed, class_quality=limit, mask_quality=0.0)
    return wanted / len(views)


def pseudo_speed(images: int = 1024, rounds: int = 3, learnt_steps: int = LEARNT_STEPS) -> dict[str, Any]:
    """Seconds of `leanmask pseudo` on image files, of the network alone on the same images, already decoded, and of the
    network that spares the masks which `pseudo` spares, in turns; ratios of medians, network over everything. One
    loader process.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits", DigitsSpec(train=128, tune=1, val=8, unlabelled=images))
        brief = {"train": {"steps": learnt_steps, "checkpoint_every_steps": learnt_steps}}
        train(folder / "digits", folder / "run", settings=merge(PRESET, merge(SEMI["baseline"].settings, brief)))
        files = sorted(locate(folder / "digits")["unlabelled"].images.iterdir())
        loaded = load(folder / "run")
        dataset = EvalDataset(Photos.find(files, loaded.classes), loaded.config.data)
        batches = list(evaluation_batches(dataset, 8, workers=0))
        outs = (folder / f"{turn}.json" for turn in itertools.count())
        spent = in_turns(
            lambda: {
                "network": partial(_predict, loaded, batches),
                "sparing_network": partial(_predict, loaded, batches, sure_of_class(PseudoOptions().class_quality)),
                "pseudo": partial(pseudo, folder / "run", files, next(outs)),
            },
            rounds,
            warm_up=1,
        )
    shares = {
        "share": spent["network"].median / spent["pseudo"].median,
        "sparing_share": spent["sparing_network"].median / spent["pseudo"].median,
    }
    return {**medians(spent), **shares, "images": len(files), "rounds": rounds}


def _predict(loaded: Loaded, batches: list[Views], worth: Worth | None = None) -> None:
    for views in batches:
        predict_views(loaded.model, views, CPU, loaded.precision, worth)
