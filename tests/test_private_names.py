"""Private names of other libraries: each that is listed exists, and the package uses no other."""

import ast
import importlib
import re
from functools import reduce
from pathlib import Path

import bitsandbytes  # noqa: F401  (registers its operations)
import pytest
import trl.trainer.grpo_trainer
from conftest import ROOT
from trainer_fixtures import prompts, reward, tiny_model, tiny_tokenizer
from trl import GRPOConfig, GRPOTrainer

from grpo_math.memory import patches
from grpo_math.private_names import PRIVATE_NAMES
from grpo_math.trainer import GRPOMathTrainer

FILES = sorted((ROOT / "grpo_math").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
LISTED = sorted(
    {name for table in (PRIVATE_NAMES, patches.PRIVATE_NAMES) for names in table.values() for name in names}
)
# Calls that replace the name that they are given as a text
REPLACES = {"patch", "object", "setattr"}
# Documented interfaces: of named tuples, of loggers
PUBLIC = {"_replace", "disabled"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trls: set[str]) -> set[str]:
    """Private names that the package itself defines and that a TRL trainer has not: functions, classes, attributes."""
    own = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
    return own - trls


def used_names(tree: ast.Module) -> set[str]:
    """Private names that a file reads, sets or imports, and every name that it replaces by its text."""
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.module.startswith("grpo_math"):
            words = [alias.name for alias in node.names] + node.module.split(".")
            used |= {word for word in words if is_private(word)}
        if isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if function in REPLACES:
                used |= {text.rpartition(".")[2] for text in texts if re.fullmatch(r"[\w.]+", text)}
            elif function in ("getattr", "hasattr"):
                used |= {text for text in texts if is_private(text)}
    return used


def test_no_private_name_is_used_that_is_not_listed(stock_trainer):
    own = own_names(set(dir(stock_trainer)))
    listed = {part for name in LISTED for part in re.split(r"[.:]", name)}
    unlisted = {path.name: used_names(tree) - own - listed - PUBLIC for path, tree in TREES.items()}
    assert {name: names for name, names in unlisted.items() if names} == {}


def test_patches_are_made_in_one_file():
    """`mock.patch` and assignments to another library's methods have one room."""
    patching = {
        path.name
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("mock.patch", "mock.patch.object")
    }
    assert patching == {"patches.py"}


def test_what_the_patches_replace_is_listed():
    listed = {re.split(r"[.:]", name)[-1] for name in LISTED}
    tree, replaced = ast.parse(Path(patches.__file__).read_text(encoding="utf-8")), set()
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("grpo_math")
    ]
    own = {alias.name for node in imports for alias in node.names}  # a package may replace what is its own
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("mock.patch"):
            if ast.unparse(node.args[0]) in own:
                continue
            replaced.add(ast.unparse(node.args[-2]).strip("'").rpartition(".")[2])
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            replaced |= {node.attr} if ast.unparse(node.value) in ("trainer", "trainer.accelerator") else set()
    # `name` loops over the two kernels; TRL's `eos_token_ids` is public and no method; its module has `triton` only
    # where Triton is installed
    assert replaced - {"name", "eos_token_ids", "triton"} - PUBLIC <= listed


@pytest.mark.parametrize("table", [PRIVATE_NAMES, patches.PRIVATE_NAMES], ids=["package", "memory"])
def test_each_listed_name_stands_under_its_library(table):
    for library, names in table.items():
        assert {re.split(r"[.:]", name)[0] for name in names} == {library}


@pytest.fixture(scope="module")
def stock_trainer(tmp_path_factory):
    """After a step: some attributes are set by the training only."""
    args = GRPOConfig(
        str(tmp_path_factory.mktemp("stock")), use_cpu=True, bf16=False, report_to="none", max_steps=1, save_strategy="no",
        max_completion_length=2,
    )  # fmt: skip
    trainer = GRPOTrainer(tiny_model(), reward, args, prompts(), processing_class=tiny_tokenizer())
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", LISTED)
def test_every_listed_name_exists(name, stock_trainer):
    module, _, path = name.partition(":")
    if path.startswith("GRPOTrainer."):  # some are attributes that its constructor or its training sets
        assert hasattr(stock_trainer, path.partition(".")[2])
    elif path:
        *owners, last = path.split(".")
        owner = reduce(getattr, owners, importlib.import_module(module))
        assert hasattr(owner, last) or hasattr(owner(), last)  # an attribute that the constructor sets
    else:
        importlib.import_module(module)


def test_every_override_of_a_private_method_is_listed():
    overridden = {
        name for name in vars(GRPOMathTrainer) if is_private(name) and callable(getattr(GRPOTrainer, name, None))
    }
    assert {f"trl:GRPOTrainer.{name}" for name in overridden} <= set(PRIVATE_NAMES["trl"])
    assert len(overridden) == 11


def test_nothing_private_of_trls_module_is_imported():
    used = set().union(*(used_names(tree) for path, tree in TREES.items() if path.parent.name == "trainer"))
    assert not [name for name in vars(trl.trainer.grpo_trainer) if name in used]
