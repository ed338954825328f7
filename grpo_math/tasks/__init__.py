"""The math tasks: rows -> prompts and the columns that rewards see. A task is one module and one line in `TASKS`."""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from grpo_math.errors import TaskError, nearest
from grpo_math.tasks import countdown, gsm8k
from grpo_math.tasks.base import PLAIN_STOP, TaskConfig, build_prompt

__all__ = ["TASKS", "Problems", "TaskConfig", "TaskError", "get_task", "load_problems", "resolve_rewards"]

TASKS: dict[str, ModuleType] = {"gsm8k": gsm8k, "countdown": countdown}


def get_task(name: str) -> ModuleType:
    """The task's module. Raises TaskError with the known names."""
    if name not in TASKS:
        raise TaskError(f"task: {name!r} is not known{nearest(name, TASKS)} (choices: {', '.join(TASKS)})")
    return TASKS[name]


@dataclass
class Problems:
    """A task's rows, formatted.

    Attributes:
        train: training rows, `{"prompt": str | messages, **columns}`, as TRL's trainer takes them.
        heldout: held-out rows of the same form.
        kinds: the class of each held-out row (operators, number of operands), for accuracy by class.
        blind: accuracy of the best policy that ignores the target, and how it was found; None where the task has none.
    """

    train: list[dict]
    heldout: list[dict]
    kinds: list[str]
    blind: tuple[float, str] | None


def load_problems(config: TaskConfig, tokenizer: Any = None) -> Problems:
    """Read and format the rows that a recipe asks for.

    Args:
        config: the task's part of the recipe.
        tokenizer: the model's; only `prompt_style: think_prefill` needs it.

    Raises:
        TaskError: for rows that cannot be read, are not what the task needs, or are too few.
    """
    task = get_task(config.task)
    if config.prompt_style == "compact" and not hasattr(task, "compact_text"):
        raise TaskError(f"prompt_style: compact is not defined for task {config.task}; it is for the tiny model")
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
        kinds=[row.get("kind", "all") for row in heldout],
        blind=blind,
    )


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
    raise TaskError(f"fewshot: {config.fewshot} worked examples were asked for, {len(examples)} could be made")


# --- rewards ----------------------------------------------------------------------------------------------------------


class UpToNextProblem:
    """A reward function that sees each completion only up to the mark with which a base model starts a new problem.

    Args:
        reward: the reward function, `f(completions, **columns) -> list[float | None]`.
    """

    def __init__(self, reward: Callable):
        self.reward = reward
        self.__name__ = reward.__name__

    def __call__(self, completions: Sequence[str], **columns) -> list[float | None]:
        return self.reward(completions=[text.split(PLAIN_STOP, 1)[0] for text in completions], **columns)


def resolve_rewards(names: Sequence[str] | None, config: TaskConfig) -> list[Callable]:
    """Reward names of a recipe -> callables.

    Args:
        names: short names (functions of `grpo_math.rewards`) or dotted import paths; None for the task's default.
        config: the task's part of the recipe. The styles `plain` and `compact` ask for no marker, so there a bare
            answer counts (`allow_bare=True`), and a `plain` completion ends where the next "Problem:" begins.

    Raises:
        TaskError: for a name that is not known, with those that are.
    """
    names = list(names or get_task(config.task).DEFAULT_REWARDS)
    return [_resolve_reward(name, config.prompt_style) for name in names]


def _resolve_reward(name: str, style: str) -> Callable:
    from grpo_math import rewards

    bare = style in ("plain", "compact")
    if "." in name:
        module_name, _, attribute = name.rpartition(".")
        if os.getcwd() not in sys.path:  # as `trl grpo` does: a module of the user's, beside where the run is started
            sys.path.insert(0, os.getcwd())
        try:
            reward = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise TaskError(f"rewards: {name!r} cannot be imported: {error}") from error
        if not callable(reward) or not hasattr(reward, "__name__"):
            raise TaskError(
                f"rewards: {name!r} is {reward!r}, not a function (callable, with a __name__ to log it under)"
            )
    elif bare and f"get_{name}" in vars(rewards):
        # Whatever way a base model has of stating an answer counts: all markers, and none.
        forms = {"forms": rewards.COUNTDOWN_FORMS} if name.startswith("countdown") else {}
        reward = getattr(rewards, f"get_{name}")(allow_bare=True, **forms)
    elif name in rewards.REWARDS:
        reward = rewards.REWARDS[name]
    else:
        known = ", ".join(rewards.REWARDS)
        raise TaskError(
            f"rewards: {name!r} is not known{nearest(name, rewards.REWARDS)} (choices: {known}, or a dotted path such as "
            "my_module.my_reward)"
        )
    return UpToNextProblem(reward) if style == "plain" else reward
