"""Rewards: agreement, attacks, speed and worst case of ours and of public peers, side by side in one run.

    python -m benchmarks rewards [--gsm8k FOLDER] [--hard-cases FOLDER] [--out FILE] [--quick]

The data: GSM8K's `example_model_solutions.jsonl` (https://github.com/openai/grade-school-math, MIT) in the folder
that `--gsm8k` or the environment variable GRPO_MATH_GSM8K names; hand-labelled hard cases `gsm8k.jsonl` and
`countdown.jsonl` in the one that `--hard-cases` or GRPO_MATH_HARD_CASES names. A part whose data is missing is left
out, and so is a peer that is not installed (`pip install grpo-math[peers]`). Every time is CPU time on one core.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from grpo_math.rewards import get_countdown_accuracy, gsm8k_accuracy

Scorer = Callable[[Sequence[str], Sequence], list[bool]]

# --- the scorers -----------------------------------------------------------------------------------------------------
# GSM8K scorers map (texts, golds) to paid or not, Countdown scorers (texts, problems): (nums, target, mode).


def ours_gsm8k(texts, golds):
    return [paid == 1.0 for paid in gsm8k_accuracy(texts, answer=golds)]


def last_number(texts, golds):
    """The regex of many scripts: the last number of the text, as a float."""
    paid = []
    for text, gold in zip(texts, golds, strict=True):
        numbers = _NUMBER.findall(text)
        paid.append(bool(numbers) and float(numbers[-1].replace(",", "")) == float(gold.replace(",", "")))
    return paid


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def gold_in_text(texts, golds):
    """A substring test: the gold answer occurs somewhere in the completion."""
    return [gold in text for text, gold in zip(texts, golds, strict=True)]


def first_hash(texts, golds):
    """The first `####`, as published with GSM8K: the string after it without commas."""
    found = [_FIRST_HASH.search(text) for text in texts]
    return [m is not None and m[1].replace(",", "") == g.replace(",", "") for m, g in zip(found, golds, strict=True)]


_FIRST_HASH = re.compile(r"#### (-?[\d.,]+)")


def trl_accuracy():
    from trl.rewards import accuracy_reward

    def score(texts, golds):
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        return [paid == 1.0 for paid in accuracy_reward(completions, [f"${gold}$" for gold in golds])]

    return score


def math_verify_default():
    from math_verify import parse, verify

    return lambda texts, golds: [verify(parse(f"${g}$"), parse(t)) for t, g in zip(texts, golds, strict=True)]


def lm_eval_gsm8k(pattern: str, select: int):
    """A filter of lm-eval's task gsm8k, then its exact match with the characters that the task's file ignores."""
    from lm_eval.filters.extraction import RegexFilter

    regex_filter = RegexFilter(regex_pattern=pattern, group_select=select)

    def clean(text):
        return re.sub(r",|\$|(?s:.*)#### |\.$", "", text).lower()

    def score(texts, golds):
        found = regex_filter.apply([[text] for text in texts], [{}] * len(texts))
        return [clean(f[0]) == clean(g) for f, g in zip(found, golds, strict=True)]

    return score


def reasoning_gym_gsm():
    import reasoning_gym
    from reasoning_gym.utils import extract_answer

    dataset = reasoning_gym.create_dataset("gsm_symbolic", size=1, seed=0)

    def score(texts, golds):
        found = [extract_answer(text) for text in texts]
        return [
            dataset.score_answer(f, {"answer": g.replace(",", "")}) == 1.0 for f, g in zip(found, golds, strict=True)
        ]

    return score


def ours_countdown(texts, problems):
    paid = [False] * len(texts)
    for mode in ("all", "subset"):
        rows = [i for i, problem in enumerate(problems) if problem[2] == mode]
        if rows:
            columns = {"nums": [problems[i][0] for i in rows], "target": [problems[i][1] for i in rows]}
            for i, reward in zip(rows, _COUNTDOWN[mode]([texts[i] for i in rows], **columns), strict=True):
                paid[i] = reward == 1.0
    return paid


_COUNTDOWN = {mode: get_countdown_accuracy(mode=mode) for mode in ("all", "subset")}


def eval_countdown(texts, problems):
    """The scorer of many scripts: the last tag, a character check, the numbers by a regex, then Python's `eval`."""
    paid = []
    for text, (nums, target, _) in zip(texts, problems, strict=True):
        tags = _TAG.findall(text)
        expr = tags[-1].strip() if tags else ""
        good = bool(_ALLOWED.fullmatch(expr)) and sorted(map(int, _INTEGER.findall(expr))) == sorted(nums)
        try:
            paid.append(good and abs(eval(expr, {"__builtins__": None}) - target) < 1e-5)
        except Exception:
            paid.append(False)
    return paid


