"""Which changes make a recipe fit into a card's memory: the smallest ones, or the largest micro-batch and completion.

>>> suggest("recipes/gsm8k.yaml", [], predict("recipes/gsm8k.yaml"), vram=3.0)[0].changes
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_math.errors import ModelError, PredictionError, RecipeError
from grpo_math.memory.predict import as_arguments, planned_recipe, predict
from grpo_math.memory.results import GIB, OVERHEAD_BYTES, PHASES, Prediction, Suggestion
from grpo_math.memory.shapes import model_config
from grpo_math.recipe import Recipe

TORCH_ADAMW = ("adamw_torch", "adamw_torch_fused")


class MemorySaving(NamedTuple):
    """A way to save memory."""

    cost: str  # what the user gives up
    phases: set[str]  # phases in which it saves memory
    levels: list[dict[str, Any]]  # overrides, the mildest first
    same_gradient: bool = False  # whether the optimizer step stays the same


def with_micro_batch(recipe: Recipe, size: int) -> dict[str, Any]:
    """Overrides for micro-batches of `size` rows that keep the rows of an optimizer step and of a generation."""
    args = recipe.training
    micro, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro * accumulation // size}
    given = recipe.values.get("steps_per_generation") or args.steps_per_generation != accumulation
    if given and not recipe.values.get("generation_batch_size"):
        changes["steps_per_generation"] = micro * args.steps_per_generation // size
    return changes


def memory_savings(recipe: Recipe) -> list[MemorySaving]:
    """The memory savings that apply to a recipe, the cheapest first."""
    from grpo_math import models

    args, model, task = recipe.training, recipe.model, recipe.task
    optimizer = getattr(args.optim, "value", str(args.optim))
    micro, parts, group = args.per_device_train_batch_size, args.steps_per_generation, args.num_generations
    heldout = task.heldout_batch_size if task.heldout_size else 0
    step = set(PHASES) - {"load"}
    tokens = step - {"optimizer"}
    name = model.model_name_or_path or ""
    adapter = model.use_peft or models.adapter_base(name) is not None
    lora = {"use_peft": True, "dtype": "bfloat16", "learning_rate": 2e-5, "optim": "adamw_torch"}
    quantized = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4"}

    def halves(number: int) -> list[int]:
        return [number >> n for n in range(1, number.bit_length()) if number % (1 << n) == 0]

    micro_batches = [with_micro_batch(recipe, size) for size in halves(micro)]
    by_rows = recipe.values.get("generation_batch_size")  # TRL accepts only one of it and steps_per_generation
    generations = [
        ({"generation_batch_size": micro * size} if by_rows else {"steps_per_generation": size})
        | ({"heldout_batch_size": micro * size} if heldout > micro * size else {})
        for size in halves(parts)
        if micro * size % group == 0
    ]
    savings = [
        MemorySaving(
            "about a third more compute",
            {"training"},
            [] if args.gradient_checkpointing else [{"gradient_checkpointing": True}],
            same_gradient=True,
        ),
        MemorySaving(
            "smaller micro-batches in the same optimizer step",
            {"training", "scoring"},
            micro_batches,
            same_gradient=True,
        ),
        MemorySaving(
            "activations go to host memory and come back, which takes time",
            {"training"},
            [] if args.activation_offloading else [{"activation_offloading": True}],
            same_gradient=True,
        ),
        MemorySaving(
            "smaller batches of held-out problems",
            {"held-out"},
            [{"heldout_batch_size": size} for size in halves(heldout)],
            same_gradient=True,
        ),
        MemorySaving(
            "more and smaller generations in a step", {"generation", "held-out"}, generations, same_gradient=True
        ),
        MemorySaving(
            "8-bit optimizer states",
            step,
            [{"optim": "adamw_8bit"}] if not adapter and optimizer in TORCH_ADAMW else [],
        ),
        MemorySaving(
            "8-bit optimizer states that may move to the host",
            step,
            [{"optim": "paged_adamw_8bit"}]
            if not adapter and optimizer in (*TORCH_ADAMW, "adamw_8bit", "adamw_bnb_8bit")
            else [],
        ),
        MemorySaving(
            "shorter completions",
            tokens,
            [{"max_completion_length": size} for size in halves(args.max_completion_length) if size >= 64],
        ),
        MemorySaving("trains a LoRA adapter instead of all weights", set(PHASES), [] if adapter else [lora]),
        MemorySaving(
            "4-bit frozen base (QLoRA)",
            set(PHASES),
            [] if model.load_in_4bit or models.is_gguf(name) else [{**({} if adapter else lora), **quantized}],
        ),
    ]
    return [saving for saving in savings if saving.levels]


def suggest(
    path: str | Path,
    argv: Sequence[str],
    prediction: Prediction,
    vram: float,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Suggestion]:
    """
    The smallest changes with which a recipe fits into `vram` GiB, each with its prediction.

    1. Every saving of [`memory_savings`] that can be enough alone is tried, at its mildest level that fits.
    2. If no saving with the same gradient is enough alone, those are combined in their order. Each goes as far as it helps
       a phase that does not fit yet.
    3. If nothing fits so far, all savings are combined.

    Args:
        path: The recipe.
        argv: Overrides from the command line.
        prediction: The prediction for the recipe as it is.
        vram: GiB of the card.
        progress: Called with the overrides that are being tried.

    Returns:
        `list[Suggestion]`: Changes that fit, the smallest first; empty when nothing fits.
    """
    recipe = planned_recipe(path, argv)
    savings = memory_savings(recipe)
    if vram * GIB <= OVERHEAD_BYTES:
        return []

    def attempt(cost: str, overrides: dict[str, Any]) -> Suggestion | None:
        progress(" ".join(as_arguments(overrides)))
        try:
            return Suggestion(cost, overrides, predict(path, argv, prediction.prompt_length, overrides))
        except (RecipeError, PredictionError, ModelError):  # not every recipe allows every change
            return None

    def combine(chosen: list[MemorySaving]) -> list[Suggestion]:
        together = Suggestion("", {}, prediction)
        for saving in chosen:
            helped = together.prediction.too_large(vram) & saving.phases
            best = together
            for level in saving.levels if helped else []:
                cost = "; ".join(filter(None, (together.cost, saving.cost)))
                tried = attempt(cost, {**together.changes, **level})
                if tried is not None and tried.prediction.peak <= best.prediction.peak:
                    best = tried
                    if not tried.prediction.too_large(vram) & helped:
                        break
            together = best
            if together.prediction.fits(vram):
                return [together]
        return []

    # The peaks of these phases are certainly smallest with every saving at its last level. Training's is not when a saving
    # begins to accumulate gradients, which then lie beside the activations
    certain = {"load", "optimizer"} | ({"training"} if recipe.training.gradient_accumulation_steps > 1 else set())
    least = attempt("", {k: v for saving in savings if saving.phases & certain for k, v in saving.levels[-1].items()})
    if least is not None and least.prediction.too_large(vram) & certain:
        return []
    alone: dict[bool, list[Suggestion]] = {True: [], False: []}
    for saving in savings:
        if prediction.too_large(vram) <= saving.phases:
            tried = (attempt(saving.cost, level) for level in saving.levels)
            alone[saving.same_gradient] += itertools.islice((t for t in tried if t and t.prediction.fits(vram)), 1)
    exact = alone[True] or combine([saving for saving in savings if saving.same_gradient])
    return [*exact, *alone[False]] or combine(savings)


def solve(
    path: str | Path,
    argv: Sequence[str],
    prompt_length: int,
    vram: float,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Suggestion | None, Suggestion | None]:
    """
    The largest micro-batch and the longest completion that fit into `vram` GiB.

    Each is searched with the recipe's own value of the other. An optimizer step keeps its rows. Completions grow in steps
    of 16 tokens, or of one token in a context of at most 256.

    Args:
        path: The recipe.
        argv: Overrides from the command line.
        prompt_length: Tokens of the longest prompt.
        vram: GiB of the card.
        progress: Called with the overrides that are being tried.

    Returns:
        Micro-batch and completion, each `None` when not even the smallest fits.
    """
    from grpo_math.models import context_length

    recipe = planned_recipe(path, argv)
    args = recipe.training
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    per_generation = args.steps_per_generation * args.per_device_train_batch_size
    sizes = [n for n in range(1, rows + 1) if rows % n == 0 and per_generation % n == 0]
    limit = context_length(model_config(recipe)) or 4096
    longest = min(limit - prompt_length, 8192)
    step = 16 if longest > 256 else 1
    lengths = range(step, longest + 1, step)

    def largest(values: Sequence[int], overrides: Callable[[int], dict], cost: str) -> Suggestion | None:
        best, low, high = None, 0, len(values) - 1
        while low <= high:
            middle = (low + high) // 2
            changes = overrides(values[middle])
            progress(" ".join(as_arguments(changes)))
            predicted = predict(path, argv, prompt_length, changes)
            if predicted.fits(vram):
                best, low = Suggestion(cost, changes, predicted), middle + 1
            else:
                high = middle - 1
        return best

    micro = largest(sizes, lambda n: with_micro_batch(recipe, n), "largest micro-batch")
    length = largest(lengths, lambda n: {"max_completion_length": n}, "longest completion")
    if micro and micro.changes["per_device_train_batch_size"] == sizes[-1]:
        micro.cost += " (all rows of an optimizer step or a generation; memory would allow more)"
    if length and length.changes["max_completion_length"] == lengths[-1]:
        length.cost += f" (limited by the model's context of {limit} tokens or by the search, not by memory)"
    return micro, length
