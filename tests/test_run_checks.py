"""Bad input ends a run with one line that names the place, the value and the fix, before anything long is done."""

import json
import sys

import pytest
from conftest import GSM8K_ROWS, ROOT, run

from grpo_math import cli, tiny_model

pytestmark = pytest.mark.usefixtures("no_local_data")


def no_wandb_login(tmp_path, monkeypatch):
    """A machine on which nobody has logged in to wandb."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    wandb.teardown()  # it reads the environment once a process


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--loss_type", "dpao"], "did you mean dapo"),
        (["--num_generations", "3"], "divisible by num_generations (3)"),
        (["--rewards", "accuracy"], "'accuracy' is not known"),
        (["--task", "gsm9k"], "'gsm9k' is not known; did you mean gsm8k? (choices: gsm8k, countdown, or a file"),
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

    from grpo_math.run.checks import wandb_is_ready

    def no_network(*args, **kwargs):
        raise AssertionError("the server was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    no_wandb_login(tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert not wandb_is_ready()
    if kept_in == "NETRC":
        (tmp_path / "netrc").write_text("machine wandb.example\n  login user\n  password " + "0" * 40 + "\n")
        (tmp_path / "netrc").chmod(0o600)
    else:
        monkeypatch.setenv(kept_in, {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}[kept_in])
    sys.modules["wandb"].teardown()  # it reads the environment once a process
    assert wandb_is_ready()


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


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--use_peft", "--lora_target_modules", "q_prj", "v_proj"], "has no module 'q_prj'; did you mean q_proj?"),
        (["--use_peft", "--lora_target_modules", ".*nosuch"], "has no module '.*nosuch'"),
        (
            ["--use_peft", "--lora_modules_to_save", "nosuch"],
            "lora_modules_to_save: builtin/countdown-tiny has no module",
        ),
        (["--share_prefill", "true", "--cache_implementation", "static"], "share_prefill=True is not exact here"),
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
