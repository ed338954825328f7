"""The micro-batches of a generation batch: which rows to score, where, which columns, and what that does to the metrics.

Everything here is exact. A row whose advantage is zero has no policy gradient. Rows may move between the micro-batches of
one optimizer step while every row keeps its weight. A column that no row attends to changes nothing. TRL pads all rows to
the longest of the generation batch and trims nothing (its open issue #7179).

Example: 2 micro-batches of 4 rows, completions of 9 2 7 3 | 8 4 5 6 tokens, the second group dead. The 4 live rows are
sorted and dealt out as 9 7 | 3 2, each micro-batch is as wide as its own longest row, and 4 rows are never run.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from grpo_math.trainer.losses import CONSTANT_LENGTH, MICRO_BATCH_MEAN, SEQUENCE_MEAN, SEQUENCE_SUM

Batch = dict[str, torch.Tensor]

# Means over the tokens of a micro-batch: of those that were scored, and of all, where a skipped row counts as zero
SCORED_METRICS = ("entropy", "kl", "kl/k1", "kl/k2", "kl/k3")
CLIP_METRICS = (
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "clip_ratio/either_mean",
    "cispo_clip_ratio",
    "ref_clip_ratio/low_mean",
    "ref_clip_ratio/high_mean",
    "ref_clip_ratio/region_mean",
)


# --- rows -------------------------------------------------------------------------------------------------------------


def loss_mask(batch: Batch) -> torch.Tensor:
    """The (B, T) mask of the tokens that TRL's loss covers: the completion's, less what a tool wrote."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]


def select_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """`rows` (indices) of every tensor that has a row axis; scalars and `None` stay."""
    return {key: value if value is None or value.ndim == 0 else value[rows] for key, value in batch.items()}


def concatenate(batches: list[Batch]) -> Batch:
    """The inverse of TRL's `split_tensor_dict`: one batch from micro-batches of the same widths."""
    return {
        key: value if value is None or value.ndim == 0 else torch.cat([batch[key] for batch in batches])
        for key, value in batches[0].items()
    }


def window_size(steps_per_generation: int, gradient_accumulation_steps: int) -> int:
    """
    How many consecutive micro-batches of a generation batch always fall into the same optimizer step, so that rows may
    move between them: the greatest common divisor, since both an optimizer step and an epoch end on its multiples.
    """
    return math.gcd(steps_per_generation, gradient_accumulation_steps)


