"""What a checkpoint holds beside TRL's files, and the order in which it is written: `trainer_state.json` comes last.

A checkpoint with a readable `trainer_state.json` is therefore one whose saving came to its end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from grpo_math.files import write_whole

CARD = "README.md"
# As far as the options are in use: the adapted beta, the place among the fresh prompts
STATE_FILE = "grpo_math_state.json"


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


def begin_checkpoint(trainer: Any, folder: Path) -> None:
    """
    The options' state, before TRL writes its own; an earlier checkpoint of the same step counts no more as finished.

    Args:
        trainer ([`GRPOMathTrainer`]).
        folder (`Path`): Of the checkpoint.
    """
    if not trainer.args.should_save:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    state = state_of(trainer)
    if state:
        write_whole(folder / STATE_FILE, json.dumps(state))


def load_state(trainer: Any, folder: Path) -> None:
    """Restores what `begin_checkpoint` has kept, as far as the trainer's options still need it."""
    path = folder / STATE_FILE
    if not path.exists():
        return
    state = json.loads(path.read_bytes())
    if trainer._variant.kl_target is not None and "beta" in state:
        trainer.beta = state["beta"]
    if trainer._dynamic_sampling.rounds and "fresh_prompts" in state:
        trainer._dynamic_sampling.load_state_dict(state["fresh_prompts"])
