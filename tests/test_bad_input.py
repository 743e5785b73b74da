"""The table of docs/running.md, row by row: what goes wrong ends in a sentence, and nothing is lost."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import TINY, Outcome, train

from leanmask.config import merge
from leanmask.engine import checkpoint
from leanmask.errors import CheckpointError, ConfigError, DataError, LeanmaskError, RunError
from leanmask.inference.predict import load
from leanmask.run import resume
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]


@pytest.fixture
def own_copy(sparse: Path, digits: Path, tmp_path: Path) -> Path:
    """A copy of the sparse data set, images included, that a test may damage."""
    out = tmp_path / "data"
    shutil.copytree(digits / "images", out / "images")
    (out / "annotations").mkdir()
    shutil.copy(sparse / "annotations" / "instances_train.json", out / "annotations")
    shutil.copy(digits / "annotations" / "instances_val.json", out / "annotations")
    return out


def edit(data: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_refused(source: Path, out: Path, error: type[LeanmaskError], says: str, **more: Any) -> None:
    """Training refuses, in one or two sentences, before it writes anything."""
    with pytest.raises(error) as found:
        train(source, out, settings=merge(TINY, more))
    assert says in str(found.value)
    assert "\n" not in str(found.value)
    assert not out.exists()


def test_class_in_val_but_not_in_train(own_copy: Path, tmp_path: Path) -> None:
    edit(own_copy, "val", lambda content: content["categories"].append({"id": 99, "name": "eleven"}))
    assert_refused(own_copy, tmp_path / "run", DataError, "'eleven'")


def test_zero_labelled_objects(own_copy: Path, tmp_path: Path) -> None:
    edit(own_copy, "train", lambda content: content.update(annotations=[]))
    assert_refused(own_copy, tmp_path / "run", DataError, "data.unannotated=negative")
    assert_refused(own_copy, tmp_path / "run", DataError, "no labelled object", data={"unannotated": "negative"})


def test_empty_data_set(own_copy: Path, tmp_path: Path) -> None:
    edit(own_copy, "train", lambda content: content.update(annotations=[], images=[]))
    assert_refused(own_copy, tmp_path / "run", DataError, "no images")


def test_images_without_annotations_need_the_users_word(own_copy: Path, tmp_path: Path) -> None:
    def empty_one(content: dict[str, Any]) -> None:
        first = content["images"][0]["id"]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != first]

    edit(own_copy, "train", empty_one)
    assert_refused(own_copy, tmp_path / "run", DataError, "data.unannotated=negative")
    settings = merge(TINY, {"data": {"unannotated": "unlabelled"}, "train": {"steps": 1}})
    assert train(own_copy, tmp_path / "run", settings=settings).steps == 1


def test_corrupted_image_is_replaced_and_named(own_copy: Path, tmp_path: Path) -> None:
    content = json.loads((own_copy / "annotations" / "instances_train.json").read_text())
    broken = own_copy / "images" / content["images"][0]["file_name"]
    broken.write_bytes(broken.read_bytes()[:200])
    # Eight steps of two images are one epoch: the broken one comes up.
    summary = train(own_copy, tmp_path / "run", settings=merge(TINY, {"train": {"steps": 8}}))
    events = [row for row in _journal(summary.folder) if row["kind"] == "event"]
    assert any(broken.name in row["message"] for row in events)


def test_unlabelled_images_without_a_method_for_them(sparse: Path, tmp_path: Path) -> None:
    assert_refused(sparse, tmp_path / "run", ConfigError, "unlabelled", data={"unlabelled": [str(tmp_path)]})


def test_batch_that_cannot_be_accumulated(sparse: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="accumulate"):
        train(sparse, tmp_path / "run", settings=merge(TINY, {"train": {"accumulate": 3}}))


def test_existing_run_folder_is_left_alone(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="never overwritten"):
        train(sparse, tmp_path / "run", settings=TINY)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_no_place_to_write(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot write"):
        train(sparse, tmp_path / "file" / "run", settings=TINY)


def test_disk_full_while_saving_keeps_the_last_checkpoint(
    sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    settings = merge(TINY, {"train": {"steps": 4, "checkpoint_every_steps": 2}})

    written: list[Path] = []

    def write(path: Path, content: Any) -> dict[str, Any]:
        written.append(path)
        if sum(file.name == path.name for file in written) == 2:  # the second checkpoint meets the full disk
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, content)

    original = checkpoint._write
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_write", write)
        with pytest.raises(RunError, match="No space left"):
            train(sparse, folder, settings=settings)
    assert resume(folder).steps == 4


def test_truncated_weights(trained: TrainSummary, tmp_path: Path) -> None:
    content = (trained.folder / "best.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        load(tmp_path / "cut.safetensors")


def test_weights_of_another_program(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match="not written by leanmask"):
        load(tmp_path / "other.safetensors")


def test_run_folder_of_another_version(trained: TrainSummary, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["train"]["from_the_future"] = 1
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="from_the_future"):
        resume(tmp_path / "run")


def test_results_of_other_images(leanmask: Cli, digits: Path, tmp_path: Path) -> None:
    row = {"image_id": 12345, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}
    row["segmentation"] = {"size": [64, 64], "counts": "PPo0"}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    outcome = leanmask("evaluate", tmp_path / "results.json", digits)
    assert outcome.code == 2
    assert "12345" in outcome.err


def test_results_file_that_is_no_list(leanmask: Cli, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"a": 1}')
    outcome = leanmask("evaluate", tmp_path / "results.json", digits)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_annotation_file_that_is_no_json(own_copy: Path, tmp_path: Path) -> None:
    (own_copy / "annotations" / "instances_train.json").write_text("{")
    assert_refused(own_copy, tmp_path / "run", DataError, "instances_train.json")


def _journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
