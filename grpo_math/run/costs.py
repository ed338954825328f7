"""What training takes: seconds by phase, and peak memory, written with every line of metrics.jsonl.

Phases exclude each other: generation, rewards, scoring (log-probabilities of the old and the reference policy, the layout of
the batch), training (forward and backward), optimizer, held-out (looks along
the run). On a CUDA device the clock waits for the kernels of a phase.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

# Method of the trainer -> its phase
METHODS = {
    "_generate_single_turn": "generation",
    "_calculate_rewards": "rewards",
    "_prepare_inputs": "scoring",
    "training_step": "training",
    "evaluate": "held-out",
}


class Clock(TrainerCallback):
    """
    Seconds of each phase; a phase inside another stops the outer one's time.

    >>> clock = Clock()
    >>> with clock.phase("training"), clock.phase("generation"):
    ...     pass
    >>> sorted(clock.seconds)
    ['generation', 'training']
    """

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        """Adds the time since the last switch to the phase that was running."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._switch()
        self._running.append("optimizer")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._switch()
        self._running.pop()

    def take(self) -> dict[str, float]:
        """Metrics since the last call: `time/PHASE` in seconds, and `memory/*` in bytes at the peak of the run so far."""
        taken = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return {**taken, **peak_memory()}


def peak_memory() -> dict[str, float]:
    """Most bytes so far: of this process in main memory, and of torch's allocator where there is a CUDA device."""
    peaks = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        peaks["memory/process_peak"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    if torch.cuda.is_available():
        peaks["memory/device_peak"] = float(torch.cuda.max_memory_allocated())
    return peaks


@contextlib.contextmanager
def clocked(trainer: Any) -> Iterator[Clock]:
    """A clock of this trainer's phases while the context lasts; the trainer is as before afterwards."""
    clock, own = Clock(), vars(trainer)
    before = {name: own[name] for name in METHODS if name in own}

    def timed(method, phase):
        def run(*args, **kwargs):
            with clock.phase(phase):
                return method(*args, **kwargs)

        return run

    for name, phase in METHODS.items():
        own[name] = timed(getattr(trainer, name), phase)
    trainer.add_callback(clock)
    try:
        yield clock
    finally:
        trainer.remove_callback(clock)
        for name in METHODS:
            del own[name]
        own.update(before)
