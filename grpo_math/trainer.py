"""GRPOMathConfig and GRPOMathTrainer: TRL's GRPO pair plus options. With every option off it is TRL's trainer."""

from dataclasses import dataclass

from trl import GRPOConfig, GRPOTrainer


@dataclass
class GRPOMathConfig(GRPOConfig):
    """[`trl.GRPOConfig`] plus this project's trainer options."""


class GRPOMathTrainer(GRPOTrainer):
    """[`trl.GRPOTrainer`] with this project's trainer options."""

    _tag_names = ("trl", "grpo", "grpo-math")
    _name = "GRPO"
