"""What a backbone is to be, before it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

NormName = Literal["frozen_batch", "batch", "group"]


@dataclass(frozen=True)
class BackboneSpec:
    """What to build. name: one of ours or torchvision's, or timm:NAME. trainable_layers: 0 to 5 stages from the top
    that learn, 5 = all with the stem. options: further arguments of timm's model. window, global_blocks: of plain
    vision transformers, see `PlainTransformer`.
    """

    name: str
    norm: NormName | None
    channels: int
    trainable_layers: int
    options: tuple[tuple[str, Any], ...] = ()
    window: int | None = None
    global_blocks: tuple[int, ...] | None = None
