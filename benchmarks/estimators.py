"""Bias, noise and direction of policy-gradient estimators on small policies whose gradient is exact.

Four prompts ask for a digit string whose arithmetic hits a target (`benchmarks/sequence_policies.py`). Two rewards: a
string match (1 or 0), and a smooth one that falls with the distance to the target. Score-function estimators (REINFORCE,
leave-one-out, GRPO, PPO's clip) see the reward of each sample. Pathwise estimators (Gumbel-softmax, straight-through)
differentiate a surrogate of it; the tables say which one.
"""

import argparse
import dataclasses
import time

import torch

from benchmarks import common, estimator_pages
from benchmarks.gradient_estimators import (
    PATHWISE,
    SCORE_FUNCTION,
    Draw,
    learned,
    multilinear,
    pathwise,
    ratio_estimate,
    score_function,
)
from benchmarks.sequence_policies import Problem, make_problem

GROUPS = (2, 4, 8, 16)
GROUP = 8  # of the tables
WIDTH = 4.0  # of the smooth reward
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
ACCURACIES = (0.03, 0.1, 0.3, 0.7)
SIZES = ((2, 4), (3, 6), (4, 8))  # length, vocabulary
LEARNED_CALLS = 256
OLD_STEPS = (0, 1, 3, 10, 30)
RATIOS = ("none", "token", "clipped", "sequence")


