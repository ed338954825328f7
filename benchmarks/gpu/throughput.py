"""The part `throughput`: seconds of whole training steps of stock TRL and ours."""

import gc
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from benchmarks.gpu.trainers import cap_allocator, job_recipe, job_sizes, make_trainer, policy


def timed_steps(ours: bool, job: dict, out: Path) -> dict:
    """Seconds of each step after the first, `{"generation", "rest"}`, and on CUDA the allocator's peak in bytes."""
    recipe, sizes, on_card = job_recipe(job), job_sizes(job), job["device"] == "cuda"

    def now() -> float:
        if on_card:
            torch.cuda.synchronize()
        return time.perf_counter()

    steps: list[dict[str, float]] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.started = now()
            steps.append({"generation": 0.0})

        def on_step_end(self, args, state, control, **kwargs):
            steps[-1]["rest"] = now() - self.started - steps[-1]["generation"]

    if on_card:
        torch.cuda.reset_peak_memory_stats()
    trainer = make_trainer(
        ours,
        job,
        recipe,
        policy(sizes, recipe, job["device"]),
        job["steps"] + 1,
        out,
        Stopwatch(),
        max_grad_norm=0.2,
        generation_kwargs={"min_new_tokens": sizes.completion},
    )
    generate = trainer._generate

    def timed(*args, **kwargs):
        started = now()
        try:
            return generate(*args, **kwargs)
        finally:
            steps[-1]["generation"] += now() - started

    trainer._generate = timed
    trainer.train()
    logs = trainer.state.log_history[1]
    return {
        "steps": steps[1:],
        "peak": torch.cuda.max_memory_allocated() if on_card else None,
        "mean_length": logs["completions/mean_length"],
        "skipped_rows": logs.get("skipped_rows"),
    }


def throughput(job: dict) -> dict:
    """Seconds of whole steps of stock, ours and stock again, and bytes on the card outside of torch's allocator."""
    cap_allocator(job)
    sizes = job_sizes(job)
    found, outside = {}, None
    with tempfile.TemporaryDirectory() as out:
        for contender in ("stock", "ours", "stock again"):
            found[contender] = timed_steps(contender == "ours", job, Path(out))
            if job["device"] == "cuda":
                free, total = torch.cuda.mem_get_info()
                outside = total - free - torch.cuda.memory_reserved()
                gc.collect()
                torch.cuda.empty_cache()
    kept = {name: getattr(sizes, name) for name in ("rows", "micro", "generations", "prompt", "completion")}
    return {**kept, "outside": outside, "contenders": found}
