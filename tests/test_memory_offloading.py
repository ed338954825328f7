"""`activation_offloading`: the stand-in of TRL's copies computes the same gradients, and its prediction is lower."""

import contextlib

import pytest
import torch
from conftest import GSM8K
from trainer_fixtures import train

from grpo_math import memory
from grpo_math.memory.host_activations import HostActivations
from grpo_math.memory.step import run_one_step
from grpo_math.memory.tracker import Tracker
from grpo_math.recipe import load_recipe
from grpo_math.trainer import offloading


def test_gradients_are_the_same_and_activations_leave_the_card():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(12)))
    inputs = torch.randn(1, 64).expand(512, 64)  # a broadcast tensor

    def run(offload):
        model.zero_grad()
        tracker = Tracker(1, None)
        context = HostActivations(model, tracker)
        with tracker:
            with context if offload else torch.enable_grad():
                hidden = inputs
                for layer in model:
                    hidden = torch.tanh(layer(hidden)).t().contiguous().t()
            between = tracker.live
            hidden.square().mean().backward()
        assert (context.saved, context.forward_stash, context.backward_stash) == ({}, {}, {})
        return between, [parameter.grad.clone() for parameter in model.parameters()]

    (kept, expected), (left, found) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert left < kept / 2


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True, "entropy_coef": 0.01}])
def test_a_training_step_has_the_same_gradient(tmp_path, monkeypatch, options):
    contexts = []

    def to_the_host(model, active):
        if not active:
            return contextlib.nullcontext()
        contexts.append(HostActivations(model, Tracker(1, None)))
        return contexts[-1]

    stock = train(True, tmp_path, max_steps=2, **options)
    monkeypatch.setattr(offloading, "activation_offloading", to_the_host)
    monkeypatch.setattr(offloading, "check_accelerator", lambda active: None)
    ours = train(True, tmp_path, max_steps=2, activation_offloading=True, **options)
    assert len(contexts) == 4  # two micro-batches in two steps
    assert all(context.number for context in contexts)
    assert all(torch.equal(a, b) for a, b in zip(ours.gradients, stock.gradients, strict=True))


def test_without_an_accelerator_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(ValueError, match=r"activation_offloading=True .* no accelerator"):
        train(True, tmp_path, activation_offloading=True)
    with pytest.raises(ValueError, match="activation_offloading='yes'"):
        train(True, tmp_path, activation_offloading="yes")


def test_the_predicted_training_phase_is_lower(small_shape):
    values = {
        "model_name_or_path": small_shape,
        "bf16": False,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "heldout_size": 0,
        "max_completion_length": 48,
    }
    steps = {}
    for offload in (False, True):
        recipe = load_recipe(GSM8K, memory.as_arguments({**values, "activation_offloading": offload}))
        steps[offload] = run_one_step(recipe, memory.model_config(recipe), 32)
    assert steps[True].peaks["training"] < steps[False].peaks["training"]
    assert steps[True].parts["training"]["activations"] < steps[False].parts["training"]["activations"] / 2
    assert steps[True].peaks["optimizer"] == pytest.approx(steps[False].peaks["optimizer"], rel=0.01)
