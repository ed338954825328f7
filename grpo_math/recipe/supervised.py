"""SFTSettings: the keys `sft_*` of a recipe, read by `grpo-math sft` alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from grpo_math.errors import RecipeError

ADAPTER_LEARNING_RATE, FULL_LEARNING_RATE = 2e-4, 2e-5  # as TRL's documentation and `SFTConfig` have them


@dataclass
class SFTSettings:
    """The supervised warm-up of a recipe (`grpo-math sft RECIPE`). Everything else is as in the recipe."""

    sft_size: int | None = field(
        default=None, metadata={"help": "Supervised warm-up: train on this many solutions at most (default: all)."}
    )
    sft_epochs: float = field(default=1.0, metadata={"help": "Supervised warm-up: passes over the solutions."})
    sft_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Supervised warm-up: peak learning rate (default: 2e-4 for an adapter, 2e-5 for all weights)."
        },
    )
    sft_batch_size: int = field(
        default=16,
        metadata={
            "help": "Supervised warm-up: solutions per optimizer step, over all processes. At most "
            "per_device_train_batch_size of them run at once."
        },
    )
    sft_output_dir: str | None = field(
        default=None, metadata={"help": "Supervised warm-up: folder for the model (default: `sft` inside output_dir)."}
    )

    def __post_init__(self):
        for name in ("sft_size", "sft_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"{name}: {getattr(self, name)} must be 1 or more")
        for name in ("sft_epochs", "sft_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RecipeError(f"{name}: {value} must be a number above 0")
