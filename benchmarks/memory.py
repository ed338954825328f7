"""Predicted memory against torch's profiler on real CPU steps.

Small shapes run on real tensors, with bitsandbytes' quantization and optimizers, and the allocations that the profiler
records are added up. The prediction runs the same step on fake tensors, without the patches that stand in for CUDA.
`python -m benchmarks predicted` predicts the recipes; `python -m benchmarks gpu` compares on a GPU.
"""

import argparse
import json
import tempfile
from pathlib import Path

from transformers import Qwen2Config

from benchmarks import common
from benchmarks.plain import RECIPES
from grpo_math import memory
from grpo_math.memory.step import run_one_step
from grpo_math.recipe import load_recipe

PROMPT_LENGTH = 32

SHAPE = dict(
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=3000,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
COMMON = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 24,
    "heldout_batch_size": 8,
    "use_cpu": True,
}
_FULL = {"use_peft": False, "dtype": "float32", "bf16": False, "optim": "adamw_torch"}
_LORA = {"use_peft": True, "dtype": "float32", "bf16": False}
_QLORA = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4"}
CPU_CASES = {
    "full, no checkpointing, accumulation 2": {**_FULL, "gradient_checkpointing": False},
    "full, checkpointing, KL to a reference model": {**_FULL, "beta": 0.1},
    "full, checkpointing, bfloat16 autocast": {**_FULL, "bf16": True},
    "full, 8-bit AdamW": {**_FULL, "optim": "adamw_8bit"},
    "LoRA, checkpointing": _LORA,
    "LoRA, no checkpointing, accumulation 1": {
        **_LORA,
        "gradient_checkpointing": False,
        "gradient_accumulation_steps": 1,
    },
    "LoRA, the half of the tokens with the highest entropy": {**_LORA, "top_entropy_quantile": 0.5},
    "full, a generation in the middle of a step": {**_FULL, "steps_per_generation": 3},
    "LoRA on bfloat16, autocast, KL": {"dtype": "bfloat16", "bf16": True, "beta": 0.04},
    "QLoRA, nf4 with double quantization": {**_QLORA, "dtype": "bfloat16", "bf16": True},
    "QLoRA, 32-bit scales, float32": {**_LORA, "load_in_4bit": True},
}


def shape_folder(folder: Path) -> Path:
    """A folder with the configuration of the small shape."""
    Qwen2Config(**SHAPE).save_pretrained(folder)
    return folder


def compare_on_cpu(case: str, model: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Peaks of each phase in bytes, predicted and recorded by torch's profiler."""
    values = {**COMMON, **CPU_CASES[case], "model_name_or_path": str(model)}
    recipe = load_recipe(RECIPES / "gsm8k.yaml", memory.as_arguments(values))
    config = memory.model_config(recipe)
    predicted = run_one_step(recipe, config, PROMPT_LENGTH, cuda=False)
    return predicted.peaks, memory.profiled_peaks(recipe, config, PROMPT_LENGTH)


def cpu_table(found: dict[str, tuple[dict, dict]]) -> str:
    """Markdown table of predicted and measured peaks, of the whole step and of each phase."""
    rows = []
    for case, (predicted, measured) in found.items():
        whole = [max(peaks.values()) for peaks in (predicted, measured)]
        phases = [f"{predicted[phase] / measured[phase]:.3f}" if phase in measured else "" for phase in memory.PHASES]
        sizes = [f"{size / 1e6:.3f}" for size in whole]
        rows.append([case, *sizes, f"**{whole[0] / whole[1]:.4f}**", *phases])
    return common.table(["step", "predicted, MB", "profiler, MB", "ratio", *memory.PHASES], rows)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        model = shape_folder(Path(temporary))
        compared = {case: compare_on_cpu(case, model) for case in CPU_CASES}
    shape = json.dumps({name: SHAPE[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")})
    text = [
        "# Memory: predicted and profiled on a CPU",
        "",
        common.machine_line(),
        "",
        cpu_table(compared),
        "",
        f"Qwen2 of a small shape ({shape}), 4 x ({PROMPT_LENGTH} + 24) tokens a micro-batch. The whole step's peak, then "
        "the ratio of each phase. Below 1 are, on a CPU only: loading (a model is made here with its head, then tied), "
        "generation of a bfloat16 base (a CPU's products pack weights) and the step of 8-bit AdamW (computed there in "
        "32 bits).",
    ]
    data = {"cpu": {case: {"predicted": a, "profiler": b} for case, (a, b) in compared.items()}}
    common.save("memory", "\n".join(text), data)
    return 0
