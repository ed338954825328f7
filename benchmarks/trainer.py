"""Ours against stock TRL on a CPU in one run, with stock-against-stock lines for the noise: steps, passes and gradients.

SmolLM2-135M-Instruct, full fine-tuning with AdamW, default options of either trainer. Every round runs stock, ours and
stock again on the same prompts from the same weights and seed (in alternating order) and measures one optimizer step
from sampling to the weight update: CPU seconds and wall-clock time. A ratio is stock's time over ours in one round.
Forward and backward of identical completions, and gradients, are measured in `forward_backward.py`.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback

from benchmarks import common, forward_backward

PARTS = ("passes", "gradients", "steps")
ORDERS = (("stock", "ours", "stock again"), ("stock again", "ours", "stock"))


@dataclass
class Case:
    """What is trained on. Rows are `groups * num_generations`, in micro-batches of `micro`."""

    title: str
    dead: bool  # whether every second group has equal rewards
    max_completion_length: int
    fixed_length: bool = False
    gold: bool = False  # whether gold solutions are sampled, as in `forward_backward`
    groups: int = 2
    num_generations: int = 8
    micro: int = 8


CASES = {
    "gold": Case("gold solutions, none dead", False, 1024, gold=True),
    "gold_half_dead": Case("gold solutions, half of the groups dead", True, 1024, gold=True),
    "gold_32": Case("gold solutions, none dead", False, 1024, gold=True, groups=4),
    "gold_half_dead_32": Case("gold solutions, half of the groups dead", True, 1024, gold=True, groups=4),
    "cut": Case("what the model writes, cut at 200 tokens, none dead", False, 200),
    "cut_half_dead": Case("what the model writes, cut at 200 tokens, half of the groups dead", True, 200),
    "nothing": Case(
        "nothing to save: none dead, prompts of 4 and completions of 32 tokens throughout", False, 32, True
    ),
}


class Forced(LogitsProcessor):
    """Leaves each row one token to sample at each position, that of its given completion."""

    def __init__(self, completions: list[list[int]]):
        self.completions = completions
        self.start: int | None = None

    def __call__(self, input_ids, scores):
        self.start = input_ids.size(1) if self.start is None else self.start
        at = input_ids.size(1) - self.start
        tokens = torch.tensor([c[min(at, len(c) - 1)] for c in self.completions]).unsqueeze(1)  # (B, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, scores.gather(1, tokens))


class Stopwatch(TrainerCallback):
    """CPU and wall-clock seconds of every optimizer step, from its first micro-batch to the update."""

    def __init__(self):
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.process_time(), time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append((time.process_time() - self.started[0], time.perf_counter() - self.started[1]))


def prompts(case: Case, round_number: int, tokenizer) -> tuple[list[dict], list[list[int]] | None]:
    """The round's prompts, GSM8K questions or four tokens each where lengths are fixed, and what each row must sample."""
    forced = None
    if case.fixed_length:
        texts = [f"The number {(round_number * case.groups + i) % 10} is" for i in range(case.groups)]
    else:
        batch = forward_backward.Batch(groups=case.groups * (round_number + 1), group=case.num_generations)
        found = forward_backward.texts(batch, tokenizer)[-case.groups :]
        texts = [prompt for prompt, _ in found]
        if case.gold:
            forced = [forward_backward.completion_ids(s, tokenizer) for _, solutions in found for s in solutions]
    rows = [{"prompt": text, "dead": case.dead and bool(i % 2)} for i, text in enumerate(texts)]
    return rows, forced


def step(ours: bool, case: Case, model, tokenizer, round_number: int, bf16: bool, out: Path) -> dict:
    """One optimizer step of either trainer, from a copy of `model`."""
    watch, model = Stopwatch(), copy.deepcopy(model)
    rows, forced = prompts(case, round_number, tokenizer)
    if forced:
        model.generate = partial(model.generate, logits_processor=LogitsProcessorList([Forced(forced)]))
    trainer = common.make_trainer(
        ours,
        model,
        common.half_dead_reward,
        rows,
        tokenizer,
        out,
        [watch],
        per_device_train_batch_size=case.micro,
        gradient_accumulation_steps=case.groups * case.num_generations // case.micro,
        num_generations=case.num_generations,
        max_completion_length=case.max_completion_length,
        generation_kwargs={"min_new_tokens": case.max_completion_length} if case.fixed_length else None,
        max_steps=1,
        shuffle_dataset=False,
        bf16=bf16,
        seed=round_number,
    )
    sampling = [0.0]
    generate = trainer._generate

    def timed(*arguments, **keywords):
        started = time.process_time()
        try:
            return generate(*arguments, **keywords)
        finally:
            sampling[0] += time.process_time() - started

    trainer._generate = timed
    trainer.train()
    ((cpu, wall),) = watch.steps
    logs = trainer.state.log_history[0]
    return {
        "cpu": cpu,
        "wall": wall,
        "sampling_cpu": sampling[0],
        "mean_length": logs["completions/mean_length"],
        "max_length": logs["completions/max_length"],
        "skipped_rows": logs.get("skipped_rows"),
        "padding_fraction": logs.get("padding_fraction"),
    }


