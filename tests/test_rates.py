"""Classes of which pseudo-objects vanish or multiply are named, once, and only where chance is no explanation."""

from __future__ import annotations

import json

import torch

from leanmask.labels.rates import WINDOW_IMAGES, ClassRates

NAMES = ("common", "seldom", "rare")


def rates() -> ClassRates:
    """Per image 2, 0.5 and 0.01 objects: of the last a window of 400 images holds 4."""
    return ClassRates((200, 50, 1), 100, NAMES)


def window(*per_class: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class, dtype=torch.int64))


def test_as_many_as_labelled_says_nothing() -> None:
    assert rates().update(window(800, 200, 4), WINDOW_IMAGES) == []


def test_what_vanishes_and_what_multiplies_is_named() -> None:
    found = rates().update(window(50, 2000, 0), WINDOW_IMAGES)
    assert len(found) == 2
    assert "far fewer pseudo-objects than labels of common (0.12 an image, labelled 2.00)" in found[0]
    assert "far more" in found[1]
    assert "seldom (5.00 an image, labelled 0.50)" in found[1]
    assert not any("rare" in sentence for sentence in found)  # 4 expected: 0 may be chance


def test_windows_are_judged_when_full_and_one_by_one() -> None:
    watched = rates()
    assert watched.update(window(0, 200, 0), WINDOW_IMAGES - 1) == []
    assert len(watched.update(window(), 1)) == 1
    assert watched.update(window(800, 200, 0), WINDOW_IMAGES) == []


def test_a_class_is_named_when_it_begins_and_again_when_it_comes_back() -> None:
    watched = rates()
    gone, there = window(0, 200, 0), window(800, 200, 0)
    said = [len(watched.update(each, WINDOW_IMAGES)) for each in (gone, gone, there, gone)]
    assert said == [1, 0, 0, 1]


def test_goes_on_from_its_state() -> None:
    one, other = rates(), rates()
    one.update(window(3, 0, 1), 100)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    rest = window(0, 300, 0)
    assert one.update(rest, 300) == other.update(rest, 300) != []
    assert one.state_dict() == other.state_dict()


def test_without_facts_nothing_is_said() -> None:
    assert ClassRates((), 0, ()).update(torch.tensor([0, 1]), WINDOW_IMAGES) == []
