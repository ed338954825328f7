"""Splits the content of a marker into tokens: numbers in any spelling, operators, words and punctuation.

Layout is replaced by as many spaces first, so that the offsets of the tokens stay those of the text.
"""

import html
import re
import unicodedata
from fractions import Fraction

from grpo_math.expressions import OPERATORS, ascii_digits

_MAX_DIGITS = 250  # longer numbers have no value, which bounds time and memory

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD_VALUES = dict(zip([*_ONES, *_TEENS, *_TENS], [*range(1, 20), *range(20, 100, 10)], strict=True))
MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "dozen": 12}
_SUFFIXES = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}  # directly after a number: $1.8M
_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES)}))?|{'|'.join(_TEENS + _ONES)})"
_TO_999 = rf"{_TO_99}(?:\shundred(?:\s(?:and\s)?{_TO_99})?)?"
_NUMBER_WORDS = rf"(?:zero|{_TO_999}(?:\s(?:thousand|million|billion),?(?:\s(?:and\s)?{_TO_999})?){{0,3}})\b"

# Characters that no branch matches are layout: white space, quotes, `$`, `%`.
_TOKEN = re.compile(
    rf"""
    (?P<end> \s*\n\s* | \.+(?!\d) | [?!] )
  | (?P<skip> \bUS[$] | \b(?:USD|EUR|Rs)(?![a-z])\.? | (?<!\d)\*\* )
  | (?P<number>
      (?: [1-9]\d{{0,2}}(?P<sep>,|'|[ ])\d{{3}}(?:(?P=sep)\d{{3}})*(?!\d) | [1-9]\d{{0,2}}(?:_+\d{{3}})+
        | [1-9]\d?(?:,\d\d)+,\d{{3}} | \d+ )
      (?:\.\d+)? (?:e[+-]?\d{{1,2}})? | \.\d+ )
  | (?P<fraction> [¼-¾⅐-⅞] )
  | (?P<power> \^\s?(?:\{{\s?-?\d{{1,3}}\s?\}}|-?\d{{1,3}}) | [⁰¹²³⁴-⁹]+ )
  | (?P<frac> \\[dtc]?frac )
  | (?P<op> [-+*/] | (?<=[\d\s])x(?=\s?[\d($]) )
  | (?P<relation> [<>≠≤≥±^\\]+ )
  | (?P<equals> = )
  | (?P<open> [(\[{{] ) | (?P<close> [)\]}}] )
  | (?P<comma> [,;:|] )
  | (?P<words> {_NUMBER_WORDS} )
  | (?P<word> [^\W\d_]+(?:'[^\W\d_]+)*(?:\d(?!\d))? )
    """,
    re.X | re.I,
)

_TO_ASCII = str.maketrans(
    {
        **OPERATORS,
        **dict.fromkeys("\u00a0\u2009\u202f\u200b\u200c\u200d\u2060\ufeff", " "),
        "—": "-",
        "。": ".",
        "：": ":",
    }
)

# What is replaced by its meaning, or by spaces without a named group.
_LAYOUT = re.compile(
    r"""
    ~~[^~]{0,80}~~ | \\cancel\{[^{}]{0,80}\}  # struck out
  | </?[a-z][^<>]{0,60}> | <\|[^<>]{0,40}\|> | <<[^<>]{0,120}>>  # HTML tags, chat tokens, GSM8K's <<9*2=18>>
  | (?P<entity> &(?:\#\d{1,6}|[a-z]{2,8}); )
  | (?<=\n)\ {0,8}\d{1,2}[.)](?=\ +\S)  # the number of a list
  | _\{[^{}]{0,20}\}  # a subscript
  | (?P<separator> \{,\}(?:\\!)? | ,\\! | \\, )
  | \\(?: (?P<times>times|cdot|ast) | (?P<over>div) | left|right|displaystyle|q?quad|approx|sim|l?dots|checkmark
        | [dtc]?frac(?!\s*(?:\{[-\s$\\]*\d|\d)) | [;:!\ ()\[\]$%&\#_] )
  | \^\s?\{?\s?\\?circ\s?\}?
    """,
    re.X | re.I,
)
_TEXT_GROUP = re.compile(
    r"(\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|boldsymbol|[mh]box|underline|emph)\s*\{)([^{}]*)\}"
)

Token = tuple[str, object, int, int]  # kind, value, start, stop


def without_layout(piece: str) -> str:
    """Replace struck-out text, tags, entities and LaTeX layout in a text by as many spaces."""
    piece = _LAYOUT.sub(_meaning, _plain(piece))
    for _ in range(4):  # nested groups
        piece = _TEXT_GROUP.sub(lambda match: " " * len(match[1]) + match[2] + " ", piece)
    return piece


def _plain(piece: str) -> str:
    """Replace other scripts' digits, signs and spaces by ASCII, one character by one character."""
    return ascii_digits(piece.translate(_TO_ASCII))


def _meaning(layout: re.Match) -> str:
    kind, found = layout.lastgroup, layout.group()
    if kind == "separator":
        return "_" * len(found)
    sign = _plain(html.unescape(found)[:1]) if kind == "entity" else {"times": "*", "over": "/"}.get(kind, " ")
    return sign.ljust(len(found))


def tokenise(text: str, start: int, stop: int, most_ends: int | None = None) -> list[Token]:
    """Split `text[start:stop]` into tokens without layout and markup.

    Args:
        text (`str`):
            A text without its thinking.
        start, stop (`int`):
            The part to split. The offsets of the tokens count from the beginning of `text`.
        most_ends (`int`, *optional*):
            Stop at this many ends of sentences or lines. Without it, `!` is a factorial.
    """
    tokens: list[Token] = []
    ends = 0
    for match in _TOKEN.finditer(without_layout(text[start:stop])):
        kind, found = match.lastgroup, match.group()
        value: object = found
        if kind == "skip":
            continue
        if kind == "number":
            value = parse_number(found)
        elif kind == "word":
            value = found.lower()
            if tokens and tokens[-1][3] == start + match.start():
                value = _SUFFIXES.get(found, value)
        elif kind == "op":
            value = "*" if found in "xX" else found
        elif kind == "end":
            ends += 1
            kind = "relation" if found == "!" and most_ends is None else kind
        elif kind == "fraction":
            value = Fraction(*map(int, unicodedata.normalize("NFKC", found).split("\u2044")))
        elif kind == "words":
            kind, value = "number", _parse_number_words(found)
        elif kind == "power":
            value = int(unicodedata.normalize("NFKC", re.sub(r"[\s^{}]", "", found))[:4])
        tokens.append((kind, value, start + match.start(), start + match.end()))
        if ends == most_ends:
            break
    return tokens


_SEPARATORS = re.compile(r"[^\d.]")


def parse_number(found: str) -> int | Fraction | None:
    """Return the value of a number as written, or `None` above `_MAX_DIGITS` digits."""
    mantissa, _, exponent = found.lower().partition("e")
    digits = _SEPARATORS.sub("", mantissa)
    if len(digits) > _MAX_DIGITS:
        return None
    value = Fraction(digits) if "." in digits else int(digits)
    return value * Fraction(10) ** int(exponent) if exponent else value


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
