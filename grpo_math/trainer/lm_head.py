"""A compact LM head on the CPU: TRL's fused head projects every position there, and only labelled ones on CUDA.

Its logits are made in tiles, which are sized for a GPU's memory; here they are sized for a processor's cache.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps

from transformers import PreTrainedModel
from trl.trainer import utils

TILE = 2**20  # logits; the 108 MB of TRL's own tile are allocated anew by each of a dozen operations


@contextmanager
def tiles_for_a_cache(rows: int) -> Iterator[None]:
    """
    Inside the context TRL's fused head computes so many columns of `rows` logits at once that a tile has about [`TILE`].

    Only the order of the sums over the vocabulary depends on it. The backward pass keeps the size of its forward pass.
    """
    before = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(before, max(TILE // rows, 256))
    try:
        yield
    finally:
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = before


def add_compact_lm_head(model: PreTrainedModel) -> None:
    """
    Makes TRL's fused LM head score, on the CPU, only the positions that have a label, as it does on CUDA.

    Without it the head also projects prompt and padding positions, whose results are then zeroed. A hook narrows the
    backbone's output to the labelled positions. TRL's head takes these as one row of pre-shifted labels
    (`shift_labels`), and the fields of its output go back into shape. Labels may come pre-shifted too. Add it after
    TRL's `add_fused_lm_head`.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model with TRL's fused head.
    """
    fused_forward = model.forward

    @wraps(type(model).forward)  # `generate` validates its arguments against this signature
    def forward(self, *args, fused_lm_head=False, labels=None, shift_labels=None, **kwargs):
        shifted = shift_labels is not None
        targets = shift_labels if shifted else None if labels is None else labels[:, 1:]  # (B, L) or (B, L - 1)
        compact = fused_lm_head and targets is not None and targets.device.type == "cpu"
        # Without a single label the output must stay connected to the model, which TRL's own path sees to
        if not compact or not (scored := targets != -100).any():
            return fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, shift_labels=shift_labels, **kwargs)

        def keep_scored(module, inputs, output):
            hidden = output.last_hidden_state if shifted else output.last_hidden_state[:, :-1]
            output.last_hidden_state = hidden[scored].unsqueeze(0)  # (1, N, H)
            return output

        hook = self.base_model.register_forward_hook(keep_scored)
        try:
            labels = targets[scored].unsqueeze(0)
            with tiles_for_a_cache(labels.size(1)):
                output = fused_forward(*args, fused_lm_head=True, shift_labels=labels, **kwargs)
        finally:
            hook.remove()
        for field in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"):
            value = getattr(output, field)
            if value is not None:
                setattr(output, field, value.new_zeros(scored.shape).masked_scatter(scored, value))
        return output

    model.forward = types.MethodType(forward, model)
