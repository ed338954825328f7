"""Reward functions for TRL's `GRPOTrainer` on GSM8K and Countdown: exact, bounded, hard to fool.

All have TRL's signature `f(completions, **columns) -> list[float | None]`, take string and conversational completions,
never raise on a completion, and import no torch. `REWARDS` maps their short names to them. What counts as the answer
is in `grpo_math.answers`, Countdown's arithmetic in `grpo_math.expressions`.

A reward is between 0.0 and 1.0, or `None` (TRL: no reward of this kind for this row) where the row itself is at fault:
a gold answer that holds no number.

```python
from trl import GRPOTrainer
from grpo_math.rewards import gsm8k_accuracy

trainer = GRPOTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", reward_funcs=gsm8k_accuracy, train_dataset=dataset)
trainer.train()
```
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from grpo_math import answers
from grpo_math.answers import Marker, Reading, Stated, check_forms
from grpo_math.expressions import MODES, exact_value

COUNTDOWN_FORMS = ("boxed", "answer", "hash", "phrase", "a_colon")
_COUNTDOWN_DEFAULT = ("boxed", "answer", "hash")

Log = Callable[[str, list], None]
Metric = Callable[[str, float], None]


def completion_text(completion: object) -> str:
    """The text of a completion: a string itself, or the content of the last message of a conversational one."""
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, (list, tuple)) or not completion or not isinstance(completion[-1], dict):
        return ""
    content = completion[-1].get("content")
    if isinstance(content, (list, tuple)):  # TRL's multimodal messages: [{"type": "text", "text": ...}]
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _texts(completions: Sequence, prompts: Sequence | None) -> list[str]:
    """The completions as texts; one whose prompt ends in an open `<think>` begins with it."""
    texts = [completion if type(completion) is str else completion_text(completion) for completion in completions]
    if prompts is None:
        return texts
    return ["<think>" + t if _opens_thinking(p) else t for t, p in zip(texts, prompts, strict=True)]


def _opens_thinking(prompt: object) -> bool:
    return completion_text(prompt)[-16:].rstrip().endswith("<think>")


class MathReward:
    """A reward with parameters. A class rather than a closure so that it can be sent to worker processes (pickle)."""

    statuses: tuple[str, ...] = ("ok", "none", "hedged", "malformed")

    def __init__(self, name: str):
        self.__name__ = name

    def _log(self, found: list[tuple[str | None, str]], log_extra: Log | None, log_metric: Metric | None) -> None:
        """Log each answer as written with its status, and the share of each status, under this reward's own names."""
        if log_extra is not None:
            log_extra(f"{self.__name__}_answer", [answer for answer, _ in found])
            log_extra(f"{self.__name__}_status", [status for _, status in found])
        if log_metric is not None and found:
            for status in self.statuses:
                log_metric(f"{self.__name__}/{status}", sum(s == status for _, s in found) / len(found))


def _checked_forms(forms: Sequence[str], known: Sequence[str], allow_bare: bool) -> frozenset[str]:
    """The forms as a set. Raises `ValueError` for what is no form, and where no completion could ever state an answer."""
    if not isinstance(allow_bare, bool):
        raise ValueError(f"allow_bare is {allow_bare!r}; it must be True or False")
    if forms is None or isinstance(forms, (bool, int)):
        raise ValueError(f"forms is {forms!r}; it must be a list of {', '.join(known)}")
    checked = check_forms(forms, known)
    if not checked and not allow_bare:
        raise ValueError(
            f"forms is {forms!r} and allow_bare is False, so that no answer would ever count; the forms are "
            f"{', '.join(known)}"
        )
    return checked


# --- GSM8K -----------------------------------------------------------------------------------------------------------


class _GSM8KAccuracy(MathReward):
    def __init__(self, name: str, forms: Sequence[str], allow_bare: bool):
        super().__init__(name)
        self.forms = _checked_forms(forms, answers.FORMS, allow_bare)
        self.allow_bare = allow_bare

    def __call__(
        self,
        completions: Sequence,
        answer: Sequence | None = None,
        solution: Sequence | None = None,
        prompts: Sequence | None = None,
        log_extra: Log | None = None,
        log_metric: Metric | None = None,
        **kwargs,
    ) -> list[float | None]:
        golds = solution if answer is None else answer
        if golds is None:
            raise ValueError(f"{self.__name__} needs a column `answer` or `solution` with the gold answers")
        expected: dict[str, object] = {}  # a group's rows share their gold
        rewards, found = [], []
        for text, gold in zip(_texts(completions, prompts), golds, strict=True):
            gold = gold if type(gold) is str else str(gold)
            if gold not in expected:
                expected[gold] = self._expected(gold)
            stated = answers.statement(text, self.forms, self.allow_bare)
            right = stated is not None and stated[1].status == "ok" and self._agrees(text, stated[1], expected[gold])
            rewards.append(None if expected[gold] is None else 1.0 if right else 0.0)
            found.append((None, "none") if stated is None else (text[slice(*stated[1].span)], stated[1].status))
        self._log(found, log_extra, log_metric)
        return rewards

    @staticmethod
    def _expected(gold: str) -> object:
        return gold_value(gold)

    @staticmethod
    def _agrees(text: str, reading: Reading, expected: object) -> bool:
        return reading.value == expected


