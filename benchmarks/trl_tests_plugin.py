"""pytest plugin of `trl_tests`: data sets without a hub and, where the environment says so, our trainer in place of TRL's."""

import importlib.util
import os
import re

import datasets
import trl
from trl import import_utils

from grpo_math.trainer import GRPOMathConfig, GRPOMathTrainer

_load_dataset = datasets.load_dataset
ROWS = {"train": 17, "test": 2}


def _rows(config: str, split: str) -> datasets.Dataset:
    questions = [f"What comes after {n}?" for n in range(ROWS[split])]
    if config == "standard_prompt_only":
        return datasets.Dataset.from_dict({"prompt": questions})
    if config == "conversational_prompt_only":
        return datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] for q in questions]})
    raise ValueError(f"no stand-in for the configuration {config!r}")


def load_dataset(path: str, name: str | None = None, split: str | None = None, streaming: bool = False, **kwargs):
    """Prompts of our own for the data set of TRL's tests; other data sets as ever."""
    if path != "trl-internal-testing/zen":
        return _load_dataset(path, name, split=split, streaming=streaming, **kwargs)
    found = {key: _rows(name, key) for key in ROWS}
    if streaming:
        found = {key: rows.to_iterable_dataset() for key, rows in found.items()}
    if split is not None:
        return found[split]
    return datasets.IterableDatasetDict(found) if streaming else datasets.DatasetDict(found)


def _missing_check(name: str):
    """`is_X_available` of another version of TRL than the installed one, whose tests ask for it."""
    if found := re.fullmatch(r"is_(\w+)_available", name):
        return lambda *args: importlib.util.find_spec(found[1]) is not None
    raise AttributeError(name)


# The test module imports these names after the plugin is loaded
import_utils.__getattr__ = _missing_check
datasets.load_dataset = load_dataset
if os.environ.get("GRPO_MATH_TRL_TESTS") == "ours":
    trl.GRPOTrainer, trl.GRPOConfig = GRPOMathTrainer, GRPOMathConfig
