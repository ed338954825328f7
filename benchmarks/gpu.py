"""One GPU in one command: memory predicted and measured, tokens a second, gradients in bf16, a short real run.

    python -m benchmarks gpu
    python -m benchmarks gpu --model FOLDER --data FOLDER     # a local model and GSM8K: a short real run too

Runs on any CUDA machine, without a hub: weights are random, shapes are those of the recipes. Parts, in this order:

- memory: every 8 GB recipe in a process whose allocator may take 8 GiB, predicted against measured.
- oom: configurations that are predicted to need clearly more, which really have to run out.
- gradients: accumulated gradients of ours against stock TRL's on one batch, beside the noise of another row order.
- throughput: whole training steps of stock, ours and stock again, Qwen2.5-0.5B's shape.
- real: gsm8k.yaml with a given model, held-out accuracy before and after.

Every part runs in processes of its own and is written to `results/gpu-<card>.json` and `.md` when it is done. What the
time (`--minutes`) is not enough for is listed as skipped; `--parts` runs some of them.
`--device cpu --tiny` runs the same code on a CPU with tiny shapes: nothing to report, but it shows that it works.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.plain import RECIPES, eight_gb_recipes, table
from grpo_math import memory
from grpo_math.memory import GIB
from grpo_math.recipe import read_yaml

# torch and what builds on it is imported where it is used: this process must not take memory of the card

ROOT = Path(__file__).parent.parent
PARTS = ("memory", "oom", "gradients", "throughput", "real")
TOLERANCE = 0.05  # of the measured peak
CLEARLY = 1.1  # the peak of a configuration that has to run out, in caps
BESIDE = 1.0  # GiB that a process takes beside its allocator's share, when several share a card
ANSWER = "answer: "  # begins the line on which a child process answers

# --- what is run ------------------------------------------------------------------------------------------------------

_NO_CHECKPOINTING = {"gradient_checkpointing": False}
# Name -> recipe, overrides: each needs more than 8 GiB, in another phase or for another reason
OUT_OF_MEMORY = {
    "full fine-tune, 64 rows at once, no checkpointing": (
        "gsm8k_full.yaml",
        {"heldout_size": 0, "per_device_train_batch_size": 64, "gradient_accumulation_steps": 1, **_NO_CHECKPOINTING},
    ),
    "0.5B LoRA, 16 rows at once, no checkpointing": (
        "gsm8k.yaml",
        {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, **_NO_CHECKPOINTING},
    ),
    "full fine-tune, 32-bit AdamW": ("report_gsm8k.yaml", {"optim": "adamw_torch"}),
    "1.5B LoRA, 512 completions at once": (
        "gsm8k_1.5b_lora.yaml",
        {"gradient_accumulation_steps": 64, "heldout_size": 0},
    ),
    "1.5B LoRA, 512 held-out completions at once": ("gsm8k_1.5b_lora.yaml", {"heldout_batch_size": 512}),
    "3B LoRA, not quantized, 32 rows at once": (
        "gsm8k_1.5b_lora.yaml",
        {
            "model_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 2,
        },
    ),
    "7B QLoRA, 16 rows at once": (
        "gsm8k_7b_qlora.yaml",
        {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "steps_per_generation": 1},
    ),
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A recipe with overrides whose memory is predicted and measured; `kind` is `recipe` or `oom`."""

    name: str
    kind: str
    path: Path
    changes: dict[str, Any]
    prompt_length: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the gradients and the throughput are taken on: a model's shape, and tokens and rows of a step."""

    shape: dict[str, Any]
    prompt: int
    completion: int
    groups: int
    generations: int
    micro: int

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.groups * self.generations


REAL_SIZES = Sizes(memory.SHAPES["Qwen/Qwen2.5-0.5B"], 128, 256, groups=8, generations=8, micro=8)
TINY_SIZES = Sizes(
    dict(
        model_type="qwen2",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    ),
    prompt=12,
    completion=16,
    groups=4,
    generations=4,
    micro=4,
)
TINY_CHANGES = {
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 16,
    "heldout_batch_size": 8,
}


