"""Peak memory of a recipe on one CUDA device, predicted without a GPU, weights or downloads.

[`predict`] runs the recipe's real step ([`grpo_math.memory.step`]) on fake tensors, with every prompt and completion of the
greatest length.

>>> print(predict("recipes/gsm8k.yaml").total / GIB)
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from grpo_math.errors import ModelError, PredictionError
from grpo_math.memory.device import cublas_workspace, single_cpu_process
from grpo_math.memory.results import Prediction, StepMemory
from grpo_math.memory.shapes import longest_prompt, model_config
from grpo_math.memory.vllm import add_to, shared_card
from grpo_math.recipe import Recipe, load_recipe, parse_overrides

logger = logging.getLogger(__name__)

# What imports torch is imported inside the functions: the face of this package must import in milliseconds

MOST_ROWS = 16384  # a step is prepared row by row; no single card holds as many

# The combinations that the prediction was compared on. It uses private names of all of them (`patches.PRIVATE_NAMES`)
TESTED = (
    {"torch": "2.13", "transformers": "5.23", "trl": "1.16", "bitsandbytes": "0.50"},
    {"torch": "2.11", "transformers": "5.17", "trl": "1.16", "bitsandbytes": "0.50"},
)


def check_versions() -> None:
    """
    Warns once when the installed versions are not a tested combination.

    Raises:
        PredictionError: when a package is missing, or its version is outside of what grpo-math itself requires.
    """
    try:
        installed = {name: metadata.version(name) for name in TESTED[0]}
    except metadata.PackageNotFoundError as error:
        raise PredictionError(f"the memory prediction needs the package {error.name}: pip install it") from error
    try:
        required = [Requirement(line) for line in metadata.requires("grpo-math") or []]
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        required = []
    for requirement in required:
        found = installed.get(requirement.name)
        if found is not None and not requirement.specifier.contains(found, prereleases=True):
            raise PredictionError(
                f"the memory prediction does not work with {requirement.name} {found}; grpo-math requires {requirement}. "
                f'Install it: pip install "{requirement}"'
            )
    _warn_if_untested(tuple((name, ".".join(text.split("+")[0].split(".")[:2])) for name, text in installed.items()))


@functools.cache  # once, not at each of the many predictions of `suggest`
def _warn_if_untested(installed: tuple[tuple[str, str], ...]) -> None:
    """Warns when the versions, as `(name, "major.minor")`, are not a tested combination."""
    if dict(installed) not in TESTED:
        known = " or ".join(", ".join(f"{name} {text}" for name, text in tested.items()) for tested in TESTED)
        logger.warning(
            "The memory prediction is untested with the installed versions %s; it was tested with %s. It may be wrong: "
            "compare it with a measurement on the card (--measure).",
            ", ".join(f"{name} {text}" for name, text in installed),
            known,
        )


def planned_recipe(path: str | Path, overrides: Sequence[str]) -> Recipe:
    """
    The recipe as a CUDA device with bfloat16 would run it, on the CPU.

    Raises:
        RecipeError: for what is wrong with the recipe.
        PredictionError: for options that the prediction does not cover.
    """
    with single_cpu_process():
        recipe = load_recipe(path, overrides, planned=True)
    args, model = recipe.training, recipe.model
    uncovered = {
        "use_transformers_continuous_batching: true": args.use_transformers_continuous_batching,
        f"cache_implementation: {args.cache_implementation}": args.cache_implementation,
        "load_in_8bit: true": model.load_in_8bit,
        "use_dora: true with load_in_4bit: true": model.use_dora and model.load_in_4bit,
        f"attn_implementation: {model.attn_implementation}": model.attn_implementation not in (None, "sdpa", "eager"),
    }
    if any(uncovered.values()):
        names = ", ".join(name for name, found in uncovered.items() if found)
        raise PredictionError(
            f"{path}: {names}: the memory prediction does not cover this. Predict without it, or measure on the card."
        )
    return recipe


def as_arguments(values: dict[str, Any]) -> list[str]:
    """Overrides as command-line words: `{"optim": "adamw_8bit"}` becomes `["--optim", "adamw_8bit"]`."""
    texts = {True: "true", False: "false", None: "null"}
    return [
        text
        for name, value in values.items()
        for text in (f"--{name}", texts[value] if isinstance(value, bool | None) else str(value))
    ]


def predict(
    path: str | Path,
    argv: Sequence[str] = (),
    prompt_length: int | None = None,
    changes: dict[str, Any] | None = None,
    workspace: int | None = None,
) -> Prediction:
    """
    Predicted peak memory of a recipe on one CUDA device.

    Args:
        path: The recipe.
        argv: Overrides from the command line, `["--max_completion_length", "128"]`.
        prompt_length: Tokens of the longest prompt; [`longest_prompt`] when `None`.
        changes: More overrides, which win over `argv`.
        workspace: Bytes of cuBLAS's workspace for a thread; [`cublas_workspace`] when `None`.

    Raises:
        RecipeError, ModelError: for what is wrong with the recipe or the model's name.
        PredictionError: for versions, options or data that the prediction does not cover.
    """
    check_versions()
    changes = changes or {}
    recipe = planned_recipe(path, merged_overrides(argv, changes))
    config = model_config(recipe)
    source = "given"
    if prompt_length is None:
        prompt_length, source = longest_prompt(recipe)
    _check_sizes(recipe, config, prompt_length)
    if workspace is None:
        workspace = cublas_workspace()
    with single_cpu_process():
        step = _run(path, recipe, config, prompt_length, workspace)
        vllm = shared_card(recipe, config, prompt_length)
    if vllm is not None:
        step = add_to(step, vllm)
    found = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    name = recipe.model.model_name_or_path or ""
    return Prediction(
        **found, model=name, prompt_length=prompt_length, prompt_source=source, overrides=dict(changes), vllm=vllm
    )


def _run(path: str | Path, recipe: Recipe, config: Any, prompt_length: int, workspace: int) -> StepMemory:
    from grpo_math.memory.step import run_one_step

    try:
        return run_one_step(recipe, config, prompt_length, workspace=workspace)
    except ModelError:
        raise
    except Exception as error:  # TRL, transformers, peft and torch refuse options in many ways
        reason = (str(error).strip().splitlines() or [""])[0]
        raise PredictionError(
            f"{path}: its step could not be run without the card: {type(error).__name__}: {reason}. If the recipe itself "
            "starts (--max_steps 1), the prediction does not cover one of its options: measure on the card."
        ) from error


def merged_overrides(argv: Sequence[str], changes: dict[str, Any]) -> list[str]:
    """Command-line words of `argv` with `changes`, which win."""
    kept = {name: value for name, value in parse_overrides(argv).items() if name not in changes}
    given = [
        word for name, value in kept.items() for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
    return [*given, *as_arguments(changes)]


def _check_sizes(recipe: Recipe, config: Any, prompt_length: int) -> None:
    """
    Raises:
        PredictionError: when rows or tokens exceed what is predicted or what the model's context holds.
    """
    from grpo_math.models import context_length

    args = recipe.training
    generated = args.per_device_train_batch_size * args.steps_per_generation
    sizes = {
        "per_device_train_batch_size x steps_per_generation": generated,
        "heldout_batch_size": recipe.task.heldout_batch_size if recipe.task.heldout_size else 0,
    }
    for name, rows in sizes.items():
        if rows > MOST_ROWS:
            raise PredictionError(f"{name} is {rows} completions at once; up to {MOST_ROWS} are predicted. Lower it.")
    limit = context_length(config)
    length = args.max_completion_length
    if prompt_length < 1:
        raise PredictionError(f"--prompt_length {prompt_length}: write a number of tokens of at least 1.")
    if limit is not None and prompt_length + length > limit:
        raise PredictionError(
            f"a prompt of {prompt_length} tokens and max_completion_length {length} exceed the context of {limit} tokens "
            f"of {recipe.model.model_name_or_path}. Lower one of them."
        )
