"""A run from beginning to end: held-out accuracy, training, held-out accuracy again, tables and plots.

Everything that can be wrong is checked first (`prepare.py`). An earlier run's files are set aside once the first step is
finished. Ctrl-C during training finishes the step, saves a checkpoint and draws what there is.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

from peft import PeftModel
from rich.console import Console
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback

from grpo_math import report
from grpo_math.evaluation import Accuracy
from grpo_math.files import write_whole
from grpo_math.memory import is_out_of_memory
from grpo_math.recipe import Recipe, dump
from grpo_math.run import checks
from grpo_math.run.along import LooksAlong, subset_of
from grpo_math.run.callbacks import draw_or_say, signals_interrupt
from grpo_math.run.checkpoints import goes_on_in_folder
from grpo_math.run.costs import clocked
from grpo_math.run.failures import disk_failure, report_disk_failure, safe_words, save_before_failure
from grpo_math.run.finished import finished_step, load_finished, nothing_missing, total_steps
from grpo_math.run.folder import check_nothing_is_overwritten, set_aside, set_checkpoints_aside
from grpo_math.run.heldout import (
    AFTER,
    BEFORE,
    compared,
    figures_of,
    measure_heldout,
    measured_before,
    write_records,
)
from grpo_math.run.lock import only_run_in
from grpo_math.run.model_card import write_card
from grpo_math.run.out_of_memory import report_out_of_memory
from grpo_math.run.prepare import Prepared, end_trackers, prepare
from grpo_math.run.rewards import RewardError

# What summary.json has of each measurement, as `NAME_before` and `NAME_after`
FIGURES = (
    "accuracy",
    "greedy",
    "strict",
    "lenient",
    "majority",
    "pass_at_k",
    "pass_at",
    "by_kind",
    "outcomes",
    "mean_length",
    "truncated",
)
INTERRUPTED = 130  # exit code of a run that Ctrl-C stopped, as shells have it
OUT_OF_MEMORY = DISK_FULL = 1


def train(recipe: Recipe) -> int:
    """
    Run a recipe from beginning to end. Returns the exit code: 0, 130 when Ctrl-C stopped the training, 1 when the
    device's memory ran out, after a checkpoint, or the disk is full.

    Raises:
        RecipeError, TaskError, ModelError: for anything wrong with the recipe, the data or the model's name, before
            any long work.
        RewardError: for a reward function that fails, after a checkpoint.
    """
    checks.check_folder(recipe)
    if not goes_on_in_folder(recipe):
        check_nothing_is_overwritten(recipe)
    with only_run_in(recipe), signals_interrupt():
        run = None
        try:
            run = prepare(recipe)
            return _train(run)
        except RewardError as error:
            safe = save_before_failure(recipe, run) if error.on_all_processes else safe_words(recipe, run.folder, run)
            raise RewardError(f"{error}. {safe}") from error
        except RuntimeError as error:
            if is_out_of_memory(error):
                report_out_of_memory(recipe, run, error)
                return OUT_OF_MEMORY
            return _failed(recipe, run, error)
        except (OSError, SafetensorError) as error:
            return _failed(recipe, run, error)


def _failed(recipe: Recipe, run: Prepared | None, error: Exception) -> int:
    cause = disk_failure(error, Path(recipe.training.output_dir))
    if cause is None:
        raise error
    report_disk_failure(recipe, run, cause)
    return DISK_FULL


def _train(run: Prepared) -> int:
    recipe, trainer, folder = run.recipe, run.trainer, run.folder
    main = trainer.accelerator.is_main_process
    console = Console(markup=False, highlight=False, soft_wrap=True, quiet=not main)
    for line in describe(run):
        console.print(line)

    finished_at = finished_step(run)
    if finished_at is not None:
        total = total_steps(trainer)
        console.print(
            f"The run in {folder} is finished at {finished_at} of {total} steps: nothing is trained. To train on, raise "
            f"--max_steps{'' if recipe.training.max_steps > 0 else ' or --num_train_epochs'}."
        )
        if goes_on_in_folder(recipe) and nothing_missing(folder, finished_at):
            console.print(f"Model, metrics and completions: {folder}")
            end_trackers(trainer)
            return 0
    clock = time.perf_counter
    started = clock()
    before, before_records = measured_before(run, main)
    seconds_before = clock() - started
    looks = looks_along(run, before_records, seconds_before)
    run.recorder.prepare = lambda: _first_files(run, before, before_records)
    started = time.perf_counter()
    try:
        if run.checkpoint and isinstance(trainer.model, PeftModel) and "ref" in trainer.model.peft_config:
            # Where the reference is an adapter too, transformers 5.17 resumes that one alone
            trainer.model.load_adapter(run.checkpoint, "default", is_trainable=True)
        if finished_at is None:
            with clocked(trainer) as phases:
                run.recorder.costs = phases.take
                trainer.train(resume_from_checkpoint=run.checkpoint)
        else:
            load_finished(run)
    finally:
        run.interrupt.restore()
        if main and run.recorder.begun:
            draw_or_say(folder, run.recorder.blind)
    seconds = time.perf_counter() - started
    if run.interrupt.stopped:
        last = folder / f"checkpoint-{trainer.state.global_step}"
        console.print(
            f"Stopped after step {trainer.state.global_step} (of {trainer.state.max_steps}). Checkpoint: {last}"
        )
        console.print(f"Reward curve so far: {folder / report.CURVE}")
        console.print(
            f"Go on with: accelerate launch {shlex.quote(str(folder / 'recipe.yaml'))} --resume_from_checkpoint true"
        )
        if run.aside is not None:
            console.print(f"The files of the run before are in {run.aside}.")
        end_trackers(trainer)
        return INTERRUPTED
    patience = recipe.task.early_stopping_patience
    if patience is not None and trainer.state.global_step < trainer.state.max_steps:
        console.print(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: the last {patience} look(s) found no "
            "higher held-out accuracy (early_stopping_patience)."
        )
    run.recorder.begin()  # a resumed run that was done already has trained no step
    trainer.save_model(str(folder))
    started = clock()
    after = measure_heldout(run, "after")
    if main:
        end = 1 + _finished_before(run.resumed_folder or folder, trainer.state.global_step)
        chosen_by = looks.rows if looks and looks.always else ()
        summary = {
            **summarise(run, before, after, seconds),
            **compared(before_records, after and after.records, end, chosen_by),
            "along": looks and looks.as_dict(),
            "seconds_measuring": {"before": round(seconds_before, 2), "after": round(clock() - started, 2)},
            "findings": run.watchdog.findings(),
        }
        if after is not None:
            write_records(folder / AFTER, figures_of(after), after.records)
        write_card(folder, recipe, summary)
        write_whole(folder / report.SUMMARY, json.dumps(summary, indent=2) + "\n")  # last: a run with it is complete
        draw_or_say(folder, run.recorder.blind)
        samples = (before_records, after.records) if after is not None and before_records is not None else None
        report.print_summary(console, folder, summary, samples)
    if after is not None and recipe.training.report_to not in ([], "none", ["none"]):
        trainer.log({"heldout/accuracy": after.sampled.value, "heldout/greedy": after.greedy.value})
    end_trackers(trainer)
    return 0


def looks_along(run: Prepared, before: list[dict] | None, seconds: float) -> LooksAlong | None:
    """
    Looks at held-out accuracy along the run, where the recipe asks for them.

    Args:
        run: Its trainer gets the looks as a callback.
        before: Records of all held-out problems before training.
        seconds: What they took, greedy completions included; 0 after a resume.
    """
    task, args, trainer = run.recipe.task, run.recipe.training, run.trainer
    if before is None or args.eval_strategy == "no":
        return None
    rows = subset_of(len(before), task.eval_size, task.task_seed)
    expected = seconds * len(rows) / len(before) * task.heldout_generations / (task.heldout_generations + 1)
    looks = LooksAlong(
        trainer,
        run.folder,
        lambda numbers, label: measure_heldout(run, label, numbers),
        before,
        rows,
        expected,
        task.eval_share,
        args.load_best_model_at_end,
        resumed=run.resumed_folder,
    )
    trainer.add_callback(looks)
    if task.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(task.early_stopping_patience))
    return looks


def _finished_before(folder: Path, step: int) -> int:
    """How many times this run has ended before `step`, each time with a look at the change: it was resumed after its end."""
    path = folder / report.SUMMARY
    try:
        kept = json.loads(path.read_bytes()) if path.exists() else {}
        looks = int((kept.get("verdict") or {}).get("look", 0))
        return looks - 1 if looks and kept.get("steps") == step else looks  # the same end, whose results are made again
    except (OSError, ValueError, AttributeError, TypeError):
        return 0  # an unreadable summary is no reason to lose the run's end


def _first_files(run: Prepared, before: dict | None, records: list[dict] | None) -> None:
    """Sets an earlier run's files aside, unless that run goes on, and writes what is known before the first step."""
    folder, recipe = run.folder, run.recipe
    folder.mkdir(parents=True, exist_ok=True)
    if goes_on_in_folder(recipe):
        step = run.recorder.first_step
        branch = set_checkpoints_aside(folder, step)
        if branch is not None:
            tqdm.write(f"The checkpoints after step {step}, where this run goes on, are now in {branch}.")
    else:
        run.aside = set_aside(folder)
        if run.aside is not None:
            tqdm.write(f"An earlier run's files are now in {run.aside}.")
    command = f"accelerate launch {shlex.quote(str(folder / 'recipe.yaml'))}"
    text = dump(recipe.values, f"What {recipe.path.name} ran with.   Run: {command}")
    write_whole(folder / "recipe.yaml", text)
    if before is not None:
        write_records(folder / BEFORE, before, records)


