"""Reward functions for TRL's `GRPOTrainer` on GSM8K and Countdown: exact, bounded, hard to fool.

All have TRL's signature `f(completions, **columns) -> list[float | None]`, take string and conversational completions,
never raise on a completion, and import no torch. `REWARDS` maps their short names to them. The rules for what counts as
the answer are in `grpo_math.answers`, those of Countdown's arithmetic in `grpo_math.expressions`.

A reward is 1.0 or 0.0, `None` (TRL: skip this reward for this row) where the row itself is at fault (a gold answer that
holds no number).

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
from grpo_math.answers import (
    Decided,
    Extraction,
    Marker,
    Reading,
    check_forms,
    final_reading,
    first_decided,
    markers_from_the_end,
)
from grpo_math.expressions import MODES, evaluate

COUNTDOWN_FORMS = ("boxed", "answer", "hash", "phrase", "a_colon")
_STATUSES = ("ok", "none", "hedged", "malformed")


def completion_text(completion: str | list[dict] | None) -> str:
    """The text of a completion: a string itself, or the content of the last message of a conversational one."""
    if isinstance(completion, str):
        return completion
    if not completion or not isinstance(completion, (list, tuple)) or not isinstance(completion[-1], dict):
        return ""
    content = completion[-1].get("content")
    if isinstance(content, (list, tuple)):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _texts(completions: Sequence, prompts: Sequence | None) -> list[str]:
    """The completions as texts; one whose prompt ends in an open `<think>` begins with it."""
    texts = [c if type(c) is str else completion_text(c) for c in completions]
    if prompts is None:
        return texts
    return ["<think>" + text if _opens_thinking(prompt) else text for text, prompt in zip(texts, prompts, strict=True)]


def _opens_thinking(prompt: object) -> bool:
    return completion_text(prompt)[-16:].rstrip().endswith("<think>")


class _Reward:
    """A reward with parameters. A class rather than a closure so that it can be sent to worker processes (pickle)."""

    def __init__(self, name: str):
        self.__name__ = name

    def _log(self, outcomes: list, log_extra: Callable | None, log_metric: Callable | None) -> None:
        """Log the extracted answers and the share of each outcome, under names that no other reward has."""
        if log_extra is not None:
            log_extra(f"{self.__name__}_answer", [answer for answer, _ in outcomes])
            log_extra(f"{self.__name__}_status", [status for _, status in outcomes])
        if log_metric is not None and outcomes:
            for status in self._statuses:
                share = sum(found == status for _, found in outcomes) / len(outcomes)
                log_metric(f"{self.__name__}/{status}", share)


class _GSM8KReward(_Reward):
    _statuses = _STATUSES

    def __init__(self, name: str, forms: Sequence[str], allow_bare: bool):
        super().__init__(name)
        check_forms(forms)
        self.forms = answers.FORMS if tuple(forms) == answers.FORMS else tuple(forms)
        self.allow_bare = allow_bare

    def __call__(
        self,
        completions: Sequence,
        answer: Sequence | None = None,
        solution: Sequence | None = None,
        prompts: Sequence | None = None,
        log_extra: Callable | None = None,
        log_metric: Callable | None = None,
        **kwargs,
    ) -> list[float | None]:
        golds = answer if answer is not None else solution
        if golds is None:
            raise ValueError(f"{self.__name__} needs a column `answer` (or `solution`) with the gold answers")
        known: dict = {}
        rewards, outcomes = [], []
        for text, gold in zip(_texts(completions, prompts), golds, strict=True):
            if gold.__hash__ is None or gold not in known:
                expected = self._gold(gold)
                if gold.__hash__ is not None:
                    known[gold] = expected
            else:
                expected = known[gold]
            found = answers.extract(text, self.forms, self.allow_bare)
            if expected is None:
                rewards.append(None)
            else:
                rewards.append(1.0 if found.status == "ok" and self._agrees(text, found, expected) else 0.0)
            if log_extra is not None or log_metric is not None:
                outcomes.append((None if found.span is None else text[slice(*found.span)], found.status))
        self._log(outcomes, log_extra, log_metric)
        return rewards


class _GSM8KAccuracy(_GSM8KReward):
    @staticmethod
    def _gold(gold: object) -> Fraction | None:
        return gold_value(gold)

    @staticmethod
    def _agrees(text: str, found: Extraction, expected: Fraction) -> bool:
        return found.value == expected


class _GSM8KExactMatch(_GSM8KReward):
    @staticmethod
    def _gold(gold: object) -> str | None:
        return normalise(str(gold).rpartition("####")[2]) or None if gold is not None else None

    @staticmethod
    def _agrees(text: str, found: Extraction, expected: str) -> bool:
        return normalise(text[found.span[0] : found.span[1]]) == expected


def gold_value(gold: object) -> Fraction | None:
    """The number that a gold answer states, or `None`.

    Args:
        gold:
            A number, or a text: the number alone (`"1,450"`), a raw GSM8K solution that ends in `#### 18`, or a LaTeX
            solution (`$\\frac{3}{4}$`).
    """
    if isinstance(gold, bool) or gold is None:
        return None
    if isinstance(gold, (int, float, Fraction)):
        return Fraction(str(gold)) if gold == gold and abs(gold) != float("inf") else None
    text = str(gold)
    found = answers.extract(text, ("hash", "boxed", "answer"))
    if found.status == "none":
        found = answers.extract(f"<answer>{text}</answer>", ("answer",))
    return found.value


def normalise(text: str) -> str:
    """An answer as a bare string for exact matching: no separators, currency, percent sign, space or final period."""
    return _NOT_MATCHED.sub("", text).rstrip(".").lower()


_NOT_MATCHED = re.compile(r"[\s,$%\\*_`]")


class _CountdownReward(_Reward):
    _statuses = ("ok", "none", "hedged", "malformed", "numbers", "undefined", "claim")

    def __init__(self, name: str, mode: str, forms: Sequence[str], allow_bare: bool):
        super().__init__(name)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}")
        self.mode = mode
        self.forms = check_forms(forms, COUNTDOWN_FORMS)
        self.allow_bare = allow_bare

    def __call__(
        self,
        completions: Sequence,
        nums: Sequence[Sequence[int]],
        target: Sequence[int],
        prompts: Sequence | None = None,
        log_extra: Callable | None = None,
        log_metric: Callable | None = None,
        **kwargs,
    ) -> list[float | None]:
        rewards, outcomes = [], []
        for text, row_nums, row_target in zip(_texts(completions, prompts), nums, target, strict=True):
            value, status, expression = countdown_answer(text, row_nums, self.mode, self.forms, self.allow_bare)
            rewards.append(self._score(value, Fraction(row_target), row_nums) if status == "ok" else 0.0)
            if log_extra is not None or log_metric is not None:
                outcomes.append((expression, status))
        self._log(outcomes, log_extra, log_metric)
        return rewards


class _CountdownAccuracy(_CountdownReward):
    @staticmethod
    def _score(value: Fraction, target: Fraction, nums: Sequence[int]) -> float:
        return 1.0 if value == target else 0.0


class _CountdownProximity(_CountdownReward):
    @staticmethod
    def _score(value: Fraction, target: Fraction, nums: Sequence[int]) -> float:
        scale = max(abs(target), 1)
        return float(scale / (scale + abs(value - target)))


def countdown_answer(
    text: str, nums: Sequence[int], mode: str = "all", forms: frozenset[str] | None = None, allow_bare: bool = False
) -> tuple[Fraction | None, str, str | None]:
    """
    The value of the expression that a completion states as its answer.

    Returns:
        `tuple`: the value (`None` unless the status is `"ok"`), the status (those of
        [`~grpo_math.expressions.Evaluation`] and `"hedged"`) and the expression as written.
    """

    if forms is None:
        forms = frozenset(COUNTDOWN_FORMS[:3])

    def read(text: str, marker: Marker, limit: int) -> Reading:
        start, stop = marker.start, min(marker.stop, limit)
        if not marker.closed:
            line = text.find("\n", start, stop)
            stop = stop if line < 0 else line
        return Reading(*evaluate(text[start:stop], nums, mode), (start, stop))

    def decide(text: str) -> Decided | None:
        decided = final_reading(text, markers_from_the_end(text, forms), read)
        return decided if decided or not allow_bare else _bare_expression(text, nums, mode)

    decided = first_decided(text, decide)
    if decided is None:
        return None, "none", None
    value, status, (start, stop) = decided[1]
    return value, status, text[start:stop].strip()


def _bare_expression(text: str, nums: Sequence[int], mode: str) -> tuple[str, Reading] | None:
    """The last line that is nothing but an expression, before the text goes on to another problem.

    Lines of other expressions directly above it, with other values, make it a hedge.
    """
    at = 0
    final = None
    for line in text.split("\n"):
        start, at = at, at + len(line) + 1
        if not line.strip():
            continue
        value, status = evaluate(line, nums, mode) if _LOOKS_LIKE_EXPRESSION.search(line) else (None, "malformed")
        if status == "malformed":
            final = final and (final[0], False)
            continue
        hedged = final is not None and final[1] and final[0].value != value
        final = (Reading(None if hedged else value, "hedged" if hedged else status, (start, at - 1)), True)
    return ("bare", final[0]) if final else None


_LOOKS_LIKE_EXPRESSION = re.compile(r"\A\s*[-+(\[{$\\\d]")


class _ThinkAnswerFormat(_Reward):
    _statuses = ("ok", "malformed")

    def __call__(
        self,
        completions: Sequence,
        prompts: Sequence | None = None,
        log_extra: Callable | None = None,
        log_metric: Callable | None = None,
        **kwargs,
    ) -> list[float]:
        texts = _texts(completions, prompts)
        good = [_has_format(text, opener_required=prompts is not None) for text in texts]
        self._log([(None, "ok" if ok else "malformed") for ok in good], None, log_metric)
        return [1.0 if ok else 0.0 for ok in good]


_TAGS = re.compile(r"</?(?:think|answer)>")


def _has_format(text: str, opener_required: bool) -> bool:
    """Exactly `<think>...</think>` then `<answer>...</answer>`, neither empty, only white space between and around."""
    tags = [(tag.group(), tag.start(), tag.end()) for tag in _TAGS.finditer(text)]
    names = [name for name, _, _ in tags]
    if names == ["</think>", "<answer>", "</answer>"] and not opener_required:
        tags.insert(0, ("<think>", 0, 0))
    elif names != ["<think>", "</think>", "<answer>", "</answer>"]:
        return False
    edges = [0, *[edge for _, start, stop in tags for edge in (start, stop)], len(text)]
    before, thinking, between, answer, after = (
        text[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True)
    )
    return not before and bool(thinking) and not between and bool(answer) and not after


def get_gsm8k_accuracy(
    forms: Sequence[str] = answers.FORMS, allow_bare: bool = False, name: str = "gsm8k_accuracy"
) -> Callable:
    """
    Reward 1.0 where the final answer equals the gold answer as an exact number.

    Args:
        forms (`Sequence[str]`, *optional*):
            The markers that count, see [`~grpo_math.answers.extract`].
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether the last number of a completion without any marker is its answer (for base models).
        name (`str`, *optional*):
            Its `__name__`, which prefixes what it logs. Give two of them in one trainer different names.

    Returns:
        `Callable`: a picklable reward function of the columns `answer` or `solution`.
    """
    return _GSM8KAccuracy(name, forms, allow_bare)


def get_gsm8k_exact_match(
    forms: Sequence[str] = answers.FORMS, allow_bare: bool = False, name: str = "gsm8k_exact_match"
) -> Callable:
    """
    Reward 1.0 where normalise(final answer) == normalise(gold): a binary match of strings, so `18.0` is not `18`.

    Arguments and return value as in [`get_gsm8k_accuracy`].
    """
    return _GSM8KExactMatch(name, forms, allow_bare)


def get_countdown_accuracy(
    mode: str = "all",
    forms: Sequence[str] = COUNTDOWN_FORMS[:3],
    allow_bare: bool = False,
    name: str = "countdown_accuracy",
) -> Callable:
    """
    Reward 1.0 where the final expression is valid, uses the numbers as `mode` says and equals the target exactly.

    Args:
        mode (`str`, *optional*, defaults to `"all"`):
            `"all"`: every number exactly once. `"subset"`: each at most once.
        forms (`Sequence[str]`, *optional*, defaults to `("boxed", "answer", "hash")`):
            The markers that count; `"phrase"` and `"a_colon"` can be added.
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether, without any marker, the last line that is nothing but an expression is the answer (for base models
            and the built-in tiny model).
        name (`str`, *optional*):
            Its `__name__`, which prefixes what it logs.

    Returns:
        `Callable`: a picklable reward function of the columns `nums` and `target`.
    """
    return _CountdownAccuracy(name, mode, forms, allow_bare)


def get_countdown_proximity(
    mode: str = "all",
    forms: Sequence[str] = COUNTDOWN_FORMS[:3],
    allow_bare: bool = False,
    name: str = "countdown_proximity",
) -> Callable:
    """
    Partial credit for a valid expression by its distance from the target: s / (s + |value - target|), s = max(|target|, 1).

    1.0 on the target, 1/2 at a distance of the target's size, 0.0 where there is no valid expression. It gives a group
    without a right answer a signal. Arguments and return value as in [`get_countdown_accuracy`].
    """
    return _CountdownProximity(name, mode, forms, allow_bare)


gsm8k_accuracy = get_gsm8k_accuracy()
gsm8k_exact_match = get_gsm8k_exact_match()
countdown_accuracy = get_countdown_accuracy()
countdown_proximity = get_countdown_proximity()
think_answer_format = _ThinkAnswerFormat("think_answer_format")

REWARDS: dict[str, Callable] = {
    reward.__name__: reward
    for reward in (gsm8k_accuracy, gsm8k_exact_match, countdown_accuracy, countdown_proximity, think_answer_format)
}
