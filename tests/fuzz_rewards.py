"""Fuzz target: random texts against the promises of the rewards. Run: `python tests/fuzz_rewards.py --seconds 60`.

`python tests/fuzz_rewards.py --compare 2000000` counts the texts that are read otherwise with the shortcut for plain
numbers than without it.

A text is a random sequence of markers, digits, brackets, LaTeX and other scripts, or a mutation of an earlier text. For
each text nothing is raised, the shortcut for plain numbers changes nothing, outcomes are consistent, layout and thinking
around it change nothing, only the last statement is rewarded, and time is bounded. The first text that breaks a promise
ends the run.
"""

import argparse
import json
import math
import random
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

from grpo_math.answers import Extraction, extract, reading
from grpo_math.expressions import evaluate
from grpo_math.rewards import (
    countdown_accuracy,
    countdown_proximity,
    get_countdown_accuracy,
    get_gsm8k_accuracy,
    gsm8k_accuracy,
    gsm8k_exact_match,
    think_answer_format,
)

# fmt: off
PIECES = [
    "\\boxed{", "\\fbox{", "}", "{", "<answer>", "</answer>", "<think>", "</think>", "#### ", "####",
    "The answer is ", "A: ", "\nA: ", "Answer:", "answer", "# Answer\n", "**", "*", "`", "```\n", "|", "<b>", "</b>",
    '{"answer": ', "答案：", "7", "9", "18", "7.0", "1,450", "1 450", ".5", "0", "00", "1e3", "½", "²", "７", "٧",
    "seven", "twenty", " million", "-", "–", "−", "+", "*", "/", "x", "×", "÷", "=", "==", "^", "!", "±", "<", ">",
    "≠", "%", "$", "€", "(", ")", "[", "]", "\\frac{", "}{", "\\text{", "\\times ", "\\cdot ", "\\sqrt{", "\\,",
    "\\(", "\\)", "\\$", "\\", "^{", "<<1=1>>", "~~", " or ", " and ", " to ", ", ", "; ", ". ", ": ", "\n", "\n\n",
    " ", "\t", "\xa0", "\u200b", "&#36;", "&minus;", "eggs", " not ", "Wait, no. ", "Step ", "\nQuestion: ", "none",
    "nan", "inf", "<|im_end|>", "\x00", "\ud800", "İ", "é",
]
COUNTDOWN_PIECES = [
    *"0123456789+-*/()= ", "(3+5)*7", "\\frac{", "}{", "}", "×", "**", "//", ".", "\\boxed{", "[", "]", "\n",
]
# fmt: on
HANGS_AFTER = 10.0  # CPU seconds for the ten or so readings of one short text; the slowest known takes 0.3
STATUSES = {"ok", "none", "hedged", "malformed"}


def random_text(rng: random.Random, pieces: list[str], corpus: list[str]) -> str:
    """A mutation of a text of the corpus, or a random sequence of pieces."""
    if corpus and rng.random() < 0.4:
        text = rng.choice(corpus)
        a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        return text[:a] + rng.choice(pieces) + text[rng.choice((a, b)) :]
    text = "".join(rng.choices(pieces, k=rng.randint(0, 24)))
    return text * rng.choice((1, 1, 1, 1, 2, 50)) if len(text) < 200 else text


SHORTCUT = reading._PLAIN
NO_SHORTCUT = re.compile(r"(?!)")


def extract_without_shortcut(text: str, allow_bare: bool = False) -> Extraction:
    """Extract with tokens alone, without the shortcut for contents that are a plain number."""
    reading._PLAIN = NO_SHORTCUT
    try:
        return extract(text, allow_bare=allow_bare)
    finally:
        reading._PLAIN = SHORTCUT


def check_answer(text: str, rng: random.Random) -> None:
    """Check the extraction and the GSM8K and format rewards on one text."""
    for allow_bare in (False, True):
        found = extract(text, allow_bare=allow_bare)
        assert found == extract_without_shortcut(text, allow_bare), found
        assert found.status in STATUSES, found
        assert (found.value is None) == (found.status != "ok"), found
        assert (found.span is None) == (found.form is None) == (found.status == "none"), found
        assert found.span is None or 0 <= found.span[0] <= found.span[1] <= len(text), found
    for other in (text + "\n", text + "  "):
        assert extract(other) == extract(text), (other, extract(other), extract(text))
    if "<" not in text:
        thought = extract(f"<think>\\boxed{{{rng.randint(0, 9)}}} hm</think>\n\n{text}")
        plain = extract(f"\n\n{text}")
        assert thought[:2] == plain[:2], (thought, plain)
    stated = f"{text}\nNo, that is not right at all.\n\\boxed{{123}}"
    if "think" not in text and "uestion" not in text and "<" not in text:
        assert extract(stated).value in (123, None), extract(stated)
    for reward in (gsm8k_accuracy, gsm8k_exact_match, get_gsm8k_accuracy(allow_bare=True)):
        assert reward([text], answer=[text])[0] in (0.0, 1.0, None)
    assert think_answer_format([text])[0] in (0.0, 1.0)


