"""LoRA, QLoRA and 8-bit AdamW with the real bitsandbytes on the CPU: train, save, load and generate the same."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from bitsandbytes.optim import GlobalOptimManager
from peft import PeftModel
from safetensors.torch import load_file

from grpo_math import models
from grpo_math.recipe import load_recipe
from grpo_math.run.heldout import measure_heldout
from grpo_math.run.prepare import prepare
from grpo_math.run.train import train

# Without held-out problems nothing about them is computed, and a run is ready in a tenth of a second
SMALL = {"train_size": 64, "heldout_size": 0, "per_device_train_batch_size": 32, "max_steps": 3,
         "lr_scheduler_type": "constant", "save_strategy": "no", "disable_tqdm": True}  # fmt: skip
# No dropout: the reference and a loaded model are then compared with the very function that was trained
LORA = {"use_peft": True, "lora_r": 8, "lora_dropout": 0, "lora_target_modules": "all-linear", "learning_rate": 0.005}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
QLORA = {**LORA, **NF4, "gradient_checkpointing": True}
FOUR_STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """A function that reads the tiny recipe with overrides; its output goes to the folder `tmp_path / name`."""

    def read(name, **overrides):
        options = {**SMALL, "output_dir": tmp_path / name, **overrides}
        if "model_name_or_path" in overrides:  # a saved adapter, which is as it is
            options = {key: value for key, value in options.items() if not key.startswith("lora_")}
        return load_recipe(tiny_recipe, [word for key, value in options.items() for word in (f"--{key}", str(value))])

    return read


@pytest.fixture
def prepared(recipe):
    """A function that prepares such a recipe's run."""
    return lambda name, **overrides: prepare(recipe(name, **overrides))


def train_and_save(run):
    """What a run does once it is prepared, without the measuring; returns the folder as text."""
    run.trainer.train(resume_from_checkpoint=run.checkpoint)
    run.trainer.save_model(str(run.folder))
    return str(run.folder)


def load(run, folder):
    """The model that `--model_name_or_path FOLDER` gives, with the run's other settings."""
    run.recipe.model.model_name_or_path = folder
    return models.load_model(run.recipe.model, run.recipe.model.dtype).eval()


