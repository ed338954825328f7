"""Accuracy on held-out problems: completions, scores, intervals, paired changes and the verdict on a run.

The files import each other in one direction: `accuracy -> generation, scoring, intervals`; `verdict -> intervals`.

>>> accuracy = measure(model, tokenizer, rows, kinds, reward, generations=4, batch_size=64, seed=0, ...)
>>> str(accuracy.sampled)
'0.222 [0.194, 0.252]'
"""

from grpo_math.evaluation import lm_eval
from grpo_math.evaluation.accuracy import Accuracy, changes, measure, pass_sizes, sampled_differences, summarise
from grpo_math.evaluation.generation import Completion, generate, generate_completions, prompt_ids, sampling_of
from grpo_math.evaluation.intervals import (
    Difference,
    Interval,
    clustered,
    paired_difference,
    pass_at_k,
    share_of_problems,
    wilson,
)
from grpo_math.evaluation.scoring import Scorers, Scores, majority_right, score
from grpo_math.evaluation.verdict import Verdict, betting_interval, verdict

__all__ = [
    "Accuracy",
    "Completion",
    "Difference",
    "Interval",
    "Scorers",
    "Scores",
    "Verdict",
    "betting_interval",
    "changes",
    "clustered",
    "generate",
    "generate_completions",
    "lm_eval",
    "majority_right",
    "measure",
    "paired_difference",
    "pass_at_k",
    "pass_sizes",
    "prompt_ids",
    "sampled_differences",
    "sampling_of",
    "score",
    "share_of_problems",
    "summarise",
    "verdict",
    "wilson",
]
