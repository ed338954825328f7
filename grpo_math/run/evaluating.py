"""`grpo-math eval`: held-out accuracy of a recipe's model, a run's folder or any model, without training.

With an output folder every problem's completions are written as soon as they are scored, to `eval_completions.jsonl`; an
interrupted evaluation goes on from there. `eval.json` has the figures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from grpo_math.errors import RecipeError, TaskError
from grpo_math.evaluation import Accuracy, Scorers, lm_eval, summarise
from grpo_math.files import read_lines, write_whole
from grpo_math.recipe import Recipe
from grpo_math.report import EVAL, EVAL_COMPLETIONS
from grpo_math.run.heldout import figures_of, measure_heldout
from grpo_math.run.prepare import Prepared, end_trackers, prepare
from grpo_math.tasks import Problems, gsm8k, load_problems


def evaluate(
    recipe: Recipe, out: Path | None = None, protocol: str = "recipe", split: str = "test", ood: bool = False
) -> list[str]:
    """
    Measures, writes and describes the accuracy of a recipe's model; lines to print.

    Args:
        recipe: Its model is measured on its held-out problems.
        out: Folder for the figures and every completion; none are written without it.
        protocol: `recipe`: its prompt style, sampled and greedy. `lm-eval`: as lm-evaluation-harness measures GSM8K.
        split: `test` for the held-out problems, `train` for as many training problems.
        ood: Also measure problems from elsewhere: for Countdown generated ones with other counts of numbers than the recipe's,
            for GSM8K reasoning-gym's procedural ones.

    Raises:
        RecipeError: when the recipe holds nothing out, or the protocol does not suit its task.
    """
    if recipe.task.heldout_size == 0:
        raise RecipeError(
            f"{recipe.place('heldout_size')}: heldout_size: 0 leaves nothing to measure on; give a number of rows"
        )
    task = recipe.task.task
    if protocol == "lm-eval" and task != "gsm8k":
        raise RecipeError(f"command line: --protocol lm-eval is defined for task gsm8k, not {task}: leave it out")
    if ood and task not in OTHER_PROBLEMS:
        raise RecipeError(f"command line: --ood is defined for {', '.join(OTHER_PROBLEMS)}, not {task}: leave it out")
    if ood and task == "gsm8k" and importlib.util.find_spec("reasoning_gym") is None:
        raise RecipeError("command line: --ood for GSM8K needs the package reasoning-gym: pip install reasoning-gym")
    run = prepare(recipe, training=False)
    if split == "train":
        rows = run.problems.train[: recipe.task.heldout_size]
        run.problems = Problems(run.problems.train, rows, ["all"] * len(rows), None)
    options: dict[str, Any] = {}
    if protocol == "lm-eval":
        options = use_lm_eval(run, split)
    accuracy = measured(run, out, {"protocol": protocol, "split": split}, options)
    figures = {"model": recipe.model.model_name_or_path, "task": recipe.task.task, "protocol": protocol, "split": split,
               "problems": accuracy.n, "generations": accuracy.k, **figures_of(accuracy)}  # fmt: skip
    lines = describe(run, accuracy, protocol)
    if ood:
        figures["ood"] = {}
        for name, problems in OTHER_PROBLEMS[task](run).items():
            run.problems = problems
            other = measure_heldout(run, name)
            figures["ood"][name] = figures_of(other)
            lines.append(f"  out of distribution, {name}: sampled {other.sampled}, greedy {other.greedy}")
    if out is not None and run.trainer.accelerator.is_main_process:
        write_whole(out / EVAL, json.dumps(figures, indent=2) + "\n")
        lines.append(f"Figures: {out / EVAL}. Every completion: {out / EVAL_COMPLETIONS}.")
    end_trackers(run.trainer)
    return lines


def describe(run: Prepared, accuracy: Accuracy, protocol: str) -> list[str]:
    """The figures in a few lines."""
    task = run.recipe.task.task
    head = f"{run.recipe.model.model_name_or_path} on {accuracy.n} held-out problems of {task} (95 % intervals):"
    if protocol == "lm-eval":
        return [
            head,
            f"  exact_match,strict-match {accuracy.strict}",
            f"  exact_match,flexible-extract {accuracy.greedy}",
            f"  {lm_eval.SHOTS} examples, greedy; {accuracy.mean_length:.0f} tokens on average, "
            f"{accuracy.truncated:.3f} cut off",
        ]
    passes = "".join(f"pass@{k} {interval}, " for k, interval in accuracy.pass_at.items())
    lines = [
        head,
        f"  sampled {accuracy.sampled}, greedy {accuracy.greedy}",
        f"  of {accuracy.k} samples: {passes}majority {accuracy.majority}",
        f"  the prompt's form only {accuracy.strict}, any form {accuracy.lenient}",
        f"  outcomes: {', '.join(f'{name} {share:.3f}' for name, share in accuracy.outcomes.items())}; "
        f"{accuracy.mean_length:.0f} tokens on average, {accuracy.truncated:.3f} cut off",
    ]
    if len(accuracy.by_kind) > 1:
        lines.append("  " + ", ".join(f"{kind}: {share}" for kind, share in accuracy.by_kind.items()))
    if run.problems.blind:
        lines.append(f"  ignoring the target: {run.problems.blind[0]:.3f} ({run.problems.blind[1]})")
    return lines


def measured(run: Prepared, out: Path | None, settings: dict, options: dict) -> Accuracy:
    """
    The accuracy on the run's held-out problems, in parts that are written as they are done.

    Args:
        run: With its problems.
        out: Folder of the completions, or `None`: everything at once.
        settings: What the completions depend on beside the recipe; those of other settings are replaced.
        options: Further arguments of `measure_heldout`.
    """
    rows = list(range(len(run.problems.heldout)))
    if out is None:
        return measure_heldout(run, "held-out", **options)
    task, args = run.recipe.task, run.recipe.training
    accelerator = run.trainer.accelerator
    header = {
        **settings, "model": run.recipe.model.model_name_or_path, "generations": task.heldout_generations,
        "temperature": args.temperature, "max_completion_length": args.max_completion_length, "seed": task.task_seed,
        "prompts": [run.problems.heldout[0]["prompt"], run.problems.heldout[-1]["prompt"], len(rows)],
    }  # fmt: skip
    path, done = out / EVAL_COMPLETIONS, []
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        kept = read_lines(path)[0] if path.exists() else []
        done = kept[1:] if kept and kept[0] == header else []
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [header, *done]))
    if accelerator.num_processes > 1:
        done = broadcast_object_list([done])[0]
    finished = {record["row"] for record in done}
    rows = [row for row in rows if row not in finished]
    size = max(64, 4 * task.heldout_batch_size // (task.heldout_generations + 1))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        records = measure_heldout(run, f"held-out, from {len(done)}", part, **{"greedy": True, **options}).records
        records = [{**record, "row": part[record["row"]]} for record in records]
        done += records
        if accelerator.is_main_process:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return summarise(sorted(done, key=lambda record: record["row"]))


def use_lm_eval(run: Prepared, split: str) -> dict[str, Any]:
    """Puts the harness's prompts and filters in place of the recipe's; the arguments of `measure_heldout` for it."""
    if split != "test":
        raise RecipeError("command line: --protocol lm-eval measures the test split: leave --split out")
    task = run.recipe.task
    train, test = gsm8k.raw_rows(task)
    if len(train) < lm_eval.SHOTS:
        raise TaskError(f"--protocol lm-eval shows {lm_eval.SHOTS} training problems, and there are {len(train)}")
    prompts = lm_eval.prompts(test, train)[: task.heldout_size]
    rows = [{"prompt": prompt, "answer": row["answer"]} for prompt, row in zip(prompts, test, strict=False)]
    kinds = [gsm8k.steps_of(row["answer"]) for row in rows]
    run.problems = Problems(run.problems.train, rows, kinds, None)
    run.scorers = Scorers(lm_eval.lm_eval_flexible, lm_eval.lm_eval_strict, lm_eval.lm_eval_flexible)
    return {"only_greedy": True, "stop_strings": list(lm_eval.STOPS), "max_new_tokens": lm_eval.MAX_NEW_TOKENS}


def other_sizes(run: Prepared) -> dict[str, Problems]:
    """Generated Countdown problems with each count of numbers that the recipe does not have."""
    task = run.recipe.task
    usual = set(task.countdown_operands) if task.dataset_path == "generated" else {3, 4}
    found = {}
    for count in sorted({2, 3, 4} - usual):
        config = dataclasses.replace(
            task, dataset_path="generated", countdown_operands=[count], countdown_balance="none", train_size=1
        )
        found[f"{count} numbers"] = load_problems(config, run.tokenizer)
    return found


def procedural(run: Prepared) -> dict[str, Problems]:
    """As many of reasoning-gym's grade-school problems (GSM-Symbolic's templates) as the recipe holds out, in its style."""
    import reasoning_gym

    task = run.recipe.task
    size = task.heldout_size + task.fewshot + 1  # worked examples and a training row come from the same file
    made = reasoning_gym.create_dataset("gsm_symbolic", size=size, seed=task.task_seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gsm_symbolic.jsonl"
        lines = (json.dumps({"question": one["question"], "answer": str(one["answer"])}) + "\n" for one in made)
        path.write_text("".join(lines), encoding="utf-8")
        config = dataclasses.replace(task, dataset_path=str(path), train_size=None)
        return {"reasoning-gym gsm_symbolic": load_problems(config, run.tokenizer)}


OTHER_PROBLEMS = {"countdown": other_sizes, "gsm8k": procedural}
