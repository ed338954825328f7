"""Which share of the advantage each reward carries: where several rewards are summed, their weights do not tell.

Scaled by the group's standard deviation, a group whose accuracies tie gives the whole advantage to whatever else differs. One
formatted completion among eight wrong ones gets +2.47 from a format reward of weight 0.1, as much as one right among eight:

>>> rewards = torch.tensor([[0.0, 1.0]] + [[0.0, 0.0]] * 7)  # accuracy, format
>>> reward_advantages(rewards, torch.tensor([1.0, 0.1]), 8, "group")[0]
tensor([0.0000, 2.4678])
"""

import torch


def reward_advantages(
    rewards_per_func: torch.Tensor, weights: torch.Tensor, num_generations: int, scale_rewards: str
) -> torch.Tensor:
    r"""
    The part of each completion's advantage that comes from each reward: $w_f (r_{if} - \bar r_f) / \sigma$.

    The parts of a completion sum to its advantage as TRL computes it (`sum_then_normalize`). $\sigma$ is the standard
    deviation of the weighted sum over the group, over the batch, or 1.

    Args:
        rewards_per_func (`torch.Tensor` of shape `(B, F)`): NaN where a reward does not apply to a row; it counts as 0 there.
        weights (`torch.Tensor` of shape `(F,)`).
        num_generations (`int`): G, the rows of a group.
        scale_rewards (`str`): `"group"`, `"batch"` or `"none"`.

    Returns:
        `torch.Tensor` of shape `(B, F)`.
    """
    weighted = (rewards_per_func * weights).nan_to_num(nan=0.0)  # (B, F)
    grouped = weighted.view(-1, num_generations, weighted.size(1))  # (B/G, G, F)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    total = grouped.sum(dim=2)  # (B/G, G)
    if scale_rewards == "group":
        centred = centred / (total.std(dim=1)[:, None, None] + 1e-4)
    elif scale_rewards == "batch":
        centred = centred / (total.std() + 1e-4)
    return centred.reshape(weighted.shape)


def advantage_shares(parts: torch.Tensor) -> torch.Tensor | None:
    """Of the sum of all magnitudes, the share of each reward; `parts` is `(B, F)`. `None` where there is no advantage."""
    magnitudes = parts.abs().sum(dim=0)  # (F,)
    total = magnitudes.sum()
    return magnitudes / total if total > 1e-6 * parts.size(0) else None


def log_shares(trainer, rewards_per_func: torch.Tensor) -> None:
    """Logs `advantage_share/<reward>` of a generation batch with several rewards, as far as it has an advantage."""
    if rewards_per_func.size(1) < 2 or trainer.multi_objective_aggregation != "sum_then_normalize":
        return
    weights = trainer.reward_weights.to(rewards_per_func.device)
    parts = reward_advantages(rewards_per_func, weights, trainer.num_generations, trainer.scale_rewards)
    shares = advantage_shares(parts)
    if shares is not None:
        for name, share in zip(trainer.reward_func_names, shares.tolist(), strict=True):
            trainer._metrics["train"][f"advantage_share/{name}"].append(share)
