"""The decoding loop: transformers' greedy output, its sampling law, each prompt run once, finished rows gone."""

import contextlib
import copy
import itertools
import weakref

import pytest
import torch
from peft import LoraConfig
from trainer_fixtures import ALL_OFF, tiny_model, tiny_tokenizer, train
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    MambaConfig,
    MambaForCausalLM,
    cache_utils,
    set_seed,
)

from grpo_math import decoding
from grpo_math.decoding import (
    CACHE_ROOM,
    RoomyLayer,
    can_select_rows,
    decode,
    decoding_with,
    invert_cdf,
    roomy_layers,
    unsupported_reason,
)

BOTH = {"share_prefill": True, "drop_finished": True}


def batch(*texts, repeats=3):
    texts = [text for text in texts for _ in range(repeats)]
    return dict(tiny_tokenizer()(texts, return_tensors="pt", padding=True))


def config(**options):
    defaults = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": [1, 4, 9, 15, 20]}
    return GenerationConfig(**(defaults | options), disable_compile=True)


def tiny_gpt2():
    set_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    ).eval()


def tiny_mamba():
    """Without keys and values: its outputs have no cache of that name."""
    set_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=23, hidden_size=32, num_hidden_layers=2, initializer_range=0.3)
    ).eval()


def sliding():
    return tiny_model(use_sliding_window=True, sliding_window=6, max_window_layers=1).eval()


@pytest.mark.parametrize(
    "make",
    [lambda: tiny_model().eval(), tiny_gpt2, sliding, tiny_mamba],
    ids=["rotary", "absolute", "sliding", "without attention"],
)
@pytest.mark.parametrize(("share", "drop"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}, {"min_new_tokens": 4}], ids=str)
def test_greedy_output_is_transformers_own(make, share, drop, options):
    model, inputs = make(), batch("w1 w2 w3 w4 w5", "w7", "w9 w3 w3", "w2 w2 w11 w12")
    theirs = model.generate(**inputs, generation_config=config(**options))
    with decoding_with(model, share, drop):
        ours = model.generate(**inputs, generation_config=config(**options))
    assert torch.equal(ours, theirs)
    padded = (theirs[:, inputs["input_ids"].size(1) :] == 0).any(dim=1)
    assert 0 < padded.sum() < len(padded)  # some rows finish early


def test_prompts_without_repeats_keep_their_rows():
    model, inputs = tiny_model().eval(), batch("w9 w3 w3", "w7", "w1 w2 w3 w4", "w2 w2 w11", repeats=1)
    theirs = model.generate(**inputs, generation_config=config())
    with decoding_with(model, **BOTH):
        assert torch.equal(model.generate(**inputs, generation_config=config()), theirs)


def test_each_distinct_prompt_is_run_once_and_finished_rows_leave():
    model, inputs = tiny_model().eval(), batch("w1 w2 w3", "w7 w4 w9", repeats=4)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    set_seed(0)
    with decoding_with(model, **BOTH):
        output = model.generate(**inputs, generation_config=config(do_sample=True, max_new_tokens=24, eos_token_id=[1]))
    lengths = [(row != 1).int().cumprod(0).sum().item() + 1 for row in output[:, 3:]]
    assert shapes[0] == (2, 3)
    running = [sum(length > step for length in lengths) for step in range(1, len(shapes))]
    assert [rows for rows, _ in shapes[1:]] == running
    assert all(columns == 1 for _, columns in shapes[1:])
    assert running[-1] < 8


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"top_k": 5}], ids=str)
def test_sampled_output_has_transformers_law(options):
    """Frequencies of all two-token continuations of two prompts against their exact probabilities."""
    model, draws = tiny_model(vocab_size=6, initializer_range=0.2).eval(), 4000
    inputs = {"input_ids": torch.tensor([[0, 3], [4, 5]]).repeat_interleave(draws, dim=0)}
    inputs["attention_mask"] = torch.tensor([[0, 1], [1, 1]]).repeat_interleave(draws, dim=0)
    temperature, top_k = options.get("temperature", 1.0), options.get("top_k", 6)
    set_seed(1)
    with decoding_with(model, **BOTH):
        sampled = model.generate(
            **inputs,
            generation_config=config(do_sample=True, max_new_tokens=2, eos_token_id=[1], **({"top_k": 0} | options)),
        )

    def next_probabilities(ids):
        logits = model(torch.tensor([ids])).logits[0, -1] / temperature
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
        return logits.softmax(0)

    for i, prompt in enumerate(([3], [4, 5])):
        outcomes = sampled[i * draws : (i + 1) * draws, 2:].tolist()
        first = next_probabilities(prompt)
        statistic = cells = 0
        for a, b in itertools.product(range(6), range(6)):
            if a == 1:  # the end: the second token is padding
                probability = first[1].item() if b == 0 else 0.0
            else:
                probability = (first[a] * next_probabilities([*prompt, a])[b]).item()
            count = outcomes.count([a, b])
            if probability * draws < 5:
                assert count <= 20
                continue
            statistic += (count - probability * draws) ** 2 / (probability * draws)
            cells += 1
        assert cells >= 4
        assert statistic < cells + 4 * (2 * cells) ** 0.5  # chi-square: mean `cells`, variance twice that


