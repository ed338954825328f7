"""`grpo_math.trainer.losses` against closed forms on small categorical policies, finite differences and TRL's own loss."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from grpo_math.trainer import losses
from grpo_math.trainer.losses import (
    adapted_beta,
    aggregate,
    equal_reward_groups,
    group_advantages,
    importance_corrected_kl,
    importance_log_ratio,
    is_reference_clipped,
    kl_estimate,
)

# --- advantages ---


def test_advantages_of_each_kind_by_hand():
    rewards = torch.tensor([0.0, 1.0, 1.0, 2.0, 5.0, 5.0, 5.0, 9.0])
    assert group_advantages(rewards, 4, "mean").tolist() == [-1, 0, 0, 1, -1, -1, -1, 3]
    torch.testing.assert_close(group_advantages(rewards, 4, "leave_one_out")[:4], torch.tensor([-4 / 3, 0, 0, 4 / 3]))
    std = math.sqrt(2 / 3)  # unbiased, of 0 1 1 2
    torch.testing.assert_close(group_advantages(rewards, 4)[3], torch.tensor(1 / (std + 1e-4)))


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    rewards = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    others = (rewards.sum(1, keepdim=True) - rewards) / 4
    torch.testing.assert_close(group_advantages(rewards.view(-1), 5, "leave_one_out"), (rewards - others).view(-1))


def expected_group_gradient(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact expectation over all 3^3 groups of G = 3 of the policy gradient, and the gradient of the mean reward."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    logps = logits.log_softmax(0)
    (true,) = torch.autograd.grad((logps.exp() * rewards).sum(), logits, retain_graph=True)
    total = torch.zeros_like(logits)
    for group in torch.cartesian_prod(*[torch.arange(3)] * 3):
        probability = logps.detach()[group].sum().exp()
        surrogate = (group_advantages(rewards[group], 3, kind) * logps[group]).mean()
        total += probability * torch.autograd.grad(surrogate, logits, retain_graph=True)[0]
    return total, true


def test_leave_one_out_gradient_is_unbiased_and_mean_shrinks_it_by_g_minus_one_over_g():
    loo, true = expected_group_gradient("leave_one_out")
    torch.testing.assert_close(loo, true)
    mean, true = expected_group_gradient("mean")
    torch.testing.assert_close(mean, true * 2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1.0, 2.0], 1), "at least 2"), (([1.0, 2.0, 3.0], 2), "whole number"), (([1.0, 2.0], 2, "median"), "'mean'")],
)
def test_bad_groups_are_named_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.tensor(arguments[0]), *arguments[1:])


def test_equal_rewards_are_found_where_advantages_are_only_nearly_zero():
    rewards = torch.tensor([0.1] * 7 + [0.1, 0.0, 1.0] + [0.5] * 6)
    assert group_advantages(rewards[:7], 7).abs().max() > 0  # float32: the mean of seven 0.1 is not 0.1
    assert equal_reward_groups(rewards[:7], 7).all()
    assert equal_reward_groups(rewards, 8).tolist() == [True] * 8 + [False] * 8


def test_an_unscored_row_does_not_make_a_group_unequal():
    nan = math.nan
    assert equal_reward_groups(torch.tensor([1.0, nan, 1.0, nan, nan, nan, 0.0, 1.0, nan]), 3).tolist() == (
        [True] * 6 + [False] * 3
    )


# --- ratios ---


def test_sequence_ratio_is_the_geometric_mean_of_token_ratios_over_the_mask():
    new = torch.tensor([[0.5, 0.25, 0.9]]).log()
    old = torch.tensor([[0.25, 0.5, 0.1]]).log()
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    torch.testing.assert_close(importance_log_ratio(new, old, mask).exp()[0, :2], torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(importance_log_ratio(new, old, mask, "sequence").exp(), torch.tensor([[1.0]]))
    with pytest.raises(ValueError, match="'sequence'"):
        importance_log_ratio(new, old, mask, "word")


# --- KL: value and gradient on a categorical policy, where both are exact ---


@pytest.fixture
def policy():
    """Logits of a policy, log-probabilities of a reference and of an older policy, on six outcomes, float64."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(6, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw().requires_grad_(), draw().log_softmax(0), draw().log_softmax(0)


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def expected_gradient(per_outcome, sampler_logps, logits):
    """Expectation over outcomes drawn from `sampler_logps` (no gradient through the drawing)."""
    return gradient((sampler_logps.detach().exp() * per_outcome).sum(), logits)


def reverse_kl(logits, ref):
    logps = logits.log_softmax(0)
    return (logps.exp() * (logps - ref)).sum()


