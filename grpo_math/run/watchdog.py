"""A run that cannot learn says so while it runs, and again at its end: which of the usual causes it is, and the fix.

Each finding holds for every logged step since training began: all completions cut off, all rewards None or NaN, all groups
tied, learning rate 0, weights that do not move.

>>> Watchdog(steps=20).findings()
[]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

KEPT = 100_000  # weights that are compared with their start, at most


class Watchdog(TrainerCallback):
    """
    Watches a run for causes that keep it from learning.

    Args:
        steps: It speaks up after the first log at or after this many steps of the run.
    """

    def __init__(self, steps: int = 20):
        self.steps = steps
        self.trainer: Any = None
        self.logs = 0
        self.always: dict[str, bool] = {}
        self.told: list[str] = []
        self._start: list[tuple[torch.nn.Parameter, int, torch.Tensor]] = []
        self._first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step = state.global_step
        self._start = [(p, stride, p.detach().flatten()[::stride].cpu().clone()) for p, stride in self._watched()]

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "reward" not in logs:
            return
        self.logs += 1
        means = [value for name, value in logs.items() if name.startswith("rewards/") and name.endswith("/mean")]
        for name, holds in {
            "truncated": logs.get("completions/clipped_ratio") == 1.0,
            "unpaid": bool(means) and all(math.isnan(value) for value in means),
            "tied": logs.get("frac_reward_zero_std") == 1.0,
            "still": logs.get("learning_rate") == 0.0,
        }.items():
            self.always[name] = self.always.get(name, True) and holds
        if state.global_step - self._first_step >= self.steps and not self.told and state.is_world_process_zero:
            self.told = self.findings()
            for line in self.told:
                tqdm.write(f"After {state.global_step} steps: {line}")

    def findings(self) -> list[str]:
        """What keeps this run from learning, as far as it has come; empty where nothing does."""
        if not self.logs:
            return []
        args = self.trainer.args
        found = []
        if self.always["still"]:
            found.append(
                "the learning rate was 0 at every step, so no weight moved: set --learning_rate and its schedule"
            )
        if self.always["truncated"]:
            found.append(
                f"every completion was cut off at max_completion_length {args.max_completion_length}, so none ended with "
                "its answer: raise --max_completion_length, or use a model that ends its answers"
            )
        if self.always["unpaid"]:
            found.append(
                "every reward was None or NaN, so no completion was judged: check the gold answers in the rows and the "
                "columns that the rewards read (--rewards)"
            )
        elif self.always["tied"]:
            found.append(
                "in every group all rewards were equal, so no step had a gradient: the problems are too hard or too easy. "
                "Try a larger --num_generations, easier rows, a reward with partial credit, or a warm-up (grpo-math sft)"
            )
        moved = self.moved()
        if not found and moved is not None and moved < 0.01:
            found.append(
                f"only {moved:.1%} of the trained weights have changed: the steps are below their precision. Train with "
                "--dtype float32, or raise --learning_rate"
            )
        return found

    def moved(self) -> float | None:
        """Share of the trained weights that differ from their start, from a sample; None where they cannot be seen."""
        pairs = [(p.detach().flatten()[::stride].cpu(), start) for p, stride, start in self._start]
        pairs = [(now, start) for now, start in pairs if now.shape == start.shape]  # not where a shard has been freed
        total = sum(start.numel() for _, start in pairs)
        return sum((now != start).sum().item() for now, start in pairs) / total if total else None

    def _watched(self) -> list[tuple[torch.nn.Parameter, int]]:
        if self.trainer is None:
            return []
        trained = [p for p in self.trainer.model.parameters() if p.requires_grad and p.numel()]
        stride = max(1, sum(p.numel() for p in trained) // KEPT)
        return [(p, min(stride, p.numel())) for p in trained]
