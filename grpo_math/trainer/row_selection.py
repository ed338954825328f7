r"""Training a part of the rows (`train_rows`) without a bias: systematic sampling with known inclusion probabilities.

Of the n rows of a window (the rows of one optimizer step on a process) k are trained. Row i is among them with probability
$\pi_i = \min(1, c \, s_i)$, $\sum_i \pi_i = k$, where its size $s_i$ is $|A_i|$, times its tokens where the loss sums over
tokens. Its advantage is divided by $\pi_i$ (Horvitz and Thompson, 1952), so the expected gradient is that of all rows: every
loss type is homogeneous in the advantage, and the normaliser stays that of all rows.

Systematic sampling draws one number u in [0, 1): with $C_i = \pi_1 + ... + \pi_i$, row i is taken when $C_{i-1} + u$ and
$C_i + u$ lie on two sides of a whole number (Madow, 1949). Each row is taken at most once, with probability exactly
$\pi_i$, and their number is k. Draws with replacement would train a row twice; independent draws would vary in number, and
processes must agree on it. Rows are ordered by their signed size, which spreads the sample evenly over good and bad
completions. Where at most k rows are live every $\pi_i$ is 1 and nothing is drawn.

The variance of the gradient is $\sum_{ij} (\pi_{ij} / (\pi_i \pi_j) - 1) \, g_i g_j$ over all pairs of rows. Probabilities
proportional to $\|g_i\|$ are the best, and the sizes stand for these norms, which nobody knows before the backward pass.

Example: sizes 4 2 1 1 and k = 2 have probabilities 1 .5 .25 .25. The advantages of the others are doubled or quadrupled.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import torch

from grpo_math.trainer.losses import SEQUENCE_MEAN
from grpo_math.trainer.micro_batches import Batch, loss_mask, window_size

if TYPE_CHECKING:
    from grpo_math.trainer.grpo import GRPOMathTrainer


def inclusion_probabilities(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """
    Probabilities proportional to sizes that sum to `count`, none above 1; all 1 where at most `count` sizes are positive.

    Args:
        sizes (`torch.Tensor` of shape `(n,)`): Not negative. A size of zero has probability zero.
        count (`int`): How many are to be taken.

    Returns:
        `torch.Tensor` of shape `(n,)`, in double precision.
    """
    sizes = sizes.double()
    sure = torch.zeros_like(sizes, dtype=torch.bool)
    if int((sizes > 0).sum()) <= count:
        return (sizes > 0).double()
    while True:  # what exceeds 1 is shared out among the others, of which more may then exceed it
        rest = sizes.masked_fill(sure, 0.0)
        probabilities = rest * ((count - int(sure.sum())) / rest.sum())
        more = probabilities >= 1
        if not more.any():
            return torch.where(sure, 1.0, probabilities)
        sure |= more


def systematic_sample(probabilities: torch.Tensor, uniform: float) -> torch.Tensor:
    """
    Which rows are taken, shape (n,), bool: row i with exactly its probability, as many as the probabilities sum to.

    Args:
        probabilities (`torch.Tensor` of shape `(n,)`): In [0, 1], with a whole number as their sum.
        uniform (`float`): Uniform in [0, 1).
    """
    drawn = probabilities.masked_fill(probabilities >= 1, 0.0)  # a sure row is not left to round-off
    reached = (drawn.cumsum(0) + uniform).floor()
    before = torch.cat([reached.new_zeros(1), reached[:-1]])
    return (probabilities >= 1) | (reached > before)


def row_sizes(batch: Batch, live: torch.Tensor, loss_type: str) -> torch.Tensor:
    """
    Signed sizes of rows, shape (n,): the advantage, times the loss tokens for losses that sum over them; 0 for dead rows.

    Args:
        batch (`dict`): n rows.
        live (`torch.Tensor` of shape `(n,)`): bool.
        loss_type (`str`): TRL's.
    """
    sizes = batch["advantages"].double()
    if loss_type not in SEQUENCE_MEAN:
        sizes = sizes * loss_mask(batch).sum(dim=1)
    return sizes.masked_fill(~live, 0.0)


def select(batch: Batch, live: torch.Tensor, loss_type: str, count: int, uniform: float) -> Batch:
    """
    The batch with the rows that are trained as `"live"`, and their advantages divided by their inclusion probabilities.

    Args:
        batch (`dict`): The n rows of a window.
        live (`torch.Tensor` of shape `(n,)`): Which rows have a gradient, bool.
        loss_type (`str`): TRL's.
        count (`int`): k.
        uniform (`float`): Uniform in [0, 1).
    """
    sizes = row_sizes(batch, live, loss_type)
    order = sizes.argsort(stable=True)
    probabilities = inclusion_probabilities(sizes.abs(), count)
    taken = torch.zeros_like(live)
    taken[order] = systematic_sample(probabilities[order], uniform)
    advantages = batch["advantages"]
    weighted = torch.where(taken, advantages / probabilities.to(advantages.dtype), torch.zeros_like(advantages))
    return {**batch, "live": taken, "advantages": weighted}


class RowSelection(NamedTuple):
    """
    The selection of a run.

    Attributes:
        rows (`int`): k, rows of a window on a process.
        loss_type (`str`): TRL's.
        seed (`int`): Of the run.
        process (`int`): Number of the process; each draws from its own rows.
    """

    rows: int
    loss_type: str
    seed: int
    process: int

    @classmethod
    def of(cls, trainer: GRPOMathTrainer, arranged: bool) -> RowSelection:
        """
        The selection of a trainer with `train_rows`.

        Args:
            trainer ([`GRPOMathTrainer`]).
            arranged (`bool`): Whether rows may move between the micro-batches of an optimizer step.

        Raises:
            ValueError: where the rows cannot be shared out evenly over processes and micro-batches.
        """
        args, processes = trainer.args, trainer.accelerator.num_processes
        size = window_size(args.steps_per_generation, args.gradient_accumulation_steps) if arranged else 1
        windows = args.steps_per_generation // size
        total = args.per_device_train_batch_size * args.steps_per_generation * processes
        unit = windows * processes
        if args.train_rows % unit or not size <= args.train_rows // unit < total // unit:
            raise ValueError(
                f"train_rows={args.train_rows}: of {total} rows of a generation batch, in {args.steps_per_generation} "
                f"micro-batches on {processes} process(es), write a multiple of {unit} from {unit * size} (a row in each "
                f"micro-batch) to {total - unit}, or 0 to train all. A larger per_device_train_batch_size allows fewer."
            )
        return cls(args.train_rows // unit, trainer.loss_type, args.seed, trainer.accelerator.process_index)

    def __call__(self, step: int, batch: Batch, live: torch.Tensor, window: int) -> Batch:
        """
        [`select`] for a window, with a number that step, window and process determine: a resumed run draws the same.

        Args:
            step (`int`): Optimizer steps so far.
            batch (`dict`): The rows of the window.
            live (`torch.Tensor` of shape `(n,)`): Which rows have a gradient, bool.
            window (`int`): Number of the window in its generation batch.
        """
        uniform = random.Random(f"{self.seed} {self.process} {step} {window}").random()
        return select(batch, live, self.loss_type, self.rows, uniform)
