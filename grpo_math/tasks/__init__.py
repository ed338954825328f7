"""The math tasks: rows -> prompts and the columns that rewards see.

A task is a module with the names that `grpo_math.tasks.base` lists: an entry in `TASKS`, or a file of one's own, which is
named by its path (`task: my_task.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from grpo_math.errors import TaskError, nearest
from grpo_math.tasks import countdown, gsm8k
from grpo_math.tasks.base import THINK_PREFILL, TaskConfig, build_prompt, worked_solution
from grpo_math.tasks.files import is_file_name, load_file
from grpo_math.tasks.rewards import UpToNextProblem, resolve_reward, strict_and_lenient

__all__ = [
    "TASKS",
    "Problems",
    "TaskConfig",
    "UpToNextProblem",
    "config_class",
    "config_classes",
    "get_task",
    "load_problems",
    "resolve_rewards",
    "solutions",
    "strict_and_lenient",
]

# The names that every task has
REQUIRED = ("ACCURACY", "DEFAULT_REWARDS", "ANSWER_NOTE", "load_rows", "problem_text", "example", "columns")
TASKS: dict[str, ModuleType] = {"gsm8k": gsm8k, "countdown": countdown}


def get_task(name: str) -> ModuleType:
    """The task's module, a file's by its path. Raises TaskError for an unknown name, with the known names."""
    if is_file_name(name) and name not in TASKS:
        task = load_file(name)
        missing = [part for part in REQUIRED if not hasattr(task, part)]
        if missing:
            raise TaskError(
                f"task: {name} is no task: it has no {', no '.join(missing)} (grpo_math/tasks/base.py lists them)"
            )
        TASKS[name] = task
    if name not in TASKS:
        raise TaskError(
            f"task: {name!r} is not known{nearest(name, TASKS)} (choices: {', '.join(TASKS)}, or a file, my_task.py)"
        )
    return TASKS[name]


def config_class(name: str) -> type[TaskConfig]:
    """The settings class of a task: its module's `CONFIG`, else `TaskConfig`. Raises TaskError for an unknown name."""
    return getattr(get_task(name), "CONFIG", TaskConfig)


def config_classes() -> tuple[type[TaskConfig], ...]:
    """The settings classes of all tasks, each once, `TaskConfig` first."""
    return tuple(dict.fromkeys([TaskConfig, *map(config_class, TASKS)]))


@dataclass
class Problems:
    """A task's rows, formatted.

    Attributes:
        train: training rows, `{"prompt": str | messages, **columns}`, as TRL's trainer takes them.
        heldout: held-out rows of the same form.
        kinds: the class of each held-out row (operators, number of operands), for accuracy by class. "3 numbers: +-" is
            the class "+-" of the class "3 numbers".
        blind: accuracy of the best policy that ignores the target, and how it was found; None where the task has none.
        rows: the training rows as the task reads them, in the order of `train`.
    """

    train: list[dict]
    heldout: list[dict]
    kinds: list[str]
    blind: tuple[float, str] | None
    rows: list[dict] = field(default_factory=list)


def load_problems(config: TaskConfig, tokenizer: Any = None) -> Problems:
    """Read and format the rows that a recipe asks for.

    Args:
        config: the task's part of the recipe, an instance of the task's `config_class`.
        tokenizer: the model's; only `prompt_style: think_prefill` needs it.

    Raises:
        TaskError: for rows that cannot be read, do not suit the task or are too few, and for settings of another task.
    """
    task = get_task(config.task)
    needed = config_class(config.task)
    if not isinstance(config, needed):
        raise TaskError(f"task: {config.task} needs the settings {needed.__name__}, not {type(config).__name__}")
    if config.prompt_style == "compact" and not hasattr(task, "compact_text"):
        raise TaskError(f"prompt_style: compact is not defined for task {config.task}; choose another style")
    if config.prompt_style == "compact" and config.fewshot:
        raise TaskError(
            f"fewshot: {config.fewshot} has no effect with prompt_style: compact, which shows no worked examples"
        )
    train, heldout = task.load_rows(config)
    examples, train = take_examples(task, train, config)
    if not train:
        raise TaskError(f"task {config.task}: no training rows are left")
    text = task.compact_text if config.prompt_style == "compact" else task.problem_text

    def formatted(row: dict) -> dict:
        prompt = build_prompt(config.prompt_style, text(row), task.ANSWER_NOTE, examples, tokenizer)
        return {"prompt": prompt, **task.columns(row)}

    blind = task.blind_accuracy(heldout, train, config) if heldout and hasattr(task, "blind_accuracy") else None
    return Problems(
        train=[formatted(row) for row in train],
        heldout=[formatted(row) for row in heldout],
        kinds=[getattr(task, "stratum", lambda row, config: row.get("kind", "all"))(row, config) for row in heldout],
        blind=blind,
        rows=train,
    )


def solutions(problems: Problems, config: TaskConfig) -> list[str | None]:
    """For each training row the completion that a perfect policy could write, in the prompt style's answer format: the
    data set's own solution, or the solver's with its steps. None where the row has no worked solution.

    >>> solutions(problems, TaskConfig(task="gsm8k", prompt_style="hash"))[0]
    'Natalia sold 48/2 = 24 clips in May. ...\\n#### 72'
    """
    task, style = get_task(config.task), config.prompt_style
    examples = map(getattr(task, "solution", task.example), problems.rows)
    # A conversation's turn and an open <think> start with the text; any other prompt is continued after a space
    space = " " if style in ("plain", "compact") else ""
    texts = [None if e is None else space + worked_solution(style, e) for e in examples]
    return [t.removeprefix(THINK_PREFILL) if t and style == "think_prefill" else t for t in texts]


def take_examples(task: ModuleType, train: list[dict], config: TaskConfig) -> tuple[list, list[dict]]:
    """`fewshot` worked examples from the training rows, and the rows without them."""
    if not config.fewshot:
        return [], train
    examples, used = [], set()
    for i in random.Random(config.task_seed).sample(range(len(train)), len(train)):
        example = task.example(train[i])
        if example is not None:
            examples.append(example)
            used.add(i)
        if len(examples) == config.fewshot:
            return examples, [row for i, row in enumerate(train) if i not in used]
    raise TaskError(
        f"fewshot: {config.fewshot} is too many: only {len(examples)} training rows give a worked example; ask for fewer"
    )


def resolve_rewards(names: Sequence[str] | None, config: TaskConfig) -> list[Callable]:
    """The reward functions of a recipe, by their names (see `grpo_math.tasks.rewards.resolve_reward`).

    Args:
        names: short names or dotted import paths; None for the task's default.
        config: the task's part of the recipe.

    Raises:
        TaskError: for an unknown name, with the known names.
    """
    names = list(names or get_task(config.task).DEFAULT_REWARDS)
    return [resolve_reward(name, config.prompt_style) for name in names]
