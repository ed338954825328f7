"""HEDGING"""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from grpo_math.answers.markers import WINDOW, Marker, Reader, Reading, Stated
from grpo_math.answers.numbers import equation, expression, starts_number
from grpo_math.answers.tokens import Token, parse_number
from grpo_math.answers.words import FILLERS, JOINERS, LEADS, PREPOSITIONS

_MAX_GAP = 100
_OR = re.compile(r"\bor\b", re.I)
_LEAD_IN = " \t\r\n*_`$:\\([{\"'"


_JOINING = re.compile(
    r"(?:[\W_]*(?:[^\W_]+[\W_]+){1,3}?(?=or\b))?"  # a unit: 18 dollars or
    rf"[\W_]*(?:(?:{'|'.join(sorted(JOINERS | LEADS))})\b[\W_]*)*",
    re.I,
)


def final_reading(text: str, markers: Iterator[Marker], read: Reader) -> Stated | None:
    """The form and the reading of the last marker; the status is `"hedged"` where another value stands beside it.

    Args:
        text (`str`):
            A text without its thinking.
        markers (`Iterator[Marker]`):
            Its markers, the last one first.
        read (`Callable`):
            `read(text, marker, limit)` reads a marker's content up to `limit`; `None` means that it was no marker (a
            heading, "the answer is easy to see").

    Returns:
        `tuple[str, Reading]`, or `None` where there is no marker.
    """
    for last in markers:
        final = read(text, last, len(text))
        if final is not None:
            break
    else:
        return None
    if final.status == "ok" and (
        _offered_before(text, last.begin, final.value) or _stands_beside(text, last, final, markers, read)
    ):
        final = Reading(None, "hedged", final.span)
    return last.form, final


def _stands_beside(text: str, last: Marker, final: Reading, markers: Iterator[Marker], read: Callable) -> bool:
    """Whether a marker with another value is joined to the last one, directly or through markers of the same value.

    `markers` goes on from `last` towards the beginning.
    """
    edge = last.begin
    for marker in markers:
        if edge - (marker.end if marker.closed else marker.start + WINDOW) > _MAX_GAP:
            return False
        reading = read(text, marker, edge)
        if reading is None:
            continue
        # an open marker directly before a box or tag only introduces it: "the answer is \boxed{18}"
        if reading.value is None and not marker.closed and not text[marker.start : edge].strip(_LEAD_IN):
            edge = marker.begin
            continue
        end = marker.end if marker.closed else reading.span[1]
        if edge - end > _MAX_GAP or not _JOINING.fullmatch(text, end, edge):
            return False
        if reading.status == "ok":
            hedged = reading.value != final.value
        else:  # no value: only "or" makes it an offer, as in "\\boxed{?} or \\boxed{18}"
            hedged = reading.status == "hedged" or _OR.search(text, end, edge) is not None
        if hedged:
            return True
        edge = marker.begin
    return False


def _offered_before(text: str, at: int, value: int | Fraction) -> bool:
    r"""Whether another value without a marker is joined to the marker at `at`: "18 or \boxed{20}"."""
    near = text[max(0, at - 12) : at].lower()
    if "or" not in near and "either" not in near:
        return False
    before = text[max(0, at - 60) : at].lower().rstrip(_LEAD_IN)
    if before.endswith("either"):
        return True
    offer = _OFFER_BEFORE.search(before) if before.endswith(("or", "or the")) else None
    return offer is not None and not (len(offer[1]) < 40 and parse_number(offer[1].strip(".,")) == value)


_OFFER_BEFORE = re.compile(r"(-?\d[\d.,]*)[^\d.!?\n]{0,24}[.!?]?[^\d.!?\n]{0,4}\bor(?: the)?\Z")


def beside(tokens: list[Token], i: int, value: int | Fraction, closed: bool, several: bool) -> str:
    """Whether another value is offered next to the one that ended before token i: `"ok"`, `"hedged"`, `"malformed"`.

    Only the next number matters: what follows prose is no offer. With `several` (prose before the first number of a
    box or tag) any other number is one, since nothing tells which of them is the answer.
    """
    gap: list[Token] = []
    while i < len(tokens):
        kind = tokens[i][0]
        if kind == "relation" and (closed or not any(token[0] == "word" for token in gap)):
            return "malformed"  # 18 ± 1, 18!, 0.\\overline{3}
        cut_off = kind == "op" and not gap and tokens[i][1] in ("+", "*")
        if cut_off and i + 1 < len(tokens) and tokens[i + 1][0] == "word":
            return "malformed"  # 10 + John's age
        if starts_number(tokens, i):
            if kind == "open":
                inner, j = expression(tokens, i + 1)
                if inner == value or (j < len(tokens) and tokens[j][0] != "close"):  # a remark: 18 (2 * 9)
                    i = _after_bracket(tokens, i)
                    continue
            other, _, j = equation(tokens, i)
            if other is None and kind == "frac":  # a unit: \\frac{\\text{km}}{\\text{h}}
                gap.append(tokens[i])
                i += 1
                continue
            if other == value:
                gap, i = [], j
                continue
            alone = j == len(tokens) or tokens[j][0] in ("newline", "sentence")
            return "hedged" if several or _is_offer(gap, kind == "op", alone, closed) else "ok"
        gap.append(tokens[i])
        if len(gap) > 12 and not several:
            return "ok"
        i += 1
    return "ok"


def _is_offer(gap: list[Token], signed: bool, alone: bool, closed: bool) -> bool:
    """Whether a number after this gap stands beside the one before it (`18 or 20`) or belongs to prose that follows.

    Args:
        gap (`list`):
            The tokens between the two numbers.
        signed, alone (`bool`):
            Whether the second number has a sign; whether nothing follows it in its sentence.
        closed (`bool`):
            In a box or tag a period or a new line does not end what is stated.
    """
    if not closed:
        ends = [k for k, token in enumerate(gap) if token[0] in ("sentence", "newline")]
        if ends:
            later = [token[1] for token in gap[ends[0] :] if token[0] == "word"]
            return all(word in JOINERS for word in later) and (alone or bool(later))
    words = [token[1] for token in gap if token[0] == "word"]
    while words and (words[-1] in FILLERS or words[-1] in LEADS) and words[-1] not in JOINERS and len(words) > 1:
        words.pop()  # 18 or the answer is 20
    if not words or words[-1] in JOINERS:
        return True
    kinds = [token[0] for token in gap if token[0] not in ("open", "close")]
    if signed or (kinds[-1] == "comma" and gap[-1][1] not in ":："):  # 18 eggs, 20 eggs; 18 eggs - 20 eggs
        return len(words) <= 3
    if kinds[-2:] == ["word", "equals"]:  # x = 18, y = 20
        return len(kinds) == 2 or kinds[-3] == "comma" or words[-2:-1] == ["and"]
    return kinds == ["word"] and words[0] not in PREPOSITIONS  # 2 h 30 min


def _after_bracket(tokens: list[Token], i: int) -> int:
    while i < len(tokens) and tokens[i][0] != "close":
        i += 1
    return i + 1
