"""LVIS's fields of an image: for which classes it was searched, so that a class nobody looked for is never background
(Gupta et al. 2019, section 3).

`neg_category_ids`: classes of which nothing is there. `not_exhaustive_category_ids`: classes of which not everything is
annotated. Every other class that has an annotation is annotated completely; the rest is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanmask.errors import DataError

NEGATIVE, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"
FEDERATED = (NEGATIVE, NOT_EXHAUSTIVE)


def known_categories(image: Mapping[str, Any], present: Iterable[int]) -> tuple[int, ...] | None:
    """The category ids of which everything in an image is annotated; None when the image says nothing about it, and
    all of them are. present: category ids of its annotations.
    """
    if NEGATIVE not in image and NOT_EXHAUSTIVE not in image:
        return None
    partly = set(image.get(NOT_EXHAUSTIVE) or ())
    return tuple(sorted((set(image.get(NEGATIVE) or ()) | set(present)) - partly))


def require_federated(
    image: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], known: Collection[int], path: Path
) -> None:
    """Raise DataError when an image's LVIS fields are no lists of the file's category ids, or call a class absent that
    has an annotation there.
    """
    for key in FEDERATED:
        given = image.get(key)
        if given is None:
            continue
        wrong = given if not isinstance(given, list) else [i for i in given if type(i) is not int or i not in known]
        if wrong or not isinstance(given, list):
            raise DataError(
                f"{path}: image {image['id']!r}: {key} must be a list of the file's category ids, found {wrong!r}"
            )
    absent = set(image.get(NEGATIVE) or ())
    for row in rows:
        if row["category_id"] in absent:
            raise DataError(
                f"{path}: image {image['id']!r}: category id {row['category_id']} is in {NEGATIVE}, but annotation "
                f"{row.get('id')!r} is one of it; remove one of the two"
            )
