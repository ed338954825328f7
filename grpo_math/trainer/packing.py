r"""Packed groups: each prompt is run once for its G completions, exact to round-off.

The completions of a prompt become one unit: prompt tokens 1..P-1 once, then for each completion the last prompt token
followed by the completion's tokens but the last. Positions restart at P-1 for each completion. A token attends to its
prompt and to its own completion only, so its hidden state is that of the unpacked row.

Example: prompt `a b c`, completions `d e` and `f g h`. Unpacked 3 + 2 and 3 + 3 positions, padded to 12; packed 7:

    token      a b | c d | c f g
    position   0 1 | 2 3 | 2 3 4
    target     - - | d e | f g h

Attention with a dense mask costs L^2 for a packed row of L positions, masked or not. Long units are therefore split where
that is cheaper, and units are laid side by side in as many rows as cost least, within what the unpacked rows would take.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from grpo_math.trainer.micro_batches import prompt_numbers

SHARED = 0  # the segment of the prompt's tokens; completions count from 1


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


class Packed(NamedTuple):
    """
    Packed rows, R of them with L positions.

    Attributes:
        input_ids, position_ids, targets, unit, segment (`torch.Tensor` of shape `(R, L)`): `targets` are pre-shifted labels,
            -100 where there is none. Padding is a unit of its own.
        source (`torch.Tensor` of shape `(N,)`): Where the N targets are, in `(R * L)`.
        destination (`torch.Tensor` of shape `(N,)`): Where they go, in `(B * T)`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    unit: torch.Tensor
    segment: torch.Tensor
    source: torch.Tensor
    destination: torch.Tensor


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


def pack(input_ids: torch.Tensor, lengths: Lengths, width: int, costs: Costs, multiple_of: int) -> Packed | None:
    """
    Packs a batch, or returns `None` where no row has a token to score.

    Args:
        input_ids (`torch.Tensor` of shape `(B, P + T)`): Left-padded prompts, right-padded completions.
        lengths ([`Lengths`]): From [`read_lengths`].
        width (`int`): T.
        costs ([`Costs`]).
        multiple_of (`int`): L is a multiple of it.
    """
    columns = input_ids.size(1)
    laid_out = lay_out_units(lengths, columns, costs, multiple_of)
    if not laid_out:
        return None
    length = width_of(laid_out, multiple_of)
    shape = (len(laid_out), length)
    token, target = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)  # places in the flat (B * (P + T))
    position, unit_number, segment = (
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, -1),
        torch.zeros(shape).long(),
    )
    source, destination = [], []
    number = 0
    for r, row in enumerate(laid_out):
        at = 0
        for unit in row:
            shared, first = unit.prompt_tokens - 1, columns - width - unit.prompt_tokens
            begin = unit.rows[0] * columns + first
            token[r, at : at + shared] = torch.arange(begin, begin + shared)
            position[r, at : at + shared] = torch.arange(shared)
            unit_number[r, at : at + unit.positions] = number
            at, number = at + shared, number + 1
            for k, source_row in enumerate(unit.rows):
                count = lengths.completion_tokens[source_row]
                begin, end = source_row * columns + columns - width - 1, at + count
                token[r, at:end] = torch.arange(begin, begin + count)
                target[r, at:end] = torch.arange(begin + 1, begin + 1 + count)
                position[r, at:end] = torch.arange(shared, shared + count)
                segment[r, at:end] = SHARED + 1 + k
                source.append(torch.arange(r * length + at, r * length + end))
                destination.append(torch.arange(source_row * width, source_row * width + count))
                at = end
    scored = target >= 0
    device = input_ids.device
    flat = input_ids.reshape(-1)
    return Packed(
        flat[token.to(device)],
        position.to(device),
        torch.where(scored.to(device), flat[target.clamp(min=0).to(device)], -100),
        unit_number.to(device),
        segment.to(device),
        torch.cat(source).to(device),
        torch.cat(destination).to(device),
    )


def attention_mask(packed: Packed, window: int | None = None) -> torch.Tensor:
    """
    Which positions each position attends to, `(R, 1, L, L)`, bool: earlier ones of its prompt and of its own completion.

    Args:
        packed ([`Packed`]).
        window (`int`, *optional*): Of a sliding-window layer: positions at least so far back are not attended to.
    """
    unit, segment, position = packed.unit, packed.segment, packed.position_ids
    index = torch.arange(unit.size(1), device=unit.device)
    allowed = (index[:, None] >= index) & (unit[:, :, None] == unit[:, None, :])  # (R, L, L)
    allowed &= (segment[:, None, :] == SHARED) | (segment[:, :, None] == segment[:, None, :])
    if window is not None:
        allowed &= position[:, :, None] - position[:, None, :] < window
    return allowed.unsqueeze(1)


