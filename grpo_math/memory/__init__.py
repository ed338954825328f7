"""How much GPU memory a recipe needs: predicted before it starts, measured where there is a card, and what makes it fit.

Importing this package does not import torch, so that the command line answers in milliseconds.

>>> from grpo_math import memory
>>> memory.gib(memory.predict("recipes/gsm8k.yaml").total)
"""

from grpo_math.memory.advice import MemorySaving, memory_savings, solve, suggest
from grpo_math.memory.device import available_vram, cublas_workspace, is_out_of_memory
from grpo_math.memory.measure import measure, profiled_peaks
from grpo_math.memory.predict import as_arguments, check_versions, predict
from grpo_math.memory.results import (
    DEFAULT_VRAM,
    GIB,
    OVERHEAD_BYTES,
    OVERHEAD_FACTOR,
    PHASES,
    Prediction,
    StepMemory,
    Suggestion,
    gib,
)
from grpo_math.memory.shapes import LONGEST_PROMPT, SHAPES, longest_prompt, model_config

__all__ = [
    "DEFAULT_VRAM",
    "GIB",
    "LONGEST_PROMPT",
    "OVERHEAD_BYTES",
    "OVERHEAD_FACTOR",
    "PHASES",
    "SHAPES",
    "MemorySaving",
    "Prediction",
    "StepMemory",
    "Suggestion",
    "as_arguments",
    "available_vram",
    "check_versions",
    "cublas_workspace",
    "gib",
    "is_out_of_memory",
    "longest_prompt",
    "measure",
    "memory_savings",
    "model_config",
    "predict",
    "profiled_peaks",
    "solve",
    "suggest",
]
