"""Predicted peak memory: against torch's profiler on real steps, the verdict, what would fit, the recipes' own figures."""

import contextlib
import json
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from trl import ModelConfig

from grpo_math import cli, memory, models, startup
from grpo_math.dry_run import Tracker, build_model, dry_run, prompts_of, quantization_tensors
from grpo_math.errors import PredictionError
from grpo_math.memory import GIB
from grpo_math.recipe import load_recipe
from grpo_math.trainer import host_embeddings

sys.path.insert(0, str(ROOT))

from benchmarks import memory as compared

EIGHT_GB = compared.eight_gb_recipes()
GSM8K = ROOT / "recipes" / "gsm8k.yaml"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the configuration of a model of three small layers."""
    return compared.shape_folder(tmp_path_factory.mktemp("shape"))


@pytest.fixture
def small_values(small):
    """Overrides that make of gsm8k.yaml a run of that model, with 4 x 4 rows of 32 + 24 tokens."""
    return {**compared.COMMON, "model_name_or_path": small, "gradient_accumulation_steps": 4, "heldout_size": 0}


@pytest.fixture
def small_argv(small_values):
    return memory.as_arguments({name: value for name, value in small_values.items() if name != "use_cpu"})


# --- the prediction is what a real step takes -------------------------------------------------------------------------


@pytest.mark.parametrize("case", compared.CPU_CASES)
def test_prediction_is_within_one_percent_of_the_profilers_peak(case, small):
    predicted, profiled = compared.compare_on_cpu(case, small)
    assert max(predicted.values()) == pytest.approx(max(profiled.values()), rel=0.01)
    for phase in ("scoring", "training"):
        assert predicted[phase] == pytest.approx(profiled[phase], rel=0.01)
    if '"bfloat16"' in json.dumps(compared.CPU_CASES[case]):  # whose products on a CPU pack weights, and on CUDA do not
        assert predicted["generation"] <= profiled["generation"]
    else:  # the first and the last token stand for all, and what the step before leaves of its batch is not counted
        assert predicted["generation"] == pytest.approx(profiled["generation"], rel=0.02)


def test_a_sliding_window_bounds_the_cache(tmp_path, small_values):
    # 32 + 24 tokens: the window is passed while generating, in two of three layers
    config = Gemma3TextConfig(**compared.SHAPE, head_dim=32, query_pre_attn_scalar=32, pad_token_id=0, sliding_window=40,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention"])  # fmt: skip
    config.save_pretrained(tmp_path)
    values = {**small_values, "model_name_or_path": tmp_path, "gradient_accumulation_steps": 2, "heldout_size": 8}
    recipe = load_recipe(GSM8K, memory.as_arguments({**values, **compared.CPU_CASES["LoRA, checkpointing"]}))
    predicted = dry_run(recipe, config, 32, cuda=False).peaks
    profiled = memory.profiled_peaks(recipe, config, 32)
    assert max(predicted.values()) == pytest.approx(max(profiled.values()), rel=0.01)
    for phase in ("generation", "held-out"):
        assert predicted[phase] == pytest.approx(profiled[phase], rel=0.02)


def test_measured_completions_are_of_full_length(tmp_path, small_values, monkeypatch):
    shapes = []
    generate = LlamaForCausalLM.generate

    def generate_and_note(*args, **kwargs):
        made = generate(*args, **kwargs)
        shapes.append(made.shape[1])
        return made

    monkeypatch.setattr(LlamaForCausalLM, "generate", generate_and_note)
    config = LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)  # fmt: skip
    values = {**small_values, "max_completion_length": 200, "heldout_size": 8, "gradient_accumulation_steps": 1}
    dry_run(load_recipe(GSM8K, memory.as_arguments(values)), config, 5, fake=False)
    assert shapes == [205, 205, 205]  # random weights draw the end token every eighth time


def test_tracker_counts_storages_from_allocation_to_release():
    with FakeTensorMode(), Tracker(512, lambda shape: 1) as tracker:
        first = torch.empty(1000)  # 4,000 bytes are 8 blocks
        assert tracker.live == 4096
        view = first[10:]
        view.add_(1)
        assert tracker.live == 4096  # a view and an operation in place allocate nothing
        del first
        assert tracker.live == 4096  # the view still holds the storage
        second = torch.empty(100, dtype=torch.uint8)
        del view
        assert tracker.live == 512
        third = second.float()
        del second, third
        assert tracker.live == 0
    assert tracker.peaks["load"].bytes == 4096 + 512
    assert "empty" in tracker.peaks["load"].op


def test_every_thread_has_one_cublas_workspace():
    def product():
        return (torch.empty(2, 3, requires_grad=True) @ torch.empty(3, 4)).sum()

    with FakeTensorMode(), Tracker(1, lambda shape: 1, workspace=1000) as tracker:
        torch.empty(5)
        assert tracker.live == 0
        with torch.no_grad():
            product()
            product()
        assert tracker.live == 1000
        product().backward()  # runs in a thread of its own on CUDA
        product().backward()
        assert tracker.live == 2000
    assert tracker.parts("load")["temporaries"] >= 2000


def test_prompts_are_as_different_as_the_vocabulary_allows():
    prompts = prompts_of(3, 60, 2, vocabulary=7)
    assert [len(prompt) for prompt in prompts] == [3] + [2] * 59
    assert len({tuple(prompt) for prompt in prompts[2:]}) == 5 * 5  # 29 groups, but two tokens of five words each
    assert prompts[2] == prompts[3] != prompts[4]
    assert all(2 <= token < 7 for prompt in prompts for token in prompt)


def test_tracker_splits_the_peak_of_each_phase_by_what_it_is():
    with FakeTensorMode(), Tracker(1, lambda shape: 1) as tracker:
        weight = torch.nn.Parameter(torch.empty(10, 10))
        tracker.label(weight, "weights")
        with tracker.during("training"):
            loss = (torch.empty(5, 10) @ weight).square().sum()
            loss.backward()
            tracker.label(weight.grad, "gradients")
        with tracker.during("optimizer"):
            del loss
            torch.empty(7)
    parts = tracker.parts("training")
    assert parts["weights"] == 400
    assert sum(parts.values()) == tracker.peaks["training"].bytes
    assert parts["activations"] > 0
    assert tracker.parts("optimizer")["gradients"] == 400
    assert tracker.peaks["optimizer"].bytes == 400 + 400 + 28


def test_quantized_bytes_equal_those_of_a_real_load(small, small_values, tmp_path):
    config = memory.model_config(load_recipe(GSM8K, memory.as_arguments(small_values)))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    for nested in (True, False):
        quantized = {"load_in_4bit": True, "use_bnb_nested_quant": nested, "bnb_4bit_quant_type": "nf4"}
        recipe = load_recipe(GSM8K, memory.as_arguments({**small_values, **quantized}))
        loaded = models.load_model(
            ModelConfig(model_name_or_path=str(tmp_path), **quantized), "bfloat16", device_map={"": "cpu"}
        )
        with FakeTensorMode():
            fake = build_model(recipe, config, torch.bfloat16, torch.device("cpu"))

        def sizes(model):
            found = {name: (p.nbytes, p.dtype) for name, p in model.named_parameters()}
            return found, sorted(t.nbytes for t in quantization_tensors(model))

        assert sizes(fake) == sizes(loaded)


def test_a_frozen_reference_model_is_counted(small_values, small_argv):
    values = {"use_peft": False, "dtype": "float32", "bf16": False, "ref_clip_high": 1.0, "ref_clip_low": 1.0}
    without = memory.predict(GSM8K, small_argv, 32, {**values, "ref_clip_high": None, "ref_clip_low": None})
    clipped = memory.predict(GSM8K, small_argv, 32, values)
    with_kl = memory.predict(GSM8K, small_argv, 32, {**values, "beta": 0.1})
    weights = without.parts["training"]["weights"]
    assert clipped.parts["training"]["weights"] == pytest.approx(2 * weights, rel=1e-3)
    assert with_kl.parts["training"]["weights"] == pytest.approx(2 * weights, rel=1e-3)
    # With an adapter the reference is the model without it
    adapter = memory.predict(GSM8K, small_argv, 32, {"ref_clip_high": 1.0})
    assert adapter.parts["training"]["weights"] == memory.predict(GSM8K, small_argv, 32).parts["training"]["weights"]


@pytest.fixture(scope="module")
def saved_adapter(tmp_path_factory, small):
    """The folder of an adapter on the small model that is larger than the recipe's own, and its base model with weights."""
    base = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small)).save_pretrained(base)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=64, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32", "bf16": False},
        {"dtype": "float32", "bf16": False, "beta": 0.1, "use_peft": False},
        {"dtype": "bfloat16", "bf16": True, "ref_clip_high": 1.0, "load_in_4bit": True},
    ],
    ids=["trained further", "with a frozen copy", "of four bits, with a frozen copy"],
)
def test_a_saved_adapter_is_predicted_as_it_is(changes, saved_adapter, small_values):
    values = {**small_values, "model_name_or_path": saved_adapter, "gradient_accumulation_steps": 2, **changes}
    recipe = load_recipe(GSM8K, memory.as_arguments(values))
    config = memory.model_config(recipe)
    predicted, profiled = dry_run(recipe, config, 32, cuda=False), memory.profiled_peaks(recipe, config, 32)
    assert predicted.peak == pytest.approx(max(profiled.values()), rel=0.01)
    assert predicted.peaks["optimizer"] == pytest.approx(profiled["optimizer"], rel=0.01)
    linear = 3 * sum(
        a + b for a, b in [(128, 128), (128, 64), (128, 64), (128, 128), (128, 320), (128, 320), (320, 128)]
    )
    assert predicted.parts["training"]["adapter"] == 4 * 64 * linear


