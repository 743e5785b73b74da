"""Class frequencies of the labels, taken out of class probabilities."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from leanmask.labels.prior import without_prior

probabilities = st.lists(st.floats(0, 0.25, width=32), min_size=4, max_size=4)
numbers = st.lists(st.integers(0, 5000), min_size=4, max_size=4)


@given(probabilities, numbers, st.floats(0, 1.5))
def test_is_a_loop_over_classes(row: list[float], counts: list[int], strength: float) -> None:
    weighted = [p / max(count, 1) ** strength for p, count in zip(row, counts, strict=True)]
    total = sum(weighted)
    expected = [min(w * sum(row) / total, 1.0) if total else 0.0 for w in weighted]
    found = without_prior(torch.tensor([row], dtype=torch.float64), counts, strength)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64), atol=1e-6, rtol=1e-5)


@given(probabilities, numbers)
def test_background_keeps_its_share(row: list[float], counts: list[int]) -> None:
    found = without_prior(torch.tensor([row]), counts, 1.0)
    torch.testing.assert_close(found.sum(1), torch.tensor([row]).sum(1), atol=1e-5, rtol=1e-4)


def test_a_posterior_becomes_a_likelihood() -> None:
    """By Bayes, what a network has learned of p(class | image) is likelihood * prior; strength 1 leaves the former."""
    likelihood, counts = torch.tensor([[0.2, 0.7, 0.1]]), (900, 90, 10)
    posterior = likelihood * torch.tensor(counts)
    posterior /= posterior.sum()
    assert posterior.argmax() == 0
    torch.testing.assert_close(without_prior(posterior, counts, 1.0), likelihood)
    assert torch.equal(without_prior(posterior, counts, 0.0), posterior)
