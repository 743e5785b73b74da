"""How long a training will take here: a few real steps, timed. On processors that differ by a factor of ten nothing
else tells.
"""

from __future__ import annotations

import statistics
import time

import torch

from leanmask.data.coco import AnnotationStore
from leanmask.data.dataset import TrainDataset
from leanmask.data.layout import locate
from leanmask.data.loader import BatchSizes, StepLoader
from leanmask.devices import default_device
from leanmask.engine.distributed import everyones, world_size
from leanmask.engine.rng import untouched_rng
from leanmask.engine.step import to_device
from leanmask.settings import RunConfig

TIMED_STEPS = 3  # after one that does not count
SERIAL = 1.2  # threads also wait for each other: seconds by the clock over the work of each on an idle machine

# What a method's training costs, in supervised steps of the same length: forward passes of teachers at a third of a
# step each, unlabelled images beside the labelled ones, and trainings after each other.
METHOD_STEPS = {
    "supervised": 1.0,
    "smoothed": 1.0,
    "maskbooster": 1.4,
    "pldc": 2.4,
    "soft_student": 2.4,
    "self_training": 2.1,
    "guided_distillation": 3.4,
    "pointwssis": 3.0,
    "better_labels": 3.4,
}


FORWARD_SHARE = 1 / 3  # of a supervised step: the forward pass, which is all that an evaluation does with an image


def evaluation_steps(config: RunConfig, images: int) -> float:
    """How many steps of the configured training one evaluation of so many validation images takes as long as; reckoned,
    not measured.
    """
    passes = len(config.evaluation.who) * images / config.train.batch_size
    return FORWARD_SHARE * passes / METHOD_STEPS.get(config.method.name, 1.0)  # type: ignore[attr-defined]


def seconds_per_step(config: RunConfig) -> float:
    """Seconds of one step of the configured method, measured on the data set's own images. Loading takes no part
    in it: it goes on in other processes. Raises DataError where an image cannot be read.
    """
    data, device = config.data, default_device()
    files = locate(data.path)[data.train_split]
    store = AnnotationStore.open(files.annotations, files.images, unannotated=data.unannotated)
    share = -(-config.train.batch_size // world_size())
    with untouched_rng():
        torch.manual_seed(config.train.seed)
        images = TrainDataset(store, data, config.augment, config.train.seed)
        batches = StepLoader(images, None, BatchSizes(share)).iterate(0)
        model = config.build_model(len(store.classes), pretrained=False).to(device).train()
        channels_last = bool(config.train.channels_last)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        spent = []
        for _ in range(1 + TIMED_STEPS):
            views = to_device(next(batches), device, channels_last).labelled
            begun, worked = time.perf_counter(), time.process_time()
            with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
                losses, _ = model(views.strong, views.targets)
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
            model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall, work = time.perf_counter() - begun, time.process_time() - worked
            # What else the machine does now, it may not do later: of a processor the work counts, shared by threads.
            spent.append(wall if device.type != "cpu" else min(wall, SERIAL * work / torch.get_num_threads()))
    factor = METHOD_STEPS.get(config.method.name, 1.0)  # type: ignore[attr-defined]
    return float(statistics.median(everyones(min(spent[1:])))) * factor
