"""What a run leaves to look at: the reward curve, drawn from its metrics.jsonl and summary.json, and printed tables."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_math.files import read_jsonl, write_whole

METRICS, COMPLETIONS, CURVE, SUMMARY = "metrics.jsonl", "completions.jsonl", "reward_curve.png", "summary.json"
LOOKS = "heldout.jsonl"  # held-out accuracy along the run
BEFORE, AFTER = "heldout_before.json", "heldout_after.json"  # figures and records of both measurements
EVAL, EVAL_COMPLETIONS = "eval.json", "eval_completions.jsonl"  # what `grpo-math eval FOLDER` measured
PAGE, MEMORY = "report.html", "memory.json"  # the HTML page, and the predicted memory that it shows


# --- the curve --------------------------------------------------------------------------------------------------------


def draw_curve(folder: Path, blind: float | None = None) -> Path | None:
    """Draw `reward_curve.png` from what the run's folder holds: metrics, looks, recipe, summary.

    Above: mean reward, each point faint with a band of one standard error, and its running mean; the best target-blind
    policy where the task has one; held-out accuracy before, along and after. Below: share of zero-variance groups, mean
    completion length, KL.

    Returns:
        the file, or None when nothing has been logged yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    path = folder / METRICS
    records = [r for r in read_jsonl(path) if r.get("reward") is not None] if path.exists() else []
    if not records:
        return None
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8")) if (folder / SUMMARY).exists() else {}
    values = _recipe_values(folder)
    steps = [r["step"] for r in records]
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)

    rewards = [r["reward"] for r in records]
    errors = standard_errors(records, rows_of_a_step(values, summary.get("world_size", 1)))
    top.plot(steps, rewards, ".", color="C0", alpha=0.35, markersize=4)
    low = [m - e for m, e in zip(rewards, errors, strict=True)]
    high = [m + e for m, e in zip(rewards, errors, strict=True)]
    top.fill_between(steps, low, high, color="C0", alpha=0.15, linewidth=0, label="± standard error")
    window = max(1, len(steps) // 12)
    label = f"training reward, mean of {window} points" if window > 1 else "training reward"
    marker = "o" if len(steps) == 1 else None
    top.plot(steps, running_mean(rewards, window), color="C0", marker=marker, label=label)
    if blind is not None:
        top.axhline(blind, color="C3", linestyle="--", label=f"best target-blind policy ({blind:.2f})")
    _draw_heldout(top, heldout_points(folder, summary, steps[-1]))
    top.set_ylabel("reward")
    top.margins(y=0.08)
    top.set_title(_title(folder, values, summary), fontsize=10)
    top.legend(loc="lower center", bbox_to_anchor=(0.5, -0.26), ncol=2, fontsize=8, frameon=False)

    zero = [r.get("frac_reward_zero_std") for r in records]
    bottom.plot(steps, zero, color="C1", marker=marker, label="zero-variance groups (share)")
    bottom.set_ylim(-0.02, 1.02)
    bottom.set_ylabel("share of groups")
    bottom.set_xlabel("iteration (optimizer step)")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    length = bottom.twinx()
    lengths = [r.get("completions/mean_length") for r in records]
    length.plot(steps, lengths, color="C4", marker=marker, label="completion length")
    # From 0: else a change of a hundredth of a token fills the plot
    length.set_ylim(0, 1.1 * max((n for n in lengths if n), default=1))
    length.set_ylabel("tokens")
    lines = bottom.get_lines() + length.get_lines()
    if any(r.get("kl") is not None for r in records):
        kl = bottom.twinx()
        kl.spines["right"].set_position(("axes", 1.1))
        lines += kl.plot(steps, [r.get("kl") for r in records], color="C5", label="KL to the reference")
        kl.set_ylabel("nats per token")
    names = [line.get_label() for line in lines]
    figure.legend(lines, names, loc="outside lower center", ncol=len(lines), fontsize=8, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_whole(folder / CURVE, drawn.getvalue())
    return folder / CURVE


def standard_errors(records: Sequence[dict], rows: int | None) -> list[float]:
    """
    The standard error of each logged mean reward: its standard deviation over the root of the completions behind it.

    Args:
        records: Lines of `metrics.jsonl`; each is the mean over the steps since the one before.
        rows: Completions of a step; where it is not known, the standard deviation of the means is not drawn (0).
    """
    if rows is None:
        return [0.0] * len(records)
    before = [0, *(r["step"] for r in records)]
    steps = [max(1, r["step"] - last) for r, last in zip(records, before, strict=False)]
    return [(r.get("reward_std") or 0.0) / (rows * n) ** 0.5 for r, n in zip(records, steps, strict=True)]


def rows_of_a_step(values: dict, processes: int = 1) -> int | None:
    """Completions of an optimizer step by a run's recipe; None where it does not say."""
    batch = values.get("per_device_train_batch_size")
    return batch * (values.get("gradient_accumulation_steps") or 1) * processes if batch else None


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the `window` values around each one, of fewer at the ends."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def heldout_points(folder: Path, summary: dict, last: int) -> list[tuple[int, dict]]:
    """Held-out accuracy (sampled) by step: before, each look along the run, after."""
    looks = read_jsonl(folder / LOOKS) if (folder / LOOKS).exists() else []
    points = [(look["step"], look["accuracy"]) for look in looks]
    before = summary.get("accuracy_before")
    if before is None and (folder / BEFORE).exists():  # the run goes on
        before = json.loads((folder / BEFORE).read_text(encoding="utf-8"))["figures"]["accuracy"]
    after = summary.get("accuracy_after")
    return [*([(0, before)] if before else []), *points, *([(summary.get("steps", last), after)] if after else [])]


def _draw_heldout(axis, points: list[tuple[int, dict]]) -> None:
    if not points:
        return
    values = [point["value"] for _, point in points]
    error = [[p["value"] - p["low"] for _, p in points], [p["high"] - p["value"] for _, p in points]]
    style = "s-" if len(points) > 2 else "s"
    label = "held-out accuracy, sampled (95 %)"
    axis.errorbar([step for step, _ in points], values, yerr=error, fmt=style, color="C2", capsize=3, lw=1, label=label)


def _recipe_values(folder: Path) -> dict:
    import yaml

    path = folder / "recipe.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return values if isinstance(values, dict) else {}


def _title(folder: Path, values: dict, summary: dict) -> str:
    model = values.get("model_name_or_path") or summary.get("model")
    parts = [
        Path(str(model)).name if model else folder.resolve().name,
        values.get("task") or summary.get("task"),
        f"groups of {values['num_generations']}" if values.get("num_generations") else None,
        f"seed {values['seed']}" if values.get("seed") is not None else None,
    ]
    # A name is drawn as it is: no formula between dollars, and nothing that fonts have no glyph for by nature
    return shorten(", ".join(str(part) for part in parts if part), 100).replace("$", r"\$")


# --- tables -----------------------------------------------------------------------------------------------------------


HEADINGS = ("", "before", "after", "change")
KINDS_SHOWN = 8  # classes of problems in the table; all of them are in summary.json


def table_before_after(summary: dict) -> Table:
    """`rows_before_after` as a table for a terminal."""
    table = Table(title=f"Held-out accuracy, {summary['heldout_n']} problems (95 % intervals)", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows_before_after(summary):
        table.add_row(*row)
    return table


def print_figures(console: Console, summary: dict) -> None:
    """The table of held-out accuracy, the verdict and the outcomes; a log file has lines as wide as the table needs."""
    given = console.width
    console.width = given if console.is_terminal else max(given, 112)
    console.print(table_before_after(summary))
    console.width = given
    for line in outcome_lines(summary):
        console.print(Text(line))


def rows_before_after(summary: dict) -> list[list[str]]:
    """
    Held-out accuracy before and after and the paired change, with 95 % intervals: sampled, greedy, of several samples, by
    answer form, by class; and the policy that ignores the target. One list of cells a row, for `HEADINGS`.
    """
    change = summary.get("change") or {}
    rows = []

    def add(label: str, before, after, difference=None) -> None:
        rows.append([label, _share(before), _share(after), _change(difference)])

    def add_figure(label: str, name: str) -> None:
        before, after = (summary.get(f"{name}_{when}") for when in ("before", "after"))
        if before is not None or after is not None:
            add(label, before, after, change.get(name))

    k = summary["heldout_generations"]
    add_figure("sampled", "accuracy")
    add_figure("greedy", "greedy")
    passes = [summary.get(f"pass_at_{when}") or {} for when in ("before", "after")]
    for size in passes[1] or passes[0]:
        add(f"pass@{size}", *(found.get(size) for found in passes), (change.get("pass_at") or {}).get(size))
    if k > 1:
        add_figure(f"majority of {k}", "majority")
    add_figure("sampled, the prompt's form only", "strict")
    add_figure("sampled, any form", "lenient")
    before, after = summary.get("by_kind_before") or {}, summary.get("by_kind_after") or {}
    kinds = list(after or before)
    if len(kinds) > 1:
        for kind in kinds[:KINDS_SHOWN]:
            add(f"sampled, {kind}", before.get(kind), after.get(kind), (change.get("by_kind") or {}).get(kind))
    if summary.get("blind") is not None:
        add("best policy that ignores the target", summary["blind"], summary["blind"])
    return rows


def _share(figure: dict | float | None) -> str:
    if figure is None:
        return "-"
    if isinstance(figure, dict):
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure:.3f}"


def _change(figure: dict | None) -> str:
    return "" if figure is None else f"{figure['value']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def outcome_lines(summary: dict) -> list[str]:
    """The verdict; what became of the sampled completions (outcomes, length, truncation); what measuring took; findings."""
    lines = []
    if summary.get("verdict"):
        text, count = summary["verdict"]["text"], summary["verdict"].get("problems")
        unseen = (
            f" on the {count} problems that chose no checkpoint" if count not in (None, summary["heldout_n"]) else ""
        )
        lines.append(f"Verdict: {text} (sampled{unseen}; this interval holds however often one looks).")
    for when in ("before", "after"):
        outcomes, length = summary.get(f"outcomes_{when}"), summary.get(f"mean_length_{when}")
        if outcomes and length is not None:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in outcomes.items())
            cut = summary.get(f"truncated_{when}") or 0.0
            lines.append(f"Outcomes {when}: {shares}; {length:.0f} tokens on average, {cut:.2f} cut off.")
    if summary.get("seconds_measuring"):
        spent, along = summary["seconds_measuring"], summary.get("along")
        looks = f", {along['seconds']:.0f} s along the run ({along['looks']} looks)" if along else ""
        lines.append(f"Measuring took {spent['before']:.0f} s before{looks}, {spent['after']:.0f} s after.")
    return [*lines, *(f"Why nothing may have been learned: {finding}." for finding in summary.get("findings") or [])]


def pick_samples(records: Sequence[dict], count: int = 3) -> list[int]:
    """Evenly spaced held-out problems, the same ones before and after."""
    count = min(count, len(records))
    return [i * len(records) // count for i in range(count)]


def print_samples(console: Console, before: Sequence[dict], after: Sequence[dict] | None, width: int = 600) -> None:
    """Three sample completions before and after, with whether they are right."""
    for i in pick_samples(before):
        console.print(Text(f"Problem: {shorten(prompt_text(before[i]['prompt']), width)}", style="bold"))
        for name, records in (("before", before), ("after", after)):
            if records is not None:
                mark = "right" if records[i]["correct"][0] else "wrong"
                console.print(Text(f"  {name} ({mark}): {shorten(records[i]['sampled_completion'], width)}"))


def prompt_text(prompt: str | list[dict]) -> str:
    """A prompt for people: the last user turn of a conversation, or the string."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def shorten(text: str, width: int) -> str:
    """One printable line: a completion must not move the cursor or colour the terminal."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"


def print_summary(console: Console, folder: Path, summary: dict, samples: tuple[list, list | None] | None) -> None:
    """The end of a run: samples, the table, and where everything is."""
    if samples is not None:
        print_samples(console, *samples)
        print_figures(console, summary)
        if summary.get("blind") is not None:
            console.print(Text(f"Ignoring the target: {summary['blind_how']}."))
    done = summary["steps"] - summary["resumed_at"]
    resumed = f" (resumed at {summary['resumed_at']})" if summary["resumed_at"] else ""
    console.print(Text(f"{done} steps{resumed} in {summary['seconds']:.0f} s of training."))
    if (folder / CURVE).exists():
        console.print(Text(f"Reward curve: {folder / CURVE}"))
    console.print(Text(f"Model, metrics and completions: {folder}"))
