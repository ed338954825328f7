"""Reward functions in a run: checked before anything is loaded, and named, with the row, when they fail."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from accelerate.utils import gather_object
from trl.trainer.utils import is_async_callable

from grpo_math import report
from grpo_math.errors import RecipeError, UserError
from grpo_math.recipe import Recipe
from grpo_math.rewards import MathReward
from grpo_math.tasks import Problems, UpToNextProblem

# What TRL's trainer hands to a reward function beside the columns of the rows
GIVEN_TO_REWARDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


class RewardError(UserError):
    """
    A reward function failed during training: the message names it, the row and the cause.

    Attributes:
        on_all_processes: Whether every process has raised it, so that they can save a checkpoint together.
    """

    def __init__(self, message: str, on_all_processes: bool = False):
        super().__init__(message)
        self.on_all_processes = on_all_processes


def unwrapped(reward: Callable) -> Callable:
    """A recipe's reward function without what the run puts around it."""
    return reward.reward if isinstance(reward, UpToNextProblem) else reward


def check_signatures(recipe: Recipe, rewards: Sequence[Callable]) -> None:
    """Each reward function can be called as TRL does: with keywords only, of which there may be more in a later version."""
    for reward in map(unwrapped, rewards):
        place = f"{recipe.place('rewards')}: rewards: {reward.__name__}"
        form = f"write `def {reward.__name__}(completions, **kwargs)`"
        if inspect.isclass(reward):
            raise RecipeError(
                f"{place} is a class, which a call would only construct; name a function, or an instance of it"
            )
        if inspect.isgeneratorfunction(inspect.unwrap(reward)):
            raise RecipeError(f"{place} is a generator function (it has a `yield`); return a list of numbers")
        try:
            parameters = inspect.signature(reward).parameters.values()
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{place} has no signature that Python can read ({error}); {form}") from error
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        if positional:
            raise RecipeError(
                f"{place} takes {', '.join(positional)} by position only, and TRL passes keywords; {form}"
            )
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise RecipeError(
                f"{place} has no **kwargs, and TRL also passes {', '.join(GIVEN_TO_REWARDS)} and every column; {form}"
            )


def check_reward_columns(recipe: Recipe, rewards: Sequence[Callable], problems: Problems) -> None:
    """The rows have the columns that each reward function needs."""
    columns = {name: [value] for name, value in problems.train[0].items() if name != "prompt"}
    for inner in map(unwrapped, rewards):
        named = [
            p for p in inspect.signature(inner).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        missing = [p.name for p in named if p.default is p.empty and p.name not in (*columns, *GIVEN_TO_REWARDS)]
        if not missing and isinstance(inner, MathReward):  # ours also say when neither of two columns is there
            try:
                inner(prompts=[""], completions=[""], **columns)
            except ValueError:
                missing = ["answer"]
        if missing:
            raise RecipeError(
                f"{recipe.place('rewards', 'task')}: rewards: {inner.__name__} needs the column {', '.join(missing)}, and rows "
                f"of task {recipe.task.task} have {', '.join(columns)}"
            )


class NamedReward:
    """
    A reward function whose failure is a [`RewardError`] on every process, in one line.

    Args:
        reward: The reward function, `f(completions, **columns) -> list[float | None]`.
    """

    def __init__(self, reward: Callable):
        self.reward = reward
        self.__name__ = reward.__name__
        self.accelerator: Any = None  # set once there is one

    def __call__(self, completions: Sequence, **columns) -> list[float | None]:
        values, failure = None, None
        try:
            values, failure = self._checked(self.reward(completions=completions, **columns), completions)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's function may raise anything, also `sys.exit()`; its cause is told
            failure = f"raised {in_words(error)}{self._first_failing_row(completions, columns)}"
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            failure = next((other for other in gather_object([failure]) if other), None)
        if failure:
            raise RewardError(f"rewards: {self.__name__} {failure}", on_all_processes=True)
        return values

    def _checked(self, values: Any, completions: Sequence) -> tuple[list[float | None] | None, str | None]:
        """The values as floats, and what is wrong with them, if anything."""
        if hasattr(values, "tolist"):  # an array or a tensor
            values = values.tolist()
        if not isinstance(values, (list, tuple)):
            return None, f"returned {shown(values)}, not a list of one number a completion"
        if len(values) != len(completions):
            return None, f"returned {len(values)} values for {len(completions)} completions"
        floats = []
        for row, value in enumerate(values):
            number = value.item() if getattr(value, "ndim", None) == 0 else value
            if number is not None and not isinstance(number, Real):
                return (
                    None,
                    f"returned {shown(value)} for row {row} ({self._row(completions, row)}), not a number or None",
                )
            floats.append(None if number is None else float(number))
            if floats[-1] in (float("inf"), float("-inf")):
                place = f"row {row} ({self._row(completions, row)})"
                return None, f"returned {number} for {place}: a reward must be finite, or None where it does not apply"
        return floats, None

    def _first_failing_row(self, completions: Sequence, columns: dict[str, Any]) -> str:
        """The first row that fails when it is scored alone, as the end of a message."""
        size = len(completions)
        for row in range(size):
            one = {
                name: value[row : row + 1] if isinstance(value, list) and len(value) == size else value
                for name, value in columns.items()
            }
            try:
                self.reward(completions=completions[row : row + 1], **one)
            except KeyboardInterrupt:
                raise
            except BaseException:  # any kind: only which row it is counts
                return f" on row {row} ({self._row(completions, row)})"
        return f" on all {size} rows together, on none alone"

    @staticmethod
    def _row(completions: Sequence, row: int) -> str:
        return f"completion {shown(report.prompt_text(completions[row]))}"


class NamedAsyncReward(NamedReward):
    """The same for an asynchronous function; TRL runs it on a thread of its own, where processes cannot meet."""

    async def __call__(self, completions: Sequence, **columns) -> list[float | None]:
        try:
            values, failure = self._checked(await self.reward(completions=completions, **columns), completions)
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise
        except BaseException as error:  # a user's function may raise anything; its name and cause are told
            values, failure = None, f"raised {in_words(error)}"
        if failure:
            raise RewardError(f"rewards: {self.__name__} {failure}", self.accelerator.num_processes == 1)
        return values


def named(reward: Callable) -> NamedReward:
    """A reward function that names itself when it fails, asynchronous where the function is."""
    return NamedAsyncReward(reward) if is_async_callable(unwrapped(reward)) else NamedReward(reward)


def shown(value: Any) -> str:
    """A value in at most 80 characters of one line."""
    try:
        text = ascii(value)
    except Exception as error:  # a user's object may fail to show itself
        text = f"a {type(value).__name__} ({type(error).__name__} when it is shown)"
    return text if len(text) <= 80 else f"{text[:77]}..."


def in_words(error: BaseException) -> str:
    """The type and the message of an error, in one line."""
    try:
        text = " ".join(str(error).split())[:200]
    except Exception as inner:  # a user's error may fail to show itself
        text = f"({type(inner).__name__} when its message is read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
