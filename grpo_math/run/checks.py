"""What can be wrong with a run once its recipe is read. Each error names the place, the value and the fix.

All checks are made before any long work. The recipe alone is checked in `recipe/`, the rows themselves in `tasks/`.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import is_liger_kernel_available

from grpo_math import models, report
from grpo_math.errors import RecipeError, nearest
from grpo_math.evaluation import prompt_ids
from grpo_math.recipe import Recipe
from grpo_math.tasks import Problems

logger = logging.getLogger(__name__)


def check_weights(recipe: Recipe, rewards: Sequence) -> None:
    """One weight a reward."""
    weights = recipe.training.reward_weights
    if weights is not None and len(weights) != len(rewards):
        raise RecipeError(
            f"{recipe.place('reward_weights', 'rewards')}: reward_weights has {len(weights)} numbers for "
            f"{len(rewards)} rewards ({', '.join(r.__name__ for r in rewards)}); give one weight a reward"
        )


BATCH_FIELDS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
    "num_generations",
)


def check_rows(recipe: Recipe, problems: Problems) -> None:
    """Enough training rows for one generation; TRL drops what is left over, and would end without a step."""
    args, rows = recipe.training, len(problems.train)
    needed = args.generation_batch_size // args.num_generations
    if rows < needed:
        raise RecipeError(
            f"{recipe.place('train_size', 'dataset_path', *BATCH_FIELDS)}: {rows} training rows "
            f"(train_size: {recipe.task.train_size}), but a generation takes {needed} prompts (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}), so no step would be trained. Give "
            f"{needed} rows or more, or a smaller per_device_train_batch_size, gradient_accumulation_steps or "
            "steps_per_generation"
        )


def check_reporters(recipe: Recipe) -> None:
    """
    Each tracker of `report_to` is installed, and wandb has credentials or is told not to need them. Nothing is sent: wandb
    would otherwise ask, or fail, only once the training begins.
    """
    for name in recipe.training.report_to:
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise RecipeError(f"{recipe.place('report_to')}: report_to: {name}: {error}") from error
        if name == "wandb" and not wandb_is_ready():
            raise RecipeError(
                f"{recipe.place('report_to')}: report_to: wandb: there is no login on this machine. Run `wandb login` or set "
                "WANDB_API_KEY; or set WANDB_MODE=offline, which keeps the figures here; or report_to: none"
            )


def wandb_is_ready() -> bool:
    import wandb

    # Where `wandb.login` looks, without its call to the server
    settings = wandb.setup().settings
    kept = settings.api_key or getattr(settings, "identity_token_file", None) or _netrc_has(settings.base_url)
    return settings.mode in ("offline", "dryrun", "disabled") or bool(kept)


def _netrc_has(url: str) -> bool:
    """Whether the user's netrc file (`NETRC`, else `~/.netrc` or `~/_netrc`) has a login for the host of a URL."""
    given = os.environ.get("NETRC")
    for path in [given] if given else ["~/.netrc", "~/_netrc"]:
        try:
            return netrc.netrc(os.path.expanduser(path)).authenticators(urlsplit(url).hostname or "") is not None
        except FileNotFoundError:
            continue
        except (netrc.NetrcParseError, OSError) as error:
            logger.info("%s could not be read: %s", path, error)
    return False


def check_trained_precision(recipe: Recipe, trainer: Any) -> None:
    """No 16-bit weights are trained: a step of RL size is below their precision, and the run would learn nothing."""
    halves = (torch.bfloat16, torch.float16)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    half = sum(p.numel() for p in trained if p.dtype in halves)
    if half > 0.01 * sum(p.numel() for p in trained) and "stochastic_round" not in (recipe.training.optim_args or ""):
        dtype = next(str(p.dtype).removeprefix("torch.") for p in trained if p.dtype in halves)
        raise RecipeError(
            f"{recipe.place('dtype', 'use_peft')}: dtype: {recipe.values.get('dtype')} trains {dtype} weights in full: "
            f"steps of learning_rate {recipe.training.learning_rate:g} are below their precision, so they would hardly move. "
            "Use --dtype float32 (bf16: true still computes in bfloat16), or --use_peft true for a LoRA adapter in float32"
        )


def check_looks(recipe: Recipe) -> None:
    """Held-out accuracy can be measured along the run, and is what the best checkpoint is chosen by."""
    args = recipe.training
    if args.eval_strategy == "no":
        patience = recipe.task.early_stopping_patience
        if patience is not None:
            raise RecipeError(
                f"{recipe.place('early_stopping_patience')}: early_stopping_patience: {patience} has no effect without looks "
                "along the run: set eval_steps"
            )
        return
    if recipe.task.heldout_size == 0:
        raise RecipeError(
            f"{recipe.place('heldout_size', 'eval_strategy', 'eval_steps')}: eval_strategy: {args.eval_strategy.value} "
            "measures held-out accuracy along the run, and heldout_size: 0 holds nothing out; give a number of rows"
        )
    metric = args.metric_for_best_model
    if metric not in (None, "accuracy", "eval_accuracy"):
        raise RecipeError(
            f"{recipe.place('metric_for_best_model', 'load_best_model_at_end')}: metric_for_best_model: {metric} is not "
            "measured along the run; write accuracy (held-out accuracy, sampled)"
        )


