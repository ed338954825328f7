"""The command `grpo-math`: train | eval | memory | report | fields. Recipes call it too, launched by accelerate."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_math.errors import RecipeError, UserError, nearest
from grpo_math.startup import prefer_expandable_segments, quieten

USAGE = """usage: grpo-math COMMAND ...

  train RECIPE [--field value ...]   run a recipe (the same as: accelerate launch RECIPE [--field value ...])
  eval RECIPE [--field value ...]    held-out accuracy of the recipe's model, without training
                                     (of a trained one: --model_name_or_path FOLDER)
  memory RECIPE [--field value ...]  GPU memory that the recipe needs, predicted without a GPU, and what would fit
         [--vram GIB] [--prompt_length TOKENS] [--solve] [--measure] [--json]
  report FOLDER                      redraw a run's curve and print its table
  fields [TEXT]                      the fields that a recipe may have (whose name or help holds TEXT)

`grpo-math COMMAND --help` explains a command; `python -m grpo_math` is the same as `grpo-math`."""

OVERRIDES = """  --field value       any field of a recipe in place of the recipe's own value: --max_steps 50, --rewards A B (a
                      list), --use_peft (true); `grpo-math fields [TEXT]` lists them with their meaning"""

HELP = {
    "train": f"""usage: grpo-math train RECIPE [--field value ...]

Trains what the recipe describes and measures held-out accuracy before and after. The same as:
accelerate launch RECIPE [--field value ...], which can also start several processes. (accelerate's launcher puts a
traceback of its own below an error and then always exits with 1.)

  RECIPE              a YAML file, such as recipes/countdown_tiny.yaml
{OVERRIDES}
  --output_dir FOLDER                  where the model, curve, tables and checkpoints go; an earlier run's are set aside
  --resume_from_checkpoint true        go on from the last checkpoint in output_dir (or name a checkpoint's folder)

exit code: 0 done, 1 out of memory, 2 something given is wrong, 130 stopped by Ctrl-C (with a checkpoint)""",
    "eval": f"""usage: grpo-math eval RECIPE [--field value ...]

Held-out accuracy of the recipe's model without training: sampled, greedy and pass@k with 95 % intervals.

  RECIPE              a YAML file
{OVERRIDES}
  --model_name_or_path FOLDER          a trained model: the output_dir of its run
  --heldout_size N                     on this many problems
  --heldout_generations K              with K samples of each

exit code: 0 done, 2 something given is wrong""",
    "memory": f"""usage: grpo-math memory RECIPE [--field value ...]
                        [--vram GIB] [--prompt_length TOKENS] [--solve] [--measure] [--json]

Predicts the GPU memory that the recipe needs, without a GPU, and which small changes would make it fit.

  RECIPE              a YAML file
{OVERRIDES}
  --vram GIB          the card's memory, a number above 0; else what this machine's CUDA device has free, else 8
  --prompt_length TOKENS   longest prompt; else counted from the rows, else that of the task's published rows
  --solve             also search the largest micro-batch and the longest completion that fit
  --measure           also run two real steps with random weights and show them beside the prediction
  --json              print one JSON object instead of tables

exit code: 0 it fits, 1 it does not, 2 something given is wrong""",
    "report": """usage: grpo-math report FOLDER

Draws FOLDER/reward_curve.png again from a run's metrics.jsonl and prints its table of held-out accuracy.

  FOLDER              a run's output_dir

exit code: 0 done, 2 the folder holds no run""",
    "fields": """usage: grpo-math fields [TEXT]

Lists the fields that a recipe may have, with type, class and meaning: all, or those whose name or help holds TEXT.

exit code: 0 done, 2 no field has TEXT""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command; returns the exit code: 0 done, 1 the recipe does not fit (`memory`) or ran out of memory (`train`), 2
    something the user gave is wrong, 130 stopped by Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    command, rest = argv[0], argv[1:]
    if command.endswith((".yaml", ".yml")):  # accelerate launch -m grpo_math RECIPE
        command, rest = "train", argv
    commands = {"train": _train, "eval": _eval, "memory": _memory, "report": _report, "fields": _fields}
    if command not in commands:
        print(
            f"{USAGE}\n\ngrpo-math: error: there is no command {command!r}{nearest(command, commands)}", file=sys.stderr
        )
        return 2
    if any(word in ("-h", "--help") for word in rest):
        print(HELP[command])
        return 0
    if not rest and command != "fields":
        print(HELP[command], file=sys.stderr)
        return 2
    quieten()
    prefer_expandable_segments()
    from grpo_math.recipe import read_yaml

    try:
        if command in ("train", "eval", "memory"):
            read_yaml(rest[0])  # at once, before seconds of imports
        return commands[command](rest)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"grpo-math: error: {error}", file=sys.stderr)
        return 2


def _train(rest: Sequence[str]) -> int:
    from grpo_math.recipe import load_recipe

    recipe = load_recipe(rest[0], rest[1:])
    from grpo_math.run import train

    return train(recipe)


def _eval(rest: Sequence[str]) -> int:
    from rich.console import Console

    from grpo_math.recipe import load_recipe

    recipe = load_recipe(rest[0], rest[1:])
    from grpo_math.run import evaluate

    console = Console(highlight=False, soft_wrap=True)
    for line in evaluate(recipe):
        console.print(line)
    return 0


def _memory(rest: Sequence[str]) -> int:
    from grpo_math.memory import command

    class Parser(argparse.ArgumentParser):
        def error(self, message: str):
            raise RecipeError(f"command line: {message}")

    parser = Parser(prog="grpo-math")
    command.add_parser(parser.add_subparsers())
    args, overrides = parser.parse_known_args(["memory", *rest])
    return args.run(args, overrides)


def _report(rest: Sequence[str]) -> int:
    import json

    from rich.console import Console

    from grpo_math import report

    if len(rest) > 1:
        raise RecipeError(f"command line: report takes one folder, not also {' '.join(rest[1:])!r}")
    folder = Path(rest[0])
    summary_path = folder / report.SUMMARY
    try:
        summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else {}
        curve = report.draw_curve(folder, summary.get("blind"))
    except OSError as error:
        raise RecipeError(f"{error.filename or folder} cannot be read or written: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecipeError(f"{folder} holds a file that no run has written so: {error!r}") from error
    if curve is None:
        raise RecipeError(f"{folder} is not a run's folder, or nothing has been logged yet (no {report.METRICS})")
    console = Console(highlight=False, soft_wrap=True)
    if summary.get("accuracy_after"):
        console.print(report.table_before_after(summary))
    console.print(f"Reward curve: {curve}")
    return 0


def _fields(rest: Sequence[str]) -> int:
    from grpo_math.recipe import fields

    wanted, found = " ".join(rest).lower(), False
    for name, (cls, field, hint) in fields().items():
        text = " ".join(str(field.metadata.get("help", "")).split())
        if wanted in name.lower() or wanted in text.lower():
            found = True
            kind = getattr(hint, "__name__", str(hint)).replace("typing.", "")
            print(f"{name}: {kind}   ({cls.__name__})\n    {text}")
    if not found:
        raise RecipeError(f"no field has {wanted!r} in its name or help{nearest(wanted, fields())}")
    return 0


def launch(file: str, name: str) -> None:
    """Runs the recipe `file` when it is the main script; the last line of every recipe calls this."""
    if name == "__main__":
        sys.exit(main(["train", file, *sys.argv[1:]]))
