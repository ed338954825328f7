"""What the benchmarks share: tiny Countdown, SmolLM2, either trainer on a CPU, the machine, writing results."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from benchmarks.plain import table as table  # for `common.table`
from grpo_math import models, tiny_model
from grpo_math.tasks import load_problems, resolve_rewards
from grpo_math.trainer import GRPOMathConfig, GRPOMathTrainer

# `GRPO_MATH_RESULTS` names another folder, so that a trial leaves the stored results as they are
RESULTS = Path(os.environ.get("GRPO_MATH_RESULTS") or Path(__file__).parent / "results")
# A folder or GGUF file of SmolLM2-135M-Instruct; the hub's name works where the hub does
SMOLLM2 = os.environ.get("GRPO_MATH_SMOLLM2", "HuggingFaceTB/SmolLM2-135M-Instruct")


def tiny_countdown() -> tuple[torch.nn.Module, object, list[dict], Callable]:
    """The built-in tiny model, its tokenizer, training rows with text prompts, and the exact reward."""
    folder = tiny_model.tiny_model_folder()
    config = tiny_model.tiny_task_config(heldout_size=0)

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    (reward,) = resolve_rewards(None, config)
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer, load_problems(config).train, reward


def smollm2_folder(into: Path) -> Path:
    """SmolLM2 as a plain folder under `into` (TRL reads the reference of a full model from its path)."""
    folder = into / "smollm2"
    if not (folder / "config.json").exists():
        arguments = ModelConfig(model_name_or_path=SMOLLM2)
        models.load_model(arguments, "float32").save_pretrained(folder)
        models.load_tokenizer(arguments).save_pretrained(folder)
    return folder


def make_trainer(
    ours: bool,
    model,
    reward: Callable,
    rows: list[dict],
    tokenizer,
    out: Path,
    callbacks: Sequence[TrainerCallback] = (),
    rollout_func: Callable | None = None,
    **options,
) -> GRPOTrainer:
    """TRL's trainer or ours on a CPU, with `options` of its config; float32 if they do not say `bf16`, saving nothing."""
    config, trainer = (GRPOMathConfig, GRPOMathTrainer) if ours else (GRPOConfig, GRPOTrainer)
    quiet = {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    on_cpu = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    args = config(output_dir=str(out), **(quiet | on_cpu | options))
    made = trainer(
        model,
        reward,
        args,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        rollout_func=rollout_func,
    )
    made.remove_callback(PrinterCallback)
    return made


def machine() -> dict:
    """Processor, threads and the versions that a result depends on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "accelerate", "peft")}
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": models.native_bf16(torch.device("cpu")),
        "gpu": gpu,
        "python": platform.python_version(),
        **packages,
    }


def machine_line() -> str:
    """The machine in one line of Markdown."""
    found = machine()
    bf16 = "with" if found["bf16"] else "without"
    packages = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "trl"))
    place = found["gpu"] or f"{found['processor']} ({found['cores']} cores, {bf16} native bf16)"
    return f"{place}, {found['threads']} thread(s), Python {found['python']}, {packages}."


def save(name: str, text: str, data: dict) -> None:
    """Writes `results/NAME.md` and `.json` and prints the text."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), **data}, indent=1) + "\n", "utf-8")
    print(text)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values at each point."""
    return [statistics.fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def band(axis, curves: Sequence[Sequence[float]], label: str, x: Sequence[float] | None = None, **style) -> None:
    """Mean of several curves with the band from the lowest to the highest."""
    points = list(zip(*curves, strict=True))
    x = range(1, len(points) + 1) if x is None else x
    (line,) = axis.plot(x, [statistics.fmean(p) for p in points], label=label, **style)
    axis.fill_between(x, [min(p) for p in points], [max(p) for p in points], alpha=0.2, color=line.get_color())


def half_dead_reward(completions: Sequence, prompts: Sequence, dead: Sequence[bool], **columns) -> list[float]:
    """Distinct words of a completion, over 64; always 0.5 on a row that is marked dead. Any policy gets a gradient."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    scores = [len(set(text.split())) / 64 + (len(text) % 7) / 7 for text in texts]
    return [0.5 if is_dead else score for is_dead, score in zip(dead, scores, strict=True)]
