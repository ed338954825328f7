"""What the GPU benchmark runs: recipes and overrides whose memory is measured, sizes of a step, and the verdict.

Nothing here imports torch: the parent process must not take memory of the card.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plain import RECIPES, eight_gb_recipes
from grpo_math import memory
from grpo_math.memory import GIB
from grpo_math.recipe import read_yaml

PARTS = ("memory", "oom", "gradients", "throughput", "real")
TOLERANCE = 0.05  # share of the measured peak
CLEARLY = 1.1  # smallest predicted peak, in caps, of a configuration that must run out

_NO_CHECKPOINTING = {"gradient_checkpointing": False}
# Name -> recipe and overrides; each needs more than 8 GiB, in another phase or for another reason
OUT_OF_MEMORY = {
    "full fine-tune, 64 rows at once, no checkpointing": (
        "gsm8k_full.yaml",
        {"heldout_size": 0, "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1, **_NO_CHECKPOINTING},
    ),
    "0.5B LoRA, 16 rows at once, no checkpointing": (
        "gsm8k.yaml",
        {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, **_NO_CHECKPOINTING},
    ),
    "full fine-tune, 32-bit AdamW": ("report_gsm8k.yaml", {"optim": "adamw_torch"}),
    "1.5B LoRA, 512 completions at once": (
        "gsm8k_1.5b_lora.yaml",
        {"gradient_accumulation_steps": 64, "heldout_size": 0},
    ),
    "1.5B LoRA, 512 held-out completions at once": ("gsm8k_1.5b_lora.yaml", {"heldout_batch_size": 512}),
    "3B LoRA, not quantized, 32 rows at once": (
        "gsm8k_1.5b_lora.yaml",
        {
            "model_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 2,
        },
    ),
    "7B QLoRA, 16 rows at once": (
        "gsm8k_7b_qlora.yaml",
        {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "steps_per_generation": 1},
    ),
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A recipe with overrides whose memory is predicted and measured; `kind` is `recipe` or `oom`."""

    name: str
    kind: str
    path: Path
    changes: dict[str, Any]
    prompt_length: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the gradient and throughput parts: a model's shape, and tokens and rows of a step."""

    shape: dict[str, Any]
    prompt: int
    completion: int
    groups: int
    generations: int
    micro: int

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.groups * self.generations


REAL_SIZES = Sizes(memory.SHAPES["Qwen/Qwen2.5-0.5B"], 128, 256, groups=8, generations=8, micro=8)
TINY_SIZES = Sizes(
    dict(
        model_type="qwen2",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    prompt=12,
    completion=16,
    groups=4,
    generations=4,
    micro=4,
)
TINY_CHANGES = {
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 16,
    "heldout_batch_size": 8,
}


def configurations(kinds: Sequence[str], tiny_model: Path | None = None) -> list[Configuration]:
    """
    The 8 GB recipes from the smallest model to the largest, then the configurations that must run out of memory.

    Args:
        kinds: Some of `memory` (the recipes) and `oom`.
        tiny_model: A folder with a tiny configuration, with which gsm8k.yaml is then the only configuration.
    """
    if tiny_model is not None:
        changes = {"model_name_or_path": str(tiny_model), **TINY_CHANGES}
        return [Configuration("gsm8k.yaml, tiny", "recipe", RECIPES / "gsm8k.yaml", changes, TINY_SIZES.prompt)]

    def configuration(name: str, kind: str, path: Path, changes: dict) -> Configuration:
        return Configuration(name, kind, path, changes, memory.LONGEST_PROMPT[read_yaml(path)["task"]])

    def size(path: Path) -> int:
        shape = memory.SHAPES[read_yaml(path)["model_name_or_path"].removesuffix("-Instruct")]
        return shape["num_hidden_layers"] * shape["hidden_size"] ** 2

    paths = sorted(eight_gb_recipes(), key=size)
    found = [configuration(path.name, "recipe", path, {}) for path in paths]
    found += [configuration(name, "oom", RECIPES / file, changes) for name, (file, changes) in OUT_OF_MEMORY.items()]
    return [c for c in found if {"recipe": "memory", "oom": "oom"}[c.kind] in kinds]


def judge(predicted: dict, measured: dict, vram: float) -> dict:
    """
    A prediction beside a measurement: `{"ratio", "phases", "fits", "ran_out", "right"}`.

    Args:
        predicted: The result of `Prediction.as_dict`.
        measured: The result of `memory.measure`.
        vram: GiB that the process may take.

    Returns:
        `ratio`: predicted over measured peak, `None` where the memory ran out (the peak was then never reached);
        `phases`: the same of each phase that was measured; `fits`: the predicted verdict; `ran_out`; `right`: whether the
        verdict came true, `None` on a CPU, where nothing can run out.
    """
    fits = predicted["total"] <= vram * GIB
    ran_out = measured["out_of_memory"] is not None
    peaks = {phase: size for phase, size in measured["peaks"].items() if size}
    both = {} if ran_out else {phase: size for phase, size in peaks.items() if phase in predicted["peaks"]}
    return {
        "ratio": None if ran_out else predicted["peak"] / max(peaks.values()),
        "phases": {phase: predicted["peaks"][phase] / size for phase, size in both.items()},
        "fits": fits,
        "ran_out": ran_out,
        "right": None if measured["device"] == "cpu" else fits != ran_out,
    }
