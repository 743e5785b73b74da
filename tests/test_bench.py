"""The benchmark table: rows are trained once, kept, continued and compared; the demo ends with a report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from run_helpers import Outcome

from leanmask.benchmark import demo as demo_module
from leanmask.benchmark import handwriting
from leanmask.benchmark import table as table_module
from leanmask.benchmark.arms import SEMI, SPARSE, UNJUDGED, arms_of, in_order
from leanmask.benchmark.demo import demo
from leanmask.benchmark.handwriting import OUTSIDE_KNOWLEDGE, HandwritingSpec
from leanmask.benchmark.names import folder_name
from leanmask.benchmark.table import BenchOptions, add_row, bench, is_row, read_rows, results_path, run_folders
from leanmask.data.digits import DigitsSpec
from leanmask.errors import ConfigError, DataError, RunError
from leanmask.reports.tables import render_markdown

SHORT = (
    "model.backbone=tiny", "train.steps=2", "data.image_size=64", "data.workers=0", "train.batch_size=2",
    "evaluation.pictures=0",
)  # fmt: skip


@pytest.fixture
def options(digits: Path, tmp_path: Path) -> BenchOptions:
    return BenchOptions(
        arms=("baseline", "maskbooster", "full"),
        data=digits,
        work=tmp_path / "work",
        results=tmp_path / "results",
        overrides=SHORT,
    )


def test_rows_are_trained_once_and_kept(options: BenchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, int]] = []
    table = bench("sparse-20", options, on_progress=lambda done, total, _: seen.append((done, total)))
    assert [row["arm"] for row in table.rows] == ["baseline", "maskbooster", "full"]
    assert seen[-1] == (3.0, 3)
    row = table.rows[1]
    assert row.keys() >= {"protocol", "arm", "model", "seed", "steps", "metrics", "train_seconds", "commit", "machine"}
    assert row["machine"].keys() == {"cores", "threads", "capability", "precision", "processor", "torch"}
    assert row["machine"]["precision"] in ("fp32", "bf16")
    assert row["steps"] == 2
    assert row["overrides"] == list(SHORT)
    assert 0 <= row["metrics"]["AP"] <= 1
    # `full` is shared between protocols and has a file of its own.
    assert [row["arm"] for row in json.loads(results_path("full", options).read_text())] == ["full"]
    assert "maskbooster" in render_markdown(table.table)

    def never(*_: object) -> None:
        raise AssertionError("a finished row was trained again")

    monkeypatch.setattr(table_module, "run_task", never)
    assert bench("sparse-20", options).rows == table.rows


def test_of_two_benchmarks_that_add_the_same_row_the_first_is_kept(tmp_path: Path) -> None:
    told = {"protocol": "full", "model": "m", "seed": 0, "steps": 2, "split": "val", "overrides": []}
    first, same, other = (
        {**told, "arm": arm, "metrics": {"AP": ap}} for arm, ap in (("a", 0.1), ("a", 0.2), ("b", 0.3))
    )
    for row in (first, same, other):
        add_row(tmp_path / "rows.json", row)
    assert read_rows(tmp_path / "rows.json") == [first, other]
    for seconds in (1.0, 2.0):  # measurements of speed have no arms
        add_row(tmp_path / "speed.json", {"what": "step", "seconds": seconds})
    assert len(read_rows(tmp_path / "speed.json")) == 2


def test_several_protocols_at_once_share_their_upper_bound(
    leanmask: Callable[..., Outcome], options: BenchOptions
) -> None:
    folders = ("--work", options.work, "--results", options.results)
    common = ("--data", options.data, "--arms", "full", *folders, *SHORT)
    outcome = leanmask("bench", "sparse-20", "points-4", *common, "--json")
    assert outcome.code == 0
    (row,) = json.loads(outcome.out)
    assert (row["protocol"], row["overrides"]) == ("full", list(SHORT))
    shown = leanmask("bench", "sparse-20", "points-4", *common).out
    assert shown.count("deviation over seeds") == 2  # a table for each, nothing trained again
    assert len(list((options.work / "runs").glob("*-full-*/journal.jsonl"))) == 1


def test_the_whole_semi_table_says_what_knows_more_than_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handwriting, "HandwritingSpec", partial(HandwritingSpec, scenes=20, passes=1))
    sizes = DigitsSpec(train=8, tune=1, val=2, size_px=64)
    folders = {"work": tmp_path / "work", "results": tmp_path / "results"}
    table = bench("semi-25", BenchOptions(digits=sizes, overrides=SHORT, **folders))
    rows = {row["arm"]: row for row in table.rows}
    assert list(rows) == [*(name for name in SEMI if name not in ("unpasted", "full")), "full"]
    assert {name: row["steps"] for name, row in rows.items() if row["steps"] != 2} == {"guided_distillation": 4}
    judged = {name for name, row in rows.items() if row.get("note") == OUTSIDE_KNOWLEDGE}
    assert judged == {"pldc", "no_thresholds", "no_uncertainty"}
    assert OUTSIDE_KNOWLEDGE in render_markdown(table.table)


def test_the_semi_table_runs_on_classes_that_are_no_digits(digits: Path, options: BenchOptions, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "cells")
    for path in (tmp_path / "cells" / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"] = [{**row, "name": f"cell {row['name']}"} for row in content["categories"]]
        path.write_text(json.dumps(content))
    own = dataclasses.replace(options, data=tmp_path / "cells", arms=("pldc",))
    (row,) = bench("semi-25", own).rows
    assert row["arm"] == "pldc"
    assert "note" not in row
    method = yaml.safe_load((run_folders("semi-25", own)[0] / "config.yaml").read_text())["method"]
    # Where nobody mends classes, the teacher has to be surer of them.
    assert {key: method[key] for key in UNJUDGED} == {"judge": None, "class_quality": 0.7, "mask_quality": 0.8}
    assert arms_of("semi-25")["pldc"].settings["method"]["class_quality"] < method["class_quality"]
    assert not any(arm.note() for arm in arms_of("semi-25", own_data=True).values())
    # Without a judge anywhere, this arm would be `pldc` again.
    with pytest.raises(ConfigError, match="unknown arm 'no_correction'"):
        bench("semi-25", dataclasses.replace(own, arms=("no_correction",)))


def test_arms_with_few_masks_paste_copies() -> None:
    def pasted(protocol: str) -> set[str]:
        arms = arms_of(protocol).items()
        return {name for name, arm in arms if "copy_paste_probability" in arm.settings.get("augment", {})}

    assert list(arms_of("sparse-10")) == list(arms_of("sparse-50")) == list(SPARSE)
    assert pasted("sparse-10") == {"ema_aug", "binary", "soft", "maskbooster"}
    assert pasted("semi-10") == set(SEMI) - {"unpasted", "full"}
    assert pasted("sparse-50") == pasted("semi-25") == set()
    assert "unpasted" not in arms_of("semi-25")


def test_rows_come_in_the_order_of_their_table() -> None:
    def ordered(protocol: str, *arms: str) -> list[str]:
        return [row["arm"] for row in in_order(protocol, [{"arm": arm} for arm in arms])]

    assert ordered("longtail", "soft", "older", "uniform", "baseline") == ["baseline", "uniform", "soft", "older"]
    assert ordered("sparse-1", "soft", "full", "binary", "baseline") == ["baseline", "binary", "soft", "full"]
    assert ordered("suggest-3600", "b", "a") == ["b", "a"]


def test_unknown_names_are_refused(options: BenchOptions) -> None:
    with pytest.raises(ConfigError, match=r"no benchmark table for 'sparce-1'; did you mean 'sparse-R'"):
        bench("sparce-1", options)
    with pytest.raises(ConfigError, match="did you mean 'longtail'"):
        bench("longtial", options)
    with pytest.raises(ConfigError, match=r"no benchmark table for 'boxes'; allowed: full, longtail, points-N"):
        bench("boxes", options)
    with pytest.raises(DataError, match="a percentage above 0"):
        bench("sparse-200", options)
    with pytest.raises(ConfigError, match=r"unknown option split.pont_noise; did you mean 'point_noise'"):
        bench("points-10", dataclasses.replace(options, arms=("points",), overrides=("split.pont_noise=0.1",)))


def test_points_noise_and_model_are_part_of_a_row(options: BenchOptions) -> None:
    told = ("split.point_noise=0.5", "split.noise_where=boundary", *options.overrides)
    table = bench("points-4", dataclasses.replace(options, arms=("points",), overrides=told, model="pointrend"))
    assert [(row["arm"], row["model"], row["overrides"]) for row in table.rows] == [
        ("points", "pointrend-tiny", list(told))
    ]
    noise = json.loads(next((options.work / "data").glob("*points-4*noise*/split.json")).read_text())
    assert noise["noisy_points"] * 2 == noise["points"]


def test_rows_name_the_backbone_that_was_trained(options: BenchOptions) -> None:
    other = dataclasses.replace(options, model="mask_rcnn", overrides=(*SHORT[1:], "model.backbone=resnet18"))
    row = {"arm": "baseline", "seed": 0, "split": options.split, "overrides": list(other.overrides)}
    assert is_row({**row, "model": "mask_rcnn-resnet18"}, "baseline", 0, other)
    assert not is_row({**row, "model": "mask_rcnn-tiny"}, "baseline", 0, other)


@example(["digits", "é" * 90], "x")
@example(["digits", "a" * 300], "b")
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.text(min_size=1, max_size=9))
def test_folder_names_fit_a_file_system_and_stay_apart(parts: list[str], more: str) -> None:
    name = folder_name(parts)
    assert len(f".{name}.lock".encode()) < 255
    assert "/" not in name
    changed = [*parts[:-1], parts[-1] + more]
    plain = ["-".join(each).replace("=", "_").replace("/", "_") for each in (parts, changed)]
    assert (folder_name(changed) == name) == (plain[0] == plain[1])
    assert folder_name(["digits", "data.image_size=256"]) == "digits-data.image_size_256"


def test_demo_ends_with_a_report_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "QUICK_STEPS", 3)
    monkeypatch.setattr(demo_module, "QUICK_DIGITS", DigitsSpec(train=40, tune=2, val=4))
    result = demo(tmp_path / "demo", quick=True)
    page = result.report.read_text()
    assert "maskbooster" in page
    assert "baseline" in page
    assert "mask IoU" in page  # the quality of the pseudo-masks over time
    with pytest.raises(RunError, match="there already"):
        demo(tmp_path / "demo", quick=True)
