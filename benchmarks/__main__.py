"""`python -m benchmarks NAME [options]` runs `main` of `benchmarks/NAME.py` or of the package `benchmarks/NAME`."""

import importlib
import sys
from pathlib import Path


def available() -> dict[str, str]:
    """Name -> first docstring line of every benchmark: each module and package of this folder that defines `main`."""
    names = {}
    folder = Path(__file__).parent
    modules = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}
    modules |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    for name, path in sorted(modules.items()):
        source = path.read_text(encoding="utf-8")
        if "\ndef main(" in source:
            names[name] = source.split('"""')[1].strip().splitlines()[0]
    return names


def main(argv: list[str]) -> int:
    names = available()
    if not argv or argv[0] not in names:
        listing = "\n".join(f"  {name:14} {summary}" for name, summary in names.items())
        complaint = "" if not argv or argv[0] in ("-h", "--help") else f"There is no benchmark {argv[0]!r}. "
        print(f"{complaint}usage: python -m benchmarks NAME [options]\n{listing}")
        return 0 if argv and not complaint else 2
    return importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
