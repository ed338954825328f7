"""The command `grpo-math`: train | eval | memory | report | fields. Recipes call it too, launched by accelerate."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from grpo_math.commands import chat, evaluate, fields, merge, report, sft
from grpo_math.commands import rewards as rewards_command
from grpo_math.errors import UserError, nearest
from grpo_math.memory import command as memory_command
from grpo_math.startup import prefer_expandable_segments, quieten

OVERRIDES = """overrides:
  --field value                 any field of a recipe in place of the recipe's own value: --max_steps 50,
                                --rewards A B (a list), --use_peft (true); `grpo-math fields [TEXT]` lists them
"""
TRAIN = f"""{OVERRIDES}  --output_dir FOLDER           for the model, curve and checkpoints; an earlier run's files are kept
  --resume_from_checkpoint true resume from the last checkpoint in output_dir (or name a checkpoint's folder)

exit code: 0 done, 1 out of memory or disk full, 2 wrong input or a failing reward, 130 stopped by Ctrl-C
(accelerate's launcher prints a traceback of its own below an error and then always exits with 1)"""
CLOSED_PIPE = 141  # as shells have it for a program that SIGPIPE ended


def build_parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """
    The parser, and the names of the commands. `run` in the parser's result is the command's function,
    `(args, overrides) -> exit code`.
    """
    parser = argparse.ArgumentParser(
        "grpo-math",
        description="GRPO on Countdown and GSM8K. `python -m grpo_math` is the same command.",
        epilog="`grpo-math COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, usage: str, summary: str, details: str, epilog: str, run) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            usage=f"grpo-math {name} {usage}",
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {details}".rstrip(),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        return command

    train = add(
        "train",
        "RECIPE [--field value ...]",
        "train what a recipe describes, and measure held-out accuracy before and after",
        "The same as\n`accelerate launch RECIPE [--field value ...]`, which can also start several processes.",
        TRAIN,
        _train,
    )
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/countdown_tiny.yaml")
    evaluate.add_parser(add, OVERRIDES)
    memory_command.add_parser(commands)
    sft.add_parser(add, OVERRIDES)
    merge.add_parser(add)
    chat.add_parser(add)
    rewards_command.add_parser(add)
    report.add_parser(add)
    fields.add_parser(add)
    return parser, list(commands.choices)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command; returns the exit code: 0 done, 1 the recipe does not fit (`memory`) or ran out of memory (`train`), 2
    something the user gave is wrong, 130 stopped by Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml")):  # accelerate launch -m grpo_math RECIPE
        argv = ["train", *argv]
    parser, commands = build_parser()
    try:
        argv = evaluate.with_recipe(argv)
        if not argv:
            parser.print_help()
            return 2
        if argv[0] not in commands and argv[0] not in ("-h", "--help"):
            parser.error(f"there is no command {argv[0]!r}{nearest(argv[0], commands)}")
        if repeated := repeated_option(argv):
            parser.error(f"{repeated} is given twice on the command line")
        args, overrides = parser.parse_known_args(argv)
        if hasattr(args, "recipe") and args.recipe != argv[1] and argv[1] in overrides:
            parser.error(f"RECIPE comes first: grpo-math {argv[0]} RECIPE {argv[1]} ...")
        if overrides and not hasattr(args, "recipe"):
            parser.error(f"{argv[0]} takes no {' '.join(overrides)}")
    except SystemExit as stop:  # argparse has said why, or printed the help
        return int(stop.code or 0)
    except UserError as error:
        print(f"grpo-math: error: {error}", file=sys.stderr)
        return 2
    quieten()
    prefer_expandable_segments()
    try:
        if hasattr(args, "recipe"):
            from grpo_math.recipe import check_spelling

            check_spelling(
                args.recipe, overrides, vars(args).keys() - {"recipe", "run"}
            )  # at once, before seconds of imports
        code = args.run(args, overrides)
        sys.stdout.flush()  # a closed pipe is found here, and not when Python exits
        return code
    except BrokenPipeError:  # `| head` has read enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"grpo-math: error: {error}", file=sys.stderr)
        return 2


def repeated_option(argv: Sequence[str]) -> str | None:
    """The first option that is given a second time; `--a-b` and `--a_b` are one."""
    seen = set()
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if re.match(r"--[A-Za-z]", word) and name in seen:
            return word.partition("=")[0]
        seen.add(name)
    return None


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from grpo_math.recipe import load_recipe

    recipe = load_recipe(args.recipe, overrides)
    from grpo_math.run.train import train

    return train(recipe)


def launch(file: str, name: str) -> None:
    """Runs the recipe `file` when it is the main script; the last line of every recipe calls this."""
    if name == "__main__":
        sys.exit(main(["train", file, *sys.argv[1:]]))
