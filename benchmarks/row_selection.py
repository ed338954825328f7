"""Reward per CPU second when a part of the rows is trained: all rows, an unbiased draw, and the largest (tiny model, 3 seeds).

`train_rows` draws rows by their advantages and weights them, so that the expected gradient is that of all rows. The rival
keeps the rows with the largest advantages, as public work does: its gradient is biased, and this benchmark alone has it.

    python -m benchmarks row_selection

writes `results/row_selection.md`, `.json` and `.png`. Settings take turns within a seed, so that a busy machine slows all.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from benchmarks import common
from grpo_math.trainer.row_selection import row_sizes

ROWS, NUM_GENERATIONS = 128, 16
# Label -> how many of the rows are trained, and whether they are the largest ones
SETTINGS = {"all rows": (0, False), "32 rows drawn": (32, False), "32 largest rows": (32, True)}
WINDOW = 15


def largest(selection):
    """The rival of a [`RowSelection`]: as many rows, those with the largest sizes, with their own weights."""

    def choose(step: int, batch: dict, live: torch.Tensor, window: int) -> dict:
        order = row_sizes(batch, live, selection.loss_type).abs().argsort(descending=True, stable=True)
        kept = torch.zeros_like(live)
        kept[order[: selection.rows]] = True
        return {**batch, "live": kept & live}

    return choose


class Clock(TrainerCallback):
    """Reward, and CPU seconds since the start, of every step."""

    def __init__(self):
        self.steps: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.process_time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            spent = time.process_time() - self.started
            self.steps.append({"reward": logs["reward"], "seconds": spent, "skipped": logs["skipped_rows"]})


def learn(label: str, seed: int, steps: int, learning_rate: float, out: Path) -> list[dict]:
    """One run from the built-in tiny model."""
    _, tokenizer, rows, reward = common.tiny_countdown()
    train_rows, biased = SETTINGS[label]
    clock = Clock()
    trainer = common.make_trainer(
        True,
        str(common.tiny_model.tiny_model_folder()),
        reward,
        rows,
        tokenizer,
        out,
        [clock],
        per_device_train_batch_size=ROWS,
        num_generations=NUM_GENERATIONS,
        max_completion_length=6,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_steps=steps,
        pack_groups=False,  # as in the tiny model's recipe
        train_rows=train_rows,
        log_level="error",
        seed=seed,
    )
    if biased:
        trainer._row_selection = largest(trainer._row_selection)
    trainer.train()
    return clock.steps


def smooth(run: list[dict]) -> list[float]:
    """Running mean of the reward."""
    return common.running_mean([step["reward"] for step in run], WINDOW)


def first_above(run: list[dict], reward: float) -> float | None:
    """CPU seconds until the mean reward of WINDOW steps reaches a value, or `None`."""
    whole = list(zip(run, smooth(run), strict=True))[WINDOW - 1 :]
    return next((step["seconds"] for step, mean in whole if mean >= reward), None)


def summarise(runs: list[list[dict]], goal: float) -> dict:
    """Means over the seeds of one setting."""
    reached = [first_above(run, goal) for run in runs]
    return {
        "trained": statistics.fmean(ROWS - step["skipped"] for run in runs for step in run),
        "step": statistics.fmean(run[-1]["seconds"] / len(run) for run in runs),
        "end": [smooth(run)[-1] for run in runs],
        "reached": None if None in reached else statistics.fmean(reached),
    }


def plot(found: dict[str, list[list[dict]]]) -> None:
    """Reward over steps, and over CPU seconds: one line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    colours = {"all rows": "black", "drawn": "tab:blue", "rows": "tab:red"}
    for label, runs in found.items():
        colour = colours.get(label, colours["drawn" if label.endswith("drawn") else "rows"])
        for number, run in enumerate(runs):
            name = label if number == 0 else None
            curve, steps = smooth(run)[WINDOW - 1 :], range(WINDOW, len(run) + 1)
            axes[0].plot(steps, curve, color=colour, alpha=0.7, label=name)
            axes[1].plot([step["seconds"] for step in run[WINDOW - 1 :]], curve, color=colour, alpha=0.7)
    axes[0].set(xlabel=f"step ({ROWS} completions)", ylabel=f"mean reward of {WINDOW} steps")
    axes[1].set(xlabel="CPU seconds, sampling included")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    common.RESULTS.mkdir(exist_ok=True)
    figure.savefig(common.RESULTS / "row_selection.png", dpi=110)
    plt.close(figure)


def report(found: dict[str, list[list[dict]]], goal: float, learning_rate: float) -> str:
    """The results as Markdown."""
    rows = []
    for label, runs in found.items():
        one = summarise(runs, goal)
        ends = [f"{edge(one['end']):.3f}" for edge in (statistics.fmean, min, max)]
        reached = "not by all" if one["reached"] is None else f"{one['reached']:.1f}"
        rows.append(
            [label, f"{one['trained']:.0f}", f"{one['step']:.3f}", f"{ends[0]} ({ends[1]} to {ends[2]})", reached]
        )
    header = ["setting", "rows trained, mean", "CPU s a step", f"reward of the last {WINDOW} steps (seeds)"]
    header += [f"CPU s to a reward of {goal:g}"]
    runs = next(iter(found.values()))
    return "\n".join(
        [
            "# Reward per CPU second when a part of the rows is trained",
            "",
            common.machine_line(),
            "",
            f"Two-number Countdown, 0.1 M parameters, {len(runs[0])} steps of {ROWS} completions, {NUM_GENERATIONS} a "
            f"prompt, learning rate {learning_rate:g}, AdamW, {len(runs)} seeds. CPU seconds include sampling. Rows of "
            "groups with equal rewards are skipped in every setting.",
            "",
            common.table(header, rows),
            "",
            "![reward over steps and CPU seconds](row_selection.png)",
        ]
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks row_selection", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--goal", type=float, default=0.35, help="reward whose time is reported")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args(argv)
    found: dict[str, list[list[dict]]] = {label: [] for label in args.settings}
    with tempfile.TemporaryDirectory() as out:
        learn(args.settings[0], 0, 2, args.learning_rate, Path(out))  # the first run of a process is slower
        for seed in range(args.seeds):
            for label in args.settings:
                found[label].append(learn(label, seed, args.steps, args.learning_rate, Path(out)))
                print(f"{label}, seed {seed}: {smooth(found[label][-1])[-1]:.3f}", flush=True)
    plot(found)
    text = report(found, args.goal, args.learning_rate)
    common.save("row_selection", text, {"settings": SETTINGS, "runs": found})
    return 0
