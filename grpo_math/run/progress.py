"""What a run shows while it trains: a bar with a few figures in a terminal, a line per update in a log file.

All figures are in metrics.jsonl.
"""

from __future__ import annotations

import sys
import time

from transformers import ProgressCallback, TrainerCallback


def progress_callback() -> TrainerCallback:
    """The one that suits where the output goes."""
    return ShortProgress() if sys.stderr is not None and sys.stderr.isatty() else LogLines()


def shown_figures(logs: dict | None) -> dict[str, str]:
    """Reward and length of GRPO, or the loss of a supervised warm-up; nothing of other logs."""
    if not logs:
        return {}
    if logs.get("reward") is not None:
        return {"reward": f"{logs['reward']:.3f}", "length": f"{logs.get('completions/mean_length', 0):.0f}"}
    return {"loss": f"{logs['loss']:.3f}"} if logs.get("loss") is not None else {}


class ShortProgress(ProgressCallback):
    """The progress bar with a few figures beside it, instead of all metrics printed above it at every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        figures = shown_figures(logs)
        if state.is_world_process_zero and self.training_bar is not None and figures:
            self.training_bar.set_postfix(figures)


class LogLines(TrainerCallback):
    """`step 10/1500  reward 0.250  length 6  12 s`, at every log."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        figures = shown_figures(logs)
        if state.is_world_process_zero and figures:
            words = [
                f"step {state.global_step}/{state.max_steps}",
                *(f"{name} {value}" for name, value in figures.items()),
            ]
            print("  ".join([*words, f"{time.monotonic() - self.started:.0f} s"]), flush=True)
