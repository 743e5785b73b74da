"""Write docs/configuration.md from the config classes, and docs/results.md and docs/which-labels.md from the raw
measurements. The prose of results.md stands in results.md.jinja.

Run `python docs/generate.py`; a test keeps the pages up to date.
"""

from __future__ import annotations

import io
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from leanmask.config import AugmentConfig, DataConfig, EvaluationConfig, Frozen, OptimConfig, TrainConfig
from leanmask.costs import LabelCosts
from leanmask.labels.budget import SCHEMES, Counts, Scheme, price
from leanmask.methods import METHODS, STAGED
from leanmask.models import MODELS
from leanmask.reports.figures import MARKERS, PALETTE
from leanmask.reports.layout import NOTHING, Table, render_markdown, spread

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
Row = dict[str, Any]
Arms = dict[tuple[str, str], list[Row]]  # by model and arm

INTRO = """# Configuration reference

Generated from the code by `python docs/generate.py`. Settings come from a YAML file (`--config`), then from dotted
overrides on the command line, later ones winning:

```
leanmask train mydata --out runs/a --config my.yaml train.steps=5000 'augment.scale_jitter=[0.5,1.5]'
```

Unknown keys and wrong values are refused before anything is written, with the nearest valid name. Every run folder
holds its settings, resolved, in `config.yaml`.
"""


@dataclass(frozen=True)
class Claim:
    """What a paper says a method does, and the arms of `leanmask bench` that say it here. labels: what a protocol's
    name starts with, and the protocol that is measured where there is no row yet. measures: what is compared, of
    "gap" (share of the way from baseline to full), "times" (method over baseline) and "of full".
    """

    system: str
    published: str
    kind: str
    labels: str
    baseline: str | None
    method: str
    measures: tuple[str, ...]

    def lines(self) -> list[list[str]]:
        """One row of the table for each data set, protocol and model that has rows; without any, one that says so."""
        found = []
        for data in DATA:
            for path in sorted(RESULTS.glob(f"{data}-{self.kind}*.json"), key=_amount):
                arms = _arms(path)
                for model in dict.fromkeys(model for model, arm in arms if arm in (self.baseline, self.method)):
                    full = _arms(RESULTS / f"{data}-full.json").get((model, "full"), [])
                    found.append(self._line(data, path, model, arms, full))
        if not found:
            return [[self.system, self.published, self.labels, "not measured", *[NOTHING] * (len(CLAIM_HEADERS) - 4)]]
        first, *others = found
        return [[self.system, self.published, *first], *(["", "", *line] for line in others)]

    def _line(self, data: str, path: Path, model: str, arms: Arms, full: list[Row]) -> list[str]:
        low = arms.get((model, self.baseline), []) if self.baseline else []
        mine = arms.get((model, self.method), [])
        sides = [side for side in (low, mine) if side]
        counted = [side for side in (low, mine, full) if side]
        return [
            path.stem.removeprefix(f"{data}-"),
            f"{data}, {model.removesuffix(LITE)}",
            spread(_values(low)),
            spread(_values(mine)),
            spread(_values(full)),
            ", ".join(text for name in self.measures if (text := _measured(name, low, mine, full))) or NOTHING,
            ", ".join(dict.fromkeys(str(len(side)) for side in counted))
            if len({len(side) for side in counted}) == 1
            else ", ".join(str(len(side)) for side in counted),
            ", ".join(f"{statistics.fmean(_values(side, 'train_seconds')) / 60:.1f}" for side in sides),
        ]


def _measured(measure: str, low: list[Row], mine: list[Row], full: list[Row]) -> str | None:
    """What a method makes of its baseline and of all labels, in the measure in which the paper's claim is put."""
    means = [statistics.fmean(_values(side)) if side else None for side in (low, mine, full)]
    bottom, reached, top = means
    if reached is None:
        return None
    if measure == "gap" and bottom is not None and top is not None:
        return f"{100 * (reached - bottom) / (top - bottom):.0f} % of the gap" if top > bottom else "no gap to close"
    if measure == "times" and bottom:
        return f"x {reached / bottom:.2f}"
    if measure == "of full" and top:
        return f"{100 * reached / top:.0f} % of all masks"
    return None


