"""Activations in host memory: what the backward pass needs leaves the card during the forward pass and comes back.

TRL's SFT, DPO and KTO trainers have this option, its GRPO trainer has not. The copying is TRL's own. TRL's context expects the
backward pass to ask for every tensor that was saved. Of a GRPO forward pass it does not: entropies are there for the metrics.
So each forward pass has a context of its own.
"""

from __future__ import annotations

import contextlib

import torch
from trl.models.activation_offloading import OffloadActivations


def check_accelerator(active: bool) -> None:
    """Raises ValueError where there is no accelerator, whose memory would be saved."""
    if active and torch.accelerator.current_accelerator() is None:
        raise ValueError(
            "activation_offloading=True moves activations from an accelerator's memory to the host's, and this machine has no "
            "accelerator. Leave activation_offloading out."
        )


def activation_offloading(model: torch.nn.Module, active: bool) -> contextlib.AbstractContextManager:
    """
    A context around one forward pass of a policy, whose parameters stay where they are.

    Args:
        model: The policy.
        active: False gives a context that does nothing.
    """
    if not active:
        return contextlib.nullcontext()
    context = OffloadActivations()
    context.update_model_params(model)
    return context
