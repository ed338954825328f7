"""Decoding G completions of a prompt: the prompt is run once, and a finished row leaves the batch.

transformers' `generate` prefills every row, so the same prompt G times, and keeps finished rows in the batch until the
longest is done. It also copies the whole cache at every token; here new tokens are written into room left at its end
([`RoomyLayer`]). On a CPU, weights are read in a layout for few rows ([`blocked_weights`]).

[`decode`] is a `custom_generate` for it: logits processors, stopping criteria and padding are those of `generate`. Greedy
output is identical up to rounding and sampled output equal in distribution, though other random numbers are drawn: one for
a row on a CPU ([`invert_cdf`]), where `torch.multinomial` draws one for each token of the vocabulary.

>>> model.generate(**inputs, generation_config=config, custom_generate=decode)
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from inspect import signature

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin, QuantizedLayer
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.configuration_utils import GenerationMode

from grpo_math.blocked_weights import blocked_weights

# What they do to a row's scores depends on that row's tokens and scores alone. A repetition penalty holds prompt lengths.
ROW_INDEPENDENT = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
BLOCK = 512  # tokens of the vocabulary that are summed before one of them is searched for
CACHE_ROOM = 64  # tokens that fit before a cache layer is copied again


def unsupported_reason(generation_config: GenerationConfig) -> str | None:
    """Why [`decode`] cannot stand in for transformers' loop under this configuration, or `None` when it can."""
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        return f"the generation mode is {mode.value}"
    if generation_config.num_return_sequences not in (None, 1):
        return "num_return_sequences is set"
    for option in ("cache_implementation", "prefill_chunk_size", "return_dict_in_generate", "guidance_scale"):
        if getattr(generation_config, option, None):
            return f"{option} is set"
    if generation_config.use_cache is False:
        return "use_cache is False"
    return None


def _select(model_kwargs: dict, rows: torch.Tensor, batch_size: int) -> dict:
    """The per-row tensors among the model's arguments (masks, positions), reduced to `rows`."""
    return {
        key: value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.size(0) == batch_size else value
        for key, value in model_kwargs.items()
    }


def can_select_rows(cache: Cache | None) -> bool:
    """Whether every layer of a cache can drop and repeat rows.

    Layers with a recurrent state and quantized ones cannot: hybrids of the former inherit the method, which then moves
    the keys and values only.
    """
    return cache is not None and all(
        hasattr(layer, "batch_select_indices")
        and not isinstance(layer, (LinearAttentionCacheLayerMixin, QuantizedLayer))
        for layer in cache.layers
    )


