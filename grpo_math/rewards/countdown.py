"""Countdown rewards: the value of the final expression against the target."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from grpo_math.answers import NOTHING, Extraction, Marker, Reading, final_reading, first_stated, markers_from_the_end
from grpo_math.expressions import LABELS, LEADS, MODES, exact_value
from grpo_math.rewards.base import Log, MathReward, Metric, checked_forms, completion_texts

COUNTDOWN_FORMS = ("boxed", "answer", "hash", "phrase", "a_colon")
_COUNTDOWN_DEFAULT = ("boxed", "answer", "hash")

# An expression is short. Reading no longer line and no longer tail than this bounds time and memory.
_LINE = 400
_BARE_TAIL = 10_000
_HEADING = re.compile(rf"[ *_]*(?:\d{{1,2}}[.):] +)?(?!(?:{LEADS}|{LABELS})\b)[^\W\d]{{2}}", re.I)
_EXPRESSION_LINE = re.compile(r" *[-+−(\[{$\\`*]{0,40}\d")


class _CountdownAccuracy(MathReward):
    """Compares the value of the final expression with the target, see [`get_countdown_accuracy`]."""

    statuses = (*MathReward.statuses, "numbers", "undefined", "claim")

    def __init__(self, name: str, mode: str, forms: Sequence[str], allow_bare: bool, spellings: bool):
        super().__init__(name)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}")
        if not isinstance(spellings, bool):
            raise ValueError(f"spellings is {spellings!r}; it must be True (x, ×, \\times, ... are read) or False")
        self.mode = mode
        self.forms = checked_forms(forms, COUNTDOWN_FORMS, allow_bare)
        self.allow_bare = allow_bare
        self.spellings = spellings

    def __call__(
        self,
        completions: Sequence,
        nums: Sequence[Sequence[int]],
        target: Sequence[int],
        prompts: Sequence | None = None,
        log_extra: Log | None = None,
        log_metric: Metric | None = None,
        **kwargs,
    ) -> list[float | None]:
        rewards, found = [], []
        for text, row_nums, row_target in zip(completion_texts(completions, prompts), nums, target, strict=True):
            stated = self.stated(text, row_nums)
            rewards.append(self._score(stated.value, row_target) if stated.status == "ok" else 0.0)
            found.append((None if stated.span is None else text[slice(*stated.span)].strip(), stated.status))
        self.log_outcomes(found, log_extra, log_metric)
        return rewards

    def stated(self, text: str, nums: Sequence[int]) -> Extraction:
        """Return what a completion states, with the value of its expression."""

        def read(text: str, marker: Marker, limit: int) -> Reading | None:
            start, stop = marker.start, marker.stop
            if stop is None:
                stop = min(limit, start + _LINE)
                line = text.find("\n", start, stop)
                stop = stop if line < 0 else line
            value, status = exact_value(text[start:stop], nums, self.mode, self.spellings)
            if status != "ok" and marker.stop is None and _HEADING.match(text, start, stop):
                return None  # #### Explanation, #### Check: 3 + 5 = 8
            return Reading(value, status, (start, stop))

        def state(text: str) -> Extraction:
            return (
                final_reading(text, markers_from_the_end(text, self.forms), read)
                or (self.allow_bare and _bare_expression(text, nums, self.mode, self.spellings))
                or NOTHING
            )

        return first_stated(text, state)

    @staticmethod
    def _score(value: int | Fraction, target: int) -> float:
        return 1.0 if value == target else 0.0


class _CountdownProximity(_CountdownAccuracy):
    """Rewards the distance of the final expression from the target, see [`get_countdown_proximity`]."""

    @staticmethod
    def _score(value: int | Fraction, target: int) -> float:
        scale = max(abs(Fraction(target)), 1)
        return float(scale / (scale + abs(value - Fraction(target))))


def _bare_expression(text: str, nums: Sequence[int], mode: str, spellings: bool) -> Extraction | None:
    """Read the last line that is only an expression. A line of another value directly above it makes it a hedge."""
    final = None
    stop = len(text)
    while stop > max(0, len(text) - _BARE_TAIL):
        start = text.rfind("\n", 0, stop) + 1
        if text[start:stop].strip():
            value, status = None, "malformed"
            if stop - start <= _LINE and _EXPRESSION_LINE.match(text, start, stop):
                value, status = exact_value(text[start:stop], nums, mode, spellings)
            if final is None and status != "malformed":
                final = Reading(value, status, (start, stop))
            elif final is not None:
                if status == "malformed":
                    break
                if value != final.value:
                    final = Reading(None, "hedged", final.span)
                    break
        stop = start - 1
    return Extraction(final.value, final.status, "bare", final.span, "last line") if final else None


def get_countdown_accuracy(
    mode: str = "all",
    forms: Sequence[str] = _COUNTDOWN_DEFAULT,
    allow_bare: bool = False,
    spellings: bool = True,
    name: str = "countdown_accuracy",
) -> Callable[..., list[float | None]]:
    """
    Reward 1.0 if the final expression is valid, uses the numbers as `mode` says and equals the target, else 0.0.

    Args:
        mode (`str`, *optional*, defaults to `"all"`):
            `"all"`: every number exactly once. `"subset"`: each at most once.
        forms (`Sequence[str]`, *optional*, defaults to `("boxed", "answer", "hash")`):
            The markers that count; `COUNTDOWN_FORMS` lists all of them.
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether the last line that is only an expression is the answer of a completion without any marker
            (`17 - 5`, as the prompt styles `plain` and `compact` ask for).
        spellings (`bool`, *optional*, defaults to `True`):
            Whether `x × ÷ − \\times \\div \\frac{}{}` and layout count, see [`~grpo_math.expressions.evaluate`].
        name (`str`, *optional*, defaults to `"countdown_accuracy"`):
            The `__name__` of the reward, which prefixes what it logs. Two rewards in one trainer need different names.

    Returns:
        `Callable`: a picklable reward function of the columns `nums` and `target`.

    Raises:
        `ValueError`: for an unknown mode or form, or a value of the wrong type.

    Example:
        ```python
        >>> get_countdown_accuracy()(["<answer>(3 + 5) * 7 = 56</answer>"], nums=[[3, 5, 7]], target=[56])
        [1.0]
        ```
    """
    return _CountdownAccuracy(name, mode, forms, allow_bare, spellings)


def get_countdown_proximity(
    mode: str = "all",
    forms: Sequence[str] = _COUNTDOWN_DEFAULT,
    allow_bare: bool = False,
    spellings: bool = True,
    name: str = "countdown_proximity",
) -> Callable[..., list[float | None]]:
    """
    Reward a valid expression by its distance from the target, so that a group without a right answer has a signal.

    The reward is s / (s + |value - target|) with s = max(|target|, 1). It is 1 on the target, 1/2 at a distance of s,
    and 0 without a valid expression. Arguments, return value and errors are those of [`get_countdown_accuracy`].
    """
    return _CountdownProximity(name, mode, forms, allow_bare, spellings)


countdown_accuracy = get_countdown_accuracy()
countdown_proximity = get_countdown_proximity()
