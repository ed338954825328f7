"""The supervised warm-up: TRL's SFTTrainer on the worked solutions of a recipe's task, before GRPO.

A base or very small model that is never right gets no signal from GRPO: all rewards of a group are equal. The warm-up
shows it solutions of the recipe's own training rows, behind the recipe's own prompts, token for token those that GRPO
generates from. Its model is loaded and adapted as GRPO would, so `model_name_or_path` of the recipe takes the result.

>>> code = supervise(load_recipe("recipes/countdown_tiny.yaml"))
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shlex
import time
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, disable_progress_bars, enable_progress_bars
from peft import PeftModel
from rich.console import Console
from rich.text import Text
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import is_conversational

from grpo_math import models, report
from grpo_math.errors import RecipeError
from grpo_math.evaluation import prompt_ids
from grpo_math.files import write_whole
from grpo_math.memory import as_arguments, is_out_of_memory
from grpo_math.recipe import Recipe, dump
from grpo_math.recipe.supervised import ADAPTER_LEARNING_RATE, FULL_LEARNING_RATE
from grpo_math.run import checks
from grpo_math.run.callbacks import json_value, signals_interrupt
from grpo_math.run.failures import disk_failure
from grpo_math.run.folder import check_nothing_is_overwritten, set_aside
from grpo_math.run.heldout import AFTER, BEFORE, compared, figures_of, measure_heldout, write_records
from grpo_math.run.lock import only_run_in
from grpo_math.run.model_card import write_card
from grpo_math.run.prepare import Prepared, end_trackers, prepare
from grpo_math.run.progress import progress_callback
from grpo_math.run.train import OUT_OF_MEMORY, summarise
from grpo_math.tasks import solutions
from grpo_math.trainer.lm_head import add_compact_lm_head

# Settings of a GRPO run that would only cost memory or start a server here
NOT_FOR_SFT = {"beta": 0.0, "use_vllm": False, "ref_clip_low": None, "ref_clip_high": None, "kl_target": None}
# Fields of a recipe that the warm-up takes over as they are
SHARED = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "dataloader_num_workers", "dataloader_pin_memory", "disable_tqdm",
    "fp16", "fsdp", "fsdp_config", "deepspeed", "gradient_checkpointing", "gradient_checkpointing_kwargs", "max_grad_norm",
    "optim", "optim_args", "report_to", "run_name", "seed", "use_cpu", "weight_decay",
)  # fmt: skip


class Lines(NamedTuple):
    """
    The supervised lines, and why others were left out.

    Attributes:
        rows: `{"input_ids": prompt and completion, "completion_mask": 1 on the completion}`, lists of equal length.
        unsolved: Rows without a worked solution.
        too_long: Solutions longer than `max_completion_length`, which GRPO would cut off.
        unpaid: Solutions that the task's accuracy reward does not pay.
    """

    rows: list[dict[str, list[int]]]
    unsolved: int
    too_long: int
    unpaid: int


def completion_ids(tokenizer: Any, prompt: str, ids: list[int], completion: str, templated: bool) -> list[int]:
    """Token ids of a completion behind a prompt, with the end token.

    Prompt and completion are tokenised together, as the model will see them, where the prompt's own tokens survive that;
    else apart: the prompt is never tokenised otherwise than when GRPO generates from it.

    Args:
        prompt: The rendered prompt.
        ids: Its token ids.
        completion: The completion's text.
        templated: Whether the prompt holds the special tokens of a chat template already.
    """
    together = tokenizer(prompt + completion, add_special_tokens=not templated)["input_ids"]
    if together and together[-1] == tokenizer.eos_token_id:
        together = together[:-1]
    apart = tokenizer(completion, add_special_tokens=False)["input_ids"]
    own = together[len(ids) :] if together[: len(ids)] == ids and len(together) > len(ids) else apart
    return [*own, tokenizer.eos_token_id]


def supervised_lines(run: Prepared) -> Lines:
    """The worked solutions of the training rows, `sft_size` of them drawn with `task_seed`, as token ids.

    Raises:
        RecipeError: when no solution is left.
    """
    recipe, problems, tokenizer = run.recipe, run.problems, run.tokenizer
    template = recipe.training.chat_template_kwargs or {}
    texts = solutions(problems, recipe.task)
    order = list(range(len(texts)))
    random.Random(recipe.task.task_seed).shuffle(order)
    rows, unsolved, too_long, unpaid = [], 0, 0, 0
    conversational = is_conversational(problems.train[0])
    for i in order:
        if len(rows) == recipe.supervised.sft_size:
            break
        row, text = problems.train[i], texts[i]
        if text is None:
            unsolved += 1
            continue
        prompt = row["prompt"]
        if not _is_paid(run, row, text, conversational):
            unpaid += 1
            continue
        (ids,) = prompt_ids(tokenizer, [prompt], recipe.training.chat_template_kwargs)
        if conversational:
            prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **template)
        completion = completion_ids(tokenizer, prompt, ids, text, conversational)
        if len(completion) > recipe.training.max_completion_length:
            too_long += 1
            continue
        mask = [0] * len(ids) + [1] * len(completion)
        rows.append({"input_ids": [*ids, *completion], "completion_mask": mask})
    if not rows:
        raise RecipeError(
            f"{recipe.place('task', 'dataset_path', 'max_completion_length')}: of {len(texts)} training rows none gives a "
            f"solution to train on: {unsolved} have no worked solution, {too_long} are longer than max_completion_length "
            f"{recipe.training.max_completion_length}, {unpaid} are not paid by {run.accuracy_reward.__name__}"
        )
    return Lines(rows, unsolved, too_long, unpaid)


def _is_paid(run: Prepared, row: dict, text: str, conversational: bool) -> bool:
    columns = {name: [value] for name, value in row.items() if name != "prompt"}
    completion = [{"role": "assistant", "content": text}] if conversational else text
    (score,) = run.accuracy_reward(completions=[completion], prompts=[row["prompt"]], **columns)
    return score is not None and score >= 1.0


def sft_arguments(recipe: Recipe, folder: Path, lines: int, adapter: bool) -> SFTConfig:
    """TRL's settings of the warm-up: the recipe's precision, optimizer and seed, and its `sft_*` fields."""
    settings, args = recipe.supervised, recipe.training
    world = args.world_size
    per_process = max(1, settings.sft_batch_size // world)
    # A row of GRPO is at least as long as a solution, so as many fit
    at_once = max(
        n for n in range(1, per_process + 1) if per_process % n == 0 and n <= args.per_device_train_batch_size
    )
    steps = math.ceil(math.ceil(lines / (per_process * world)) * settings.sft_epochs)
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=per_process // at_once,
        num_train_epochs=settings.sft_epochs,
        learning_rate=settings.sft_learning_rate or (ADAPTER_LEARNING_RATE if adapter else FULL_LEARNING_RATE),
        lr_scheduler_type="linear",
        warmup_steps=0.05,  # a share of all steps
        logging_steps=max(1, steps // 50),
        save_strategy="no",
        max_length=None,
        completion_only_loss=True,
        **{name: getattr(args, name) for name in SHARED},
    )


def output_folder(recipe: Recipe) -> Path:
    """Where the warm-up's model goes: `sft_output_dir`, else `sft` inside `output_dir`."""
    return Path(recipe.supervised.sft_output_dir or Path(recipe.training.output_dir) / "sft")


