"""Predicted peak memory: of options, versions and the shipped recipes."""

import json
import os
import re
from importlib import metadata

import pytest
import torch
from conftest import GSM8K, ROOT
from transformers import AutoModelForCausalLM

from benchmarks.plain import eight_gb_recipes
from grpo_math import memory
from grpo_math.errors import PredictionError
from grpo_math.memory import GIB
from grpo_math.recipe import load_recipe

EIGHT_GB = eight_gb_recipes()


def test_frozen_reference_model_is_counted(small_values, small_argv):
    values = {"use_peft": False, "dtype": "float32", "bf16": False, "ref_clip_high": 1.0, "ref_clip_low": 1.0}
    without = memory.predict(GSM8K, small_argv, 32, {**values, "ref_clip_high": None, "ref_clip_low": None})
    clipped = memory.predict(GSM8K, small_argv, 32, values)
    with_kl = memory.predict(GSM8K, small_argv, 32, {**values, "beta": 0.1})
    weights = without.parts["training"]["weights"]
    assert clipped.parts["training"]["weights"] == pytest.approx(2 * weights, rel=1e-3)
    assert with_kl.parts["training"]["weights"] == pytest.approx(2 * weights, rel=1e-3)
    # With an adapter the reference is the same model without the adapter
    adapter = memory.predict(GSM8K, small_argv, 32, {"ref_clip_high": 1.0})
    assert adapter.parts["training"]["weights"] == memory.predict(GSM8K, small_argv, 32).parts["training"]["weights"]


def test_open_precision_is_planned_as_bfloat16(small_argv):
    assert load_recipe(GSM8K, [*small_argv, "--bf16", "null"], planned=True).training.bf16 is True
    assert load_recipe(GSM8K, [*small_argv, "--bf16", "false"], planned=True).training.bf16 is False


def test_paged_and_8_bit_optimizer_states_are_distinguished(small_argv):
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
    # transformers' Trainer keeps embeddings' states at 32 bits; a block of 256 values has two float32 scales
    assert states[1] == pytest.approx(8 * embeddings + (2 + 8 / 256) * (parameters - embeddings), rel=0.02)
    assert paged.paged > 0
    assert states[2] == pytest.approx(states[1] - paged.paged, rel=0.02)


def installed(monkeypatch, **versions):
    """Makes importlib.metadata report these versions."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))


def test_untested_versions_are_a_warning_given_once(monkeypatch, caplog):
    installed(monkeypatch, transformers="9.9.1")
    with caplog.at_level("WARNING"):
        memory.check_versions()
        memory.check_versions()
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("grpo_math.memory")]
    assert re.search(r"installed versions .*transformers 9\.9.*tested with .*transformers 5\.23", message)


def test_versions_outside_of_the_own_requirements_are_refused(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["trl<1.17,>=1.16", 'pytest>=8; extra == "dev"'])
    memory.check_versions()
    installed(monkeypatch, trl="1.17.0")
    with pytest.raises(PredictionError, match=r"trl 1\.17\.0; grpo-math requires trl<1\.17,>=1\.16") as refused:
        memory.predict(GSM8K)
    assert 'pip install "trl<1.17,>=1.16"' in str(refused.value)


def test_a_missing_package_is_named(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError("bitsandbytes")

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(PredictionError, match="needs the package bitsandbytes: pip install it"):
        memory.check_versions()


def test_a_checkout_without_package_metadata_is_not_refused(monkeypatch):
    queried = []

    def requires(name):
        queried.append(name)
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    memory.check_versions()
    assert queried == ["grpo-math"]


def test_longest_prompt_is_counted_from_local_model_and_rows(tiny_recipe):
    recipe = load_recipe(tiny_recipe, planned=True)
    length, source = memory.longest_prompt(recipe)
    assert source == "counted"
    assert length == 5  # "17 5 = 12 :"
    assert memory.longest_prompt(load_recipe(GSM8K, planned=True)) == (288, "the longest of gsm8k")


def test_prediction_restores_process_state(small_argv, monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    state = PartialState(cpu=True)
    before = dict(PartialState._shared_state)
    memory.predict(GSM8K, small_argv, 32)
    assert PartialState._shared_state == before
    assert state.device.type == "cpu"
    assert "ACCELERATE_USE_CPU" not in os.environ
    assert torch.ones(2).sum().item() == 2.0


def header_figure(path):
    found = re.search(r"Predicted peak:? ([\d.]+) GiB", path.read_text(encoding="utf-8"))
    assert found, f"{path.name} does not state its predicted peak"
    return float(found[1])


@pytest.mark.parametrize("path", EIGHT_GB, ids=[path.stem for path in EIGHT_GB])
def test_every_recipe_states_its_stored_peak_which_fits_its_card(path):
    stored = json.loads((ROOT / "benchmarks" / "results" / "predicted.json").read_text(encoding="utf-8"))["recipes"]
    assert header_figure(path) == pytest.approx(stored[path.name]["total"] / GIB, abs=0.006)
    assert header_figure(path) < (4 if path.stem == "gsm8k_1.5b_qlora" else 8)
    assert f"accelerate launch recipes/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", EIGHT_GB, ids=[path.stem for path in EIGHT_GB])
def test_every_recipe_fits_its_card_with_the_peak_in_its_header(path):
    prediction = memory.predict(path)
    assert prediction.fits(4 if path.stem == "gsm8k_1.5b_qlora" else 8)
    assert prediction.total / GIB == pytest.approx(header_figure(path), rel=0.03)  # tested versions differ by 1 %
