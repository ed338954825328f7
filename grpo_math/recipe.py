"""A recipe: one flat YAML file in TRL's own vocabulary that is at the same time a launchable Python script.

The keys are the fields of the task's settings (`TaskConfig`, `CountdownConfig`), of `GRPOMathConfig` (TRL's `GRPOConfig`
and ours) and of TRL's `ModelConfig`. Two lines
make a recipe launchable, `accelerate launch recipes/countdown_tiny.yaml --max_steps 10`:

    launch: r\"\"\"
    model_name_or_path: builtin/countdown-tiny
    ...
    # \"\"\"; from grpo_math.cli import launch; launch(__file__, __name__)

YAML sees a key `launch` with the text `r\"\"\"` and a comment. Python sees one string and one call, which does nothing
unless the file is the main script (spawned worker processes import it again). Everything that can be wrong in a recipe
or on the command line is checked here, before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import os
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_math.errors import RecipeError, TaskError, nearest

LAUNCH_KEY = "launch"
LAUNCH_HEAD = 'launch: r"""'
LAUNCH_TAIL = '# """; from grpo_math.cli import launch; launch(__file__, __name__)'


COMMAND_LINE = "command line"


@dataclass
class Recipe:
    """A recipe as read, checked and turned into the configurations.

    Attributes:
        path: the file.
        values: the recipe's keys and the command line's overrides, as plain YAML values.
        task: the task's part.
        training: TRL's `GRPOConfig` with our options.
        model: TRL's `ModelConfig`.
        notes: lines to tell the user, such as a precision that the device cannot do.
        overrides: names of the values that came from the command line.
    """

    path: Path
    values: dict[str, Any]
    task: Any
    training: Any
    model: Any
    notes: list[str]
    overrides: frozenset[str] = frozenset()

    def place(self, *names: str) -> str:
        """Where the values of these fields came from, for messages: the command line if it gave one, else the file."""
        return _place(names, self.overrides, self.path)


def config_classes() -> tuple[type, ...]:
    """The dataclasses whose fields are a recipe's keys: those of all tasks, of training and of the model."""
    from trl import ModelConfig

    from grpo_math import tasks
    from grpo_math.trainer import GRPOMathConfig

    return *tasks.config_classes(), GRPOMathConfig, ModelConfig


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


# --- reading ----------------------------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The recipe's keys and values, without the key `launch`.

    Raises:
        RecipeError: for a missing file, text that is not YAML, a key that stands twice, or no mapping.
    """
    path = Path(path)
    if not path.is_file():
        hint = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        if path.is_dir():
            names = ", ".join(sorted(p.name for p in path.glob("*.yaml")))
            raise RecipeError(f"{path} is a folder, not a recipe; {f'it holds {names}' if names else 'it holds none'}")
        raise RecipeError(f"there is no recipe {path}" + (f"; did you mean {path.parent / hint[0]}?" if hint else ""))
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark or error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(
            f"{path}{line} is not valid YAML: {error.problem} ({error.context or 'write `key: value`'})"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # text that is not UTF-8, a date that there is not
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold keys and values (`max_steps: 100`), not {type(values).__name__}")
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise RecipeError(f"{path}, line {key.start_mark.line + 1}: key {key.value} stands twice")
        seen.add(key.value)
    values.pop(LAUNCH_KEY, None)
    return values


def parse_overrides(argv: typing.Sequence[str]) -> dict[str, Any]:
    """Command-line overrides, `--field value`, `--field=value`, `--flag`, `--list a b` -> {field: text or list of texts}.

    Raises:
        RecipeError: for a word that belongs to no field, or a field given twice.
    """
    overrides: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if re.match(r"--[A-Za-z]", word):
            name, eq, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name in overrides:
                raise RecipeError(f"--{name} is given twice on the command line")
            overrides[name] = [value] if eq else []
        elif name is None:
            raise RecipeError(f"command line: {word!r} belongs to no field; write --field value")
        else:
            overrides[name].append(word)
    known = fields()
    for name, words in overrides.items():
        switch = name == "resume_from_checkpoint" or name not in known or bool in _members(known[name][2])
        if not words and not switch:
            raise RecipeError(f"command line: --{name} has no value; write --{name} VALUE")
    return {name: "true" if not words else words[0] if len(words) == 1 else words for name, words in overrides.items()}


# --- checking ---------------------------------------------------------------------------------------------------------


def check_name(name: str, place: str, known: typing.Iterable[str]) -> None:
    """Raise RecipeError with the nearest right name when no configuration has the field."""
    if name not in known:
        raise RecipeError(f"{place}: {name} is not a field of a recipe{nearest(name, known)}")


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
    options = _members(hint)
    allowed = CHOICES.get(name) or field.metadata.get("choices") or _enum_or_literal_values(options)
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


def _members(hint: Any) -> list:
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


def checked_values(path: str | Path, argv: typing.Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's values with the overrides on top, every name and type checked."""
    known = fields()
    checked: dict[str, Any] = {}
    for values, place, from_text in (
        (read_yaml(path), str(path), False),
        (parse_overrides(argv), COMMAND_LINE, True),
    ):
        for name, value in values.items():
            check_name(name, place, known)
            _, field, hint = known[name]
            checked[name] = coerce(name, value, hint, field, place, from_text)
    return checked


