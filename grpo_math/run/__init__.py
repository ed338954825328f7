"""One run: a recipe in, a trained model and everything to judge it by out.

>>> code = train(load_recipe("recipes/countdown_tiny.yaml"))
"""

from grpo_math.run.heldout import evaluate
from grpo_math.run.train import train

__all__ = ["evaluate", "train"]
