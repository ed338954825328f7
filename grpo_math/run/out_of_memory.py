"""Out of memory in a run: in which phase, what is saved, and how to go on with less."""

from __future__ import annotations

import shlex
import traceback

import torch
from rich.console import Console

from grpo_math.memory import as_arguments
from grpo_math.recipe import Recipe
from grpo_math.run.checkpoints import checkpoint_of, save_checkpoint
from grpo_math.run.failures import has_new_step
from grpo_math.run.prepare import Prepared

# Functions on the way to an allocation that failed -> what the run was doing. The first of this list that is there decides.
PHASE_OF = {
    "measure": "held-out",
    "_generate_single_turn": "generation",
    "_generate_and_score_completions": "scoring",
    "training_step": "training",
    "clip_grad_norm_": "optimizer",
    "step": "optimizer",
    "load_model": "load",
    "__init__": "load",
}


def phase_of(error: BaseException) -> str:
    """The phase of a run, as in `grpo-math memory`, in which an error was raised; "training" when nothing tells."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return next((phase for name, phase in PHASE_OF.items() if name in names), "training")


def report_out_of_memory(recipe: Recipe, run: Prepared | None, error: RuntimeError) -> None:
    """
    Says in which phase the memory ran out, saves a checkpoint, and names the commands that go on and that tell more.

    Args:
        recipe: Of the run.
        run: `None` where the memory ran out while it was prepared.
        error: The failed allocation. It loses its traceback, whose frames hold what the failed step took.
    """
    phase = phase_of(error)
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    console = Console(markup=False, highlight=False, soft_wrap=True, stderr=True)
    console.print(f"Out of memory in the phase {phase}: {str(error).splitlines()[0]}")
    if run is not None and not run.trainer.accelerator.is_main_process:
        return
    if run is not None and run.recorder.begun:
        recipe_words = shlex.quote(str(run.folder / "recipe.yaml"))
    else:  # until its first step is finished a run has written no recipe of its own
        given = {name: value for name, value in recipe.values.items() if name in recipe.overrides}
        given.pop("resume_from_checkpoint", None)
        recipe_words = shlex.join([str(recipe.path), *as_arguments(given)])
    resume = _say_what_is_saved(console, recipe, run)
    if resume:
        console.print("Go on with less memory (other optim, use_peft or load_in_4bit: start afresh instead):")
        console.print(f"  accelerate launch {recipe_words} {resume} [--field value ...]")
    longest = f" --prompt_length {run.longest_prompt}" if run is not None else ""
    console.print("What it needs in each phase, and the smallest changes that fit:")
    console.print(f"  grpo-math memory {recipe_words}{longest}")


def _say_what_is_saved(console: Console, recipe: Recipe, run: Prepared | None) -> str:
    """Saves a checkpoint where there is a finished step. Returns the words that resume from it, or nothing."""
    resumed_from = run.checkpoint if run is not None else checkpoint_of(recipe)
    if not has_new_step(run):
        if resumed_from is None:
            console.print("No step was finished: there is nothing to save.")
            return ""
        console.print(f"No step was finished since the resume: {resumed_from} still holds the run.")
        wanted = recipe.training.resume_from_checkpoint
        return f"--resume_from_checkpoint {'true' if wanted in (True, 'true') else shlex.quote(str(wanted))}"
    trainer = run.trainer
    if trainer.accelerator.num_processes > 1:  # a checkpoint takes all processes, and the others may go on
        console.print(f"Saved checkpoints are in {run.folder} (every {trainer.args.save_steps} steps).")
    else:
        trainer.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        saved = save_checkpoint(trainer, run.folder)
        console.print(f"Checkpoint of step {trainer.state.global_step}: {saved}")
    return "--resume_from_checkpoint true"