_TAG = re.compile(r"<answer>(.*?)</answer>", re.S)
_ALLOWED = re.compile(r"[\d+\-*/().\s]+")
_INTEGER = re.compile(r"\d+")


def reasoning_gym_countdown():
    import reasoning_gym
    from reasoning_gym.utils import extract_answer

    dataset = reasoning_gym.create_dataset("countdown", size=1, seed=0)

    def score(texts, problems):
        entries = [{"metadata": {"numbers": nums, "target": target}} for nums, target, _ in problems]
        found = [extract_answer(text) for text in texts]
        return [dataset.score_answer(f, entry) == 1.0 for f, entry in zip(found, entries, strict=True)]

    return score


# name -> (make the scorer, how many completions it can score in reasonable time)
# "school": a rule that many scripts share, written here
GSM8K_SCORERS = {
    "grpo_math.gsm8k_accuracy": (lambda: ours_gsm8k, None),
    "school: last number, float": (lambda: last_number, None),
    "school: gold in text": (lambda: gold_in_text, None),
    "school: first ####": (lambda: first_hash, None),
    "lm-eval gsm8k strict-match": (lambda: lm_eval_gsm8k(r"#### (\-?[0-9\.\,]+)", 0), None),
    "lm-eval gsm8k flexible-extract": (lambda: lm_eval_gsm8k(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1), None),
    "reasoning-gym gsm_symbolic": (reasoning_gym_gsm, None),
    "trl accuracy_reward": (trl_accuracy, 60),
    "math-verify, default": (math_verify_default, 60),
}
COUNTDOWN_SCORERS = {
    "grpo_math.countdown_accuracy": (lambda: ours_countdown, None),
    "school: regex and eval": (lambda: eval_countdown, None),
    "reasoning-gym countdown": (reasoning_gym_countdown, 1000),
}


def available(scorers: dict) -> dict[str, tuple[Scorer, int | None]]:
    made = {}
    for name, (make, most) in scorers.items():
        try:
            made[name] = (make(), most)
        except ImportError as error:
            print(f"{name}: left out, {error}")
    return made


# --- hard cases ------------------------------------------------------------------------------------------------------


def _judge_one(scorer: Scorer, text: str, row: object, answer) -> None:
    answer.send(bool(scorer([text], [row])[0]))


def judged(scorer: Scorer, texts: Sequence[str], rows: Sequence, patience: float) -> list[bool | None]:
    """Each case in a process of its own, `None` where it had to be stopped: some scorers do not come back."""
    fork = multiprocessing.get_context("fork")
    paid = []
    for text, row in zip(texts, rows, strict=True):
        receiver, sender = fork.Pipe(duplex=False)
        process = fork.Process(target=_judge_one, args=(scorer, text, row, sender))
        process.start()
        sender.close()
        try:
            paid.append(receiver.recv() if receiver.poll(patience) else None)
        except EOFError:  # it crashed
            paid.append(None)
        process.kill()
        process.join()
    return paid


def hard_cases(folder: Path, name: str, scorers: dict, row_of: Callable, ours: str) -> list[list]:
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


# --- model solutions, rewritten and attacked -------------------------------------------------------------------------

SHAPES = {
    "A: N": "A: {}",
    "#### N": "#### {}",
    "\\boxed{N}": "\\boxed{{{}}}",
    "<answer>N</answer>": "<answer>{}</answer>",
    "The answer is N.": "The answer is {}.",
    "**N**": "**{}**",
    "The answer is $N.": "The answer is ${}.",
}