@pytest.mark.parametrize("size", [7, 512, 1024, 1300])
def test_a_token_is_found_where_the_cumulative_probability_passes_the_number(size):
    torch.manual_seed(0)
    probabilities = (torch.randn(4, size) * 3).softmax(dim=-1)
    probabilities[:, ::3] = 0  # as after top-k; rows need not sum to one
    probabilities[1, : size // 2] = 0
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    uniform = torch.linspace(0, 1 - 2**-53, 2001, dtype=torch.float64)
    for row in range(4):
        found = invert_cdf(probabilities[row].expand(len(uniform), -1), uniform)
        above, below = cumulative[row][found], cumulative[row][found] - probabilities[row][found].double()
        wanted, slack = uniform * cumulative[row, -1], 1e-6
        assert (probabilities[row][found] > 0).all()
        assert ((below - slack <= wanted) & (wanted <= above + slack)).all()
        assert found[0] == probabilities[row].nonzero()[0]
        assert found[-1] == probabilities[row].nonzero()[-1]


@pytest.mark.parametrize("bad", [float("nan"), None], ids=str)
def test_probabilities_that_are_none_are_an_error(bad):
    probabilities = torch.zeros(2, 600)
    probabilities[0] = 1 / 600
    if bad is not None:
        probabilities[1, 3] = bad
    with pytest.raises(RuntimeError, match="no token can be drawn"):
        invert_cdf(probabilities, torch.full((2,), 0.5, dtype=torch.float64))


class SeesRows(LogitsProcessor):
    """A processor of somebody's own, which may hold something of each row."""

    def __init__(self):
        self.rows = []

    def __call__(self, input_ids, scores):
        self.rows.append((len(input_ids), len(scores)))
        return scores


def rows_of_each_draw(monkeypatch, processors):
    rows, plain = [], decoding.draw
    monkeypatch.setattr(decoding, "draw", lambda scores: rows.append(len(scores)) or plain(scores))
    model, inputs = tiny_model().eval(), batch("w1 w2 w3", "w7 w4 w9", repeats=4)
    options = {"do_sample": True, "max_new_tokens": 24, "top_k": 7, "temperature": 0.9, "min_p": 0.01}
    with decoding_with(model, **BOTH):
        model.generate(**inputs, generation_config=config(**options), logits_processor=processors)
    return rows


def test_tokens_are_drawn_for_running_rows_only(monkeypatch):
    rows = rows_of_each_draw(monkeypatch, [])
    assert rows[0] == 8
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 8


def test_a_processor_of_another_kind_sees_every_row(monkeypatch):
    processor = SeesRows()
    rows = rows_of_each_draw(monkeypatch, [processor])
    assert rows[-1] < 8
    assert processor.rows == [(8, 8)] * len(rows)


def test_the_model_is_prepared_for_decoding_after_the_prefill(monkeypatch):
    model, events = tiny_model().eval(), []

    @contextlib.contextmanager
    def prepared():
        events.append("begin")
        yield
        events.append("end")

    monkeypatch.setattr(model, "_optimize_model_for_decode", prepared)
    model.register_forward_hook(lambda *_: events.append("forward"))
    with decoding_with(model, **BOTH):
        model.generate(**batch("w1 w2"), generation_config=config(max_new_tokens=3, eos_token_id=None))
    assert events == ["forward", "begin", "forward", "forward", "end"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, "beam_search"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"use_cache": False}, "use_cache"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
    ],
)
def test_other_kinds_of_generation_are_left_to_transformers(options, reason):
    assert reason in unsupported_reason(config(**options))
    assert unsupported_reason(config()) is None


def test_generate_is_given_back_also_after_an_error():
    model = tiny_model()
    with decoding_with(model, **BOTH):
        assert model.generate.keywords["custom_generate"].func is decode
    assert "generate" not in vars(model)
    with pytest.raises(AttributeError), decoding_with(model, **BOTH):
        model.generate(input_ids="no tensor")
    assert "generate" not in vars(model)


def test_somebody_elses_generate_on_the_instance_is_called_and_put_back():
    model, calls = tiny_model().eval(), []

    def own(*args, **kwargs):
        calls.append(kwargs["custom_generate"].func)
        return type(model).generate(model, *args, **kwargs)

    model.generate = own
    with decoding_with(model, **BOTH):
        model.generate(**batch("w1 w2"), generation_config=config())
    assert calls == [decode]
    assert model.generate is own


