"""What a checkpoint holds beside TRL's files, and the order in which it is written: `trainer_state.json` comes last.

A checkpoint with a readable `trainer_state.json` is therefore one whose saving came to its end.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

CARD = "README.md"
CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# Among the `stateful_callbacks` of `trainer_state.json`: the names of the checkpoint's own files and, as far as the options
# are in use, the adapted beta and the place among the fresh prompts. A checkpoint that has lost it has lost TRL's state.
OWN_STATE = "GRPOMathTrainer"


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, whole or not, the newest first."""
    found = [path for path in folder.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=step_in_name, reverse=True)


def step_in_name(path: Path) -> int:
    return int(CHECKPOINT.fullmatch(path.name)[1])


def is_generated_card(path: Path) -> bool:
    """Whether a README.md is a model card that a trainer wrote: its metadata name TRL."""
    try:
        head = path.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0]
    except OSError:
        return False
    return head.startswith("---") and "\n- trl" in head


def state_of(trainer: Any) -> dict[str, Any]:
    """What the options need to go on, beside TRL's state; empty where none of them keeps any."""
    state = {}
    if trainer._variant.kl_target is not None:
        state["beta"] = trainer.beta
    if trainer._dynamic_sampling.rounds:
        state["fresh_prompts"] = trainer._dynamic_sampling.state_dict()
    return state


def generation_file(rank: int) -> str:
    """The file with a process's generation batch, in checkpoints between two generations."""
    return f"generation_{rank}.pt"


def is_between_generations(args: Any, micro_steps: int) -> bool:
    """
    Whether a generation batch is still in use after so many micro-batches: TRL generates for `steps_per_generation` of them,
    `num_iterations` times over, and that may be more than the `gradient_accumulation_steps` of one optimizer step.
    """
    return micro_steps % (args.steps_per_generation * args.num_iterations) != 0


def keeps_generation(trainer: Any) -> bool:
    """
    Whether the generation batch in use is the one that the last finished optimizer step has left in use: out of memory ends
    a run within the next step, which may have generated anew.
    """
    finished, period = trainer._finished_micro_steps, trainer.args.steps_per_generation * trainer.args.num_iterations
    alike = trainer._buffered_inputs is not None and trainer._step // period == finished // period
    return alike and is_between_generations(trainer.args, finished)


def division_of(args: Any) -> list[int]:
    """What decides which rows a micro-batch of a generation batch holds, and when it is used."""
    return [
        args.gradient_accumulation_steps,
        args.steps_per_generation,
        args.num_iterations,
        args.per_device_train_batch_size,
        args.world_size,
    ]


def save_generation(trainer: Any, folder: Path) -> None:
    """Keeps the generation batch in use, of which TRL's checkpoint knows nothing; each process calls it."""
    path = folder / generation_file(trainer.args.process_index)
    if not keeps_generation(trainer):
        path.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"step": trainer._finished_micro_steps, "batches": trainer._buffered_inputs}
    torch.save({**kept, "division": division_of(trainer.args)}, path)


def load_generation(trainer: Any, folder: Path) -> None:
    """Goes on with the generation batch that `save_generation` has kept, where the run still divides it alike."""
    path = folder / generation_file(trainer.args.process_index)
    if not path.exists():
        return
    kept = torch.load(path, map_location=trainer.accelerator.device, weights_only=True)
    if kept.get("division") == division_of(trainer.args):
        trainer._step, trainer._buffered_inputs = kept["step"], kept["batches"]


def unlogged_file(rank: int) -> str:
    """The file with a process's metrics since the last log, in checkpoints between two logs."""
    return f"unlogged_{rank}.pt"


