"""The mathematics of GRPO on tensors: group advantages, ratios, KL estimators, clipping, aggregation. Pure functions.

Shapes: B rows (= prompts x G, the G completions of a prompt next to each other), T completion tokens. `mask` is
(B, T), 1 on completion tokens and 0 on padding. Log-probabilities are natural logarithms.

Sources: GRPO (DeepSeekMath, arXiv 2402.03300), PPO (arXiv 1707.06347), DAPO (arXiv 2503.14476), Dr. GRPO (arXiv
2503.20783), GSPO (arXiv 2507.18071), RLOO (arXiv 2402.14740), DeepSeek-V3.2 (arXiv 2512.02556) and J. Schulman,
"Approximating KL divergence" (http://joschu.net/blog/kl-approx.html). PPO's clipped surrogate is not here: TRL's own loss
applies it, with its `epsilon`, `epsilon_high` and `delta`.

>>> group_advantages(torch.tensor([0.0, 1.0, 1.0, 1.0]), num_generations=4, kind="leave_one_out")
tensor([-1.0000,  0.3333,  0.3333,  0.3333])
"""

import math
from collections.abc import Callable

import torch
from trl.trainer.utils import nanstd

KL_ESTIMATORS = ("k1", "k2", "k3")
ADVANTAGES = ("mean", "mean_std", "leave_one_out")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")

# How TRL's loss types weigh a token. Types in one line share the aggregation and differ in the per-token loss only.
SEQUENCE_MEAN = ("grpo", "sapo")
MICRO_BATCH_MEAN = ("bnpo",)
CONSTANT_LENGTH = ("dr_grpo",)
GLOBAL_TOKEN_MEAN = ("dapo", "cispo", "vespo")
SEQUENCE_SUM = ("luspo",)
LOSS_TYPES = SEQUENCE_MEAN + MICRO_BATCH_MEAN + CONSTANT_LENGTH + GLOBAL_TOKEN_MEAN + SEQUENCE_SUM


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known. Write one of {', '.join(map(repr, choices))}.")


def group_advantages(
    rewards: torch.Tensor, num_generations: int, kind: str = "mean_std", epsilon: float = 1e-4
) -> torch.Tensor:
    r"""
    Advantage of each completion against the other completions of its prompt.

    `"mean"` (Dr. GRPO): $A_i = r_i - \bar r$. `"mean_std"` (GRPO, TRL's default): $A_i = (r_i - \bar r) / (s +
    \epsilon)$ with the unbiased standard deviation $s$ of the group. `"leave_one_out"` (RLOO): $A_i = r_i -
    \frac{1}{G-1} \sum_{j \ne i} r_j = \frac{G}{G-1} (r_i - \bar r)$, which makes the policy gradient unbiased;
    `"mean"` shrinks it by $(G-1)/G$.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): One reward a completion, the G of a prompt next to each other.
        num_generations (`int`): G, at least 2.
        kind (`str`, defaults to `"mean_std"`): `"mean"`, `"mean_std"` or `"leave_one_out"`.
        epsilon (`float`, defaults to `1e-4`): Added to the standard deviation, TRL's value.

    Returns:
        `torch.Tensor` of shape `(B,)`.

    Raises:
        ValueError: unknown `kind`, G below 2, or B no multiple of G.
    """
    _one_of("kind", kind, ADVANTAGES)
    if num_generations < 2:
        raise ValueError(f"num_generations={num_generations}: a group needs at least 2 completions to be compared.")
    if rewards.numel() % num_generations:
        raise ValueError(
            f"{rewards.numel()} rewards are no whole number of groups of {num_generations} (num_generations)."
        )
    grouped = rewards.view(-1, num_generations)  # (B/G, G)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    if kind == "mean_std":
        centred = centred / (grouped.std(dim=1, keepdim=True) + epsilon)
    elif kind == "leave_one_out":
        centred = centred * (num_generations / (num_generations - 1))
    return centred.reshape(-1)


