"""Countdown: write an expression from the given numbers that hits the target.

Rows come from the data set `Jiayi-Pan/Countdown-Tasks-3to4` (columns `nums`, `target`), from a local JSONL or parquet
file with the same columns, or from the seeded generator below (`dataset_path: generated`). A row of the data set:

    {"target": 98, "nums": [44, 19, 35]}          # 44 + 19 + 35

The game is that of TinyZero (https://github.com/Jiayi-Pan/TinyZero): every number is used exactly once, with + - * /
and parentheses. Values are exact rationals throughout.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from tqdm.auto import tqdm

from grpo_math.errors import TaskError
from grpo_math.tasks.base import Example, TaskConfig, check_columns, read_rows, split_rows

HUB_DATASET = ("Jiayi-Pan/Countdown-Tasks-3to4", None)
HUB_SPLITS = ("train", None)  # the data set has one split: the held-out problems are cut from it by content
ACCURACY = "countdown_accuracy"
DEFAULT_REWARDS = ("countdown_accuracy",)
OPERATORS = "+-*/"
MAX_GENERATED = 1_000_000  # rows are kept in memory, formatted, at about a kilobyte each
DEFAULT_TRAIN_SIZE = 1000  # generated training problems when the recipe does not say
MAX_DRAWS = 5_000  # draws of numbers for one problem before the generator gives up
MAX_OPERANDS = 6  # the solver enumerates all expressions; beyond six numbers that takes minutes


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


# --- the generator ----------------------------------------------------------------------------------------------------


def _problems_of(nums: tuple[int, ...], config: TaskConfig) -> dict[str, list[int]]:
    """Class (the operators used) -> the targets of `nums` in range. With `countdown_unique`, only those targets that
    expressions of a single class reach."""
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

    The side does not depend on a seed or a size, so no run ever trains on a problem that another one is measured on.
    """
    return hashlib.sha256(f"side of {content_key(row)}".encode()).digest()[0] % 5 == 0


def generate(count: int, config: TaskConfig, seed: int, heldout: bool) -> list[dict]:
    """`count` solvable problems from a seeded generator, all on one side of the split.

    Training problems are independent draws, so rare ones repeat and the law is exactly the stated one; held-out problems
    are distinct.

    Numbers are drawn uniformly from `[countdown_min, countdown_max]`, `countdown_operands` of them, the target from the
    values that they reach within `[countdown_target_min, countdown_target_max]`. Classes are the operators that the
    solution uses (`"+"`, `"*"`, `"+*"`, ...) and are balanced by `countdown_balance`:

    - `numbers`: numbers are kept only if every class has a target for them, and a class is then drawn uniformly, so
      the numbers alone say nothing about the class: a policy that ignores the target is right in 1 of k classes.
    - `classes`: a class is drawn uniformly first. Equal shares, but the numbers still give the class away in part
      (small numbers are mostly products).
    - `none`: a target is drawn uniformly from all that the numbers reach.

    Args:
        count: number of problems.
        config: the `countdown_*` fields of the recipe.
        seed: seed of the draw; the same seed gives the same problems in the same order.
        heldout: which side of the split (`is_heldout`) they come from.

    Returns:
        rows `{"nums": list[int], "target": int, "kind": str}` where `kind` is the class.

    Raises:
        TaskError: when the settings admit no such problem, or too few distinct ones.
    """
    rng = random.Random(seed)
    classes = {k: sorted(_all_classes(k, config.countdown_operators)) for k in config.countdown_operands}
    rows, seen = [], set()
    # Only a long generation shows its bar
    bar = tqdm(range(count), desc="generating problems", unit="", delay=2, leave=False)
    for _ in bar:
        operands = rng.choice(config.countdown_operands)
        kind = rng.choice(classes[operands])
        for _ in range(MAX_DRAWS):
            nums = [rng.randint(config.countdown_min, config.countdown_max) for _ in range(operands)]
            by_class = _problems_of(tuple(sorted(nums)), config)
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


# --- rows -------------------------------------------------------------------------------------------------------------


def check_row(row: dict, place: str) -> dict:
    """A clean row `{"nums", "target", ...}`, or a TaskError that names the place and the value."""
    check_columns(row, ("nums", "target"), place)
    nums, target = row.get("nums"), row.get("target")
    if not isinstance(nums, list) or not nums or not all(isinstance(n, int) and not isinstance(n, bool) for n in nums):
        raise TaskError(f"{place}: column `nums` must be a non-empty list of integers, not {nums!r}")
    if not isinstance(target, int) or isinstance(target, bool):
        raise TaskError(f"{place}: column `target` must be an integer, not {target!r}")
    return {"nums": nums, "target": target, "kind": row.get("kind") or f"{len(nums)} numbers"}


def most_problems(config: TaskConfig) -> int:
    """An upper bound of how many different problems the generator's settings admit, on both sides of the split together."""
    size = config.countdown_max - config.countdown_min + 1
    targets = config.countdown_target_max - config.countdown_target_min + 1
    # k numbers in any order; each lot reaches at most every target, two numbers at most six
    return sum(
        math.comb(size + k - 1, k) * (min(targets, 6) if k == 2 else targets) for k in set(config.countdown_operands)
    )


