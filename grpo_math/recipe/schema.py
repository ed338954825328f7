"""The keys of a recipe: the fields of the configuration classes, their types, choices and ranges.

A key or value that no configuration takes is an error with the nearest right one, before anything is loaded.

>>> coerce("learning_rate", "1e-5", float, field, "command line", from_text=True)
1e-05
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_math.errors import RecipeError, nearest
from grpo_math.recipe.supervised import SFTSettings

COMMAND_LINE = "command line"


def config_classes() -> tuple[type, ...]:
    """The dataclasses whose fields are a recipe's keys: of all tasks, the supervised warm-up, training and the model."""
    from trl import ModelConfig

    from grpo_math import tasks
    from grpo_math.trainer import GRPOMathConfig

    return *tasks.config_classes(), SFTSettings, GRPOMathConfig, ModelConfig


# Fields that TRL types as plain text and describes in prose. (Fields that are enums or literals speak for themselves.)
CHOICES: dict[str, tuple] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
}


def fields() -> dict[str, tuple[type, dataclasses.Field, Any]]:
    """Every key a recipe may have: name -> (dataclass, field, type).

    An inherited field counts for the class that comes first in `config_classes`: `task` is a field of `TaskConfig`.
    """
    known = {}
    for cls in config_classes():
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.init and field.name not in known:
                known[field.name] = (cls, field, hints[field.name])
    return known


def place_of(names: Iterable[str], overrides: frozenset[str], path: str | Path) -> str:
    return COMMAND_LINE if overrides.intersection(names) else str(path)


def check_name(name: str, place: str, known: Iterable[str]) -> None:
    """Raise RecipeError with the nearest right name when no configuration has the field."""
    if name not in known:
        raise RecipeError(f"{place}: {name} is not a field of a recipe{nearest(name, known)}")


# --- types ------------------------------------------------------------------------------------------------------------


def coerce(name: str, value: Any, hint: Any, field: dataclasses.Field, place: str, from_text: bool) -> Any:
    """`value` as the field's type.

    Args:
        name: the field.
        value: as YAML gave it, or the command line's text (`from_text`), or a list of texts.
        hint: the field's resolved type.
        field: the dataclass field; `metadata["choices"]` counts.
        place: file or command line, for messages.
        from_text: whether the value is command-line text, which is read as YAML where the field is not text.

    Raises:
        RecipeError: naming the place, the value and what is allowed.
    """
    options = members(hint)
    allowed = choices_of(name, field, hint)
    if name == "resume_from_checkpoint":
        options = [*options, bool]
    if from_text:
        # Among choices the value's own type decides: scale_rewards takes text and true or false.
        value = _from_text(value, [*options, *{type(a) for a in allowed}])
    if allowed:
        if (value is None and type(None) in options) or any(
            value is a or (value == a and type(value) is type(a)) for a in allowed
        ):
            return value
        listed = ", ".join(str(a) for a in allowed)
        raise RecipeError(f"{place}: {name}: {value!r} is not a choice{nearest(value, allowed)} (choices: {listed})")
    for option in options:
        fits, converted = _fit(value, option)
        if fits:
            return converted
    raise RecipeError(f"{place}: {name}: {value!r} is {_kind(value)}, but the field takes {_describe(options)}")


def choices_of(name: str, field: dataclasses.Field, hint: Any) -> tuple:
    """The values that a field is restricted to; empty where its type is all that counts."""
    return tuple(CHOICES.get(name) or field.metadata.get("choices") or _enum_or_literal_values(members(hint)))


def members(hint: Any) -> list:
    """A type or union -> its members, the most specific ones first."""
    members = list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    order = {bool: 0, int: 1, float: 2, str: 9}
    return sorted(members, key=lambda m: order.get(m, 5))


def _enum_or_literal_values(options: list) -> tuple:
    values: list = []
    for option in options:
        if isinstance(option, type) and issubclass(option, enum.Enum):
            values += [member.value for member in option]
        elif typing.get_origin(option) is Literal:
            values += [a for a in typing.get_args(option) if a is not False]
    # `str | Literal[False]` and the like stay open; an enum beside `str` is TRL's way to allow the enum's names.
    return tuple(values) if any(isinstance(v, str) for v in values) else ()