def check_expression(text: str, rng: random.Random) -> None:
    """Check the evaluation and the Countdown rewards on one text."""
    nums = [rng.randint(0, 9) for _ in range(rng.randint(0, 5))]
    for mode in ("all", "subset"):
        value, status = evaluate(text, nums, mode)
        assert (value is None) == (status != "ok"), (value, status)
        if value is not None:
            assert isinstance(value, Fraction), value
            assert evaluate(f" {text}\n", nums, mode).value == value
            assert evaluate(f"\\boxed{{{text}}}", nums, mode).status in ("ok", "malformed")
    completion = f"<answer>{text}</answer>"
    for reward in (countdown_accuracy, countdown_proximity, get_countdown_accuracy(allow_bare=True, mode="subset")):
        assert 0.0 <= reward([completion], nums=[nums], target=[7])[0] <= 1.0
        assert 0.0 <= reward([text], nums=[nums], target=[7])[0] <= 1.0


def fuzz(seed: int, seconds: float = math.inf, texts: float = math.inf) -> int:
    """Check random texts, for `seconds` or until there were `texts` of them, and return their number.

    Raises:
        `AssertionError`: for the first text that breaks a promise; the message contains the text.
    """
    rng = random.Random(seed)
    corpus: list[str] = []
    ends = time.monotonic() + seconds
    checked = 0
    while time.monotonic() < ends and checked < texts:
        check, pieces = rng.choice(((check_answer, PIECES), (check_expression, COUNTDOWN_PIECES)))
        text = random_text(rng, pieces, corpus)
        started = time.process_time()
        try:
            check(text, rng)
        except Exception as error:
            raise AssertionError(f"{check.__name__} on {text!r}: {error!r}") from error
        spent = time.process_time() - started
        if spent > HANGS_AFTER:
            raise AssertionError(f"{check.__name__} took {spent:.1f} s on {text!r}")
        if len(text) < 400:
            corpus.append(text)
            if len(corpus) > 500:
                corpus.pop(rng.randrange(500))
        checked += 1
    return checked


# fmt: off
MARKERS = [
    "#### {}", "\\boxed{{{}}}", "<answer>{}</answer>", "The answer is {}", "A: {}", "Answer: {}", "**{}**", "| x | {} |",
    "`{}`", "Result: {}", "\\fbox {{{}}}", "\n### Final Answer\n{}",
]
DIGITS = [
    "0", "1", "7", "18", "20", "450", "000", ",", ",", ".", ".00", ".5", " ", "\n", "\t", "$", "-", "\\$", "%", "１",
    "\u200b", "00", "1,450", "1 450", "9" * 41,
]
# fmt: on


class _Counted:
    """The shortcut's expression; `taken` tells whether it has matched."""

    taken = False

    def fullmatch(self, *args):
        match = SHORTCUT.fullmatch(*args)
        self.taken = self.taken or match is not None
        return match


def compare(count: int, seed: int) -> tuple[int, list[str]]:
    """Read random texts with the shortcut for plain numbers and without it.

    A third each are mutations of labelled completions, random pieces, and markers around digits and layout. A text in
    which the shortcut is never taken is read once, since both readings are the same then.

    Returns:
        `tuple`: in how many of `count` texts the shortcut was taken; the texts that were read otherwise without it.
    """
    cases = sorted((Path(__file__).parent / "reward_cases").glob("*.jsonl"))
    lines = [line for path in cases for line in path.read_text(encoding="utf-8").splitlines()]
    completions = [json.loads(line)["completion"][-250:] for line in lines]
    rng = random.Random(seed)
    counted = _Counted()
    taken, unlike, last = 0, [], ""
    try:
        for k in range(1, count + 1):
            if k % 3 == 0:
                text = rng.choice(completions)
                a, b = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
                text = text[:a] + rng.choice(PIECES) + text[rng.choice((a, b)) :]
            elif k % 3 == 1:
                text = "".join(rng.choices(PIECES, k=rng.randrange(16)))
            else:
                text = rng.choice(MARKERS).format("".join(rng.choices(DIGITS, k=rng.randrange(5))))
                text += "".join(rng.choices(PIECES, k=rng.randrange(3)))
            if k % 7 == 0:
                text, last = f"{last}\n{text}", text[:80]
            reading._PLAIN, counted.taken = counted, False
            found = extract(text, allow_bare=k % 2 == 0)
            if counted.taken:
                taken += 1
                reading._PLAIN = NO_SHORTCUT
                if extract(text, allow_bare=k % 2 == 0) != found:
                    unlike.append(text)
    finally:
        reading._PLAIN = SHORTCUT
    return taken, unlike


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--compare", type=int, metavar="TEXTS")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.compare is not None:
        taken, unlike = compare(options.compare, options.seed)
        print(f"{options.compare:,} texts, shortcut taken in {taken:,}, {len(unlike)} read otherwise: {unlike[:5]}")
        return 1 if unlike else 0
    print(f"{fuzz(options.seed, options.seconds):,} texts in {options.seconds:g} s, every promise held")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
