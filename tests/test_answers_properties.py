"""What holds for the extraction from every text: consistency, thinking, and a slow reference."""

from fuzz_rewards import extract_without_shortcut
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


@given(texts, st.booleans())
@example("#### 1,450.", False)
@example("<answer>\n1.  </answer>", False)
@example("\\boxed{$0018.50 }", False)
def test_shortcut_for_plain_numbers_agrees_with_the_tokens(text, allow_bare):
    found = extract(text, allow_bare=allow_bare)
    assert found == extract_without_shortcut(text, allow_bare)


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


# Well-formed texts are lists of these sentences, each of them a marker, prose, a correction or thinking.
SENTENCES = {
    "boxed": "\\boxed{{{}}}",
    "answer": "<answer>{}</answer>",
    "hash": "#### {}",
    "phrase": "The answer is {}.",
    "a_colon": "Answer: {}",
    "prose": "I count the eggs {} times and look on.",
    "correction": "Wait, I forgot {} of the eggs.",
    "thought": "<think>maybe #### {} here</think>",
}
STRONG = ("boxed", "answer", "hash")
MARKED = (*STRONG, "phrase", "a_colon")


sentences = st.lists(st.tuples(st.sampled_from(sorted(SENTENCES)), st.integers(0, 4)), max_size=8)


def reference(parts):
    """A slow, obvious reading, sentence by sentence, that shares no code with the extraction."""
    kinds = [kind for kind, _ in parts]
    marked = [k for k, kind in enumerate(kinds) if kind in MARKED]
    if not marked:
        return None, "none"
    final = marked[-1]
    if kinds[final] not in STRONG:  # an earlier box, tag or #### stands unless a correction follows it
        after_correction = max((k for k in range(final) if kinds[k] == "correction"), default=-1)
        final = max((k for k in range(after_correction + 1, final) if kinds[k] in STRONG), default=final)
    beside = {parts[final][1]}
    for step in (-1, 1):
        k = final + step
        while 0 <= k < len(parts) and kinds[k] in MARKED:
            beside.add(parts[k][1])
            k += step
    return (parts[final][1], "ok") if len(beside) == 1 else (None, "hedged")


@given(sentences)
@example([("boxed", 1), ("thought", 2), ("boxed", 2)])
@example([("boxed", 1), ("prose", 2), ("phrase", 2)])
@example([("hash", 1), ("correction", 2), ("phrase", 2)])
def test_extraction_agrees_with_a_slow_reference(parts):
    text = "\n".join(SENTENCES[kind].format(n) for kind, n in parts)
    assert extract(text)[:2] == reference(parts)
