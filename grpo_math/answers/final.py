"""Extracts the final answer of a completion: the rules of `grpo_math.answers` in their order."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

from grpo_math.answers.choice import final_reading
from grpo_math.answers.markers import (
    FORMS,
    STRONG,
    WINDOW,
    Reading,
    Stated,
    check_forms,
    last_bolds,
    last_labels,
    markers_from_the_end,
)
from grpo_math.answers.parts import NUMBERS, split
from grpo_math.answers.reading import read, read_bold
from grpo_math.answers.tokens import tokenise
from grpo_math.answers.words import JOINERS, NUMBERED


class Extraction(NamedTuple):
    """What a text states as its final answer.

    Attributes:
        value (`Fraction` or `None`):
            The exact value; `None` unless `status` is `"ok"`.
        status (`str`):
            `"ok"`; `"none"`: no marker; `"hedged"`: different values side by side; `"malformed"`: the last marker is
            empty or contains no number.
        form (`str` or `None`):
            The form of the deciding marker (one of `FORMS`), or `"bare"`; `None` without a marker.
        span (`tuple[int, int]` or `None`):
            `text[span[0]:span[1]]` is the answer as written; `None` without a marker.
        rule (`str`):
            The rule that decided, one of `RULES`.
    """

    value: Fraction | None
    status: str
    form: str | None
    span: tuple[int, int] | None
    rule: str = "no marker"


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
    stated = stated_number(text, check_forms(forms), allow_bare)
    if stated is None:
        return Extraction(None, "none", None, None)
    value, status, span = stated.reading
    return Extraction(None if value is None else Fraction(value), status, stated.form, span, stated.rule)


def stated_number(text: str, forms: frozenset[str], allow_bare: bool) -> Stated | None:
    """Return what [`extract`] finds; a whole number may still be an `int`."""
    return first_stated(text, lambda visible: _state(visible, forms, allow_bare))


# A base model often continues with a next problem. What follows such a heading answers another question.
_NEXT_PROBLEM = re.compile(r"\n {0,8}(?:\*\*|#{1,6} )?(?:question|problem|q|user|human)\s?\d{0,3}\s?:", re.I)
_MOST_PROBLEMS = 16


def first_stated(text: str, state: Callable[[str], Stated | None]) -> Stated | None:
    """Apply `state` to a text without its thinking, up to where the text goes on to another problem.

    It goes on where a heading such as `Question:` follows an answer in a box, a tag or `####`, or in a text without
    these a phrase or bold. `A:` and other labels before a heading may answer a part of the problem.

    Args:
        text (`str`):
            The completion. Anything but a string counts as an empty string.
        state (`Callable`):
            `state(visible)` returns what the text states, or `None`.
    """
    visible = hide_thinking(text.rstrip()) if isinstance(text, str) else ""
    stated = state(visible)
    if stated is None or ":" not in visible:
        return stated
    for heading in islice(_NEXT_PROBLEM.finditer(visible), _MOST_PROBLEMS):
        first = state(visible[: heading.start()])
        if first is None or first.form == "a_colon" or first.reading.status == "malformed":
            continue
        if first.form in STRONG or stated.form not in STRONG:
            return first._replace(rule="next problem" if first.rule == "last marker" else first.rule)
    return stated


def _state(text: str, forms: frozenset[str], allow_bare: bool) -> Stated | None:
    """Return the final statement of a text without thinking. Markers come first, then labels, bold and bare numbers."""
    stated = final_reading(text, markers_from_the_end(text, forms), read)
    if stated is None:
        stated = final_reading(text, last_labels(text, forms), read)
    if stated is None and "bold" in forms:
        stated = final_reading(text, last_bolds(text), read_bold)
    if stated is None and allow_bare:
        stated = _last_number(text)
    return stated


_THINK_TAG = re.compile(r"<(/?)think(?:ing)?\s{0,8}>", re.I)


def hide_thinking(text: str) -> str:
    """Overwrite the thinking in a text with as many characters, so that offsets stay valid.

    Thinking is everything before an unopened `</think>`, between `<think>` and the next `</think>`, and after an
    unclosed `<think>`. It becomes a word of `z`, which counts as prose between the markers around it; empty thinking
    becomes white space.
    """
    if "<" not in text:
        return text
    hidden: list[tuple[int, int, bool]] = []  # start, stop, whether the thinking contains text
    opened = None
    for tag in _THINK_TAG.finditer(text):
        if not tag.group(1):
            opened = opened or tag
        elif opened is None:
            hidden = [(0, tag.end(), True)]
        else:
            hidden.append((opened.start(), tag.end(), bool(text[opened.end() : tag.start()].strip())))
            opened = None
    if opened is not None:
        hidden.append((opened.start(), len(text), True))
    if not hidden:
        return text
    pieces, at = [], 0
    for start, stop, thought in hidden:
        pieces += (text[at:start], " ", ("z" if thought else " ") * (stop - start - 2), " ")
        at = stop
    return "".join([*pieces, text[at:]])


_JOINED = re.compile(rf"[^\w=]*(?:(?:{'|'.join(sorted(JOINERS))})\b[^\w=]*)*", re.I)


def _last_number(text: str) -> Stated | None:
    """Read the last number of a text without a marker; beside a joined other one (`18 or 20`) it is a hedge."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    start = max(0, end - WINDOW)
    numbers = []  # start, stop, value
    for part in split(tokenise(text, start, end)):
        for side in part.sides:
            for k, (kind, value, *span) in enumerate(side):
                if kind in NUMBERS:
                    is_index = k > 0 and side[k - 1][1] in NUMBERED
                    numbers.append((*span, None if is_index else value))
    if not numbers:
        return None
    *others, (start, stop, value) = sorted(numbers, key=lambda number: number[0])
    if value is None:
        return Stated("bare", Reading(None, "malformed", (start, stop)), "no value")
    if others and others[-1][2] != value and _JOINED.fullmatch(text, others[-1][1], start):
        return Stated("bare", Reading(None, "hedged", (start, stop)), "two values")
    return Stated("bare", Reading(value, "ok", (start, stop)), "last number")
