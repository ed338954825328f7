"""The format reward: one thought, then one answer."""

import pytest

from grpo_math.rewards import think_answer_format


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("<think>a</think><answer>b</answer>", "q", 1.0),
        ("\n<think>a</think>\n\n<answer>b</answer>\n", "q", 1.0),
        ("a</think><answer>b</answer>", "q <think>\n", 1.0),
        ("a</think><answer>b</answer>", "q", 0.0),
        ("<think>a</think><answer>b</answer>", "q <think>\n", 0.0),
        ("<think></think><answer>b</answer>", "q", 0.0),
        ("<think>a</think><answer> </answer>", "q", 0.0),
        ("so <think>a</think><answer>b</answer>", "q", 0.0),
        ("<think>a</think>so<answer>b</answer>", "q", 0.0),
        ("<think>a</think><answer>b</answer>.", "q", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", "q", 0.0),
        ("<answer>b</answer><think>a</think>", "q", 0.0),
        ("<think>a<answer>b</answer></think>", "q", 0.0),
        ("", "q", 0.0),
    ],
)
def test_format_is_one_thinking_block_then_one_answer(completion, prompt, expected):
    assert think_answer_format([completion], prompts=[prompt]) == [expected]


def test_without_prompts_the_opening_think_tag_is_optional():
    assert think_answer_format(["a</think><answer>b</answer>"]) == [1.0]