def forward_kl(logits, ref):
    return (ref.exp() * (ref - logits.log_softmax(0))).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_for_the_value(policy, estimator):
    logits, ref, _ = policy
    logps = logits.log_softmax(0)
    torch.testing.assert_close((logps.exp() * kl_estimate(logps, ref, estimator)).sum(), reverse_kl(logits, ref))


def test_k2_is_biased_for_the_value(policy):
    logits, ref, _ = policy
    logps = logits.log_softmax(0)
    value = (logps.exp() * kl_estimate(logps, ref, "k2")).sum()
    assert abs(value / reverse_kl(logits, ref) - 1) > 0.02


def test_k3_is_never_negative_and_k1_is(policy):
    logits, ref, _ = policy
    logps = logits.log_softmax(0)
    assert (kl_estimate(logps, ref, "k3") >= 0).all()
    assert (kl_estimate(logps, ref, "k1") < 0).any()


def test_expected_gradient_of_k1_in_the_loss_is_zero(policy):
    logits, ref, _ = policy
    logps = logits.log_softmax(0)
    assert expected_gradient(kl_estimate(logps, ref, "k1"), logps, logits).abs().max() < 1e-15


def test_expected_gradient_of_k2_is_the_reverse_kls(policy):
    logits, ref, _ = policy
    logps = logits.log_softmax(0)
    found = expected_gradient(kl_estimate(logps, ref, "k2"), logps, logits)
    torch.testing.assert_close(found, gradient(reverse_kl(logits, ref), logits))


def test_expected_gradient_of_plain_k3_is_the_forward_kls_and_not_the_reverse(policy):
    logits, ref, _ = policy
    logps = logits.log_softmax(0)
    found = expected_gradient(kl_estimate(logps, ref, "k3"), logps, logits)
    torch.testing.assert_close(found, gradient(forward_kl(logits, ref), logits))
    assert (found - gradient(reverse_kl(logits, ref), logits)).norm() > 0.1 * found.norm()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_every_importance_corrected_estimator_has_the_reverse_kls_gradient(policy, estimator, on_policy):
    logits, ref, old = policy
    logps = logits.log_softmax(0)
    old = logps.detach() if on_policy else old
    ratio = (logps - old).exp()
    corrected = importance_corrected_kl(kl_estimate(logps, ref, estimator), ratio, estimator)
    torch.testing.assert_close(expected_gradient(corrected, old, logits), gradient(reverse_kl(logits, ref), logits))
    if estimator != "k2":
        torch.testing.assert_close((old.exp() * corrected).sum(), reverse_kl(logits, ref))


def test_unknown_estimator_is_a_named_error(policy):
    logits, ref, _ = policy
    with pytest.raises(ValueError, match=r"estimator='k4'.*'k1', 'k2', 'k3'"):
        kl_estimate(logits, ref, "k4")


# --- clipping ---


def test_reference_clipping_stops_only_the_push_away_from_the_reference():
    drift = torch.tensor([[-2.0, -0.5, 0.0, 0.4, 2.0]])
    clipped = lambda advantage: is_reference_clipped(  # noqa: E731
        drift, torch.zeros_like(drift), torch.tensor([[advantage]]), clip_low=1.0, clip_high=0.4
    )
    assert clipped(1.0).tolist() == [[False, False, False, True, True]]
    assert clipped(-1.0).tolist() == [[True, False, False, False, False]]
    assert not clipped(0.0).any()


def test_infinite_bounds_clip_nothing_and_zero_bounds_clip_every_push_away():
    generator = torch.Generator().manual_seed(0)
    logps, ref, advantages = (torch.randn(16, 4, generator=generator) for _ in range(3))
    assert not is_reference_clipped(logps, ref, advantages).any()
    away = (logps - ref) * advantages > 0
    assert torch.equal(is_reference_clipped(logps, ref, advantages, 0.0, 0.0), away)
    assert is_reference_clipped(ref, ref, advantages, 0.0, 0.0).all()


# --- aggregation ---


def ppo_loss(ratio, advantages, epsilon_low, epsilon_high, delta=None):
    """PPO's clipped surrogate with INTELLECT-2's bound (arXiv 2505.07291), which TRL's own loss applies."""
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.min(bounded * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)