# Values that fit a field's type and that no run can use; most would fail only after the held-out problems are measured.
# What TRL and transformers say themselves when their configurations are made is left to them.
_POSITIVE = (lambda v: 0 < v < math.inf, "write a number above 0")
_AT_LEAST_0 = (lambda v: 0 <= v < math.inf, "write a number of at least 0")
_SHARE = (lambda v: 0 <= v <= 1, "write a number from 0 to 1")
_COUNT = (lambda v: v >= 1, "write a whole number of at least 1")
_SEED = (lambda v: 0 <= v < 2**32, "write a whole number from 0 to 4294967295")
RANGES: dict[str, tuple[typing.Callable[[Any], bool], str]] = {
    **dict.fromkeys(("num_train_epochs", "repetition_penalty", "epsilon", "logging_steps", "save_steps"), _POSITIVE),
    **dict.fromkeys(
        ("learning_rate", "beta", "weight_decay", "max_grad_norm", "warmup_steps", "adam_epsilon"), _AT_LEAST_0
    ),
    **dict.fromkeys(("epsilon_high", "delta", "top_k", "dynamic_sampling", "dataloader_num_workers"), _AT_LEAST_0),
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
    "temperature": (lambda v: 0 < v < math.inf, "it must be above 0; what is greedy is measured anyway"),
    "num_generations": (lambda v: v >= 2, "it must be 2 or more: an advantage is the distance from a group's mean"),
    "max_completion_length": (lambda v: v is not None and v > 0, "it must be 1 or more"),
    "max_steps": (
        lambda v: v == -1 or v >= 1,
        "no step would be trained; to measure alone use `grpo-math eval`, to count epochs instead of steps write -1",
    ),
    "reward_weights": (lambda v: all(map(math.isfinite, v)), "write finite numbers"),
    "remove_unused_columns": (lambda v: not v, "the rewards need the columns of the rows"),
    "eval_strategy": (lambda v: v == "no", "held-out accuracy is measured before and after; see heldout_size"),
}


def _place(names: typing.Iterable[str], overrides: frozenset[str], path: str | Path) -> str:
    return COMMAND_LINE if overrides.intersection(names) else str(path)


def check_ranges(values: dict[str, Any], overrides: frozenset[str], path: str | Path) -> None:
    """Raise RecipeError for a value of `RANGES` that no run can use."""
    for name, (fits, fix) in RANGES.items():
        # A field that may be left open takes null, except the length, without which nothing is known to fit
        if name in values and (values[name] is not None or name == "max_completion_length") and not fits(values[name]):
            place = _place([name], overrides, path)
            raise RecipeError(f"{place}: {name}: {values[name]} cannot be used: {fix}")


def check_adapter(values: dict[str, Any], overrides: frozenset[str], path: str | Path) -> None:
    """Raise RecipeError where `use_peft` is missing: for 4-bit or 8-bit weights, and for fields of an adapter.

    A recipe's adapter fields may stand beside a `use_peft: false` that says what is meant, also from the command line, and
    beside a saved adapter, which goes on as it is; those of the command line may not.
    """
    from grpo_math.models import adapter_base

    def of_adapter(name: str) -> bool:
        return name.startswith("lora_") or name in ("use_dora", "use_rslora")

    def asks(name: str) -> bool:
        return of_adapter(name) and values[name] is not None and values[name] is not False

    model = values.get("model_name_or_path") or ""
    if adapter_base(model):
        for name in filter(asks, overrides):
            raise RecipeError(
                f"{COMMAND_LINE}: {name}: {values[name]} has no effect: {model} is a saved adapter, which is trained further "
                f"as it is. Leave {name} out, or name the adapter's base model"
            )
        return
    if values.get("use_peft"):
        return
    for name in ("load_in_4bit", "load_in_8bit"):
        if values.get(name):
            raise RecipeError(
                f"{_place([name, 'use_peft'], overrides, path)}: {name}: true needs use_peft: true, since quantized weights "
                "cannot be trained: add --use_peft true (an adapter is trained on them), or leave it out"
            )
    for name, value in values.items():
        if asks(name) and (name in overrides or "use_peft" not in values):
            raise RecipeError(
                f"{_place([name], overrides, path)}: {name}: {value} has no effect without use_peft: true: add "
                f"--use_peft true, or leave {name} out"
            )