def supervise(recipe: Recipe) -> int:
    """
    The warm-up of a recipe from beginning to end. Returns the exit code: 0, or 1 when the device's memory ran out or the
    disk is full.

    Raises:
        RecipeError, TaskError, ModelError: for anything wrong with the recipe, the data or the model's name, before
            any long work.
    """
    folder = output_folder(recipe)
    for name, value in NOT_FOR_SFT.items():
        setattr(recipe.training, name, value)
    recipe.training.output_dir = str(folder)
    checks.check_folder(recipe)
    check_nothing_is_overwritten(recipe)
    checks.check_reporters(recipe)
    with only_run_in(recipe), signals_interrupt():
        try:
            return _supervise(recipe, folder)
        except (RuntimeError, OSError, SafetensorError) as error:
            line = _failure(recipe, folder, error)
            if line is None:
                raise
            Console(stderr=True, highlight=False, soft_wrap=True).print(Text(line))
            return OUT_OF_MEMORY


def _failure(recipe: Recipe, folder: Path, error: Exception) -> str | None:
    """Out of memory or a full disk in a line, with what to do; None for any other error."""
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return (
            f"Out of memory: {str(error).splitlines()[0]}\nLower per_device_train_batch_size (now "
            f"{recipe.training.per_device_train_batch_size}), which bounds the solutions that run at once."
        )
    cause = disk_failure(error, folder)
    return (
        None
        if cause is None
        else f"The warm-up's model is not saved: {cause}. Make room, or name another sft_output_dir"
    )