def test_aggregations_by_hand():
    per_token = torch.tensor([[1.0, 3.0, 100.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert aggregate(per_token, mask, "grpo") == (2 + 6) / 2
    assert aggregate(per_token, mask, "bnpo") == torch.tensor(10 / 3)
    assert aggregate(per_token, mask, "dr_grpo", max_completion_length=5) == 10 / (2 * 5)
    assert aggregate(per_token, mask, "dapo", num_items_in_batch=4) == 10 / 4
    assert aggregate(per_token, mask, "luspo") == (4 + 6) / 2


@pytest.mark.parametrize(("loss_type", "needed"), [("dr_grpo", "max_completion_length"), ("dapo", "num_items")])
def test_a_missing_normaliser_is_a_named_error(loss_type, needed):
    with pytest.raises(ValueError, match=needed):
        aggregate(torch.ones(1, 1), torch.ones(1, 1), loss_type)


def test_finite_differences_agree_with_autograd():
    generator = torch.Generator().manual_seed(1)
    shape = (4, 5)
    new, old, ref = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3 - 2 for _ in range(3))
    advantages = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    mask = (torch.rand(shape, generator=generator) < 0.8).double()

    def loss(logps, loss_type, estimator, level):
        ratio = importance_log_ratio(logps, old, mask, level).exp()
        # `delta` and the clip have kinks, which a step of 1e-6 does not reach from these draws
        per_token = ppo_loss(ratio, advantages, 0.2, 0.28, delta=4.0)
        kl = kl_estimate(logps, ref, estimator) * importance_log_ratio(logps, old, mask).exp()
        return aggregate(per_token + 0.1 * kl, mask, loss_type, 17.0, 5)

    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
        for estimator in losses.KL_ESTIMATORS:
            for level in ("token", "sequence"):
                arguments = (new.clone().requires_grad_(), loss_type, estimator, level)
                assert torch.autograd.gradcheck(loss, arguments)


# --- the same loss as TRL's ---


def trl_loss(logps, inputs, loss_type, beta, level, delta=None, bias_correction=True):
    """TRL's `GRPOTrainer._compute_loss` itself, on given log-probabilities instead of a model's."""
    one_process = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    args = SimpleNamespace(delta=delta, use_bias_correction_kl=bias_correction, steps_per_generation=1)
    args.sapo_temperature_pos, args.sapo_temperature_neg = 1.0, 1.05
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps, torch.zeros_like(logps), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=args,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=9,
        accelerator=one_process,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    return GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["train"]


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("beta", "bias_correction"), [(0.0, True), (0.3, True), (0.3, False)])
@pytest.mark.parametrize("delta", [None, 1.5])
def test_composed_loss_equals_trls_in_value_gradient_and_metrics(loss_type, level, beta, bias_correction, delta):
    generator = torch.Generator().manual_seed(0)
    rows, tokens = 6, 7
    draw = lambda: torch.randn(rows, tokens, generator=generator) * 0.5 - 2  # noqa: E731
    logps, old, ref = draw(), draw(), draw()
    lengths = torch.tensor([7, 3, 5, 1, 7, 2])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    rewards = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0, 0.25])
    advantages = group_advantages(rewards, 3)
    inputs = {
        "prompt_ids": torch.ones(rows, 2, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 2, dtype=torch.long),
        "completion_ids": torch.ones(rows, tokens, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
    }
    theirs_in = logps.clone().requires_grad_()
    theirs, metrics = trl_loss(theirs_in, inputs, loss_type, beta, level, delta, bias_correction)

    ours_in = logps.clone().requires_grad_()
    ratio = importance_log_ratio(ours_in, old, mask, level).exp()
    kl = kl_estimate(ours_in, ref, "k3")
    if bias_correction:
        kl = importance_corrected_kl(kl, ratio, "k3")
    per_token = ppo_loss(ratio, advantages[:, None], 0.2, 0.28, delta) + beta * kl
    ours = aggregate(per_token, mask, loss_type, mask.sum(), 9)

    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    grads = [torch.autograd.grad(loss, x)[0] for loss, x in ((ours, ours_in), (theirs, theirs_in))]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)
    bounded, signs = ratio if delta is None else ratio.clamp(max=delta), advantages[:, None]
    clipped = (((bounded < 0.8) & (signs < 0)) | ((bounded > 1.28) & (signs > 0))).float()
    share = clipped.mean() if level == "sequence" else (clipped * mask).sum() / mask.sum()
    assert metrics["clip_ratio/region_mean"] == [pytest.approx(share.item())]


# --- the controller ---


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.1, 0.5), (0.11, 0.5 * (1 + 0.1 * 0.25)), (9.0, 0.5 * (1 + 0.2 * 0.25)), (0.0, 0.5 * (1 - 0.2 * 0.25))],
)
def test_beta_rises_above_the_target_and_falls_below_it_by_at_most_a_fifth_of_the_share(kl, expected):
    assert adapted_beta(0.5, kl, kl_target=0.1, kl_horizon=64, completions=16) == pytest.approx(expected)


def test_a_kl_that_is_not_a_number_does_not_reach_beta():
    with pytest.raises(ValueError, match="NaN"):
        losses.adapted_beta(0.04, float("nan"), 0.05, 1000.0, 8)
    assert losses.adapted_beta(0.04, float("inf"), 0.05, 1000.0, 8) == pytest.approx(0.04 * (1 + 0.2 * 8 / 1000))
