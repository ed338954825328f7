r"""Countdown arithmetic: tokenise, parse and evaluate an expression exactly, without running it as code.

A Countdown problem gives a few integers and a target; the answer is an expression over these integers. One real row of
`Jiayi-Pan/Countdown-Tasks-3to4`: `{"nums": [44, 19, 35], "target": 98}`, solved by `44 + 19 + 35`.

The language is as small as the game: decimal integers, `+ - * /`, signs, parentheses. It reads other spellings of a
symbol as that symbol: `x × · ⋅ ∗ ÷ ∕ − \times \cdot \div \frac{a}{b}`, square and curly brackets, other scripts' digits.
Math delimiters (`$`, `\(`, `\boxed{}`) are layout. Anything else is malformed: calls, names, `//`, `**`, `%`, `!`,
decimals, `1_0`, implicit multiplication.

```python
>>> from grpo_math.expressions import evaluate
>>> evaluate("8 / (3 - 8/3) = 24", [3, 3, 8, 8])
Evaluation(value=Fraction(24, 1), status='ok')
>>> evaluate("2**3", [2, 3])
Evaluation(value=None, status='malformed')
```
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

MODES = ("all", "subset")

# More digits than any Countdown number has. A longer number is malformed, and never becomes an int.
_MAX_DIGITS = 18
_MAX_LENGTH = 10_000

_TOKEN = re.compile(r"\d+|\S")

# The same operator in another script or typeface.
OPERATORS = {
    **dict.fromkeys("×∗⋅·∙•✕✖＊", "*"),
    **dict.fromkeys("÷∕⁄／➗", "/"),
    **dict.fromkeys("−‐‑–﹣－➖", "-"),
    **dict.fromkeys("＋➕", "+"),
}
# None deletes a character.
_SYMBOLS = str.maketrans(
    {
        **OPERATORS,
        **dict.fromkeys("（［｛", "("),
        **dict.fromkeys("）］｝", ")"),
        "＝": "=",
        **dict.fromkeys("✓✔✅", " "),
        # zero-width: word joiner, zero-width space and (non-)joiners, byte order mark
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", None),
    }
)

# LaTeX commands: operators become symbols, layout becomes white space. `\frac` and `\boxed` are handled with their braces.
_LATEX = {
    **dict.fromkeys(("times", "cdot", "ast"), "*"),
    "div": "/",
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "displaystyle", "quad", "checkmark"), " "),
}
_LATEX_COMMAND = re.compile(r"\\(?:([A-Za-z]+)|([^A-Za-z]))")
_LATEX_LAYOUT = frozenset(",;:! ()[]")  # \, \; \: \! "\ " and the delimiters \( \) \[ \]

LEADS = "so|thus|hence|therefore|the|my|final|correct"
LABELS = "expression|equation|answer|solution"
_LABEL = re.compile(rf"\s*(?:(?:{LEADS}),?\s+){{0,4}}(?:{LABELS})(?:\s+is)?\s*[:：]?\s+", re.I)


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        value (`Fraction` or `None`):
            The exact value; `None` unless `status` is `"ok"`.
        status (`str`):
            `"ok"`, or why there is no value: `"none"` (only white space), `"malformed"` (not an expression of the
            game, or longer than 10,000 characters), `"numbers"` (well formed or not, it uses other numbers than it
            may), `"undefined"` (division by zero), `"claim"` (ends in `= n`, but its value is not n).
    """

    value: Fraction | None
    status: str


