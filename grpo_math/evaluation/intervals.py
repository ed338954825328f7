"""Shares and their differences with 95 % intervals, over problems with several completions each.

Completions of one problem are not independent, so every interval counts the spread over problems. A measurement before and one
after use the same problems: `paired_difference` takes out what the problems share, which two separate intervals leave in.

>>> str(paired_difference([0.0, 0.5, 0.0, 1.0] * 25, [0.5, 1.0, 0.0, 1.0] * 25))
'+0.250 [+0.193, +0.297]'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal


class Interval(NamedTuple):
    """A share in [0, 1] with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Difference(NamedTuple):
    """A difference of two shares, in [-1, 1], with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def wilson(value: float, n: float) -> Interval:
    """The Wilson score interval of a share `value` among `n` independent trials (Wilson 1927, JASA 22).

    Raises:
        ValueError: for n <= 0 or a share outside [0, 1].
    """
    if n <= 0 or not 0 <= value <= 1:
        raise ValueError(f"a share in [0, 1] of n > 0 trials is needed, not value={value}, n={n}")
    centre = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2))
    # At 0 and 1 a bound equals the share; round-off must not push it past.
    return Interval(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)))


def clustered(correct: Sequence[Sequence[float]]) -> Interval:
    """Mean accuracy over problems with k samples each, and its 95 % interval.

    The standard error is that of the mean of the per-problem means, SE^2 = var(means) / n, which counts the dependence
    of samples of one problem (Miller 2024, arXiv 2411.00640, eq. 4 for equal clusters). It enters the Wilson interval
    as an effective number of trials p (1 - p) / SE^2. That is at most the number of completions: by chance the means of a
    few problems are more equal than those of independent completions.

    Args:
        correct: per problem its k outcomes in {0, 1}; at least one problem.
    """
    return share_of_problems([sum(c) / len(c) for c in correct], sum(map(len, correct)))


def share_of_problems(shares: Sequence[float], completions: int | None = None) -> Interval:
    """Mean of one share a problem, and its 95 % interval by the spread over problems, as in `clustered`.

    Args:
        shares: one share in [0, 1] a problem; at least one.
        completions: how many completions they came from in all, the most trials that can count; one a problem by default.
    """
    n = len(shares)
    value = min(1.0, sum(shares) / n)  # round-off must not push a mean of ones past 1
    variance = sum((m - value) ** 2 for m in shares) / max(n - 1, 1) / n
    effective = value * (1 - value) / variance if variance > 0 else n
    return wilson(value, min(effective, completions or n))


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Difference:
    """Mean of after - before over the same problems, and its 95 % interval.

    The interval is that of Agresti & Min 2005 (Statistics in Medicine 24), here for shares too: Wald's with two more
    problems, mean = sum(d) / (n + 2) and SE^2 = ((sum(d^2) + 1) / (n + 2) - mean^2) / (n + 2), with d = after - before.
    It keeps its coverage for few problems, and for none that changed.

    Args:
        before, after: one share in [0, 1] a problem, in the same order.

    Raises:
        ValueError: for no problems, or different numbers of them.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"the same problems are needed before and after, not {len(before)} and {len(after)}")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    n = len(differences) + 2
    centre = sum(differences) / n
    variance = max(0.0, (sum(d * d for d in differences) + 1) / n - centre**2) / n
    half = Z95 * math.sqrt(variance)
    value = sum(differences) / len(differences)
    return Difference(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def pass_at_k(n: int, c: int, k: int) -> float:
    """P(at least one of k completions is right), unbiased from n samples of which c are right.

    1 - C(n - c, k) / C(n, k)      (Chen et al. 2021, arXiv 2107.03374, eq. 1)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"0 <= c <= n and 1 <= k <= n are needed, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_shares(correct: Sequence[Sequence[float]], k: int) -> list[float]:
    """pass@k of each problem, from its outcomes in {0, 1}."""
    return [pass_at_k(len(c), round(sum(c)), k) for c in correct]
