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
        ("\\boxed{{9{}2}}", "* x X × ⋅ · ∗ ∙ • ✕ ✖ ＊ \\times \\cdot \\ast", 18),
        ("\\boxed{{36{}2}}", "/ ÷ ∕ ⁄ ／ ➗ \\div", 18),
        ("\\boxed{{20{}2}}", "- − ‐ ‑ – — ﹣ － ➖", 18),
        ("\\boxed{{16{}2}}", "+ ＋ ➕", 18),
        ("\\boxed{{\\{}{{36}}{{2}}}}", "frac dfrac tfrac cfrac", 18),
        ("\\boxed{{\\{}{{18 eggs}}}}", "text textbf textit textrm mathrm mathbf mathit mathsf mbox hbox", 18),
        ("\\boxed{{-\\{}{{\\$}}18}}", "boldsymbol underline emph text textbf textit textrm mathrm mathbf mathsf", -18),
        ("\\boxed{{18 \\{}{{km}}{{h}}}}", "frac dfrac tfrac cfrac", 18),
        ("\\boxed{{18\\{}\\text{{ eggs}}}}", ", ; : ! ( ) [ ] $ % & # _", 18),
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
        ("#### 18 N", 18),
        ("\\boxed{7.1.2 + 3}", None),
        ("\\boxed{\\frac{7}{0} + 3}", None),
        ("\\boxed{" + "9" * 260 + "^2}", None),
        ("\\boxed{2^{64}}", 2**64),
        ("\\boxed{2^{65}}", None),
        ("\\boxed{0^2}", 0),
        ("#### ½ dozen", 6),
        ("#### 1 1/2 dozen", 18),
        ("#### 2½ million", 2_500_000),
        ("#### 1.5 1/2", None),
        ("#### 18 36/2", 18),
        ("#### 18 3*8", None),
        ("#### 18 1/0", None),
        ("#### 18 " + "9" * 260 + "/3", None),
        ("\\boxed{\\frac138}", None),
        ("\\boxed{\\frac30}", None),
        ("\\boxed{\\frac{3}8}", None),
        ("\\boxed{\\frac{3}}", None),
        ("#### \\frac{3", None),
        ("\\boxed{\\frac{7/0}{5}}", None),
        # parts
        ("#### 18 =\n20", None),
        ("<answer>where 18</answer>", 18),
        ("<answer>18, since 16 - 7 = 9</answer>", 18),
        ("#### 18, since 9 * 2 = 18. Or 20", None),
        ("\\boxed{18 = \\infty}", None),
        ("#### 18, not 20x", 18),
        ("#### 18, not 20 squared", 18),
        ("#### 18, not 20 ± 2", 18),
        ("#### 18 eggs ^_^", 18),
        ("<answer>Well, 18</answer>", 18),
        # markers
        ("######## 18", 18),
        ("She lives in the USA: 18", None),
        ("<answer>7</answer> 9</answer>", 7),
        ("She boxed 7 eggs.", None),
        ("I am sure of the final answer\n18", 18),
        ("I am sure of the answer\n18", None),
        ("So here is our final answer: 18", 18),
        ("a_7_ eggs", None),
        ("#### **2. Money**", None),
        ("The answer is:\n\\[18\\]", 18),
        ("eggs _7_b", None),
        ("| a | 3 |\n| Total | 7 | \n", 7),
        ("#### 18\n\n  **Question:** 2 + 3?\n#### 5", 18),
        ("#### 18\n\n## Problem 2: 2 + 3?\n#### 5", 18),
        ("La réponse finale est 18", 18),
        ("**Respuesta**: 18", 18),
        ("**Respuesta:** 18", 18),
        ("### Result: 18", 18),
        ("> Result: 18", 18),
        ("  Result: 18", 18),
        ("**Result**: 18", 18),
        ("Final result = 18", 18),
        ("Final value: 18", 18),
        ("### final_answer\n18", 18),
        ("The answer comes out to 18.", 18),
        # the marker that decides
        ("1) **18**\n2) **20**", None),
        ("1. $\\boxed{18}$\n2. $\\boxed{20}$", None),
        ("18 or \\boxed{18}", 18),
        ("The answer is 10 + John's age, or the answer is 18.", None),
        ("The answer is 10+John's age. or The answer is 18.", None),
        ("The answer is 10 + John's age, so the answer is 18.", 18),
        ("\\boxed{?} or \\boxed{18}", None),
        ("It is 18. Or \\boxed{20}", None),
        ("18, or \\boxed{20}", None),
        ("0..50 or \\boxed{20}", None),
        ("18.0 or \\boxed{18}", 18),
        ("1,450 or \\boxed{1450}", 1450),
        ("| 1. Eggs | 2. Money |", None),
        ("Answer: she makes $18 a day!", 18),
        ("\\boxed{18} dollars a day.\nAnswer: 20", 18),
        ("Put it into \\boxed{} at the end. The answer is 18.", 18),
        ("\\boxed{18 eggs} or \\boxed{20 eggs}", None),
        ("#### 18\nThe answer is easy. The answer is 18.", 18),
        ("\\boxed{18 or 20}\n\\boxed{18}", None),
        ("\\boxed{18} or so, for 9 eggs", 18),
        ("#### 9 * 2 = 18\nCheck: 18 / 2 = 9", 18),
        ("The answer is 18.\n\nA: see above", None),
        ("#### 18\n\nA: see above", 18),
        ("\\boxed{7}<think>no</think>\\boxed{9}", 9),
        ("<think>#### 9 <think> b</think>\nDone.", None),
        ("<answer>18, so she makes 2 a piece</answer>", 18),
        ("<answer>She makes 18 (9 eggs)</answer>", 18),
        ("#### 18 eggs.\n= 20", 18),
        ("#### 18\n20, 21 and 22 are the pages.", 18),
        ("\\boxed{\\frac{ 36}{2}}", 18),
        ("The answer is:\n1) 18\n2) 20", None),
        ("#### 18. So it is.\nGood.", 18),
        ("\\boxed{a_{10} = 18}", 18),
        ("\\boxed{18_{10}}", 18),
        ("#### Final Answer\n18", 18),
        ("#### 18\n#### Explanation:\n2 * 10 = 20", 18),
        ("The answer is as follows.\n18", None),
        ("#### 7\n<think>a</think> b</think>", None),
        ("Let us see.\nQuestion: 9 * 2?\nThe answer is 18.", 18),
        ("<answer>" + "word " * 100 + "18</answer>", None),
        ("<answer>" + "word " * 100 + "#### 18</answer>", 18),
        ("So it is **18. 20 eggs are left**", None),
        ("The answer is 9 * 2 = 18.\nCheck: 18 / 2 = 9.", 18),
        ("#### 18 dollars.\nThat is 126 weekly.", 18),
        ("\\boxed{18} or maybe 20", None),
        ("\\boxed{18}, or Janet keeps 9 eggs", 18),
        ("<answer>\n1) 18\n</answer>", 18),
        ("#### \\frac{3}-8}", None),
        ("#### 18 since 9 * 2 = 18. Or 20", None),
        ("#### The answer is:\n18", 18),
        ("\\boxed{\\frac{3}{8 eggs}}", None),
        ("\\boxed{7}" + " " * 200 + "\\boxed{9}", None),
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
        ("She has 9 eggs left\n{} answer: 18", "so thus hence therefore the my our final correct So,the", 18),
        ("### {} answer\n18", "so thus hence therefore the my our final correct So,the", 18),
        ("She has 9 left. {} answer: 18", '** _ > - # ( [ { / : ; ! ? " ✅', 18),
        ("So.\nAnswer{}: 18", "\" ' * ** ` ) ]", 18),
        ("So.\nAnswer {} 18", ": = ： ->", 18),
        ("The answer {} 18.", "is are equals", 18),
        (
            "\\boxed{{20}}\nThis is {} done. The answer is 18.",
            "wait no not wrong incorrect mistake error actually oops sorry instead hm hmm correction however but forgot "
            "should again rather",
            18,
        ),
        ("\\boxed{{7}}, {} \\boxed{{9}}", "either maybe perhaps possibly alternatively", None),
        ("#### 20\nNo, the answer is 100% {}.", "correct right sure certain", 20),
        ("#### 20\nNo, the answer is 2 {} than that.", "more less fewer", 20),
        ("#### 20\nNo, the answer is 2 times {} eggs.", "the as her 9", 20),
        ("\\boxed{{18}} {} 20", "or maybe perhaps possibly alternatively", None),
        ("The answer {} be 18.", "will would should must", 18),
        ("The answer {} to 18.", "comes come", 18),
        ("The answer would {} be 18.", "therefore thus then", 18),
        ("The answer, {}, is 18.", "therefore thus then", 18),
        ("The answer {} is 18.", "therefore thus then", 18),
        ("#### 20\nNo, the answer would {} be 18.", "not never", 20),
        ("#### 20\nNo: {} say that the answer is 18.", "some people others they", 20),
        ("#### 20\nNo: some {} that the answer is 18.", "say think claim believe says", 20),
        ("#### 20\nNo: I {} think the answer is 18.", "don't not", 20),
        ("#### 20\nNo: I don't {} that the answer is 18.", "say think claim believe", 20),
        ("#### 20\nNo: it is wrong to {} that the answer is 18.", "say think claim believe", 20),
        ("#### 20\nNo: some say {} answer is 18.", "that the final correct", 20),
        ("{}: 18", "答案 答え 정답 ответ respuesta réponse antwort ans result value Antwort Ans **Result**", 18),
        ("答案{}18", "是 は ： :", 18),
        ("Respuesta {} 18", "es est ist lautet", 18),
        ("The answer is 18. {} it is 20.", "or maybe perhaps possibly alternatively", None),
    ],
)
def test_each_word_between_markers_has_its_meaning(template, words, expected):
    for word in words.split():
        assert value(template.format(word)) == expected, word


