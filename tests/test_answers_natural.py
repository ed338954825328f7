"""Answers as small models write them: each text with the value that it states, or None where it states no single one."""

from fractions import Fraction

import pytest
from reward_texts import value

SAME_VALUE_AGAIN = [
    ("#### 18\n18", 18),
    ("#### 18\n20", None),
    ("The answer is 18.\n\n18", 18),
    ("The answer is 18.\n\n20", None),
    ("\\boxed{18} or 18", 18),
    ("\\boxed{18} or 20", None),
    ("The answer is 1.00, that is \\$1.00", 1),
    ("The answer is 1.00 or \\$1.50", None),
]
LATEX = [
    ("\\boxed{9\\times2=18}", 18),
    ("\\boxed{9\\times2=20}", None),
    ("\\boxed{9\\cdot2}", 18),
    ("\\boxed{36\\div2}", 18),
    ("\\boxed{1.5\\times10^6}", 1_500_000),
    ("\\boxed{\\approx18}", 18),
    ("\\boxed{\\ne18}", None),
    ("\\boxed{70,\\!000}", 70_000),
    ("\\boxed{1,\\!234,\\!567}", 1_234_567),
    ("\\boxed{70{,}\\!000}", 70_000),
    ("\\boxed{70,\\ 000}", None),
    ("\\boxed{T(3) = 18}", 18),
    ("\\boxed{P_1 = 18}", 18),
    ("\\boxed{18\\text{ (not 20)}}", 18),
    ("\\boxed{18\\text{ (or 20)}}", None),
    ("boxed{18}", 18),
    ("\\boxed{18 \\checkmark}", 18),
    ("\\boxed{18x}", None),
    ("\\boxed{18\\text{ m}}", 18),
    ("\\boxed{\\text{less than } 18}", None),
    ("\\boxed{18 \\text{ eggs} \\times \\$2 = \\$36}", 36),
    ("\\boxed{18 \\text{ eggs} \\times \\$2}", None),
]
LATER_PROSE = [
    ("\\boxed{18}\nTo check the answer: 18 / 2 = 9.", 18),
    ("#### 18\nTo check the answer: 18 / 2 = 9", 18),
    ("\\boxed{18}\nThis answer is 2 times the 9 eggs.", 18),
    ("The answer is 18.\nThis answer is 2 times the 9 eggs.", 18),
    ("\\boxed{18}. The answer is 100% correct.", 18),
    ("\\boxed{18} dollars a day. In a week the answer is 126.", 18),
    ("\\boxed{18} dollars. Wait, I forgot the muffins. The answer is 26.", 26),
    ("<answer>18</answer> But she has 2 markets, so the answer is 36.", 36),
    ("#### 18\nThe answer is 20.", None),
    ("The answer is 18. We have seen that the answer is 20 for ducks.", 20),
    ("#### 18\n#### Explanation\nEach costs 2.", 18),
    ("#### 2. Money", None),
    ("#### 2. Money\n#### 18", 18),
    ("#### 18. So she makes 18 dollars.", 18),
    ("#### 18 ####", 18),
]
OTHER_PROBLEMS = [
    ("Q: How many?\nA: 16 - 7 = 9\nQ: How much?\nA: 9 * 2 = 18\n#### 18", 18),
    ("Q: How many?\nA: 16 - 7 = 9\nQ: How much?\nA: 18", 18),
    ("#### 18\n\nQ: 2 + 3?\nA: 5\n#### 5", 18),
    ("\\boxed{18}\n\nProblem: 2 + 3?\n\\boxed{5}", 18),
    ("<answer>18</answer>\nUser: And in a week?\n<answer>126</answer>", 18),
    ("The answer is 18.\n\nQ: 2 + 3?\nA: The answer is 5.", 18),
    ("Put it in \\boxed{}.\nQuestion: 9 * 2?\n\\boxed{18}", 18),
    ("Question: 9 * 2?\nAnswer: 9 * 2 = 18.", 18),
]
SIGNS = [
    ("The answer is -US$18.", -18),
    ("The answer is -Rs. 18.", -18),
    ("The answer is -USD 18.", -18),
    ("\\boxed{\\text{-\\$}18}", -18),
    ("Result: Loss: -18", -18),
    ("The answer is US$18.", 18),
]
LISTS = [
    ("The answer is:\n18\n20\n22", None),
    ("The answer is:\n18", 18),
    ("Answer:\n* 18\n* 20", None),
    ("Answer:\n* 18", 18),
    ("1. **18**\n2. **20**", None),
    ("1. **18**\n2. **18**", 18),
    ("The answer is 18. Or maybe it is 20.", None),
    ("The answer is 18. Or so it seems.", 18),
    ("She cannot sell those either\n#### 18", 18),
    ("It is either 20 or \\boxed{18}", None),
    ("either \\boxed{20} or \\boxed{18}", None),
]
OTHERS = [
    ("La réponse est donc 18.", 18),
    ("#### 18 ✓", 18),
    ('The answer to "How much does she make?" is 18.', 18),
    ("Answer: 16 - 7 = 9 eggs are left. She makes 9 * 2 = 18.", None),
    ("Answer: 16 - 7 = 9, 9 * 2 = 18", 18),
    ("The answer is at least 18.", None),
    ("<answer>more than 18</answer>", None),
    ("18 answers: 20", None),
]

