"""A run before its first step: check, load, check what was loaded, build the trainer, check it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from trl import get_peft_config

from grpo_math import models
from grpo_math.errors import RecipeError
from grpo_math.evaluation import Scorers
from grpo_math.recipe import Recipe
from grpo_math.run import checks
from grpo_math.run.along import MeasuredTrainer
from grpo_math.run.callbacks import RunRecorder, StopOnSignal
from grpo_math.run.checkpoints import checkpoint_of
from grpo_math.run.progress import progress_callback
from grpo_math.run.rewards import check_reward_columns, check_signatures, named
from grpo_math.run.watchdog import Watchdog
from grpo_math.tasks import Problems, get_task, load_problems, resolve_rewards, strict_and_lenient
from grpo_math.trainer import GRPOMathTrainer


@dataclass
class Prepared:
    """
    Everything that a run needs, loaded and checked.

    Attributes:
        recipe: As read.
        folder: `output_dir`.
        checkpoint: To resume from, if any.
        problems, tokenizer: Of the task and the model.
        scorers: What evaluation counts as right.
        longest_prompt: In tokens.
        unknown_share: Share of the prompts' tokens that stand for words the tokenizer does not know.
        trainer, recorder, interrupt, watchdog: The trainer and its callbacks.
        aside: Folder with an earlier run's files, once they have been moved.
    """

    recipe: Recipe
    folder: Path
    checkpoint: str | None
    problems: Problems
    tokenizer: PreTrainedTokenizerBase
    scorers: Scorers
    longest_prompt: int
    unknown_share: float
    trainer: GRPOMathTrainer
    recorder: RunRecorder
    interrupt: StopOnSignal
    watchdog: Watchdog
    aside: Path | None = None

    @property
    def resumed_folder(self) -> Path | None:
        """The folder of the run that is resumed, which may be another than this run's."""
        return Path(self.checkpoint).parent if self.checkpoint else None

    @property
    def accuracy_reward(self) -> Callable:
        return self.scorers.accuracy


def prepare(recipe: Recipe, training: bool = True) -> Prepared:
    """
    Checks and loads a recipe, and builds its trainer.

    Args:
        recipe: As read.
        training: Whether it will be trained, and not only measured.

    Raises:
        RecipeError, TaskError, ModelError: for whatever is wrong with the recipe, the data or the model.
    """
    folder = Path(recipe.training.output_dir)

    # Check before loading
    accuracy = get_task(recipe.task.task).ACCURACY
    if not training:  # the recipe's own reward functions are code, and are not needed
        recipe.training.reward_weights = None
    rewards = resolve_rewards(recipe.task.rewards if training else [accuracy], recipe.task)
    scorers = Scorers(
        *resolve_rewards([accuracy], recipe.task), *strict_and_lenient(accuracy, recipe.task.prompt_style)
    )
    checks.check_weights(recipe, rewards)
    checks.check_looks(recipe)
    check_signatures(recipe, rewards)
    checks.check_reference(recipe)
    checkpoint = checkpoint_of(recipe)
    if training:
        checks.check_reporters(recipe)

    # Load rows and tokenizer, check them
    tokenizer, config, problems = _load_rows(recipe)
    if training:
        checks.check_rows(recipe, problems)
        check_reward_columns(recipe, rewards, problems)
    checks.check_template(recipe, problems, tokenizer)
    longest_prompt, unknown_share = checks.check_lengths(recipe, problems, tokenizer, config)

    # Load the model, check it
    model = _load_model(recipe)
    if not isinstance(model, PeftModel):
        checks.check_target_modules(recipe, model)

    # Build the trainer, check it
    recorder, interrupt, watchdog = (
        RunRecorder(folder, problems.blind and problems.blind[0]),
        StopOnSignal(),
        Watchdog(),
    )
    # TRL makes the folder; who only measures has nothing to put into it
    with checks.no_folder_left(folder, only_after_errors=training):
        trainer = _build_trainer(recipe, model, tokenizer, problems, rewards, [recorder, interrupt, watchdog])
        if training:
            checks.check_start(recipe, trainer)
            checks.check_trained_precision(recipe, trainer)
    recorder.trainer = interrupt.trainer = watchdog.trainer = trainer
    return Prepared(
        recipe,
        folder,
        checkpoint,
        problems,
        tokenizer,
        scorers,
        longest_prompt,
        unknown_share,
        trainer,
        recorder,
        interrupt,
        watchdog,
    )


def _load_rows(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, Any, Problems]:
    args = recipe.training
    # One process fills the caches (built-in model, data set), the others read them.
    with args.main_process_first(desc="model and rows", local=False):
        tokenizer = models.load_tokenizer(recipe.model, args.trust_remote_code)
        config = models.load_config(recipe.model, args.trust_remote_code)
        return tokenizer, config, load_problems(recipe.task, tokenizer)


def _load_model(recipe: Recipe) -> PreTrainedModel | PeftModel:
    args = recipe.training
    try:
        return models.load_model(
            recipe.model, recipe.model.dtype, args.trust_remote_code, **(args.model_init_kwargs or {})
        )
    except (ImportError, TypeError) as error:  # a kernel or an argument that does not exist
        names = [name for name in ("model_init_kwargs", "attn_implementation") if name in recipe.values]
        settings = ", ".join(f"{name}: {recipe.values[name]}" for name in names)
        raise RecipeError(
            f"{recipe.place(*names)}: {recipe.model.model_name_or_path} cannot be loaded"
            f"{f' with {settings}' if settings else ''}: {' '.join(str(error).split())}"
        ) from error


def _build_trainer(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Problems,
    rewards: list[Callable],
    callbacks: list,
) -> GRPOMathTrainer:
    args = recipe.training
    saved_adapter = isinstance(model, PeftModel)  # it is trained further
    loaded = models.adapter_weights(model)
    # The trainer gets the model itself; for a reference of its own TRL still needs to know the revision.
    args.model_init_kwargs = (
        {"revision": recipe.model.model_revision} if args.beta and not recipe.model.use_peft else None
    )
    rewards = [named(reward) for reward in rewards]
    try:
        trainer = MeasuredTrainer(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=Dataset.from_list(problems.train),
            eval_dataset=Dataset.from_list(problems.heldout) if args.eval_strategy != "no" else None,
            processing_class=tokenizer,
            peft_config=None if saved_adapter else get_peft_config(recipe.model),
            callbacks=callbacks,
        )
    except (ValueError, ImportError, OSError) as error:  # what contradicts this model or machine
        place = recipe.place(*re.findall(r"\w+", str(error)))
        raise RecipeError(f"{place}: {' '.join(str(error).split())}") from error
    for reward in rewards:
        reward.accelerator = trainer.accelerator
    if isinstance(trainer.model, PeftModel):
        models.float32_adapter(trainer.model, loaded)
    if not args.disable_tqdm:  # a few figures beside the bar; all of them are in metrics.jsonl
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(progress_callback())
    trainer.remove_callback(PrinterCallback)
    return trainer


def end_trackers(trainer: GRPOMathTrainer) -> None:
    """Finishes the trackers and the process group."""
    if hasattr(trainer, "end"):  # transformers >= 5.18
        trainer.end()
    elif torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
