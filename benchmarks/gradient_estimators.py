"""Estimators of a policy's gradient from G completions a prompt: score-function, clipped, and pathwise (reparameterised).

Each runs R independent repetitions at once: the parameters are repeated R times, (R, P, D), and the gradient of the sum of
R surrogate objectives holds R estimates.

Sources: REINFORCE (Williams 1992), RLOO (arXiv 2402.14740), GRPO (arXiv 2402.03300), Dr. GRPO (arXiv 2503.20783), PPO
(arXiv 1707.06347), Gumbel-softmax and its straight-through form (arXiv 1611.01144, 1611.00712). Shapes as in
`sequence_policies.py`.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.sequence_policies import Problem
from grpo_math.trainer.losses import group_advantages

# A surrogate of the reward that takes relaxed digits (R, P, G, T, V) and can be differentiated; (R, P, G)
Surrogate = Callable[[torch.Tensor], torch.Tensor]
MOMENTUM = 0.9  # of the running baseline


@dataclass
class Draw:
    """What an estimator is asked: how many completions a prompt, of how many repetitions, from which random numbers."""

    problem: Problem
    group: int
    repetitions: int
    generator: torch.Generator

    def theta(self) -> torch.Tensor:
        """The parameters of every repetition, (R, P, D), to be differentiated."""
        theta = self.problem.theta
        return theta.expand(self.repetitions, *theta.shape).clone().requires_grad_()


# --- score-function estimators ---


def score_function(draw: Draw, advantages: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """
    Mean over completions of advantage times grad log pi, (R, P, D).

    Args:
        advantages: rewards (R, P, G) to advantages (R, P, G).
    """
    theta, problem = draw.theta(), draw.problem
    with torch.no_grad():
        completions = problem.sample(theta, draw.group, draw.generator)
        weights = advantages(problem.reward(completions))
    objective = (weights * problem.logps(theta, completions).sum(-1)).mean(dim=(1, 2))  # (R,)
    (found,) = torch.autograd.grad(objective.sum(), theta)
    return found


def running_baseline(rewards: torch.Tensor) -> torch.Tensor:
    """
    Rewards minus a moving average of each prompt's earlier batches.

    Repetition r stands for the r-th batch, the policy held still; so a baseline never holds its own batch and the estimate
    stays unbiased. The first batch has the baseline 0.
    """
    average, baselines = torch.zeros_like(rewards[0, :, 0]), []
    for count, batch in enumerate(rewards.mean(-1)):  # (P,)
        baselines.append(average)
        rate = max(1 - MOMENTUM, 1 / (count + 1))  # a plain mean at first
        average = average + rate * (batch - average)
    return rewards - torch.stack(baselines).unsqueeze(-1)


def within_group(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The trainer's group advantages as a function of rewards (R, P, G)."""
    return lambda rewards: group_advantages(rewards.flatten(), rewards.size(-1), kind).view_as(rewards)


def ratio_estimate(draw: Draw, old: torch.Tensor, ratio: str) -> torch.Tensor:
    """
    Gradient at the problem's policy from completions of an older policy, with leave-one-out advantages; (R, P, D).

    Args:
        old (`torch.Tensor` of shape `(P, D)`): Parameters that sampled.
        ratio: `"sequence"` weighs a completion by pi / pi_old (importance sampling, unbiased); `"token"` each digit by its
            own ratio; `"clipped"` is PPO's min(ratio A, clip(ratio, 0.8, 1.2) A) per digit; `"none"` ignores the difference.
    """
    theta, problem = draw.theta(), draw.problem
    with torch.no_grad():
        old_theta = old.expand_as(theta)
        completions = problem.sample(old_theta, draw.group, draw.generator)
        advantages = within_group("leave_one_out")(problem.reward(completions)).unsqueeze(-1)
        old_logps = problem.logps(old_theta, completions)
    logps = problem.logps(theta, completions)  # (R, P, G, T)
    if ratio == "none":
        per_token = logps * advantages
    elif ratio == "sequence":
        per_token = (logps - old_logps).sum(-1, keepdim=True).exp() * advantages
    else:
        ratios = (logps - old_logps).exp()
        per_token = ratios * advantages
        if ratio == "clipped":
            per_token = torch.minimum(per_token, ratios.clamp(0.8, 1.2) * advantages)
    (found,) = torch.autograd.grad(per_token.sum(-1).mean(dim=(1, 2)).sum(), theta)
    return found


