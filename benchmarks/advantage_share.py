"""Which share of the advantage a format reward of weight 0.1 carries beside accuracy, with and without scaling by the group.

Groups of 8 completions: each is right with probability p and formatted with probability q, independently. The shares are those
of the decomposition that the trainer logs.
"""

import argparse

import torch

from benchmarks import common
from benchmarks.plain import table
from grpo_math.trainer.reward_shares import advantage_shares, reward_advantages

GROUP = 8
RIGHT = (0.01, 0.05, 0.2, 0.5, 0.9)
FORMATTED = (0.2, 0.5, 0.9)


def share(right: float, formatted: float, scale: str, groups: int, weight: float = 0.1) -> float:
    """Share of the advantage that the format reward carries."""
    generator = torch.Generator().manual_seed(0)
    chances = torch.tensor([right, formatted])
    rewards = (torch.rand(groups * GROUP, 2, generator=generator) < chances).float()
    parts = reward_advantages(rewards, torch.tensor([1.0, weight]), GROUP, scale)
    return advantage_shares(parts)[1].item()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks advantage_share", description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=20_000)
    args = parser.parse_args(argv)
    found = {
        scale: {q: {p: share(p, q, scale, args.groups) for p in RIGHT} for q in FORMATTED}
        for scale in ("group", "none")
    }
    rows = [
        [scale, f"{q:.1f}", *(f"{shares[p]:.2f}" for p in RIGHT)]
        for scale, by_format in found.items()
        for q, shares in by_format.items()
    ]
    one = torch.tensor([[0.0, 1.0]] + [[0.0, 0.0]] * (GROUP - 1))
    lone = {scale: reward_advantages(one, torch.tensor([1.0, 0.1]), GROUP, scale)[0, 1].item() for scale in found}
    right = {
        scale: reward_advantages(one.flip(1), torch.tensor([1.0, 0.1]), GROUP, scale)[0, 0].item() for scale in found
    }
    text = "\n\n".join(
        [
            "# Share of the advantage that a format reward carries",
            common.machine_line(),
            f"Accuracy of weight 1 and format of weight 0.1, groups of {GROUP}, {args.groups} groups a cell. Columns: share of "
            "right completions.",
            table(["scale_rewards", "formatted", *(f"{p:.2f} right" for p in RIGHT)], rows),
            "The advantage of one completion that differs from the seven others of its group:",
            table(
                ["scale_rewards", "the only formatted one, all wrong", "the only right one, none formatted"],
                [[scale, f"{lone[scale]:+.2f}", f"{right[scale]:+.2f}"] for scale in found],
            ),
        ]
    )
    data = {
        "share": {s: {str(q): {str(p): v for p, v in c.items()} for q, c in by.items()} for s, by in found.items()},
        "lone_format": lone,
        "lone_right": right,
    }
    common.save("advantage_share", text, data)
    return 0
