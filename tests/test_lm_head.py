"""The LM head on a CPU: exact results and gradients, TRL's function where ours cannot stand in, nothing left behind."""

import pytest
import torch
from test_packing import PAD, SMALL, batch, packed_score, scored, with_head
from transformers import LlamaConfig
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer import utils

from grpo_math.trainer import lm_head
from grpo_math.trainer.lm_head import LogProbFunction, add_compact_lm_head, head_for_a_cpu

OWN = utils._ChunkedLogProbFunction
HEAD = lm_head._Head(OWN)
VOCAB = 700
ROWS = [([3, 4, 5], [650, 9, 10, 11]), ([3, 4, 5], [8, 300]), ([12], [255, 256])]
PLAIN = {"bias": None, "softcapping": None, "scale": 1.0, "outputs": ("log_probs", "entropy")}


def inputs(rows=9, size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, size, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCAB, size, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (rows,), generator=generator)


def apply(function, hidden, weight, targets, temperature=0.7, chunk_size=300, **options):
    options = PLAIN | options
    return function.apply(
        hidden, weight, options["bias"], targets, temperature, chunk_size, options["softcapping"], options["scale"],
        options["outputs"],
    )  # fmt: skip


@pytest.fixture
def kept(monkeypatch):
    """How many rows [`LogProbFunction`] was given, call by call."""
    calls, forward = [], LogProbFunction.forward

    def note(ctx, hidden, *args):
        calls.append(len(hidden))
        return forward(ctx, hidden, *args)

    monkeypatch.setattr(LogProbFunction, "forward", note)
    return calls


def plain(hidden, weight, targets, temperature=0.7):
    """What the function is, by `log_softmax` of all logits."""
    logps = (hidden @ weight.t() / temperature).log_softmax(-1)
    return logps.gather(1, targets[:, None]).squeeze(1), -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize("tile", [1, 2000, lm_head.TILE])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, 0.5), (0.0, 1.0)], ids=["logps", "both", "entropy"])
def test_results_and_gradients_are_exact(monkeypatch, kept, tile, weights):
    monkeypatch.setattr(lm_head, "TILE", tile)
    found = []
    for function, dtype in ((lambda *x: apply(HEAD, *x)[:2], torch.float32), (plain, torch.float64)):
        hidden, weight, targets = inputs()
        hidden, weight = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
        results = function(hidden, weight, targets)
        # A factor of zero leaves the graph without that gradient
        sum(w * x.sin().sum() for w, x in zip(weights, results, strict=True) if w).backward()
        found.append((*results, hidden.grad, weight.grad))
    assert kept == [9]
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() <= 2e-6 * exact.norm()  # the entropy's gradient by TRL's function: 1.6e-5


def test_the_gradient_is_that_of_finite_differences(monkeypatch):
    monkeypatch.setattr(lm_head, "TILE", 30)
    hidden, weight, targets = inputs(rows=3, size=4, dtype=torch.float64)
    arguments = hidden, weight[:40].detach().requires_grad_(), targets % 40
    assert torch.autograd.gradcheck(lambda *x: LogProbFunction.apply(*x, 0.7), arguments)


def test_extreme_logits_give_no_nan():
    hidden, weight, targets = inputs()
    logps, entropy = LogProbFunction.apply(hidden * 1e4, weight, targets, 1.0)
    (logps + entropy).sum().backward()
    for value in (logps, entropy, hidden.grad, weight.grad):
        assert value.isfinite().all()
    assert (entropy >= -1e-6).all()


def test_without_gradients_the_results_are_the_same_to_the_bit(kept):
    """So that the policy at the start equals its reference, and stored log-probabilities those of the loss."""
    results = [apply(HEAD, *inputs())]
    with torch.no_grad():
        results.append(apply(HEAD, *inputs()))
    assert all(torch.equal(a, b) for a, b in zip(results[0][:2], results[1][:2], strict=True))
    assert kept == [9, 9]


def test_an_entropy_that_nobody_asked_for_is_none():
    logps, *others = apply(HEAD, *inputs(), outputs=("log_probs",))
    assert others == [None] * 4
    assert torch.equal(logps, apply(HEAD, *inputs())[0])


def test_a_graph_can_be_run_backward_twice():
    hidden, weight, targets = inputs()
    logps, _ = LogProbFunction.apply(hidden, weight, targets, 1.0)
    (first,) = torch.autograd.grad(logps.sum(), hidden, retain_graph=True)
    assert torch.equal(torch.autograd.grad(logps.sum(), hidden)[0], first)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, targets = inputs()
    LogProbFunction.apply(hidden, weight.requires_grad_(False), targets, 1.0)[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad.norm() > 0


@pytest.mark.parametrize(
    "options",
    [
        {"bias": torch.linspace(-1, 1, VOCAB)},
        {"softcapping": 5.0},
        {"scale": 2.0},
        {"outputs": ("log_probs", "entropy", "is_top1")},
        {"outputs": ("mean_logits",)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_trls_function_does_what_ours_does_not(monkeypatch, kept, options):
    monkeypatch.setattr(lm_head, "TILE", 1)
    hidden, weight, targets = inputs()
    found = apply(HEAD, hidden, weight, targets, **options)
    for ours, theirs in zip(found, apply(ChunkedLogProbFunction, hidden, weight, targets, **options), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not kept


@pytest.mark.parametrize("why", ["autocast", "too many", "float64", "sharded"])
def test_otherwise_trls_tiles_are_narrow(monkeypatch, kept, why):
    widths, forward = [], ChunkedLogProbFunction.forward

    def note(ctx, hidden, weight, bias, targets, temperature, chunk_size, *args):
        widths.append(chunk_size)
        return forward(ctx, hidden, weight, bias, targets, temperature, chunk_size, *args)

    monkeypatch.setattr(ChunkedLogProbFunction, "forward", note)
    monkeypatch.setattr(lm_head, "TILE", 1)
    monkeypatch.setattr(lm_head, "MOST_KEPT", 9 * VOCAB - (why == "too many"))
    hidden, weight, targets = inputs(dtype=torch.float64 if why == "float64" else torch.float32)
    if why == "sharded":
        weight.ds_status = "NOT_AVAILABLE"
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=why == "autocast")
    with autocast:
        apply(HEAD, hidden, weight, targets)
    assert widths == [256]
    assert not kept


def model_with_head():
    model = with_head(LlamaConfig(**(SMALL | {"vocab_size": VOCAB, "pad_token_id": PAD})))
    expected = scored(model, *batch(ROWS), packed_score(model))
    add_compact_lm_head(model)
    return model, expected


def test_a_model_scores_by_the_function_of_its_labelled_positions(kept):
    model, expected = model_with_head()
    for ours, theirs in zip(scored(model, *batch(ROWS), packed_score(model)), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    assert kept == [8]
    assert utils._ChunkedLogProbFunction is OWN


def test_after_a_failed_forward_pass_trl_has_its_own_function():
    model, _ = model_with_head()

    def fail(*args):
        assert utils._ChunkedLogProbFunction is not OWN
        raise MemoryError

    model.model.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        scored(model, *batch(ROWS), packed_score(model))
    assert utils._ChunkedLogProbFunction is OWN


def test_somebody_elses_function_is_put_back(monkeypatch):
    theirs = object()
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", theirs)
    with head_for_a_cpu():
        assert utils._ChunkedLogProbFunction is not theirs
    assert utils._ChunkedLogProbFunction is theirs