def _supervise(recipe: Recipe, folder: Path) -> int:
    run = prepare(recipe, training=False)
    checks.check_trained_precision(recipe, run.trainer)
    lines = supervised_lines(run)
    trainer = _build_trainer(run, folder, lines)
    main = trainer.accelerator.is_main_process
    console = Console(markup=False, highlight=False, soft_wrap=True, quiet=not main)
    for line in _describe(run, trainer, lines):
        console.print(Text(line))

    before = measure_heldout(run, "before")
    started = time.perf_counter()
    trainer.train()
    run.trainer.model.config.use_cache = True  # the trainers turn it off, and what is saved should generate fast
    seconds = time.perf_counter() - started
    after = measure_heldout(run, "after")

    if main:
        aside = set_aside(folder) if folder.is_dir() else None
        if aside is not None:
            console.print(Text(f"An earlier run's files are now in {aside}."))
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(folder))
    if main:
        _write(run, trainer, folder, lines, before, after, seconds, console)
    end_trackers(trainer)
    return 0


def _build_trainer(run: Prepared, folder: Path, lines: Lines) -> SFTTrainer:
    model = run.trainer.model
    adapter = isinstance(model, PeftModel)
    loaded = models.adapter_weights(model)
    disable_progress_bars()
    try:
        trainer = SFTTrainer(
            model=model,
            args=sft_arguments(run.recipe, folder, len(lines.rows), adapter),
            train_dataset=Dataset.from_list(lines.rows),
            processing_class=run.tokenizer,
        )
    finally:
        enable_progress_bars()
    add_compact_lm_head(model.get_base_model() if adapter else model)
    if adapter:
        models.float32_adapter(model, loaded)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(progress_callback())
    trainer.remove_callback(PrinterCallback)
    return trainer


def _describe(run: Prepared, trainer: SFTTrainer, lines: Lines) -> list[str]:
    recipe, args, model = run.recipe, trainer.args, run.trainer.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    left_out = {
        "without a worked solution": lines.unsolved,
        "longer than max_completion_length": lines.too_long,
        "not paid by the reward": lines.unpaid,
    }
    reasons = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
    return [
        f"{recipe.path.name}, supervised: {recipe.model.model_name_or_path}, {total / 1e6:.2f} M parameters, "
        f"{trained / 1e6:.2f} M trained, on {args.device} ({args.world_size} process{'es' * (args.world_size > 1)}).",
        f"Task {recipe.task.task}, prompt style {recipe.task.prompt_style}: {len(lines.rows)} worked solutions"
        f"{f' (left out: {reasons})' if reasons else ''}, {len(run.problems.heldout)} problems held out.",
        f"{args.num_train_epochs:g} epoch(s) of {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} "
        f"solutions a step, learning rate {args.learning_rate:g}; the loss covers the solutions, not the prompts.",
        *recipe.notes,
    ]


def _write(run, trainer, folder, lines, before, after, seconds, console) -> None:
    recipe = run.recipe
    figures = None if before is None else figures_of(before)
    history = [r for r in trainer.state.log_history if "loss" in r]
    summary = {
        **summarise(dataclasses.replace(run, trainer=trainer, folder=folder), figures, after, seconds),
        **compared(before and before.records, after and after.records, 1),
        "supervised": {
            "lines": len(lines.rows),
            "epochs": trainer.args.num_train_epochs,
            "learning_rate": trainer.args.learning_rate,
            "loss_first": json_value(history[0]["loss"]) if history else None,
            "loss_last": json_value(history[-1]["loss"]) if history else None,
        },
    }
    write_whole(folder / report.SUMMARY, json.dumps(summary, indent=2) + "\n")
    text = dump(recipe.values, f"What the warm-up of {recipe.path.name} ran with (grpo-math sft).")
    write_whole(folder / "recipe.yaml", text)
    write_card(folder, recipe, summary)
    if after is not None:
        write_records(folder / BEFORE, figures, before.records)
        write_records(folder / AFTER, figures_of(after), after.records)
    samples = (before.records, after.records) if after is not None else None
    report.print_summary(console, folder, summary, samples)
    loss = summary["supervised"]
    if history:
        console.print(Text(f"Loss per token: {loss['loss_first']:.3f} at first, {loss['loss_last']:.3f} at last."))
    given = {name: value for name, value in recipe.values.items() if name in recipe.overrides}
    given = {name: value for name, value in given.items() if not name.startswith("sft_")}
    words = [str(recipe.path), *as_arguments({**given, "model_name_or_path": str(folder)})]
    console.print(Text(f"Go on with GRPO: grpo-math train {shlex.join(words)}"))
