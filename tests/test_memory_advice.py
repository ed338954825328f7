"""Advice: which savings apply to a recipe, the smallest changes that fit, and the largest micro-batch and completion."""

import pytest
from conftest import GSM8K

from grpo_math import memory
from grpo_math.memory import GIB, advice, memory_savings
from grpo_math.memory.advice import with_micro_batch
from grpo_math.memory.predict import merged_overrides, planned_recipe
from grpo_math.recipe import load_recipe


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


# --- the search, with memory by a formula instead of a step ---------------------------------------------------------------

MIB = 2**20
FOUR_BITS = {"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4"}


def memory_of(recipe, prompt_length):
    """Bytes of each phase: what a row's token needs grows with everything that a saving changes."""
    args, model = recipe.training, recipe.model
    weights = 100 * MIB * (0.2 if model.load_in_4bit else 0.5 if model.dtype == "bfloat16" else 1)
    trained = (model.lora_r if model.use_peft else 100) * MIB  # of gradients
    states = trained * (0.5 if "8bit" in args.optim else 2)
    tokens = args.per_device_train_batch_size * (prompt_length + args.max_completion_length)
    activations = tokens * MIB * (0.25 if args.gradient_checkpointing else 1)
    accumulated = trained if args.gradient_accumulation_steps > 1 else 0
    cache = tokens * args.steps_per_generation * MIB // 64
    return {
        "load": weights,
        "generation": weights + states + cache,
        "scoring": weights + states + tokens * MIB // 64,
        "training": weights + states + accumulated + activations,
        "optimizer": weights + states + trained,
        "held-out": weights + states,
    }


@pytest.fixture
def by_formula(monkeypatch):
    """The advice and the test predict with [`memory_of`]."""

    def predict(path, argv=(), prompt_length=None, changes=None):
        recipe = planned_recipe(path, merged_overrides(argv, changes or {}))
        peaks = {phase: int(size) for phase, size in memory_of(recipe, prompt_length).items()}
        return memory.Prediction(peaks, {}, {}, 0, "model", prompt_length, "given", dict(changes or {}))

    monkeypatch.setattr(advice, "predict", predict)
    return predict


def test_advised_accumulation_does_not_rule_out_other_savings(by_formula, small_argv):
    """With a wide adapter, micro-batches of one row put its gradients beside the activations."""
    changes = {"lora_r": 256, "gradient_accumulation_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2}
    argv = merged_overrides(small_argv, changes)
    need = by_formula(GSM8K, argv, 8)
    halved = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert by_formula(GSM8K, argv, 8, halved).peaks["training"] > need.peaks["training"]
    enough = by_formula(GSM8K, argv, 8, FOUR_BITS)
    assert enough.total < need.total
    found = memory.suggest(GSM8K, argv, need, enough.total / GIB)
    assert FOUR_BITS in [suggestion.changes for suggestion in found]


def test_the_mildest_level_of_each_saving_that_is_enough_alone_is_suggested(by_formula, small_argv):
    need = by_formula(GSM8K, small_argv, 32)
    halved = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    found = memory.suggest(GSM8K, small_argv, need, by_formula(GSM8K, small_argv, 32, halved).total / GIB)
    assert [suggestion.changes for suggestion in found] == [halved, FOUR_BITS]


def test_savings_are_combined_when_none_alone_is_enough(by_formula, small_argv):
    argv = [*small_argv, "--gradient_checkpointing", "false", "--use_peft", "false", "--dtype", "float32"]
    need = by_formula(GSM8K, argv, 32)
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


@pytest.mark.parametrize("spare", [0.05, 0.3, 2.0])
def test_solve_finds_the_largest_that_fits(by_formula, small_argv, spare):
    need = by_formula(GSM8K, small_argv, 32)
    vram = (need.total + spare * need.peak) / GIB
    micro, length = memory.solve(GSM8K, small_argv, 32, vram)
    size = micro.changes["per_device_train_batch_size"]
    assert micro.prediction.fits(vram)
    assert size * micro.changes["gradient_accumulation_steps"] == 16
    more = {"per_device_train_batch_size": 2 * size, "gradient_accumulation_steps": 8 // size}
    assert size == 16 or not by_formula(GSM8K, small_argv, 32, more).fits(vram)
    longest = length.changes["max_completion_length"]
    assert length.prediction.fits(vram)
    longer = {"max_completion_length": longest + 16}
    assert longest == 480 or not by_formula(GSM8K, small_argv, 32, longer).fits(vram)  # the context is 512
