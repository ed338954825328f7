"""Chooses the marker that decides, and detects another value beside it."""

import re
from collections.abc import Iterable
from fractions import Fraction

from grpo_math.answers.markers import STRONG, WINDOW, Marker, Reader, Reading, Stated
from grpo_math.answers.tokens import parse_number
from grpo_math.answers.words import JOINERS, LEAD_INS

_MAX_GAP = 100  # characters between two markers side by side
_OPENING_MARKUP = " \t\r\n*_`$:\\([{\"'"
_CORRECTION = re.compile(
    r"\b(?:wait|no|not|wrong|incorrect|mistake|error|actually|oops|sorry|instead|hm+|correction|however|but|forgot"
    r"|should|again|rather)\b",
    re.I,
)
_OR = re.compile(r"\bor\b", re.I)
_JOINING = re.compile(
    rf"[\W_]*(?:(?:{'|'.join(sorted(JOINERS | LEAD_INS))})\b[\W_]*)*"
    r"(?:\d{1,2}[.)]\s[\W_]*)?",  # the number of a list
    re.I,
)

Item = tuple[Marker, Reading]


def final_reading(text: str, found: Iterable[Marker], read: Reader) -> Stated | None:
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
        `Stated`, or `None` without a marker.
    """
    markers = list(found)
    final, i = _item_before(text, markers, 0, len(text), read)
    if final is None:
        return None
    rule, later = "last marker", 0
    if final[0].form in ("phrase", "a_colon"):
        for k in range(i, len(markers)):
            if markers[k].form not in STRONG:
                continue
            reading = read(text, markers[k], markers[k - 1].begin)
            if reading is not None and reading.status != "malformed":
                strong = (markers[k], reading)
                if not _CORRECTION.search(text, _end(strong), final[0].begin):
                    rule, final, later, i = "outranked", strong, k, k + 1
                break
    marker, reading = final
    if reading.status == "hedged":
        rule = "two values"
    elif reading.status == "malformed":
        rule = "no value"
    elif reading.status == "ok":
        if _alternative_before(text, marker.begin, reading.value):
            rule = "two values"
        elif _differs_before(text, final, markers, i, read) or _differs_after(text, final, markers[:later], read):
            rule = "two markers"
        if rule in ("two values", "two markers"):
            reading = Reading(None, "hedged", reading.span)
    return Stated(marker.form, reading, rule)


def _item_before(
    text: str, markers: list[Marker], i: int, edge: int, read: Reader
) -> tuple[Item, int] | tuple[None, int]:
    """Return the first of `markers[i:]` that states something before `edge`, and the index after it.

    An open marker directly before it introduces it, and is part of it: `The answer is \\boxed{18}`.
    """
    while i < len(markers):
        marker = markers[i]
        reading = read(text, marker, edge)
        i += 1
        if reading is None:
            continue
        while i < len(markers) and marker.begin - markers[i].start < WINDOW:
            if text[markers[i].start : marker.begin].strip(_OPENING_MARKUP):
                break
            marker = marker._replace(begin=markers[i].begin)
            i += 1
        return (marker, reading), i
    return None, i


def _end(item: Item) -> int:
    """Return where a marker ends: an open one ends with its number."""
    marker, reading = item
    return marker.end if marker.closed else reading.span[1]


def _differs_before(text: str, final: Item, markers: list[Marker], i: int, read: Reader) -> bool:
    """Whether one of `markers[i:]` is joined to the final one, maybe through markers of its value, and differs."""
    edge = final[0].begin
    while i < len(markers):
        item, i = _item_before(text, markers, i, edge, read)
        if item is None or not _joined(text, _end(item), edge):
            return False
        if _is_other(text, item[1], final[1], _end(item), edge):
            return True
        edge = item[0].begin
    return False


def _differs_after(text: str, final: Item, later: list[Marker], read: Reader) -> bool:
    """Whether a phrase or label that the final marker outranks is joined to it and differs."""
    edge = _end(final)
    for k in range(len(later) - 1, -1, -1):
        if not _joined(text, edge, later[k].begin):
            return False
        reading = read(text, later[k], later[k - 1].begin if k else len(text))
        if reading is not None:
            if _is_other(text, reading, final[1], edge, later[k].begin):
                return True
            edge = _end((later[k], reading))
    return False


def _joined(text: str, start: int, stop: int) -> bool:
    return start <= stop <= start + _MAX_GAP and _JOINING.fullmatch(text, start, stop) is not None


def _is_other(text: str, reading: Reading, final: Reading, start: int, stop: int) -> bool:
    """Whether a joined reading is an alternative. One without a value is if "or" stands between them."""
    if reading.status == "ok":
        return reading.value != final.value
    return reading.status == "hedged" or _OR.search(text, start, stop) is not None


# The last number before "or", with up to a few words of a unit.
_NUMBER_OR = re.compile(r"(-?\d[\d.,]{0,40})[^\d.!?\n]{0,24}\bor(?: the)?\Z")


def _alternative_before(text: str, at: int, value: int | Fraction) -> bool:
    r"""Whether another value without a marker is joined to the marker at `at`: "18 or \boxed{20}"."""
    if "or" not in text[max(0, at - 12) : at].lower():
        return False
    other = _NUMBER_OR.search(text[max(0, at - 60) : at].lower().rstrip(_OPENING_MARKUP))
    return other is not None and parse_number(other[1].strip(".,")) != value
