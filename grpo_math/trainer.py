"""GRPOMathConfig and GRPOMathTrainer: TRL's GRPO pair plus options. With every option off it is TRL's trainer.

Two kinds of options. The savings (`savings.py`, `decoding.py`) give TRL's gradient for less compute and are on where
they are exact. The variant (`losses.py`) changes what is optimized and is off: the KL estimator, a coefficient that
follows a target KL, and reference clipping. Each override below says in its first line what it changes.

>>> config = GRPOMathConfig(output_dir="out", beta=0.04, kl_target=0.05)
>>> trainer = GRPOMathTrainer(model=model, reward_funcs=reward, args=config, train_dataset=dataset)
"""

import copy
import itertools
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, get_config_model_id

from grpo_math import decoding, losses, models, savings

logger = get_logger(__name__)

# Every private name of TRL (and transformers) that this package overrides, reads or sets. A test checks that each
# still exists and that no other is used, so that an upgrade that renames one fails there and not in a training run.
PRIVATE_NAMES = {
    "overridden": (
        "_calculate_rewards",
        "_compute_loss",
        "_generate_and_score_completions",
        "_generate_single_turn",
        "_get_per_token_logps_and_entropies",
        "_load_optimizer_and_scheduler",
        "_prepare_inputs",
        "_save_checkpoint",
    ),
    "read": ("_entropy_bonus_enabled", "_get_output_dir", "_is_vlm", "_step"),
    "changed": ("_buffered_inputs", "_logs", "_metrics"),
    "transformers": ("_update_model_kwargs_for_generation",),
}

# Beside a checkpoint of TRL's, as far as the options are in use: the adapted beta, the place among the fresh prompts
STATE_FILE = "grpo_math_state.json"
BETA_STATE_FILE = "kl_ctrl_state.json"  # older checkpoints hold beta alone, in here
DEFAULT_KL_HORIZON = 10_000

SAVINGS = (
    "skip_zero_advantage",
    "trim_padding",
    "sort_by_length",
    "compact_lm_head",
    "share_prefill",
    "drop_finished",
)

# Means over the tokens of a micro-batch: of those that were scored, and of all, where a skipped row counts as zero
SCORED_METRICS = ("entropy", "kl", "kl/k1", "kl/k2", "kl/k3")
CLIP_METRICS = (
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "clip_ratio/either_mean",
    "cispo_clip_ratio",
    "ref_clip_ratio/low_mean",
    "ref_clip_ratio/high_mean",
    "ref_clip_ratio/region_mean",
)


def _saving(what: str) -> bool | None:
    return field(default=None, metadata={"help": f"{what} Not set: on wherever it is exact."})


