"""The layout of packed groups: which rows are packed together, and how many units stand side by side in a row.

Attention with a dense mask costs L^2 for a packed row of L positions, masked or not. Long units are therefore split where
that is cheaper, and units are laid side by side in as many rows as cost least, within what the unpacked rows would take.
Flex attention skips what is masked, in blocks of 128 positions, and attention by unit all of it, so there nothing is split.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from grpo_math.trainer.micro_batches import prompt_numbers


class Lengths(NamedTuple):
    """What the layout depends on, of B rows: the prompt that each has, and the tokens of both."""

    prompt: list[int]  # equal numbers, equal prompts
    prompt_tokens: list[int]
    completion_tokens: list[int]


class Unit(NamedTuple):
    """Rows with the same prompt that are packed together."""

    rows: list[int]
    prompt_tokens: int
    positions: int


class Costs(NamedTuple):
    """
    What a layout costs.

    Attributes:
        break_even (`float`): From [`break_even_length`].
        keeps_weights (`bool`): Whether attention weights are kept for the backward pass (eager attention).
    """

    break_even: float
    keeps_weights: bool

    def of(self, rows: int, length: int) -> float:
        """Compute of `rows` padded to `length`, in positions of a linear layer."""
        return rows * (length + length**2 / self.break_even)

    def fits(self, rows: int, length: int, unpacked_rows: int, unpacked_length: int) -> bool:
        """Whether a layout has no more positions, and keeps no more attention weights, than the unpacked rows."""
        weights = rows * length**2 <= unpacked_rows * unpacked_length**2
        return rows * length <= unpacked_rows * unpacked_length and (weights or not self.keeps_weights)


def read_lengths(input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> Lengths | None:
    """
    The lengths of left-padded prompts and right-padded completions, or `None` where a mask has gaps.

    Args:
        input_ids (`torch.Tensor` of shape `(B, P + T)`).
        attention_mask (`torch.Tensor` of shape `(B, P + T)`).
        width (`int`): T.
    """
    prompt_width = input_ids.size(1) - width
    prompt_mask, completion_mask = attention_mask.bool().split([prompt_width, width], dim=1)
    gaps = (prompt_mask[:, :-1] & ~prompt_mask[:, 1:]).any() | (~completion_mask[:, :-1] & completion_mask[:, 1:]).any()
    prompt = prompt_numbers(input_ids[:, :prompt_width], prompt_mask)
    counts = torch.stack([prompt, prompt_mask.sum(dim=1), completion_mask.sum(dim=1), gaps.expand(len(prompt))])
    prompt, prompt_tokens, completion_tokens, gaps = counts.tolist()
    return None if gaps[0] or min(prompt_tokens) < 1 else Lengths(prompt, prompt_tokens, completion_tokens)


def break_even_length(config: PreTrainedConfig) -> float:
    """
    At how many positions of a packed row dense attention costs as much as the linear layers.

    A token costs 2 n multiply-adds in the n weights of a layer's matrices, and 4 h for each position of the row in the
    products of queries with keys and of weights with values, h being the heads' total width: the costs are equal at n / 2 h.
    """
    config = config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // heads
    key_value = head * (getattr(config, "num_key_value_heads", None) or heads)
    weights = hidden * (2 * heads * head + 2 * key_value) + 3 * hidden * getattr(
        config, "intermediate_size", 4 * hidden
    )
    return weights / (2 * heads * head)


def _units(lengths: Lengths, most: int) -> list[Unit]:
    """The rows of each prompt, in units of at most `most` rows and of similar size."""
    rows_of: dict[int, list[int]] = {}
    for row, (prompt, tokens) in enumerate(zip(lengths.prompt, lengths.completion_tokens, strict=True)):
        if tokens:  # a row without a token has nothing to score
            rows_of.setdefault(prompt, []).append(row)
    units = []
    for rows in rows_of.values():
        rows.sort(key=lambda row: -lengths.completion_tokens[row])
        parts, shared = math.ceil(len(rows) / most), lengths.prompt_tokens[rows[0]] - 1
        for share in (rows[part::parts] for part in range(parts)):  # long and short ones in each
            positions = shared + sum(lengths.completion_tokens[row] for row in share)
            units.append(Unit(share, shared + 1, positions))
    return sorted(units, key=lambda unit: -unit.positions)


def _fill(units: list[Unit], count: int) -> list[list[Unit]]:
    """Units side by side in `count` rows: the longest first, each to the emptiest row."""
    rows: list[list[Unit]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]  # a heap
    for unit in units:
        positions, row = filled[0]
        rows[row].append(unit)
        heapq.heapreplace(filled, (positions + unit.positions, row))
    return rows


def _halves(number: int) -> list[int]:
    """`number`, half of it (rounded up), and so on down to 1."""
    return sorted({-(-number // (1 << shift)) for shift in range(number.bit_length() + 1)}, reverse=True)


def width_of(rows: list[list[Unit]], multiple_of: int) -> int:
    """L, the padded length of rows of units."""
    longest = max(sum(unit.positions for unit in row) for row in rows)
    return math.ceil(longest / multiple_of) * multiple_of


def lay_out_units(lengths: Lengths, width: int, costs: Costs, multiple_of: int) -> list[list[Unit]]:
    """
    Rows of units: the layout that costs least and fits, of halved sizes of units and halved numbers of rows.

    Args:
        lengths ([`Lengths`]): Of B rows.
        width (`int`): P + T, the padded length of an unpacked row.
        costs ([`Costs`]).
        multiple_of (`int`): L is a multiple of it.
    """
    best: tuple[float, list[list[Unit]]] = (math.inf, [])
    largest = max(map(lengths.prompt.count, set(lengths.prompt)))
    for most in _halves(largest) if any(lengths.completion_tokens) else ():
        units = _units(lengths, most)
        for count in _halves(len(units)):
            rows = _fill(units, count)
            length = width_of(rows, multiple_of)
            # Single completions, one a row, are what the unpacked rows are
            fits = costs.fits(count, length, len(lengths.prompt), width) or (most == 1 and count == len(units))
            if fits and costs.of(count, length) < best[0]:
                best = (costs.of(count, length), rows)
    return best[1]
