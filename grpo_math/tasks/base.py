"""What every task shares: its settings, reading rows from the hub or a local copy, and the prompt styles.

A task is a module with these names (see `countdown.py`, `gsm8k.py`):

    ACCURACY                        name of the reward function that evaluation counts
    DEFAULT_REWARDS                 names of the reward functions that a recipe without `rewards` uses
    ANSWER_NOTE                     what the answer looks like, one sentence for the prompt
    load_rows(config)               -> (training rows, held-out rows), lists of dicts, disjoint by content
    problem_text(row)               -> the problem in words
    example(row)                    -> Example for few-shot prompts, or None where the row has no worked solution
    columns(row)                    -> the columns that the reward functions see

and, where the task has them, these:

    CONFIG                          its settings class, a dataclass that inherits from `TaskConfig`; default: `TaskConfig`.
                                    Its own fields are recipe keys, so their names start with the task's name
    solution(row)                   -> Example for the supervised warm-up, where it differs from that for few-shot prompts
    stratum(row, config)            -> the class of a held-out row, where it is not the row's `kind`
    compact_text(row)               -> the problem in word-level tokens, for `prompt_style: compact`
    blind_accuracy(heldout, train, config)
                                    -> accuracy in [0, 1] of the best policy that ignores the target, and how it was found

A row may hold `kind`, the class by which held-out accuracy is broken down.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from grpo_math.errors import TaskError

PromptStyle = Literal["think", "think_prefill", "boxed", "hash", "plain", "compact"]


@dataclass
class TaskConfig:
    """The task's part of a recipe, as every task has it: which rows, which prompt style, which rewards."""

    task: str = field(
        default="gsm8k", metadata={"help": "Name of the task: gsm8k, countdown, or a file of your own: my_task.py."}
    )
    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Local folder, JSONL/JSON or parquet file to read instead of the hub data set; for countdown also "
            "`generated`. Environment variables GRPO_MATH_GSM8K and GRPO_MATH_COUNTDOWN do the same."
        },
    )
    question_column: str | None = field(
        default=None, metadata={"help": "Column of your rows that holds the problem (default: question)."}
    )
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of your rows that holds the answer (default: answer)."}
    )
    prompt_style: PromptStyle = field(
        default="think",
        metadata={"help": "Prompt style of a problem: think, think_prefill, boxed, hash, plain or compact."},
    )
    fewshot: int = field(
        default=0, metadata={"help": "Worked examples in front of each problem, taken from the training rows."}
    )
    rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: names from grpo_math.rewards, functions in files (my_rewards.py:f) or dotted import "
            "paths. Weighted by reward_weights."
        },
    )
    train_size: int | None = field(default=None, metadata={"help": "Train on this many rows at most (default: all)."})
    heldout_size: int = field(
        default=200,
        metadata={"help": "Rows kept out of training. Accuracy on them is measured before and after. 0: no measuring."},
    )
    heldout_generations: int = field(
        default=4, metadata={"help": "Sampled completions per held-out problem (and one greedy one)."}
    )
    heldout_batch_size: int = field(default=64, metadata={"help": "Completions generated at once when measuring."})
    eval_size: int = field(
        default=50,
        metadata={
            "help": "Held-out rows measured along the run, always the same ones (see eval_steps, eval_strategy)."
        },
    )
    eval_share: float = field(
        default=0.05,
        metadata={
            "help": "Most of the training time that looks along the run may take; a look that would take more is left out. "
            "With load_best_model_at_end every look is made."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop when this many looks in a row found no higher held-out accuracy. Not set: never."},
    )
    task_seed: int = field(default=0, metadata={"help": "Seed of the generator, the split and the examples."})

    def __post_init__(self):
        for name in ("fewshot", "heldout_size"):
            if getattr(self, name) < 0:
                raise TaskError(f"{name}: {getattr(self, name)} must be 0 or more")
        if not 0 < self.eval_share <= 1:
            raise TaskError(
                f"eval_share: {self.eval_share} must be above 0 and at most 1 (a share of the training time)"
            )
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise TaskError(f"early_stopping_patience: {self.early_stopping_patience} must be 1 or more (or left out)")
        for name in ("heldout_generations", "heldout_batch_size", "eval_size"):
            if getattr(self, name) < 1:
                raise TaskError(f"{name}: {getattr(self, name)} must be 1 or more")
        if self.train_size is not None and self.train_size < 1:
            raise TaskError(f"train_size: {self.train_size} must be 1 or more (leave it out for all rows)")


# --- rows -------------------------------------------------------------------------------------------------------------


class RawRows(NamedTuple):
    """Rows as read, and where they came from (for messages)."""

    rows: list[dict]
    source: str


def read_rows(
    config: TaskConfig, hub: tuple[str, str | None], split: str, env: str, wanted: str, file_stem: str | None = None
) -> RawRows:
    """Read one split from `dataset_path`, else from the folder or file named by `env`, else from the hub.

    Args:
        config: the recipe's task settings.
        hub: data set name and configuration on the hub.
        split: split name on the hub; in a local folder the file `<split>.jsonl`, `.json` or `.parquet`.
        env: environment variable that may name a local copy.
        wanted: the columns that the task needs, for messages.
        file_stem: file name without ending in a local folder, where it differs from `split`.

    Raises:
        TaskError: with what was tried and how to point at a local copy.
    """
    local = config.dataset_path or os.environ.get(env)
    if local is not None:
        raw = _read_local(
            Path(local).expanduser(), file_stem or split, wanted, "dataset_path" if config.dataset_path else env
        )
        return RawRows(renamed(raw, config, wanted), raw.source)
    from datasets import load_dataset

    name, subset = hub
    try:
        rows = load_dataset(name, subset, split=split)
    except Exception as error:  # `datasets` raises many types where the hub cannot be read
        raise TaskError(
            f"could not load {name} ({subset or 'default'}, split {split}) through `datasets`: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''} -- offline? Point at a local copy with {wanted}: "
            f"`--dataset_path FOLDER_OR_FILE` (JSONL or parquet) or the environment variable {env}."
        ) from error
    raw = RawRows(rows.to_list(), f"{name}, split {split}")
    return RawRows(renamed(raw, config, wanted), raw.source)


def renamed(raw: RawRows, config: TaskConfig, wanted: str) -> list[dict]:
    """The rows with `question_column` and `answer_column` under the names that the task reads, `question` and `answer`.

    Raises:
        TaskError: for a column that a row has not, or a task that reads other columns.
    """
    given = {"question": config.question_column, "answer": config.answer_column}
    given = {name: column for name, column in given.items() if column is not None}
    for name, column in given.items():
        if name not in re.findall(r"\w+", wanted):
            raise TaskError(f"{name}_column: {column} has no effect with task {config.task}, which reads the {wanted}")
    for i, row in enumerate(raw.rows):
        check_columns(row, list(given.values()), f"{raw.source}, row {i}")
    return [{**row, **{name: row[column] for name, column in given.items()}} for row in raw.rows]


def _read_local(path: Path, stem: str, wanted: str, given_by: str) -> RawRows:
    if path.is_dir():
        for ending in ("jsonl", "json", "parquet"):
            if (path / f"{stem}.{ending}").is_file():
                path = path / f"{stem}.{ending}"
                break
        else:
            raise TaskError(f"{given_by}: the folder {path} has no {stem}.jsonl, {stem}.json or {stem}.parquet")
    if not path.is_file():
        raise TaskError(f"{given_by}: there is no file or folder {path} (a JSONL or parquet file with {wanted})")
    from datasets import disable_progress_bars, enable_progress_bars, load_dataset
    from datasets.utils import logging

    kind = "parquet" if path.suffix == ".parquet" else "json"
    if path.stat().st_size == 0:
        raise TaskError(f"{path} is empty: it must hold rows with {wanted}")
    disable_progress_bars()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # the error below holds what `datasets` would log
    try:
        with _plain_name(path) as (plain, cache):
            rows = load_dataset(kind, data_files=plain, split="train", cache_dir=cache).to_list()
    except Exception as error:  # `datasets` raises many types where a file cannot be read
        cause = error.__cause__ or error  # `datasets` itself says only that it failed
        reason = (str(cause).splitlines() or [""])[0]
        raise TaskError(f"could not read {path} as {kind} with {wanted}: {type(cause).__name__}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        enable_progress_bars()
    return RawRows(rows, str(path))


@contextlib.contextmanager
def _plain_name(path: Path) -> Iterator[tuple[str, str | None]]:
    """
    A file's name as `datasets` takes it, and the cache folder to use. It reads `*`, `?`, `[` and `::` in a name as patterns and
    as chains of file systems: such a file gets a plain name for the time of reading.
    """
    if not re.search(r"[*?\[\]{}]|::", str(path)):
        yield str(path), None
        return
    with tempfile.TemporaryDirectory(prefix="grpo-math-") as folder:
        link = Path(folder, f"rows{path.suffix}")
        link.symlink_to(path.resolve())
        yield str(link), str(Path(folder, "cache"))


def check_columns(row: dict, needed: Sequence[str], place: str) -> None:
    """Raise TaskError for missing columns, with those that the row has."""
    missing = [name for name in needed if name not in row]
    if missing:
        raise TaskError(f"{place}: there is no column {', '.join(missing)}; the row has {', '.join(map(str, row))}")


def split_rows(
    rows: list[dict], key: Callable[[dict], Hashable], config: TaskConfig, source: str
) -> tuple[list[dict], list[dict]]:
    """A seeded split into training and held-out rows that share no content: equal keys fall on the same side.

    Args:
        rows: the rows of one source.
        key: the content of a row, by which equal rows are recognised.
        config: `heldout_size`, `train_size` and `task_seed` count.
        source: where the rows came from, for messages.

    Raises:
        TaskError: for no rows, or a `heldout_size` that leaves none for training.
    """
    if not rows:
        raise TaskError(f"{source} has no rows")
    keys = sorted({key(row) for row in rows}, key=repr)
    random.Random(config.task_seed).shuffle(keys)
    if config.heldout_size >= len(keys):
        raise TaskError(
            f"heldout_size: {config.heldout_size} leaves nothing to train on: {source} has {len(keys)} distinct rows; lower it"
        )
    held_keys = set(keys[: config.heldout_size])
    heldout, train, seen = [], [], set()
    for row in rows:
        if key(row) not in held_keys:
            train.append(row)
        elif key(row) not in seen:
            seen.add(key(row))
            heldout.append(row)
    return subsample(train, config.train_size, config.task_seed), heldout


def subsample(rows: list[dict], size: int | None, seed: int) -> list[dict]:
    """At most `size` rows, drawn with `seed`, in their order."""
    if size is None or size >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), size))]


