"""Finds the markers of a text: the places that state an answer, from the end to the beginning."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

FORMS = ("boxed", "answer", "hash", "phrase", "a_colon", "bold")

# A final answer is short. Reading no further than this many characters from a marker bounds time and memory.
WINDOW = 300


class Marker(NamedTuple):
    """One statement of an answer.

    Attributes:
        form (`str`):
            One of `FORMS`.
        begin, end (`int`):
            The marker with its delimiters is `text[begin:end]`.
        start, stop (`int`):
            Its content is `text[start:stop]`.
        closed (`bool`):
            Whether the marker has an end of its own (a box, a tag, bold). An open one ends with its sentence.
    """

    form: str
    begin: int
    start: int
    stop: int
    end: int
    closed: bool


class Reading(NamedTuple):
    """What a marker states.

    Attributes:
        value (`int`, `Fraction` or `None`):
            The exact value; `None` unless `status` is `"ok"`.
        status (`str`):
            `"ok"`, `"hedged"` or `"malformed"`.
        span (`tuple[int, int]`):
            The answer as written is `text[span[0]:span[1]]`. An open marker ends at `span[1]`.
    """

    value: int | Fraction | None
    status: str
    span: tuple[int, int]


Reader = Callable[[str, Marker, int], Reading | None]  # text, marker, limit
Stated = tuple[str, Reading]  # the form of the last marker and what it states


_ALL_FORMS = frozenset(FORMS)


def check_forms(forms: Sequence[str], known: Sequence[str] = FORMS) -> frozenset[str]:
    """Return the forms as a set. Raises `ValueError` for an unknown form."""
    if forms is FORMS:
        return _ALL_FORMS
    allowed = frozenset([forms] if isinstance(forms, str) else forms)
    if not allowed <= frozenset(known):
        unknown = ", ".join(map(repr, sorted(map(str, allowed - frozenset(known)))))
        raise ValueError(f"unknown answer form {unknown}; the forms are {', '.join(known)}")
    return allowed


# The search goes from the end of a text to its beginning and stops after this many candidates.
_MAX_MARKERS = 256

_ANSWER_FORMS = frozenset(("answer", "phrase", "a_colon"))
_OPEN_TAG = re.compile(r"<answer\b[^<>]{0,60}>", re.I)
_CLOSE_TAG = re.compile(r"answer\s{0,8}>", re.I)
_STATEMENT = re.compile(
    r"""answers?\b(?:["'*_`)\]]|\s?\([^()\n]{0,40}\)){0,4}
        (?:\ (?:to|for|of)\ [^.:!?\n]{1,80}?)?
        (?: (?P<label> \s?(?:[:=：]|->|→|⇒) )
          | (?P<heading> [ \t]{0,8}\n )
          | (?P<phrase> \s{1,8}(?:is|are|equals|(?:will|would|should|must)\s+be|comes?\s+(?:out\s+)?to)\b(?!n) )
        ) ["'*_`:：]{0,4}""",
    re.I | re.X,
)
_LINE_START = re.compile(r"(?:\A|\n)[\s#>*_-]{0,12}(?:(?:the|my|final|correct)\s{1,3}){0,3}\Z", re.I)
_BEFORE_A_COLON = re.compile(r"(?:\A|\n|[.!?)]\s|\b(?:or|and)\s)[\s#>*_-]{0,8}\Z", re.I)
# The writer does not claim such an answer: "some say that the answer is 18".
_DISTANCED = re.compile(
    r"""\b(?: (?:some|people|others|many|they|someone|anyone)\b [^.!?,;\n]{0,24}
              \b(?:say|think|claim|believe|argue|guess|assume|conclude)s?
          | (?:wrong|incorrect|false|mistake|error|not\ (?:true|right|correct))\b [^.!?,;\n]{0,16} \bthat
          | (?:don't|doesn't|didn't|not)\ (?:think|believe|mean)
          | (?:first|initial|original|previous|earlier|old|wrong|incorrect|other)
       ) (?:\ (?:that|the|my|final|correct)){0,3} \ \Z""",
    re.I | re.X,
)


def markers_from_the_end(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Yield the markers of a text except bold and labels, the last one first.

    A marker inside an `<answer>` tag is part of the tag. Each kind of marker has an anchor: `\\boxed`, `\\fbox`, the
    word "answer", `####`, `A:`. Every search for an anchor continues backwards from its last match, so that the time is
    linear in the length of the text.
    """
    low = text.lower()
    if len(low) != len(text):  # the dotted capital I becomes two characters
        low = text.replace("\u0130", "I").lower()
    box = low.rfind("\\boxed") if "boxed" in forms else -1
    fbox = low.rfind("\\fbox") if "boxed" in forms else -1
    word = low.rfind("answer") if forms & _ANSWER_FORMS else -1
    hashes = text.rfind("####") if "hash" in forms else -1
    colon = text.rfind("A:") if "a_colon" in forms else -1
    opening = len(text)
    for _ in range(_MAX_MARKERS):
        at = limit = max(box, fbox, word, hashes, colon)
        if at < 0:
            return
        marker = None
        if at == word:
            if text[at - 2 : at] == "</":
                if opening > at:
                    opening = low.rfind("<answer", 0, at)
                marker = _tag_at(text, low, at, opening) if "answer" in forms else None
            elif text[at - 1 : at] == "<":
                marker = _unclosed_tag_at(text, at - 1) if "answer" in forms else None
            else:
                marker = _statement_at(text, at, forms)
        elif at == hashes:
            marker = _hash_at(text, at)
        elif at == colon:
            if _BEFORE_A_COLON.search(text, max(0, at - 12), at):
                marker = Marker("a_colon", at, at + 2, len(text), len(text), False)
        else:
            marker = _box_at(text, at)
        if marker is not None:
            yield marker
            limit = marker.begin
        if box >= limit:
            box = low.rfind("\\boxed", 0, limit)
        if fbox >= limit:
            fbox = low.rfind("\\fbox", 0, limit)
        if word >= limit:
            word = low.rfind("answer", 0, limit)
        if hashes >= limit:
            hashes = text.rfind("####", 0, limit)
        if colon >= limit:
            colon = text.rfind("A:", 0, limit)


def _hash_at(text: str, at: int) -> Marker:
    """Return the marker of four or more `#` whose last four begin at `at`."""
    start = at + 4
    while at > 0 and start - at < 16 and text[at - 1] == "#":
        at -= 1
    return Marker("hash", at, start, len(text), len(text), False)


_BRACE = re.compile(r"\\[{}]|([{}])")
_BOX = re.compile(r"\\f?box(?:ed)?\s{0,4}(?:\{|(?P<bare>-?\d{1,40}(?:\.\d{1,40})?))", re.I)


def _box_at(text: str, at: int) -> Marker | None:
    r"""Return the `\boxed{...}` that begins at `at`. With unbalanced braces its content is empty."""
    box = _BOX.match(text, at)
    if box is None:
        after = text[at : at + 7].rstrip().endswith(("d", "x"))
        return Marker("boxed", at, at, at, at, True) if after and not text[at + 7 : at + 8].isalpha() else None
    start = box.end()
    if box.group("bare"):
        return Marker("boxed", at, box.start("bare"), start, start, True)
    depth = 1
    for brace in _BRACE.finditer(text, start, start + WINDOW):
        kind = brace.group(1)
        if kind:
            depth += 1 if kind == "{" else -1
            if depth == 0:
                return Marker("boxed", at, start, brace.start(), brace.end(), True)
    return Marker("boxed", at, start, start, start, True)


def _tag_at(text: str, low: str, at: int, opened: int) -> Marker | None:
    """Return the `<answer>...</answer>` with its opening tag at `opened` and the name of its closing tag at `at`."""
    closing = _CLOSE_TAG.match(text, at)
    opening = _OPEN_TAG.match(text, opened) if opened >= 0 else None
    if closing is None or opening is None or opening.end() > at - 2:
        return None
    if low.rfind("</answer", opening.end(), at - 2) >= 0:  # an earlier tag closes it
        return None
    return Marker("answer", opened, opening.end(), at - 2, closing.end(), True)


def _unclosed_tag_at(text: str, at: int) -> Marker | None:
    """Return an unclosed `<answer>` as a marker without content."""
    opening = _OPEN_TAG.match(text, at)
    return Marker("answer", at, opening.end(), opening.end(), opening.end(), True) if opening else None


def _statement_at(text: str, at: int, forms: frozenset[str]) -> Marker | None:
    """Return the marker "answer is", "answer:" or a heading "Answer" whose word "answer" begins at `at`."""
    statement = _STATEMENT.match(text, at)
    if statement is None:
        return None
    form = "phrase" if statement.lastgroup == "phrase" else "a_colon"
    if form not in forms:
        return None
    if statement.lastgroup == "heading" and not _LINE_START.search(text, max(0, at - 40), at):
        return None
    if form == "phrase" and _DISTANCED.search(text, max(0, at - 80), at):
        return None
    return Marker(form, at, statement.end(), len(text), len(text), False)


# Labels and bold are ordinary words and emphasis. They count only in a text without the markers above, near its end.
_TAIL = 10_000

_LABEL = re.compile(
    r"""(?: (?:答案|答え|解答|正解|答|정답은?|답은?|الجواب|الإجابة|उत्तर|जवाब|คำตอบ|đáp\ án)
          | \b(?:ответ|відповідь|respuesta|réponse|reponse|resposta|risposta|antwort|odpowiedź|antwoord|cevap|svar
            |jawaban)\b (?:\ (?:final|finale|correcta|correcte))?
        ) [*_]{0,2} (?: \s?[:：=][*_]{0,2} | \s?(?:是|为|為|は|은|는|คือ) | \ (?:es|est|ist|lautet|è|é|is|är|هو|là)\b )
      | ^[#>*_ \t]{0,8} (?:ans|(?:final\ )?(?:result|value))\b [*_]{0,2} \s?[:=] [*_]{0,2}
    """,
    re.I | re.X | re.M,
)


def last_labels(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Yield labels in other languages and less common English ones, the last one first."""
    found = deque(_LABEL.finditer(text, max(0, len(text) - _TAIL)), _MAX_MARKERS)
    for label in reversed(found):
        form = "a_colon" if label.group().rstrip("*_")[-1] in ":：=" else "phrase"
        if form in forms:
            yield Marker(form, label.start(), label.end(), len(text), len(text), False)


# Markup around one line: bold, italic, code, a heading, the last cell of a table row.
_BOLD = re.compile(
    r"""(?<![\w*_`]) (?P<mark>\*{1,3}|_{1,3}|`) (?P<a>[^\s*_`][^*_`\n]{0,80}|[\d.,]+) (?P=mark) (?![\w*_`])
      | ```[a-z]{0,12}\n (?P<b>[^`\n]{1,80}) \n```
      | <(?P<tag>b|strong|i|em|u|mark|code|h[1-6])> (?P<c>[^<\n]{0,80}) </(?P=tag)>
      | ^\#{1,6}[ ] (?P<d>[^\n]{1,80})$
      | ^\| [^\n]{0,200} \| (?P<e>[^|\n]{1,80}) \|[ \t]{0,8}$
      | (?<![\w*]) \*\* (?P<f>) \*\* (?![\w*])
    """,
    re.I | re.X | re.M,
)
_LIST_NUMBER = re.compile(r"\s*\d{1,3}[.):]\s")


def last_bolds(text: str) -> Iterator[Marker]:
    """Yield emphasised text, the last one first."""
    found = deque(_BOLD.finditer(text, max(0, len(text) - _TAIL)), _MAX_MARKERS)
    for bold in reversed(found):
        start, stop = next(bold.span(group) for group in "abcdef" if bold.start(group) >= 0)
        if not _LIST_NUMBER.match(text, start, stop):
            begin = start if bold.group("e") else bold.start()  # table rows are not alternatives
            yield Marker("bold", begin, start, stop, bold.end(), True)
