"""What pays on a CPU only: whether a model runs there, and weights transposed for the few rows of a decoding step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import linear

# Rows between which a product with transposed float32 weights is the faster one: 1.3 to 2.7 times for 4 to 64 rows with MKL
FEWEST, MOST = 4, 128


def runs_here(model: torch.nn.Module) -> bool:
    """Whether a model's weights are on a CPU."""
    return next(model.parameters()).device.type == "cpu"


class _Transposed:
    """Forward of a linear layer whose weight is copied, transposed, when few rows first ask for it."""

    def __init__(self, layer: torch.nn.Linear):
        self.layer = layer
        self.weight: torch.Tensor | None = None  # (in, out)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        layer, rows = self.layer, input.numel() // input.size(-1)
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not FEWEST <= rows <= MOST:
            return linear(input, layer.weight, layer.bias)
        if self.weight is None:
            self.weight = layer.weight.t().contiguous()
        output = input @ self.weight
        return output if layer.bias is None else output + layer.bias


@contextmanager
def transposed_weights(model: torch.nn.Module) -> Iterator[None]:
    """
    Inside the context linear layers multiply few rows with a transposed copy of their float32 weights.

    A BLAS reads the weights row by row for the product of a decoding step (`input @ weight.t()` with a row a sequence), and
    is faster where the rows are those of the transpose. The copies are as large as the weights, and gone afterwards.
    Products differ by round-off. Under autocast, with gradients, or for more rows, layers are as they are.

    Args:
        model ([`torch.nn.Module`]): Its weights must not change inside.
    """
    layers = [
        module
        for module in model.modules()
        if type(module) is torch.nn.Linear and module.weight.dtype == torch.float32 and "forward" not in vars(module)
    ]
    for layer in layers:
        layer.forward = _Transposed(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