def masks_for(config: PreTrainedConfig, packed: Packed, dtype: torch.dtype) -> Any:
    """
    The `attention_mask` argument of a model: a mask, or one for each kind of layer where it has several.

    Masks are additive and made once, since sdpa turns a boolean one into such a mask in every layer, and keeps each.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of the model.
        packed ([`Packed`]).
        dtype (`torch.dtype`): In which attention is computed.
    """
    config = config.get_text_config()

    def mask(window: int | None) -> torch.Tensor:
        allowed = attention_mask(packed, window)
        return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:  # a model without kinds uses its window, if it has one, in every layer
        return mask(window)
    masks = {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return masks if len(kinds) > 1 else masks.popitem()[1]


def _per_token(
    model: Callable, config: PreTrainedConfig, packed: Packed, shape: tuple[int, int], dtype: torch.dtype, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    outputs = model(
        input_ids=packed.input_ids,
        attention_mask=masks_for(config, packed, dtype),
        position_ids=packed.position_ids,
        shift_labels=packed.targets,
        fused_lm_head=True,
    )

    def unpacked(values: torch.Tensor) -> torch.Tensor:
        found = values.reshape(-1)[packed.source]  # (N,)
        return found.new_zeros(shape[0] * shape[1]).index_copy(0, packed.destination, found).view(shape)

    return unpacked(outputs.log_probs), unpacked(outputs.entropy) if entropy else None


class Packing(NamedTuple):
    """
    Scores batches packed.

    Attributes:
        config ([`~transformers.PreTrainedConfig`]): Of the policy.
        dtype (`torch.dtype`): Of its hidden states, which start as embeddings: other weights may differ (4 bits, adapters).
        costs ([`Costs`]).
        multiple_of (`int`): L is a multiple of it.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    costs: Costs
    multiple_of: int

    @classmethod
    def of(cls, model: PreTrainedModel, pad_to_multiple_of: int | None) -> Packing:
        """
        For a policy.

        Args:
            model ([`~transformers.PreTrainedModel`]): The policy, without an adapter around it.
            pad_to_multiple_of (`int`, *optional*): TRL's. Lengths are a multiple of 8 as well, as CUDA's attention with a
                mask wants it.
        """
        eager = model.config.get_text_config()._attn_implementation == "eager"
        costs = Costs(break_even_length(model.config), keeps_weights=eager)
        embedding = model.get_input_embeddings()
        table = next(embedding.parameters(), None)
        dtype = (embedding.weight if table is None else table).dtype  # in host memory the table is no parameter
        return cls(model.config, dtype, costs, math.lcm(8, pad_to_multiple_of or 1))

    def score(
        self,
        model: Callable,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        width: int,
        batch_size: int,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """
        Log-probabilities and entropies of completions.

        Args:
            model (`Callable`): With TRL's fused LM head.
            input_ids (`torch.Tensor` of shape `(B, P + T)`): Left-padded prompts, right-padded completions.
            attention_mask (`torch.Tensor` of shape `(B, P + T)`).
            width (`int`): T.
            batch_size (`int`): Most rows of a forward pass.
            entropy (`bool`): Whether entropies are wanted.

        Returns:
            `tuple`, *optional*: Log-probabilities of shape `(B, T)`, zero where there is no token, and entropies alike or
            `None`. Nothing where no row has a token, or where a mask has gaps.
        """
        lengths = read_lengths(input_ids, attention_mask, width)
        if lengths is None or not any(lengths.completion_tokens):
            return None
        rows, device = range(len(input_ids)), input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        # Chunks of rows with the same prompt; the loss scores its micro-batch in one
        order = sorted(rows, key=lambda row: (lengths.prompt[row], -lengths.completion_tokens[row]))
        chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        logps = entropies = None
        for chunk in chunks:
            here = Lengths(*([values[row] for row in chunk] for values in lengths))
            packed = pack(input_ids[chunk], here, width, self.costs, self.multiple_of)
            if packed is None:  # rows without a token only: zero
                continue
            found = _per_token(model, self.config, packed, (len(chunk), width), dtype, entropy)
            index = torch.tensor(chunk, device=input_ids.device)
            logps, entropies = (
                None
                if part is None
                else part.new_zeros(len(rows), width).index_copy(0, index, part)
                if whole is None
                else whole.index_copy(0, index, part)
                for whole, part in zip((logps, entropies), found, strict=True)
            )
        return logps, entropies

    def positions(self, micro_batch: dict[str, torch.Tensor]) -> tuple[int, int]:
        """How many positions of a micro-batch hold a token, and how many are run."""
        prompt, completion = micro_batch["prompt_ids"], micro_batch["completion_ids"]
        mask = torch.cat([micro_batch["prompt_mask"], micro_batch["completion_mask"]], dim=1)
        lengths = read_lengths(torch.cat([prompt, completion], dim=1), mask, completion.size(1))
        rows = [] if lengths is None else lay_out_units(lengths, mask.size(1), self.costs, self.multiple_of)
        if not rows:
            return int(mask.sum()), mask.numel()
        return sum(unit.positions for row in rows for unit in row), len(rows) * width_of(rows, self.multiple_of)
