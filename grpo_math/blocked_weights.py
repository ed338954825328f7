"""Large linear layers that multiply few rows fast on a CPU, by a copy of their weights in oneDNN's blocked layout.

Decoding multiplies one row for each running completion. With 4 to 15 float32 rows MKL takes up to twice as long as oneDNN with
a blocked copy: the same numbers in another order. With 16 to 128 rows it takes a third to a tenth longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import linear

FEWEST_ROWS = 4  # with fewer, reading the weights takes the time in either layout
SMALLEST = 2**19  # weights of a layer; below, oneDNN's cost of a call outweighs what is saved
MOST_BYTES = 2 * 2**30  # of host memory for all copies of a model


def layers_to_block(model: nn.Module) -> list[nn.Linear]:
    """
    The layers of which a copy is worth its memory.

    Args:
        model (`torch.nn.Module`).

    Returns:
        `list`: Linear layers with at least [`SMALLEST`] float32 weights on a CPU, none if together they exceed [`MOST_BYTES`].
        Layers whose `forward` somebody replaced (accelerate's hooks do) and other kinds of weights are not among them.
    """
    backend = torch.backends.mkldnn
    if not backend.is_available() or not backend.enabled:
        return []
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and layer.weight.numel() >= SMALLEST
        and "forward" not in vars(layer)
    ]
    return layers if sum(layer.weight.nbytes for layer in layers) <= MOST_BYTES else []


class BlockedProduct:
    """
    Takes the place of a layer's `forward`. The copy is made at the first product that it serves.

    It serves float32 without autocast (which multiplies in another precision) and without a gradient.
    """

    def __init__(self, layer: nn.Linear):
        self.layer = layer
        self.active = True
        self.blocked: torch.Tensor | None = None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        exact = input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not self.active or torch.is_grad_enabled() or not exact or input.numel() < FEWEST_ROWS * layer.in_features:
            return linear(input, layer.weight, layer.bias)
        if self.blocked is None:
            self.blocked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        return torch.ops.mkldnn._linear_pointwise(input, self.blocked, layer.bias, "none", [], "")


@contextmanager
def blocked_weights(model: nn.Module) -> Iterator[None]:
    """
    Inside the context the layers of [`layers_to_block`] multiply by a [`BlockedProduct`].

    Results differ by rounding. The weights may not change inside, nor can the model be copied.
    """
    products = {layer: BlockedProduct(layer) for layer in layers_to_block(model)}
    for layer, product in products.items():
        layer.forward = product
    try:
        yield
    finally:
        for layer, product in products.items():
            if vars(layer).get("forward") is product:
                del layer.forward
            product.active, product.blocked = False, None  # somebody may have wrapped it
