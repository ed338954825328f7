"""The variant: what is optimized beside TRL's loss. KL estimator, a coefficient that follows a target KL, reference clipping.

The mathematics is in `losses.py`; [`Variant`] applies it to the batches of a running trainer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from grpo_math.trainer import losses
from grpo_math.trainer.config import DEFAULT_KL_HORIZON, GRPOMathConfig
from grpo_math.trainer.micro_batches import Batch, loss_mask

if TYPE_CHECKING:
    from grpo_math.trainer.grpo import GRPOMathTrainer


@contextmanager
def beta_as(holder: object, value: float) -> Iterator[None]:
    """`holder.beta` is `value` inside the context."""
    before, holder.beta = holder.beta, value
    try:
        yield
    finally:
        holder.beta = before


def _bound(value: float | None) -> float:
    return math.inf if value is None else value


class Variant:
    """
    The variant options of a run.

    Args:
        args ([`GRPOMathConfig`], *optional*): `None` switches every option off.
    """

    def __init__(self, args: GRPOMathConfig | None):
        self.reference_clipping = args is not None and args.reference_clipping
        self.clip_low = _bound(args and args.ref_clip_low)
        self.clip_high = _bound(args and args.ref_clip_high)
        self.kl_estimator = args and args.kl_estimator
        self.kl_target = args and args.kl_target
        self.kl_horizon = (args and args.kl_horizon) or DEFAULT_KL_HORIZON
        self._window_kl: list[float] = []  # of the micro-batches since the last optimizer step

    @property
    def active(self) -> bool:
        """Whether any option is set."""
        return bool(self.reference_clipping or self.kl_estimator or self.kl_target is not None)

    def replaces_kl(self, beta: float) -> bool:
        """Whether the KL term is ours instead of TRL's k3."""
        return beta != 0.0 and self.kl_estimator in ("k1", "k2")

    def apply(self, inputs: Batch, logps: torch.Tensor) -> None:
        """
        Edits the inputs of the running loss between TRL's forward and its reading of the advantages: a reference-clipped
        token has advantage zero, which switches its policy term off under every loss type.

        Args:
            inputs (`dict`): The micro-batch. Gets `"per_token_logps"` (B, T) and `"variant_metrics"` (6, B, T).
            logps (`torch.Tensor` of shape `(B, T)`): Log-probabilities under the policy.
        """
        if not self.active:
            return
        ref_logps, advantages = inputs["ref_per_token_logps"], inputs["advantages"]
        if advantages.ndim == 1:
            advantages = advantages.unsqueeze(1)  # (B, 1)
        stopped = losses.is_reference_clipped(logps, ref_logps, advantages, self.clip_low, self.clip_high)
        if self.reference_clipping:
            inputs["advantages"] = advantages.masked_fill(stopped, 0.0)  # (B, T)
        inputs["per_token_logps"] = logps
        kl = [losses.kl_estimate(logps.detach(), ref_logps, name) for name in losses.KL_ESTIMATORS]
        clipped = [(stopped & (advantages < 0)).float(), (stopped & (advantages > 0)).float(), stopped.float()]
        inputs["variant_metrics"] = torch.stack(kl + clipped)  # (6, B, T)

    def kl_term(self, trainer: GRPOMathTrainer, inputs: Batch, metrics: dict[str, list[float]]) -> torch.Tensor:
        """`beta` times the k1 or k2 term, aggregated as TRL aggregates its k3 term, and logged as `kl`."""
        logps, mask, args = inputs["per_token_logps"], loss_mask(inputs), trainer.args
        per_token_kl = losses.kl_estimate(logps, inputs["ref_per_token_logps"], self.kl_estimator)
        if args.use_bias_correction_kl:
            old = inputs.get("old_per_token_logps")
            log_ratio = losses.importance_log_ratio(
                logps, logps.detach() if old is None else old, mask, trainer.importance_sampling_level
            )
            per_token_kl = losses.importance_corrected_kl(per_token_kl, log_ratio.exp(), self.kl_estimator)
        metrics["kl"].append(_token_means(per_token_kl.detach().unsqueeze(0), mask, trainer.accelerator)[0])
        training = trainer.model.training
        num_items = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        if training:
            num_items = num_items / args.steps_per_generation  # one micro-batch's share
        term = losses.aggregate(per_token_kl, mask, trainer.loss_type, num_items, trainer.max_completion_length)
        return trainer.beta * (term / (trainer.current_gradient_accumulation_steps if training else 1))

    def log(self, inputs: Batch, metrics: dict[str, list[float]], beta: float, accelerator: Accelerator) -> None:
        """Logs every KL estimate, `beta` and the share of reference-clipped tokens of a micro-batch."""
        if "variant_metrics" not in inputs:
            return
        means = _token_means(inputs["variant_metrics"], loss_mask(inputs), accelerator)
        k1, k2, k3, low, high, region = means
        for name, value in zip(losses.KL_ESTIMATORS, (k1, k2, k3), strict=True):
            metrics[f"kl/{name}"].append(value)
        metrics["beta"].append(beta)
        if self.reference_clipping:
            metrics["ref_clip_ratio/low_mean"].append(low)
            metrics["ref_clip_ratio/high_mean"].append(high)
            metrics["ref_clip_ratio/region_mean"].append(region)
            # A stopped token has advantage zero, so that TRL's rule does not count it a second time
            ratio = metrics.get("clip_ratio/region_mean") or metrics.get("cispo_clip_ratio") or [0.0]
            metrics["clip_ratio/either_mean"].append(region + ratio[-1])

    def note_kl(self, kl: float) -> None:
        """Remembers the mean KL of a micro-batch for [`adapted_beta`]."""
        if self.kl_target is not None:
            self._window_kl.append(kl)

    def adapted_beta(self, beta: float, micro_batch_rows: int) -> float:
        """
        `beta` after an optimizer step, from the KL of its micro-batches ([`losses.adapted_beta`]).

        Args:
            beta (`float`): The coefficient of the step.
            micro_batch_rows (`int`): Completions of a micro-batch, over all processes.
        """
        if self.kl_target is None:
            return beta
        kl, completions = sum(self._window_kl) / len(self._window_kl), micro_batch_rows * len(self._window_kl)
        self._window_kl = []
        return losses.adapted_beta(beta, kl, self.kl_target, self.kl_horizon, completions)


def _token_means(per_token: torch.Tensor, mask: torch.Tensor, accelerator: Accelerator) -> list[float]:
    """Means over the masked tokens of all processes, of (K, B, T)."""
    local = torch.cat([(per_token * mask).sum(dim=(1, 2)), mask.sum().float().view(1)])
    *sums, count = accelerator.reduce(local, reduction="sum").tolist()
    return [total / max(count, 1.0) for total in sums]


def frozen_copy(trainer: GRPOMathTrainer, policy: PreTrainedModel) -> torch.nn.Module:
    """
    A frozen copy of the policy as it is, prepared as the reference model: for reference clipping with beta 0.

    Raises:
        ValueError: for sharded weights, of which no copy is made.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "ref_clip_low and ref_clip_high with beta=0 need a frozen copy of the model, which is not made from "
            "sharded weights. Set a small beta, so that TRL loads the reference, or train a PEFT adapter."
        )
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    reference.__dict__.pop("forward", None)  # the copied head would run the original's layers
    args = trainer.args
    add_fused_lm_head(reference, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)