def check_generator(config: TaskConfig) -> None:
    """Raise TaskError for settings of the generator that contradict each other, or that it does not know."""
    if not config.countdown_operators or not set(config.countdown_operators) <= set(OPERATORS):
        raise TaskError(
            f"countdown_operators: {config.countdown_operators!r} may hold only {OPERATORS!r}, and one of them"
        )
    if not config.countdown_operands or not all(2 <= k <= 4 for k in config.countdown_operands):
        raise TaskError(f"countdown_operands: {config.countdown_operands} must each be 2, 3 or 4")
    for low, high in (("countdown_min", "countdown_max"), ("countdown_target_min", "countdown_target_max")):
        if getattr(config, low) > getattr(config, high):
            raise TaskError(
                f"{low}: {getattr(config, low)} is above {high}: {getattr(config, high)}; lower the one or raise the other"
            )
    for name in ("train_size", "heldout_size"):
        if (getattr(config, name) or 0) > MAX_GENERATED:
            raise TaskError(
                f"{name}: {getattr(config, name)} generated problems are too many to keep in memory; give {MAX_GENERATED} at "
                "most (further steps go over the rows again)"
            )
    if config.heldout_size > most_problems(config):
        raise TaskError(
            f"heldout_size: {config.heldout_size} is more than there are different problems (at most "
            f"{most_problems(config)} with countdown_operands={config.countdown_operands}, numbers {config.countdown_min}.."
            f"{config.countdown_max}, targets {config.countdown_target_min}..{config.countdown_target_max}). Ask for fewer, "
            "or widen a range"
        )


def load_rows(config: TaskConfig) -> tuple[list[dict], list[dict]]:
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
    """A worked example for the prompt; None for a row that has no solution."""
    expression = solve(row["nums"], row["target"])
    if expression is None:
        return None
    return Example(problem_text(row), f"{expression} = {row['target']}.", expression)


def columns(row: dict) -> dict:
    """What the reward functions see beside the completion."""
    return {"nums": list(row["nums"]), "target": row["target"]}


# --- the policy that ignores the target -------------------------------------------------------------------------------


def blind_accuracy(rows: Sequence[dict], train: Sequence[dict], config: TaskConfig) -> tuple[float, str]:
    """Accuracy on `rows` of the best policy that sees the numbers but not the target.

    A policy without the target can do no better than answer, for each set of numbers, the expression that is right
    most often. For generated two-number problems that probability is exact: it is computed from the generator's own
    law (class by class, given the numbers), so nothing is fitted to the held-out problems. For other rows the policy is
    estimated: the fixed rule (an operator sequence over the numbers in descending order) that is right most often on
    the training rows.

    Args:
        rows: the held-out problems.
        train: the training problems, on which the estimated rule is chosen.
        config: the generator's settings.

    Returns:
        the accuracy, in [0, 1], and a few words on how it was found.
    """
    if config.dataset_path == "generated" and tuple(config.countdown_operands) == (2,):
        laws = [_law(row["nums"], config) for row in rows]
        right = sum(max(law, key=law.get) == _answer(row) for law, row in zip(laws, rows, strict=True))
        return right / len(rows), "best guess from the numbers alone, exact law of the generator"
    rules = Counter()
    for row in train:
        rules.update(_rules_hit(row))
    if not rules:
        return 0.0, "no fixed rule over the numbers is ever right"
    rule = rules.most_common(1)[0][0]
    hits = sum(rule in _rules_hit(row) for row in rows)
    return hits / len(rows), f"best fixed rule, `{' '.join(rule)}` over the numbers in descending order"


def _answer(row: dict) -> tuple[str, int]:
    return row["kind"], row["target"]


def _law(nums: Sequence[int], config: TaskConfig) -> dict[tuple[str, int], float]:
    """P(class, target | numbers), unnormalised, under the generator."""
    by_class = _problems_of(tuple(sorted(nums)), config)
    weight = _class_weights(_frozen(config)) if config.countdown_balance == "classes" else {}
    # With `none` a target is uniform over all targets of the numbers, with `numbers` a class is.
    return {
        (kind, target): (weight.get(kind, 1.0) if config.countdown_balance != "none" else len(targets)) / len(targets)
        for kind, targets in by_class.items()
        for target in targets
    }


def _frozen(config: TaskConfig) -> tuple:
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
    """class -> 1 / (number of draws of two numbers that have a target in the class)."""
    low, high, operators, target_min, target_max, unique = settings
    config = TaskConfig(
        task="countdown",
        countdown_operators=operators,
        countdown_target_min=target_min,
        countdown_target_max=target_max,
        countdown_unique=unique,
    )
    pairs = Counter()
    for nums in itertools.product(range(low, high + 1), repeat=2):
        pairs.update(_problems_of(tuple(sorted(nums)), config).keys())
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
