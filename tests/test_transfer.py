"""A network that starts as another one keeps the classes of the same name, wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import TINY, Outcome, train
from torch import Tensor

from leanmask.config import merge
from leanmask.data.digits import DigitsSpec, write_digits
from leanmask.engine.checkpoint import load_weights
from leanmask.errors import ConfigError, RunError
from leanmask.models import MODELS
from leanmask.models.base import Model
from leanmask.models.mask_refine import COLOURS, MaskRefineNet
from leanmask.models.transfer import transfer_weights
from leanmask.models.two_stage import TwoStage
from leanmask.planning.plan import plan
from leanmask.records import Proposals
from leanmask.settings import load_config, resolve
from leanmask.summary import TrainSummary

Cli = Callable[..., Outcome]
VARIANTS: dict[str, dict[str, Any]] = {name: {"name": name} for name in MODELS} | {
    "mask_rcnn, class-agnostic masks": {"name": "mask_rcnn", "class_agnostic": True},
    "implicit_pointrend, without encoding": {"name": "implicit_pointrend", "encoding": "none", "point_layers": 1},
    "pointrend, one layer": {"name": "pointrend", "point_layers": 1},
}
KNOWN = ("ant", "bee", "cat")


def network(settings: dict[str, Any], classes: int, seed: int = 0) -> Model:
    """A tiny network whose classes differ clearly."""
    config = resolve({"data": {"path": "."}, "method": "supervised", "model": {"backbone": "tiny", **settings}})
    torch.manual_seed(seed)
    model = config.build_model(classes).eval()
    state = model.state_dict()
    for name in model.class_axes():
        state[name].copy_(0.3 * torch.randn(state[name].shape))
    return model


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_that_depends_on_the_classes_is_named(settings: dict[str, Any]) -> None:
    three, five = network(settings, 3), network(settings, 5)
    few, many = three.state_dict(), five.state_dict()
    assert few.keys() == many.keys()
    for name in few:
        differ = {at for at, (a, b) in enumerate(zip(few[name].shape, many[name].shape, strict=True)) if a != b}
        assert differ == three.class_axes().get(name, {}).keys(), name
    for name, axes in five.class_axes().items():
        for dimension, positions in axes.items():
            assert len(positions) == 5
            assert len(positions.unique()) == positions.numel(), "classes share no position"
            assert positions.max() < many[name].shape[dimension]


def proposals(boxes: Tensor, categories: Tensor) -> Proposals:
    nothing = torch.zeros(len(boxes), dtype=torch.int64)
    return Proposals(image_index=nothing, boxes=boxes, object_index=nothing, categories=categories)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_classes_in_another_order_are_the_same_network(settings: dict[str, Any]) -> None:
    source, model = network(settings, 3), network(settings, 3, seed=1)
    done = transfer_weights(model, ("cat", "ant", "bee"), source, KNOWN)
    assert (done.kept, done.fresh, done.left, done.other_size) == (("cat", "ant", "bee"), (), (), ())
    order = torch.tensor([2, 0, 1])  # new index -> index in the source
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        if isinstance(source, MaskRefineNet):
            assert isinstance(model, MaskRefineNet)
            pixels = torch.rand(3, COLOURS + 2, 64, 64)
            theirs = source.network((pixels, COLOURS + 1 + order))
            ours = model.network((pixels, COLOURS + 1 + torch.arange(3)))
            torch.testing.assert_close(ours, theirs)
            return
        (theirs,), (ours,) = source.predict(images), model.predict(images)
    assert len(theirs) > 0
    assert len(ours) == len(theirs)
    assert ours.scores is not None
    assert theirs.scores is not None
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(order[ours.categories], theirs.categories)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-3, atol=1e-2)
    if isinstance(source, TwoStage):  # the others' masks are of no class
        said = [
            each.predict_masks(images, proposals(theirs.boxes, categories), fine=True).logits
            for each, categories in ((source, theirs.categories), (model, ours.categories))
        ]
        torch.testing.assert_close(said[1], said[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_only_what_belongs_to_unknown_classes_stays_fresh(settings: dict[str, Any]) -> None:
    source, model = network(settings, 3), network(settings, 4, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = transfer_weights(model, ("dog", "bee", "eel", "ant"), source, KNOWN)
    assert (done.kept, done.fresh, done.left) == (("bee", "ant"), ("dog", "eel"), ("cat",))
    assert not done.other_size
    theirs = source.state_dict()
    for name, value in model.state_dict().items():
        axes = model.class_axes().get(name)
        if axes is None:
            assert torch.equal(value, theirs[name]), name
            continue
        dimension, positions = next(iter(axes.items()))
        others = source.class_axes()[name][dimension]
        if len(axes) == 1:  # where both dimensions have classes, rows of kept ones hold columns of fresh ones
            for new, old in ((1, 1), (3, 0)):
                kept = value.index_select(dimension, positions[new])
                assert torch.equal(kept, theirs[name].index_select(dimension, others[old])), name
        for new in (0, 2):
            fresh = positions[new]
            assert torch.equal(value.index_select(dimension, fresh), before[name].index_select(dimension, fresh)), name


def test_parameters_of_another_size_stay_fresh_and_are_named() -> None:
    source = network({"name": "mask_rcnn", "mask_channels": 16}, 3)
    model = network({"name": "mask_rcnn"}, 3)
    done = transfer_weights(model, KNOWN, source, KNOWN)
    assert "roi_heads.mask_head.0.0.weight" in done.other_size
    assert "roi_heads.box_predictor.cls_score.weight" not in done.other_size
    assert "another size: roi_heads.mask_head" in done.to_text()


def test_without_a_common_class_all_start_fresh() -> None:
    source, model = network({"name": "solov2"}, 3), network({"name": "solov2"}, 2, seed=1)
    done = transfer_weights(model, ("dog", "eel"), source, KNOWN)
    assert done.to_text() == "no class has a name that it knows, so all start fresh: dog, eel"


# --- as a run ---


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of which three have other names."""
    out = tmp_path_factory.mktemp("data") / "renamed"
    write_digits(out, DigitsSpec(train=6, tune=2, val=2, size_px=64, seed=3))
    for path in (out / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["name"] = {"one": "uno", "two": "due", "three": "tre"}.get(category["name"], category["name"])
        path.write_text(json.dumps(content))
    return out


def test_a_run_starts_as_another_and_says_which_classes_are_kept(
    leanmask: Cli, trained: TrainSummary, renamed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = ("data.image_size=64", "data.workers=0", "train.batch_size=2", "optim.lr=1e-9", "train.threads=1")
    done = leanmask(
        "train", renamed, "--weights", trained.folder, "--out", run, "--steps", 1, "--method", "supervised", *small
    )
    assert done.code == 0, done.err
    weights = trained.folder / "best.safetensors"
    assert (
        f"weights: loaded {weights}; kept classes: zero, four, five, six, seven, eight, nine; classes that start "
        "fresh: uno, due, tre; not in these data: one, two, three" in done.err
    )
    assert "model.backbone = tiny (that of the weights it starts as)" in done.err
    config = load_config(run)
    assert config.model == load_config(trained.folder).model
    assert config.train.student_weights == str(weights)
    ours, theirs = (
        load_weights(path)[0]["roi_heads.box_predictor.cls_score.weight"]
        for path in (run / "checkpoints/last/student.safetensors", weights)
    )
    names = [
        category["name"]
        for category in json.loads((renamed / "annotations/instances_train.json").read_text())["categories"]
    ]
    kept = [0, *(1 + at for at, name in enumerate(names) if name not in ("uno", "due", "tre"))]
    assert torch.allclose(ours[kept], theirs[kept], atol=1e-6)
    assert not torch.allclose(ours[1 + names.index("due")], theirs[1 + names.index("due")], atol=1e-3)


def test_another_network_is_refused_in_a_sentence(
    leanmask: Cli, trained: TrainSummary, digits: Path, tmp_path: Path
) -> None:
    for setting, says in (
        (["--model", "solov2"], "model.name=mask_rcnn and this run model.name=solov2"),
        (["model.backbone=lite0"], "model.backbone=tiny and this run model.backbone=lite0"),
    ):
        for more in ([], ["--no-plan"]):
            done = leanmask("train", digits, "--weights", trained.folder, "--out", tmp_path / "run", *setting, *more)
            assert done.code == 2
            assert says in done.err
            assert "one of its own kind" in done.err
            assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there_are_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none does not exist; name a run folder"):
        train(digits, tmp_path / "run", weights=tmp_path / "none")
    with pytest.raises(ConfigError, match="a path is empty"):
        train(digits, tmp_path / "run", weights="")


def test_the_setting_and_the_plan_know_run_folders(trained: TrainSummary, digits: Path, tmp_path: Path) -> None:
    made = plan(digits, weights=trained.folder)
    assert plan(digits, overrides=f"train.student_weights={trained.folder}").settings == made.settings
    assert made.settings["model"]["backbone"] == "tiny"
    assert made.reasons["model.name"] == "that of the weights it starts as"
    settings = merge(TINY, {"method": {"name": "supervised"}, "train": {"steps": 1, "student_weights": trained.folder}})
    lines: list[str] = []
    train(digits, tmp_path / "run", settings=settings, on_progress=lambda step, total, note: lines.append(note))
    assert any("its classes are kept: zero, one" in line for line in lines)
