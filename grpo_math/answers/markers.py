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
_MAX_MARKERS = 256  # the last ones count
_TAIL = 10_000  # other labels and bold are ordinary words and emphasis, and count only this near to the end


class Marker(NamedTuple):
    """One statement of an answer: `text[begin:end]`, with its content at `text[start:stop]`."""

    form: str  # one of FORMS
    begin: int
    start: int
    stop: int
    end: int
    closed: bool  # it has an end of its own (a box, a tag, bold); an open one ends with its sentence


class Reading(NamedTuple):
    """What a marker states."""

    value: int | Fraction | None  # exact; None unless status is "ok"
    status: str  # "ok", "hedged" or "malformed"
    span: tuple[int, int]  # the answer as written is text[span[0]:span[1]]; an open marker ends at span[1]


class Stated(NamedTuple):
    """What a text states as its final answer: the form of the deciding marker, its reading, and the rule that decided."""

    form: str
    reading: Reading
    rule: str


Reader = Callable[[str, Marker, int], Reading | None]  # text, marker, limit


def check_forms(forms: Sequence[str], known: Sequence[str] = FORMS) -> frozenset[str]:
    """Return the forms as a set. Raises `ValueError` for an unknown form."""
    allowed = frozenset([forms] if isinstance(forms, str) else forms)
    if not allowed <= frozenset(known):
        unknown = ", ".join(map(repr, sorted(map(str, allowed - frozenset(known)))))
        raise ValueError(f"unknown answer form {unknown}; the forms are {', '.join(known)}")
    return allowed


# str.rfind finds these much faster than one expression finds the anchors.
_LITERALS = ("boxed", "fbox", "nswer", "NSWER", "####", "A:")
_ANCHOR = re.compile(
    r"(?P<boxed>\\fbox|\\?boxed)|(?P<close></[Aa](?:nswer|NSWER)\s{0,8}>)|(?P<answer><[Aa](?:nswer|NSWER)\b[^<>]{0,60}>)"
    r"|(?P<hash>\#{4,})|(?P<word>[Aa](?:nswer|NSWER))|(?P<a_colon>A:)"
)


def _last_anchors(text: str) -> list[re.Match]:
    """Return where a marker may begin or end: the last `_MAX_MARKERS` places in their order, in linear time."""
    places = []
    for literal in _LITERALS:
        at = len(text)
        for _ in range(_MAX_MARKERS):
            at = text.rfind(literal, 0, at)
            if at < 0:
                break
            if literal == "####":
                while at and text[at - 1] == "#":
                    at -= 1
                places.append(at)
            else:
                start = at - (literal[0] in "nN")
                places.append(
                    start - (2 if text[start - 2 : start] == "</" else text[start - 1 : start] in ("<", "\\"))
                )
    anchors = (_ANCHOR.match(text, max(0, at)) for at in sorted(places)[-_MAX_MARKERS:])
    return [anchor for anchor in anchors if anchor is not None]


