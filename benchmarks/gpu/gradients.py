"""The part `gradients`: accumulated gradients of ours and of stock TRL on one batch."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.gpu.trainers import cap_allocator, fixed_completions, job_recipe, job_sizes, make_trainer, policy


def accumulated_gradient(ours: bool, job: dict, out: Path, order: int = 0, float32: bool = False) -> tuple[Any, dict]:
    """
    The adapter's gradient after one step's micro-batches, a float64 vector on the CPU, and the step's logs.

    Args:
        ours: Whether our trainer or TRL's runs.
        job: The job of the child process.
        out: The trainer's output folder.
        order: Seed of the order in which TRL shuffles the rows into micro-batches.
        float32: Whether everything is computed in float32, with the same weights and rows.
    """
    recipe, sizes = job_recipe(job), job_sizes(job)
    model = policy(sizes, recipe, job["device"])
    precision = {"bf16": False, "fp16": False} if float32 else {}
    if float32:
        model.float()
    taken = []

    class Taker(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            parameters = [p for p in model.parameters() if p.requires_grad]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
            taken.append(torch.cat([grad.flatten() for grad in grads]).double().cpu())

    # A bound that is never reached: clipping undoes float16's loss scale and then leaves the gradient as it is
    trainer = make_trainer(ours, job, recipe, model, 1, out, Taker(), optim="sgd", max_grad_norm=1e12, **precision)
    completions = fixed_completions(sizes)

    def generate(prompt_ids, *args, **kwargs):
        torch.manual_seed(order)
        return [list(ids) for ids in completions], None

    trainer._generate_single_turn = generate
    trainer.train()
    return taken[0], trainer.state.log_history[0]


def gradients(job: dict) -> dict:
    """Relative L2 distances and cosines between gradients of ours and stock, in the recipe's precision and float32."""
    cap_allocator(job)
    recipe, sizes = job_recipe(job), job_sizes(job)
    name = "bf16" if recipe.training.bf16 else "fp16" if recipe.training.fp16 else "float32"
    kinds = {
        "stock": (False, {}),
        "stock, rows in another order": (False, {"order": 1}),
        "ours": (True, {}),
        "stock in float32": (False, {"float32": True}),
        "ours in float32": (True, {"float32": True}),
    }
    found, logs = {}, {}
    with tempfile.TemporaryDirectory() as out:
        for kind, (ours, options) in kinds.items():
            found[kind], logs[kind] = accumulated_gradient(ours, job, Path(out), **options)
    lines = []
    for kind, against in (
        ("ours", "stock"),
        ("stock, rows in another order", "stock"),
        ("stock", "stock in float32"),
        ("ours", "stock in float32"),
        ("ours in float32", "stock in float32"),
    ):
        a, b = found[kind], found[against]
        relative = ((a - b).norm() / b.norm()).item()
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
        lines.append({"kind": kind, "against": against, "relative": relative, "cosine": cosine})
    return {
        "precision": name,
        "adapter": "float32",
        "parameters": len(found["stock"]),
        "rows": sizes.rows,
        "skipped_rows": logs["ours"].get("skipped_rows"),
        "padding_fraction": logs["ours"].get("padding_fraction"),
        "norm": found["stock"].norm().item(),
        "lines": lines,
    }
