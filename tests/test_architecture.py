"""Policy as tests, one per rule: who may import whom, what every file says of itself, who may print, and more."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import leanmask

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
    "paths",
    "options",
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "geometry": {"errors"},
    "rle": {"errors", "geometry"},
    "masks": {"geometry", "rle"},
    "supervision": set(),
    "records": {"geometry", "masks", "supervision"},
    "config": {"errors", "paths"},
    "costs": {"errors", "options"},
    "devices": {"errors"},
    "distributed": set(),
    "processes": set(),
    "paths": {"errors"},
    "options": {"errors"},
    "summary": set(),
    "pace": {"reports.layout"},
    "data": BASE,
    "labels": BASE,
    "models": BASE,
    "methods": BASE | {"labels", "models.base"},
    "engine": BASE | {"models.base", "methods.base", "summary"},
    "evaluation": BASE | {"models.base", "labels.calibrate"},
    "reports": {"errors", "version", "paths", "rle", "summary", "data.image_files"},
    # Labelling needs neither tensors nor models: see test_labelling_is_light.
    "annotate": {"errors", "version", "paths", "options", "geometry", "rle", "supervision", "costs", "data"},
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


def test_imports_point_down() -> None:
    for path in (path for path in FILES if room(path) in ALLOWED):
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
        "benchmark",
        "cli",
        "console",
        "inference",
        "machine_check",
        "retrieval",
        "run",
        "session",
        "settings",
        "settling",
        "planning",
        "stages",
        "spending",
        "starting",
        "suggestions",
    }


def test_every_file_says_what_it_is_for_and_every_signature_what_it_returns() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path} has no first line that says what the file is for"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{path}: {node.name} has no return type"


def test_only_the_command_line_prints_or_exits() -> None:
    for path in (path for path in FILES if room(path) not in ("cli", "console")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.exit", "exit", "os._exit"), f"{path} calls {called}"


def test_importing_is_light() -> None:
    code = "import leanmask, leanmask.reports.page, sys; assert 'torch' not in sys.modules; assert leanmask.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_public_name_is_a_submodule() -> None:
    """Importing `leanmask.x` would put the module in the place of the function of that name."""
    inside = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    assert "run" in inside
    assert not inside & (set(leanmask.__all__) - {"__version__"})


def test_public_names_stay_functions_whatever_is_imported() -> None:
    code = """
import importlib, pkgutil, leanmask
assert set(leanmask.__all__) <= set(dir(leanmask)), "dir() lists every name"
names = [found.name for found in pkgutil.walk_packages(leanmask.__path__, "leanmask.") if "__main__" not in found.name]
for name in names:
    importlib.import_module(name)
for name in leanmask.__all__ * 2:
    found = getattr(leanmask, name)
    assert callable(found) or isinstance(found, str), f"leanmask.{name} is {found!r}"
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200, "every submodule was imported"


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
