"""Forward and backward of the same completions with stock TRL and with ours: seconds, positions and gradients.

The completions are gold solutions of GSM8K, so that lengths are those of real work. TRL's `rollout_func` hands them to both
trainers in place of sampling; everything after it is the trainers' own. Seconds run from the start of the optimizer step to the
accumulated gradient.
"""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from benchmarks import common
from grpo_math.tasks import gsm8k, load_problems
from grpo_math.tasks.base import TaskConfig, worked_solution

LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
CONTENDERS = ("stock", "ours", "stock again")
NO_HEAD = "ours, no compact LM head"
SHOTS = 4


@dataclass
class Batch:
    """
    Rows of one optimizer step.

    Attributes:
        groups, group: Prompts, and completions of each.
        micro: Rows of a micro-batch.
        shots: Solved examples before each question.
        dead: Whether every second group has equal rewards.
        longest: Completions are cut to so many tokens.
        checkpointing: Whether both trainers recompute activations; without it stock needs over 20 GB for long prompts.
    """

    groups: int = 2
    group: int = 8
    micro: int = 8
    shots: int = 0
    dead: bool = False
    longest: int | None = None
    checkpointing: bool = False


CASES = {
    "real lengths, nothing dead": Batch(),
    "real lengths, half of the groups dead": Batch(dead=True),
    f"{SHOTS}-shot prompt, nothing dead, gradient checkpointing": Batch(shots=SHOTS, checkpointing=True),
}
# For gradients, not for time
SMALL = Batch(group=4, micro=4, longest=32)


@dataclass
class Step:
    """What one optimizer step cost and gave."""

    cpu: float
    wall: float
    positions: int  # of the forward passes with gradients
    gradient: torch.Tensor = field(repr=False)  # float32, all parameters in one vector


class _Watch(TrainerCallback):
    """Seconds and gradient of the first optimizer step."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.process_time(), time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.cpu, self.wall = time.process_time() - self.started[0], time.perf_counter() - self.started[1]
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def texts(batch: Batch, tokenizer: Any) -> list[tuple[str, list[str]]]:
    """Prompts as in recipes/gsm8k.yaml with the gold solutions of as many other problems as a group has completions."""
    size = batch.group + 1
    needed = batch.groups * size
    task = TaskConfig(task="gsm8k", train_size=needed, heldout_size=1, fewshot=batch.shots, prompt_style="hash")
    prompts = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for row in load_problems(task).train
    ]
    style = task.prompt_style
    solutions = [worked_solution(style, gsm8k.example(row)) for row in gsm8k.load_rows(task)[0]]
    return [(prompts[g], solutions[g + 1 : g + size]) for g in range(0, needed, size)]


def completion_ids(text: str, tokenizer: Any, longest: int | None = None) -> list[int]:
    """Tokens of a completion, cut to `longest`, and the end token."""
    return [*tokenizer(text)["input_ids"][:longest], tokenizer.eos_token_id]


def rollout(batch: Batch, tokenizer: Any) -> tuple[list[dict], Any]:
    """Rows for the trainer's data set, and the `rollout_func` that gives their completions."""
    found = texts(batch, tokenizer)
    completions = {p: [completion_ids(s, tokenizer, batch.longest) for s in chosen] for p, chosen in found}

    def give(prompts: list[str], trainer: Any) -> dict[str, Any]:
        count: dict[str, itertools.count] = {prompt: itertools.count() for prompt in completions}
        ids = [completions[prompt][next(count[prompt]) % batch.group] for prompt in prompts]
        return {"prompt_ids": [tokenizer(p)["input_ids"] for p in prompts], "completion_ids": ids, "logprobs": None}

    return [{"prompt": p, "dead": batch.dead and bool(i % 2)} for i, (p, _) in enumerate(found)], give


@contextmanager
def _counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """Positions of every forward pass with gradients inside the context."""
    seen: list[int] = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled():
            seen.append(kwargs["input_ids"].numel())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def one_step(contender: str, batch: Batch, model: torch.nn.Module, tokenizer: Any, out: Path, **options) -> Step:
    """One optimizer step of a contender from a copy of `model`, with learning rate 0."""
    watch, model = _Watch(), copy.deepcopy(model)
    ours = contender.startswith("ours")
    if contender == NO_HEAD:
        options["compact_lm_head"] = False
    if (adapter := options.pop("adapter", None)) is not None:
        torch.manual_seed(0)
        model = get_peft_model(model, adapter)
    rows, give = rollout(batch, tokenizer)
    arguments = {
        "per_device_train_batch_size": batch.micro,
        "gradient_accumulation_steps": batch.groups * batch.group // batch.micro,
        "num_generations": batch.group,
        "max_completion_length": 1024,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "learning_rate": 0.0,
        "optim": "sgd",
        "shuffle_dataset": False,
        "gradient_checkpointing": batch.checkpointing,
    } | options
    trainer = common.make_trainer(
        ours, model, common.half_dead_reward, rows, tokenizer, out, [watch], rollout_func=give, **arguments
    )
    base = model.get_base_model() if adapter is not None else model
    with _counted(base) as positions:
        trainer.train()
    step = Step(watch.cpu, watch.wall, sum(positions), watch.gradient)
    del trainer, model, base, watch
    gc.collect()  # trainers refer to themselves, and the next one needs the memory
    return step


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """`|found - expected| / |expected|`, in L2."""
    return ((found - expected).norm() / expected.norm()).item()


