"""A model that a run has left behind, with its recipe: loaded again, asked, scored.

>>> saved = open_run(Path("outputs/gsm8k"))
>>> saved.complete([saved.problems.heldout[0]["prompt"]], greedy=True)
['<think>...</think>\\n<answer>18</answer>']
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from grpo_math import models
from grpo_math.errors import RecipeError
from grpo_math.evaluation import generate, prompt_ids, sampling_of
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.tasks import Problems, get_task, load_problems, resolve_rewards
from grpo_math.tasks.base import PLAIN_STOP, build_prompt

RECIPE = "recipe.yaml"


class Score(NamedTuple):
    """What the task's accuracy reward says of one completion: its value, the answer that it found, and the outcome."""

    value: float | None
    answer: str | None
    status: str | None


def recipe_file(folder: Path) -> Path:
    """The recipe of a run's folder or, of a checkpoint's, of the folder above.

    Raises:
        RecipeError: where there is none.
    """
    for place in (folder, folder.absolute().parent):
        if folder.is_dir() and (place / RECIPE).is_file():
            return place / RECIPE
    reason = "holds no recipe.yaml" if folder.is_dir() else "is not a folder"
    raise RecipeError(f"{folder} {reason}: name the output_dir of a run, or a checkpoint inside it")


@dataclass
class SavedRun:
    """
    A run's model, ready to generate, and what it was trained on.

    Attributes:
        recipe: Of the run, with the saved model in place of the one that it began from.
        tokenizer, model: As saved; the model on the recipe's device.
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    model: Any

    @functools.cached_property
    def problems(self) -> Problems:
        """The run's problems, read when first asked for."""
        return load_problems(self.recipe.task, self.tokenizer)

    def prompt_of(self, problem: str) -> str | list[dict]:
        """A problem of one's own in the recipe's prompt style, without worked examples."""
        task, style = get_task(self.recipe.task.task), self.recipe.task.prompt_style
        return build_prompt(style, problem, task.ANSWER_NOTE, (), self.tokenizer)

    def complete(self, prompts: Sequence[str | list[dict]], greedy: bool = False) -> list[str]:
        """One completion of each prompt, sampled as in training or greedy."""
        args = self.recipe.training
        sampling = {**sampling_of(args), "eos_token_id": end_tokens(self.model, self.tokenizer)}
        if greedy:
            sampling |= dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
        plain = self.recipe.task.prompt_style == "plain"
        with torch.autocast(args.device.type, torch.float16 if args.fp16 else torch.bfloat16, args.bf16 or args.fp16):
            return generate(
                self.model,
                self.tokenizer,
                prompt_ids(self.tokenizer, prompts, args.chat_template_kwargs),
                self.recipe.task.heldout_batch_size,
                stop_strings=[PLAIN_STOP] if plain else [],
                max_new_tokens=args.max_completion_length,
                do_sample=not greedy,
                **sampling,
            )

    def score(self, row: dict, completion: str) -> Score:
        """The accuracy reward of a completion of a row's prompt."""
        (reward,) = resolve_rewards([get_task(self.recipe.task.task).ACCURACY], self.recipe.task)
        shaped = [{"role": "assistant", "content": completion}] if is_conversational(row) else completion
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        logged: dict[str, list] = {}
        (value,) = reward(completions=[shaped], prompts=[row["prompt"]], log_extra=logged.__setitem__, **columns)
        found = {name.rsplit("_", 1)[-1]: values[0] for name, values in logged.items()}
        return Score(value, found.get("answer"), found.get("status"))


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's own and all that the model declares, as in TRL's trainer."""
    declared = model.generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else declared
    return list(dict.fromkeys([tokenizer.eos_token_id, *declared]))


def open_run(folder: Path) -> SavedRun:
    """Loads what a run has saved: a model or an adapter on its base, with the recipe's precision.

    Raises:
        RecipeError, ModelError: where the folder holds no recipe, no model, or one whose base is gone.
    """
    recipe = load_recipe(recipe_file(folder))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, model_name_or_path=str(folder)))
    tokenizer = models.load_tokenizer(recipe.model, recipe.training.trust_remote_code)
    model = models.load_model(
        recipe.model,
        recipe.model.dtype,
        recipe.training.trust_remote_code,
        **(recipe.training.model_init_kwargs or {}),
    )
    return SavedRun(recipe, tokenizer, model.to(recipe.training.device).eval())
