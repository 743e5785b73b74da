"""A contact sheet of retrieved images: per class, what was looked for and what was found, most similar first."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape
from PIL import Image

from leanmask.reports.page import write_page

THUMBNAIL_PX = 112
MOST_QUERIES, MOST_HITS = 12, 60  # shown per class


@dataclass(frozen=True)
class Hit:
    """A found image: the class of the object that it is most similar to, and the cosine similarity."""

    path: Path
    category: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Sheet:
    """What to show. queries: class and picture of the objects that were looked for. model: whose similarity it is."""

    hits: Sequence[Hit]
    queries: Sequence[tuple[str, Image.Image]]
    model: str


def write_contact_sheet(sheet: Sheet, out: Path, read: Callable[[Path], Image.Image | None]) -> None:
    """Write one HTML page that loads nothing from outside. read: opens an image upright. Raises RunError."""
    parts = []
    for name in dict.fromkeys(name for name, _ in sheet.queries):
        queries = [picture for own, picture in sheet.queries if own == name][:MOST_QUERIES]
        hits = [hit for hit in sheet.hits if hit.category == name]
        looked = "".join(_figure(picture, "looked for") for picture in queries)
        pictures = [(hit, read(hit.path)) for hit in hits[:MOST_HITS]]
        found = "".join(
            _figure(picture, f"{hit.similarity:.2f} {hit.path.name}")
            for hit, picture in pictures
            if picture is not None
        )
        more = f", the first {MOST_HITS} are shown" if len(hits) > MOST_HITS else ""
        parts.append(
            f"<section><h2>{escape(name)}</h2><div>{looked}</div><h3>{len(hits)} images{more}</h3>"
            f"<div>{found}</div></section>"
        )
    write_page(out, PAGE.format(model=escape(sheet.model), parts="\n".join(parts)))


def _figure(picture: Image.Image, caption: str) -> str:
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    told = escape(caption)
    return f'<figure><img src="data:image/jpeg;base64,{data}" alt="{told}"><figcaption>{told}</figcaption></figure>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Retrieved images</title><style>
body {{ font-family: system-ui, sans-serif; margin: 2rem; color-scheme: light dark; }}
div {{ display: flex; flex-wrap: wrap; gap: .5rem; }}
figure {{ margin: 0; width: 7.2rem; font-size: .7rem; overflow-wrap: anywhere; }}
</style></head><body><h1>Retrieved images</h1><p>Cosine similarity by {model}.</p>
{parts}
</body></html>
"""
