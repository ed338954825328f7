"""Splits the content of a marker into tokens: numbers in any spelling, operators, words and punctuation."""

import html
import re
import unicodedata
from fractions import Fraction

# Longer numbers and larger exponents have no value, which bounds time and memory.
_MAX_DIGITS = 250
_MAX_EXPONENT = 400

_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORD_VALUES = {
    "zero": 0,
    **{word: n for n, word in enumerate(_ONES, 1)},
    **{word: n for n, word in enumerate(_TEENS, 10)},
    **{word: 10 * n for n, word in enumerate(_TENS, 2)},
}
MAGNITUDES = {
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
    """A translation table of other scripts' digits, letters and signs to ASCII, one character to one character."""

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

_OPERATORS = {
    **dict.fromkeys(("×", "⋅", "·", "∗", "x", "\\times", "\\cdot", "\\ast"), "*"),
    **dict.fromkeys(("÷", "∕", "⁄", "\\div"), "/"),
    **_DASHES,
}

Token = tuple[str, object, int, int]  # kind, value, start, stop


def tokenise(text: str, start: int, stop: int, closed: bool) -> list[Token]:
    """Split `text[start:stop]` into tokens; layout and markup are dropped.

    Args:
        text (`str`):
            A text without its thinking.
        start, stop (`int`):
            The part to split. The offsets of the tokens count from the beginning of `text`.
        closed (`bool`):
            Whether the part is the content of a box or tag, where `!` is a factorial and no end of a sentence.
    """
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
        if kind == "annotation":  # GSM8K's calculator annotation <<9*2=18>> is not part of the sentence
            annotation = match
            continue
        if kind == "entity":
            char = html.unescape(found)
            if not char or char.isspace() or unicodedata.category(char[0]) == "Sc":  # &#1; encodes no character
                continue
            kind, value = ("op", char) if char in "-+*/×÷−–" else ("relation" if char.isalnum() else "other", char)
        if kind == "number":
            value = parse_number(found)
        elif kind == "fraction":
            over, under = unicodedata.normalize("NFKC", found).split("\u2044")
            value = Fraction(int(over), int(under or 10))
        elif kind == "words":
            kind, value = "number", _parse_number_words(found)
        elif kind == "word":
            value = found.lower()
            if tokens and tokens[-1][0] == "number" and tokens[-1][3] == start + match.start():
                value = _SUFFIXES.get(found, value)
        elif kind == "relation" and found[0] == "!" and not closed:
            kind = "sentence"  # "The answer is 18!" is not a factorial
        elif kind == "op":
            value = _OPERATORS.get(found.lower(), found)
        elif kind == "power":
            digits = _AROUND_EXPONENT.sub("", found)
            value = int(unicodedata.normalize("NFKC", digits)) if len(digits) < 5 else _MAX_EXPONENT + 1
        tokens.append((kind, value, start + match.start(), start + match.end()))
    if annotation is not None and not any(token[0] == "number" for token in tokens):
        inside = annotation.group()[2:-2].rpartition("=")[2]
        if inside.strip().isdecimal() and len(inside) < _MAX_DIGITS:
            tokens.append(("number", int(inside), start + annotation.start(), start + annotation.end()))
            tokens.sort(key=lambda token: token[2])
    return tokens


_SEPARATORS = re.compile(r"[^\d.]")
_AROUND_EXPONENT = re.compile(r"[\s^{}]")


def parse_number(found: str) -> int | Fraction | None:
    """Return the value of a number as written, or `None` above `_MAX_DIGITS` digits or `_MAX_EXPONENT`."""
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


def _parse_number_words(found: str) -> int:
    """Return the value of a number in words: "two thousand three hundred and five"."""
    total = current = 0
    for word in re.findall(r"[a-z]+", found.lower()):
        if word == "hundred":
            current *= 100
        elif word in MAGNITUDES:
            total, current = total + current * MAGNITUDES[word], 0
        else:
            current += _WORD_VALUES.get(word, 0)  # "and" adds nothing
    return total + current
