"""Small categorical sequence policies whose gradient is exact: a digit after a digit, every completion enumerated.

A completion is T digits of V, read as arithmetic: `a*b`, `a*b+c` or `a*b+c*d`. A prompt is a target. Digits are drawn one
after the other, each from logits that depend on the digit before. So a prompt's policy has D = V + (T-1) V^2 parameters,
and J = sum over V^T completions of pi(completion) reward(completion) can be differentiated.

Shapes: R replicates (independent repetitions of an estimator), P prompts, G completions a prompt, T digits, V their
number, D parameters of a prompt, S = V^T completions.
"""

from dataclasses import dataclass

import torch


def value(soft: torch.Tensor) -> torch.Tensor:
    """
    Value of the arithmetic, a polynomial of one-hot (or relaxed) digits.

    Args:
        soft (`torch.Tensor` of shape `(..., T, V)`): A distribution over digits at each place; one-hot for real digits.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    digits = soft @ torch.arange(soft.size(-1), dtype=soft.dtype)  # (..., T)
    result = digits[..., 0] * digits[..., 1]
    if digits.size(-1) == 3:
        result = result + digits[..., 2]
    if digits.size(-1) == 4:
        result = result + digits[..., 2] * digits[..., 3]
    return result


@dataclass
class Problem:
    """
    P prompts with a policy each, and the reward.

    Args:
        theta (`torch.Tensor` of shape `(P, D)`): Parameters. The first V are the first digit's logits; then (V, V) blocks
            of logits for each later place, one row for each digit before.
        targets (`torch.Tensor` of shape `(P,)`).
        length (`int`): T.
        width (`float`): 0 pays 1 for the target and 0 for all else (a string match); above 0 pays
            exp(-((value - target) / width)^2 / 2), which is smooth in the value.
    """

    theta: torch.Tensor
    targets: torch.Tensor
    length: int
    width: float = 0.0

    @property
    def vocabulary(self) -> int:
        """V, from D = V + (T-1) V^2."""
        size = self.theta.size(1)
        return next(v for v in range(2, size + 1) if v + (self.length - 1) * v * v == size)

    def completions(self) -> torch.Tensor:
        """All completions, (S, T)."""
        digits = torch.arange(self.vocabulary)
        return torch.cartesian_prod(*[digits] * self.length)

    def one_hot(self, completions: torch.Tensor) -> torch.Tensor:
        """(..., T) to (..., T, V)."""
        return torch.nn.functional.one_hot(completions, self.vocabulary).to(self.theta.dtype)

    def smooth_reward(self, soft: torch.Tensor) -> torch.Tensor:
        """The smooth reward of relaxed digits (..., P, G, T, V), by its own formula; (..., P, G)."""
        distance = (value(soft) - self.targets[:, None]) / self.width
        return torch.exp(-(distance**2) / 2)

    def reward(self, completions: torch.Tensor) -> torch.Tensor:
        """Reward of completions (..., P, G, T); (..., P, G)."""
        soft = self.one_hot(completions)
        if self.width:
            return self.smooth_reward(soft)
        return (value(soft) == self.targets[:, None]).to(self.theta.dtype)

    def all_rewards(self) -> torch.Tensor:
        """Reward of every completion, (P, S)."""
        return self.reward(self.completions().expand(len(self.targets), -1, -1))

    def logits(self, theta: torch.Tensor, place: int, before: torch.Tensor | None) -> torch.Tensor:
        """
        Logits of the digit at `place` (..., P, G, V).

        Args:
            theta (`torch.Tensor` of shape `(..., P, D)`).
            before (`torch.Tensor` of shape `(..., P, G, V)`): The digit before, one-hot or relaxed; None at place 0.
        """
        v = self.vocabulary
        if before is None:
            return theta[..., None, :v]
        start = v + (place - 1) * v * v
        block = theta[..., start : start + v * v].unflatten(-1, (v, v))  # (..., P, V, V)
        return before @ block

    def logps(self, theta: torch.Tensor, completions: torch.Tensor) -> torch.Tensor:
        """Log-probability of each digit, (..., P, G, T), of completions (..., P, G, T)."""
        soft = self.one_hot(completions)
        found = []
        for place in range(self.length):
            before = soft[..., place - 1, :] if place else None
            log_softmax = self.logits(theta, place, before).log_softmax(-1)
            found.append((log_softmax * soft[..., place, :]).sum(-1))
        return torch.stack(torch.broadcast_tensors(*found), dim=-1)

    def sample(self, theta: torch.Tensor, group: int, generator: torch.Generator) -> torch.Tensor:
        """G completions of every prompt, (..., P, G, T), for theta (..., P, D)."""
        shape, v = (*theta.shape[:-1], group), self.vocabulary
        places, before = [], None
        for place in range(self.length):
            probabilities = self.logits(theta, place, before).softmax(-1).expand(*shape, v)
            digits = torch.multinomial(probabilities.reshape(-1, v), 1, generator=generator).view(shape)
            places.append(digits)
            before = self.one_hot(digits)
        return torch.stack(places, dim=-1)

    def distribution(self, theta: torch.Tensor) -> torch.Tensor:
        """Probability of every completion, (P, S)."""
        return self.logps(theta, self.completions().expand(len(self.targets), -1, -1)).sum(-1).exp()

    def expected_reward(self, theta: torch.Tensor) -> torch.Tensor:
        """J of every prompt, (P,)."""
        return (self.distribution(theta) * self.all_rewards()).sum(-1)

    def gradient(self, theta: torch.Tensor | None = None) -> torch.Tensor:
        """Exact gradient of the prompts' mean J, (P, D)."""
        theta = (self.theta if theta is None else theta).detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(self.expected_reward(theta).mean(), theta)
        return found

    def scores(self) -> torch.Tensor:
        """Gradient of log pi of every completion, (P, S, D): what an enumeration over samples needs."""
        completions = self.completions()
        theta = self.theta.detach().expand(len(completions), -1, -1).clone().requires_grad_()  # (S, P, D)
        rows = completions[:, None, None, :].expand(-1, len(self.targets), 1, -1)  # (S, P, 1, T)
        (found,) = torch.autograd.grad(self.logps(theta, rows).sum(), theta)
        return found.transpose(0, 1)


