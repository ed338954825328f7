"""The command `grpo-math chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from grpo_math.errors import RecipeError

EPILOG = """examples:
  grpo-math chat outputs/gsm8k                              asks for problems, one a line
  grpo-math chat outputs/gsm8k "A pen costs 3 dollars. What do 6 pens cost?"
  grpo-math chat outputs/gsm8k --problem 7 --greedy         a held-out problem, with its score

exit code: 0 done, 2 wrong input"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "chat",
        "RUN [TEXT] [--problem N] [--raw] [--greedy] [--seed N]",
        "ask a trained model, in the prompt style that it was trained with",
        "",
        EPILOG,
        run,
    )
    command.add_argument("folder", metavar="RUN", type=Path, help="the output_dir of a run, or a checkpoint inside it")
    command.add_argument(
        "text", metavar="TEXT", nargs="?", help="a problem (default: asks, or reads lines from a pipe)"
    )
    command.add_argument("--problem", metavar="N", type=int, help="the run's held-out problem N, from 0, and its score")
    command.add_argument("--raw", action="store_true", help="give TEXT to the model as it is, without a prompt style")
    command.add_argument("--greedy", action="store_true", help="always the most likely token (default: as in training)")
    command.add_argument("--seed", metavar="N", type=int, help="of the sampling (default: another one each time)")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.problem is not None and args.text is not None:
        raise RecipeError("give either TEXT or --problem N")
    import torch

    from grpo_math.run.saved import open_run

    saved = open_run(args.folder)
    if args.seed is not None:
        torch.manual_seed(args.seed)
    if args.problem is not None:
        return _problem(saved, args)
    for text in [args.text] if args.text is not None else _asked():
        prompt = text if args.raw or saved.recipe.task.prompt_style == "compact" else saved.prompt_of(text)
        print(printable(saved.complete([prompt], args.greedy)[0]), flush=True)
    return 0


def _problem(saved, args: argparse.Namespace) -> int:
    from grpo_math.report import prompt_text

    rows = saved.problems.heldout
    if not 0 <= args.problem < len(rows):
        raise RecipeError(f"--problem {args.problem}: the run holds {len(rows)} problems out, 0 to {len(rows) - 1}")
    row = rows[args.problem]
    completion = saved.complete([row["prompt"]], args.greedy)[0]
    score = saved.score(row, completion)
    print(f"Problem {args.problem}: {printable(prompt_text(row['prompt']))}\n\n{printable(completion)}\n")
    gold = f", the right answer is {row['answer']}" if "answer" in row else ""
    found = f", answer {printable(score.answer)}" if score.answer is not None else ""
    value = "none" if score.value is None else f"{score.value:g}"
    print(f"Score {value} ({score.status or 'no status'}{found}{gold})")
    return 0


def _asked() -> Iterable[str]:
    """Lines that the user types, up to Ctrl-D or an empty one; of a pipe all that are not empty."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            return
        yield text


def printable(text: str) -> str:
    """Text for a terminal: a completion must not move the cursor or colour it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text).strip()
