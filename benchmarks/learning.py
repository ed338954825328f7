"""Learning curves of the tiny model, 3 seeds: group size, temperature, partial credit, SFT or GRPO, bounds on the KL.

`--parts` runs some of the parts again; the others keep the results that are stored.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks import common, kl_bounds
from benchmarks.learning_questions import ABOUT, HELDOUT, QUESTIONS, SAMPLES, ask, tiny_problems
from benchmarks.pictures import label_ends, new_figure, save_figure
from benchmarks.plain import table

BOUNDS = "KL bounds"
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def ends(runs: list[list[dict]], name: str) -> list[float]:
    return [points[-1][name] for points in runs]


def shown(values: list[float]) -> str:
    """The mean, and the lowest and highest seed."""
    return f"{statistics.fmean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def question_table(found: dict[str, list[list[dict]]]) -> str:
    """Accuracy at the end, and what it took."""
    rows = [
        [
            label,
            shown(ends(runs, "sampled")),
            shown(ends(runs, "greedy")),
            f"{statistics.fmean(ends(runs, 'seconds')):.1f}",
            f"{statistics.fmean(ends(runs, 'step')):.0f}",
        ]
        for label, runs in found.items()
    ]
    return table(["", "sampled accuracy", "greedy accuracy", "CPU s of training", "steps"], rows)


def what_it_shows(question: str, found: dict[str, list[list[dict]]], blind: float) -> str:
    """A sentence or two computed from the ends: the best, whether the seeds overlap, and the target-blind policy."""
    means = {label: statistics.fmean(ends(runs, "sampled")) for label, runs in found.items()}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    apart = min(ends(found[best], "sampled")) > max(ends(found[worst], "sampled"))
    seeds = (
        "no seed of one reaches a seed of the other" if apart else "the seeds overlap, so this is no clear difference"
    )
    above = [label for label, mean in means.items() if mean > blind]
    return (
        f"Best at the end: {best} ({means[best]:.3f}); worst: {worst} ({means[worst]:.3f}); {seeds}. "
        f"Above the target-blind policy ({blind:.3f}): {', '.join(above) or 'none'}."
    )


def draw(questions: dict[str, dict[str, list[list[dict]]]], blind: float, path: Path) -> None:
    """One panel a question: held-out accuracy over training, the mean of the seeds and the band between them."""
    height = 4 * ((len(questions) + 1) // 2)  # inches
    figure = new_figure(12, height)
    axes = figure.subplots((len(questions) + 1) // 2, 2, squeeze=False).flatten()
    figure.subplots_adjust(left=0.06, right=0.9, bottom=0.6 / height, top=1 - 0.4 / height, wspace=0.45, hspace=0.32)
    for axis, (question, found) in zip(axes, questions.items(), strict=False):
        over = "seconds" if question == "method" else "step"
        colours, heights = {}, {}
        for (label, runs), colour in zip(found.items(), COLOURS, strict=False):
            points = list(zip(*[run[: min(map(len, runs))] for run in runs], strict=True))
            x = [statistics.fmean(p[over] for p in point) for point in points]
            y = [statistics.fmean(p["sampled"] for p in point) for point in points]
            low, high = ([edge(p["sampled"] for p in point) for point in points] for edge in (min, max))
            axis.plot(x, y, "o-", color=colour, markersize=3)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            colours[label], heights[label] = colour, y[-1]
        axis.axhline(blind, color="tab:gray", linestyle="--", linewidth=1)
        colours["ignores the target"], heights["ignores the target"] = "tab:gray", blind
        axis.set_ylim(0, max(0.8, 1.1 * max(heights.values())))
        axis.set_title(question, fontsize=11)
        axis.set_xlabel("CPU seconds of training" if over == "seconds" else "step (128 completions)")
        axis.set_ylabel("held-out accuracy, sampled")
        axis.grid(alpha=0.2)
        label_ends(axis, heights, colours)
    for axis in axes[len(questions) :]:
        axis.set_visible(False)
    save_figure(figure, path)


def page(data: dict) -> str:
    """The page in Markdown."""
    text = ["# Learning curves of the tiny model"]
    questions = data.get("questions")
    if questions:
        text.append(
            f"Two-number Countdown, 0.1 M parameters, {data['steps']} steps of 128 completions, {data['seeds']} seeds. "
            f"Accuracy on {HELDOUT} held-out problems, {SAMPLES} samples each at temperature 1, or greedy: mean and [lowest, "
            f"highest] seed. The best policy that ignores the target is right in {data['blind']:.3f}."
            f" {data['machine_line']}"
        )
        text.append("![held-out accuracy over training](learning.png)")
        for question, found in questions.items():
            text += [f"## {question.capitalize()}", ABOUT[question], question_table(found)]
            text.append(what_it_shows(question, found, data["blind"]))
    if data.get("runs"):
        text.append(kl_bounds.section(data["runs"], data["learning_rate"], data["kl_machine_line"]))
    return "\n\n".join(text)


def stored() -> dict:
    """The results of the last time, without its machine."""
    path = common.RESULTS / "learning.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: value for name, value in found.items() if name != "machine"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks learning", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=[*QUESTIONS, BOUNDS], choices=[*QUESTIONS, BOUNDS])
    parser.add_argument("--quick", action="store_true", help="10 steps, 1 seed; prints without writing results")
    args = parser.parse_args(argv)
    steps, seeds = (10, 1) if args.quick else (args.steps, args.seeds)
    data = {} if args.quick else stored()
    asked = [part for part in args.parts if part != BOUNDS]
    with tempfile.TemporaryDirectory() as out:
        if asked:
            kept = data.get("questions", {}) if (data.get("steps"), data.get("seeds")) == (steps, seeds) else {}
            answers = {**kept, **ask(asked, seeds, steps, Path(out))}
            data["questions"] = {question: answers[question] for question in QUESTIONS if question in answers}
            data |= {"steps": steps, "seeds": seeds, "blind": tiny_problems()[0].blind[0]}
            data["machine_line"] = common.machine_line()
        if BOUNDS in args.parts:
            data |= {
                "runs": kl_bounds.runs(seeds, min(steps, 100), Path(out)),
                "learning_rate": kl_bounds.LEARNING_RATE,
            }
            data["kl_machine_line"] = common.machine_line()
    text = page(data)
    if args.quick:
        print(text)
        return 0
    common.save("learning", text, data)
    if data.get("questions"):
        draw(data["questions"], data["blind"], common.RESULTS / "learning.png")
    if data.get("runs"):
        kl_bounds.draw(data["runs"], common.RESULTS / "learning_kl.png")
    return 0
