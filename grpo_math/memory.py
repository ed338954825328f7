"""How much GPU memory a recipe needs, before it is started: predicted on fake tensors, without a GPU, weights or downloads.

[`predict`] runs the recipe's real step ([`grpo_math.dry_run`]) with every prompt and completion of the greatest length.
What torch's allocator does not see (the CUDA context, the libraries' kernels) and what it loses to fragmentation comes on
top: `total = 1.03 * peak + 0.7 GiB`, an assumption until it has been calibrated on a card.

>>> print(predict("recipes/gsm8k.yaml").total / GIB)
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from grpo_math.errors import ModelError, PredictionError, RecipeError
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.startup import prefer_expandable_segments, quieten

logger = logging.getLogger(__name__)

GIB = 2**30
OVERHEAD_FACTOR, OVERHEAD_BYTES = 1.03, int(0.7 * GIB)
DEFAULT_VRAM = 8.0  # GiB
# cuBLAS's workspace for a thread, as torch asks its allocator for it (aten/src/ATen/cuda/CublasHandlePool.cpp): before
# Hopper, and from Hopper and Blackwell (RTX 50xx) on
WORKSPACE_BYTES, WORKSPACE_BYTES_FROM_9 = 8320 * 1024, 32 * 2**20
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MOST_ROWS = 16384  # a step is prepared row by row; no single card takes as many
PHASES = ("load", "generation", "scoring", "training", "optimizer", "held-out")
TORCH_ADAMW = ("adamw_torch", "adamw_torch_fused")

# The combinations that the prediction was compared on; it reaches into the internals of all of them
SUPPORTED = (
    {"torch": "2.13", "transformers": "5.23", "trl": "1.16", "bitsandbytes": "0.50"},
    {"torch": "2.11", "transformers": "5.17", "trl": "1.16", "bitsandbytes": "0.50"},
)

# Published shapes (config.json of the model cards at https://huggingface.co/Qwen and .../HuggingFaceTB)
_QWEN = dict(
    model_type="qwen2",
    dtype="bfloat16",
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
)
_SMOL = dict(
    model_type="llama",
    dtype="bfloat16",
    vocab_size=49152,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
)


def _shape(family: dict, hidden: int, intermediate: int, layers: int, heads: int, **other) -> dict:
    return {
        **family,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **other,
    }


SHAPES = {
    "Qwen/Qwen2.5-0.5B": _shape(_QWEN, 896, 4864, 24, 14),
    "Qwen/Qwen2.5-1.5B": _shape(_QWEN, 1536, 8960, 28, 12),
    "Qwen/Qwen2.5-3B": _shape(_QWEN, 2048, 11008, 36, 16),
    "Qwen/Qwen2.5-7B": _shape(
        _QWEN, 3584, 18944, 28, 28, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False
    ),
    "HuggingFaceTB/SmolLM2-135M": _shape(_SMOL, 576, 1536, 30, 9, num_key_value_heads=3),
    "HuggingFaceTB/SmolLM2-360M": _shape(_SMOL, 960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-1.7B": _shape(_SMOL, 2048, 8192, 24, 32, num_key_value_heads=32),
}

# Tokens of the longest prompt without worked examples, in Qwen2.5's tokenizer: all 8,792 problems of GSM8K, and 2,000
# generated Countdown problems of three and four numbers, in the longest prompt style
LONGEST_PROMPT = {"gsm8k": 288, "countdown": 136}


# --- what is predicted ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class DryRun:
    """
    What one steady step took.

    Attributes:
        peaks, ops, parts: Bytes at the peak of each phase, the operation there, and its split into categories.
        paged: Bytes of optimizer states in managed memory, which CUDA moves to the host when the card is full: not
            in the peaks.
    """

    peaks: dict[str, int]
    ops: dict[str, str]
    parts: dict[str, dict[str, int]]
    paged: int

    @property
    def phase(self) -> str:
        """The phase with the highest peak."""
        return max(self.peaks, key=self.peaks.__getitem__)

    @property
    def peak(self) -> int:
        """What torch's allocator will have given out at most, in bytes."""
        return self.peaks[self.phase]


