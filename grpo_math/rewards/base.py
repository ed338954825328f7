"""What all rewards share: completions as texts, logging through TRL, and checked forms."""

from collections.abc import Callable, Sequence

from grpo_math.answers import check_forms

Log = Callable[[str, list], None]  # TRL's log_extra: column name, one value a completion
Metric = Callable[[str, float], None]  # TRL's log_metric: metric name, value


def completion_text(completion: object) -> str:
    """Return the text of a completion: the string itself, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, (list, tuple)) or not completion or not isinstance(completion[-1], dict):
        return ""
    content = completion[-1].get("content")
    if isinstance(content, (list, tuple)):  # TRL's multimodal messages: [{"type": "text", "text": ...}]
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def completion_texts(completions: Sequence, prompts: Sequence | None) -> list[str]:
    """Return the completions as texts. A text gets the `<think>` that its prompt ends in."""
    texts = [completion if type(completion) is str else completion_text(completion) for completion in completions]
    if prompts is None:
        return texts
    return ["<think>" + t if _opens_thinking(p) else t for t, p in zip(texts, prompts, strict=True)]


def _opens_thinking(prompt: object) -> bool:
    return completion_text(prompt)[-16:].rstrip().endswith("<think>")


class MathReward:
    """A reward with parameters. Unlike a closure it can be pickled, which TRL's worker processes need.

    Attributes:
        statuses (`tuple[str, ...]`):
            The outcomes whose shares are logged.
        __name__ (`str`):
            The prefix of everything that the reward logs.
    """

    statuses: tuple[str, ...] = ("ok", "none", "hedged", "malformed")

    def __init__(self, name: str):
        self.__name__ = name

    def log_outcomes(
        self, found: list[tuple[str | None, str]], log_extra: Log | None, log_metric: Metric | None
    ) -> None:
        """Log each answer as written, its status, and the share of each status.

        Args:
            found (`list[tuple[str | None, str]]`):
                The answer as written (`None` without one) and the status of each completion.
            log_extra, log_metric (`Callable` or `None`):
                The callables that TRL passes to a reward.
        """
        if log_extra is not None:
            log_extra(f"{self.__name__}_answer", [answer for answer, _ in found])
            log_extra(f"{self.__name__}_status", [status for _, status in found])
        if log_metric is not None and found:
            for status in self.statuses:
                log_metric(f"{self.__name__}/{status}", sum(s == status for _, s in found) / len(found))


def checked_forms(forms: Sequence[str], known: Sequence[str], allow_bare: bool) -> frozenset[str]:
    """Return the forms as a set.

    Raises:
        `ValueError`: for an unknown form, and for options with which no completion could state an answer.
    """
    if not isinstance(allow_bare, bool):
        raise ValueError(f"allow_bare is {allow_bare!r}; it must be True or False")
    if forms is None or isinstance(forms, (bool, int)):
        raise ValueError(f"forms is {forms!r}; it must be a list of {', '.join(known)}")
    checked = check_forms(forms, known)
    if not checked and not allow_bare:
        raise ValueError(
            f"forms is {forms!r} and allow_bare is False, so that no answer counts; the forms are {', '.join(known)}"
        )
    return checked
