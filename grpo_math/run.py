"""One run: a recipe in, a trained model and everything to judge it by out.

Order: everything that can be wrong is checked, then rows, tokenizer and model are loaded, held-out accuracy is measured,
the policy trains, held-out accuracy is measured again, and tables and plots are written. An earlier run's files are set
aside once the first step is finished. Ctrl-C during training finishes the step, saves a checkpoint and draws what there is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import get_peft_config
from trl.models import unwrap_model_for_generation

from grpo_math import checks, memory, models, report
from grpo_math.errors import RecipeError
from grpo_math.evaluation import Accuracy, measure, sampling_of
from grpo_math.recipe import Recipe, dump
from grpo_math.tasks import get_task, load_problems, resolve_rewards
from grpo_math.tasks.base import PLAIN_STOP
from grpo_math.trainer import GRPOMathTrainer

INTERRUPTED = 130  # exit code of a run that Ctrl-C stopped, as shells have it
OUT_OF_MEMORY = 1


class Prepared:
    """
    Everything a run needs, loaded and checked: the trainer, the rows and the held-out accuracy's reward.

    Args:
        recipe: as read.
        training: whether it will be trained, and not only measured, so that there must be rows for a step.
    """

    def __init__(self, recipe: Recipe, training: bool = True):
        task, args = recipe.task, recipe.training
        self.recipe = recipe
        self.folder = Path(args.output_dir)
        rewards = resolve_rewards(task.rewards, task)
        checks.check_weights(recipe, rewards)
        checks.check_reference(recipe)
        if training:
            checks.check_folder(recipe)
            checks.check_reporters(recipe)
        self.checkpoint = checks.checkpoint_of(recipe)
        (self.accuracy_reward,) = resolve_rewards([get_task(task.task).ACCURACY], task)
        with args.main_process_first(desc="model and rows", local=False):
            # One process fills the caches (built-in model, data set), the others read them.
            self.tokenizer = models.load_tokenizer(recipe.model, args.trust_remote_code)
            config = models.load_config(recipe.model, args.trust_remote_code)
            self.problems = load_problems(task, self.tokenizer)
        if training:
            checks.check_rows(recipe, self.problems)
            checks.check_reward_columns(recipe, rewards, self.problems)
        checks.check_template(recipe, self.problems, self.tokenizer)
        self.longest_prompt, self.unknown = checks.check_lengths(recipe, self.problems, self.tokenizer, config)

        try:
            model = models.load_model(
                recipe.model, recipe.model.dtype, args.trust_remote_code, **(args.model_init_kwargs or {})
            )
        except (ImportError, TypeError) as error:  # a kernel or an argument that there is not
            names = [name for name in ("model_init_kwargs", "attn_implementation") if name in recipe.values]
            settings = ", ".join(f"{name}: {recipe.values[name]}" for name in names)
            raise RecipeError(
                f"{recipe.place(*names)}: {recipe.model.model_name_or_path} cannot be loaded"
                f"{f' with {settings}' if settings else ''}: {' '.join(str(error).split())}"
            ) from error
        further = isinstance(model, PeftModel)  # a saved adapter goes on
        if not further:
            checks.check_target_modules(recipe, model)
        loaded = models.adapter_weights(model)
        # The trainer gets the model itself; for a reference of its own TRL still needs to know the revision.
        args.model_init_kwargs = (
            {"revision": recipe.model.model_revision} if args.beta and not recipe.model.use_peft else None
        )
        self.recorder = report.RunRecorder(self.folder, self.problems.blind and self.problems.blind[0])
        self.interrupt = StopOnSignal()
        self.aside: Path | None = None  # where an earlier run's files have been moved
        with checks.no_folder_left(self.folder):
            try:
                self.trainer = GRPOMathTrainer(
                    model=model,
                    reward_funcs=rewards,
                    args=args,
                    train_dataset=Dataset.from_list(self.problems.train),
                    processing_class=self.tokenizer,
                    peft_config=None if further else get_peft_config(recipe.model),
                    callbacks=[self.recorder, self.interrupt],
                )
            except (ValueError, ImportError, OSError) as error:  # what contradicts this model or machine
                place = recipe.place(*re.findall(r"\w+", str(error)))
                raise RecipeError(f"{place}: {' '.join(str(error).split())}") from error
            if training:
                checks.check_start(recipe, self.trainer)
        self.recorder.trainer = self.interrupt.trainer = self.trainer
        if not args.disable_tqdm:  # the figures beside the bar; all of them are in metrics.jsonl
            self.trainer.remove_callback(ProgressCallback)
            self.trainer.add_callback(ShortProgress())
        self.trainer.remove_callback(PrinterCallback)
        if isinstance(self.trainer.model, PeftModel):
            models.float32_adapter(self.trainer.model, loaded)

    def measure(self, label: str) -> Accuracy | None:
        """Held-out accuracy of the policy as it is now; None when the recipe holds nothing out."""
        task, args, trainer = self.recipe.task, self.recipe.training, self.trainer
        if not self.problems.heldout:
            return None
        with unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gather_deepspeed3_params=args.ds3_gather_for_generation
        ) as model:
            return measure(
                model,
                self.tokenizer,
                self.problems.heldout,
                self.problems.kinds,
                self.accuracy_reward,
                generations=task.heldout_generations,
                batch_size=task.heldout_batch_size,
                seed=task.task_seed,
                max_new_tokens=args.max_completion_length,
                sampling={**sampling_of(args), "eos_token_id": trainer.eos_token_ids},
                chat_template_kwargs=args.chat_template_kwargs,
                stop_strings=[PLAIN_STOP] if task.prompt_style == "plain" else [],
                process=(trainer.accelerator.process_index, trainer.accelerator.num_processes),
                label="" if args.disable_tqdm else label,
            )


def evaluate(recipe: Recipe) -> list[str]:
    """Held-out accuracy of the recipe's model without training; lines to print.

    Raises:
        RecipeError: when the recipe holds nothing out.
    """
    if recipe.task.heldout_size == 0:
        raise RecipeError(
            f"{recipe.place('heldout_size')}: heldout_size: 0 leaves nothing to measure on; give a number of rows"
        )
    run = Prepared(recipe, training=False)
    accuracy = run.measure("held-out")
    lines = [
        f"{recipe.model.model_name_or_path} on {accuracy.n} held-out problems of {recipe.task.task}:",
        f"  sampled {accuracy.sampled}, greedy {accuracy.greedy} (95 % intervals), pass@{accuracy.k} "
        f"{accuracy.pass_at_k:.3f}",
    ]
    if len(accuracy.by_kind) > 1:
        lines.append("  " + ", ".join(f"{kind}: {share:.3f}" for kind, share in accuracy.by_kind.items()))
    if run.problems.blind:
        lines.append(f"  ignoring the target: {run.problems.blind[0]:.3f} ({run.problems.blind[1]})")
    _end(run.trainer)
    return lines


class ShortProgress(ProgressCallback):
    """The progress bar with the reward beside it, instead of all metrics printed above it at every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs and logs.get("reward") is not None:
            shown = {"reward": f"{logs['reward']:.3f}", "length": f"{logs.get('completions/mean_length', 0):.0f}"}
            self.training_bar.set_postfix(shown)