class RoomyLayer(DynamicLayer):
    """
    A cache layer that is copied once every [`CACHE_ROOM`] tokens instead of at each one.

    Keys and values are views of the filled part of larger buffers. Keys that are not the view of the last update come from
    elsewhere (rows were selected), and are copied into a new buffer.

    Args:
        layer (`DynamicLayer`): Gives its keys and values away.
        max_tokens (`int`): Tokens beyond which there is no room: at full length a generation's peak is a plain layer's.
    """

    def __init__(self, layer: DynamicLayer, max_tokens: int):
        super().__init__()
        vars(self).update(vars(layer))
        layer.keys = layer.values = None
        self.max_tokens = max_tokens
        self.buffers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # name -> buffer, view of its filled part

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """
        Adds tokens.

        Args:
            key_states, value_states (`torch.Tensor` of shape `(B, H, new tokens, head_dim)`).

        Returns:
            `tuple`: All keys and values, `(B, H, tokens, head_dim)`.
        """
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`; the others leave memory at once."""
        self.buffers.clear()
        super().batch_select_indices(indices)

    def _append(self, name: str, held: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        start = held.size(-2)
        end = start + states.size(-2)
        buffer, filled = self.buffers.get(name, (held, None))
        if filled is not held or end > buffer.size(-2):
            size = max(end, min(end + CACHE_ROOM, self.max_tokens))
            buffer = held.new_empty((*held.shape[:-2], size, held.size(-1)))
            buffer[..., :start, :] = held
        buffer[..., start:end, :] = states
        filled = buffer[..., :end, :]
        self.buffers[name] = (buffer, filled)
        return filled


@contextmanager
def roomy_layers(cache: Cache | None, max_tokens: int):
    """Inside the context a cache's plain layers are [`RoomyLayer`]s; sliding, quantized and hybrid ones stay."""
    plain = {
        i: layer
        for i, layer in enumerate([] if cache is None or cache.offloading else cache.layers)
        if type(layer) is DynamicLayer
    }
    for i, layer in plain.items():
        cache.layers[i] = RoomyLayer(layer, max_tokens)
    try:
        yield
    finally:
        for i, layer in plain.items():
            layer.keys, layer.values = cache.layers[i].keys, cache.layers[i].values
            cache.layers[i] = layer


def invert_cdf(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """
    The token at which each row's cumulative probability passes a number: a draw, if the number is uniform in [0, 1).

    First the block of tokens is found and then the token in it, both from sums in double precision. Nearly all of the
    work is one sum over the vocabulary. A token of probability zero is never drawn.

    Args:
        probabilities (`torch.Tensor` of shape `(R, V)`): Not negative; rows need not sum to one.
        uniform (`torch.Tensor` of shape `(R,)`): In double precision.

    Returns:
        `torch.LongTensor` of shape `(R,)`.

    Raises:
        RuntimeError: where a row holds NaN, or nothing above zero.
    """
    rows, size = probabilities.shape
    whole = size // BLOCK * BLOCK
    blocks = probabilities[:, :whole].view(rows, whole // BLOCK, BLOCK).sum(-1)
    blocks = torch.cat([blocks, probabilities[:, whole:].sum(-1, keepdim=True)], dim=1)  # the last may be empty
    cumulative = blocks.cumsum(-1, dtype=torch.float64)

    def search(cumulative: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        total = cumulative[:, -1:]
        at = torch.minimum(
            share * total, total.nextafter(torch.zeros_like(total))
        )  # the product may round up to the total
        return torch.searchsorted(cumulative, at, right=True)  # (R, 1), the first that is above

    share = uniform.unsqueeze(1)
    block = search(cumulative, share)
    try:
        reached = cumulative.gather(1, block)
    except RuntimeError as error:  # no sum is above NaN, and none of only zeros above 0
        raise RuntimeError("no token can be drawn: the probabilities of a row hold NaN or only zeros") from error
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    share = ((share * cumulative[:, -1:] - before) / (reached - before)).clamp(0, 1)  # what is left, in this block
    tokens = block * BLOCK + torch.arange(BLOCK, device=block.device)  # (R, BLOCK)
    inside = probabilities.gather(1, tokens.clamp(max=size - 1)).masked_fill(tokens >= size, 0)
    return (block * BLOCK + search(inside.cumsum(-1, dtype=torch.float64), share)).squeeze(1)


def draw(scores: torch.Tensor) -> torch.Tensor:
    """One token for each row of scores (R, V), shape (R,), with the softmax of the row as probabilities."""
    probabilities = scores.softmax(dim=-1)
    if scores.device.type != "cpu":
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    return invert_cdf(probabilities, torch.rand(len(scores), dtype=torch.float64))


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    share_prefill: bool = True,
    drop_finished: bool = True,
    **model_kwargs,
) -> torch.LongTensor:
    """
    Greedy or multinomial decoding that prefills each distinct prompt once and keeps only unfinished rows.

    Args:
        model ([`~transformers.PreTrainedModel`]): Decoder-only model.
        input_ids (`torch.LongTensor` of shape `(B, P)`): Left-padded prompts; equal rows share their prefill.
        logits_processor, stopping_criteria, generation_config: As `generate` prepares them.
        share_prefill (`bool`, defaults to `True`): Whether to run each distinct prompt once.
        drop_finished (`bool`, defaults to `True`): Whether to take finished rows out of the batch and the cache.
        model_kwargs: As `generate` prepares them, with an empty `past_key_values`.

    Returns:
        `torch.LongTensor` of shape `(B, P + T)`: T is the longest completion; shorter ones are padded.
    """
    batch_size = len(input_ids)
    rows = torch.arange(batch_size, device=input_ids.device)  # which rows the model still runs
    pad_token_id = 0 if generation_config.pad_token_id is None else generation_config.pad_token_id

    attention_mask = model_kwargs.get("attention_mask")
    prefill_rows = expand = rows
    if share_prefill and can_select_rows(model_kwargs.get("past_key_values")):
        keys = input_ids if attention_mask is None else torch.cat([input_ids, attention_mask], dim=1)
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
        if len(distinct) < batch_size:  # `unique` also sorts: without repeats the rows stay as they are
            expand = inverse
            prefill_rows = rows.new_full((len(distinct),), batch_size).scatter_reduce_(0, expand, rows, "amin")
    inputs = model.prepare_inputs_for_generation(
        input_ids[prefill_rows], is_first_iteration=True, **_select(model_kwargs, prefill_rows, batch_size)
    )
    outputs = model(**inputs, return_dict=True)
    # A copy, since processors may write into it and a view would keep the logits of the whole prompt alive
    logits = outputs.logits[:, -1].to(dtype=torch.float32, copy=True)  # (rows, V)
    if len(prefill_rows) < batch_size:
        outputs.past_key_values.batch_select_indices(expand)
        logits = logits[expand]

    # A processor of another kind may hold something of each row, and sees them all
    rows_alone = all(type(processor) in ROW_INDEPENDENT for processor in logits_processor)
    finished = torch.zeros(batch_size, dtype=torch.bool, device=input_ids.device)
    max_tokens = generation_config.max_length - 1  # the last token is not run
    room = roomy_layers(model_kwargs.get("past_key_values"), max_tokens)
    with model._optimize_model_for_decode(), room, blocked_weights(model):
        while True:
            if rows_alone or len(rows) == batch_size:
                scores = logits_processor(input_ids[rows], logits)
            else:  # what a finished row's logits are does not matter
                all_logits = logits.new_zeros(batch_size, logits.size(1)).index_copy_(0, rows, logits)
                scores = logits_processor(input_ids, all_logits)[rows]
            found = draw(scores) if generation_config.do_sample else scores.argmax(dim=-1)
            tokens = input_ids.new_full((batch_size,), pad_token_id).index_copy_(0, rows, found)
            input_ids = torch.cat([input_ids, tokens.masked_fill(finished, pad_token_id).unsqueeze(1)], dim=1)
            finished = finished | stopping_criteria(input_ids, None)
            if finished.all():
                return input_ids
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            running = (~finished[rows]).nonzero().squeeze(1)
            if drop_finished and len(running) < len(rows) and can_select_rows(model_kwargs.get("past_key_values")):
                model_kwargs["past_key_values"].batch_select_indices(running)
                model_kwargs = _select(model_kwargs, running, len(rows))
                rows = rows[running]
            inputs = model.prepare_inputs_for_generation(input_ids[rows], next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)
            logits = outputs.logits[:, -1].to(dtype=torch.float32, copy=True)


@contextmanager
def decoding_with(model: torch.nn.Module, share_prefill: bool, drop_finished: bool):
    """
    Inside the context `model.generate` decodes with [`decode`]; TRL passes no `custom_generate` of its own.

    A `generate` that somebody has set on the instance is called, if it takes other arguments, and put back afterwards.
    """
    loop: Callable = partial(decode, share_prefill=share_prefill, drop_finished=drop_finished)
    parameters = signature(model.generate).parameters
    if "custom_generate" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        yield  # somebody's own, which cannot be told how to decode
        return
    own = {name: value for name, value in vars(model).items() if name == "generate"}
    model.generate = partial(model.generate, custom_generate=loop)
    try:
        yield
    finally:
        del model.generate
        vars(model).update(own)
