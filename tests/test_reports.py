"""Reports: run folders read as they are, tables, curves, pictures, and the page around them."""

from __future__ import annotations

import io
import json
import math
import re
import statistics
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from rich.console import Console
from safetensors.numpy import save_file

from leanmask.errors import DataError, RunError
from leanmask.reports import gallery
from leanmask.reports.calibration import draw_reliability, frequency_figures, reliability_figures
from leanmask.reports.collect import AnnotatedImages, fraction, read_run
from leanmask.reports.figures import Line, all_figures, smooth
from leanmask.reports.gallery import draw_labelled
from leanmask.reports.layout import Table, duration, render_html, render_markdown, render_rich, spread
from leanmask.reports.marks import BACKGROUND_RGB, OBJECT_RGB, Mark, draw_marks, marks_of
from leanmask.reports.names import distinct_names
from leanmask.reports.overlays import class_colour, draw_overlay, open_upright, readable_scale, to_rgb, to_rle
from leanmask.reports.page import headline, write_report
from leanmask.reports.pictures import Choice, compare, panoptic_quality
from leanmask.reports.tables import (
    benchmark_table,
    benchmark_tables,
    census,
    differences,
    gap_closed,
    per_class_ap,
    run_comparison,
)
from leanmask.reports.trust import NAMES, draw_trust

