"""A run that cannot learn says why, with the fix."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import GSM8K, run
from transformers import TrainerState

from grpo_math import models
from grpo_math.run.watchdog import Watchdog

pytestmark = pytest.mark.usefixtures("no_local_data")

HEALTHY = {"reward": 0.3, "rewards/a/mean": 0.3, "completions/clipped_ratio": 0.1, "frac_reward_zero_std": 0.5,
           "learning_rate": 1e-5}  # fmt: skip


def watched(*logs, step=0.1):
    model = torch.nn.Linear(4, 4)
    dog = Watchdog(steps=2)
    dog.trainer = SimpleNamespace(model=model, args=SimpleNamespace(max_completion_length=16))
    dog.on_train_begin(None, TrainerState(global_step=0), None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += step
    for number, log in enumerate(logs, 1):
        dog.on_log(None, TrainerState(global_step=number), None, logs={**HEALTHY, **log})
    return dog


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ({"completions/clipped_ratio": 1.0}, "max_completion_length 16"),
        ({"rewards/a/mean": float("nan"), "frac_reward_zero_std": 1.0}, "every reward was None or NaN"),
        ({"frac_reward_zero_std": 1.0}, "all rewards were equal"),
        ({"learning_rate": 0.0}, "set --learning_rate"),
    ],
)
def test_a_cause_that_holds_at_every_step_is_named_with_its_fix(log, words):
    (finding,) = watched(log, log).findings()
    assert words in finding
    assert watched(log, {}).findings() == []


def test_weights_that_do_not_move_are_noticed():
    assert watched({}, {}).findings() == []
    (finding,) = watched({}, {}, step=0.0).findings()
    assert "0.0% of the trained weights" in finding
    assert "--dtype float32" in finding


def test_it_speaks_up_once_and_after_some_steps(capsys):
    log = {"frac_reward_zero_std": 1.0}
    watched(log)
    assert capsys.readouterr().out == ""
    watched(log, log, log)
    assert capsys.readouterr().out.count("After 2 steps: in every group") == 1


def test_the_summary_of_a_run_without_a_learning_rate_says_so(tiny_recipe, tmp_path, short, capsys):
    assert run(tiny_recipe, tmp_path, *short, "--learning_rate", "0") == 0
    (finding,) = json.loads((tmp_path / "summary.json").read_text())["findings"]
    assert "the learning rate was 0" in finding
    assert f"Why nothing may have been learned: {finding}" in capsys.readouterr().out


def test_full_fine_tuning_of_16_bit_weights_is_refused(
    tmp_path, gsm8k_folder, small_chat_model, short, capsys, monkeypatch
):
    monkeypatch.setattr(models, "native_bf16", lambda device: True)  # else the run takes float32 of itself
    words = ["--model_name_or_path", str(small_chat_model), "--dataset_path", str(gsm8k_folder), "--use_peft", "false"]
    assert run(GSM8K, tmp_path / "out", *short, *words, "--max_completion_length", "16") == 2
    error = capsys.readouterr().err
    assert "command line: dtype: bfloat16 trains bfloat16 weights in full" in error
    assert "--dtype float32" in error
