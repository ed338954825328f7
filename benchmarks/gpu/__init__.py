"""One GPU in one command: memory predicted and measured, tokens a second, gradients in bf16, a short real run.

    python -m benchmarks gpu
    python -m benchmarks gpu --model FOLDER --data FOLDER     # with a local model and GSM8K, also a short real run

It runs on any CUDA machine without a hub. Weights are random, and shapes are those of the recipes. Parts, in this order:

- memory: every 8 GB recipe in a process whose allocator may take 8 GiB, predicted against measured.
- oom: configurations whose prediction is clearly above 8 GiB, which must run out of memory.
- gradients: accumulated gradients of ours and of stock TRL on one batch, beside the noise of another row order.
- throughput: whole training steps of stock, ours and stock again, Qwen2.5-0.5B's shape.
- real: gsm8k.yaml with a given model, held-out accuracy before and after.

Every part runs in child processes and is written to `results/gpu-<card>.json` and `.md` when it is done. Parts that do not
fit into the time (`--minutes`) are listed as skipped. `--parts` chooses parts. `--device cpu --tiny` runs the same code on
a CPU with tiny shapes, which tests the benchmark itself.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.children import Children
from benchmarks.gpu.command_line import parse
from benchmarks.gpu.report import failed
from benchmarks.gpu.run import Run


def _stop(number, frame):
    sys.exit(128 + number)  # `main` ends the children in its `finally`


def main(argv: list[str]) -> int:
    """Runs the parts; returns 0, 1 when a part ended in an error, 2 for wrong arguments or without CUDA."""
    args = parse(argv)
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "python -m benchmarks gpu: torch sees no CUDA device. Run it on a machine with an NVIDIA card and torch "
                "for CUDA; --device cpu --tiny tries the benchmark itself.",
                file=sys.stderr,
            )
            return 2
        # transformers' Trainer would spread over several cards
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    children = Children(args.minutes * 60, environment)
    before = signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(args, children, Path(scratch))
        try:
            if error := run.identify():
                print(f"python -m benchmarks gpu: the machine cannot be described: {error}", file=sys.stderr)
                return 1
            run.say(run.result["line"])
            kinds = [part for part in ("memory", "oom") if part in args.parts]
            if args.tiny and "oom" in kinds:
                kinds.remove("oom")
                run.skip("oom", "tiny shapes do not run out of memory")
            if kinds:
                run.memory(kinds)
            for name in ("gradients", "throughput"):
                if name in args.parts:
                    run.part(name)
            if "real" in args.parts:
                run.real()
            path = run.write()
        finally:
            children.stop()
            signal.signal(signal.SIGTERM, before)
    print(path.read_text(encoding="utf-8"))
    print(f"Written: {path} and {path.with_suffix('.json').name}")
    if errors := failed(run.result):
        print(f"Ended in an error: {', '.join(errors)}", file=sys.stderr)
    return 1 if errors else 0
