"""The solver is exact; generated problems are solvable, reproducible and split by content."""

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.errors import TaskError
from grpo_math.expressions import evaluate
from grpo_math.tasks import countdown, countdown_problems
from grpo_math.tasks.countdown_problems import CountdownConfig
from grpo_math.tiny_model import tiny_task_config


def generated(**overrides):
    base = dict(dataset_path="generated", train_size=60, heldout_size=20)
    return CountdownConfig(**{**base, **overrides})


# --- the solver --------------------------------------------------------------------------------------------------------


def brute_force(nums, operators="+-*/"):
    """Every reachable value, by the plainest recursion: replace two numbers by their combination."""
    if len(nums) == 1:
        return {Fraction(nums[0])}
    values = set()
    for i, j in itertools.permutations(range(len(nums)), 2):
        rest = [n for k, n in enumerate(nums) if k not in (i, j)]
        a, b = Fraction(nums[i]), Fraction(nums[j])
        joined = {"+": a + b, "-": a - b, "*": a * b}
        if b:
            joined["/"] = a / b
        for operator, value in joined.items():
            if operator in operators:
                values |= brute_force([*rest, value], operators)
    return values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.sampled_from(["+-*/", "+-*", "+-"]))
def test_the_solver_reaches_exactly_what_brute_force_reaches(nums, operators):
    assert set(countdown_problems.reachable(tuple(sorted(nums)), operators)) == brute_force(nums, operators)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=4), st.integers(1, 100))
def test_a_solution_is_right_by_the_rewards_evaluator(nums, target):
    expression = countdown_problems.solve(nums, target)
    if expression is None:
        assert Fraction(target) not in brute_force(nums)
    else:
        assert evaluate(expression, nums).value == target


def test_classic_puzzles():
    assert countdown_problems.solve([3, 3, 8, 8], 24) is not None
    assert countdown_problems.solve([1, 1, 1, 1], 24) is None
    with pytest.raises(ValueError, match="at most 6"):
        countdown_problems.solve([1] * 7, 7)


# --- the generator -----------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    setting=st.sampled_from(
        [
            ([2], "numbers", True),
            ([2], "classes", True),
            ([2], "none", False),
            ([3], "none", False),
            ([3, 4], "none", False),
        ]
    ),
)
def test_generated_problems_are_reproducible_solvable_in_range_and_disjoint(seed, setting):
    operands, balance, unique = setting
    config = generated(task_seed=seed, countdown_operands=operands, countdown_balance=balance, countdown_unique=unique,
                       countdown_operators="+-*")  # fmt: skip
    train, heldout = countdown.load_rows(config)
    assert (train, heldout) == countdown.load_rows(config)
    assert len(train) == 60
    assert len(heldout) == 20
    held = {countdown_problems.content_key(row) for row in heldout}
    assert len(held) == 20
    assert held.isdisjoint(countdown_problems.content_key(row) for row in train)
    for row in train + heldout:
        assert len(row["nums"]) in operands
        assert all(1 <= n <= 99 for n in row["nums"])
        assert 1 <= row["target"] <= 100
        ways = countdown_problems.reachable(tuple(sorted(row["nums"])), "+-*")[Fraction(row["target"])]
        assert row["kind"] in ways
        assert len(ways) == 1 or not unique


def test_no_seed_or_size_moves_a_problem_across_the_split():
    held = {countdown_problems.content_key(r) for r in countdown.load_rows(tiny_task_config(heldout_size=150))[1]}
    for seed, size in ((1, 500), (2, 1700), (0, 900)):
        train, _ = countdown.load_rows(tiny_task_config(task_seed=seed, train_size=size, heldout_size=0))
        assert held.isdisjoint(countdown_problems.content_key(r) for r in train)


def test_different_seeds_give_different_problems():
    assert countdown.load_rows(generated(task_seed=1))[0] != countdown.load_rows(generated(task_seed=2))[0]


def test_balanced_classes_have_equal_shares():
    train, _ = countdown.load_rows(tiny_task_config(train_size=900, heldout_size=0))
    shares = Counter(row["kind"] for row in train)
    assert set(shares) == {"+", "-", "*"}
    assert all(230 < n < 370 for n in shares.values())


def test_settings_that_allow_too_few_problems_are_rejected():
    with pytest.raises(TaskError, match=r"distinct held-out Countdown problems of 200 .*countdown_operands=\[2\]"):
        countdown.load_rows(generated(countdown_operands=[2], countdown_max=9, heldout_size=200, countdown_unique=True))
    with pytest.raises(TaskError, match=r"heldout_size: 5000 is more than there are different problems \(at most 270"):
        countdown.load_rows(generated(countdown_operands=[2], countdown_max=9, heldout_size=5000))
    with pytest.raises(TaskError, match="countdown_operators"):
        countdown.load_rows(generated(countdown_operators="+^"))
    with pytest.raises(TaskError, match="countdown_operands"):
        countdown.load_rows(generated(countdown_operands=[7]))


@pytest.mark.parametrize(
    ("operands", "smallest", "largest", "target_max"),
    [([2], 1, 9, 100), ([2], -3, 4, 3), ([3], 1, 4, 20), ([2, 3], 2, 2, 5), ([4], 1, 2, 6)],
)
def test_there_are_no_more_problems_than_the_bound_says(operands, smallest, largest, target_max):
    config = generated(
        countdown_operands=operands,
        countdown_min=smallest,
        countdown_max=largest,
        countdown_target_min=-2,
        countdown_target_max=target_max,
    )
    problems = {
        (nums, target)
        for k in operands
        for nums in itertools.combinations_with_replacement(range(smallest, largest + 1), k)
        for targets in countdown_problems.targets_by_class(nums, config).values()
        for target in targets
    }
    assert 0 < len(problems) <= countdown_problems.most_problems(config)


@pytest.mark.parametrize(("delay", "shown"), [(0, True), (60, False)])
def test_only_a_long_generation_shows_its_progress(monkeypatch, capsys, delay, shown):
    bar, there = countdown_problems.tqdm, {"delay": delay, "disable": False}  # as in a terminal
    monkeypatch.setattr(countdown_problems, "tqdm", lambda *args, **kwargs: bar(*args, **{**kwargs, **there}))
    countdown.load_rows(generated(train_size=3, heldout_size=0))
    assert ("generating problems" in capsys.readouterr().err) == shown


def test_shuffled_numbers_are_the_same_problem():
    rng = random.Random(0)
    nums = [3, 8, 5]
    shuffled = rng.sample(nums, 3)
    assert countdown_problems.content_key({"nums": nums, "target": 9}) == countdown_problems.content_key(
        {"nums": shuffled, "target": 9}
    )
