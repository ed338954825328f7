"""Countdown problems: the exact solver, and a seeded generator whose settings are the recipe's `countdown_*` fields.

>>> solve([44, 19, 35], 98)
'19 + (35 + 44)'

Values are exact rationals throughout. A problem's class is the operators that its solution uses (`+`, `+*`, ...).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from tqdm.auto import tqdm

from grpo_math.errors import TaskError
from grpo_math.tasks.base import TaskConfig

OPERATORS = "+-*/"
MAX_GENERATED = 1_000_000  # formatted rows stay in memory, about a kilobyte each
MAX_DRAWS = 5_000  # draws of numbers for one problem before the generator gives up
MAX_OPERANDS = 6  # the solver enumerates all expressions; more than six numbers take minutes


@dataclass
class CountdownConfig(TaskConfig):
    """The settings of Countdown: those of every task, and the generator's (`dataset_path: generated`)."""

    task: str = "countdown"
    countdown_operands: list[int] = field(
        default_factory=lambda: [3, 4], metadata={"help": "Generator: how many numbers a problem has, 2 to 4."}
    )
    countdown_min: int = field(default=1, metadata={"help": "Generator: smallest number."})
    countdown_max: int = field(default=99, metadata={"help": "Generator: largest number."})
    countdown_operators: str = field(default="+-*/", metadata={"help": "Generator: operators that solutions use."})
    countdown_target_min: int = field(default=1, metadata={"help": "Generator: smallest target."})
    countdown_target_max: int = field(default=100, metadata={"help": "Generator: largest target."})
    countdown_unique: bool = field(
        default=False,
        metadata={"help": "Generator: keep only targets that one combination of operators reaches."},
    )
    countdown_balance: Literal["numbers", "classes", "none"] = field(
        default="none",
        metadata={
            "help": "Generator: how solutions are balanced over operators; see grpo_math.tasks.countdown_problems."
        },
    )


# --- the exact solver -------------------------------------------------------------------------------------------------


def _combine(a: Fraction, b: Fraction, operators: str):
    """Yield `(value, operator, swapped)` for every way to join two values; `swapped` means b comes first."""
    if "+" in operators:
        yield a + b, "+", False
    if "*" in operators:
        yield a * b, "*", False
    if "-" in operators:
        yield a - b, "-", False
        yield b - a, "-", True
    if "/" in operators:
        if b:
            yield a / b, "/", False
        if a:
            yield b / a, "/", True


@lru_cache(maxsize=4096)
def reachable(nums: tuple[int, ...], operators: str = OPERATORS) -> dict[Fraction, dict[str, str]]:
    """Every value that an expression using each of `nums` exactly once can take.

    Args:
        nums: the numbers, sorted (sorting makes the cache work); at most six.
        operators: the operators allowed, a string such as `"+-*"`.

    Returns:
        value -> {sorted operators used, such as `"+*"`: one expression with that value and those operators}.
    """
    if len(nums) == 1:
        return {Fraction(nums[0]): {"": str(nums[0])}}
    found: dict[Fraction, dict[str, str]] = defaultdict(dict)
    indices = range(len(nums))
    # Every split of the numbers into two non-empty parts; the first number stays left, so no split is seen twice.
    for size in range(len(nums) - 1):
        for chosen in itertools.combinations(indices[1:], size):
            left = tuple(nums[i] for i in indices if i == 0 or i in chosen)
            right = tuple(nums[i] for i in indices if i != 0 and i not in chosen)
            pairs = itertools.product(reachable(left, operators).items(), reachable(right, operators).items())
            for (a, a_ways), (b, b_ways) in pairs:
                for value, operator, swapped in _combine(a, b, operators):
                    ways = found[value]
                    for (a_ops, a_text), (b_ops, b_text) in itertools.product(a_ways.items(), b_ways.items()):
                        used = "".join(sorted(a_ops + b_ops + operator, key=OPERATORS.index))
                        if used not in ways:
                            first, second = (b_text, a_text) if swapped else (a_text, b_text)
                            ways[used] = f"{_wrap(first)} {operator} {_wrap(second)}"
    return dict(found)


