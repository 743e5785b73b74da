"""What a run's settings become before it begins: one that depends on the machine or on the data gets its value, so that
`config.yaml` holds every value, and a run goes on as it began wherever it is resumed.
"""

from __future__ import annotations

from typing import Any

from leanmask.config import merge
from leanmask.devices import channels_last, settle_precision, training_device, use_cpu
from leanmask.settings import RunConfig, resolve


def settle(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with nothing left open, and sentences for the user about what was unusual in them. What is settled
    already stays, so a run that goes on can be asked about as well. Raises ConfigError for what this machine cannot do.
    """
    train: dict[str, Any] = {}
    notes: list[str] = []
    if config.train.deterministic is None:
        train["deterministic"] = use_cpu()
    device = training_device()
    train["precision"], note = settle_precision(config.train.precision, device)
    notes += [note] if note else []
    if config.train.channels_last == "auto":
        train["channels_last"] = channels_last(train["precision"], device)
    return resolve(merge(config.model_dump(mode="json"), {"train": train})), tuple(notes)
