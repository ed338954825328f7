"""Packed groups: the layout by hand, and log-probabilities, gradients and limits against the unpacked rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
    set_seed,
)
from trl.trainer.utils import add_fused_lm_head

from grpo_math.trainer import packing_attention
from grpo_math.trainer.host_embeddings import embeddings_to_host
from grpo_math.trainer.lm_head import add_compact_lm_head
from grpo_math.trainer.packing import Packing, pack
from grpo_math.trainer.packing_attention import SHARED, UnitMask, attention_mask, masks_for
from grpo_math.trainer.packing_layout import Costs, Lengths, lay_out_units, read_lengths, width_of

CHEAP_ATTENTION = Costs(break_even=math.inf, keeps_weights=False)
PAD = 0


def batch(rows):
    """Token ids and attention mask of (prompt, completion) pairs, padded as TRL pads, and the completions' width."""
    prompt_width, width = max(len(p) for p, _ in rows), max(max(len(c) for _, c in rows), 1)
    ids, mask = [], []
    for prompt, completion in rows:
        left, right = prompt_width - len(prompt), width - len(completion)
        ids.append([PAD] * left + prompt + completion + [PAD] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask), width


# --- the layout -------------------------------------------------------------------------------------------------------


def test_the_layout_of_two_completions_by_hand():
    a, b, c, d, e, f, g, h = range(1, 9)
    ids, mask, width = batch([([a, b, c], [d, e]), ([a, b, c], [f, g, h])])
    packed = pack(ids, read_lengths(ids, mask, width), width, CHEAP_ATTENTION, multiple_of=1)
    assert packed.input_ids.tolist() == [[a, b, c, f, g, c, d]]  # the longer completion first
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert packed.targets.tolist() == [[-100, -100, f, g, h, d, e]]
    assert packed.segment.tolist() == [[SHARED, SHARED, 1, 1, 1, 2, 2]]
    assert packed.sizes == [[[2, 3, 2]]]
    assert packed.source.tolist() == [2, 3, 4, 5, 6]
    assert packed.destination.tolist() == [3, 4, 5, 0, 1]
    allowed = attention_mask(packed)[0, 0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    windowed = attention_mask(packed, window=2)[0, 0].int().tolist()
    assert windowed[5:] == [[0, 1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1]]  # by position, not by place in the row


def test_a_mask_with_gaps_is_not_packed():
    ids, mask, width = batch([([1, 2], [3, 4, 5])])
    mask[0, 3] = 0
    assert read_lengths(ids, mask, width) is None


def test_rows_without_a_token_are_not_packed():
    ids, mask, width = batch([([1, 2], [3, 4]), ([1, 2], []), ([5, 6], [])])
    packed = pack(ids, read_lengths(ids, mask, width), width, CHEAP_ATTENTION, multiple_of=1)
    assert packed.input_ids.tolist() == [[1, 2, 3]]


def test_long_units_are_split_where_dense_attention_costs_more():
    lengths = Lengths([0] * 8, [100] * 8, [400] * 8)
    positions = [sum(unit.positions for unit in row) for row in lay_out_units(lengths, 500, CHEAP_ATTENTION, 1)]
    assert positions == [99 + 8 * 400]
    split = lay_out_units(lengths, 500, Costs(break_even=1000.0, keeps_weights=False), 1)
    assert len(split) > 1
    assert len(lay_out_units(lengths, 500, Costs(break_even=1.0, keeps_weights=False), 1)) == 8


lengths_strategy = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=12).map(
    lambda rows: Lengths([p for p, _ in rows], [3 + 9 * p for p, _ in rows], [t for _, t in rows])
)


@given(lengths_strategy, st.sampled_from([1.0, 30.0, 1000.0, math.inf]), st.booleans(), st.sampled_from([1, 8]))
def test_every_layout_holds_each_row_once_within_what_the_unpacked_rows_take(lengths, break_even, eager, multiple_of):
    width = math.ceil((max(lengths.prompt_tokens) + max(lengths.completion_tokens)) / multiple_of) * multiple_of
    rows = lay_out_units(lengths, width, Costs(break_even, eager), multiple_of)
    packed = sorted(row for units in rows for unit in units for row in unit.rows)
    assert packed == [row for row, tokens in enumerate(lengths.completion_tokens) if tokens]
    for unit in (unit for units in rows for unit in units):
        assert len({lengths.prompt[row] for row in unit.rows}) == 1
    if rows:
        length = width_of(rows, multiple_of)
        assert len(rows) * length <= len(lengths.prompt) * width
        assert not eager or len(rows) * length**2 <= len(lengths.prompt) * width**2


