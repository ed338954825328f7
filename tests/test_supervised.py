"""The supervised warm-up: solutions in the prompt style's form, behind the prompts that GRPO generates from."""

import errno
import json

import pytest
import torch
from conftest import ROOT

from grpo_math import cli, models
from grpo_math.errors import RecipeError
from grpo_math.recipe import load_recipe
from grpo_math.run import supervised
from grpo_math.run.lock import only_run_in
from grpo_math.run.prepare import prepare
from grpo_math.tasks import TaskConfig, load_problems, resolve_rewards, solutions
from grpo_math.tasks.countdown_problems import CountdownConfig, steps

pytestmark = pytest.mark.usefixtures("no_local_data")
TINY, GSM8K = ROOT / "recipes" / "countdown_tiny.yaml", ROOT / "recipes" / "gsm8k.yaml"


def test_the_solvers_expression_is_worked_out_step_by_step():
    assert steps("19 + (35 + 44)") == ["35 + 44 = 79", "19 + 79 = 98"]
    assert steps("(3 - 5) * (7 / 2)") == ["3 - 5 = -2", "7 / 2 = 7/2", "-2 * 7/2 = -7"]
    assert steps("3 + 4") == ["3 + 4 = 7"]


@pytest.mark.parametrize(
    ("style", "form"),
    [
        ("think", "<think>Natalia sold 48/2 = 24 clips in May.\n{}</think>\n<answer>72</answer>"),
        ("think_prefill", "Natalia sold 48/2 = 24 clips in May.\n{}</think>\n<answer>72</answer>"),
        ("boxed", "Natalia sold 48/2 = 24 clips in May.\n{}\n\\boxed{{72}}"),
        ("hash", "Natalia sold 48/2 = 24 clips in May.\n{}\n#### 72"),
        ("plain", " Natalia sold 48/2 = 24 clips in May.\n{} The answer is 72."),
    ],
)
def test_gold_solutions_take_the_prompt_styles_form(style, form, gsm8k_folder, small_chat_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_chat_model)
    config = TaskConfig(task="gsm8k", dataset_path=str(gsm8k_folder), prompt_style=style)
    texts = solutions(load_problems(config, tokenizer), config)
    assert texts[0] == form.format("Natalia sold 48+24 = 72 clips altogether in April and May.")
    assert len(texts) == 24


@pytest.mark.parametrize("style", ["think", "think_prefill", "boxed", "hash", "plain", "compact"])
def test_the_solvers_solutions_are_paid_in_every_style(style, small_chat_model):
    from transformers import AutoTokenizer

    config = CountdownConfig(dataset_path="generated", prompt_style=style, train_size=20, heldout_size=0)
    problems = load_problems(config, AutoTokenizer.from_pretrained(small_chat_model))
    (reward,) = resolve_rewards(["countdown_accuracy"], config)
    for row, text in zip(problems.train, solutions(problems, config), strict=True):
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        assert reward(completions=[text], prompts=[row["prompt"]], **columns) == [1.0], text


def test_a_row_without_a_worked_solution_gives_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 1?", "answer": "2 + 1 = 3\\n#### 3"}\n')
    config = TaskConfig(task="gsm8k", dataset_path=str(path), prompt_style="hash", heldout_size=0)
    assert solutions(load_problems(config), config) == [None, "2 + 1 = 3\n#### 3"]


def prepared(recipe, *words):
    return prepare(load_recipe(recipe, [*map(str, words)]), training=False)


@pytest.mark.parametrize("style", ["think", "plain"])
def test_the_prompts_tokens_are_those_that_grpo_generates_from(style, tmp_path, gsm8k_folder, small_chat_model):
    """TRL's own generation is asked for the token ids of its prompts."""
    run = prepared(
        GSM8K, "--model_name_or_path", small_chat_model, "--dataset_path", gsm8k_folder, "--prompt_style", style,
        "--use_cpu", "true", "--output_dir", tmp_path / "out", "--max_completion_length", "400", "--heldout_size", "0",
        "--pack_groups", "false",
    )  # fmt: skip
    lines = supervised.supervised_lines(run)
    run.trainer.max_completion_length = run.trainer.generation_config.max_new_tokens = 1
    generated = run.trainer._generate_and_score_completions(run.problems.train)
    prompts = {tuple(ids[mask.bool()].tolist())
               for ids, mask in zip(generated["prompt_ids"], generated["prompt_mask"], strict=True)}  # fmt: skip
    ours = {
        tuple(i for i, c in zip(line["input_ids"], line["completion_mask"], strict=True) if not c)
        for line in lines.rows
    }
    assert len(ours) > 10
    assert ours <= prompts
    answers = solutions(run.problems, run.recipe.task)
    for line in lines.rows:
        ids = [i for i, c in zip(line["input_ids"], line["completion_mask"], strict=True) if c]
        assert ids[-1] == run.tokenizer.eos_token_id
        assert run.tokenizer.decode(ids[:-1]) in answers


def test_only_the_completion_is_learnt(tmp_path):
    run = prepared(TINY, "--output_dir", tmp_path / "out", "--sft_size", "5", "--heldout_size", "0")
    lines = supervised.supervised_lines(run)
    assert len(lines.rows) == 5
    trainer = supervised._build_trainer(run, tmp_path / "sft", lines)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert run.tokenizer.decode(ids[labels == -100], skip_special_tokens=True).endswith(":")
        assert run.tokenizer.decode(labels[labels != -100]).startswith("<answer>")
        assert run.tokenizer.decode(labels[labels != -100]).endswith("</answer> <eos>")