SIDE = 48
CLASSES = {7: "<b>bold</b>", 90: "plain & simple"}


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def encoded(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def result(image_id: int, category: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist()
    row = {"image_id": image_id, "category_id": category, "score": score}
    return row | {"segmentation": encoded(mask), "bbox": box}


@pytest.fixture
def data(tmp_path: Path) -> AnnotatedImages:
    """Six images with one polygon object each."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for at in range(1, 7):
        Image.new("RGB", (SIDE, SIDE), (30 * at, 90, 90)).save(folder / "images" / f"{at}.png")
        images.append({"id": at, "file_name": f"{at}.png", "width": SIDE, "height": SIDE})
        corners = [8, 8, 40, 8, 40, 32, 8, 32]
        row = {"id": at, "image_id": at, "category_id": 7 if at % 2 else 90, "bbox": [8, 8, 32, 24], "iscrowd": 0}
        annotations.append(row | {"segmentation": [corners]})
    categories = [{"id": key, "name": name} for key, name in CLASSES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return AnnotatedImages(folder / "val.json", folder / "images")


def make_run(folder: Path, files: AnnotatedImages, ap: float = 0.25, method: str = "supervised") -> Path:
    """A complete run folder; its masks are good on images 1 to 3 and, below an AP of 0.3, missing on the others."""
    folder.mkdir(parents=True)
    settings_ = {
        "model": {"name": "mask_rcnn", "backbone": "tiny"},
        "method": {"name": method},
        "train": {"steps": 40, "seed": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings_), encoding="utf-8")
    (folder / "env.json").write_text(json.dumps({"torch": "2.9", "gpus": []}), encoding="utf-8")
    counts = {"images": 100, "objects": {"mask": 4, "box": 396}, "crowds": 0}
    counts["per_class"] = {CLASSES[7]: {"mask": 1, "box": 300}, CLASSES[90]: {"mask": 3, "box": 96}}
    split = {"val": {"annotations": str(files.annotations), "images": str(files.images)}}
    classes = {"names": list(CLASSES.values()), "ids": list(CLASSES)}
    content = {"census": {"train": counts}, "classes": classes, "splits": split}
    (folder / "data.json").write_text(json.dumps(content), encoding="utf-8")
    rows = [train_row(step) for step in range(10, 41, 10)]
    rows += [{"kind": "eval", "step": step, "who": "teacher", "metrics": {"AP": ap * step / 40}} for step in (20, 40)]
    rows.append({"kind": "pseudo", "step": 20, "precision": 0.9, "recall": 0.5, "mask_iou": 0.77, "count": 12})
    rows.append({"kind": "event", "step": 30, "message": "<script>alert(1)</script> happened"})
    (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    per_class = [
        {"name": name, "id": key, "AP": ap / at, "count": 3} for at, (key, name) in enumerate(CLASSES.items(), 1)
    ]
    metrics = {"metrics": {"AP": ap, "AP50": 2 * ap, "APs": -1}, "per_class": per_class, "notes": ["maxDets is 100"]}
    found = [result(at, 7 if at % 2 else 90, rectangle(8, 8, 32, 24), 0.9) for at in range(1, 7 if ap > 0.3 else 4)]
    for who in ("student", "teacher", "best"):
        (folder / "evaluation" / who).mkdir(parents=True)
        text = json.dumps(metrics | ({"who": "student", "step": 20} if who == "best" else {"step": 40}))
        (folder / "evaluation" / who / "metrics.json").write_text(text, encoding="utf-8")
        (folder / "evaluation" / who / "coco_instances_results.json").write_text(json.dumps(found), encoding="utf-8")
    save_file({"w": np.zeros(1)}, folder / "best.safetensors", {"who": "student", "step": "20", "AP": "0.2"})
    return folder


def train_row(step: int) -> dict[str, Any]:
    numbers = {"losses": {"mask": 1.0 / step, "box_$x$": 2.0}, "counts": {"pseudo_objects": 3.5}, "lr": 0.01}
    return {"kind": "train", "step": step, **numbers, "seconds_step": 0.5, "seconds_data": 0.1}


# --- collect


def test_read_run_reads_everything(tmp_path: Path, data: AnnotatedImages) -> None:
    run = read_run(make_run(tmp_path / "runs" / "a", data))
    assert (run.name, run.method, run.model, run.planned_steps, run.last_step) == (
        "a",
        "supervised",
        "mask_rcnn",
        40,
        40,
    )
    assert run.classes == CLASSES
    assert run.census["train"]["objects"] == {"mask": 4, "box": 396}
    assert [row["step"] for row in run.journal.train] == [10, 20, 30, 40]
    assert run.train_seconds == pytest.approx(20.0)
    assert run.final["teacher"].ap == 0.25
    assert run.kept is not None
    assert (run.kept.who, run.kept.step, run.kept.ap) == ("student", 20, 0.25)
    assert run.kept_files == run.folder / "evaluation" / "best"
    assert run.validation == data
    assert set(run.results) == {"student", "teacher"}
    assert run.problems == ()


def test_half_written_last_line_is_no_error(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    journal = folder / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"kind": "train", "st\xc3')
    run = read_run(folder)
    assert len(run.journal.train) == 4
    assert any("cut off" in problem for problem in run.problems)


def test_broken_lines_are_counted(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    journal = folder / "journal.jsonl"
    journal.write_text("no json\n[1]\n" + journal.read_text(encoding="utf-8"), encoding="utf-8")
    assert any("2 unreadable lines left out, the first is line 1" in problem for problem in read_run(folder).problems)


def test_line_written_twice_counts_once(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(train_row(20) | {"lr": 9.0}) + "\n")
    run = read_run(folder)
    assert [(row["step"], row["lr"]) for row in run.journal.train][1] == (20, 9.0)
    assert len(run.journal.train) == 4


def test_numbers_fall_back_to_the_journal(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    for who in ("student", "teacher", "best"):
        (folder / "evaluation" / who / "metrics.json").unlink()
    run = read_run(folder)
    assert set(run.final) == {"teacher"}
    assert run.final["teacher"].from_journal
    assert run.kept is not None
    assert (run.kept.who, run.kept.step, run.kept.ap) == ("student", 20, 0.2), "what the weights file says"
    (folder / "best.safetensors").unlink()
    assert read_run(folder).kept == run.final["teacher"]


def test_broken_files_become_problems(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    (folder / "data.json").write_text("{", encoding="utf-8")
    (folder / "env.json").write_text("[]", encoding="utf-8")
    (folder / "config.yaml").write_text("a: [", encoding="utf-8")
    (folder / "best.safetensors").write_bytes(b"short")
    run = read_run(folder)
    for name in ("data.json", "env.json", "config.yaml", "best.safetensors"):
        assert any(problem.startswith(name) for problem in run.problems), name
    assert run.final["teacher"].ap == 0.25


@pytest.mark.parametrize("make", [False, True])
def test_no_run_folder(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(RunError, match=r"nothing is no run folder"):
        read_run(folder)


def test_names_get_parents_where_they_clash(tmp_path: Path, data: AnnotatedImages) -> None:
    runs = [read_run(make_run(tmp_path / part / "run", data)) for part in ("a", "b")]
    assert distinct_names(runs) == ["a/run", "b/run"]
    assert len(set(distinct_names([runs[0], runs[0]]))) == 2


def test_long_names_lose_what_they_share(tmp_path: Path, data: AnnotatedImages) -> None:
    settings = "seed0-data.image_size_256-model.anchor_sizes_[8,16,32]"
    runs = [read_run(make_run(tmp_path / f"nuclei-sparse-1-{arm}-{settings}", data)) for arm in ("boosted", "baseline")]
    assert distinct_names(runs) == ["boosted", "baseline"]
    assert distinct_names(runs[:1]) == ["nuclei-sparse-1-boosted-…es_[8,16,32]"]
    longer = read_run(make_run(tmp_path / f"nuclei-sparse-1-boosted-{settings}-more", data))
    shorter = "model.anchor_sizes_[8,16,32]"
    assert distinct_names([runs[0], longer]) == [shorter, f"{shorter}-more"]


@pytest.mark.parametrize("value", [-1, -1.0, None, math.nan, math.inf, "0.3", True])
def test_what_is_no_fraction(value: Any) -> None:
    assert fraction(value) is None


# --- tables

UGLY = Table("t<i>", ("a|b", "[red]n"), [["x|<b>\ny", "1"], ["[bold]z", "2"]], strong=frozenset({(1, 1)}))


def test_html_is_escaped() -> None:
    html = render_html(UGLY)
    assert "<b>" not in html
    assert "x|&lt;b&gt;" in html
    assert '<td class="n"><strong>2</strong></td>' in html
    ElementTree.fromstring(str(html))


def test_markdown_keeps_its_columns() -> None:
    lines = render_markdown(UGLY).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3, 3]
    assert "**2**" in rows[-1]


def test_terminal_shows_markup_as_it_is() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_rich(UGLY))
    text = console.export_text()
    assert "[bold]z" in text
    assert "[red]n" in text


def bench_row(arm: str, seed: int, ap: float | None, **more: Any) -> dict[str, Any]:
    row = {"protocol": "sparse-1", "arm": arm, "model": "tiny", "seed": seed, "steps": 10, "train_seconds": 60.0}
    return row | {"metrics": {"AP": ap}} | more


def test_benchmark_table_against_hand_computed_numbers() -> None:
    ap = {"baseline": [0.20, 0.22], "maskbooster": [0.30, 0.34]}
    rows = [bench_row("full", seed, value, protocol="full") for seed, value in enumerate([0.40, 0.46])]
    rows += [bench_row(arm, seed, value) for arm, values in ap.items() for seed, value in enumerate(values)]
    (table,) = benchmark_tables(rows, ("AP",))
    cells = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    assert [row[0] for row in table.rows] == ["baseline", "maskbooster", "full"]
    assert cells["maskbooster"]["AP"] == f"32.0 ± {100 * statistics.stdev(ap['maskbooster']):.1f}"
    shares = [(0.30 - 0.20) / (0.40 - 0.20), (0.34 - 0.22) / (0.46 - 0.22)]
    assert shares == pytest.approx([0.5, 0.5])
    assert cells["maskbooster"]["gap closed"] == "50 ± 0 %"
    assert cells["maskbooster"]["of full"] == "74 %"
    assert cells["baseline"]["gap closed"] == "–"


def test_benchmark_table_with_gaps() -> None:
    assert benchmark_table([]).rows == []
    (table,) = benchmark_tables([bench_row("baseline", 0, None), bench_row("odd", 0, 0.3)], ("AP",))
    assert [row[0] for row in table.rows] == ["baseline", "odd"]
    assert table.rows[1][4:6] == ["30.0", "–"]


def test_benchmark_keeps_protocols_and_overrides_apart_and_the_last_of_a_seed() -> None:
    rows = [
        bench_row("baseline", 0, 0.1),
        bench_row("baseline", 0, 0.2),
        bench_row("baseline", 0, 0.5, overrides=["a=1"]),
    ]
    assert [table.rows[0][4] for table in benchmark_tables(rows, ("AP",))] == ["20.0", "50.0"]
    joined = benchmark_table([*rows, bench_row("baseline", 0, 0.3, protocol="sparse-10")], ("AP",))
    assert [row[0] for row in joined.rows] == ["sparse-1, tiny", "sparse-1, tiny, a=1", "sparse-10, tiny"]


def test_a_row_that_depends_on_outside_knowledge_says_so() -> None:
    rows = [
        bench_row("baseline", 0, 0.1),
        *(bench_row(arm, 0, 0.2, note="outside") for arm in ("pldc", "no_thresholds")),
    ]
    (table,) = benchmark_tables(rows, ("AP",))
    assert render_markdown(table).strip().endswith("time of one training. pldc, no_thresholds: outside.")
    joined = benchmark_table([*rows, bench_row("baseline", 0, 0.3, protocol="sparse-10")], ("AP",))
    assert joined.note == table.note


def test_no_gap_no_share() -> None:
    assert gap_closed({"baseline": {"0": 0.4}, "full": {"0": 0.4}, "x": {"0": 0.5}}, "x") == "–"
    assert gap_closed({"baseline": {"0": 0.2}, "full": {"1": 0.4}, "x": {"0": 0.35}}, "x") == "75 %"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    found = [float(part) for part in spread(values).split(" ± ")]
    assert found == pytest.approx([100 * mean, 100 * deviation], abs=0.051)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (59.4, "59s"), (200, "3m 20s"), (3599.9, "1h 00m"), (7500, "2h 05m")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_run_tables(tmp_path: Path, data: AnnotatedImages) -> None:
    runs = [read_run(make_run(tmp_path / name, data, ap)) for name, ap in (("low", 0.2), ("high", 0.4))]
    names = distinct_names(runs)
    table = run_comparison(runs, names)
    column = table.headers.index("AP")
    assert [row[column] for row in table.rows] == ["20.0", "40.0"]
    assert (1, column) in table.strong
    assert (0, column) not in table.strong
    classes = per_class_ap(runs, names)
    assert classes is not None
    assert [row[0] for row in classes.rows] == [CLASSES[90], CLASSES[7]]
    assert classes.rows[0][2:] == ["10.0", "20.0"]
    labels = census(runs, names)
    assert labels is not None
    assert labels.headers == ("", "low / high")
    assert ["objects: box", "396"] in labels.rows
    assert differences(runs, names) is None


def test_differences_of_settings(tmp_path: Path, data: AnnotatedImages) -> None:
    runs = [read_run(make_run(tmp_path / name, data, method=name)) for name in ("supervised", "maskbooster")]
    table = differences(runs, distinct_names(runs))
    assert table is not None
    assert table.rows == [["method.name", "supervised", "maskbooster"]]


# --- figures


def test_curves_are_sound_svg(tmp_path: Path, data: AnnotatedImages) -> None:
    runs = [read_run(make_run(tmp_path / name, data)) for name in ("_hidden", "$a$<b>")]
    groups = all_figures(runs, distinct_names(runs))
    assert list(groups) == ["ap", "pseudo", "counts", "losses", "lr"]
    assert [panel.title for panel in groups["losses"].panels] == ["mask", "box $x$"]
    ids: list[str] = []
    for panel in (panel for group in groups.values() for panel in group.panels):
        tree = ElementTree.fromstring(panel.svg)
        assert tree.get("viewBox")
        assert tree.get("width") is None
        ids += [element.get("id", "") for element in tree.iter() if element.get("id")]
        assert "var(--series-0" in panel.svg
        assert "var(--series-1" in panel.svg
        assert "#0101" not in panel.svg
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", panel.svg)
    assert len(ids) == len(set(ids))
    assert "$a$<b>, teacher: from 12.5 to 25" in groups["ap"].panels[0].alt


def test_long_curves_stay_small_and_keep_their_end(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    rows = [train_row(step) for step in range(1, 20_001)]
    (folder / "journal.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    groups = all_figures([read_run(folder)], ["a"])
    assert all(len(panel.svg) < 40_000 for group in groups.values() for panel in group.panels)
    assert "to 5e-05" in groups["losses"].panels[0].alt or "to 5.0" in groups["losses"].panels[0].alt


def svg_texts(svg: str) -> list[str]:
    """Everything that an SVG says in words."""
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")
    ]


def test_no_figure_shows_tex(tmp_path: Path, data: AnnotatedImages) -> None:
    """Tick labels of every axis, and names with dollars, are plain text."""
    folder = make_run(tmp_path / "$a$", data)
    bins = [{"low": 0.1 * at, "high": 0.1 * at + 0.1, "confidence": 0.1 * at, "accuracy": 0.5} for at in range(10)]
    told = json.loads((folder / "evaluation" / "best" / "metrics.json").read_text())
    told["calibration"] = {"ece": 0.1, "bins": [{**each, "count": 3} for each in bins], "per_class": []}
    (folder / "evaluation" / "best" / "metrics.json").write_text(json.dumps(told), encoding="utf-8")
    counts = json.loads((folder / "data.json").read_text())["census"]["train"]
    pages = []
    for images in ((6, 7), (1, 9), (3, 4000)):
        named = dict(zip(CLASSES.values(), images, strict=True))
        tell(folder, census={"train": counts | {"class_images": named}})
        runs = [read_run(folder)]
        groups = [*all_figures(runs, ["$a$"]).values(), frequency_figures(runs, ["$a$"])]
        groups.append(reliability_figures(runs, ["$a$"]))
        assert all(group.panels for group in groups)
        pages += [panel.svg for group in groups for panel in group.panels]
        ticks = [float(text.replace(",", "")) for text in svg_texts(frequency_figures(runs, ["x"]).panels[0].svg)[:3]]
        assert ticks == sorted(ticks)
        assert 0.9 * min(images) <= ticks[0] <= ticks[-1] <= 1.1 * max(images)
    measured = {
        "bins": {key: [{**each, "mask_iou": 0.5, "right_class": 0.5, "count": 1} for each in bins] for key in NAMES}
    }
    draw_trust(measured, tmp_path / "trust.svg")
    draw_reliability({"$a$": told["calibration"]}, tmp_path / "reliability.svg")
    pages += [(tmp_path / name).read_text() for name in ("trust.svg", "reliability.svg")]
    for svg in pages:
        assert "mathdefault" not in svg
        assert not any("$" in text for text in svg_texts(svg))


def test_sections_without_content_are_left_out(tmp_path: Path, data: AnnotatedImages) -> None:
    """A supervised run counts nothing but the norm of its gradient, which belongs to the training's curves."""
    folder = make_run(tmp_path / "a", data)
    rows = [train_row(step) | {"counts": {"gradient_norm": 0.5}} for step in (10, 20, 30, 40)]
    (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    groups = all_figures([read_run(folder)], ["a"])
    assert "counts" not in groups
    assert [panel.title for panel in groups["gradient"].panels] == ["gradient norm"]
    page = write_report([folder], tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'id="pseudo"' not in page
    assert page.index('id="losses"') < page.index("gradient norm")


def test_no_rows_no_figures(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    (folder / "journal.jsonl").write_text('{"kind": "train", "step": 1, "losses": {"x": null}}\n', encoding="utf-8")
    assert all_figures([read_run(folder)], ["a"]) == {}


@settings(max_examples=30)
@given(st.lists(st.floats(-10, 10), min_size=50, max_size=200))
def test_smoothing_is_a_running_mean(values: list[float]) -> None:
    width = int(len(values) * 0.04) // 2
    wanted = [statistics.fmean(values[max(at - width, 0) : at + width + 1]) for at in range(len(values))]
    found = smooth(Line(0, "x", list(range(len(values))), values)).values
    assert found == pytest.approx(wanted, abs=1e-9)


# --- overlays


def test_overlay_paints_the_mask_and_little_else() -> None:
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    row = result(1, 7, rectangle(10, 20, 20, 20), 0.9)
    drawn = np.asarray(draw_overlay(grey, [row], {7: "x"}))
    wanted = 128 + 0.42 * (np.array(class_colour(7)) - 128)
    assert drawn[35, 25].tolist() == pytest.approx(wanted.tolist(), abs=1)
    assert drawn[20, 29].tolist() == list(class_colour(7))
    assert (drawn[45, 40] == 128).all()
    assert (np.asarray(grey) == 128).all()


def test_low_scores_are_not_drawn() -> None:
    grey = Image.new("L", (SIDE, SIDE), 128)
    drawn = draw_overlay(grey, [result(1, 7, rectangle(10, 20, 20, 20), 0.4)], {})
    assert np.asarray(drawn).tolist() == np.full((SIDE, SIDE, 3), 128).tolist()


def test_names_never_hide_objects() -> None:
    """Every object's middle stays as the image has it, also where names find no place."""
    image = Image.new("RGB", (480, 480), (120, 120, 120))
    corners = [(x, y) for y in range(0, 480, 48) for x in range(0, 480, 48)]
    rows = [
        {"bbox": [x, y, 20, 20], "category_id": n % 40, "score": 0.6 + n / 2000} for n, (x, y) in enumerate(corners)
    ]
    drawn = np.asarray(draw_overlay(image, rows, {}))
    outlines = 4 * 20 * len(rows)
    assert (drawn != np.asarray(image)).any(2).sum() > outlines  # some names have a place
    assert {tuple(drawn[y + 10, x + 10].tolist()) for x, y in corners} == {(120, 120, 120)}
    crowd = np.asarray(draw_overlay(image, [{**row, "category_id": 1} for row in rows], {}))
    assert (crowd != np.asarray(image)).any(2).sum() <= outlines  # names say nothing about so many of a class


def test_polygon_and_every_rle_draw_the_same() -> None:
    image = Image.new("RGB", (SIDE, SIDE))
    polygon = [[8.0, 8.0, 40.0, 8.0, 40.0, 32.0, 8.0, 32.0]]
    mask = rectangle(8, 8, 32, 24)
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    kinds = [polygon, encoded(mask), {"size": [SIDE, SIDE], "counts": counts}]
    drawn = [np.asarray(draw_overlay(image, [{"category_id": 1, "segmentation": kind}], {})) for kind in kinds]
    assert drawn[0].any()
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[1] == drawn[2]).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [9, 9], "counts": "0"},
        {"counts": "0"},
        [[1, 2]],
        [["a", "b", 1, 2, 3, 4]],
        [[1, 2, 3, 4]],
        encoded(np.ones((2 * SIDE, 2 * SIDE), dtype=np.uint8)) | {"size": [SIDE, SIDE]},
        {"size": [SIDE, SIDE], "counts": 5},
        "text",
    ],
)
def test_broken_segmentations_are_data_errors(segmentation: Any) -> None:
    with pytest.raises(DataError):
        draw_overlay(Image.new("RGB", (SIDE, SIDE)), [{"category_id": 1, "segmentation": segmentation}], {})


def test_box_only_objects_and_many_names_are_drawn() -> None:
    image = Image.new("RGB", (SIDE, SIDE))
    rows = [{"category_id": at, "bbox": [4, 4, 30, 30], "segmentation": []} for at in range(12)]
    assert np.asarray(draw_overlay(image, rows, {})).any()
    draw_overlay(image, [{"category_id": 1, "bbox": [40, 40, -10, -10]}], {1: "backwards"})


# --- points


def marked(rows: list[dict[str, Any]], scale: float = 8.0) -> np.ndarray:
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    return np.asarray(draw_overlay(grey, rows, {}, scale=scale)).astype(int)


def distance_from(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(picture - np.array(colour)).max(axis=2)


def test_points_are_drawn_at_the_middle_of_their_pixel_by_label() -> None:
    row = {"category_id": 1, "point_coords": [[10, 30], [40, 8]], "point_labels": [1, 0]}
    drawn = marked([row])
    green, red = (np.argwhere(distance_from(drawn, colour) < 12) for colour in (OBJECT_RGB, BACKGROUND_RGB))
    assert np.allclose(green.mean(axis=0) + 0.5, [8 * 30.5, 8 * 10.5], atol=0.6)
    assert np.allclose(red.mean(axis=0) + 0.5, [8 * 8.5, 8 * 40.5], atol=0.6)


def test_shapes_tell_points_apart_without_colours() -> None:
    picture = Image.new("RGB", (80, 40), (128, 128, 128))
    draw_marks(picture, [Mark(20.0, 20.0, True), Mark(60.0, 20.0, False)], 12)
    pixels = np.asarray(picture).astype(int)
    disc, cross = distance_from(pixels, OBJECT_RGB) < 12, distance_from(pixels, BACKGROUND_RGB) < 12
    assert disc[20, [12, 20, 28]].all()
    assert not disc[12, [12, 28]].any()
    assert cross[12, [52, 67]].all()
    assert not cross[20, [52, 68]].any()


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), OBJECT_RGB, BACKGROUND_RGB, (128, 128, 128)])
@pytest.mark.parametrize("on_object", [True, False])
def test_points_stand_out_on_every_ground(ground: tuple[int, int, int], on_object: bool) -> None:
    picture = Image.new("RGB", (60, 60), ground)
    draw_marks(picture, [Mark(30.0, 30.0, on_object)], 5)
    inked = distance_from(np.asarray(picture).astype(int), ground) > 90
    assert inked.sum() > 40
    assert not inked[:20].any()
    assert not inked[:, 41:].any()


