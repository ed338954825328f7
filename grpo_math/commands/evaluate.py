"""The command `grpo-math eval`: of a recipe, of a run's folder, or of any model with a task."""

from __future__ import annotations

import argparse
import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from grpo_math.errors import RecipeError

EPILOG = """  --model_name_or_path MODEL    another model than the recipe's
  --heldout_generations K       with K samples of each problem

A FOLDER is the output_dir of a run, or a checkpoint inside it: its recipe and its model are used, and eval.json and
eval_completions.jsonl are written there. For any other MODEL (a hub name, a folder, a GGUF file) name its task. An evaluation
that was stopped goes on where it was.

exit code: 0 done, 2 wrong input"""


def add_parser(add: Callable[..., argparse.ArgumentParser], overrides: str) -> None:
    command = add(
        "eval",
        "RECIPE|FOLDER|MODEL [--field value ...]",
        "measure held-out accuracy of a recipe's, a run's or any model, without training",
        "Sampled, greedy,\npass@k and majority, by answer form and class, with 95 % intervals.",
        overrides + EPILOG,
        run,
    )
    command.add_argument("recipe", metavar="RECIPE|FOLDER|MODEL", help="such as recipes/gsm8k.yaml, or outputs/gsm8k")
    command.add_argument("--out", metavar="FOLDER", type=Path, help="write eval.json and every completion here")
    command.add_argument("--size", metavar="N", type=int, help="on N problems (as --heldout_size N)")
    command.add_argument("--split", choices=["test", "train"], default="test", help="of the problems (default: test)")
    command.add_argument(
        "--protocol", choices=["recipe", "lm-eval"], default="recipe",
        help="lm-eval: GSM8K as lm-evaluation-harness measures it, 5 examples, both filters",
    )  # fmt: skip
    command.add_argument(
        "--ood",
        action="store_true",
        help="also problems from elsewhere: Countdown of other sizes, reasoning-gym for GSM8K",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> int:
    from rich.console import Console

    from grpo_math.recipe import load_recipe

    if args.size is not None:
        overrides = [*overrides, "--heldout_size", str(args.size)]
    recipe = load_recipe(args.recipe, overrides, reading=True)
    from grpo_math.run.evaluating import evaluate

    console = Console(highlight=False, soft_wrap=True)
    for line in evaluate(recipe, args.out, args.protocol, args.split, args.ood):
        console.print(line, markup=False)
    return 0


def with_recipe(argv: list[str]) -> list[str]:
    """
    The words of `eval` with a recipe in place of a run's folder or a model; those of other commands as they are.

    Raises:
        RecipeError: For a name that is no recipe and no run's folder, without a task.
    """
    if len(argv) < 2 or argv[0] != "eval" or argv[1].startswith("-") or argv[1].endswith((".yaml", ".yml")):
        return argv
    name, words = argv[1], argv[2:]
    folder = Path(name)
    out = [] if any(word.partition("=")[0] == "--out" for word in words) else ["--out"]
    for place in (folder, folder.absolute().parent):
        if folder.is_dir() and (place / "recipe.yaml").is_file():
            return [
                "eval",
                str(place / "recipe.yaml"),
                "--model_name_or_path",
                name,
                *out,
                *([name] if out else []),
                *words,
            ]
    if folder.is_file() and not name.lower().endswith(
        ".gguf"
    ):  # a recipe of another name, or an error that says what it is
        return argv
    if not any(word.partition("=")[0] == "--task" for word in words):
        raise RecipeError(
            f"{name} is neither a recipe (a YAML file) nor the output_dir of a run (it would hold recipe.yaml). To measure a "
            f"model, name its task: grpo-math eval {name} --task gsm8k"
        )
    import yaml

    written = Path(tempfile.mkdtemp(prefix="grpo_math_eval_"))
    atexit.register(shutil.rmtree, written, ignore_errors=True)
    values = {"model_name_or_path": name, "output_dir": str(written / "out")}
    (written / "eval.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    place = Path("outputs") / "eval" / Path(name).name
    return ["eval", str(written / "eval.yaml"), *out, *([str(place)] if out else []), *words]
