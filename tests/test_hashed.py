"""A fixed share by hash."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leanmask.data.hashed import in_share


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_shares_grow(key: str, one: float, other: float) -> None:
    assert not in_share(key, 0.0)
    assert in_share(key, 1.0)
    assert in_share(key, min(one, other)) <= in_share(key, max(one, other))


def test_a_share_is_about_as_large_as_asked() -> None:
    assert 170 < sum(in_share(f"{number}.jpg", 0.2) for number in range(1000)) < 230
    assert in_share("1.jpg", 0.2) == in_share("1.jpg", 0.2)
