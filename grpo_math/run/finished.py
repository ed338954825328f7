"""A run that is resumed when it is finished already: nothing is trained, what is missing of its results is made."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from tqdm.auto import tqdm
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from grpo_math import report
from grpo_math.run.checkpoints import damage_of_weights, step_of
from grpo_math.run.heldout import AFTER
from grpo_math.run.prepare import Prepared
from grpo_math.trainer import GRPOMathTrainer


def total_steps(trainer: GRPOMathTrainer) -> int:
    """The optimizer steps of the whole training, from `max_steps` or from the epochs."""
    args = trainer.args
    return (
        args.max_steps
        if args.max_steps > 0
        else trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    )


def finished_step(run: Prepared) -> int | None:
    """The step of the checkpoint that is resumed from, if it has no step of the recipe left; else None."""
    step = step_of(run.checkpoint) if run.checkpoint else None
    return step if step is not None and step >= total_steps(run.trainer) else None


def nothing_missing(folder: Path, step: int) -> bool:
    """Whether the folder of a run that is finished at `step` holds its model, its summary and its last measurement."""
    try:
        summary = json.loads((folder / report.SUMMARY).read_bytes())
        measured = summary["accuracy_after"] is None or json.loads((folder / AFTER).read_bytes())["records"]
        steps = summary["steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return bool(measured) and steps == step and damage_of_weights(folder) is None


def load_finished(run: Prepared) -> None:
    """The trainer as at the end of the training: its state, and the last or the best weights, but no optimizer."""
    trainer = run.trainer
    trainer.state = TrainerState.load_from_json(str(Path(run.checkpoint) / TRAINER_STATE_NAME))
    weights = str(_best_checkpoint(run) or run.checkpoint)
    if isinstance(trainer.model, PeftModel):
        trainer.model.load_adapter(weights, "default", is_trainable=True)
    else:
        trainer._load_from_checkpoint(weights)
    run.recorder.first_step = trainer.state.global_step


def _best_checkpoint(run: Prepared) -> Path | None:
    """The checkpoint whose weights the training ended with under `load_best_model_at_end`, as far as it is still there."""
    step = run.trainer.state.best_global_step
    if not run.trainer.args.load_best_model_at_end or not step:
        return None
    best = Path(run.checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{step}")  # not its stored path: folders are moved
    if best.is_dir() and damage_of_weights(best) is None:
        return best
    if run.trainer.accelerator.is_main_process:
        tqdm.write(f"The best checkpoint, {best}, is not there whole: the last one's weights are taken.")
    return None
