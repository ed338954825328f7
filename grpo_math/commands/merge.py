"""The command `grpo-math merge`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

EPILOG = """The saved model is checked: it must generate what the adapter on its base does. 16-bit weights may be too coarse
for a small adapter; then nothing is written, and --dtype float32 is the fix. A full model is copied.

exit code: 0 done, 2 wrong input, or the merged model differs"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "merge",
        "RUN OUT [--dtype DTYPE] [--gguf FILE]",
        "write a run's model as one plain folder, an adapter merged into its base",
        "",
        EPILOG,
        run,
    )
    command.add_argument("folder", metavar="RUN", type=Path, help="the output_dir of a run, or a checkpoint inside it")
    command.add_argument("out", metavar="OUT", type=Path, help="a folder that is not there yet")
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the merged weights (default: the recipe's)"
    )
    command.add_argument(
        "--gguf", metavar="FILE", type=Path, help="also convert it, where llama.cpp's converter is found"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from grpo_math.run.merge import convert_to_gguf, merge

    check = merge(args.folder, args.out, args.dtype)
    print(f"Copied the model to {args.out}." if check is None else f"Merged into {args.out}: {check}.")
    if args.gguf is not None:
        convert_to_gguf(args.out, args.gguf)
        print(f"GGUF file: {args.gguf}")
    return 0
