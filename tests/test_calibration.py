"""Smoothed labels, calibration errors and corrected labels against naive loops; reliability from results to report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_helpers import Outcome

from leanmask.benchmark.speed_evaluation import synthetic_results
from leanmask.errors import ConfigError
from leanmask.evaluation.calibration import measure_calibration
from leanmask.labels.calibrate import calibration_error, class_errors, corrected, reliability
from leanmask.labels.smooth import (
    Prototypes,
    Smoothing,
    modulated,
    similarity,
    smooth,
    smoothing_table,
    uniform_table,
    without_prototype,
)

CLASSES, WIDTH = 5, 7


def naive_table(prototypes: Any, counts: Any, how: Smoothing) -> list[list[float]]:
    """Equations 1 to 3, number by number."""
    n = len(counts)
    spread = []
    for i in range(n):
        row = []
        for j in range(n):
            a, b = prototypes[i], prototypes[j]
            cosine = sum(x * y for x, y in zip(a, b, strict=True))
            cosine /= math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            row.append(math.exp(cosine / counts[j] ** how.gamma))
        spread.append([value / sum(row) for value in row])
    table = []
    for label in range(n):
        share = [spread[label][j] if how.reading == "row" else spread[j][label] for j in range(n)]
        table.append([(1 - how.epsilon) * (j == label) + how.epsilon * share[j] for j in range(n)])
    return table


@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 200), min_size=CLASSES, max_size=CLASSES),
    st.floats(0, 1),
    st.floats(0, 3),
    st.sampled_from(["row", "column"]),
)
@settings(max_examples=40, deadline=None)
def test_smoothing_is_the_published_formula(
    seed: int, counts: list[int], epsilon: float, gamma: float, reading: Any
) -> None:
    prototypes = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    how = Smoothing(epsilon, gamma, reading)
    table = smoothing_table(prototypes, torch.tensor(counts), how)
    expected = torch.tensor(naive_table(prototypes.tolist(), counts, how))
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=1e-5)
    if reading == "row":
        torch.testing.assert_close(table.sum(1), torch.ones(CLASSES), atol=1e-5, rtol=0)
    assert (table >= 0).all()


def test_rare_classes_get_more_and_similar_ones_too() -> None:
    prototypes = torch.eye(3, dtype=torch.float64) + torch.tensor([[0.0, 0.9, 0], [0.9, 0, 0], [0, 0, 0]])
    even = smoothing_table(prototypes, torch.tensor([10, 10, 10]), Smoothing(gamma=0))
    assert even[0, 1] > even[0, 2]  # the second class looks like the first, the third does not
    rare = modulated(similarity(prototypes), torch.tensor([1000, 1, 1000]), 1.5)
    assert rare[0, 1] > 2 * rare[0, 2]
    # Published: at N = 10 and gamma 1.5 the exponent is below 0.032.
    assert modulated(torch.ones(2, 2), torch.tensor([10, 10**9]), 1.5)[0, 0] < math.exp(0.032) / 2


def test_a_class_without_objects_is_uniform_and_named() -> None:
    known = Prototypes(3)
    known.add(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 2]))
    means = known.means()
    assert means[0].tolist() == [2, 0]
    assert means[1].isnan().all()
    table = smoothing_table(means, known.counts, Smoothing(epsilon=0.3))
    assert table.isfinite().all()
    torch.testing.assert_close(table[1], torch.tensor([0.1, 0.8, 0.1]))
    assert "1 of 3 classes have no object" in str(without_prototype(known.counts, ["a", "b", "c"]))
    assert str(without_prototype(known.counts, ["a", "b", "c"])).endswith(": b")
    assert without_prototype(torch.ones(1), ["a"]) is None
    nothing = Prototypes(3)
    torch.testing.assert_close(smoothing_table(nothing.means(), nothing.counts), uniform_table(3), atol=1e-6, rtol=0)


def test_prototypes_are_running_means_and_can_be_saved() -> None:
    values, categories = torch.randn(20, 4), torch.randint(3, (20,))
    whole, parts = Prototypes(3), Prototypes(3)
    whole.add(values, categories)
    parts.add(values[:7], categories[:7])
    again = Prototypes(3)
    again.load_state_dict(parts.state_dict())
    again.add(values[7:], categories[7:])
    torch.testing.assert_close(again.means(), whole.means(), equal_nan=True)


def test_uniform_smoothing_and_its_limits() -> None:
    assert torch.equal(smooth(torch.tensor([1]), uniform_table(4, 0.0)), torch.eye(4)[[1]])
    torch.testing.assert_close(uniform_table(4, 0.4)[0], torch.tensor([0.7, 0.1, 0.1, 0.1]))
    for wrong in ({"epsilon": 1.5}, {"gamma": -1.0}):
        with pytest.raises(ConfigError, match="smoothing"):
            Smoothing(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 3)), max_size=60), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_class_errors_are_the_published_sum(found: list[tuple[float, bool, int]], bins: int) -> None:
    confidence = torch.tensor([each[0] for each in found], dtype=torch.float64)
    right = torch.tensor([each[1] for each in found], dtype=torch.bool)
    categories = torch.tensor([each[2] for each in found], dtype=torch.int64)
    errors, counts = class_errors(confidence, right, categories, 5, bins)
    for category in range(5):
        own = [(c, r) for c, r, k in found if k == category]
        expected = 0.0
        for b in range(bins):
            inside = [(c, r) for c, r in own if min(int(c * bins), bins - 1) == b]
            if inside:
                accuracy = sum(r for _, r in inside) / len(inside)
                sure = sum(c for c, _ in inside) / len(inside)
                expected += len(inside) / len(own) * (accuracy - sure)
        assert float(errors[category]) == pytest.approx(expected, abs=1e-9)
        assert int(counts[category]) == len(own)
    assert float(errors.abs().max()) <= 1


def test_invariants_of_calibration() -> None:
    sure = torch.full((10,), 0.9)
    right = torch.arange(10) < 6
    errors, _ = class_errors(sure, right, torch.zeros(10, dtype=torch.int64), 2)
    assert float(errors[0]) == pytest.approx(-0.3)  # confidence 0.9, accuracy 0.6
    assert float(errors[1]) == 0
    assert calibration_error(reliability(sure, torch.arange(10) < 9)) == pytest.approx(0, abs=1e-6)
    assert calibration_error(reliability(sure, right)) == pytest.approx(0.3)
    assert math.isnan(calibration_error(reliability(torch.zeros(0), torch.zeros(0, dtype=torch.bool))))
    table = corrected(torch.tensor([[0.9, 0.05]]), torch.tensor([-0.3, 0.2]), 2.0)
    torch.testing.assert_close(table, torch.tensor([[0.3, 0.45]]))
    assert corrected(torch.tensor([[0.9, 0.05]]), torch.tensor([0.3, -0.2]), 2.0).tolist() == [[1.0, 0.0]]
    with pytest.raises(ConfigError, match="bins is 0"):
        reliability(sure, right, 0)


def truth_and_results(tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every object found with score 0.95 but for one in five, found in the wrong place."""
    truth, _ = synthetic_results(images=10, detections=1, classes=3, seed=3)
    results = [
        {key: row[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": 0.95}
        for row in truth["annotations"]
    ]
    for image in truth["images"]:
        wrong = next(row for row in results if row["image_id"] == image["id"])
        wrong["category_id"] = wrong["category_id"] % 3 + 1
        twin = [row for row in results if row["image_id"] == image["id"]][1]
        results.append({**twin, "score": 0.15})  # a second result for the same object is wrong
    return truth, results


def test_measured_from_results(tmp_path: Path) -> None:
    truth, results = truth_and_results(tmp_path)
    found = measure_calibration(truth, results)
    assert [(each["low"], each["count"]) for each in found.bins] == [(0.1, 10), (0.9, 100)]
    assert found.bins[0]["accuracy"] == 0
    assert found.bins[1]["accuracy"] == pytest.approx(0.9, abs=0.02)  # a wrong class may hit another object
    expected = sum(each["count"] * abs(each["accuracy"] - each["confidence"]) for each in found.bins) / 110
    assert found.ece == pytest.approx(expected)
    assert {each["id"] for each in found.per_class} == {1, 2, 3}
    assert measure_calibration(truth, []).to_json()["ece"] is None


def test_what_nobody_looked_for_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    truth, results = truth_and_results(tmp_path)
    gone = truth["images"][0]["id"]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] != gone]
    for image in truth["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    everything = measure_calibration(truth, results)
    assert everything.left_out == sum(row["image_id"] == gone for row in results)
    truth["images"][1]["not_exhaustive_category_ids"] = [1, 2, 3]
    assert measure_calibration(truth, results).left_out > everything.left_out


def test_command_line_and_figure(tmp_path: Path, digits: Path, leanmask: Callable[..., Outcome]) -> None:
    truth = json.loads((digits / "annotations" / "instances_val.json").read_text())
    keys = ("image_id", "category_id", "segmentation", "bbox")
    rows = [{key: row[key] for key in keys} | {"score": 0.4} for row in truth["annotations"]]
    results, figure = tmp_path / "results.json", tmp_path / "reliability.svg"
    results.write_text(json.dumps(rows))
    done = leanmask("evaluate", results, digits, "--calibration", "--figure", figure, "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert content["metrics"]["ECE"] == pytest.approx(0.6)
    assert content["calibration"]["bins"][0]["count"] == len(rows)
    assert figure.read_text().count("<svg") == 1
    assert "Can scores be trusted?" in leanmask("evaluate", results, digits, "--calibration").out
    refused = leanmask("evaluate", results, digits, "--calibration", "--figure", figure)
    assert refused.code == 2
    assert "not overwritten" in refused.err
    assert "give both" in leanmask("evaluate", results, digits, "--figure", tmp_path / "b.svg").err