def _wrap(text: str) -> str:
    return f"({text})" if " " in text else text


def solve(nums: Sequence[int], target: int | Fraction, operators: str = OPERATORS) -> str | None:
    """One expression that uses every number exactly once and equals `target`, or None when there is none.

    Raises:
        ValueError: for more than six numbers.
    """
    if len(nums) > MAX_OPERANDS:
        raise ValueError(f"the exact solver takes at most {MAX_OPERANDS} numbers, not {len(nums)}: {list(nums)}")
    ways = reachable(tuple(sorted(nums)), operators).get(Fraction(target))
    return next(iter(ways.values())) if ways else None


def steps(expression: str) -> list[str]:
    """The solver's expression, one operation after another.

    >>> steps("19 + (35 + 44)")
    ['35 + 44 = 79', '19 + 79 = 98']
    """
    done = []
    while True:
        inner = re.search(r"\(([^()]+)\)", expression)
        text = inner[1] if inner else expression
        a, operator, b = text.split(" ")
        value = next(v for v, _, swapped in _combine(Fraction(a), Fraction(b), operator) if not swapped)
        done.append(f"{text} = {value}")
        if inner is None:
            return done
        expression = f"{expression[: inner.start()]}{value}{expression[inner.end() :]}"


# --- the generator ----------------------------------------------------------------------------------------------------


def targets_by_class(nums: tuple[int, ...], config: CountdownConfig) -> dict[str, list[int]]:
    """Class (the operators used) -> the targets of `nums` in range.

    With `countdown_unique`, only targets that expressions of a single class reach.

    Args:
        nums: the numbers, sorted.
        config: the generator's settings.
    """
    by_class = defaultdict(list)
    for value, ways in reachable(nums, config.countdown_operators).items():
        if value.denominator != 1 or not config.countdown_target_min <= value <= config.countdown_target_max:
            continue
        if len(ways) == 1 or not config.countdown_unique:
            for used in ways:
                by_class[used].append(int(value))
    return by_class


def _all_classes(operands: int, operators: str) -> set[str]:
    ordered = sorted(set(operators), key=OPERATORS.index)
    return {"".join(c) for c in itertools.combinations_with_replacement(ordered, operands - 1)}


def is_heldout(row: dict) -> bool:
    """Whether a generated problem belongs to the held-out side: a fifth of all problems, by a hash of their content.

    The side depends on neither seed nor size, so no run trains on a problem that measures another run.
    """
    return hashlib.sha256(f"side of {content_key(row)}".encode()).digest()[0] % 5 == 0