def rows_per_micro_batch(live: int, micro_batches: int, capacity: int, group: int = 1) -> list[int]:
    """
    `live` rows dealt out as evenly as possible over `micro_batches`, each getting at least one: a process that skipped
    a micro-batch would miss the collective operations of the others.

    Args:
        live (`int`): Rows to deal out.
        micro_batches (`int`): How many get some.
        capacity (`int`): Most rows of a micro-batch.
        group (`int`, *optional*, defaults to 1): Rows that are dealt out together, where there are enough groups.
    """
    total = max(live, micro_batches)
    groups, rest = divmod(total, group)
    if groups < micro_batches or capacity % group:
        groups, rest, group = total, 0, 1
    counts = [(groups // micro_batches + (i < groups % micro_batches)) * group for i in range(micro_batches)]
    counts[-1] += rest
    return counts


def normaliser_share(loss_type: str, kept_mask: torch.Tensor, rows: int, tokens: torch.Tensor) -> torch.Tensor | float:
    """
    By what to multiply the advantages of the kept rows so that TRL's loss over them equals its loss over all rows, the
    left-out ones counting zero. Every loss type of TRL is positively homogeneous in the advantage.

    Args:
        loss_type (`str`): TRL's.
        kept_mask (`torch.Tensor` of shape `(b, T)`): Loss mask of the rows that are scored.
        rows (`int`): Rows of the micro-batch in TRL, `per_device_train_batch_size`.
        tokens (`torch.Tensor`): Completion tokens of the micro-batch in TRL.

    Returns:
        `float` or scalar `torch.Tensor`: b / rows where TRL divides by rows. The share of tokens where it divides by the
        micro-batch's tokens (`bnpo`). 1 where it divides by a number of the whole batch (`dapo`, `cispo`, `vespo`).
    """
    if loss_type in MICRO_BATCH_MEAN:
        return kept_mask.sum().clamp(min=1.0) / tokens.clamp(min=1.0)
    if loss_type in SEQUENCE_MEAN + CONSTANT_LENGTH + SEQUENCE_SUM:
        return len(kept_mask) / rows
    return 1.0


def row_lengths(batch: Batch) -> torch.Tensor:
    """Tokens of each row, prompt and completion, shape (B,)."""
    return batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)


def prompt_numbers(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> torch.Tensor:
    """Which prompt each row has, shape (B,), of ids and mask of shape (B, P): equal numbers, equal prompts."""
    keys = torch.cat([prompt_ids * prompt_mask, prompt_mask], dim=1)
    return torch.unique(keys, dim=0, return_inverse=True)[1]


def lay_out(batch: Batch, counts: list[int], loss_type: str, arrange: str | None) -> list[Batch]:
    """
    The micro-batches of one window: `counts[i]` rows in the i-th, live rows first, then this process's own dead rows,
    the rest left out.

    Args:
        batch (`dict`): All B rows of the window, with `"live"` of shape `(B,)`, bool.
        counts (`list[int]`): Rows of each micro-batch, the same on every process, at most B in sum. More than one only
            for a loss that weighs rows alike in whichever micro-batch they are (all but `bnpo`).
        loss_type (`str`): TRL's, for the normaliser.
        arrange (`str`, *optional*): How to order rows before cutting: by `"length"`, longest first, or by `"prompt"`, and
            the rows of a prompt by length. In their own order when `None`.

    Returns:
        `list[dict]`: As TRL's buffer, with advantages rescaled and those of dead rows exactly zero.
    """
    lengths, live = row_lengths(batch), batch["live"]
    # Live rows first; among dead ones the shortest are the cheapest filling
    before_dead = torch.zeros_like(lengths) if arrange is None else -lengths
    order = torch.argsort(torch.where(live, before_dead, 1 + lengths), stable=True)
    kept = order[: sum(counts)]
    if arrange is not None:
        kept = kept[torch.argsort(lengths[kept], descending=True, stable=True)]
    if arrange == "prompt":
        kept = kept[torch.argsort(prompt_numbers(batch["prompt_ids"], batch["prompt_mask"])[kept], stable=True)]

    tokens, rows_per_micro_batch = loss_mask(batch).sum(), len(live) // len(counts)
    micro_batches = [select_rows(batch, rows) for rows in kept.split(counts)]
    for micro_batch in micro_batches:
        advantages = micro_batch["advantages"]
        alive = micro_batch["live"] if advantages.ndim == 1 else micro_batch["live"].unsqueeze(1)
        share = normaliser_share(loss_type, loss_mask(micro_batch), rows_per_micro_batch, tokens)
        micro_batch["advantages"] = torch.where(alive, advantages * share, torch.zeros_like(advantages))
    return micro_batches


def over_processes(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape on every process, stacked along a new first axis."""
    return accelerator.gather(tensor.unsqueeze(0))


def lay_out_generation(
    micro_batches: list[Batch],
    accelerator: Accelerator,
    loss_type: str,
    gradient_accumulation_steps: int,
    skip: bool,
    arrange: str | None,
    num_generations: int,
    select: Callable[[Batch, torch.Tensor, int], Batch] | None = None,
) -> tuple[list[Batch], int]:
    """
    [`lay_out`] for every window of a generation batch, with as many rows in a micro-batch on every process.

    Args:
        micro_batches (`list[dict]`): TRL's buffer, each with `"live"` of shape `(B,)`, bool.
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.
        loss_type (`str`): TRL's.
        gradient_accumulation_steps (`int`): TRL's.
        skip (`bool`): Whether to leave dead rows out.
        arrange (`str`, *optional*): How to order the rows of a window, as of [`lay_out`].
        num_generations (`int`): G, rows that share a prompt.
        select (`Callable`, *optional*): A window's rows, which of them are live, and its number -> the rows with those to
            be trained as `"live"`, and their weighted advantages ([`row_selection.select`]).

    Returns:
        `tuple[list[dict], int]`: As many micro-batches, each with its `"metric_weights"`; and the rows that are left out,
        over all processes.
    """
    size = window_size(len(micro_batches), gradient_accumulation_steps) if arrange else 1
    windows = [concatenate(micro_batches[i : i + size]) for i in range(0, len(micro_batches), size)]
    if select is not None:
        windows = [select(batch, batch["live"], number) for number, batch in enumerate(windows)]
    live = [batch["live"] if skip else torch.ones_like(batch["live"]) for batch in windows]
    most = over_processes(accelerator, torch.stack([alive.sum() for alive in live])).amax(dim=0).tolist()
    laid_out = []
    for batch, alive, count in zip(windows, live, most, strict=True):
        window = {**batch, "live": alive}
        counts = rows_per_micro_batch(count, size, len(alive) // size, num_generations if arrange == "prompt" else 1)
        parts = lay_out(window, counts, loss_type, arrange)
        laid_out += with_metric_weights(window, parts, accelerator)
    skipped = sum(map(len, live)) - sum(len(batch["live"]) for batch in laid_out)
    return laid_out, skipped * accelerator.num_processes


# --- columns ----------------------------------------------------------------------------------------------------------


def used_columns(attention_mask: torch.Tensor, prompt_length: int, trim_left: bool, multiple_of: int | None) -> slice:
    """
    The columns of a left-padded prompt and a right-padded completion that at least one row attends to.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, P + T)`).
        prompt_length (`int`): P. At least one column on either side stays.
        trim_left (`bool`): Whether leading columns may go (see [`exactness.left_padding_is_inert`]).
        multiple_of (`int`, *optional*): TRL's `pad_to_multiple_of`, kept on both sides.

    Returns:
        `slice` over the columns.
    """
    used = attention_mask.any(dim=0).nonzero().squeeze(1)
    total, multiple = attention_mask.size(1), multiple_of or 1
    first = min(int(used[0]), prompt_length - 1) if trim_left and len(used) else 0
    last = max(int(used[-1]) + 1, prompt_length + 1) if len(used) else total
    left = min(math.ceil((prompt_length - first) / multiple) * multiple, prompt_length)
    right = min(math.ceil((last - prompt_length) / multiple) * multiple, total - prompt_length)
    return slice(prompt_length - left, prompt_length + right)


class Columns(NamedTuple):
    """
    Which columns of a micro-batch are run.

    Attributes:
        trim (`bool`): Whether unused columns may go at all.
        trim_left (`bool`): Whether leading ones may go (see [`exactness.left_padding_is_inert`]).
        multiple_of (`int`, *optional*): TRL's `pad_to_multiple_of`, kept on both sides.
    """

    trim: bool
    trim_left: bool
    multiple_of: int | None

    def positions(self, micro_batch: Batch) -> tuple[int, int]:
        """How many positions of a micro-batch hold a token, and how many are run."""
        mask = torch.cat([micro_batch["prompt_mask"], micro_batch["completion_mask"]], dim=1)
        return int(mask.sum()), mask[:, self.used(mask, micro_batch["prompt_mask"].size(1))].numel()

    def used(self, attention_mask: torch.Tensor, prompt_length: int) -> slice:
        """The columns to run, of a mask of shape `(B, P + T)` with P = `prompt_length`."""
        if not self.trim:
            return slice(None)
        return used_columns(attention_mask, prompt_length, self.trim_left, self.multiple_of)


def pad_columns(tensor: torch.Tensor, columns: int, left: bool = False, value: float = 0) -> torch.Tensor:
    """A (B, t) tensor widened with `value` to (B, `columns`), on the right unless `left`."""
    missing = columns - tensor.size(1)
    return F.pad(tensor, (missing, 0) if left else (0, missing), value=value)


def score_by_length(
    score: Callable,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    width: int,
    batch_size: int,
    columns: Columns,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Log-probabilities and entropies of completions, scored in chunks of rows of similar length without unused columns.

    Args:
        score (`Callable`): `score(input_ids, attention_mask, logits_to_keep) -> (logps, entropies, aux_loss)`, TRL's.
        input_ids (`torch.Tensor` of shape `(B, P + T)`).
        attention_mask (`torch.Tensor` of shape `(B, P + T)`).
        width (`int`): T.
        batch_size (`int`): Rows of a chunk.
        columns ([`Columns`]).

    Returns:
        `tuple`: Log-probabilities of shape `(B, T)`, zero in trimmed columns, and entropies of the same shape or `None`.
    """
    rows = len(input_ids)
    order = torch.argsort(attention_mask.sum(dim=1), descending=True, stable=True)
    # The loss scores its micro-batch in one chunk, whose rows stay in their order
    chunks = [slice(None)] if batch_size >= rows else order.split(batch_size)
    parts = []
    for chunk in chunks:
        ids, mask = input_ids[chunk], attention_mask[chunk]
        prompt_length = ids.size(1) - width
        used = columns.used(mask, prompt_length)
        parts.append(score(ids[:, used], mask[:, used], used.stop - prompt_length))
    logps, entropies = (
        torch.cat([pad_columns(part[i], width) for part in parts]) if parts[0][i] is not None else None for i in (0, 1)
    )
    if len(parts) > 1:
        back = torch.argsort(order)
        logps, entropies = logps[back], None if entropies is None else entropies[back]
    return logps, entropies


# --- metrics ----------------------------------------------------------------------------------------------------------


def with_metric_weights(window: Batch, micro_batches: list[Batch], accelerator: Accelerator) -> list[Batch]:
    """
    The micro-batches of a window with `"metric_weights"` of shape `(4,)`, over all processes.

    The first two are a micro-batch's shares of the scored tokens and of the rows, times the number of micro-batches: TRL's
    mean over micro-batches becomes the mean over tokens or rows. The others are the scored shares of all tokens and rows.
    """
    scored = torch.stack([loss_mask(batch).sum() for batch in micro_batches])
    counts = torch.cat([scored, loss_mask(window).sum().view(1)])
    *scored, tokens = over_processes(accelerator, counts).sum(dim=0).tolist()
    rows = [len(batch["live"]) for batch in micro_batches]
    shares = [sum(scored) / max(tokens, 1), sum(rows) / len(window["live"])]
    weights = [
        torch.tensor([n_tokens * len(rows) / max(sum(scored), 1), n_rows * len(rows) / sum(rows), *shares])
        for n_tokens, n_rows in zip(scored, rows, strict=True)
    ]
    return [{**batch, "metric_weights": weight} for batch, weight in zip(micro_batches, weights, strict=True)]


def weigh_metrics(metrics: dict[str, list[float]], weights: torch.Tensor, by_row: bool) -> None:
    """
    Corrects a micro-batch's metrics for its layout, in place. The mean of entropy and KL over the window becomes the mean
    over its scored tokens. That of a clip ratio becomes the mean over all of its tokens: skipped rows count as unclipped.

    Args:
        metrics (`dict`): TRL's, the micro-batch's values being the last ones.
        weights (`torch.Tensor` of shape `(4,)`): From [`with_metric_weights`].
        by_row (`bool`): Whether clip ratios are means over rows (importance sampling of whole sequences).
    """
    tokens, rows, token_share, row_share = weights.tolist()
    factors = dict.fromkeys(SCORED_METRICS, tokens) | {"vespo/phi_seq_mean": rows}
    factors |= dict.fromkeys(CLIP_METRICS, rows * row_share if by_row else tokens * token_share)
    for name, factor in factors.items():
        if metrics.get(name):
            metrics[name][-1] *= factor
    if row_share < 1 and metrics.get("clip_ratio/low_min"):
        metrics["clip_ratio/low_min"][-1] = 0.0


def padding_fraction(
    micro_batches: list[Batch], positions: Callable[[Batch], tuple[int, int]], accelerator: Accelerator
) -> float:
    """
    The share of padding among the positions that are run, over all processes.

    Args:
        micro_batches (`list[dict]`).
        positions (`Callable`): Micro-batch -> positions that hold a token, positions that are run.
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.
    """
    used, run = map(sum, zip(*map(positions, micro_batches), strict=True))
    totals = over_processes(accelerator, torch.tensor([used, run], device=accelerator.device)).sum(dim=0)
    return 1 - (totals[0] / totals[1]).item()