class StopOnSignal(TrainerCallback):
    """Ctrl-C (or SIGTERM) during training: finish the step, save a checkpoint, stop. A second one stops at once."""

    def __init__(self):
        self.trainer: Any = None
        self.received = False
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        try:
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: its owner handles signals
            self._previous = {}

    def on_train_end(self, args, state, control, **kwargs):
        self.restore()

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        if self.trainer.accelerator.is_main_process:
            print("\nStopping after this step, with a checkpoint. (Once more stops at once.)", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        received = self.received
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:  # all processes stop after the same step, whoever got the signal
            flag = torch.tensor([float(received)], device=accelerator.device)
            received = bool(accelerator.reduce(flag, reduction="sum").item())
        if received:
            self.stopped = True
            control.should_save = True
            control.should_log = True
            control.should_training_stop = True
        return control


# --- the run ----------------------------------------------------------------------------------------------------------


def train(recipe: Recipe) -> int:
    """
    Run a recipe from beginning to end. Returns the exit code: 0, 130 when Ctrl-C stopped the training, 1 when the
    device's memory ran out, after a checkpoint and a word on what would fit.

    Raises:
        RecipeError, TaskError, ModelError: for anything wrong with the recipe, the data or the model's name, before
            any long work.
    """
    run = None
    try:
        run = Prepared(recipe)
        return _train(run)
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        out_of_memory(recipe, run, error)
        return OUT_OF_MEMORY


def _train(run: Prepared) -> int:
    recipe, trainer, folder = run.recipe, run.trainer, run.folder
    main = trainer.accelerator.is_main_process
    console = Console(highlight=False, soft_wrap=True, quiet=not main)
    for line in describe(run):
        console.print(line)

    before, before_records = _before(run, main)
    run.recorder.prepare = lambda: _first_files(run, before, before_records)
    started = time.perf_counter()
    try:
        if run.checkpoint and isinstance(trainer.model, PeftModel) and "ref" in trainer.model.peft_config:
            # Where the reference is an adapter too, transformers 5.17 resumes that one alone
            trainer.model.load_adapter(run.checkpoint, "default", is_trainable=True)
        trainer.train(resume_from_checkpoint=run.checkpoint)
    finally:
        run.interrupt.restore()
        if main and run.recorder.begun:
            report.draw_curve(folder, run.recorder.blind)
    seconds = time.perf_counter() - started
    if run.interrupt.stopped:
        last = folder / f"checkpoint-{trainer.state.global_step}"
        console.print(
            f"Stopped after step {trainer.state.global_step} (of {trainer.state.max_steps}). Checkpoint: {last}"
        )
        console.print(f"Reward curve so far: {folder / report.CURVE}")
        console.print(f"Go on with: accelerate launch {_quoted(folder / 'recipe.yaml')} --resume_from_checkpoint true")
        if run.aside is not None:
            console.print(f"The files of the run before are in {run.aside}.")
        _end(trainer)
        return INTERRUPTED
    run.recorder.begin()  # a resumed run that was done already has trained no step
    trainer.save_model(str(folder))
    after = run.measure("after")
    if main:
        summary = summarise(run, before, after, seconds)
        (folder / report.SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if after is not None:
            _write_records(folder / "heldout_after.json", _figures(after), after.records)
        report.draw_curve(folder, run.recorder.blind)
        samples = (before_records, after.records) if after is not None and before_records is not None else None
        report.print_summary(console, folder, summary, samples)
    if after is not None and recipe.training.report_to not in ([], "none", ["none"]):
        trainer.log({"heldout/accuracy": after.sampled.value, "heldout/greedy": after.greedy.value})
    _end(trainer)
    return 0


def _first_files(run: Prepared, before: dict | None, records: list[dict] | None) -> None:
    """Sets an earlier run's files aside, unless it is resumed, and writes what is known before the first step."""
    folder, recipe = run.folder, run.recipe
    folder.mkdir(parents=True, exist_ok=True)
    run.aside = None if run.checkpoint else report.set_aside(folder)
    if run.aside is not None:
        tqdm.write(f"An earlier run's files are now in {run.aside}.")
    command = f"accelerate launch {_quoted(folder / 'recipe.yaml')}"
    text = dump(recipe.values, f"What {recipe.path.name} ran with.   Run: {command}")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    if before is not None:
        _write_records(folder / "heldout_before.json", before, records)


# Functions on the way to an allocation that failed -> what the run was doing; the first of this list that is there decides
PHASE_OF = {
    "measure": "held-out",
    "_generate_single_turn": "generation",
    "_generate_and_score_completions": "scoring",
    "training_step": "training",
    "clip_grad_norm_": "optimizer",
    "step": "optimizer",
    "load_model": "load",
    "__init__": "load",
}


def phase_of(error: BaseException) -> str:
    """The phase of a run, as in `grpo-math memory`, in which an error was raised; "training" when nothing tells."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    return next((phase for name, phase in PHASE_OF.items() if name in names), "training")


def out_of_memory(recipe: Recipe, run: Prepared | None, error: RuntimeError) -> None:
    """Says in which phase the memory ran out, saves a checkpoint, and says what was predicted and what would fit."""
    phase = phase_of(error)
    traceback.clear_frames(error.__traceback__)  # what the failed step still holds
    error.__traceback__ = None
    console = Console(highlight=False, soft_wrap=True, stderr=True)
    console.print(f"Out of memory in the phase [bold]{phase}[/bold]: {str(error).splitlines()[0]}", markup=True)
    if run is not None and run.recorder.begun:
        recipe_file, given = run.folder / "recipe.yaml", {}
    else:  # until its first step is finished a run has written no recipe of its own
        recipe_file = recipe.path
        given = {name: value for name, value in recipe.values.items() if name in recipe.overrides}
    wanted = given.pop("resume_from_checkpoint", recipe.training.resume_from_checkpoint)
    resumed_from, resume = checks.checkpoint_of(recipe), ""
    step = run.trainer.state.global_step if run is not None else 0
    if run is not None:
        trainer = run.trainer
        if not trainer.accelerator.is_main_process:
            return
        saved = run.folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        trainer.model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if step == 0:
            if not resumed_from:
                console.print("No step was finished: there is nothing to save.")
        elif trainer.accelerator.num_processes > 1:
            console.print(f"Saved checkpoints are in {run.folder} (every {trainer.args.save_steps} steps).")
        else:
            if not saved.is_dir():
                trainer._save_checkpoint(trainer.model, trial=None)
            console.print(f"Checkpoint of step {step}: {saved}")
            resume = " --resume_from_checkpoint true"
    if resumed_from and step == 0:
        resume = f" --resume_from_checkpoint {'true' if wanted in (True, 'true') else shlex.quote(str(wanted))}"
        console.print(f"No step was finished since the resume: {resumed_from} still holds the run. To go on from it:")
        console.print(f"  accelerate launch {_quoted(recipe_file)}{_words(given)}{resume}")
    longest = run.longest_prompt if run is not None else None
    _say_what_fits(console, recipe_file, given, resume, longest)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _words(overrides: dict[str, Any]) -> str:
    return "".join(f" {shlex.quote(word)}" for word in memory.as_arguments(overrides))


def _say_what_fits(
    console: Console, recipe_file: Path, given: dict[str, Any], resume: str, longest_prompt: int | None
) -> None:
    # In a process of its own, on the CPU: this one still holds the card and has accelerate set up for it
    vram = []
    if torch.cuda.is_available():
        vram = ["--vram", f"{memory.available_vram_for_rerun():.2f}"]
    console.print("Predicting what this recipe needs and what would fit ...")
    command = [sys.executable, "-m", "grpo_math", "memory", str(recipe_file), *memory.as_arguments(given), "--json"]
    if longest_prompt is not None:
        command += ["--prompt_length", str(longest_prompt)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def ask(words: list[str]) -> dict | None:
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            console.print(f"There is no prediction: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(lines[-1]) if lines else None

    answer = ask(vram)
    if answer is None:
        return
    console.print(
        f"Predicted: {memory.gib(answer['total'])} GiB in all, most of it in the phase {answer['phase']}; there are "
        f"{answer['vram_gib']:.2f} GiB."
    )
    if answer["fits"]:
        console.print("That should have fitted: is another program using the card? (nvidia-smi shows it.) Otherwise:")
        answer = ask(["--vram", f"{0.85 * answer['total'] / memory.GIB:.2f}"]) or answer
    for found in answer.get("suggestions", [])[:3]:
        # Another optimizer or other trained weights cannot take up the states of the checkpoint
        afresh = {"optim", "use_peft"} & set(found["overrides"])
        cost = f"{found['cost']}{' (starts afresh)' if afresh and resume else ''}"
        words = _words({**given, **found["overrides"]})
        command_line = f"accelerate launch {_quoted(recipe_file)}{words}{'' if afresh else resume}"
        console.print(f"  {memory.gib(found['total'])} GiB, {cost}: {command_line}")
    if not answer.get("suggestions"):
        console.print("Nothing that was tried fits: use a smaller model.")


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
            [f"The tokenizer does not know {run.unknown:.0%} of the prompts' words: this model cannot read the task."]
            if run.unknown > 0.2
            else []
        ),
        *(["The reference policy is a second, frozen model in memory."] if trainer.ref_model is not None else []),
        *recipe.notes,
    ]


def _before(run: Prepared, main: bool) -> tuple[dict | None, list[dict] | None]:
    """Held-out accuracy before training; a resumed run reads what its beginning measured."""
    kept = run.folder / "heldout_before.json"
    stored = _stored_before(run, kept) if run.checkpoint and main else None
    if run.trainer.accelerator.num_processes > 1:  # the main process decides, the others may not see its disk
        stored = broadcast_object_list([stored])[0]
    if stored is not None:
        return stored["figures"], stored["records"]
    before = run.measure("before")
    return (None, None) if before is None else (_figures(before), before.records)


def _stored_before(run: Prepared, kept: Path) -> dict | None:
    """What the run's beginning measured, if it was on the same problems and as many samples."""
    if not kept.exists():
        return None
    stored = json.loads(kept.read_text(encoding="utf-8"))
    same = [r["prompt"] for r in stored["records"]] == [row["prompt"] for row in run.problems.heldout]
    samples = {len(r["correct"]) for r in stored["records"]}
    return stored if same and samples == {run.recipe.task.heldout_generations} else None


def _figures(accuracy: Accuracy) -> dict:
    return {
        "accuracy": accuracy.sampled.as_dict(),
        "greedy": accuracy.greedy.as_dict(),
        "pass_at_k": accuracy.pass_at_k,
        "by_kind": accuracy.by_kind,
    }


def _write_records(path: Path, figures: dict, records: list[dict]) -> None:
    content = {"figures": figures, "records": records}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def summarise(run: Prepared, before: dict | None, after: Accuracy | None, seconds: float) -> dict:
    """The content of summary.json. Accuracies are `{"value", "low", "high"}` with 95 % intervals, or null.

    `steps` are those of the whole training, `seconds` those since `resumed_at`, the step at which this
    start began (0 unless it is a resume).
    """
    last = _figures(after) if after is not None else {}
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
        **{f"{name}_{when}": figures.get(name) for name in ("accuracy", "greedy", "pass_at_k", "by_kind")
           for when, figures in (("before", first), ("after", last))},
        "blind": blind[0] if blind else None,
        "blind_how": blind[1] if blind else None,
        "reward_first": history[0] if history else None,
        "reward_last": history[-1] if history else None,
    }  # fmt: skip


def _end(trainer: Any) -> None:
    if hasattr(trainer, "end"):  # transformers >= 5.18: finishes trackers and the process group
        trainer.end()
    elif torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
