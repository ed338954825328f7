"""Reads the content of a marker as one number. The usual spellings take a short path, all others become tokens."""

import re
from fractions import Fraction

from grpo_math.answers.hedging import final_reading, status_with_rest
from grpo_math.answers.markers import WINDOW, Marker, Reading, markers_from_the_end
from grpo_math.answers.numbers import equation, starts_number
from grpo_math.answers.tokens import Token, tokenise
from grpo_math.answers.words import ABBREVIATIONS, FILLERS, MINUS_WORDS, NEGATIONS, NO_VALUE, NUMBERED

# The usual spellings of a number: digits with commas, a decimal point, a dollar sign, a minus sign.
_PLAIN = r"\$?(-?\$?(?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?)"
_PLAIN_CLOSED = re.compile(rf"\s{{0,40}}{_PLAIN}\s{{0,40}}")
_PLAIN_OPEN = re.compile(rf"[ \t]*(?:\*\*)?{_PLAIN}(?:\*\*)?\.?[ \t]*(?=\n|\Z)")
# A number after an open marker's number: after a joining word, or alone on the rest of a line.
_ALTERNATIVE_AFTER = re.compile(
    r"\s{0,20}(?:[,.;:(\s]{0,6}(?:or|and/or|to|vs|versus|maybe|perhaps|possibly|alternatively)\b\W{0,6}"
    r"(?:maybe|perhaps|possibly|even)?\W{0,8}\d|\W{0,8}\d[\d.,]{0,40}\s{0,8}(?:\n|\Z))",
    re.I,
)
# A number after a closed marker: only after a joining word, and maybe a unit.
_ALTERNATIVE_AFTER_CLOSED = re.compile(
    r"\s{0,8}(?:[a-z]{1,12}\s)?[,.;:(\s]{0,6}(?:or|and/or|to|vs|versus|maybe|perhaps|possibly)\b\W{0,6}"
    r"(?:maybe|perhaps|possibly|even)?\W{0,8}\d",
    re.I,
)
_NESTED_FORMS = frozenset(("boxed", "hash", "phrase", "a_colon"))


def read(text: str, marker: Marker, limit: int) -> Reading | None:
    """Read the content of a marker as a number.

    Args:
        text (`str`):
            A text without its thinking.
        marker (`Marker`):
            One of its markers.
        limit (`int`):
            Where the next marker begins, or the text ends.

    Returns:
        `Reading`, or `None` if the candidate is no marker: prose without a number follows it.
    """
    if marker.closed:
        plain = _PLAIN_CLOSED.fullmatch(text, marker.start, marker.stop)
        if plain is not None:
            reading = Reading(_plain_value(plain.group(1)), "ok", plain.span(1))
        else:
            reading = _read_closed(text, marker)
        if reading.status == "ok" and _ALTERNATIVE_AFTER_CLOSED.match(text, marker.end, min(limit, marker.end + 80)):
            return Reading(None, "hedged", reading.span)
        return reading
    plain = _PLAIN_OPEN.match(text, marker.start, limit)
    if plain is None:
        return _read_open(text, marker, limit)
    if plain.end() < limit and _ALTERNATIVE_AFTER.match(text, plain.end(), min(limit, plain.end() + 80)):
        return Reading(None, "hedged", plain.span(1))
    return Reading(_plain_value(plain.group(1)), "ok", plain.span(1))


def read_bold(text: str, marker: Marker, limit: int) -> Reading | None:
    """Read emphasised text: it is an answer if it begins with a number or says that there is none, else prose."""
    start, stop = marker.start, marker.stop
    reading = _interpret(text, start, stop, closed=False)
    if reading is None:
        return None
    if reading.status == "malformed" and start < stop:
        content = text[start:stop].lower().lstrip("$-+ ")
        if content not in NO_VALUE and not content[:1].isdigit():
            return None
    return read(text, marker, limit)


def _plain_value(number: str) -> int | Fraction:
    """Return the value of a number in the usual spelling."""
    number = number.replace(",", "").replace("$", "")
    return Fraction(number) if "." in number else int(number)


def _read_closed(text: str, marker: Marker) -> Reading:
    """Read a box, a tag or bold; a tag that contains markers states what they state."""
    start, stop = marker.start, marker.stop
    if marker.form == "answer":
        content = text[start:stop]
        nested = final_reading(content, markers_from_the_end(content, _NESTED_FORMS), read)
        if nested is not None:
            value, status, (a, b) = nested[1]
            return Reading(value, status, (start + a, start + b))
    if stop - start > WINDOW:
        return Reading(None, "malformed", (start, stop))
    return _interpret(text, start, stop, closed=True) or Reading(None, "malformed", (start, stop))


