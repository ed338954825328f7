r"""The final answer of a completion as an exact number: where it is stated, and what is stated there.

The rules, in the order in which they are applied:

1. **Thinking is no answer.** Text inside `<think>...</think>` is not read; text before an unopened `</think>` and
   after an unclosed `<think>` is thinking too.
2. **The last marker wins.** A marker states an answer: `\boxed{18}`, `<answer>18</answer>`, `#### 18`, "the answer is
   18", `A: 18`. The last one in the text counts, whatever its form; one inside another is part of it
   (`<answer>\boxed{18}</answer>`). Bold (`**18**` and other markup around nothing but a number) is read only where no
   such marker is, and a bare last number only where the caller allows it and there is no marker at all.
3. **Hedging is no answer.** Two different values side by side (`18 or 20`, `5-6`, two boxes in a row): markers, or
   numbers in one marker, with nothing but white space, punctuation or a joining word between them. With prose between
   two markers the earlier one was a draft. The same value twice is one answer.
4. **Nothing is nothing.** If the last marker is empty or holds no number, there is no answer; earlier ones do not
   stand in.
5. **Values are exact.** Separators, currency, units, `18.0`, `36/2`, `\frac{3}{4}`, `1.8 \times 10^1`, "eighteen" are
   spellings of a `Fraction`; a percent sign is a unit; a sign is never dropped; nothing is rounded.

A real GSM8K solution ends in `She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18` (Cobbe et
al. 2021, arXiv 2110.14168).

```python
>>> from grpo_math.answers import extract
>>> extract("First \\boxed{26}. No, 9 * 2 is less, so the answer is \\boxed{$18.00}.")
Extraction(value=Fraction(18, 1), status='ok', form='boxed', span=(62, 67))
>>> extract("#### 18 or 20").status
'hedged'
```
"""

import html
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

FORMS = ("boxed", "answer", "hash", "phrase", "a_colon", "bold")

# A statement of a final answer is short. What lies further from its marker is not read, which bounds time and memory.
_WINDOW = 300
_MAX_DIGITS = 250
_MAX_EXPONENT = 400


class Extraction(NamedTuple):
    """What a text states as its final answer.

    Attributes:
        value (`Fraction` or `None`):
            The exact value; `None` unless `status` is `"ok"`.
        status (`str`):
            `"ok"`; `"none"`: no marker; `"hedged"`: different values side by side; `"malformed"`: the last marker is
            empty or holds no number.
        form (`str` or `None`):
            The form of the last marker (one of `FORMS`), or `"bare"`; `None` where there is none.
        span (`tuple[int, int]` or `None`):
            `text[span[0]:span[1]]` is the answer as it was written.
    """

    value: Fraction | None
    status: str
    form: str | None
    span: tuple[int, int] | None


class Marker(NamedTuple):
    """One statement of an answer. Its content is `text[start:stop]`; `begin` is where the marker itself begins.

    `closed` tells a marker with an end of its own (a box, a tag, bold) from one that runs to the end of the sentence.
    """

    form: str
    begin: int
    start: int
    stop: int
    end: int
    closed: bool


class Reading(NamedTuple):
    """What a marker's content says; `span` is where, and its end is where the marker's influence ends."""

    value: Fraction | None
    status: str
    span: tuple[int, int]


Reader = Callable[[str, Marker, int], Reading | None]
Stated = tuple[str, Reading]


def extract(text: str, forms: Sequence[str] = FORMS, allow_bare: bool = False) -> Extraction:
    r"""
    Extract the final answer from a completion, by the rules of [`grpo_math.answers`].

    Args:
        text (`str`):
            The completion. Anything that is not a string is read as an empty one.
        forms (`Sequence[str]`, *optional*, defaults to all of `FORMS`):
            The markers that count, of `"boxed"` (`\boxed{}`, `\fbox{}`), `"answer"` (`<answer></answer>`), `"hash"`
            (`####`), `"phrase"` ("the answer is"), `"a_colon"` (`A:`, `Answer:`, `"answer":`, a heading `Answer`) and
            `"bold"`.
        allow_bare (`bool`, *optional*, defaults to `False`):
            Whether the last number of a text without any marker is its answer.

    Returns:
        [`Extraction`]: never raises on a text; linear in its length.

    Raises:
        `ValueError`: for an unknown form.
    """
    stated = statement(text, check_forms(forms), allow_bare)
    if stated is None:
        return Extraction(None, "none", None, None)
    form, (value, status, span) = stated
    return Extraction(None if value is None else Fraction(value), status, form, span)


def statement(text: str, forms: frozenset[str], allow_bare: bool) -> Stated | None:
    """What [`extract`] finds, as the form and the reading; a whole number may still be an `int`."""
    return first_stated(text, lambda visible: _state(visible, forms, allow_bare))


def first_stated(text: str, state: Callable[[str], Stated | None]) -> Stated | None:
    """State the answer of the text without its thinking, and without what follows where it goes on to another problem.

    Only if nothing is stated before that place (a problem that is repeated before it is solved) all of it is read.
    """
    visible = hide_thinking(text.rstrip()) if isinstance(text, str) else ""
    stop = run_on(visible)
    return (state(visible[:stop]) if stop is not None else None) or state(visible)