def test_an_adapter_is_not_advised_where_there_is_one_nor_four_bits_for_a_gguf_file(
    small_values, saved_adapter, tmp_path
):
    def advised(model, **changes):
        values = {**small_values, "model_name_or_path": model, "use_peft": False, **changes}
        return {name for kind in memory.smaller(load_recipe(GSM8K, memory.as_arguments(values)))
                for level in kind.levels for name in level}  # fmt: skip

    assert {"use_peft", "load_in_4bit", "optim"} <= advised(small_values["model_name_or_path"])
    assert advised(saved_adapter) & {"use_peft", "load_in_4bit", "optim"} == {"load_in_4bit"}
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert advised(tmp_path / "model.gguf", use_peft=True) & {"use_peft", "load_in_4bit"} == set()


def test_a_recipe_that_counts_a_generation_in_rows_gets_advice_in_rows(small_values):
    values = {**small_values, "generation_batch_size": 16, "gradient_accumulation_steps": 8, "use_peft": False}
    argv = memory.as_arguments({name: value for name, value in values.items() if name != "use_cpu"})
    kinds = memory.smaller(load_recipe(GSM8K, argv, planned=True))
    for kind in kinds:
        for level in kind.levels:
            made = load_recipe(GSM8K, memory._merged(argv, level), planned=True).training  # which TRL takes
            rows = made.generation_batch_size
            assert rows == level.get("generation_batch_size", 16)
    assert {"generation_batch_size": 8} in [level for kind in kinds for level in kind.levels]