def task_class(values: dict[str, Any], overrides: frozenset[str], path: str | Path) -> type:
    """The settings class of the recipe's task.

    Raises:
        RecipeError: for an unknown task, or a field that only another task has.
    """
    from grpo_math import tasks

    name = values.get("task", tasks.TaskConfig.task)
    try:
        cls = tasks.config_class(name)
    except TaskError as error:
        raise RecipeError(f"{_place(['task'], overrides, path)}: {error}") from error

    def has(task: type, key: str) -> bool:
        return key in {field.name for field in dataclasses.fields(task)}

    for key, value in values.items():
        others = [task for task in tasks.TASKS if has(tasks.config_class(task), key)]
        if others and not has(cls, key):
            raise RecipeError(
                f"{_place([key], overrides, path)}: {key}: {value} has no effect with task {name}: leave it out, or set "
                f"task: {' or '.join(others)}"
            )
    return cls


# --- building ---------------------------------------------------------------------------------------------------------


def load_recipe(path: str | Path, argv: typing.Sequence[str] = (), planned: bool = False) -> Recipe:
    """Read, check and build a recipe.

    Args:
        path: the YAML file.
        argv: overrides, `["--max_steps", "10"]`.
        planned: for a CUDA device with bfloat16 that need not be here: precision as there, everything placed on the CPU
            (float16 becomes bfloat16, which is as large and which a CPU has).

    Raises:
        RecipeError: for anything in it that is wrong.
    """
    import torch
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from grpo_math.models import choose_precision, native_bf16

    values = checked_values(path, argv)
    overrides = frozenset(parse_overrides(argv))
    check_ranges(values, overrides, path)
    check_adapter(values, overrides, path)
    task_settings = task_class(values, overrides, path)
    cpu = planned or values.get("use_cpu", not _has_accelerator())
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # worker processes of the launcher then meet over gloo
        values = {**values, "use_cpu": True}
    for reporter in _as_list(values.get("report_to")):
        reporters = ["none", "all", *INTEGRATION_TO_CALLBACK]
        if reporter not in reporters:
            place = _place(["report_to"], overrides, path)
            raise RecipeError(f"{place}: report_to: {reporter!r} is not a choice{nearest(reporter, reporters)}")

    values.setdefault("output_dir", f"outputs/{Path(path).stem}")
    settings = dict(values)
    settings.setdefault("report_to", "none")
    device = torch.device("cpu" if cpu else "cuda" if torch.cuda.is_available() else "mps")
    if planned:
        halves = {"float16": "bfloat16"}
        settings["dtype"] = halves.get(settings.get("dtype"), settings.get("dtype"))
        settings.update(bf16=settings.get("bf16") in (None, True) or settings.get("fp16", False), fp16=False)
    fp16 = settings.get("fp16", False)
    bf16 = settings.get("bf16")
    precision = choose_precision(
        settings.get("dtype"),
        not fp16 if bf16 is None else bf16,
        fp16,
        device,
        planned or native_bf16(device),
        settings.get("use_peft", False),
    )
    settings.update(dtype=precision.dtype, bf16=precision.bf16, fp16=precision.fp16)

    known, parts = fields(), []
    *_, training_settings, model_settings = config_classes()
    of_task = {field.name for field in dataclasses.fields(task_settings)}
    for cls in (task_settings, training_settings, model_settings):
        names = of_task if cls is task_settings else {name for name, (owner, *_) in known.items() if owner is cls}
        try:
            parts.append(cls(**{name: value for name, value in settings.items() if name in names}))
        except (ValueError, TypeError, OSError, ImportError) as error:
            # The messages name the fields that they are about
            place = _place(re.findall(r"\w+", str(error)), overrides, path)
            raise RecipeError(f"{place}: {' '.join(str(error).split())}{_sizes_that_work(str(error))}") from error
    task, training, model = parts
    if isinstance(model.lora_target_modules, str) and model.lora_target_modules.isidentifier():
        # TRL makes one name a text, which peft reads as a pattern for a module's whole path
        model.lora_target_modules = [model.lora_target_modules]
    notes = [precision.note] if precision.note else []
    return Recipe(Path(path), values, task, training, model, notes, overrides)


def _sizes_that_work(message: str) -> str:
    """What to write where TRL only says that the completions of a generation do not divide into groups."""
    found = re.search(r"\((\d+)\) must be divisible by num_generations", message)
    if not found:
        return ""
    rows = int(found[1])
    sizes = [str(n) for n in range(2, rows + 1) if rows % n == 0][:12]
    if not sizes:
        return " Raise per_device_train_batch_size or gradient_accumulation_steps: one completion makes no group."
    return f" A generation has {rows} completions; num_generations may be {', '.join(sizes)}."


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def dump(values: dict[str, Any], comment: str) -> str:
    """Values as a launchable recipe. Where it went on from belongs to the command, not to the recipe."""
    values = {name: value for name, value in values.items() if name != "resume_from_checkpoint"}
    return f"# {comment}\n{LAUNCH_HEAD}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}{LAUNCH_TAIL}\n"
