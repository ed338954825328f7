"""The model card of a run, `README.md` in its folder: what was trained from what, the figures, how to load it.

It replaces the card that TRL writes beside every checkpoint, which knows neither the task nor a figure.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from grpo_math import models
from grpo_math.files import write_whole
from grpo_math.recipe import Recipe
from grpo_math.trainer.checkpoints import CARD, is_generated_card

# Settings that say what a run was; the folder's recipe.yaml has all. A warm-up has the second part and its own.
GRPO_SETTINGS = (
    "rewards", "reward_weights", "max_steps", "num_generations", "learning_rate", "beta", "temperature",
)  # fmt: skip
SETTINGS = ("task", "prompt_style", "max_completion_length", "use_peft", "lora_r", "load_in_4bit", "seed")


def write_card(folder: Path, recipe: Recipe, summary: dict[str, Any]) -> None:
    """Writes `README.md`, whole; one that no trainer wrote is left as it is.

    Args:
        folder: Of the run, with its model in it.
        recipe: Of the run.
        summary: What `summary.json` holds.
    """
    path = folder / CARD
    if not path.exists() or is_generated_card(path):
        write_whole(path, card(folder, recipe, summary))


def card(folder: Path, recipe: Recipe, summary: dict[str, Any]) -> str:
    """The text of the card, in Markdown with the hub's metadata in front."""
    name = recipe.model.model_name_or_path
    base = models.adapter_base(name) or name
    adapter = (folder / "adapter_config.json").is_file()
    method = "supervised fine-tuning on worked solutions" if "supervised" in summary else "GRPO"
    metadata = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft" if "supervised" in summary else "grpo", "trl", "grpo-math"],
    }
    if on_hub(base):
        metadata = {"base_model": base, **metadata}
    task = Path(recipe.task.task).stem  # of a file its name
    what = "A LoRA adapter for" if adapter else "Fine-tuned from"
    lines = [
        "---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", "",
        f"# {folder.resolve().name}", "",
        f"{what} {shown_name(base)}, trained on {task} by {method}: {summary['steps']} steps with "
        "[TRL](https://github.com/huggingface/trl) and grpo-math.",
        *figures(summary),
        "", "## Settings", "",
        *(f"- `{key}: {without_folders(value)}`" for key, value in settings(recipe, summary).items()), "",
        "All of them are in `recipe.yaml`.",
        *loading(adapter, recipe),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def settings(recipe: Recipe, summary: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says of the run, by its fields; of a warm-up also what it has used."""
    shown = SETTINGS if "supervised" in summary else (*SETTINGS, *GRPO_SETTINGS)
    values = {name: recipe.values[name] for name in shown if recipe.values.get(name) is not None}
    used = summary.get("supervised") or {}
    return values | {f"sft_{name}": used[name] for name in ("epochs", "learning_rate") if name in used}


def without_folders(value: Any) -> Any:
    """A setting for others: of a file of one's own (`/some/where/my_rewards.py:f`) only the last part."""
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and ".py" in value else value


def on_hub(name: str) -> bool:
    """Whether a model's name is one of the hub, not of this machine or this package."""
    local = name.startswith(("builtin/", "/", ".", "~")) or models.is_gguf(name) or Path(name).exists()
    return not local and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def shown_name(name: str) -> str:
    """A model's name for others: a hub name links to its page, of a path only the last part is told."""
    if on_hub(name):
        return f"[{name}](https://huggingface.co/{name})"
    return f"`{name if name.startswith(('builtin/', models.PIP_PREFIX)) else Path(name).name}`"


def figures(summary: dict[str, Any]) -> list[str]:
    """The table of held-out accuracy, and the verdict where the run has reached one."""
    if not summary.get("accuracy_after"):
        return ["", "Held-out accuracy was not measured."]

    def cell(figure: dict | None) -> str:
        return "-" if figure is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"

    rows = [
        f"| {kind} | {cell(summary.get(f'{key}_before'))} | {cell(summary.get(f'{key}_after'))} |"
        for kind, key in (("sampled (95 % interval)", "accuracy"), ("greedy (95 % interval)", "greedy"))
    ]
    lines = ["", f"| accuracy on {summary['heldout_n']} held-out problems | before | after |", "| --- | --- | --- |"]
    lines += rows
    if summary.get("blind") is not None:
        lines += ["", f"The best policy that ignores the target gets {summary['blind']:.3f}."]
    if summary.get("verdict"):
        lines += ["", f"Verdict: {summary['verdict']['text']}."]
    return lines


def loading(adapter: bool, recipe: Recipe) -> list[str]:
    """How to load the model and how to ask it."""
    cls = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    library = "peft" if adapter else "transformers"
    base = models.adapter_base(recipe.model.model_name_or_path) or recipe.model.model_name_or_path
    lines = ["", "## Use", ""]
    if adapter and (models.is_gguf(base) or base.startswith("builtin/")):
        lines += [
            f"The base, {shown_name(base)}, is one that only grpo-math loads. `grpo-math merge FOLDER OUT` writes one plain "
            "model, which transformers loads.",
        ]
    else:
        lines += [
            "```python",
            f"from {library} import {cls}",
            "from transformers import AutoTokenizer",
            "",
            f'model = {cls}.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            "```",
        ]
    style = recipe.task.prompt_style
    return [
        *lines,
        "",
        f"It was trained on prompts of the style `{style}`. `grpo-math chat FOLDER` writes them, and `grpo-math chat FOLDER "
        "--problem 0` scores the answer to a held-out problem.",
    ]
