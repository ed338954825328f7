"""Every marker with every spelling of an answer, and with every hedge, before remarks that change nothing."""

from fractions import Fraction

import pytest
from reward_texts import value

# fmt: off
ANSWERS = [
    ("18", 18),
    ("$18", 18),
    ("18 dollars", 18),
    ("$18.00", 18),
    ("1,450", 1450),
    ("$1,450.50", Fraction(2901, 2)),
    ("18%", 18),
    ("-5", -5),
    ("-$5", -5),
    ("18 eggs", 18),
    ("3/4", Fraction(3, 4)),
    ("2.5 hours", Fraction(5, 2)),
    ("18 square feet", 18),
    ("0", 0),
    ("9 * 2 = 18", 18),
    ("9 x 2 = $18", 18),
    ("18 cents", 18),
    ("18 minutes per day", 18),
    ("USD 18", 18),
    ("18 km/h", 18),
    ("€18", 18),
    ("12 pieces of cake", 12),
    ("40 percent", 40),
    ("2 dozen eggs", 24),
    ("1.5 million", 1500000),
    ("18 people", 18),
]
NO_SINGLE_VALUE = [
    "18 or 20",
    "18 and 20",
    "18, 20",
    "18-20",
    "18 to 20",
    "between 18 and 20",
    "either 18 or 20",
    "18 or maybe 20",
    "18 (or 20)",
    "18, or possibly 20",
    "18 dollars or 20 dollars",
    "$18 or $20",
    "18; 20",
    "less than 18",
    "at least 18",
    "more than 18",
    "18 hours 20 minutes",
    "not 18",
    "18 ± 2",
    "18x",
    "x > 18",
    "about 18 to 20",
    "18, maybe 20",
    "18? 20?",
    "18 / 20",
    "18:20",
    "unknown",
    "18 or 20 or 22",
]
MARKERS = [
    "#### {}",
    "####{}",
    "The answer is {}.",
    "The final answer is {}",
    "So the answer is: {}",
    "Therefore, the answer is {}.",
    "Answer: {}",
    "**Answer:** {}",
    "**Final Answer: {}**",
    "Final Answer: {}",
    "<answer>{}</answer>",
    "<answer>\n{}\n</answer>",
    "\\boxed{{{}}}",
    "$\\boxed{{{}}}$",
    "The answer is $\\boxed{{{}}}$.",
    "**{}**",
    "### Answer\n{}",
    "### Final Answer:\n**{}**",
    "A: {}",
    "The correct answer is **{}**.",
    "#### **{}**",
    "The total is **{}**.",
    '{{"answer": "{}"}}',
    "Thus, her answer would be {}.",
    "The answer to this problem is {}.",
]
REMARKS = [
    "",
    "\n",
    "\n\nI hope this helps!",
    " Done.",
    "\n\nExplanation: she sells 9 eggs at 2 dollars.",
    "\n\nNote that 7 days make a week.",
    "\n\nLet me know if you have any other questions.",
    "\n\nTo check: 9 + 9 = 18.",
    "<|endoftext|>",
    " 😊",
    "\n\n---",
    "\n\nStep 1 was to count; step 2 was to multiply by 2.",
    "\nSo Janet makes this much in 1 day.",
]
# fmt: on


@pytest.mark.parametrize("marker", MARKERS)
def test_clear_answer_is_read_in_every_spelling_before_every_remark(marker):
    for spelling, expected in ANSWERS:
        for remark in REMARKS:
            text = f"She has 16 - 7 = 9 eggs left.\n{marker.format(spelling)}{remark}"
            assert value(text) == expected, text


@pytest.mark.parametrize("marker", MARKERS)
def test_content_without_a_single_value_is_never_one_of_its_numbers(marker):
    for content in NO_SINGLE_VALUE:
        for remark in REMARKS:
            text = f"She has 16 - 7 = 9 eggs left.\n{marker.format(content)}{remark}"
            assert value(text) not in (18, 20), text