def check_forms(forms: Sequence[str], known: Sequence[str] = FORMS) -> frozenset[str]:
    """The forms as a set. Raises `ValueError` that names an unknown one."""
    if forms is FORMS:
        return _ALL_FORMS
    allowed = frozenset([forms] if isinstance(forms, str) else forms)
    if not allowed <= frozenset(known):
        unknown = ", ".join(map(repr, sorted(map(str, allowed - frozenset(known)))))
        raise ValueError(f"unknown answer form {unknown}; the forms are {', '.join(known)}")
    return allowed


_ALL_FORMS = frozenset(FORMS)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _state(text: str, forms: frozenset[str], allow_bare: bool) -> Stated | None:
    """The final statement of a text without thinking, by the stated precedence: markers, labels, bold, bare."""
    stated = final_reading(text, markers_from_the_end(text, forms), _read)
    if stated is None and ("phrase" in forms or "a_colon" in forms):
        stated = final_reading(text, _last_labels(text, forms), _read)
    if stated is None and "bold" in forms:
        stated = final_reading(text, _last_bolds(text), _read_bold)
    if stated is None and allow_bare:
        stated = _bare(text)
    return stated


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
        if edge - (marker.end if marker.closed else marker.start + _WINDOW) > _MAX_GAP:
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


_MAX_GAP = 100
_OR = re.compile(r"\bor\b", re.I)
_LEAD_IN = " \t\r\n*_`$:\\([{\"'"

# Words that join two offers, and words that only lead in to the second one ("so the final answer is").
_JOINERS = _words(
    "or and to through till until vs versus either maybe perhaps possibly probably alternatively otherwise else also "
    "even but could be might o ou oder und y e et и или або または 或 或者 和 및 또는"
)
_LEADS = _words(
    "a so thus therefore hence then finally the my final correct answer result is that it text textbf mathrm quad br"
)
_JOINING = re.compile(
    r"(?:[\W_]*(?:[^\W_]+[\W_]+){1,3}?(?=or\b))?"  # a unit: 18 dollars or
    rf"[\W_]*(?:(?:{'|'.join(sorted(_JOINERS | _LEADS))})\b[\W_]*)*",
    re.I,
)


def _offered_before(text: str, at: int, value: int | Fraction) -> bool:
    r"""Whether another value without a marker is joined to the marker at `at`: "18 or \boxed{20}"."""
    near = text[max(0, at - 12) : at].lower()
    if "or" not in near and "either" not in near:
        return False
    before = text[max(0, at - 60) : at].lower().rstrip(_LEAD_IN)
    if before.endswith("either"):
        return True
    offer = _OFFER_BEFORE.search(before) if before.endswith(("or", "or the")) else None
    return offer is not None and not (len(offer[1]) < 40 and _number(offer[1].strip(".,")) == value)


_OFFER_BEFORE = re.compile(r"(-?\d[\d.,]*)[^\d.!?\n]{0,24}[.!?]?[^\d.!?\n]{0,4}\bor(?: the)?\Z")


# --- thinking --------------------------------------------------------------------------------------------------------


_THINK_TAG = re.compile(r"<(/?)think(?:ing)?\s{0,8}>", re.I)


def hide_thinking(text: str) -> str:
    """The text with its thinking overwritten, so that offsets stay and thinking parts what stands on its two sides.

    Thinking is everything before an unopened `</think>`, between `<think>` and the next `</think>`, and after a
    `<think>` that is not closed.
    """
    if "<" not in text:
        return text
    hidden: list[tuple[int, int, bool]] = []  # start, stop, whether anything is thought
    opened = None
    for tag in _THINK_TAG.finditer(text):
        if not tag.group(1):
            opened = opened or tag
        elif opened is None:
            hidden = [(0, tag.end(), True)]
        else:
            hidden.append((opened.start(), tag.end(), bool(text[opened.end() : tag.start()].strip())))
            opened = None
    if opened is not None:
        hidden.append((opened.start(), len(text), True))
    if not hidden:
        return text
    pieces, at = [], 0
    for start, stop, thought in hidden:
        pieces += (text[at:start], " ", ("z" if thought else " ") * (stop - start - 2), " ")
        at = stop
    return "".join([*pieces, text[at:]])


# A base model goes on with the next problem; what follows its heading answers another question.
_RUN_ON = re.compile(r"\n[ \t]{0,8}(?:\*\*|#{1,6} )?(?:question|problem|q|user|human)\s?\d{0,3}\s?:", re.I)


def run_on(text: str) -> int | None:
    """Where the text goes on to another problem, if it does."""
    match = _RUN_ON.search(text)
    return match.start() if match else None


# --- markers ---------------------------------------------------------------------------------------------------------

# A text is read from its end. Before this many places that look like a marker, nothing is looked at any more.
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
# "some say that the answer is 18" states nothing
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
    """The markers of a text other than bold, the last one first; one inside an `<answer>` tag is part of the tag.

    Each kind has an anchor that is searched backwards and from where it was found last, so that all searches together
    read the text once: `\\boxed`, `\\fbox`, the word "answer", `####`, `A:`.
    """
    low = text.lower()
    if len(low) != len(text):  # one letter, the dotted capital I, becomes two
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
    """The marker of four or more `#` that ends with the four at `at`."""
    start = at + 4
    while at > 0 and start - at < 16 and text[at - 1] == "#":
        at -= 1
    return Marker("hash", at, start, len(text), len(text), False)