@pytest.mark.parametrize(
    ("text", "status", "rule"),
    [
        ("#### 18", "ok", "last marker"),
        ("#### 18 or 20", "hedged", "two values"),
        ("18 or #### 20", "hedged", "two values"),
        ("#### 18\n#### 20", "hedged", "two markers"),
        ("The answer is 18 20.", "hedged", "two values"),
        ("#### 7\nSo \\boxed", "malformed", "no value"),
        ("#### 7\n<answer>" + "word " * 100 + "</answer>", "malformed", "no value"),
        ("\\boxed{18} a day. In a week the answer is 126.", "ok", "outranked"),
        ("#### 18\n\nQ: 2 + 3?\n#### 5", "ok", "next problem"),
        ("#### 18 or 20\n\nQ: 2 + 3?\n#### 5", "hedged", "two values"),
        ("She has 7 eggs.", "none", "no marker"),
    ],
)
def test_rule_that_decides_is_named(text, status, rule):
    assert (extract(text).status, extract(text).rule) == (status, rule)


def test_bare_number_beside_other_words():
    assert value("7 steps", allow_bare=True) == 7
    assert value("She has 9 eggs and makes 18", allow_bare=True) == 18
    assert extract("Step 7", allow_bare=True).status == "malformed"
    for word in ("or", "and", "to", "but", "either", "maybe", "perhaps", "possibly", "alternatively"):
        assert extract(f"So 7 {word} 9", allow_bare=True).status == "hedged", word


def test_span_of_a_marker_without_a_number_is_its_content():
    for text, content in (
        ("so \\boxed{abc}", "abc"),
        ("#### unknown", ""),
        ("#### 18x eggs", "18x eggs"),
        ("#### 18x =", "18x"),
    ):
        start, stop = extract(text).span
        assert text[start:stop] == content


def test_other_labels_have_forms():
    assert extract("Respuesta: 7", forms=("phrase",)).status == "none"
    assert extract("La respuesta es 7", forms=("a_colon",)).status == "none"


def test_hedge_replaces_an_earlier_answer():
    assert extract("The answer is 18.\nNo.\nThe answer is either 18 or 20.").status == "hedged"