@pytest.mark.parametrize("parts", [{}, {"steps_per_generation": 8}, {"steps_per_generation": 4}])
def test_smaller_micro_batches_leave_the_rows_of_a_generation(small_values, parts):
    argv = memory.as_arguments({**small_values, "gradient_accumulation_steps": 8, **parts})
    recipe = load_recipe(GSM8K, argv)
    for size in (1, 2):
        changed = load_recipe(GSM8K, memory._merged(argv, memory._with_micro_batch(recipe, size))).training
        assert changed.generation_batch_size == recipe.training.generation_batch_size
        assert changed.per_device_train_batch_size * changed.gradient_accumulation_steps == 32


def test_accumulation_that_the_advice_itself_begins_does_not_rule_out_the_rest(tmp_path, small_argv):
    """A wide adapter without accumulation: micro-batches of one row keep its gradients beside the activations."""
    config = LlamaConfig(vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
                         tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)  # fmt: skip
    config.save_pretrained(tmp_path)
    changes = {"model_name_or_path": tmp_path, "lora_r": 256, "gradient_accumulation_steps": 1, "num_generations": 2,
               "per_device_train_batch_size": 2, "optim": "adamw_8bit"}  # fmt: skip
    argv = memory._merged(small_argv, changes)
    need = memory.predict(GSM8K, argv, 8)
    four_bits = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4"}
    enough = memory.predict(GSM8K, argv, 8, four_bits)
    assert enough.total < need.total
    found = memory.suggest(GSM8K, argv, need, enough.total / GIB)
    assert four_bits in [suggestion.changes for suggestion in found]


