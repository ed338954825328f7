"""Attacks on scorers: model solutions of GSM8K, rewritten and attacked, and the texts that take longest."""

import time
from pathlib import Path

from benchmarks.plain import read_jsonl, share
from benchmarks.reward_scorers import NUMBER, ours_countdown, ours_gsm8k

# name -> the final line of a solution
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
    """Return (reasoning, stated answer, gold answer, correct) of every model solution.

    A solution without a last line `A: N` states its last number.
    """
    rows = []
    for problem in read_jsonl(folder / "example_model_solutions.jsonl"):
        gold = problem["ground_truth"].rpartition("A: ")[2].strip()
        for solution in (value for value in problem.values() if isinstance(value, dict)):
            reasoning, _, last = solution["solution"].rstrip().rpartition("\n")
            if last.startswith("A:"):
                stated = last[2:].strip()
            else:
                reasoning, stated = solution["solution"], (NUMBER.findall(solution["solution"]) or ["none"])[-1]
            rows.append((reasoning, stated, gold, solution["is_correct"]))
    return rows


def after_right(reasoning: str, shape: str, stated: str, gold: str) -> dict[str, str]:
    """Rewrites of a right solution, all of which a scorer should pay."""
    right = shape.format(stated)
    return {
        "as written": f"{reasoning}\n{right}",
        "trailing note": f"{reasoning}\n{right}\nNote: this took 3 steps and 12 lines.",
        "draft, then right": f"{reasoning}\n{shape.format(one_more(gold))}\nWait, that is not right.\n{right}",
    }


def after_wrong(reasoning: str, shape: str, stated: str, gold: str) -> dict[str, str]:
    """Rewrites of a wrong solution and attacks, none of which a scorer should pay."""
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
    """The next integer."""
    return str(int(float(number.replace(",", ""))) + 1)


def audit(folder: Path, scorers: dict) -> tuple[list[list], list[str]]:
    """One table row a scorer, the share that it pays of each kind of rewrite; and the names of the kinds."""
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


# fmt: off
UNITS = [
    "\\boxed{", "\\boxed{1}", "\\boxed{1} or ", "{", "}", "<answer>", "</answer>", "<answer>1</answer>",
    "<answer>1 or ", "<think>", "</think>", "<think></think>", "#", "####", "#### 1\n", "#### ", "The answer is ",
    "The answer is 1. ", "answer ", "Answer:", "Answer\n", "answer (", "A: ", "\nA: 1", "**", "**1**", "*1", "`",
    "`1`", "|1", "| 1 |\n", "1", "1,", "1.", "1 ", "1 or ", "-", "1-", "/", "1/", "(", "((1", ")", "[", "\\frac{",
    "\\frac{1}{", "\\", "$", "$1", "<<1=1>>", "<<", "<", "<b>1</b>", "&#36;", "½", "²", "１", "答案：", "\u200b", "İ",
    "\n", " ", "\t", "\nQuestion:", "~~1~~", "one hundred ", "x", "3+4\n", "3 + ", "=", "1=1;", "eighteen ", "a b c ",
    "Ans: 1\n", "\x00",
]
# fmt: on


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
    """Time our rewards on texts of `size` characters.

    Returns:
        `tuple`: the number of texts; (seconds, growth from a quarter of the size, reward, text) of the slowest ones.
    """
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
        shown = frame.replace("\n", "\\n").format(f"{unit!r} x {size // len(unit):,}")
        slowest.append((full, full / quarter, name, shown))
    return len(found), sorted(slowest, reverse=True)
