"""Run folders as a page of results: tables, sample completions and reward curves of finished recipes.

    python -m benchmarks runs report outputs/report_gsm8k outputs/report_countdown

writes `results/report.md` and a copy of each curve, `results/report_<folder>.png`.
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


def section(name: str, folder: Path) -> str:
    """One run: what it ran with, held-out accuracy, reward per iteration, completions, curve."""
    summary = json.loads((folder / report.SUMMARY).read_text(encoding="utf-8"))
    metrics = report.read_jsonl(folder / report.METRICS)
    rewards = [m["reward"] for m in metrics if m.get("reward") is not None]
    zero = [m["frac_reward_zero_std"] for m in metrics if m.get("frac_reward_zero_std") is not None]
    half = max(1, len(rewards) // 2)
    rows = report.rows_before_after(summary)
    rows.append(
        [
            "mean training reward, first and second half",
            *[f"{sum(r) / len(r):.3f}" for r in (rewards[:half], rewards[half:])],
            "",
        ]
    )
    picture = f"{name}_{folder.name}.png"
    shutil.copy(folder / report.CURVE, RESULTS / picture)
    values = read_yaml(folder / "recipe.yaml")
    changed = {k: v for k, v in values.items() if k not in ("model_name_or_path", "output_dir", "dataset_path")}
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
    return "\n\n".join(
        [
            f"## {summary['recipe']}, {Path(str(summary['model'])).name}",
            f"{summary['steps']} iterations in {summary['seconds'] / 60:.1f} minutes, {summary['world_size']} process(es). "
            f"Share of groups without a signal (equal rewards), mean: {sum(zero) / len(zero):.2f}.",
            table(list(report.HEADINGS), rows),
            " ".join(report.outcome_lines(summary)),
            *([f"Ignoring the target: {summary['blind_how']}."] if summary["blind"] is not None else []),
            f"![reward curve]({picture})",
            f"Three held-out problems (the end of the prompt) and a sampled completion each:\n\n{samples}",
            "Settings: " + ", ".join(f"`{key}: {value}`" for key, value in changed.items()),
        ]
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks runs", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the page, results/NAME.md")
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of finished runs")
    args = parser.parse_args(argv)
    parts = [section(args.name, folder) for folder in args.folders]
    text = "\n\n".join([f"# Runs: {args.name}", machine_line(), *parts])
    (RESULTS / f"{args.name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"Wrote {RESULTS / args.name}.md")
    return 0
