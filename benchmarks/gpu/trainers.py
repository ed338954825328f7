"""Models, rows and trainers of the gradient and throughput parts, ours and stock TRL's alike."""

import random
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig
from trl import get_peft_config

from benchmarks import common
from benchmarks.gpu.configurations import REAL_SIZES, TINY_SIZES, Sizes
from benchmarks.plain import RECIPES
from grpo_math import models
from grpo_math.memory import GIB
from grpo_math.memory.model import build_model
from grpo_math.memory.step import stand_in_tokenizer
from grpo_math.recipe import load_recipe


def cap_allocator(job: dict) -> None:
    """Limits what torch's allocator may take of the card to the job's `cap` in GiB."""
    if job["device"] == "cuda" and job["cap"]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(job["cap"] * GIB / total, 1.0))


def job_sizes(job: dict) -> Sizes:
    """Tiny or real sizes."""
    return TINY_SIZES if job["tiny"] else REAL_SIZES


def job_recipe(job: dict) -> Any:
    """gsm8k.yaml, for its adapter and for a precision that the device supports."""
    return load_recipe(RECIPES / "gsm8k.yaml", ["--use_cpu", "true"] if job["device"] == "cpu" else [])


def policy(sizes: Sizes, recipe: Any, device: str) -> Any:
    """A model with the recipe's adapter, the same random weights at every call, and a float32 adapter that is not zero."""
    torch.manual_seed(0)
    shape = dict(sizes.shape)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    dtype = getattr(torch, recipe.model.dtype)
    model = get_peft_model(build_model(recipe, config, dtype, torch.device(device)), get_peft_config(recipe.model))
    models.float32_adapter(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # a zero matrix, as at the start of training, passes no gradient on to lora_A
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def word_tokenizer() -> Any:
    """The stand-in tokenizer with a hundred more words, so that prompts differ."""
    tokenizer = stand_in_tokenizer()
    tokenizer.add_tokens([f"w{i}" for i in range(100)])
    return tokenizer


def prompt_rows(sizes: Sizes, steps: int) -> list[dict]:
    """A prompt of `sizes.prompt` random words for each group of each step; every second one is marked dead."""
    draw = random.Random(0)
    words = [" ".join(f"w{draw.randrange(100)}" for _ in range(sizes.prompt)) for _ in range(steps * sizes.groups)]
    return [{"prompt": text, "dead": bool(i % 2)} for i, text in enumerate(words)]


def half_dead_by_ids(completions, prompts, dead, completion_ids, **columns) -> list[float]:
    """`common.half_dead_reward` on token ids, since random weights write no words."""
    texts = [" ".join(map(str, ids)) for ids in completion_ids]
    return common.half_dead_reward(texts, prompts, dead)


def make_trainer(
    ours: bool, job: dict, recipe: Any, model: Any, steps: int, out: Path, callback: Any, **options
) -> Any:
    """Our trainer or TRL's with the job's sizes; `options` are fields of its configuration."""
    sizes = job_sizes(job)
    values = dict(
        per_device_train_batch_size=sizes.micro,
        gradient_accumulation_steps=sizes.rows // sizes.micro,
        num_generations=sizes.generations,
        max_completion_length=sizes.completion,
        max_steps=steps,
        loss_type="dapo",
        beta=0.0,
        learning_rate=2e-5,
        gradient_checkpointing=True,
        shuffle_dataset=False,
        use_cpu=job["device"] == "cpu",
        bf16=recipe.training.bf16,
        fp16=recipe.training.fp16,
        seed=0,
    )
    rows = prompt_rows(sizes, steps)
    return common.make_trainer(
        ours, model, half_dead_by_ids, rows, word_tokenizer(), out, [callback], **(values | options)
    )


def fixed_completions(sizes: Sizes) -> list[list[int]]:
    """Token ids of a completion for each row of a step, from a quarter of the full length to all of it, with an end."""
    draw, vocabulary = random.Random(1), sizes.shape["vocab_size"]
    lengths = [draw.randint(sizes.completion // 4, sizes.completion) for _ in range(sizes.rows)]
    return [[draw.randrange(3, vocabulary) for _ in range(length - 1)] + [1] for length in lengths]
