"""The built-in model `builtin/countdown-tiny`: a Llama of about 0.1 M parameters over a vocabulary of words.

It is made on first use, in some ten seconds on one core: random weights, then a warm-up on supervised lines whose format
is right and whose value is mostly wrong. GRPO then has to learn which operator the target asks for.

>>> folder = tiny_model_folder()
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from grpo_math.errors import ModelError
from grpo_math.tasks import countdown
from grpo_math.tasks.countdown_problems import CountdownConfig, solve

BUILTIN_TINY = "builtin/countdown-tiny"

# Two-number Countdown over a vocabulary of words: each operator equally often, exactly one of them right.
TINY_TASK = dict(
    task="countdown",
    dataset_path="generated",
    prompt_style="compact",
    countdown_operands=[2],
    countdown_min=1,
    countdown_max=50,
    countdown_operators="+-*",
    countdown_target_min=0,
    countdown_target_max=199,
    train_size=2000,
    countdown_unique=True,
    countdown_balance="classes",
)
# Llama and not Qwen2: transformers loads a tokenizer of its own for Qwen2, whatever the folder says.
TINY_SHAPE = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    attention_bias=True,
)
TINY_WARMUP = dict(steps=350, batch_size=64, learning_rate=3e-3, right_share=0.3, seed=0)
_TINY_VERSION = 4  # to be raised with any change to how the model is made: caches are kept by it


def tiny_task_config(**overrides) -> CountdownConfig:
    """The task settings that the tiny model was made for."""
    return CountdownConfig(**{**TINY_TASK, **overrides})


def cache_folder() -> Path:
    """Where built-in models are kept: `GRPO_MATH_CACHE`, else `~/.cache/grpo_math`."""
    return Path(os.environ.get("GRPO_MATH_CACHE") or Path.home() / ".cache" / "grpo_math")


def tiny_model_folder() -> Path:
    """Folder of `builtin/countdown-tiny`, made on first use (about ten seconds on one core) and cached.

    The folder's name holds a hash of everything the model is made from, and it appears by an atomic rename, so several
    processes may ask at once and a stopped one leaves nothing half-made.
    """
    recipe = json.dumps([_TINY_VERSION, TINY_TASK, TINY_SHAPE, TINY_WARMUP], sort_keys=True)
    folder = cache_folder() / f"countdown-tiny-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not (folder / "config.json").is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(dir=folder.parent).cleanup()
        except OSError as error:
            raise ModelError(
                f"{BUILTIN_TINY} cannot be kept in {folder.parent} ({error.strerror}): set GRPO_MATH_CACHE to a folder that "
                "can be written"
            ) from error
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            target = Path(making) / "model"
            print("Making builtin/countdown-tiny (once, some ten seconds) ...", file=sys.stderr, flush=True)
            model, tokenizer = make_tiny_model()
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
            try:
                os.replace(target, folder)
            except OSError:
                if not (folder / "config.json").is_file():  # not merely another process that was first
                    raise
    return folder


def word_tokenizer(words: list[str], unk_token: str = "<unk>", **settings) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are `words`, in their order; they hold `<pad>`, `<eos>` and what stands for other words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token=unk_token,
        padding_side="left",
        **settings,
    )


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: numbers, operators, parentheses, the answer tags, special tokens."""
    words = ["<pad>", "<eos>", "<unk>", "<answer>", "</answer>", ":", "=", "+", "-", "*", "/", "(", ")"]
    words += [str(n) for n in range(TINY_TASK["countdown_target_max"] + 1)]
    return word_tokenizer(words, model_max_length=TINY_SHAPE["max_position_embeddings"])


def make_tiny_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build the tiny model and warm it up by supervised lines: the format right, the value mostly wrong.

    The lines are generated problems with an answer in the right format; `right_share` of them carry the right
    expression, the rest a random one. What GRPO then has to learn is which operator the target asks for.
    """
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **TINY_SHAPE,
    )
    rng = random.Random(TINY_WARMUP["seed"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_WARMUP["seed"])
        model = LlamaForCausalLM(config).float()
        _embed_numbers(model, tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=TINY_WARMUP["learning_rate"])
        # Problems from the generator's training side only: no held-out problem is ever shown.
        rows, _ = countdown.load_rows(tiny_task_config(heldout_size=0))
        for _ in range(TINY_WARMUP["steps"]):
            lines = [_warmup_line(rng.choice(rows), rng) for _ in range(TINY_WARMUP["batch_size"])]
            prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in lines]
            batch = tokenizer([f"{p} {c} <eos>" for p, c in lines], return_tensors="pt", padding=True)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            for i, prompt in enumerate(prompts):
                start = int((batch["attention_mask"][i] == 0).sum())
                labels[i, start : start + len(prompt)] = -100  # only the completion is learnt
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


@torch.no_grad()
def _embed_numbers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Start the number words at sinusoids of their value (periods from 4 to 1,600, as of positions in Vaswani et al. 2017,
    arXiv 1706.03762, section 3.5), so that near numbers are alike and their order need not be learnt word by word."""
    weight = model.get_input_embeddings().weight  # (V, H)
    numbers = {int(word): i for word, i in tokenizer.get_vocab().items() if word.isdecimal()}
    values = torch.tensor(list(numbers), dtype=torch.float32)  # (N,)
    periods = torch.logspace(math.log10(4), math.log10(1600), weight.shape[1] // 2)  # (H/2,)
    angles = 2 * math.pi * values[:, None] / periods  # (N, H/2)
    scale = model.config.initializer_range * math.sqrt(2)  # the standard deviation of the other words
    weight[list(numbers.values())] = scale * torch.cat([angles.sin(), angles.cos()], dim=1)


def _warmup_line(row: dict, rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(row["nums"], 2)
    if rng.random() < TINY_WARMUP["right_share"]:
        expression = solve(row["nums"], row["target"], TINY_TASK["countdown_operators"])
    else:
        expression = f"{a} {rng.choice(TINY_TASK['countdown_operators'])} {b}"
    return countdown.compact_text(row), f"<answer> {expression} </answer>"