def configurations(kinds: Sequence[str], tiny_model: Path | None = None) -> list[Configuration]:
    """
    The 8 GB recipes from the smallest model to the largest, then what has to run out of memory.

    Args:
        kinds: Of `memory` (the recipes) and `oom`.
        tiny_model: A folder with a tiny configuration: then gsm8k.yaml with it, and nothing else.
    """
    if tiny_model is not None:
        changes = {"model_name_or_path": str(tiny_model), **TINY_CHANGES}
        return [Configuration("gsm8k.yaml, tiny", "recipe", RECIPES / "gsm8k.yaml", changes, TINY_SIZES.prompt)]

    def configuration(name: str, kind: str, path: Path, changes: dict) -> Configuration:
        return Configuration(name, kind, path, changes, memory.LONGEST_PROMPT[read_yaml(path)["task"]])

    def size(path: Path) -> int:
        shape = memory.SHAPES[read_yaml(path)["model_name_or_path"].removesuffix("-Instruct")]
        return shape["num_hidden_layers"] * shape["hidden_size"] ** 2

    paths = sorted(eight_gb_recipes(), key=size)
    found = [configuration(path.name, "recipe", path, {}) for path in paths]
    found += [configuration(name, "oom", RECIPES / file, changes) for name, (file, changes) in OUT_OF_MEMORY.items()]
    return [c for c in found if {"recipe": "memory", "oom": "oom"}[c.kind] in kinds]


def judge(predicted: dict, measured: dict, vram: float) -> dict:
    """
    A prediction beside a measurement: `{"ratio", "phases", "fits", "ran_out", "right"}`.

    Args:
        predicted: As `Prediction.as_dict` gives it.
        measured: As `memory.measure` gives it.
        vram: GiB that the process might take.

    Returns:
        `ratio`: predicted over measured peak, `None` where the memory ran out (the peak was then never reached);
        `phases`: the same of each phase that was measured; `fits`: the predicted verdict; `ran_out`; `right`: whether the
        verdict came true, `None` on a CPU, where nothing can run out.
    """
    fits = predicted["total"] <= vram * GIB
    ran_out = measured["out_of_memory"] is not None
    peaks = {phase: size for phase, size in measured["peaks"].items() if size}
    both = {} if ran_out else {phase: size for phase, size in peaks.items() if phase in predicted["peaks"]}
    return {
        "ratio": None if ran_out else predicted["peak"] / max(peaks.values()),
        "phases": {phase: predicted["peaks"][phase] / size for phase, size in both.items()},
        "fits": fits,
        "ran_out": ran_out,
        "right": None if measured["device"] == "cpu" else fits != ran_out,
    }


# --- in a child process: one part each --------------------------------------------------------------------------------


def predict(job: dict) -> dict:
    """`memory.predict` of a configuration, as a dictionary."""
    return memory.predict(job["path"], job["argv"], job["prompt_length"], workspace=job["workspace"]).as_dict()


def measure(job: dict) -> dict:
    """`memory.measure` of a configuration."""
    return memory.measure(job["path"], job["argv"], job["prompt_length"], job["cap"])


def machine(job: dict) -> dict:
    """The machine, its line, and of a card its name, GiB in all and free, and what cuBLAS takes of it."""
    import torch

    from benchmarks import common

    found = {"machine": common.machine(), "line": common.machine_line(), "card": "cpu", "total": None, "free": None}
    found["workspace"] = memory.cublas_workspace()
    if job["device"] == "cuda":
        free, total = torch.cuda.mem_get_info()
        found.update(card=torch.cuda.get_device_name(), total=total / GIB, free=free / GIB)
    return found


def _cap_allocator(job: dict) -> None:
    import torch

    if job["device"] == "cuda" and job["cap"]:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(job["cap"] * GIB / total, 1.0))


def _sizes(job: dict) -> Sizes:
    return TINY_SIZES if job["tiny"] else REAL_SIZES


def _recipe(job: dict) -> Any:
    """gsm8k.yaml, for its adapter and for the precision that the device can do."""
    from grpo_math.recipe import load_recipe

    return load_recipe(RECIPES / "gsm8k.yaml", ["--use_cpu", "true"] if job["device"] == "cpu" else [])


