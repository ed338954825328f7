"""Where a recipe's values come from: a YAML file that is at the same time a Python script, and the command line.

The keys are the fields of the task's settings (`TaskConfig`, `CountdownConfig`), of `GRPOMathConfig` (TRL's `GRPOConfig`
and ours) and of TRL's `ModelConfig`. Two lines make a recipe launchable, `accelerate launch recipes/X.yaml --max_steps 10`:

    launch: r\"\"\"
    model_name_or_path: builtin/countdown-tiny
    ...
    # \"\"\"; from grpo_math.cli import launch; launch(__file__, __name__)

YAML sees a key `launch` with the text `r\"\"\"` and a comment. Python sees one string and one call, which does nothing
unless the file is the main script (spawned worker processes import it again).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_math.errors import RecipeError, TaskError
from grpo_math.recipe.schema import COMMAND_LINE, check_name, coerce, fields, members

LAUNCH_KEY = "launch"
LAUNCH_HEAD = 'launch: r"""'
LAUNCH_TAIL = '# """; from grpo_math.cli import launch; launch(__file__, __name__)'


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The recipe's keys and values, without the key `launch`.

    Raises:
        RecipeError: for a missing file, invalid YAML, a duplicate key, or no mapping.
    """
    path = Path(path)
    if not path.is_file():
        hint = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        if path.is_dir():
            names = ", ".join(sorted(p.name for p in path.glob("*.yaml")))
            raise RecipeError(f"{path} is a folder, not a recipe; {f'it holds {names}' if names else 'it holds none'}")
        raise RecipeError(f"there is no recipe {path}" + (f"; did you mean {path.parent / hint[0]}?" if hint else ""))
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark or error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(
            f"{path}{line} is not valid YAML: {error.problem} ({error.context or 'write `key: value`'})"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # text that is not UTF-8, a date that there is not
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold keys and values (`max_steps: 100`), not {type(values).__name__}")
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise RecipeError(f"{path}, line {key.start_mark.line + 1}: duplicate key {key.value}; keep one of them")
        seen.add(key.value)
    values.pop(LAUNCH_KEY, None)
    return values


def parse_overrides(argv: Sequence[str]) -> dict[str, Any]:
    """Command-line overrides, `--field value`, `--field=value`, `--flag`, `--list a b` -> {field: text or list of texts}.

    Raises:
        RecipeError: for a word that belongs to no field, or a field that is given twice.
    """
    overrides: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if re.match(r"--[A-Za-z]", word):
            name, eq, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in overrides:
                raise RecipeError(f"--{name} is given twice on the command line")
            overrides[name] = [value] if eq else []
        elif name is None:
            raise RecipeError(f"command line: {word!r} belongs to no field; write --field value")
        else:
            overrides[name].append(word)
    known = fields()
    for name, words in overrides.items():
        switch = name == "resume_from_checkpoint" or name not in known or bool in members(known[name][2])
        if not words and not switch:
            raise RecipeError(f"command line: --{name} has no value; write --{name} VALUE")
    return {name: "true" if not words else words[0] if len(words) == 1 else words for name, words in overrides.items()}


def checked_values(path: str | Path, argv: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's values with the overrides on top, every name and type checked."""
    sources = ((read_yaml(path), str(path), False), (parse_overrides(argv), COMMAND_LINE, True))
    for values, place, _ in sources:
        _find_files(values, place, Path(path).parent)
    known = fields()
    checked: dict[str, Any] = {}
    for values, place, from_text in sources:
        for name, value in values.items():
            check_name(name, place, known)
            _, field, hint = known[name]
            checked[name] = coerce(name, value, hint, field, place, from_text)
    return checked


def _find_files(values: dict[str, Any], place: str, folder: Path) -> None:
    """Makes the names of files of `task` and `rewards` absolute, in place, and loads the task: it may bring fields."""
    from grpo_math.tasks import files, get_task

    def absolute_reward(name: Any) -> Any:
        in_file = files.split_reward(name) if isinstance(name, str) else None
        return f"{files.absolute(in_file[0], folder)}:{in_file[1]}" if in_file else name

    try:
        if files.is_file_name(values.get("task")):
            values["task"] = files.absolute(values["task"], folder)
            get_task(values["task"])
        rewards = values.get("rewards")
        if rewards is not None:
            values["rewards"] = (
                [*map(absolute_reward, rewards)] if isinstance(rewards, list) else absolute_reward(rewards)
            )
    except TaskError as error:
        raise RecipeError(f"{place}: {error}") from error


def is_launchable(path: str | Path) -> bool:
    """Whether `accelerate launch PATH` runs the recipe: Python must see a string and a call in it."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return LAUNCH_HEAD in lines and LAUNCH_TAIL in lines


def dump(values: dict[str, Any], comment: str) -> str:
    """Values as a launchable recipe, without the checkpoint to resume from, which belongs to the command."""
    values = {name: value for name, value in values.items() if name != "resume_from_checkpoint"}
    return f"# {comment}\n{LAUNCH_HEAD}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}{LAUNCH_TAIL}\n"
