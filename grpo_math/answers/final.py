"""Extracts the final answer of a completion: the rules of `grpo_math.answers` in their order."""

import re
from collections.abc import Callable, Sequence
from itertools import islice

from grpo_math.answers.choice import final_reading
from grpo_math.answers.markers import (
    FORMS,
    STRONG,
    WINDOW,
    Extraction,
    check_forms,
    last_bolds,
    last_labels,
    markers_from_the_end,
)
from grpo_math.answers.parts import NUMBERS, split
from grpo_math.answers.reading import read, read_bold
from grpo_math.answers.tokens import tokenise
from grpo_math.answers.words import JOINERS, NUMBERED

# The names of the rules that decide, with what each of them says.
RULES = {
    "no marker": "no marker states an answer",
    "last marker": "the last marker states it",
    "outranked": "a box, tag or #### stands against a later phrase without a correction between them",
    "next problem": "the marker before the text goes on to another problem states it",
    "two markers": "two markers side by side state different values",
    "two values": "a marker offers different values",
    "no value": "the marker is empty or states no single number",
    "last number": "a text without any marker ends in it",
    "last line": "a text without any marker ends in a line that is an expression",
}


def extract(text: str, forms: Sequence[str] = FORMS, allow_bare: bool = False) -> Extraction:
    r"""
    Extract the final answer from a completion, by the rules of [`grpo_math.answers`].

    Args:
        text (`str`):
            The completion. Anything but a string counts as an empty string.
        forms (`Sequence[str]`, *optional*, defaults to all of `FORMS`):
            The markers that count: `"boxed"` (`\boxed{}`, `\fbox{}`), `"answer"` (`<answer></answer>`), `"hash"`
            (`####`), `"phrase"` ("the answer is"), `"a_colon"` (`A:`, `Answer:`, `"answer":`, a heading `Answer`),
            `"bold"`.
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether the last number of a text without any marker is its answer.

    Returns:
        [`Extraction`]: for every text, in time linear in its length.

    Raises:
        `ValueError`: for an unknown form.
    """
    checked = check_forms(forms)
    return first_stated(text, lambda visible: _state(visible, checked, allow_bare))


NOTHING = Extraction(None, "none", None, None, "no marker")

# A base model often continues with a next problem. What follows such a heading answers another question.
_NEXT_PROBLEM = re.compile(r"\n {0,8}(?:\*\*|#{1,6} )?(?:question|problem|q|user|human)\s?\d{0,3}\s?:", re.I)
_MOST_PROBLEMS = 16


def first_stated(text: str, state: Callable[[str], Extraction]) -> Extraction:
    """Apply `state` to a text without its thinking, up to where the text goes on to another problem.

    It goes on where a heading such as `Question:` follows an answer in a box, a tag or `####`, or in a text without
    these a phrase or bold. `A:` and other labels before a heading may answer a part of the problem.

    Args:
        text (`str`):
            The completion. Anything but a string counts as an empty string.
        state (`Callable`):
            `state(visible)` returns what the text states.
    """
    visible = hide_thinking(text.rstrip()) if isinstance(text, str) else ""
    stated = state(visible)
    for heading in islice(_NEXT_PROBLEM.finditer(visible), _MOST_PROBLEMS):
        first = state(visible[: heading.start()])
        if first.form in (None, "a_colon") or first.status == "malformed":
            continue
        if first.form in STRONG or stated.form not in STRONG:
            return first._replace(rule="next problem" if first.rule == "last marker" else first.rule)
    return stated


def _state(text: str, forms: frozenset[str], allow_bare: bool) -> Extraction:
    """Return the final statement of a text without thinking. Markers come first, then labels, bold and bare numbers."""
    return (
        final_reading(text, markers_from_the_end(text, forms), read)
        or final_reading(text, last_labels(text, forms), read)
        or ("bold" in forms and final_reading(text, last_bolds(text), read_bold))
        or (allow_bare and _last_number(text))
        or NOTHING
    )


_THINK_TAG = re.compile(r"<(/?)think(?:ing)?\s{0,8}>", re.I)


def hide_thinking(text: str) -> str:
    """Overwrite the thinking in a text with as many characters, so that offsets stay valid.

    Thinking is everything before an unopened `</think>`, between `<think>` and the next `</think>`, and after an
    unclosed `<think>`. It becomes a word of `z`, which counts as prose between the markers around it.
    """
    if "<" not in text:
        return text
    hidden: list[tuple[int, int]] = []
    opened: int | None = None
    for tag in _THINK_TAG.finditer(text):
        if tag[1]:  # the end of thinking
            if opened is None:
                hidden, opened = [], 0
            hidden.append((opened, tag.end()))
            opened = None
        elif opened is None:
            opened = tag.start()
    if opened is not None:
        hidden.append((opened, len(text)))
    pieces, at = [], 0
    for start, end in hidden:
        pieces += [text[at:start], f" {'z' * (end - start - 2)} "]
        at = end
    return "".join([*pieces, text[at:]])


_JOINED = re.compile(rf"[^\w=]*(?:(?:{'|'.join(sorted(JOINERS))})\b[^\w=]*)*", re.I)


def _last_number(text: str) -> Extraction | None:
    """Read the last number of a text without a marker; beside a joined other one (`18 or 20`) it is a hedge."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    start = max(0, end - WINDOW)
    numbers = sorted(
        (first, stop, None if k and side[k - 1][1] in NUMBERED else value)
        for part in split(tokenise(text, start, end))
        for side in part.sides
        for k, (kind, value, first, stop) in enumerate(side)
        if kind in NUMBERS
    )
    if not numbers:
        return None
    first, stop, value = numbers[-1]
    status, rule = "ok", "last number"
    if value is None:
        status, rule = "malformed", "no value"
    elif any(other != value and _JOINED.fullmatch(text, end, first) for _, end, other in numbers[-2:-1]):
        value, status, rule = None, "hedged", "two values"
    return Extraction(value, status, "bare", (first, stop), rule)