class _GSM8KExactMatch(_GSM8KAccuracy):
    @staticmethod
    def _expected(gold: str) -> object:
        return normalise(gold.rpartition("####")[2]) or None

    @staticmethod
    def _agrees(text: str, reading: Reading, expected: object) -> bool:
        return normalise(text[slice(*reading.span)]) == expected


def gold_value(gold: object) -> Fraction | None:
    r"""The exact number that a gold answer states, or `None` where it states none.

    Args:
        gold (`str`, `int` or `float`):
            The number alone (`"1,450"`, `18`), a raw GSM8K solution that ends in `#### 18`, or a LaTeX solution
            (`$\frac{3}{4}$`).
    """
    text = str(gold)
    extraction = answers.extract(text, ("hash", "boxed", "answer"))
    if extraction.status == "none":
        extraction = answers.extract(f"<answer>{text}</answer>", "answer")
    return extraction.value


def normalise(text: str) -> str:
    r"""An answer as a bare string: no separators, currency, percent sign, markup, white space or final period.

    ```python
    >>> normalise("\\$1,450.")
    '1450'
    ```
    """
    return _NOT_MATCHED.sub("", text).rstrip(".").lower()


_NOT_MATCHED = re.compile(r"[\s,$%\\*_`]")


# --- Countdown -------------------------------------------------------------------------------------------------------


class _CountdownAccuracy(MathReward):
    statuses = (*MathReward.statuses, "numbers", "undefined", "claim")

    def __init__(self, name: str, mode: str, forms: Sequence[str], allow_bare: bool, spellings: bool):
        super().__init__(name)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}")
        if not isinstance(spellings, bool):
            raise ValueError(f"spellings is {spellings!r}; it must be True (x, ×, \\times, ... are read) or False")
        self.mode = mode
        self.forms = _checked_forms(forms, COUNTDOWN_FORMS, allow_bare)
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
        for text, row_nums, row_target in zip(_texts(completions, prompts), nums, target, strict=True):
            stated = self._statement(text, row_nums)
            if stated is None:
                rewards.append(0.0)
                found.append((None, "none"))
            else:
                value, status, span = stated[1]
                rewards.append(self._score(value, row_target) if status == "ok" else 0.0)
                found.append((text[slice(*span)].strip(), status))
        self._log(found, log_extra, log_metric)
        return rewards

    def _statement(self, text: str, nums: Sequence[int]) -> Stated | None:
        """The form of the last marker and the reading of its expression."""

        def read(text: str, marker: Marker, limit: int) -> Reading:
            start, stop = marker.start, marker.stop
            if not marker.closed:
                stop = min(limit, start + _LINE)
                line = text.find("\n", start, stop)
                stop = stop if line < 0 else line
            return Reading(*exact_value(text[start:stop], nums, self.mode, self.spellings), (start, stop))

        def state(text: str) -> Stated | None:
            stated = answers.final_reading(text, answers.markers_from_the_end(text, self.forms), read)
            if stated is None and self.allow_bare:
                stated = _bare_expression(text, nums, self.mode, self.spellings)
            return stated

        return answers.first_stated(text, state)

    @staticmethod
    def _score(value: int | Fraction, target: int) -> float:
        return 1.0 if value == target else 0.0


class _CountdownProximity(_CountdownAccuracy):
    @staticmethod
    def _score(value: int | Fraction, target: int) -> float:
        scale = max(abs(Fraction(target)), 1)
        return float(scale / (scale + abs(value - Fraction(target))))


_LINE = 400
_BARE_TAIL = 10_000
_EXPRESSION_LINE = re.compile(r"[ \t]*[-+−(\[{$\\`*]{0,40}\d")


def _bare_expression(text: str, nums: Sequence[int], mode: str, spellings: bool) -> Stated | None:
    """The last line that is nothing but an expression; one of another value directly above it makes it a hedge."""
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
    return ("bare", final) if final else None


# --- format ----------------------------------------------------------------------------------------------------------


class _ThinkAnswerFormat(MathReward):
    statuses = ("ok", "malformed")

    def __call__(
        self, completions: Sequence, prompts: Sequence | None = None, log_metric: Metric | None = None, **kwargs
    ) -> list[float | None]:
        texts = _texts(completions, prompts)
        good = [_has_format(text, opener_required=prompts is not None) for text in texts]
        self._log([(None, "ok" if ok else "malformed") for ok in good], None, log_metric)
        return [1.0 if ok else 0.0 for ok in good]


_TAGS = re.compile(r"</?(?:think|answer)>")
_WANTED_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


