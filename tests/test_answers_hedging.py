"""Two different values side by side are a hedge; a retracted draft is not."""

import pytest
from reward_texts import MARKERS, value

from grpo_math.answers import extract

ALTERNATIVES = [
    "{a} or {b}",
    "{a} and {b}",
    "{a}, {b}",
    "{a}; {b}",
    "{a} / {b} / 1",
    "{a} | {b}",
    "{a} {b}",
    "{a}\n{b}",
    "{a} to {b}",
    "{a}-{b}",
    "{a}–{b}",
    "either {a} or {b}",
    "between {a} and {b}",
    "{a} eggs or {b} eggs",
    "{a} or maybe {b}",
    "{a} (or {b})",
    "{a}, or {b}",
    "{a} or {b} or 11",
    "x = {a} or x = {b}",
    "x = {a}, y = {b}",
]


@pytest.mark.parametrize("alternatives", ALTERNATIVES)
@pytest.mark.parametrize("marker", ["<answer>{}</answer>", "\\boxed{{{}}}"])
def test_two_values_in_one_marker_are_a_hedge(alternatives, marker):
    text = marker.format(alternatives.format(a=7, b=9))
    assert value(text) not in (7, 9)
    is_arithmetic = any(operator in alternatives for operator in ("/", "-", "–"))
    assert extract(text).status in ("hedged", "malformed") or is_arithmetic


@pytest.mark.parametrize(
    "alternatives", [a for a in ALTERNATIVES if "\n" not in a and "/" not in a and "either" not in a]
)
@pytest.mark.parametrize("marker", ["#### {}", "The answer is {}.", "A: {}", "**{}**"])
def test_two_values_after_a_marker_are_a_hedge(alternatives, marker):
    assert value(marker.format(alternatives.format(a=7, b=9))) not in (7, 9)


@pytest.mark.parametrize("joint", [" or ", "\n", " ", ", ", " and ", "\nor\n", " or maybe ", ". ", " / "])
@pytest.mark.parametrize("marker", MARKERS)
def test_two_markers_side_by_side_are_a_hedge_unless_they_agree(marker, joint):
    text = "So " + marker.format(7) + joint + marker.format(9)
    assert extract(text).status == "hedged"
    same = "So " + marker.format(7) + joint + marker.format("7.0")
    assert value(same) == 7


@pytest.mark.parametrize("marker", MARKERS)
def test_retracted_draft_is_no_hedge(marker):
    text = marker.format(7) + "\nWait, that is not right: I forgot the muffins.\n" + marker.format(9)
    assert value(text) == 9


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("joint", ["\n", " ", ", ", " or "])
def test_list_of_guesses_is_a_hedge(marker, joint):
    assert extract(joint.join(marker.format(n) for n in range(61))).status == "hedged"


@pytest.mark.parametrize(
    "text", ["7 or \\boxed{9}", "either \\boxed{9} or 7", "\\boxed{9} or 7", "#### 9\n7", "#### 9\nor 7"]
)
def test_value_without_a_marker_beside_a_marker_is_a_hedge(text):
    assert extract(text).status == "hedged"


def test_markers_of_different_forms_side_by_side_are_a_hedge():
    assert extract("\\boxed{7}\n#### 9").status == "hedged"
    assert extract("The answer is 7.\n\\boxed{9}").status == "hedged"