def test_solutions_that_grpo_would_cut_off_or_not_pay_are_left_out(tmp_path, gsm8k_folder, small_chat_model):
    words = ["--model_name_or_path", small_chat_model, "--dataset_path", gsm8k_folder, "--use_cpu", "true",
             "--output_dir", tmp_path / "out", "--heldout_size", "0"]  # fmt: skip
    run = prepared(GSM8K, *words, "--max_completion_length", "80")
    lines = supervised.supervised_lines(run)
    assert lines.too_long >= 1
    assert len(lines.rows) + lines.too_long == 24
    run.recipe.training.max_completion_length = 3
    with pytest.raises(RecipeError, match=r"of 24 training rows none .* 24 are longer than max_completion_length 3"):
        supervised.supervised_lines(run)

    def never(completions, **columns):
        return [0.0]

    run.scorers = run.scorers._replace(accuracy=never)
    with pytest.raises(RecipeError, match="24 are not paid by never"):
        supervised.supervised_lines(run)


def test_the_warm_up_and_grpo_are_two_commands(tmp_path, capsys):
    out = tmp_path / "out"
    words = [str(TINY), "--output_dir", str(out), "--disable_tqdm", "true", "--heldout_size", "60"]
    code = cli.main(["sft", *words, "--sft_epochs", "2", "--sft_learning_rate", "3e-3", "--sft_batch_size", "64"])
    assert code == 0
    printed = capsys.readouterr().out
    assert f"Go on with GRPO: grpo-math train {TINY} " in printed
    summary = json.loads((out / "sft" / "summary.json").read_text())
    assert summary["supervised"]["lines"] == 2000
    assert summary["supervised"]["loss_last"] < summary["supervised"]["loss_first"]
    assert summary["accuracy_after"]["low"] > summary["accuracy_before"]["high"]
    assert json.loads((out / "sft" / "config.json").read_text())["use_cache"] is True
    card = (out / "sft" / "README.md").read_text()
    assert "by supervised fine-tuning on worked solutions: 64 steps" in card
    assert "- `sft_learning_rate: 0.003`" in card
    assert "num_generations" not in card
    (line,) = (line for line in printed.splitlines() if line.startswith("Go on with GRPO: "))
    command = line.removeprefix("Go on with GRPO: grpo-math ").split()
    assert cli.main([*command, "--max_steps", "2", "--logging_steps", "1"]) == 0
    after = json.loads((out / "summary.json").read_text())
    assert after["model"] == str(out / "sft")
    assert after["accuracy_before"] == summary["accuracy_after"]
    assert (out / "sft" / "summary.json").exists()  # GRPO's run beside it has not moved it


@pytest.mark.parametrize("base", ["lora", "qlora"])
def test_a_lora_warm_up_leaves_an_adapter_that_grpo_trains_further(base, tmp_path, gsm8k_folder, small_chat_model):
    from safetensors.torch import load_file

    words = ["--dataset_path", str(gsm8k_folder), "--use_cpu", "true", "--output_dir", str(tmp_path), "--disable_tqdm",
             "true", "--heldout_size", "0", "--load_in_4bit", str(base == "qlora").lower()]  # fmt: skip
    assert cli.main(["sft", str(GSM8K), *words, "--model_name_or_path", str(small_chat_model), "--sft_size", "16",
                     "--max_completion_length", "200", "--sft_batch_size", "8"]) == 0  # fmt: skip
    weights = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert any(w.abs().max() > 0 for name, w in weights.items() if "lora_B" in name)
    assert models.adapter_base(str(tmp_path / "sft")) == str(small_chat_model)
    assert cli.main(["train", str(GSM8K), *words, "--model_name_or_path", str(tmp_path / "sft"), "--max_steps", "1",
                     "--max_completion_length", "8", "--gradient_accumulation_steps", "1"]) == 0  # fmt: skip
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_what_cannot_be_trained_or_saved_is_one_line(tmp_path, capsys, monkeypatch):
    words = ["sft", str(TINY), "--output_dir", str(tmp_path / "out"), "--heldout_size", "0", "--sft_size", "16"]
    monkeypatch.setattr(models, "native_bf16", lambda device: True)  # else the run takes float32 of itself
    assert cli.main([*words, "--dtype", "bfloat16"]) == 2
    assert "trains bfloat16 weights in full" in capsys.readouterr().err
    recipe = load_recipe(TINY, ["--output_dir", str(tmp_path / "out" / "sft")])
    with only_run_in(recipe):
        assert cli.main(words) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    def fail(error):
        def save(*args, **kwargs):
            raise error

        monkeypatch.setattr(supervised.SFTTrainer, "save_model", save)
        return cli.main(words)

    assert fail(OSError(errno.ENOSPC, "No space left on device")) == 1
    assert "is not saved: No space left on device. Make room" in " ".join(capsys.readouterr().err.split())
    assert fail(torch.OutOfMemoryError("CUDA out of memory. Tried")) == 1
    assert "Lower per_device_train_batch_size (now 128)" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="something else"):
        fail(RuntimeError("something else"))


def test_bad_settings_are_named(capsys):
    assert cli.main(["sft", str(TINY), "--sft_size", "0"]) == 2
    assert "command line: sft_size: 0 must be 1 or more" in capsys.readouterr().err
    assert cli.main(["sft", str(TINY), "--sft_learning_rate", "-1"]) == 2
    assert "command line: sft_learning_rate: -1 must be a number above 0" in capsys.readouterr().err
    assert cli.main(["sft", str(TINY), "--sft_sise", "1"]) == 2
    assert "did you mean sft_size?" in capsys.readouterr().err
