"""How often a run that learns nothing is called an improvement, by the verdict and by looser ways of reading the same figures.

Simulated runs: problems of unequal difficulty, k samples each, a baseline, looks along the run on a subset, and a last look on
all problems. Under the null the policy never changes. `--control` trains the tiny model with random rewards instead.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import common
from benchmarks.plain import table
from grpo_math.evaluation import clustered, paired_difference, verdict

PROBLEMS, SUBSET, SAMPLES, LOOKS = 200, 50, 4, 10
RATES = (2e-5, 7e-4)  # of the control runs
GAINS = (0.0, 0.03, 0.06, 0.1)
WAYS = ("verdict", "paired 95 % interval at every look", "separate 95 % intervals at every look", "any higher figure")


def simulate(gain: float, rng: np.random.Generator) -> dict[str, tuple[bool, bool]]:
    """
    One run: for each way of reading it, whether it ever claims a change, and whether the claim that counts is right.

    Args:
        gain: What the policy gains by the end, in accuracy; it grows linearly over the looks.
    """
    easy = rng.beta(0.6, 1.2, PROBLEMS)

    def samples(share: float) -> np.ndarray:  # (PROBLEMS, SAMPLES)
        better = np.minimum(1.0, easy + share * gain)
        return (rng.random((PROBLEMS, SAMPLES)) < better[:, None]).astype(float)

    before = samples(0.0)
    claims = {way: [] for way in WAYS}
    for look in range(1, LOOKS + 2):
        last = look == LOOKS + 1
        rows = slice(None) if last else slice(SUBSET)
        after = samples(min(1.0, look / LOOKS))[rows]
        a, b = before[rows].mean(axis=1), after.mean(axis=1)
        claims[WAYS[0]].append(verdict(b - a, 1 if last else look, along=not last).word)
        paired = paired_difference(a.tolist(), b.tolist())
        claims[WAYS[1]].append("improved" if paired.low > 0 else "worse" if paired.high < 0 else "no change shown")
        one, two = clustered(before[rows].tolist()), clustered(after.tolist())
        claims[WAYS[2]].append(
            "improved" if two.low > one.high else "worse" if two.high < one.low else "no change shown"
        )
        claims[WAYS[3]].append("improved" if two.value > one.value else "no change shown")
    return {way: ([w != "no change shown" for w in words], words[-1] == "improved") for way, words in claims.items()}


def shares(runs: int, gain: float) -> dict[str, dict[str, float]]:
    """Over simulated runs, per way: the share that ever claims a change, and the share whose last look says `improved`."""
    found = [simulate(gain, np.random.default_rng([int(1000 * gain), i])) for i in range(runs)]
    return {
        way: {
            "ever": sum(any(run[way][0]) for run in found) / runs,
            "last": sum(run[way][1] for run in found) / runs,
        }
        for way in WAYS
    }


def control(seeds: int, steps: int, learning_rate: float) -> list[dict]:
    """Runs of the tiny recipe with rewards drawn by chance: the summary's change and verdict."""
    from grpo_math import cli

    recipe = Path(__file__).parent.parent / "recipes" / "countdown_tiny.yaml"
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            words = [
                "--learning_rate",
                str(learning_rate),
                "--rewards",
                "benchmarks.false_alarms.coin",
                "--max_steps",
                str(steps),
                "--seed",
                str(seed),
            ]
            code = cli.main(["train", str(recipe), "--output_dir", folder, "--disable_tqdm", "true", *words])
            if code:
                raise RuntimeError(f"the control run of seed {seed} ended with {code}")
            summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        found.append(
            {
                "learning_rate": learning_rate,
                "seed": seed,
                "change": summary["change"]["accuracy"],
                "verdict": summary["verdict"]["text"],
            }
        )
    return found


def coin(completions, **columns) -> list[float]:
    """A reward that no policy can raise: each completion is paid 0 or 1 by chance."""
    import torch

    return torch.randint(0, 2, (len(completions),)).float().tolist()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks false_alarms", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs that learn nothing")
    parser.add_argument("--seeds", type=int, default=3, help="control runs of the tiny model with random rewards")
    parser.add_argument("--steps", type=int, default=100, help="steps of a control run")
    args = parser.parse_args(argv)
    found = {str(gain): shares(args.runs if gain == 0 else max(1, args.runs // 10), gain) for gain in GAINS}
    controls = [one for rate in RATES for one in control(args.seeds, args.steps, rate)]
    data = {"runs": args.runs, "steps": args.steps, "shares": found, "controls": controls}
    common.save("false_alarms", page(data), data)
    return 0


def page(data: dict) -> str:
    """The results in Markdown."""
    runs, shown = data["runs"], data["shares"]
    rows = [[way, *(f"{shown[str(g)][way]['ever' if g == 0 else 'last']:.3f}" for g in GAINS)] for way in WAYS]
    return "\n\n".join(
        [
            "# Verdicts: false alarms and power",
            common.machine_line(),
            f"{runs} simulated runs that learn nothing: {PROBLEMS} problems, {SAMPLES} samples each, {LOOKS} looks along "
            f"the run on {SUBSET} of them, one at the end on all. First column: share of the runs in which any look claims a "
            f"change. The others: share of {max(1, runs // 10)} runs whose last look says `improved`, by what was gained.",
            table(["way of reading", "learns nothing", *(f"gains {gain}" for gain in GAINS[1:])], rows),
            f"Control: the tiny model trained for {data['steps']} steps with rewards drawn by chance. The higher rate is the "
            "recipe's own: without a signal its steps spoil the warm-up, and accuracy does fall.",
            table(
                ["learning rate", "seed", "verdict"],
                [[f"{one['learning_rate']:g}", str(one["seed"]), one["verdict"]] for one in data["controls"]],
            ),
        ]
    )
