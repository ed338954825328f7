"""GRPOMathTrainer: TRL's GRPOTrainer plus options. With every option off it is TRL's trainer.

Two kinds of options. The savings (`packing.py`, `micro_batches.py`, `lm_head.py`, `decoding.py`) give TRL's gradient for
less compute and are on where they are exact (`exactness.py`). The variant (`variant.py`) changes what is optimized and is
off. The class holds overrides only; each says in its first line what it changes.

>>> config = GRPOMathConfig(output_dir="out", beta=0.04, kl_target=0.05)
>>> trainer = GRPOMathTrainer(model=model, reward_funcs=reward, args=config, train_dataset=dataset)
"""

import contextlib
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from grpo_math import decoding
from grpo_math.trainer import checkpoints, exactness, host_embeddings, losses, micro_batches, offloading
from grpo_math.trainer.config import SAVINGS, GRPOMathConfig
from grpo_math.trainer.dynamic_sampling import DynamicSampling, metrics_of_the_first_draw
from grpo_math.trainer.input_casts import InputCasts
from grpo_math.trainer.lm_head import add_compact_lm_head
from grpo_math.trainer.old_logps import OldLogps
from grpo_math.trainer.packing import Packing
from grpo_math.trainer.reward_shares import log_shares
from grpo_math.trainer.row_selection import RowSelection
from grpo_math.trainer.variant import Variant, beta_as, frozen_copy