def markers_from_the_end(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Yield the markers of a text except bold and other labels, the last one first, in linear time.

    A marker inside an `<answer>` tag is part of the tag.
    """
    anchors = _last_anchors(text)
    limit = len(text)
    while anchors:
        anchor = anchors.pop()
        kind, at = anchor.lastgroup, anchor.start()
        marker = None
        if at >= limit:
            continue
        if kind == "word":
            marker = _statement_at(text, at)
        elif kind == "close":
            if (opening := _last_opening(anchors)) is not None:
                marker = Marker("answer", opening.start(), opening.end(), at, anchor.end(), True)
        elif kind == "answer":  # without its end
            marker = Marker("answer", at, anchor.end(), anchor.end(), anchor.end(), True)
        elif kind == "hash":
            marker = Marker("hash", at, anchor.end(), len(text), len(text), False)
        elif kind == "boxed":
            marker = _box_at(text, anchor)
        elif _LABEL_START.search(text, max(0, at - 12), at):
            marker = Marker("a_colon", at, anchor.end(), len(text), len(text), False)
        if marker is not None and marker.form in forms:
            limit = marker.begin
            yield marker


def _last_opening(anchors: list[re.Match]) -> re.Match | None:
    """Return the last `<answer>` that no `</answer>` follows, the partner of a `</answer>` after the anchors."""
    for anchor in reversed(anchors):
        if anchor.lastgroup in ("answer", "close"):
            return anchor if anchor.lastgroup == "answer" else None
    return None


_BRACE = re.compile(r"[{}]")
_BOX = re.compile(r"\s{0,4}(?:\{|(?P<bare>-?\d{1,40}(?:\.\d{1,40})?))")


def _box_at(text: str, anchor: re.Match) -> Marker | None:
    r"""Return the `\boxed{...}` whose name is the anchor. With unbalanced braces its content is empty."""
    at, start = anchor.span()
    box = _BOX.match(text, start)
    if box is None:
        return Marker("boxed", at, start, start, start, True) if text[at] == "\\" else None
    start = box.end()
    if box.group("bare"):
        return Marker("boxed", at, box.start("bare"), start, start, True) if text[at] == "\\" else None
    depth = 1
    for brace in _BRACE.finditer(text, start, start + WINDOW):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return Marker("boxed", at, start, brace.start(), brace.end(), True)
    return Marker("boxed", at, start, start, start, True)


_STATEMENT = re.compile(
    r"""answers?\b(?:["'*`)\]]|\s?\([^()\n]{0,40}\)){0,4}
        (?:\ (?:to|for|of)\ (?:"[^"\n]{1,200}"|[^".:!?\n]){1,80}? )?
        (?: (?P<label> \s?(?:[:=：]|->) )
          | (?P<heading> \ {0,8}\n )
          | (?P<phrase> \s{1,8}(?:is|are|equals|(?:will|would|should|must)\s+be|comes?\s+(?:out\s+)?to)\b )
        )
    """,
    re.I | re.X,
)
_LEAD = r"(?:(?:so|thus|hence|therefore|the|my|final|correct)[\s,_]{1,2}){0,4}\Z"
_LINE_START = re.compile(rf"(?:\A|\n)[^\w\n]{{0,12}}{_LEAD}", re.I)
_LABEL_START = re.compile(rf"(?:\A|\n|[^\w\s,])[\s_]{{0,12}}{_LEAD}|\bfinal \Z", re.I)  # also "Our final answer: 18"
# The writer does not claim such an answer: "some say that the answer is 18".
_DISTANCED = re.compile(
    r"""\b(?: (?:some|people|others|they)\b [^.!?,;\n]{0,24} \b(?:say|think|claim|believe)s?
          | (?:wrong|mistake)\b [^.!?,;\n]{0,16} \bthat
          | (?:don't|not)\ (?:think|believe)
          | (?:first|initial|original|previous|wrong|incorrect)
       ) (?:\ (?:that|the|my|final|correct)){0,3} \ \Z""",
    re.I | re.X,
)


def _statement_at(text: str, at: int) -> Marker | None:
    """Return the marker "answer is", "answer:" or a heading "Answer" whose word "answer" begins at `at`."""
    statement = _STATEMENT.match(text, at)
    if statement is None:
        return None
    kind, before = statement.lastgroup, max(0, at - 40)
    if kind == "phrase":
        if _DISTANCED.search(text, max(0, at - 60), at):
            return None
    elif not (_LINE_START if kind == "heading" else _LABEL_START).search(text, before, at):
        return None
    form = "phrase" if kind == "phrase" else "a_colon"
    return Marker(form, at, statement.end(), len(text), len(text), False)


_LABEL = re.compile(
    r"""(?: (?:答案|答え|정답) | \b(?:ответ|respuesta|réponse|antwort)\b (?:\ finale)? )
        \*{0,2} (?: \s?[:：] | \s?[是は] | \ (?:es|est|ist|lautet)\b )
      | ^[#>*\ ]{0,8} (?:ans|(?:final\ )?(?:result|value))\b \*{0,2} \s?[:=]
    """,
    re.I | re.X | re.M,
)


_LABEL_WORDS = (
    "答案",
    "答え",
    "정답",
    "ответ",
    "respuesta",
    "réponse",
    "antwort",
    "ans:",
    "ans*",
    "ans =",
    "result",
    "value",
)


def last_labels(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Yield labels in other languages and less common English ones, the last one first."""
    low = text.lower()
    if not any(word in low for word in _LABEL_WORDS):
        return
    found = deque(_LABEL.finditer(text, max(0, len(text) - _TAIL)), _MAX_MARKERS)
    for label in reversed(found):
        form = "a_colon" if label.group()[-1] in ":：=" else "phrase"
        if form in forms:
            yield Marker(form, label.start(), label.end(), len(text), len(text), False)


# Markup around one line: bold, italic, code, a code block, an HTML tag, a heading, the last cell of a table row.
_BOLD_BEGIN = re.compile(r"[*_`<#|]")
_BOLD = re.compile(
    r"""(?<!\w) (?P<mark>\*{1,3}|_{1,3}|`) (?P<a>[^\s*_`](?:[^*_`\n]|\ \*\ ){0,80}|[\d.]+) (?P=mark) (?!\w)
      | ```[a-z]{0,12}\n (?P<b>[^`\n]{1,80}) \n```
      | <(?P<tag>b|strong)> (?P<c>[^<\n]{0,80}) </(?P=tag)>
      | ^\#{1,6}[ ] (?P<d>[^\n]{1,80})$
      | ^\| [^\n]{0,200} \| (?P<e>[^|\n]{1,80}) \|\ {0,8}$
    """,
    re.I | re.X | re.M,
)


def last_bolds(text: str) -> Iterator[Marker]:
    """Yield emphasised text, the last one first."""
    found: deque[re.Match] = deque(maxlen=_MAX_MARKERS)
    begin = _BOLD_BEGIN.search(text, max(0, len(text) - _TAIL))
    while begin is not None:
        bold = _BOLD.match(text, begin.start())
        if bold is not None:
            found.append(bold)
        begin = _BOLD_BEGIN.search(text, (bold or begin).end())
    for bold in reversed(found):
        start, stop = next(bold.span(group) for group in "abcde" if bold.start(group) >= 0)
        begins = start if bold.group("e") else bold.start()  # table rows are not alternatives
        yield Marker("bold", begins, start, stop, bold.end(), True)