_BRACE = re.compile(r"\\[{}]|([{}])")
_BOX = re.compile(r"\\f?box(?:ed)?\s{0,4}(?:\{|(?P<bare>-?\d{1,40}(?:\.\d{1,40})?))", re.I)


def _box_at(text: str, at: int) -> Marker | None:
    r"""The `\boxed{...}` that begins at `at`, its braces balanced; with an empty content where they are not."""
    box = _BOX.match(text, at)
    if box is None:
        after = text[at : at + 7].rstrip().endswith(("d", "x"))
        return Marker("boxed", at, at, at, at, True) if after and not text[at + 7 : at + 8].isalpha() else None
    start = box.end()
    if box.group("bare"):
        return Marker("boxed", at, box.start("bare"), start, start, True)
    depth = 1
    for brace in _BRACE.finditer(text, start, start + _WINDOW):
        kind = brace.group(1)
        if kind:
            depth += 1 if kind == "{" else -1
            if depth == 0:
                return Marker("boxed", at, start, brace.start(), brace.end(), True)
    return Marker("boxed", at, start, start, start, True)


def _tag_at(text: str, low: str, at: int, opened: int) -> Marker | None:
    """The `<answer>...</answer>` whose closing tag has its name at `at`, and whose opening tag is at `opened`."""
    closing = _CLOSE_TAG.match(text, at)
    opening = _OPEN_TAG.match(text, opened) if opened >= 0 else None
    if closing is None or opening is None or opening.end() > at - 2:
        return None
    if low.rfind("</answer", opening.end(), at - 2) >= 0:  # that one closes it
        return None
    return Marker("answer", opened, opening.end(), at - 2, closing.end(), True)


def _unclosed_tag_at(text: str, at: int) -> Marker | None:
    """An `<answer>` that nothing closes: a marker without content."""
    opening = _OPEN_TAG.match(text, at)
    return Marker("answer", at, opening.end(), opening.end(), opening.end(), True) if opening else None


def _statement_at(text: str, at: int, forms: frozenset[str]) -> Marker | None:
    """ "answer is", "answer:" or a heading "Answer" at `at`."""
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


# The forms below are read only where none of those above is, and only near the end: they are plain words and emphasis.
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


def _last_labels(text: str, forms: frozenset[str]) -> Iterator[Marker]:
    """Labels in other languages and less common ones in English, the last one first."""
    found = deque(_LABEL.finditer(text, max(0, len(text) - _TAIL)), _MAX_MARKERS)
    for label in reversed(found):
        form = "a_colon" if label.group().rstrip("*_")[-1] in ":：=" else "phrase"
        if form in forms:
            yield Marker(form, label.start(), label.end(), len(text), len(text), False)


# Markup around one line that says nothing but a number: bold, italic, code, a heading, the last cell of a table's row.
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


def _last_bolds(text: str) -> Iterator[Marker]:
    found = deque(_BOLD.finditer(text, max(0, len(text) - _TAIL)), _MAX_MARKERS)
    for bold in reversed(found):
        start, stop = next(bold.span(group) for group in "abcdef" if bold.start(group) >= 0)
        if not _LIST_NUMBER.match(text, start, stop):
            begin = start if bold.group("e") else bold.start()  # a table's rows do not stand side by side
            yield Marker("bold", begin, start, stop, bold.end(), True)


# --- reading a marker ------------------------------------------------------------------------------------------------

_PLAIN = r"\$?(-?\$?(?:[1-9]\d{0,2}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?)"
_PLAIN_CLOSED = re.compile(rf"\s{{0,40}}{_PLAIN}\s{{0,40}}")
_PLAIN_OPEN = re.compile(rf"[ \t]*(?:\*\*)?{_PLAIN}(?:\*\*)?\.?[ \t]*(?=\n|\Z)")
_OFFER_AFTER = re.compile(
    r"\s{0,20}(?:[,.;:(\s]{0,6}(?:or|and/or|to|vs|versus|maybe|perhaps|possibly|alternatively)\b\W{0,6}"
    r"(?:maybe|perhaps|possibly|even)?\W{0,8}\d|\W{0,8}\d[\d.,]{0,40}\s{0,8}(?:\n|\Z))",
    re.I,
)
_OR_AFTER = re.compile(
    r"\s{0,8}(?:[a-z]{1,12}\s)?[,.;:(\s]{0,6}(?:or|and/or|to|vs|versus|maybe|perhaps|possibly)\b\W{0,6}"
    r"(?:maybe|perhaps|possibly|even)?\W{0,8}\d",
    re.I,
)
_NESTED_FORMS = frozenset(("boxed", "hash", "phrase", "a_colon"))


