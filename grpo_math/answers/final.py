"""Extracts the final answer of a completion: the rules of `grpo_math.answers` in their order."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from grpo_math.answers.hedging import final_reading
from grpo_math.answers.markers import FORMS, Reading, Stated, check_forms, last_bolds, last_labels, markers_from_the_end
from grpo_math.answers.reading import read, read_bold
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
            The form of the last marker (one of `FORMS`), or `"bare"`; `None` without a marker.
        span (`tuple[int, int]` or `None`):
            `text[span[0]:span[1]]` is the answer as written; `None` without a marker.
    """

    value: Fraction | None
    status: str
    form: str | None
    span: tuple[int, int] | None


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
    stated = statement(text, check_forms(forms), allow_bare)
    if stated is None:
        return Extraction(None, "none", None, None)
    form, (value, status, span) = stated
    return Extraction(None if value is None else Fraction(value), status, form, span)


def statement(text: str, forms: frozenset[str], allow_bare: bool) -> Stated | None:
    """Return the form and the reading that [`extract`] finds; a whole number may still be an `int`."""
    return first_stated(text, lambda visible: _state(visible, forms, allow_bare))


def first_stated(text: str, state: Callable[[str], Stated | None]) -> Stated | None:
    """Apply `state` to a text without its thinking, up to where the text starts another problem.

    Some completions repeat the problem before they solve it. If nothing is stated up to there, `state` gets all of it.

    Args:
        text (`str`):
            The completion. Anything but a string counts as an empty string.
        state (`Callable`):
            `state(visible)` returns the form and the reading of the last statement, or `None`.
    """
    visible = hide_thinking(text.rstrip()) if isinstance(text, str) else ""
    stop = _next_problem(visible)
    return (state(visible[:stop]) if stop is not None else None) or state(visible)


def _state(text: str, forms: frozenset[str], allow_bare: bool) -> Stated | None:
    """Return the final statement of a text without thinking. Markers come first, then labels, bold and bare numbers."""
    stated = final_reading(text, markers_from_the_end(text, forms), read)
    if stated is None and ("phrase" in forms or "a_colon" in forms):
        stated = final_reading(text, last_labels(text, forms), read)
    if stated is None and "bold" in forms:
        stated = final_reading(text, last_bolds(text), read_bold)
    if stated is None and allow_bare:
        stated = _bare(text)
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


# A base model often continues with a next problem. What follows such a heading answers another question.
_NEXT_PROBLEM = re.compile(r"\n[ \t]{0,8}(?:\*\*|#{1,6} )?(?:question|problem|q|user|human)\s?\d{0,3}\s?:", re.I)


def _next_problem(text: str) -> int | None:
    """Return the offset at which the text starts another problem, or `None`."""
    match = _NEXT_PROBLEM.search(text)
    return match.start() if match else None


_BARE_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}.,])[-−]\s?)?[$€£¥]?(?P<number>(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?)"
)
_JOINED = re.compile(rf"[^\w=]*(?:(?:{'|'.join(sorted(JOINERS))})\b[^\w=]*)*", re.I)
_NUMBERED_BEFORE = re.compile(rf"\b(?:{'|'.join(sorted(NUMBERED))})\W{{0,3}}\Z", re.I)


def _bare(text: str) -> Stated | None:
    """Read the last number of a text without a marker."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    if not end:
        return None
    start = max(0, end - 120)
    found = [m for m in _BARE_NUMBER.finditer(text, start, end) if not _is_unit_digit(text, m)]
    if not found or (len(found) == 1 and start and found[0].start() == start):
        return None
    last = found[-1]
    malformed = Reading(None, "malformed", last.span())
    if _NUMBERED_BEFORE.search(text, max(0, last.start() - 16), last.start()):
        return "bare", malformed
    number = last.group("number")
    over, _, under = number.replace(",", "").partition("/")
    if under and not int(under):
        return "bare", malformed
    value = Fraction(over.strip()) / (int(under) if under else 1)
    value = -value if last.group("sign") else value
    before = text[found[-2].end() : last.start()] if len(found) > 1 else None
    if before is not None and "=" not in before and _JOINED.fullmatch(before):
        return "bare", Reading(None, "hedged", last.span())
    return "bare", Reading(value, "ok", last.span())


def _is_unit_digit(text: str, match: re.Match) -> bool:
    """Whether the match is the 2 of `m2` or `m^2`."""
    before = text[max(0, match.start() - 1) : match.start()]
    return before == "^" or before.isalpha()
