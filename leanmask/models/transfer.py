"""What a network takes of another one of its kind that was trained for other classes: all of it but the classes that
the other does not know, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leanmask.models.base import ClassAxes, Model

NAMES_TOLD = 8


@dataclass(frozen=True)
class Transfer:
    """What was taken. kept, fresh: classes of the network that the other one knows, and does not. left: classes of the
    other one alone. other_size: parameters that start fresh, as the other one has none of this name and size.
    """

    kept: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    other_size: tuple[str, ...]

    def to_text(self) -> str:
        """As the parts of a sentence."""
        if not self.kept:
            parts = [f"no class has a name that it knows, so all start fresh: {_some(self.fresh)}"]
        elif self.fresh:
            parts = [f"kept classes: {_some(self.kept)}", f"classes that start fresh: {_some(self.fresh)}"]
        else:
            parts = [f"its classes are kept: {_some(self.kept)}"]
        if self.left and self.kept:
            parts.append(f"not in these data: {_some(self.left)}")
        if self.other_size:
            parts.append(f"parameters that start fresh, as theirs have another size: {_some(self.other_size)}")
        return "; ".join(parts)


def transfer_weights(model: Model, names: Sequence[str], source: Model, source_names: Sequence[str]) -> Transfer:
    """Copy what fits of the parameters and buffers of `source` into `model`: of those that belong to classes in part,
    the parts of classes with the same name, wherever these stand in the two lists.

    names, source_names: the classes of both, in the order of their indices.
    """
    kept = [name for name in names if name in source_names]
    pairs = [(list(names).index(name), list(source_names).index(name)) for name in kept]
    own, theirs = model.state_dict(), source.state_dict()
    own_axes, their_axes = model.class_axes(), source.class_axes()
    unfit = []
    for name, value in own.items():
        axes, other_axes = own_axes.get(name, {}), their_axes.get(name, {})
        if name not in theirs or axes.keys() != other_axes.keys():
            unfit.append(name)
            continue
        into = _places(value, axes, [pair[0] for pair in pairs])
        taken = _places(theirs[name], other_axes, [pair[1] for pair in pairs])
        if [len(each) for each in into] != [len(each) for each in taken]:
            unfit.append(name)
        elif axes:
            value[torch.meshgrid(*into, indexing="ij")] = theirs[name][torch.meshgrid(*taken, indexing="ij")]
        else:
            value.copy_(theirs[name])
    return Transfer(
        kept=tuple(kept),
        fresh=tuple(name for name in names if name not in source_names),
        left=tuple(name for name in source_names if name not in names),
        other_size=tuple(unfit),
    )


def _places(value: Tensor, axes: ClassAxes, classes: Sequence[int]) -> list[Tensor]:
    """The positions along each dimension that are taken: those of no class, then those of `classes`, in their order."""
    places = []
    for dimension, size in enumerate(value.shape):
        every = torch.arange(size)
        if dimension in axes:
            owned = axes[dimension]
            nobodys = every[~torch.isin(every, owned)]
            every = torch.cat([nobodys, owned[list(classes)].reshape(-1)])
        places.append(every)
    return places


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_TOLD])
    return f"{shown} and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else shown
