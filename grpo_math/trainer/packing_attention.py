"""Attention of packed rows: which positions see which, as the mask that the model's attention takes.

Dense masks serve eager attention, and sdpa on CUDA. Flex attention takes a block mask. On a CPU sdpa gets a [`UnitMask`]:
attention is then computed for each completion by itself, with its prompt's keys, and costs what it does unpacked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedConfig, PreTrainedModel

SHARED = 0  # the segment of the prompt's tokens; completions count from 1


class Packed(NamedTuple):
    """
    Packed rows, R of them with L positions.

    Attributes:
        input_ids, position_ids, targets, unit, segment (`torch.Tensor` of shape `(R, L)`): `targets` are pre-shifted labels,
            -100 where there is none. Padding is a unit of its own.
        sizes (`list[list[list[int]]]`): Of each unit of each row: tokens of the prompt but the last, then of each completion.
        source (`torch.Tensor` of shape `(N,)`): Where the N targets are, in `(R * L)`.
        destination (`torch.Tensor` of shape `(N,)`): Where they go, in `(B * T)`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    targets: torch.Tensor
    unit: torch.Tensor
    segment: torch.Tensor
    sizes: list[list[list[int]]]
    source: torch.Tensor
    destination: torch.Tensor


def attends(packed: Packed, window: int | None = None) -> Callable:
    """
    Which positions a position attends to: earlier ones of its prompt and of its own completion.

    Args:
        packed ([`Packed`]).
        window (`int`, *optional*): Of a sliding-window layer: positions at least so far back are not attended to.

    Returns:
        `Callable`: Flex attention's `mask_mod`: row, head, query, key -> whether the query attends to the key.
    """
    unit, segment, position = packed.unit, packed.segment, packed.position_ids

    def mask_mod(row, head, query, key):
        allowed = (query >= key) & (unit[row, query] == unit[row, key])
        allowed = allowed & ((segment[row, key] == SHARED) | (segment[row, query] == segment[row, key]))
        if window is not None:
            allowed = allowed & (position[row, query] - position[row, key] < window)
        return allowed

    return mask_mod


def attention_mask(packed: Packed, window: int | None = None) -> torch.Tensor:
    """[`attends`] of all positions, `(R, 1, L, L)`, bool."""
    rows, length = packed.unit.shape
    index = torch.arange(length, device=packed.unit.device)
    row = torch.arange(rows, device=packed.unit.device)[:, None, None]
    return attends(packed, window)(row, None, index[:, None], index).unsqueeze(1)


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores: sdpa turns a boolean mask into this in every layer, and keeps each."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def _band(before: int, count: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The additive mask `(count, before + count)` of the last `count` queries of a plain causal row."""
    query = torch.arange(before, before + count, device=device)[:, None]
    key = torch.arange(before + count, device=device)
    allowed = key <= query
    return _additive(allowed if window is None else allowed & (query - key < window), dtype)


_PROPERTIES = ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf")
NEED_NO_DATA = {torch.Tensor.size, torch.Tensor.dim, *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES)}


class UnitMask(torch.Tensor):
    """
    A mask of packed rows for which sdpa is called once for each prompt and each completion.

    A completion's C positions attend to its prompt's S and to its own earlier ones: they are the last C queries of a plain
    causal row of S + C. No other product is computed. Like torch's own `torch.nn.attention.bias.CausalBias` the mask is a
    tensor without data that takes the place of sdpa; for any other function it becomes the dense mask.

    Args:
        packed ([`Packed`]).
        window (`int`, *optional*): Of a sliding-window layer.
        dtype (`torch.dtype`): Of the dense mask.
    """

    @staticmethod
    def __new__(cls, packed: Packed, window: int | None, dtype: torch.dtype) -> UnitMask:
        rows, length = packed.unit.shape
        device = packed.unit.device
        return torch.Tensor._make_wrapper_subclass(cls, (rows, 1, length, length), dtype=dtype, device=device)

    def __init__(self, packed: Packed, window: int | None, dtype: torch.dtype):
        super().__init__()
        self.packed, self.window = packed, window
        self.made: torch.Tensor | None = None
        units = [unit for row in packed.sizes for unit in row]
        shapes = {(unit[0], max(unit[1:])) for unit in units}
        if window is not None:
            shapes |= {(0, unit[0]) for unit in units if unit[0] > window}
        # (keys before the first query, queries) -> additive mask; a prompt within the window is causal without one
        self.bands = {shape: _band(*shape, window, dtype, packed.unit.device) for shape in shapes}

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            return _attend_by_unit(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            if func not in NEED_NO_DATA:
                args, kwargs = tree_map_only(UnitMask, UnitMask.dense, (args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise TypeError(f"{func} reached a mask without data")  # a wrapper must have this method

    def dense(self) -> torch.Tensor:
        """The mask as a plain tensor, `(R, 1, L, L)`."""
        if self.made is None:  # once, as each layer may keep it
            self.made = _additive(attention_mask(self.packed, self.window), self.dtype)
        return self.made


def _attend_by_unit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: UnitMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    """sdpa's output, `(R, H, L, head_dim)`, zero in padding. The arguments are sdpa's, all of shape `(R, H, L, head_dim)`."""
    rows, options = [], {"dropout_p": dropout_p, **options}
    for r, units in enumerate(attn_mask.packed.sizes):
        sizes = [size for unit in units for size in unit]
        padding = query.size(2) - sum(sizes)
        parts = zip(*(x[r : r + 1].split([*sizes, padding], dim=2) for x in (query, key, value)), strict=True)
        found = []
        for shared, *counts in units:
            q, k, v = next(parts)
            if shared:
                band = attn_mask.bands.get((0, shared))
                found.append(scaled_dot_product_attention(q, k, v, band, is_causal=band is None, **options))
            longest = attn_mask.bands[shared, max(counts)]
            for count in counts:
                q, own_k, own_v = next(parts)
                keys, values = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
                band = longest[:count, : shared + count]
                found.append(scaled_dot_product_attention(q, keys, values, band, **options))
        if padding:
            like = found[0]
            found.append(like.new_zeros((*like.shape[:2], padding, like.size(3))))
        rows.append(torch.cat(found, dim=2))
    return torch.cat(rows)


def takes_units(model: PreTrainedModel) -> bool:
    """
    Whether a model's attention can go by unit.

    Only on a CPU, where it was measured: on CUDA many small kernels would take the place of one.
    """
    return model.config.get_text_config()._attn_implementation == "sdpa" and model.device.type == "cpu"


def masks_for(config: PreTrainedConfig, packed: Packed, dtype: torch.dtype, by_unit: bool) -> Any:
    """
    The `attention_mask` argument of a model: a mask, or one for each kind of layer where it has several.

    Dense masks are additive and made once.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Of the model.
        packed ([`Packed`]).
        dtype (`torch.dtype`): In which attention is computed.
        by_unit (`bool`): From [`takes_units`].
    """
    config = config.get_text_config()

    def mask(window: int | None) -> Any:
        if by_unit:
            return UnitMask(packed, window, dtype)
        if config._attn_implementation == "flex_attention":
            rows, length = packed.unit.shape
            return create_block_mask(attends(packed, window), rows, None, length, length, packed.unit.device)
        return _additive(attention_mask(packed, window), dtype)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:  # a model without kinds uses its window, if it has one, in every layer
        return mask(window)
    masks = {kind: mask(window if kind == "sliding_attention" else None) for kind in kinds}
    return masks if len(kinds) > 1 else masks.popitem()[1]
