"""Answer styles: what each scorer pays and refuses wrongly, style by style, and its speed on each style."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.plain import read_jsonl, share

CASES = Path(__file__).parent.parent / "tests" / "reward_cases"
# The style of the labelled cases -> the end of a solution, for the speed.
STYLES = {
    "hash": "{reasoning}\n#### {stated}",
    "box": "{reasoning}\nSo the total is $\\boxed{{{stated}}}$ dollars.",
    "tag": "<think>{reasoning}</think>\n<answer>{stated}</answer>",
    "bold": "{reasoning}\nThe total is **{stated}** dollars.",
    "phrase": "{reasoning}\nThe answer is ${stated}.",
    "label": "{reasoning}\nAnswer: {stated}",
    "none": "{reasoning}\nThat is {stated} in all.",
}


def labelled_cases(*names: str) -> list[dict]:
    """The labelled completions of the files whose names begin so."""
    return [case for name in names for path in sorted(CASES.glob(f"{name}*.jsonl")) for case in read_jsonl(path)]


def error_rates(
    cases: Sequence[dict], row_of: Callable, scorers: dict, judge: Callable, ours: str
) -> tuple[list[str], list[list]]:
    """Return a header and one row a scorer: wrongly paid and wrongly refused cases of each style.

    Args:
        cases (`Sequence[dict]`):
            The labelled completions.
        row_of (`Callable`):
            `row_of(case)` is what a scorer compares a completion with.
        scorers (`dict`):
            Name -> (scorer, how many completions it can score).
        judge (`Callable`):
            `judge(scorer, texts, rows)` scores each case in a process of its own.
        ours (`str`):
            The name of the scorer that needs no such process.
    """
    texts, rows_to_score = [case["completion"] for case in cases], [row_of(case) for case in cases]
    counts = {style: [sum(c["style"] == style and c["label"] == n for c in cases) for n in (0, 1)] for style in STYLES}
    counts = {style: pair for style, pair in counts.items() if any(pair)}
    header = ["scorer", "all", *(f"{style} ({wrong} / {right})" for style, (wrong, right) in counts.items())]
    rows = []
    for name, (scorer, _) in scorers.items():
        paid = scorer(texts, rows_to_score) if name == ours else judge(scorer, texts, rows_to_score)
        cells = []
        for style in (None, *counts):
            chosen = [(bool(p), c["label"]) for p, c in zip(paid, cases, strict=True) if style in (None, c["style"])]
            wrong, right = [p for p, label in chosen if not label], [p for p, label in chosen if label]
            shares = [share(sum(errors), len(errors)) if errors else "-" for errors in (wrong, [not p for p in right])]
            cells.append(" / ".join(shares))
        rows.append([name, *cells])
        print(" | ".join(rows[-1]), flush=True)
    return header, rows


def speeds(solutions: Sequence[tuple[str, str, str, bool]], scorers: dict, repeats: int) -> list[list]:
    """One row a scorer: completions a CPU-second on each style, and on all of them together."""
    rows = []
    for name, (scorer, most) in scorers.items():
        seconds, count = [], 0
        for form in STYLES.values():
            sample = solutions[:most]
            texts = [form.format(reasoning=reasoning, stated=stated) for reasoning, stated, *_ in sample]
            golds = [gold for _, _, gold, _ in sample]
            scorer(texts[:50], golds[:50])
            best = float("inf")
            for _ in range(repeats if most is None else 1):
                started = time.process_time()
                scorer(texts, golds)
                best = min(best, time.process_time() - started)
            seconds.append(best)
            count = len(texts)
        rows.append([name, f"{count * len(STYLES) / sum(seconds):,.0f}", *(f"{count / s:,.0f}" for s in seconds)])
        print(" | ".join(rows[-1]), flush=True)
    return rows