def _read(text: str, marker: Marker, limit: int) -> Reading | None:
    """Read a marker's content as a number. The usual spellings take the short way, all others are tokenised."""
    if marker.closed:
        plain = _PLAIN_CLOSED.fullmatch(text, marker.start, marker.stop)
        if plain is not None:
            reading = Reading(_plain_value(plain.group(1)), "ok", plain.span(1))
        else:
            reading = _read_closed(text, marker)
        if reading.status == "ok" and _OR_AFTER.match(text, marker.end, min(limit, marker.end + 80)):
            return Reading(None, "hedged", reading.span)
        return reading
    plain = _PLAIN_OPEN.match(text, marker.start, limit)
    if plain is None:
        return _read_open(text, marker, limit)
    if plain.end() < limit and _OFFER_AFTER.match(text, plain.end(), min(limit, plain.end() + 80)):
        return Reading(None, "hedged", plain.span(1))
    return Reading(_plain_value(plain.group(1)), "ok", plain.span(1))


def _read_bold(text: str, marker: Marker, limit: int) -> Reading | None:
    """Emphasis is an answer only if it begins with a number, or says that there is none; other emphasis is prose."""
    start, stop = marker.start, marker.stop
    reading = _interpret(text, start, stop, closed=False)
    if reading is None:
        return None
    if reading.status == "malformed" and start < stop:
        content = text[start:stop].lower().lstrip("$-+ ")
        if content not in _NOTHING and not content[:1].isdigit():
            return None
    return _read(text, marker, limit)


def _plain_value(number: str) -> int | Fraction:
    number = number.replace(",", "").replace("$", "")
    return Fraction(number) if "." in number else int(number)


def _read_closed(text: str, marker: Marker) -> Reading:
    start, stop = marker.start, marker.stop
    if marker.form == "answer":
        content = text[start:stop]
        nested = final_reading(content, markers_from_the_end(content, _NESTED_FORMS), _read)
        if nested is not None:
            value, status, (a, b) = nested[1]
            return Reading(value, status, (start + a, start + b))
    if stop - start > _WINDOW:
        return Reading(None, "malformed", (start, stop))
    return _interpret(text, start, stop, closed=True) or Reading(None, "malformed", (start, stop))


def _read_open(text: str, marker: Marker, limit: int) -> Reading | None:
    start = marker.start
    stop = min(limit, start + _WINDOW)
    first = _NOT_BLANK.search(text, start, stop)
    if first is None:
        return Reading(None, "malformed", (start, start))
    if "\n" not in text[start : first.start(1)]:
        reading = _interpret(text, start, stop, closed=False, ends=limit == len(text))
        if reading is not None and reading.span[1] == stop < limit:  # the window may have cut the number short
            return Reading(None, "malformed", reading.span)
        return _read_last_sentence(text, marker, start) if reading is None else reading
    # Nothing stands on the marker's line. After `####` or `A:` that is nothing; after "The answer is:" or a heading
    # the number may stand on the next line, alone.
    if marker.form == "hash" or marker.start - marker.begin == 2:
        return Reading(None, "malformed", (start, start))
    start = first.start(1)
    if text.startswith("- ", start):  # an item of a list or a sign
        return None
    line = text.find("\n", start, stop)
    reading = _interpret(text, start, stop if line < 0 else line, closed=False)
    if reading is None:
        return _read_last_sentence(text, marker, start)
    return reading if reading.status != "malformed" else None


# what may stand between a marker and its number: white space, markup, the opening of a formula
_NOT_BLANK = re.compile(r"(?:[\s*_`:>#$]|\\[\[(])*([^\s*_`:>#$])")
_ONE_SENTENCE = re.compile(r"[^\n.?!]{0,120}(?:\.\d[^\n.?!]{0,40}){0,4}[.!]?\s{0,20}\Z")


def _read_last_sentence(text: str, marker: Marker, start: int) -> Reading | None:
    """`Answer: she makes $18 a day.`: one last sentence after a label, with a single number in it."""
    if marker.form != "a_colon" or not _ONE_SENTENCE.match(text, start):
        return None
    reading = _interpret(text, start, len(text), closed=True)
    return reading if reading is not None and reading.status == "ok" else None


# --- numbers in text -------------------------------------------------------------------------------------------------


_ONES = _listed("one two three four five six seven eight nine")
_TEENS = _listed("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS = _listed("twenty thirty forty fifty sixty seventy eighty ninety")
_WORD_VALUES = {
    "zero": 0,
    **{word: n for n, word in enumerate(_ONES, 1)},
    **{word: n for n, word in enumerate(_TEENS, 10)},
    **{word: 10 * n for n, word in enumerate(_TENS, 2)},
}
_MAGNITUDES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_SUFFIXES = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}  # directly after a number: $1.8M
_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES)}))?|{'|'.join(_TEENS + _ONES)})"
_TO_999 = rf"{_TO_99}(?:\shundred(?:\s(?:and\s)?{_TO_99})?)?"
_NUMBER_WORDS = rf"(?:zero|{_TO_999}(?:\s(?:thousand|million|billion),?(?:\s(?:and\s)?{_TO_999})?){{0,3}})\b(?!\sof\b)"

