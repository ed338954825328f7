"""Transposed weights: the same products, for few rows without gradients, and the layers as they were afterwards."""

import pytest
import torch
from peft import LoraConfig
from trainer_fixtures import ALL_OFF, tiny_model, train

from grpo_math.trainer import cpu
from grpo_math.trainer.cpu import FEWEST, MOST, transposed_weights


def layers(bias=True):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias), torch.nn.ReLU(), torch.nn.Linear(40, 24, bias=bias))


def products(model, *inputs):
    """Outputs, and with how many layers' transposed copies."""
    with transposed_weights(model), torch.no_grad():
        outputs = [model(x) for x in inputs]
        return outputs, sum(getattr(vars(m).get("forward"), "weight", None) is not None for m in model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "copies"), [(FEWEST - 1, 0), (FEWEST, 2), (16, 2), (MOST, 2), (MOST + 1, 0)])
def test_few_rows_are_multiplied_with_a_copy(bias, rows, copies):
    model, x = layers(bias), torch.randn(rows, 1, 24)
    (found,), copied = products(model, x)
    torch.testing.assert_close(found, model(x))
    assert copied == copies


def test_layers_are_as_they_were_also_after_an_error():
    model = layers()
    own = model[2].forward = lambda x: x  # somebody's own is left alone
    with pytest.raises(RuntimeError, match="shapes"), transposed_weights(model), torch.no_grad():
        model(torch.randn(8, 1, 3))
    assert "forward" not in vars(model[0])
    assert model[2].forward is own


def test_weights_of_16_bits_gradients_and_autocast_are_left_alone():
    x = torch.randn(8, 24)
    with transposed_weights(half := layers().bfloat16()):
        assert "forward" not in vars(half[0])
    model = layers()
    with transposed_weights(model):
        model(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        assert model[0].forward.weight is None
    assert all(p.grad is not None for p in model.parameters())


def test_a_copy_is_made_anew_after_the_weights_have_changed():
    model, x = layers(), torch.randn(8, 24)
    products(model, x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.testing.assert_close(products(model, x)[0][0], model(x))


@pytest.mark.parametrize("adapter", [False, True])
def test_the_trainer_generates_the_same_greedy_completions(tmp_path, monkeypatch, adapter):
    copied = []
    call = cpu._Transposed.__call__

    def counted(layer, x):
        output = call(layer, x)
        copied.append(layer.weight is not None)
        return output

    monkeypatch.setattr(cpu._Transposed, "__call__", counted)
    kwargs = {"peft_config": LoraConfig(r=4, init_lora_weights=False)} if adapter else {}
    greedy = {"generation_kwargs": {"do_sample": False}, "trainer_kwargs": kwargs, "max_completion_length": 20}
    theirs = train(False, tmp_path, **greedy)
    assert not copied
    ours = train(True, tmp_path, **greedy, **(ALL_OFF | {"transpose_weights": True}))
    assert any(copied)
    assert list(ours._logs["completion"]) == list(theirs._logs["completion"])
    assert all("forward" not in vars(m) for m in ours.model.modules() if type(m) is torch.nn.Linear)


def test_a_model_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "runs_here", lambda model: False)
    with pytest.raises(ValueError, match=r"transpose_weights=True is not exact here: the model is not on a CPU"):
        train(True, tmp_path, model=tiny_model(), transpose_weights=True)