class UnloggedSteps(TrainerCallback):
    """
    The steps since the last log, of which TRL's checkpoint knows nothing: a resumed run logs the mean over all of them.

    Args:
        trainer ([`GRPOMathTrainer`]).
    """

    COLUMNS = ("prompt", "completion", "advantages")

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.counts: dict[str, int] = {}  # values of each metric, and their loss, at the end of the last finished step
        self.loss: torch.Tensor | None = None
        self.resumed_from: Path | None = None

    def note(self) -> None:
        """Called at the end of each optimizer step: out of memory ends a run within the next one."""
        self.counts = {name: len(values) for name, values in self.trainer._metrics["train"].items()}
        self.loss = self.trainer._tr_loss.clone()

    def are_there(self) -> bool:
        return self.trainer.state.global_step > self.trainer._globalstep_last_logged

    def save(self, folder: Path) -> None:
        """Keeps them beside TRL's files; each process calls it."""
        trainer = self.trainer
        path = folder / unlogged_file(trainer.args.process_index)
        if not self.are_there():
            path.unlink(missing_ok=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        metrics = trainer._metrics["train"]
        texts = {name: list(trainer._logs[name]) for name in self.COLUMNS}
        texts["rewards"] = {name: list(values) for name, values in trainer._logs["rewards"].items()}
        kept = {
            "last_logged": trainer._globalstep_last_logged,
            "loss": self.loss,
            "metrics": {name: metrics[name][:count] for name, count in self.counts.items()},
            "logs": texts,
        }
        torch.save(kept, path)

    def on_train_begin(self, args, state, control, **kwargs):
        folder, self.resumed_from = self.resumed_from, None
        path = folder and folder / unlogged_file(args.process_index)
        if path is None or not path.exists():
            return
        trainer = self.trainer
        kept = torch.load(path, map_location=trainer.accelerator.device, weights_only=True)
        trainer._globalstep_last_logged, trainer._tr_loss = kept["last_logged"], kept["loss"]
        trainer._metrics["train"].update(kept["metrics"])
        for name in self.COLUMNS:
            trainer._logs[name].extend(kept["logs"][name])
        for name, values in kept["logs"]["rewards"].items():
            trainer._logs["rewards"][name].extend(values)


def begin_checkpoint(trainer: Any, folder: Path) -> None:
    """
    The checkpoint's own files, before TRL writes its own; an earlier checkpoint of the same step counts no more as finished.

    Args:
        trainer ([`GRPOMathTrainer`]).
        folder (`Path`): Of the checkpoint.
    """
    if trainer.args.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        kinds = [generation_file] * keeps_generation(trainer) + [unlogged_file] * trainer._unlogged.are_there()
        files = [name(rank) for name in kinds for rank in range(trainer.args.world_size)]
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):  # one that is new since the resume: TRL's saving expects an entry
                trainer.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        trainer.state.stateful_callbacks[OWN_STATE] = {"files": files, **state_of(trainer)}
    save_generation(trainer, folder)
    trainer._unlogged.save(folder)


def own_state(folder: Path) -> dict[str, Any]:
    """What `begin_checkpoint` has left in `trainer_state.json`; empty for a checkpoint of TRL's own trainer, or a torn one."""
    try:
        found = json.loads((folder / TRAINER_STATE_NAME).read_bytes())["stateful_callbacks"][OWN_STATE]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def load_state(trainer: Any, folder: Path) -> None:
    """Restores what `begin_checkpoint` has kept, as far as the trainer's options still need it."""
    load_generation(trainer, folder)
    trainer._unlogged.resumed_from = folder
    state = own_state(folder)
    if trainer._variant.kl_target is not None and "beta" in state:
        trainer.beta = state["beta"]
    if trainer._dynamic_sampling.rounds and "fresh_prompts" in state:
        trainer._dynamic_sampling.load_state_dict(state["fresh_prompts"])


@contextlib.contextmanager
def none_deleted(args: Any) -> Iterator[None]:
    """Inside the context transformers deletes no checkpoint: by age it takes every folder `checkpoint-*` for one."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit


def delete_oldest(trainer: Any, saved: Path) -> None:
    """
    Deletes the oldest checkpoints beyond `save_total_limit`, never the best one.

    Args:
        trainer ([`GRPOMathTrainer`]).
        saved (`Path`): The checkpoint that stays whatever its age.
    """
    limit = trainer.args.save_total_limit
    if not limit or limit < 0:
        return
    found = checkpoints_of(saved.parent)[::-1]
    # Steps that the training has not reached are of a branch that it has left
    found.sort(key=lambda path: step_in_name(path) <= trainer.state.global_step)
    best = trainer.state.best_model_checkpoint
    kept = {saved.name} if best is None else {saved.name, Path(best).name}
    others = [path for path in found if path.name not in kept]
    for path in others[: max(0, len(found) - max(limit, len(kept)))]:
        shutil.rmtree(path, ignore_errors=True)