@dataclasses.dataclass
class Prediction(DryRun):
    """
    Peak memory of a recipe.

    Attributes:
        model: Its name.
        prompt_length: Tokens of the longest prompt, and where that number comes from (`prompt_source`).
        overrides: Fields that were changed.
    """

    model: str
    prompt_length: int
    prompt_source: str
    overrides: dict[str, Any]

    @property
    def total(self) -> int:
        """What the card must have, in bytes: the peak, fragmentation, and what is not the allocator's."""
        return int(OVERHEAD_FACTOR * self.peak) + OVERHEAD_BYTES

    def fits(self, vram: float) -> bool:
        """Whether a card with `vram` GiB is enough."""
        return self.total <= vram * GIB

    def as_dict(self) -> dict:
        """For JSON: the attributes, with the totals."""
        return {**dataclasses.asdict(self), "phase": self.phase, "peak": self.peak, "total": self.total}


def check_versions() -> None:
    """
    Raises:
        PredictionError: with the installed and the supported versions, when they are none of `SUPPORTED`.
    """
    names = SUPPORTED[0]
    try:
        found = {name: ".".join(version(name).split("+")[0].split(".")[:2]) for name in names}
    except PackageNotFoundError as error:
        raise PredictionError(f"the memory prediction needs the package {error.name}: pip install it") from error
    if found not in SUPPORTED:
        known = " or ".join(", ".join(f"{n} {v}" for n, v in combination.items()) for combination in SUPPORTED)
        raise PredictionError(
            f"the memory prediction knows the internals of {known}; installed are "
            f"{', '.join(f'{n} {v}' for n, v in found.items())}. Install one of these, or measure on the card itself."
        )


def model_config(recipe: Recipe) -> Any:
    """The configuration of the recipe's model: a local folder's or file's, the built-in table's, else the hub's."""
    from transformers import AutoConfig

    from grpo_math import models

    name = recipe.model.model_name_or_path or ""
    shape = SHAPES.get(name.removesuffix("-Instruct"))
    if shape is not None and not Path(name).expanduser().exists():
        shape = dict(shape)
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    try:
        return models.load_config(recipe.model, recipe.training.trust_remote_code)
    except ModelError as error:
        near = difflib.get_close_matches(name, [*SHAPES, *(f"{known}-Instruct" for known in SHAPES)], n=1)
        if not near:
            raise
        raise ModelError(f"{error} Its shape is known without the hub if you mean {near[0]}.") from error


