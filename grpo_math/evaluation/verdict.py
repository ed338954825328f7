"""Whether a run improved held-out accuracy, by an interval that stays valid however often one looks.

Each look compares the policy with the policy before training on the same problems: one difference in [-1, 1] a problem. Its
interval is the betting interval of Waudby-Smith & Ramdas (2024, JRSS B 86, section 4), which holds for every distribution of
bounded differences and every number of problems. Later looks share problems and baseline with earlier ones, so they are not
one stream of new observations. Look t therefore spends the share 6 / (pi^2 t^2) of the error rate. The shares sum to 1, so
by the union bound all intervals of a run hold together with probability 1 - alpha: they are a confidence sequence.

>>> str(verdict([0.25] * 60 + [0.0] * 40, look=1))
'improved by 0.150 [+0.086, +0.196]'
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grpo_math.evaluation.intervals import Difference

ALPHA = 0.05
# Of the error rate, the share of the looks along a run; the rest is for the ends of runs (a resumed run has several)
ALONG = 0.2


class Verdict(NamedTuple):
    """`improved`, `worse` or `no change shown`, and the change of accuracy with its interval."""

    word: str
    change: Difference

    def __str__(self) -> str:
        value, low, high = self.change
        if self.word == "no change shown":
            return f"{self.word}: {value:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"{self.word} by {abs(value):.3f} [{low:+.3f}, {high:+.3f}]"

    def as_dict(self) -> dict:
        return {"word": self.word, "text": str(self), **self.change.as_dict()}


def verdict(differences: Sequence[float], look: int, along: bool = False, alpha: float = ALPHA) -> Verdict:
    """
    The verdict of one look.

    Args:
        differences: Accuracy now minus accuracy before training, one number in [-1, 1] a problem.
        look: 1 for the first look of its kind in this run, 2 for the second, ...
        along: Whether it is a look along the run (these share a fifth of the error rate) or one at an end of the run.
        alpha: Error rate of all looks together.

    Raises:
        ValueError: for no differences, or one outside [-1, 1].
    """
    if not len(differences) or any(not -1 <= d <= 1 for d in differences):
        raise ValueError("one difference in [-1, 1] a problem is needed, and at least one problem")
    spent = alpha * (ALONG if along else 1 - ALONG) * 6 / (math.pi * look) ** 2
    low, high = betting_interval([(d + 1) / 2 for d in differences], spent)
    value = sum(differences) / len(differences)
    change = Difference(value, min(value, 2 * low - 1), max(value, 2 * high - 1))
    word = "improved" if change.low > 0 else "worse" if change.high < 0 else "no change shown"
    return Verdict(word, change)


def betting_interval(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """
    An interval of the mean of independent values in [0, 1], valid for every number of them.

    For each candidate m a bettor stakes that the mean is above m: K_t(m) = prod_i (1 + b_i (x_i - m)), with
    b_i = min(sqrt(2 log(2 / alpha) / (n s_{i-1}^2)), 0.9 / m) and s_{i-1}^2 the variance of the values before x_i. Another
    one stakes that it is below. Where m is the mean, neither capital reaches 2 / alpha with probability 1 - alpha (Ville's
    inequality), and the interval holds the m at which neither has.

    Args:
        values: In [0, 1]. Their order does not matter: it is shuffled with a fixed seed.
        alpha: Error rate of this interval.
    """
    shuffled = list(values)
    random.Random(0).shuffle(shuffled)
    x = np.asarray(shuffled)
    return _lower(x, alpha), 1 - _lower(1 - x, alpha)


def _lower(x: np.ndarray, alpha: float) -> float:
    n = len(x)
    counts = np.arange(2, n + 2)
    means = (0.5 + np.cumsum(x)) / counts  # after each value
    variances = (0.25 + np.cumsum((x - means) ** 2)) / counts
    known = np.concatenate([[0.25], variances[:-1]])  # before each value
    stakes = np.sqrt(2 * math.log(2 / alpha) / (n * known))
    reached = math.log(2 / alpha)

    def refuted(m: float) -> bool:
        return bool(np.cumsum(np.log1p(np.minimum(stakes, 0.9 / m) * (x - m))).max() >= reached)

    # The capital falls as m rises: every m below the bound is refuted
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