# White space, markup and the opening of a formula, then the first character of the content.
_CONTENT = re.compile(r"(?:[\s*_`:>#$]|\\[\[(])*([^\s*_`:>#$])")


def _read_open(text: str, marker: Marker, limit: int) -> Reading | None:
    """Read what follows a marker without an end of its own, on its line or on the next one with text."""
    start = marker.start
    stop = min(limit, start + WINDOW)
    first = _CONTENT.search(text, start, stop)
    if first is None:
        return Reading(None, "malformed", (start, start))
    if "\n" not in text[start : first.start(1)]:
        reading = _interpret(text, start, stop, closed=False, at_end=limit == len(text))
        if reading is not None and reading.span[1] == stop < limit:  # the window may cut the number
            return Reading(None, "malformed", reading.span)
        return _read_last_sentence(text, marker, start) if reading is None else reading
    # The marker's line is empty. So is the marker if it is `####` or `A:`; after "The answer is:" or a heading the
    # number may be alone on the next line.
    if marker.form == "hash" or marker.start - marker.begin == 2:
        return Reading(None, "malformed", (start, start))
    start = first.start(1)
    if text.startswith("- ", start):  # a list item or a sign
        return None
    line = text.find("\n", start, stop)
    reading = _interpret(text, start, stop if line < 0 else line, closed=False)
    if reading is None:
        return _read_last_sentence(text, marker, start)
    return reading if reading.status != "malformed" else None


_ONE_SENTENCE = re.compile(r"[^\n.?!]{0,120}(?:\.\d[^\n.?!]{0,40}){0,4}[.!]?\s{0,20}\Z")


def _read_last_sentence(text: str, marker: Marker, start: int) -> Reading | None:
    """Read a label's sentence that ends the text and contains one number: `Answer: she makes $18 a day.`"""
    if marker.form != "a_colon" or not _ONE_SENTENCE.match(text, start):
        return None
    reading = _interpret(text, start, len(text), closed=True)
    return reading if reading is not None and reading.status == "ok" else None


def _interpret(text: str, start: int, stop: int, closed: bool, at_end: bool = True) -> Reading | None:
    """Return the number that `text[start:stop]` states, or `None` for prose that states none.

    Args:
        text (`str`):
            A text without its thinking.
        start, stop (`int`):
            The content of the marker.
        closed (`bool`):
            Whether the content is that of a box or tag and must be one value. After an open marker it begins with the
            number, and prose may follow.
        at_end (`bool`, *optional*, defaults to `True`):
            Whether no other marker follows, which could contain the alternative after a last "or".
    """
    tokens = tokenise(text, start, stop, closed)
    n = len(tokens)
    malformed = Reading(None, "malformed", (start, stop if closed else start))
    i, prose, sign, numbered = 0, 0, 1, False
    while i < n and not starts_number(tokens, i):
        kind, value = tokens[i][:2]
        if kind == "word":
            if value in NEGATIONS:
                return malformed if closed else None
            if value in NO_VALUE or value == "or":
                return malformed
            numbered = value in NUMBERED
            if value in MINUS_WORDS:
                sign = -1
            elif value not in FILLERS:
                prose += 1
        elif kind in ("equals", "comma"):
            prose, numbered = (0 if kind == "equals" or value in ":：" else prose), False
        elif kind == "relation":
            return malformed
        elif kind in ("sentence", "newline") and not closed and i and tokens[i - 1][1] not in ABBREVIATIONS:
            break
        i += 1
    if prose and not closed:
        return None
    if i == n or not starts_number(tokens, i) or numbered:
        return malformed
    value, status, j = equation(tokens, i)
    span = (tokens[i][2], tokens[j - 1][3])
    if status == "ok":
        value *= sign
        status = status_with_rest(tokens, j, value, closed, after_prose=prose > 0)
        if status == "ok" and at_end and _ends_in_or(tokens):
            status = "malformed"  # the alternative is missing
    return Reading(value if status == "ok" else None, status, span)


def _ends_in_or(tokens: list[Token]) -> bool:
    """Whether the last word or number is "or"."""
    words = (value for kind, value, _, _ in reversed(tokens) if kind not in ("sentence", "comma", "newline"))
    return next(words, None) == "or"
