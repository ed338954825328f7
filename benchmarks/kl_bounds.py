"""Reward against KL to the reference for a fixed beta, a target KL and reference clipping (tiny model, 3 seeds).

What each holds fixed differs: a fixed beta the price of a nat, a target KL the average distance, reference clipping
the furthest that a single token is pushed. The plot shows the way each takes from the reference (KL 0) over training,
and where it ends; the table gives the end, and how far the KL of the seeds is spread.
"""

import statistics
from pathlib import Path

from transformers import TrainerCallback

from benchmarks import common
from benchmarks.pictures import label_ends, new_figure, plain_ticks, save_figure

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
LEARNING_RATE = 1e-3


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


def draw(found: dict[str, list[list[dict]]], path: Path) -> None:
    """Where each setting ends, reward against KL (the seeds as faint dots), and the KL on the way there."""
    figure = new_figure(12, 4.4)
    axes = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.88, bottom=0.13, top=0.9, wspace=0.5)
    colours, rewards, kls = {}, {}, {}
    styles = dict.fromkeys(FAMILIES, 0)
    for label, runs in found.items():
        family = label.split()[0]
        style = ("-", "--", ":")[styles[family] % 3]
        styles[family] += 1
        colour = colours[label] = FAMILIES[family]
        axes[0].plot(ends(runs, "kl"), ends(runs, "reward"), "o", color=colour, alpha=0.3, markersize=4)
        kl, reward = (statistics.fmean(ends(runs, name)) for name in ("kl", "reward"))
        axes[0].plot(kl, reward, "D", color=colour, markersize=6)
        rewards[label] = reward
        smooth = [common.running_mean([step["kl"] or 0.0 for step in run], WINDOW) for run in runs]
        common.band(axes[1], smooth, label, linestyle=style, color=colour)
        kls[label] = statistics.fmean(curve[-1] for curve in smooth)
    axes[0].set(xlabel="KL to the reference, nats per token (k3)", ylabel="mean reward", xscale="log")
    plain_ticks(axes[0], "x", (0.05, 0.1, 0.2, 0.3))
    axes[0].set_title("The ends: reward against KL; faint: the seeds", fontsize=10)
    axes[1].set(xlabel="step (128 completions)", ylabel="KL, nats per token", yscale="log")
    axes[1].set_ylim(0.02)  # the first steps are near 0
    plain_ticks(axes[1], "y", (0.02, 0.05, 0.1, 0.2, 0.5))
    axes[1].set_title("KL over training, lowest to highest seed", fontsize=10)
    for axis in axes:
        axis.grid(alpha=0.2)
    label_ends(axes[0], rewards, colours)
    label_ends(axes[1], kls, colours)
    save_figure(figure, path)


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


def section(found: dict[str, list[list[dict]]], learning_rate: float, machine_line: str) -> str:
    """The section of the page: table, picture, and what they show."""
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
    about = (
        f"{steps} steps of 128 completions, learning rate {learning_rate:g}, {seeds} seeds. Means over the last "
        f"{2 * WINDOW} steps. {machine_line}"
    )
    picture = "![reward against KL](learning_kl.png)"
    return "\n\n".join(
        ["## Reward against KL to the reference", about, common.table(header, rows), picture, what_it_shows(summary)]
    )


def runs(seeds: int, steps: int, out: Path) -> dict[str, list[list[dict]]]:
    """Every setting on every seed."""
    found = {}
    for label, setting in SETTINGS.items():
        found[label] = [learn(setting, seed, steps, LEARNING_RATE, out) for seed in range(seeds)]
        print(f"{label}: reward {ends(found[label], 'reward')}, KL {ends(found[label], 'kl')}", flush=True)
    return found