def test_a_single_point_is_continuous_and_carries_its_class() -> None:
    drawn = marked([{"category_id": 1, "point": [24.0, 24.0]}])
    green = np.argwhere(distance_from(drawn, OBJECT_RGB) < 12)
    assert np.allclose(green.mean(axis=0) + 0.5, [192, 192], atol=0.6)
    name = distance_from(drawn, class_colour(1)) < 12
    assert name.sum() > 200
    assert abs(np.argwhere(name).mean(axis=0) - 192).max() < 60


def test_points_outside_the_picture_stop_nothing() -> None:
    row = {"category_id": 1, "point_coords": [[-1, -1], [47, 47], [900, 5], [5, -900]], "point_labels": [1, 0, 1, 0]}
    drawn = marked([{"bbox": [4, 4, 10, 10], **row}])
    assert (distance_from(drawn, class_colour(1)) == 0).any()  # the box is drawn all the same


@pytest.mark.parametrize(
    "row",
    [
        {"point_coords": [[1, 2], [3, 4]], "point_labels": [1]},
        {"point_coords": [[1, 2]]},
        {"point_coords": [[1]], "point_labels": [1]},
        {"point_coords": [["a", 1]], "point_labels": [1]},
        {"point_coords": [[math.nan, 1]], "point_labels": [1]},
        {"point": [1]},
        {"point": [math.inf, 1]},
    ],
)
def test_broken_points_are_data_errors(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="broken points"):
        marked([{"category_id": 1, **row}])
    assert marks_of({"point_coords": [], "point_labels": None, "point": None}) == ()


