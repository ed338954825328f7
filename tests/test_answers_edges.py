"""Edges of the rules that only a change of one constant or operator shows: names of rules, spans, brackets, zero powers."""

import pytest

from grpo_math.answers import extract


@pytest.mark.parametrize(
    ("text", "status", "rule"),
    [
        ("She has 9", "ok", "last number"),
        ("So 7 or 9", "hedged", "two values"),
        ("So 7 eggs = 9 / 0", "malformed", "no value"),
    ],
)
def test_rule_of_a_bare_number_is_named(text, status, rule):
    found = extract(text, allow_bare=True)
    assert (found.form, found.status, found.rule) == ("bare", status, rule)


@pytest.mark.parametrize(
    "text", ["<answer>so \\boxed{18}</answer>", "**\\boxed{18}**", "<answer>The answer is 18.</answer>"]
)
def test_span_of_a_marker_within_another_is_that_of_its_number(text):
    start, stop = extract(text).span
    assert text[start:stop] == "18"


def test_every_part_of_a_bracket_is_a_remark():
    assert extract("#### 9 (about eggs, 7)").value == 9
    assert extract("#### 9 (or 7)").status == "hedged"


def test_power_of_zero_is_one_unless_it_divides():
    assert extract("\\boxed{0^0}").value == 1
    assert extract("\\boxed{5 + 0^{-1}}").status == "malformed"


def test_equation_with_a_side_that_has_no_value_is_no_answer():
    for text in ("\\boxed{18 = 7/0}", "\\boxed{18 = step 7}", "#### 18 = 2 / (3 - 3)"):
        assert (extract(text).value, extract(text).status) == (None, "malformed"), text


ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
TO_99 = [*ONES, *TEENS, *(f"{ten}{one}" for ten in TENS for one in ["", *(f"-{one}" for one in ONES)])]


@pytest.mark.parametrize(
    ("words", "factor", "more"),
    [
        ("{}", 1, 0),
        ("{} hundred", 100, 0),
        ("two hundred and {}", 1, 200),
        ("{} thousand", 10**3, 0),
        ("one thousand {} hundred", 100, 10**3),
        ("one thousand two hundred {}", 1, 1200),
        ("{} million", 10**6, 0),
        ("{} billion", 10**9, 0),
    ],
)
def test_number_in_words_is_read_in_every_place(words, factor, more):
    for number, word in enumerate(TO_99, 1):
        assert extract(f"The answer is {words.format(word)}.").value == factor * number + more, word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\boxed{18} She needs butter. The answer is 9.", 18),  # "but"
        ("\\boxed{18} She sells the piano. The answer is 9.", 18),  # "no"
        ("18 orders \\boxed{20}", 20),  # "or"
        ("She pays 18 for \\boxed{20}", 20),
    ],
)
def test_words_count_only_as_whole_words(text, value):
    assert extract(text)[:2] == (value, "ok")
