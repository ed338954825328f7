"""Which statement of a completion is its final answer."""

import pickle
import re
from fractions import Fraction

import pytest
from reward_texts import value

from grpo_math.answers import NOTHING, extract

FINAL = [
    # every form
    ("so \\boxed{7}", 7, "boxed"),
    ("so \\fbox{7}", 7, "boxed"),
    ("so $\\boxed{7}$.", 7, "boxed"),
    ("so \\boxed 7", 7, "boxed"),
    ("so <answer>7</answer>", 7, "answer"),
    ("so <ANSWER> 7 </ANSWER>", 7, "answer"),
    ("so\n#### 7", 7, "hash"),
    ("so\n####7", 7, "hash"),
    ("so the answer is 7", 7, "phrase"),
    ("So the final answer is: **7**.", 7, "phrase"),
    ("The answer is:\n\n$$7$$", 7, "phrase"),
    ("The answer to the question is \\(7\\).", 7, "phrase"),
    ("The correct answer would be 7.", 7, "phrase"),
    ("Final Answer: The final answer is $7$. I hope it is correct.", 7, "phrase"),
    ("So.\nA: 7", 7, "a_colon"),
    ("**Answer:** 7", 7, "a_colon"),
    ("**Answer**: 7", 7, "a_colon"),
    ("### Final Answer\n7", 7, "a_colon"),
    ("### Final Answer\n\n**7 eggs**", 7, "a_colon"),
    ("Answer (in dollars): 7", 7, "a_colon"),
    ('{"steps": 3, "answer": 7}', 7, "a_colon"),
    ('{"final_answer": "7", "confidence": 0.9}', 7, "a_colon"),
    ("Respuesta: 7", 7, "a_colon"),
    ("La réponse est 7.", 7, "phrase"),
    ("Die Antwort ist 7.", 7, "phrase"),
    ("答案是7。", 7, "phrase"),
    ("정답: 7", 7, "a_colon"),
    ("So it is **7**.", 7, "bold"),
    ("So it is __7 eggs__.", 7, "bold"),
    ("So it is <strong>7</strong>", 7, "bold"),
    ("So:\n## 7", 7, "bold"),
    ("So:\n```text\n7\n```", 7, "bold"),
    ("| a | 3 |\n| Total | 7 |\n", 7, "bold"),
    # the last marker, whatever its form
    ("#### 9\nWait, I forgot one. The answer is 7.", 7, "phrase"),
    ("The answer is 9. Hmm, once more: \\boxed{7}", 7, "boxed"),
    ("\\boxed{9} is what I thought, but it is wrong.\n#### 7", 7, "hash"),
    ("<answer>9</answer> no, I was wrong <answer>7</answer>", 7, "answer"),
    ("e.g. \\boxed{9} is how to write it. We get \\boxed{7}", 7, "boxed"),
    ("The answer must be in \\boxed{}. So \\boxed{7}", 7, "boxed"),
    # markers in markers
    ("<answer>\\boxed{7}</answer>", 7, "answer"),
    ("<answer>3 + 4 = 7, so the answer is 7.</answer>", 7, "answer"),
    ("#### \\boxed{7}", 7, "boxed"),
    ("The answer is **\\boxed{7}**", 7, "boxed"),
    ("\\boxed{\\boxed{7}}", 7, "boxed"),
    # explicit markers before bold
    ("**7** eggs and **9** more.\n#### 16\n**Done** in **2** steps", 16, "hash"),
    ("**Step 1:** 3\n**Step 2:** 4\nso **7** eggs\n**Note**", 7, "bold"),
    ("so **7** eggs by **Step 2**.", 7, "bold"),
    # what follows does not count
    ("#### 7\nThis took 3 steps.", 7, "hash"),
    ("#### 7\n\n(Not 9, as one may think.)", 7, "hash"),
    ("The answer is 7, not 9.", 7, "phrase"),
    ("The answer is 7 (seven).", 7, "phrase"),
    ("The answer is 7 eggs. " + "1 2 3 4 5 6 7 8 9 " * 40, 7, "phrase"),
    ("One can see that the answer is 7.", 7, "phrase"),
    ("The answer is 7 (that is 9 - 2).", 7, "phrase"),
    ("<answer>7</answer> although 9 is possible", 7, "answer"),
    ("#### 7\n#### Explanation\nIt took 2 steps.", 7, "hash"),
    ("#### 7\nThe answer is easy to check.", 7, "hash"),
    ("#### 7\nSome people say that the answer is 9.", 7, "hash"),
    ("#### 7\nIt would be wrong to say that the answer is 9.", 7, "hash"),
    ("#### 7\nThe answer is not 9.", 7, "hash"),
    ("#### 7\n\nQuestion: How many are 4 + 5?\n#### 9", 7, "hash"),
    ("Question: How many?\nAnswer: 3 + 4 make 7.\n#### 7", 7, "hash"),
    ("#### 7<|im_end|>", 7, "hash"),
    ("Answer: ~~9~~ 7", 7, "a_colon"),
    ("\\boxed{\\cancel{9} 7}", 7, "boxed"),
    # thinking
    ("<think>#### 9</think>\n#### 7", 7, "hash"),
    ("#### 9 or so</think>The answer is 7.", 7, "phrase"),
    ("<think>\\boxed{9}</think><answer>7</answer>", 7, "answer"),
    ("<think>a <think> b</think> c</think>\n#### 7", 7, "hash"),
]


