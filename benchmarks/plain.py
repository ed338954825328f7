"""What the benchmarks share that needs neither torch nor what builds on it: a Markdown table, the 8 GB recipes."""

from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def eight_gb_recipes() -> list[Path]:
    """Every shipped recipe but the one that needs no GPU."""
    return [path for path in sorted(RECIPES.glob("*.yaml")) if path.name != "countdown_tiny.yaml"]
