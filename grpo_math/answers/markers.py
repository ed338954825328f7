"""Finds the markers of a text: the places that state an answer, from the end to the beginning."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

FORMS = ("boxed", "answer", "hash", "phrase", "a_colon", "bold")
STRONG = frozenset(("boxed", "answer", "hash"))  # a later phrase or label does not replace these

# A final answer is short. Reading no further than this many characters from a marker bounds time and memory.
WINDOW = 300
_MAX_MARKERS = 64  # the last ones count
_TAIL = 10_000  # other labels and bold are ordinary words and emphasis, and count only this near to the end


class Marker(NamedTuple):
    """One statement of an answer: `text[begin:end]`, with its content at `text[start:stop]`.

    An open marker (`####`, a phrase, a label) has no end of its own: it ends with what it states.
    """

    form: str  # one of FORMS
    begin: int
    start: int
    stop: int | None = None
    end: int | None = None


class Reading(NamedTuple):
    """What a marker states."""

    value: int | Fraction | None  # exact; None unless status is "ok"
    status: str  # "ok", "hedged" or "malformed"
    span: tuple[int, int]  # the answer as written is text[span[0]:span[1]]; an open marker ends at span[1]


class Extraction(NamedTuple):
    """What a text states as its final answer.

    Attributes:
        value (`int`, `Fraction` or `None`):
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

    value: int | Fraction | None
    status: str
    form: str | None
    span: tuple[int, int] | None
    rule: str


Reader = Callable[[str, Marker, int], Reading | None]  # text, marker, limit


def check_forms(forms: Sequence[str], known: Sequence[str] = FORMS) -> frozenset[str]:
    """Return the forms as a set. Raises `ValueError` for an unknown form."""
    allowed = frozenset([forms] if isinstance(forms, str) else forms)
    if not allowed <= frozenset(known):
        unknown = ", ".join(map(repr, sorted(map(str, allowed - frozenset(known)))))
        raise ValueError(f"unknown answer form {unknown}; the forms are {', '.join(known)}")
    return allowed


# Where a marker may begin or end. Each alternative begins with a plain character, so that `re` skips the others fast.
_ANCHOR = re.compile(r"answer|A(?:nswer|NSWER|:)|\\(?:boxed|fbox)|boxed|####+|</?(?:[Aa]nswer|ANSWER)\b[^<>]{0,60}>")