def make_problem(
    length: int = 3,
    vocabulary: int = 6,
    accuracies: tuple[float, ...] = (0.03, 0.1, 0.3, 0.7),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """
    A prompt for each of `accuracies`, with the string-match reward.

    The targets are spread over those that at least one completion reaches. A random policy climbs (or falls) along its exact
    gradient until the prompt's accuracy is the one asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    size = vocabulary + (length - 1) * vocabulary**2
    prompts = len(accuracies)
    theta = torch.randn(prompts, size, generator=generator, dtype=torch.float64)
    problem = Problem(theta, torch.zeros(prompts, dtype=torch.float64), length)
    reachable = value(problem.one_hot(problem.completions())).unique()
    reachable = reachable[reachable > 0]
    problem.targets = reachable[torch.linspace(1, len(reachable) - 2, prompts).long()]
    wanted = torch.tensor(accuracies, dtype=torch.float64)
    for _ in range(2000):
        theta = problem.theta.clone().requires_grad_()
        log_odds = problem.expected_reward(theta).logit()
        (slope,) = torch.autograd.grad(log_odds.sum(), theta)
        distance = (wanted.logit() - log_odds).detach()
        if distance.abs().max() < 1e-6:
            break
        # Newton's step along the gradient of the log odds, shortened: prompts are independent
        step = (distance / slope.pow(2).sum(-1)).clamp(-1, 1)
        problem.theta = (theta + step[:, None] * slope).detach()
    problem.theta, problem.targets = problem.theta.to(dtype), problem.targets.to(dtype)
    return problem