_TOKEN = re.compile(
    rf"""
    (?P<newline> [^\S\n]*\n\s* | \\\\ )
  | (?P<skip> ~~[^~\n]{{0,80}}~~ | <(?:del|s|strike)>[^<\n]{{0,80}}</(?:del|s|strike)>  # struck out
      | \\x?(?:cancel|sout)\{{[^{{}}\n]{{0,80}}\}}
      | \s+ | [$€£¥₹₽₩%"'`_\#~°“”‘’«»≈\u200b-\u200d\u2060\ufeff]
      | </?[A-Za-z][^<>\n]{{0,60}}> | <\|[^<>\n]{{0,40}}\|>                            # tags
      | \\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|boldsymbol|bm|[mh]box|underline|f?box|boxed|emph)\s*\{{
      | \\(?:left|right|displaystyle|quad|qquad|bf|rm|it|large|Large|circ|approx|sim|dots|ldots|degree|euro|pounds)\b
      | \\[,;:!\ ()\[\]$%&\#_]
      | (?<!\d)\*\* | \*\*(?!\d) )
  | (?P<annotation> <<[^<>\n]{{0,120}}>> )
  | (?P<fraction> [¼-¾⅐-⅞] )
  | (?P<number>
      (?: [1-9]\d{{0,2}}(?P<sep>,|\{{,\}}|\\,|\\\s|_|['’]|[ \u00a0\u2009\u202f])\d{{3}}(?:(?P=sep)\d{{3}})*(?!\d)
        | [1-9]\d?(?:,\d\d)+,\d{{3}}(?!\d) | [1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}(?![.\d]) | \d+ )
      (?:\.\d+)? (?:[eE][+-]?\d+(?!\w))? | \.\d+ (?:[eE][+-]?\d+(?!\w))? )
  | (?P<power> \^\s?(?:\{{\s?[+-]?\d{{1,3}}\s?\}}|[+-]?\d{{1,3}}) | [⁰¹²³⁴-⁹]+ )
  | (?P<degree> \^\s?\{{?\s?(?:\\circ|\\text\{{[a-z]+\}}|[a-z]+)\s?\}}? )
  | (?P<frac> \\[dtc]?frac )
  | (?P<op> (?!\+/?-)[-+*/×÷⋅·∗∕⁄] | \\(?:times|cdot|ast|div)\b | (?<=[\d\s])[xX](?=[\s\d($]) )
  | (?P<relation> [<>≠≤≥±∞^\\]+ | !+ | \+/?- )
  | (?P<equals> ==? | = )
  | (?P<open> [(\[{{] ) | (?P<close> [)\]}}] )
  | (?P<entity> &(?:\#\d{{1,6}}|[a-zA-Z]{{2,8}}); )
  | (?P<sentence> [.?。] )
  | (?P<comma> [,;|:，；：、&] )
  | (?P<words> {_NUMBER_WORDS} )
  | (?P<word> [^\W\d_]+(?:[-'’][^\W\d_]+)*\d?(?!\d) | [^\W\d_]+ )
  | (?P<other> . )
    """,
    re.X | re.I | re.S,
)

_DASHES = dict.fromkeys("−‐‑–—﹣－", "-")


class _SameLength(dict):
    """A translation table that leaves every offset in place: digits, letters and signs of other scripts as ASCII."""

    def __missing__(self, code: int) -> int:
        char = chr(code)
        if code < 128:
            result = code
        elif char in _DASHES:
            result = ord("-")
        elif unicodedata.category(char) == "Nd":
            result = ord("0") + unicodedata.decimal(char)
        elif 0xFF01 <= code <= 0xFF5E:
            result = code - 0xFEE0
        else:
            result = code
        self[code] = result
        return result


_TO_ASCII = _SameLength()

Token = tuple[str, object, int, int]  # kind, value, start, stop


def _tokenise(text: str, start: int, stop: int, closed: bool) -> list[Token]:
    piece = text[start:stop]
    if not piece.isascii():
        piece = piece.translate(_TO_ASCII)
    tokens = []
    annotation = None
    for match in _TOKEN.finditer(piece):
        kind, found = match.lastgroup, match.group()
        if kind == "sep":
            kind = "number"
        value: object = found
        if kind == "skip" or kind == "degree":
            continue
        if kind == "annotation":  # GSM8K's calculator note <<9*2=18>> is not part of the sentence
            annotation = match
            continue
        if kind == "entity":
            char = html.unescape(found)
            if char.isspace() or unicodedata.category(char[0]) == "Sc":
                continue
            kind, value = ("op", char) if char in "-+*/×÷−–" else ("relation" if char.isalnum() else "other", char)
        if kind == "number":
            value = _number(found)
        elif kind == "fraction":
            over, under = unicodedata.normalize("NFKC", found).split("\u2044")
            value = Fraction(int(over), int(under or 10))
        elif kind == "words":
            kind, value = "number", _number_of_words(found)
        elif kind == "word":
            value = found.lower()
            if tokens and tokens[-1][0] == "number" and tokens[-1][3] == start + match.start():
                value = _SUFFIXES.get(found, value)
        elif kind == "relation" and found[0] == "!" and not closed:
            kind = "sentence"  # "The answer is 18!" is no factorial
        elif kind == "op":
            value = _OPERATORS.get(found.lower(), found)
        elif kind == "power":
            digits = found.lstrip("^").strip("{} \t")
            value = int(unicodedata.normalize("NFKC", digits)) if len(digits) < 5 else _MAX_EXPONENT + 1
        tokens.append((kind, value, start + match.start(), start + match.end()))
    if annotation is not None and not any(token[0] == "number" for token in tokens):
        inside = annotation.group()[2:-2].rpartition("=")[2]
        if inside.strip().isdecimal() and len(inside) < _MAX_DIGITS:
            tokens.append(("number", int(inside), start + annotation.start(), start + annotation.end()))
            tokens.sort(key=lambda token: token[2])
    return tokens


