"""GSM8K rewards: the final answer against the gold answer, as exact numbers or as strings."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from grpo_math.answers import FORMS, Extraction, extract
from grpo_math.rewards.base import Log, MathReward, Metric, checked_forms, completion_texts


class _GSM8KAccuracy(MathReward):
    """Compares the final answer with the gold answer as exact numbers, see [`get_gsm8k_accuracy`]."""

    def __init__(self, name: str, forms: Sequence[str], allow_bare: bool):
        super().__init__(name)
        self.forms = checked_forms(forms, FORMS, allow_bare)
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
        expected: dict[str, object] = {}  # the rows of a group share their gold answer
        rewards, found = [], []
        for text, gold in zip(completion_texts(completions, prompts), golds, strict=True):
            gold = gold if type(gold) is str else str(gold)
            if gold not in expected:
                expected[gold] = self._expected(gold)
            stated = self.stated(text)
            right = stated.status == "ok" and self._agrees(text, stated, expected[gold])
            rewards.append(None if expected[gold] is None else 1.0 if right else 0.0)
            found.append((None if stated.span is None else text[slice(*stated.span)], stated.status))
        self.log_outcomes(found, log_extra, log_metric)
        return rewards

    def stated(self, text: str) -> Extraction:
        """Return what a completion states."""
        return extract(text, self.forms, self.allow_bare)

    @staticmethod
    def _expected(gold: str) -> object:
        return gold_value(gold)

    @staticmethod
    def _agrees(text: str, stated: Extraction, expected: object) -> bool:
        return stated.value == expected


class _GSM8KExactMatch(_GSM8KAccuracy):
    """Compares the final answer with the gold answer as strings, see [`get_gsm8k_exact_match`]."""

    @staticmethod
    def _expected(gold: str) -> object:
        return normalise(gold.rpartition("####")[2]) or None

    @staticmethod
    def _agrees(text: str, stated: Extraction, expected: object) -> bool:
        return normalise(text[slice(*stated.span)]) == expected


def gold_value(gold: object) -> int | Fraction | None:
    r"""Return the exact number that a gold answer states, or `None`.

    Args:
        gold (`str`, `int` or `float`):
            A number (`"1,450"`, `18`), a raw GSM8K solution that ends in `#### 18`, or a LaTeX solution
            (`$\frac{3}{4}$`).
    """
    text = str(gold)
    extraction = extract(text, ("hash", "boxed", "answer"))
    if extraction.status == "none":
        extraction = extract(f"<answer>{text}</answer>", "answer")
    return extraction.value


_IGNORED = re.compile(r"[\s,$%\\*_`]")


def normalise(text: str) -> str:
    r"""Strip separators, currency, percent sign, markup, white space and the final period from an answer.

    ```python
    >>> normalise("\\$1,450.")
    '1450'
    ```
    """
    return _IGNORED.sub("", text).rstrip(".").lower()


def get_gsm8k_accuracy(
    forms: Sequence[str] = FORMS, allow_bare: bool = False, name: str = "gsm8k_accuracy"
) -> Callable[..., list[float | None]]:
    """
    Reward 1.0 if the final answer equals the gold answer as an exact number, else 0.0.

    Args:
        forms (`Sequence[str]`, *optional*, defaults to all):
            The markers that count, see [`~grpo_math.answers.extract`].
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether the last number of a completion without any marker is its answer (prompt style `plain`).
        name (`str`, *optional*, defaults to `"gsm8k_accuracy"`):
            The `__name__` of the reward, which prefixes what it logs. Two rewards in one trainer need different names.

    Returns:
        `Callable`: a picklable reward function of the column `answer`, or else `solution`.

    Raises:
        `ValueError`: for an unknown form. The reward itself raises it without either column.

    Example:
        ```python
        >>> get_gsm8k_accuracy()(["#### 1,450.00", "#### 18 or 20"], answer=["1450", "18"])
        [1.0, 0.0]
        ```
    """
    return _GSM8KAccuracy(name, forms, allow_bare)


def get_gsm8k_exact_match(
    forms: Sequence[str] = FORMS, allow_bare: bool = False, name: str = "gsm8k_exact_match"
) -> Callable[..., list[float | None]]:
    """
    Reward 1.0 if [`normalise`]`(final answer) == normalise(gold)`, else 0.0. Strings match: `18.0` is not `18`.

    Arguments, return value and errors are those of [`get_gsm8k_accuracy`].
    """
    return _GSM8KExactMatch(name, forms, allow_bare)


gsm8k_accuracy = get_gsm8k_accuracy()
gsm8k_exact_match = get_gsm8k_exact_match()
