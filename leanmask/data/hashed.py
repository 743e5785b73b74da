"""A fixed share of things by the hash of their names: the same ones whatever else is there, on every machine."""

from __future__ import annotations

import hashlib


def in_share(key: str, share: float) -> bool:
    """Whether the thing of this name is in the share, a fraction from 0 to 1, of all names. A larger share has all that
    a smaller one has.
    """
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