def evaluate(expr: str, nums: Iterable[int], mode: str = "all", spellings: bool = True) -> Evaluation:
    r"""
    Evaluate a Countdown expression exactly and check which numbers it uses.

    Args:
        expr (`str`):
            The expression alone, e.g. `"(3+5)*7"`, `"(3 + 5) \times 7 = 56"`. A suffix `= n` (or prefix `n =`) must be
            true. A label such as `Expression:`, a check mark and a final `.` or `;` are layout.
        nums (`Iterable[int]`):
            The numbers of the problem.
        mode (`str`, *optional*, defaults to `"all"`):
            `"all"`: every number exactly once. `"subset"`: each at most once.
        spellings (`bool`, *optional*, defaults to `True`):
            Whether other spellings of a symbol (`x × ÷ − \times \div \frac`, brackets, other scripts' digits) and
            layout (a label, `$`, `**`, a final period) count. `False` allows digits, `+-*/()=` and white space.

    Returns:
        [`Evaluation`]: for every expression, in time linear in its length.

    Raises:
        `ValueError`: for an unknown `mode`.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, MODES))}")
    value, status = exact_value(expr, nums, mode, spellings)
    return Evaluation(None if value is None else Fraction(value), status)


def exact_value(expr: str, nums: Iterable[int], mode: str, spellings: bool = True) -> tuple[int | Fraction | None, str]:
    """Return the value and status of [`evaluate`]; a whole number may still be an `int`."""
    if len(expr) > _MAX_LENGTH:
        return None, "malformed"
    tokens = _tokenise(expr) if spellings else _TOKEN.findall(expr)
    if not tokens:
        return None, "none"
    claim = None
    if "=" in tokens:
        tokens, claim = _split_claim(tokens)
        if claim is None:
            return None, "malformed"
    if not spellings and not _ALPHABET.issuperset("".join(tokens)):
        return None, "malformed"
    # Numbers are checked before the arithmetic: an expression that passes is as short as the problem, so its value is small.
    used = [token for token in tokens if token.isdecimal()]
    if not used:
        return None, "malformed"
    if not _may_use(used, nums, mode):
        return None, "numbers"
    try:
        value = infix_value([int(token) if token.isdecimal() else token for token in tokens])
    except ZeroDivisionError:
        return None, "undefined"
    if value is None:
        return None, "malformed"
    return (value, "ok") if claim is None or value == claim else (None, "claim")


def _tokenise(expr: str) -> list[str]:
    """Return integers and single characters, with other spellings replaced by `0-9 + - * / ( ) =`."""
    if "\\" in expr or not expr.isascii():
        expr = _plain_symbols(expr)
    if _PLAIN.fullmatch(expr):
        return _TOKEN.findall(expr)
    return _TOKEN.findall(_without_layout(expr))


_ALPHABET = frozenset("0123456789+-*/()=")
_PLAIN = re.compile(r"(?!\s*\*)[\d+\-*/()=\s]*")  # a leading ** may be bold


def _plain_symbols(expr: str) -> str:
    """Replace LaTeX commands and Unicode symbols by ASCII. Anything without an ASCII spelling stays, hence malformed."""
    expr = expr.translate(_SYMBOLS)
    if "\\" in expr:
        boxed = _BOXED.fullmatch(expr)
        expr = boxed[boxed.lastindex] if boxed else expr
        expr = _LATEX_COMMAND.sub(_latex_command, expr)
        if "\\" in expr:
            expr = _fractions_and_boxes(expr)
    return ascii_digits(expr)


def ascii_digits(text: str) -> str:
    """Replace the digits of every script, also full-width ones, by `0-9`."""
    return text if text.isascii() else "".join([str(int(c)) if c.isdecimal() else c for c in text])


def _latex_command(match: re.Match) -> str:
    name, symbol = match.groups()
    if symbol is not None:
        return " " if symbol in _LATEX_LAYOUT else {"{": "(", "}": ")", "$": "$", "*": "*"}.get(symbol, match.group())
    return _LATEX.get(name, match.group())


_BOXED = re.compile(r"[\s$]*\\(?:f?boxed\s*\{(.*)|(?:text|math)(?:bf|rm)?\s*\{([^{}]*))\}[\s$]*", re.S)
_BRACED = re.compile(r"\\[dtc]?frac\s*\{|\\(?:f?boxed|(?:text|math)(?:bf|rm)?)\s*\{|\{|\}\s*\{|\}")


def _fractions_and_boxes(expr: str) -> str:
    r"""Replace `\frac{a}{b}` by `((a)/(b))` and `\boxed{a}` by `(a)`, in one pass with a stack of open braces."""
    open_braces: list[str] = []

    def replace(match: re.Match) -> str:
        text = match.group()
        if text.startswith("\\"):
            open_braces.append("numerator" if "frac" in text else "plain")
            return "((" if "frac" in text else "("
        if text == "{":
            open_braces.append("plain")
            return "("
        closed = open_braces.pop() if open_braces else None
        if text == "}":
            # a numerator without a denominator stays unbalanced, hence malformed
            return {"plain": ")", "denominator": "))", "numerator": "}", None: "}"}[closed]
        if closed == "numerator":
            open_braces.append("denominator")
            return ")/("
        return "}{"

    return _BRACED.sub(replace, expr)


def _without_layout(expr: str) -> str:
    """Strip label, dollars, bold and final period from an expression, and replace the letter x by `*`."""
    expr = _LABEL.sub("", expr, count=1) if expr[:1].isspace() or expr[:1].isalpha() else expr
    expr = expr.strip().strip("$`\"'“”").strip()
    if expr.startswith("**") and expr.endswith("**"):
        expr = expr[2:-2].strip()
    expr = expr[:-1] if expr[-1:] in (".", ";", "。") else expr
    expr = expr.strip().strip("$").replace("==", "=")
    expr = expr.translate(_BRACKETS)
    return _LETTER_TIMES.sub("*", expr)


_BRACKETS = str.maketrans("[]{}", "()()")
# The letter x between two operands. `0x3` is a hexadecimal number, not a product.
_LETTER_TIMES = re.compile(r"(?<=[\d)\s])(?<!\b0)[xX](?=[\d(\s])")


def _split_claim(tokens: list[str]) -> tuple[list[str], int | None]:
    """Split `expression = n` or `n = expression` into (expression, n); n is `None` for any other equation."""
    at = tokens.index("=")
    left, right = tokens[:at], tokens[at + 1 :]
    if right[:1] == ["="]:
        right = right[1:]
    claim = _signed_integer(right)
    if claim is not None:
        return left, claim
    return right, _signed_integer(left)


def _signed_integer(tokens: list[str]) -> int | None:
    """Return the integer that the tokens spell, or `None`."""
    sign, digits = (tokens[0], tokens[1:]) if tokens and tokens[0] in "+-" else ("", tokens)
    if len(digits) != 1 or not digits[0].isdecimal() or len(digits[0]) > _MAX_DIGITS:
        return None
    return -int(digits[0]) if sign == "-" else int(digits[0])


def _may_use(used: list[str], nums: Iterable[int], mode: str) -> bool:
    """Whether the integers are those of the problem, each once: all of them (`all`) or some of them (`subset`)."""
    if max(map(len, used)) > _MAX_DIGITS:
        return False
    integers = sorted(map(int, used))
    if mode == "all":
        return integers == sorted(nums)
    left = list(nums)
    for n in integers:
        if n not in left:
            return False
        left.remove(n)
    return True


_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "neg": 3}


def infix_value(tokens: Sequence[int | Fraction | str]) -> int | Fraction | None:
    """Evaluate numbers, the operators `+ - * /` and parentheses exactly; `None` if they are malformed.

    The shunting-yard algorithm (Dijkstra 1961) is not recursive, so that deep nesting cannot overflow the stack.

    Raises:
        `ZeroDivisionError`: for a division by zero.
    """
    operands: list[int | Fraction] = []
    operators: list[str] = []
    operand_next = True
    for token in tokens:
        if operand_next:
            if not isinstance(token, str):
                operands.append(token)
                operand_next = False
            elif token == "(":
                operators.append("(")
            elif token == "-":
                operators.append("neg")
            elif token != "+":
                return None
        elif token == ")":
            while operators and operators[-1] != "(":
                _apply(operators.pop(), operands)
            if not operators:
                return None
            operators.pop()
        elif token in _BINARY:
            precedence = _PRECEDENCE[token]
            while operators and _PRECEDENCE[operators[-1]] >= precedence:
                _apply(operators.pop(), operands)
            operators.append(token)
            operand_next = True
        else:
            return None
    if operand_next or "(" in operators:
        return None
    while operators:
        _apply(operators.pop(), operands)
    return operands[0]


_BINARY = frozenset("+-*/")


def _apply(operator: str, operands: list) -> None:
    """Replace the top one or two operands by the result of the operator. Whole numbers stay ints, which is faster."""
    right = operands.pop()
    if operator == "neg":
        operands.append(-right)
        return
    left = operands[-1]
    if operator == "+":
        operands[-1] = left + right
    elif operator == "-":
        operands[-1] = left - right
    elif operator == "*":
        operands[-1] = left * right
    else:
        whole, remainder = divmod(left, right)
        operands[-1] = Fraction(left, right) if remainder else whole
