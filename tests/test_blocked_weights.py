"""Linear layers in oneDNN's layout: the same products, only where they help, and nothing left behind."""

import copy

import pytest
import torch
from test_decoding import batch, config
from torch import nn
from trainer_fixtures import tiny_model

from grpo_math import blocked_weights as blocked
from grpo_math.blocked_weights import blocked_weights, layers_to_block
from grpo_math.decoding import decode
from grpo_math.memory.patches import cuda_stand_ins
from grpo_math.memory.tracker import Tracker

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
SHAPES = [(1, 1), (3, 1), (4, 1), (15, 1), (2, 7), (33,)]


def spied(monkeypatch, name):
    """The calls of one of the two ways to multiply, by their number of rows."""
    rows, operation = [], getattr(blocked, name)

    def note(x, *args):
        rows.append(x.numel() // x.size(-1))
        return operation(x, *args)

    monkeypatch.setattr(blocked, name, note)
    return rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_a_layer_gives_the_same_products(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 70, bias=bias), torch.randn(*shape, 48)
    expected = layer(x)
    with blocked_weights(layer):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_view_with_gaps_is_multiplied_alike():
    layer, x = nn.Linear(48, 70), torch.randn(8, 5, 48)[:, -1:]
    expected = layer(x)
    with blocked_weights(layer):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_where_gradients_are_wanted_the_plain_weights_get_theirs():
    layer = nn.Linear(8, 8)
    with blocked_weights(layer):
        layer(torch.ones(16, 8)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((8, 8), 16.0))


def test_few_rows_read_the_plain_weights(monkeypatch):
    plain = spied(monkeypatch, "linear")
    layer = nn.Linear(48, 70)
    with blocked_weights(layer), torch.no_grad():
        for rows in (1, 3, 4, 16):
            layer(torch.randn(rows, 1, 48))
    assert plain == [1, 3]


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
    with blocked_weights(layer):
        found = layer(x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, before)


class Own(nn.Linear):
    """Somebody's kind of linear layer (bitsandbytes has several)."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 8, dtype=torch.bfloat16),
        nn.Linear(8, 8, dtype=torch.float64),
        nn.Linear(8, 8, device="meta"),
        Own(8, 8),
    ],
    ids=["bfloat16", "float64", "meta", "subclass"],
)
def test_other_layers_stay_as_they_are(layer):
    other = nn.Linear(8, 8)
    assert layers_to_block(nn.Sequential(layer, other)) == [other]


def test_a_forward_of_somebody_else_stays(monkeypatch):
    layer = nn.Linear(8, 8)
    layer.forward = own = lambda x: x + 1  # accelerate's hooks are set like this
    with blocked_weights(layer):
        assert torch.equal(layer(torch.zeros(5, 8)), torch.ones(5, 8))
    assert layer.forward is own


def test_copies_are_bounded(monkeypatch):
    model = tiny_model()
    total = sum(module.weight.nbytes for module in model.modules() if isinstance(module, nn.Linear))
    monkeypatch.setattr(blocked, "MOST_BYTES", total)
    assert len(layers_to_block(model)) == 15
    monkeypatch.setattr(blocked, "MOST_BYTES", total - 1)
    assert layers_to_block(model) == []


def test_autocast_keeps_its_own_precision():
    layer, x = nn.Linear(8, 8), torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), blocked_weights(layer):
        assert layer(x).dtype is torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert layers_to_block(layer) == []


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_decoding_multiplies_by_blocked_weights(monkeypatch, repeats):
    """Greedy completions are those of transformers, and the model is untouched."""
    plain = spied(monkeypatch, "linear")
    model, inputs = tiny_model().eval(), batch("w1 w2 w3 w4 w5", "w7", "w9 w3 w3", "w2 w2 w11 w12", repeats=repeats)
    before = copy.deepcopy(model.state_dict())
    theirs = model.generate(**inputs, generation_config=config())
    assert torch.equal(model.generate(**inputs, generation_config=config(), custom_generate=decode), theirs)
    assert max(plain, default=0) < blocked.FEWEST_ROWS
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_prediction_for_a_card_copies_no_weights():
    model = tiny_model()
    with cuda_stand_ins(Tracker(1, None)):
        assert blocked.layers_to_block(model) == []
