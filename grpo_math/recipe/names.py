"""The names of a recipe's fields without importing torch: a misspelt one is an error in a blink, not after seconds.

The classes' own source is read, not run. `schema.fields` is what counts; a test holds both to the same names.

>>> "learning_rate" in field_names()
True
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

# Package -> file in it and the dataclasses there that are a recipe's, with their bases
CLASSES = (
    ("transformers", "transformers/training_args.py", ("TrainingArguments",)),
    ("trl", "trl/trainer/base_config.py", ("_BaseConfig",)),
    ("trl", "trl/trainer/grpo_config.py", ("GRPOConfig",)),
    ("trl", "trl/trainer/model_config.py", ("ModelConfig",)),
    (None, "trainer/config.py", ("GRPOMathConfig",)),
)


def light_fields() -> dict[str, tuple[dataclasses.Field, Any]]:
    """The fields of the tasks and of the warm-up, whose classes import no torch: name -> (field, type)."""
    from grpo_math import tasks
    from grpo_math.recipe.supervised import SFTSettings

    return {
        field.name: (field, typing.get_type_hints(cls)[field.name])
        for cls in (*tasks.config_classes(), SFTSettings)
        for field in dataclasses.fields(cls)
    }


@functools.cache
def field_names() -> frozenset[str] | None:
    """Every key that a recipe may have, beside those of a task in a file; None where the sources cannot be read."""
    names = set(light_fields())
    try:
        for package, file, classes in CLASSES:
            if package is None:
                path = Path(__file__).parent.parent / file
            else:
                path = Path(str(metadata.distribution(package).locate_file(file)))
            names |= _fields_of(path, classes)
    except (OSError, SyntaxError, KeyError, metadata.PackageNotFoundError):
        return None
    return frozenset(names)


def _fields_of(path: Path, classes: tuple[str, ...]) -> set[str]:
    """The annotated names of dataclasses in a source file, without those that the class fills in itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    return {
        node.target.id
        for name in classes
        for node in bodies[name]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_no_argument(node)
    }


def _is_no_argument(node: ast.AnnAssign) -> bool:
    """Whether a field is declared `field(init=False)` or `ClassVar`."""
    keywords = node.value.keywords if isinstance(node.value, ast.Call) else []
    fixed = any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in keywords)
    return fixed or "ClassVar" in ast.unparse(node.annotation)
