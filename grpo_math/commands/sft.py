"""The command `grpo-math sft`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

EPILOG = """  --sft_size N                  solutions to train on (default: one a training row)
  --sft_epochs N                passes over them (default: 1)
  --sft_learning_rate X         peak learning rate (default: 2e-4 for an adapter, 2e-5 for all weights)
  --sft_batch_size N            solutions per optimizer step (default: 16)
  --sft_output_dir FOLDER       for the model (default: `sft` inside output_dir)

then, for example:
  grpo-math train RECIPE --model_name_or_path OUTPUT_DIR/sft

exit code: 0 done, 1 out of memory or disk full, 2 wrong input, 130 stopped by Ctrl-C"""


def add_parser(add: Callable[..., argparse.ArgumentParser], overrides: str) -> None:
    """Registers the command; `overrides` explains the fields of a recipe on the command line."""
    command = add(
        "sft",
        "RECIPE [--field value ...]",
        "supervised warm-up on worked solutions of a recipe's task, for a model that GRPO gets no signal from",
        "The data\nset's own solutions, or the solver's, behind the recipe's prompts. The result is a model for GRPO.",
        overrides + EPILOG,
        run,
    )
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/countdown_tiny.yaml")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from grpo_math.recipe import load_recipe

    recipe = load_recipe(args.recipe, overrides)
    from grpo_math.run.supervised import supervise

    return supervise(recipe)
