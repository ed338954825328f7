"""The rewards take linear time on every text and keep their promises on random ones."""

import time

import pytest
from fuzz_rewards import compare, fuzz

from grpo_math.rewards import (
    get_countdown_accuracy,
    get_gsm8k_accuracy,
)

# fmt: off
UNITS = [
    "\\boxed{", "\\boxed{1}", "{", "}", "<answer>", "</answer>", "<answer>1</answer>", "<think>", "</think>", "#",
    "####", "#### 1\n", "The answer is ", "The answer is 1. ", "answer ", "Answer:", "A: ", "\nA: 1", "**", "**1**",
    "*1", "`1`", "|1", "1", "1,", "1.", "1 or ", "-", "1-", "(", "((1", "[", ")", "\\frac{", "\\frac{1}{", "\\", "$",
    "<<1=1>>", "<", "&", "½", "²", "１", "答案：", "\u200b", "İ", "\n", " ", "\t", "\n\n", "\nQuestion:", "~~",
    "one hundred ", "x", "3+4\n", "=", "1=1;",
]
# fmt: on


def seconds(unit, size):
    """CPU time of two rewards on a repeated unit, alone and in each marker."""
    text = (unit * (size // len(unit) + 1))[:size]
    cases = [
        text,
        f"<answer>{text}</answer>",
        f"#### {text}",
        f"\\boxed{{{text}}}",
        f"<think>{text}",
        f"{text}\n#### 7",
    ]
    accuracy, countdown = get_gsm8k_accuracy(allow_bare=True), get_countdown_accuracy(allow_bare=True)
    started = time.process_time()
    accuracy(cases, answer=["7"] * len(cases))
    countdown(cases, nums=[[3, 4]] * len(cases), target=[7] * len(cases))
    return time.process_time() - started


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_time_is_linear_in_length(unit):
    """Eight times the text takes far less than 64 times as long, which a quadratic rule would take."""
    small = min(seconds(unit, 4_000) for _ in range(3))
    large = min(seconds(unit, 32_000) for _ in range(2))
    assert large < 24 * small + 0.02


@pytest.mark.parametrize("unit", ["<think>", "</think>", "<think></think>"])
def test_thinking_is_hidden_once_however_often_it_begins_or_ends(unit):
    """Copies are quick: only in long texts do they show."""
    small = min(seconds(unit, 60_000) for _ in range(2))
    assert seconds(unit, 480_000) < 24 * small + 0.02


def test_boxes_in_boxes_and_tags_are_read_once():
    boxes = "\\boxed{" * 60 + "1" + "}" * 60
    for text in (boxes, f"<answer>{boxes}</answer>", f"<answer>{boxes}</answer>\nQuestion:\n" * 20):
        assert get_gsm8k_accuracy()([text], answer=["1"]) == [1.0]


def test_fuzz_target_finds_no_broken_promise():
    assert fuzz(seed=1, texts=400) == 400


def test_shortcut_for_plain_numbers_is_taken_and_changes_nothing():
    taken, unlike = compare(4_000, seed=1)
    assert taken > 200
    assert unlike == []
