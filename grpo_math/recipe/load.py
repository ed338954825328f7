"""A recipe as TRL's and our configurations: read, checked, and with the precision that the device can do."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.errors import RecipeError, TaskError, nearest
from grpo_math.recipe.schema import COMMAND_LINE, check_ranges, config_classes, fields, place_of
from grpo_math.recipe.sources import checked_values, is_launchable, parse_overrides
from grpo_math.recipe.supervised import SFTSettings


@dataclass
class Recipe:
    """A recipe as read, checked and turned into the configurations.

    Attributes:
        path: the file.
        values: the recipe's keys and the command line's overrides, as plain YAML values.
        task: the task's part.
        training: TRL's `GRPOConfig` with our options.
        model: TRL's `ModelConfig`.
        supervised: the keys `sft_*`.
        notes: lines to tell the user, such as a precision that the device cannot do.
        overrides: names of the values that came from the command line.
    """

    path: Path
    values: dict[str, Any]
    task: Any
    training: Any
    model: Any
    supervised: SFTSettings
    notes: list[str]
    overrides: frozenset[str] = frozenset()

    def place(self, *names: str) -> str:
        """Where the values of these fields came from, for messages: the command line if it gave one, else the file."""
        return place_of(names, self.overrides, self.path)


def check_adapter(values: dict[str, Any], overrides: frozenset[str], path: str | Path) -> None:
    """Raise RecipeError where `use_peft` is missing: for 4-bit or 8-bit weights, and for fields of an adapter.

    A recipe's adapter fields may stand beside a `use_peft: false` that says what is meant, also from the command line, and
    beside a saved adapter, which is trained further unchanged; those of the command line may not.
    """
    from grpo_math.models import adapter_base

    def is_adapter_field(name: str) -> bool:
        return name.startswith("lora_") or name in ("use_dora", "use_rslora")

    def is_set(name: str) -> bool:
        return is_adapter_field(name) and values[name] is not None and values[name] is not False

    model = values.get("model_name_or_path") or ""
    if adapter_base(model):
        for name in filter(is_set, overrides):
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
                f"{place_of([name, 'use_peft'], overrides, path)}: {name}: true needs use_peft: true, since quantized weights "
                "cannot be trained: add --use_peft true to train a LoRA adapter, or leave it out"
            )
    for name, value in values.items():
        if is_set(name) and (name in overrides or "use_peft" not in values):
            raise RecipeError(
                f"{place_of([name], overrides, path)}: {name}: {value} has no effect without use_peft: true: add "
                f"--use_peft true, or leave {name} out"
            )


def without_own_code(values: dict[str, Any], overrides: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """
    A recipe's values without those that make transformers run code of a model's repository, and notes on what was left out.

    Only launching a recipe is running a program. Who reads one may say `--trust_remote_code true` on the command line.
    """
    values, notes = dict(values), []
    inner = values.get("model_init_kwargs")
    if isinstance(inner, dict) and "trust_remote_code" in inner and "model_init_kwargs" not in overrides:
        values["model_init_kwargs"] = {name: value for name, value in inner.items() if name != "trust_remote_code"}
    left_out = []
    if "trust_remote_code" not in overrides and values.pop("trust_remote_code", False):
        left_out.append("trust_remote_code")
    if "/" in str(values.get("attn_implementation")) and "attn_implementation" not in overrides:
        left_out.append("attn_implementation")  # a kernel from a repository on the hub
        del values["attn_implementation"]
    for name in left_out:
        notes.append(f"{name} of the recipe is left out, since it is only read: give --{name} to run that code.")
    return values, notes


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
        raise RecipeError(f"{place_of(['task'], overrides, path)}: {error}") from error

    def has(task: type, key: str) -> bool:
        return key in {field.name for field in dataclasses.fields(task)}

    for key, value in values.items():
        others = [task for task in tasks.TASKS if has(tasks.config_class(task), key)]
        if others and not has(cls, key):
            raise RecipeError(
                f"{place_of([key], overrides, path)}: {key}: {value} has no effect with task {name}: leave it out, or set "
                f"task: {' or '.join(others)}"
            )
    return cls


def load_recipe(path: str | Path, argv: Sequence[str] = (), planned: bool = False, reading: bool = False) -> Recipe:
    """Read, check and build a recipe.

    Args:
        path: the YAML file.
        argv: overrides, `["--max_steps", "10"]`.
        planned: for a CUDA device with bfloat16 that need not be here: precision as there, everything placed on the CPU
            (float16 becomes bfloat16, which is as large and which a CPU has). Implies `reading`.
        reading: nothing is trained: code that the file asks to run is not run (`without_own_code`).

    Raises:
        RecipeError: for anything in it that is wrong.
    """
    import torch
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from grpo_math.models import choose_precision, native_bf16

    values = checked_values(path, argv, planned or reading)
    overrides = frozenset(parse_overrides(argv))
    values, notes = without_own_code(values, overrides) if planned or reading else (values, [])
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
            place = place_of(["report_to"], overrides, path)
            raise RecipeError(f"{place}: report_to: {reporter!r} is not a choice{nearest(reporter, reporters)}")

    values.setdefault("output_dir", f"outputs/{Path(path).stem}")
    settings = dict(values)
    settings.setdefault("report_to", "none")
    _default_looks(settings)
    settings.setdefault("num_completions_to_print", 1)  # with log_completions TRL would print the whole batch
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
    *_, sft_settings, training_settings, model_settings = config_classes()
    of_task = {field.name for field in dataclasses.fields(task_settings)}
    for cls in (task_settings, training_settings, model_settings, sft_settings):
        names = of_task if cls is task_settings else {name for name, (owner, *_) in known.items() if owner is cls}
        try:
            parts.append(cls(**{name: value for name, value in settings.items() if name in names}))
        except (ValueError, TypeError, OSError, ImportError) as error:
            # The messages name the fields that they are about
            place = place_of(re.findall(r"\w+", str(error)), overrides, path)
            raise RecipeError(f"{place}: {' '.join(str(error).split())}{_sizes_that_work(str(error))}") from error
    task, training, model, supervised = parts
    if isinstance(model.lora_target_modules, str) and model.lora_target_modules.isidentifier():
        # TRL makes one name a text, which peft reads as a pattern for a module's whole path
        model.lora_target_modules = [model.lora_target_modules]
    notes += [precision.note] if precision.note else []
    if not is_launchable(path):
        notes.append(
            f"`accelerate launch {path}` would not run this file, which lacks the two lines of docs/your-own.md; "
            f"`accelerate launch -m grpo_math {path}` does."
        )
    return Recipe(Path(path), values, task, training, model, supervised, notes, overrides)


def _default_looks(settings: dict[str, Any]) -> None:
    """What looks along the run need beside `eval_steps`: a strategy, sizes that TRL accepts, what the best is."""
    if settings.get("eval_steps"):
        settings.setdefault("eval_strategy", "steps")
    if settings.get("eval_strategy", "no") == "no":
        return
    generations = settings.get("num_generations_eval") or settings.get("num_generations") or 8
    settings.setdefault("per_device_eval_batch_size", generations)
    if settings.get("load_best_model_at_end") or settings.get("early_stopping_patience") is not None:
        settings.setdefault("metric_for_best_model", "accuracy")


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