MORE = [
    ("The answer is *18*.", 18),
    ("The answer is _18_.", 18),
    ("The answer is 18+.", None),
    ("The answer is 18 * her price.", None),
    ("9 * 2 = 18\n\n**Janet makes $18 every day.**", 18),
    ("**Janet sells 9 eggs for 2 dollars each.**", None),
    ("**Janet has 9 eggs.** She sells them.", None),
    ("She makes <b>18</b> <b></b>", 18),
    ("#### 18\n- 9 eggs\n- 2 dollars each", 18),
    ("#### 18 eggs\n20 eggs", None),
    ("#### 18\n1. Count the eggs: 9\n2. Multiply: 18", 18),
    ("The answer is:\n1. 18\n2. 20", None),
    ("\\boxed{18 - x}", None),
    ("The answer is 18 - that is all.", 18),
    ("**9 * 2 = 18**", 18),
    ("The answer is 18 squared.", None),
    ("The answer is 18 cubed.", None),
    ("The answer is 18 divided by 2.", None),
    ("#### 9 x 2 = 20", None),
    ("#### 9 x 2 = 18", 18),
    ("\\boxed{\\textbf{\\text{18}}}", 18),
    ("\\boxed{0^{-1}}", None),
    ("\\boxed{x = y}", None),
    ("The answer comes to 18.", 18),
    ("The answer will be 18.", 18),
    ("The answer must be 18.", 18),
    ("The answer equals 18.", 18),
    ("The answers are 18 dollars.", 18),
    ("The answer for Janet is 18.", 18),
    ("The answer of this problem is 18.", 18),
    ("I don't think that the answer is 18.", None),
    ("She makes **18** dollars. The rest is boxed.", 18),
    ("She makes **18** dollars `=`", 18),
    ("<answer>Total (3 days): 18</answer>", 18),
    ("The answer is 18. Or, as some say, 20.", 18),
    ("The answer is 18. Or, 20.", None),
    ("The answer is 18, as 16 - 7 = 9.", 18),
    ("<answer>She sells 9 eggs, and she makes 18 dollars</answer>", None),
    ("#### 18 (20)", None),
    ("#### 18 (20 eggs)", 18),
    ("#### 18 (or 20 eggs)", None),
    ("Answer: she makes $18.50 a day.", Fraction(37, 2)),
    ("The answer is 7. The answer is not 9.", 7),
    ("<answer>She has 9 eggs. Each costs 2 dollars. The answer is 18.</answer>", 18),
    ("<answer>" + "She thinks about it. " * 20 + "So it is \\boxed{18}</answer>", 18),
    ("She makes **18** or 20", None),
    ("\\boxed{18} dollars or 20", None),
    ("\\boxed{18} dollars or \\boxed{20}", None),
    ("20 or the answer is 18", None),
    ("\\boxed{?}, so \\boxed{18}", 18),
    ("Q: How many?\nThe answer is 9.\nQ: How much?\nThe answer is 18.\n#### 18", 18),
    ("<thinking>#### 18</thinking>\nI do not know.", None),
]


@pytest.mark.parametrize(
    ("text", "expected"), [*SAME_VALUE_AGAIN, *LATEX, *LATER_PROSE, *OTHER_PROBLEMS, *SIGNS, *LISTS, *OTHERS, *MORE]
)
def test_natural_text_states_exactly_this_value(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        ("The answer is 18. {} 20.", "Or Maybe Perhaps Possibly Alternatively", None),
        ("<answer>18 {} 20 eggs in all</answer>", "or and to but either maybe perhaps possibly alternatively", None),
        ("\\boxed{{7}} {} \\boxed{{9}}", "or and but to", None),
        (
            "The answer is {} 18.",
            "a the of that total just simply only exactly about approximately around roughly nearly almost therefore "
            "thus then so hence clearly now indeed actually still probably likely at also",
            18,
        ),
        ("#### The total {} 18", "is are equals", 18),
        ("The answer is 7, or {} the answer is 9.", "so thus therefore hence then finally maybe that", None),
        ("The answer is {} 18.", "not no never cannot without", None),
        (
            "<answer>{} 18</answer>",
            "less more fewer greater larger least most up under over below above between within isn't",
            None,
        ),
        (
            "#### 18\nNo.\n#### {}",
            "unknown none nan null undefined inf infinity infinite impossible unclear",
            None,
        ),
        ("<answer>{} 18</answer>", "step steps question problem example part page option no number", None),
        ("The answer is {} 18.", "negative minus", -18),
        (
            "<answer>18 eggs {} 2 days</answer>",
            "in per for at of on from by after before with within during every each than over",
            18,
        ),
        ("<answer>18 {} 9 * 2 = 18 and 16 - 7 = 9</answer>", "because since given assuming where", 18),
        ("\\boxed{{18{}}}", "x y z n", None),
    ],
)
def test_each_word_around_a_number_has_its_meaning(template, words, expected):
    for word in words.split():
        assert value(template.format(word)) == expected, word