def _from_text(value: str | list[str], options: list) -> Any:
    if isinstance(value, list):
        return [_from_text(v, [a for o in options for a in typing.get_args(o)] or options) for v in value]
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    # "5" for a text field is the text; "null" is nothing where nothing is allowed; "[a, b]" is a list.
    if str in options and not any(_fit(read, option)[0] for option in options if option is not str):
        return value
    return read


def _fit(value: Any, option: Any) -> tuple[bool, Any]:
    origin = typing.get_origin(option)
    if option is type(None):
        return value is None, None
    if option is bool:
        return isinstance(value, bool), value
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if option is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-5, without a point, as text
            try:
                return True, float(value)
            except ValueError:
                return False, value
        return isinstance(value, (int, float)) and not isinstance(value, bool), value
    if option is str:
        return isinstance(value, str), value
    if origin is list:
        items = value if isinstance(value, list) else [value]
        fitted = [_fit(item, typing.get_args(option)[0]) for item in items]
        return value is not None and all(ok for ok, _ in fitted), [converted for _, converted in fitted]
    if option is dict or origin is dict:
        return isinstance(value, dict), value
    return False, value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _describe(options: list) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    described = []
    for option in options:
        origin = typing.get_origin(option)
        if origin is list:
            described.append(f"a list of {_describe([typing.get_args(option)[0]])}")
        elif option is dict or origin is dict:
            described.append("a mapping")
        elif option in names:
            described.append(names[option])
    return " or ".join(described) or "a value that a recipe cannot hold"


# --- ranges -----------------------------------------------------------------------------------------------------------

# Values that fit a field's type and that no run can use; most would fail only after the held-out problems are measured.
# What TRL and transformers say themselves when their configurations are made is left to them.
_POSITIVE = (lambda v: 0 < v < math.inf, "write a number above 0")
_AT_LEAST_0 = (lambda v: 0 <= v < math.inf, "write a number of at least 0")
_SHARE = (lambda v: 0 <= v <= 1, "write a number from 0 to 1")
_COUNT = (lambda v: v >= 1, "write a whole number of at least 1")
_SEED = (lambda v: 0 <= v < 2**32, "write a whole number from 0 to 4294967295")
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("num_train_epochs", "repetition_penalty", "epsilon", "logging_steps", "save_steps"), _POSITIVE),
    **dict.fromkeys(
        ("learning_rate", "beta", "weight_decay", "max_grad_norm", "warmup_steps", "adam_epsilon"), _AT_LEAST_0
    ),
    **dict.fromkeys(
        ("epsilon_high", "delta", "top_k", "dynamic_sampling", "train_rows", "dataloader_num_workers"), _AT_LEAST_0
    ),
    **dict.fromkeys(("min_p", "top_entropy_quantile"), _SHARE),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), _COUNT
    ),
    **dict.fromkeys(("steps_per_generation", "generation_batch_size", "num_iterations"), _COUNT),
    **dict.fromkeys(("lora_r", "lora_alpha"), _COUNT),
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    **dict.fromkeys(
        ("lora_dropout", "adam_beta1", "adam_beta2"), (lambda v: 0 <= v < 1, "write a number from 0 to below 1")
    ),
    "top_p": (lambda v: 0 < v <= 1, "write a number above 0 and at most 1"),
    "temperature": (lambda v: 0 < v < math.inf, "it must be above 0; greedy accuracy is measured anyway"),
    "num_generations": (lambda v: v >= 2, "it must be 2 or more: an advantage is the distance from a group's mean"),
    "max_completion_length": (lambda v: v is not None and v > 0, "it must be 1 or more"),
    "max_steps": (
        lambda v: v == -1 or v >= 1,
        "no step would be trained; to measure alone use `grpo-math eval`, to count epochs instead of steps write -1",
    ),
    "reward_weights": (lambda v: all(map(math.isfinite, v)), "write finite numbers"),
    "remove_unused_columns": (lambda v: not v, "the rewards need the columns of the rows"),
}


def check_ranges(values: dict[str, Any], overrides: frozenset[str], path: str | Path) -> None:
    """Raise RecipeError for a value of `RANGES` that no run can use."""
    for name, (fits, fix) in RANGES.items():
        # A field that may be left open takes null, except the length, without which nothing is known to fit
        if name in values and (values[name] is not None or name == "max_completion_length") and not fits(values[name]):
            place = place_of([name], overrides, path)
            raise RecipeError(f"{place}: {name}: {values[name]} cannot be used: {fix}")
