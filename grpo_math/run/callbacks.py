"""What happens during training: the run's record is written, progress is shown, signals end it with a checkpoint."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from grpo_math.files import read_lines, write_whole
from grpo_math.report import COMPLETIONS, LOOKS, METRICS, draw_curve


class RunRecorder(TrainerCallback):
    """Writes a line of metrics and one group of completions at every log, and redraws the curve at every save.

    Nothing is written, and nothing of an earlier run moved, before the first step is finished: a run that fails until
    then leaves the folder as it was.

    Args:
        folder: the run's output folder.
        blind: accuracy of the best policy that ignores the target, drawn as a line; None where there is none.
    """

    def __init__(self, folder: Path, blind: float | None = None):
        self.folder = folder
        self.blind = blind
        self.first_step = 0
        self.begun = False
        # Both are set by the run: the trainer, and what makes room for the run's files and writes the first ones
        self.trainer: Any = None
        self.prepare: Callable[[], None] | None = None
        # Seconds by phase and peak memory since the last log, for the line of metrics
        self.costs: Callable[[], dict[str, float]] = dict

    def begin(self) -> None:
        """The first files, once; on every process, since none may save a checkpoint before the folder is cleared."""
        if self.begun:
            return
        if self.trainer.accelerator.is_main_process:
            if self.prepare is not None:
                self.prepare()
            # After a resume, what lies beyond the checkpoint is written again.
            for name in (METRICS, COMPLETIONS, LOOKS):
                if name != LOOKS or (self.folder / LOOKS).exists():
                    keep_until(self.folder / name, self.first_step)
        self.begun = True  # only now: until then the folder's checkpoints may be an earlier run's
        self.trainer.accelerator.wait_for_everyone()

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_step = state.global_step
        state.compute_steps(args, state.max_steps)  # else logs, looks and saves are as often as the checkpoint says

    def on_step_end(self, args, state, control, **kwargs):
        self.begin()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "reward" not in logs:
            return
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            logs = {**logs, **self.costs()}
            file.write(json_line({"step": state.global_step, **{k: json_value(v) for k, v in logs.items()}}))
        with (self.folder / COMPLETIONS).open("a", encoding="utf-8") as file:
            for record in self._one_group():
                file.write(json_line({"step": state.global_step, **record}))

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_or_say(self.folder, self.blind)

    def _one_group(self) -> list[dict]:
        # The trainer keeps the last generation batch for its own table; the first rows of it are one group.
        logs = self.trainer._logs
        size = self.trainer.num_generations
        columns = [list(logs["prompt"])[:size], list(logs["completion"])[:size], list(logs["advantages"])[:size]]
        rewards = {name: list(values)[:size] for name, values in logs["rewards"].items()}
        return [
            {
                "prompt": prompt,
                "completion": completion,
                "rewards": {name: json_value(values[i]) for name, values in rewards.items()},
                "advantage": json_value(advantage),
            }
            for i, (prompt, completion, advantage) in enumerate(zip(*columns, strict=True))
        ]


def keep_until(path: Path, step: int) -> None:
    """Leaves the records of a JSONL file up to a step; a file with lines that are no records is kept beside it, and named."""
    records, unreadable = read_lines(path) if path.exists() else ([], [])
    unreadable += [(number, "no step") for number, r in enumerate(records, 1) if not isinstance(r.get("step"), int)]
    if unreadable:
        damaged = path.with_name(f"{path.name}.damaged")
        write_whole(damaged, path.read_bytes())
        tqdm.write(
            f"{path} has {len(unreadable)} damaged lines ({unreadable[0][1]}): left out, the whole is in {damaged}."
        )
    kept = [record for record in records if isinstance(record.get("step"), int) and record["step"] <= step]
    write_whole(path, "".join(map(json_line, kept)))


def draw_or_say(folder: Path, blind: float | None) -> None:
    """Draws the reward curve; whatever prevents it is said, and never ends a run."""
    try:
        draw_curve(folder, blind)
    except Exception as error:  # matplotlib, fonts, a full disk, a damaged file: a picture is worth no training
        tqdm.write(f"The reward curve is not drawn: {type(error).__name__}: {' '.join(str(error).split())}")
    gc.collect()  # a figure is full of cycles: some 40 MB of them would wait for a full collection


def json_value(value: Any) -> Any:
    """A JSON value; NaN and infinity, which JSON has not, become null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_line(record: dict) -> str:
    return json.dumps(record, ensure_ascii=False, default=str) + "\n"


def ending_signals() -> list[int]:
    """SIGTERM and SIGHUP, as far as they are not ignored: a run under `nohup` outlives its terminal."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return [number for number in known if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside the context SIGTERM and SIGHUP end what is done as Ctrl-C does, with a word and its exit code."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, interrupt) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopOnSignal(TrainerCallback):
    """Ctrl-C (or SIGTERM, SIGHUP) during training: finish the step, save a checkpoint, stop. A second one stops at once."""

    def __init__(self):
        self.trainer: Any = None
        self.received = False
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        try:
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, *ending_signals())}
        except ValueError:  # not the main thread: its owner handles signals
            self._previous = {}

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        if self.trainer.accelerator.is_main_process:
            print("\nStopping after this step, with a checkpoint. (Once more stops at once.)", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        received = self.received
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:  # all processes stop after the same step, whoever got the signal
            flag = torch.tensor([float(received)], device=accelerator.device)
            received = bool(accelerator.reduce(flag, reduction="sum").item())
        if received:
            self.stopped = True
            control.should_save = True
            control.should_log = True
            control.should_training_stop = True
        return control
