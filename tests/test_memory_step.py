"""One step on fake tensors: it takes what torch's profiler records of a real one, storage by storage."""

import contextlib
import gc
import json

import pytest
import torch
from conftest import GSM8K
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from trl import ModelConfig

from benchmarks import memory as compared
from grpo_math import memory, models
from grpo_math.memory import step
from grpo_math.memory.model import build_model, quantization_tensors
from grpo_math.memory.step import make_prompts, run_one_step
from grpo_math.recipe import load_recipe


@pytest.mark.parametrize("case", compared.CPU_CASES)
def test_prediction_is_within_one_percent_of_profiled_peak(case, small_shape):
    predicted, profiled = compared.compare_on_cpu(case, small_shape)
    assert max(predicted.values()) == pytest.approx(max(profiled.values()), rel=0.01)
    for phase in ("scoring", "training"):
        assert predicted[phase] == pytest.approx(profiled[phase], rel=0.01)
    if '"bfloat16"' in json.dumps(compared.CPU_CASES[case]):  # matrix products pack weights on a CPU, unlike on CUDA
        assert predicted["generation"] <= profiled["generation"]
    else:  # two forward passes stand for all, and the batch left from the step before is not counted
        assert predicted["generation"] == pytest.approx(profiled["generation"], rel=0.02)


def test_a_sliding_window_bounds_the_cache(tmp_path, small_values):
    # 32 + 24 tokens exceed the window of 40 while generating, in one of two layers
    config = Gemma3TextConfig(**compared.SHAPE, head_dim=32, query_pre_attn_scalar=32, pad_token_id=0, sliding_window=40,
                              layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    config.save_pretrained(tmp_path)
    values = {**small_values, "model_name_or_path": tmp_path, "gradient_accumulation_steps": 2, "heldout_size": 8}
    recipe = load_recipe(GSM8K, memory.as_arguments({**values, **compared.CPU_CASES["LoRA, checkpointing"]}))
    predicted = run_one_step(recipe, config, 32, cuda=False).peaks
    profiled = memory.profiled_peaks(recipe, config, 32)
    assert max(predicted.values()) == pytest.approx(max(profiled.values()), rel=0.01)
    for phase in ("generation", "held-out"):
        assert predicted[phase] == pytest.approx(profiled[phase], rel=0.02)


def test_measured_completions_have_full_length(tmp_path, small_values, monkeypatch):
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
    run_one_step(load_recipe(GSM8K, memory.as_arguments(values)), config, 5, fake_tensors=False)
    assert shapes == [205, 205, 205]  # though random weights draw the end token every eighth time


def test_prompts_differ_as_far_as_the_vocabulary_allows():
    prompts = make_prompts(3, 60, 2, vocabulary=7)
    assert [len(prompt) for prompt in prompts] == [3] * 2 + [
        2
    ] * 58  # the first group is longer, so that there is padding
    assert len({tuple(prompt) for prompt in prompts[2:]}) == 5 * 5  # 29 groups, but two tokens of five words each
    assert prompts[2] == prompts[3] != prompts[4]
    assert all(2 <= token < 7 for prompt in prompts for token in prompt)


def test_fake_4bit_weights_have_the_bytes_of_a_real_load(small_values, tmp_path):
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


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32", "bf16": False},
        {"dtype": "float32", "bf16": False, "beta": 0.1, "use_peft": False},
        {"dtype": "bfloat16", "bf16": True, "ref_clip_high": 1.0, "load_in_4bit": True},
    ],
    ids=["trained further", "with a frozen copy", "4-bit, with a frozen copy"],
)
def test_saved_adapter_is_predicted_with_its_own_rank(changes, saved_adapter, small_values):
    values = {**small_values, "model_name_or_path": saved_adapter, "gradient_accumulation_steps": 2, **changes}
    recipe = load_recipe(GSM8K, memory.as_arguments(values))
    config = memory.model_config(recipe)
    predicted, profiled = run_one_step(recipe, config, 32, cuda=False), memory.profiled_peaks(recipe, config, 32)
    assert predicted.peak == pytest.approx(max(profiled.values()), rel=0.01)
    assert predicted.peaks["optimizer"] == pytest.approx(profiled["optimizer"], rel=0.01)
    linear = 2 * sum(
        a + b for a, b in [(128, 128), (128, 64), (128, 64), (128, 128), (128, 320), (128, 320), (320, 128)]
    )
    assert predicted.parts["training"]["adapter"] == 4 * 64 * linear


def test_measuring_runs_two_real_steps(small_values):
    phases = []
    recipe = load_recipe(GSM8K, memory.as_arguments({**small_values, "gradient_accumulation_steps": 2}))

    def meter(phase):
        phases.append(phase)
        return contextlib.nullcontext()

    run_one_step(recipe, memory.model_config(recipe), 8, fake_tensors=False, meter=meter)
    expected = [
        "training",
        "scoring",
        "generation",
        "training",
        "optimizer",
    ]  # TRL generates within the first micro-batch of a step
    assert [phase for phase in phases if phase != "load"] == [*expected, *expected]


def test_one_row_of_one_token_is_predicted(small_values):
    """The smallest step: nothing to accumulate, no second token, no padding."""
    values = {**small_values, "max_completion_length": 1, "per_device_train_batch_size": 2, "num_generations": 2}
    recipe = load_recipe(GSM8K, memory.as_arguments({**values, "gradient_accumulation_steps": 1}))
    step = run_one_step(recipe, memory.model_config(recipe), 1)
    assert set(step.peaks) == {"load", "generation", "scoring", "training", "optimizer"}
    assert step.peak == max(step.peaks.values()) > 0


def test_a_step_leaves_earlier_objects_out_of_garbage_collection_and_gives_them_back():
    gc.unfreeze()
    with step._frozen_heap():
        assert gc.get_freeze_count() > 1000
        with step._frozen_heap():  # somebody else's stays
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
