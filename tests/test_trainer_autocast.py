"""One autocast for a whole generation: TRL's completions, each weight cast once, and adapters generate as they are trained."""

import pytest
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_fixtures import ALL_OFF, live_reward, tiny_model, train
from transformers import TrainerCallback

from grpo_math.trainer import GRPOMathTrainer

ONE_AUTOCAST = ALL_OFF | {"cast_weights_once": True}
BF16 = {"bf16": True, "reward_funcs": live_reward}


class Casts(TorchDispatchMode):
    """Counts how often a weight of a shape is cast to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16:
            self.count += args[0].shape == self.shape
        return func(*args, **kwargs)


def test_completions_are_trls_and_follow_the_optimizer(tmp_path):
    """Sampled after each of two updates of the weights, whose casts are not kept across them."""
    options = {**BF16, "max_steps": 3, "learning_rate": 0.1}
    theirs = train(False, tmp_path, **options)
    ours = train(True, tmp_path, **ONE_AUTOCAST, **options)
    assert len(set(theirs._logs["completion"])) > 8  # of the third step
    assert list(ours._logs["completion"]) == list(theirs._logs["completion"])
    assert not torch.equal(theirs.model.lm_head.weight, tiny_model().lm_head.weight)


@pytest.mark.parametrize("once", [True, False])
def test_a_weight_is_cast_once_in_a_generation(tmp_path, monkeypatch, once):
    counts, generate = [], GRPOMathTrainer._generate_single_turn

    def counted(self, *args, **kwargs):
        with Casts(self.model.model.layers[1].mlp.down_proj.weight.shape) as casts:
            found = generate(self, *args, **kwargs)
        counts.append((casts.count, max(map(len, found[0]))))
        return found

    monkeypatch.setattr(GRPOMathTrainer, "_generate_single_turn", counted)
    train(True, tmp_path, **BF16, max_steps=2, cast_weights_once=once)
    layers = 2
    for casts, tokens in counts:
        assert tokens > 1
        assert casts == (layers if once else layers * tokens)


class AutocastDuringGeneration(TrainerCallback):
    """Notes for each forward of the base model whether autocast is on, by whether a gradient is wanted."""

    def __init__(self):
        self.on = {False: set(), True: set()}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        layer = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
        layer.register_forward_pre_hook(
            lambda *_: self.on[torch.is_grad_enabled()].add(torch.is_autocast_enabled("cpu"))
        )


def adapter_run(tmp_path, model, **options):
    noted = AutocastDuringGeneration()
    kwargs = {"peft_config": LoraConfig(r=4, init_lora_weights=False), "callbacks": [noted]}
    train(True, tmp_path, model=model, trainer_kwargs=kwargs, **BF16, **options)
    return noted.on


def test_an_adapter_generates_under_the_autocast_of_its_training(tmp_path):
    assert adapter_run(tmp_path, tiny_model().bfloat16()) == {False: {True}, True: {True}}
    assert adapter_run(tmp_path, tiny_model().bfloat16(), **ALL_OFF) == {False: {False}, True: {True}}


def test_an_adapter_on_a_float32_base_generates_without_autocast(tmp_path):
    """Its frozen weights would be cast at every token."""
    assert adapter_run(tmp_path, tiny_model()) == {False: {False}, True: {True}}
    with pytest.raises(ValueError, match=r"cast_weights_once=True is not exact here.*embed_tokens.*Leave"):
        adapter_run(tmp_path, tiny_model(), cast_weights_once=True)
