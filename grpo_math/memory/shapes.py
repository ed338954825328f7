"""Shapes that need no download: the architectures of published models and the longest prompt of each task.

>>> SHAPES["Qwen/Qwen2.5-0.5B"]["num_hidden_layers"]
24
"""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import Any

from grpo_math.errors import ModelError, PredictionError
from grpo_math.recipe import Recipe

logger = logging.getLogger(__name__)

# Published shapes (config.json of the model cards at https://huggingface.co/Qwen and .../HuggingFaceTB)
_QWEN = dict(
    model_type="qwen2",
    dtype="bfloat16",
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
)
_SMOL = dict(
    model_type="llama",
    dtype="bfloat16",
    vocab_size=49152,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
)


def _shape(family: dict, hidden: int, intermediate: int, layers: int, heads: int, **other) -> dict:
    return {
        **family,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **other,
    }


SHAPES = {
    "Qwen/Qwen2.5-0.5B": _shape(_QWEN, 896, 4864, 24, 14),
    "Qwen/Qwen2.5-1.5B": _shape(_QWEN, 1536, 8960, 28, 12),
    "Qwen/Qwen2.5-3B": _shape(_QWEN, 2048, 11008, 36, 16),
    "Qwen/Qwen2.5-7B": _shape(
        _QWEN, 3584, 18944, 28, 28, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False
    ),
    "HuggingFaceTB/SmolLM2-135M": _shape(_SMOL, 576, 1536, 30, 9, num_key_value_heads=3),
    "HuggingFaceTB/SmolLM2-360M": _shape(_SMOL, 960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-1.7B": _shape(_SMOL, 2048, 8192, 24, 32, num_key_value_heads=32),
}

# Tokens of the longest prompt without worked examples, in the longest prompt style and Qwen2.5's tokenizer. Counted over all
# 8,792 problems of GSM8K and over 2,000 generated Countdown problems of three and four numbers.
LONGEST_PROMPT = {"gsm8k": 288, "countdown": 136}


def model_config(recipe: Recipe) -> Any:
    """
    The configuration of the recipe's model, from a local folder or file, else from [`SHAPES`], else from the hub.

    Raises:
        ModelError: when the model is unknown in all three places, with the nearest name in `SHAPES`.
    """
    from transformers import AutoConfig

    from grpo_math import models

    name = recipe.model.model_name_or_path or ""
    shape = SHAPES.get(name.removesuffix("-Instruct"))
    if shape is not None and not Path(name).expanduser().exists():
        shape = dict(shape)
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    try:
        return models.load_config(recipe.model, recipe.training.trust_remote_code)
    except ModelError as error:
        near = difflib.get_close_matches(name, [*SHAPES, *(f"{known}-Instruct" for known in SHAPES)], n=1)
        if not near:
            raise
        raise ModelError(f"{error} The shape is known without the hub if you mean {near[0]}.") from error


def longest_prompt(recipe: Recipe) -> tuple[int, str]:
    """
    Tokens of the longest prompt and the source of that number.

    They are counted when tokenizer and rows are on this machine. Otherwise they are the published rows' longest.

    Raises:
        PredictionError: when neither is known; `--prompt_length` is the fix.
    """
    from grpo_math import models
    from grpo_math.evaluation import prompt_ids
    from grpo_math.memory.patches import no_data_download
    from grpo_math.tasks import load_problems

    name, task = models.resolve_name(recipe.model.model_name_or_path or ""), recipe.task
    path = Path(models.adapter_base(name) or name).expanduser()
    if path.is_file() or any((path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        try:
            # A prediction must not start a download
            with no_data_download():
                tokenizer = models.load_tokenizer(recipe.model)
                rows = load_problems(task, tokenizer)
            ids = prompt_ids(tokenizer, [row["prompt"] for row in rows.train + rows.heldout])
            return max(map(len, ids)), "counted"
        except (ValueError, OSError) as error:
            logger.info("Using the published longest prompt, because counting failed: %s", error)
    if task.fewshot or task.task not in LONGEST_PROMPT:
        raise PredictionError(
            f"the longest prompt is unknown without the rows and the tokenizer of {name} "
            f"(task: {task.task}, fewshot: {task.fewshot}). Give --prompt_length TOKENS."
        )
    return LONGEST_PROMPT[task.task], f"the longest of {task.task}"
