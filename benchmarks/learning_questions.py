"""Held-out accuracy of the tiny model over training, for questions that a recipe's author asks.

Group size, temperature, reward, and a supervised warm-up for the same compute. Every run starts from the built-in tiny model
and is measured on the same held-out problems. The line of the best policy that ignores the target shows what is no arithmetic.
"""

import time
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks import common
from grpo_math import tiny_model
from grpo_math.evaluation import measure, prompt_ids
from grpo_math.run.supervised import completion_ids
from grpo_math.tasks import Problems, load_problems, resolve_rewards, solutions

BATCH = 128  # completions of a step
HELDOUT, SAMPLES = 150, 4
BASE = {"num_generations": 16, "temperature": 1.0, "reward": "countdown_accuracy", "method": "GRPO"}
# Question -> label -> what differs from BASE. The labels are drawn beside the lines
QUESTIONS: dict[str, dict[str, dict]] = {
    "group size": {f"G = {size}": {"num_generations": size} for size in (2, 4, 8, 16)},
    "temperature": {"0.5": {"temperature": 0.5}, "1": {}},
    "reward": {"right or wrong": {}, "partial credit": {"reward": "countdown_proximity"}},
    "method": {"GRPO": {}, "SFT": {"method": "SFT"}},
}
ABOUT = {
    "group size": f"Completions of a prompt, {BATCH} completions a step: a larger group means fewer prompts.",
    "temperature": "Of the sampling in training. Accuracy is always measured at temperature 1, and greedy.",
    "reward": "1 or 0, or partial credit that falls with the distance to the target (`countdown_proximity`).",
    "method": "GRPO, or supervised training for the same CPU time on the same problems. SFT is told the solver's solutions, "
    "GRPO only whether its own are right.",
}


def tiny_problems() -> tuple[Problems, object]:
    """The tiny model's problems with a held-out set, and the task's settings."""
    config = tiny_model.tiny_task_config(heldout_size=HELDOUT)
    return load_problems(config), config


class Measured(TrainerCallback):
    """Held-out accuracy at the start, every so many steps and at the end, outside the training's own CPU time."""

    def __init__(self, problems: Problems, reward, tokenizer, every: int, budget: float | None = None):
        self.problems, self.reward, self.tokenizer = problems, reward, tokenizer
        self.every, self.budget = every, budget
        self.points: list[dict] = []
        self._since, self.seconds = 0.0, 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.look(model, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        spent = self.seconds + time.process_time() - self._since
        if self.budget is not None and spent >= self.budget:
            control.should_training_stop = True
        due = self.budget is None and state.global_step % self.every == 0
        # Of a run with a budget: looks at equal shares of it
        due |= self.budget is not None and spent >= self.budget * len(self.points) / self.looks
        if due or control.should_training_stop:
            self.seconds = spent
            self.look(model, state.global_step)
        return control

    looks = 5  # of a run with a budget

    def look(self, model, step: int) -> None:
        found = measure(
            model,
            self.tokenizer,
            self.problems.heldout,
            self.problems.kinds,
            self.reward,
            generations=SAMPLES,
            batch_size=HELDOUT * SAMPLES,
            seed=0,
            max_new_tokens=6,
            sampling={"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        )
        model.train()
        point = {"step": step, "seconds": round(self.seconds, 2), "sampled": found.sampled.value}
        self.points.append({**point, "greedy": found.greedy.value})
        self._since = time.process_time()


def learn(setting: dict, seed: int, steps: int, out: Path, budget: float | None = None) -> list[dict]:
    """
    One run.

    Args:
        setting: What differs from [`BASE`].
        budget: CPU seconds of training, for supervised training in place of a number of steps.

    Returns:
        Points along the run: `step`, `seconds` (CPU, training alone), `sampled`, `greedy` accuracy.
    """
    setting = {**BASE, **setting}
    problems, config = tiny_problems()
    _, tokenizer, _, accuracy = common.tiny_countdown()
    curve = Measured(problems, accuracy, tokenizer, every=max(1, steps // Measured.looks), budget=budget)
    folder = str(tiny_model.tiny_model_folder())
    if setting["method"] == "SFT":
        trainer = _supervised(folder, tokenizer, problems, config, seed, out, curve)
    else:
        (reward,) = resolve_rewards([setting["reward"]], config)
        trainer = common.make_trainer(
            True,
            folder,
            reward,
            problems.train,
            tokenizer,
            out,
            [curve],
            per_device_train_batch_size=BATCH,
            num_generations=setting["num_generations"],
            temperature=setting["temperature"],
            max_completion_length=6,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            max_steps=steps,
            logging_steps=50,
            log_level="error",
            seed=seed,
        )
    trainer.train()
    return curve.points


def _supervised(
    folder: str, tokenizer, problems: Problems, config, seed: int, out: Path, curve: Measured
) -> SFTTrainer:
    """TRL's SFTTrainer on the solver's solutions, until the curve's budget is spent."""
    texts = solutions(problems, config)
    prompts = prompt_ids(tokenizer, [row["prompt"] for row in problems.train])
    rows = []
    for row, ids, text in zip(problems.train, prompts, texts, strict=True):
        if text is not None:
            answer = completion_ids(tokenizer, row["prompt"], ids, text, False)
            rows.append({"input_ids": [*ids, *answer], "completion_mask": [0] * len(ids) + [1] * len(answer)})
    args = SFTConfig(
        str(out),
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_steps=100_000,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        log_level="error",
        seed=seed,
        completion_only_loss=True,
        model_init_kwargs={"dtype": "float32"},
    )
    return SFTTrainer(
        folder, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[curve]
    )


def ask(questions: list[str], seeds: int, steps: int, out: Path) -> dict[str, dict[str, list[list[dict]]]]:
    """Runs the questions; equal settings once. Question -> label -> points of every seed."""
    done: dict[str, list[list[dict]]] = {}
    found: dict[str, dict[str, list[list[dict]]]] = {}
    for question in questions:
        found[question] = {}
        for label, setting in QUESTIONS[question].items():
            key = str(sorted({**BASE, **setting}.items()))
            if key not in done:
                budgets = [None] * seeds
                if setting.get("method") == "SFT":
                    budgets = [points[-1]["seconds"] for points in found[question]["GRPO"]]
                done[key] = [learn(setting, seed, steps, out, budget) for seed, budget in enumerate(budgets)]
            found[question][label] = done[key]
            print(f"{question}, {label}: sampled {[round(p[-1]['sampled'], 3) for p in done[key]]}", flush=True)
    return found
