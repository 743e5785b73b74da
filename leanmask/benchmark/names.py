"""Names of the folders that benchmarks make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

LONGEST_BYTES = 160  # file systems take 255, of which locks and files beside the folder need some
DIGEST_BYTES = 4


def folder_name(parts: Iterable[str]) -> str:
    """What a folder is of, such as data, protocol and overrides, as its name; one that is too long for a file system is
    cut and ends in a digest of the whole, so that no two share a name.
    """
    whole = "-".join(parts).replace("=", "_").replace("/", "_")
    name = whole.encode(errors="surrogateescape")
    if len(name) <= LONGEST_BYTES:
        return whole
    digest = hashlib.blake2b(name, digest_size=DIGEST_BYTES).hexdigest()
    return f"{name[: LONGEST_BYTES - 2 * DIGEST_BYTES - 1].decode(errors='ignore')}-{digest}"