def test_a_precision_that_is_left_open_is_planned_as_it_is_run(small_argv):
    assert load_recipe(GSM8K, [*small_argv, "--bf16", "null"], planned=True).training.bf16 is True
    assert load_recipe(GSM8K, [*small_argv, "--bf16", "false"], planned=True).training.bf16 is False


def test_embeddings_on_their_way_to_the_host_are_part_of_the_load(tmp_path, small_argv):
    argv = [*small_argv, "--load_in_4bit", "true", "--dtype", "bfloat16", "--lora_r", "1", "--embeddings_on_host"]
    argv[argv.index("--model_name_or_path") + 1] = str(untied(tmp_path))
    on_host, on_card = (memory.predict(GSM8K, [*argv, value], 32) for value in ("true", "false"))
    assert on_host.parts["load"]["temporaries"] == 2 * (300 * 64 + 64 * 96)  # and the largest weight, not quantized yet
    assert on_card.peaks["optimizer"] - on_host.peaks["optimizer"] == 300 * 64 * 2


def test_paged_states_and_8_bit_states_are_told_apart(small_argv):
    full = {"use_peft": False, "dtype": "float32"}
    plain, eight, paged = (
        memory.predict(GSM8K, small_argv, 32, {**full, "optim": name})
        for name in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit")
    )
    states = [p.parts["optimizer"]["optimizer states"] for p in (plain, eight, paged)]
    config = memory.model_config(load_recipe(GSM8K, small_argv))
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert states[0] == pytest.approx(8 * parameters, rel=0.01)
    embeddings = 3000 * 128
    # Trainer leaves embeddings at 32 bits; a block of 256 values has two float32 scales
    assert states[1] == pytest.approx(8 * embeddings + (2 + 8 / 256) * (parameters - embeddings), rel=0.02)
    assert paged.paged > 0
    assert states[2] == pytest.approx(states[1] - paged.paged, rel=0.02)


# --- embeddings in host memory ----------------------------------------------------------------------------------------


def untied(folder):
    config = LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=2, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_embeddings_on_the_host_leave_the_model_as_it_is(tmp_path):
    model = LlamaForCausalLM.from_pretrained(untied(tmp_path))
    ids = torch.randint(0, 300, (3, 7))
    before, count = model(ids).logits, sum(p.numel() for p in model.parameters())
    host_embeddings.embeddings_to_host(model)
    assert torch.equal(model(ids).logits, before)
    assert count - sum(p.numel() for p in model.parameters()) == 300 * 64
    model.to(torch.bfloat16)  # what moves or converts a module leaves the table alone
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_embeddings_on_the_host_save_their_size_and_are_refused_where_they_are_the_head(tmp_path, small_argv):
    argv = [*small_argv, "--dtype", "float32"]
    argv[argv.index("--model_name_or_path") + 1] = str(untied(tmp_path))
    on_card = memory.predict(GSM8K, argv, 32)
    on_host = memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True})
    assert on_card.parts["training"]["weights"] - on_host.parts["training"]["weights"] == 300 * 64 * 4
    with pytest.raises(models.ModelError, match="tie_word_embeddings"):
        memory.predict(GSM8K, small_argv, 32, {"embeddings_on_host": True})
    with pytest.raises(ValueError, match=r"embeddings_on_host=True and modules_to_save .* names embed_tokens"):
        memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True, "lora_modules_to_save": "embed_tokens"})
    with pytest.raises(ValueError, match=r"embeddings_on_host=True and full fine-tuning.*use_peft"):
        memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True, "use_peft": False})


def test_an_adapter_trains_beside_embeddings_on_the_host(tmp_path, tiny_recipe, short):
    from grpo_math.tiny_model import make_tiny_tokenizer

    folder = tmp_path / "model"
    make_tiny_tokenizer().save_pretrained(untied(folder))
    out = tmp_path / "out"
    overrides = ["--model_name_or_path", str(folder), "--use_peft", "true", "--embeddings_on_host", "true"]
    overrides += ["--rewards", "grpo_math.dry_run.alternating_reward"]  # random weights never earn the task's
    code = cli.main(["train", str(tiny_recipe), *short, *overrides, "--output_dir", str(out), "--disable_tqdm", "true"])
    assert code == 0
    from peft import PeftModel

    base = LlamaForCausalLM.from_pretrained(folder)
    reloaded = PeftModel.from_pretrained(base, out)  # on a model with its embeddings where they were
    assert any(p.abs().sum() > 0 for name, p in reloaded.named_parameters() if "lora_B" in name)
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 1


