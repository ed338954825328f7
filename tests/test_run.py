"""The main job on the tiny model: a recipe trains, GRPO raises the reward, everything is left behind, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import GSM8K_ROWS, ROOT

from grpo_math import cli, report, tiny_model
from grpo_math.recipe import read_yaml

pytestmark = pytest.mark.usefixtures("no_local_data")


def run(recipe, folder, *overrides):
    return cli.main(["train", str(recipe), "--output_dir", str(folder), "--disable_tqdm", "true", *overrides])


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


def test_a_resumed_run_equals_one_that_was_never_stopped(tiny_recipe, tmp_path, short):
    """Four steps in one go, and two steps, a checkpoint and two more, end in the same weights."""
    from safetensors.torch import load_file

    steps = [*short[2:], "--max_steps", "4", "--save_steps", "2", "--lr_scheduler_type", "constant"]
    assert run(tiny_recipe, tmp_path / "whole", *steps) == 0
    assert run(tiny_recipe, tmp_path / "parts", *steps) == 0
    (tmp_path / "parts" / "checkpoint-4").rename(tmp_path / "gone")
    assert run(tiny_recipe, tmp_path / "parts", *steps, "--resume_from_checkpoint", "true") == 0
    assert [m["step"] for m in report.read_jsonl(tmp_path / "parts" / "metrics.jsonl")] == [1, 2, 3, 4]
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert (summary["steps"], summary["resumed_at"]) == (4, 2)
    assert "resume_from_checkpoint" not in read_yaml(tmp_path / "parts" / "recipe.yaml")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all((whole[name] - parts[name]).abs().max() < 1e-6 for name in whole)
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
    """gsm8k.yaml as written but for the model, its size and the number of rows: LoRA, bf16 base, two rewards."""
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
    assert record["prompt"][0]["role"] == "system"
    assert set(record["rewards"]) == {"gsm8k_accuracy", "think_answer_format"}


def test_countdown_with_think_prefill_and_a_kl(tmp_path, small_chat_model, short):
    folder = tmp_path / "out"
    code = run(
        ROOT / "recipes" / "countdown.yaml", folder, *short,
        "--model_name_or_path", str(small_chat_model), "--dataset_path", "generated", "--train_size", "20",
        "--max_completion_length", "16", "--gradient_accumulation_steps", "1",
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


def no_wandb_login(tmp_path, monkeypatch):
    """A machine on which nobody has logged in to wandb."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    wandb.teardown()  # it reads the environment once a process


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--loss_type", "dpao"], "did you mean dapo"),
        (["--num_generations", "3"], "divisible by num_generations (3)"),
        (["--rewards", "accuracy"], "'accuracy' is not known"),
        (["--task", "gsm9k"], "'gsm9k' is not known; did you mean gsm8k? (choices: gsm8k, countdown)"),
        (["--reward_weights", "1", "2"], "reward_weights has 2 numbers for 1 rewards"),
        (["--dataset_path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--max_completion_length", "60"], "exceed the context of 64 tokens"),
        (["--prompt_style", "think"], "no chat template"),
        (["--resume_from_checkpoint", "true"], "holds no checkpoint"),
        (["--resume_from_checkpoint", "nowhere"], "there is no folder nowhere"),
        (["--model_name_or_path", "no/such"], "neither a local folder nor reachable"),
        (["--heldout_size", "100000"], "more than there are different problems (at most 7650"),
        (["--train_size", "100000000"], "train_size: 100000000 generated problems are too many"),
        (["--countdown_min", "60"], "countdown_min: 60 is above countdown_max: 50"),
        (["--countdown_target_max", "-1"], "countdown_target_min: 0 is above countdown_target_max: -1"),
        (["--countdown_operands", "5"], "countdown_operands: [5] must each be 2, 3 or 4"),
        (["--countdown_operators", "+%"], "countdown_operators: '+%' may hold only '+-*/'"),
        (
            ["--rewards", "gsm8k_accuracy"],
            "gsm8k_accuracy needs the column answer, and rows of task countdown",
        ),
        (
            ["--rewards", "wants_more.reward"],
            "reward needs the column steps, and rows of task countdown have nums, target",
        ),
        (["--rewards", "."], "rewards: '.' cannot be imported"),
        (["--fewshot", "1"], "fewshot: 1 has no effect with prompt_style: compact"),
        (["--resume_from_checkpoint", "recipes"], "recipes is no checkpoint (no trainer_state.json)"),
        (["--output_dir", str(ROOT / "README.md")], "is a file; name a folder"),
        (["--accelerator_config", "nowhere.json"], "nowhere.json"),
        (["--rewards", "countdown_acuracy"], "did you mean countdown_accuracy?"),
        (["--rewards", "grpo_math.rewards.COUNTDOWN_FORMS"], "not a function"),
        (["--model_name_or_path", "model.gguf", "--beta", "0.1"], "needs use_peft: true"),
        (["--train_size", "7"], "7 training rows (train_size: 7), but a generation takes 8 prompts"),
        (["--model_name_or_path", str(ROOT)], f"the folder {ROOT} is there, but has no config.json"),
        (["--report_to", "wandb"], "report_to: wandb: there is no login"),
        (["--report_to", "comet_ml"], "report_to: comet_ml: CometCallback requires comet-ml"),
    ],
)
def test_bad_input_is_one_clear_line_before_the_model_loads(
    tiny_recipe, tmp_path, monkeypatch, capsys, overrides, says
):
    def no_model(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("grpo_math.models.load_model", no_model)
    no_wandb_login(tmp_path, monkeypatch)
    monkeypatch.chdir(ROOT)
    (tmp_path / "wants_more.py").write_text(
        "def reward(completions, steps, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tiny_model.tiny_model_folder()
    capsys.readouterr()  # what making the tiny model has printed
    folder = [] if "--output_dir" in overrides else ["--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", str(tiny_recipe), "--disable_tqdm", "true", *folder, *overrides]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept_in", ["WANDB_API_KEY", "WANDB_MODE", "NETRC"])
def test_a_wandb_login_is_found_without_asking_the_server(tmp_path, monkeypatch, kept_in):
    import socket

    from grpo_math.checks import _wandb_is_ready

    def no_network(*args, **kwargs):
        raise AssertionError("the server was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    no_wandb_login(tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert not _wandb_is_ready()
    if kept_in == "NETRC":
        (tmp_path / "netrc").write_text("machine wandb.example\n  login user\n  password " + "0" * 40 + "\n")
        (tmp_path / "netrc").chmod(0o600)
    else:
        monkeypatch.setenv(kept_in, {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}[kept_in])
    sys.modules["wandb"].teardown()  # it reads the environment once a process
    assert _wandb_is_ready()


def test_an_answer_column_that_does_not_parse_is_named(tmp_path, capsys, small_chat_model):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*GSM8K_ROWS, {"question": "x", "answer": "#### soon"}]))
    code = run(ROOT / "recipes" / "gsm8k.yaml", tmp_path / "out", "--dataset_path", str(path),
               "--model_name_or_path", str(small_chat_model))  # fmt: skip
    assert code == 2
    assert f"row {len(GSM8K_ROWS)}: column `answer`" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, which not even root can write to, is a Linux matter")
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_loaded(tiny_recipe, tmp_path, capsys):
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for folder, parent in (("/proc/new/out", "/proc"), (tmp_path / "nowhere" / "out", tmp_path / "nowhere")):
        assert run(tiny_recipe, folder) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"grpo-math: error: command line: output_dir: {folder}")
        assert f"in {parent}); name another" in error or f"{parent} is a file" in error


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


