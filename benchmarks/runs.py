"""Run folders as a page of results: tables, sample completions and reward curves of finished recipes.

    python -m benchmarks runs report outputs/report_gsm8k outputs/report_countdown

writes `results/report.md` and a copy of each curve, `results/report_<folder>.png`. The folder of a supervised warm-up
(`grpo-math sft`) may be given too: it has no curve.
"""

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.common import RESULTS, machine_line, table
from grpo_math import report
from grpo_math.recipe import read_yaml


def _quoted(text: str, width: int = 400) -> str:
    """A completion in one line of Markdown code."""
    return "`" + report.shorten(text, width).replace("`", "'") + "`"


def overview(summaries: dict[str, dict]) -> str:
    """Sampled held-out accuracy of all runs, a line each."""
    rows = []
    for name, summary in summaries.items():
        before, after = (summary[f"accuracy_{when}"]["value"] for when in ("before", "after"))
        rows.append(
            [
                name,
                "supervised" if "supervised" in summary else "GRPO",
                f"{summary['steps']}",
                f"{summary['seconds'] / 60:.1f}",
                f"{before:.3f}",
                f"{after:.3f}",
                f"x{after / before:.2f}" if before else "",
                summary["verdict"]["text"],
                "" if summary["blind"] is None else f"{summary['blind']:.3f}",
            ]
        )
    header = ["run", "training", "steps", "minutes", "sampled accuracy before", "after", "ratio", "verdict"]
    return table([*header, "ignoring the target"], rows)


def training_samples(folder: Path) -> list[str]:
    """A training prompt with one completion and its rewards, from the first, the middle and the last log."""
    records = report.read_jsonl(folder / report.COMPLETIONS)
    steps = sorted({record["step"] for record in records})
    lines = []
    for step in dict.fromkeys(steps[i] for i in (0, len(steps) // 2, -1)) if steps else ():
        record = next(record for record in records if record["step"] == step)
        rewards = ", ".join(f"{name} {value:g}" for name, value in record["rewards"].items() if value is not None)
        prompt = _quoted(report.prompt_text(record["prompt"])[-300:])
        lines.append(f"- step {step}, {prompt}: {_quoted(record['completion'])} ({rewards})")
    return lines


def section(name: str, folder: Path, summary: dict) -> str:
    """One run: what it ran with, held-out accuracy, reward per iteration, completions, curve."""
    values = read_yaml(folder / "recipe.yaml")
    model, seed = Path(str(summary["model"])).name, values.get("seed", 42)
    parts = [f"## {folder.name}: {summary['recipe']}, {model}, seed {seed}"]
    minutes, processes = summary["seconds"] / 60, summary["world_size"]
    how = f"{summary['steps']} iterations in {minutes:.1f} minutes, {processes} process(es)."
    rows = report.rows_before_after(summary)
    pictures, along = [], []
    if "supervised" in summary:
        how += f" Supervised, {summary['supervised']['lines']} worked solutions."
    else:
        metrics = report.read_jsonl(folder / report.METRICS)
        rewards, zero = (
            [m[key] for m in metrics if m.get(key) is not None] for key in ("reward", "frac_reward_zero_std")
        )
        half = max(1, len(rewards) // 2)
        halves = [f"{sum(r) / len(r):.3f}" for r in (rewards[:half], rewards[half:])]
        rows.append(["mean training reward, first and second half", *halves, ""])
        how += f" Share of groups without a signal (equal rewards), mean: {sum(zero) / len(zero):.2f}."
        picture = f"{name}_{folder.name}.png"
        shutil.copy(folder / report.CURVE, RESULTS / picture)
        pictures.append(f"![reward curve]({picture})")
        samples = "\n".join(training_samples(folder))
        along.append(f"Training prompts at the first, middle and last log, a completion each:\n\n{samples}")
    parts += [how, table(list(report.HEADINGS), rows), " ".join(report.outcome_lines(summary))]
    if summary["blind"] is not None:
        parts.append(f"Ignoring the target: {summary['blind_how']}.")
    parts += [*pictures, held_out_samples(folder), *along]
    changed = {k: v for k, v in values.items() if k not in ("model_name_or_path", "output_dir", "dataset_path")}
    parts.append("Settings: " + ", ".join(f"`{key}: {value}`" for key, value in changed.items()))
    return "\n\n".join(parts)


def held_out_samples(folder: Path) -> str:
    """Three held-out problems with a completion before and after."""
    before, after = (
        json.loads((folder / f"heldout_{when}.json").read_text(encoding="utf-8"))["records"]
        for when in ("before", "after")
    )
    samples = "\n\n".join(
        f"- {_quoted(report.prompt_text(before[i]['prompt'])[-300:])}\n"
        + "\n".join(
            f"  - {when}, {'right' if records[i]['correct'][0] else 'wrong'}: {_quoted(records[i]['sampled_completion'])}"
            for when, records in (("before", before), ("after", after))
        )
        for i in report.pick_samples(before)
    )
    return f"Three held-out problems (the end of the prompt) and a sampled completion each:\n\n{samples}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks runs", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the page, results/NAME.md")
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of finished runs")
    args = parser.parse_args(argv)
    summaries = [json.loads((folder / report.SUMMARY).read_text(encoding="utf-8")) for folder in args.folders]
    parts = [section(args.name, folder, summary) for folder, summary in zip(args.folders, summaries, strict=True)]
    names = [folder.name for folder in args.folders]
    all_runs = overview(dict(zip(names, summaries, strict=True)))
    text = "\n\n".join([f"# Runs: {args.name}", machine_line(), all_runs, *parts])
    (RESULTS / f"{args.name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"Wrote {RESULTS / args.name}.md")
    return 0
