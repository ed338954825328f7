"""GRPOMathConfig: TRL's `GRPOConfig` plus this project's trainer options, and which of them contradict each other."""

import math
from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from grpo_math.trainer import losses

DEFAULT_KL_HORIZON = 10_000

SAVINGS = (
    "skip_zero_advantage",
    "pack_groups",
    "trim_padding",
    "sort_by_length",
    "compact_lm_head",
    "skip_input_casts",
    "cast_weights_once",
    "share_prefill",
    "drop_finished",
)


def _saving(what: str) -> bool | None:
    return field(default=None, metadata={"help": f"{what} Not set: on wherever it is exact."})


@dataclass
class GRPOMathConfig(GRPOConfig):
    r"""
    [`trl.GRPOConfig`] plus this project's trainer options.

    PPO's clip range is TRL's own `epsilon`, `epsilon_high` and `delta`.

    > Savings: the same gradient for less compute. Not set: on wherever exact, disabled elsewhere. `False`: TRL's way.
    > `True` where the loss, the model or the generation rules a saving out is an error.

    Parameters:
        skip_zero_advantage (`bool`, *optional*):
            Skip the rows of groups whose rewards are all equal, and rows without a loss token: with `beta=0` their
            policy gradient is exactly zero. Stored old log-probabilities are those of the other rows. Disabled, with one
            warning, by a KL term, an entropy bonus or quantile mask, a MoE auxiliary loss, images or tools. Every process
            keeps the same number of rows in a micro-batch.
        pack_groups (`bool`, *optional*):
            Run each prompt once for its completions in a micro-batch, without padding between them (`packing.py`); where
            the loss allows it, the rows of a prompt are brought into one micro-batch. For rotary decoders with sdpa or
            eager attention. Disabled by dropout, images, tools, a MoE auxiliary loss, a sharded model or a learned
            prompt. Where it is on, `trim_padding` and `sort_by_length` have nothing to do.
        trim_padding (`bool`, *optional*):
            Trim the columns that no row of a micro-batch uses. TRL pads to the longest row of the generation batch.
            Disabled by images, and by rotary frequencies that depend on the width of the input.
        sort_by_length (`bool`, *optional*):
            Group rows of similar length within one optimizer step. Disabled by images, and by a loss that depends on
            which rows share a micro-batch (`bnpo`, entropy bonus, quantile mask, auxiliary loss).
        compact_lm_head (`bool`, *optional*):
            On a CPU, run the LM head on the completion's positions only (on CUDA TRL always does). A float32 head
            without bias, soft-capping or scale keeps the exponentials of its logits, up to 512 MiB, for the backward pass,
            where TRL computes the logits again.
        skip_input_casts (`bool`, *optional*):
            Under autocast, leave out PEFT's float32 copy of every LoRA layer's input, which autocast casts back. Disabled
            without mixed precision, and by `lora_dropout`, DoRA or another kind of adapter.
        cast_weights_once (`bool`, *optional*):
            Generation with transformers under autocast: cast the trained float32 weights once, not at every token. The
            16-bit copies are held meanwhile. An adapter's generation then has the precision of its training pass; PEFT
            generates without autocast. Disabled by an adapter on a float32 base, and by a sharded model.
        share_prefill (`bool`, *optional*):
            Generation with transformers: run each distinct prompt once for its G completions.
        drop_finished (`bool`, *optional*):
            Generation with transformers: drop finished rows from the batch. With both options greedy output is
            identical, up to rounding, and sampled output equal in distribution, though not draw for draw. On a CPU with
            either, large float32 layers are copied into another layout during generation, up to 2 GiB. Both are disabled by
            vLLM, continuous batching, images, a sharded model, a learned prompt, beam search or another kind of cache.
        dynamic_sampling (`int`, *optional*, defaults to `0`):
            Most rounds of fresh prompts that replace groups whose rewards are all equal (DAPO, arXiv 2503.14476,
            section 3.2); groups that are left after the last round stay. TRL's metrics describe the first draw. Fresh
            prompts come from shuffled passes of their own over the training set, which a resumed run continues.
        train_rows (`int`, *optional*, defaults to `0`):
            Train that many rows of a generation batch, over all processes, instead of all. They are drawn with
            probabilities proportional to |advantage| (times length where the loss sums over tokens) and weighted by
            the inverse, so that the expected gradient is that of all rows (`row_selection.py`). Not with a KL or
            entropy term, a MoE auxiliary loss, images, tools or `num_iterations` above 1.
        embeddings_on_host (`bool`, *optional*, defaults to `False`):
            Keep the input embeddings in host memory and look rows up there: the same model, and their size saved on
            the card. For PEFT adapters on a model with an untied LM head.
        activation_offloading (`bool`, *optional*, defaults to `False`):
            Move what the backward pass needs to host memory during the forward pass, and back: less GPU memory for more
            time. The option of TRL's SFT, DPO and KTO trainers, with their copies.

        > The variant: what is optimized

        kl_estimator (`str`, *optional*):
            `"k1"`, `"k2"` or `"k3"` for the KL term (see [`losses.kl_estimate`]). Not set: TRL's k3, importance-
            corrected with `use_bias_correction_kl`. k1 needs that correction: without it, it is no penalty.
        kl_target (`float`, *optional*):
            Target KL to the reference, nats per token. After each optimizer step `beta` is multiplied by `1 +
            clip(kl / kl_target - 1, -0.2, 0.2) * completions / kl_horizon` (Ziegler et al., arXiv 1909.08593).
        kl_horizon (`float`, *optional*):
            Completions over which `beta` can change by a factor of about 1.2. 10000 when not set.
        ref_clip_low (`float`, *optional*), ref_clip_high (`float`, *optional*):
            Reference clipping, nats: a token with positive advantage is no longer pushed once `log pi - log pi_ref`
            has reached `ref_clip_high`, one with negative advantage once it has reached `-ref_clip_low` (see
            [`losses.is_reference_clipped`]). One bound alone leaves the other side open. It needs a reference also
            at `beta=0`: with PEFT the disabled adapter, else a frozen copy of the model in memory.
    """

    skip_zero_advantage: bool | None = _saving("Skip rows of groups whose rewards are all equal (needs beta 0).")
    pack_groups: bool | None = _saving("Run each prompt once for its completions, without padding between them.")
    trim_padding: bool | None = _saving("Trim the columns that no row of a micro-batch uses.")
    sort_by_length: bool | None = _saving("Sort rows by length within an optimizer step.")
    compact_lm_head: bool | None = _saving("On a CPU, run the LM head on completion positions only.")
    skip_input_casts: bool | None = _saving("Under autocast, leave out PEFT's float32 copies of LoRA layers' inputs.")
    cast_weights_once: bool | None = _saving("Cast float32 weights once for a generation under autocast.")
    share_prefill: bool | None = _saving("Run each distinct prompt once when generating with transformers.")
    drop_finished: bool | None = _saving("Drop finished rows from the batch when generating with transformers.")
    dynamic_sampling: int = field(
        default=0,
        metadata={"help": "Most rounds of fresh prompts that replace groups whose rewards are all equal. 0: off."},
    )
    train_rows: int = field(
        default=0,
        metadata={"help": "Train so many rows of a generation batch, drawn and weighted without a bias. 0: all."},
    )
    embeddings_on_host: bool = field(
        default=False,
        metadata={
            "help": "Keep the frozen, untied input embeddings in host memory (PEFT): the same model, less GPU memory."
        },
    )
    activation_offloading: bool = field(
        default=False,
        metadata={"help": "Keep activations in host memory until the backward pass: less GPU memory, more time."},
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = field(
        default=None,
        metadata={"help": "KL estimator of the loss. Not set: TRL's importance-corrected k3."},
    )
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Target KL to the reference, nats per token; beta follows it from a start above 0."},
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

    def row_mixing_option(self) -> str | None:
        """The option that makes a row's gradient depend on which rows share its micro-batch, or `None`."""
        if self.loss_type in losses.MICRO_BATCH_MEAN:
            return f"loss_type={self.loss_type!r}"
        return self._entropy_option()

    def every_row_option(self) -> str | None:
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
        for name in ("embeddings_on_host", "activation_offloading"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: write True or False.")
        if self.skip_zero_advantage and self.every_row_option():
            raise ValueError(
                f"skip_zero_advantage=True and {self.every_row_option()} contradict each other: rows whose advantage is "
                "zero count there too. Leave skip_zero_advantage out, or use beta=0, no entropy term and "
                "top_entropy_quantile=1."
            )
        if self.sort_by_length and self.row_mixing_option():
            raise ValueError(
                f"sort_by_length=True and {self.row_mixing_option()} contradict each other: this loss depends on which rows "
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

        self._check_train_rows()

    def _check_train_rows(self):
        rows = self.train_rows
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
            raise ValueError(f"train_rows={rows}: write a number of rows, 0 to train all.")
        if not rows:
            return
        if self.every_row_option():
            raise ValueError(
                f"train_rows={rows} and {self.every_row_option()} contradict each other: rows are drawn by their "
                "advantages, and that term covers every row alike. Use beta=0, no entropy term and "
                "top_entropy_quantile=1, or train_rows=0."
            )
        if self.skip_zero_advantage is False:
            raise ValueError(
                f"train_rows={rows} and skip_zero_advantage=False contradict each other: rows that are not drawn are "
                "skipped. Leave skip_zero_advantage out, or set train_rows=0."
            )
        if self.num_iterations > 1:
            raise ValueError(
                f"train_rows={rows} and num_iterations={self.num_iterations} contradict each other: the second pass would "
                "depend on which rows the first one drew, so its gradient would be biased. Set num_iterations=1."
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
