"""LoRA layers under autocast: PEFT's float32 copy of each layer's input, which autocast turns back at once, is left out.

PEFT casts the input of a LoRA layer to the adapter's dtype. With a float32 adapter on a bfloat16 base under bfloat16 autocast
that is one copy to float32 and one back for each layer, and the copy back is kept for the backward pass. bfloat16 fits into
float32, so the product sees the same bits without the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer


def casts_needed_by(model: torch.nn.Module, accelerator: Accelerator) -> str | None:
    """Why the inputs of adapter layers must be cast, in words, or `None`."""
    if not is_peft_model(model):
        return "the model has no adapter"
    if accelerator.mixed_precision not in ("bf16", "fp16"):
        return "without mixed precision a layer's input and weights must have one dtype"
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if not isinstance(layer, LoraLayer) or layer.lora_variant:
            return f"the adapter layer {name} is not plain LoRA"
        if any(getattr(dropout, "p", 0.0) > 0 for dropout in layer.lora_dropout.values()):
            return "lora_dropout is not 0, and scales the cast input"  # which rounds differently
    return None


class InputCasts:
    """
    Switches PEFT's casts off around forward passes under autocast, and around their backward passes.

    A checkpointed layer runs again in the backward pass and must then save the same tensors. [`InputCasts.training_step`] is
    entered around forward and backward, [`InputCasts.off`] where the forward begins: generation, which lies between, may run
    without autocast.

    Args:
        model: The policy, unwrapped; its adapter layers are switched.
        active: False leaves PEFT's casts as they are.
    """

    def __init__(self, model: torch.nn.Module, active: bool):
        self.model, self.active = model, active
        self._backward: contextlib.ExitStack | None = None

    @contextlib.contextmanager
    def training_step(self) -> Iterator[None]:
        """Inside the context the first [`off`] lasts until the end of the context."""
        with contextlib.ExitStack() as self._backward:
            try:
                yield
            finally:
                self._backward = None

    @contextlib.contextmanager
    def off(self, until_backward: bool = False) -> Iterator[None]:
        """Inside the context, or with `until_backward` to the end of the training step around it, nothing is cast."""
        switch = disable_input_dtype_casting(self.model, self.active)
        if until_backward and self._backward is not None:
            self._backward.enter_context(switch)
            yield
            return
        with switch:
            yield
