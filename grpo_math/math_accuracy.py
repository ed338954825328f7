"""GSM8K accuracy as a metric of Hugging Face's `evaluate` library, by the rules of `grpo_math.rewards.gsm8k_accuracy`.

The metric is this file: `evaluate.load` takes its path, and needs no hub.

>>> import evaluate
>>> from grpo_math import math_accuracy
>>> metric = evaluate.load(math_accuracy.__file__)
>>> metric.compute(predictions=["3 * 6 = 18. #### 18", "The answer is 9."], references=["18", "18"])
{'accuracy': 0.5, 'low': 0.09453120573423074, 'high': 0.9054687942657693}

`low` and `high` are the 95 % Wilson interval of independent completions. For several completions of one problem the
interval is too narrow: `grpo_math.evaluation.clustered` counts their dependence.
"""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
from datasets import Features, Value

from grpo_math.evaluation import wilson
from grpo_math.rewards import gsm8k_accuracy

INPUTS = """
Args:
    predictions (`list[str]`):
        Completions. The last explicit marker (`####`, `\\boxed{}`, `<answer>`, "the answer is") states the answer.
    references (`list[str]`):
        Gold numbers, such as `"72"`, or GSM8K solutions that end in `#### 72`.

Returns:
    `dict[str, float]`: the share of right completions `accuracy`, and its 95 % interval `low`, `high`.

Raises:
    `ValueError`: for no predictions, or a reference without a number.
"""


class MathAccuracy(evaluate.Metric):
    """Share of completions whose final stated answer equals the gold number, with its 95 % interval."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of completions whose final stated answer equals the gold number exactly.",
            citation="Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
            inputs_description=INPUTS,
            features=Features({"predictions": Value("string"), "references": Value("string")}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        if not predictions:
            raise ValueError("predictions: [] has no completions; give at least one")
        scores = gsm8k_accuracy(completions=list(predictions), answer=list(references))
        if None in scores:
            row = scores.index(None)
            raise ValueError(
                f"references, row {row}: {references[row]!r} states no number; give the gold number, such as '72'"
            )
        accuracy = wilson(sum(scores) / len(scores), len(scores))
        return {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
