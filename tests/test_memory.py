"""Predicted peak memory: against torch's profiler on real steps, the verdict, what would fit, the recipes' own figures."""

import json
import os
import re
import sys

import pytest
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from grpo_math import cli, memory, models
from grpo_math.dry_run import Tracker, build_model, dry_run, quantization_tensors
from grpo_math.memory import GIB, PredictionError
from grpo_math.recipe import load_recipe

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
    assert predicted["training"] == pytest.approx(profiled["training"], rel=0.01)
    if '"bfloat16"' in json.dumps(compared.CPU_CASES[case]):  # whose products on a CPU pack weights, and on CUDA do not
        assert predicted["generation"] <= profiled["generation"]
    else:  # the first and the last token stand for all of them
        assert predicted["generation"] == pytest.approx(profiled["generation"], rel=0.01)


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
    models.embeddings_to_host(model)
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
    with pytest.raises(ValueError, match=r"embeddings_on_host=True and full fine-tuning.*use_peft"):
        memory.predict(GSM8K, argv, 32, {"embeddings_on_host": True, "use_peft": False})


def test_an_adapter_trains_beside_embeddings_on_the_host(tmp_path, tiny_recipe, short):
    from grpo_math.models import make_tiny_tokenizer

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
    vram = (need.total - 0.2 * (need.peak - need.peaks["load"])) / GIB
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
    assert any("per_device_train_batch_size" in found["overrides"] for found in answer["suggestions"])


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


def test_measuring_runs_the_real_step_in_a_process_of_its_own(capsys, small_argv, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # The prediction is of a CUDA device, where the LM head takes less than on a CPU
    code, out, _ = ask(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--measure", "--json")
    assert code == 0
    measured = json.loads(out)["measured"]
    assert measured["device"] == "cpu"
    assert measured["out_of_memory"] is None
    assert measured["peaks"]["training"] > json.loads(out)["peaks"]["load"]


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
    length = [] if "--fewshot" in words else ["--prompt_length", "32"]
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
    memory.prefer_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    memory.prefer_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    memory.prefer_expandable_segments()
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
