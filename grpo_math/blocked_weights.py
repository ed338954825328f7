"""Linear layers that multiply few rows fast on a CPU: by a copy of their weights in oneDNN's blocked layout.

Decoding multiplies a row for each running completion. From a plain weight matrix that costs, for 4 to 15 rows of float32,
up to twice of what it costs from a blocked one, which holds the same numbers in another order (`torch.compile` does the same
to the weights that it may freeze).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear

FEWEST_ROWS = 4  # fewer cost the time of reading the weights, in either layout
MOST_BYTES = 2 * 2**30  # of all copies; the gradient of a model whose weights are trained takes as much afterwards


def layers_to_block(model: nn.Module) -> list[nn.Linear]:
    """
    The layers of which a copy is worth its memory.

    Only float32 layers on a CPU, in a model whose copies take at most [`MOST_BYTES`], outside of autocast, which multiplies in
    another precision. A layer whose `forward` somebody replaced (accelerate's hooks do) stays as it is.
    """
    backend = torch.backends.mkldnn
    if not backend.is_available() or not backend.enabled or torch.is_autocast_enabled("cpu"):
        return []
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and "forward" not in vars(layer)
    ]
    return layers if sum(layer.weight.nbytes for layer in layers) <= MOST_BYTES else []


def _multiply(layer: nn.Linear, blocked: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What `layer(x)` gives, `(..., out_features)`. The copy is for results without a gradient only."""
    if torch.is_grad_enabled() or x.numel() < FEWEST_ROWS * layer.in_features:
        return linear(x, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(x, blocked, layer.bias, "none", [], "")


@contextmanager
def blocked_weights(model: nn.Module) -> Iterator[None]:
    """
    Inside the context the layers of [`layers_to_block`] multiply by their copies.

    The weights may not change inside. Results differ from those outside by rounding.
    """
    layers = layers_to_block(model)
    try:
        with torch.no_grad():
            for layer in layers:
                blocked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
                layer.forward = partial(_multiply, layer, blocked)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
