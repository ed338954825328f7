"""GSM8K as EleutherAI's lm-evaluation-harness measures it (task `gsm8k`, version 3): its prompt, its stops, its two filters.

Figures in papers and on leaderboards mostly come from it. Five solved training problems stand before each problem, drawn anew
for every problem from one seeded generator, so problems must be prompted in the order of the test file. A prompt ends in

    Question: Janet's ducks lay 16 eggs per day. ...
    Answer:

`strict` reads the number after `####`, `flexible` the last number of the completion.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

SHOTS, SEED, MAX_NEW_TOKENS = 5, 1234, 256
STOPS = ("Question:", "</s>", "<|im_end|>")

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))
_NOTHING = "[invalid]"


def prompts(test: Sequence[dict], train: Sequence[dict]) -> list[str]:
    """
    The prompts of the test problems, in their order.

    Args:
        test, train: Rows `{"question", "answer"}` as the data set has them, all of the training split.
    """
    drawn = random.Random(SEED)

    def shown(row: dict) -> str:
        return f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"

    return [
        "".join(shown(example) for example in drawn.sample(list(train), SHOTS))
        + f"Question: {row['question']}\nAnswer:"
        for row in test
    ]


def cut(text: str) -> str:
    """A completion up to the first stop, which the harness leaves out."""
    for stop in STOPS:
        text = text.split(stop, 1)[0]
    return text


def strict_match(text: str) -> str:
    """What the filter `strict-match` extracts."""
    found = _STRICT.search(text)
    return found[1].strip() if found else _NOTHING


def flexible_extract(text: str) -> str:
    """What the filter `flexible-extract` extracts."""
    found = _FLEXIBLE.findall(text)
    return next(part for part in found[-1] if part).strip() if found else _NOTHING


def exact_match(extracted: str, answer: str) -> float:
    """The metric `exact_match` with the task's `regexes_to_ignore`: 1.0 or 0.0."""
    for ignored in _IGNORED:
        extracted, answer = ignored.sub("", extracted), ignored.sub("", answer)
    return float(extracted.lower() == answer.lower())


def lm_eval_strict(completions: Sequence[str], answer: Sequence[str], **columns) -> list[float]:
    """`exact_match,strict-match` of each completion; `answer` is the data set's solution."""
    return [exact_match(strict_match(cut(text)), gold) for text, gold in zip(completions, answer, strict=True)]


def lm_eval_flexible(completions: Sequence[str], answer: Sequence[str], **columns) -> list[float]:
    """`exact_match,flexible-extract` of each completion; `answer` is the data set's solution."""
    return [exact_match(flexible_extract(cut(text)), gold) for text, gold in zip(completions, answer, strict=True)]
