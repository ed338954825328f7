"""Reward names of a recipe -> callables: functions of `grpo_math.rewards`, or dotted paths to a user's own.

>>> resolve_reward("gsm8k_accuracy", "think")(completions=["<answer>72</answer>"], answer=["72"])
[1.0]
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import FunctionType

from grpo_math import rewards
from grpo_math.errors import TaskError, nearest
from grpo_math.tasks.base import PLAIN_STOP, PromptStyle
from grpo_math.tasks.files import load_file, split_reward


class UpToNextProblem:
    """A reward function that reads each completion only up to the start of the next problem, `PLAIN_STOP`.

    A base model often continues with a problem of its own after its answer. An object rather than a closure: trainers
    pickle reward functions for their worker processes.

    Args:
        reward: the reward function, `f(completions, **columns) -> list[float | None]`.
    """

    def __init__(self, reward: Callable):
        self.reward = reward
        self.__name__ = reward.__name__

    def __call__(self, completions: Sequence[str], **columns) -> list[float | None]:
        return self.reward(completions=[text.split(PLAIN_STOP, 1)[0] for text in completions], **columns)


def resolve_reward(name: str, style: PromptStyle) -> Callable:
    """A reward function by its name.

    Args:
        name: a function of `grpo_math.rewards` (short name), a function in a file (`my_rewards.py:brevity`), or a dotted
            import path.
        style: the prompt style. `plain` and `compact` ask for no marker, so a bare answer counts (`allow_bare=True`).
            A `plain` completion ends where the next "Problem:" begins.

    Raises:
        TaskError: for an unknown name, with the known names, or for an object that is not a named function.
    """
    bare = style in ("plain", "compact")
    in_file = split_reward(name)
    if in_file:
        reward = getattr(load_file(in_file[0]), in_file[1], None)
        if not callable(reward) or not hasattr(reward, "__name__"):
            named = ", ".join(n for n, v in vars(load_file(in_file[0])).items() if isinstance(v, FunctionType))
            raise TaskError(f"rewards: {in_file[0]} has no function {in_file[1]!r}; it has {named or 'none'}")
    elif "." in name:
        module_name, _, attribute = name.rpartition(".")
        if os.getcwd() not in sys.path:  # as `trl grpo` does: the user's module is beside the recipe
            sys.path.insert(0, os.getcwd())
        try:
            reward = getattr(importlib.import_module(module_name), attribute)
        except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
            kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
            raise TaskError(f"rewards: {name!r} cannot be imported: {kind}{' '.join(str(error).split())}") from error
        if not callable(reward) or not hasattr(reward, "__name__"):
            raise TaskError(
                f"rewards: {name!r} is {reward!r}, not a function (callable, with a __name__ to log it under)"
            )
    elif bare and f"get_{name}" in vars(rewards):
        # A base model follows no format: every marker counts, and so does a bare answer.
        forms = {"forms": rewards.COUNTDOWN_FORMS} if name.startswith("countdown") else {}
        reward = getattr(rewards, f"get_{name}")(allow_bare=True, **forms)
    elif name in rewards.REWARDS:
        reward = rewards.REWARDS[name]
    else:
        known = ", ".join(rewards.REWARDS)
        raise TaskError(
            f"rewards: {name!r} is not known{nearest(name, rewards.REWARDS)} (choices: {known}, a function in a file such "
            "as my_rewards.py:my_reward, or a dotted path such as my_module.my_reward)"
        )
    return UpToNextProblem(reward) if style == "plain" else reward


# The answer form that each prompt style asks for
STYLE_FORM = {
    "think": "answer",
    "think_prefill": "answer",
    "boxed": "boxed",
    "hash": "hash",
    "plain": "phrase",
    "compact": "answer",
}


def strict_and_lenient(name: str, style: PromptStyle) -> tuple[Callable | None, Callable | None]:
    """A reward that reads only the prompt style's own answer form, and one that reads every form and a bare answer.

    Args:
        name: of the accuracy reward. For one that is not in `grpo_math.rewards` there is neither.
        style: the prompt style.
    """
    make = vars(rewards).get(f"get_{name}")
    if make is None:
        return None, None
    every = {"forms": rewards.COUNTDOWN_FORMS} if name.startswith("countdown") else {}
    made = make(forms=(STYLE_FORM[style],)), make(allow_bare=True, **every)
    return tuple(map(UpToNextProblem, made)) if style == "plain" else made