@pytest.mark.parametrize("failing", ["_before", "_generate_single_turn"])
def test_a_run_that_fails_before_its_first_step_leaves_the_earlier_one_alone(
    tiny_recipe, tmp_path, short, monkeypatch, failing
):
    from grpo_math import run as module

    def fail(*args, **kwargs):
        raise Stop

    assert run(tiny_recipe, tmp_path, *short) == 0
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(module if failing == "_before" else module.GRPOMathTrainer, failing, fail)
    with pytest.raises(Stop):
        run(tiny_recipe, tmp_path, *short, "--seed", "5")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == left


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--use_peft", "--lora_target_modules", "q_prj", "v_proj"], "has no module 'q_prj'; did you mean q_proj?"),
        (["--use_peft", "--lora_target_modules", ".*nosuch"], "has no module '.*nosuch'"),
        (
            ["--use_peft", "--lora_modules_to_save", "nosuch"],
            "lora_modules_to_save: builtin/countdown-tiny has no module",
        ),
        (["--share_prefill", "true", "--cache_implementation", "static"], "share_prefill=True cannot act here"),
        (["--model_init_kwargs", "{nosuch: 1}"], "cannot be loaded with model_init_kwargs: {'nosuch': 1}"),
        (["--optim", "lomo"], "You need to install `lomo_optim`"),
        (["--optim_args", "foo"], "optim_args: foo"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
        (["--lr_scheduler_type", "polynomial", "--learning_rate", "1e-8"], "lr_end (1e-07) must be smaller"),
        (["--use_liger_kernel", "true"], "pip install liger-kernel"),
    ],
)
def test_what_only_the_model_can_refuse_is_one_line_from_the_command_line(
    tiny_recipe, tmp_path, short, capsys, overrides, says
):
    assert run(tiny_recipe, tmp_path / "out", *short, *overrides) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("grpo-math: error: command line: ")
    assert says in error


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


