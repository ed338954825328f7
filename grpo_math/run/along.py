"""Held-out accuracy along the run: looks at a fixed subset, on the curve, in the trackers, at a bounded share of the time.

`eval_strategy`, `eval_steps`, `load_best_model_at_end` and `metric_for_best_model` mean what they mean in TRL and transformers;
what is evaluated is held-out accuracy instead of a loss. A line of `heldout.jsonl`:

    {"step": 100, "look": 1, "problems": 50, "accuracy": {"value": 0.41, "low": 0.33, "high": 0.5}, "change": {...}, ...}
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from grpo_math.evaluation import Accuracy, clustered, sampled_differences, verdict
from grpo_math.files import read_lines
from grpo_math.report import LOOKS
from grpo_math.run.callbacks import json_line
from grpo_math.trainer import GRPOMathTrainer


class MeasuredTrainer(GRPOMathTrainer):
    """[`GRPOMathTrainer`] whose `evaluate` measures held-out accuracy, once a run has said how (`look`), and whose saved models
    generate with their cache."""

    look: Callable[[], dict[str, float]] | None = None

    def evaluate(self, *args, **kwargs):
        if self.look is None:
            return super().evaluate(*args, **kwargs)
        metrics = self.look()
        was_training = self.model.training
        self.model.eval()  # TRL adds the metrics that it has gathered for the mode: those of training are for its own log
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, *args, **kwargs):
        """Saves a configuration that generates with its cache; transformers' trainers turn it off while they train."""
        config = self.accelerator.unwrap_model(self.model).config
        given, config.use_cache = config.use_cache, True
        try:
            super().save_model(*args, **kwargs)
        finally:
            config.use_cache = given


def subset_of(count: int, size: int, seed: int) -> list[int]:
    """The numbers of the held-out problems that are looked at along the run: the same ones at every look."""
    return sorted(random.Random(seed).sample(range(count), min(size, count)))


def looks_until(path: Path, step: int) -> int:
    """How many looks a run had made when it reached a step: those beyond it are made again."""
    lines = read_lines(path)[0] if path.exists() else []
    made = ((line.get("step"), line.get("look")) for line in lines)
    return max((look for at, look in made if isinstance(at, int) and isinstance(look, int) and at <= step), default=0)


class LooksAlong(TrainerCallback):
    """
    Looks at held-out accuracy when an evaluation is due, unless the looks would then take more than a share of the run.

    Args:
        trainer: Whose `evaluate` becomes a look.
        folder: The run's output folder.
        measure: `measure(rows, label)` measures the held-out problems of those numbers, sampled only.
        before: The records of all held-out problems before training.
        rows: The numbers of the problems to look at.
        seconds: What one look will take, as far as the measuring before training tells.
        share: The most that the looks may take of the time since training began.
        always: Whether every look that is due is made, whatever it takes: the best checkpoint is chosen by them.
        clock: Seconds, from any start.
        resumed: The folder of the run that is resumed, with the looks that it has made; None for a start.
    """

    def __init__(
        self,
        trainer: MeasuredTrainer,
        folder: Path,
        measure: Callable[[list[int], str], Accuracy],
        before: list[dict],
        rows: list[int],
        seconds: float,
        share: float,
        always: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        resumed: Path | None = None,
    ):
        self.trainer, self.folder, self.resumed, self.measure = trainer, folder, resumed, measure
        self.before = [before[i] for i in rows]
        self.rows, self.seconds, self.share, self.always, self.clock = rows, seconds, share, always, clock
        self.spent, self.made, self.left_out = 0.0, 0, 0
        self.look_number = (
            0  # of the whole run, also before a resume: each look spends some of the verdict's error rate
        )
        self.began = clock()
        trainer.look = self.look

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = self.clock()
        self.look_number = looks_until(self.resumed / LOOKS, state.global_step) if self.resumed else 0
        if not state.global_step and args.report_to:
            self.trainer.log(self._metrics(clustered([r["correct"] for r in self.before]), None))

    def on_step_end(self, args, state, control, **kwargs):
        if not control.should_evaluate:
            return control
        last = state.global_step >= state.max_steps
        if not self.always and (
            last or not self._affordable()
        ):  # the end of the run is measured anyway, on all problems
            control.should_evaluate = False
            self.left_out += not last
        return control

    on_epoch_end = on_step_end

    def _affordable(self) -> bool:
        affordable = self.spent + self.seconds <= self.share * (self.clock() - self.began)
        if self.trainer.accelerator.num_processes > 1:  # clocks differ; all processes must do the same
            affordable = broadcast_object_list([affordable])[0]
        return affordable

    def look(self) -> dict[str, float]:
        """One look: measured, written to `heldout.jsonl`, as metrics for the trackers."""
        started, step = self.clock(), self.trainer.state.global_step
        accuracy = self.measure(self.rows, f"step {step}")
        self.seconds = self.clock() - started
        self.spent += self.seconds
        self.made += 1
        self.look_number += 1
        found = verdict(sampled_differences(self.before, accuracy.records), self.look_number, along=True)
        if self.trainer.accelerator.is_main_process:
            line = {
                "step": step,
                "look": self.look_number,
                "problems": len(self.rows),
                "accuracy": accuracy.sampled.as_dict(),
                "change": found.change.as_dict(),
                "verdict": found.word,
                "mean_length": accuracy.mean_length,
                "seconds": round(self.seconds, 3),
            }
            with (self.folder / LOOKS).open("a", encoding="utf-8") as file:
                file.write(json_line(line))
        return {**self._metrics(accuracy.sampled, found.change), "eval_runtime": self.seconds}

    @staticmethod
    def _metrics(accuracy: Any, change: Any) -> dict[str, float]:
        named = {"eval_accuracy": accuracy, **({} if change is None else {"eval_change": change})}
        return {
            f"{name}{end}": value
            for name, interval in named.items()
            for end, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
        }

    def as_dict(self) -> dict[str, Any]:
        return {
            "problems": len(self.rows),
            "looks": self.made,
            "left_out": self.left_out,
            "seconds": round(self.spent, 2),
        }
