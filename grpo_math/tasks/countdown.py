"""Countdown: write an expression from the given numbers that hits the target.

Rows come from the data set `Jiayi-Pan/Countdown-Tasks-3to4` (columns `nums`, `target`), from a local JSONL or parquet
file with the same columns, or from the seeded generator of `countdown_problems.py` (`dataset_path: generated`). A row of
the data set:

    {"target": 98, "nums": [44, 19, 35]}          # 44 + 19 + 35

The game is that of TinyZero (https://github.com/Jiayi-Pan/TinyZero): every number is used exactly once, with + - * /
and parentheses.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from grpo_math.errors import TaskError
from grpo_math.tasks.base import Example, check_columns, read_rows, split_rows
from grpo_math.tasks.countdown_problems import (
    MAX_OPERANDS,
    OPERATORS,
    CountdownConfig,
    check_generator,
    content_key,
    generate,
    solve,
    steps,
    targets_by_class,
)

CONFIG = CountdownConfig

HUB_DATASET = ("Jiayi-Pan/Countdown-Tasks-3to4", None)
HUB_SPLITS = ("train", None)  # the data set has one split; held-out problems are taken from it by content
ACCURACY = "countdown_accuracy"
DEFAULT_REWARDS = ("countdown_accuracy",)
DEFAULT_TRAIN_SIZE = 1000  # generated training problems where the recipe has no train_size


# --- rows -------------------------------------------------------------------------------------------------------------


def check_row(row: dict, place: str) -> dict:
    """A clean row `{"nums", "target", ...}`, or a TaskError that names the place and the value."""
    check_columns(row, ("nums", "target"), place)
    nums, target = row.get("nums"), row.get("target")
    if not isinstance(nums, list) or not nums or not all(isinstance(n, int) and not isinstance(n, bool) for n in nums):
        raise TaskError(f"{place}: column `nums` must be a non-empty list of integers, not {nums!r}")
    if len(nums) > MAX_OPERANDS:
        raise TaskError(
            f"{place}: column `nums` holds {len(nums)} numbers, {str(nums)[:60]}...; the solver takes at most {MAX_OPERANDS}: "
            "drop the row"
        )
    if not isinstance(target, int) or isinstance(target, bool):
        raise TaskError(f"{place}: column `target` must be an integer, not {target!r}")
    if not isinstance(row.get("kind") or "", str):
        raise TaskError(f"{place}: column `kind` must be text, not {row['kind']!r}")
    return {"nums": nums, "target": target, "kind": row.get("kind") or f"{len(nums)} numbers"}


def load_rows(config: CountdownConfig) -> tuple[list[dict], list[dict]]:
    """Training and held-out rows, disjoint by content.

    Returns:
        two lists of `{"nums": list[int], "target": int, "kind": str}`.
    """
    if config.dataset_path == "generated":
        check_generator(config)
        train = generate(config.train_size or DEFAULT_TRAIN_SIZE, config, config.task_seed, heldout=False)
        return train, generate(config.heldout_size, config, config.task_seed, heldout=True)
    raw = read_rows(config, HUB_DATASET, HUB_SPLITS[0], env="GRPO_MATH_COUNTDOWN", wanted="columns nums, target")
    rows = [check_row(row, f"{raw.source}, row {i}") for i, row in enumerate(raw.rows)]
    return split_rows(rows, content_key, config, raw.source)


# --- text -------------------------------------------------------------------------------------------------------------


def problem_text(row: dict) -> str:
    """The problem in words, as every prompt style states it."""
    nums = ", ".join(map(str, row["nums"]))
    return (
        f"Using each of the numbers {nums} exactly once, write an arithmetic expression with +, -, *, / and "
        f"parentheses that equals {row['target']}."
    )


def compact_text(row: dict) -> str:
    """The problem in word-level tokens, for the built-in tiny model: `17 5 = 12 :`."""
    return f"{' '.join(map(str, row['nums']))} = {row['target']} :"


ANSWER_NOTE = "The answer is the expression alone, for example (1 + 2) / 3."


def example(row: dict) -> Example | None:
    """A worked example with its steps, `35 + 44 = 79, 19 + 79 = 98.`; None for a row that has no solution."""
    expression = solve(row["nums"], row["target"])
    if expression is None:
        return None
    return Example(problem_text(row), f"{', '.join(steps(expression))}.", expression)


def stratum(row: dict, config: CountdownConfig) -> str:
    """The class of a held-out row: its operators, after its count of numbers where the recipe has several counts."""
    kind, count = row["kind"], f"{len(row['nums'])} numbers"
    return kind if kind == count or len(set(config.countdown_operands)) == 1 else f"{count}: {kind}"


def columns(row: dict) -> dict:
    """What the reward functions see beside the completion."""
    return {"nums": list(row["nums"]), "target": row["target"]}


# --- the policy that ignores the target -------------------------------------------------------------------------------


def blind_accuracy(rows: Sequence[dict], train: Sequence[dict], config: CountdownConfig) -> tuple[float, str]:
    """Accuracy on `rows` of the best policy that sees the numbers but not the target.

    For each set of numbers such a policy can do no better than the expression that is right most often. For generated
    two-number problems the best expression is exact: it follows from the generator's own distribution of (class, target)
    given the numbers, and nothing is fitted. For other rows the policy is estimated: the fixed rule (an operator sequence
    over the numbers in descending order) that is right most often on the training rows.

    Args:
        rows: the held-out problems.
        train: the training problems, on which the estimated rule is chosen.
        config: the generator's settings.

    Returns:
        the accuracy, in [0, 1], and how it was found, for the report.
    """
    if config.dataset_path == "generated" and tuple(config.countdown_operands) == (2,):
        chances = [_chances(row["nums"], config) for row in rows]
        right = sum(max(p, key=p.get) == (row["kind"], row["target"]) for p, row in zip(chances, rows, strict=True))
        return right / len(rows), "best guess from the numbers alone, exact distribution of the generator"
    rules = Counter()
    for row in train:
        rules.update(_rules_hit(row))
    if not rules:
        return 0.0, "no fixed rule over the numbers is ever right"
    rule = rules.most_common(1)[0][0]
    hits = sum(rule in _rules_hit(row) for row in rows)
    return hits / len(rows), f"best fixed rule, `{' '.join(rule)}` over the numbers in descending order"


def _chances(nums: Sequence[int], config: CountdownConfig) -> dict[tuple[str, int], float]:
    """P(class, target | numbers), unnormalised, under the generator."""
    by_class = targets_by_class(tuple(sorted(nums)), config)
    weight = _class_weights(_generator_settings(config)) if config.countdown_balance == "classes" else {}
    # `none`: uniform over all targets of the numbers. `numbers`: uniform over the classes.
    return {
        (kind, target): (weight.get(kind, 1.0) if config.countdown_balance != "none" else len(targets)) / len(targets)
        for kind, targets in by_class.items()
        for target in targets
    }


def _generator_settings(config: CountdownConfig) -> tuple:
    return (
        config.countdown_min,
        config.countdown_max,
        config.countdown_operators,
        config.countdown_target_min,
        config.countdown_target_max,
        config.countdown_unique,
    )


@lru_cache(maxsize=16)
def _class_weights(settings: tuple) -> dict[str, float]:
    """Class -> 1 / (number of draws of two numbers that have a target in the class)."""
    low, high, operators, target_min, target_max, unique = settings
    config = CountdownConfig(
        countdown_operators=operators,
        countdown_target_min=target_min,
        countdown_target_max=target_max,
        countdown_unique=unique,
    )
    pairs = Counter()
    for nums in itertools.product(range(low, high + 1), repeat=2):
        pairs.update(targets_by_class(tuple(sorted(nums)), config).keys())
    return {kind: 1 / count for kind, count in pairs.items()}


def _rules_hit(row: dict) -> set[tuple[str, ...]]:
    """The operator sequences that, applied left to right to the numbers in descending order, hit the target."""
    nums = sorted(row["nums"], reverse=True)
    hits = set()
    for rule in itertools.product(OPERATORS, repeat=len(nums) - 1):
        value = Fraction(nums[0])
        for operator, number in zip(rule, nums[1:], strict=True):
            if operator == "/" and number == 0:
                break
            value = {"+": value.__add__, "-": value.__sub__, "*": value.__mul__, "/": value.__truediv__}[operator](
                number
            )
        else:
            if value == row["target"]:
                hits.add(rule)
    return hits
