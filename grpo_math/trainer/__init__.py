"""TRL's GRPO pair with this project's options: the same gradient for less compute, KL and clipping variants.

>>> from grpo_math.trainer import GRPOMathConfig, GRPOMathTrainer
"""

from grpo_math.trainer.config import GRPOMathConfig
from grpo_math.trainer.grpo import GRPOMathTrainer

__all__ = ["GRPOMathConfig", "GRPOMathTrainer"]
