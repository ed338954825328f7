"""Reads the content of a marker: the one number that it states, or why it states none."""

import re

from grpo_math.answers.choice import final_reading
from grpo_math.answers.markers import WINDOW, Marker, Reading, markers_from_the_end
from grpo_math.answers.parts import NUMBERS, Part, Statement, split, statement
from grpo_math.answers.tokens import parse_number, tokenise
from grpo_math.answers.words import OR_WORDS

_MOST_ENDS = 4  # sentences and lines after an open marker that may offer another value


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
    if marker.stop is None:
        return _read_open(text, marker, limit)
    start, stop = marker.start, marker.stop
    nested = None
    if marker.form == "answer":
        content = text[start:stop]
        nested = final_reading(content, markers_from_the_end(content, _NESTED), read)
    if nested is not None:
        reading = Reading(nested.value, nested.status, (start + nested.span[0], start + nested.span[1]))
    elif stop - start <= WINDOW:
        reading = _interpret(text, start, stop, closed=True)
    else:
        reading = Reading(None, "malformed", (start, stop))
    return _with_offers_after(text, marker.end, limit, reading)


_NESTED = frozenset(("boxed", "hash", "phrase", "a_colon"))
_LIST_NUMBER = re.compile(r"[\s*]*\d{1,3}[.):]\s")


def read_bold(text: str, marker: Marker, limit: int) -> Reading | None:
    """Read emphasised text: it is an answer if it begins with a number, or is the last sentence: **She makes $18 a day.**"""
    start, stop = marker.start, marker.stop
    if _LIST_NUMBER.match(text, start, stop):
        return None
    is_last = marker.end == len(text) and text.startswith("**", marker.begin)
    reading = _interpret(text, start, stop, closed=is_last)
    if reading is None or (reading.status == "malformed" and not text[start].isdigit()):
        return None
    return _with_offers_after(text, marker.end, limit, reading)


_OFFER = re.compile(rf"\W{{0,12}}(?:[^\W\d]+\W{{1,3}}){{0,3}}?(?:{'|'.join(sorted(OR_WORDS))})\b", re.I)


def _with_offers_after(text: str, end: int, limit: int, reading: Reading) -> Reading:
    r"""Return the reading of a closed marker that ends at `end`, `"hedged"` before another value: `\boxed{18} or 20`."""
    offer = _OFFER.match(text, end, min(limit, end + 100))
    if offer is None:
        return reading
    other = statement(split(tokenise(text, offer.end(), min(limit, offer.end() + 60), most_ends=1))[0])
    if other.value not in (None, reading.value) and not other.prose:
        return Reading(None, "hedged", reading.span)
    return reading


# White space, markup and the opening of a formula, then the first character of the content.
_CONTENT = re.compile(r"[\s*_`:#$]*([^\s*_`:#$])")
_HEADING = re.compile(r"[\s*]*\d{1,2}[.):]\s+[^\W\d][^\n.?!]*(?:\n|\Z)")  # #### 2. Money
# Words after a number that speak about the answer: "The answer is 100% correct", "2 times the eggs".
_COMPARISON = re.compile(r"[%\s]*(?:(?:correct|right|sure|certain)\b|(?:times|\w+\s+than)\s+\w)", re.I)
_ONE_SENTENCE = re.compile(r"\s*[^\n.?!]{0,120}(?:\.\d[^\n.?!]{0,40}){0,4}[.!]?\s{0,20}\Z")
_CLOSING_HASHES = re.compile(r"####[^#\n]*\Z")


def _read_open(text: str, marker: Marker, limit: int) -> Reading | None:
    """Read what follows a marker without an end of its own, on its line or on the next one with text."""
    start, stop = marker.start, min(limit, marker.start + WINDOW)
    malformed = Reading(None, "malformed", (start, start))
    first = _CONTENT.match(text, start, stop)
    next_line = first is None or "\n" in text[start : first.start(1)]
    if marker.form == "hash" and _HEADING.match(text, start, stop):
        return None
    if marker.form == "hash" and next_line and _CLOSING_HASHES.search(text, max(0, start - WINDOW), marker.begin):
        return None  # #### 18 ####
    if next_line and (first is None or marker.form == "hash" or marker.start - marker.begin == 2):
        return malformed  # `####` and `A:` state what is on their own line
    reading = _interpret(text, first.start(1), stop, closed=False)
    if reading is None and marker.form == "a_colon" and _ONE_SENTENCE.match(text, start):
        reading = _interpret(text, start, len(text), closed=True)  # Answer: she makes $18 a day.
    if reading is None:
        return None
    if reading.span[1] == stop < limit:  # the window may cut the number
        return malformed
    if _COMPARISON.match(text, reading.span[1]):
        return None
    if marker.form == "a_colon" and "=" in text[start : reading.span[1]]:
        paragraph = text[reading.span[1] : min(limit, reading.span[1] + WINDOW)].partition("\n\n")[0]
        if "=" in paragraph:  # Answer: 16 - 7 = 9 eggs are left. She makes 9 * 2 = 18.
            return None
    return reading


# Most contents are a number and nothing else, which needs no tokens.
_PLAIN = re.compile(r"[ \t\n]*\$?((?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?)\.?[ \t\n]*", re.ASCII)


def _interpret(text: str, start: int, stop: int, closed: bool) -> Reading | None:
    """Return the number that `text[start:stop]` states, or `None` for prose that states none.

    Args:
        text (`str`):
            A text without its thinking.
        start, stop (`int`):
            The content of the marker.
        closed (`bool`):
            Whether the content is that of a box or tag and must be one value. After an open marker it begins with the
            number, and prose may follow.
    """
    plain = _PLAIN.fullmatch(text, start, stop)
    if plain is not None:
        return Reading(parse_number(plain.group(1)), "ok", plain.span(1))
    malformed = Reading(None, "malformed", (start, stop if closed else start))
    final, past_end, label = None, False, False
    for part in split(tokenise(text, start, stop, None if closed else _MOST_ENDS)):
        found = statement(part)
        if final is None:
            if part.remark or (found.status == "none" and (closed or part.labels or not found.prose)):
                continue
            if not closed and (found.prose or found.status == "negated" or part.after_end):
                return None
            if found.status != "ok":
                if found.status == "hedged":
                    return Reading(None, "hedged", found.span)
                if found.span is None:
                    return malformed
                end = max(token[3] for side in part.sides for token in side)
                return Reading(None, "malformed", (found.span[0], end))
            final = found
            continue
        past_end = past_end or (part.after_end and not closed)
        found.prose, label = found.prose or label, part.labels  # 18, "confidence": 0.9
        if found.value is None or found.value == final.value or found.status == "negated":
            continue
        if final.computed and found.computed and not past_end:
            final = found  # 16 - 3 - 4 = 9; 9 * 2 = 18
        elif _is_alternative(part, found, past_end, final):
            return Reading(None, "hedged", final.span)
    return malformed if final is None else Reading(final.value, "ok", final.span)


def _is_alternative(part: Part, found: Statement, past_end: bool, final: Statement) -> bool:
    """Whether a later part with another number than the answer `final` offers it.

    `past_end` tells whether the sentence of an open marker has ended before the part.
    """
    if found.prose and not final.prose:
        return False
    if part.remark:
        return part.offered
    if not past_end or part.offered:
        return True
    starts = part.after_end and part.sides[0] and part.sides[0][0][0] in NUMBERS
    return starts and part.ended and found.status == "ok" and found.words <= final.words