def longest_prompt(recipe: Recipe) -> tuple[int, str]:
    """
    Tokens of the longest prompt, and how that is known: counted where model and rows are on this machine, else the
    longest of the task's published rows.

    Raises:
        PredictionError: where neither can be said; `--prompt_length` is the fix.
    """
    from grpo_math import models
    from grpo_math.evaluation import prompt_ids
    from grpo_math.tasks import load_problems

    name, task = models.resolve_name(recipe.model.model_name_or_path or ""), recipe.task
    path = Path(models.adapter_base(name) or name).expanduser()
    if path.is_file() or any((path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        try:
            # Only what is here: nothing is downloaded to answer a question
            with mock.patch("datasets.config.HF_HUB_OFFLINE", True):
                tokenizer = models.load_tokenizer(recipe.model)
                rows = load_problems(task, tokenizer)
            ids = prompt_ids(tokenizer, [row["prompt"] for row in rows.train + rows.heldout])
            return max(map(len, ids)), "counted"
        except (ValueError, OSError) as error:
            logger.info("The longest prompt could not be counted: %s", error)  # then the published one, below, is taken
    if task.fewshot or task.task not in LONGEST_PROMPT:
        raise PredictionError(
            f"how long the longest prompt is cannot be said without the rows and the tokenizer of {name} "
            f"(task: {task.task}, fewshot: {task.fewshot}). Give --prompt_length TOKENS."
        )
    return LONGEST_PROMPT[task.task], f"the longest of {task.task}"


def _planned(path: str | Path, overrides: Sequence[str]) -> Recipe:
    with _own_process_state():
        recipe = load_recipe(path, overrides, planned=True)
    args, model = recipe.training, recipe.model
    uncovered = {
        "use_vllm: true": args.use_vllm,
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
    """Overrides as a command line: `{"optim": "adamw_8bit"}` becomes `["--optim", "adamw_8bit"]`."""
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
        prompt_length: Tokens of the longest prompt; found out when `None`.
        changes: Further overrides, above `argv`.
        workspace: Bytes of cuBLAS's workspace for a thread; [`cublas_workspace`] when `None`.

    Raises:
        RecipeError, ModelError: for what is wrong with the recipe or the model's name.
        PredictionError: for versions, options or data that the prediction does not cover.
    """
    check_versions()
    changes = changes or {}
    recipe = _planned(path, _merged(argv, changes))
    config = model_config(recipe)
    source = "given"
    if prompt_length is None:
        prompt_length, source = longest_prompt(recipe)
    _check_sizes(recipe, config, prompt_length)
    with _own_process_state():
        run = _run(path, recipe, config, prompt_length, cublas_workspace() if workspace is None else workspace)
    found = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    name = recipe.model.model_name_or_path or ""
    return Prediction(**found, model=name, prompt_length=prompt_length, prompt_source=source, overrides=dict(changes))


def _run(path: str | Path, recipe: Recipe, config: Any, prompt_length: int, workspace: int) -> DryRun:
    from grpo_math.dry_run import dry_run

    try:
        return dry_run(recipe, config, prompt_length, workspace=workspace)
    except ModelError:
        raise
    except Exception as error:  # whatever TRL, transformers, peft or torch say to options that they do not take
        reason = (str(error).strip().splitlines() or [""])[0]
        raise PredictionError(
            f"{path}: its step could not be run without the card: {type(error).__name__}: {reason}. If the recipe itself "
            "starts (--max_steps 1), then it has an option that the prediction does not cover: measure on the card."
        ) from error


def _merged(argv: Sequence[str], changes: dict[str, Any]) -> list[str]:
    from grpo_math.recipe import parse_overrides

    kept = {name: value for name, value in parse_overrides(argv).items() if name not in changes}
    given = [
        word for name, value in kept.items() for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
    return [*given, *as_arguments(changes)]


def _check_sizes(recipe: Recipe, config: Any, prompt_length: int) -> None:
    from grpo_math.models import context_length

    args = recipe.training
    sizes = {
        "per_device_train_batch_size x steps_per_generation": args.per_device_train_batch_size
        * args.steps_per_generation,
        "heldout_batch_size": recipe.task.heldout_batch_size if recipe.task.heldout_size else 0,
    }
    for name, rows in sizes.items():
        if rows > MOST_ROWS:
            raise PredictionError(f"{name} is {rows} completions at once; up to {MOST_ROWS} are predicted. Lower it.")
    limit = context_length(config)
    length = recipe.training.max_completion_length
    if prompt_length < 1:
        raise PredictionError(f"--prompt_length {prompt_length}: write a number of tokens of at least 1.")
    if limit is not None and prompt_length + length > limit:
        raise PredictionError(
            f"a prompt of {prompt_length} tokens and max_completion_length {length} exceed the context of {limit} tokens "
            f"of {recipe.model.model_name_or_path}. Lower one of them."
        )


@contextlib.contextmanager
def _own_process_state() -> Iterator[None]:
    """
    Inside the context everything is placed on the CPU of one process, whatever this one has been doing: accelerate's shared
    state is put aside, and what changes in the environment is undone.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [cls._shared_state for cls in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        with mock.patch.dict(os.environ, ACCELERATE_USE_CPU="true"):
            for name in LAUNCHER:  # else it would wait for the other processes of a launcher
                os.environ.pop(name, None)
            PartialState(cpu=True)  # TRL's configuration may warn, and its logger needs this
            yield
    finally:
        for state, before in zip(shared, kept, strict=True):
            state.clear()
            state.update(before)


# --- what would fit ---------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of change that saves memory."""

    cost: str  # what is given up
    phases: set[str]  # in which it can save
    levels: list[dict[str, Any]]  # overrides, the mildest first
    same_gradient: bool = False  # whether the optimizer step stays the same


def _with_micro_batch(recipe: Recipe, size: int) -> dict[str, Any]:
    """Overrides for micro-batches of `size` rows, with as many rows in an optimizer step and in a generation as before."""
    args = recipe.training
    micro, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": micro * accumulation // size}
    given = recipe.values.get("steps_per_generation") or args.steps_per_generation != accumulation
    if given and not recipe.values.get("generation_batch_size"):
        changes["steps_per_generation"] = micro * args.steps_per_generation // size
    return changes


def smaller(recipe: Recipe) -> list[Kind]:
    """The kinds of changes that apply to a recipe, what costs least first."""
    from grpo_math import models

    args, model, task = recipe.training, recipe.model, recipe.task
    optimizer = getattr(args.optim, "value", str(args.optim))
    micro, parts, group = args.per_device_train_batch_size, args.steps_per_generation, args.num_generations
    heldout = task.heldout_batch_size if task.heldout_size else 0
    step = set(PHASES) - {"load"}
    tokens = step - {"optimizer"}
    name = model.model_name_or_path or ""
    adapter = model.use_peft or models.adapter_base(name) is not None
    lora = {"use_peft": True, "dtype": "bfloat16", "learning_rate": 2e-5, "optim": "adamw_torch"}
    quantized = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4"}

    def halves(number: int) -> list[int]:
        return [number >> n for n in range(1, number.bit_length()) if number % (1 << n) == 0]

    micro_batches = [_with_micro_batch(recipe, size) for size in halves(micro)]
    by_rows = recipe.values.get("generation_batch_size")  # TRL takes that or steps_per_generation
    generations = [
        ({"generation_batch_size": micro * size} if by_rows else {"steps_per_generation": size})
        | ({"heldout_batch_size": micro * size} if heldout > micro * size else {})
        for size in halves(parts)
        if micro * size % group == 0
    ]
    kinds = [
        Kind(
            "about a third more compute",
            {"training"},
            [] if args.gradient_checkpointing else [{"gradient_checkpointing": True}],
            same_gradient=True,
        ),
        Kind("smaller micro-batches, the same step", {"training", "scoring"}, micro_batches, same_gradient=True),
        Kind(
            "held-out problems in smaller batches",
            {"held-out"},
            [{"heldout_batch_size": size} for size in halves(heldout)],
            same_gradient=True,
        ),
        Kind("more, smaller generations a step", {"generation", "held-out"}, generations, same_gradient=True),
        Kind(
            "optimizer states of 8 bits",
            step,
            [{"optim": "adamw_8bit"}] if not adapter and optimizer in TORCH_ADAMW else [],
        ),
        Kind(
            "optimizer states of 8 bits that may move to the host",
            step,
            [{"optim": "paged_adamw_8bit"}]
            if not adapter and optimizer in (*TORCH_ADAMW, "adamw_8bit", "adamw_bnb_8bit")
            else [],
        ),
        Kind(
            "shorter completions",
            tokens,
            [{"max_completion_length": size} for size in halves(args.max_completion_length) if size >= 64],
        ),
        Kind("an adapter is trained, not the weights (LoRA)", set(PHASES), [] if adapter else [lora]),
        Kind(
            "a frozen base of 4 bits (QLoRA)",
            set(PHASES),
            [] if model.load_in_4bit or models.is_gguf(name) else [{**({} if adapter else lora), **quantized}],
        ),
    ]
    return [kind for kind in kinds if kind.levels]


@dataclasses.dataclass
class Suggestion:
    """Overrides that were tried, what they cost, and the prediction with them."""

    cost: str
    changes: dict[str, Any]
    prediction: Prediction


def suggest(
    path: str | Path,
    argv: Sequence[str],
    prediction: Prediction,
    vram: float,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Suggestion]:
    """
    The smallest changes with which a recipe fits into `vram` GiB, each with its prediction.

    Every kind of [`smaller`] that can be enough by itself is tried, its mildest level that fits is taken. Where no kind
    that leaves the gradient as it is suffices, those are added up in their order, each as far as it helps a phase that
    does not fit yet; where nothing has been found then, all kinds are.

    Args:
        prediction: Of the recipe as it is.
        progress: Called with a line about what is being tried.

    Returns:
        `list[Suggestion]`: Those that fit, what changes the run least first; empty when nothing fits.
    """
    recipe = _planned(path, argv)
    kinds = smaller(recipe)
    room = (vram * GIB - OVERHEAD_BYTES) / OVERHEAD_FACTOR
    if room <= 0:
        return []

    def too_large(predicted: Prediction) -> set[str]:
        return {phase for phase, peak in predicted.peaks.items() if peak > room}

    def attempt(cost: str, overrides: dict[str, Any]) -> Suggestion | None:
        progress(" ".join(as_arguments(overrides)))
        try:
            return Suggestion(cost, overrides, predict(path, argv, prediction.prompt_length, overrides))
        except (RecipeError, PredictionError, ModelError):  # not every change is one that the recipe takes
            return None

    def add_up(chosen: list[Kind]) -> list[Suggestion]:
        together = Suggestion("", {}, prediction)
        for kind in chosen:
            helped = too_large(together.prediction) & kind.phases
            best = together
            for level in kind.levels if helped else []:
                cost = "; ".join(filter(None, (together.cost, kind.cost)))
                tried = attempt(cost, {**together.changes, **level})
                if tried is not None and tried.prediction.peak <= best.prediction.peak:
                    best = tried
                    if not too_large(tried.prediction) & helped:
                        break
            together = best
            if together.prediction.fits(vram):
                return [together]
        return []

    # What is certainly least with everything that helps it at its smallest; training is not where that begins to accumulate,
    # which keeps gradients beside activations
    certain = {"load", "optimizer"} | ({"training"} if recipe.training.gradient_accumulation_steps > 1 else set())
    least = attempt("", {k: v for kind in kinds if kind.phases & certain for k, v in kind.levels[-1].items()})
    if least is not None and too_large(least.prediction) & certain:
        return []
    alone: dict[bool, list[Suggestion]] = {True: [], False: []}
    for kind in kinds:
        if too_large(prediction) <= kind.phases:
            tried = (attempt(kind.cost, level) for level in kind.levels)
            alone[kind.same_gradient] += itertools.islice((t for t in tried if t and t.prediction.fits(vram)), 1)
    exact = alone[True] or add_up([kind for kind in kinds if kind.same_gradient])
    return [*exact, *alone[False]] or add_up(kinds)


def solve(
    path: str | Path,
    argv: Sequence[str],
    prompt_length: int,
    vram: float,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Suggestion | None, Suggestion | None]:
    """
    The largest micro-batch with the recipe's completion length, and the longest completion with its micro-batch, that
    fit into `vram` GiB (completions in steps of 16 tokens, in a short context of one): `None` where not even the
    smallest does. Rows of an optimizer step stay as many.
    """
    from grpo_math.models import context_length

    recipe = _planned(path, argv)
    args = recipe.training
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    per_generation = args.steps_per_generation * args.per_device_train_batch_size
    sizes = [n for n in range(1, rows + 1) if rows % n == 0 and per_generation % n == 0]
    limit = context_length(model_config(recipe)) or 4096
    longest = min(limit - prompt_length, 8192)
    step = 16 if longest > 256 else 1
    lengths = range(step, longest + 1, step)

    def largest(values: Sequence[int], overrides: Callable[[int], dict], cost: str) -> Suggestion | None:
        best, low, high = None, 0, len(values) - 1
        while low <= high:
            middle = (low + high) // 2
            changes = overrides(values[middle])
            progress(" ".join(as_arguments(changes)))
            predicted = predict(path, argv, prompt_length, changes)
            if predicted.fits(vram):
                best, low = Suggestion(cost, changes, predicted), middle + 1
            else:
                high = middle - 1
        return best

    micro = largest(sizes, lambda n: _with_micro_batch(recipe, n), "largest micro-batch")
    length = largest(lengths, lambda n: {"max_completion_length": n}, "longest completion")
    if micro and micro.changes["per_device_train_batch_size"] == sizes[-1]:
        micro.cost += " (all rows of an optimizer step or a generation: the memory has room for more)"
    if length and length.changes["max_completion_length"] == lengths[-1]:
        length.cost += f" (the end of the model's context of {limit} tokens, or of what is tried: not the memory's)"
    return micro, length


# --- measuring --------------------------------------------------------------------------------------------------------

PHASE_BEGINS = "phase: "  # begins a line of a measuring process


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory ran out; CUDA and cuBLAS have names of their own for it."""
    import torch

    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in text or "ALLOC_FAILED" in text


def cublas_workspace() -> int:
    """Bytes of cuBLAS's workspace for a thread on the CUDA device; the larger one where there is no device to ask."""
    import torch

    known = torch.cuda.is_available()
    return WORKSPACE_BYTES if known and torch.cuda.get_device_capability()[0] < 9 else WORKSPACE_BYTES_FROM_9


def available_vram() -> tuple[float, str]:
    """GiB that the CUDA device has free, and its name; 8 where there is none."""
    import torch

    if not torch.cuda.is_available():
        return DEFAULT_VRAM, "no CUDA device here; --vram GIB for another size"
    device = torch.cuda.get_device_properties(0)
    try:
        # torch's own way to ask makes a CUDA context, which would count as taken and again as needed
        command = ["nvidia-smi", f"--id=GPU-{device.uuid}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        free = min(int(done.stdout.split()[0]) * 2**20, device.total_memory)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        logger.info("nvidia-smi could not be asked: %s", error)
        free, _ = torch.cuda.mem_get_info()
    return free / GIB, f"free on {device.name}"


def room_of_this_process() -> float:
    """
    GiB on the CUDA device for a run in the place of this one, to compare with [`Prediction.total`]: what torch's allocator
    holds or may still take, within this process's share of the device, and what lies outside of it already.
    """
    import torch

    free, total = torch.cuda.mem_get_info()
    share = torch.cuda.get_per_process_memory_fraction() * total
    return (min(free + torch.cuda.memory_reserved(), share) + OVERHEAD_BYTES) / GIB


def measure(
    path: str | Path,
    argv: Sequence[str],
    prompt_length: int,
    cap: float | None = None,
    changes: dict | None = None,
    progress: Callable[[str], None] = lambda phase: None,
) -> dict:
    """
    Runs two real steps in a process of its own, with random weights and completions of full length, and returns
    `{"device", "peaks", "predicted", "reserved", "out_of_memory"}`: bytes at the peak of each phase as torch's allocator
    counts them (`out_of_memory` names the phase in which the memory ran out, else `null`). Without a CUDA device they run
    on the CPU, whose LM head and optimizers allocate otherwise; `predicted` is then the prediction for that, else `null`.

    Args:
        cap: GiB that the process may take of a CUDA device.
        progress: Called with the name of each phase that begins.

    Raises:
        PredictionError: when the process ends without an answer, with the end of what it said.
    """
    job = {
        "path": str(path),
        "argv": _merged(argv, changes or {}),
        "prompt_length": prompt_length,
        "cap": cap,
    }
    prefer_expandable_segments()
    command, answer = [sys.executable, "-m", "grpo_math.memory", json.dumps(job)], None
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process:
            try:
                for line in process.stdout:
                    if line.startswith(PHASE_BEGINS):
                        progress(line.removeprefix(PHASE_BEGINS).strip())
                    elif line.startswith('{"device"'):
                        answer = json.loads(line)
            except BaseException:  # Ctrl-C
                process.kill()
                raise
        if answer is None:
            said.seek(0)
            raise PredictionError(
                f"measuring {path} failed (exit code {process.returncode}): {said.read().strip()[-800:]}"
            )
    return answer


def _measure_here(job: dict) -> dict:
    import torch

    from grpo_math.dry_run import dry_run

    recipe = load_recipe(job["path"], job["argv"])
    device = recipe.training.device
    peaks: dict[str, int] = {}
    phases: list[str] = []
    result = {"device": "cpu", "peaks": peaks, "predicted": None, "reserved": None, "out_of_memory": None}
    if device.type != "cuda":
        config, length = model_config(recipe), job["prompt_length"]
        predicted = dry_run(recipe, config, length, cuda=False)
        peaks = profiled_peaks(recipe, config, length, lambda phase: print(PHASE_BEGINS + phase, flush=True))
        return {**result, "peaks": peaks, "predicted": predicted.peaks}
    if job["cap"]:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(job["cap"] * GIB / total, 1.0), device)

    class Meter:
        def __init__(self, phase: str):
            self.phase = phase

        def __enter__(self):
            print(PHASE_BEGINS + self.phase, flush=True)
            self._note()
            phases.append(self.phase)
            torch.cuda.reset_peak_memory_stats(device)

        def __exit__(self, *error):
            self._note()
            if error[0] is None:  # out of memory: the innermost phase stays on top
                phases.pop()

        def _note(self):
            if phases:
                peaks[phases[-1]] = max(peaks.get(phases[-1], 0), torch.cuda.max_memory_allocated(device))
            torch.cuda.reset_peak_memory_stats(device)

    result["device"] = torch.cuda.get_device_name(device)
    try:
        dry_run(recipe, model_config(recipe), job["prompt_length"], fake=False, device=device, meter=Meter)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        result["out_of_memory"] = phases[-1] if phases else "training"
    result["reserved"] = torch.cuda.max_memory_reserved(device)
    return result


def profiled_peaks(
    recipe: Recipe, config: Any, prompt_length: int, progress: Callable[[str], None] = lambda phase: None
) -> dict[str, int]:
    """Bytes at the peak of each phase of a real step on the CPU, from the allocations that torch's profiler records."""
    import bisect

    from torch.profiler import ProfilerActivity, profile, record_function

    from grpo_math.dry_run import dry_run

    def meter(phase: str) -> record_function:
        progress(phase)
        return record_function(f"phase:{phase}")

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        dry_run(recipe, config, prompt_length, fake=False, cuda=False, meter=meter)
    events = recorded.profiler.kineto_results.events()
    times, live, total = [], [], 0
    for start, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        total += size
        times.append(start)
        live.append(total)
    spans = [
        (e.start_ns(), e.start_ns() + e.duration_ns(), e.name().removeprefix("phase:"))
        for e in events
        if e.name().startswith("phase:")
    ]
    inside: list[str | None] = [None] * len(times)  # the innermost phase of each allocation
    peaks: dict[str, int] = {}
    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
        inside[first:last] = [name] * (last - first)
        peaks[name] = max(peaks.get(name, 0), live[first - 1] if first else 0)
    for name, size in zip(inside, live, strict=True):
        if name is not None:
            peaks[name] = max(peaks[name], size)
    return peaks


# --- showing ----------------------------------------------------------------------------------------------------------


def gib(size: float) -> str:
    """Bytes as GiB with two digits."""
    return f"{size / GIB:.2f}"


def _unit(size: int) -> tuple[str, int]:
    """The unit in which figures of about this many bytes are readable, and its bytes."""
    return ("GiB", GIB) if size >= GIB / 2 else ("MiB", 2**20)


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def show(console: Any, path: str | Path, prediction: Prediction, vram: float, source: str) -> None:
    """Prints the table of a prediction, the operations at its peaks and its verdict."""
    unit, divisor = _unit(prediction.peak)
    table = _table(
        f"{Path(path).name}: {prediction.model}, predicted peak of each phase, {unit}", ["", *prediction.peaks]
    )

    def row(name: str, sizes: Sequence[int], style: str | None = None) -> None:
        cells = [f"{size / divisor:.2f}" for size in sizes]
        cells = [
            f"[bold]{cell}[/bold]" if phase == prediction.phase else cell
            for phase, cell in zip(prediction.peaks, cells, strict=True)
        ]
        table.add_row(name, *cells, style=style)

    for category in prediction.parts[prediction.phase]:
        sizes = [parts[category] for parts in prediction.parts.values()]
        if any(sizes):
            row(category, sizes)
    table.add_section()
    row("peak", list(prediction.peaks.values()), "bold")
    console.print(table)
    for phase, op in prediction.ops.items():
        console.print(f"{phase} is highest at: {op}")
    console.print(
        f"\nLongest prompt {prediction.prompt_length} tokens ({prediction.prompt_source}); every completion of full length, "
        "no group dead."
    )
    if prediction.paged:
        console.print(
            f"Beside it {gib(prediction.paged)} GiB of paged optimizer states, which CUDA keeps on the card while there is "
            "room and moves to the host when there is none."
        )
    verdict = "fits" if prediction.fits(vram) else "does not fit"
    console.print(
        f"{prediction.peak / divisor:.2f} {unit} at the peak ({prediction.phase}) x {OVERHEAD_FACTOR} for fragmentation + "
        f"{gib(OVERHEAD_BYTES)} GiB for the CUDA context and libraries = [bold]{gib(prediction.total)} GiB: {verdict}[/bold] "
        f"in {vram:.2f} GiB ({source})."
    )


def show_suggestions(console: Any, title: str, suggestions: Sequence[Suggestion]) -> None:
    """Prints changes with their predictions, the overrides on a line of their own, to be copied."""
    console.print(f"\n[bold]{title}[/bold]")
    for tried in suggestions:
        console.print(f"{gib(tried.prediction.total):>7} GiB, most of it in {tried.prediction.phase}: {tried.cost}")
        console.print(f"            {' '.join(as_arguments(tried.changes))}")


def show_nothing_fits(console: Any, vram: float) -> None:
    """Prints that no change was found with which the recipe fits."""
    if vram * GIB <= OVERHEAD_BYTES:
        console.print(
            f"No recipe fits into {vram:.2f} GiB: the CUDA context and libraries alone count {gib(OVERHEAD_BYTES)} GiB."
        )
    else:
        console.print(f"Nothing that was tried fits into {vram:.2f} GiB: use a smaller model.")


def show_measured(console: Any, prediction: Prediction, measured: dict) -> None:
    """Prints predicted beside measured peaks; of a measurement on the CPU with what is predicted for a CPU."""
    predicted = measured["predicted"] or prediction.peaks
    unit, divisor = _unit(max(predicted.values()))
    on_cpu = ", with what is predicted for a CPU" if measured["predicted"] else ""
    table = _table(
        f"Measured on {measured['device']}{on_cpu}, {unit}", ["", "predicted", "measured", "predicted / measured"]
    )
    for phase, peak in predicted.items():
        real = measured["peaks"].get(phase)
        cells = (f"{real / divisor:.2f}", f"{peak / real:.3f}") if real else ("-", "-")
        table.add_row(phase, f"{peak / divisor:.2f}", *cells)
    console.print(table)
    if measured["out_of_memory"]:
        console.print(f"The memory ran out in the phase {measured['out_of_memory']}.")


if __name__ == "__main__":
    quieten()
    print(json.dumps(_measure_here(json.loads(sys.argv[1]))))
