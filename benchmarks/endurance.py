"""Does a long run keep its memory, its open files and its folder small?

Runs the tiny recipe for thousands of steps in this process, with a log line and a completion group at every tenth step,
and looks at the process and the folder every so many steps. Memory growth is that of resident memory between a fifth of
the run, when two checkpoints are written and every cache is warm, and its end.
"""

import argparse
import os
import tempfile
from pathlib import Path

from transformers import TrainerCallback

from benchmarks import common
from benchmarks.plain import RECIPES


class Looks(TrainerCallback):
    """Resident memory in bytes, open files, and bytes in the run's folder, every `every` steps."""

    def __init__(self, folder: Path, every: int):
        self.folder, self.every, self.seen = folder, every, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.seen.append(look(self.folder, state.global_step))


def look(folder: Path, step: int) -> dict[str, int]:
    """The process and the run's folder as they are now (Linux)."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    records = sum(size for path, size in sizes.items() if path.suffix == ".jsonl")
    return {
        "step": step,
        "resident": resident,
        "open_files": len(os.listdir("/proc/self/fd")),
        "records": records,
        "other_files": sum(sizes.values()) - records,
        "checkpoints": len(list(folder.glob("checkpoint-*"))),
    }


def measure(steps: int, every: int) -> list[dict[str, int]]:
    """Looks along one run of so many steps."""
    from grpo_math.recipe import load_recipe
    from grpo_math.run import prepare
    from grpo_math.run.train import train

    with tempfile.TemporaryDirectory() as out:
        folder, build = Path(out, "run"), prepare.prepare
        looks = Looks(folder, every)
        words = {
            "output_dir": folder, "max_steps": steps, "save_steps": max(steps // 10, 1), "logging_steps": 10,
            "per_device_train_batch_size": 16, "num_generations": 4, "heldout_size": 0, "disable_tqdm": "true",
        }  # fmt: skip
        argv = [str(word) for name, value in words.items() for word in (f"--{name}", value)]

        def with_looks(recipe, *args, **kwargs):
            run = build(recipe, *args, **kwargs)
            run.trainer.add_callback(looks)
            return run

        import grpo_math.run.train as module

        module.prepare = with_looks
        try:
            code = train(load_recipe(RECIPES / "countdown_tiny.yaml", argv))
        finally:
            module.prepare = build
        if code:
            raise RuntimeError(f"the run ended with {code}")
    return looks.seen


def growth(seen: list[dict[str, int]]) -> float:
    """Resident memory at the end over that just after a fifth of the run, minus one."""
    start = seen[len(seen) // 5]["resident"]
    return seen[-1]["resident"] / start - 1


def table(seen: list[dict[str, int]]) -> str:
    shown = [seen[round(i * (len(seen) - 1) / 9)] for i in range(10)] if len(seen) > 10 else seen
    lines = [
        "| step | resident memory, MiB | open files | records, KiB | other files, KiB | checkpoints |",
        "| --- " * 6 + "|",
    ]
    for at in shown:
        sizes = f"{at['records'] / 2**10:.0f} | {at['other_files'] / 2**10:.0f}"
        resident = f"{at['resident'] / 2**20:.1f}"
        lines.append(f"| {at['step']} | {resident} | {at['open_files']} | {sizes} | {at['checkpoints']} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks endurance", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=100)
    args = parser.parse_args(argv)
    seen = measure(args.steps, args.every)
    grown = growth(seen)
    text = [
        "# Endurance", "", common.machine_line(), "",
        f"`countdown_tiny.yaml` with 16 completions a step, {args.steps} steps in one process, a log line every 10 steps, "
        f"a checkpoint every {max(args.steps // 10, 1)}.", "",
        f"Resident memory from a fifth of the run to its end: {100 * grown:+.2f} %. Open files: "
        f"{min(s['open_files'] for s in seen)} to {max(s['open_files'] for s in seen)}.", "",
        table(seen), "",
        "Records are `metrics.jsonl` and `completions.jsonl`, which grow by a line and a group of completions at each log. All "
        "other files keep their size, the checkpoints their number (`save_total_limit: 2`), but for the log history inside "
        "`trainer_state.json`.", "",
    ]  # fmt: skip
    common.save("endurance", "\n".join(text), {"growth": grown, "looks": seen})
    return 0