def measure_time(model: torch.nn.Module, tokenizer: Any, out: Path, rounds: int) -> list[dict]:
    """All rounds of all cases: each contender's seconds, positions and gradient against stock's."""
    found = []
    for name, batch in CASES.items():
        for number in range(rounds):
            order = (*CONTENDERS, NO_HEAD) if number % 2 == 0 else (*reversed(CONTENDERS), NO_HEAD)
            steps = {who: one_step(who, batch, model, tokenizer, out) for who in order}
            for who, step in steps.items():
                gradient = difference(step.gradient, steps["stock"].gradient)
                figures = {"cpu": step.cpu, "wall": step.wall, "positions": step.positions, "gradient": gradient}
                found.append({"case": name, "round": number, "contender": who, **figures})
            print(f"{name}, round {number + 1}: x{steps['stock'].cpu / steps['ours'].cpu:.2f}", flush=True)
    return found


def settings_of_gradients() -> dict[str, dict]:
    """Title -> options of every comparison of gradients."""
    adapter = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    half = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": SMALL.groups * SMALL.group}
    found = {f"loss `{loss}`, 2 micro-batches": {"loss_type": loss} for loss in LOSSES}
    found |= {f"loss `{loss}`, 1 micro-batch": {"loss_type": loss, **half} for loss in ("dapo", "bnpo")}
    found["gradient checkpointing"] = {"gradient_checkpointing": True}
    found["LoRA"] = {"adapter": adapter}
    found["LoRA, gradient checkpointing"] = {"adapter": adapter, "gradient_checkpointing": True}
    # A generation serves two optimizer steps, so TRL stores old log-probabilities
    found["stored old log-probabilities"] = {"num_iterations": 2}
    return found


def measure_gradients(model: torch.nn.Module, tokenizer: Any, out: Path) -> list[dict]:
    """Ours against stock in float32 for every loss; in bfloat16 beside what another micro-batch size changes."""
    found = []
    for title, options in settings_of_gradients().items():
        stock, ours = (one_step(who, SMALL, model, tokenizer, out, **options) for who in ("stock", "ours"))
        found.append({"setting": title, "precision": "float32", "ours": difference(ours.gradient, stock.gradient)})
        print(f"{title}: {found[-1]['ours']:.1e}", flush=True)
    exact = one_step("stock", SMALL, model, tokenizer, out).gradient
    stock, ours = (one_step(who, SMALL, model, tokenizer, out, bf16=True).gradient for who in ("stock", "ours"))
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": SMALL.groups * SMALL.group // 2}
    other = one_step("stock", SMALL, model, tokenizer, out, bf16=True, **split).gradient
    found.append(
        {
            "setting": "loss `dapo`, 2 micro-batches",
            "precision": "bfloat16 autocast",
            "ours": difference(ours, stock),
            "stock with micro-batches of 2": difference(other, stock),
            "stock against float32": difference(stock, exact),
            "ours against float32": difference(ours, exact),
        }
    )
    return found


def report_time(timed: list[dict]) -> str:
    """The passes as Markdown."""
    rows = []
    for name in CASES:
        of = {who: [f for f in timed if f["case"] == name and f["contender"] == who] for who in (*CONTENDERS, NO_HEAD)}
        cpu = {who: [f["cpu"] for f in figures] for who, figures in of.items()}

        def ratio(who: str, cpu: dict = cpu) -> str:
            ratios = sorted(a / b for a, b in zip(cpu["stock"], cpu[who], strict=True))
            spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
            return f"x{statistics.median(ratios):.2f}{spread}"

        seconds = f"{statistics.median(cpu['stock']):.1f} / {statistics.median(cpu['ours']):.1f}"
        positions = f"{of['stock'][0]['positions']} / {of['ours'][0]['positions']}"
        worst = max(f["gradient"] for f in of["ours"])
        ratios = [f"**{ratio('ours')}**", ratio("stock again"), ratio(NO_HEAD)]
        rows.append([name, *ratios, seconds, positions, f"{worst:.1e}"])
    header = ["case", "ours", "stock again (noise)", "ours without the compact LM head", "CPU s, stock / ours"]
    header += ["positions, stock / ours", "gradient, relative L2"]
    return "\n".join(
        [
            "## Forward and backward of identical batches",
            "",
            "SmolLM2-135M-Instruct, full fine-tuning, float32, loss `dapo`, beta 0. Two GSM8K prompts with eight gold "
            "solutions each, micro-batches of eight rows. CPU seconds of stock TRL over ours, above 1 is faster.",
            "",
            common.table(header, rows),
        ]
    )


def report_gradients(gradients: list[dict]) -> str:
    """The gradients as Markdown."""
    float32 = [[f["setting"], f"{f['ours']:.1e}"] for f in gradients if f["precision"] == "float32"]
    (bf16,) = (f for f in gradients if f["precision"] != "float32")
    return "\n".join(
        [
            "## Gradients against stock TRL",
            "",
            "The same model, two prompts with four completions of at most 33 tokens. Relative L2 difference of the "
            "accumulated gradient in float32.",
            "",
            common.table(["setting", "ours"], float32),
            "",
            f"Under bfloat16 autocast ours differs from stock by {bf16['ours']:.1e}. Stock with micro-batches of two rows "
            f"differs from stock by {bf16['stock with micro-batches of 2']:.1e}. From the float32 gradient stock differs by "
            f"{bf16['stock against float32']:.1e} and ours by {bf16['ours against float32']:.1e}.",
        ]
    )
