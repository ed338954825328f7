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

import ast
import dataclasses
import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo_math.errors import RecipeError, TaskError
from grpo_math.recipe.names import field_names, light_fields
from grpo_math.recipe.schema import CHOICES, COMMAND_LINE, check_name, coerce, fields, members

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
    overrides = _words_of_fields(argv)
    known = fields()
    for name, words in overrides.items():
        switch = name == "resume_from_checkpoint" or name not in known or bool in members(known[name][2])
        if not words and not switch:
            raise RecipeError(f"command line: --{name} has no value; write --{name} VALUE")
    return {name: "true" if not words else words[0] if len(words) == 1 else words for name, words in overrides.items()}


def check_spelling(path: str | Path, argv: Sequence[str] = (), options: Collection[str] = ()) -> None:
    """Reads the recipe and checks names, choices and the task's values, its own and the overrides', without importing torch.

    Args:
        path: The recipe.
        argv: Overrides from the command line.
        options: The command's own, one of which may have been meant.

    Raises:
        RecipeError: for a recipe that cannot be read, a name that no field has, a field that is given twice, a value that
            is not among a field's choices or does not suit the task's settings.
    """
    values, overrides = read_yaml(path), _words_of_fields(argv)
    task = (overrides.get("task") or [values.get("task")])[0]
    known = field_names()
    if known is None or (isinstance(task, str) and task.endswith(".py")):  # which may bring fields
        return
    light = light_fields()
    given = {name: words[0] if len(words) == 1 else words for name, words in overrides.items()}
    for source, place, from_text in ((values, str(path), False), (given, COMMAND_LINE, True)):
        for name, value in source.items():
            check_name(name, place, known.union(options) if from_text else known)
            if value == []:  # a switch, or what is missing is said later
                continue
            if name in light:
                field, hint = light[name]
                coerce(name, value, hint, field, place, from_text)
            elif name in CHOICES:
                coerce(name, value, str | None, dataclasses.field(), place, from_text)


def _words_of_fields(argv: Sequence[str]) -> dict[str, list[str]]:
    """`--field value value ...` -> {field: its words}, which may be none."""
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
    return overrides


def checked_values(path: str | Path, argv: Sequence[str] = (), reading: bool = False) -> dict[str, Any]:
    """
    The recipe's values with the overrides on top, every name and type checked.

    With `reading` a task in a Python file is refused where the file alone names it: it would be run.
    """
    sources = ((read_yaml(path), str(path), False), (parse_overrides(argv), COMMAND_LINE, True))
    if reading and "task" not in sources[1][0] and str(sources[0][0].get("task")).endswith(".py"):
        raise RecipeError(
            f"{path}: task: {sources[0][0]['task']} is a program, and reading a recipe runs none of its own: give "
            f"--task {sources[0][0]['task']} to run it"
        )
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


# The first two lines are always these: Python would obey an encoding that a comment there names
DUMP_HEAD = """\
# A recipe, as a run wrote it: YAML and a Python script at once.
# To launch it is to run a program: launch only what you trust.
"""


class _QuotedDumper(yaml.SafeDumper):
    """Writes every text that is not a plain word in double quotes and ASCII, so that it cannot end Python's string."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if re.fullmatch(r"[\w ./:@+-]+", text, re.ASCII) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_QuotedDumper.add_representer(str, _quoted)


def dump(values: dict[str, Any], comment: str) -> str:
    """
    Values as a launchable recipe, without the checkpoint to resume from, which belongs to the command.

    Whatever the values and the comment hold, Python sees one string and one call, and YAML reads the same values back:
    a text with a quote, a backslash, a line end or a character beyond ASCII is escaped.

    Raises:
        ValueError: For a value that no quoting makes safe; there is none that is known.
    """
    values = {name: value for name, value in values.items() if name != "resume_from_checkpoint"}
    body = yaml.dump(values, Dumper=_QuotedDumper, sort_keys=False, allow_unicode=False, width=float("inf"))
    body = body if values else ""
    comment = ascii(comment)[1:-1].replace('"', "'").replace("\\", "/")
    text = f"{DUMP_HEAD}{LAUNCH_HEAD}\n# {comment}\n{body}{LAUNCH_TAIL}\n"
    if not _is_one_string_and_one_call(text):
        raise ValueError("these values cannot be written as a recipe that is also a Python script")
    return text


def _is_one_string_and_one_call(text: str) -> bool:
    """Whether Python sees in a recipe's text what it sees in an empty recipe, but for the one string."""
    try:
        trees = [ast.parse(source.encode()) for source in (text, f"{LAUNCH_HEAD}\n{LAUNCH_TAIL}\n")]
    except (SyntaxError, ValueError):
        return False
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Constant):
                node.annotation.value = ""
    return ast.dump(trees[0]) == ast.dump(trees[1])