def test_a_generate_that_takes_no_other_arguments_is_left_alone():
    model = tiny_model()
    own = model.generate = lambda input_ids: input_ids
    with decoding_with(model, **BOTH):
        assert model.generate is own
    assert model.generate is own


@pytest.mark.parametrize("adapter", [False, True])
def test_the_trainer_generates_the_same_greedy_completions(tmp_path, adapter):
    kwargs = {"peft_config": LoraConfig(r=4, init_lora_weights=False)} if adapter else {}
    greedy = {"generation_kwargs": {"do_sample": False}, "trainer_kwargs": kwargs, "max_completion_length": 20}
    theirs = train(False, tmp_path, **greedy)
    ours = train(True, tmp_path, **greedy, **(ALL_OFF | BOTH))
    assert list(ours._logs["completion"]) == list(theirs._logs["completion"])
    assert len(set(theirs._logs["completion"])) > 1


def test_the_trainer_leaves_beam_search_to_transformers_and_says_so_once(tmp_path, caplog):
    train(True, tmp_path, generation_kwargs={"num_beams": 2}, max_steps=2)
    said = [record.message for record in caplog.records if "share_prefill and drop_finished" in record.message]
    assert len(said) == 1
    assert "beam" in said[0]


def test_layers_with_a_recurrent_state_keep_their_rows():
    """A hybrid's layer inherits the method, which moves its keys and values and not its state."""
    hybrid = type("Hybrid", (cache_utils.LinearAttentionCacheLayerMixin, cache_utils.DynamicLayer), {})
    hybrid.__abstractmethods__ = frozenset()
    layer = object.__new__(hybrid)
    assert hasattr(layer, "batch_select_indices")
    cache = cache_utils.Cache(layers=[cache_utils.DynamicLayer()])
    assert can_select_rows(cache)
    cache.layers.append(layer)
    assert not can_select_rows(cache)
    assert not can_select_rows(None)


def plain_layer(rows=4, tokens=5):
    layer = cache_utils.DynamicLayer()
    layer.update(torch.randn(rows, 2, tokens, 3), torch.randn(rows, 2, tokens, 3))
    return layer


def test_a_roomy_layer_holds_what_a_plain_one_holds_and_is_seldom_copied():
    plain = plain_layer()
    roomy = RoomyLayer(copy.copy(plain), max_tokens=150)
    kept = torch.arange(4)
    alive = []  # so that no address is used twice
    for step in range(145):
        new = torch.randn(2, len(kept), 2, 1, 3)
        for theirs, ours in zip(plain.update(*new), roomy.update(*new), strict=True):
            assert torch.equal(ours, theirs)
        alive.append(roomy.keys)
        if step in (70, 80):  # rows are selected
            kept = kept[: len(kept) - 1]
            plain.batch_select_indices(kept)
            roomy.batch_select_indices(kept)
    assert len({keys.untyped_storage().data_ptr() for keys in alive}) <= 145 // CACHE_ROOM + 1 + 2
    assert roomy.get_seq_length() == plain.get_seq_length() == 150
    assert roomy.keys.untyped_storage().nbytes() == 4 * roomy.keys.numel()  # no room beyond the most tokens


def test_rows_that_leave_a_roomy_layer_leave_memory():
    plain = plain_layer()
    roomy = RoomyLayer(plain, max_tokens=150)
    assert plain.keys is plain.values is None
    roomy.update(*torch.randn(2, 4, 2, 1, 3))
    held = [weakref.ref(roomy.keys), weakref.ref(roomy.values)]
    roomy.batch_select_indices(torch.tensor([0, 2]))
    assert [reference() for reference in held] == [None, None]


@pytest.mark.parametrize("offloading", [False, True])
def test_plain_layers_come_back_and_other_kinds_stay(offloading):
    plain, sliding_layer = plain_layer(), cache_utils.DynamicSlidingWindowLayer(4)
    cache = cache_utils.Cache(layers=[plain, sliding_layer])
    cache.offloading = offloading
    with contextlib.suppress(KeyError), roomy_layers(cache, 20):  # also after an error
        assert [type(layer) is RoomyLayer for layer in cache.layers] == [not offloading, False]
        cache.layers[0].update(*torch.randn(2, 4, 2, 1, 3))
        raise KeyError
    assert cache.layers == [plain, sliding_layer]
    assert plain.get_seq_length() == 6


def test_each_token_goes_into_roomy_layers_within_the_length_of_the_generation(monkeypatch):
    seen = []
    update = RoomyLayer.update
    monkeypatch.setattr(
        RoomyLayer, "update", lambda layer, *states: seen.append(layer.max_tokens) or update(layer, *states)
    )
    model, inputs = tiny_model().eval(), batch("w1 w2 w3", repeats=2)
    with decoding_with(model, **BOTH):
        model.generate(**inputs, generation_config=config(max_new_tokens=6, min_new_tokens=6))
    assert seen == [3 + 6 - 1] * model.config.num_hidden_layers * (6 - 1)
