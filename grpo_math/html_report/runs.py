"""A run's folder as it is read for the page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_math.errors import RecipeError
from grpo_math.files import read_jsonl
from grpo_math.recipe import read_yaml
from grpo_math.report import COMPLETIONS, LOOKS, MEMORY, METRICS, SUMMARY


@dataclass
class Run:
    """
    What a run left behind.

    Attributes:
        folder: Its output_dir.
        name: Short name, unlike those of the other runs on the page.
        metrics: Records of metrics.jsonl that have a reward.
        completions: Records of completions.jsonl.
        summary: summary.json; empty while the run is not done.
        recipe: Keys and values of recipe.yaml; empty where it is missing.
        before, after: Records of the held-out measurements, or None.
        looks: Held-out accuracy along the run, on a part of the problems.
        memory: What `grpo-math memory` predicts, or None.
        memory_note: Why there is no prediction.
    """

    folder: Path
    name: str
    metrics: list[dict]
    completions: list[dict]
    summary: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    before: list[dict] | None = None
    after: list[dict] | None = None
    looks: list[dict] = field(default_factory=list)
    memory: dict[str, Any] | None = None
    memory_note: str = ""

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, where it was logged."""
        points = [(r["step"], r[name]) for r in self.metrics if isinstance(r.get(name), (int, float))]
        return [step for step, _ in points], [value for _, value in points]

    def total(self, name: str) -> float:
        """Sum of a metric over the run."""
        return sum(self.series(name)[1])


def read_run(folder: Path) -> Run:
    """
    Reads a run's folder; files that are not there yet are left out.

    Raises:
        RecipeError: for a folder that holds no run, or a malformed file.
    """
    if not (folder / METRICS).exists():
        raise RecipeError(f"{folder} is not a run's folder, or nothing has been logged yet (no {METRICS})")
    try:
        metrics = [r for r in read_jsonl(folder / METRICS) if r.get("reward") is not None]
        completions = read_jsonl(folder / COMPLETIONS) if (folder / COMPLETIONS).exists() else []
        before, after = (_records(folder / f"heldout_{when}.json") for when in ("before", "after"))
        run = Run(
            folder=folder,
            name=folder.resolve().name,
            metrics=metrics,
            completions=completions,
            summary=_object(folder / SUMMARY),
            recipe=read_yaml(folder / "recipe.yaml") if (folder / "recipe.yaml").exists() else {},
            before=before,
            after=after,
            looks=read_jsonl(folder / LOOKS) if (folder / LOOKS).exists() else [],
            memory=_object(folder / MEMORY) or None,
        )
        steps = [record["step"] for record in metrics + completions]
        if not all(isinstance(step, int) for step in steps):
            raise ValueError("a step that is no whole number")
    except OSError as error:
        raise RecipeError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RecipeError(f"{folder} contains a malformed run file: {error!r}. Name the output_dir of a run") from error
    if not run.metrics:
        raise RecipeError(f"{folder}: nothing has been logged yet ({METRICS} holds no reward)")
    return run


def _object(path: Path) -> dict:
    """A JSON object; empty where the file is not there."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return found


def _records(path: Path) -> list[dict] | None:
    found = _object(path)
    return found["records"] if found else None


def named(runs: list[Run]) -> list[Run]:
    """The runs with names that differ: as much of each folder's path as that takes."""
    for depth in range(1, 6):
        names = ["/".join(run.folder.resolve().parts[-depth:]) for run in runs]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    for run, name in zip(runs, names, strict=True):
        run.name = name
    return runs
