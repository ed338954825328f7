"""The files of a run in its folder: which they are, whose they are, and how an earlier run's make room."""

from __future__ import annotations

import os
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from grpo_math import models, report
from grpo_math.errors import RecipeError
from grpo_math.recipe import Recipe
from grpo_math.recipe.sources import DUMP_HEAD
from grpo_math.run.checkpoints import RECIPE
from grpo_math.run.heldout import AFTER, BEFORE
from grpo_math.trainer.checkpoints import CARD, checkpoints_of, is_generated_card, step_in_name

OUTPUTS = (
    report.METRICS,
    report.COMPLETIONS,
    report.CURVE,
    report.SUMMARY,
    report.LOOKS,
    report.PAGE,
    report.MEMORY,
    RECIPE,
    BEFORE,
    AFTER,
)
DAMAGED = (f"{report.METRICS}.damaged", f"{report.COMPLETIONS}.damaged")
MEASURED = (report.EVAL, report.EVAL_COMPLETIONS)  # of the model that is there
# The model or adapter and its tokenizer: an adapter left beside a full model would be loaded onto it
MODEL_NAMES = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json",
    "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "training_args.bin",
)  # fmt: skip
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
EARLIER = re.compile(r"earlier-(\d+)")


def model_files(folder: Path) -> list[Path]:
    """The files of a saved model or adapter and its tokenizer."""
    return [path for path in sorted(folder.iterdir()) if path.name in MODEL_NAMES or SHARD.fullmatch(path.name)]


def is_runs_recipe(path: Path) -> bool:
    """Whether a recipe file is one that a run wrote."""
    try:
        head = path.read_bytes()[: len(DUMP_HEAD)]
    except OSError:
        return False
    return head == DUMP_HEAD.encode() or head.startswith(b"# What ")  # as runs wrote it before


def holds_run(folder: Path) -> bool:
    """Whether a run has written into a folder: its recipe, its metrics or a checkpoint."""
    if is_runs_recipe(folder / RECIPE) or (folder / report.METRICS).is_file():
        return True
    return bool(checkpoints_of(folder))


def check_nothing_is_overwritten(recipe: Recipe) -> None:
    """
    The run's files would replace none that no run wrote: a user's recipe.yaml, or the model that is trained.

    Raises:
        RecipeError: With the file.
    """
    folder = Path(recipe.training.output_dir)
    place = f"{recipe.place('output_dir')}: output_dir: {recipe.training.output_dir}"
    name = recipe.model.model_name_or_path or ""
    for used in filter(None, (name, models.adapter_base(name))):
        if os.path.isdir(used) and os.path.realpath(used) == os.path.realpath(folder):
            raise RecipeError(f"{place} is the folder of the model that is trained, {used}; name another")
    if not folder.is_dir():
        return
    foreign = [] if holds_run(folder) else [folder / file for file in OUTPUTS if (folder / file).exists()]
    foreign += [] if holds_run(folder) else model_files(folder)
    if (folder / RECIPE).exists() and not is_runs_recipe(folder / RECIPE):
        foreign = [folder / RECIPE]
    if foreign:
        raise RecipeError(
            f"{place} holds {foreign[0].name}, which no run wrote and this one would replace; name another"
        )


def set_aside(folder: Path) -> Path | None:
    """
    Moves an earlier run's outputs into `folder/earlier-N`, so that a new run neither mixes with nor deletes them.

    Only files that a run wrote are moved, by their exact names; a README.md only where it is a trainer's model card. The
    recipe is the last: a kill on the way leaves no checkpoint without the values that it was trained with.
    """
    names = (name for name in (*OUTPUTS, *DAMAGED, *MEASURED) if name != RECIPE)
    present = [*reversed(checkpoints_of(folder)), *model_files(folder)]
    present += [folder / name for name in names if (folder / name).exists()]
    if is_generated_card(folder / CARD):
        present.append(folder / CARD)
    if (folder / RECIPE).exists():
        present.append(folder / RECIPE)
    return _moved_aside(folder, present)


def set_checkpoints_aside(folder: Path, step: int) -> Path | None:
    """Moves finished checkpoints beyond a step into `folder/earlier-N`: a run that goes on from there leaves their branch."""
    left = [path for path in checkpoints_of(folder) if step_in_name(path) > step]
    return _moved_aside(folder, [path for path in left if (path / TRAINER_STATE_NAME).is_file()])


def _moved_aside(folder: Path, paths: list[Path]) -> Path | None:
    if not paths:
        return None
    numbers = [int(found[1]) for path in folder.iterdir() if (found := EARLIER.fullmatch(path.name))]
    aside = folder / f"earlier-{1 + max(numbers, default=0)}"
    aside.mkdir()
    for path in dict.fromkeys(paths):
        path.rename(aside / path.name)
    return aside