# --- pathwise estimators ---


def pathwise(draw: Draw, surrogate: Surrogate, temperature: float, straight_through: bool) -> torch.Tensor:
    """
    Gradient of a differentiable surrogate through relaxed samples, (R, P, D).

    A digit is softmax((logits + Gumbel noise) / temperature). The next digit's logits are mixed by it. With
    `straight_through` the surrogate and the next place see the one-hot of its largest entry (an exact sample), while
    gradients pass as if they had seen the relaxed one.
    """
    theta, problem = draw.theta(), draw.problem
    shape = (draw.repetitions, len(problem.targets), draw.group, problem.vocabulary)
    places, before = [], None
    for place in range(problem.length):
        gumbel = -torch.empty(shape, dtype=theta.dtype).exponential_(generator=draw.generator).log()
        relaxed = ((problem.logits(theta, place, before) + gumbel) / temperature).softmax(-1)
        if straight_through:
            hard = problem.one_hot(relaxed.detach().argmax(-1))
            relaxed = hard + relaxed - relaxed.detach()
        places.append(relaxed)
        before = relaxed
    objective = surrogate(torch.stack(places, dim=-2)).mean(dim=(1, 2))
    (found,) = torch.autograd.grad(objective.sum(), theta)
    return found


def multilinear(problem: Problem) -> Surrogate:
    """
    Multilinear extension of any reward: its mean over independent digits drawn from the relaxed ones.

    It needs the reward of all V^T completions. Being exact at one-hot digits, it is the best that is known about them.
    """
    shape = [problem.vocabulary] * problem.length
    table = problem.all_rewards().view(-1, *shape)  # (P, V, ..., V)

    def extension(soft: torch.Tensor) -> torch.Tensor:
        names = "abcd"[: problem.length]
        places = [soft[..., place, :] for place in range(problem.length)]
        terms = ",".join(f"rpg{name}" for name in names)
        return torch.einsum(f"p{names},{terms}->rpg", table, *places)

    return extension


def learned(problem: Problem, calls: int, generator: torch.Generator, ridge: float = 1.0) -> Surrogate:
    """
    A surrogate fitted to the rewards of `calls` sampled completions a prompt: digits and pairs of digits, ridge regression.
    """
    with torch.no_grad():
        completions = problem.sample(problem.theta, calls, generator)  # (P, N, T)
        rewards = problem.reward(completions)  # (P, N)
    centre = rewards.mean(-1, keepdim=True)
    features = pair_features(problem.one_hot(completions))  # (P, N, F)
    gram = features.mT @ features + ridge * torch.eye(features.size(-1), dtype=features.dtype)
    weights = torch.linalg.solve(gram, features.mT @ (rewards - centre).unsqueeze(-1)).squeeze(-1)  # (P, F)

    def extension(soft: torch.Tensor) -> torch.Tensor:
        return torch.einsum("rpgf,pf->rpg", pair_features(soft), weights) + centre

    return extension


def pair_features(soft: torch.Tensor) -> torch.Tensor:
    """Digits and products of digits at two places, (..., F), of (..., T, V)."""
    pairs = [
        (soft[..., i, :, None] * soft[..., j, None, :]).flatten(-2)
        for i, j in itertools.combinations(range(soft.size(-2)), 2)
    ]
    return torch.cat([soft.flatten(-2), *pairs], dim=-1)


# --- by name ---

SCORE_FUNCTION: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "REINFORCE": lambda rewards: rewards,
    "running baseline": running_baseline,
    "leave-one-out": within_group("leave_one_out"),
    "GRPO without std": within_group("mean"),
    "GRPO": within_group("mean_std"),
}
PATHWISE: dict[str, tuple[float, bool]] = {
    "Gumbel-softmax 1": (1.0, False),
    "Gumbel-softmax 0.3": (0.3, False),
    "straight-through 1": (1.0, True),
}
