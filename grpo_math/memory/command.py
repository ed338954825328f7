"""The command `grpo-math memory`: its options, and everything that it prints."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from grpo_math.errors import PredictionError
from grpo_math.memory.advice import solve, suggest
from grpo_math.memory.device import available_vram
from grpo_math.memory.measure import measure
from grpo_math.memory.predict import as_arguments, predict
from grpo_math.memory.results import GIB, OVERHEAD_BYTES, OVERHEAD_FACTOR, Prediction, Suggestion, gib
from grpo_math.recipe import check_name, fields

OPTIONS = ("vram", "prompt_length", "solve", "measure", "json")

EPILOG = """any field of a recipe can be given in place of the recipe's own value: --max_completion_length 512
(`grpo-math fields [TEXT]` lists the fields with their meaning)

exit code: 0 it fits, 1 it does not, 2 wrong input"""


def _number(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: write a number above 0")
    return value


def _whole_number(text: str) -> int:
    """An argparse type: a whole number above 0."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number above 0")
    return value


def add_parser(subparsers: Any) -> None:
    """Adds `memory` to the subparsers of `grpo-math`; its arguments carry [`run`] as `args.run`."""
    parser = subparsers.add_parser(
        "memory",
        help="predict the GPU memory that a recipe needs, without a GPU, and what makes it fit",
        description="Predicts the GPU memory that a recipe needs, without a GPU, and finds small changes that make it fit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/gsm8k.yaml")
    parser.add_argument(
        "--vram",
        type=_number,
        metavar="GIB",
        help="memory of the card in GiB; without it what this machine's CUDA device has free, else 8",
    )
    parser.add_argument(
        "--prompt_length",
        "--prompt-length",
        type=_whole_number,
        metavar="TOKENS",
        help="tokens of the longest prompt; without it counted from the rows, else the task's published longest",
    )
    parser.add_argument(
        "--solve", action="store_true", help="also search the largest micro-batch and the longest completion that fit"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also run two real steps with random weights and show their peaks beside the prediction",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    """
    Predicts, and prints or answers in JSON; returns 0 when the recipe fits, else 1.

    Args:
        args: The arguments of [`add_parser`].
        overrides: The words that are none of the command's own: fields of the recipe with their values.

    Raises:
        UserError: for wrong input.
    """
    path = args.recipe
    for word in overrides:
        if word.startswith("--"):
            name = word.removeprefix("--").partition("=")[0].replace("-", "_")
            check_name(name, "command line", [*fields(), *OPTIONS])
    console = Console(highlight=False, soft_wrap=True, quiet=args.json)
    console.width = max(console.width, 80)  # a narrower table would lose its digits
    vram, source = (args.vram, "--vram") if args.vram is not None else available_vram()
    with _progress(f"Running one step of {path} on fake tensors ..."):
        prediction = predict(path, overrides, args.prompt_length)
    if args.measure and prediction.vllm is not None:
        raise PredictionError(
            "--measure does not run vLLM. Measure with --use_vllm false, or watch nvidia-smi in a run."
        )
    fits = prediction.fits(vram)
    show(console, path, prediction, vram, source)
    answer = {**prediction.as_dict(), "vram_gib": vram, "fits": fits}
    if not fits:
        with _progress("Trying changes that make it fit ...") as progress:
            suggestions = suggest(path, overrides, prediction, vram, progress)
        answer["suggestions"] = _as_json(suggestions)
        if suggestions:
            show_suggestions(console, "Smallest changes that fit", suggestions)
        else:
            show_nothing_fits(console, vram)
    if args.solve:
        with _progress("Searching the largest that fits ...") as progress:
            micro_batch, completion = solve(path, overrides, prediction.prompt_length, vram, progress)
        answer["largest"] = _as_json([found for found in (micro_batch, completion) if found is not None])
        show_solved(console, vram, micro_batch, completion)
    if args.measure and prediction.vllm is not None:
        raise PredictionError(
            "--measure does not run vLLM. Measure with --use_vllm false, or watch nvidia-smi in a run."
        )
    if args.measure:
        import torch

        if not torch.cuda.is_available():
            console.print(
                "No CUDA device: the two steps run on this CPU. That takes minutes to hours with a real model; "
                "--max_completion_length 16 --gradient_accumulation_steps 1 is quicker."
            )
        with _progress("Measuring two real steps with random weights ...") as progress:
            answer["measured"] = measure(path, overrides, prediction.prompt_length, progress=progress)
        show_measured(console, prediction, answer["measured"])
    if args.json:
        print(json.dumps(answer))
    return 0 if fits else 1


def _as_json(suggestions: Sequence[Suggestion]) -> list[dict]:
    return [
        {"overrides": s.changes, "total": s.prediction.total, "phase": s.prediction.phase, "cost": s.cost}
        for s in suggestions
    ]


@contextlib.contextmanager
def _progress(task: str) -> Iterator[Callable[[str], None]]:
    """Shows a task's progress on stderr: a spinner with the latest step or, without a terminal, a line for each step."""
    console, count = Console(stderr=True, highlight=False, soft_wrap=True), itertools.count(1)
    with console.status(task) as status:

        def step(text: str) -> None:
            line = f"{next(count)}: {text}"
            if console.is_terminal:
                status.update(f"{task} {line}")
            else:
                console.print(f"{task} {line}", markup=False)

        yield step


def _unit(size: int) -> tuple[str, int]:
    """A readable unit for figures of about `size` bytes, and its bytes."""
    return ("GiB", GIB) if size >= GIB / 2 else ("MiB", 2**20)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def show(console: Console, path: str | Path, prediction: Prediction, vram: float, source: str) -> None:
    """Prints a prediction: its table, the operations at its peaks and the verdict."""
    unit, divisor = _unit(prediction.peak)
    table = _table(
        f"{Path(path).name}: {prediction.model}, predicted peak of each phase, {unit}", ["", *prediction.peaks]
    )

    def row(name: str, sizes: Sequence[int], style: str | None = None) -> None:
        cells = [f"{size / divisor:.2f}" for size in sizes]
        cells = [
            f"[bold]{cell}[/bold]" if phase == prediction.phase else cell
            for phase, cell in zip(prediction.peaks, cells, strict=True)
        ]
        table.add_row(name, *cells, style=style)

    for category in prediction.parts[prediction.phase]:
        sizes = [parts[category] for parts in prediction.parts.values()]
        if any(sizes):
            row(category, sizes)
    table.add_section()
    row("peak", list(prediction.peaks.values()), "bold")
    console.print(table)
    for phase, op in prediction.ops.items():
        console.print(f"{phase} is highest at: {op}")
    console.print(
        f"\nLongest prompt {prediction.prompt_length} tokens ({prediction.prompt_source}). Every completion has the full "
        "length, and no group is dead."
    )
    if prediction.paged:
        console.print(
            f"{gib(prediction.paged)} GiB of paged optimizer states come on top. CUDA moves them to the host when the card "
            "is full."
        )
    if prediction.vllm is not None:
        show_vllm(console, prediction, vram)
    at_least = "" if prediction.vllm is None else "at least "
    verdict = "fits" if prediction.fits(vram) else "does not fit"
    console.print(
        f"[bold]Predicted peak {at_least}{gib(prediction.total)} GiB: {verdict}[/bold] in {vram:.2f} GiB ({source}). It is "
        f"{prediction.peak / divisor:.2f} {unit} in {prediction.phase} x {OVERHEAD_FACTOR} for fragmentation + "
        f"{gib(OVERHEAD_BYTES)} GiB for the CUDA context and libraries."
    )


def show_vllm(console: Console, prediction: Prediction, vram: float) -> None:
    """Prints what of the figures is vLLM's, and what it takes of the card."""
    vllm = prediction.vllm
    console.print(
        f"vLLM is not run here. Its part is a lower bound: {gib(vllm.weights)} GiB for its copy of the weights and "
        f"{gib(vllm.cache)} GiB for the cache of one completion. vllm_gpu_memory_utilization: {vllm.utilization:g} gives it "
        f"{gib(vllm.held(vram))} GiB of {vram:.2f}, "
        + ("which it gives back while the policy trains." if vllm.sleeps else "also while the policy trains.")
    )
    if vllm.held(vram) < vllm.least:
        console.print("[bold]That is too little for vLLM to start.[/bold] Raise vllm_gpu_memory_utilization.")


def show_suggestions(console: Console, title: str, suggestions: Sequence[Suggestion], prefix: str = "Cost: ") -> None:
    """Prints suggestions, with the overrides on a line of their own, to be copied; `prefix` goes before each cost."""
    console.print(f"\n[bold]{title}[/bold]")
    for found in suggestions:
        prediction = found.prediction
        console.print(f"Predicted peak {gib(prediction.total)} GiB ({prediction.phase}). {prefix}{found.cost}.")
        console.print(f"    {' '.join(as_arguments(found.changes))}")


def show_solved(console: Console, vram: float, micro_batch: Suggestion | None, completion: Suggestion | None) -> None:
    """Prints the largest micro-batch and the longest completion that fit."""
    found = [suggestion for suggestion in (micro_batch, completion) if suggestion is not None]
    show_suggestions(console, f"Largest that fits into {vram:.2f} GiB", found, prefix="This is the ")
    for suggestion, name in ((micro_batch, "micro-batch"), (completion, "completion")):
        if suggestion is None:
            console.print(f"    not even the smallest {name} fits")


def show_nothing_fits(console: Console, vram: float) -> None:
    """Prints that no change makes the recipe fit."""
    if vram * GIB <= OVERHEAD_BYTES:
        console.print(
            f"No recipe fits into {vram:.2f} GiB: the CUDA context and libraries alone take {gib(OVERHEAD_BYTES)} GiB."
        )
    else:
        console.print(f"Nothing that was tried fits into {vram:.2f} GiB: use a smaller model.")


def show_measured(console: Console, prediction: Prediction, measured: dict) -> None:
    """Prints predicted beside measured peaks; for a measurement on the CPU, the prediction for a CPU."""
    predicted = measured["predicted"] or prediction.peaks
    unit, divisor = _unit(max(predicted.values()))
    on_cpu = " and predicted for a CPU" if measured["predicted"] else ""
    table = _table(
        f"Measured on {measured['device']}{on_cpu}, {unit}", ["", "predicted", "measured", "predicted / measured"]
    )
    for phase, peak in predicted.items():
        real = measured["peaks"].get(phase)
        cells = (f"{real / divisor:.2f}", f"{peak / real:.3f}") if real else ("-", "-")
        table.add_row(phase, f"{peak / divisor:.2f}", *cells)
    console.print(table)
    if measured["out_of_memory"]:
        console.print(f"The memory ran out in the phase {measured['out_of_memory']}.")
