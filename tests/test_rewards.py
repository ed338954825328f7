"""The reward functions as TRL calls them."""

import pytest

from grpo_math import rewards


@pytest.mark.parametrize("conversational", [False, True])
def test_accuracies_pay_right_completions_and_nothing_else(conversational):
    def as_completion(text):
        return [{"role": "assistant", "content": text}] if conversational else text

    gsm8k = [as_completion(text) for text in ("so 9 * 2 = 18.\n#### 18", "#### 18 or 20", "18")]
    assert rewards.gsm8k_accuracy(gsm8k, answer=["18"] * 3) == [1.0, 0.0, 0.0]
    countdown = [as_completion(text) for text in ("<answer>(3+5)*7</answer>", "<answer>7*8</answer>", "(3+5)*7")]
    columns = {"nums": [[3, 5, 7]] * 3, "target": [56] * 3}
    assert rewards.countdown_accuracy(countdown, **columns) == [1.0, 0.0, 0.0]
    assert rewards.get_countdown_accuracy(allow_bare=True)(countdown, **columns) == [1.0, 0.0, 1.0]
