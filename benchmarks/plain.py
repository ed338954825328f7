"""What the benchmarks share without torch: a Markdown table, percentages, JSON lines, the 8 GB recipes."""

import json
from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def eight_gb_recipes() -> list[Path]:
    """Every shipped recipe but those for a CPU."""
    return [
        path for path in sorted(RECIPES.glob("*.yaml")) if "\nuse_cpu: true" not in path.read_text(encoding="utf-8")
    ]


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def share(part: int, whole: int) -> str:
    """A percentage that is shown as 100 or 0 only if it is exact."""
    percent = 100 * part / whole
    shown = f"{percent:.1f}"
    if (shown == "100.0" and part != whole) or (shown == "0.0" and part):
        shown = f"{percent:.3f}"
    return f"{shown.removesuffix('.0')} %"
