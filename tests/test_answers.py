"""What counts as the final answer of a completion, and which number it is."""

import pickle
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grpo_math.answers import FORMS, Extraction, extract, hide_thinking


def value(text, **options):
    return extract(text, **options).value


# --- the same number is the same number ------------------------------------------------------------------------------

SPELLINGS = [
    # separators
    ("#### 2,345,678", 2345678),
    ("#### 2 345 678", 2345678),
    ("#### 2\u202f345\u202f678", 2345678),
    ("#### 2'345'678", 2345678),
    ("#### 2_345_678", 2345678),
    ("#### 2.345.678", 2345678),
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
def test_spellings_of_a_number_are_that_number(text, expected):
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
    ("#### " + " " * 290 + "7." + "0" * 20 + "1", 7),
    ("#### 0x7", 7),
    ("#### 1,7", 17),
    ("#### 7:30", 7),
    ("#### 7e-999999999", 7),
    ("#### 7e999999999", 7),
    ("The answer is &#55;2.", 2),
    ("The answer is 2 hours and 30 minutes.", 30),
    ("The answer is 2 h 30 min.", 2),
    ("The answer is 5 feet 7 inches.", 7),
    ("#### 7 ± 1", 7),
]


@pytest.mark.parametrize(("text", "wrong"), NEIGHBOURS)
def test_another_number_is_never_read_out_of_an_answer(text, wrong):
    assert value(text) != wrong


# --- which statement is the final one --------------------------------------------------------------------------------

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


# --- nothing is nothing ----------------------------------------------------------------------------------------------

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
def test_a_text_without_a_statement_has_no_answer(text):
    assert extract(text) == Extraction(None, "none", None, None)


EMPTY = [
    "#### 7\nWait.\n####",
    "####\n7",
    "#### -",
    "#### .",
    "#### inf",
    "#### nan",
    "#### unknown",
    "#### 7 or",
    "#### 7 + the rest",
    "**7**\nNo.\n**3 + the rest**",
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
    "**7**\nNo.\n**None**",
    "\\boxed{10^{10^{10}}}",
    "\\boxed{1000000000!}",
]


@pytest.mark.parametrize("allow_bare", [False, True])
@pytest.mark.parametrize("text", EMPTY)
def test_an_empty_or_malformed_marker_is_no_answer_and_nothing_stands_in(text, allow_bare):
    found = extract(text, allow_bare=allow_bare)
    assert (found.value, found.status) == (None, "malformed")


# --- hedging ---------------------------------------------------------------------------------------------------------

TWO_OFFERS = [
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


@pytest.mark.parametrize("offers", TWO_OFFERS)
@pytest.mark.parametrize("marker", ["<answer>{}</answer>", "\\boxed{{{}}}"])
def test_two_values_in_one_marker_are_a_hedge(offers, marker):
    text = marker.format(offers.format(a=7, b=9))
    assert value(text) not in (7, 9)
    assert extract(text).status in ("hedged", "malformed") or "/" in offers


@pytest.mark.parametrize("offers", [o for o in TWO_OFFERS if "\n" not in o and "/" not in o and "either" not in o])
@pytest.mark.parametrize("marker", ["#### {}", "The answer is {}.", "A: {}", "**{}**"])
def test_two_values_after_a_marker_are_a_hedge(offers, marker):
    assert value(marker.format(offers.format(a=7, b=9))) not in (7, 9)


MARKERS = ["\\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "The answer is {}.", "**{}**"]


@pytest.mark.parametrize("joint", [" or ", "\n", " ", ", ", " and ", "\nor\n", " or maybe ", ". ", " / "])
@pytest.mark.parametrize("marker", MARKERS)
def test_two_markers_side_by_side_are_a_hedge_unless_they_agree(marker, joint):
    text = "So " + marker.format(7) + joint + marker.format(9)
    assert extract(text).status == "hedged"
    same = "So " + marker.format(7) + joint + marker.format("7.0")
    assert value(same) == 7


@pytest.mark.parametrize("marker", MARKERS)
def test_a_draft_with_prose_after_it_is_no_hedge(marker):
    text = marker.format(7) + "\nWait, that is not right: I forgot the muffins.\n" + marker.format(9)
    assert value(text) == 9


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("joint", ["\n", " ", ", ", " or "])
def test_a_list_of_guesses_is_a_hedge(marker, joint):
    assert extract(joint.join(marker.format(n) for n in range(61))).status == "hedged"


@pytest.mark.parametrize(
    "text", ["7 or \\boxed{9}", "either \\boxed{9} or 7", "\\boxed{9} or 7", "#### 9\n7", "#### 9\nor 7"]
)
def test_an_offer_without_a_marker_beside_one_is_a_hedge(text):
    assert extract(text).status == "hedged"


def test_markers_of_different_forms_side_by_side_are_a_hedge():
    assert extract("\\boxed{7}\n#### 9").status == "hedged"
    assert extract("The answer is 7.\n\\boxed{9}").status == "hedged"


# --- options ---------------------------------------------------------------------------------------------------------

BARE = [
    ("9 * 2 = 18", 18),
    ("so she makes $1,450.50 a day.", Fraction("1450.5")),
    ("it is -7", -7),
    ("it is 3/4 of it", Fraction(3, 4)),
    ("18 m^2 in all", 18),
    ("16 - 7 = 9 eggs. 9 * 2 = 18 dollars.", 18),
    ("9 * 2 = 18\n\nProblem: 4 + 5\nSolution: 9", 18),
]


@pytest.mark.parametrize(("text", "expected"), BARE)
def test_a_bare_last_number_counts_only_where_it_is_allowed(text, expected):
    assert extract(text).status == "none"
    found = extract(text, allow_bare=True)
    assert (found.value, found.form) == (expected, "bare")


@pytest.mark.parametrize("text", ["Step 7", "so 7 or 9", "7, 8, 9", "5-9", "7/0", "none", "Question 7"])
def test_a_bare_step_number_hedge_or_nothing_is_no_answer(text):
    assert value(text, allow_bare=True) is None


def test_only_the_forms_asked_for_are_read():
    text = "#### 7\nthat is \\boxed{9}"
    assert value(text, forms=("hash",)) == 7
    assert value(text, forms=("boxed",)) == 9
    assert extract(text, forms=("answer",)).status == "none"
    with pytest.raises(ValueError, match="unknown answer form 'box'; the forms are boxed, answer, hash"):
        extract(text, forms=("box",))


@pytest.mark.parametrize("text", [text for text, *_ in FINAL])
def test_the_span_lies_in_the_text_and_holds_the_answer(text):
    found = extract(text)
    if found.span is not None:
        start, stop = found.span
        assert 0 <= start <= stop <= len(text)
        assert re.search(r"7|16", text[start:stop])


def test_an_extraction_can_be_sent_to_another_process():
    found = extract("#### 3/4")
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("text", [None, 7, b"#### 7", ["#### 7"]])
def test_what_is_no_text_has_no_answer(text):
    assert extract(text).status == "none"


# --- properties ------------------------------------------------------------------------------------------------------

PIECES = [
    *(
        "\\boxed{",
        "}",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "#### ",
        "The answer is ",
        "A: ",
        "\nA: ",
        "**",
        "`",
    ),
    *(
        "7",
        "9",
        "7.0",
        "1,450",
        "-",
        "–",
        "/",
        "=",
        " or ",
        " and ",
        ", ",
        ". ",
        "\n",
        " ",
        "$",
        "(",
        ")",
        "{",
        "\\frac{",
        "^",
    ),
    *(
        "not ",
        "eggs",
        "Wait, no. ",
        "Question: ",
        "\nQuestion: ",
        "½",
        "²",
        "７",
        "\u200b",
        "&#36;",
        "<<1=1>>",
        "~~",
        "|",
        "!",
    ),
]
texts = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))