def model_solutions(folder: Path) -> list[tuple[str, str, str, bool]]:
    """(reasoning, stated answer, gold, right) of every solution; one without a line `A: N` states its last number."""
    rows = []
    for problem in read_jsonl(folder / "example_model_solutions.jsonl"):
        gold = problem["ground_truth"].rpartition("A: ")[2].strip()
        for solution in (value for value in problem.values() if isinstance(value, dict)):
            reasoning, _, last = solution["solution"].rstrip().rpartition("\n")
            if last.startswith("A:"):
                stated = last[2:].strip()
            else:
                reasoning, stated = solution["solution"], (_NUMBER.findall(solution["solution"]) or ["none"])[-1]
            rows.append((reasoning, stated, gold, solution["is_correct"]))
    return rows


def after_right(reasoning: str, shape: str, stated: str, gold: str) -> dict[str, str]:
    right = shape.format(stated)
    return {
        "as written": f"{reasoning}\n{right}",
        "trailing note": f"{reasoning}\n{right}\nNote: this took 3 steps and 12 lines.",
        "draft, then right": f"{reasoning}\n{shape.format(one_more(gold))}\nWait, that is not right.\n{right}",
    }


def after_wrong(reasoning: str, shape: str, stated: str, gold: str) -> dict[str, str]:
    wrong, right, n = shape.format(stated), shape.format(gold), int(float(gold.replace(",", "")))
    return {
        "as written": f"{reasoning}\n{wrong}",
        "gold mentioned": f"{reasoning}\n{wrong}\nNote: the number {gold} came up in the check.",
        "wrong or gold": f"{reasoning}\n{shape.format(f'{stated} or {gold}')}",
        "two markers": f"{reasoning}\n{wrong} or {right}",
        "gold retracted": f"{reasoning}\n{right}\nWait, that is wrong.\n{wrong}",
        "61 guesses": reasoning + "\n" + "\n".join(shape.format(guess) for guess in range(n - 30, n + 31)),
    }


def one_more(number: str) -> str:
    return str(int(float(number.replace(",", ""))) + 1)


