"""Chooses the marker that decides, and detects another value beside it."""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain

from grpo_math.answers.markers import STRONG, WINDOW, Marker, Reader, Reading, Stated
from grpo_math.answers.tokens import parse_number
from grpo_math.answers.words import JOINERS, LEAD_INS

_MAX_GAP = 100  # characters between two markers side by side
_OPENING_MARKUP = " \t\r\n*_`$:\\([{\"'"
_CORRECTION = re.compile(
    r"\b(?:wait|no|not|wrong|incorrect(?:ly)?|mistaken?|error|actually|oops|sorry|instead|hm+|correction|corrected"
    r"|however|but|forgot|should|again|recheck|recalculat\w*|reconsider|revised?|rather)\b",
    re.I,
)
_OR = re.compile(r"\bor\b", re.I)
_JOINING = re.compile(
    r"(?:[\W_]*(?:[^\W_]+[\W_]+){1,3}?(?=or\b))?"  # a unit: 18 dollars or
    rf"[\W_]*(?:(?:{'|'.join(sorted(JOINERS | LEAD_INS))})\b[\W_]*)*"
    r"(?:\d{1,2}[.)]\s[\W_]*)?",  # the number of a list
    re.I,
)

Item = tuple[Marker, Reading]


def final_reading(text: str, markers: Iterator[Marker], read: Reader) -> Stated | None:
    """Return what the deciding marker states, `"hedged"` if another value stands beside it.

    Args:
        text (`str`):
            A text without its thinking.
        markers (`Iterator[Marker]`):
            The markers of the text, the last one first.
        read (`Callable`):
            `read(text, marker, limit)` reads a marker's content up to `limit`. It returns `None` if the candidate is
            no marker (a heading, "the answer is easy to see").

    Returns:
        `Stated`, or `None` without a marker.
    """
    items = _read_all(text, markers, read)
    final = next(items, None)
    if final is None:
        return None
    rule, later, earlier = "last marker", [], items
    if final[0].form in ("phrase", "a_colon"):
        weak = [final]
        for item in items:
            if item[0].form in STRONG and item[1].status != "malformed":
                if _CORRECTION.search(text, _end(item), final[0].begin):
                    weak.append(item)
                else:
                    rule, final, later = "outranked", item, weak[::-1]
                break
            weak.append(item)
        if not later:
            earlier = chain(weak[1:], items)
    marker, reading = final
    if reading.status == "hedged":
        rule = "two values"
    elif reading.status == "malformed":
        rule = "no value"
    elif reading.status == "ok":
        if _alternative_before(text, marker.begin, reading.value):
            rule = "two values"
        elif _differs(text, final, earlier, later):
            rule = "two markers"
        if rule in ("two values", "two markers"):
            reading = Reading(None, "hedged", reading.span)
    return Stated(marker.form, reading, rule)


def _read_all(text: str, markers: Iterator[Marker], read: Reader) -> Iterator[Item]:
    """Yield the markers that state something, the last one first. One that only introduces the next is part of it."""
    item, edge = None, len(text)
    for marker in markers:
        reading = read(text, marker, edge)
        if reading is None:
            continue
        edge = marker.begin
        if item is not None:
            start = item[0].begin
            introduces = not marker.closed and start - marker.start < WINDOW
            if introduces and reading.value is None and not text[marker.start : start].strip(_OPENING_MARKUP):
                item = (item[0]._replace(begin=edge), item[1])  # the answer is \\boxed{18}
                continue
            yield item
        item = (marker, reading)
    if item is not None:
        yield item


def _end(item: Item) -> int:
    """Return where a marker ends: an open one ends with its number."""
    marker, reading = item
    return marker.end if marker.closed else reading.span[1]


def _differs(text: str, final: Item, earlier: Iterable[Item], later: Iterable[Item]) -> bool:
    """Whether a marker with another value is joined to the final one, directly or through markers of the same value."""
    edge = final[0].begin
    for item in earlier:
        if not _joined(text, _end(item), edge):
            break
        if _is_other(text, item[1], final[1], _end(item), edge):
            return True
        edge = item[0].begin
    edge = _end(final)
    for item in later:
        if not _joined(text, edge, item[0].begin):
            break
        if _is_other(text, item[1], final[1], edge, item[0].begin):
            return True
        edge = _end(item)
    return False


def _joined(text: str, start: int, stop: int) -> bool:
    return start <= stop <= start + _MAX_GAP and _JOINING.fullmatch(text, start, stop) is not None


def _is_other(text: str, reading: Reading, final: Reading, start: int, stop: int) -> bool:
    """Whether a joined reading is an alternative. One without a value is if "or" stands between them."""
    if reading.status == "ok":
        return reading.value != final.value
    return reading.status == "hedged" or _OR.search(text, start, stop) is not None


# The last number before "or", with up to a few words of a unit.
_NUMBER_OR = re.compile(r"(-?\d[\d.,]{0,40})[^\d.!?\n]{0,24}[.!?]?[^\d.!?\n]{0,4}\bor(?: the)?\Z")


def _alternative_before(text: str, at: int, value: int | Fraction) -> bool:
    r"""Whether another value without a marker is joined to the marker at `at`: "18 or \boxed{20}"."""
    if "or" not in text[max(0, at - 12) : at].lower():
        return False
    other = _NUMBER_OR.search(text[max(0, at - 60) : at].lower().rstrip(_OPENING_MARKUP))
    return other is not None and parse_number(other[1].strip(".,")) != value
