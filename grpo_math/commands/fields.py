"""The command `grpo-math fields`."""

from __future__ import annotations

import argparse
import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from grpo_math.errors import RecipeError, nearest


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "fields",
        "[TEXT]",
        "list the fields that a recipe may have, with type, default, choices and meaning",
        "",
        "exit code: 0 done, 2 no field has TEXT",
        run,
    )
    command.add_argument("text", metavar="TEXT", nargs="*", help="only fields whose name or help holds TEXT")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from grpo_math.recipe import choices_of, fields

    wanted, found = " ".join(args.text).lower(), False
    for name, (cls, field, hint) in fields().items():
        text = " ".join(str(field.metadata.get("help", "")).split())
        if wanted in name.lower() or wanted in text.lower():
            found = True
            kind = getattr(hint, "__name__", str(hint)).replace("typing.", "")
            choices = choices_of(name, field, hint)
            print(f"{name}: {kind}{default_of(field)}   ({cls.__name__})")
            print(*([f"    choices: {', '.join(map(_as_yaml, choices))}"] if choices else []), f"    {text}", sep="\n")
    if not found:
        raise RecipeError(f"no field has {wanted!r} in its name or help{nearest(wanted, fields())}")
    return 0


def default_of(field: dataclasses.Field) -> str:
    """` = VALUE`, as a recipe would write it; nothing for a field without a default."""
    if field.default is not dataclasses.MISSING:
        return f" = {_as_yaml(field.default)}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {_as_yaml(field.default_factory())}"
    return ""


def _as_yaml(value: Any) -> str:
    value = value.value if isinstance(value, enum.Enum) else value
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_word(value) else str(value)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
