"""Held-out accuracy of a run: measured before and after training, kept in its folder, or measured alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from trl.models import unwrap_model_for_generation

from grpo_math.evaluation import Accuracy, changes, measure, sampled_differences, sampling_of, summarise, verdict
from grpo_math.files import write_whole
from grpo_math.report import AFTER as AFTER  # for those who read what is written here
from grpo_math.report import BEFORE
from grpo_math.run.checkpoints import goes_on_in_folder
from grpo_math.run.prepare import Prepared
from grpo_math.tasks.base import PLAIN_STOP


def measure_heldout(
    run: Prepared,
    label: str,
    numbers: list[int] | None = None,
    greedy: bool | None = None,
    only_greedy: bool = False,
    stop_strings: list[str] | None = None,
    max_new_tokens: int | None = None,
) -> Accuracy | None:
    """
    Held-out accuracy of the policy as it is now; None when the recipe holds nothing out.

    Before, during and after training the policy runs under the trainer's autocast. accelerate wraps the forward in it only once
    the training has begun, so without it the same weights would answer differently before and after.

    Args:
        run: With its trainer.
        label: Shown on the progress bars.
        numbers: The held-out problems to measure, sampled only; all of them, and greedy too, by default.
        greedy: Whether to measure the greedy completion too.
        only_greedy: Whether nothing is sampled: the greedy completion stands for one sample.
        stop_strings, max_new_tokens: In place of the recipe's own.
    """
    task, args, trainer = run.recipe.task, run.recipe.training, run.trainer
    chosen = range(len(run.problems.heldout)) if numbers is None else numbers
    if not run.problems.heldout:
        return None
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        trainer.autocast(),
    ):
        return measure(
            model,
            run.tokenizer,
            [run.problems.heldout[i] for i in chosen],
            [run.problems.kinds[i] for i in chosen],
            run.scorers,
            generations=0 if only_greedy else task.heldout_generations,
            batch_size=task.heldout_batch_size,
            seed=task.task_seed,
            max_new_tokens=max_new_tokens or args.max_completion_length,
            sampling={**sampling_of(args), "eos_token_id": trainer.eos_token_ids},
            chat_template_kwargs=args.chat_template_kwargs,
            stop_strings=stop_strings or ([PLAIN_STOP] if task.prompt_style == "plain" else []),
            process=(trainer.accelerator.process_index, trainer.accelerator.num_processes),
            label="" if args.disable_tqdm else label,
            greedy=only_greedy or (numbers is None if greedy is None else greedy),
        )


def measured_before(run: Prepared, main: bool) -> tuple[dict | None, list[dict] | None]:
    """Held-out accuracy before training; a resumed run reads what its beginning measured."""
    kept = run.folder / BEFORE
    stored = _stored_before(run, kept) if goes_on_in_folder(run.recipe) and main else None
    if run.trainer.accelerator.num_processes > 1:  # the main process decides, the others may not see its disk
        stored = broadcast_object_list([stored])[0]
    if stored is not None:
        return stored["figures"], stored["records"]
    before = measure_heldout(run, "before")
    return (None, None) if before is None else (figures_of(before), before.records)


def _stored_before(run: Prepared, kept: Path) -> dict | None:
    """What the run's beginning measured, if it can be read, and was on the same problems and as many samples."""
    if not kept.exists():
        return None
    try:
        records = json.loads(kept.read_bytes())["records"]
        same = [r["prompt"] for r in records] == [row["prompt"] for row in run.problems.heldout]
        samples = {len(r["correct"]) for r in records}
        stored = {"figures": figures_of(summarise(records)), "records": records}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        tqdm.write(f"{kept} cannot be read ({type(error).__name__}): measured again, on the model as it is now.")
        return None
    return stored if same and samples == {run.recipe.task.heldout_generations} else None


def figures_of(accuracy: Accuracy) -> dict:
    """The figures of a measurement for JSON; an interval becomes `{"value", "low", "high"}`."""
    return {
        "accuracy": accuracy.sampled.as_dict(),
        "greedy": accuracy.greedy.as_dict(),
        "strict": accuracy.strict.as_dict(),
        "lenient": accuracy.lenient.as_dict(),
        "majority": accuracy.majority.as_dict(),
        "pass_at_k": accuracy.pass_at_k,
        "pass_at": {str(k): interval.as_dict() for k, interval in accuracy.pass_at.items()},
        "by_kind": {kind: interval.as_dict() for kind, interval in accuracy.by_kind.items()},
        "outcomes": accuracy.outcomes,
        "mean_length": accuracy.mean_length,
        "truncated": accuracy.truncated,
    }


def changes_of(before: list[dict], after: list[dict]) -> dict:
    """The paired differences of two measurements for JSON, by the names of `figures_of`."""

    def plain(found):
        return {str(k): plain(v) for k, v in found.items()} if isinstance(found, dict) else found.as_dict()

    found = plain(changes(before, after))
    return {"accuracy": found.pop("sampled"), **found}


def compared(before: list[dict] | None, after: list[dict] | None, look: int, chosen_by: Sequence[int] = ()) -> dict:
    """The entries `change` and `verdict` of summary.json; null where one of the measurements is missing.

    Args:
        before, after: records of the same problems.
        look: which end of this run it is: 1, or more where a finished run was resumed.
        chosen_by: the problems that the best checkpoint was chosen by. The verdict leaves them out: a maximum over
            checkpoints is higher than what it estimates.
    """
    if before is None or after is None:
        return {"change": None, "verdict": None}
    unseen = [i for i in range(len(before)) if i not in set(chosen_by)] or list(range(len(before)))
    found = verdict(sampled_differences([before[i] for i in unseen], [after[i] for i in unseen]), look)
    return {
        "change": changes_of(before, after),
        "verdict": {**found.as_dict(), "look": look, "problems": len(unseen)},
    }


def write_records(path: Path, figures: dict, records: list[dict]) -> None:
    content = {"figures": figures, "records": records}
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