_OPERATORS = {
    **dict.fromkeys(("×", "⋅", "·", "∗", "x", "\\times", "\\cdot", "\\ast"), "*"),
    **dict.fromkeys(("÷", "∕", "⁄", "\\div"), "/"),
    **_DASHES,
}


def _number(found: str) -> int | Fraction | None:
    """The value of a number as written, `None` where it is too long to be one anybody meant."""
    mantissa, _, exponent = found.lower().partition("e")
    if mantissa.count(".") > 1:  # 1.450.000
        mantissa = mantissa.replace(".", "")
    digits = _SEPARATORS.sub("", mantissa)
    if len(digits) > _MAX_DIGITS or len(exponent) > 5:
        return None
    value = Fraction(digits) if "." in digits else int(digits)
    if exponent:
        if abs(int(exponent)) > _MAX_EXPONENT:
            return None
        value = value * Fraction(10) ** int(exponent)
    return value


_SEPARATORS = re.compile(r"[^\d.]")


def _number_of_words(found: str) -> int:
    total = current = 0
    for word in re.findall(r"[a-z]+", found.lower()):
        if word == "hundred":
            current *= 100
        elif word in _MAGNITUDES:
            total, current = total + current * _MAGNITUDES[word], 0
        else:
            current += _WORD_VALUES.get(word, 0)  # "and" adds nothing
    return total + current


# --- what the words around a number mean -----------------------------------------------------------------------------

_FILLERS = _words(
    "is are be a an the of that to just simply only exactly about approximately around roughly nearly almost "
    "therefore thus then so hence clearly now indeed definitely actually equal equals total final answer result "
    "usd eur gbp inr rs dollars us cad aud still probably likely approx ca value at text"
)
_NOT = _words("not no never neither nor isn't cannot can't without except")
_NOTHING = _words("unknown none nan null nil undefined inf infinity infinite impossible unclear n/a na missing empty")
_NUMBERED = _words(
    "step steps question problem example part page chapter line note case figure table option no number q"
)
_SIGNS = frozenset(("negative", "minus"))
_ABBREVIATIONS = frozenset(("rs", "approx", "ca"))
# "18 eggs in 2 days": the second number is not another offer
_PREPOSITIONS = _words("in per for at of on from by after before with out over than every each within during times if")


def _interpret(text: str, start: int, stop: int, closed: bool, ends: bool = True) -> Reading | None:
    """The number that a content states, or `None` where it is prose that states none.

    Args:
        closed (`bool`):
            Whether the content is all of a marker (box, tag) and so must hold one value, or the text that follows
            one, which states a number at its beginning and goes on.
        ends (`bool`):
            Whether nothing follows the content (and not a marker that may hold the second offer).
    """
    tokens = _tokenise(text, start, stop, closed)
    n = len(tokens)
    malformed = Reading(None, "malformed", (start, stop if closed else start))
    i, prose, sign, numbered = 0, 0, 1, False
    while i < n and not _starts_number(tokens, i):
        kind, value = tokens[i][:2]
        if kind == "word":
            if value in _NOT:
                return malformed if closed else None
            if value in _NOTHING or value == "or":
                return malformed
            numbered = value in _NUMBERED
            if value in _SIGNS:
                sign = -1
            elif value not in _FILLERS:
                prose += 1
        elif kind in ("equals", "comma"):
            prose, numbered = (0 if kind == "equals" or value in ":：" else prose), False
        elif kind == "relation":
            return malformed
        elif kind in ("sentence", "newline") and not closed and i and tokens[i - 1][1] not in _ABBREVIATIONS:
            break
        i += 1
    if prose and not closed:
        return None
    if i == n or not _starts_number(tokens, i) or numbered:
        return malformed
    value, status, j = _equation(tokens, i)
    span = (tokens[i][2], tokens[j - 1][3])
    if status == "ok":
        value *= sign
        status = _beside(tokens, j, value, closed, several=prose > 0)
        if status == "ok" and ends and _trailing_or(tokens):
            status = "malformed"  # the second offer is missing
    return Reading(value if status == "ok" else None, status, span)


def _trailing_or(tokens: list[Token]) -> bool:
    words = (value for kind, value, _, _ in reversed(tokens) if kind not in ("sentence", "comma", "newline"))
    return next(words, None) == "or"


def _starts_number(tokens: list[Token], i: int) -> bool:
    """Whether a number begins at token i, perhaps after a sign or brackets."""
    for kind, value, _, _ in tokens[i : i + 8]:
        if kind in ("number", "fraction", "frac"):
            return True
        if kind != "open" and not (kind == "op" and value in ("-", "+")):
            return False
    return False