@dataclass
class GRPOMathConfig(GRPOConfig):
    r"""
    [`trl.GRPOConfig`] plus this project's trainer options.

    > Savings: the same gradient for less compute. Not set means on wherever exact, and stepping aside elsewhere;
    > `False` is TRL's way; `True` where a saving cannot act (the loss, the model or the generation forbids it) is an
    > error.

    Parameters:
        skip_zero_advantage (`bool`, *optional*):
            Leave out rows of groups whose rewards are all equal: with `beta=0` their policy gradient is exactly zero.
            Not with a KL term, an entropy bonus or quantile mask, a MoE auxiliary loss, images or tools: not set, it
            then steps aside and says so once. Every process keeps the same number of rows in a micro-batch.
        trim_padding (`bool`, *optional*):
            Leave out the columns that no row of a micro-batch uses. TRL pads to the longest of the generation batch.
            Not with images, nor with rotary frequencies that follow the width of the input.
        sort_by_length (`bool`, *optional*):
            Bring rows of similar length together, within one optimizer step. Not with images, nor with a loss that
            depends on which rows share a micro-batch (`bnpo`, entropy bonus, quantile mask, auxiliary loss).
        compact_lm_head (`bool`, *optional*):
            On a CPU, project only the completion's positions through the LM head (on CUDA TRL always does).
        share_prefill (`bool`, *optional*):
            Generation with transformers: run each distinct prompt once for its G completions.
        drop_finished (`bool`, *optional*):
            Generation with transformers: take finished rows out of the batch. For both, greedy output is identical
            and sampled output equal in law, not promised to be draw for draw. Neither with vLLM, continuous batching,
            images, a sharded model, a learned prompt, beam search or another kind of cache.
        dynamic_sampling (`int`, *optional*, defaults to `0`):
            Rounds of fresh prompts, at most, to replace groups whose rewards are all equal (DAPO, arXiv 2503.14476,
            section 3.2). The batch then goes on as it is. TRL's metrics describe the first draw. Fresh prompts come
            from shuffled passes of their own over the training set, which a resumed run continues.

        embeddings_on_host (`bool`, *optional*, defaults to `False`):
            Keep the input embeddings in host memory and look rows up there: the same model, and their size saved on the
            card. For PEFT adapters on a model whose LM head is a table of its own.

        > The variant: what is optimized

        kl_estimator (`str`, *optional*):
            `"k1"`, `"k2"` or `"k3"` for the KL term (see [`losses.kl_estimate`]). Not set is TRL's: k3, importance-
            corrected with `use_bias_correction_kl`. k1 needs that correction, since it is no penalty otherwise.
        kl_target (`float`, *optional*):
            Wanted KL to the reference, nats per token: after each optimizer step `beta` is multiplied by `1 +
            clip(kl / kl_target - 1, -0.2, 0.2) * completions / kl_horizon` (Ziegler et al., arXiv 1909.08593).
        kl_horizon (`float`, *optional*):
            Completions over which `beta` can change by a factor of about 1.2. 10000 when not set.
        ref_clip_low (`float`, *optional*), ref_clip_high (`float`, *optional*):
            Reference clipping, nats: a token with positive advantage is no longer pushed once `log pi - log pi_ref`
            has reached `ref_clip_high`, one with negative advantage once it has reached `-ref_clip_low` (see
            [`losses.is_reference_clipped`]). One of them alone leaves the other side open. Needs a reference also at
            `beta=0`: with PEFT the disabled adapter, else a frozen copy of the model, in memory beside it.
    """

    skip_zero_advantage: bool | None = _saving("Skip rows of groups whose rewards are all equal (needs beta 0).")
    trim_padding: bool | None = _saving("Trim the columns that no row of a micro-batch uses.")
    sort_by_length: bool | None = _saving("Sort rows by length within an optimizer step.")
    compact_lm_head: bool | None = _saving("On a CPU, run the LM head on completion positions only.")
    share_prefill: bool | None = _saving("Run each distinct prompt once when generating with transformers.")
    drop_finished: bool | None = _saving("Take finished rows out of the batch when generating with transformers.")
    dynamic_sampling: int = field(
        default=0,
        metadata={"help": "Rounds of fresh prompts, at most, to replace groups whose rewards are all equal. 0 is off."},
    )
    embeddings_on_host: bool = field(
        default=False,
        metadata={
            "help": "Keep the frozen, untied input embeddings in host memory (PEFT): the same model, less on the card."
        },
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = field(
        default=None,
        metadata={"help": "KL estimator of the loss. Not set: TRL's importance-corrected k3."},
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Wanted KL to the reference, nats per token; beta follows it. Needs beta > 0 to start from."},
    )
    kl_horizon: float | None = field(
        default=None,
        metadata={"help": f"Completions over which beta adapts to kl_target. Not set: {DEFAULT_KL_HORIZON}."},
    )
    ref_clip_low: float | None = field(
        default=None,
        metadata={"help": "Stop pushing a token down once it is this many nats below the reference."},
    )
    ref_clip_high: float | None = field(
        default=None,
        metadata={"help": "Stop pushing a token up once it is this many nats above the reference."},
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_savings()
        self._check_variant()

    @property
    def reference_clipping(self) -> bool:
        """Whether either bound of reference clipping is set."""
        return self.ref_clip_low is not None or self.ref_clip_high is not None

    def mixes_rows(self) -> str | None:
        """The option that makes a row's gradient depend on which rows share its micro-batch, or `None`."""
        if self.loss_type in losses.MICRO_BATCH_MEAN:
            return f"loss_type={self.loss_type!r}"
        return self._entropy_option()

    def needs_every_row(self) -> str | None:
        """The option under which a row with advantage zero counts in the gradient, or `None`."""
        return f"beta={self.beta:g}" if self.beta != 0.0 else self._entropy_option()

    def _entropy_option(self) -> str | None:
        if self.entropy_coef != 0.0 or self.use_adaptive_entropy:
            return f"entropy_coef={self.entropy_coef}, use_adaptive_entropy={self.use_adaptive_entropy}"
        if self.top_entropy_quantile < 1.0:
            return f"top_entropy_quantile={self.top_entropy_quantile}"
        return None

    def _check_savings(self):
        for name in SAVINGS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: write True, False, or None for wherever it is exact.")
        if not isinstance(self.embeddings_on_host, bool):
            raise ValueError(f"embeddings_on_host={self.embeddings_on_host!r}: write True or False.")
        if self.skip_zero_advantage and self.needs_every_row():
            raise ValueError(
                f"skip_zero_advantage=True and {self.needs_every_row()} contradict each other: rows whose advantage is "
                "zero count there too. Leave skip_zero_advantage out, or use beta=0, no entropy term and "
                "top_entropy_quantile=1."
            )
        if self.sort_by_length and self.mixes_rows():
            raise ValueError(
                f"sort_by_length=True and {self.mixes_rows()} contradict each other: this loss depends on which rows "
                "share a micro-batch, so sorting would change the gradient. Leave sort_by_length out, or use "
                "loss_type='dapo' without an entropy term."
            )
        for name in ("share_prefill", "drop_finished"):
            for other in ("use_vllm", "use_transformers_continuous_batching"):
                if getattr(self, name) and getattr(self, other):
                    raise ValueError(
                        f"{name}=True and {other}=True contradict each other: {name} works in transformers' own "
                        f"generation loop. Leave {name} out, or set {other}=False."
                    )
        rounds = self.dynamic_sampling
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
            raise ValueError(f"dynamic_sampling={self.dynamic_sampling}: write a number of rounds, 0 for none.")
        if self.dynamic_sampling:
            across = {"scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum"}
            for name, value in across.items():
                if getattr(self, name) == value:
                    raise ValueError(
                        f"dynamic_sampling={self.dynamic_sampling} and {name}={value!r} contradict each other: that "
                        "scale is taken over the whole batch, of which dynamic sampling replaces a part. Use "
                        "scale_rewards='group' and multi_objective_aggregation='sum_then_normalize', or "
                        "dynamic_sampling=0."
                    )

    def _check_variant(self):
        if self.kl_estimator is not None:
            if self.kl_estimator not in losses.KL_ESTIMATORS:
                raise ValueError(f"kl_estimator={self.kl_estimator!r} is not known. Write one of 'k1', 'k2', 'k3'.")
            if not self.beta > 0:
                raise ValueError(
                    f"kl_estimator={self.kl_estimator!r} and beta={self.beta:g} contradict each other: without a coefficient "
                    "there is no KL term. Set beta above 0 (0.001 to 0.04 are usual), or leave kl_estimator out."
                )
            if self.kl_estimator == "k1" and not self.use_bias_correction_kl:
                raise ValueError(
                    "kl_estimator='k1' and use_bias_correction_kl=False contradict each other: the expected gradient "
                    "of plain k1 is zero, so it is no penalty. Set use_bias_correction_kl=True, or use "
                    "kl_estimator='k2'."
                )
        if self.kl_target is not None:
            if not self.beta > 0:
                raise ValueError(
                    f"kl_target={self.kl_target} and beta={self.beta:g} contradict each other: the controller multiplies beta, "
                    "and zero stays zero. Set beta to a positive start (0.04, say), or leave kl_target out."
                )
            if not 0 < self.kl_target < math.inf:
                raise ValueError(f"kl_target={self.kl_target}: write a positive number of nats per token.")
            self._check_horizon()
        elif self.kl_horizon is not None:
            raise ValueError(
                f"kl_horizon={self.kl_horizon} without kl_target has no effect: set kl_target, or leave it out."
            )
        for name in ("ref_clip_low", "ref_clip_high"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value}: write a number of nats of at least 0, inf for no bound.")

    def _check_horizon(self):
        completions = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
        horizon = DEFAULT_KL_HORIZON if self.kl_horizon is None else self.kl_horizon
        if not horizon > 0.2 * completions:
            raise ValueError(
                f"kl_horizon={horizon} is too short for kl_target: with {completions} completions an optimizer step "
                f"one step could bring beta to zero. Set kl_horizon well above {completions}."
            )


class GRPOMathTrainer(GRPOTrainer):
    """
    [`trl.GRPOTrainer`] with the options of [`GRPOMathConfig`]: same arguments, metric names and checkpoints.

    With a plain [`trl.GRPOConfig`] every option is off. Further metrics: `skipped_rows` (rows of the generation batch,
    over all processes, that no forward was run on), `padding_fraction` (of the positions that were run),
    `dynamic_sampling/*`, `beta`, `kl/k1`, `kl/k2`, `kl/k3`, `ref_clip_ratio/*`, `clip_ratio/either_mean`. Rewards,
    lengths and the zero-variance share cover all rows; clip ratios count skipped rows as unclipped; `entropy`, `kl/*`
    and `vespo/phi_seq_mean` cover the rows that were scored.

    Rewards: a `None` or NaN means that a function does not apply to a row (TRL leaves it out, and a row that no
    function applies to has advantage zero); an infinite reward or a list of another length is an error.
    """

    _tag_names = ("trl", "grpo", "grpo-math")
    _name = "GRPO"

    def __init__(self, model, reward_funcs=None, args=None, *others, **kwargs):
        """Reads the options, adds the compact head and, for reference clipping at beta 0, a reference."""
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GRPOMathConfig(f"{name.split('/')[-1]}-GRPO")
        math_args = args if isinstance(args, GRPOMathConfig) else None
        self._said = set()
        self._loss_inputs = None
        self._rewards = self._dead_groups = None
        self._fresh = self._fresh_prompts()
        self._fresh_pass = self._fresh_offset = 0
        self._reference_clipping = math_args is not None and math_args.reference_clipping
        self._ref_clip_low = self._bound(math_args and math_args.ref_clip_low)
        self._ref_clip_high = self._bound(math_args and math_args.ref_clip_high)
        self._kl_estimator = math_args and math_args.kl_estimator
        self._kl_target = math_args and math_args.kl_target
        self._kl_horizon = (math_args and math_args.kl_horizon) or DEFAULT_KL_HORIZON
        self._window_kl = []
        self._dynamic_sampling = math_args.dynamic_sampling if math_args else 0
        self._saving = {name: math_args is not None and getattr(math_args, name) is not False for name in SAVINGS}

        if math_args is not None and math_args.embeddings_on_host:
            self._move_embeddings(model, kwargs.get("peft_config"))
        # A PEFT model that brings a trained adapter has that adapter as its reference; TRL copies it if beta is not 0
        copy_adapter = self._reference_clipping and args.beta == 0.0 and not isinstance(model, str)
        copy_adapter = copy_adapter and is_peft_model(model)
        with _beta_as(args, 1.0 if copy_adapter else args.beta):
            super().__init__(model, reward_funcs, args, *others, **kwargs)
        self.beta = args.beta

        policy = self.accelerator.unwrap_model(self.model)
        base = policy.get_base_model() if is_peft_model(policy) else policy
        if self._reference_clipping and self.ref_model is None and not is_peft_model(policy):
            self.ref_model = self._frozen_copy(policy)
        if self._saving["compact_lm_head"]:
            savings.add_compact_lm_head(base)
            if self.ref_model is not None:
                savings.add_compact_lm_head(self.accelerator.unwrap_model(self.ref_model))
        self._columns_are_inert = savings.columns_are_inert(base)
        self._left_padding_is_inert = savings.left_padding_is_inert(base)
        if math_args is not None:
            self._refuse_savings_that_cannot_act(math_args)
        if self._saving["trim_padding"] and not self._columns_are_inert:
            self._say_once(f"trim_padding steps aside: {self._why_not_trim()}.")
        if self._dynamic_sampling and (self.tools or self.environment_factories or self._is_vlm or self.rollout_func):
            raise ValueError(
                f"dynamic_sampling={self._dynamic_sampling} works on text prompts that the trainer generates from: "
                "not with tools, environment_factory, rollout_func or images. Set dynamic_sampling=0."
            )

    @staticmethod
    def _move_embeddings(model, peft_config):
        if isinstance(model, str):
            raise ValueError("embeddings_on_host=True needs the model itself: load it and pass it instead of its name.")
        if peft_config is None and not is_peft_model(model):
            raise ValueError(
                "embeddings_on_host=True and full fine-tuning contradict each other: embeddings that are trained are needed "
                "on the card. Pass a peft_config (use_peft: true), or set embeddings_on_host=False."
            )
        embedding = model.get_input_embeddings()
        name = next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[2]
        for option in ("modules_to_save", "target_modules", "trainable_token_indices"):
            if name in (getattr(peft_config, option, None) or ()):
                raise ValueError(
                    f"embeddings_on_host=True and {option} of the peft_config, which names {name}, contradict each other: "
                    f"embeddings that are trained are needed on the card. Take {name} out, or set embeddings_on_host=False."
                )
        models.embeddings_to_host(model)

    def _refuse_savings_that_cannot_act(self, args):
        # By default they step aside; what the options alone forbid, the config has refused
        checks = {
            "skip_zero_advantage": self._why_not_skip,
            "trim_padding": self._why_not_trim,
            "sort_by_length": self._why_not_sort,
            "share_prefill": self._why_not_decode,
            "drop_finished": self._why_not_decode,
        }
        for name, why_not in checks.items():
            if getattr(args, name) and (reason := why_not()):
                raise ValueError(f"{name}=True cannot act here: {reason}. Leave {name} out, so that it steps aside.")

    @staticmethod
    def _bound(value: float | None) -> float:
        return math.inf if value is None else value

    def _frozen_copy(self, policy):
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "ref_clip_low and ref_clip_high with beta=0 need a frozen copy of the model, which is not made from "
                "sharded weights. Set a small beta, so that TRL loads the reference, or train a PEFT adapter."
            )
        reference = copy.deepcopy(policy).eval().requires_grad_(False)
        reference.__dict__.pop("forward", None)  # the copied head would run the original's layers
        add_fused_lm_head(reference, temperature=self.temperature, cast_lm_head_to_fp32=self.args.cast_lm_head_to_fp32)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

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
        batch = self._generate_and_mark(inputs)
        if self.model.training and self._dynamic_sampling:
            batch = self._replace_dead_groups(batch)
        return batch

    def _generate_and_mark(self, inputs):
        # TRL computes reference log-probabilities when beta is not 0, and reads beta here for nothing else
        with _beta_as(self, 1.0 if self._reference_clipping else self.beta):
            batch = super()._generate_and_score_completions(inputs)
        num_generations = self.num_generations if self.model.training else self.num_generations_eval
        advantages = batch["advantages"]
        batch["live"] = advantages.reshape(len(advantages), -1).ne(0).any(dim=1)
        self._dead_groups = None
        # Only here does an equal reward mean no advantage: the other aggregation compares with the whole batch
        if self.multi_objective_aggregation == "sum_then_normalize" and self._rewards is not None:
            unscored = self._rewards.isnan().all(dim=1)
            summed = (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(dim=1)
            dead = losses.equal_reward_groups(summed.masked_fill(unscored, torch.nan), num_generations)
            first = self.accelerator.process_index * len(advantages)
            batch["live"] &= ~dead[first : first + len(advantages)]
            self._dead_groups = dead.view(-1, num_generations)[:, 0]
        self._rewards = None
        return batch

    def _replace_dead_groups(self, batch):
        """At most `dynamic_sampling` rounds of fresh prompts in the place of groups with equal rewards."""
        accelerator, size = self.accelerator, self.num_generations
        metrics, logs = copy.deepcopy(self._metrics["train"]), copy.deepcopy(self._logs)
        dead = self._dead_groups.clone()  # over all processes, as every group index below
        started_dead, rounds = int(dead.sum()), 0
        first_row = accelerator.process_index * len(batch["live"])
        while dead.any() and rounds < self._dynamic_sampling:
            rounds += 1
            # Every process generates the same number of rows, in whole groups over all of them
            unit = accelerator.num_processes // math.gcd(size, accelerator.num_processes)
            groups = math.ceil(int(dead.sum()) / unit) * unit
            rows = [dict(example) for example in itertools.islice(self._fresh, groups) for _ in range(size)]
            share = len(rows) // accelerator.num_processes
            fresh = self._generate_and_mark(rows[accelerator.process_index * share :][:share])
            fresh_live = (~self._dead_groups).nonzero().squeeze(1)
            targets = dead.nonzero().squeeze(1)[: len(fresh_live)]
            offsets = torch.arange(size, device=dead.device)
            source = (fresh_live[: len(targets), None] * size + offsets).view(-1)
            target = (targets[:, None] * size + offsets).view(-1) - first_row
            here = (target >= 0) & (target < len(batch["live"]))
            batch = _overwrite_rows(batch, target[here], _gather_rows(accelerator, fresh), source[here])
            dead[targets] = False
        num_tokens = self._metrics["train"]["num_tokens"]
        self._metrics["train"].clear()
        self._metrics["train"].update(metrics, num_tokens=num_tokens)
        self._logs.update(logs)
        left = int(dead.sum())
        self._metrics["train"]["dynamic_sampling/rounds"].append(rounds)
        self._metrics["train"]["dynamic_sampling/replaced_groups"].append(started_dead - left)
        self._metrics["train"]["dynamic_sampling/dead_groups_left"].append(left)
        tokens = savings.loss_mask(batch).sum()
        return {**batch, "num_items_in_batch": accelerator.gather(tokens).sum()}

    def _fresh_prompts(self) -> Iterator[dict]:
        """Own endless shuffled passes over the training set, from where `_fresh_pass` and `_fresh_offset` stand."""
        while True:
            rows = self.train_dataset.shuffle(seed=self.args.seed + 1 + self._fresh_pass)
            # A streamed data set has no length, and `Dataset.skip` refuses its own length
            if not isinstance(rows, Dataset) or self._fresh_offset < len(rows):
                for row in rows.skip(self._fresh_offset):
                    self._fresh_offset += 1
                    yield row
            self._fresh_pass, self._fresh_offset = self._fresh_pass + 1, 0

    def _generate_single_turn(self, *args, **kwargs):
        """Lets transformers decode with our loop; tokens, padding and the cut at EOS stay TRL's."""
        share_prefill, drop_finished = self._saving["share_prefill"], self._saving["drop_finished"]
        if self.use_vllm or self.use_transformers_continuous_batching or not (share_prefill or drop_finished):
            return super()._generate_single_turn(*args, **kwargs)
        if reason := self._why_not_decode():
            self._say_once(f"share_prefill and drop_finished step aside: {reason}.")
            return super()._generate_single_turn(*args, **kwargs)
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        with decoding.decoding_with(policy, share_prefill, drop_finished):
            return super()._generate_single_turn(*args, **kwargs)

    # --- where a saving cannot act: the reason, naming the option or the model's part, or `None` ---

    def _why_not_decode(self) -> str | None:
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        if self._is_vlm:
            return self._takes_images()
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return "the model is sharded (DeepSpeed or FSDP)"
        if is_peft_model(policy) and policy.active_peft_config.is_prompt_learning:
            return "the adapter is a learned prompt"
        return decoding.unsupported_reason(self.generation_config)

    def _why_not_skip(self) -> str | None:
        if self.beta != 0.0:
            return "beta is not 0, and the KL term of a row does not depend on its advantage"
        if self._entropy_bonus_enabled:
            return "the entropy bonus covers every row"
        if self.top_entropy_quantile < 1.0:
            return f"top_entropy_quantile={self.top_entropy_quantile} compares the tokens of all rows"
        if self.tools or self.environment_factories:
            return "tools or environment_factory are in use"
        return self._aux_loss() or self._takes_images()

    def _why_not_sort(self) -> str | None:
        return self.args.mixes_rows() or self._aux_loss() or self._takes_images()

    def _why_not_trim(self) -> str | None:
        if not self._columns_are_inert:
            return "the model's rope_type makes its positions depend on the width of the input"
        return self._takes_images()

    def _aux_loss(self) -> str | None:
        if self.aux_loss_enabled:
            coefficient = f"router_aux_loss_coef={self.router_aux_loss_coef:g}"
            return f"{coefficient} (0 for none) is a loss over all rows of a micro-batch"
        return None

    def _takes_images(self) -> str | None:
        if self._is_vlm:  # not whether this batch has images: all processes must decide alike
            return f"the processing_class {type(self.processing_class).__name__} takes images"
        return None

    # --- micro-batches ---

    def _prepare_inputs(self, generation_batch):
        """Lays out a new generation batch (sorted, dead rows left out) once TRL has shuffled and split it."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before:
            self._buffered_inputs = self._lay_out(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _lay_out(self, micro_batches: list[dict]) -> list[dict]:
        skip, sort = self._saving["skip_zero_advantage"], self._saving["sort_by_length"]
        reason = self._why_not_skip()
        if skip and reason:
            self._say_once(f"skip_zero_advantage steps aside: {reason}.")
            skip = False
        sort = sort and not self._why_not_sort()
        if skip or sort:
            window = savings.window_size(len(micro_batches), self.args.gradient_accumulation_steps) if sort else 1
            windows = [savings.concatenate(micro_batches[i : i + window]) for i in range(0, len(micro_batches), window)]
            live = [batch["live"] if skip else torch.ones_like(batch["live"]) for batch in windows]
            windows = [{**batch, "live": alive} for batch, alive in zip(windows, live, strict=True)]
            most = self._over_processes(torch.stack([alive.sum() for alive in live])).amax(dim=0).tolist()
            micro_batches = []
            for batch, count in zip(windows, most, strict=True):
                counts = savings.rows_per_micro_batch(count, window)
                laid_out = savings.lay_out(batch, counts, self.loss_type, sort)
                micro_batches += self._with_weights(batch, laid_out)
            skipped = sum(len(batch["live"]) for batch in windows) - sum(len(mb["live"]) for mb in micro_batches)
            self._metrics["train"]["skipped_rows"].append(skipped * self.accelerator.num_processes)
        if (skip or sort or self._saving["trim_padding"]) and not self._is_vlm:
            self._metrics["train"]["padding_fraction"].append(self._padding_fraction(micro_batches))
        return micro_batches

    def _over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape on every process, stacked along a new first axis."""
        return self.accelerator.gather(tensor.unsqueeze(0))

    def _with_weights(self, window: dict, micro_batches: list[dict]) -> list[dict]:
        """
        Notes for each micro-batch its share of the window's scored tokens and rows over all processes (times the
        number of micro-batches, so that TRL's mean over them becomes the mean over tokens or rows), and which share of
        all tokens and rows is scored.
        """
        scored = torch.stack([savings.loss_mask(batch).sum() for batch in micro_batches])
        totals = self._over_processes(torch.cat([scored, savings.loss_mask(window).sum().view(1)])).sum(dim=0)
        *scored, tokens = totals.tolist()
        rows = [len(batch["live"]) for batch in micro_batches]
        count = len(micro_batches)
        return [
            {
                **batch,
                "metric_weights": torch.tensor(
                    [
                        n_tokens * count / max(sum(scored), 1),
                        n_rows * count / sum(rows),
                        sum(scored) / max(tokens, 1),
                        sum(rows) / len(window["live"]),
                    ]
                ),
            }
            for batch, n_tokens, n_rows in zip(micro_batches, scored, rows, strict=True)
        ]

    def _padding_fraction(self, micro_batches: list[dict]) -> float:
        used = run = 0
        for batch in micro_batches:
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            used += int(mask.sum())
            run += mask[:, self._columns(mask, batch["prompt_mask"].size(1))].numel()
        totals = self._over_processes(torch.tensor([used, run], device=self.accelerator.device)).sum(dim=0)
        return 1 - (totals[0] / totals[1]).item()

    def _columns(self, attention_mask: torch.Tensor, prompt_length: int) -> slice:
        if not self._saving["trim_padding"] or not self._columns_are_inert:
            return slice(None)
        return savings.used_columns(attention_mask, prompt_length, self._left_padding_is_inert, self.pad_to_multiple_of)

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        """Trims the columns that no row uses, scores old and reference rows by length; the forward is TRL's."""
        trl = super()._get_per_token_logps_and_entropies
        extra = any(value is not None and value is not False for value in kwargs.values())  # images or an aux loss
        if extra or not self._saving["trim_padding"] or not self._columns_are_inert:
            logps, entropies, aux_loss = trl(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        else:
            rows, width = len(input_ids), logits_to_keep
            # Chunks of similar length where TRL scores in chunks; the loss scores its micro-batch in one
            order = torch.argsort(attention_mask.sum(dim=1), descending=True, stable=True)
            chunks = [slice(None)] if batch_size is None or batch_size >= rows else order.split(batch_size)
            parts = []
            for chunk in chunks:
                ids, mask = input_ids[chunk], attention_mask[chunk]
                prompt_length = ids.size(1) - width
                columns = self._columns(mask, prompt_length)
                keep = columns.stop - prompt_length
                parts.append(trl(model, ids[:, columns], mask[:, columns], keep, None, compute_entropy, **kwargs))
            logps, entropies = (
                torch.cat([savings.pad_columns(part[i], width) for part in parts]) if parts[0][i] is not None else None
                for i in (0, 1)
            )
            if len(parts) > 1:
                back = torch.argsort(order)
                logps, entropies = logps[back], None if entropies is None else entropies[back]
            aux_loss = None
        if self._loss_inputs is not None:
            self._apply_variant(logps)
        return logps, entropies, aux_loss

    # --- the loss ---

    def _compute_loss(self, model, inputs):
        """TRL's loss, with reference-clipped advantages and another KL term where asked; corrects the clip ratios."""
        inputs = dict(inputs)
        weights = inputs.pop("metric_weights", None)
        mode = "train" if self.model.training else "eval"
        own_kl = self.beta != 0.0 and self._kl_estimator in ("k1", "k2")
        self._loss_inputs = inputs
        try:
            with _beta_as(self, 0.0 if own_kl else self.beta):
                loss = super()._compute_loss(model, inputs)
        finally:
            self._loss_inputs = None
        if own_kl:
            loss = loss + self.beta * self._own_kl(inputs, mode)
        if "variant_metrics" in inputs:
            self._log_variant(inputs, mode)
        if weights is not None:
            self._weigh_metrics(*weights.tolist(), mode)
        if self._kl_target is not None and mode == "train":
            self._window_kl.append(self._metrics[mode]["kl"][-1])
        return loss

    def _apply_variant(self, logps: torch.Tensor) -> None:
        """
        Edits the inputs of the running loss between TRL's forward and its reading of the advantages: a token that is
        reference-clipped has advantage zero, which switches its policy term off under every loss type.
        """
        inputs = self._loss_inputs
        if not (self._reference_clipping or self._kl_estimator or self._kl_target is not None):
            return
        ref_logps, advantages = inputs["ref_per_token_logps"], inputs["advantages"]
        if advantages.ndim == 1:
            advantages = advantages.unsqueeze(1)  # (B, 1)
        stopped = losses.is_reference_clipped(logps, ref_logps, advantages, self._ref_clip_low, self._ref_clip_high)
        if self._reference_clipping:
            inputs["advantages"] = advantages.masked_fill(stopped, 0.0)  # (B, T)
        inputs["per_token_logps"] = logps
        kl = [losses.kl_estimate(logps.detach(), ref_logps, name) for name in losses.KL_ESTIMATORS]
        clipped = [(stopped & (advantages < 0)).float(), (stopped & (advantages > 0)).float(), stopped.float()]
        inputs["variant_metrics"] = torch.stack(kl + clipped)  # (6, B, T)

    def _own_kl(self, inputs: dict, mode: str) -> torch.Tensor:
        """The k1 or k2 term, aggregated as TRL's `_compute_loss` aggregates its k3 term, and logged as `kl`."""
        logps, mask = inputs["per_token_logps"], savings.loss_mask(inputs)
        per_token_kl = losses.kl_estimate(logps, inputs["ref_per_token_logps"], self._kl_estimator)
        if self.args.use_bias_correction_kl:
            old = inputs.get("old_per_token_logps")
            log_ratio = losses.importance_log_ratio(
                logps, logps.detach() if old is None else old, mask, self.importance_sampling_level
            )
            per_token_kl = losses.importance_corrected_kl(per_token_kl, log_ratio.exp(), self._kl_estimator)
        self._metrics[mode]["kl"].append(self._token_means(per_token_kl.detach().unsqueeze(0), mask)[0])
        accumulation = self.current_gradient_accumulation_steps if mode == "train" else 1
        num_items = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if mode == "train":
            num_items = num_items / self.args.steps_per_generation  # one micro-batch's share
        term = losses.aggregate(per_token_kl, mask, self.loss_type, num_items, self.max_completion_length)
        return term / accumulation

    def _token_means(self, per_token: torch.Tensor, mask: torch.Tensor) -> list[float]:
        """Means over the masked tokens of all processes, of (K, B, T)."""
        local = torch.cat([(per_token * mask).sum(dim=(1, 2)), mask.sum().float().view(1)])
        *sums, count = self.accelerator.reduce(local, reduction="sum").tolist()
        return [total / max(count, 1.0) for total in sums]

    def _log_variant(self, inputs: dict, mode: str) -> None:
        metrics = self._metrics[mode]
        k1, k2, k3, low, high, region = self._token_means(inputs["variant_metrics"], savings.loss_mask(inputs))
        for name, value in zip(losses.KL_ESTIMATORS, (k1, k2, k3), strict=True):
            metrics[f"kl/{name}"].append(value)
        metrics["beta"].append(self.beta)
        if self._reference_clipping:
            metrics["ref_clip_ratio/low_mean"].append(low)
            metrics["ref_clip_ratio/high_mean"].append(high)
            metrics["ref_clip_ratio/region_mean"].append(region)
            # A stopped token has advantage zero, so that TRL's rule does not count it a second time
            ratio = metrics.get("clip_ratio/region_mean") or metrics.get("cispo_clip_ratio") or [0.0]
            metrics["clip_ratio/either_mean"].append(region + ratio[-1])

    def _weigh_metrics(self, tokens: float, rows: float, token_share: float, row_share: float, mode: str) -> None:
        """
        Corrects this micro-batch's metrics for its layout: their mean over the window becomes the mean over its scored
        tokens (entropy, KL) or, for clip ratios, over all of its tokens, those of skipped rows being unclipped.
        """
        metrics = self._metrics[mode]
        by_row = self.importance_sampling_level == "sequence" and not self._reference_clipping
        factors = dict.fromkeys(SCORED_METRICS, tokens) | {"vespo/phi_seq_mean": rows}
        factors |= dict.fromkeys(CLIP_METRICS, rows * row_share if by_row else tokens * token_share)
        for name, factor in factors.items():
            if metrics.get(name):
                metrics[name][-1] *= factor
        if row_share < 1 and metrics.get("clip_ratio/low_min"):
            metrics["clip_ratio/low_min"][-1] = 0.0

    # --- the target KL ---

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Adapts beta to `kl_target` once the last micro-batch of an optimizer step has been run."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._kl_target is not None and self.accelerator.sync_gradients:
            kl = sum(self._window_kl) / len(self._window_kl)
            completions = self.args.per_device_train_batch_size * len(self._window_kl) * self.accelerator.num_processes
            self.beta = losses.adapted_beta(self.beta, kl, self._kl_target, self._kl_horizon, completions)
            self._window_kl = []
        return loss

    # --- checkpoints ---

    def _save_checkpoint(self, model, trial):
        """Saves the adapted beta and the place among the fresh prompts beside TRL's checkpoint."""
        super()._save_checkpoint(model, trial)
        state = {}
        if self._kl_target is not None:
            state["beta"] = self.beta
        if self._dynamic_sampling:
            state["fresh_prompts"] = {"pass": self._fresh_pass, "offset": self._fresh_offset}
        if state and self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            with open(os.path.join(folder, STATE_FILE), "w", encoding="utf-8") as file:
                json.dump(state, file)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """Restores the adapted beta and the place among the fresh prompts, where the checkpoint holds them."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = {}
        for name in (BETA_STATE_FILE, STATE_FILE):
            path = os.path.join(checkpoint, name)
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    state |= json.load(file)
        if self._kl_target is not None and "beta" in state:
            self.beta = state["beta"]
        if self._dynamic_sampling and "fresh_prompts" in state:
            self._fresh_pass, self._fresh_offset = state["fresh_prompts"]["pass"], state["fresh_prompts"]["offset"]
            self._fresh = self._fresh_prompts()


@contextmanager
def _beta_as(holder, value: float):
    """`holder.beta` is `value` inside the context."""
    before, holder.beta = holder.beta, value
    try:
        yield
    finally:
        holder.beta = before


def _gather_rows(accelerator, batch: dict) -> dict:
    """The rows of all processes, in order, of every tensor with a row axis."""
    gathered = {}
    for key, value in batch.items():
        if value.ndim:
            if value.ndim > 1:
                value = accelerator.pad_across_processes(value, dim=1, pad_first=key.startswith("prompt"))
            gathered[key] = accelerator.gather(value)
    return gathered


def _overwrite_rows(batch: dict, target: torch.Tensor, other: dict, source: torch.Tensor) -> dict:
    """`batch` with rows `target` replaced by rows `source` of `other`; both widened to the wider of the two."""
    result = dict(batch)
    for key, rows in other.items():
        mine = batch[key]
        if mine.ndim > 1:
            columns, left = max(mine.size(1), rows.size(1)), key.startswith("prompt")
            mine, rows = savings.pad_columns(mine, columns, left), savings.pad_columns(rows, columns, left)
        result[key] = mine.index_copy(0, target, rows[source])
    return result
