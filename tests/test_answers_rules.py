"""Every part of a rule changes the reading of one of these texts."""

from fractions import Fraction

import pytest
from reward_texts import value

from grpo_math.answers import extract

ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(n):
    """An integer from 1 to 999,999 in English, by the schoolbook."""
    if n >= 1000:
        return f"{in_words(n // 1000)} thousand" + (f" {in_words(n % 1000)}" if n % 1000 else "")
    if n >= 100:
        return f"{in_words(n // 100)} hundred" + (f" and {in_words(n % 100)}" if n % 100 else "")
    if n >= 20:
        return TENS[n // 10 - 2] + (f"-{in_words(n % 10)}" if n % 10 else "")
    return (ONES + TEENS)[n - 1]


def test_numbers_in_words_are_read_in_every_layout():
    for n in [*range(1, 1000, 7), *range(1, 100), *range(1013, 999_999, 7919), 20_000, 30_045]:
        words = in_words(n)
        for spelling in (words, words.replace("-", " "), words.replace(" and ", " "), words.title()):
            assert value(f"#### {spelling} dollars") == n, spelling
    assert value("#### zero") == 0
    assert value("#### two million, three hundred thousand and five") == 2_300_005
    assert value("#### one billion") == 10**9
    assert value("#### twenty thirty") is None
    assert value("#### sevenths") is None


@pytest.mark.parametrize(
    ("template", "parts", "expected"),
    [
        ("#### -{}18", "$ € £ ¥ ₹ US$ USD EUR Rs. \\$ &euro; &#36;", -18),
        ("#### 18{} * 2 = 36", "% \" ' ° € ✓ ✔ \\% ^\\circ", 36),
        ("#### {}18 * 2 = 36", "~ ≈ # ` _ \\approx \\sim \\left \\right \\displaystyle \\quad \\qquad", 36),
        ("\\boxed{{{}18}}", "< > ≠ ≤ ≥ ± \\ne \\pm \\sqrt", None),
        ("\\boxed{{9{}2}}", "* x X × ⋅ · ∗ \\times \\cdot \\ast", 18),
        ("\\boxed{{36{}2}}", "/ ÷ ∕ ⁄ \\div", 18),
        ("\\boxed{{20{}2}}", "- − ‐ ‑ – — ﹣ －", 18),
        ("\\boxed{{\\{}{{36}}{{2}}}}", "frac dfrac tfrac cfrac", 18),
        ("\\boxed{{\\{}{{18 eggs}}}}", "text textbf textit textrm mathrm mathbf mathit mathsf mbox hbox", 18),
        ("\\boxed{{-\\{}{{\\$}}18}}", "boldsymbol underline emph text textbf textit textrm mathrm mathbf mathsf", -18),
        ("\\boxed{{1{}450}}", ", {,} ,\\! {,}\\! \\, _ '", 1450),
        ("#### 7{}2", "e e+ E", 700),
        ("#### 4 {} 8", "; | : & , or and", None),
    ],
)
def test_each_symbol_has_its_meaning(template, parts, expected):
    for part in parts.split():
        assert value(template.format(part)) == expected, part


@pytest.mark.parametrize("n", range(10))
def test_each_superscript_is_a_power(n):
    assert value(f"\\boxed{{2{'⁰¹²³⁴⁵⁶⁷⁸⁹'[n]}}}") == 2**n


def test_each_vulgar_fraction_is_its_value():
    overs, unders = (1, 1, 2, 1, 3, 1, 5, 1, 7, 1), (2, 3, 3, 4, 4, 5, 6, 8, 8, 10)
    for fraction, over, under in zip("½⅓⅔¼¾⅕⅚⅛⅞⅒", overs, unders, strict=True):
        assert value(f"#### {fraction}") == Fraction(over, under)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # numbers
        ("#### 700e-2", 7),
        ("\\boxed{700 \\times 10^{-2}}", 7),
        ("\\boxed{700 \\times 10^-2}", 7),
        ("\\boxed{7 \\times 10^ { 2 }}", 700),
        ("\\boxed{9 x (1 + 1)}", 18),
        ("#### 9 x $2 = $18", 18),
        ("\\boxed{[3 + 4] * 2}", 14),
        ("\\boxed{{(3 + 4)} * 2}", 14),
        ("#### Loss: -18", -18),
        ("#### 18? 20 eggs are left", 18),
        ("#### 18... 20 eggs are left", 18),
        ("#### Step **9**", None),
        ("<answer>abc123</answer>", None),
        ("<answer>x8</answer>", None),
        ("#### 1,2345", None),
        ("\\boxed{1\\,2345}", None),
        ("\\boxed{x\\,450}", 450),
        ("\\boxed{\\cancel{20} 18}", 18),
        ("#### <b>18</b>", 18),
        ("#### <span style='x'>18</span><br>", 18),
        ("#### -<<16-34=-18>>18", -18),
        ("\\boxed{18 \\frac{km}{h}}", 18),
        ("\\boxed{\\frac{\\$36}{2}}", 18),
        ("\\boxed{18\\ldots}", 18),
        ("#### 18 K", 18),
        ("#### 18\nFirst the eggs.\nThen the price.\nThen the sum.\n20", 18),
        ("<answer>16 - 7 = 9 and 9 * 2 = 18</answer>", 18),
        # words
        ("\\boxed{7}, or so the answer is 9", None),
    ],
)
def test_part_of_a_rule_has_its_example(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        ("The answer is 7, or {} answer is 9.", "the my final correct", None),
        ("\\boxed{{7}}. So {} \\boxed{{9}}", "it is that the answer result", None),
        ("<answer>{} 18</answer>", "not never cannot without", None),
        ("The answer is 18. {} it is 20.", "or maybe perhaps possibly alternatively", None),
    ],
)
def test_each_word_between_markers_has_its_meaning(template, words, expected):
    for word in words.split():
        assert value(template.format(word)) == expected, word


def test_hedge_replaces_an_earlier_answer():
    assert extract("The answer is 18.\nNo.\nThe answer is either 18 or 20.").status == "hedged"