# --- prompts ----------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One worked example: the problem in words, the reasoning, the final answer."""

    problem: str
    reasoning: str
    answer: str


THINK_SYSTEM = (
    "You solve problems carefully. First think about the problem inside <think> and </think>, then give only the final "
    "answer inside <answer> and </answer>."
)
THINK_PREFILL = "<think>"
# A base model continues with the next problem. What follows this mark is not part of its answer.
PLAIN_STOP = "\nProblem:"


def style_instruction(style: str) -> str:
    """The sentence after the problem that asks for the style's answer format."""
    return {
        "think": "Show your work in <think> </think> and give the final answer in <answer> </answer>.",
        "think_prefill": "Show your work in <think> </think> and give the final answer in <answer> </answer>.",
        "boxed": "Reason step by step and put the final answer within \\boxed{}.",
        "hash": "Reason step by step and end with a line that holds '#### ' and the final answer.",
    }[style]


def worked_solution(style: str, example: Example) -> str:
    """An example's solution in the style's answer format."""
    return {
        "think": f"<think>{example.reasoning}</think>\n<answer>{example.answer}</answer>",
        "think_prefill": f"<think>{example.reasoning}</think>\n<answer>{example.answer}</answer>",
        "boxed": f"{example.reasoning}\n\\boxed{{{example.answer}}}",
        "hash": f"{example.reasoning}\n#### {example.answer}",
        "plain": f"{example.reasoning} The answer is {example.answer}.",
        "compact": f"<answer> {example.answer.replace('(', '( ').replace(')', ' )')} </answer>",
    }[style]


