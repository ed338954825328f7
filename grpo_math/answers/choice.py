"""Chooses the marker that decides, and detects another value beside it."""

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from grpo_math.answers.markers import STRONG, Extraction, Marker, Reader, Reading
from grpo_math.answers.tokens import parse_number
from grpo_math.answers.words import CORRECTIONS, JOINERS, LEAD_INS

_OPENING_MARKUP = " \t\r\n*_`$:\\([{\"'"
_CORRECTION = re.compile(rf"\b(?:{'|'.join(sorted(CORRECTIONS))})\b", re.I)
_OR = re.compile(r"\bor\b", re.I)
_JOINING = re.compile(
    rf"\W*(?:(?:{'|'.join(sorted(JOINERS | LEAD_INS))})\b\W*)*"
    r"(?:\d{1,2}[.)]\s\W*)?",  # the number of a list
    re.I,
)


class _Item(NamedTuple):
    """A marker that states something, with what it states."""

    form: str
    begin: int
    end: int  # an open marker ends with its number
    reading: Reading


def final_reading(text: str, found: Iterable[Marker], read: Reader) -> Extraction | None:
    """Return what the deciding marker states, `"hedged"` if another value stands beside it.

    Args:
        text (`str`):
            A text without its thinking.
        found (`Iterable[Marker]`):
            The markers of the text, the last one first.
        read (`Callable`):
            `read(text, marker, limit)` reads a marker's content up to `limit`. It returns `None` if the candidate is
            no marker (a heading, "the answer is easy to see").

    Returns:
        [`Extraction`], or `None` without a marker.
    """
    items = _items(text, found, read)
    if not items:
        return None
    at, rule = len(items) - 1, "last marker"
    if items[at].form not in STRONG:
        strong = [k for k, item in enumerate(items) if item.form in STRONG and item.reading.status != "malformed"]
        if strong and not _CORRECTION.search(text, items[strong[-1]].end, items[at].begin):
            at, rule = strong[-1], "outranked"
    form, begin, _, (value, status, span) = items[at]
    if status == "malformed":
        rule = "no value"
    elif status == "hedged" or _alternative_before(text, begin, value):
        value, status, rule = None, "hedged", "two values"
    elif _differs_beside(text, items, at):
        value, status, rule = None, "hedged", "two markers"
    return Extraction(value, status, form, span, rule)


def _items(text: str, found: Iterable[Marker], read: Reader) -> list[_Item]:
    """Return the markers that state something in the order of the text."""
    items: list[_Item] = []
    edge = len(text)
    for marker in found:
        reading = read(text, marker, edge)
        if reading is not None:
            edge = marker.begin
            items.append(_Item(marker.form, edge, reading.span[1] if marker.end is None else marker.end, reading))
    return items[::-1]


def _differs_beside(text: str, items: list[_Item], at: int) -> bool:
    """Whether a marker that is joined to `items[at]`, maybe through others, states another value, or none after "or"."""
    for step in (-1, 1):
        k = at
        while 0 <= k + step < len(items):
            left, right = items[min(k, k + step)], items[max(k, k + step)]
            if not _JOINING.fullmatch(text, left.end, right.begin):
                break
            k += step
            value, status, _ = items[k].reading
            if status == "ok" and value == items[at].reading.value:
                continue
            if status in ("ok", "hedged") or _OR.search(text, left.end, right.begin):
                return True
    return False


# The last number before "or", with up to a few words of a unit.
_NUMBER_OR = re.compile(r"(-?\d[\d,]{0,40}(?:\.\d{1,40})?)\.?[^\d.!?\n]{0,24}\bor(?: the)?\Z")


def _alternative_before(text: str, at: int, value: int | Fraction | None) -> bool:
    r"""Whether another value without a marker is joined to the marker at `at`: "18 or \boxed{20}"."""
    if "or" not in text[max(0, at - 12) : at].lower():
        return False
    other = _NUMBER_OR.search(text[max(0, at - 60) : at].lower().rstrip(_OPENING_MARKUP))
    return other is not None and parse_number(other[1]) != value
