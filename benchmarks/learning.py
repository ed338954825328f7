"""Reward against KL to the reference for a fixed beta, a target KL and reference clipping (tiny model, 3 seeds).

What each holds fixed differs: a fixed beta the price of a nat, a target KL the average distance, reference clipping
the furthest that a single token is pushed. The plot shows the way each takes from the reference (KL 0) over training,
and where it ends; the table gives the end, and how far the KL of the seeds is spread.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from transformers import TrainerCallback

from benchmarks import common

# Every setting logs the KL: `kl_estimator="k3"` is TRL's loss, and an infinite bound clips nothing
SETTINGS: dict[str, dict] = {
    "beta 0": {"ref_clip_high": float("inf")},
    "beta 0.03": {"beta": 0.03, "kl_estimator": "k3"},
    "beta 0.3": {"beta": 0.3, "kl_estimator": "k3"},
    "target KL 0.02": {"beta": 0.1, "kl_target": 0.02, "kl_horizon": 640.0},
    "target KL 0.1": {"beta": 0.1, "kl_target": 0.1, "kl_horizon": 640.0},
    "reference clip 0.2": {"ref_clip_low": 0.2, "ref_clip_high": 0.2},
    "reference clip 1": {"ref_clip_low": 1.0, "ref_clip_high": 1.0},
}
FAMILIES = {"beta": "tab:gray", "target": "tab:blue", "reference": "tab:red"}
WINDOW = 25


class Curve(TrainerCallback):
    """Reward, KL (k3) and beta of every step."""

    def __init__(self):
        self.steps: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            names = {"reward": "reward", "kl": "kl/k3", "beta": "beta", "clipped": "ref_clip_ratio/region_mean"}
            self.steps.append({name: logs.get(metric) for name, metric in names.items()})


def learn(setting: dict, seed: int, steps: int, learning_rate: float, out: Path) -> list[dict]:
    """One run from the built-in tiny model."""
    _, tokenizer, rows, reward = common.tiny_countdown()
    curve = Curve()
    trainer = common.make_trainer(
        True,
        str(common.tiny_model.tiny_model_folder()),
        reward,
        rows,
        tokenizer,
        out,
        [curve],
        per_device_train_batch_size=128,
        num_generations=16,
        max_completion_length=8,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        max_steps=steps,
        skip_zero_advantage=False,  # so that the KL covers every row
        log_level="error",
        seed=seed,
        **setting,
    )
    trainer.train()
    return curve.steps


def ends(runs: list[list[dict]], name: str) -> list[float]:
    """Mean of the last steps of every seed."""
    return [statistics.fmean(step[name] or 0.0 for step in run[-2 * WINDOW :]) for run in runs]


def plot(found: dict[str, list[list[dict]]]) -> None:
    """Reward against KL over training, one line a setting (mean over seeds), the ends of the seeds as dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    styles = dict.fromkeys(FAMILIES, 0)
    for label, runs in found.items():
        family = label.split()[0]
        style = ("-", "--", ":")[styles[family] % 3]
        styles[family] += 1
        smooth = {
            name: [common.running_mean([step[name] or 0.0 for step in run], WINDOW) for run in runs]
            for name in ("reward", "kl")
        }
        mean = {
            name: [statistics.fmean(point) for point in zip(*values, strict=True)] for name, values in smooth.items()
        }
        colour = FAMILIES[family]
        axes[0].plot(mean["kl"][WINDOW:], mean["reward"][WINDOW:], style, color=colour, label=label)
        axes[0].plot(ends(runs, "kl"), ends(runs, "reward"), "o", color=colour, markersize=4)
        common.band(axes[1], smooth["kl"], label, linestyle=style, color=colour)
    axes[0].set(xlabel="KL to the reference, nats per token (k3)", ylabel="mean reward", xscale="log")
    axes[0].set_title("Reward against KL over training; dots: the seeds' ends", fontsize=10)
    axes[1].set(xlabel="step (128 completions)", ylabel="KL, nats per token", yscale="log")
    axes[1].set_title("KL over training, lowest to highest seed", fontsize=10)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    common.RESULTS.mkdir(exist_ok=True)
    figure.savefig(common.RESULTS / "learning.png", dpi=110)
    plt.close(figure)


def what_it_shows(summary: dict[str, dict]) -> str:
    """Sentences computed from the results: how the families compare at the KL that each reached."""
    start = summary["beta 0"]
    lines = [f"- Without a bound the reward ends at {start['reward']:.2f} and the KL at {start['kl']:.2g}."]
    for label, row in summary.items():
        if label.startswith("target"):
            wanted = float(label.split()[-1])
            lines.append(f"- {label}: ended at {row['kl']:.2g}, {row['kl'] / wanted:.1f} times the target.")
    best = max((label for label in summary if label != "beta 0"), key=lambda label: summary[label]["reward"])
    lines.append(f"- The highest reward of the bounded runs is {summary[best]['reward']:.2f} ({best}).")
    for label, row in summary.items():
        if label.startswith("reference"):
            rivals = {k: v for k, v in summary.items() if not k.startswith("reference") and k != "beta 0"}
            near = min(rivals, key=lambda k: abs(rivals[k]["kl"] - row["kl"]))
            lines.append(
                f"- {label}: KL {row['kl']:.2g}, reward {row['reward']:.2f}, {row['clipped']:.0%} of the tokens "
                f"stopped; the nearest in KL is {near} with KL {rivals[near]['kl']:.2g}, reward "
                f"{rivals[near]['reward']:.2f}."
            )
    return "\n".join(lines)


def publish(found: dict[str, list[list[dict]]], learning_rate: float) -> None:
    """Writes the table, the plot and what they show."""
    steps, seeds = len(next(iter(found.values()))[0]), len(next(iter(found.values())))
    summary = {
        label: {name: statistics.fmean(ends(runs, name)) for name in ("reward", "kl", "beta", "clipped")}
        for label, runs in found.items()
    }
    rows = [
        [
            label,
            f"{row['reward']:.3f}",
            f"{row['kl']:.3g}",
            " to ".join(f"{edge(ends(found[label], 'kl')):.3g}" for edge in (min, max)),
            f"{row['beta']:.3g}",
            f"{row['clipped']:.1%}" if label.startswith("reference") else "",
        ]
        for label, row in summary.items()
    ]
    header = ["setting", "mean reward", "KL, nats per token", "KL over seeds", "beta at the end", "tokens stopped"]
    text = ["# Reward against KL to the reference", "", common.machine_line(), ""]
    text += [
        f"Two-number Countdown, 0.1 M parameters, {steps} steps of 128 completions, learning rate "
        f"{learning_rate:g}, {seeds} seeds. Means over the last {2 * WINDOW} steps.",
        "",
        common.table(header, rows),
        "",
    ]
    if list(found) == list(SETTINGS):
        plot(found)
        text += ["![reward against KL](learning.png)", "", what_it_shows(summary)]
    common.save("learning", "\n".join(text), {"settings": {k: str(v) for k, v in SETTINGS.items()}, "runs": found})


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks learning", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory() as out:
        for label in args.settings:
            found[label] = [
                learn(SETTINGS[label], seed, args.steps, args.learning_rate, Path(out)) for seed in range(args.seeds)
            ]
            print(f"{label}: reward {ends(found[label], 'reward')}, KL {ends(found[label], 'kl')}", flush=True)
    publish(found, args.learning_rate)
    return 0