def statistics_of(estimates: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """
    How estimates (R, ...) lie around the exact gradient (...).

    Returns:
        `bias`: |mean - exact| / |exact|, without what the spread of R repetitions adds; `bias_error`: what it adds; `scale`:
        the mean's component along the exact gradient, 1 where unbiased; `direction`: cosine of the mean to it; `noise`:
        square root of the variance (trace of the covariance), over the mean's norm; `cosine`: mean cosine of one estimate,
        0 for one that is zero.
    """
    estimates, exact = estimates.flatten(1).double(), exact.flatten().double()
    mean, size = estimates.mean(0), exact.norm()
    variance = estimates.var(0).sum()
    added = variance / len(estimates)
    mean_size = (mean.square().sum() - added).clamp_min(1e-30).sqrt()
    figures = {
        "bias": ((mean - exact).square().sum() - added).clamp_min(0).sqrt() / size,
        "bias_error": added.sqrt() / size,
        "scale": mean @ exact / size**2,
        "direction": (mean @ exact / size / mean_size).clamp(-1, 1),
        "noise": variance.sqrt() / mean_size,
        "cosine": torch.cosine_similarity(estimates, exact[None], dim=1).mean(),
    }
    return {name: figure.item() for name, figure in figures.items()}


def measure(problem: Problem, estimate, group: int, repetitions: int, by_prompt: bool = False) -> dict:
    """
    Statistics of an estimator and its CPU time, in microseconds an estimate (of the fastest thousand); with `by_prompt`, also
    those of each prompt.
    """
    generator = torch.Generator().manual_seed(1)
    chunk = min(repetitions, 1000)
    parts, seconds = [], []
    for _ in range(max(1, repetitions // chunk)):
        started = time.process_time()
        parts.append(estimate(Draw(problem, group, chunk, generator)))
        seconds.append(time.process_time() - started)
    found, exact = torch.cat(parts), problem.gradient()
    figures = {**statistics_of(found, exact), "microseconds": 1e6 * min(seconds) / chunk}
    if by_prompt:
        figures["by_prompt"] = [statistics_of(found[:, p], exact[p]) for p in range(len(exact))]
    return figures


def estimators_of(problem: Problem) -> dict[str, tuple[str, str, object]]:
    """Name -> (what is differentiated, reward calls a prompt, function of a draw)."""
    found: dict[str, tuple[str, str, object]] = {}
    for name, advantages in SCORE_FUNCTION.items():
        found[name] = ("log pi", "G", lambda draw, advantages=advantages: score_function(draw, advantages))
    every = problem.vocabulary**problem.length
    surrogates = {
        "every completion's reward": (multilinear(problem), f"{every} before"),
        "a fitted reward": (
            learned(problem, LEARNED_CALLS, torch.Generator().manual_seed(5)),
            f"{LEARNED_CALLS} before",
        ),
    }
    if problem.width:
        surrogates = {"the reward's formula": (problem.smooth_reward, "0"), **surrogates}
    for what, (surrogate, calls) in surrogates.items():
        for name, (temperature, straight) in PATHWISE.items():
            run = lambda draw, s=surrogate, t=temperature, st=straight: pathwise(draw, s, t, st)  # noqa: E731
            found[f"{name}, {what}"] = (what, calls, run)
    return found


def on_policy(problem: Problem, groups: tuple[int, ...], repetitions: int) -> dict[str, dict]:
    """Every estimator at every group size."""
    return {
        name: {
            "differentiates": what,
            "reward_calls": calls,
            "groups": {group: measure(problem, run, group, repetitions, by_prompt=group == GROUP) for group in groups},
        }
        for name, (what, calls, run) in estimators_of(problem).items()
    }


def by_width(problem: Problem, repetitions: int) -> dict[float, dict[str, dict]]:
    """Leave-one-out and the pathwise estimators of the reward's formula, as the smooth reward nears the string match."""
    found = {}
    for width in WIDTHS:
        smooth = dataclasses.replace(problem, width=width)
        runs = estimators_of(smooth)
        names = [name for name in runs if name == "leave-one-out" or name.endswith("the reward's formula")]
        found[width] = {name: measure(smooth, runs[name][2], GROUP, repetitions) for name in names}
    return found


def off_policy(problem: Problem, repetitions: int, step: float = 0.3) -> list[dict]:
    """Estimates at a policy that is some exact gradient steps of norm `step` ahead of the one that sampled."""
    old, theta, found, done = problem.theta, problem.theta, [], 0
    for steps in OLD_STEPS:
        for _ in range(steps - done):
            gradient = problem.gradient(theta)
            theta = theta + step * gradient / gradient.norm()
        done = steps
        ahead = dataclasses.replace(problem, theta=theta)
        now, before = problem.distribution(theta), problem.distribution(old)
        kl = (now * (now / before).log()).sum(-1).mean()
        rows = {
            ratio: measure(
                ahead, lambda draw, ratio=ratio: ratio_estimate(draw, problem.theta, ratio), GROUP, repetitions
            )
            for ratio in RATIOS
        }
        found.append({"steps": steps, "kl": kl.item(), "estimators": rows})
    return found


def by_size(repetitions: int) -> dict[str, dict]:
    """Leave-one-out beside the pathwise estimators of a string match that has been enumerated, for longer policies."""
    found = {}
    for length, vocabulary in SIZES:
        problem = make_problem(length, vocabulary, ACCURACIES)
        runs = estimators_of(problem)
        names = [name for name in runs if name == "leave-one-out" or name.endswith("every completion's reward")]
        found[f"{length} x {vocabulary}"] = {
            "completions": vocabulary**length,
            "estimators": {name: measure(problem, runs[name][2], GROUP, repetitions) for name in names},
        }
    return found


def equal_calls(problem: Problem, repetitions: int) -> dict[int, dict]:
    """Leave-one-out with as many completions a prompt as the surrogates need reward calls."""
    calls = (problem.vocabulary**problem.length, LEARNED_CALLS)
    run = estimators_of(problem)["leave-one-out"][2]
    return {count: measure(problem, run, count, repetitions) for count in calls}


def measure_all(repetitions: int) -> dict:
    """Everything that the page shows."""
    started = time.process_time()
    sparse = make_problem(accuracies=ACCURACIES)
    smooth = dataclasses.replace(sparse, width=WIDTH)
    data = {
        "repetitions": repetitions,
        "accuracies": ACCURACIES,
        "smooth_rewards": smooth.expected_reward(smooth.theta).tolist(),
        "sparse": on_policy(sparse, GROUPS, repetitions),
        "smooth": on_policy(smooth, GROUPS, repetitions),
        "widths": by_width(sparse, repetitions),
        "off_policy": off_policy(sparse, repetitions),
        "equal_calls": equal_calls(sparse, max(50, repetitions // 16)),
        "sizes": by_size(max(1, repetitions // 4)),
    }
    return {**data, "cpu_seconds": round(time.process_time() - started, 1)}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks estimators", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=4000, help="independent estimates of each kind")
    parser.add_argument("--quick", action="store_true", help="300 repetitions; prints without writing results")
    args = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU times of two threads count their waiting
    try:
        data = measure_all(300 if args.quick else args.repetitions)
    finally:
        torch.set_num_threads(threads)
    text = estimator_pages.page(data, GROUP)
    if args.quick:
        print(text)
    else:
        common.save("estimators", text, data)
        estimator_pages.draw(data, GROUP, common.RESULTS)
    return 0