def audit(folder: Path, scorers: dict) -> tuple[list[list], list[str]]:
    solutions = model_solutions(folder)
    right = [row[:3] for row in solutions if row[3]]
    wrong = [row[:3] for row in solutions if not row[3]]
    table = []
    names: dict[bool, list[str]] = {}
    for scorer_name, (scorer, most) in scorers.items():
        columns = []
        for is_right, rows, make in ((True, right, after_right), (False, wrong, after_wrong)):
            sample = rows if most is None else rows[:: max(1, len(rows) // most)][:most]
            paid: dict[str, list[int]] = {}
            for shape in SHAPES.values():
                texts = [make(reasoning, shape, stated, gold) for reasoning, stated, gold in sample]
                for kind in texts[0]:
                    scored = scorer([text[kind] for text in texts], [gold for *_, gold in sample])
                    paid.setdefault(kind, []).append(sum(scored))
            names[is_right] = list(paid)
            columns += [f"{share(sum(counts), len(sample) * len(SHAPES))}" for counts in paid.values()]
        table.append([scorer_name, "all" if most is None else f"{most} + {most}", *columns])
        print(" | ".join(map(str, table[-1])), flush=True)
    return table, [*names[True], *names[False]]


# --- speed -----------------------------------------------------------------------------------------------------------


def countdown_completions(count: int) -> tuple[list[str], list[tuple]]:
    """Completions in the think style over seeded random problems: right, wrong and not valid ones, of usual length."""
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
            value = eval(expr)  # our own expression
            target = int(value) if value == int(value) else target
        problems.append((nums, target, "all"))
    return texts, problems


def rate(scorer: Scorer, texts: Sequence[str], rows: Sequence, most: int | None, repeats: int) -> float:
    """Completions a CPU-second, the best of some repeats."""
    texts, rows = texts[:most], rows[:most]
    scorer(texts[:50], rows[:50])
    best = float("inf")
    for _ in range(repeats if most is None else 1):
        started = time.process_time()
        scorer(texts, rows)
        best = min(best, time.process_time() - started)
    return len(texts) / best


UNITS = [
    *(
        "\\boxed{",
        "\\boxed{1}",
        "\\boxed{1} or ",
        "{",
        "}",
        "<answer>",
        "</answer>",
        "<answer>1</answer>",
        "<answer>1 or ",
    ),
    *(
        "<think>",
        "</think>",
        "<think></think>",
        "#",
        "####",
        "#### 1\n",
        "#### ",
        "The answer is ",
        "The answer is 1. ",
    ),
    *("answer ", "Answer:", "Answer\n", "answer (", "A: ", "\nA: 1", "**", "**1**", "*1", "`", "`1`", "|1", "| 1 |\n"),
    *(
        "1",
        "1,",
        "1.",
        "1 ",
        "1 or ",
        "-",
        "1-",
        "/",
        "1/",
        "(",
        "((1",
        ")",
        "[",
        "\\frac{",
        "\\frac{1}{",
        "\\",
        "$",
        "$1",
    ),
    *(
        "<<1=1>>",
        "<<",
        "<",
        "<b>1</b>",
        "&#36;",
        "½",
        "²",
        "１",
        "答案：",
        "\u200b",
        "İ",
        "\n",
        " ",
        "\t",
        "\nQuestion:",
    ),
    *("~~1~~", "one hundred ", "x", "3+4\n", "3 + ", "=", "1=1;", "eighteen ", "a b c ", "Ans: 1\n", "\x00"),
]
FRAMES = [
    "{}",
    "<answer>{}</answer>",
    "#### {}",
    "\\boxed{{{}}}",
    "<think>{}",
    "{}\n#### 7",
    "The answer is {}",
    "{}</think>7",
]


def worst_inputs(size: int) -> tuple[int, list[tuple[float, float, str, str]]]:
    """The slowest texts of `size` characters: (seconds, growth from a quarter of it, reward, text), slowest first."""
    rewards = {
        "gsm8k_accuracy": lambda text: ours_gsm8k([text], ["7"]),
        "countdown_accuracy": lambda text: ours_countdown([text], [([3, 4], 7, "all")]),
    }

    def seconds(reward, frame, unit, length, repeats):
        text = frame.format(unit * (length // len(unit)))
        times = []
        for _ in range(repeats):
            started = time.process_time()
            reward(text)
            times.append(time.process_time() - started)
        return min(times)

    found = [
        (seconds(reward, frame, unit, size, 1), name, frame, unit)
        for name, reward in rewards.items()
        for frame in FRAMES
        for unit in UNITS
    ]
    found.sort(reverse=True)
    slowest = []
    for _, name, frame, unit in found[:12]:
        full = seconds(rewards[name], frame, unit, size, 3)
        quarter = seconds(rewards[name], frame, unit, size // 4, 3)
        slowest.append((full, full / quarter, name, frame.format(f"{unit!r} x {size // len(unit):,}")))
    return len(found), sorted(slowest, reverse=True)


# --- the report ------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def share(part: int, whole: int) -> str:
    """A percentage that says 100 or 0 only if it is exactly that."""
    percent = 100 * part / whole
    shown = f"{percent:.1f}"
    if (shown == "100.0" and part != whole) or (shown == "0.0" and part):
        shown = f"{percent:.3f}"
    return f"{shown.removesuffix('.0')} %"


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    body = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in body)


def machine() -> str:
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

    texts, golds = [], []
    if options.gsm8k:
        rows, kinds = audit(Path(options.gsm8k), gsm8k_scorers)
        explained = (
            f"{len(SHAPES)} forms of the final line: {', '.join(f'`{s}`' for s in SHAPES)}. The first three columns "
            "are right solutions, of which all should be paid; the others are wrong ones, of which none should be."
        )
        header = ["scorer", "solutions", *kinds]
        parts += ["", "## Model solutions of GSM8K, rewritten and attacked: share paid", "", explained]
        parts += ["", markdown(header, rows)]
        solutions = model_solutions(Path(options.gsm8k))
        texts = [f"{reasoning}\n#### {stated}" for reasoning, stated, _, _ in solutions]
        golds = [gold for *_, gold, _ in solutions]
    else:
        print("model solutions left out: --gsm8k FOLDER or GRPO_MATH_GSM8K with example_model_solutions.jsonl")

    speeds = []
    repeats = 3 if options.quick else 5
    if texts:
        speeds += [[n, "GSM8K", f"{rate(s, texts, golds, m, repeats):,.0f}"] for n, (s, m) in gsm8k_scorers.items()]
    texts, problems = countdown_completions(20_000)
    for name, (scorer, most) in countdown_scorers.items():
        speeds.append([name, "Countdown", f"{rate(scorer, texts, problems, most, repeats):,.0f}"])
    parts += ["", "## Speed", "", markdown(["scorer", "task", "completions a CPU-second"], speeds)]
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