def results() -> str:
    """docs/results.md: the prose of results.md.jinja with the numbers that the rows say."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # Markdown, which nothing has to be escaped for
    text = environment.get_template("results.md.jinja").render(
        claims=_claims_table(),
        speed=_speed_table(),
        first=_first_command_table(),
        raw=_raw_rows(),
        ap=_ap,
        one=_one,
        iou=_iou,
        has=_has,
        machines=_machines(),
    )
    return "\n".join(line.rstrip() for line in re.sub(r"\n{3,}", "\n\n", text).strip().splitlines()) + "\n"


def _claims_table() -> str:
    rows = [line for claim in CLAIMS for line in claim.lines()]
    return render_markdown(Table("Published and measured", CLAIM_HEADERS, rows, text_columns=4)).strip()


def _ap(data: str, protocol: str, arm: str, metric: str = "AP", model: str = "mask_rcnn") -> str:
    """A metric of an arm in points, mean and deviation over seeds, for the prose."""
    rows = _arms(RESULTS / f"{data}-{protocol}.json").get((model + LITE, arm), [])
    return spread([row["metrics"][metric] for row in rows if metric in row["metrics"]]) if rows else "(not measured)"


def _one(data: str, protocol: str, arm: str, metric: str = "AP", overrides: tuple[str, ...] = ()) -> str:
    """A metric of seed 0 of an arm in points, with these settings besides; for the prose."""
    for row in reversed(_rows(RESULTS / f"{data}-{protocol}.json")):
        if (row["arm"], row["seed"], tuple(row["overrides"])) == (arm, 0, overrides):
            return spread([row["metrics"][metric]]) if metric in row["metrics"] else "(not measured)"
    return "(not measured)"


def _iou(data: str, protocol: str, arm: str, masks: str) -> str:
    """How far the rough or refined pseudo-masks of a run overlap the truth, mean over objects and seeds."""
    rows = _arms(RESULTS / f"{data}-{protocol}.json").get((f"solov2{LITE}", arm), [])
    found = [row["pseudo"][masks]["mask_iou"] for row in rows if masks in row.get("pseudo", {})]
    return f"{statistics.fmean(found):.2f}" if found else "(not measured)"


def _has(data: str, protocol: str, *arms: str, model: str = "mask_rcnn") -> bool:
    """Whether all of these arms of a model have a row, so that a sentence about them can stand."""
    there = {arm for name, arm in _arms(RESULTS / f"{data}-{protocol}.json") if name == model + LITE}
    return there.issuperset(arms)


def _machines() -> str:
    """The processors that the rows on photographs were made on, each with its precision."""
    made_on = [row["machine"] for path in _own_data() for rows in _arms(path).values() for row in rows]
    found = {f"{on['capability']}, in {on['precision']}, {on['threads']} of {on['cores']} cores" for on in made_on}
    return "; ".join(sorted(found)) or "none yet"


def _raw_rows() -> str:
    links = [f"[{path.stem}](../benchmarks/results/{path.name})" for path in _own_data()]
    return " · ".join(links) or "none yet"


def _own_data() -> list[Path]:
    """The files of rows on photographs, in the order of the data sets."""
    return [path for data in DATA for path in sorted(RESULTS.glob(f"{data}-*.json"), key=_amount) if _arms(path)]


def _speed_table() -> str:
    """The last row of every measurement on every kind of processor."""
    latest = {}
    for row in _rows(RESULTS / "speed.json"):
        made_on = row["machine"]
        where = f"{made_on['capability']}, {made_on['precision']}" if isinstance(made_on, dict) else OLD_MACHINE
        latest[row["what"], where] = row
    lines = [
        [text, anchor, where, row["commit"], f"{1 / row[key] if inverse else row[key]:.2g}", _arithmetic(row)]
        for what, (text, anchor, key, inverse) in SPEED.items()
        for (name, where), row in latest.items()
        if name == what
    ]
    headers = ("what", "compared with", "processor", "commit", "ratio", "arithmetic")
    return render_markdown(Table("Time and memory, as a share of what is compared with", headers, lines, 4)).strip()


def _first_command_table() -> str:
    """What `leanmask train DATA --out RUN` makes with nothing set; the last row of each data set."""
    latest = {row["data"]: row for row in _rows(RESULTS / "first_command.json")}
    lines = [
        [name, row["model"], f"{row['image_size']} px", row["commit"], str(row["steps"]),
         *(spread([row["metrics"][key]]) for key in ("AP", "AP50", "AP75"))]
        for name, row in sorted(latest.items())
    ]  # fmt: skip
    headers = ("data", "network", "images", "commit", "steps", "mask AP", "AP50", "AP75")
    return render_markdown(Table("The first command", headers, lines, text_columns=4)).strip()


def _arithmetic(row: dict[str, Any]) -> str:
    """What convolutions and matrix products alone are of what the row is compared with."""
    return f"{row['arithmetic_ratio']:.2g}" if "arithmetic_ratio" in row else NOTHING


def which_labels() -> str:
    """docs/which-labels.md: what the labels of the photographs cost and what models they made."""
    rows = []
    for data in DATA:
        found, hours = _label_aps(data), _label_hours(data)
        for (protocol, model, arm), aps in sorted(found.items(), key=lambda item: (hours[item[0][0]], item[0])):
            if arm in ARM_NAMES:
                full = found.get(("full", model, "full"))
                share = f"{100 * statistics.fmean(aps) / statistics.fmean(full):.0f} %" if full else NOTHING
                named = protocol, model.removesuffix(LITE), ARM_NAMES[arm]
                rows.append([data, *named, f"{hours[protocol]:.1f}", spread(aps), share, str(len(aps))])
    headers = ("data", "labels", "model", "trained with", "hours", "mask AP", "of all masks", "seeds")
    objects = ", ".join(f"{data} {_objects(data):,}" for data in DATA)
    note = f"Objects of the training images, named by somebody already: {objects}."
    table = Table("What labels cost, and the models they made", headers, rows, text_columns=4, note=note)
    return f"{LABELS_INTRO.strip()}\n\n{render_markdown(table).strip()}\n{LABELS_ADVICE}"


def labels_chart() -> str:
    """docs/images/which-labels.svg: mask AP over hours of labelling, a picture for each data set with rows."""
    shown = [data for data in DATA if _label_aps(data)] or list(DATA)
    with mpl.rc_context({"svg.hashsalt": "leanmask", "svg.fonttype": "none", "font.size": 8.0}):
        figure = Figure(figsize=(2.6 * len(shown), 3.1), layout="constrained")
        pictures = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, data in zip(pictures, shown, strict=True):
            hours = _label_hours(data)
            drawn: dict[str, list[tuple[float, list[float]]]] = {}
            for (protocol, _, arm), aps in _label_aps(data).items():
                if (name := _kind(protocol, arm)) is not None:
                    drawn.setdefault(name, []).append((hours[protocol], [100 * ap for ap in aps]))
            for number, name in enumerate(KINDS):
                points = sorted(drawn.get(name, []))
                axes.errorbar(
                    [at for at, _ in points],
                    [statistics.fmean(aps) for _, aps in points],
                    [statistics.stdev(aps) if len(aps) > 1 else 0.0 for _, aps in points],
                    color=PALETTE[number],
                    marker=MARKERS[number],
                    linestyle="none",
                    label=name,
                    capsize=2,
                    markersize=5,
                )
            axes.set_xscale("log")
            axes.set_xticks(TICKS_HOURS, [f"{hour:g}" for hour in TICKS_HOURS])
            axes.minorticks_off()
            axes.set_xlim(0.8 * hours[BOUNDS[0]], 1.3 * hours[BOUNDS[1]])
            axes.set_title(data)
            axes.set_xlabel("hours of labelling")
            axes.grid(color="#dddddd", linewidth=0.6)
        pictures[0].set_ylabel("mask AP on val")
        figure.legend(*pictures[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _kind(protocol: str, arm: str) -> str | None:
    """Which of `KINDS` a row is, None = it is not drawn."""
    return next((name for name, (kind, arms) in KINDS.items() if protocol.startswith(kind) and arm in arms), None)


def _label_aps(data: str) -> dict[tuple[str, str, str], list[float]]:
    """Mask APs of all seeds by protocol, model and arm, of protocols that have a price."""
    return {
        (protocol, model, arm): _values(rows)
        for protocol in _label_hours(data)
        for (model, arm), rows in _arms(RESULTS / f"{data}-{protocol}.json").items()
    }


def _label_hours(data: str) -> dict[str, float]:
    schemes = (*SCHEMES, *BY_IMAGES)
    return {scheme.name: price(scheme, Counts(_objects(data), 0), LabelCosts()).hours for scheme in schemes}


def _objects(data: str) -> int:
    counted = json.loads((RESULTS / f"{data}-budget.json").read_text(encoding="utf-8"))
    return int(counted["census"]["objects"]["mask"])


def _arms(path: Path) -> Arms:
    """A file's rows on `val` without further settings by model and arm, one for each seed: the last that was added."""
    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in _rows(path):
        if "arm" in row and row["split"] == "val" and not row["overrides"]:
            found.setdefault((row["model"], row["arm"]), {})[row["seed"]] = row
    return {key: list(seeds.values()) for key, seeds in found.items()}


