"""Each reward's part of the advantage: the parts sum to the advantage, and scaling decides what a small weight is worth."""

import pytest
import torch
from conftest import RECIPES, run

from benchmarks.advantage_share import share
from grpo_math import report
from grpo_math.recipe import read_yaml
from grpo_math.trainer.losses import group_advantages
from grpo_math.trainer.reward_shares import advantage_shares, reward_advantages


@pytest.mark.parametrize(("scale", "kind"), [("group", "mean_std"), ("none", "mean")])
def test_the_parts_sum_to_the_advantage(scale, kind):
    torch.manual_seed(0)
    rewards, weights = torch.rand(24, 3), torch.tensor([1.0, 0.1, -0.5])
    parts = reward_advantages(rewards, weights, 8, scale)
    torch.testing.assert_close(parts.sum(dim=1), group_advantages((rewards * weights).sum(dim=1), 8, kind))


def test_a_small_weight_carries_everything_in_a_tied_group_unless_rewards_are_not_scaled():
    formatted = torch.tensor([[0.0, 1.0]] + [[0.0, 0.0]] * 7)
    right = formatted.flip(1)
    weights = torch.tensor([1.0, 0.1])
    scaled, unscaled = (reward_advantages(formatted, weights, 8, scale)[0, 1].item() for scale in ("group", "none"))
    assert scaled == pytest.approx(2.47, abs=0.01)
    assert scaled == pytest.approx(reward_advantages(right, weights, 8, "group")[0, 0].item(), abs=0.01)
    assert unscaled == pytest.approx(0.0875)
    assert reward_advantages(right, weights, 8, "none")[0, 0].item() == pytest.approx(0.875)
    assert share(0.01, 0.5, "group", 500) > 0.8
    assert share(0.2, 0.5, "none", 500) < 0.2


def test_no_advantage_has_no_shares_and_a_missing_reward_counts_as_nothing():
    assert advantage_shares(torch.zeros(8, 2)) is None
    rewards = torch.tensor([[1.0, float("nan")]] * 4 + [[0.0, float("nan")]] * 4)
    assert advantage_shares(reward_advantages(rewards, torch.ones(2), 8, "group")).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_with_several_rewards_do_not_scale_them(path):
    values = read_yaml(path)
    assert len(values.get("rewards", [])) < 2 or values["scale_rewards"] == "none"


def test_a_run_logs_the_share_of_each_reward(tiny_recipe, tmp_path, short):
    rewards = ["--rewards", "countdown_accuracy", "countdown_proximity", "--reward_weights", "1.0", "0.1"]
    assert run(tiny_recipe, tmp_path, *short, *rewards) == 0
    line = report.read_jsonl(tmp_path / "metrics.jsonl")[-1]
    shares = [line[f"advantage_share/countdown_{name}"] for name in ("accuracy", "proximity")]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0
