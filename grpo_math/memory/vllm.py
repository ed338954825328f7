"""What vLLM adds to a prediction: a lower bound, since vLLM itself is not run.

In TRL's colocate mode vLLM shares the card. It holds its own copy of the weights, in 16 bits, and key-value blocks; together
they fill `vllm_gpu_memory_utilization` of the card. Asleep (`vllm_enable_sleep_mode`) it gives both back while the policy
trains. In server mode it has a card of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_math.memory.results import GIB, StepMemory
from grpo_math.recipe import Recipe

WEIGHT_BYTES = CACHE_BYTES = 2  # bfloat16 or float16
CATEGORY = "vLLM, at least"


@dataclasses.dataclass(frozen=True)
class SharedCard:
    """
    vLLM on the card that trains.

    Attributes:
        weights: Bytes of its copy of the weights.
        cache: Bytes of the keys and values of one prompt with a full completion, the least that it starts with.
        utilization: Share of the card that it fills.
        sleeps: Whether it gives its memory back while the policy trains.
    """

    weights: int
    cache: int
    utilization: float
    sleeps: bool

    @property
    def least(self) -> int:
        """Bytes that vLLM cannot do without."""
        return self.weights + self.cache

    def held(self, vram: float) -> int:
        """Bytes that it holds on a card of `vram` GiB."""
        return int(self.utilization * vram * GIB)

    def phases(self, peaks: dict[str, int]) -> set[str]:
        """The phases in which it holds them."""
        return {"generation"} if self.sleeps else set(peaks) - {"load"}


def shared_card(recipe: Recipe, config: Any, prompt_length: int) -> SharedCard | None:
    """vLLM's part of a recipe, or `None` without vLLM or in server mode."""
    import torch
    from transformers import AutoModelForCausalLM

    args = recipe.training
    if not args.use_vllm or args.vllm_mode != "colocate":
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tokens = prompt_length + args.max_completion_length
    weights = sum(parameter.numel() for parameter in model.parameters()) * WEIGHT_BYTES
    cache = 2 * text.num_hidden_layers * heads * head * CACHE_BYTES * tokens
    return SharedCard(weights, cache, args.vllm_gpu_memory_utilization, bool(args.vllm_enable_sleep_mode))


def add_to(step: StepMemory, vllm: SharedCard) -> StepMemory:
    """A step's memory with the least that vLLM holds beside it."""
    shared = vllm.phases(step.peaks)
    peaks = {phase: peak + vllm.least * (phase in shared) for phase, peak in step.peaks.items()}
    parts = {phase: {**found, CATEGORY: vllm.least * (phase in shared)} for phase, found in step.parts.items()}
    return dataclasses.replace(step, peaks=peaks, parts=parts)
