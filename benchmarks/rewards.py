"""Rewards: agreement, attacks, speed and worst case of ours and of public peers, side by side in one run.

    python -m benchmarks rewards [--gsm8k FOLDER] [--hard-cases FOLDER] [--out FILE] [--quick]

`--gsm8k` (or the environment variable GRPO_MATH_GSM8K) names the folder with GSM8K's `example_model_solutions.jsonl`
(https://github.com/openai/grade-school-math, MIT). `--hard-cases` (or GRPO_MATH_HARD_CASES) names the folder with the
hand-labelled cases `gsm8k.jsonl` and `countdown.jsonl`. The run skips a part without its data and a peer that is not
installed (`pip install grpo-math[peers]`). Every time is CPU time on one core.
"""

import argparse
import multiprocessing
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.plain import read_jsonl, share
from benchmarks.reward_attacks import FRAMES, SHAPES, UNITS, audit, model_solutions, worst_inputs
from benchmarks.reward_scorers import COUNTDOWN_SCORERS, GSM8K_SCORERS, Scorer, available
from benchmarks.reward_styles import STYLES, error_rates, labelled_cases, speeds
from grpo_math.expressions import exact_value


def _judge(scorer: Scorer, texts: Sequence[str], rows: Sequence, answers) -> None:
    for text, row in zip(texts, rows, strict=True):
        answers.send(bool(scorer([text], [row])[0]))


def judged(scorer: Scorer, texts: Sequence[str], rows: Sequence, patience: float) -> list[bool | None]:
    """Score cases one by one in another process; `None` for a case on which the scorer never returned or crashed."""
    fork = multiprocessing.get_context("fork")
    paid: list[bool | None] = []
    while len(paid) < len(texts):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_judge, args=(scorer, texts[len(paid) :], rows[len(paid) :], sender))
        process.start()
        sender.close()
        try:
            while len(paid) < len(texts) and receiver.poll(patience):
                paid.append(receiver.recv())
        except EOFError:  # it crashed
            pass
        if len(paid) < len(texts):
            paid.append(None)
        process.kill()
        process.join()
    return paid


def hard_cases(folder: Path, name: str, scorers: dict, row_of: Callable, ours: str) -> list[list]:
    """One table row a scorer: its agreement with the hand-labelled cases of a task."""
    cases = read_jsonl(folder / f"{name}.jsonl")
    texts, rows = [case["completion"] for case in cases], [row_of(case) for case in cases]
    table = []
    for scorer_name, (scorer, _) in scorers.items():
        paid = scorer(texts, rows) if scorer_name == ours else judged(scorer, texts, rows, patience=10)
        clear = [(p, c["label"]) for p, c in zip(paid, cases, strict=True) if not c.get("debatable")]
        open_ = [(p, c["label"]) for p, c in zip(paid, cases, strict=True) if c.get("debatable")]
        table.append(
            [
                scorer_name,
                f"{share(sum(bool(p) == bool(label) and p is not None for p, label in clear), len(clear))}",
                sum(bool(p) and not label for p, label in clear),
                sum(p is False and bool(label) for p, label in clear),
                sum(p is None for p, _ in clear + open_),
                f"{sum(bool(p) == bool(label) and p is not None for p, label in open_)} of {len(open_)}",
            ]
        )
    return table


def countdown_completions(count: int) -> tuple[list[str], list[tuple]]:
    """Right, wrong and invalid completions of usual length in the style `think`, for seeded random problems."""
    rng = random.Random(0)
    texts, problems = [], []
    for _ in range(count):
        nums = [rng.randint(1, 99) for _ in range(rng.choice((3, 4)))]
        expr = str(nums[0])
        for n in nums[1:]:
            expr = f"({expr}) {rng.choice('+-*/')} {n}" if rng.random() < 0.4 else f"{expr} {rng.choice('+-*/')} {n}"
        thought = f"I can try {nums[0]} + {nums[1]} = {nums[0] + nums[1]}, which is not it. Then {expr} could do."
        broken = rng.random() < 0.1
        texts.append(f"<think>{thought}</think>\n<answer>{expr + ' +' if broken else expr}</answer>")
        target = rng.randint(10, 100)
        if not broken and rng.random() < 0.5:
            value, _ = exact_value(expr, nums, "all")
            target = int(value) if value.denominator == 1 else target
        problems.append((nums, target, "all"))
    return texts, problems