@given(texts, st.booleans())
@example("\ud800", True)
@example("İ" * 3 + "#### 7", False)
def test_extraction_never_raises_and_is_consistent(text, allow_bare):
    found = extract(text, allow_bare=allow_bare)
    assert found.status in ("ok", "none", "hedged", "malformed")
    assert (found.value is not None) == (found.status == "ok")
    assert (found.form is None) == (found.status == "none") == (found.span is None)
    assert found.form in (*FORMS, "bare", None)
    if found.form == "bare":
        assert allow_bare


@given(texts)
def test_thinking_is_hidden_without_moving_anything(text):
    hidden = hide_thinking(text)
    assert len(hidden) == len(text)
    assert all(h == t or h in "z " for h, t in zip(hidden, text, strict=True))


@given(texts, st.integers(0, 99))
def test_a_thought_never_changes_the_answer_after_it(thought, n):
    thought = thought.replace("</", "")
    assert value(f"<think>{thought}</think>\n#### {n}") == n
    assert value(f"{thought.replace('<', '')}</think>\n#### {n}") == n


numbers = st.fractions(max_denominator=1000)
layouts = st.sampled_from(["{}", " {}", "{}\n", "{} ", "\t{}\n\n", "\n{}"])


@given(st.integers(-(10**30), 10**30), layouts, st.sampled_from(MARKERS))
def test_every_integer_is_read_exactly_whatever_the_layout(n, layout, marker):
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


# A slow, obvious reading of well-formed texts: a list of sentences, each a marker or prose, interpreted one by
# one. It shares no code with the extractor.

SENTENCES = {
    "boxed": "\\boxed{{{}}}",
    "answer": "<answer>{}</answer>",
    "hash": "#### {}",
    "phrase": "The answer is {}.",
    "a_colon": "Answer: {}",
    "prose": "I count the eggs {} times and look again.",
    "thought": "<think>maybe #### {} here</think>",
}
sentences = st.lists(st.tuples(st.sampled_from(sorted(SENTENCES)), st.integers(0, 4)), max_size=8)


def reference(parts):
    block = []  # values of the markers since the last prose
    final = []
    for kind, n in parts:
        if kind in ("prose", "thought"):
            block = []
        else:
            block = [*block, n]
            final = block
    if not final:
        return None, "none"
    return (final[-1], "ok") if len(set(final)) == 1 else (None, "hedged")


@given(sentences)
@example([("boxed", 1), ("thought", 2), ("boxed", 2)])
def test_extraction_agrees_with_a_slow_reading_sentence_by_sentence(parts):
    text = "\n".join(SENTENCES[kind].format(n) for kind, n in parts)
    assert extract(text)[:2] == reference(parts)