def test_commands_explain_themselves(capsys, tmp_path):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert cli.main(["trian"]) == 2
    assert "there is no command 'trian'; did you mean train?" in capsys.readouterr().err
    assert cli.main(["fields", "num_generations_eval"]) == 0
    assert "num_generations_eval: int | None   (GRPOMathConfig)" in capsys.readouterr().out
    assert cli.main(["fields", "learning_rat_"]) == 2
    assert "no field has 'learning_rat_' in its name or help; did you mean learning_rate?" in capsys.readouterr().err
    assert cli.main(["report", os.devnull]) == 2
    (tmp_path / "metrics.jsonl").write_text("not json\n{}\n")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl, line 1 is not JSON" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--json"]) == 2
    for name, content in {"metrics.jsonl": '{"reward": 1}\n', "summary.json": "[]"}.items():
        (tmp_path / name).write_text(content)
        assert cli.main(["report", str(tmp_path)]) == 2
        assert "holds a file that no run has written so" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train", ["grpo-math train RECIPE", "--resume_from_checkpoint", "130"]),
        ("eval", ["grpo-math eval RECIPE", "--model_name_or_path FOLDER", "heldout_size"]),
        (
            "memory",
            ["--vram GIB", "--prompt_length TOKENS", "--solve", "--measure", "--json", "0 it fits", "1 it does not"],
        ),
        ("report", ["grpo-math report FOLDER", "reward_curve.png"]),
        ("fields", ["grpo-math fields [TEXT]"]),
    ],
)
def test_each_command_explains_its_options(capsys, command, says):
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in says)
    if command != "fields":
        assert cli.main([command]) == 2
        assert f"usage: grpo-math {command}" in capsys.readouterr().err


# --- out of memory ----------------------------------------------------------------------------------------------------


def fail_at(monkeypatch, name, step):
    """Makes the trainer's method `name` run out of memory once `step` steps are done."""
    from grpo_math.trainer import GRPOMathTrainer

    method = getattr(GRPOMathTrainer, name)

    def failing(self, *args, **kwargs):
        if self.state.global_step == step:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB.\nGPU 0 has ...")
        return method(self, *args, **kwargs)

    failing.__name__ = failing.__qualname__ = name
    failing.__code__ = failing.__code__.replace(co_name=name)
    monkeypatch.setattr(GRPOMathTrainer, name, failing)


