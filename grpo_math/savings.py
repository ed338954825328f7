"""The same gradient for less compute: which rows to score, in which micro-batch, which columns, and a compact LM head.

Everything here is exact. A row whose advantage is zero has no policy gradient; rows may move between the micro-batches
of one optimizer step as long as every row keeps its weight; a column that no row attends to changes nothing. TRL pads
all rows to the longest of the generation batch and trims nothing (its open issue #7179).

Example: 2 micro-batches of 4 rows, completions of 9 2 7 3 | 8 4 5 6 tokens, the second group dead. The 4 live rows are
sorted and dealt out as 9 7 | 3 2, each micro-batch is as wide as its own longest row, and 4 rows are never run.
"""

import math
import types
from functools import wraps

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from grpo_math.losses import CONSTANT_LENGTH, MICRO_BATCH_MEAN, SEQUENCE_MEAN, SEQUENCE_SUM

Batch = dict[str, torch.Tensor]


def loss_mask(batch: Batch) -> torch.Tensor:
    """The (B, T) mask of the tokens that TRL's loss covers: the completion's, less what a tool wrote."""
    return batch["completion_mask"] * batch["tool_mask"] if "tool_mask" in batch else batch["completion_mask"]


def select_rows(batch: Batch, rows: torch.Tensor) -> Batch:
    """`rows` (indices) of every tensor that has a row axis; scalars and `None` stay."""
    return {key: value if value is None or value.ndim == 0 else value[rows] for key, value in batch.items()}


def concatenate(batches: list[Batch]) -> Batch:
    """The inverse of TRL's `split_tensor_dict`: one batch from micro-batches of the same widths."""
    return {
        key: value if value is None or value.ndim == 0 else torch.cat([batch[key] for batch in batches])
        for key, value in batches[0].items()
    }


def window_size(steps_per_generation: int, gradient_accumulation_steps: int) -> int:
    """
    How many consecutive micro-batches of a generation batch always fall into the same optimizer step, so that rows may
    move between them: the greatest common divisor, since both an optimizer step and an epoch end on its multiples.
    """
    return math.gcd(steps_per_generation, gradient_accumulation_steps)


def rows_per_micro_batch(live: int, micro_batches: int) -> list[int]:
    """
    `live` rows dealt out as evenly as possible over `micro_batches`, each getting at least one: a process that skipped
    a micro-batch would miss the collective operations of the others.
    """
    total = max(live, micro_batches)
    return [total // micro_batches + (i < total % micro_batches) for i in range(micro_batches)]


def normaliser_share(loss_type: str, kept_mask: torch.Tensor, rows: int, tokens: torch.Tensor) -> torch.Tensor | float:
    """
    By what to multiply the advantages of the kept rows so that TRL's loss over them equals its loss over all rows, the
    left-out ones counting zero. Every loss type of TRL is positively homogeneous in the advantage.

    Args:
        loss_type (`str`): TRL's.
        kept_mask (`torch.Tensor` of shape `(b, T)`): Loss mask of the rows that are scored.
        rows (`int`): Rows of the micro-batch in TRL, `per_device_train_batch_size`.
        tokens (`torch.Tensor`): Completion tokens of the micro-batch in TRL.

    Returns:
        `float` or scalar `torch.Tensor`: b / rows where TRL divides by rows, the share of tokens where it divides by
        the micro-batch's tokens (`bnpo`), 1 where by a number that spans the whole batch (`dapo`, `cispo`, `vespo`).
    """
    if loss_type in MICRO_BATCH_MEAN:
        return kept_mask.sum().clamp(min=1.0) / tokens.clamp(min=1.0)
    if loss_type in SEQUENCE_MEAN + CONSTANT_LENGTH + SEQUENCE_SUM:
        return len(kept_mask) / rows
    return 1.0


def row_lengths(batch: Batch) -> torch.Tensor:
    """Tokens of each row, prompt and completion, shape (B,)."""
    return batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)


def lay_out(batch: Batch, counts: list[int], loss_type: str, sort: bool) -> list[Batch]:
    """
    The micro-batches of one window: `counts[i]` rows in the i-th, live rows first, then this process's own dead rows,
    the rest left out.

    Args:
        batch (`dict`): All B rows of the window, with `"live"` of shape `(B,)`, bool.
        counts (`list[int]`): Rows of each micro-batch, the same on every process, at most B in sum. More than one only
            for a loss that weighs rows alike in whichever micro-batch they are (all but `bnpo`).
        loss_type (`str`): TRL's, for the normaliser.
        sort (`bool`): Whether to order rows by length, longest first, before cutting.

    Returns:
        `list[dict]`: As TRL's buffer, with advantages rescaled and those of dead rows exactly zero.
    """
    lengths, live = row_lengths(batch), batch["live"]
    # Live rows first; among dead ones the shortest are the cheapest filling
    order = torch.argsort(torch.where(live, torch.zeros_like(lengths), 1 + lengths), stable=True)
    if sort:
        order = torch.argsort(torch.where(live, -lengths, 1 + lengths), stable=True)
    kept = order[: sum(counts)]
    if sort:
        kept = kept[torch.argsort(lengths[kept], descending=True, stable=True)]

    tokens, rows_per_micro_batch = loss_mask(batch).sum(), len(live) // len(counts)
    micro_batches = [select_rows(batch, rows) for rows in kept.split(counts)]
    for micro_batch in micro_batches:
        advantages = micro_batch["advantages"]
        alive = micro_batch["live"] if advantages.ndim == 1 else micro_batch["live"].unsqueeze(1)
        share = normaliser_share(loss_type, loss_mask(micro_batch), rows_per_micro_batch, tokens)
        micro_batch["advantages"] = torch.where(alive, advantages * share, torch.zeros_like(advantages))
    return micro_batches


