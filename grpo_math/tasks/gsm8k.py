"""GSM8K: grade-school word problems with a number as the answer (Cobbe et al. 2021, arXiv 2110.14168).

Rows come from the data set `openai/gsm8k`, config `main`, or from a local folder with `train.jsonl` and `test.jsonl`
(or one JSONL/parquet file). A row:

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. ...",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\n...\\n#### 72"}

The gold number is what follows `####`, without separators. `<<...>>` are the data set's calculator annotations; they
are dropped where a solution is shown as an example.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from grpo_math.errors import TaskError
from grpo_math.tasks.base import Example, TaskConfig, check_columns, read_rows, split_rows, subsample

HUB_DATASET = ("openai/gsm8k", "main")
ACCURACY = "gsm8k_accuracy"
DEFAULT_REWARDS = ("gsm8k_accuracy",)
ANSWER_NOTE = "The answer is a number."

_GOLD = re.compile(r"-?\d+(\.\d+)?")
_CALCULATOR = re.compile(r"<<[^>]*>>")


def gold_number(answer: str) -> str | None:
    """The gold number of a row: what follows the last `####`, or the whole text where there is none.

    >>> gold_number("48 + 24 = <<48+24=72>>72 clips.\\n#### 1,072")
    '1072'
    """
    text = answer.rsplit("####", 1)[-1].strip().replace(",", "").lstrip("$")
    return text if _GOLD.fullmatch(text) else None


def check_row(row: dict, place: str) -> dict:
    """A clean row `{"question", "answer", "solution_text", "kind"}`, or a TaskError that names the place and the value."""
    check_columns(row, ("question", "answer"), place)
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise TaskError(f"{place}: column `question` must be text, not {question!r}")
    gold = gold_number(str(answer)) if answer is not None else None
    if gold is None:
        raise TaskError(f"{place}: column `answer` must be a number or end in `#### N`, not {str(answer)[-80:]!r}")
    return {"question": question.strip(), "answer": gold, "solution_text": str(answer), "kind": steps_of(str(answer))}


def steps_of(solution: str) -> str:
    """The class of a problem: how many calculations its gold solution annotates.

    >>> steps_of("48/2 = <<48/2=24>>24 clips. 48+24 = <<48+24=72>>72 clips.\\n#### 72")
    '1-2 steps'
    """
    steps = solution.count("<<")
    return "no steps" if steps == 0 else "1-2 steps" if steps <= 2 else "5+ steps" if steps >= 5 else f"{steps} steps"


def load_rows(config: TaskConfig) -> tuple[list[dict], list[dict]]:
    """Training rows and held-out rows (from the test split; from one local file, a seeded split disjoint by content).

    Returns:
        two lists of `{"question": str, "answer": str, "solution_text": str, "kind": str}`.
    """
    wanted = "columns question, answer"
    train = read_rows(config, HUB_DATASET, "train", env="GRPO_MATH_GSM8K", wanted=wanted)
    rows = [check_row(row, f"{train.source}, row {i}") for i, row in enumerate(train.rows)]
    if not rows:
        raise TaskError(f"{train.source} has no rows")
    local = config.dataset_path or os.environ.get("GRPO_MATH_GSM8K")
    if local is not None and Path(local).expanduser().is_file():
        return split_rows(rows, lambda row: row["question"], config, train.source)
    test = read_rows(config, HUB_DATASET, "test", env="GRPO_MATH_GSM8K", wanted=wanted)
    heldout = [check_row(row, f"{test.source}, row {i}") for i, row in enumerate(test.rows)]
    known = {row["question"] for row in heldout}
    rows = [row for row in rows if row["question"] not in known]
    return subsample(rows, config.train_size, config.task_seed), subsample(
        heldout, config.heldout_size, config.task_seed
    )


def raw_rows(config: TaskConfig) -> tuple[list[dict], list[dict]]:
    """All rows of the training and the test split as the data set has them, in its order."""
    wanted = "columns question, answer"
    return tuple(
        read_rows(config, HUB_DATASET, split, env="GRPO_MATH_GSM8K", wanted=wanted).rows for split in ("train", "test")
    )


def problem_text(row: dict) -> str:
    """The problem in words, as every prompt style states it."""
    return row["question"]


def example(row: dict) -> Example | None:
    """A worked example for the prompt, [`solution`] in one line; None for a row that holds only the number."""
    full = solution(row)
    return full and full._replace(reasoning=full.reasoning.replace("\n", " "))


def solution(row: dict) -> Example | None:
    """The data set's own solution, with its lines, for the supervised warm-up; None for a row that holds only the number."""
    if "####" not in row["solution_text"]:
        return None
    reasoning = _CALCULATOR.sub("", row["solution_text"].rsplit("####", 1)[0]).strip()
    return Example(row["question"], reasoning, row["answer"])


def columns(row: dict) -> dict:
    """What the reward functions see beside the completion."""
    return {"answer": row["answer"], "question": row["question"]}
