"""The command line of the GPU benchmark."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.configurations import PARTS
from grpo_math import memory


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; wrong ones end the process with code 2 and a message."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description="Measures one GPU in five parts.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts; all by default")
    parser.add_argument("--minutes", type=_positive, default=8.5, help="time after which the rest is skipped (8.5)")
    parser.add_argument("--cap", type=_positive, default=memory.DEFAULT_VRAM, help="GiB that a process may take (8)")
    parser.add_argument("--jobs", type=int, help="configurations measured at once; as many as card and processor allow")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after a first one (3)")
    parser.add_argument("--model", help="folder of a small chat model, for the real run")
    parser.add_argument("--data", help="folder of GSM8K, for the real run; else what GRPO_MATH_GSM8K names")
    parser.add_argument("--real-steps", type=int, default=20, help="steps of the real run, at most (20)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to test the benchmark itself")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", help="where to write")
    args = parser.parse_args(argv)
    for name in ("steps", "real_steps", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: write a whole number of at least 1")
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu: real shapes would take hours there; add --tiny to test the benchmark itself")
    for name in ("model", "data"):
        folder = getattr(args, name)
        if folder is not None:
            if not Path(folder).expanduser().exists():
                parser.error(
                    f"--{name} {folder}: there is no such folder, and the benchmark downloads nothing; give a local one"
                )
            setattr(args, name, str(Path(folder).expanduser().resolve()))  # children run in another folder
    if args.model is not None and args.data is None and not os.environ.get("GRPO_MATH_GSM8K"):
        parser.error("--model without --data: give the folder of GSM8K too, or set GRPO_MATH_GSM8K to it")
    args.parts = [part for part in PARTS if part in args.parts]
    args.out = args.out.resolve()
    return args
