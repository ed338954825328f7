"""Old log-probabilities of live rows only: those of a row whose advantage is zero have no part in the gradient.

TRL stores the log-probabilities of the sampling policy where a generation batch serves several optimizer steps. It scores
every row before it asks for the rewards. [`OldLogps`] puts that pass off until the rewards tell which rows are live. In the
loss a dead row takes the policy's own log-probabilities as old ones, so that its ratio is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from trl.models.utils import disable_gradient_checkpointing

from grpo_math.trainer import exactness
from grpo_math.trainer.micro_batches import Batch, over_processes

if TYPE_CHECKING:
    from grpo_math.trainer.grpo import GRPOMathTrainer


class OldLogps:
    """
    Scores the live rows of generation batches.

    Args:
        trainer ([`GRPOMathTrainer`]).
    """

    def __init__(self, trainer: GRPOMathTrainer):
        self.trainer = trainer
        self._due = False  # whether TRL's next request in the running generation is the one to put off

    @property
    def put_off(self) -> bool:
        """Whether the pass is put off: in training, where dead rows are skipped and nothing else reads the values."""
        trainer, args = self.trainer, self.trainer.args
        stored = args.gradient_accumulation_steps % (args.steps_per_generation * trainer.num_iterations) != 0
        corrected = trainer.use_vllm and trainer.vllm_importance_sampling_correction  # its ratios cover every row
        skip = trainer._saving["skip_zero_advantage"] and exactness.skip_blocked_by(trainer) is None
        return trainer.model.training and stored and skip and not corrected

    def begin(self) -> None:
        """A generation begins. TRL asks for old log-probabilities before any others."""
        self._due = self.put_off

    def take(self) -> bool:
        """Whether the running request is the one that is put off; true once."""
        due, self._due = self._due, False
        return due

    def fill(self, batch: Batch) -> Batch:
        """
        The batch with `"old_per_token_logps"` of its live rows, (B, T), and `"has_old_logps"`, (B,), which says whose.

        Args:
            batch (`dict`): From TRL, with `"live"` of shape `(B,)`, bool.
        """
        trainer, live = self.trainer, batch["live"]
        count = live.sum()
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:  # every process must run as many forward passes
            count = over_processes(trainer.accelerator, count).amax()
        rows = torch.argsort(~live, stable=True)[: int(count)]
        old = torch.zeros(batch["completion_mask"].shape, device=live.device)
        if len(rows):
            sides = ("prompt", "completion")
            ids, mask = (
                torch.cat([batch[f"{side}_{kind}"][rows] for side in sides], dim=1) for kind in ("ids", "mask")
            )
            arguments = trainer.args.gradient_checkpointing_kwargs
            with torch.no_grad(), disable_gradient_checkpointing(trainer.model, arguments):
                scored = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, mask, old.size(1), trainer.args.per_device_train_batch_size
                )
            old[rows] = scored[0].to(old.dtype)
        has_old_logps = torch.zeros_like(live).index_fill(0, rows, True)
        return {**batch, "old_per_token_logps": old, "has_old_logps": has_old_logps}

    def in_loss(self, inputs: Batch, logps: torch.Tensor) -> None:
        """
        Gives the rows of a running loss whose values were left out a ratio of 1, in place.

        Args:
            inputs (`dict`): The micro-batch.
            logps (`torch.Tensor` of shape `(B, T)`): Log-probabilities under the policy.
        """
        if "has_old_logps" in inputs:
            known = inputs["has_old_logps"].unsqueeze(1)
            inputs["old_per_token_logps"] = torch.where(known, inputs["old_per_token_logps"], logps.detach())