def describe(run: Prepared) -> list[str]:
    """What is about to run, in a few lines."""
    recipe, args, trainer = run.recipe, run.recipe.training, run.trainer
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainer.model.parameters())
    batch = args.generation_batch_size
    return [
        f"{recipe.path.name}: {recipe.model.model_name_or_path}, {total / 1e6:.2f} M parameters, "
        f"{trainable / 1e6:.2f} M trained, on {args.device} ({args.world_size} process{'es' * (args.world_size > 1)}).",
        f"Task {recipe.task.task}, prompt style {recipe.task.prompt_style}: {len(run.problems.train)} training rows, "
        f"{len(run.problems.heldout)} held out, longest prompt {run.longest_prompt} tokens.",
        f"Each generation: {batch // args.num_generations} prompts x {args.num_generations} completions of at most "
        f"{args.max_completion_length} tokens; loss {args.loss_type}, beta {args.beta}.",
        *(
            [
                f"The tokenizer does not know {run.unknown_share:.0%} of the prompts' words: this model cannot read the task."
            ]
            if run.unknown_share > 0.2
            else []
        ),
        *(["The reference policy is a second, frozen model in memory."] if trainer.ref_model is not None else []),
        *recipe.notes,
    ]


def summarise(run: Prepared, before: dict | None, after: Accuracy | None, seconds: float) -> dict:
    """The content of summary.json but for the change. Accuracies are `{"value", "low", "high"}` with 95 % intervals, or null.

    `steps` are those of the whole training, `seconds` those since `resumed_at`, the step at which this
    start began (0 unless it is a resume).
    """
    last = figures_of(after) if after is not None else {}
    first = before or {}
    history = [r["reward"] for r in run.trainer.state.log_history if r.get("reward") is not None]
    blind = run.problems.blind
    return {
        "task": run.recipe.task.task,
        "recipe": run.recipe.path.name,
        "model": run.recipe.model.model_name_or_path,
        "steps": run.trainer.state.global_step,
        "resumed_at": run.recorder.first_step,
        "seconds": round(seconds, 1),
        "world_size": run.recipe.training.world_size,
        "heldout_n": len(run.problems.heldout),
        "heldout_generations": run.recipe.task.heldout_generations,
        **{f"{name}_{when}": figures.get(name) for name in FIGURES
           for when, figures in (("before", first), ("after", last))},
        "blind": blind[0] if blind else None,
        "blind_how": blind[1] if blind else None,
        "reward_first": history[0] if history else None,
        "reward_last": history[-1] if history else None,
    }  # fmt: skip
