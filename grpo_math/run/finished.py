"""A run that is resumed when it is finished already: nothing is trained, what is missing of its results is made."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

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
    """The trainer as at the end of the training: weights and state of the checkpoint, no optimizer."""
    trainer = run.trainer
    if isinstance(trainer.model, PeftModel):
        trainer.model.load_adapter(run.checkpoint, "default", is_trainable=True)
    else:
        trainer._load_from_checkpoint(run.checkpoint)
    trainer.state = TrainerState.load_from_json(str(Path(run.checkpoint) / TRAINER_STATE_NAME))
    run.recorder.first_step = trainer.state.global_step
