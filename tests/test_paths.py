"""One path or text, a list, a mixture, a generator: accepted wherever several are; and their opposites."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from run_helpers import TINY, Outcome, train

import leanmask as api
from leanmask.annotate.work import AnnotateOptions
from leanmask.benchmark.table import BenchOptions
from leanmask.config import DataConfig, apply_overrides, as_overrides, as_settings
from leanmask.data.withholding.protocols import SplitOptions
from leanmask.errors import ConfigError, DataError
from leanmask.inference.predict import PredictOptions
from leanmask.paths import as_paths, as_texts
from leanmask.retrieval.retrieve import RetrieveOptions, _pool_files
from leanmask.suggestions import SuggestOptions
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]


class Broken(Exception):
    """What a user's own generator raises."""


def breaking(*first: Any) -> Iterator[Any]:
    yield from first
    raise Broken


@pytest.fixture
def photos(digits: Path, tmp_path: Path) -> Path:
    """Two photographs in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((digits / "images").rglob("*.*g"))[:2]):
        shutil.copy(path, folder / f"{number}{path.suffix}")
    return folder


def test_one_or_several() -> None:
    assert as_paths("a/b") == as_paths(Path("a/b")) == as_paths(["a/b"]) == as_paths(iter(("a/b",))) == [Path("a/b")]
    assert as_paths(["a", Path("b")]) == [Path("a"), Path("b")]
    assert as_paths([]) == []
    assert as_texts("a=1") == as_texts(("a=1",)) == as_texts(each for each in ["a=1"]) == ["a=1"]


@pytest.mark.parametrize("given", [3, None, b"a", [3], ["a", None], [b"a"], {"a": 1}.values()])
def test_what_is_no_path_is_a_sentence(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no path|is neither one nor several paths"):
        as_paths(given)


@pytest.mark.parametrize("given", ["", " ", [""], ["a", ""]])
def test_an_empty_path_is_not_the_current_folder(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"a path is empty; write \. for the current folder"):
        as_paths(given)
    with pytest.raises(ConfigError, match="is no text"):
        as_texts([3])


@pytest.mark.parametrize("how", [str, Path, lambda path: [str(path)], lambda path: iter([path])])
def test_predict_takes_one_path_a_list_or_a_generator(
    trained: TrainSummary, photos: Path, tmp_path: Path, how: Callable[[Path], Any]
) -> None:
    options = PredictOptions(overlays=False)
    assert api.predict(str(trained.folder), how(photos), str(tmp_path / "out"), options).images == 2
    image = next(photos.iterdir())
    assert api.predict(trained.folder, how(image), tmp_path / "one", options).images == 1


def test_pseudo_and_reports_take_them_too(trained: TrainSummary, photos: Path, tmp_path: Path) -> None:
    one, other = sorted(photos.iterdir())
    assert api.pseudo(str(trained.folder), str(one), str(tmp_path / "a.json")).images == 1
    assert api.pseudo(trained.folder, (each for each in (str(one), other)), tmp_path / "b.json").images == 2
    assert api.write_report(str(trained.folder), str(tmp_path / "a.html")).is_file()
    assert len(_pool_files(as_paths(str(photos)))) == len(_pool_files([photos, photos])) == 2
    with pytest.raises(DataError, match="no images: none is named"):
        api.predict(trained.folder, [], tmp_path / "none")


def test_a_generator_that_raises_leaves_nothing(
    trained: TrainSummary, photos: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    for call in (
        lambda: api.predict(trained.folder, breaking(photos), out),
        lambda: api.pseudo(trained.folder, breaking(photos), out),
        lambda: api.write_report(breaking(trained.folder), out),
        lambda: api.retrieve(digits, breaking(photos), out),
        lambda: api.train(digits, out, overrides=breaking("train.steps=1")),
        lambda: api.plan(digits, overrides=breaking("train.steps=1")),
    ):
        with pytest.raises(Broken):
            call()
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("overrides", ["train.steps=7", ["train.steps=7"], iter(["train.steps=7"])])
def test_overrides_are_one_or_several(digits: Path, tmp_path: Path, overrides: Any) -> None:
    assert api.plan(str(digits), overrides=overrides).settings["train"]["steps"] == 7


def test_overrides_and_settings_of_a_training(digits: Path, photos: Path, tmp_path: Path) -> None:
    settings = TINY | {"method": "supervised"}
    run = tmp_path / "run"
    assert train(str(digits), str(run), settings=settings, overrides="train.steps=1").steps == 1
    unlabelled = as_settings({"data": {"unlabelled": (each for each in [photos])}})
    assert unlabelled == {"data": {"unlabelled": [str(photos)]}}, "it can be read more than once"
    assert DataConfig(path="x", unlabelled=str(photos)).unlabelled == (str(photos),)
    with pytest.raises(ConfigError, match="settings must be a mapping or a YAML file, found int"):
        train(digits, tmp_path / "other", settings=3)


def test_options_take_one_for_several_and_texts_for_paths() -> None:
    assert RetrieveOptions(classes="cat", index="folder").classes == ("cat",)
    assert RetrieveOptions(index="folder").index == Path("folder")
    assert BenchOptions(arms="full", overrides=["a=1"], work="runs").arms == ("full",)
    assert BenchOptions(work="runs").work == Path("runs")
    assert AnnotateOptions(classes="cat", annotators=iter(["ann"])).annotators == ("ann",)
    assert SplitOptions(mask_classes="cat").mask_classes == ("cat",)
    assert SuggestOptions(hours=1, run="runs/a").run == Path("runs/a")


@pytest.mark.parametrize(
    "call",
    [
        lambda path, out: api.predict(path, "", out),
        lambda path, out: api.predict("", path, out),
        lambda path, out: api.predict(path, path, ""),
        lambda path, out: api.pseudo(path, "", out),
        lambda path, out: api.write_report("", out),
        lambda path, out: api.train("", out),
        lambda path, out: api.train(path, ""),
        lambda path, out: api.plan(""),
        lambda path, out: api.check(""),
        lambda path, out: api.resume(""),
    ],
)
def test_no_empty_path_is_read_as_the_current_folder(
    call: Callable[[Path, Path], Any], trained: TrainSummary, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a path is empty"):
        call(trained.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_argument_of_the_command_is_refused(leanmask: Cli, trained: TrainSummary, tmp_path: Path) -> None:
    done = leanmask("predict", trained.folder, "", "--out", tmp_path / "out")
    assert done.code == 2
    assert "argument 3 of the command is empty" in done.err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_a_sentence(trained: TrainSummary, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jpg does not exist"):
        api.predict(trained.folder, str(tmp_path / "nowhere.jpg"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overrides_are_also_a_mapping() -> None:
    assert as_overrides({"train.steps": 3, "data.unlabelled": [Path("a"), "b"], "model.weights": None}) == [
        "train.steps=3",
        'data.unlabelled=["a", "b"]',
        "model.weights=null",
    ]
    assert as_overrides("train.steps=3") == as_overrides({"train.steps": 3}) == ["train.steps=3"]
    assert apply_overrides({}, as_overrides({"model.weights": "a b.pth", "augment.scale_jitter": [0.8, 1.25]})) == {
        "model": {"weights": "a b.pth"},
        "augment": {"scale_jitter": [0.8, 1.25]},
    }
    with pytest.raises(ConfigError, match="a value that no setting has"):
        as_overrides({"train.steps": object()})


@pytest.mark.parametrize("name", [name for name in api.__all__ if name.endswith("Options")])
def test_every_field_of_options_refuses_what_cannot_be(name: str) -> None:
    kind = getattr(api, name)
    needed = {"hours": 1.0} if name == "SuggestOptions" else {}
    settled = kind(**needed)
    for field in dataclasses.fields(kind):
        with pytest.raises(ConfigError, match=r".+"):
            kind(**{**needed, field.name: object()})
        value = getattr(settled, field.name)
        if type(value) in (int, float):
            for wrong in (math.nan, -2, "1", True):
                with pytest.raises(ConfigError, match=field.name):
                    kind(**{**needed, field.name: wrong})


def test_a_dict_is_no_options_and_a_number_no_path(digits: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "out", cast(Any, {"score": 0.3})
    for call in (
        lambda: api.predict("run", "photos", out, given),
        lambda: api.evaluate("run", digits, options=given),
        lambda: api.pseudo("run", "photos", out, given),
        lambda: api.pseudo_points("run", "points.json", out, given),
        lambda: api.refine("masks.json", "run", out, given),
        lambda: api.retrieve(digits, "photos", out, given),
        lambda: api.suggest(digits, given),
        lambda: api.convert(digits, out, given),
        lambda: api.split(digits, out, "boxes", options=given),
        lambda: api.bench("full", given),
        lambda: api.annotate_data(digits, given),
        lambda: api.export_annotations(digits, None, given),
    ):
        with pytest.raises(ConfigError, match=r"options must be leanmask\.\w+Options\(\.\.\.\), found dict"):
            call()
    number = cast(Any, 5)
    for call in (
        lambda: api.train(number, out),
        lambda: api.plan(number),
        lambda: api.check(number),
        lambda: api.check(digits, fix=number),
        lambda: api.split(digits, number, "boxes"),
        lambda: api.budget(number),
        lambda: api.suggest(number, api.SuggestOptions(hours=1)),
        lambda: api.convert(number, out),
        lambda: api.quality(number, number),
        lambda: api.annotate_data(number),
        lambda: api.export_annotations(number, None),
    ):
        with pytest.raises(ConfigError, match="5 is no path"):
            call()
    for call in (
        lambda: api.resume("run", steps=cast(Any, "7")),
        lambda: api.plan(digits, minutes=cast(Any, "7")),
        lambda: api.budget(digits, hours=cast(Any, "7")),
    ):
        with pytest.raises(ConfigError, match="is '7'; allowed: a"):
            call()
