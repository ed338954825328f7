"""Predicted GPU memory of every recipe: `grpo-math memory RECIPE --vram 8 --json`, as a table.

    python -m benchmarks predicted [RECIPE ...]

writes `results/predicted.md` and `.json`, or anew only the named recipes in them. It needs no GPU and no weights. The
README and the recipes' headers quote the table. `python -m benchmarks memory` compares predictions with real CPU steps.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.plain import RECIPES, table
from grpo_math.memory import PHASES, gib

VRAM = 8  # GiB
# A recipe that does not fit with these overrides, so that the command also suggests changes
TOO_LARGE = ("gsm8k_1.5b_lora.yaml", ("--model_name_or_path", "Qwen/Qwen2.5-3B-Instruct"))


def predict(recipe: Path, overrides: Sequence[str] = ()) -> dict:
    """
    What `grpo-math memory RECIPE --vram 8 --json` prints: sizes in bytes, `fits` as a bool.

    Raises:
        RuntimeError: with the command's own message, where it stops with an error.
    """
    words = ["memory", str(recipe), *overrides, "--vram", str(VRAM), "--json"]
    done = subprocess.run([sys.executable, "-m", "grpo_math", *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 0: it fits, 1: it does not
        raise RuntimeError(f"grpo-math {shlex.join(words)} exited with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def recipe_table(found: dict[str, dict]) -> str:
    """One row a recipe; `found` maps its file name to its prediction."""
    header = ["recipe", "model", "longest prompt, tokens", "largest phase", "allocator's peak, GiB"]
    header += ["predicted peak, GiB", "paged to host memory, GiB", f"fits in {VRAM} GiB"]
    rows = []
    for name, one in found.items():
        sizes = [gib(one["peak"]), f"**{gib(one['total'])}**", gib(one["paged"]) if one["paged"] else ""]
        fits = "yes" if one["fits"] else "no"
        rows.append([f"`{name}`", one["model"], one["prompt_length"], one["phase"], *sizes, fits])
    return table(header, rows)


def phase_table(found: dict[str, dict]) -> str:
    """The allocator's peak in each phase of a recipe."""
    rows = [
        [f"`{name}`", *(gib(one["peaks"][phase]) if phase in one["peaks"] else "" for phase in PHASES)]
        for name, one in found.items()
    ]
    return table(["recipe", *PHASES], rows)


def suggestion_table(prediction: dict) -> str:
    """The changes that the command suggests where a recipe does not fit, smallest first."""
    rows = []
    for one in prediction["suggestions"]:
        overrides = " ".join(f"--{name} {str(value).lower()}" for name, value in one["overrides"].items())
        rows.append([gib(one["total"]), one["phase"], f"`{overrides}`"])
    return table(["predicted peak, GiB", "largest phase", "overrides"], rows)


def report(found: dict[str, dict], too_large: dict) -> str:
    """The Markdown page."""
    recipe, overrides = TOO_LARGE
    return "\n".join(
        [
            "# Predicted GPU memory of the recipes",
            "",
            f"`grpo-math memory RECIPE --vram {VRAM} --json` on {common.machine_line()}",
            "",
            recipe_table(found),
            "",
            "Every figure is a prediction; none has been measured on a GPU. Every prompt and completion has the greatest "
            "length. The predicted peak is the allocator's peak, plus fragmentation, the CUDA context and libraries "
            "(`docs/memory.md`).",
            "",
            "## The allocator's peak in each phase, GiB",
            "",
            phase_table(found),
            "",
            "## A recipe that does not fit",
            "",
            f"`{recipe} {shlex.join(overrides)}`: predicted peak {gib(too_large['total'])} GiB "
            f"({too_large['phase']}). Smallest changes that fit in {VRAM} GiB:",
            "",
            suggestion_table(too_large),
        ]
    )


def main(argv: list[str]) -> int:
    names = sorted(path.name for path in RECIPES.glob("*.yaml"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks predicted", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="file names; the other recipes keep their figures")
    chosen = parser.parse_args(argv).recipes
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"RECIPE: {', '.join(unknown)} not in {RECIPES}; there are {', '.join(names)}")
    kept = json.loads((common.RESULTS / "predicted.json").read_text(encoding="utf-8")) if chosen else {"recipes": {}}
    found = {}
    for name in names:
        if name in chosen or name not in kept["recipes"]:
            found[name] = predict(RECIPES / name)
            print(f"{name}: {gib(found[name]['total'])} GiB", file=sys.stderr, flush=True)
        else:
            found[name] = kept["recipes"][name]
    recipe, overrides = TOO_LARGE
    too_large = kept["too_large"] if chosen and recipe not in chosen else predict(RECIPES / recipe, overrides)
    data = {"recipes": found, "too_large": {"recipe": recipe, "arguments": overrides, **too_large}}
    common.save("predicted", report(found, too_large), data)
    return 0
