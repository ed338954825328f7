"""The GSM8K rewards: gold answers, exact match, hand-labelled cases and GSM8K's own solutions."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_texts import data_folder, read_jsonl, short_texts

from grpo_math.rewards import (
    get_gsm8k_accuracy,
    get_gsm8k_exact_match,
    gold_value,
    gsm8k_accuracy,
    gsm8k_exact_match,
    normalise,
)


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("18", 18),
        (18, 18),
        (18.5, Fraction(37, 2)),
        ("1,450", 1450),
        ("9 * 2 = $<<9*2=18>>18.\n#### 18", 18),
        ("#### -1,450", -1450),
        ("$\\frac{3}{4}$", Fraction(3, 4)),
        ("so \\boxed{7}", 7),
        ("", None),
        (None, None),
        ("none", None),
        (float("nan"), None),
        ("18 or 20", None),
    ],
)
def test_gold_answers_are_numbers_texts_or_raw_solutions(gold, expected):
    assert gold_value(gold) == expected
    rewarded = gsm8k_accuracy(["#### 18"], answer=[gold])
    assert rewarded == ([None] if expected is None else [1.0 if expected == 18 else 0.0])


def test_solution_column_replaces_a_missing_answer_column():
    assert gsm8k_accuracy(["#### 18", "#### 9"], solution=["#### 18", "#### 18"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="gsm8k_accuracy needs a column `answer` or `solution`"):
        gsm8k_accuracy(["#### 18"])


def test_exact_match_compares_strings_and_accuracy_compares_values():
    completions = [
        "#### 18",
        "#### $18.",
        "#### 18.0",
        "The answer is **18** eggs",
        "#### 1,800",
        "#### 18 or 20",
        "18",
    ]
    golds = ["18", "18", "18", "#### 18", "1800", "18", "18"]
    assert gsm8k_exact_match(completions, answer=golds) == [1, 1, 0, 1, 1, 0, 0]
    assert gsm8k_accuracy(completions, answer=golds) == [1, 1, 1, 1, 1, 0, 0]
    assert get_gsm8k_exact_match(allow_bare=True)(["18"], answer=["18"]) == [1.0]
    assert normalise(" \\$1,450.") == "1450"


def test_without_any_form_only_a_bare_answer_counts():
    reward = get_gsm8k_accuracy(forms=(), allow_bare=True)
    assert reward(completions=["so 18", "so #### 18 of 20"], answer=["18", "18"]) == [1.0, 0.0]


@given(st.lists(st.tuples(short_texts, st.one_of(short_texts, st.integers(), st.none())), max_size=5))
def test_gsm8k_rewards_never_raise_and_are_zero_one_or_none(rows):
    completions, golds = [c for c, _ in rows], [g for _, g in rows]
    for reward in (gsm8k_accuracy, gsm8k_exact_match, get_gsm8k_accuracy(allow_bare=True)):
        paid = reward(completions, answer=golds)
        assert len(paid) == len(rows)
        assert all(p in (0.0, 1.0, None) for p in paid)


@given(short_texts, st.integers(0, 99), st.integers(0, 99))
def test_gold_number_in_the_prose_does_not_reward_a_wrong_answer(prose, gold, stated):
    prose = "".join(c for c in prose if c.isalpha() or c in " .\n").replace("A", "a")
    text = f"{prose} {gold} {prose}\n#### {stated}\nI also thought of {gold} for a while."
    assert gsm8k_accuracy([text], answer=[str(gold)]) == [1.0 if gold == stated else 0.0]


def test_gsm8k_accuracy_agrees_with_hand_labelled_cases():
    cases = [c for c in read_jsonl(data_folder("GRPO_MATH_HARD_CASES") / "gsm8k.jsonl") if not c.get("debatable")]
    paid = gsm8k_accuracy([c["completion"] for c in cases], answer=[c["gold"] for c in cases])
    wrong = [(c["id"], p) for c, p in zip(cases, paid, strict=True) if p != c["label"]]
    assert len(wrong) <= 0.03 * len(cases), wrong
    assert sum(p for _, p in wrong) <= 1, wrong


def test_gold_solutions_of_gsm8k_are_rewarded_only_for_their_own_answer():
    solutions = [row["answer"] for row in read_jsonl(data_folder("GRPO_MATH_GSM8K") / "test.jsonl")]
    assert set(gsm8k_accuracy(solutions, answer=solutions)) == {1.0}
    shuffled = random.Random(0).sample(solutions, len(solutions))
    same = [gold_value(a) == gold_value(b) for a, b in zip(solutions, shuffled, strict=True)]
    assert gsm8k_accuracy(solutions, answer=shuffled) == [1.0 if s else 0.0 for s in same]