def build_prompt(
    style: str, problem: str, note: str, examples: Sequence[Example] = (), tokenizer: Any = None
) -> str | list[dict[str, str]]:
    """A problem as a TRL prompt.

    Args:
        style: `think`, `boxed` and `hash` give a conversation, which TRL renders with the model's chat template.
            `think_prefill` renders that conversation to a string that ends in an open `<think>`, since TRL does not
            continue an assistant turn. `plain` gives the string "Problem: ... Solution:". `compact` gives the problem
            text unchanged.
        problem: the problem in words.
        note: what the answer looks like, one sentence.
        examples: worked examples, shown first as earlier turns (`plain`: as earlier problems).
        tokenizer: needed by `think_prefill` for its chat template.

    Returns:
        a string, or a list of messages `{"role", "content"}`.

    Raises:
        TaskError: for `think_prefill` with a tokenizer that has no chat template.
    """
    if style == "compact":
        return problem
    if style == "plain":
        shown = [f"Problem: {e.problem}\nSolution: {worked_solution(style, e)}\n\n" for e in examples]
        return f"{''.join(shown)}Problem: {problem}\nSolution:"
    messages = [{"role": "system", "content": THINK_SYSTEM}] if style.startswith("think") else []
    for e in examples:
        messages.append({"role": "user", "content": f"{e.problem} {note} {style_instruction(style)}"})
        messages.append({"role": "assistant", "content": worked_solution(style, e)})
    messages.append({"role": "user", "content": f"{problem} {note} {style_instruction(style)}"})
    if style != "think_prefill":
        return messages
    if getattr(tokenizer, "chat_template", None) is None:
        raise TaskError(
            "prompt_style: think_prefill needs a tokenizer with a chat template, and this model has none. "
            "Use prompt_style: plain for a base model."
        )
    messages.append({"role": "assistant", "content": THINK_PREFILL})
    text = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    # TRL tokenises a string prompt with special tokens, which would add a second BOS to the template's own.
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text[len(bos) :]
    return text