def _values(rows: list[Row], name: str | None = None) -> list[float]:
    """Mask AP of every row, or another number that stands beside the metrics."""
    return [float(row[name] if name else row["metrics"]["AP"]) for row in rows]


def _rows(path: Path) -> list[Row]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found if isinstance(found, list) else []


def _amount(path: Path) -> tuple[str, float]:
    """Sorts points-5 before points-10."""
    kind, _, amount = path.stem.rpartition("-")
    return (kind, float(amount)) if re.fullmatch(r"[\d.]+", amount) else (path.stem, 0.0)


def page() -> str:
    """docs/configuration.md."""
    parts = [INTRO]
    for name, config in (
        ("data", DataConfig),
        ("augment", AugmentConfig),
        ("optim", OptimConfig),
        ("train", TrainConfig),
        ("evaluation", EvaluationConfig),
    ):
        parts.append(_section(name, config))
    parts += [_section("model", model.Config, name) for name, model in MODELS.items()]
    parts += [_section("method", method.Config, name) for name, method in (METHODS | STAGED).items()]
    return "\n".join(parts)


# The data sets of the tables, by the names that their rows begin with.
DATA = ("animals", "facades", "nuclei")
LITE = "-lite0"  # of a model's name in rows: the backbone of all of them
OLD_MACHINE = "not recorded"  # rows of before processors were named

