"""How many of the images that `leanmask retrieve` finds for the rare digits show them, against images taken at random.

    python benchmarks/retrieval_precision.py DATA RUN [RUN ...] [--neighbours 4 16 64] [--out FILE] [--keep FOLDER]

DATA: digits with a long tail and an unlabelled pool (`leanmask digits DATA --longtail --unlabelled 2000`); RUN: a run
whose network embeds. Per run and number of neighbours: images found, the share of them that show the class they were
found for, the share that show any rare class, and both shares of the whole pool, which is what random choice gives.

FOLDER: keeps the images that were found, in a folder of each run found-N.json, and as many random ones of the pool,
random-N.json. What they do to rare AP: `leanmask bench longtail --arms adjusted data.unlabelled=[.../found-N.json]`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from leanmask.benchmark.commit import commit
from leanmask.data.files import image_files, write_json
from leanmask.devices import machine
from leanmask.retrieval.retrieve import RetrieveOptions, retrieve


def shown_classes(data: Path) -> dict[str, set[str]]:
    """The names of the classes that every unlabelled image shows, by file name."""
    content = json.loads((data / "truth" / "instances_unlabelled.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    shown: dict[str, set[str]] = defaultdict(set)
    for annotation in content["annotations"]:
        shown[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    return shown


def measure(run: Path, data: Path, neighbours: int, work: Path) -> dict[str, Any]:
    """One row."""
    out = work / f"found-{neighbours}.json"
    options = RetrieveOptions(neighbours=neighbours, model=str(run), index=work / "index")
    summary = retrieve(data, data / "unlabelled", out, options)
    found = json.loads(out.read_text(encoding="utf-8"))["images"]
    shown, rare = shown_classes(data), set(summary.per_class)
    right = [image["retrieved_for"] in shown[Path(image["file_name"]).name] for image in found]
    chance = [sum(image["retrieved_for"] in classes for classes in shown.values()) / len(shown) for image in found]
    return {
        "run": run.name,
        "neighbours": neighbours,
        "queries": summary.queries,
        "pool": summary.pool,
        "images": len(found),
        "precision": round(sum(right) / len(right), 4),
        "precision_at_random": round(sum(chance) / len(chance), 4),
        "any_rare": round(sum(bool(rare & shown[Path(image["file_name"]).name]) for image in found) / len(found), 4),
        "any_rare_at_random": round(sum(bool(rare & classes) for classes in shown.values()) / len(shown), 4),
        "found_for": summary.per_class,
        "commit": commit(),
        "machine": machine(),
    }


def keep_random(found: Path, pool: Path, out: Path) -> None:
    """A COCO file like the one of the found images, of as many images of the pool taken at random."""
    content = json.loads(found.read_text(encoding="utf-8"))
    files = image_files(pool, recursive=True)
    chosen = random.Random(0).sample(files, len(content["images"]))
    content["info"]["description"] = "images at random"
    content["images"] = [
        {"id": number, "file_name": str(path.resolve()), "width": image["width"], "height": image["height"]}
        for number, (path, image) in enumerate(zip(chosen, content["images"], strict=True), 1)
    ]
    write_json(out, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/retrieval_precision.json"))
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for run in options.runs:
            work = (options.keep or Path(scratch)) / run.name
            for count in options.neighbours:
                rows.append(measure(run, options.data, count, work))
                if options.keep:
                    found, at_random = (work / f"{kind}-{count}.json" for kind in ("found", "random"))
                    keep_random(found, options.data / "unlabelled", at_random)
    write_json(options.out, rows, overwrite=True)
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
