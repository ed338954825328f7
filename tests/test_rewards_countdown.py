"""The Countdown rewards: which expression counts, and how much it earns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_texts import data_folder, read_jsonl, short_texts

from grpo_math.rewards import countdown_accuracy, countdown_proximity, get_countdown_accuracy, get_countdown_proximity


def test_countdown_reads_expressions_in_boxes_tags_and_after_hashes():
    completions = [
        "<answer>(3+5)*7</answer>",
        "so $\\boxed{(3+5) \\times 7}$",
        "#### (3+5)*7 = 56\n",
        "<answer>\\boxed{(3+5)*7}</answer>",
        "<answer>3+5+7</answer> no, that is 15. <answer>(3+5)*7</answer>",
        "<think><answer>3+5+7</answer></think><answer>(3+5)*7</answer>",
        "<answer>(3+5)*7</answer> no, better: <answer>3+5+7</answer>",
        "<answer>(3+5)*7</answer>\n<answer>3+5+7</answer>",
        "<answer>3+5+7 or (3+5)*7</answer>",
        "<think><answer>(3+5)*7</answer></think>",
        "<answer>(3+5)*7",
        "<answer>56</answer>",
        "<answer></answer>",
        "The answer is (3+5)*7.",
    ]
    columns = {"nums": [[3, 5, 7]] * len(completions), "target": [56] * len(completions)}
    assert countdown_accuracy(completions, **columns) == [1.0] * 6 + [0.0] * 8
    phrase = get_countdown_accuracy(forms=("phrase",))
    assert phrase(completions[-1:], nums=[[3, 5, 7]], target=[56]) == [1.0]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("#### Explanation", 1.0),
        ("#### 1. Explanation\nAdd, then multiply.", 1.0),
        ("#### 1) Explanation", 1.0),
        ("#### 1: Explanation", 1.0),
        ("#### **Explanation**", 1.0),
        ("#### _Explanation_", 1.0),
        ("#### Check: 3 + 5 = 8", 1.0),
        ("To check the answer: 8 * 7 = 56", 1.0),
        ("or <answer>3 + 5</answer>", 0.0),
        ("#### Expression: 3 + 5 + 8", 0.0),
        ("#### 3 + 5 + 7", 0.0),
        ("####", 0.0),
    ],
)
def test_heading_after_the_expression_does_not_replace_it(after, expected):
    completion = f"<answer>(3 + 5) * 7</answer>\n{after}"
    assert countdown_accuracy([completion], nums=[[3, 5, 7]], target=[56]) == [expected]
    assert get_countdown_accuracy(forms=("answer", "hash", "phrase", "a_colon"))(
        [completion], nums=[[3, 5, 7]], target=[56]
    ) == [expected]


def test_another_expression_is_no_heading():
    for word in "So Thus Hence Therefore The My Final Correct Expression Equation Answer Solution".split():  # noqa: SIM905
        completion = f"<answer>(3 + 5) * 7</answer>\n#### {word} 3 + 5 + 8"
        assert countdown_accuracy([completion], nums=[[3, 5, 7]], target=[56]) == [0.0], word


@pytest.mark.parametrize(
    "line",
    [
        "-5 + 17",
        "−5 + 17",
        "+17 - 5",
        "(17 - 5)",
        "[17 - 5]",
        "{17 - 5}",
        "$17 - 5$",
        "`17 - 5`",
        "**17 - 5**",
        "\\(17 - 5\\)",
    ],
)
def test_bare_expression_may_begin_with_a_symbol(line):
    assert get_countdown_accuracy(allow_bare=True)([f"So:\n{line}"], nums=[[17, 5]], target=[12]) == [1.0]


def test_countdown_reads_other_symbols_only_with_spellings():
    for spellings, expected in ((True, 1.0), (False, 0.0)):
        reward = get_countdown_accuracy(spellings=spellings, allow_bare=True)
        assert reward(["<answer>3×5</answer>", "3×5"], nums=[[3, 5]] * 2, target=[15] * 2) == [expected] * 2
        assert reward(["<answer>3*5</answer>", "3*5"], nums=[[3, 5]] * 2, target=[15] * 2) == [1.0] * 2


def test_countdown_subset_mode_allows_unused_numbers():
    for mode, expected in (("all", 0.0), ("subset", 1.0)):
        assert get_countdown_accuracy(mode=mode)(["<answer>3*5</answer>"], nums=[[3, 5, 7]], target=[15]) == [expected]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("17 - 5", 1.0),
        (" 17 - 5 = 12\n", 1.0),
        ("17 - 5\n\nProblem: use 3 4\nSolution: 3 + 4", 1.0),
        ("Let me see.\n5 - 17\nno, the other way round\n17 - 5", 1.0),
        ("17 - 5\n5 - 17", 0.0),
        ("5 - 17\n17 - 5", 0.0),
        ("17 - 5 or 5 - 17", 0.0),
        ("I think 17 - 5", 0.0),
        ("12", 0.0),
        ("<answer>17 + 5</answer>\n17 - 5", 0.0),
        ("<answer></answer>\n17 - 5", 0.0),
        ("", 0.0),
    ],
)
def test_bare_expression_counts_only_if_allowed(completion, expected):
    columns = {"nums": [[17, 5]], "target": [12]}
    assert countdown_accuracy([completion], **columns) == [0.0]
    assert get_countdown_accuracy(allow_bare=True)([completion], **columns) == [expected]


def test_proximity_grows_towards_the_target_and_is_zero_for_an_invalid_expression():
    completions = [f"<answer>{e}</answer>" for e in ("2*6", "2+6", "6-2", "2-6", "6/2", "12", "2**6")]
    scores = countdown_proximity(completions, nums=[[2, 6]] * 7, target=[12] * 7)
    assert scores[0] == 1.0
    assert 1 > scores[1] > scores[2] > scores[4] > scores[3] > 0
    assert scores[5:] == [0.0, 0.0]
    assert countdown_proximity(["<answer>6-6</answer>"], nums=[[6, 6]], target=[0]) == [1.0]
    assert get_countdown_proximity(allow_bare=True)(["6 - 6"], nums=[[6, 6]], target=[1]) == [0.5]


@given(st.lists(st.tuples(short_texts, st.lists(st.integers(0, 99), max_size=4), st.integers(-99, 99)), max_size=5))
def test_countdown_rewards_never_raise_and_lie_between_zero_and_one(rows):
    columns = {"nums": [n for _, n, _ in rows], "target": [t for *_, t in rows]}
    completions = [f"<answer>{c}</answer>" for c, *_ in rows]
    for reward in (countdown_accuracy, countdown_proximity, get_countdown_accuracy(allow_bare=True, mode="subset")):
        assert all(0.0 <= p <= 1.0 for p in reward(completions, **columns))


def test_countdown_accuracy_agrees_with_hand_labelled_cases():
    cases = [c for c in read_jsonl(data_folder("GRPO_MATH_HARD_CASES") / "countdown.jsonl") if not c.get("debatable")]
    scored = [
        (c, get_countdown_accuracy(mode=c["mode"])([c["completion"]], nums=[c["nums"]], target=[c["target"]])[0])
        for c in cases
    ]
    wrong = [(c["id"], p) for c, p in scored if p != c["label"]]
    assert len(wrong) <= 0.02 * len(cases), wrong
    assert not any(p for _, p in wrong), wrong
