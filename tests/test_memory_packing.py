"""The prediction runs the packed step: how many prompts share a micro-batch, and that packing never needs more memory."""

import json
from types import SimpleNamespace

import pytest
from conftest import GSM8K, ROOT

from benchmarks.plain import eight_gb_recipes
from grpo_math import memory
from grpo_math.memory.patches import most_prompts_of_a_micro_batch

PATHS = eight_gb_recipes()


def arguments(rows, group, parts, accumulation, mixes=None):
    return SimpleNamespace(
        per_device_train_batch_size=rows,
        num_generations=group,
        steps_per_generation=parts,
        gradient_accumulation_steps=accumulation,
        row_mixing_option=lambda: mixes,
    )


@pytest.mark.parametrize(
    ("args", "prompts"),
    [
        (arguments(8, 8, 4, 4), 1),
        (arguments(4, 8, 4, 4), 1),  # a group spans two micro-batches
        (arguments(16, 4, 4, 4), 4),
        (arguments(6, 4, 4, 4), 3),  # a whole group, and parts of two
        (arguments(6, 4, 2, 2), 3),
        (arguments(8, 8, 8, 4), 8),  # the generation is shuffled over two optimizer steps
        (arguments(8, 2, 2, 2, mixes="loss_type='bnpo'"), 8),  # TRL's own micro-batches
    ],
)
def test_prompts_of_a_micro_batch_are_counted_for_the_worst_case(args, prompts):
    assert most_prompts_of_a_micro_batch(args) == prompts


def test_the_packed_step_is_predicted(small_argv):
    packed = memory.predict(GSM8K, small_argv, 32)
    unpacked = memory.predict(GSM8K, small_argv, 32, {"pack_groups": False})
    assert packed.peaks["training"] < unpacked.peaks["training"]
    assert packed.peaks["generation"] == unpacked.peaks["generation"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_packing_needs_no_more_memory_for_a_shipped_recipe(path):
    """Against the stored prediction, which another slow test holds to the code."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "predicted.json").read_text(encoding="utf-8"))["recipes"]
    unpacked = memory.predict(path, changes={"pack_groups": False})
    packed = stored[path.name]["peaks"]
    assert max(packed.values()) <= 1.001 * unpacked.peak
    assert packed["training"] <= 1.001 * unpacked.peaks["training"]
