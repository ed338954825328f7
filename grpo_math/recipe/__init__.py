"""Recipes: one flat YAML file in TRL's own vocabulary is the unit of use. Importing this does not import torch.

>>> recipe = load_recipe("recipes/gsm8k.yaml", ["--max_steps", "10"])
"""

from grpo_math.recipe.load import Recipe, load_recipe
from grpo_math.recipe.schema import check_name, choices_of, fields
from grpo_math.recipe.sources import check_spelling, dump, parse_overrides, read_yaml

__all__ = [
    "Recipe",
    "check_name",
    "check_spelling",
    "choices_of",
    "dump",
    "fields",
    "load_recipe",
    "parse_overrides",
    "read_yaml",
]