def policy(sizes: Sizes, recipe: Any, device: str) -> Any:
    """A model with the recipe's adapter, the same random weights at every call; the adapter float32 and not zero."""
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig
    from trl import get_peft_config

    from grpo_math import models
    from grpo_math.dry_run import build_model

    torch.manual_seed(0)
    shape = dict(sizes.shape)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    dtype = getattr(torch, recipe.model.dtype)
    model = get_peft_model(build_model(recipe, config, dtype, torch.device(device)), get_peft_config(recipe.model))
    models.float32_adapter(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start of a training, and then no gradient reaches the other half
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def word_tokenizer() -> Any:
    """The stand-in tokenizer with a hundred more words, so that prompts differ."""
    from grpo_math.dry_run import stand_in_tokenizer

    tokenizer = stand_in_tokenizer()
    tokenizer.add_tokens([f"w{i}" for i in range(100)])
    return tokenizer


def prompt_rows(sizes: Sizes, steps: int) -> list[dict]:
    """Different prompts of `sizes.prompt` words for each group of each step, every second one marked dead."""
    import random

    draw = random.Random(0)
    words = [" ".join(f"w{draw.randrange(100)}" for _ in range(sizes.prompt)) for _ in range(steps * sizes.groups)]
    return [{"prompt": text, "dead": bool(i % 2)} for i, text in enumerate(words)]


def half_dead_by_ids(completions, prompts, dead, completion_ids, **columns) -> list[float]:
    """`common.half_dead_reward` of the token ids, since random weights write no words."""
    from benchmarks import common

    texts = [" ".join(map(str, ids)) for ids in completion_ids]
    return common.half_dead_reward(texts, prompts, dead)


def _trainer(ours: bool, job: dict, recipe: Any, model: Any, steps: int, out: Path, callback: Any, **options) -> Any:
    from benchmarks import common

    sizes = _sizes(job)
    values = dict(
        per_device_train_batch_size=sizes.micro,
        gradient_accumulation_steps=sizes.rows // sizes.micro,
        num_generations=sizes.generations,
        max_completion_length=sizes.completion,
        max_steps=steps,
        loss_type="dapo",
        beta=0.0,
        learning_rate=2e-5,
        gradient_checkpointing=True,
        shuffle_dataset=False,
        use_cpu=job["device"] == "cpu",
        bf16=recipe.training.bf16,
        fp16=recipe.training.fp16,
        seed=0,
    )
    rows = prompt_rows(sizes, steps)
    return common.make_trainer(
        ours, model, half_dead_by_ids, rows, word_tokenizer(), out, [callback], **(values | options)
    )


def fixed_completions(sizes: Sizes) -> list[list[int]]:
    """Token ids of a completion for each row of a step: a quarter of the greatest length to all of it, with an end."""
    import random

    draw, vocabulary = random.Random(1), sizes.shape["vocab_size"]
    lengths = [draw.randint(sizes.completion // 4, sizes.completion) for _ in range(sizes.rows)]
    return [[draw.randrange(3, vocabulary) for _ in range(length - 1)] + [1] for length in lengths]


def accumulated_gradient(ours: bool, job: dict, out: Path, order: int = 0, float32: bool = False) -> tuple[Any, dict]:
    """
    The gradient of the adapter after one step's micro-batches, one float64 vector on the CPU, and the step's logs.

    Args:
        ours: Our trainer, or TRL's.
        order: Seed of the order in which TRL shuffles the rows into micro-batches.
        float32: The same weights and rows, everything computed in float32.
    """
    import torch
    from transformers import TrainerCallback

    recipe, sizes = _recipe(job), _sizes(job)
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

    # A bound that is never reached: it divides by float16's loss scale and leaves the gradient as it is
    trainer = _trainer(ours, job, recipe, model, 1, out, Taker(), optim="sgd", max_grad_norm=1e12, **precision)
    completions = fixed_completions(sizes)

    def generate(prompt_ids, *args, **kwargs):
        torch.manual_seed(order)
        return [list(ids) for ids in completions], None

    trainer._generate_single_turn = generate
    trainer.train()
    return taken[0], trainer.state.log_history[0]


def gradients(job: dict) -> dict:
    """Relative L2 distances and cosines between gradients of ours and stock, in the recipe's precision and float32."""
    import torch

    _cap_allocator(job)
    recipe, sizes = _recipe(job), _sizes(job)
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


def timed_steps(ours: bool, job: dict, out: Path) -> dict:
    """Seconds of each step after the first, `{"generation", "rest"}`, and the allocator's peak in bytes (CUDA)."""
    import torch
    from transformers import TrainerCallback

    recipe, sizes, on_card = _recipe(job), _sizes(job), job["device"] == "cuda"

    def now() -> float:
        if on_card:
            torch.cuda.synchronize()
        return time.perf_counter()

    steps: list[dict[str, float]] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.started = now()
            steps.append({"generation": 0.0})

        def on_step_end(self, args, state, control, **kwargs):
            steps[-1]["rest"] = now() - self.started - steps[-1]["generation"]

    if on_card:
        torch.cuda.reset_peak_memory_stats()
    trainer = _trainer(
        ours,
        job,
        recipe,
        policy(sizes, recipe, job["device"]),
        job["steps"] + 1,
        out,
        Stopwatch(),
        max_grad_norm=0.2,
        generation_kwargs={"min_new_tokens": sizes.completion},
    )
    generate = trainer._generate

    def timed(*args, **kwargs):
        started = now()
        try:
            return generate(*args, **kwargs)
        finally:
            steps[-1]["generation"] += now() - started

    trainer._generate = timed
    trainer.train()
    logs = trainer.state.log_history[1]
    return {
        "steps": steps[1:],
        "peak": torch.cuda.max_memory_allocated() if on_card else None,
        "mean_length": logs["completions/mean_length"],
        "skipped_rows": logs.get("skipped_rows"),
    }


def throughput(job: dict) -> dict:
    """Seconds of whole steps of stock, ours and stock again, and bytes on the card that are not the allocator's."""
    import gc

    import torch

    _cap_allocator(job)
    sizes = _sizes(job)
    found, outside = {}, None
    with tempfile.TemporaryDirectory() as out:
        for contender in ("stock", "ours", "stock again"):
            found[contender] = timed_steps(contender == "ours", job, Path(out))
            if job["device"] == "cuda":
                free, total = torch.cuda.mem_get_info()
                outside = total - free - torch.cuda.memory_reserved()
                gc.collect()
                torch.cuda.empty_cache()
    kept = {name: getattr(sizes, name) for name in ("rows", "micro", "generations", "prompt", "completion")}
    return {**kept, "outside": outside, "contenders": found}


JOBS: dict[str, Callable[[dict], dict]] = {
    "machine": machine,
    "predict": predict,
    "measure": measure,
    "gradients": gradients,
    "throughput": throughput,
}


# --- in this process: children, time, results -------------------------------------------------------------------------


class Children:
    """
    Processes of their own that are ended, with what they have started, when the time is up or this process stops.

    Args:
        seconds: From now on.
        environment: Of every child, above this process's.
    """

    def __init__(self, seconds: float, environment: dict[str, str]):
        self.started = time.monotonic()
        self.seconds = seconds
        self.environment = environment
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def left(self) -> float:
        """Seconds until the time is up."""
        return self.seconds - (time.monotonic() - self.started)

    def run(self, command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[int | None, str, str]:
        """Exit code (`None`: the time was up, before or during it), output and error output of a command."""
        with self._lock:
            if self._stopped or self.left() <= 0:
                return None, "", ""
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                env={**os.environ, **self.environment, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a group of its own, which can be ended as a whole
            )
            self._running.add(process)
        try:
            output, error = process.communicate(timeout=max(self.left(), 0.01))
            return (None if self._stopped else process.returncode), output, error
        except subprocess.TimeoutExpired:
            self._end(process)
            return None, *process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)

    def ask(self, job: dict, environment: dict[str, str] | None = None) -> dict:
        """The answer of a part in a child process, else `{"skipped": why}` or `{"error": what it said last}`."""
        code, output, error = self.run([sys.executable, "-m", "benchmarks.gpu", json.dumps(job)], environment)
        for line in reversed(output.splitlines()):
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        if code is None:
            return {"skipped": "no time left"}
        return {"error": _last_words(code, error)}

    def stop(self) -> None:
        """Ends what is still running."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _last_words(code: int, error: str) -> str:
    """Prints the end of a child's error output; returns its exit code and last line."""
    print(error[-4000:], file=sys.stderr, flush=True)
    said = [line for line in error.splitlines() if line.strip()]
    return f"exit code {code}: {said[-1] if said else 'it said nothing'}"


def workers(cores: int, free: float | None, cap: float, asked: int | None = None) -> tuple[int, int]:
    """
    How many configurations are measured at once, and how many predicted beside them. A process never takes more than its
    cap, and what it takes does not depend on its neighbours, so a large card holds several.

    Args:
        cores: Of the processor: a measurement keeps one or two busy.
        free: GiB free on the card, `None` on a CPU.
        cap: GiB that each may take.
        asked: How many to measure at once, whatever there is.
    """
    at_once = asked or (1 if free is None else max(1, min(int(free / (cap + BESIDE)), cores // 2)))
    return at_once, max(1, cores - at_once - 1)


def real_steps(asked: int, left: float, timed: dict | None, heldout_batches: int) -> int:
    """
    Steps of the real run that the time is enough for, at most `asked`.

    Args:
        left: Seconds.
        timed: The throughput part, whose 0.5B steps stand for the real ones; without it `asked`.
        heldout_batches: Generations of the held-out problems, before and after together.
    """
    if not timed or "contenders" not in timed:
        return asked
    seconds = medians(timed["contenders"]["ours"])
    fixed = 40 + heldout_batches * seconds["generation"]  # the process's start, loading and writing
    return max(0, min(asked, int((left - fixed) / (seconds["generation"] + seconds["rest"]))))


def medians(contender: dict) -> dict[str, float]:
    """Median seconds of generation and of the rest of a step."""
    return {part: statistics.median(step[part] for step in contender["steps"]) for part in ("generation", "rest")}


class Run:
    """
    One run of the benchmark: what is asked for, the children, and the result, which is written after every part.

    Attributes:
        result: The content of the JSON file.
    """

    def __init__(self, asked: argparse.Namespace, children: Children, scratch: Path):
        self.asked, self.children, self.scratch = asked, children, scratch
        self.free: float | None = None
        self.workspace: int | None = None  # bytes; predictions run where the card is out of sight
        self.shared = {"device": asked.device, "tiny": asked.tiny, "cap": asked.cap, "steps": asked.steps}
        self.result: dict[str, Any] = {"parts": list(asked.parts), "cap": asked.cap, "skipped": []}

    def say(self, text: str) -> None:
        """Prints a line of progress with the seconds so far."""
        print(f"[{self.children.seconds - self.children.left():4.0f} s] {text}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Notes that something was not run."""
        self.result["skipped"].append({"what": what, "why": why})
        self.say(f"{what}: skipped, {why}")

    def write(self) -> Path:
        """Writes the JSON and the Markdown; returns the path of the latter."""
        self.result["seconds"] = round(self.children.seconds - self.children.left())
        some = "" if list(self.asked.parts) == list(PARTS) else "-" + "-".join(self.asked.parts)
        name = f"gpu-{card_name(self.result['card'])}{'-tiny' * self.asked.tiny}{some}"
        self.asked.out.mkdir(parents=True, exist_ok=True)
        path = self.asked.out / f"{name}.md"
        path.with_suffix(".json").write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        path.write_text(markdown(self.result) + "\n", encoding="utf-8")
        return path

    def identify(self) -> str | None:
        """Notes the machine; returns what a child process said when not even that works."""
        found = self.children.ask({"part": "machine", **self.shared})
        if "line" not in found:
            return found.get("error") or found["skipped"]
        self.free, self.workspace = found.pop("free"), found.pop("workspace")
        self.result.update(found)
        if found["total"] is not None:
            self.result["cap"] = self.shared["cap"] = min(self.asked.cap, found["total"])
        return None

    def tiny_model(self) -> Path:
        """A folder with the tiny shape's configuration."""
        folder = self.scratch / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], **TINY_SIZES.shape}))
        return folder

    def memory(self, kinds: Sequence[str]) -> None:
        """Predicts and measures configurations, both at the same time, in two pools of child processes."""
        tiny = self.asked.tiny
        planned = configurations(kinds, self.tiny_model() if tiny else None)
        cores = os.cpu_count() or 1
        at_once, beside = workers(cores, self.free, self.shared["cap"], self.asked.jobs)
        records = [{**dataclasses.asdict(c), "path": c.path.name} for c in planned]
        self.result.update(configurations=records, measured_at_once=at_once)
        off_card = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        on_card = {"OMP_NUM_THREADS": str(max(1, cores // (2 * at_once)))}
        with ThreadPoolExecutor(at_once) as measuring, ThreadPoolExecutor(beside) as predicting:
            waiting: dict[Future, tuple[dict, str]] = {}
            for configuration, record in zip(planned, records, strict=True):
                job = {
                    "path": str(configuration.path),
                    "argv": memory.as_arguments(configuration.changes),
                    "prompt_length": configuration.prompt_length,
                    "cap": self.shared["cap"],
                }
                predicted = predicting.submit(
                    self._timed, {"part": "predict", "workspace": self.workspace, **job}, off_card
                )
                measured = measuring.submit(self._timed, {"part": "measure", **job}, on_card)
                waiting |= {predicted: (record, "predicted"), measured: (record, "measured")}
            try:
                for done in as_completed(waiting):
                    record, half = waiting[done]
                    record[half] = done.result()
                    self._compare(record)
            except BaseException:
                self.children.stop()  # the pools wait for what they have begun
                raise

    def _timed(self, job: dict, environment: dict[str, str] | None) -> dict:
        started = time.monotonic()
        return {**self.children.ask(job, environment), "wall": round(time.monotonic() - started, 1)}

    def _compare(self, record: dict) -> None:
        both = [record.get("predicted"), record.get("measured")]
        if None in both:
            return
        if any("skipped" in half for half in both):
            self.skip(record["name"], "no time left")
        elif errors := [half["error"] for half in both if "error" in half]:
            self.say(f"{record['name']}: {'; '.join(errors)}")
        else:
            record["verdict"] = judge(*both, self.shared["cap"])
            self.say(_in_words(record))
        self.write()

    def part(self, name: str) -> None:
        """One part that is one child process."""
        self.say(f"{name} ...")
        found = self.children.ask({"part": name, **self.shared})
        if "skipped" in found:
            self.skip(name, found["skipped"])
        else:
            self.result[name] = found
            self.say(f"{name}: {found.get('error', 'done')}")
        self.write()

    def real(self) -> None:
        """gsm8k.yaml with the given model, held-out accuracy before and after; what there is when the time is up."""
        asked, out = self.asked, self.scratch / "real"
        if asked.model is None:
            return self.skip("real", "no --model given")
        heldout = 4 if asked.tiny else 64  # one batch sampled and one greedy, before and after
        steps = real_steps(asked.real_steps, self.children.left(), self.result.get("throughput"), 4)
        if steps < min(3, asked.real_steps):
            return self.skip("real", f"the time left is enough for {steps} steps")
        values: dict[str, Any] = {
            "model_name_or_path": asked.model,
            "max_steps": steps,
            "heldout_size": heldout,
            "heldout_generations": 1,
            "heldout_batch_size": heldout,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "output_dir": out,
        }
        if asked.data is not None:
            values["dataset_path"] = asked.data
        if asked.tiny:
            values.update({name: v for name, v in TINY_CHANGES.items() if name != "heldout_batch_size"})
        self.say(f"real: {steps} steps ...")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", RECIPES / "gsm8k.yaml"]
        code, _, error = self.children.run([*launch, *memory.as_arguments(values)])
        self.result["real"] = {"model": Path(asked.model).name, "planned_steps": steps, **read_run(out)}
        if code is None:
            self.skip("the end of the real run", "no time left")
        elif code:
            self.result["real"]["error"] = _last_words(code, error)
            self.say(self.result["real"]["error"])
        self.write()
        return None


def read_run(folder: Path) -> dict:
    """Of a run's folder, finished or not: `{"summary": dict or None, "rewards": one of each step}`."""
    summary, metrics = folder / "summary.json", folder / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    rewards = [json.loads(line).get("reward") for line in lines]
    kept = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None
    if kept is not None:
        kept["model"] = Path(kept["model"]).name
    return {"summary": kept, "rewards": [reward for reward in rewards if reward is not None]}


# --- the result as Markdown -------------------------------------------------------------------------------------------


def card_name(name: str) -> str:
    """A card's name as part of a file name: `NVIDIA GeForce RTX 4060` becomes `nvidia-geforce-rtx-4060`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _in_words(record: dict) -> str:
    verdict, predicted, measured = record["verdict"], record["predicted"], record["measured"]
    said = f"{record['name']}: predicted {memory.gib(predicted['peak'])} GiB"
    if verdict["ran_out"]:
        said += f", ran out in the phase {measured['out_of_memory']}"
    else:
        said += f", measured {memory.gib(max(measured['peaks'].values()))} (x{verdict['ratio']:.3f})"
    return said + {True: ", verdict right", False: ", VERDICT WRONG", None: ""}[verdict["right"]]


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


# --- the command ------------------------------------------------------------------------------------------------------


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; ends the process with code 2 and a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts; all by default")
    parser.add_argument("--minutes", type=_positive, default=8.5, help="after which what is left is skipped (8.5)")
    parser.add_argument("--cap", type=_positive, default=memory.DEFAULT_VRAM, help="GiB that a process may take (8)")
    parser.add_argument("--jobs", type=int, help="configurations measured at once; as many as card and processor allow")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after a first one (3)")
    parser.add_argument("--model", help="folder of a small chat model, for the real run")
    parser.add_argument("--data", help="folder of GSM8K, for the real run; else what GRPO_MATH_GSM8K names")
    parser.add_argument("--real-steps", type=int, default=20, help="steps of the real run, at most (20)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the benchmark itself")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where to write")
    asked = parser.parse_args(argv)
    for name in ("steps", "real_steps", "jobs"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: write a whole number of at least 1")
    if asked.device == "cpu" and not asked.tiny:
        parser.error("--device cpu: real shapes would take hours there; add --tiny to try the benchmark itself")
    for name in ("model", "data"):
        folder = getattr(asked, name)
        if folder is not None:
            if not Path(folder).expanduser().exists():
                parser.error(f"--{name} {folder}: there is no such folder; nothing is downloaded here")
            setattr(asked, name, str(Path(folder).expanduser().resolve()))  # children run in another folder
    if asked.model is not None and asked.data is None and not os.environ.get("GRPO_MATH_GSM8K"):
        parser.error("--model without --data: give the folder of GSM8K too, or set GRPO_MATH_GSM8K to it")
    asked.parts = [part for part in PARTS if part in asked.parts]
    asked.out = asked.out.resolve()
    return asked


def _stop(number, frame):
    sys.exit(128 + number)  # through the `finally` that ends the children


def main(argv: list[str]) -> int:
    """Runs the parts; returns 0, 1 when a part ended in an error, 2 for a wrong command line or without CUDA."""
    asked = parse(argv)
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if asked.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                "python -m benchmarks gpu: torch sees no CUDA device. Run it on a machine with an NVIDIA card and torch "
                "for CUDA; --device cpu --tiny tries the benchmark itself.",
                file=sys.stderr,
            )
            return 2
        # Trainer would spread over several cards
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    children = Children(asked.minutes * 60, environment)
    before = signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(asked, children, Path(scratch))
        try:
            if error := run.identify():
                print(f"python -m benchmarks gpu: the machine cannot be described: {error}", file=sys.stderr)
                return 1
            run.say(run.result["line"])
            kinds = [part for part in ("memory", "oom") if part in asked.parts]
            if asked.tiny and "oom" in kinds:
                kinds.remove("oom")
                run.skip("oom", "tiny shapes do not run out of memory")
            if kinds:
                run.memory(kinds)
            for name in ("gradients", "throughput"):
                if name in asked.parts:
                    run.part(name)
            if "real" in asked.parts:
                run.real()
            path = run.write()
        finally:
            children.stop()
            signal.signal(signal.SIGTERM, before)
    print(path.read_text(encoding="utf-8"))
    print(f"Written: {path} and {path.with_suffix('.json').name}")
    if errors := failed(run.result):
        print(f"Ended in an error: {', '.join(errors)}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    from grpo_math.startup import quieten

    quieten()
    wanted = json.loads(sys.argv[1])
    print(ANSWER + json.dumps(JOBS[wanted["part"]](wanted)))
