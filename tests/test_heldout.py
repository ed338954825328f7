"""Held-out accuracy of a run: the same weights answer the same before and after training."""

import json

import pytest
from conftest import run

pytestmark = pytest.mark.usefixtures("no_local_data")


@pytest.mark.parametrize(
    "precision",
    [
        ["--bf16", "true"],
        ["--bf16", "true", "--gradient_checkpointing", "true"],
        ["--dtype", "bfloat16", "--bf16", "true", "--use_peft", "true", "--gradient_checkpointing", "true"],
    ],
    ids=["float32 weights under autocast", "gradient checkpointing", "a LoRA adapter on a bf16 base"],
)
def test_a_run_that_moves_no_weight_measures_no_change(tiny_recipe, tmp_path, precision):
    """Every completion is the same before and after, so precision, cache and random state are."""
    code = run(
        tiny_recipe, tmp_path, "--learning_rate", "0", "--max_steps", "1", "--heldout_size", "60",
        "--heldout_generations", "4", "--logging_steps", "1", "--save_strategy", "no", *precision,
    )  # fmt: skip
    assert code == 0
    before, after = (json.loads((tmp_path / f"heldout_{when}.json").read_text()) for when in ("before", "after"))
    assert before == after