# --- log-probabilities ------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 23,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
         "bos_token_id": None, "eos_token_id": 1}  # fmt: skip
WINDOW = {"sliding_window": 4}
SHAPES = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral, windows": MistralConfig(**SMALL, **WINDOW),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "gemma 3, windows in some layers": Gemma3TextConfig(
        **SMALL, **WINDOW, head_dim=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi 3": Phi3Config(**SMALL),
}


def scored(model, ids, mask, width, score):
    model.zero_grad()
    logps, entropies = score(ids, mask, width)
    (logps.sin().sum() + 0.1 * entropies.cos().sum()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logps.detach(), entropies.detach(), gradient


def unpacked(model):
    """TRL's way: every row by itself."""

    def score(ids, mask, width):
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-width] = -100
        outputs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        return outputs.log_probs[:, -width:], outputs.entropy[:, -width:]

    return score


def packed_score(model, **changes):
    packing = Packing.of(model, None)._replace(**changes)
    return lambda ids, mask, width: packing.score(model, ids, mask, width, len(ids), entropy=True)


def with_head(config, attention="sdpa"):
    set_seed(0)
    config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


ROWS = [([3, 4, 5, 6, 7], [8, 9, 10, 11]), ([3, 4, 5, 6, 7], [8, 9]), ([12], [13, 14, 15]), ([3, 4, 5, 6, 7], [16]),
        ([12], [13]), ([17, 18], [])]  # fmt: skip


@pytest.mark.parametrize(("attention", "by_unit"), [("sdpa", True), ("sdpa", False), ("eager", False)])
@pytest.mark.parametrize("name", SHAPES)
def test_packed_rows_score_as_unpacked_ones(monkeypatch, name, attention, by_unit):
    monkeypatch.delattr(UnitMask, "dense")  # no attention falls back to it
    model = with_head(SHAPES[name], attention)
    rows = batch(ROWS)
    expected = scored(model, *rows, unpacked(model))
    for break_even in (math.inf, 1.0):  # whole groups, and single completions
        costs = Costs(break_even, keeps_weights=False)
        found = scored(model, *rows, packed_score(model, costs=costs, by_unit=by_unit))
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


WIDE_HEADS = {**SMALL, "hidden_size": 128}  # of 32: torch's kernel on a CPU reads beyond shorter ones


@pytest.mark.slow  # torch compiles the kernel for each model
@pytest.mark.parametrize("config", [LlamaConfig(**WIDE_HEADS), MistralConfig(**WIDE_HEADS, **WINDOW)], ids=type)
def test_flex_attention_scores_packed_rows_as_sdpa_scores_unpacked_ones(config):
    rows = batch(ROWS)
    with torch.no_grad():  # flex attention has no backward pass on a CPU
        expected = unpacked(with_head(config))(*rows)
        model = with_head(config, "flex_attention")
        found = Packing.of(model, None).score(model, *rows, len(rows[0]), entropy=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs * rows[1][:, -rows[2] :], rtol=1e-4, atol=1e-4)


def test_flex_attention_gets_a_block_mask_that_skips_other_completions():
    config = LlamaConfig(**SMALL)
    config._attn_implementation = "flex_attention"
    ids, mask, width = batch([(list(range(3, 23)) * 6, [5] * 300), (list(range(3, 23)) * 6, [6] * 300)])
    packed = pack(ids, read_lengths(ids, mask, width), width, CHEAP_ATTENTION, multiple_of=8)
    blocks = masks_for(config, packed, torch.float32, by_unit=False)
    assert blocks.to_dense()[0, 0].tolist() == [  # positions 0-118 the prompt, 119-418 and 419-718 the completions
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]


def test_flex_attention_does_not_split_long_groups():
    config = LlamaConfig(**SMALL)
    config._attn_implementation = "flex_attention"
    assert Packing.of(AutoModelForCausalLM.from_config(config), None).costs == CHEAP_ATTENTION


def test_on_a_cpu_sdpa_goes_by_unit_and_long_groups_stay_whole():
    packing = Packing.of(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)), None)
    assert packing.by_unit
    assert packing.costs == CHEAP_ATTENTION
    elsewhere = Packing.of(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).to("meta"), None)
    assert not elsewhere.by_unit
    assert elsewhere.costs.break_even < math.inf


