"""The estimator benchmark: expectations over every possible sample are the exact gradient, or off by the known factor."""

import dataclasses
import itertools

import pytest
import torch

from benchmarks import estimators, gradient_estimators, pictures
from benchmarks.gradient_estimators import SCORE_FUNCTION, Draw
from benchmarks.sequence_policies import Problem, make_problem, value


@pytest.fixture(scope="module", params=[0.0, 2.0], ids=["string match", "smooth"])
def problem(request) -> Problem:
    """Two digits below 3, two prompts, in float64: 9 completions, 81 pairs, 729 triples."""
    return dataclasses.replace(make_problem(2, 3, (0.1, 0.6), dtype=torch.float64), width=request.param)


def expectation(problem: Problem, group: int, advantages) -> torch.Tensor:
    """Exact mean of a score-function estimate, (P, D): every group of completions, with its probability."""
    every = torch.tensor(list(itertools.product(range(len(problem.completions())), repeat=group)))  # (N, G)
    rewards = problem.all_rewards()[:, every].transpose(0, 1)  # (N, P, G)
    chances = problem.distribution(problem.theta)[:, every].prod(-1)  # (P, N)
    weights = torch.einsum("pn,npg->png", chances, advantages(rewards)) / group
    estimate = torch.einsum("png,pngd->pd", weights, problem.scores()[:, every])
    return estimate / len(problem.targets)


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize(
    ("name", "scale"),
    [("REINFORCE", lambda g: 1.0), ("leave-one-out", lambda g: 1.0), ("GRPO without std", lambda g: (g - 1) / g)],
)
def test_the_mean_over_all_groups_is_the_exact_gradient_times_the_known_factor(problem, group, name, scale):
    mean = expectation(problem, group, SCORE_FUNCTION[name])
    torch.testing.assert_close(mean, scale(group) * problem.gradient())


def test_grpos_std_keeps_each_prompts_direction_with_a_string_match_and_not_with_a_smooth_reward(problem):
    cosines = torch.cosine_similarity(expectation(problem, 3, SCORE_FUNCTION["GRPO"]), problem.gradient(), dim=-1)
    assert torch.allclose(cosines, torch.ones(2, dtype=torch.float64)) == (problem.width == 0)


def test_a_constant_baseline_leaves_the_mean_and_the_running_one_never_holds_its_own_batch(problem):
    mean = expectation(problem, 2, lambda rewards: rewards - 0.37)
    torch.testing.assert_close(mean, problem.gradient())
    rewards = torch.rand(30, 2, 4, dtype=torch.float64)
    before = rewards - gradient_estimators.running_baseline(rewards)
    rewards[12:] += 1
    after = rewards - gradient_estimators.running_baseline(rewards)
    torch.testing.assert_close(after[:13], before[:13])
    assert (after[13:] > before[13:] + 0.05).all()


@pytest.mark.parametrize("advantages", ["leave-one-out", "GRPO"])
def test_an_estimate_is_the_sum_of_its_samples_scores(problem, advantages):
    """The autograd path agrees with scores that are looked up."""
    draw = Draw(problem, 4, 5, torch.Generator().manual_seed(3))
    estimate = gradient_estimators.score_function(draw, SCORE_FUNCTION[advantages])
    completions = problem.sample(draw.theta().detach(), 4, torch.Generator().manual_seed(3))  # (R, P, G, T)
    index = completions[..., 0] * 3 + completions[..., 1]
    weights = SCORE_FUNCTION[advantages](problem.reward(completions))
    scores = torch.stack([problem.scores()[p][index[:, p]] for p in range(2)], dim=1)  # (R, P, G, D)
    torch.testing.assert_close(estimate, (weights.unsqueeze(-1) * scores).mean(2) / 2)


def test_all_ratios_agree_on_policy_and_only_importance_sampling_is_unbiased_off_policy(problem):
    def draw():
        return Draw(problem, 4, 20_000, torch.Generator().manual_seed(0))

    old = problem.theta
    on = [gradient_estimators.ratio_estimate(draw(), old, ratio) for ratio in estimators.RATIOS]
    for other in on[1:]:
        torch.testing.assert_close(other, on[0])
    old = old - 3.0 * problem.gradient() / problem.gradient().norm()
    off = {
        ratio: estimators.statistics_of(gradient_estimators.ratio_estimate(draw(), old, ratio), problem.gradient())
        for ratio in estimators.RATIOS
    }
    assert off["sequence"]["bias"] < 4 * off["sequence"]["bias_error"]
    for ratio in ("none", "token", "clipped"):
        assert off[ratio]["bias"] > 4 * off[ratio]["bias_error"]