def markers_from_the_end(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Yield the markers of a text except bold and other labels, the last one first, in linear time.

    A marker inside an `<answer>` tag is part of the tag.
    """
    anchors = deque(_ANCHOR.finditer(text), _MAX_MARKERS)
    limit = len(text)
    while anchors:
        anchor = anchors.pop()
        marker = _marker_at(text, anchor, anchors) if anchor.start() < limit else None
        if marker is not None and marker.form in forms:
            limit = marker.begin
            yield marker


def _marker_at(text: str, anchor: re.Match, earlier: Sequence[re.Match]) -> Marker | None:
    """Return the marker that begins or ends at an anchor; `earlier` holds the anchors before it."""
    begin, start = anchor.span()
    if text[begin] == "#":
        return Marker("hash", begin, start)
    if text[begin] in "\\b":
        return _box_at(text, begin, start)
    if text[begin] != "<":
        return _statement_at(text, begin)
    if text[begin + 1] != "/":
        return Marker("answer", begin, start, start, start)  # without its end
    opening = next((tag for tag in reversed(earlier) if tag.group()[0] == "<"), anchor)
    if opening.group()[1] == "/":
        return None
    return Marker("answer", opening.start(), opening.end(), begin, start)


_BRACE = re.compile(r"[{}]")
_BOX = re.compile(r"\s{0,4}(?:\{|(?P<bare>(?:-?\d{1,40}(?:\.\d{1,40})?)?))")


def _box_at(text: str, begin: int, start: int) -> Marker | None:
    r"""Return the `\boxed{...}` whose name is `text[begin:start]`. With unbalanced braces its content is empty."""
    box = _BOX.match(text, start)
    start = box.end()
    if box["bare"] is not None:
        return Marker("boxed", begin, box.start("bare"), start, start) if text[begin] == "\\" else None
    depth = 1
    for brace in _BRACE.finditer(text, start, start + WINDOW):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return Marker("boxed", begin, start, brace.start(), brace.end())
    return Marker("boxed", begin, start, start, start)


_STATEMENT = re.compile(
    r"""(?: A | answers?\b (?:["'*`)\]]|\s?\([^()\n]{0,40}\)){0,4}
            (?:\ (?:to|for|of)\ (?:"[^"\n]{1,200}"|[^".:!?\n]){1,80}? )? )
        (?: (?P<label> \s?(?:[:=：]|->) )
          | (?P<heading> \ {0,8}\n )
          | (?P<phrase> (?:,?\s(?:therefore|thus|then),?)? \s{1,8}
                (?:is|are|equals|(?:will|would|should|must)\s(?:therefore\s|thus\s|then\s)?be|comes?\s(?:out\s)?to)\b )
        )
    """,
    re.I | re.X,
)
_LEAD = r"(?:(?:so|thus|hence|therefore|the|my|our|final|correct)[\s,_]{1,2}){0,4}\Z"
_LABEL_START = re.compile(rf"(?:\A|\n|[^\w\s,])[\s_]{{0,12}}{_LEAD}|\bfinal \Z", re.I)  # also "Our final answer: 18"
# The writer does not claim such an answer: "some say that the answer is 18".
_DISTANCED = re.compile(
    r"\b(?:(?:some|people|others|they)\b[^.!?,;\n]{0,24}\b|(?:don't|not|wrong to) )(?:say|think|claim|believe)s?"
    r"(?: (?:that|the|final|correct)){0,3} \Z",
    re.I,
)


def _statement_at(text: str, at: int) -> Marker | None:
    """Return the marker "answer is", "answer:", "A:" or a heading "Answer" that begins at `at`."""
    statement = _STATEMENT.match(text, at)
    if statement is None:
        return None
    if statement.lastgroup == "phrase":
        return None if _DISTANCED.search(text, max(0, at - 60), at) else Marker("phrase", at, statement.end())
    return Marker("a_colon", at, statement.end()) if _LABEL_START.search(text, max(0, at - 40), at) else None


_LABEL = re.compile(
    r"""(?: 答案 | 答え | 정답 | \b(?:ответ|respuesta|réponse|antwort)\b (?:\ finale)?
          | ^[>*\ ]{0,8} (?:final\ )? (?:ans|result|value)\b )
        \*{0,2} (?: \s? (?P<label> [:：=] ) | \s?[是は] | \ (?:es|est|ist|lautet)\b )
    """,
    re.I | re.X | re.M,
)
_LABEL_WORDS = ["答案", "答え", "정답", "ответ", "respuesta", "réponse", "antwort", "ans:", "ans*", "result", "value"]


def last_labels(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Yield labels in other languages and less common English ones, the last one first."""
    low = text.lower()
    if not any(word in low for word in _LABEL_WORDS):
        return
    for label in reversed(deque(_LABEL.finditer(text, max(0, len(text) - _TAIL)), _MAX_MARKERS)):
        form = "a_colon" if label["label"] else "phrase"
        if form in forms:
            yield Marker(form, label.start(), label.end())


# Markup around one line: bold, italic, code, a code block, an HTML tag, a heading, the last cell of a table row.
_BOLD_BEGIN = re.compile(r"[*_`<#|]")
_BOLD = re.compile(
    r"""(?<!\w) (?P<mark>\*{1,3}|_{1,3}|`) (?P<a>[^\s*_`](?:[^*_`\n]|\ \*\ ){0,80}|[\d.]+) (?P=mark) (?!\w)
      | ```[a-z]{0,12}\n (?P<b>[^`\n]{1,80}) \n```
      | <(?P<tag>b|strong)> (?P<c>[^<\n]{0,80}) </(?P=tag)>
      | ^\#{1,6}[ ] (?P<d>[^\n]{1,80})$
      | ^\| [^\n]{0,200} \| (?P<cell>[^|\n]{1,80}) \|\ {0,8}$
    """,
    re.I | re.X | re.M,
)


def last_bolds(text: str) -> Iterator[Marker]:
    """Yield emphasised text, the last one first."""
    found: deque[re.Match] = deque(maxlen=_MAX_MARKERS)
    end = 0
    for begin in _BOLD_BEGIN.finditer(text, max(0, len(text) - _TAIL)):
        if begin.start() >= end and (bold := _BOLD.match(text, begin.start())):
            found.append(bold)
            end = bold.end()
    for bold in reversed(found):
        start, stop = bold.span(bold.lastgroup)
        begin = start if bold["cell"] else bold.start()  # table rows are not alternatives
        yield Marker("bold", begin, start, stop, bold.end())