def generate(count: int, config: CountdownConfig, seed: int, heldout: bool) -> list[dict]:
    """`count` solvable problems from a seeded generator, all on one side of the split.

    Training problems are independent draws from the stated distribution, so rare ones repeat. Held-out problems are
    distinct.

    The numbers are uniform in `[countdown_min, countdown_max]`; their count is one of `countdown_operands`. The target is
    a value that they reach within `[countdown_target_min, countdown_target_max]`. `countdown_balance` balances the classes:

    - `numbers`: numbers are kept only if every class has a target for them, then a class is drawn uniformly. The numbers
      alone say nothing about the class, so a policy that ignores the target is right in 1 of k classes.
    - `classes`: a class is drawn uniformly first. The shares are equal, but the numbers still tell part of the class
      (small numbers are mostly products).
    - `none`: a target is drawn uniformly from all that the numbers reach.

    Args:
        count: number of problems.
        config: the `countdown_*` fields of the recipe.
        seed: seed of the draws; the same seed gives the same problems in the same order.
        heldout: the side of the split (`is_heldout`) that they come from.

    Returns:
        rows `{"nums": list[int], "target": int, "kind": str}` where `kind` is the class.

    Raises:
        TaskError: when the settings allow too few such problems, or none.
    """
    rng = random.Random(seed)
    classes = {k: sorted(_all_classes(k, config.countdown_operators)) for k in config.countdown_operands}
    rows, seen = [], set()
    # `delay`: only a long generation shows its progress; `disable`: and only in a terminal
    bar = tqdm(range(count), desc="generating problems", unit="", delay=2, leave=False, disable=None)
    for _ in bar:
        operands = rng.choice(config.countdown_operands)
        kind = rng.choice(classes[operands])
        for _ in range(MAX_DRAWS):
            nums = [rng.randint(config.countdown_min, config.countdown_max) for _ in range(operands)]
            by_class = targets_by_class(tuple(sorted(nums)), config)
            if config.countdown_balance == "none":
                targets = [(t, c) for c, ts in by_class.items() for t in ts]
            elif config.countdown_balance == "numbers" and len(by_class) < len(classes[operands]):
                targets = []
            else:
                targets = [(t, kind) for t in by_class.get(kind, [])]
            candidates = [{"nums": nums, "target": t, "kind": c} for t, c in sorted(targets)]
            candidates = [c for c in candidates if is_heldout(c) == heldout and content_key(c) not in seen]
            if candidates:
                break
        else:
            raise TaskError(
                f"the generator found only {len(rows)} {'distinct held-out' if heldout else 'training'} Countdown "
                f"problems of {count} asked for with "
                f"countdown_operands={config.countdown_operands}, numbers {config.countdown_min}..{config.countdown_max}"
                f", targets {config.countdown_target_min}..{config.countdown_target_max}, operators "
                f"{config.countdown_operators!r}, countdown_balance={config.countdown_balance} (no more of class "
                f"{kind!r}). Widen a range, or ask for fewer (train_size, heldout_size)."
            )
        rows.append(rng.choice(candidates))
        if heldout:
            seen.add(content_key(rows[-1]))
    return rows


def content_key(row: dict) -> tuple:
    """What makes two problems the same: the numbers in any order, and the target."""
    return (*sorted(row["nums"]), "->", row["target"])


def most_problems(config: CountdownConfig) -> int:
    """An upper bound of the number of distinct problems that the settings allow, on both sides of the split together."""
    size = config.countdown_max - config.countdown_min + 1
    targets = config.countdown_target_max - config.countdown_target_min + 1
    # Unordered draws of k numbers; each draw reaches at most all targets, and at most six with two numbers.
    return sum(
        math.comb(size + k - 1, k) * (min(targets, 6) if k == 2 else targets) for k in set(config.countdown_operands)
    )


def check_generator(config: CountdownConfig) -> None:
    """Raise TaskError for generator settings that are unknown, contradict each other or ask for too many problems."""
    if not config.countdown_operators or not set(config.countdown_operators) <= set(OPERATORS):
        raise TaskError(
            f"countdown_operators: {config.countdown_operators!r} may hold only {OPERATORS!r}, at least one of them"
        )
    if not config.countdown_operands or not all(2 <= k <= 4 for k in config.countdown_operands):
        raise TaskError(f"countdown_operands: {config.countdown_operands} must each be 2, 3 or 4")
    for low, high in (("countdown_min", "countdown_max"), ("countdown_target_min", "countdown_target_max")):
        if getattr(config, low) > getattr(config, high):
            raise TaskError(
                f"{low}: {getattr(config, low)} is above {high}: {getattr(config, high)}; lower the first or raise the second"
            )
    for name in ("train_size", "heldout_size"):
        if (getattr(config, name) or 0) > MAX_GENERATED:
            raise TaskError(
                f"{name}: {getattr(config, name)} generated problems are too many to keep in memory; ask for "
                f"{MAX_GENERATED} at most (longer training repeats the rows)"
            )
    if config.heldout_size > most_problems(config):
        raise TaskError(
            f"heldout_size: {config.heldout_size} is more than there are different problems (at most "
            f"{most_problems(config)} with countdown_operands={config.countdown_operands}, numbers {config.countdown_min}.."
            f"{config.countdown_max}, targets {config.countdown_target_min}..{config.countdown_target_max}). Ask for fewer, "
            "or widen a range"
        )
