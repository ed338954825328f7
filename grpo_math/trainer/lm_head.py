"""TRL's fused LM head on a CPU: labelled positions only, and in float32 logits are computed once.

Without Triton TRL's head projects every position, in tiles that are sized for a GPU's memory, and once more in the backward
pass. Here [`LogProbFunction`] keeps the exponentials of the labelled positions, where they are not too many.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from trl.trainer import utils

TILE = 2**20  # logits that are worked on at once: 4 MB stay in a cache, while those of TRL's own tile do not
MOST_KEPT = 2**27  # exponentials that are kept for a backward pass: 512 MiB


class LogProbFunction(torch.autograd.Function):
    r"""
    Log-probabilities of targets, and entropies, under `softmax(hidden @ weight.T / temperature)`.

    With logits z and p = softmax(z):

    $$ \log p_y = z_y - \log\sum_j e^{z_j}, \qquad \frac{\partial \log p_y}{\partial z_j} = 1[j = y] - p_j, $$
    $$ H = -\sum_j p_j \log p_j, \qquad \frac{\partial H}{\partial z_j} = -p_j (\log p_j + H). $$

    The exponentials of the forward pass, `(N, V)`, are kept for the backward pass, which TRL's `ChunkedLogProbFunction`
    computes from the logits again.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float):
        """
        Args:
            hidden (`torch.Tensor` of shape `(N, H)`), weight (`torch.Tensor` of shape `(V, H)`): In float32.
            targets (`torch.LongTensor` of shape `(N,)`).
            temperature (`float`).

        Returns:
            `tuple`: Log-probabilities and entropies, both `(N,)`.
        """
        ctx.set_materialize_grads(False)  # the entropy is mostly for a metric
        rows, vocab = len(hidden), len(weight)
        kept = hidden.new_empty(rows, vocab)
        for start, end in _tiles(vocab, rows):
            torch.mm(hidden, weight[start:end].t(), out=kept[:, start:end])
        target, total, weighted = hidden.new_empty(3, rows)
        for start, end in _tiles(rows, vocab):
            z = kept[start:end]
            z.sub_(z.amax(-1, keepdim=True)).div_(temperature)
            target[start:end] = z.gather(1, targets[start:end, None]).squeeze(1)
            exponentials = z.exp()
            total[start:end] = exponentials.sum(-1)
            weighted[start:end] = torch.linalg.vecdot(exponentials, z)
            z.copy_(exponentials)
        log_total = total.log()
        entropy = log_total - weighted / total
        ctx.save_for_backward(hidden, weight, targets, kept, total, entropy)
        ctx.temperature = temperature
        return target - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps: torch.Tensor | None, grad_entropy: torch.Tensor | None):
        hidden, weight, targets, kept, total, entropy = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_logps = torch.zeros_like(total) if grad_logps is None else grad_logps / ctx.temperature
        for start, end in _tiles(len(weight), len(hidden)):
            grad = kept[:, start:end] * (-grad_logps / total)[:, None]
            if grad_entropy is not None:
                p = kept[:, start:end] / total[:, None]
                grad += (torch.special.entr(p) - p * entropy[:, None]) * (grad_entropy / ctx.temperature)[:, None]
            if grad_hidden is not None:
                grad_hidden.addmm_(grad, weight[start:end])
            if grad_weight is not None:
                torch.mm(grad.t(), hidden, out=grad_weight[start:end])
        if grad_hidden is not None:
            grad_hidden.addcmul_(weight[targets], grad_logps[:, None])
        if grad_weight is not None:
            grad_weight.index_add_(0, targets, hidden * grad_logps[:, None])
        return grad_hidden, grad_weight, None, None


def _tiles(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of `count` lines, each `width` wide, of about [`TILE`] values."""
    size = _tile_size(width)
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _tile_size(width: int) -> int:
    """How many lines of a width have about [`TILE`] values: a power of two, so that `torch.compile` meets few shapes."""
    return 1 << max((TILE // width).bit_length() - 1, 0)


class _Head:
    """
    Stands in for TRL's function, whose arguments it takes and whose results it gives.

    [`LogProbFunction`] serves whole float32 heads without bias, soft-capping or scale. The rest is TRL's.
    """

    def __init__(self, function: type[torch.autograd.Function]):
        self.function = function

    def apply(self, hidden, weight, bias, targets, temperature, chunk_size, softcapping, logit_scale, outputs):
        plain = bias is None and softcapping is None and logit_scale == 1 and set(outputs) <= {"log_probs", "entropy"}
        float32 = hidden.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        whole = not hasattr(weight, "ds_status")  # DeepSpeed gathers it for TRL's function
        few = len(hidden) * len(weight) <= MOST_KEPT
        if plain and float32 and whole and few:  # also without gradients: a reference is compared to the last bit
            logps, entropy = LogProbFunction.apply(hidden, weight, targets, temperature)
            return logps, entropy if "entropy" in outputs else None, None, None, None
        chunk_size = min(chunk_size, max(_tile_size(len(hidden)), 256))
        arguments = (hidden, weight, bias, targets, temperature, chunk_size, softcapping, logit_scale, outputs)
        return self.function.apply(*arguments)


@contextmanager
def head_for_a_cpu() -> Iterator[None]:
    """Inside the context TRL's fused head uses [`LogProbFunction`] where it can, else TRL's function with narrower tiles."""
    before = utils._ChunkedLogProbFunction
    utils._ChunkedLogProbFunction = _Head(before)
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction = before


def add_compact_lm_head(model: PreTrainedModel) -> None:
    """
    Makes TRL's fused LM head score, on the CPU, only the positions that have a label, as it does on CUDA.

    Without it the head also projects prompt and padding positions, whose results are then zeroed. A hook narrows the
    backbone's output to the labelled positions. TRL's head takes these as one row of pre-shifted labels
    (`shift_labels`), and the fields of its output go back into shape. Labels may come pre-shifted too. During the forward
    pass [`head_for_a_cpu`] stands in for TRL's function. Add it after TRL's `add_fused_lm_head`.

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
            with head_for_a_cpu():
                output = fused_forward(*args, fused_lm_head=True, shift_labels=targets[scored].unsqueeze(0), **kwargs)
        finally:
            hook.remove()
        for field in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"):
            value = getattr(output, field)
            if value is not None:
                setattr(output, field, value.new_zeros(scored.shape).masked_scatter(scored, value))
        return output

    model.forward = types.MethodType(forward, model)
