"""Reward functions for TRL's `GRPOTrainer` on GSM8K and Countdown: exact, bounded, hard to fool.

Every reward has TRL's signature `f(completions, **columns) -> list[float | None]`. It takes string and conversational
completions, never raises on a completion, and imports no torch. `REWARDS` maps short names to rewards.
`grpo_math.answers` defines what counts as the answer, and `grpo_math.expressions` the arithmetic of Countdown.

A reward is between 0.0 and 1.0. It is `None` (TRL: this reward does not apply to the row) if the gold answer contains
no number.

```python
from trl import GRPOTrainer
from grpo_math.rewards import gsm8k_accuracy

trainer = GRPOTrainer(model="Qwen/Qwen2.5-0.5B-Instruct", reward_funcs=gsm8k_accuracy, train_dataset=dataset)
trainer.train()
```
"""

from collections.abc import Callable

from grpo_math.rewards.base import MathReward, completion_text
from grpo_math.rewards.countdown import (
    COUNTDOWN_FORMS,
    countdown_accuracy,
    countdown_proximity,
    get_countdown_accuracy,
    get_countdown_proximity,
)
from grpo_math.rewards.format import think_answer_format
from grpo_math.rewards.gsm8k import (
    get_gsm8k_accuracy,
    get_gsm8k_exact_match,
    gold_value,
    gsm8k_accuracy,
    gsm8k_exact_match,
    normalise,
)

__all__ = [
    "COUNTDOWN_FORMS",
    "REWARDS",
    "MathReward",
    "completion_text",
    "countdown_accuracy",
    "countdown_proximity",
    "get_countdown_accuracy",
    "get_countdown_proximity",
    "get_gsm8k_accuracy",
    "get_gsm8k_exact_match",
    "gold_value",
    "gsm8k_accuracy",
    "gsm8k_exact_match",
    "normalise",
    "think_answer_format",
]

REWARDS: dict[str, Callable[..., list[float | None]]] = {
    reward.__name__: reward
    for reward in (gsm8k_accuracy, gsm8k_exact_match, countdown_accuracy, countdown_proximity, think_answer_format)
}
