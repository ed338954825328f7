"""Splits the content of a marker into parts, and reads the one number that a part states.

The content is cut at commas, joining words, ends of sentences and ends of lines: `18 eggs | or | 20`. A bracket after a
number is a part of its own: `18 | (not 20)`. An equation states the value of its last side.
"""

from dataclasses import dataclass, field
from fractions import Fraction

from grpo_math.answers import words
from grpo_math.answers.numbers import arithmetic, starts_number
from grpo_math.answers.tokens import Token

NUMBERS = ("value", "computed")  # the kinds of tokens that replace arithmetic


@dataclass(slots=True)
class Part:
    """One part of a content, without joining words."""

    # Tokens, cut at equals signs. Arithmetic is one token of kind "value", or "computed" if it has an operator.
    sides: list[list[Token]] = field(default_factory=lambda: [[]])
    offered: bool = False  # "or" or "maybe" leads it
    after_end: bool = False  # a sentence or line has ended before it
    labels: bool = False  # a colon ends it
    ended: bool = True  # the end of a sentence, line, bracket or content ends it
    remark: bool = False  # it stands in brackets


@dataclass(slots=True)
class Statement:
    """What a part states."""

    status: str  # "ok", "none" (no number), "negated", "malformed", "hedged" (several numbers)
    value: int | Fraction | None = None  # None without a number
    span: tuple[int, int] | None = None  # the number as written
    prose: bool = False  # words other than fillers precede the number
    words: int = 0  # the number of words after it
    computed: bool = False  # an operation has led to it


def split(tokens: list[Token], remark: bool = False) -> list[Part]:
    """Cut the tokens of a content into its parts."""
    parts: list[Part] = []
    part, remarks = Part(remark=remark), []
    i = 0
    while i < len(tokens):
        kind, value, start, _ = tokens[i]
        side = part.sides[-1]
        empty = not side and len(part.sides) == 1
        number, after = arithmetic(tokens, i) if starts_number(tokens, i) else (None, i)
        if kind in ("comma", "end") or value in words.JOINERS:
            after_end = kind == "end" or (part.after_end and empty)
            if not empty:
                part.labels, part.ended = value == ":", kind == "end"
                parts += [part, *remarks]
                remarks = []
            part = Part([[]], value in words.OR_WORDS, after_end, remark=remark)
        elif kind == "equals":
            part.sides.append([])
        elif value in words.EXPLAINING and any(token[0] in NUMBERS for token in side):
            while i + 1 < len(tokens) and tokens[i + 1][0] != "end":
                i += 1
        elif kind == "open" and number is None:
            closing = _closing(tokens, i)
            remarks += split(tokens[i + 1 : closing], remark=True)
            i = closing
        elif after > i:
            computed = any(token[0] == "op" for token in tokens[i + 1 : after])
            side.append(("computed" if computed else "value", number, start, tokens[after - 1][3]))
            i = after - 1
        elif not (empty and value == "*"):  # an item of a list
            side.append(tokens[i])
        i += 1
    return [*parts, part, *remarks]


def _closing(tokens: list[Token], i: int) -> int:
    """Return the index of the bracket that closes the one at `i`, or else the number of tokens."""
    depth = 0
    for j in range(i, len(tokens)):
        depth += {"open": 1, "close": -1}.get(tokens[j][0], 0)
        if depth == 0:
            return j
    return len(tokens)


def statement(part: Part) -> Statement:
    """Return what a part states. Sides of an equation without words must be equal."""
    sides = [_side(side) for side in part.sides]
    numeric = [side for side in sides if side.value is not None or side.status == "malformed"]
    if not numeric:
        return sides[0]
    final = numeric[-1]
    exact = [side.value for side in numeric if not (side.prose or side.words)]
    if any(value != final.value for value in exact):
        return Statement("malformed", span=final.span)
    final.prose = sides[0].prose and sides[0] is numeric[0]  # not in x = 18
    final.computed = any(side.computed for side in numeric)
    return final


def _computes(stop: int, rest: list[Token]) -> bool:
    """Whether what follows a number that ends at `stop` computes with it: `18x`, `18 ± 1`, `18 squared`, `10 + x`."""
    kind, value, start, _ = rest[0]
    if kind != "op":
        return kind == "relation" or value in words.OPERATIONS or (value in words.VARIABLES and start == stop)
    if len(rest) == 1:
        return value == "+"
    return (value in "+*" and rest[1][0] == "word") or rest[1][1] in words.VARIABLES


def _side(tokens: list[Token]) -> Statement:
    """Read one side of an equation, or a part without an equals sign."""
    at = next((k for k, token in enumerate(tokens) if token[0] in NUMBERS), len(tokens))
    status, prose, sign, numbered = "ok", False, 1, False
    for kind, value, _, _ in tokens[:at]:
        if value in words.MINUS_WORDS:
            sign = -1
        elif value in words.NEGATIONS:
            status = "negated"
        elif kind == "relation" or value in words.BOUNDS or value in words.NO_VALUE:
            status = "malformed"
        elif kind == "word" and value not in words.FILLERS:
            prose, numbered = True, value in words.NUMBERED
    if at == len(tokens):
        return Statement("none" if status == "ok" else status, prose=prose)
    kind, value, start, stop = tokens[at]
    if value is None or numbered:
        return Statement("malformed", None, (start, stop), prose)
    rest = tokens[at + 1 :]
    if tokens[at - 1][3] == start or (status == "ok" and rest and _computes(stop, rest)):
        status = "malformed"  # f(18), 18x
    found = Statement(status, value * sign, (start, stop), prose, 0, kind == "computed")
    before = ""
    for kind, other, _, _ in rest:
        if kind == "word":
            found.words += 1
            before = other
        elif (
            kind in NUMBERS
            and other != found.value
            and found.status == "ok"
            and (prose or before not in words.PREPOSITIONS)
        ):
            found.status = "hedged"
    return found
