"""Every benchmark, one after the other, each in a process of its own; `--quick` tries them all in minutes on a CPU.

`--quick` asks each for the least that runs all its code. Its figures mean little, so results go to a temporary folder (or to
`--out`) and the stored ones stay.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.__main__ import available
from benchmarks.plain import table

ROOT = Path(__file__).parent.parent
# Programs that measure nothing by themselves, or that need what a list cannot name
NOT_RUN = {
    "all": "this list",
    "from_scratch": "a program of the benchmark `loss`",
    "random_qwen": "a helper",
    "runs": "needs the folders of finished runs",
    "trl_tests": "needs a checkout of TRL with its tests",
    "gpu": "needs a GPU and its own choice of cases: `python -m benchmarks gpu`",
}
# Options of a quick run
QUICK = {
    "advantage_share": ["--groups", "500"],
    "estimators": ["--quick"],
    "false_alarms": ["--runs", "20", "--seeds", "1", "--steps", "5"],
    "learning": ["--quick"],
    "loss": ["--models", "tiny", "--steps", "5", "--seeds", "1"],
    "memory": [],
    "rewards": ["--quick"],
    "row_selection": ["--steps", "10", "--seeds", "1"],
}
# Benchmarks whose least run still takes minutes
NOT_QUICK = {
    "endurance": "a long run is its question",
    "predicted": "each recipe takes half a minute; of one: `grpo-math memory RECIPE`",
    "trainer": "takes minutes with SmolLM2: `python -m benchmarks trainer --rounds 1`",
}


def plan(quick: bool, only: list[str] | None = None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The benchmarks to run with their options, and those that are left out with the reason."""
    run, left_out = {}, {}
    for name in only or available():
        if name in NOT_RUN:
            left_out[name] = NOT_RUN[name]
        elif quick and name not in QUICK:
            left_out[name] = NOT_QUICK.get(name, "has no quick options (QUICK in benchmarks/all.py)")
        else:
            run[name] = QUICK[name] if quick else []
    return run, left_out


def run_one(name: str, options: list[str], results: Path | None, log: Path) -> dict:
    """Runs one benchmark, its output in `log`; its exit code, and wall-clock and CPU seconds with its children's."""
    environment = {**os.environ, **({"GRPO_MATH_RESULTS": str(results)} if results else {})}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "benchmarks", name, *options]
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"code": code, "wall": time.perf_counter() - started, "cpu": cpu}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks all", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the least of each, under 10 minutes; stored results stay")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(available()), help="these benchmarks alone")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for results and logs (default with --quick: temporary)"
    )
    args = parser.parse_args(argv)
    run, left_out = plan(args.quick, args.only)
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out.resolve() if args.out else Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        results = out if args.quick or args.out else None
        found = {}
        for number, (name, options) in enumerate(run.items(), 1):
            print(f"{number}/{len(run)} {name} {' '.join(options)}", flush=True)
            log = out / f"{name}.log"
            found[name] = run_one(name, options, results, log)
            if found[name]["code"]:
                tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
                print("\n".join(["  failed:", *(f"    {line}" for line in tail)]), flush=True)
        if args.out:
            print(f"Results and logs: {out}")
    rows = [
        [name, "ok" if one["code"] == 0 else f"exit code {one['code']}", f"{one['wall']:.0f}", f"{one['cpu']:.0f}"]
        for name, one in found.items()
    ]
    print(table(["benchmark", "", "seconds", "CPU s"], rows))
    for name, reason in left_out.items():
        print(f"- {name}: not run, {reason}")
    return 1 if any(one["code"] for one in found.values()) else 0