def check_start(recipe: Recipe, trainer: Any) -> None:
    """The optimizer, the schedule and the kernels can be had; transformers looks for them only once the training begins."""
    args = recipe.training
    names = ("optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "use_liger_kernel")
    try:
        trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
        weight = torch.nn.Parameter(torch.zeros(1))
        get_scheduler(
            args.lr_scheduler_type, torch.optim.SGD([weight], lr=args.learning_rate), 1, 2, args.lr_scheduler_kwargs
        )
        if args.use_liger_kernel and not is_liger_kernel_available():
            raise ImportError("use_liger_kernel: true needs the package liger-kernel: pip install liger-kernel")
    except (ValueError, TypeError, ImportError) as error:
        settings = ", ".join(f"{name}: {recipe.values[name]}" for name in names if name in recipe.values)
        raise RecipeError(f"{recipe.place(*names)}: {settings}: {' '.join(str(error).split())}") from error


def check_folder(recipe: Recipe) -> None:
    """`output_dir` is a folder that can be written to, or can become one."""
    folder = Path(recipe.training.output_dir).absolute()
    place = f"{recipe.place('output_dir')}: output_dir: {recipe.training.output_dir}"
    # os.path: what may not be looked into is simply not there
    parent = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(parent):
        raise RecipeError(f"{place}: {parent} is a file; name a folder")
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise RecipeError(f"{place} cannot be written ({error.strerror} in {parent}); name another") from error


@contextlib.contextmanager
def no_folder_left(folder: Path, only_after_errors: bool = True) -> Iterator[None]:
    """Removes the folders that were made inside the context and are empty at its end, or only if that is an error."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    done = False
    try:
        yield
        done = only_after_errors
    finally:
        for path in [] if done else made:
            with contextlib.suppress(OSError):  # not made after all, or not empty
                path.rmdir()


def check_target_modules(recipe: Recipe, model: Any) -> None:
    """Every module that the adapter's settings name is one of the model; peft passes over others beside one that is."""
    paths = [path for path, _ in model.named_modules()]
    for field in ("lora_target_modules", "lora_modules_to_save"):
        names = getattr(recipe.model, field)
        if not recipe.model.use_peft or names in (None, "all-linear"):
            continue
        # To peft a text is a pattern for the whole path, a list holds ends of paths
        patterns = {names: names} if isinstance(names, str) else {n: rf"(.*\.)?{re.escape(n)}" for n in names}
        for name, pattern in patterns.items():
            try:
                found = any(re.fullmatch(pattern, path) for path in paths)
            except re.error:
                found = False
            if not found:
                linear = sorted(
                    {path.rpartition(".")[2] for path, m in model.named_modules() if hasattr(m, "in_features")}
                )
                raise RecipeError(
                    f"{recipe.place(field)}: {field}: {recipe.model.model_name_or_path} has no module {name!r}"
                    f"{nearest(name, linear)} (its linear ones: {', '.join(linear)})"
                )


def check_lengths(recipe: Recipe, problems: Problems, tokenizer: Any, config: Any) -> tuple[int, float]:
    """
    Longest prompt in tokens, and the share of all prompts' tokens that stand for words the tokenizer does not know. Raises
    RecipeError when the longest prompt and the longest completion exceed the model's context.
    """
    limit = models.context_length(config)
    rows = problems.train + problems.heldout
    ids = prompt_ids(tokenizer, [row["prompt"] for row in rows], recipe.training.chat_template_kwargs)
    unknown = sum(row.count(tokenizer.unk_token_id) for row in ids) / max(sum(map(len, ids)), 1)
    longest = max(range(len(rows)), key=lambda i: len(ids[i]))
    length, new = len(ids[longest]), recipe.training.max_completion_length
    if limit is not None and length + new > limit:
        raise RecipeError(
            f"{recipe.place('max_completion_length', 'fewshot')}: "
            f"a prompt of {length} tokens and max_completion_length {new} exceed the context of {limit} "
            f"tokens of {recipe.model.model_name_or_path}. The prompt: "
            f"{report.prompt_text(rows[longest]['prompt'])[:80]!r}... "
            + (f"Lower max_completion_length to {limit - length} or less" if limit > length else "Lower fewshot")
            + ", or drop the row."
        )
    return length, unknown


def check_reference(recipe: Recipe) -> None:
    """TRL loads the reference of a fully trained model from its path, which a GGUF file is not."""
    if models.is_gguf(recipe.model.model_name_or_path or "") and recipe.training.beta and not recipe.model.use_peft:
        raise RecipeError(
            f"{recipe.place('beta', 'use_peft', 'model_name_or_path')}: "
            f"beta: {recipe.training.beta} with a GGUF file needs use_peft: true (the reference is then the "
            "disabled adapter); else set beta: 0"
        )


def check_template(recipe: Recipe, problems: Problems, tokenizer: Any) -> None:
    """A conversation needs a chat template."""
    if isinstance(problems.train[0]["prompt"], list) and tokenizer.chat_template is None:
        raise RecipeError(
            f"{recipe.place('prompt_style', 'model_name_or_path')}: "
            f"prompt_style: {recipe.task.prompt_style} is a conversation, and the tokenizer of "
            f"{recipe.model.model_name_or_path} has no chat template. Use prompt_style: plain for a base model."
        )
