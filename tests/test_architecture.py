"""Policy as a test: who may import whom, how long things may get, who may print, and that importing does no work."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "leanmask"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a room may import of the package, besides itself. Everything else points up or sideways.
BASE = {
    "errors",
    "version",
    "geometry",
    "rle",
    "masks",
    "supervision",
    "records",
    "config",
    "costs",
    "devices",
    "distributed",
    "processes",
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "geometry": {"errors"},
    "rle": {"errors", "geometry"},
    "masks": {"geometry", "rle"},
    "supervision": set(),
    "records": {"geometry", "masks", "supervision"},
    "config": {"errors"},
    "costs": {"errors"},
    "devices": set(),
    "distributed": set(),
    "processes": set(),
    "summary": set(),
    "data": BASE,
    "labels": BASE,
    "models": BASE,
    "methods": BASE | {"labels", "models.base"},
    "engine": BASE | {"models.base", "methods.base"},
    "evaluation": BASE | {"models.base", "labels.calibrate"},
    "reports": {"errors", "version"},
    # Labelling needs neither tensors nor models: see test_labelling_is_light.
    "annotate": {"errors", "version", "geometry", "rle", "supervision", "costs", "data"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("leanmask."):
            found.add(node.module.removeprefix("leanmask."))
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("leanmask.") for alias in node.names if alias.name.startswith("leanmask.")
            }
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    if room(path) not in ALLOWED:
        return
    for module in imports(path):
        top = module.split(".")[0]
        assert top == room(path) or top in ALLOWED[room(path)] or module in ALLOWED[room(path)], (
            f"{path} imports {module}"
        )


def test_only_the_wiring_is_unrestricted() -> None:
    wiring = {room(path) for path in FILES} - set(ALLOWED)
    assert wiring == {
        "__init__",
        "__main__",
        "bench",
        "cli",
        "console",
        "doctor",
        "inference",
        "pseudo",
        "retrieval",
        "run",
        "session",
        "settings",
        "stages",
        "spending",
        "suggestions",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sizes_and_signatures(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= (600 if room(path) == "models" else 300), "file too long"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no first line that says what the file is for"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        assert node.end_lineno is not None
        assert node.end_lineno - node.lineno < 50, f"{node.name} is too long"
        parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([name for name in parameters if name not in ("self", "cls")])
        assert count <= 6 or room(path) == "cli", f"{node.name} has {count} parameters; make a dataclass"
        assert node.returns is not None, f"{node.name} has no return type"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if room(path) in ("cli", "console"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "os._exit"), f"{path} calls {called}"


def test_importing_is_light() -> None:
    code = "import leanmask, leanmask.reports.page, sys; assert 'torch' not in sys.modules; assert leanmask.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)


HEAVY = ("torch", "torchvision", "transformers", "accelerate", "sklearn")


def test_labelling_is_light() -> None:
    """The annotation server and its verb start at once: nothing they import, near or far, loads a tensor library."""
    modules = [f"leanmask.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}" for path in FILES]
    light = [name for name in modules if name.split(".")[1] == "annotate" and not name.endswith("__init__")]
    assert light
    names = ", ".join([*light, "leanmask.cli", "leanmask.cli.collect"])
    code = f"import {names}, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not done.stdout.split()
