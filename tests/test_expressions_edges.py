"""Countdown expressions at the edges: escaped symbols, nested braces, decoration on one side only, lengths at the limit."""

from fractions import Fraction

import pytest

from grpo_math.expressions import evaluate, exact_value, infix_value

READ = [
    # digits of other scripts
    ("١+٢", [1, 2], 3),
    ("２×٦", [2, 6], 12),
    # escaped symbols
    (r"\{2+6\}*9", [2, 6, 9], 72),
    (r"\$2+6\$", [2, 6], 8),
    (r"2 \* 6", [2, 6], 12),
    (r"2\,+\;6", [2, 6], 8),
    # braces within fractions and boxes
    (r"\frac{(2+{6})}{9}", [2, 6, 9], Fraction(8, 9)),
    (r"\dfrac{{2}+6}{{9}}", [2, 6, 9], Fraction(8, 9)),
    (r"\mathbf{2}+6", [2, 6], 8),
    (r"\text{2}+\frac{6}{9}", [2, 6, 9], Fraction(8, 3)),
    # decoration
    ("2+6。", [2, 6], 8),
    ("$2+6.$", [2, 6], 8),
    ("$2+6$.", [2, 6], 8),
    ("“2+6”", [2, 6], 8),
    ("the answer is 2+6", [2, 6], 8),
    (" Expression: 2+6", [2, 6], 8),
    ("[2+6] == 8", [2, 6], 8),
    ("2+6=+8", [2, 6], 8),
]


@pytest.mark.parametrize(("expr", "nums", "expected"), READ)
def test_another_spelling_has_the_same_value(expr, nums, expected):
    assert evaluate(expr, nums) == (expected, "ok")


MALFORMED = [
    *(r"2\%6", r"2\&6", "X2+6", "2+6X", "x2+6"),
    *("**2+6", "2+6**", "answer: answer: 2+6"),
    *("2}+{6", "2+6}", r"\boxed{2}\times{6}", r"\times}2{6", r"\text{2}6}", r"\frac{2}6", r"\mathbf{2}{6}"),
    *("2+6=+-8", "2+6=X8", "= 2+6", "2+6=8+1"),
]


@pytest.mark.parametrize("expr", MALFORMED)
def test_what_is_no_other_spelling_is_malformed(expr):
    assert evaluate(expr, [2, 6]) == (None, "malformed")


def test_text_that_names_no_number_and_a_second_claim_are_malformed():
    for expr in ("two + six", "()", "2+6=8=8", "a=b"):
        assert evaluate(expr, [2, 6]).status == "malformed"
        assert evaluate(expr, [2, 6], spellings=False).status == "malformed"


def test_an_expression_may_have_ten_thousand_characters_and_no_more():
    assert evaluate("2+6" + " " * 9_997, [2, 6]) == (8, "ok")
    assert evaluate("2+6" + " " * 9_998, [2, 6]) == (None, "malformed")


def test_a_number_may_have_eighteen_digits_and_no_more():
    longest = 10**18 - 1
    assert evaluate(f"{longest}+0={longest}", [longest, 0]) == (longest, "ok")
    assert evaluate(f"{longest}+0=1{longest}", [longest, 0]) == (None, "malformed")
    assert evaluate(f"{longest + 1}+0", [longest + 1, 0]) == (None, "numbers")


def test_a_whole_quotient_stays_an_int():
    assert exact_value("9/3", [9, 3], "all") == (3, "ok")
    assert type(exact_value("9/3", [9, 3], "all")[0]) is int
    assert type(infix_value([9, "/", 2])) is Fraction
    assert exact_value("9×3", [9, 3], "all") == (27, "ok")  # other spellings count unless they are excluded
