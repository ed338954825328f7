"""Format reward: one `<think>` block, then one `<answer>` block."""

import re
from collections.abc import Sequence

from grpo_math.rewards.base import MathReward, Metric, completion_texts

_TAGS = re.compile(r"</?(?:think|answer)>")
_WANTED_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


class _ThinkAnswerFormat(MathReward):
    """Requires one thinking block and one answer, see [`think_answer_format`]."""

    statuses = ("ok", "malformed")

    def __call__(
        self, completions: Sequence, prompts: Sequence | None = None, log_metric: Metric | None = None, **kwargs
    ) -> list[float | None]:
        texts = completion_texts(completions, prompts)
        matches = [_has_format(text, opener_required=prompts is not None) for text in texts]
        self.log_outcomes([(None, "ok" if ok else "malformed") for ok in matches], None, log_metric)
        return [1.0 if ok else 0.0 for ok in matches]


def _has_format(text: str, opener_required: bool) -> bool:
    """Whether the text is one thinking block and one answer; `opener_required` asks for the opening `<think>`."""
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


think_answer_format = _ThinkAnswerFormat("think_answer_format")
think_answer_format.__doc__ = """Reward 1.0 for exactly `<think>...</think><answer>...</answer>`, else 0.0.

Both blocks must contain text, with only white space between and around them. The opening `<think>` may be missing if
the prompt ends in one, or if the caller passes no `prompts`.
"""
