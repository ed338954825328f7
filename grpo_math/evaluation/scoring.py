"""What each completion is worth on held-out problems: right or wrong by several rewards, its status, its answer as written.

`strict` reads only the answer form that the prompt asks for, `lenient` every form and a bare answer. What lenient counts beyond
strict is format: a model that only learns the form gains strict accuracy and no lenient accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trl.data_utils import is_conversational

from grpo_math.rewards import normalise


class Scorers(NamedTuple):
    """Reward functions that count a completion as right when they pay 1: the recipe's own, a strict and a lenient one."""

    accuracy: Callable
    strict: Callable | None = None
    lenient: Callable | None = None


class Scores(NamedTuple):
    """One value a completion: right by each scorer, in {0, 1}, status and answer as the accuracy reward logs them."""

    correct: list[float]
    strict: list[float]
    lenient: list[float]
    statuses: list[str | None]
    answers: list[str | None]


def score(scorers: Scorers, rows: Sequence[dict], completions: Sequence[str]) -> Scores:
    """
    Scores completions.

    Args:
        scorers: Where strict or lenient is missing, the accuracy reward counts for it.
        rows: `{"prompt", **columns}` of each completion.
        completions: Texts.
    """
    correct, logged = _outcomes(scorers.accuracy, rows, completions)
    others = [_outcomes(r, rows, completions)[0] if r else correct for r in (scorers.strict, scorers.lenient)]
    nothing: list = [None] * len(rows)
    name = scorers.accuracy.__name__
    return Scores(correct, *others, logged.get(f"{name}_status", nothing), logged.get(f"{name}_answer", nothing))


def _outcomes(reward: Callable, rows: Sequence[dict], completions: Sequence[str]) -> tuple[list[float], dict]:
    if not rows:
        return [], {}
    conversational = is_conversational({"prompt": rows[0]["prompt"]})
    shaped = [[{"role": "assistant", "content": text}] for text in completions] if conversational else list(completions)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    prompts = columns.pop("prompt")
    logged: dict[str, list] = {}
    scores = reward(
        completions=shaped,
        prompts=prompts,
        log_extra=logged.__setitem__,
        log_metric=lambda name, value: None,
        **columns,
    )
    return [1.0 if score is not None and score >= 1.0 else 0.0 for score in scores], logged


def majority_right(answers: Sequence[str | None], correct: Sequence[float]) -> float:
    """
    Whether the answer that most completions of one problem give is right (Wang et al. 2022, arXiv 2203.11171): 1.0 or 0.0.

    Answers are the same where they are written the same but for separators and units; the first one wins a tie. Completions
    without an answer do not vote.
    """
    votes = [(normalise(answer), right) for answer, right in zip(answers, correct, strict=True) if answer is not None]
    if not votes:
        return 0.0
    winner = Counter(answer for answer, _ in votes).most_common(1)[0][0]
    return next(right for answer, right in votes if answer == winner)
