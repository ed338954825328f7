r"""Packed groups: each prompt is run once for its G completions, exact to round-off.

The completions of a prompt become one unit: prompt tokens 1..P-1 once, then for each completion the last prompt token
followed by the completion's tokens but the last. Positions restart at P-1 for each completion. A token attends to its
prompt and to its own completion only, so its hidden state is that of the unpacked row.

Example: prompt `a b c`, completions `d e` and `f g h`. Unpacked 3 + 2 and 3 + 3 positions, padded to 12; packed 7:

    token      a b | c d | c f g
    position   0 1 | 2 3 | 2 3 4
    target     - - | d e | f g h

Which rows share a unit, and which units a row, is decided in `packing_layout.py`; masks are made in `packing_attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from grpo_math.trainer.packing_attention import SHARED, Packed, masks_for, takes_units
from grpo_math.trainer.packing_layout import Costs, Lengths, break_even_length, lay_out_units, read_lengths, width_of


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
    sizes: list[list[list[int]]] = [[] for _ in laid_out]
    number = 0
    for r, row in enumerate(laid_out):
        at = 0
        for unit in row:
            shared, first = unit.prompt_tokens - 1, columns - width - unit.prompt_tokens
            begin = unit.rows[0] * columns + first
            token[r, at : at + shared] = torch.arange(begin, begin + shared)
            position[r, at : at + shared] = torch.arange(shared)
            unit_number[r, at : at + unit.positions] = number
            sizes[r].append([shared, *(lengths.completion_tokens[k] for k in unit.rows)])
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
        sizes,
        torch.cat(source).to(device),
        torch.cat(destination).to(device),
    )


def _per_token(
    model: Callable, masks: Any, packed: Packed, shape: tuple[int, int], entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    outputs = model(
        input_ids=packed.input_ids,
        attention_mask=masks,
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
        by_unit (`bool`): Whether attention is computed for each completion by itself.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    costs: Costs
    multiple_of: int
    by_unit: bool

    @classmethod
    def of(cls, model: PreTrainedModel, pad_to_multiple_of: int | None) -> Packing:
        """
        For a policy.

        Args:
            model ([`~transformers.PreTrainedModel`]): The policy, without an adapter around it.
            pad_to_multiple_of (`int`, *optional*): TRL's. Lengths are a multiple of 8 as well, as CUDA's attention with a
                mask wants it.
        """
        attention, by_unit = model.config.get_text_config()._attn_implementation, takes_units(model)
        skips = by_unit or attention == "flex_attention"
        break_even = math.inf if skips else break_even_length(model.config)
        costs = Costs(break_even, keeps_weights=attention == "eager")
        embedding = model.get_input_embeddings()
        table = next(embedding.parameters(), None)
        dtype = (embedding.weight if table is None else table).dtype  # in host memory the table is no parameter
        return cls(model.config, dtype, costs, math.lcm(8, pad_to_multiple_of or 1), by_unit)

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
            masks = masks_for(self.config, packed, dtype, self.by_unit)
            found = _per_token(model, masks, packed, (len(chunk), width), entropy)
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
