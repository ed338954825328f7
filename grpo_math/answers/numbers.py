"""Evaluates tokens to one exact number: expressions, fractions, powers and chains of equations."""

from fractions import Fraction

from grpo_math.answers.tokens import MAGNITUDES, Token
from grpo_math.answers.words import JOINERS, NEGATIONS

# Bounds on nested brackets and on a literal exponent.
_MAX_DEPTH = 40
_MAX_POWER = 64

_NOT_UNITS = JOINERS | NEGATIONS


def starts_number(tokens: list[Token], i: int) -> bool:
    """Whether a number begins at token `i`, possibly after a sign or brackets."""
    for kind, value, _, _ in tokens[i : i + 8]:
        if kind in ("number", "fraction", "frac"):
            return True
        if kind != "open" and not (kind == "op" and value in ("-", "+")):
            return False
    return False


def equation(tokens: list[Token], i: int) -> tuple[int | Fraction | None, str, int]:
    """Evaluate an expression or a chain `expression = expression = ...` that begins at token `i`.

    A chain must be true. The value of several equations (`16-3-4=9; 9*2=18`) is that of the last one. The value of an
    equation with units (`9 eggs * 2 dollars = 18`) is that of its right-hand side.

    Returns:
        `tuple`: the value or `None`; `"ok"`, `"hedged"` (a range) or `"malformed"`; the index after the last token.
    """
    value, j = expression(tokens, i)
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
            elif starts_number(tokens, at + 1):
                return None, "malformed", j
        if at < len(tokens) and tokens[at][0] == "equals":
            right, k = expression(tokens, at + 1)
            if right is None:
                return value, "ok", j
            if checked and right != value:
                return None, "malformed", k
            value, j = right, k
            continue
        # the next of several equations
        if tokens[i:j] and any(token[0] == "equals" for token in tokens[i:j]):
            k = j
            while k < len(tokens) and (
                tokens[k][0] in ("comma", "newline", "sentence") or tokens[k][1] in ("and", "so", "then")
            ):
                k += 1
            if k > j and _is_equation(tokens, k):
                i = k
                value, j = expression(tokens, k)
                if value is not None:
                    continue
                return None, "malformed", j
        return value, "ok", j


def _is_equation(tokens: list[Token], i: int) -> bool:
    """Whether `expression = number` begins at token `i`."""
    left, j = expression(tokens, i)
    return left is not None and j < len(tokens) and tokens[j][0] == "equals" and starts_number(tokens, j + 1)


def _is_range(tokens: list[Token], i: int, j: int) -> bool:
    """Whether the tokens are a range `5-6`: two numbers in ascending order with a dash between them."""
    if j - i != 3 or [token[0] for token in tokens[i:j]] != ["number", "op", "number"] or tokens[i + 1][1] != "-":
        return False
    return tokens[i][1] < tokens[i + 2][1]


def _skip_words(tokens: list[Token], i: int, most: int) -> int:
    """Return the index after at most `most` words of a unit."""
    j = i
    while j < len(tokens) and j - i < most and tokens[j][0] == "word" and tokens[j][1] not in _NOT_UNITS:
        j += 1
    return j


def _skip_arithmetic(tokens: list[Token], i: int) -> int | None:
    """Return the index of the equals sign after arithmetic with units, or `None`."""
    for j in range(i, min(len(tokens), i + 40)):
        kind = tokens[j][0]
        if kind == "equals":
            return j
        if kind not in ("op", "number", "fraction", "word", "open", "close"):
            return None
    return None


def expression(tokens: list[Token], i: int, depth: int = 0) -> tuple[int | Fraction | None, int]:
    """Evaluate the longest sum that begins at token `i`.

    Returns:
        `tuple`: the value, or `None` without a valid sum; the index after its last token.
    """
    value, i = _product(tokens, i, depth)
    while value is not None and i < len(tokens) and tokens[i][0] == "op" and tokens[i][1] in ("+", "-"):
        if not starts_number(tokens, i + 1):
            break
        right, j = _product(tokens, i + 1, depth)
        if right is None:
            return None, j
        value = value + right if tokens[i][1] == "+" else value - right
        i = j
    return value, i


def _product(tokens: list[Token], i: int, depth: int) -> tuple[int | Fraction | None, int]:
    """Evaluate the longest product or quotient that begins at token `i`."""
    value, i = _factor(tokens, i, depth)
    while value is not None and i < len(tokens) and tokens[i][0] == "op" and tokens[i][1] in ("*", "/"):
        if not starts_number(tokens, i + 1):
            break
        right, j = _factor(tokens, i + 1, depth)
        if right is None or (right == 0 and tokens[i][1] == "/"):
            return None, j
        value = value * right if tokens[i][1] == "*" else Fraction(value) / right
        i = j
    return value, i


def _factor(tokens: list[Token], i: int, depth: int) -> tuple[int | Fraction | None, int]:
    """Evaluate a number with sign, power and magnitude word, a mixed number, `\\frac{}{}` or a bracketed sum."""
    if i >= len(tokens) or depth > _MAX_DEPTH:
        return None, i
    kind, value, _, stop = tokens[i]
    if kind == "op" and value in ("-", "+"):
        inner, j = _factor(tokens, i + 1, depth + 1)
        return (None if inner is None else -inner if value == "-" else inner), j
    if kind == "open":
        value, j = expression(tokens, i + 1, depth + 1)
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
    """Evaluate a numerator or denominator: `{sum}`, or one digit as in `\\frac12`."""
    if i < len(tokens) and tokens[i][0] == "number":
        value = tokens[i][1]
        digits = str(value) if isinstance(value, int) and value < 100 else ""
        if len(digits) == 2:  # numerator and denominator in one token
            tokens[i : i + 1] = [("number", int(d), *tokens[i][2:]) for d in digits]
        return (tokens[i][1] if digits else None), i + 1
    if i >= len(tokens) or tokens[i][0] != "open":
        return None, i
    value, j = expression(tokens, i + 1, depth + 1)
    return (value, j + 1) if j < len(tokens) and tokens[j][0] == "close" else (None, j)


def _fraction_part(tokens: list[Token], i: int) -> tuple[Fraction | None, int]:
    """Evaluate the `1/2` of `1 1/2`, `1\\frac{1}{2}` and `1½`."""
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
    """Apply a literal exponent and magnitude words. A large power and a factorial have no value."""
    if i < len(tokens) and tokens[i][0] == "power":
        exponent = tokens[i][1]
        if abs(exponent) > _MAX_POWER or (exponent < 0 and value == 0) or abs(value) > 10**20:
            return None, i + 1
        value, i = Fraction(value) ** exponent, i + 1
    if i < len(tokens) and tokens[i][:2] == ("relation", "!"):
        return None, i + 1
    while i < len(tokens) and tokens[i][0] == "word" and tokens[i][1] in MAGNITUDES:
        value, i = value * MAGNITUDES[tokens[i][1]], i + 1
    return value, i
