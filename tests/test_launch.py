"""Every way of starting a recipe, as a user starts it: in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import LOCAL_DATA, RECIPES, ROOT, SHORT

BIN = Path(sys.executable).parent


def start(*command, cwd):
    env = {name: value for name, value in os.environ.items() if name not in LOCAL_DATA} | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


class Launched(NamedTuple):
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """`accelerate launch recipes/X.yaml --field value`, from another folder."""
    folder = tmp_path_factory.mktemp("launched")
    words = [BIN / "accelerate", "launch", ROOT / "recipes" / "countdown_tiny.yaml", *SHORT, "--output_dir", "out"]
    result = start(*words, cwd=folder)
    return Launched(folder / "out", result.stdout + result.stderr)


def test_accelerate_launch(launched):
    """Nobody asks to log in anywhere, and output that goes to a file has no progress bars."""
    assert "it/s" not in launched.printed
    assert "step 2/2  reward " in launched.printed
    assert summary_of(launched.folder)["steps"] == 2
    assert "wandb" not in launched.printed.lower()


def test_accelerate_launch_of_the_module_on_two_processes(tiny_recipe, tmp_path, short):
    result = start(
        BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "grpo_math",
        tiny_recipe, *short, "--output_dir", "out", "--per_device_train_batch_size", "16", cwd=tmp_path,
    )  # fmt: skip
    summary = summary_of(tmp_path / "out")
    assert summary["world_size"] == 2
    assert "(2 processes)" in result.stdout
    assert summary["heldout_n"] == 4  # shared out between the processes, gathered, each problem once
    records = json.loads((tmp_path / "out" / "heldout_after.json").read_text())["records"]
    assert [r["row"] for r in records] == [0, 1, 2, 3]
    assert result.stdout.count("Held-out accuracy") == 1


def test_grpo_math_train_is_the_same_job(launched, tiny_recipe, tmp_path, short):
    start(BIN / "grpo-math", "train", tiny_recipe, *short, "--output_dir", "out", cwd=tmp_path)
    ours, theirs = summary_of(tmp_path / "out"), summary_of(launched.folder)
    assert ours["accuracy_before"] == theirs["accuracy_before"]
    assert ours["accuracy_after"] == theirs["accuracy_after"]
    assert ours["steps"] == 2


def test_trl_imports_our_rewards_by_dotted_path(tmp_path):
    """`trl grpo --reward_funcs grpo_math.rewards.gsm8k_accuracy` resolves the name the way this does, without torch."""
    code = (
        "import importlib, sys; f = getattr(importlib.import_module('grpo_math.rewards'), 'gsm8k_accuracy');"
        "assert f(completions=['#### 72'], answer=['72']) == [1.0]; assert 'torch' not in sys.modules"
    )
    start(sys.executable, "-c", code, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_every_recipe_launches(path, tmp_path, short, gsm8k_folder, small_chat_model):
    """Each recipe as written but for the weights, their size, the rows and the lengths."""
    overrides = [*short, "--output_dir", "out"]
    if path.stem != "countdown_tiny":
        overrides += ["--model_name_or_path", small_chat_model, "--max_completion_length", "16"]
        overrides += ["--gradient_accumulation_steps", "2"] if "gradient_accumulation_steps" in path.read_text() else []
        data = gsm8k_folder if "gsm8k" in path.stem else "generated"
        overrides += ["--dataset_path", data, "--train_size", "15"]
    if path.stem == "gsm8k_vllm" and find_spec("vllm") is None:
        overrides += ["--use_vllm", "false"]
    start(BIN / "accelerate", "launch", path, *overrides, cwd=tmp_path)
    assert summary_of(tmp_path / "out")["steps"] == 2


@pytest.mark.slow
@pytest.mark.skipif("GRPO_MATH_QWEN_TOKENIZER" not in os.environ, reason="GRPO_MATH_QWEN_TOKENIZER: a folder with it")
def test_gsm8k_as_written_at_the_published_shape(tmp_path, gsm8k_folder):
    """gsm8k.yaml with the real Qwen2.5 tokenizer and random weights of the 0.5B shape: two steps on fewer rows."""
    from benchmarks.random_qwen import make_random_qwen

    folder = make_random_qwen(tmp_path / "qwen", os.environ["GRPO_MATH_QWEN_TOKENIZER"])
    start(
        BIN / "accelerate", "launch", ROOT / "recipes" / "gsm8k.yaml", "--model_name_or_path", folder, "--max_steps", "2",
        "--dataset_path", gsm8k_folder, "--heldout_size", "0", "--logging_steps", "1", "--output_dir", "out",
        "--per_device_train_batch_size", "2", "--num_generations", "2", "--gradient_accumulation_steps", "1",
        "--max_completion_length", "32", cwd=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