# --- the command ------------------------------------------------------------------------------------------------------


def ask(capsys, *words):
    code = cli.main(["memory", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_prints_the_phases_and_the_verdict(capsys, small_argv):
    code, out, _ = ask(capsys, GSM8K, *small_argv, "--prompt_length", 32)
    assert code == 0
    for phase in ("load", "generation", "scoring", "training", "optimizer"):
        assert phase in out
    assert "fits in 8.00 GiB" in out
    assert "Longest prompt 32 tokens (given)" in out


def test_what_does_not_fit_comes_with_the_smallest_changes_that_do(capsys, small_argv):
    need = memory.predict(GSM8K, small_argv, 32)
    halved = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    vram = memory.predict(GSM8K, small_argv, 32, halved).total / GIB
    assert need.total > vram * GIB
    code, out, _ = ask(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--vram", vram, "--json")
    assert code == 1
    answer = json.loads(out)
    assert answer["fits"] is False
    assert answer["total"] == need.total
    assert answer["suggestions"]
    for found in answer["suggestions"]:
        assert found["total"] <= vram * GIB
        again = memory.predict(GSM8K, small_argv, 32, found["overrides"])
        assert again.total == found["total"]
    assert halved in [found["overrides"] for found in answer["suggestions"]]


def test_changes_are_added_up_when_none_alone_is_enough(small_argv):
    argv = [*small_argv, "--gradient_checkpointing", "false", "--use_peft", "false", "--dtype", "float32"]
    need = memory.predict(GSM8K, argv, 32)
    alone = memory.suggest(GSM8K, argv, need, (need.total - 1) / GIB)
    best = min(found.prediction.total for found in alone)
    together = memory.suggest(GSM8K, argv, need, (best - 1) / GIB)
    assert len(together) == 1
    assert len(together[0].changes) > 1
    assert together[0].prediction.total < best
    assert memory.suggest(GSM8K, argv, need, 0.1) == []  # less than the CUDA context: nothing fits
    tried = []
    assert memory.suggest(GSM8K, argv, need, 0.72, tried.append) == []
    assert len(tried) == 1  # with everything at its smallest it does not fit either


def test_solve_finds_the_largest_that_fits(small_argv):
    need = memory.predict(GSM8K, small_argv, 32)
    vram = (need.total + 0.1 * need.peak) / GIB
    micro, length = memory.solve(GSM8K, small_argv, 32, vram)
    size = micro.changes["per_device_train_batch_size"]
    assert micro.prediction.fits(vram)
    assert size * micro.changes["gradient_accumulation_steps"] == 16
    more = {"per_device_train_batch_size": 2 * size, "gradient_accumulation_steps": 8 // size}
    assert size == 16 or not memory.predict(GSM8K, small_argv, 32, more).fits(vram)
    longest = length.changes["max_completion_length"]
    assert length.prediction.fits(vram)
    assert not memory.predict(GSM8K, small_argv, 32, {"max_completion_length": longest + 16}).fits(vram)


def test_what_cannot_fit_at_all_is_said(capsys, small_argv, monkeypatch):
    # As they answer where nothing fits, after many predictions
    monkeypatch.setattr(memory, "suggest", lambda *args: [])
    monkeypatch.setattr(memory, "solve", lambda *args: (None, None))
    code, out, _ = ask(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--vram", 0.71, "--solve")
    assert code == 1
    assert "Nothing that was tried fits into 0.71 GiB: use a smaller model" in out
    assert "not even the smallest micro-batch fits" in out
    assert "not even the smallest completion fits" in out
    code, out, _ = ask(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--vram", 0.5)
    assert code == 1
    assert "the CUDA context and libraries alone count 0.70 GiB" in out


def test_the_table_is_readable_in_80_columns(capsys, small_argv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    argv = [word if word != "0" else "8" for word in small_argv]  # heldout_size: all phases
    _, out, _ = ask(capsys, GSM8K, *argv, "--prompt_length", 32)
    table = out[out.index("\n") : out.index("load is highest at")]  # without the title, which holds the model's name
    for word in ("generation", "training", "optimizer", "held-out", "optimizer states", "peak"):
        assert word in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_measuring_runs_the_real_steps_in_a_process_of_its_own(capsys, small_argv, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    argv = [*small_argv, "--dtype", "float32", "--bf16", "false"]
    code, out, _ = ask(capsys, GSM8K, *argv, "--prompt_length", 32, "--measure", "--json")
    assert code == 0
    answer = json.loads(out)
    measured = answer["measured"]
    assert measured["device"] == "cpu"
    assert measured["out_of_memory"] is None
    # Beside a CPU's figures stands what is predicted for a CPU, not for the card
    assert measured["predicted"]["training"] == pytest.approx(measured["peaks"]["training"], rel=0.01)
    assert answer["peaks"]["training"] != measured["predicted"]["training"]


def test_two_real_steps_are_measured(small_values):
    phases = []
    recipe = load_recipe(GSM8K, memory.as_arguments({**small_values, "gradient_accumulation_steps": 2}))

    def meter(phase):
        phases.append(phase)
        return contextlib.nullcontext()

    dry_run(recipe, memory.model_config(recipe), 8, fake=False, meter=meter)
    step = [
        "training",
        "scoring",
        "generation",
        "training",
        "optimizer",
    ]  # a step generates within its first micro-batch
    assert [phase for phase in phases if phase != "load"] == [*step, *step]


class FakeDevice:
    """What torch and nvidia-smi say of a CUDA device that is not here."""

    def __init__(self, monkeypatch, capability=(8, 6), smi="5120\n"):
        self.asked = []
        properties = SimpleNamespace(name="Some RTX", uuid="1-2", total_memory=8 * GIB)
        cuda = {
            "is_available": lambda: True,
            "get_device_properties": lambda device: properties,
            "get_device_capability": lambda: capability,
            "mem_get_info": lambda: (4 * GIB, 8 * GIB),
            "memory_reserved": lambda: 2 * GIB,
            "get_per_process_memory_fraction": lambda: self.share,
        }
        self.share, self.smi = 1.0, smi
        for name, function in cuda.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(memory.subprocess, "run", self.run)

    def run(self, command, **kwargs):
        self.asked.append(command)
        if self.smi is None:
            raise FileNotFoundError("nvidia-smi")
        return SimpleNamespace(stdout=self.smi)


def test_free_memory_is_asked_without_a_context_of_our_own(monkeypatch):
    device = FakeDevice(monkeypatch)
    assert memory.available_vram() == (5.0, "free on Some RTX")
    assert device.asked[0][:2] == ["nvidia-smi", "--id=GPU-1-2"]
    device.smi = "81559\n"  # of the whole card, where this is a part of it
    assert memory.available_vram()[0] == 8.0
    for device.smi in (None, "[N/A]\n", ""):
        assert memory.available_vram()[0] == 4.0  # as torch says


def test_what_this_process_holds_already_is_room_for_the_run_in_its_place(monkeypatch):
    device = FakeDevice(monkeypatch)
    assert memory.room_of_this_process() == pytest.approx(4 + 2 + 0.7, abs=1e-6)
    device.share = 0.25
    assert memory.room_of_this_process() == pytest.approx(2 + 0.7, abs=1e-6)


def test_the_cublas_workspace_is_the_devices_and_the_larger_one_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.cublas_workspace() == 32 * 2**20
    FakeDevice(monkeypatch, capability=(8, 6))
    assert memory.cublas_workspace() == 8.125 * 2**20
    FakeDevice(monkeypatch, capability=(12, 0))
    assert memory.cublas_workspace() == 32 * 2**20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--use_vllm", "true"], "use_vllm"),
        (["--gradient_accumulation_steps", "1000000"], "4000000 completions at once; up to 16384"),
        (
            ["--heldout_batch_size", "1000000", "--heldout_size", "8"],
            "heldout_batch_size is 1000000 completions at once",
        ),
        (["--vram", "much"], "--vram much: write a number above 0"),
        (["--vrma", "4"], "vrma is not a field of a recipe; did you mean vram?"),
        (["--vram="], "--vram : write a number above 0"),
        (["--vram"], "--vram has no value; write --vram VALUE"),
        (["--json=1"], "--json takes no value"),
        (["--prompt_length", "1.5"], "--prompt_length 1.5: write a whole number above 0"),
        (["--model_name_or_path", "Qwen/Qwen2.5-0.5"], "without the hub if you mean Qwen/Qwen2.5-0.5B"),
        (["--vram", "-4"], "--vram -4: write a number above 0"),
        (["--max_completion_length", "600"], "exceed the context of 512 tokens"),
        (["--fewshot", "4"], "Give --prompt_length TOKENS"),
        (["--load_in_8bit", "true"], "load_in_8bit: true: the memory prediction does not cover this"),
        (["--use_dora", "true", "--load_in_4bit", "true"], "use_dora: true with load_in_4bit: true"),
        (["--generation_kwargs", "{num_beams: 2}"], "could not be run without the card"),
        (["--max_completion_lenght", "8"], "did you mean max_completion_length?"),
    ],
)
def test_what_cannot_be_predicted_is_one_line_with_the_fix(capsys, small_argv, words, message):
    length = [] if {"--fewshot", "--prompt_length"} & set(words) else ["--prompt_length", "32"]
    argv = list(small_argv)
    for name in words[::2]:
        if name in argv:
            at = argv.index(name)
            del argv[at : at + 2]
    code, out, err = ask(capsys, GSM8K, *argv, *length, *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_other_versions_are_refused_and_named(monkeypatch):
    real = memory.version
    monkeypatch.setattr(memory, "version", lambda name: "9.9.1" if name == "transformers" else real(name))
    with pytest.raises(PredictionError, match=r"transformers 5\.23.*installed are .*transformers 9\.9"):
        memory.predict(GSM8K)


@pytest.mark.skipif(sys.platform != "linux", reason="expandable segments are a Linux matter")
def test_the_allocators_setting_is_the_users_where_there_is_one(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    startup.prefer_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    startup.prefer_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    startup.prefer_expandable_segments()
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_the_longest_prompt_is_counted_where_model_and_rows_are_here(tiny_recipe):
    recipe = load_recipe(tiny_recipe, planned=True)
    length, source = memory.longest_prompt(recipe)
    assert source == "counted"
    assert length == 5  # "17 5 = 12 :"
    assert memory.longest_prompt(load_recipe(GSM8K, planned=True)) == (288, "the longest of gsm8k")


def test_a_prediction_leaves_the_process_as_it_was(small_argv, monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    state = PartialState(cpu=True)
    before = dict(PartialState._shared_state)
    memory.predict(GSM8K, small_argv, 32)
    assert PartialState._shared_state == before
    assert state.device.type == "cpu"
    assert "ACCELERATE_USE_CPU" not in os.environ
    assert torch.ones(2).sum().item() == 2.0


# --- the shipped recipes ----------------------------------------------------------------------------------------------


def header_figure(path):
    found = re.search(r"Predicted peak: ([\d.]+) GiB all told", path.read_text(encoding="utf-8"))
    assert found, f"{path.name} does not say its predicted peak"
    return float(found[1])


@pytest.mark.parametrize("path", EIGHT_GB, ids=[path.stem for path in EIGHT_GB])
def test_every_recipe_says_its_peak_and_the_stored_prediction_fits(path):
    stored = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8"))["recipes"]
    assert header_figure(path) == pytest.approx(stored[path.name]["total"] / GIB, abs=0.006)
    assert header_figure(path) < 8
    assert f"accelerate launch recipes/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", EIGHT_GB, ids=[path.stem for path in EIGHT_GB])
def test_every_recipe_fits_into_8_gb_and_takes_what_its_header_says(path):
    prediction = memory.predict(path)
    assert prediction.fits(8)
    assert prediction.total / GIB == pytest.approx(header_figure(path), rel=0.03)  # the versions differ by 1 %


def test_qlora_of_1_5_b_fits_into_4_gib():
    prediction = memory.predict(ROOT / "recipes" / "gsm8k_1.5b_qlora.yaml")
    assert prediction.fits(4)
    assert prediction.total / GIB == pytest.approx(header_figure(ROOT / "recipes" / "gsm8k_1.5b_qlora.yaml"), rel=0.03)


def test_dry_run_of_one_row_and_one_token(small_values):
    """The smallest there is: nothing to accumulate, no second token, no padding."""
    values = {**small_values, "max_completion_length": 1, "per_device_train_batch_size": 2, "num_generations": 2}
    recipe = load_recipe(GSM8K, memory.as_arguments({**values, "gradient_accumulation_steps": 1}))
    run = dry_run(recipe, memory.model_config(recipe), 1)
    assert set(run.peaks) == {"load", "generation", "scoring", "training", "optimizer"}
    assert run.peak == max(run.peaks.values()) > 0
