"""Checkpoints: everything of a training in one folder, and a model's weights in one file. Written so that a kill or a
full disk at any moment leaves the previous one intact; loading never runs code from the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanmask.engine.rng import RngState
from leanmask.errors import CheckpointError, RunError
from leanmask.methods.base import Method
from leanmask.models.base import Model
from leanmask.version import __version__

FORMAT = 1
CHECKPOINTS = "checkpoints"  # folder of a run
_INDEX = "checkpoint.json"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Live:
    """The living objects that a checkpoint is taken of and restored into."""

    student: Model
    teacher: Model
    optimiser: Optimizer
    method: Method


def save_checkpoint(folder: Path, live: Live, progress: Mapping[str, Any], rng: list[RngState]) -> None:
    """Write `folder`/last, replacing the previous one only when the new one is complete and on the disk.

    progress: plain JSON values (step, best, counters). rng: the random state of every process. Raises RunError when the
    disk is full or may not be written; the previous checkpoint is then still there.
    """
    new = folder / "new"
    try:
        shutil.rmtree(new, ignore_errors=True)  # the rest of a save that was killed
        new.mkdir(parents=True)
        _write_files(new, live, progress, rng)
        _put_in_place(folder, new)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise RunError(
            f"cannot save a checkpoint of step {progress.get('step')} in {folder}: {error.strerror or error}; "
            "the previous checkpoint, if there is one, is intact"
        ) from None


def _write_files(new: Path, live: Live, progress: Mapping[str, Any], rng: list[RngState]) -> None:
    method_state = live.method.state_dict() if hasattr(live.method, "state_dict") else None
    names, rest = _optimised(live), io.BytesIO()
    moments = {names[index]: value for index, value in live.optimiser.state_dict()["state"].items()}
    torch.save({"optimiser": moments, "method": method_state, "rng": rng}, rest)
    index = {
        "format": FORMAT,
        "leanmask": __version__,
        "progress": dict(progress),
        "files": {
            "student.safetensors": _write(new / "student.safetensors", _serialise(live.student, {})),
            "teacher.safetensors": _write(new / "teacher.safetensors", _serialise(live.teacher, {})),
            "rest.pt": _write(new / "rest.pt", rest.getbuffer()),
        },
    }
    _write(new / _INDEX, json.dumps(index, indent=1).encode())
    _sync_folder(new)


def _put_in_place(folder: Path, new: Path) -> None:
    """At every moment `last` or `previous` is a complete checkpoint, once there has been one."""
    last, previous = folder / "last", folder / "previous"
    if last.exists():
        shutil.rmtree(previous, ignore_errors=True)
        last.rename(previous)
    new.rename(last)
    _sync_folder(folder)
    shutil.rmtree(previous, ignore_errors=True)


def has_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint, good or damaged."""
    return _newest(folder) is not None


def _newest(folder: Path) -> Path | None:
    return next((folder / name for name in ("last", "previous") if (folder / name / _INDEX).is_file()), None)


def checkpoint_step(folder: Path) -> int | None:
    """The finished updates of the checkpoint in `folder`; None when there is none. Raises CheckpointError."""
    found = _newest(folder)
    return None if found is None else int(_read_index(found)["progress"]["step"])


def load_checkpoint(folder: Path, live: Live) -> tuple[dict[str, Any], list[RngState]]:
    """Restore the live objects from `folder` and return the progress and the random states as saved.

    Raises CheckpointError when there is none, it is truncated or damaged, of another version, or of another model.
    """
    found = _newest(folder)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    index = _read_index(found)
    contents = {name: _read_checked(found / name, expected) for name, expected in index["files"].items()}
    try:
        student = safetensors.torch.load(bytes(contents["student.safetensors"]))
        teacher = safetensors.torch.load(bytes(contents["teacher.safetensors"]))
        rest = torch.load(io.BytesIO(contents["rest.pt"]), weights_only=True, map_location="cpu")
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{found} cannot be read: {_first_line(error)}") from None
    fit_weights(live.student, student, found / "student.safetensors")
    fit_weights(live.teacher, teacher, found / "teacher.safetensors")
    _fit_optimiser(live, rest["optimiser"], found)
    if hasattr(live.method, "load_state_dict") and rest["method"] is not None:
        live.method.load_state_dict(rest["method"])
    return index["progress"], rest["rng"]