def used_columns(attention_mask: torch.Tensor, prompt_length: int, trim_left: bool, multiple_of: int | None) -> slice:
    """
    The columns of a left-padded prompt and a right-padded completion that at least one row attends to.

    Args:
        attention_mask (`torch.Tensor` of shape `(B, P + T)`).
        prompt_length (`int`): P. At least one column on either side stays.
        trim_left (`bool`): Whether leading columns may go (see [`left_padding_is_inert`]).
        multiple_of (`int`, *optional*): TRL's `pad_to_multiple_of`, kept on both sides.

    Returns:
        `slice` over the columns.
    """
    used = attention_mask.any(dim=0).nonzero().squeeze(1)
    total, multiple = attention_mask.size(1), multiple_of or 1
    first = min(int(used[0]), prompt_length - 1) if trim_left and len(used) else 0
    last = max(int(used[-1]) + 1, prompt_length + 1) if len(used) else total
    left = min(math.ceil((prompt_length - first) / multiple) * multiple, prompt_length)
    right = min(math.ceil((last - prompt_length) / multiple) * multiple, total - prompt_length)
    return slice(prompt_length - left, prompt_length + right)


def _rope_types(config) -> list[str]:
    """The rotary types of a text config; models can have one for each kind of attention layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [value.get("rope_type", "default") for value in (nested or [parameters])] if parameters else []


def columns_are_inert(model: PreTrainedModel) -> bool:
    """Whether a model ignores the width of its input: not so when the rotary frequencies follow the longest row."""
    return not {"dynamic", "longrope"} & set(_rope_types(model.config.get_text_config()))


def left_padding_is_inert(model: PreTrainedModel) -> bool:
    """
    Whether leading padding can go. transformers numbers the positions of a training forward from the first column,
    padding included, so only models with relative (rotary) positions give the same result without it.
    """
    return bool(_rope_types(model.config.get_text_config())) and columns_are_inert(model)


def add_compact_lm_head(model: PreTrainedModel) -> None:
    """
    Makes TRL's fused LM head score, on the CPU, only the positions that have a label, as it does on CUDA.

    Without it the head also projects prompt and padding positions and zeroes them afterwards. The backbone's output is
    narrowed to the labelled positions by a hook and handed to TRL's head as one row of pre-shifted labels
    (`shift_labels`); the fields of its output are put back into shape. Add it after `trl`'s `add_fused_lm_head`.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model with TRL's fused head.
    """
    fused_forward = model.forward

    @wraps(type(model).forward)  # `generate` validates its arguments against this signature
    def forward(self, *args, fused_lm_head=False, labels=None, shift_labels=None, **kwargs):
        scored = None if labels is None else labels[:, 1:] != -100  # (B, L - 1)
        compact = fused_lm_head and shift_labels is None and scored is not None and labels.device.type == "cpu"
        # Without a single label the output must stay connected to the model, which TRL's own path sees to
        if not compact or not scored.any():
            return fused_forward(*args, fused_lm_head=fused_lm_head, labels=labels, shift_labels=shift_labels, **kwargs)

        def keep_scored(module, inputs, output):
            output.last_hidden_state = output.last_hidden_state[:, :-1][scored].unsqueeze(0)  # (1, N, H)
            return output

        hook = self.base_model.register_forward_hook(keep_scored)
        try:
            targets = labels[:, 1:][scored].unsqueeze(0)  # (1, N)
            output = fused_forward(*args, fused_lm_head=True, shift_labels=targets, **kwargs)
        finally:
            hook.remove()
        for field in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask"):
            value = getattr(output, field)
            if value is not None:
                setattr(output, field, value.new_zeros(scored.shape).masked_scatter(scored, value))
        return output

    model.forward = types.MethodType(forward, model)


def pad_columns(tensor: torch.Tensor, columns: int, left: bool = False) -> torch.Tensor:
    """A (B, t) tensor widened with zeros to (B, `columns`), on the right unless `left`."""
    missing = columns - tensor.size(1)
    return F.pad(tensor, (missing, 0) if left else (0, missing))