def parts(model):
    """Copies of a PEFT model's weights: those that are trained, and all others, by name."""
    named = [(name, p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
    return {n: p for n, trained, p in named if trained}, {n: p for n, trained, p in named if not trained}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def prompts(run):
    texts = [row["prompt"] for row in run.problems.train[:48]]
    return run.tokenizer(texts, return_tensors="pt", padding=True)


@torch.no_grad()
def greedy(run, model):
    """Token ids of the greedy completions, and the logits over prompt and completion."""
    model.eval()
    ids = model.generate(**prompts(run), do_sample=False, max_new_tokens=6)
    return ids, model(input_ids=ids).logits


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_trains_the_adapter_alone_and_loads_and_merges_to_the_same(prepared, tmp_path):
    run = prepared("out", **LORA)
    adapter, base = parts(run.trainer.model)
    untrained, _ = greedy(run, run.trainer.model)
    folder = train_and_save(run)

    adapter_after, base_after = parts(run.trainer.model)
    assert same(base, base_after)
    assert all((adapter[name] != adapter_after[name]).any() for name in adapter)
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert same(stored, {name.replace(".default", ""): p for name, p in adapter_after.items()})

    ids, logits = greedy(run, run.trainer.model)
    assert not torch.equal(ids, untrained)  # so that a base without its adapter would be noticed below
    loaded = load(run, folder)
    assert isinstance(loaded, PeftModel)
    loaded_ids, loaded_logits = greedy(run, loaded)
    assert torch.equal(loaded_ids, ids)
    assert torch.equal(loaded_logits, logits)

    loaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load(run, str(tmp_path / "merged"))
    assert not isinstance(merged, PeftModel)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    merged_ids, merged_logits = greedy(run, merged)
    assert torch.equal(merged_ids, ids)
    assert torch.allclose(merged_logits, logits, atol=1e-4)


# --- QLoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_qlora_trains_a_float32_adapter_on_nf4_and_loads_to_the_same(prepared, dtype):
    """The base in 4 bits with double quantization; without native bfloat16 the second case is the first once more."""
    options = {**QLORA, "dtype": dtype}
    run = prepared("out", **options)
    layers = {n: m for n, m in run.trainer.model.named_modules() if isinstance(m, Linear4bit)}
    assert len(layers) == 14  # four of attention and three of the MLP in both layers; not the head
    for layer in layers.values():
        assert isinstance(layer.weight, Params4bit)
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == layer.in_features * layer.out_features // 2
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
    adapter, base = parts(run.trainer.model)
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    untrained, _ = greedy(run, run.trainer.model)
    folder = train_and_save(run)

    adapter_after, base_after = parts(run.trainer.model)
    assert same(base, base_after)
    assert all((adapter[name] != adapter_after[name]).any() for name in adapter)
    assert {p.dtype for p in adapter_after.values()} == {torch.float32}

    ids, logits = greedy(run, run.trainer.model)
    assert not torch.equal(ids, untrained)
    loaded_ids, loaded_logits = greedy(run, load(run, folder))
    assert torch.equal(loaded_ids, ids)
    assert torch.equal(loaded_logits, logits)

    # and prepared, to be measured or trained further: the trained weights have not been rounded on the way
    again = prepared("again", **options, model_name_or_path=folder)
    assert same(parts(again.trainer.model)[0], adapter_after)
    again_ids, again_logits = greedy(again, again.trainer.model)
    assert torch.equal(again_ids, ids)
    assert torch.equal(again_logits, logits)


def test_the_nf4_base_is_the_model_itself_up_to_4_bits(prepared):
    """Weights of the base, back from 4 bits: near the built-in model's, and further off than a rounding error."""
    run = prepared("out", **QLORA)
    plain = models.load_model(load_recipe(run.recipe.path).model, "float32")
    weights = dict(plain.named_parameters())
    for name, module in run.trainer.model.get_base_model().named_modules():
        if isinstance(module, Linear4bit):
            original = weights[name.removesuffix(".base_layer") + ".weight"]
            back = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            assert 0.02 < ((back - original).norm() / original.norm()).item() < 0.15, name


def test_measuring_before_training_changes_nothing_in_a_4bit_run(prepared):
    """On some CPUs bitsandbytes repacks 4-bit weights when they are evaluated, and these have no gradient."""
    heldout = {"heldout_size": 16, "heldout_generations": 2}
    measured = prepared("measured", **QLORA, **heldout)
    measure_heldout(measured, "before")
    train_and_save(measured)
    unmeasured = prepared("unmeasured", **QLORA, **heldout)
    train_and_save(unmeasured)
    assert same(parts(measured.trainer.model)[0], parts(unmeasured.trainer.model)[0])


# --- 8-bit optimizers -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_manager(monkeypatch):
    """bitsandbytes keeps exceptions for layers by position in one object a process: here each test has its own."""
    monkeypatch.setattr(GlobalOptimManager, "_instance", None)


def states(run):
    """Optimizer states by the name of the weight."""
    optimizer = run.trainer.optimizer.optimizer
    return {name: optimizer.state[p] for name, p in run.trainer.model.named_parameters()}


@pytest.mark.usefixtures("own_manager")
@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_8bit_adamw_trains_every_weight_and_resumes_with_its_states(prepared, optim):
    options = {"optim": optim, **FOUR_STEPS}
    whole = prepared("whole", **options)
    before = {name: p.detach().clone() for name, p in whole.trainer.model.named_parameters()}
    folder = train_and_save(whole)
    after = dict(whole.trainer.model.named_parameters())
    assert all((before[name] != after[name]).any() for name in before)
    moments = states(whole)
    for name, weight in after.items():
        eight_bits = weight.numel() >= 4096 and "embed_tokens" not in name  # the Trainer keeps embeddings in 32
        for moment in ("state1", "state2"):
            assert moments[name][moment].dtype == (torch.uint8 if eight_bits else torch.float32), name
            assert moments[name][moment].shape == weight.shape
    assert sum(state["state1"].dtype == torch.uint8 for state in moments.values()) == 14

    resumed = prepared("resumed", **options, resume_from_checkpoint=f"{folder}/checkpoint-2")
    train_and_save(resumed)
    assert resumed.trainer.state.global_step == 4
    assert same(dict(resumed.trainer.model.named_parameters()), after)
    for name, state in states(resumed).items():
        assert state["step"] == moments[name]["step"] == 4
        tensors = {key: value for key, value in state.items() if torch.is_tensor(value)}
        assert same(tensors, {key: value for key, value in moments[name].items() if torch.is_tensor(value)}), name

    trained = greedy(whole, whole.trainer.model)
    loaded = greedy(whole, load(whole, folder))
    assert all(torch.equal(one, other) for one, other in zip(trained, loaded, strict=True))


@pytest.mark.usefixtures("own_manager")
def test_without_a_gpu_paged_8bit_adamw_is_8bit_adamw(prepared):
    """There is nothing to page on a CPU: bitsandbytes says so and goes on."""
    weights = {}
    for optim in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit"):
        run = prepared(optim, optim=optim)
        train_and_save(run)
        weights[optim] = dict(run.trainer.model.named_parameters())
    assert same(weights["paged_adamw_8bit"], weights["adamw_8bit"])
    assert not same(weights["adamw_8bit"], weights["adamw_torch"])


# --- the reference of a PEFT policy -----------------------------------------------------------------------------------


def record_batches(trainer):
    """The generation batches of a training run, as the loss gets them."""
    batches, score = [], trainer._generate_and_score_completions

    def recording(inputs):
        batches.append(score(inputs))
        return batches[-1]

    trainer._generate_and_score_completions = recording
    return batches


@torch.no_grad()
def token_logps(model, batch):
    """Log-probabilities (B, C) of the completions' tokens, zero on padding: from plain logits, at temperature 1."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)  # (B, P + C)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, batch["prompt_ids"].size(1) - 1 : -1]  # (B, C, V)
    logps = logits.float().log_softmax(dim=-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    return logps * batch["completion_mask"]


def reference_logps(batch):
    return batch["ref_per_token_logps"] * batch["completion_mask"]


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_the_reference_of_a_new_adapter_is_the_base_without_it(prepared, adapter):
    run = prepared("out", **adapter, beta=0.1, logging_steps=1)
    trainer = run.trainer
    assert trainer.ref_model is None
    batches = record_batches(trainer)
    train_and_save(run)
    assert trainer.ref_model is None
    assert len(batches) == 3
    base = models.load_model(run.recipe.model, run.recipe.model.dtype)  # never had an adapter
    for batch in batches:
        assert torch.allclose(reference_logps(batch), token_logps(base, batch), atol=1e-4)
        with trainer.model.disable_adapter():
            assert torch.allclose(reference_logps(batch), token_logps(trainer.model, batch), atol=1e-4)
    # The adapter has moved, so the two above are not the policy; the last batch was scored after two steps.
    assert (token_logps(trainer.model, batches[-1]) - reference_logps(batches[-1])).abs().max() > 0.1
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-5)
    assert kl[-1] > 1e-3


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_the_reference_of_a_saved_adapter_is_that_adapter(prepared, recipe, tmp_path, adapter):
    """Training on with a KL: the distance is kept to what training goes on from; the folder then loads as any other."""
    folder = train_and_save(prepared("first", **adapter))
    options = {**adapter, **FOUR_STEPS, "beta": 0.1, "model_name_or_path": folder}
    run = prepared("on", **options)
    assert run.trainer.ref_model is None
    batches = record_batches(run.trainer)
    on = train_and_save(run)
    ids, logits = greedy(run, run.trainer.model)
    first = load(run, folder)
    for batch in batches:
        assert torch.allclose(reference_logps(batch), token_logps(first, batch), atol=1e-4)
    assert (token_logps(run.trainer.model, batches[-1]) - reference_logps(batches[-1])).abs().max() > 0.1

    loaded_ids, loaded_logits = greedy(run, load(run, on))
    assert torch.equal(loaded_ids, ids)
    assert torch.equal(loaded_logits, logits)

    resumed = recipe("resumed", **options, resume_from_checkpoint=f"{on}/checkpoint-2")
    assert train(resumed) == 0
    policy, reference = "adapter_model.safetensors", "ref/adapter_model.safetensors"
    assert same(load_file(tmp_path / "resumed" / policy), load_file(tmp_path / "on" / policy))
    assert same(load_file(tmp_path / "resumed" / reference), load_file(tmp_path / "first" / policy))


def test_a_card_that_fills_up_while_weights_are_quantized_is_out_of_memory(recipe, monkeypatch):
    """transformers reports what goes wrong there, and raises an error of its own that does not say what it was."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    def convert(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Bnb4bitQuantize, "convert", convert)
    made = recipe("out", **QLORA)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 2\.00 GiB"):
        models.load_model(made.model, made.model.dtype)
    monkeypatch.setattr(Bnb4bitQuantize, "convert", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(RuntimeError, match="conversion of the weights") as raised:
        models.load_model(made.model, made.model.dtype)
    assert not isinstance(raised.value, torch.OutOfMemoryError)
