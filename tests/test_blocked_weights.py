"""Linear layers in oneDNN's layout: the same products, only where they help, and nothing left behind."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_decoding import batch, config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_fixtures import tiny_model, train

from grpo_math import blocked_weights as blocked
from grpo_math.blocked_weights import blocked_weights, layers_to_block
from grpo_math.decoding import decode

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


class Products(TorchDispatchMode):
    """Rows of every blocked product, and how many copies are made."""

    def __init__(self):
        super().__init__()
        self.rows, self.copies = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.rows.append(args[0].numel() // args[0].size(-1))
        self.copies += func is torch.ops.mkldnn._reorder_linear_weight.default
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(blocked, "SMALLEST", 1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 1), (15, 1), (2, 7), (33,)], ids=str)
@torch.no_grad()
def test_a_layer_gives_the_same_products(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 70, bias=bias), torch.randn(*shape, 48)
    expected = layer(x)
    with blocked_weights(layer), Products() as products:
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer(input=x), expected, rtol=1e-5, atol=1e-5)
    assert products.rows == [expected.numel() // 70] * 2
    assert products.copies == 1


@torch.no_grad()
def test_a_view_with_gaps_is_multiplied_alike():
    layer, x = nn.Linear(48, 70), torch.randn(8, 5, 48)[:, -1:]
    expected = layer(x)
    with blocked_weights(layer), Products() as products:
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert products.rows == [8]


@torch.no_grad()
def test_few_rows_read_the_plain_weights_and_make_no_copy():
    layer = nn.Linear(48, 70)
    with blocked_weights(layer), Products() as products:
        for rows in (0, 1, 3):
            assert layer(torch.randn(rows, 1, 48)).shape == (rows, 1, 70)
        assert products.copies == 0
        layer(torch.randn(4, 1, 48))
    assert products.rows == [4]


def test_where_gradients_are_wanted_the_plain_weights_get_theirs():
    layer = nn.Linear(8, 8)
    with blocked_weights(layer):
        layer(torch.ones(16, 8)).sum().backward()
        with torch.no_grad(), Products() as products:
            layer(torch.ones(16, 8))
    assert torch.equal(layer.weight.grad, torch.full((8, 8), 16.0))
    assert products.rows == [16]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_its_own_precision_wherever_it_is_entered(dtype):
    layer, x = nn.Linear(8, 8), torch.randn(6, 8, dtype=dtype)
    with blocked_weights(layer), torch.autocast("cpu", dtype=torch.bfloat16), Products() as products:
        assert layer(x).dtype is torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16), blocked_weights(layer), products:
        assert layer(x).dtype is torch.bfloat16
    assert products.rows == []


@pytest.mark.parametrize("cast_weights_once", [True, False])
def test_a_run_in_autocast_decodes(tmp_path, cast_weights_once):
    with Products() as products:
        trainer = train(True, tmp_path, bf16=True, cast_weights_once=cast_weights_once)
    assert len(trainer._logs["completion"]) == 16
    assert products.rows == []


def test_the_layers_are_as_before_afterwards_also_after_an_error():
    model = tiny_model()

    def fail():
        with blocked_weights(model):
            assert sum("forward" in vars(module) for module in model.modules()) == 15  # 7 a layer, and the head
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any("forward" in vars(module) for module in model.modules())
    tokens = torch.tensor([[3, 4, 5]])
    model(tokens, labels=tokens).loss.backward()
    assert model.lm_head.weight.grad.norm() > 0


@torch.no_grad()
def test_changed_weights_are_seen_by_the_next_decoding():
    layer, x = nn.Linear(8, 8), torch.randn(6, 8)
    with blocked_weights(layer):
        before = layer(x)
    layer.weight.mul_(2)
    expected = layer(x)
    with blocked_weights(layer), Products() as products:
        found = layer(x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, before)
    assert products.rows == [6]


class Own(nn.Linear):
    """Somebody's kind of linear layer (bitsandbytes has several)."""


class OwnWeight(nn.Parameter):
    """Somebody's kind of weight (torchao has several)."""


def with_own_weight():
    layer = nn.Linear(8, 8)
    layer.weight = OwnWeight(layer.weight.detach())
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 8, dtype=torch.bfloat16),
        nn.Linear(8, 8, dtype=torch.float64),
        nn.Linear(8, 8, device="meta"),
        nn.Linear(7, 9),
        Own(8, 8),
        with_own_weight(),
    ],
    ids=["bfloat16", "float64", "meta", "small", "subclass", "weight"],
)
def test_other_layers_stay_as_they_are(monkeypatch, layer):
    monkeypatch.setattr(blocked, "SMALLEST", 64)
    other = nn.Linear(8, 8)
    assert layers_to_block(nn.Sequential(layer, other)) == [other]


def test_a_forward_of_somebody_else_stays():
    layer = nn.Linear(8, 8)
    layer.forward = own = lambda x: x + 1  # accelerate's hooks are set like this
    with blocked_weights(layer):
        assert torch.equal(layer(torch.zeros(5, 8)), torch.ones(5, 8))
    assert layer.forward is own


@torch.no_grad()
def test_a_wrapper_that_was_set_inside_sees_later_weights():
    layer, x = nn.Linear(8, 8), torch.randn(6, 8)
    with blocked_weights(layer):
        layer(x)
        inside = layer.forward
        layer.forward = lambda x: inside(x) + 1
    layer.weight.mul_(2)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias) + 1)


def test_copies_are_bounded(monkeypatch):
    model = tiny_model()
    total = sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))
    monkeypatch.setattr(blocked, "MOST_BYTES", total)
    assert len(layers_to_block(model)) == 15
    monkeypatch.setattr(blocked, "MOST_BYTES", total - 1)
    assert layers_to_block(model) == []


def test_without_onednn_nothing_changes():
    with torch.backends.mkldnn.flags(enabled=False):
        assert layers_to_block(nn.Linear(8, 8)) == []


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("repeats", [2, 5])
def test_decoding_multiplies_by_blocked_weights(adapter, repeats):
    """Greedy completions are those of transformers, and the model is untouched."""
    model, inputs = tiny_model().eval(), batch("w1 w2 w3 w4 w5", "w7", "w9 w3 w3", "w2 w2 w11 w12", repeats=repeats)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)).eval()
    before = copy.deepcopy(model.state_dict())
    theirs = model.generate(**inputs, generation_config=config())
    with Products() as products:
        assert torch.equal(model.generate(**inputs, generation_config=config(), custom_generate=decode), theirs)
    assert max(products.rows) > 4
    assert min(products.rows) >= blocked.FEWEST_ROWS
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