def _equation(tokens: list[Token], i: int) -> tuple[int | Fraction | None, str, int]:
    """`expression`, or a chain `expression = expression = ...` that must be true; its value, its status and its end.

    The value of `16-3-4=9; 9*2=18` is that of its last equation. In `9 eggs * 2 dollars = 18` only what follows the
    equals sign is a number that one can read.
    """
    value, j = _expression(tokens, i)
    if value is None:
        return None, "malformed", j
    if _is_range(tokens, i, j):
        return None, "hedged", j
    while True:
        at = _skip_words(tokens, j, 3)
        checked = at == j
        if at > j and at < len(tokens) and tokens[at][0] == "op" and tokens[at][1] in "*/+-":
            after = _skip_arithmetic(tokens, at)
            if after is not None:
                at = after
            elif _starts_number(tokens, at + 1):
                return None, "malformed", j
        if at < len(tokens) and tokens[at][0] == "equals":
            right, k = _expression(tokens, at + 1)
            if right is None:
                return value, "ok", j
            if checked and right != value:
                return None, "malformed", k
            value, j = right, k
            continue
        # the next equation of a chain of steps
        if tokens[i:j] and any(token[0] == "equals" for token in tokens[i:j]):
            k = j
            while k < len(tokens) and (
                tokens[k][0] in ("comma", "newline", "sentence") or tokens[k][1] in ("and", "so", "then")
            ):
                k += 1
            if k > j and _is_equation(tokens, k):
                i = k
                value, j = _expression(tokens, k)
                if value is not None:
                    continue
                return None, "malformed", j
        return value, "ok", j


def _is_equation(tokens: list[Token], i: int) -> bool:
    left, j = _expression(tokens, i)
    return left is not None and j < len(tokens) and tokens[j][0] == "equals" and _starts_number(tokens, j + 1)


def _is_range(tokens: list[Token], i: int, j: int) -> bool:
    """`5-6`: two plain numbers in rising order with a dash between them."""
    if j - i != 3 or [token[0] for token in tokens[i:j]] != ["number", "op", "number"] or tokens[i + 1][1] != "-":
        return False
    return tokens[i][1] < tokens[i + 2][1]


def _skip_words(tokens: list[Token], i: int, most: int) -> int:
    """Past at most `most` words of a unit."""
    j = i
    while j < len(tokens) and j - i < most and tokens[j][0] == "word" and tokens[j][1] not in _JOINERS | _NOT:
        j += 1
    return j


def _skip_arithmetic(tokens: list[Token], i: int) -> int | None:
    """Past arithmetic with units, up to its equals sign; None if there is none."""
    for j in range(i, min(len(tokens), i + 40)):
        kind = tokens[j][0]
        if kind == "equals":
            return j
        if kind not in ("op", "number", "fraction", "word", "open", "close"):
            return None
    return None


_MAX_DEPTH = 40
_MAX_POWER = 64


def _expression(tokens: list[Token], i: int, depth: int = 0) -> tuple[int | Fraction | None, int]:
    """Value and end of the longest sum that begins at token i; the value is `None` where none does."""
    value, i = _product(tokens, i, depth)
    while value is not None and i < len(tokens) and tokens[i][0] == "op" and tokens[i][1] in ("+", "-"):
        if not _starts_number(tokens, i + 1):
            break
        right, j = _product(tokens, i + 1, depth)
        if right is None:
            return None, j
        value = value + right if tokens[i][1] == "+" else value - right
        i = j
    return value, i


def _product(tokens: list[Token], i: int, depth: int) -> tuple[int | Fraction | None, int]:
    value, i = _factor(tokens, i, depth)
    while value is not None and i < len(tokens) and tokens[i][0] == "op" and tokens[i][1] in ("*", "/"):
        if not _starts_number(tokens, i + 1):
            break
        right, j = _factor(tokens, i + 1, depth)
        if right is None or (right == 0 and tokens[i][1] == "/"):
            return None, j
        value = value * right if tokens[i][1] == "*" else Fraction(value) / right
        i = j
    return value, i


def _factor(tokens: list[Token], i: int, depth: int) -> tuple[int | Fraction | None, int]:
    """A number with its sign, power and magnitude word, a mixed number, `\\frac{}{}` or a bracketed sum."""
    if i >= len(tokens) or depth > _MAX_DEPTH:
        return None, i
    kind, value, _, stop = tokens[i]
    if kind == "op" and value in ("-", "+"):
        inner, j = _factor(tokens, i + 1, depth + 1)
        return (None if inner is None else -inner if value == "-" else inner), j
    if kind == "open":
        value, j = _expression(tokens, i + 1, depth + 1)
        if value is None or j >= len(tokens) or tokens[j][0] != "close":
            return None, j
        return _power(tokens, value, j + 1)
    if kind == "frac":
        over, j = _group(tokens, i + 1, depth)
        under, j = _group(tokens, j, depth) if over is not None else (None, j)
        return (Fraction(over) / under if under else None), j
    if kind == "fraction":
        return value, i + 1
    if kind != "number" or value is None:
        return None, i + 1
    j = i + 1
    if j < len(tokens) and tokens[j][0] == "number" and tokens[j][2] == stop:
        return None, j  # 1.8.0
    if isinstance(value, int):
        part, k = _fraction_part(tokens, j)
        if part is not None:
            return value + part, k
    return _power(tokens, value, j)