def test_samples_follow_the_policy_and_straight_through_draws_the_same_distribution(problem):
    exact = problem.distribution(problem.theta)[0]
    completions = problem.sample(problem.theta, 40_000, torch.Generator().manual_seed(0))[0]
    counted = torch.bincount(completions[:, 0] * 3 + completions[:, 1], minlength=9) / 40_000
    assert (counted - exact).abs().max() < 0.01
    seen = []
    draw = Draw(problem, 40_000, 1, torch.Generator().manual_seed(1))

    def surrogate(soft):
        seen.append(soft.detach())
        return soft.sum((-1, -2))

    gradient_estimators.pathwise(draw, surrogate, 1.0, straight_through=True)
    digits = seen[0][0, 0].argmax(-1)
    counted = torch.bincount(digits[:, 0] * 3 + digits[:, 1], minlength=9) / 40_000
    assert (counted - exact).abs().max() < 0.01


def test_surrogates_equal_the_reward_on_real_digits(problem):
    soft = problem.one_hot(problem.completions()).expand(1, 2, -1, -1, -1)  # (1, P, S, T, V)
    torch.testing.assert_close(gradient_estimators.multilinear(problem)(soft)[0], problem.all_rewards())
    if problem.width:
        torch.testing.assert_close(problem.smooth_reward(soft)[0], problem.all_rewards())
    fitted = gradient_estimators.learned(problem, 5000, torch.Generator().manual_seed(0), ridge=1e-6)(soft)[0]
    chances = problem.distribution(problem.theta)
    assert (chances * (fitted - problem.all_rewards()).abs()).sum(-1).max() < 1e-3


def test_a_cold_gumbel_softmax_of_the_multilinear_extension_nears_the_exact_gradient(problem):
    def bias(temperature):
        draw = Draw(problem, 4, 20_000, torch.Generator().manual_seed(0))
        found = gradient_estimators.pathwise(draw, gradient_estimators.multilinear(problem), temperature, False)
        return estimators.statistics_of(found, problem.gradient())

    warm, cold = bias(1.0), bias(0.2)
    assert cold["bias"] < warm["bias"] / 2
    assert cold["noise"] > warm["noise"]


def test_the_prompts_have_the_accuracies_that_were_asked_for():
    made = make_problem(3, 5, (0.05, 0.5))
    torch.testing.assert_close(made.expected_reward(made.theta), torch.tensor([0.05, 0.5]), atol=1e-4, rtol=0)
    assert value(made.one_hot(torch.tensor([[2, 3, 4]]))).item() == 10
    assert value(made.one_hot(torch.tensor([[2, 3, 1, 4]]))).item() == 10


def test_statistics_of_estimates_whose_bias_and_spread_are_known():
    exact = torch.tensor([3.0, 4.0])
    spread = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(5000, 1)
    found = estimators.statistics_of(exact / 2 + spread, exact)
    assert found["bias"] == pytest.approx(0.5, abs=1e-3)
    assert found["scale"] == pytest.approx(0.5)
    assert found["direction"] == pytest.approx(1)
    assert found["noise"] == pytest.approx(1 / 2.5, rel=1e-3)
    assert estimators.statistics_of(torch.zeros(4, 2), exact)["cosine"] == 0


def test_names_beside_lines_keep_their_order_and_distance():
    placed = pictures.spread([3.0, 0.0, 0.1, 9.0], 1.0)
    assert placed == pytest.approx([3.0, -0.45, 0.55, 9.0])
    crowded = pictures.spread([5.0] * 4, 2.0)
    assert sorted(crowded) == pytest.approx([2.0, 4.0, 6.0, 8.0])


def test_the_page_and_pictures_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(estimators.common, "RESULTS", tmp_path)
    monkeypatch.setattr(estimators, "GROUPS", (2, 8))
    assert estimators.main(["--repetitions", "20"]) == 0
    text = (tmp_path / "estimators.md").read_text(encoding="utf-8")
    assert text.count("| leave-one-out | log pi |") == 2
    for picture in ("estimators.png", "estimators_time.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in text
