"""Detects hedging: another value joined to the last marker, before it, after it or inside it."""

import re
from collections.abc import Iterator
from fractions import Fraction

from grpo_math.answers.markers import WINDOW, Marker, Reader, Reading, Stated
from grpo_math.answers.numbers import equation, expression, starts_number
from grpo_math.answers.tokens import Token, parse_number
from grpo_math.answers.words import FILLERS, JOINERS, LEAD_INS, PREPOSITIONS

_MAX_GAP = 100  # characters between two markers side by side
_OR = re.compile(r"\bor\b", re.I)
_OPENING_MARKUP = " \t\r\n*_`$:\\([{\"'"

_JOINING = re.compile(
    r"(?:[\W_]*(?:[^\W_]+[\W_]+){1,3}?(?=or\b))?"  # a unit: 18 dollars or
    rf"[\W_]*(?:(?:{'|'.join(sorted(JOINERS | LEAD_INS))})\b[\W_]*)*",
    re.I,
)


def final_reading(text: str, markers: Iterator[Marker], read: Reader) -> Stated | None:
    """Return the form and the reading of the last marker, `"hedged"` if another value is joined to it.

    Args:
        text (`str`):
            A text without its thinking.
        markers (`Iterator[Marker]`):
            The markers of the text, the last one first.
        read (`Callable`):
            `read(text, marker, limit)` reads a marker's content up to `limit`. It returns `None` if the candidate is
            no marker (a heading, "the answer is easy to see").

    Returns:
        `tuple[str, Reading]`, or `None` without a marker.
    """
    for last in markers:
        final = read(text, last, len(text))
        if final is not None:
            break
    else:
        return None
    if final.status == "ok" and (
        _has_alternative_before(text, last.begin, final.value)
        or _has_alternative_marker(text, last, final, markers, read)
    ):
        final = Reading(None, "hedged", final.span)
    return last.form, final


def _has_alternative_marker(text: str, last: Marker, final: Reading, markers: Iterator[Marker], read: Reader) -> bool:
    """Whether a marker with another value is joined to the last one, directly or through markers of the same value.

    `markers` yields the markers before `last`, the nearest one first.
    """
    edge = last.begin
    for marker in markers:
        if edge - (marker.end if marker.closed else marker.start + WINDOW) > _MAX_GAP:
            return False
        reading = read(text, marker, edge)
        if reading is None:
            continue
        # An open marker directly before a box or tag introduces it: "the answer is \boxed{18}".
        if reading.value is None and not marker.closed and not text[marker.start : edge].strip(_OPENING_MARKUP):
            edge = marker.begin
            continue
        end = marker.end if marker.closed else reading.span[1]
        if edge - end > _MAX_GAP or not _JOINING.fullmatch(text, end, edge):
            return False
        if reading.status == "ok":
            hedged = reading.value != final.value
        else:  # without a value, only "or" makes it an alternative: "\\boxed{?} or \\boxed{18}"
            hedged = reading.status == "hedged" or _OR.search(text, end, edge) is not None
        if hedged:
            return True
        edge = marker.begin
    return False


# The last number before "or", with up to a few words of a unit.
_NUMBER_OR = re.compile(r"(-?\d[\d.,]*)[^\d.!?\n]{0,24}[.!?]?[^\d.!?\n]{0,4}\bor(?: the)?\Z")


def _has_alternative_before(text: str, at: int, value: int | Fraction) -> bool:
    r"""Whether another value without a marker is joined to the marker at `at`: "18 or \boxed{20}"."""
    near = text[max(0, at - 12) : at].lower()
    if "or" not in near and "either" not in near:
        return False
    before = text[max(0, at - 60) : at].lower().rstrip(_OPENING_MARKUP)
    if before.endswith("either"):
        return True
    other = _NUMBER_OR.search(before) if before.endswith(("or", "or the")) else None
    return other is not None and not (len(other[1]) < 40 and parse_number(other[1].strip(".,")) == value)


def status_with_rest(tokens: list[Token], i: int, value: int | Fraction, closed: bool, after_prose: bool) -> str:
    """Return the status of a value, given the tokens that follow it in its marker.

    Only the next number can be an alternative; a number after prose is none.

    Args:
        tokens (`list[Token]`):
            The tokens of the marker's content.
        i (`int`):
            The index of the first token after the value.
        value (`int` or `Fraction`):
            The value.
        closed (`bool`):
            Whether the marker has an end of its own.
        after_prose (`bool`):
            Whether prose precedes the value inside a box or tag. Nothing then tells which number is the answer, so
            that any other number is an alternative.

    Returns:
        `str`: `"ok"`; `"hedged"`: another value follows; `"malformed"`: the value is part of something else (`18 ± 1`).
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
            return "hedged" if after_prose or _is_alternative(gap, kind == "op", alone, closed) else "ok"
        gap.append(tokens[i])
        if len(gap) > 12 and not after_prose:
            return "ok"
        i += 1
    return "ok"


def _is_alternative(gap: list[Token], signed: bool, alone: bool, closed: bool) -> bool:
    """Whether the second of two numbers is an alternative to the first (`18 or 20`) or belongs to later prose.

    Args:
        gap (`list[Token]`):
            The tokens between the two numbers.
        signed (`bool`):
            Whether the second number has a sign.
        alone (`bool`):
            Whether the second number ends its sentence.
        closed (`bool`):
            Whether the marker has an end of its own. A period or a new line does not end the statement then.
    """
    if not closed:
        ends = [k for k, token in enumerate(gap) if token[0] in ("sentence", "newline")]
        if ends:
            later = [token[1] for token in gap[ends[0] :] if token[0] == "word"]
            return all(word in JOINERS for word in later) and (alone or bool(later))
    words = [token[1] for token in gap if token[0] == "word"]
    while words and (words[-1] in FILLERS or words[-1] in LEAD_INS) and words[-1] not in JOINERS and len(words) > 1:
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
    """Return the index after the next closing bracket."""
    while i < len(tokens) and tokens[i][0] != "close":
        i += 1
    return i + 1
