"""Which number an answer is: spellings of one value, and values that are close to it."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_texts import MARKERS, value

from grpo_math.answers import extract

SPELLINGS = [
    # separators
    ("#### 2,345,678", 2345678),
    ("#### 2 345 678", 2345678),
    ("#### 2\u202f345\u202f678", 2345678),
    ("#### 2'345'678", 2345678),
    ("#### 2_345_678", 2345678),
    ("#### 23,45,678", 2345678),
    ("\\boxed{2{,}345{,}678}", 2345678),
    ("\\boxed{2\\,345\\,678}", 2345678),
    ("\\boxed{2,345,678.00}", 2345678),
    ("The answer is $2,345,678.50.", Fraction("2345678.5")),
    # currency
    ("The answer is €7.", 7),
    ("The answer is £7.50", Fraction(15, 2)),
    ("The answer is 7€.", 7),
    ("The answer is US$7.", 7),
    ("The answer is EUR 7.", 7),
    ("The answer is Rs. 7", 7),
    ("The answer is \\$7", 7),
    ("The answer is 7 cents.", 7),
    ("The answer is &euro;7.", 7),
    # units
    ("#### 7 square metres", 7),
    ("#### 7 m²", 7),
    ("#### 7 m^2", 7),
    ("#### 7 cm3", 7),
    ("#### 7km/h", 7),
    ("#### 7°", 7),
    ("#### 7 °C", 7),
    ("\\boxed{7^\\circ}", 7),
    ("\\boxed{7\\text{ km/h}}", 7),
    ("\\boxed{7 \\mathrm{~cm}^{2}}", 7),
    ("\\boxed{7 \\frac{\\text{km}}{\\text{h}}}", 7),
    ("<answer>7 eggs per day</answer>", 7),
    ("<answer>She makes $7</answer>", 7),
    ("The answer is 7 muffins, because the dog ate 3.", 7),
    ("The answer is 7 eggs in 2 days.", 7),
    # percent is a unit
    ("#### 7%", 7),
    ("\\boxed{7\\%}", 7),
    ("\\boxed{7 \\text{ percent}}", 7),
    # decimals
    ("#### 7.0", 7),
    ("#### 7.", 7),
    ("#### 007", 7),
    ("The answer is .25.", Fraction(1, 4)),
    ("The answer is 0.250", Fraction(1, 4)),
    ("#### 7e2", 700),
    ("\\boxed{7 \\times 10^{2}}", 700),
    ("\\boxed{7 \\cdot 10^2}", 700),
    ("\\boxed{7.5 × 10²}", 750),
    # fractions
    ("\\boxed{\\frac{3}{8}}", Fraction(3, 8)),
    ("\\boxed{\\dfrac38}", Fraction(3, 8)),
    ("\\boxed{-\\tfrac{3}{8}}", Fraction(-3, 8)),
    ("\\boxed{\\frac{-3}{8}}", Fraction(-3, 8)),
    ("\\boxed{\\frac{1,000}{8}}", 125),
    ("\\boxed{2\\frac{3}{8}}", Fraction(19, 8)),
    ("\\boxed{-2\\frac{3}{8}}", Fraction(-19, 8)),
    ("The answer is 2 3/8.", Fraction(19, 8)),
    ("The answer is 2⅜.", Fraction(19, 8)),
    ("The answer is 3/8 of a cake.", Fraction(3, 8)),
    ("The answer is ⅜.", Fraction(3, 8)),
    ("The answer is 3⁄8.", Fraction(3, 8)),
    ("The answer is 56/8.", 7),
    # signs
    ("#### -7", -7),
    ("#### −7", -7),
    ("#### –7", -7),
    ("#### +7", 7),
    ("The answer is -$7.", -7),
    ("The answer is $-7.", -7),
    ("The answer is minus 7.", -7),
    ("The answer is negative $7.", -7),
    ("\\boxed{-7}", -7),
    ("\\boxed{- 7}", -7),
    # words, other scripts
    ("The answer is seven.", 7),
    ("The answer is forty-two dollars.", 42),
    ("The answer is one hundred and five.", 105),
    ("The answer is two thousand three hundred.", 2300),
    ("The answer is 3.5 million.", 3500000),
    ("The answer is 2 dozen.", 24),
    ("#### ４２", 42),
    ("#### ٤٢", 42),
    ("#### 7\u200b", 7),
    ("#### 7\u00a0", 7),
    # arithmetic that is written out
    ("The answer is 9 * 2 = 18.", 18),
    ("The answer is 16 - 7 = 9 eggs.", 9),
    ("The answer is 9 eggs * 2 dollars = $18.", 18),
    ("<answer>20 - 4 = 16; 16 / 2 = 8</answer>", 8),
    ("\\boxed{x = 7}", 7),
    ("\\boxed{x=7\\text{ cm}}", 7),
    ("\\boxed{3 + 4 = 7}", 7),
    ("\\boxed{(3 + 4) \\times 2}", 14),
    ("#### 18 = 2 * 9", 18),
    ("A: $<<9*2=18>>18", 18),
]


@pytest.mark.parametrize(("text", "expected"), SPELLINGS)
def test_every_spelling_of_a_number_is_read_as_that_number(text, expected):
    assert extract(text)[:2] == (expected, "ok")


NEIGHBOURS = [
    ("#### 2,345", 2345678),
    ("The answer is 5 m^2.", 2),
    ("\\boxed{5 \\times 10^3}", 3),
    ("The answer is 2 3/8.", 8),
    ("The answer is 3/8.", 3),
    ("#### 9007199254740993", 9007199254740992),
    ("#### 7.0000000000000001", 7),
    ("#### 6.9999999999999999", 7),
    ("#### -7", 7),
    ("The answer is -$7.", 7),
    ("The answer is 23-18.", 18),
    ("\\boxed{3!}", 3),
    ("\\boxed{3^2}", 3),
    ("\\boxed{\\sqrt{7}}", 7),
    ("\\boxed{\\log 7}", 7),
    ("\\boxed{20 = 7}", 7),
    ("\\boxed{x \\ne 7}", 7),
    ("\\boxed{x > 7}", 7),
    ("\\boxed{\\frac{7}{0}}", 7),
    ("#### 7.1.2", 7),
    ("#### 7.100.200", 7),
    ("#### " + " " * 290 + "7." + "0" * 20 + "1", 7),
    ("#### 0x7", 7),
    ("#### 1,7", 17),
    ("#### 7:30", 7),
    ("#### 7e-999999999", 7),
    ("#### 7e999999999", 7),
    ("The answer is &#55;2.", 2),
    ("The answer is 2 hours and 30 minutes.", 30),
    ("The answer is 2 h 30 min.", 2),
    ("\\boxed{2 \\text{ hours } 30 \\text{ minutes}}", 2),
    ("The answer is 5 feet 7 inches.", 7),
    ("#### 7 ± 1", 7),
]


@pytest.mark.parametrize(("text", "wrong"), NEIGHBOURS)
def test_answer_is_never_read_as_a_different_number(text, wrong):
    assert value(text) != wrong


numbers = st.fractions(max_denominator=1000)


layouts = st.sampled_from(["{}", " {}", "{}\n", "{} ", "\t{}\n\n", "\n{}"])


@given(st.integers(-(10**30), 10**30), layouts, st.sampled_from(MARKERS))
def test_every_integer_is_read_exactly_in_any_layout(n, layout, marker):
    if "\n" in layout or "\t" in layout:
        text = layout.format(marker.format(n))
    else:
        text = marker.format(layout.format(n) if "**" not in marker else n)
    assert value(text) == n
    assert value(text.replace(str(n), f"{n:,}")) == n
    assert value(text.replace(str(n), f"{n}.00")) == n


@given(numbers)
def test_every_fraction_is_read_exactly(number):
    latex = f"{'-' if number < 0 else ''}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"
    assert value(f"\\boxed{{{latex}}}") == number
    assert value(f"#### {number.numerator}/{number.denominator}") == number


WHITE_SPACE = [chr(code) for code in range(0x10000) if re.fullmatch(r"\s", chr(code))]


@pytest.mark.parametrize("space", WHITE_SPACE, ids=ascii)
def test_any_white_space_before_an_exponent_reads_alike_and_never_raises(space):
    for power in (f"2^{space}{{5}}", f"2^{{{space}5}}", f"2^{space}5"):
        assert extract(f"\\boxed{{{power}}}").value == 32
