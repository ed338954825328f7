"""LoRA layers without PEFT's float32 copies of their inputs: the same bits, and casts outside of the training step."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from trainer_fixtures import STOCK_GENERATION, tiny_model, train

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.0}


def lora_layers(model):
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def float32_adapter(trainer_model):
    for parameter in trainer_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer_model


def adapted(**options):
    """A bfloat16 base with a float32 adapter, as `load_model` and TRL make it."""
    torch.manual_seed(1)
    return float32_adapter(PeftModel(tiny_model().bfloat16(), LoraConfig(**{**LORA, **options})))


def run(tmp_path, model=None, **options):
    """Trains with bfloat16 autocast; the dtypes that the first adapter matrix of the last layer got, by gradient mode."""
    model, seen = model or adapted(), {True: set(), False: set()}

    def note(module, arguments):
        seen[torch.is_grad_enabled()].add(arguments[0].dtype)

    lora_layers(model)[-1].lora_A["default"].register_forward_pre_hook(note)
    trainer = train(True, tmp_path, model, bf16=True, learning_rate=0.05, **{**STOCK_GENERATION, **options})
    return trainer, seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_the_same_bits(tmp_path, checkpointing):
    # Generation every second step, each batch used twice: old log-probabilities are scored too
    options = {"gradient_checkpointing": checkpointing, "steps_per_generation": 4, "num_iterations": 2, "max_steps": 3}
    ours, seen = run(tmp_path, **options)
    theirs, seen_with_casts = run(tmp_path, skip_input_casts=False, **options)
    assert seen[True] == {torch.bfloat16}
    assert seen_with_casts[True] == {torch.float32}
    assert [log["loss"] for log in ours.state.log_history[:3]] == [log["loss"] for log in theirs.state.log_history[:3]]
    for mine, yours in zip(ours.gradients, theirs.gradients, strict=True):
        assert mine.norm() > 0
        assert torch.equal(mine, yours)


def test_casts_are_back_after_training_and_after_an_error(tmp_path):
    trainer, _ = run(tmp_path)
    layers = lora_layers(trainer.model)
    assert layers
    assert all(layer.cast_input_dtype_enabled for layer in layers)
    trainer.model.generate(input_ids=torch.tensor([[4, 5]]), max_new_tokens=1)  # without autocast: needs the casts
    with (
        pytest.raises(RuntimeError),
        trainer._input_casts.training_step(),
        trainer._input_casts.off(until_backward=True),
    ):
        raise RuntimeError
    assert all(layer.cast_input_dtype_enabled for layer in layers)


@pytest.mark.parametrize(
    ("adapter", "options", "reason"),
    [
        ({"lora_dropout": 0.1}, {"bf16": True, "pack_groups": False}, "lora_dropout is not 0"),
        ({"use_dora": True}, {"bf16": True}, "is not plain LoRA"),
        ({}, {"bf16": False}, "without mixed precision"),
        (None, {"bf16": True}, "the model has no adapter"),
    ],
)
def test_where_casts_are_needed_true_is_an_error(tmp_path, adapter, options, reason):
    model = tiny_model() if adapter is None else adapted(**adapter)
    with pytest.raises(ValueError, match=f"skip_input_casts=True is not exact here.*{reason}"):
        train(True, tmp_path, model, skip_input_casts=True, max_steps=0, **options)
