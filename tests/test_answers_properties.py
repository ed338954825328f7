"""What holds for the extraction from every text: consistency, thinking, and a slow reference."""

from hypothesis import example, given
from hypothesis import strategies as st
from reward_texts import value

from grpo_math.answers import FORMS, extract, hide_thinking

# fmt: off
PIECES = [
    "\\boxed{", "}", "<answer>", "</answer>", "<think>", "</think>", "#### ", "The answer is ", "A: ", "\nA: ", "**",
    "`", "7", "9", "7.0", "1,450", "-", "–", "/", "=", " or ", " and ", ", ", ". ", "\n", " ", "$", "(", ")", "{",
    "\\frac{", "^", "not ", "eggs", "Wait, no. ", "Question: ", "\nQuestion: ", "½", "²", "７", "\u200b", "&#36;",
    "<<1=1>>", "~~", "|", "!",
]
# fmt: on


texts = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))


@given(texts, st.booleans())
@example("\ud800", True)
@example("İ" * 3 + "#### 7", False)
@example("\\boxed{&#1;7}", False)
def test_extraction_never_raises_and_is_consistent(text, allow_bare):
    found = extract(text, allow_bare=allow_bare)
    assert found.status in ("ok", "none", "hedged", "malformed")
    assert (found.value is not None) == (found.status == "ok")
    assert (found.form is None) == (found.status == "none") == (found.span is None)
    assert found.form in (*FORMS, "bare", None)
    if found.form == "bare":
        assert allow_bare


@given(texts)
def test_hidden_thinking_keeps_every_offset(text):
    hidden = hide_thinking(text)
    assert len(hidden) == len(text)
    assert all(h == t or h in "z " for h, t in zip(hidden, text, strict=True))


@given(texts, st.integers(0, 99))
def test_thinking_never_changes_the_answer_after_it(thought, n):
    thought = thought.replace("</", "")
    assert value(f"<think>{thought}</think>\n#### {n}") == n
    assert value(f"{thought.replace('<', '')}</think>\n#### {n}") == n


# Well-formed texts are lists of these sentences, each of them a marker, prose or thinking.
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
    """A slow, obvious reading, sentence by sentence, that shares no code with the extraction."""
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
def test_extraction_agrees_with_a_slow_reference(parts):
    text = "\n".join(SENTENCES[kind].format(n) for kind, n in parts)
    assert extract(text)[:2] == reference(parts)
