"""Evaluates tokens to one exact number: a sum, a fraction, a power, a mixed number, a number with a magnitude word."""

from fractions import Fraction

from grpo_math.answers.tokens import MAGNITUDES, Token
from grpo_math.expressions import infix_value

_MAX_POWER = 64  # the largest exponent that is evaluated


def starts_number(tokens: list[Token], i: int) -> bool:
    """Whether a number begins at token `i`, possibly after signs or brackets."""
    for kind, value, _, _ in tokens[i : i + 8]:
        if kind in ("number", "fraction", "frac"):
            return True
        if kind != "open" and not (kind == "op" and value in "-+"):
            return False
    return False


def arithmetic(tokens: list[Token], i: int) -> tuple[int | Fraction | None, int]:
    """Evaluate the longest arithmetic that begins at token `i`.

    Returns:
        `tuple`: the value, or `None` without a valid one; the index after the last token.
    """
    infix: list = []
    depth, operand_next = 0, True
    while i < len(tokens):
        kind, value = tokens[i][:2]
        if operand_next and kind in ("number", "fraction", "frac"):
            operand, i = _operand(tokens, i)
            if operand is None:
                return None, i
            infix.append(operand)
            operand_next = False
            continue
        if kind == "op" and starts_number(tokens, i + 1):
            infix.append(value)
            operand_next = True
        elif operand_next:  # an opening bracket
            infix.append("(")
            depth += 1
        elif kind == "close" and depth:
            infix.append(")")
            depth -= 1
        else:
            break
        i += 1
    try:
        return infix_value(infix), i
    except ZeroDivisionError:
        return None, i


def _operand(tokens: list[Token], i: int) -> tuple[int | Fraction | None, int]:
    """Evaluate a number with its fraction part, power and magnitude words. A large power has no value."""
    kind, value = tokens[i][:2]
    i += 1
    if kind == "frac":
        return _latex_fraction(tokens, i)
    if value is None:
        return None, i
    if isinstance(value, int):
        part, j = _fraction_part(tokens, i)
        if part is not None and 0 < part < 1:
            value, i = value + part, j
    if i < len(tokens) and tokens[i][0] == "power":
        exponent = tokens[i][1]
        if abs(exponent) > _MAX_POWER or (exponent < 0 and value == 0):
            return None, i + 1
        value, i = Fraction(value) ** exponent, i + 1
    while i < len(tokens) and tokens[i][1] in MAGNITUDES:
        value, i = value * MAGNITUDES[tokens[i][1]], i + 1
    return value, i


def _fraction_part(tokens: list[Token], i: int) -> tuple[Fraction | None, int]:
    """Evaluate the `1/2` of `1 1/2`, `1\\frac{1}{2}` and `1½`."""
    kinds = [token[0] for token in tokens[i : i + 3]]
    if kinds[:1] == ["fraction"]:
        return tokens[i][1], i + 1
    if kinds[:1] == ["frac"]:
        return _latex_fraction(tokens, i + 1)
    if kinds == ["number", "op", "number"] and tokens[i + 1][1] == "/" and tokens[i][1] and tokens[i + 2][1]:
        return Fraction(tokens[i][1]) / tokens[i + 2][1], i + 3
    return None, i


def _latex_fraction(tokens: list[Token], i: int) -> tuple[Fraction | None, int]:
    r"""Evaluate the `{a}{b}` or the two digits after `\frac`."""
    if isinstance(tokens[i][1], int) and 10 <= tokens[i][1] < 100:
        over, under = divmod(tokens[i][1], 10)
        return (Fraction(over, under) if under else None), i + 1
    sides: list[int | Fraction | None] = []
    for _ in range(2):
        if i >= len(tokens) or tokens[i][0] != "open":
            return None, i
        value, i = arithmetic(tokens, i + 1)
        if i >= len(tokens) or tokens[i][0] != "close":
            return None, i
        sides.append(value)
        i += 1
    over, under = sides
    return (Fraction(over) / under if over is not None and under else None), i