CLAIM_HEADERS = (
    "system",
    "published",
    "labels",
    "measured on",
    "baseline",
    "method",
    "all masks",
    "comparable",
    "seeds",
    "minutes",
)
CLAIMS = (
    Claim(
        "MaskBooster (AAAI 2023)",
        "COCO, Mask R-CNN R50: 1 % of the masks 31.2 → 34.1 of 37.1, 49 % of the gap; 10 % 34.6 → 36.2, 64 %",
        "sparse-",
        "sparse-1",
        "baseline",
        "maskbooster",
        ("gap",),
    ),
    Claim(
        "Pointly-Supervised (CVPR 2022)",
        "COCO, Mask R-CNN R50: 36.1 of 37.2 with ten points, 97 %",
        "points-",
        "points-10",
        None,
        "points",
        ("of full",),
    ),
    Claim(
        "PL-DC (preprint)",
        "COCO, Mask2Former R50, 10 % of the images: 30.5 → 36.5, x 1.20",
        "semi-",
        "semi-10",
        "baseline",
        "pldc",
        ("times", "of full"),
    ),
    Claim(
        "PointWSSIS (CVPR 2023)",
        "COCO test-dev, SOLOv2 R101: 10 % of the images 35.8 of 39.7, 90 %; 5 % 33.7, 85 %",
        "weak-semi-",
        "weak-semi-10",
        "baseline",
        "pointwssis",
        ("times", "of full"),
    ),
    Claim(
        "Better (pseudo-)labels (Porcher et al. 2024)",
        "LVIS, EVA-02-L: rare classes 47.0 → 57.3, all 54.0 → 56.8; calibration error 0.22 → 0.07",
        "longtail",
        "longtail",
        "baseline",
        "better_labels",
        (),
    ),
)

