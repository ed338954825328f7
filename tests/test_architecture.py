"""The package's rooms: imports point down only and never in a circle, the light rooms load no torch, no file is too long."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "grpo_math"
# Which rooms a room may import. `errors` and `startup` are everybody's.
MAY_IMPORT = {
    "__main__": {"cli"},
    "cli": {"commands", "run", "memory", "recipe", "report"},
    "commands": {
        "run",
        "memory",
        "recipe",
        "models",
        "tasks",
        "rewards",
        "answers",
        "evaluation",
        "report",
        "html_report",
        "files",
    },
    "run": {"memory", "recipe", "models", "tasks", "rewards", "trainer", "evaluation", "report", "files"},
    "memory": {"recipe", "models", "tiny_model", "tasks", "trainer", "evaluation", "decoding", "blocked_weights"},
    "recipe": {"models", "tasks", "trainer"},
    "models": {"tiny_model"},
    "tiny_model": {"tasks"},
    "tasks": {"rewards"},
    "rewards": {"answers", "expressions"},
    "answers": {"expressions"},
    "expressions": set(),
    "trainer": {"decoding", "files"},
    "decoding": {"blocked_weights"},
    "blocked_weights": set(),
    "evaluation": {"rewards", "decoding"},
    "math_accuracy": {"evaluation", "rewards"},
    "report": {"files"},
    "html_report": {"report", "recipe", "evaluation", "files"},
    "files": set(),
    "private_names": set(),
    "errors": set(),
    "startup": set(),
}
EVERYBODYS = {"errors", "startup"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions; not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from package import room` imports the room, `from room import name` the room alone
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES} - {"grpo_math"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_the_allowed_imports_have_no_circle():
    assert list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_every_room_is_listed():
    rooms = {room_of(module) for module in MODULES if module != "grpo_math"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"grpo_math"}))
def test_imports_point_down(module):
    room = room_of(module)
    imported = {room_of(name) for name in imported_modules(MODULES[module])} - {room}
    assert imported <= MAY_IMPORT[room] | EVERYBODYS


def test_no_files_import_each_other_in_a_circle():
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}
    # What a package's face re-exports is imported from it by others, never by its own files
    for module, imported in graph.items():
        face = module.rpartition(".")[0]
        assert face not in imported or face == "grpo_math", f"{module} imports its own package's face"
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_a_circle_would_be_found():
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


@pytest.mark.parametrize("room", ["answers", "expressions", "rewards", "memory", "recipe", "cli", "errors", "startup"])
def test_light_rooms_import_no_torch(room):
    code = f"import sys, grpo_math.{room}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("room", ["answers", "expressions", "rewards"])
def test_text_rules_and_rewards_need_the_standard_library_only(room):
    for module, path in MODULES.items():
        if module != "grpo_math" and room_of(module) == room:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert {name.split(".")[0] for name in names} - {"grpo_math"} <= set(sys.stdlib_module_names)


def test_no_file_is_longer_than_400_lines():
    files = [path for folder in ("grpo_math", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
