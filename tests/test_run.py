"""The main job on the tiny model: a recipe trains, GRPO raises the reward, everything is left behind, nothing is lost."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run

from grpo_math import cli, report
from grpo_math.recipe import read_yaml
from grpo_math.trainer import GRPOMathTrainer

pytestmark = pytest.mark.usefixtures("no_local_data")


def test_grpo_raises_the_reward_and_the_run_leaves_everything(tiny_recipe, tmp_path, capsys):
    """A tenth of the demo: held-out accuracy rises by more than its uncertainty."""
    code = run(tiny_recipe, tmp_path, "--max_steps", "80", "--save_steps", "40", "--heldout_size", "120")
    assert code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"task", "recipe", "steps", "seconds", "heldout_n", "accuracy_before", "accuracy_after", "greedy_before",
            "greedy_after"} <= set(summary)  # fmt: skip
    assert summary["task"] == "countdown"
    assert summary["steps"] == 80
    assert summary["heldout_n"] == 120
    assert set(summary["accuracy_before"]) == {"value", "low", "high"}
    assert summary["accuracy_after"]["low"] > summary["accuracy_before"]["high"]

    metrics = report.read_jsonl(tmp_path / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(10, 81, 10))
    assert all({"reward", "reward_std", "frac_reward_zero_std", "loss", "entropy"} <= set(m) for m in metrics)
    phases = [sum(m[f"time/{phase}"] for m in metrics) for phase in ("generation", "training", "scoring", "optimizer")]
    assert 0.3 * summary["seconds"] < sum(phases) <= summary["seconds"]
    completions = report.read_jsonl(tmp_path / "completions.jsonl")
    assert {c["step"] for c in completions} == {m["step"] for m in metrics}
    group = [c for c in completions if c["step"] == 80]
    assert len(group) == 16
    assert len({c["prompt"] for c in group}) == 1
    assert all(c["rewards"]["countdown_accuracy"] in (0.0, 1.0) for c in group)
    assert abs(sum(c["advantage"] for c in group)) < 1e-3
    assert (tmp_path / "reward_curve.png").read_bytes().startswith(b"\x89PNG")
    assert read_yaml(tmp_path / "recipe.yaml")["max_steps"] == 80

    printed = capsys.readouterr().out
    assert "Held-out accuracy, 120 problems" in printed
    assert "best policy that ignores the" in printed
    assert printed.count("before (") == 3
    assert printed.count("after (") == 3
    assert str(tmp_path / "reward_curve.png") in printed

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("17 5 = 12 :", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, do_sample=False, max_new_tokens=8)[0], skip_special_tokens=True)
    assert text.startswith("17 5 = 12 : <answer>")

    # The trained model can be measured again, and the figures agree with the run's own.
    assert cli.main(["eval", str(tiny_recipe), "--model_name_or_path", str(tmp_path), "--heldout_size", "120",
                     "--output_dir", str(tmp_path / "eval"), "--disable_tqdm", "true"]) == 0  # fmt: skip
    assert f"sampled {summary['accuracy_after']['value']:.3f}" in capsys.readouterr().out
    # and the report drawn again
    assert cli.main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize("window", ["1", "3"], ids=["a generation a step", "a generation for three steps"])
def test_a_resumed_run_equals_one_that_was_never_stopped(tiny_recipe, tmp_path, short, window):
    """Four steps in one go, and two steps, a checkpoint and two more, end in the same weights."""
    import torch
    from safetensors.torch import load_file

    steps = [
        *short[2:],
        "--steps_per_generation",
        window,
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--lr_scheduler_type",
        "constant",
    ]
    assert run(tiny_recipe, tmp_path / "whole", *steps) == 0
    assert run(tiny_recipe, tmp_path / "parts", *steps) == 0
    (tmp_path / "parts" / "checkpoint-4").rename(tmp_path / "gone")
    assert run(tiny_recipe, tmp_path / "parts", *steps, "--resume_from_checkpoint", "true") == 0
    generated = [1, 2, 3, 4] if window == "1" else [1, 4]
    assert [m["step"] for m in report.read_jsonl(tmp_path / "parts" / "metrics.jsonl")] == generated
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert (summary["steps"], summary["resumed_at"]) == (4, 2)
    assert "resume_from_checkpoint" not in read_yaml(tmp_path / "parts" / "recipe.yaml")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not list((tmp_path / "parts").glob("earlier-*"))  # a resume continues, it does not set aside


def test_ctrl_c_leaves_a_checkpoint_and_the_plot_and_the_run_goes_on(tiny_recipe, tmp_path):
    command = [sys.executable, str(tiny_recipe), "--output_dir", str(tmp_path), "--heldout_size", "0",
               "--max_steps", "5000", "--logging_steps", "1"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert (checkpoint / "optimizer.pt").exists()
    assert (tmp_path / "reward_curve.png").exists()
    assert "--resume_from_checkpoint true" in output
    done = int(checkpoint.name.split("-")[1])
    assert (
        run(tmp_path / "recipe.yaml", tmp_path, "--max_steps", str(done + 1), "--resume_from_checkpoint", "true") == 0
    )
    assert report.read_jsonl(metrics)[-1]["step"] == done + 1


def test_gsm8k_with_lora_through_a_chat_template(tmp_path, gsm8k_folder, small_chat_model, short):
    """gsm8k.yaml as written but for the model, its size and the number of rows: LoRA, bf16 base."""
    folder = tmp_path / "out"
    code = run(
        ROOT / "recipes" / "gsm8k.yaml", folder, *short,
        "--model_name_or_path", str(small_chat_model), "--dataset_path", str(gsm8k_folder),
        "--max_completion_length", "16", "--gradient_accumulation_steps", "1", "--save_steps", "1",
    )  # fmt: skip
    assert code == 0
    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(folder)
    assert cli.main(["eval", str(ROOT / "recipes" / "gsm8k.yaml"), "--model_name_or_path", str(folder), "--dataset_path",
                     str(gsm8k_folder), "--max_completion_length", "16", "--heldout_size", "2", "--output_dir",
                     str(tmp_path / "eval"), "--disable_tqdm", "true"]) == 0  # fmt: skip
    # Trained on: the adapter is the one that was saved, not a new one on top.
    code = run(
        ROOT / "recipes" / "gsm8k.yaml", tmp_path / "on", *short, "--model_name_or_path", str(folder),
        "--dataset_path", str(gsm8k_folder), "--max_completion_length", "16", "--gradient_accumulation_steps", "1",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "on" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        small_chat_model
    )
    record = report.read_jsonl(folder / "completions.jsonl")[0]
    assert record["prompt"][0]["role"] == "user"
    assert set(record["rewards"]) == {"gsm8k_accuracy"}


def test_countdown_with_think_prefill_and_a_kl(tmp_path, small_chat_model, short):
    folder = tmp_path / "out"
    code = run(
        ROOT / "recipes" / "countdown.yaml", folder, *short,
        "--model_name_or_path", str(small_chat_model), "--dataset_path", "generated", "--train_size", "20",
        "--max_completion_length", "16", "--gradient_accumulation_steps", "1", "--beta", "0.001",
    )  # fmt: skip
    assert code == 0
    assert report.read_jsonl(folder / "completions.jsonl")[0]["prompt"].endswith("<think>")
    assert "kl" in report.read_jsonl(folder / "metrics.jsonl")[-1]


def test_a_base_model_with_plain_prompts(tmp_path, gsm8k_folder, small_chat_model, short):
    """report_gsm8k.yaml as written but for the model, its size and the rows: plain prompts, every weight, 8-bit AdamW."""
    code = run(
        ROOT / "recipes" / "report_gsm8k.yaml", tmp_path / "out", *short, "--model_name_or_path", str(small_chat_model),
        "--dataset_path", str(gsm8k_folder), "--max_completion_length", "16", "--fewshot", "1",
    )  # fmt: skip
    assert code == 0
    record = report.read_jsonl(tmp_path / "out" / "completions.jsonl")[0]
    assert record["prompt"].count("Problem:") == 2
    assert set(record["rewards"]) == {"gsm8k_exact_match"}


def test_wandb_offline_gets_the_metrics(tiny_recipe, tmp_path, short, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run(tiny_recipe, tmp_path / "out", *short, "--report_to", "wandb") == 0
    import wandb

    wandb.finish()
    (stored,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60  # its writer is a process of its own
    while b"frac_reward_zero_std" not in stored.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert b"frac_reward_zero_std" in stored.read_bytes()


def test_a_run_that_is_refused_leaves_no_folder(tiny_recipe, tmp_path, short):
    (tmp_path / "kept").mkdir()
    assert run(tiny_recipe, tmp_path / "kept" / "new" / "out", *short, "--optim", "lomo") == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


def test_a_second_run_keeps_the_first(tiny_recipe, tmp_path, short, capsys):
    assert run(tiny_recipe, tmp_path, *short) == 0
    first = (tmp_path / "metrics.jsonl").read_text()
    assert run(tiny_recipe, tmp_path, *short) == 0
    assert (tmp_path / "earlier-1" / "metrics.jsonl").read_text() == first
    assert (tmp_path / "earlier-1" / "model.safetensors").exists()
    assert "earlier-1" in capsys.readouterr().out


class Stop(Exception):
    pass


@pytest.mark.parametrize("failing", ["measured_before", "_generate_single_turn"])
def test_a_run_that_fails_before_its_first_step_leaves_the_earlier_one_alone(
    tiny_recipe, tmp_path, short, monkeypatch, failing
):
    from grpo_math.run import train as module

    def fail(*args, **kwargs):
        raise Stop

    assert run(tiny_recipe, tmp_path, *short) == 0
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(module if failing == "measured_before" else GRPOMathTrainer, failing, fail)
    with pytest.raises(Stop):
        run(tiny_recipe, tmp_path, *short, "--seed", "5")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == left


def test_a_schedule_is_checked_against_the_learning_rate_of_the_run(tiny_recipe, tmp_path, short):
    words = ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", "{lr_end: 0.002}", "--learning_rate", "0.01"]
    assert run(tiny_recipe, tmp_path, *short, *words) == 0


def test_a_tokenizer_that_cannot_write_the_stop_mark_runs_and_says_that_it_cannot_read(
    tmp_path, gsm8k_folder, short, capsys
):
    code = run(
        ROOT / "recipes" / "report_gsm8k.yaml", tmp_path / "out", *short, "--optim", "adamw_torch",
        "--model_name_or_path", "builtin/countdown-tiny", "--dataset_path", str(gsm8k_folder),
        "--max_completion_length", "4",
    )  # fmt: skip
    assert code == 0
    assert "of the prompts' words: this model cannot read the task" in capsys.readouterr().out
