"""The command `grpo-math report`: a run's curve, its table, and the HTML page of one or more runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from grpo_math.errors import RecipeError, UserError

EPILOG = """The page is one file that works offline: verdict, accuracy, curves, recipe differences, samples, time by phase,
predicted and measured memory. Of several runs the first is what the others are compared with. The prediction
of a run on a GPU takes about half a minute once and is kept in RUN/memory.json; --no-memory leaves it out.

exit code: 0 done, 2 a folder holds no run"""


def add_parser(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "report",
        "RUN [RUN ...] [--out FILE] [--no-memory]",
        "write an HTML page for a run or several, redraw their curves and print their tables",
        "",
        EPILOG,
        run,
    )
    command.add_argument("folders", metavar="RUN", type=Path, nargs="+", help="the output_dir of a run")
    command.add_argument(
        "--out", metavar="FILE", type=Path, help="the page (default: report.html in the run's folder, or in this one)"
    )
    command.add_argument("--no-memory", "--no_memory", action="store_true", help="predict no memory")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from rich.console import Console

    from grpo_math import html_report, report

    runs = html_report.named([html_report.read_run(folder) for folder in dict.fromkeys(args.folders)])
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for one in runs:
        try:
            curve = report.draw_curve(one.folder, one.summary.get("blind"))
            if len(runs) > 1:
                console.print(one.name, style="bold")
            if one.summary.get("accuracy_after"):
                report.print_figures(console, one.summary)
        except OSError as error:
            raise RecipeError(f"{error.filename or one.folder} cannot be written: {error.strerror}") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RecipeError(f"{one.folder} contains a malformed run file: {error!r}") from error
        console.print(f"Reward curve: {curve}")
    if find_spec("plotly") is None and args.out is None:
        console.print("HTML page: not written, it needs plotly. Install it with: pip install plotly")
        return 0
    if not args.no_memory:
        for one in runs:
            predict_memory(one, console)
    out = args.out or (runs[0].folder / report.PAGE if len(runs) == 1 else Path(report.PAGE))
    try:
        html_report.write_page(runs, out)
    except OSError as error:
        raise RecipeError(f"--out {out} cannot be written: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise RecipeError(f"a run file is malformed: {error!r}. Name the output_dir of a run") from error
    console.print(f"HTML page: {out}")
    return 0


def predict_memory(one, console) -> None:
    """Fills in the run's predicted memory, from its folder or anew; says in the page why there is none."""
    from grpo_math.files import write_whole
    from grpo_math.report import MEMORY

    if one.memory is not None or not one.recipe:
        return
    if one.recipe.get("use_cpu"):
        one.memory_note = "ran on a CPU (use_cpu), so that no GPU memory is predicted."
        return
    from grpo_math.memory import predict

    console.print(f"Predicting the memory of {one.name} on fake tensors ...")
    try:
        one.memory = predict(one.folder / "recipe.yaml", []).as_dict()
        write_whole(one.folder / MEMORY, json.dumps(one.memory, indent=1) + "\n")
    except UserError as error:
        one.memory_note = f"no prediction: {error}"
