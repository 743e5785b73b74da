"""A tiny network, method and stream of images for the tests of the engine; run as a script it is one training."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanmask.config import OptimConfig, TrainConfig
from leanmask.distributed import global_count
from leanmask.engine.journal import NAME
from leanmask.engine.teacher import Teacher
from leanmask.engine.trainer import Job, TrainResult, train
from leanmask.geometry import Frame
from leanmask.methods.base import EmaConfig, Method, StepLosses, TrainingFacts
from leanmask.models.base import Content, Model, Worth, finite_zero
from leanmask.records import Batch, Instances, MaskPredictions, Proposals, Target, Views

SIZE_PX = 8


class FakeModel(Model):
    """Two convolutions, a norm and a dropout; classifies the pixel in the middle of each object's box."""

    num_classes = 3

    def __init__(self, norm: str = "batch", dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(8) if norm == "batch" else nn.GroupNorm(2, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(8, 3, 1)

    def features(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(F.relu(self.norm(self.backbone(images)))))

    def forward(self, images: Tensor, targets: Sequence[Target]) -> tuple[dict[str, Tensor], MaskPredictions]:
        scores = self.features(images).float()
        total = sum((self.loss_of(scores[i], target) for i, target in enumerate(targets)), scores.new_zeros(()))
        count = torch.tensor(float(sum(len(target.instances) for target in targets)))
        class_loss = total / global_count(count).clamp(min=1)
        images_count = global_count(torch.tensor(float(len(targets))))
        losses = {
            "class": class_loss + finite_zero(self),
            "flat": 0.01 * scores.square().mean((1, 2, 3)).sum() / images_count,
        }
        return losses, self.predict_masks(images[:0], no_proposals())

    def loss_of(self, scores: Tensor, target: Target) -> Tensor:
        centres = (target.instances.boxes[:, :2] + target.instances.boxes[:, 2:]).div(2).long()
        picked = scores[:, centres[:, 1], centres[:, 0]].T
        return F.cross_entropy(picked, target.instances.categories, reduction="sum")

    def predict(self, images: Tensor, content: Content | None = None, worth: Worth | None = None) -> list[Instances]:
        return [Instances.empty() for _ in images]

    def predict_masks(self, images: Tensor, proposals: Proposals) -> MaskPredictions:
        empty = torch.zeros(0, dtype=torch.int64)
        return MaskPredictions(
            image_index=empty,
            boxes=torch.zeros(0, 4),
            object_index=empty,
            categories=empty,
            logits=torch.zeros(0, 1, 2, 2),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.backbone.parameters())


def no_proposals() -> Proposals:
    empty = torch.zeros(0, dtype=torch.int64)
    return Proposals(image_index=empty, boxes=torch.zeros(0, 4), object_index=empty, categories=empty)


class FakeMethod(Method):
    """Labels, agreement with the teacher, noise from every random generator, and a memory of its own."""

    Config = EmaConfig

    def __init__(self, steps: int, noise: bool = True, keep: float = 0.9) -> None:
        super().__init__(EmaConfig(ema_keep=keep), TrainingFacts(steps))
        self.noise = noise
        self.seen = torch.zeros(())

    def losses(self, student: Model, teacher: Model, batch: Batch, step: int) -> StepLosses:
        assert isinstance(student, FakeModel)
        assert isinstance(teacher, FakeModel)
        losses, _ = student(batch.labelled.strong, batch.labelled.targets)
        images = batch.labelled.weak if batch.unlabelled is None else batch.unlabelled.weak
        with torch.no_grad():
            wanted = teacher.features(images).float()
        said = student.features(images).float()
        share = global_count(torch.tensor(float(len(images))))
        losses["agree"] = (said - wanted).square().mean((1, 2, 3)).sum() / share * self.factor()
        self.seen = self.seen + losses["agree"].detach()
        return StepLosses(losses, {"pseudo_objects": 2.0, "teacher_score": wanted.sigmoid().mean(), "seen": self.seen})

    def factor(self) -> float:
        if not self.noise:
            return 0.5
        return random.random() + float(np.random.rand()) + float(torch.rand(()))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def fake_views(count: int, seed: int, objects: Callable[[int], int] = lambda image: image % 3) -> Views:
    """`count` random images; image i has `objects(i)` objects."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, SIZE_PX, SIZE_PX, generator=generator)
    targets = []
    for image in range(count):
        number = objects(image)
        corners = torch.rand(number, 2, generator=generator) * (SIZE_PX - 3)
        instances = Instances(
            boxes=torch.cat([corners, corners + 2], dim=1),
            categories=torch.randint(0, 3, (number,), generator=generator),
            supervision=torch.full((number,), 2),
            weights=torch.ones(number),
        )
        targets.append(Target(instances=instances, ignore=torch.zeros(0, 4)))
    frame = Frame((SIZE_PX, SIZE_PX), (SIZE_PX, SIZE_PX), (1.0, 1.0), (0.0, 0.0))
    return Views(
        weak=images,
        strong=images,
        targets=tuple(targets),
        frames=(frame,) * count,
        image_ids=tuple(range(count)),
        files=tuple(f"images/{seed}_{i}.png" for i in range(count)),
    )


def fake_batches(start_step: int) -> Iterator[Batch]:
    """An endless stream that depends on the step alone, though it draws from the global generator, as loaders do."""
    torch.rand(3)
    step = start_step
    while True:
        torch.rand(1)
        yield Batch(labelled=fake_views(4, seed=step), unlabelled=fake_views(2, seed=10_000 + step))
        step += 1


def fake_ap(model: Model) -> float:
    """A number in [0, 1] that depends on every weight."""
    return float(torch.stack([p.detach().double().abs().mean() for p in model.parameters()]).mean()) % 1.0


def make_job(folder: Path, **changes: Any) -> Job:
    """A job whose networks and random streams are the same every time. Settings of TrainConfig are changed by name."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    student = changes.pop("student", None) or FakeModel()
    own = {name: changes.pop(name) for name in list(changes) if name in Job.__dataclass_fields__}
    teacher = Teacher(student)
    settings = {
        "precision": "bf16",
        "channels_last": True,
        "steps": 4,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
        "batch_size": 4,
    } | changes

    def evaluate(step: int) -> dict[str, dict[str, float]]:
        torch.rand(5)
        student.eval()
        return {"student": {"AP": fake_ap(student)}, "teacher": {"AP": fake_ap(teacher.model)}}

    defaults: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "method": FakeMethod(settings["steps"]),
        "batches": fake_batches,
        "evaluate": evaluate,
        "folder": folder,
        "train": TrainConfig(**settings),
        "optim": OptimConfig(warmup_steps=3, lr=0.01),
        "describe": {"classes": {"names": ["a", "b", "c"]}, "licence": "Apache-2.0"},
    }
    return Job(**(defaults | own))


def read_lines(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The journal's lines, of one kind or all."""
    lines = [json.loads(line) for line in (folder / NAME).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def everything(job: Job) -> dict[str, Tensor]:
    """All weights and buffers of student and teacher."""
    student = {f"student.{name}": value for name, value in job.student.state_dict().items()}
    return student | {f"teacher.{name}": value for name, value in job.teacher.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def main(folder: Path, steps: int, pause_seconds: float) -> TrainResult:
    """One slow training, to be killed from outside and resumed."""
    torch.use_deterministic_algorithms(True)

    def slow_batches(start_step: int) -> Iterator[Batch]:
        for batch in fake_batches(start_step):
            time.sleep(pause_seconds)
            yield batch

    job = make_job(folder, steps=steps, checkpoint_every_steps=3, eval_every_steps=10, batches=slow_batches)
    return train(job, resume=(folder / NAME).exists())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