def _group(tokens: list[Token], i: int, depth: int) -> tuple[int | Fraction | None, int]:
    """A numerator or denominator: `{sum}` or one digit, as in `\\frac12`."""
    if i < len(tokens) and tokens[i][0] == "number":
        value = tokens[i][1]
        digits = str(value) if isinstance(value, int) and value < 100 else ""
        if len(digits) == 2:  # both of them in one token
            tokens[i : i + 1] = [("number", int(d), *tokens[i][2:]) for d in digits]
        return (tokens[i][1] if digits else None), i + 1
    if i >= len(tokens) or tokens[i][0] != "open":
        return None, i
    value, j = _expression(tokens, i + 1, depth + 1)
    return (value, j + 1) if j < len(tokens) and tokens[j][0] == "close" else (None, j)


def _fraction_part(tokens: list[Token], i: int) -> tuple[Fraction | None, int]:
    """The `1/2` of `1 1/2`, `1\\frac{1}{2}` and `1½`."""
    if i < len(tokens) and tokens[i][0] in ("fraction", "frac"):
        part, j = _factor(tokens, i, 0)
        return (part, j) if part is not None and 0 < part < 1 else (None, i)
    kinds = [token[0] for token in tokens[i : i + 3]]
    if kinds == ["number", "op", "number"] and tokens[i + 1][1] == "/":
        over, under = tokens[i][1], tokens[i + 2][1]
        if isinstance(over, int) and isinstance(under, int) and 0 < over < under:
            return Fraction(over, under), i + 3
    return None, i


def _power(tokens: list[Token], value: int | Fraction, i: int) -> tuple[int | Fraction | None, int]:
    """Apply a power of a literal exponent and magnitude words, both bounded; refuse a factorial."""
    if i < len(tokens) and tokens[i][0] == "power":
        exponent = tokens[i][1]
        if abs(exponent) > _MAX_POWER or (exponent < 0 and value == 0) or abs(value) > 10**20:
            return None, i + 1
        value, i = Fraction(value) ** exponent, i + 1
    if i < len(tokens) and tokens[i][:2] == ("relation", "!"):
        return None, i + 1
    while i < len(tokens) and tokens[i][0] == "word" and tokens[i][1] in _MAGNITUDES:
        value, i = value * _MAGNITUDES[tokens[i][1]], i + 1
    return value, i


def _beside(tokens: list[Token], i: int, value: int | Fraction, closed: bool, several: bool) -> str:
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
        if _starts_number(tokens, i):
            if kind == "open":
                inner, j = _expression(tokens, i + 1)
                if inner == value or (j < len(tokens) and tokens[j][0] != "close"):  # a remark: 18 (2 * 9)
                    i = _after_bracket(tokens, i)
                    continue
            other, _, j = _equation(tokens, i)
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
            return all(word in _JOINERS for word in later) and (alone or bool(later))
    words = [token[1] for token in gap if token[0] == "word"]
    while words and (words[-1] in _FILLERS or words[-1] in _LEADS) and words[-1] not in _JOINERS and len(words) > 1:
        words.pop()  # 18 or the answer is 20
    if not words or words[-1] in _JOINERS:
        return True
    kinds = [token[0] for token in gap]
    if signed or (kinds[-1] == "comma" and gap[-1][1] not in ":："):  # 18 eggs, 20 eggs; 18 eggs - 20 eggs
        return len(words) <= 3
    if kinds[-2:] == ["word", "equals"]:  # x = 18, y = 20
        return len(kinds) == 2 or kinds[-3] == "comma" or gap[-3][1] in _JOINERS
    return kinds == ["word"] and words[0] not in _PREPOSITIONS  # 2 h 30 min


def _after_bracket(tokens: list[Token], i: int) -> int:
    while i < len(tokens) and tokens[i][0] != "close":
        i += 1
    return i + 1


# --- a number without a marker ---------------------------------------------------------------------------------------

_BARE = re.compile(
    r"(?P<sign>(?<![\w)\]}.,])[-−]\s?)?[$€£¥]?(?P<number>(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?)"
)
_BETWEEN = re.compile(rf"[^\w=]*(?:(?:{'|'.join(sorted(_JOINERS))})\b[^\w=]*)*", re.I)
_STEP_BEFORE = re.compile(rf"\b(?:{'|'.join(sorted(_NUMBERED))})\W{{0,3}}\Z", re.I)


def _bare(text: str) -> tuple[str, Reading] | None:
    """The last number of a text that has no marker."""
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    if not end:
        return None
    start = max(0, end - 120)
    found = [m for m in _BARE.finditer(text, start, end) if not _is_unit_digit(text, m)]
    if not found or (len(found) == 1 and start and found[0].start() == start):
        return None
    last = found[-1]
    reading = Reading(None, "malformed", last.span())
    if _STEP_BEFORE.search(text, max(0, last.start() - 16), last.start()):
        return "bare", reading
    number = last.group("number")
    over, _, under = number.replace(",", "").partition("/")
    if under and not int(under):
        return "bare", reading
    value = Fraction(over.strip()) / (int(under) if under else 1)
    value = -value if last.group("sign") else value
    before = text[found[-2].end() : last.start()] if len(found) > 1 else None
    if before is not None and "=" not in before and _BETWEEN.fullmatch(before):
        return "bare", reading._replace(status="hedged")
    return "bare", Reading(value, "ok", last.span())


def _is_unit_digit(text: str, match: re.Match) -> bool:
    """Whether this is the 2 of `m2` or `m^2`."""
    before = text[max(0, match.start() - 1) : match.start()]
    return before == "^" or before.isalpha()