def _has_format(text: str, opener_required: bool) -> bool:
    tags = list(_TAGS.finditer(text))
    names = [tag.group() for tag in tags]
    edges = [edge for tag in tags for edge in tag.span()]
    if names == _WANTED_TAGS[1:] and not opener_required:
        edges = [0, 0, *edges]
    elif names != _WANTED_TAGS:
        return False
    edges = [0, *edges, len(text)]
    before, thinking, between, answer, after = (
        bool(text[start:stop].strip()) for start, stop in zip(edges[::2], edges[1::2], strict=True)
    )
    return thinking and answer and not (before or between or after)


# --- what one imports ------------------------------------------------------------------------------------------------


def get_gsm8k_accuracy(
    forms: Sequence[str] = answers.FORMS, allow_bare: bool = False, name: str = "gsm8k_accuracy"
) -> Callable[..., list[float | None]]:
    """
    Reward 1.0 where the final answer equals the gold answer as an exact number, else 0.0.

    Args:
        forms (`Sequence[str]`, *optional*, defaults to all):
            The markers that count, see [`~grpo_math.answers.extract`].
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether the last number of a completion without any marker is its answer (prompt style `plain`).
        name (`str`, *optional*, defaults to `"gsm8k_accuracy"`):
            Its `__name__`, which prefixes what it logs; two of them in one trainer need different names.

    Returns:
        `Callable`: a picklable reward function of the column `answer`, or `solution` where there is none.

    Raises:
        `ValueError`: for an unknown form; the reward itself, where neither column is given.

    Example:
        ```python
        >>> get_gsm8k_accuracy()(["#### 1,450.00", "#### 18 or 20"], answer=["1450", "18"])
        [1.0, 0.0]
        ```
    """
    return _GSM8KAccuracy(name, forms, allow_bare)


def get_gsm8k_exact_match(
    forms: Sequence[str] = answers.FORMS, allow_bare: bool = False, name: str = "gsm8k_exact_match"
) -> Callable[..., list[float | None]]:
    """
    Reward 1.0 where [`normalise`]`(final answer) == normalise(gold)`: a match of strings, so `18.0` is not `18`.

    Arguments, return value and errors are those of [`get_gsm8k_accuracy`].
    """
    return _GSM8KExactMatch(name, forms, allow_bare)


def get_countdown_accuracy(
    mode: str = "all",
    forms: Sequence[str] = _COUNTDOWN_DEFAULT,
    allow_bare: bool = False,
    spellings: bool = True,
    name: str = "countdown_accuracy",
) -> Callable[..., list[float | None]]:
    """
    Reward 1.0 where the final expression is valid, uses the numbers as `mode` says and equals the target exactly.

    Args:
        mode (`str`, *optional*, defaults to `"all"`):
            `"all"`: every number exactly once. `"subset"`: each at most once.
        forms (`Sequence[str]`, *optional*, defaults to `("boxed", "answer", "hash")`):
            The markers that count, of `COUNTDOWN_FORMS`; `"phrase"` and `"a_colon"` may be added.
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether in a completion without any marker the last line that is nothing but an expression is the answer
            (prompt style `plain` and the built-in tiny model, which write `17 - 5`).
        spellings (`bool`, *optional*, defaults to `True`):
            Whether `x × ÷ − \\times \\div \\frac{}{}` and layout are read, see [`~grpo_math.expressions.evaluate`].
        name (`str`, *optional*, defaults to `"countdown_accuracy"`):
            Its `__name__`, which prefixes what it logs; two of them in one trainer need different names.

    Returns:
        `Callable`: a picklable reward function of the columns `nums` and `target`.

    Raises:
        `ValueError`: for an unknown mode or form.

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
    Partial credit for a valid expression by its distance from the target, which gives an all-wrong group a signal.

    The reward is s / (s + |value - target|) with s = max(|target|, 1): 1 on the target, 1/2 where the distance is the
    target's size, and 0 where there is no valid expression. Arguments, return value and errors are those of
    [`get_countdown_accuracy`].
    """
    return _CountdownProximity(name, mode, forms, allow_bare, spellings)


gsm8k_accuracy = get_gsm8k_accuracy()
gsm8k_exact_match = get_gsm8k_exact_match()
countdown_accuracy = get_countdown_accuracy()
countdown_proximity = get_countdown_proximity()
think_answer_format = _ThinkAnswerFormat("think_answer_format")
think_answer_format.__doc__ = """Reward 1.0 for exactly `<think>...</think><answer>...</answer>`, else 0.0.

Both must hold text, with nothing but white space between and around them. The opening `<think>` may be missing where
the prompt ends in one, or where the reward is called without `prompts`.
"""

REWARDS: dict[str, Callable[..., list[float | None]]] = {
    reward.__name__: reward
    for reward in (gsm8k_accuracy, gsm8k_exact_match, countdown_accuracy, countdown_proximity, think_answer_format)
}
