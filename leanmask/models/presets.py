"""Settings that are null take the backbone's own value: published numbers, or smaller ones for `tiny`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = TypeVar("P", bound="DataclassInstance")


def with_own(preset: P, config: BaseModel) -> P:
    """`preset` with those of its fields replaced that `config` has too and that are not null there."""
    own = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(preset)}
    return dataclasses.replace(preset, **{name: value for name, value in own.items() if value is not None})
