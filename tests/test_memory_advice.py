"""Advice: which savings apply to a recipe, the smallest changes that fit, and the largest micro-batch and completion."""

import pytest
from conftest import GSM8K
from transformers import AutoConfig, LlamaConfig

from grpo_math import memory
from grpo_math.memory import GIB, memory_savings
from grpo_math.memory.advice import with_micro_batch
from grpo_math.memory.predict import merged_overrides
from grpo_math.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("kept_predictions")


def test_adapter_is_not_advised_beside_an_adapter_nor_4_bit_for_a_gguf_file(small_values, saved_adapter, tmp_path):
    def advised(model, **changes):
        values = {**small_values, "model_name_or_path": model, "use_peft": False, **changes}
        return {name for saving in memory_savings(load_recipe(GSM8K, memory.as_arguments(values)))
                for level in saving.levels for name in level}  # fmt: skip

    assert {"use_peft", "load_in_4bit", "optim"} <= advised(small_values["model_name_or_path"])
    assert advised(saved_adapter) & {"use_peft", "load_in_4bit", "optim"} == {"load_in_4bit"}
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert advised(tmp_path / "model.gguf", use_peft=True) & {"use_peft", "load_in_4bit"} == set()


def test_generation_batch_size_is_advised_where_the_recipe_sets_it(small_values):
    values = {**small_values, "generation_batch_size": 16, "gradient_accumulation_steps": 8, "use_peft": False}
    argv = memory.as_arguments({name: value for name, value in values.items() if name != "use_cpu"})
    savings = memory_savings(load_recipe(GSM8K, argv, planned=True))
    for saving in savings:
        for level in saving.levels:
            made = load_recipe(GSM8K, merged_overrides(argv, level), planned=True).training  # which TRL takes
            rows = made.generation_batch_size
            assert rows == level.get("generation_batch_size", 16)
    assert {"generation_batch_size": 8} in [level for saving in savings for level in saving.levels]


@pytest.mark.parametrize("parts", [{}, {"steps_per_generation": 8}, {"steps_per_generation": 4}])
def test_smaller_micro_batches_keep_the_rows_of_a_generation(small_values, parts):
    argv = memory.as_arguments({**small_values, "gradient_accumulation_steps": 8, **parts})
    recipe = load_recipe(GSM8K, argv)
    for size in (1, 2):
        changed = load_recipe(GSM8K, merged_overrides(argv, with_micro_batch(recipe, size))).training
        assert changed.generation_batch_size == recipe.training.generation_batch_size
        assert changed.per_device_train_batch_size * changed.gradient_accumulation_steps == 32


def test_advised_accumulation_does_not_rule_out_other_savings(tmp_path, small_argv):
    """With a wide adapter, micro-batches of one row put its gradients beside the activations."""
    config = LlamaConfig(vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
                         tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)  # fmt: skip
    config.save_pretrained(tmp_path)
    changes = {"model_name_or_path": tmp_path, "lora_r": 256, "gradient_accumulation_steps": 1, "num_generations": 2,
               "per_device_train_batch_size": 2, "optim": "adamw_8bit"}  # fmt: skip
    argv = merged_overrides(small_argv, changes)
    need = memory.predict(GSM8K, argv, 8)
    four_bits = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4"}
    enough = memory.predict(GSM8K, argv, 8, four_bits)
    assert enough.total < need.total
    found = memory.suggest(GSM8K, argv, need, enough.total / GIB)
    assert four_bits in [suggestion.changes for suggestion in found]


def test_savings_are_combined_when_none_alone_is_enough(small_argv):
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


def test_solve_finds_the_largest_that_fits(small_argv, shallow_shape, tmp_path):
    shape = AutoConfig.from_pretrained(shallow_shape, max_position_embeddings=512)  # fewer lengths to search
    shape.save_pretrained(tmp_path)
    small_argv[small_argv.index("--model_name_or_path") + 1] = str(tmp_path)
    small_argv += ["--use_peft", "false", "--dtype", "float32"]  # a third of an adapter's operations
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
