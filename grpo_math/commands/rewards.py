"""The command `grpo-math rewards`: why each completion was or was not paid."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from grpo_math.answers import RULES, Extraction
from grpo_math.errors import UserError
from grpo_math.files import read_lines

EPILOG = """FILE is the completions.jsonl of a run, or lines of your own: objects with `completion`. With `answer`
(GSM8K), or with `nums` and `target` (Countdown), the verdict needs no run.

exit code: 0 done, 2 wrong input"""
_SHOWN = 40  # characters of an answer or completion in a line


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "rewards",
        "FILE [--allow-bare]",
        "print for each completion of a file what its answer is, and the rule that decided",
        "Where\nmath-verify is installed, also the completions that it reads otherwise.",
        EPILOG,
        run,
    )
    command.add_argument("file", metavar="FILE", type=Path, help="a JSONL file, such as RUN/completions.jsonl")
    command.add_argument(
        "--allow-bare", action="store_true", help="an answer without a marker counts (prompt styles plain and compact)"
    )


class Verdict(NamedTuple):
    """What a completion states, and whether that is paid.

    Attributes:
        paid (`bool` or `None`):
            `None` where the record has no gold answer.
        stated (`Extraction`):
            What the completion states.
        written (`str`):
            The answer as written.
        run (`float` or `None`):
            The accuracy reward of the run that wrote the record.
    """

    paid: bool | None
    stated: Extraction
    written: str
    run: float | None


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    records = _records(args.file)
    verdicts = [_verdict(args.file, row, record, args.allow_bare) for row, record in records]
    print(f"{'line':>6}  {'paid':4}  {'run':>5}  {'status':9}  {'form':7}  {'rule':12}  answer")
    for (row, _), verdict in zip(records, verdicts, strict=True):
        _, status, form, _, rule = verdict.stated
        paid = {True: "yes", False: "no", None: "?"}[verdict.paid]
        earned = "" if verdict.run is None else f"{verdict.run:g}"
        print(
            f"{row:6}  {paid:4}  {earned:>5}  {status:9}  {form or '':7}  {rule:12}  {_shown(verdict.written)}".rstrip()
        )
    print()
    for rule, count in Counter(verdict.stated.rule for verdict in verdicts).most_common():
        print(f"{count:6}  {rule}: {RULES[rule]}")
    unlike = [
        str(row)
        for (row, _), v in zip(records, verdicts, strict=True)
        if v.paid is not None and v.run is not None and v.paid != (v.run == 1)
    ]
    if unlike:
        print(f"Lines that the run rewarded otherwise (other forms or --allow-bare?): {', '.join(unlike)}")
    _print_disagreements(records, verdicts)
    return 0


def _records(path: Path) -> list[tuple[int, dict]]:
    """Return the records of a file with their line numbers."""
    try:
        records, unreadable = read_lines(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if unreadable:
        raise UserError(f"{path}, line {unreadable[0][0]} is not a JSON object: {unreadable[0][1]}")
    if not records:
        raise UserError(f"{path} has no records; name a run's completions.jsonl")
    for row, record in enumerate(records, 1):
        if "completion" not in record:
            known = ", ".join(map(repr, record)) or "nothing"
            raise UserError(f"{path}, line {row} has no 'completion', only {known}; name a run's completions.jsonl")
    return list(enumerate(records, 1))


def _verdict(path: Path, row: int, record: dict, allow_bare: bool) -> Verdict:
    """Read one record with the reward of its task, which its columns or the rewards of the run tell."""
    from grpo_math.rewards import COUNTDOWN_FORMS, get_countdown_accuracy, get_gsm8k_accuracy
    from grpo_math.rewards.base import completion_texts

    earned = next((v for k, v in _rewards(record).items() if "accuracy" in k and isinstance(v, (int, float))), None)
    (text,) = completion_texts([record["completion"]], [record.get("prompt")])
    paid = None
    if _is_countdown(record):
        forms = COUNTDOWN_FORMS if allow_bare else COUNTDOWN_FORMS[:3]
        reward = get_countdown_accuracy(forms=forms, allow_bare=allow_bare)
        nums = record.get("nums")
        if nums is not None and not (isinstance(nums, list) and all(isinstance(n, int) for n in nums)):
            raise UserError(f"{path}, line {row}: 'nums' is {nums!r}; it must be a list of integers")
        stated = reward.stated(text, nums or _integers(reward.stated(text, []), text))
        if nums is not None and isinstance(record.get("target"), int):
            (value,) = reward([text], nums=[nums], target=[record["target"]])
            paid = value == 1
    else:
        reward = get_gsm8k_accuracy(allow_bare=allow_bare)
        stated = reward.stated(text)
        gold = _gold(record)
        if gold is not None:
            (value,) = reward([text], answer=[gold])
            if value is None:
                raise UserError(f"{path}, line {row}: the gold answer {gold!r} states no number")
            paid = value == 1
    return Verdict(paid, stated, _written(stated, text), earned)


def _rewards(record: dict) -> dict:
    rewards = record.get("rewards")
    return rewards if isinstance(rewards, dict) else {}


def _is_countdown(record: dict) -> bool:
    return bool({"nums", "target"} & record.keys()) or any(name.startswith("countdown") for name in _rewards(record))


def _gold(record: dict) -> object:
    return record.get("answer", record.get("solution"))


def _written(stated: Extraction, text: str) -> str:
    """Return the answer as written."""
    return "" if stated.span is None else text[slice(*stated.span)]


def _integers(stated: Extraction, text: str) -> list[int]:
    """Return the numbers of an expression: a run's records do not hold those of the problem."""
    expression = _written(stated, text).partition("=")[0]
    return [int(n) for n in re.findall(r"\d{1,18}", expression)]


def _print_disagreements(records: list[tuple[int, dict]], verdicts: list[Verdict]) -> None:
    """Print the GSM8K completions that math-verify reads otherwise: another verdict, or without a gold another value."""
    numbers = [
        (row, record, verdict)
        for (row, record), verdict in zip(records, verdicts, strict=True)
        if not _is_countdown(record)
    ]
    if not numbers:
        return
    try:
        from math_verify import parse, verify
    except ImportError:
        print("\nmath-verify is not installed (pip install math-verify): its readings are not compared.")
        return
    from grpo_math.rewards import completion_text, gold_value

    lines = []
    for row, record, verdict in numbers:
        theirs = parse(completion_text(record["completion"]))
        value = verdict.stated.value
        if verdict.paid is not None:
            same = verify(parse(f"${gold_value(_gold(record))}$"), theirs) == verdict.paid
        else:
            same = not theirs if value is None else verify(parse(f"${value}$"), theirs)
        if not same:
            lines.append(f"{row:6}  math-verify reads {_shown(str(theirs[-1])) if theirs else 'nothing'}")
    print(f"\nmath-verify disagrees on {len(lines)} of {len(numbers)} lines" + (":" if lines else "."))
    for line in lines:
        print(line)


def _shown(text: str) -> str:
    """Return a text in one short line without control characters: it must not move the cursor."""
    plain = " ".join(
        "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text).split()
    )
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 3] + "..."
