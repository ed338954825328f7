"""The advantages of a generation batch that is put together after scoring: TRL's two formulas, by hand."""

from math import isnan, nan
from statistics import mean, stdev

import pytest
import torch

from grpo_math.trainer.losses import (
    aggregate,
    batch_advantages,
    dead_rows,
    importance_corrected_kl,
    importance_log_ratio,
    kl_estimate,
)

REWARDS = [[1.0, 0.2], [0.0, nan], [0.5, 0.4], [nan, nan], [2.0, 1.0], [2.0, 1.0], [nan, 0.0], [1.0, 3.0]]
WEIGHTS = [1.0, 0.5]
G = 4


def known(values):
    return [value for value in values if not isnan(value)]


def groups(values):
    return [values[i : i + G] for i in range(0, len(values), G)]


def weighted(row):
    return sum(w * r for w, r in zip(WEIGHTS, row, strict=True) if not isnan(r)) if known(row) else nan


def centred_and_scaled(values, deviation, epsilon=1e-4):
    """Each value less its group's mean, over a deviation of its group; NaN becomes 0."""
    found = []
    for group in groups(values):
        found += [0.0 if isnan(v) else (v - mean(known(group))) / (deviation(group) + epsilon) for v in group]
    return found


def advantages(**options):
    return batch_advantages(torch.tensor(REWARDS), torch.tensor(WEIGHTS), G, **options).tolist()


def test_sums_are_scaled_by_the_deviation_of_their_group():
    expected = centred_and_scaled([weighted(row) for row in REWARDS], lambda group: stdev(known(group)))
    assert advantages(scale_rewards="group") == pytest.approx(expected, rel=1e-5)
    assert advantages() == advantages(scale_rewards="group", aggregation="sum_then_normalize")


def test_sums_are_scaled_by_the_deviation_of_the_batch():
    sums = [weighted(row) for row in REWARDS]
    expected = centred_and_scaled(sums, lambda group: stdev(known(sums)))
    assert advantages(scale_rewards="batch") == pytest.approx(expected, rel=1e-5)


def test_sums_are_only_centred_where_nothing_is_scaled():
    expected = centred_and_scaled([weighted(row) for row in REWARDS], lambda group: 1.0, epsilon=0.0)
    assert advantages(scale_rewards="none") == pytest.approx(expected, rel=1e-5)
    assert advantages(scale_rewards="none", epsilon=9.0) == pytest.approx(expected, rel=1e-5)


def test_a_large_epsilon_damps_every_scale():
    sums = [weighted(row) for row in REWARDS]
    expected = centred_and_scaled(sums, lambda group: stdev(known(group)), epsilon=3.0)
    assert advantages(scale_rewards="group", epsilon=3.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epsilon", [1e-4, 3.0])
def test_each_function_is_normalized_before_the_sum_and_the_sum_over_the_batch(epsilon):
    columns = zip(*REWARDS, strict=True)
    normalized = [centred_and_scaled(list(c), lambda group: stdev(known(group)), epsilon) for c in columns]
    rows = list(zip(*normalized, strict=True))
    sums = [nan if not known(row) else sum(w * v for w, v in zip(WEIGHTS, values, strict=True))
            for row, values in zip(REWARDS, rows, strict=True)]  # fmt: skip
    centre, scale = mean(known(sums)), stdev(known(sums)) + epsilon
    expected = [0.0 if isnan(value) else (value - centre) / scale for value in sums]
    found = advantages(aggregation="normalize_then_sum", epsilon=epsilon)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("option", [{"scale_rewards": "all"}, {"aggregation": "sum"}])
def test_an_unknown_option_is_named_with_its_choices(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"^{name}=?.*{option[name]}"):
        advantages(**option)


def test_rows_are_dead_where_the_rewards_that_count_are_equal_in_their_group():
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    one, first = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])
    assert dead_rows(rewards, one, 2).tolist() == [True, True, True, True]  # the sums are equal
    assert dead_rows(rewards, one, 2, "normalize_then_sum").tolist() == [False, False, True, True]
    constant = torch.tensor([[1.0, 7.0], [0.0, 7.0]])
    assert dead_rows(constant, first, 2, "normalize_then_sum").tolist() == [True, True]  # a weight of 0 counts nothing
    assert dead_rows(constant, one, 2, "normalize_then_sum").tolist() == [False, False]


def test_unknown_names_are_told_by_their_argument_and_k3_is_the_default():
    rows = torch.tensor([[0.3, -0.2]])
    with pytest.raises(ValueError, match=r"^level='word' is not known"):
        importance_log_ratio(rows, rows, torch.ones(1, 2), "word")
    with pytest.raises(ValueError, match=r"^loss_type='ppo' is not known"):
        aggregate(rows, torch.ones(1, 2), "ppo", 2, 2)
    assert torch.equal(kl_estimate(rows, rows / 2), kl_estimate(rows, rows / 2, "k3"))
    ratio = torch.full((1, 2), 1.5)
    assert torch.equal(importance_corrected_kl(rows, ratio), importance_corrected_kl(rows, ratio, "k3"))