@pytest.mark.parametrize("window", [None, 3])
def test_a_unit_mask_computes_allowed_products_only(monkeypatch, window):
    """Those of each prompt and of each completion with its prompt."""
    ids, mask, width = batch(ROWS)
    packed = pack(ids, read_lengths(ids, mask, width), width, CHEAP_ATTENTION, multiple_of=8)
    units, products = UnitMask(packed, window, torch.float32), []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, *others, **options):
        products.append(query.size(2) * key.size(2))
        return sdpa(query, key, *others, **options)

    monkeypatch.setattr(packing_attention, "scaled_dot_product_attention", counted)
    query, key, value = torch.randn(3, len(packed.unit), 2, packed.unit.size(1), 4)
    found = packing_attention._attend_by_unit(query, key, value, units, 0.0, False)  # in place, as sdpa takes them
    assert sorted(products) == sorted([4 * 4, 4 * 8, 2 * 6, 1 * 5, 3 * 3, 1 * 1])
    expected = sdpa(query, key, value, attn_mask=attention_mask(packed, window))
    real = packed.unit >= 0
    torch.testing.assert_close(found.transpose(1, 2)[real], expected.transpose(1, 2)[real])
    assert (found.transpose(1, 2)[~real] == 0).all()


def test_a_unit_mask_is_the_dense_mask_for_everything_but_sdpa():
    """A model with attention of its own adds, slices or moves it."""
    ids, mask, width = batch(ROWS)
    packed = pack(ids, read_lengths(ids, mask, width), width, CHEAP_ATTENTION, multiple_of=8)
    units = UnitMask(packed, None, torch.float32)
    dense = masks_for(LlamaConfig(**SMALL), packed, torch.float32, by_unit=False)
    assert (units.shape, units.dtype, units.device, units.dim()) == (
        dense.shape,
        dense.dtype,
        dense.device,
        dense.dim(),
    )
    scores = torch.randn(dense.shape)
    for operate in (
        lambda m: scores + m,
        lambda m: m[..., :5, :5],
        lambda m: m.to(torch.bfloat16),
        lambda m: torch.cat([m, m]),
        lambda m: m.mT,
    ):
        found = operate(units)
        assert type(found) is torch.Tensor
        assert torch.equal(found, operate(dense))


def test_the_compact_head_scores_packed_rows_alike():
    model = with_head(SHAPES["llama"])
    rows = batch(ROWS)
    expected = scored(model, *rows, packed_score(model))
    add_compact_lm_head(model)
    for ours, theirs in zip(scored(model, *rows, packed_score(model)), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


row_strategy = st.tuples(
    st.sampled_from([[3, 4, 5], [6], [7, 8, 9, 10, 11, 12]]), st.lists(st.integers(3, 22), max_size=9)
)


@settings(deadline=None, max_examples=40)
@given(st.lists(row_strategy, min_size=1, max_size=7).filter(lambda rows: any(c for _, c in rows)), st.integers(1, 7))
def test_any_batch_scores_as_its_unpacked_rows_in_chunks_too(rows, batch_size):
    model = with_head(LlamaConfig(**SMALL))
    ids, mask, width = batch(rows)
    with torch.no_grad():
        expected = unpacked(model)(ids, mask, width)
        found = Packing.of(model, None).score(model, ids, mask, width, batch_size, entropy=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs * mask[:, -width:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_unit", [True, False])
def test_a_completion_does_not_see_the_others(by_unit):
    """Not a bit of its log-probabilities depends on their tokens."""
    model = with_head(LlamaConfig(**SMALL))
    rows = [([3, 4, 5, 6], [7, 8, 9]), ([3, 4, 5, 6], [10, 11, 12])]
    other = [rows[0], ([3, 4, 5, 6], [20, 21, 22])]
    with torch.no_grad():
        first, second = (packed_score(model, by_unit=by_unit)(*batch(pair))[0] for pair in (rows, other))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_masks_have_the_dtype_of_the_hidden_states_where_the_embeddings_are_in_host_memory():
    model = with_head(LlamaConfig(**SMALL, tie_word_embeddings=False))
    embeddings_to_host(model)
    next(model.parameters()).data = next(model.parameters()).data.bfloat16()  # as TRL casts an adapter for a while
    assert model.dtype == torch.bfloat16
    packed = Packing.of(model, None)
    next(model.parameters()).data = next(model.parameters()).data.float()
    ids, mask, width = batch(ROWS)
    with torch.no_grad():
        found, _ = packed.score(model, ids, mask, width, len(ids), entropy=True)
        expected, _ = unpacked(model)(ids, mask, width)
    torch.testing.assert_close(found, expected * mask[:, -width:], rtol=1e-5, atol=1e-5)
