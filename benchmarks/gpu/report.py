"""The result of the GPU benchmark as text: Markdown, lines of progress, failed parts."""

import re
import statistics
from collections.abc import Sequence

from benchmarks.gpu.configurations import CLEARLY, TOLERANCE
from benchmarks.plain import table
from grpo_math import memory
from grpo_math.memory import GIB


def medians(contender: dict) -> dict[str, float]:
    """Median seconds of generation and of the rest of a step."""
    return {part: statistics.median(step[part] for step in contender["steps"]) for part in ("generation", "rest")}


def card_name(name: str) -> str:
    """A card's name as part of a file name: `NVIDIA GeForce RTX 4060` becomes `nvidia-geforce-rtx-4060`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def in_words(record: dict) -> str:
    """A line of progress: prediction, measurement and verdict of a configuration."""
    verdict, predicted, measured = record["verdict"], record["predicted"], record["measured"]
    text = f"{record['name']}: predicted {memory.gib(predicted['peak'])} GiB"
    if verdict["ran_out"]:
        text += f", ran out in the phase {measured['out_of_memory']}"
    else:
        text += f", measured {memory.gib(max(measured['peaks'].values()))} (x{verdict['ratio']:.3f})"
    return text + {True: ", verdict right", False: ", VERDICT WRONG", None: ""}[verdict["right"]]


def _states(records: Sequence[dict]) -> tuple[list[dict], list[list[str]]]:
    """The records that were compared, and name and reason of the others."""
    compared = [record for record in records if "verdict" in record]
    others = []
    for record in records:
        if "verdict" not in record:
            halves = [record.get("predicted") or {}, record.get("measured") or {}]
            reasons = [half.get("error") or half.get("skipped") for half in halves]
            others.append([record["name"], "; ".join(r for r in reasons if r) or "not finished"])
    return compared, others


def _right(verdict: dict) -> str:
    return {True: "right", False: "**wrong**", None: "-"}[verdict["right"]]


def _recipes_section(records: Sequence[dict], cap: float) -> list[str]:
    compared, others = _states(records)
    rows, ratios = [], []
    for record in compared:
        predicted, measured, verdict = record["predicted"], record["measured"], record["verdict"]
        ratio = "-"
        if not verdict["ran_out"]:
            ratios.append(verdict["ratio"])
            ratio = f"**{verdict['ratio']:.3f}**"
        phases = [f"{verdict['phases'][p]:.3f}" if p in verdict["phases"] else "-" for p in ("generation", "training")]
        rows.append(
            [
                f"`{record['name']}`",
                memory.gib(predicted["peak"]),
                "ran out in " + measured["out_of_memory"]
                if verdict["ran_out"]
                else memory.gib(max(measured["peaks"].values())),
                ratio,
                *phases,
                memory.gib(measured["reserved"]) if measured["reserved"] else "-",
                memory.gib(predicted["total"]),
                "fits" if verdict["fits"] else "does not fit",
                _right(verdict),
            ]
        )
    rows += [[f"`{name}`", reason, *["-"] * 8] for name, reason in others]
    header = ["recipe", "predicted peak", "measured peak", "ratio", "generation alone", "training alone", "reserved"]
    header += ["predicted in all", f"in {cap:.2f} GiB it", "verdict"]
    near = sum(abs(ratio - 1) <= TOLERANCE for ratio in ratios)
    text = ["## The 8 GB recipes, predicted and measured", "", table(header, rows), ""]
    if ratios:
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        text += [
            f"{near} of {len(ratios)} peaks within {100 * TOLERANCE:.0f} % of the measured one (ratios {spread}).",
            "",
        ]
    return text


def _oom_section(records: Sequence[dict], cap: float) -> list[str]:
    compared, others = _states(records)
    rows, near = [], []
    for record in compared:
        predicted, measured, verdict = record["predicted"], record["measured"], record["verdict"]
        if predicted["peak"] < CLEARLY * cap * GIB:
            near.append(record["name"])
        overrides = " ".join(memory.as_arguments(record["changes"]))
        rows.append(
            [
                record["name"],
                f"`{record['path']} {overrides}`",
                memory.gib(predicted["peak"]),
                predicted["phase"],
                measured["out_of_memory"] or f"it ran, {memory.gib(max(measured['peaks'].values()))}",
                _right(verdict),
            ]
        )
    rows += [[name, reason, *["-"] * 4] for name, reason in others]
    header = ["configuration", "recipe", "predicted peak", "in the phase", "ran out in the phase", "verdict"]
    text = ["## What has to run out of memory", "", table(header, rows), ""]
    if near:
        text += [f"Predicted less than {CLEARLY:.1f} x the cap, and so not sure to run out: {', '.join(near)}.", ""]
    return text


def _gradients_section(found: dict) -> list[str]:
    text = ["## Gradients of ours and of stock TRL", ""]
    if "error" in found:
        return [*text, found["error"], ""]
    rows = [
        [line["kind"], line["against"], f"{line['relative']:.2e}", f"{line['cosine']:.8f}"] for line in found["lines"]
    ]
    return [
        *text,
        f"One step's accumulated gradient of {found['parameters'] / 1e6:.1f} M float32 adapter weights under "
        f"{found['precision']} autocast: the same weights, prompts and completions of mixed lengths, {found['rows']} rows, "
        f"half of the groups dead (ours skipped {found['skipped_rows']:.0f} rows).",
        "",
        table(["gradient", "against", "relative L2 difference", "cosine"], rows),
        "",
        "The second line is the noise: stock against itself, its rows shuffled into other micro-batches. The last line is "
        "without rounding to half precision.",
        "",
    ]


def _throughput_section(found: dict) -> list[str]:
    text = ["## Tokens a second", ""]
    if "error" in found:
        return [*text, found["error"], ""]
    rows, stock = [], medians(found["contenders"]["stock"])
    for name, contender in found["contenders"].items():
        seconds = medians(contender)
        generated, trained = (
            found["rows"] * found["completion"],
            found["rows"] * (found["prompt"] + found["completion"]),
        )
        cells = []
        for part, tokens in (("generation", generated), ("rest", trained)):
            cells += [f"{seconds[part]:.2f}", f"{tokens / seconds[part]:,.0f}", f"x{stock[part] / seconds[part]:.2f}"]
        whole = sum(stock.values()) / sum(seconds.values())
        peak = memory.gib(contender["peak"]) if contender["peak"] else "-"
        rows.append([name, *cells, f"**x{whole:.2f}**", peak])
    header = ["", "generation, s", "tokens/s", "against stock", "forward, backward, update, s", "tokens/s"]
    header += ["against stock", "whole step", "peak, GiB"]
    counted = len(found["contenders"]["stock"]["steps"])
    text += [
        table(header, rows),
        "",
        f"Random weights, adapter of gsm8k.yaml; {found['rows']} rows in micro-batches of {found['micro']}, "
        f"{found['generations']} completions a prompt, prompts of {found['prompt']} and completions of "
        f"{found['completion']} tokens. Medians of {counted} steps after a first one that is not counted.",
        "",
        "Random weights do not end a completion by themselves, so all have the full length: there is no padding to trim and no "
        "finished row to drop, and what ours gains beside sharing the prompts is the rows it skips, half of the groups being "
        "dead by their reward. Training tokens count all rows, skipped ones too.",
        "",
    ]
    if found["outside"] is not None:
        text += [
            f"On the card beside what the allocator holds: {memory.gib(found['outside'])} GiB (CUDA context, libraries, "
            f"other programs); a prediction assumes {memory.gib(memory.OVERHEAD_BYTES)}.",
            "",
        ]
    return text


def _real_section(found: dict) -> list[str]:
    text = ["## A short real run", ""]
    if "error" in found:
        return [*text, found["error"], ""]
    summary, rewards = found["summary"], found["rewards"]
    if summary is None:
        mean = f", mean reward {statistics.fmean(rewards):.3f}" if rewards else ""
        return [*text, f"{found['model']}: stopped after {len(rewards)} of {found['planned_steps']} steps{mean}.", ""]

    def figure(value: dict | float) -> str:
        if isinstance(value, dict):
            return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        return f"{value:.3f}"

    half = max(1, len(rewards) // 2)
    rows = [
        [name, figure(summary[f"{key}_before"]), figure(summary[f"{key}_after"])]
        for name, key in (("sampled accuracy", "accuracy"), ("greedy accuracy", "greedy"))
    ]
    rows.append(["training reward, first and second half", *(figure(statistics.fmean(r)) for r in
                 (rewards[:half], rewards[half:] or rewards))])  # fmt: skip
    steps = summary["steps"]
    return [
        *text,
        f"gsm8k.yaml with {found['model']}, {steps} steps of {summary['seconds'] / max(steps, 1):.1f} s, "
        f"{summary['heldout_n']} held-out problems, 95 % intervals. So short a run shows that everything works, not that it "
        "learns.",
        "",
        table(["", "before", "after"], rows),
        "",
    ]


def markdown(result: dict) -> str:
    """The content of the JSON file as Markdown; parts that are not there are left out."""
    text = [f"# {result['card']}", "", result["line"], ""]
    if result["card"] == "cpu":
        text += ["Tiny shapes on a CPU: this shows that the benchmark runs; its figures mean nothing.", ""]
    records = result.get("configurations", [])
    recipes = [record for record in records if record["kind"] == "recipe"]
    bursting = [record for record in records if record["kind"] == "oom"]
    if recipes:
        text += _recipes_section(recipes, result["cap"])
    if bursting:
        text += _oom_section(bursting, result["cap"])
    if records:
        verdicts = [record["verdict"]["right"] for record in records if "verdict" in record]
        verdicts = [right for right in verdicts if right is not None]
        if verdicts:
            text += [f"**The verdict was right {sum(verdicts)} times of {len(verdicts)}.**", ""]
        text += [
            "GiB. Peaks are torch's `max_memory_allocated`; every prompt and completion has the greatest length, weights are "
            f"random. The cap of {result['cap']:.2f} GiB (`set_per_process_memory_fraction`) covers torch's allocator alone: "
            "the CUDA context, libraries and paged optimizer states lie beside it. The verdict compares "
            f"{memory.OVERHEAD_FACTOR} x the predicted peak + {memory.gib(memory.OVERHEAD_BYTES)} GiB for what lies beside "
            "with the cap; on a larger card that part has room of its own, so a recipe that needs nearly all of the cap would "
            f"run here where it is told not to fit. Measured {result['measured_at_once']} at a time.",
            "",
        ]
    for name, section in (
        ("gradients", _gradients_section),
        ("throughput", _throughput_section),
        ("real", _real_section),
    ):
        if name in result:
            text += section(result[name])
    if result["skipped"]:
        text += ["## Skipped", "", *(f"- {skipped['what']}: {skipped['why']}" for skipped in result["skipped"]), ""]
    text.append(f"{result['seconds']} seconds in all.")
    return "\n".join(text)


def failed(result: dict) -> list[str]:
    """Names of the parts and configurations that ended in an error."""
    records = [(r["name"], half) for r in result.get("configurations", []) for half in ("predicted", "measured")
               if "error" in r.get(half, {})]  # fmt: skip
    return [f"{name} ({half})" for name, half in records] + [
        name for name in ("gradients", "throughput", "real") if "error" in result.get(name, {})
    ]
