"""Child processes of the GPU benchmark, which end with what they have started when the time is up."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ANSWER = "answer: "  # begins the line on which a child process answers
BESIDE = 1.0  # GiB that a process takes beside its allocator's share, when several share a card


class Children:
    """
    Child processes that end, with what they have started, when the time is up or this process stops.

    Args:
        seconds: Time for all of them, from now on.
        environment: Variables of every child, which win over this process's.
    """

    def __init__(self, seconds: float, environment: dict[str, str]):
        self.started = time.monotonic()
        self.seconds = seconds
        self.environment = environment
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.seconds - (time.monotonic() - self.started)

    def run(self, command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[int | None, str, str]:
        """Exit code (`None` when the time was up before or during it), output and error output of a command."""
        with self._lock:
            if self._stopped or self.left() <= 0:
                return None, "", ""
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env={**os.environ, **self.environment, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a group of its own, which can be ended as a whole
            )
            self._running.add(process)
        try:
            output, error = process.communicate(timeout=max(self.left(), 0.01))
            return (None if self._stopped else process.returncode), output, error
        except subprocess.TimeoutExpired:
            self._end(process)
            return None, *process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)

    def ask(self, job: dict, environment: dict[str, str] | None = None) -> dict:
        """The answer of a part in a child process, else `{"skipped": reason}` or `{"error": end of its error output}`."""
        code, output, error = self.run([sys.executable, "-m", "benchmarks.gpu", json.dumps(job)], environment)
        for line in reversed(output.splitlines()):
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        if code is None:
            return {"skipped": "no time left"}
        return {"error": last_words(code, error)}

    def stop(self) -> None:
        """Ends what is still running."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def last_words(code: int, error: str) -> str:
    """Prints the end of a child's error output; returns its exit code and last line."""
    print(error[-4000:], file=sys.stderr, flush=True)
    lines = [line for line in error.splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1] if lines else 'no error output'}"


def workers(cores: int, free: float | None, cap: float, requested: int | None = None) -> tuple[int, int]:
    """
    How many configurations are measured at once, and how many are predicted beside them.

    A process never takes more than its cap, and its neighbours do not change what it takes. So a large card holds several.

    Args:
        cores: Cores of the processor; a measurement keeps one or two busy.
        free: GiB free on the card, `None` on a CPU.
        cap: GiB that each may take.
        requested: How many to measure at once, in place of the computed number.
    """
    at_once = requested or (1 if free is None else max(1, min(int(free / (cap + BESIDE)), cores // 2)))
    return at_once, max(1, cores - at_once - 1)