class GRPOMathTrainer(GRPOTrainer):
    """
    [`trl.GRPOTrainer`] with the options of [`GRPOMathConfig`]: same arguments, metric names and checkpoints.

    With a plain [`trl.GRPOConfig`] every option is off. Further metrics: `skipped_rows` (rows of the generation batch,
    over all processes, that no forward was run on), `padding_fraction` (of the positions that were run),
    `dynamic_sampling/*`, `beta`, `kl/k1`, `kl/k2`, `kl/k3`, `ref_clip_ratio/*`, `clip_ratio/either_mean`. Rewards,
    lengths and the zero-variance share cover all rows; clip ratios count skipped rows as unclipped; `entropy`, `kl/*`
    and `vespo/phi_seq_mean` cover the rows that were scored.

    Rewards: a `None` or NaN means that a function does not apply to a row (TRL leaves it out, and a row that no
    function applies to has advantage zero). An infinite reward or a list of another length is an error.
    """

    _tag_names = ("trl", "grpo", "grpo-math")
    _name = "GRPO"

    def __init__(self, model, reward_funcs=None, args=None, *others, **kwargs):
        """Reads the options, adds the compact head and, for reference clipping at beta 0, a reference."""
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GRPOMathConfig(f"{name.split('/')[-1]}-GRPO")
        math_args = args if isinstance(args, GRPOMathConfig) else None
        self._warn_once = exactness.WarnOnce()
        self._loss_inputs = self._rewards = None  # of the running loss, of the running generation
        self._finished_micro_steps = 0  # TRL's `_step` at the end of the last optimizer step
        self._variant = Variant(math_args)
        self._old_logps = OldLogps(self)
        self._dynamic_sampling = DynamicSampling(math_args.dynamic_sampling if math_args else 0, args.seed)
        self._saving = {name: math_args is not None and getattr(math_args, name) is not False for name in SAVINGS}

        if math_args is not None and math_args.embeddings_on_host:
            host_embeddings.move_trainer_embeddings(model, kwargs.get("peft_config"))
        # A PEFT model that brings a trained adapter has that adapter as its reference; TRL copies it if beta is not 0
        copy_adapter = self._variant.reference_clipping and args.beta == 0.0 and not isinstance(model, str)
        copy_adapter = copy_adapter and is_peft_model(model)
        with beta_as(args, 1.0 if copy_adapter else args.beta):
            super().__init__(model, reward_funcs, args, *others, **kwargs)
        self.beta = args.beta
        self._unlogged = checkpoints.UnloggedSteps(self)
        self.add_callback(self._unlogged)

        policy = self.accelerator.unwrap_model(self.model)
        base = policy.get_base_model() if is_peft_model(policy) else policy
        if self._variant.reference_clipping and self.ref_model is None and not is_peft_model(policy):
            self.ref_model = frozen_copy(self, policy)
        if self._saving["compact_lm_head"]:
            add_compact_lm_head(base)
            if self.ref_model is not None:
                add_compact_lm_head(self.accelerator.unwrap_model(self.ref_model))
        trim = self._saving["trim_padding"] and exactness.columns_are_inert(base)
        self._columns = micro_batches.Columns(trim, exactness.left_padding_is_inert(base), self.pad_to_multiple_of)
        if math_args is not None:
            exactness.refuse_continuous_batching(self)
            exactness.refuse_blocked_savings(self, math_args)
        skip_casts = self._saving["skip_input_casts"] and exactness.casts_blocked_by(self) is None
        self._input_casts = InputCasts(policy, skip_casts)
        self._offload = math_args is not None and math_args.activation_offloading
        offloading.check_accelerator(self._offload)
        self._packing = None
        if self._saving["pack_groups"]:
            if reason := exactness.pack_blocked_by(self):
                self._warn_once(f"pack_groups is disabled because {reason}.")
            else:
                self._packing = Packing.of(base, self.pad_to_multiple_of)
        self._row_selection = None
        if math_args is not None and math_args.train_rows:
            if reason := exactness.skip_blocked_by(self):
                raise ValueError(f"train_rows={args.train_rows} would bias the gradient: {reason}. Set train_rows=0.")
            self._row_selection = RowSelection.of(self, arranged=arrangement(self) is not None)
        if self._saving["trim_padding"] and not trim:
            self._warn_once(f"trim_padding is disabled because {exactness.trim_blocked_by(self)}.")
        if self._dynamic_sampling.rounds and (
            self.tools or self.environment_factories or self._is_vlm or self.rollout_func
        ):
            raise ValueError(
                f"dynamic_sampling={self._dynamic_sampling.rounds} works on text prompts that the trainer generates from: "
                "not with tools, environment_factory, rollout_func or images. Set dynamic_sampling=0."
            )

    @contextlib.contextmanager
    def autocast(self):
        """Inside the context forward passes have the precision of training, also those of `generate`."""
        with self.accelerator.autocast(), self._input_casts.off():
            yield

    # --- rewards and the generation batch ---

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        """Refuses infinite rewards and remembers the gathered ones; TRL calls the reward functions."""
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        infinite = torch.isinf(rewards_per_func)
        if infinite.any():
            row, column = infinite.nonzero()[0].tolist()
            raise ValueError(
                f"The reward function '{self.reward_func_names[column]}' returned {rewards_per_func[row, column]} for "
                f"row {row} of the generation batch. An infinite reward makes the group's advantages NaN. Return a "
                "finite number, or None where the function does not apply."
            )
        self._rewards = rewards_per_func
        return rewards_per_func

    def _generate_and_score_completions(self, inputs):
        """Marks the live rows and, with `dynamic_sampling`, replaces dead groups; the rest is TRL's."""
        num_generations = self.num_generations if self.model.training else self.num_generations_eval
        score = super()._generate_and_score_completions

        def generate(rows):
            # TRL computes reference log-probabilities when beta is not 0, and reads beta here for nothing else
            self._old_logps.begin()
            with beta_as(self, 1.0 if self._variant.reference_clipping else self.beta):
                batch = score(rows)
            rewards, self._rewards = self._rewards, None
            advantages = batch["advantages"]
            has_loss = micro_batches.loss_mask(batch).any(dim=1)  # none where a truncated completion is masked
            batch["live"] = advantages.reshape(len(advantages), -1).ne(0).any(dim=1) & has_loss
            first = self.accelerator.process_index * len(advantages)
            here = slice(first, first + len(advantages))
            if rewards is not None:
                weights = self.reward_weights.to(rewards.device)
                dead = losses.dead_rows(rewards, weights, num_generations, self.multi_objective_aggregation)
                batch["live"] &= ~dead[here]
                if self.model.training:
                    log_shares(self, rewards)
            if self._old_logps.put_off:
                batch = self._old_logps.fill(batch)
            if not (self.model.training and self._dynamic_sampling.rounds):
                return batch, None
            batch["rewards_per_func"] = rewards[here]
            return batch, ~self.accelerator.gather(batch["live"]).view(-1, num_generations).any(dim=1)

        batch, dead_groups = generate(inputs)
        if self.model.training and self._dynamic_sampling.rounds:
            metrics = self._metrics["train"]
            with metrics_of_the_first_draw(metrics, self._logs):
                batch, figures = self._dynamic_sampling.replace_dead_groups(
                    batch, dead_groups, generate, self.train_dataset, num_generations, self.accelerator
                )
            for name, value in figures.items():
                metrics[f"dynamic_sampling/{name}"].append(value)
            self._rescale_advantages(batch)
        return batch

    def _rescale_advantages(self, batch):
        """Advantages of a batch with replaced groups, in place, where their scale is that of the whole batch."""
        rewards = self.accelerator.gather(batch.pop("rewards_per_func"))
        if self.scale_rewards != "batch" and self.multi_objective_aggregation != "normalize_then_sum":
            return
        weights = self.reward_weights.to(rewards.device)
        settings = (self.num_generations, self.scale_rewards, self.multi_objective_aggregation)
        advantages = losses.batch_advantages(rewards, weights, *settings)
        first = self.accelerator.process_index * len(batch["live"])
        batch["advantages"] = advantages[first : first + len(batch["live"])]

    def _generate_single_turn(self, *args, **kwargs):
        """Lets transformers decode with our loop, in one autocast; tokens, padding and the cut at EOS stay TRL's."""
        generate = super()._generate_single_turn
        share_prefill, drop_finished = self._saving["share_prefill"], self._saving["drop_finished"]
        if self.use_vllm or self.use_transformers_continuous_batching:
            return generate(*args, **kwargs)
        with contextlib.ExitStack() as stack:
            if self._saving["cast_weights_once"] and exactness.one_autocast_blocked_by(self) is None:
                # It ends before the optimizer changes the weights, whose casts it keeps
                stack.enter_context(self.autocast())
            if share_prefill or drop_finished:
                if reason := exactness.decode_blocked_by(self):
                    self._warn_once(f"share_prefill and drop_finished are disabled because {reason}.")
                else:
                    policy = self.accelerator.unwrap_model(self.model_wrapped)
                    stack.enter_context(decoding.decoding_with(policy, share_prefill, drop_finished))
            return generate(*args, **kwargs)

    # --- micro-batches ---

    def _prepare_inputs(self, generation_batch):
        """Lays out a new generation batch (sorted, dead rows left out) once TRL has shuffled and split it."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = lay_out_batch(self, self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """Runs each prompt once, or trims the columns that no row uses, without PEFT's casts, activations on the host."""
        if self._old_logps.take():
            return input_ids.new_zeros(len(input_ids), logits_to_keep, dtype=torch.float32), None, None
        offload = self._offload and torch.is_grad_enabled()
        with self._input_casts.off(), offloading.activation_offloading(model, offload):
            scored = self._score(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        if self._loss_inputs is not None:
            self._old_logps.in_loss(self._loss_inputs, scored[0])
            self._variant.apply(self._loss_inputs, scored[0])
        return scored

    def _score(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs):
        """Log-probabilities, entropies and auxiliary loss, packed or trimmed as far as that is exact."""
        score = super()._get_per_token_logps_and_entropies
        extra = any(value is not None and value is not False for value in kwargs.values())  # images or an aux loss
        packed = None
        if self._packing and not extra:
            rows = batch_size or len(input_ids)
            with self.accelerator.autocast():
                packed = self._packing.score(model, input_ids, attention_mask, logits_to_keep, rows, compute_entropy)
        if packed is not None:
            (logps, entropies), aux_loss = packed, None
        elif extra or not self._columns.trim:
            logps, entropies, aux_loss = score(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        else:
            rows = batch_size or len(input_ids)
            logps, entropies = micro_batches.score_by_length(
                lambda ids, mask, keep: score(model, ids, mask, keep, None, compute_entropy, **kwargs),
                input_ids,
                attention_mask,
                logits_to_keep,
                rows,
                self._columns,
            )
            aux_loss = None
        return logps, entropies, aux_loss

    # --- the loss ---

    def _compute_loss(self, model, inputs):
        """TRL's loss, with the options' clipped advantages and KL term; corrects the clip ratios."""
        inputs = dict(inputs)
        weights = inputs.pop("metric_weights", None)
        mode = "train" if self.model.training else "eval"
        metrics, own_kl = self._metrics[mode], self._variant.replaces_kl(self.beta)
        self._loss_inputs = inputs
        try:
            with self._input_casts.off(until_backward=mode == "train"), beta_as(self, 0.0 if own_kl else self.beta):
                loss = super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None
        if own_kl:
            loss = loss + self._variant.kl_term(self, inputs, metrics)
        self._variant.log(inputs, metrics, self.beta, self.accelerator)
        if weights is not None:
            by_row = self.importance_sampling_level == "sequence" and not self._variant.reference_clipping
            micro_batches.weigh_metrics(metrics, weights, by_row)
        if mode == "train" and self.beta != 0.0:
            self._variant.note_kl(metrics["kl"][-1])
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Adapts beta to `kl_target` once the last micro-batch of an optimizer step has been run."""
        with self._input_casts.training_step():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            rows = self.args.per_device_train_batch_size * self.accelerator.num_processes
            self.beta = self._variant.adapted_beta(self.beta, rows)
        return loss

    # --- checkpoints ---

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """Notes how many micro-batches the finished optimizer steps took, and what of them is not logged yet."""
        self._finished_micro_steps = self._step
        self._unlogged.note()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """Saves the options' state first, so that `trainer_state.json` ends the checkpoint; deletes checkpoints only."""
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        checkpoints.begin_checkpoint(self, folder)
        with checkpoints.none_deleted(self.args):
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            checkpoints.delete_oldest(self, folder)

    def _finalize_training(self, trial, *args):
        """With `save_total_limit` 1 leaves the best checkpoint alone, as transformers does, and what is no checkpoint."""
        with checkpoints.none_deleted(self.args):
            output = super()._finalize_training(trial, *args)
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            checkpoints.delete_oldest(self, Path(self._get_output_dir(trial), Path(best).name))
        return output

    def create_model_card(self, *args, **kwargs):
        """Leaves a README.md in the output folder alone that no trainer wrote."""
        card = Path(self.args.output_dir, checkpoints.CARD)
        if not card.exists() or checkpoints.is_generated_card(card):
            super().create_model_card(*args, **kwargs)

    def _save_rng_state(self, output_dir):
        """Waits until every process has written its file: TRL then ends the checkpoint and deletes older ones."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Restores the options' state, where the checkpoint holds it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            checkpoints.load_state(self, Path(checkpoint))


def arrangement(trainer: GRPOMathTrainer) -> str | None:
    """How rows are ordered within an optimizer step, as of [`micro_batches.lay_out`]; `None` where they stay in place."""
    arrange = "prompt" if trainer._packing else "length" if trainer._saving["sort_by_length"] else None
    return None if arrange and exactness.sort_blocked_by(trainer) else arrange


def lay_out_batch(trainer: GRPOMathTrainer, batches: list[dict]) -> list[dict]:
    """
    A generation batch in TRL's micro-batches, laid out as far as the trainer's savings are exact, and logged.

    Args:
        trainer ([`GRPOMathTrainer`]).
        batches (`list[dict]`): TRL's buffer, each with `"live"` of shape `(B,)`, bool.
    """
    skip, arrange = trainer._saving["skip_zero_advantage"], arrangement(trainer)
    if skip and (reason := exactness.skip_blocked_by(trainer)):
        trainer._warn_once(f"skip_zero_advantage is disabled because {reason}.")
        skip = False
    select = trainer._row_selection and partial(trainer._row_selection, trainer.state.global_step)
    metrics = trainer._metrics["train"]
    if skip or arrange:
        batches, skipped = micro_batches.lay_out_generation(
            batches,
            trainer.accelerator,
            trainer.loss_type,
            trainer.args.gradient_accumulation_steps,
            skip,
            arrange,
            trainer.num_generations,
            select,
        )
        metrics["skipped_rows"].append(skipped)
    if (skip or arrange or trainer._packing or trainer._saving["trim_padding"]) and not trainer._is_vlm:
        positions = (trainer._packing or trainer._columns).positions
        padding = micro_batches.padding_fraction(batches, positions, trainer.accelerator)
        metrics["padding_fraction"].append(padding)
    return batches