# Measurements of `leanmask bench speed` that the page shows: their name, what each is compared with, the key of the
# ratio, and whether the rows have it the other way round.
SPEED = {
    "training step": ("training step, Mask R-CNN R50, 256 px, two images", "torchvision's own loop", "ratio", False),
    "inference": ("inference, the same model and images", "torchvision", "ratio", False),
    "default_step": ("what is not network in a step of the default size", "the whole step", "not_network", False),
    "maskbooster_step": ("MaskBooster's step", "a supervised step", "ratio", False),
    "semi_step": ("PL-DC's step, an unlabelled image for each labelled one", "the labelled ones alone", "ratio", False),
    "data_share": ("waiting for data, two workers", "the whole step", "share", False),
    "target_memory": ("memory of the targets, 300 objects at 1,024 px", "dense masks", "ratio", False),
    "coco_evaluation": ("COCO evaluation, equal to 1e-6", "pycocotools", "ratio", True),
}

ARM_NAMES = {
    "baseline": "the labels alone",
    "points": "the labels alone",
    "full": "the labels alone",
    "maskbooster": "MaskBooster",
    "self_training": "self-training",
    "pointwssis": "PointWSSIS",
    "pldc": "PL-DC",
}

# Labels of whole images, which `budget` does not price: a share of the images has masks, so about that share of the
# objects, and the others nothing or a point and class each.
BY_IMAGES = tuple(
    Scheme(f"{name}-{percent}", mask_fraction=percent / 100, points=points)
    for name, points in (("semi", 0), ("weak-semi", 1))
    for percent in (2, 5, 10)
)

TICKS_HOURS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
BOUNDS = ("semi-5", "full")  # the cheapest and the dearest protocol of the chart

# What the chart shows: the protocols' kind and the arms.
KINDS = {
    "masks on some objects": ("sparse-", ("baseline",)),
    "the same, MaskBooster": ("sparse-", ("maskbooster",)),
    "points on all": ("points-", ("points",)),
    "masks on some images": ("semi-", ("baseline",)),
    "the same, PL-DC": ("semi-", ("pldc",)),
    "and points, PointWSSIS": ("weak-semi-", ("pointwssis",)),
    "all masks": ("full", ("full",)),
}

LABELS_INTRO = """
# Which labels to buy

Generated by `python docs/generate.py` from the rows in `benchmarks/results/` ([results.md](results.md) puts them beside
what is published) and the prices that [budget.md](budget.md) explains: 79.2 s a mask, 7 s a box, 0.9 s a classified
point, for objects that somebody has found and named already. `leanmask budget` prices your own data.

![mask AP over hours of labelling, for each kind of label, on each data set](images/which-labels.svg)
"""

LABELS_ADVICE = """
How to read it: rows are in the order of what their labels cost. All models are small ones on ImageNet's features,
trained for a few minutes, so look at the shares of what all masks make, not at the AP. Two trainings that differ in
the seed alone can be points apart, most of all on `animals` (84 objects in `val`): differences that are not clearly
larger than the deviations say nothing.

`sparse-R`: R % of the objects have a mask, the others a box. `points-N`: N classified points and a box on every object.
`semi-P`: P % of the images have all masks, the others are unlabelled, and nobody has looked for objects there, which
the other rows take for done. `weak-semi-P`: there every object has one point and its class, of which "the labels alone"
makes no use. Rows of few masks paste copies of objects into other images, those of all masks do not.
"""


def _section(prefix: str, config: type[Frozen], name: str | None = None) -> str:
    title = f"## {prefix}" + (f": `{name}`" if name else "")
    meaning = " ".join((config.__doc__ or "").split())
    lines = [title, "", meaning, "", "| setting | type | default | meaning |", "|---|---|---|---|"]
    for key, field in config.model_fields.items():
        description = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{prefix}.{key}` | {_type(field.annotation)} | {_default(field)} | {description} |")
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{value}`" for value in parts)
    if type(None) in parts:
        return " \\| ".join([_type(part) for part in parts if part is not type(None)] + ["`null`"])
    return str(annotation).replace("typing.", "") if parts else str(annotation.__name__)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "*required*"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


PAGES = {"configuration.md": page, "results.md": results, "which-labels.md": which_labels}
CHARTS = {"which-labels.svg": labels_chart}  # their bytes depend on matplotlib's version, so no test compares them

if __name__ == "__main__":
    for name, write in PAGES.items():
        (HERE / name).write_text(write(), encoding="utf-8")
    for name, write in CHARTS.items():
        (HERE / "images" / name).write_text(write(), encoding="utf-8")