def equal_reward_groups(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """
    Which rows belong to a group whose rewards are all equal (max == min), so that nothing can be learnt from it.

    "Advantage near zero" is no substitute: in float32 eight rewards of 0.1 have advantages of about 1e-5. A NaN reward
    (no reward function applied to the row) is left out of the comparison; a group of NaN only is equal.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): Summed reward of each completion.
        num_generations (`int`): G.

    Returns:
        `torch.Tensor` of shape `(B,)`, bool.
    """
    grouped = rewards.view(-1, num_generations)
    highest = grouped.nan_to_num(nan=-torch.inf).amax(dim=1)
    lowest = grouped.nan_to_num(nan=torch.inf).amin(dim=1)
    return (highest <= lowest).repeat_interleave(num_generations)


def dead_rows(
    rewards_per_func: torch.Tensor,
    weights: torch.Tensor,
    num_generations: int,
    aggregation: str = "sum_then_normalize",
) -> torch.Tensor:
    """
    Which rows belong to a group whose rewards are all equal ([`equal_reward_groups`]): their weighted sums, or those of
    every function where each is normalized on its own. Such a row's advantage is zero, and round-off in TRL.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(B, F)`): Of the F reward functions; NaN where one does not apply.
        weights (`torch.Tensor` of shape `(F,)`).
        num_generations (`int`): G.
        aggregation (`str`, defaults to `"sum_then_normalize"`): TRL's `multi_objective_aggregation`.

    Returns:
        `torch.Tensor` of shape `(B,)`, bool.
    """
    _one_of("aggregation", aggregation, AGGREGATIONS)
    if aggregation == "normalize_then_sum":
        counted = rewards_per_func[:, weights != 0].unbind(dim=1)
        equal = [equal_reward_groups(rewards, num_generations) for rewards in counted]
        return torch.stack([torch.ones_like(rewards_per_func[:, 0], dtype=torch.bool), *equal]).all(dim=0)
    return equal_reward_groups(_weighted_sums(rewards_per_func, weights), num_generations)


def _weighted_sums(rewards_per_func: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sums over the functions that apply, shape (B,); NaN where none does."""
    summed = (rewards_per_func * weights).nansum(dim=1)
    return summed.masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)


def batch_advantages(
    rewards_per_func: torch.Tensor,
    weights: torch.Tensor,
    num_generations: int,
    scale_rewards: str = "group",
    aggregation: str = "sum_then_normalize",
    epsilon: float = 1e-4,
) -> torch.Tensor:
    r"""
    TRL's advantages of a whole generation batch, for a batch that is put together after TRL has scored its parts.

    `sum_then_normalize`: $A_i = (r_i - \bar r_{group}) / (s + \epsilon)$ of the weighted sums $r$, with the standard
    deviation $s$ of the group or of the batch, or without it. `normalize_then_sum` (GDPO, arXiv 2601.05242): each
    function is first normalized in its group, and the weighted sum then over the batch.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(B, F)`): Of the F reward functions; NaN where one does not apply.
        weights (`torch.Tensor` of shape `(F,)`).
        num_generations (`int`): G.
        scale_rewards (`str`, defaults to `"group"`): TRL's: `"group"`, `"batch"` or `"none"`.
        aggregation (`str`, defaults to `"sum_then_normalize"`): TRL's `multi_objective_aggregation`.
        epsilon (`float`, defaults to `1e-4`): TRL's value.

    Returns:
        `torch.Tensor` of shape `(B,)`; zero where no function applies.
    """
    _one_of("scale_rewards", scale_rewards, ("group", "batch", "none"))
    _one_of("aggregation", aggregation, AGGREGATIONS)

    def grouped(reduce: Callable, rewards: torch.Tensor) -> torch.Tensor:
        return reduce(rewards.view(-1, num_generations, *rewards.shape[1:]), dim=1).repeat_interleave(
            num_generations, 0
        )

    if aggregation == "normalize_then_sum":
        centred = rewards_per_func - grouped(torch.nanmean, rewards_per_func)
        normalized = centred / (grouped(nanstd, rewards_per_func) + epsilon)
        rewards = (normalized * weights).nansum(dim=1).masked_fill(rewards_per_func.isnan().all(dim=1), torch.nan)
        return ((rewards - rewards.nanmean()) / (nanstd(rewards) + epsilon)).nan_to_num(nan=0.0)
    rewards = _weighted_sums(rewards_per_func, weights)
    advantages = rewards - grouped(torch.nanmean, rewards)
    if scale_rewards != "none":
        advantages = advantages / (
            (grouped(nanstd, rewards) if scale_rewards == "group" else nanstd(rewards)) + epsilon
        )
    return advantages.nan_to_num(nan=0.0)


def importance_log_ratio(
    per_token_logps: torch.Tensor, old_per_token_logps: torch.Tensor, mask: torch.Tensor, level: str = "token"
) -> torch.Tensor:
    r"""
    Logarithm of the importance ratio between the policy and the policy that sampled.

    Token level (PPO, GRPO): $\log \pi(o_t) - \log \pi_{old}(o_t)$. Sequence level (GSPO): its mean over the
    completion's tokens, one ratio a row.

    Args:
        per_token_logps (`torch.Tensor` of shape `(B, T)`): Log-probabilities under the policy.
        old_per_token_logps (`torch.Tensor` of shape `(B, T)`): The same under the sampling policy.
        mask (`torch.Tensor` of shape `(B, T)`): 1 on completion tokens.
        level (`str`, defaults to `"token"`): `"token"` or `"sequence"`.

    Returns:
        `torch.Tensor` of shape `(B, T)` for tokens, `(B, 1)` for sequences.
    """
    _one_of("level", level, ("token", "sequence"))
    log_ratio = per_token_logps - old_per_token_logps
    if level == "token":
        return log_ratio
    return ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)


def kl_estimate(
    per_token_logps: torch.Tensor, ref_per_token_logps: torch.Tensor, estimator: str = "k3"
) -> torch.Tensor:
    r"""
    Per-token estimates of $KL(\pi \| \pi_{ref})$ from tokens drawn from $\pi$ (Schulman).

    With $l = \log \pi(o_t) - \log \pi_{ref}(o_t)$: $k_1 = l$ (unbiased, can be negative), $k_2 = l^2 / 2$
    (biased, low variance), $k_3 = e^{-l} + l - 1$ (unbiased, never negative).

    **As a term of the loss it is the gradient that counts, and that is another question than the value** (Tang and
    Munos, arXiv 2506.09477). Over tokens drawn from $\pi$, the expected gradient of

    - `k1` is zero ($E[\nabla \log \pi] = 0$): no penalty at all, only noise;
    - `k2` is that of the reverse KL, $\nabla KL(\pi \| \pi_{ref})$;
    - `k3` is that of the forward KL, $\nabla KL(\pi_{ref} \| \pi)$.

    [`importance_corrected_kl`] gives k1 and k3 the reverse KL's gradient.

    Args:
        per_token_logps (`torch.Tensor` of shape `(B, T)`): Log-probabilities under the policy.
        ref_per_token_logps (`torch.Tensor` of shape `(B, T)`): The same under the reference.
        estimator (`str`, defaults to `"k3"`): `"k1"`, `"k2"` or `"k3"`.

    Returns:
        `torch.Tensor` of shape `(B, T)`, in nats.
    """
    _one_of("estimator", estimator, KL_ESTIMATORS)
    log_ratio = per_token_logps - ref_per_token_logps
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    return torch.exp(-log_ratio) + log_ratio - 1


def importance_corrected_kl(per_token_kl: torch.Tensor, ratio: torch.Tensor, estimator: str = "k3") -> torch.Tensor:
    r"""
    The KL term for tokens that an older policy drew: $\rho \, k$ with $\rho = \pi / \pi_{old}$ (DeepSeek-V3.2,
    section 3.1; TRL's `use_bias_correction_kl`).

    For k1 and k3 the gradient flows through $\rho$ too: $E_{old}[\rho k] = E_\pi[k] = KL(\pi \| \pi_{ref})$ is the
    exact divergence, and so is its gradient. k2 already has that gradient and a biased value, so its $\rho$ is
    detached: it corrects the sampling and adds no term of its own.

    Args:
        per_token_kl (`torch.Tensor` of shape `(B, T)`): Output of [`kl_estimate`].
        ratio (`torch.Tensor` of shape `(B, T)` or `(B, 1)`): $\rho$, with its gradient.
        estimator (`str`, defaults to `"k3"`): Which estimator `per_token_kl` is.

    Returns:
        `torch.Tensor` of shape `(B, T)`.
    """
    _one_of("estimator", estimator, KL_ESTIMATORS)
    return per_token_kl * (ratio.detach() if estimator == "k2" else ratio)


def is_reference_clipped(
    per_token_logps: torch.Tensor,
    ref_per_token_logps: torch.Tensor,
    advantages: torch.Tensor,
    clip_low: float = torch.inf,
    clip_high: float = torch.inf,
) -> torch.Tensor:
    r"""
    Reference clipping: where a token's policy term is switched off because it has drifted too far from the reference.

    With $l = \log \pi(o_t) - \log \pi_{ref}(o_t)$, a token is stopped when its advantage is positive and $l$
    has reached `clip_high`, or negative and $l$ has reached `-clip_low`; bounds of zero let no token leave the
    reference. PPO's clip compares with the policy that sampled
    and bounds one step; this compares with the reference and bounds the sum of all steps. A stopped token is only
    not pushed further: the opposite advantage still moves it back.

    Args:
        per_token_logps (`torch.Tensor` of shape `(B, T)`), ref_per_token_logps (`torch.Tensor` of shape `(B, T)`).
        advantages (`torch.Tensor` of shape `(B, 1)` or `(B, T)`).
        clip_low (`float`, defaults to infinity): How far below the reference, in nats, not negative.
        clip_high (`float`, defaults to infinity): How far above the reference, in nats, not negative.

    Returns:
        `torch.Tensor` of shape `(B, T)`, bool. Multiply the advantages by its negation.
    """
    drift = (per_token_logps - ref_per_token_logps).detach()
    return ((advantages > 0) & (drift >= clip_high)) | ((advantages < 0) & (drift <= -clip_low))


def aggregate(
    per_token: torch.Tensor,
    mask: torch.Tensor,
    loss_type: str = "dapo",
    num_items_in_batch: torch.Tensor | float | None = None,
    max_completion_length: int | None = None,
) -> torch.Tensor:
    r"""
    One number from per-token losses, as TRL's `loss_type` does, for one micro-batch and before any division by the
    number of accumulation steps.

    | `loss_type` | value |
    | --- | --- |
    | `grpo`, `sapo` | $\frac1B \sum_i \frac1{\|o_i\|} \sum_t L_{it}$: every completion counts the same |
    | `bnpo` | $\sum_{it} L_{it} / \sum_i \|o_i\|$: every token of this micro-batch counts the same |
    | `dr_grpo` | $\sum_{it} L_{it} / (B \, T_{max})$: a constant, so no length bias |
    | `dapo`, `cispo`, `vespo` | $\sum_{it} L_{it} / N$: every token of the whole batch counts the same |
    | `luspo` | $\frac1B \sum_{it} L_{it}$ |

    Args:
        per_token (`torch.Tensor` of shape `(B, T)`): Or `(B, 1)`, broadcast over the tokens.
        mask (`torch.Tensor` of shape `(B, T)`).
        loss_type (`str`, defaults to `"dapo"`).
        num_items_in_batch (`torch.Tensor` or `float`, *optional*): N, completion tokens that share the step. Needed by
            `dapo`, `cispo` and `vespo`.
        max_completion_length (`int`, *optional*): T_max, needed by `dr_grpo`.

    Returns:
        `torch.Tensor`: scalar.

    Raises:
        ValueError: unknown `loss_type`, or the normaliser that it needs is missing.
    """
    _one_of("loss_type", loss_type, LOSS_TYPES)
    masked = per_token * mask  # (B, T)
    if loss_type in SEQUENCE_MEAN:
        return (masked.sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type in MICRO_BATCH_MEAN:
        return masked.sum() / mask.sum().clamp(min=1.0)
    if loss_type in CONSTANT_LENGTH:
        if max_completion_length is None:
            raise ValueError(f"loss_type={loss_type!r} divides by a constant length: pass max_completion_length.")
        return masked.sum() / (mask.size(0) * max_completion_length)
    if loss_type in GLOBAL_TOKEN_MEAN:
        if num_items_in_batch is None:
            raise ValueError(f"loss_type={loss_type!r} divides by all tokens of the step: pass num_items_in_batch.")
        return masked.sum() / num_items_in_batch
    return masked.sum(-1).mean()


def adapted_beta(beta: float, kl: float, kl_target: float, kl_horizon: float, completions: int) -> float:
    r"""
    The KL coefficient after one optimizer step of the proportional controller of Ziegler et al. (arXiv 1909.08593,
    section 2.2): $\beta \leftarrow \beta (1 + \mathrm{clip}(KL / KL_{target} - 1, -0.2, 0.2) \, n / n_{horizon})$.

    Args:
        beta (`float`): The coefficient now.
        kl (`float`): Measured mean KL per token, nats.
        kl_target (`float`): Wanted mean KL per token, nats, positive.
        kl_horizon (`float`): Completions over which beta can change by a factor of about $e^{\pm 0.2}$.
        completions (`int`): n, completions of this optimizer step over all processes.

    Returns:
        `float`

    Raises:
        `ValueError`: for a KL that is not a number: beta would stay NaN from there on.
    """
    if math.isnan(kl):
        raise ValueError(
            "the KL to the reference is NaN, so kl_target cannot adapt beta: some log-probability is NaN or infinite. "
            "Lower learning_rate or max_grad_norm, and go on from the last checkpoint."
        )
    error = min(max(kl / kl_target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * completions / kl_horizon)
