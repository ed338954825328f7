"""Private names of other libraries: those that the memory room uses are listed, exist, and sit in one file."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_math.memory import patches

FOLDER = Path(patches.__file__).parent
LISTED = [name for names in patches.PRIVATE_NAMES.values() for name in names]


@pytest.mark.parametrize("name", LISTED)
def test_listed_name_exists_in_its_library(name):
    try:
        pkgutil.resolve_name(name)
    except AttributeError:  # an attribute of the instances
        owner, _, attribute = name.rpartition(".")
        assert f"self.{attribute}" in inspect.getsource(pkgutil.resolve_name(owner))


@pytest.mark.parametrize("library", patches.PRIVATE_NAMES)
def test_listed_name_belongs_to_its_library(library):
    assert all(name.split(":")[0].split(".")[0] == library for name in patches.PRIVATE_NAMES[library])


def names_used(path):
    """Private attributes, imports from private modules, and replaced names in a file; its own names are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            used.add(node.value)
        elif isinstance(node, ast.ImportFrom) and any(part.startswith("_") for part in node.module.split(".")[1:]):
            used |= {f"_{alias.name}" for alias in node.names}  # counts as private
    used = {name for name in used if name.startswith("_") and not name.endswith("_")}
    return used - own - {"_C", "_subclasses"}  # modules on the way to a name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_private_name_is_used_that_is_not_listed(path):
    listed = {name.replace(":", ".").rpartition(".")[2] for name in LISTED}
    listed |= {f"_{name}" for name in listed}  # as `names_used` writes a name from a private module
    assert names_used(path) - listed == set()


def test_patches_are_made_in_one_file():
    """Beside it, only the environment and datasets' documented offline switch are patched."""
    found = {}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("mock.patch"):
                found.setdefault(path.name, []).append(ast.unparse(node.args[0]))
    assert found.pop("patches.py")
    assert found == {"device.py": ["os.environ"], "shapes.py": ["'datasets.config.HF_HUB_OFFLINE'"]}


def test_replaced_names_are_listed():
    listed = {name.replace(":", ".").rpartition(".")[2] for name in LISTED}
    replaced = set()
    for node in ast.walk(ast.parse(Path(patches.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("mock.patch"):
            replaced.add(ast.unparse(node.args[-2]).strip("'").rpartition(".")[2])
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            replaced |= {node.attr} if ast.unparse(node.value) in ("trainer", "trainer.accelerator") else set()
    # `name` loops over the two kernels; the logger's `disabled` and TRL's `eos_token_ids` are public and no methods;
    # `triton` exists in TRL's module only beside Triton
    assert replaced - {"name", "disabled", "eos_token_ids", "triton"} <= listed


def test_importing_the_face_and_the_command_does_not_import_torch():
    code = "import sys, grpo_math.memory, grpo_math.memory.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