def rate(scorer: Scorer, texts: Sequence[str], rows: Sequence, most: int | None, repeats: int) -> float:
    """Completions a CPU-second, the best of `repeats`."""
    texts, rows = texts[:most], rows[:most]
    scorer(texts[:50], rows[:50])
    best = float("inf")
    for _ in range(repeats if most is None else 1):
        started = time.process_time()
        scorer(texts, rows)
        best = min(best, time.process_time() - started)
    return len(texts) / best


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table whose cells may contain `|`."""
    body = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in body)


def machine() -> str:
    """Processor, Python and the versions of the peers in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if "model name" in line), model)
    versions = []
    for package in ("trl", "math-verify", "reasoning-gym", "lm-eval"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{model}, one core, Python {platform.python_version()}; {', '.join(versions)}."


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks rewards", description=__doc__.splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, default=os.environ.get("GRPO_MATH_GSM8K"))
    parser.add_argument("--hard-cases", type=Path, default=os.environ.get("GRPO_MATH_HARD_CASES"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rewards.md")
    parser.add_argument("--quick", action="store_true", help="only our own rewards, and nothing is written")
    options = parser.parse_args(argv)
    gsm8k_scorers, countdown_scorers = dict(GSM8K_SCORERS), dict(COUNTDOWN_SCORERS)
    if options.quick:
        gsm8k_scorers = {k: v for k, v in gsm8k_scorers.items() if k.startswith("grpo_math")}
        countdown_scorers = {k: v for k, v in countdown_scorers.items() if k.startswith("grpo_math")}
    gsm8k_scorers, countdown_scorers = available(gsm8k_scorers), available(countdown_scorers)
    parts = ["# Rewards", "", f"`python -m benchmarks rewards` on {machine()}"]

    for name, files, scorers, row_of in (
        ("gsm8k", ("gsm8k", "fresh"), gsm8k_scorers, lambda case: case["gold"]),
        ("countdown", ("countdown",), countdown_scorers, lambda case: (case["nums"], case["target"], case["mode"])),
    ):
        cases = labelled_cases(*files)
        header, rows = error_rates(
            cases, row_of, scorers, lambda *case: judged(*case, patience=10), next(iter(scorers))
        )
        explained = (
            f"{len(cases)} labelled completions (tests/reward_cases) by the style of their answer, with the number to "
            "refuse / to pay. Each cell: wrongly paid, of those to refuse / wrongly refused, of those to pay."
        )
        parts += ["", f"## Labelled cases, {name}, by style", "", explained, "", markdown(header, rows)]

    if options.hard_cases:
        header = ["scorer", "agreement", "wrongly paid", "wrongly unpaid", "hung or crashed", "debatable agreed"]
        for name, scorers, row_of in (
            ("gsm8k", gsm8k_scorers, lambda case: str(case["gold"])),
            ("countdown", countdown_scorers, lambda case: (case["nums"], case["target"], case["mode"])),
        ):
            rows = hard_cases(Path(options.hard_cases), name, scorers, row_of, next(iter(scorers)))
            parts += ["", f"## Hand-labelled hard cases, {name}", "", markdown(header, rows)]
            print("\n".join(parts[-3:]), flush=True)
    else:
        print("hard cases left out: --hard-cases FOLDER or GRPO_MATH_HARD_CASES with gsm8k.jsonl and countdown.jsonl")

    repeats = 3 if options.quick else 5
    if options.gsm8k:
        rows, kinds = audit(Path(options.gsm8k), gsm8k_scorers)
        explained = (
            f"{len(SHAPES)} forms of the final line: {', '.join(f'`{s}`' for s in SHAPES)}. The first three columns "
            "are right solutions, of which all should be paid; the others are wrong ones, of which none should be."
        )
        header = ["scorer", "solutions", *kinds]
        parts += ["", "## Model solutions of GSM8K, rewritten and attacked: share paid", "", explained]
        parts += ["", markdown(header, rows)]
        rows = speeds(model_solutions(Path(options.gsm8k)), gsm8k_scorers, repeats)
        forms = ", ".join(f"{style} `{form}`" for style, form in STYLES.items()).replace("\n", "\\n")
        parts += ["", "## Speed, gsm8k: completions a CPU-second", "", f"Model solutions that end in: {forms}.", ""]
        parts += [markdown(["scorer", "all styles", *STYLES], rows)]
    else:
        print("model solutions left out: --gsm8k FOLDER or GRPO_MATH_GSM8K with example_model_solutions.jsonl")

    table = []
    texts, problems = countdown_completions(20_000)
    for name, (scorer, most) in countdown_scorers.items():
        table.append([name, f"{rate(scorer, texts, problems, most, repeats):,.0f}"])
    parts += ["", "## Speed, countdown", "", markdown(["scorer", "completions a CPU-second"], table)]
    print("\n".join(parts[-2:]), flush=True)

    count, slowest = worst_inputs(1_000_000)
    rows = [[name, f"`{text}`", f"{seconds:.3f} s", f"{growth:.1f}"] for seconds, growth, name, text in slowest[:8]]
    explained = (
        f"The slowest of {count:,} texts of a million characters ({len(UNITS)} repeated units, {len(FRAMES)} frames, "
        "two rewards). The last column is the time's growth from a quarter of the length: 4 is linear, 16 quadratic."
    )
    parts += ["", "## Worst inputs", "", explained, ""]
    parts += [markdown(["reward", "text", "CPU time", "growth"], rows)]
    print(parts[-1])
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(parts) + "\n", encoding="utf-8")
        print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