@pytest.mark.parametrize(("name", "phase"), [("training_step", "training"), ("_generate_single_turn", "generation")])
def test_out_of_memory_leaves_a_checkpoint_and_says_what_fits(tiny_recipe, tmp_path, capsys, monkeypatch, name, phase):
    from grpo_math import run as module

    found = {"overrides": {"per_device_train_batch_size": 4}, "total": 7 * 2**30, "cost": "smaller micro-batches"}
    answer = {"total": 9 * 2**30, "vram_gib": 8.0, "fits": False, "phase": "training", "suggestions": [found]}
    asked = []

    def predicted(command, **kwargs):
        asked.append(command)
        assert kwargs["env"]["CUDA_VISIBLE_DEVICES"] == ""
        return subprocess.CompletedProcess(command, 1, json.dumps(answer) + "\n", "")

    monkeypatch.setattr(module.subprocess, "run", predicted)
    with monkeypatch.context() as patched:
        fail_at(patched, name, 3)
        code = run(tiny_recipe, tmp_path, "--max_steps", "6", "--heldout_size", "0")
    assert code == 1
    said = capsys.readouterr().err
    assert f"Out of memory in the phase {phase}" in said
    assert "Tried to allocate 1.16 GiB" in said
    assert "Predicted: 9.00 GiB" in said
    assert "recipe.yaml --per_device_train_batch_size 4 --resume_from_checkpoint true" in said
    assert asked[0][3:5] == ["memory", str(tmp_path / "recipe.yaml")]
    assert str(tmp_path / "checkpoint-3") in said
    # The run goes on from there
    assert (
        run(tiny_recipe, tmp_path, "--max_steps", "6", "--heldout_size", "0", "--resume_from_checkpoint", "true") == 0
    )
    assert json.loads((tmp_path / "summary.json").read_text())["resumed_at"] == 3


def test_out_of_memory_right_after_a_resume_names_the_checkpoint(tiny_recipe, tmp_path, capsys, monkeypatch):
    from grpo_math import run as module

    asked = []
    monkeypatch.setattr(
        module.subprocess,
        "run",
        lambda command, **kwargs: asked.append(command) or subprocess.CompletedProcess(command, 1, "", "no answer"),
    )
    words = ["--max_steps", "2", "--save_steps", "1", "--heldout_size", "2", "--learning_rate", "1e-4"]
    assert run(tiny_recipe, tmp_path, *words) == 0
    (tmp_path / "checkpoint-2").rename(tmp_path / "gone")

    def measure(*args, **kwargs):
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "measure", measure)
    (tmp_path / "heldout_before.json").unlink()
    assert run(tiny_recipe, tmp_path, *words, "--resume_from_checkpoint", "true") == 1
    said = capsys.readouterr().err
    assert "in the phase held-out" in said
    assert f"{tmp_path / 'checkpoint-1'} still holds the run" in said
    assert f"accelerate launch {tiny_recipe} " in said
    assert "--learning_rate 0.0001" in said
    assert said.count("--resume_from_checkpoint true") == 1
    assert "--learning_rate" in asked[0]
    assert "--resume_from_checkpoint" not in asked[0]


@pytest.mark.slow
def test_out_of_memory_before_the_first_step_has_nothing_to_save(tiny_recipe, tmp_path, capsys, monkeypatch):
    """With the real prediction, which here says that the recipe should have fitted."""
    fail_at(monkeypatch, "training_step", 0)
    assert run(tiny_recipe, tmp_path, "--max_steps", "2", "--heldout_size", "0") == 1
    said = capsys.readouterr().err
    assert "there is nothing to save" in said
    assert "That should have fitted" in said
    assert not list(tmp_path.glob("checkpoint-*"))