def measure(names: list[str], rounds: int, bf16: bool, model, tokenizer, out: Path) -> dict[str, list[dict]]:
    """All rounds of all cases; each round maps contender to its figures."""
    found = {}
    for name in names:
        case = CASES[name]
        # The first step of a process is slower
        step(False, replace(case, max_completion_length=16), model, tokenizer, 0, bf16, out)
        found[name] = []
        for number in range(rounds):
            run = {
                contender: step(contender == "ours", case, model, tokenizer, number, bf16, out)
                for contender in ORDERS[number % 2]
            }
            found[name].append(run)
            ratio = run["stock"]["cpu"] / run["ours"]["cpu"]
            print(f"{name}, round {number + 1}: x{ratio:.2f}", flush=True)
    return found


def report(found: dict[str, list[dict]], bf16: bool) -> str:
    """The results as Markdown."""
    rows = []
    for name, runs in found.items():
        for label, slow, fast in (("ours", "stock", "ours"), ("stock again (noise)", "stock", "stock again")):
            case = CASES[name]
            size = str(case.groups * case.num_generations)
            cells = [case.title, size, label] if label == "ours" else ["", "", label]
            for part in ("cpu", "wall"):
                ratios = sorted(run[slow][part] / run[fast][part] for run in runs)
                cells.append(f"**x{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            seconds = [statistics.median(run[who]["cpu"] for run in runs) for who in (slow, fast)]
            sampling = [statistics.median(run[who]["sampling_cpu"] for run in runs) for who in (slow, fast)]
            rest = [a - b for a, b in zip(seconds, sampling, strict=True)]
            cells.append(f"{seconds[0]:.1f} / {seconds[1]:.1f}")
            cells.append(f"x{sampling[0] / sampling[1]:.2f}")
            cells.append(f"x{rest[0] / rest[1]:.2f}")
            lengths = [statistics.fmean(run[fast][f"{of}_length"] for run in runs) for of in ("mean", "max")]
            cells.append(f"{lengths[0]:.0f} / {lengths[1]:.0f}")
            rows.append(cells)
    header = ["case", "rows", "against stock", "whole step, CPU", "whole step, wall", "CPU s, stock / it"]
    header += ["sampling", "forward, backward, update", "completions: mean / longest, tokens"]
    rounds = len(next(iter(found.values())))
    sample = CASES[next(iter(found))]
    text = [
        "## Whole steps",
        "",
        f"SmolLM2-135M-Instruct, full fine-tuning, {'bf16 autocast' if bf16 else 'float32'}, loss `dapo`, beta 0, "
        f"micro-batches of {sample.micro} rows, {sample.num_generations} completions a prompt. Median of {rounds} rounds "
        "(lowest to highest); a ratio above 1 is faster than stock. GSM8K prompts in the form of recipes/gsm8k_135m.yaml, but "
        "for 'nothing to save'. Gold solutions are sampled through a logits processor that leaves one token at each position, "
        "the same for all contenders; ours cannot leave finished rows out of it. The untrained model itself mostly writes on "
        "until it is cut.",
        "",
        common.table(header, rows),
    ]
    return "\n".join(text)


def page(data: dict) -> str:
    """The parts that have been measured as one Markdown page; each names its machine."""
    texts = {
        "passes": lambda part: forward_backward.report_time(part["times"]),
        "gradients": lambda part: forward_backward.report_gradients(part["differences"]),
        "steps": lambda part: report(part["rounds"], part["bf16"]),
    }
    text = ["# Ours against stock TRL"]
    for name in PARTS:
        if name in data:
            title, *rest = texts[name](data[name]).split("\n", 1)
            text += ["", title, "", data[name]["machine"], *rest]
    return "\n".join(text)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks trainer", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="*", default=[*PARTS], choices=PARTS, help="the others keep their stored figures"
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="of the whole steps")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="whole steps in float32 instead of bf16 autocast")
    args = parser.parse_args(argv)
    stored = common.RESULTS / "trainer.json"
    data = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        folder = common.smollm2_folder(out)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        measures = {
            "passes": lambda: {"times": forward_backward.measure_time(model, tokenizer, out, args.rounds)},
            "gradients": lambda: {"differences": forward_backward.measure_gradients(model, tokenizer, out)},
            "steps": lambda: {
                "bf16": not args.float32,
                "rounds": measure(args.cases, args.rounds, not args.float32, model, tokenizer, out),
            },
        }
        for part in args.parts:
            data[part] = {"machine": common.machine_line(), **measures[part]()}
            # After each part, as each takes minutes
            common.save("trainer", page(data), {name: data[name] for name in PARTS if name in data})
    return 0