def _read_index(found: Path) -> dict[str, Any]:
    try:
        index = json.loads((found / _INDEX).read_text(encoding="utf-8"))
        version, files = index["format"], index["files"]
        known = isinstance(files, dict) and isinstance(index["progress"]["step"], int)
    except OSError as error:
        raise CheckpointError(f"cannot read {found / _INDEX}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{found / _INDEX} is damaged: it is not the index of a checkpoint") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{found} has checkpoint format {version} (written by leanmask {index.get('leanmask', '?')}); "
            f"leanmask {__version__} reads format {FORMAT}"
        )
    if not known or not {"student.safetensors", "teacher.safetensors", "rest.pt"} <= files.keys():
        raise CheckpointError(f"{found / _INDEX} is damaged: it is not the index of a checkpoint")
    return dict(index)


def _read_checked(path: Path, expected: dict[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint is not complete: cannot read {path}: {error.strerror}") from None
    if len(content) != expected["bytes"]:
        raise CheckpointError(f"{path} is truncated: {len(content)} bytes instead of {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path} is damaged: its content has changed since it was written")
    return content


def _optimised(live: Live) -> list[str]:
    """Names of the optimised parameters in the optimiser's order, which depends on its settings."""
    names = {id(parameter): name for name, parameter in live.student.named_parameters()}
    return [names[id(parameter)] for group in live.optimiser.param_groups for parameter in group["params"]]


def _fit_optimiser(live: Live, moments: dict[str, Any], found: Path) -> None:
    """Moments from the file, settings (weight decay, ...) from the present configuration."""
    names = _optimised(live)
    if moments and moments.keys() != set(names):
        odd = sorted(moments.keys() ^ set(names))[0]
        raise CheckpointError(f"{found} does not fit the optimiser: '{odd}' is optimised in only one of them")
    state = {index: moments[name] for index, name in enumerate(names) if name in moments}
    live.optimiser.load_state_dict({"state": state, "param_groups": live.optimiser.state_dict()["param_groups"]})


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors, atomically.

    Metadata that is not a string is kept as JSON text, as safetensors knows strings only. Raises RunError.
    """
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, _serialise(model, {"format": "pt"} | text))
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"cannot write the weights {path}: {error.strerror or error}; nothing was replaced") from None


def load_weights(path: Path) -> tuple[Weights, dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file. Raises CheckpointError when it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"there are no weights at {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {_first_line(error)}") from None


def weights_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; its tensors are not read. Raises CheckpointError when it is damaged."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {_first_line(error)}") from None


def fit_weights(model: nn.Module, weights: Weights, source: Path) -> None:
    """Copy weights into a model. Raises CheckpointError that names the first tensor that does not fit."""
    own = model.state_dict()
    for name in [*own, *sorted(weights)]:
        if name not in weights:
            raise CheckpointError(f"{source} does not fit the model: it lacks '{name}'")
        if name not in own:
            raise CheckpointError(f"{source} does not fit the model, which has no '{name}'")
        if own[name].shape != weights[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(own[name].shape)
            raise CheckpointError(f"{source} does not fit the model: '{name}' is {found}, the model's is {wanted}")
    model.load_state_dict(weights)


def _serialise(model: nn.Module, metadata: dict[str, str]) -> bytes:
    weights, seen = {}, set()
    for name, value in model.state_dict().items():
        plain = value.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        weights[name] = plain.clone() if place in seen else plain  # the format has no shared tensors
        seen.add(place)
    return bytes(safetensors.torch.save(weights, metadata))


def _write(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    """Write and wait for the disk; the size and checksum that reading will verify."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can (Windows cannot)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
