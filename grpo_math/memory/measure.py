"""Peak memory of two real training steps, measured in a process of its own: by torch's allocator on CUDA, else by torch's
profiler on the CPU.

>>> measure("recipes/gsm8k.yaml", [], prompt_length=288)["peaks"]

The process is `python -m grpo_math.memory.measure JOB`, with the job as JSON.
"""

from __future__ import annotations

import bisect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_math.errors import PredictionError
from grpo_math.memory.device import is_out_of_memory
from grpo_math.memory.predict import merged_overrides
from grpo_math.memory.results import GIB
from grpo_math.memory.shapes import model_config
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.startup import prefer_expandable_segments, quieten

# What imports torch is imported inside the functions: the face of this package must import in milliseconds

PHASE_BEGINS = "phase: "  # begins a line of a measuring process


def measure(
    path: str | Path,
    argv: Sequence[str],
    prompt_length: int,
    cap: float | None = None,
    changes: dict | None = None,
    progress: Callable[[str], None] = lambda phase: None,
) -> dict:
    """
    Runs two real steps in a process of its own, with random weights and completions of full length.

    Without a CUDA device they run on the CPU, whose LM head and optimizers allocate differently.

    Args:
        path: The recipe.
        argv: Overrides from the command line.
        prompt_length: Tokens of the longest prompt.
        cap: GiB that the process may take of a CUDA device.
        changes: More overrides, which win over `argv`.
        progress: Called with the name of each phase that begins.

    Returns:
        `{"device", "peaks", "predicted", "reserved", "out_of_memory"}`: bytes at the peak of each phase. `predicted` is the
        prediction for a CPU when the CPU was measured. `reserved` is the most that torch's allocator reserved on CUDA.
        `out_of_memory` is the phase in which the memory ran out. All three may be `None`.

    Raises:
        PredictionError: when the process ends without an answer, with the end of its error output.
    """
    job = {
        "path": str(path),
        "argv": merged_overrides(argv, changes or {}),
        "prompt_length": prompt_length,
        "cap": cap,
    }
    prefer_expandable_segments()
    # The package's face has imported this module before it runs as the main one, which runpy would warn about
    python = [sys.executable, "-W", "ignore::RuntimeWarning:runpy"]
    command, answer = [*python, "-m", "grpo_math.memory.measure", json.dumps(job)], None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True) as process:
            try:
                for line in process.stdout:
                    if line.startswith(PHASE_BEGINS):
                        progress(line.removeprefix(PHASE_BEGINS).strip())
                    elif line.startswith('{"device"'):
                        answer = json.loads(line)
            except BaseException:  # Ctrl-C
                process.kill()
                raise
        if answer is None:
            output.seek(0)
            raise PredictionError(
                f"measuring {path} failed (exit code {process.returncode}): {output.read().strip()[-800:]}"
            )
    return answer


def _measure_here(job: dict) -> dict:
    """[`measure`] in this process."""
    import torch

    from grpo_math.memory.step import run_one_step

    recipe = load_recipe(job["path"], job["argv"], reading=True)
    device = recipe.training.device
    peaks: dict[str, int] = {}
    phases: list[str] = []
    result = {"device": "cpu", "peaks": peaks, "predicted": None, "reserved": None, "out_of_memory": None}
    if device.type != "cuda":
        config, length = model_config(recipe), job["prompt_length"]
        predicted = run_one_step(recipe, config, length, cuda=False)
        peaks = profiled_peaks(recipe, config, length, lambda phase: print(PHASE_BEGINS + phase, flush=True))
        return {**result, "peaks": peaks, "predicted": predicted.peaks}
    if job["cap"]:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(job["cap"] * GIB / total, 1.0), device)

    class Meter:
        """The context of a phase, which keeps the allocator's peak inside of it."""

        def __init__(self, phase: str):
            self.phase = phase

        def __enter__(self):
            print(PHASE_BEGINS + self.phase, flush=True)
            self._note()
            phases.append(self.phase)
            torch.cuda.reset_peak_memory_stats(device)

        def __exit__(self, *error):
            self._note()
            if error[0] is None:  # when memory runs out, the innermost phase stays on top
                phases.pop()

        def _note(self):
            if phases:
                peaks[phases[-1]] = max(peaks.get(phases[-1], 0), torch.cuda.max_memory_allocated(device))
            torch.cuda.reset_peak_memory_stats(device)

    result["device"] = torch.cuda.get_device_name(device)
    try:
        length = job["prompt_length"]
        run_one_step(recipe, model_config(recipe), length, fake_tensors=False, device=device, meter=Meter)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        result["out_of_memory"] = phases[-1] if phases else "training"
    result["reserved"] = torch.cuda.max_memory_reserved(device)
    return result


def profiled_peaks(
    recipe: Recipe, config: Any, prompt_length: int, progress: Callable[[str], None] = lambda phase: None
) -> dict[str, int]:
    """Bytes at the peak of each phase of two real steps on the CPU, from the allocations that torch's profiler records."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from grpo_math.memory.step import run_one_step

    def meter(phase: str) -> record_function:
        progress(phase)
        return record_function(f"phase:{phase}")

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run_one_step(recipe, config, prompt_length, fake_tensors=False, cuda=False, meter=meter)
    events = recorded.profiler.kineto_results.events()
    times, live, total = [], [], 0
    for start, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        total += size
        times.append(start)
        live.append(total)
    spans = [
        (e.start_ns(), e.start_ns() + e.duration_ns(), e.name().removeprefix("phase:"))
        for e in events
        if e.name().startswith("phase:")
    ]
    inside: list[str | None] = [None] * len(times)  # the innermost phase of each allocation
    peaks: dict[str, int] = {}
    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
        inside[first:last] = [name] * (last - first)
        peaks[name] = max(peaks.get(name, 0), live[first - 1] if first else 0)
    for name, size in zip(inside, live, strict=True):
        if name is not None:
            peaks[name] = max(peaks[name], size)
    return peaks


if __name__ == "__main__":
    quieten()
    print(json.dumps(_measure_here(json.loads(sys.argv[1]))))