@pytest.mark.parametrize(("text", "expected", "form"), FINAL)
def test_the_last_statement_outside_thinking_is_the_answer(text, expected, form):
    found = extract(text)
    assert (found.value, found.form) == (expected, form)


NO_MARKER = [
    "",
    "   \n",
    "7",
    "None",
    "nan",
    "She has 7 eggs.",
    "Step 7",
    "**Step 7**",
    "**7. Count the eggs**",
    "#### Step 7\nCount.",
    "A: the dog\nB: 7",
    "There is 1 answer here.",
    "The answer is found by adding 3 and 4.",
    "<think>#### 7</think>\nI do not know.",
    "<think>The answer is 7.",
    "The answer is 7.</think>",
]


@pytest.mark.parametrize("text", NO_MARKER)
def test_text_without_a_marker_has_no_answer(text):
    assert extract(text) == NOTHING


EMPTY = [
    "#### 7\nWait.\n####",
    "####\n7",
    "#### -",
    "#### .",
    "#### inf",
    "#### nan",
    "#### unknown",
    "#### 7 + the rest",
    "**7**\nNo.\n**3 + the rest**",
    "**7**\nNo.\n**0." + "3" * 400 + "**",
    "A:\n7",
    "A: \nNote: 7 is mentioned.",
    "\\boxed{}",
    "\\boxed{7} no: \\boxed{}",
    "\\boxed{\\infty}",
    "\\boxed{7",
    "\\boxed{?}",
    "<answer></answer>",
    "<answer>7",
    "<answer>7</answer> so <answer> </answer>",
    "The answer is .",
    "The answer is unknown.",
    "\\boxed{10^{10^{10}}}",
    "\\boxed{1000000000!}",
]


@pytest.mark.parametrize("allow_bare", [False, True])
@pytest.mark.parametrize("text", EMPTY)
def test_empty_or_malformed_last_marker_is_not_replaced_by_another_number(text, allow_bare):
    found = extract(text, allow_bare=allow_bare)
    assert (found.value, found.status) == (None, "malformed")


BARE = [
    ("9 * 2 = 18", 18),
    ("18, 18.0", 18),
    ("so she makes $1,450.50 a day.", Fraction("1450.5")),
    ("it is -7", -7),
    ("it is 3/4 of it", Fraction(3, 4)),
    ("18 m^2 in all", 18),
    ("16 - 7 = 9 eggs. 9 * 2 = 18 dollars.", 18),
    ("9 * 2 = 18\n\nProblem: 4 + 5\nSolution: 9", 18),
]


@pytest.mark.parametrize(("text", "expected"), BARE)
def test_bare_last_number_counts_only_if_allowed(text, expected):
    assert extract(text).status == "none"
    found = extract(text, allow_bare=True)
    assert (found.value, found.form) == (expected, "bare")


@pytest.mark.parametrize("text", ["Step 7", "so 7 or 9", "7, 8, 9", "7/0", "none", "Question 7"])
def test_bare_step_number_or_hedge_is_no_answer(text):
    assert value(text, allow_bare=True) is None


def test_only_requested_forms_are_read():
    text = "#### 7\nthat is \\boxed{9}"
    assert value(text, forms=("hash",)) == 7
    assert value(text, forms=("boxed",)) == 9
    assert extract(text, forms=("answer",)).status == "none"
    with pytest.raises(ValueError, match="unknown answer form 'box'; the forms are boxed, answer, hash"):
        extract(text, forms=("box",))


@pytest.mark.parametrize("text", [text for text, *_ in FINAL])
def test_span_contains_the_answer(text):
    found = extract(text)
    if found.span is not None:
        start, stop = found.span
        assert 0 <= start <= stop <= len(text)
        assert re.search(r"7|16", text[start:stop])


def test_extraction_can_be_pickled():
    found = extract("#### 3/4")
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("text", [None, 7, b"#### 7", ["#### 7"]])
def test_non_string_input_has_no_answer(text):
    assert extract(text).status == "none"
