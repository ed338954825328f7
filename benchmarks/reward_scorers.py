"""The scorers that `benchmarks/rewards.py` compares: ours, rules that many scripts share, and public libraries.

A GSM8K scorer maps (texts, gold answers) to paid or not, a Countdown scorer (texts, problems), each problem a tuple
(nums, target, mode).
"""

import re
from collections.abc import Callable, Sequence

from grpo_math.rewards import get_countdown_accuracy, gsm8k_accuracy

Scorer = Callable[[Sequence[str], Sequence], list[bool]]


def ours_gsm8k(texts, golds):
    """`grpo_math.rewards.gsm8k_accuracy`."""
    return [paid == 1.0 for paid in gsm8k_accuracy(texts, answer=golds)]


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(texts, golds):
    """The regex of many scripts: the last number of the text, as a float."""
    paid = []
    for text, gold in zip(texts, golds, strict=True):
        numbers = NUMBER.findall(text)
        paid.append(bool(numbers) and float(numbers[-1].replace(",", "")) == float(gold.replace(",", "")))
    return paid


def gold_in_text(texts, golds):
    """A substring test: the gold answer occurs somewhere in the completion."""
    return [gold in text for text, gold in zip(texts, golds, strict=True)]


_FIRST_HASH = re.compile(r"#### (-?[\d.,]+)")


def first_hash(texts, golds):
    """The first `####`, as published with GSM8K: the string after it without commas."""
    found = [_FIRST_HASH.search(text) for text in texts]
    return [m is not None and m[1].replace(",", "") == g.replace(",", "") for m, g in zip(found, golds, strict=True)]


def trl_accuracy():
    """TRL's `accuracy_reward`."""
    from trl.rewards import accuracy_reward

    def score(texts, golds):
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        return [paid == 1.0 for paid in accuracy_reward(completions, [f"${gold}$" for gold in golds])]

    return score


def math_verify_default():
    """math-verify with its default extraction."""
    from math_verify import parse, verify

    return lambda texts, golds: [verify(parse(f"${g}$"), parse(t)) for t, g in zip(texts, golds, strict=True)]


def lm_eval_gsm8k(pattern: str, select: int):
    """A filter of lm-eval's task gsm8k, then its exact match without the characters that the task ignores."""
    from lm_eval.filters.extraction import RegexFilter

    regex_filter = RegexFilter(regex_pattern=pattern, group_select=select)

    def clean(text):
        return re.sub(r",|\$|(?s:.*)#### |\.$", "", text).lower()

    def score(texts, golds):
        found = regex_filter.apply([[text] for text in texts], [{}] * len(texts))
        return [clean(f[0]) == clean(g) for f, g in zip(found, golds, strict=True)]

    return score


def reasoning_gym_gsm():
    """The scorer of reasoning-gym's `gsm_symbolic`."""
    import reasoning_gym
    from reasoning_gym.utils import extract_answer

    dataset = reasoning_gym.create_dataset("gsm_symbolic", size=1, seed=0)

    def score(texts, golds):
        found = [extract_answer(text) for text in texts]
        return [
            dataset.score_answer(f, {"answer": g.replace(",", "")}) == 1.0 for f, g in zip(found, golds, strict=True)
        ]

    return score


_COUNTDOWN = {mode: get_countdown_accuracy(mode=mode) for mode in ("all", "subset")}


def ours_countdown(texts, problems):
    """`grpo_math.rewards.get_countdown_accuracy` in the mode of each problem."""
    paid = [False] * len(texts)
    for mode in ("all", "subset"):
        rows = [i for i, problem in enumerate(problems) if problem[2] == mode]
        if rows:
            columns = {"nums": [problems[i][0] for i in rows], "target": [problems[i][1] for i in rows]}
            for i, reward in zip(rows, _COUNTDOWN[mode]([texts[i] for i in rows], **columns), strict=True):
                paid[i] = reward == 1.0
    return paid


_TAG = re.compile(r"<answer>(.*?)</answer>", re.S)
_ALLOWED = re.compile(r"[\d+\-*/().\s]+")
_INTEGER = re.compile(r"\d+")


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


def reasoning_gym_countdown():
    """The scorer of reasoning-gym's `countdown`."""
    import reasoning_gym
    from reasoning_gym.utils import extract_answer

    dataset = reasoning_gym.create_dataset("countdown", size=1, seed=0)

    def score(texts, problems):
        entries = [{"metadata": {"numbers": nums, "target": target}} for nums, target, _ in problems]
        found = [extract_answer(text) for text in texts]
        return [dataset.score_answer(f, entry) == 1.0 for f, entry in zip(found, entries, strict=True)]

    return score


# name -> (make the scorer, how many completions it can score in reasonable time; None for all)
# "school": a rule that many scripts share, implemented here
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
    """Make the scorers whose libraries are installed."""
    made = {}
    for name, (make, most) in scorers.items():
        try:
            made[name] = (make(), most)
        except ImportError as error:
            print(f"{name}: left out, {error}")
    return made