def test_broken_boxes_are_data_errors() -> None:
    with pytest.raises(DataError, match="broken bbox"):
        marked([{"category_id": 1, "bbox": [1, 2, 3]}])


# --- the gallery of training images


@pytest.fixture
def training(data: AnnotatedImages) -> AnnotatedImages:
    """As `data`, with boxes for masks but for one image each with points, with one point, and with masks."""
    content = json.loads(data.annotations.read_text(encoding="utf-8"))
    content["images"].append({"id": 7, "file_name": "1.png", "width": SIDE, "height": SIDE})
    for row in content["annotations"]:
        if row["id"] != 6:
            del row["segmentation"]
        if row["id"] == 2:
            row |= {"point_coords": [[12, 12], [30, 30]], "point_labels": [1, 0]}
        if row["id"] == 3:
            row.pop("bbox")
            row["point"] = [20.0, 20.0]
    path = data.annotations.with_name("train.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    return AnnotatedImages(path, data.images)


def test_the_gallery_shows_every_kind_of_label_first(training: AnnotatedImages) -> None:
    choice = Choice(training=4, seed=3)
    found = draw_labelled({"a": training, "b": training, "c": None}, choice)
    assert [(part.trained, part.points) for part in found.galleries] == [(("a", "b"), True)]
    captions = [picture.caption for picture in found.galleries[0].pictures]
    assert captions[0] == "6.png (1 x mask)"
    assert captions[1:3] == ["2.png (1 x box with points)", captions[2]]
    assert captions[2].endswith("(1 x box)")
    assert captions[3] == "3.png (1 x one point)"
    assert found.galleries[0].pictures[0].alt == f"6.png (1 x mask): 1 x {CLASSES[90]}"
    assert draw_labelled({"a": training, "b": training}, choice) == found
    assert found.notes == []
    every = draw_labelled({"a": training}, Choice(training=99)).galleries[0].pictures
    assert sorted(picture.caption[:5] for picture in every) == [f"{at}.png" for at in range(1, 7)]


def test_what_a_gallery_cannot_show_is_said(
    training: AnnotatedImages, data: AnnotatedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (training.images / "2.png").unlink()
    gone = AnnotatedImages(tmp_path / "gone.json", training.images)
    found = draw_labelled({"a": training, "b": gone})
    assert len(found.galleries) == 1
    assert len(found.galleries[0].pictures) == 5
    assert [note.split(":")[0] for note in found.notes] == ["training image 2 left out", "no training images of b"]
    monkeypatch.setattr(gallery, "MOST_CHARACTERS", 10)
    assert draw_labelled({"a": training, "b": data}).notes[-1].startswith("no training images of b: the page")
    monkeypatch.setattr(gallery, "MOST_BYTES", 10)
    assert "is much to read" in draw_labelled({"a": training}).notes[0]


def test_the_page_shows_what_was_labelled(tmp_path: Path, data: AnnotatedImages, training: AnnotatedImages) -> None:
    runs = [make_run(tmp_path / name, data) for name in ("a", "b", "c")]
    assert "What was labelled" not in write_report(runs, tmp_path / "none.html").read_text(encoding="utf-8")
    for run, files in ((runs[0], training), (runs[1], training), (runs[2], data)):
        content = json.loads((run / "data.json").read_text(encoding="utf-8"))
        content["splits"]["train"] = {"annotations": str(files.annotations), "images": str(files.images)}
        content["census"]["train"]["one_label_points"] = 3
        (run / "data.json").write_text(json.dumps(content), encoding="utf-8")
    text = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert "labelled" in outline.ids
    assert "#labelled" in outline.links
    for part in (
        "<h3>a / b</h3>",
        "<h3>c</h3>",
        "red cross beside it",
        "1 x box with points",
        "points of one label only",
    ):
        assert part in text
    assert all(outline.alts)
    assert len(text) < 5_000_000
    alone = write_report(runs[2:], tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "What was labelled" in alone
    assert "red cross" not in alone


def test_large_pictures_are_reduced_and_read_one_mask_at_a_time() -> None:
    width, height = 3000, 2000
    masks = []
    for number in range(24):
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[100 + 20 * number : 900 + 20 * number, 50 * number : 50 * number + 900] = 1
        masks.append(result(1, number, mask, 0.9))
    image = Image.new("RGB", (width, height), "grey")
    scale = readable_scale(image.size, longest_px=600)
    tracemalloc.start()
    drawn = draw_overlay(image, masks, {}, scale=scale)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.size == (600, 400)
    assert peak < 3 * width * height, "24 masks of this size, not one, would take 144 million bytes"
    assert readable_scale(image.size, longest_px=None) == 1.0


@pytest.mark.parametrize("side", [1, 2, 7])
def test_small_masks_stay_visible_on_a_reduced_picture(side: int) -> None:
    mask = np.zeros((2000, 3000), dtype=np.uint8)
    mask[1003 : 1003 + side, 1501 : 1501 + side] = 1
    image = Image.new("RGB", (3000, 2000), "grey")
    drawn = np.asarray(draw_overlay(image, [result(1, 7, mask, 0.9)], {}, scale=0.1))
    around = (drawn[98:104, 147:154] == class_colour(7)).all(axis=2)
    assert around.sum() >= 8, "its box is large enough to be seen"
    assert around[2, 3], "and the pixel itself is painted"


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_outlines_are_those_of_a_square_erosion(scale: float) -> None:
    rng = np.random.default_rng(0)
    smooth_noise = np.asarray(Image.fromarray(rng.integers(0, 255, (12, 12), dtype=np.uint8)).resize((96, 96)))
    mask = (smooth_noise > 120).astype(np.uint8)
    outside = {"category_id": 7, "bbox": [-90, -90, 1, 1]}  # so many of a class have no names
    rows = [outside | {"segmentation": encoded(mask)}, *([outside] * 40)]
    drawn = np.asarray(draw_overlay(Image.new("RGB", (96, 96)), rows, {}, scale=scale))
    whole = drawn.any(axis=2)
    inner = Image.fromarray(np.pad(whole, 9).astype(np.uint8)).filter(ImageFilter.MinFilter(5))
    rim = whole & ~(np.asarray(inner)[9:-9, 9:-9] > 0)
    assert ((drawn == class_colour(7)).all(axis=2) == rim).all()
    if scale == 1.0:
        assert (whole == (mask > 0)).all()
    assert whole.mean() == pytest.approx(mask.mean(), abs=0.03)


def test_scaled_overlay() -> None:
    scale = readable_scale((SIDE, SIDE))
    drawn = draw_overlay(Image.new("RGB", (SIDE, SIDE)), [result(1, 7, rectangle(0, 24, 48, 24), 0.9)], {}, scale=scale)
    assert (scale, drawn.size) == (6.0, (288, 288))
    below = np.asarray(drawn)[200:280].any(axis=2)
    assert below.mean() > 0.99
    assert readable_scale((1500, 1000)) == 1.0


def test_sixteen_bit_images_are_stretched() -> None:
    values = np.linspace(1000, 1400, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    drawn = np.asarray(to_rgb(Image.fromarray(values)))
    assert drawn.min() == 0
    assert drawn.max() == 255
    assert 100 < drawn.mean() < 155


def test_rotated_images_are_turned_only_when_the_annotations_say_so(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_upright(tmp_path / "a.jpg", (30, 20)).size == (30, 20)
    assert open_upright(tmp_path / "a.jpg", (20, 30)).size == (20, 30)
    with pytest.raises(DataError, match="30 x 20"):
        open_upright(tmp_path / "a.jpg", (10, 10))
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match="cannot read image"):
        open_upright(tmp_path / "b.jpg", None)


def test_empty_segmentation_is_no_mask() -> None:
    assert to_rle([], SIDE, SIDE) is None
    assert to_rle(None, SIDE, SIDE) is None


# --- pictures


def naive_quality(predicted: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Panoptic quality of masks of one class that do not overlap among themselves, by counting pixels."""
    ious = []
    for mask in predicted:
        for other in truth:
            iou = (mask & other).sum() / (mask | other).sum()
            if iou > 0.5:
                ious.append(iou)
    total = len(ious) + 0.5 * (len(predicted) - len(ious)) + 0.5 * (len(truth) - len(ious))
    return sum(ious) / total if total else 1.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_panoptic_quality_against_counting_pixels(seed: int) -> None:
    random = np.random.default_rng(seed)
    cells = [(x, y) for x in range(3) for y in range(3)]

    def draw() -> list[np.ndarray]:
        kept = [cell for cell in cells if random.random() < 0.5]
        return [rectangle(16 * x, 16 * y, *random.integers(6, 16, 2).tolist()) for x, y in kept]

    predicted, truth = draw(), draw()
    rows = [[{"category_id": 1, "segmentation": encoded(mask)} for mask in masks] for masks in (predicted, truth)]
    assert panoptic_quality(rows[0], rows[1], [], SIDE, SIDE) == pytest.approx(naive_quality(predicted, truth))


def test_panoptic_quality_of_objects_without_masks_is_of_boxes() -> None:
    """Of nothing found where there is a box, it is 0, and not the 1 of an empty image."""
    truth = [{"category_id": 1, "bbox": [2, 2, 10, 10]}]
    mask = {"segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    found = [{"category_id": 1, "bbox": [2, 2, 10, 10], **mask}]
    assert panoptic_quality([], truth, [], SIDE, SIDE) == 0.0
    assert panoptic_quality(found, truth, [], SIDE, SIDE) == pytest.approx(1.0)
    assert panoptic_quality(found, [*truth, {**found[0], "bbox": [14, 14, 2, 2]}], [], SIDE, SIDE) == pytest.approx(
        2 / 3
    )


def test_panoptic_quality_wants_the_class_and_excuses_crowds() -> None:
    mask, other = rectangle(0, 0, 20, 20), rectangle(24, 24, 20, 20)
    truth = [{"category_id": 1, "segmentation": encoded(mask)}]
    assert panoptic_quality([truth[0] | {"category_id": 2}], truth, [], SIDE, SIDE) == 0.0
    twice = [truth[0], truth[0]]
    assert panoptic_quality(twice, truth, [], SIDE, SIDE) == pytest.approx(1 / 1.5)
    stray = {"category_id": 1, "segmentation": encoded(other)}
    assert panoptic_quality([*truth, stray], truth, [], SIDE, SIDE) == pytest.approx(1 / 1.5)
    assert panoptic_quality([*truth, stray], truth, [stray], SIDE, SIDE) == 1.0


def results_of(tmp_path: Path, data: AnnotatedImages) -> dict[str, Path]:
    runs = [read_run(make_run(tmp_path / name, data, ap)) for name, ap in (("low", 0.2), ("high", 0.4))]
    return {run.name: run.results["teacher"] for run in runs}


def test_pictures_show_where_runs_differ_and_are_repeatable(tmp_path: Path, data: AnnotatedImages) -> None:
    results = results_of(tmp_path, data)
    found = compare(results, data, Choice(count=4))
    assert [row.title for row in found.rows[:3]] == [f"{at}.png – the runs differ most here" for at in (4, 5, 6)]
    assert found.rows[3].title.endswith("by chance")
    assert [picture.caption.split(" (")[0] for picture in found.rows[0].pictures] == ["low", "high", "truth"]
    assert found.rows[0].pictures[0].alt.endswith("no objects")
    assert found.rows[0].pictures[1].alt.endswith(f"1 x {CLASSES[90]}")
    assert compare(results, data, Choice(count=4)) == found
    assert found.notes == []


def test_one_run_shows_its_weakest(tmp_path: Path, data: AnnotatedImages) -> None:
    results = {"low": results_of(tmp_path, data)["low"]}
    found = compare(results, data, Choice(count=4))
    assert [row.title for row in found.rows[:3]] == [f"{at}.png – among the weakest" for at in (4, 5, 6)]


def test_what_cannot_be_shown_is_said(tmp_path: Path, data: AnnotatedImages) -> None:
    results = results_of(tmp_path, data)
    (data.images / "4.png").unlink()
    (data.images / "5.png").write_bytes(b"no picture")
    results["low"].write_text(json.dumps([result(99, 7, rectangle(0, 0, 9, 9), 0.9)]), encoding="utf-8")
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    (tmp_path / "odd.json").write_text("[1]", encoding="utf-8")
    results |= {"broken": tmp_path / "text.json", "odd": tmp_path / "odd.json", "gone": tmp_path / "gone.json"}
    found = compare(results, data, Choice(count=6))
    text = "\n".join(found.notes)
    assert "low: " in text
    assert "other images" in text
    for part in ("is not JSON", "is no list of COCO results", "gone.json", "image 4 left out", "image 5 left out"):
        assert part in text
    assert len(found.rows) == 4
    nothing = compare(results, AnnotatedImages(tmp_path / "gone.json", data.images))
    assert nothing.rows == []
    assert "no pictures" in nothing.notes[0]


# --- page


class Outline(HTMLParser):
    """Checks that elements close in order and collects what a test asks for."""

    EMPTY = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[key] or "" for key in ("href", "src", "xlink:href") if key in values]
        self.alts += [values.get("alt")] if tag == "img" else []
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_of_two_runs(tmp_path: Path, data: AnnotatedImages) -> None:
    runs = [make_run(tmp_path / name, data, ap) for name, ap in (("low", 0.2), ("<u>high</u>".replace("/", "_"), 0.4))]
    out = write_report(runs, tmp_path / "new" / "report.html", title="<i>Title</i>")
    text = out.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith(("#", "data:image/jpeg")) for link in outline.links)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert all(outline.alts)
    assert not outline.tags & {"b", "i", "u", "script", "iframe", "link"}
    for part in ("&lt;b&gt;bold&lt;/b&gt;", "&lt;i&gt;Title", "alert(1)", "maxDets is 100", "20.0 points above low"):
        assert part in text
    assert "url(http" not in text
    assert len(text) < 5_000_000
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "journal.jsonl").write_text(json.dumps(train_row(10)) + '\n{"kind', encoding="utf-8")
    text = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("No evaluation has finished yet", "config.yaml is missing", "no pictures", "cut off", "Losses"):
        assert part in text


def keep(folder: Path, step: int, ap: float, who: str = "teacher") -> None:
    """Make a run of `make_run` say that best.safetensors holds this network."""
    save_file({"w": np.zeros(1)}, folder / "best.safetensors", {"who": who, "step": str(step), "AP": str(ap)})


def test_the_page_shows_the_network_that_the_weights_file_holds(tmp_path: Path, data: AnnotatedImages) -> None:
    """Its headline, tables and pictures are those of an older evaluation than the last, and say of which step."""
    folder = make_run(tmp_path / "a", data)
    kept = folder / "evaluation" / "best" / "metrics.json"
    per_class = [{"name": CLASSES[7], "id": 7, "AP": 0.62, "count": 3}]
    told = {"who": "student", "step": 20, "metrics": {"AP": 0.62}, "per_class": per_class}
    kept.write_text(json.dumps(told), encoding="utf-8")
    run = read_run(folder)
    assert headline([run], ["a"]) == "a reaches a mask AP of 62.0 with its student of step 20."
    row = dict(zip((table := run_comparison([run], ["a"])).headers, table.rows[0], strict=True))
    assert (row["best"], row["AP"]) == ("student, step 20", "62.0")
    assert row["AP at the end"] == "teacher 25.0, student 25.0"
    classes = per_class_ap([run], ["a"])
    assert classes is not None
    assert classes.rows == [[CLASSES[7], "3", "62.0"]]


def test_numbers_of_another_network_never_stand_for_the_kept_one(tmp_path: Path, data: AnnotatedImages) -> None:
    """As after a kill between the weights and what was measured of them, or in a run of before both were kept."""
    folder = make_run(tmp_path / "a", data, ap=0.4)
    keep(folder, 20, 0.2)
    run = read_run(folder)
    assert run.kept is not None
    assert (run.kept.who, run.kept.step, run.kept.ap, run.kept.from_journal) == ("teacher", 20, 0.2, True)
    assert run.kept_files is None
    assert "no pictures: no run has the results" in write_report([folder], tmp_path / "r.html").read_text()
    keep(folder, 40, 0.4)
    run = read_run(folder)
    assert run.kept == run.final["teacher"]
    assert run.kept_files == folder / "evaluation" / "teacher"


def tell(folder: Path, **more: Any) -> None:
    """Add to a run's data.json."""
    path = folder / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more), encoding="utf-8")


def test_runs_that_do_not_compare_are_shown_apart(tmp_path: Path, data: AnnotatedImages) -> None:
    folders = [make_run(tmp_path / name, data, ap) for name, ap in (("a", 0.2), ("b", 0.3), ("c", 0.4))]
    for folder, content in zip(folders, ("x", "x", "y"), strict=True):
        tell(folder, fingerprints={"val": content})
    runs = [read_run(folder) for folder in folders]
    text = headline(runs, ["a", "b", "c"])
    assert "b reaches a mask AP of 30.0 with its student of step 20, 10.0 points above a (20.0)." in text
    assert "c reaches a mask AP of 40.0 with its student of step 20. " in text
    assert text.count("above") == 1
    assert "are shown apart" in text
    page = write_report(folders, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Runs that can be compared, 1 of 2" in page
    assert "Runs that can be compared, 2 of 2" in page
    titles = [panel.title for panel in all_figures(runs, ["a", "b", "c"])["ap"].panels]
    assert titles == ["mask AP (1 of 2)", "mask AP (2 of 2)"]
    assert "shown apart" not in headline(runs[:2], ["a", "b"])


def test_what_makes_scores_comparable(tmp_path: Path, data: AnnotatedImages) -> None:
    """The recorded content; where a run has none, classes and label counts; and the protocol, and masks or boxes."""
    folders = [make_run(tmp_path / name, data) for name in "abcde"]
    counts = json.loads((folders[0] / "data.json").read_text())["census"]["train"]
    for folder, images in zip(folders, (5, 5, 6, 5, 5), strict=True):
        tell(folder, census={"train": counts, "val": counts | {"images": images}})
    (folders[3] / "config.yaml").write_text(yaml.safe_dump({"evaluation": {"protocol": "lvis"}}), encoding="utf-8")
    boxes = {"who": "student", "step": 20, "metrics": {"box_AP": 0.5}}
    (folders[4] / "evaluation" / "best" / "metrics.json").write_text(json.dumps(boxes), encoding="utf-8")
    runs = [read_run(folder) for folder in folders]
    assert [runs[0].same_measure(run) for run in runs] == [True, True, False, False, False]
    assert headline([runs[4]], ["e"]) == "e reaches a box AP of 50.0 with its student of step 20."
    assert run_comparison([runs[4]], ["e"]).headers[4:7] == ("box AP", "box AP50", "box AP75")


def test_step_of_a_metrics_file_without_one_is_the_journals(tmp_path: Path, data: AnnotatedImages) -> None:
    folder = make_run(tmp_path / "a", data)
    path = folder / "evaluation" / "teacher" / "metrics.json"
    path.write_text(json.dumps({"metrics": {"AP": 0.5}}), encoding="utf-8")
    final = read_run(folder).final["teacher"]
    assert (final.ap, final.step, final.from_journal) == (0.5, 40, False)


def test_runs_on_other_data_are_left_out_of_the_pictures(tmp_path: Path, data: AnnotatedImages) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(data.annotations.read_bytes())
    first = make_run(tmp_path / "a", data)
    second = make_run(tmp_path / "b", AnnotatedImages(other, data.images))
    text = write_report([first, second], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no pictures of b: it was evaluated on another data set" in text


def test_headline_of_equals(tmp_path: Path, data: AnnotatedImages) -> None:
    runs = [read_run(make_run(tmp_path / name, data)) for name in "ab"]
    assert headline(runs, ["a", "b"]) == "a reaches a mask AP of 25.0 with its student of step 20, the same as b."
    assert headline(runs[:1], ["a"]) == "a reaches a mask AP of 25.0 with its student of step 20."


def test_nothing_is_overwritten_unless_told(tmp_path: Path, data: AnnotatedImages) -> None:
    run = make_run(tmp_path / "a", data)
    out = tmp_path / "report.html"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="exists already"):
        write_report([run], out)
    assert out.read_text(encoding="utf-8") == "mine"
    write_report([run], out, overwrite=True)
    assert "leanmask report" in out.read_text(encoding="utf-8")


def test_unwritable_places_and_empty_lists_are_run_errors(tmp_path: Path, data: AnnotatedImages) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot write "):
        write_report([make_run(tmp_path / "a", data)], tmp_path / "file" / "report.html")
    with pytest.raises(RunError, match="at least one"):
        write_report([], tmp_path / "report.html")


def test_failed_writing_leaves_nothing(tmp_path: Path, data: AnnotatedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a", data)

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "place" / "report.html"
    with pytest.raises(RunError, match="No space left on device"):
        write_report([run], out)
    assert list(out.parent.iterdir()) == []


def test_reports_never_import_torch() -> None:
    modules = ["page", "tables", "overlays", "pictures", "figures", "collect"]
    code = "import sys\n" + "".join(f"import leanmask.reports.{name}\n" for name in modules)
    code += "sys.exit('torch' in sys.modules or 'leanmask.masks' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
