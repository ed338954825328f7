"""Embeddings in host memory: the same model, less memory on the card."""

import pytest
import torch
from conftest import GSM8K
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from grpo_math import cli, memory
from grpo_math.errors import ModelError
from grpo_math.trainer.host_embeddings import embeddings_to_host


def untied(folder):
    config = LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=2, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_embeddings_on_the_host_do_not_change_the_model(tmp_path):
    model = LlamaForCausalLM.from_pretrained(untied(tmp_path))
    ids = torch.randint(0, 300, (3, 7))
    before, count = model(ids).logits, sum(p.numel() for p in model.parameters())
    embeddings_to_host(model)
    assert torch.equal(model(ids).logits, before)
    assert count - sum(p.numel() for p in model.parameters()) == 300 * 64
    model.to(torch.bfloat16)  # moving or converting the model does not touch the table
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_embeddings_on_the_host_save_their_size_unless_tied_to_the_head(tmp_path, small_argv):
    argv = [*small_argv, "--dtype", "float32"]
    argv[argv.index("--model_name_or_path") + 1] = str(untied(tmp_path))
    on_card = memory.predict(GSM8K, argv, 32)
    on_host = memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True})
    assert on_card.parts["training"]["weights"] - on_host.parts["training"]["weights"] == 300 * 64 * 4
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        memory.predict(GSM8K, small_argv, 32, {"embeddings_on_host": True})
    with pytest.raises(ValueError, match=r"embeddings_on_host=True and modules_to_save .* names embed_tokens"):
        memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True, "lora_modules_to_save": "embed_tokens"})
    with pytest.raises(ValueError, match=r"embeddings_on_host=True and full fine-tuning.*use_peft"):
        memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True, "use_peft": False})


def test_load_counts_embeddings_before_their_move_to_the_host(tmp_path, small_argv):
    argv = [*small_argv, "--load_in_4bit", "true", "--dtype", "bfloat16", "--lora_r", "1", "--embeddings_on_host"]
    argv[argv.index("--model_name_or_path") + 1] = str(untied(tmp_path))
    on_host, on_card = (memory.predict(GSM8K, [*argv, value], 32) for value in ("true", "false"))
    assert on_host.parts["load"]["temporaries"] == 2 * (300 * 64 + 64 * 96)  # and the largest weight, not quantized yet
    assert on_card.peaks["optimizer"] - on_host.peaks["optimizer"] == 300 * 64 * 2


def test_adapter_trains_with_embeddings_on_the_host(tmp_path, tiny_recipe, short):
    from grpo_math.tiny_model import make_tiny_tokenizer

    folder = tmp_path / "model"
    make_tiny_tokenizer().save_pretrained(untied(folder))
    out = tmp_path / "out"
    overrides = ["--model_name_or_path", str(folder), "--use_peft", "true", "--embeddings_on_host", "true"]
    overrides += [
        "--rewards",
        "grpo_math.memory.step.alternating_reward",
    ]  # random weights never earn the task's reward
    code = cli.main(["train", str(tiny_recipe), *short, *overrides, "--output_dir", str(out), "--disable_tqdm", "true"])
    assert code == 0
    from peft import PeftModel

    base = LlamaForCausalLM.from_pretrained(folder)
    reloaded = PeftModel.from_pretrained(base, out)  # on a model whose embeddings are not on the host
    assert any(p.abs().sum() > 0 for name, p in reloaded.named_parameters() if "lora_B" in name)
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 1
