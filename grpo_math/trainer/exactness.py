"""When each saving is exact: what rules it out, in words that name the option or the part of the model, or `None`.

A saving that is left at its default is disabled where something rules it out; one that is set to `True` is an error there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from transformers import PreTrainedConfig, PreTrainedModel

from grpo_math import decoding
from grpo_math.trainer.input_casts import casts_needed_by

if TYPE_CHECKING:
    from grpo_math.trainer.config import GRPOMathConfig
    from grpo_math.trainer.grpo import GRPOMathTrainer

logger = get_logger(__name__)


class WarnOnce:
    """Logs a warning the first time that it is given: a saving is disabled at every step, and said once."""

    def __init__(self):
        self.given: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self.given:
            self.given.add(message)
            logger.warning(message)


# --- the model's positions --------------------------------------------------------------------------------------------


def _rope_types(config: PreTrainedConfig) -> list[str]:
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


# --- what rules a saving out ------------------------------------------------------------------------------------------


def skip_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why rows with advantage zero must be scored all the same."""
    if trainer.beta != 0.0:
        return "beta is not 0, and the KL term of a row does not depend on its advantage"
    if trainer._entropy_bonus_enabled:
        return "the entropy bonus covers every row"
    if trainer.top_entropy_quantile < 1.0:
        return f"top_entropy_quantile={trainer.top_entropy_quantile} compares the tokens of all rows"
    if trainer.tools or trainer.environment_factories:
        return "tools or environment_factory are in use"
    return _auxiliary_loss(trainer) or _images(trainer)


def pack_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why each row must be run by itself."""
    if trainer.tools or trainer.environment_factories:
        return "tools or environment_factory are in use"
    if reason := _auxiliary_loss(trainer) or _images(trainer):
        return reason
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "the model is sharded (DeepSpeed or FSDP)"
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(policy) and policy.active_peft_config.is_prompt_learning:
        return "the adapter is a learned prompt"
    model = policy.get_base_model() if is_peft_model(policy) else policy
    config = model.config.get_text_config()
    if not left_padding_is_inert(model):
        return "the model's positions are not rotary, or depend on the width of the input"
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager", "flex_attention"):
        return f"attn_implementation={attention!r} takes no mask of each position (sdpa, eager and flex_attention do)"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"the model has layers of {', '.join(sorted(kinds))}"
    if getattr(config, "use_bidirectional_attention", False):
        return "the model's attention is bidirectional"
    active = {module.p for module in policy.modules() if isinstance(module, torch.nn.Dropout)} | {
        getattr(config, "attention_dropout", 0.0) or 0.0
    }
    if max(active) > 0:  # the completions of a prompt would share its dropped activations
        return f"dropout of {max(active):g} draws anew for each row"
    return None


def sort_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why rows may not move between the micro-batches of an optimizer step."""
    return trainer.args.row_mixing_option() or _auxiliary_loss(trainer) or _images(trainer)


def trim_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why unused columns must stay."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not columns_are_inert(model.get_base_model() if is_peft_model(model) else model):
        return "the model's rope_type makes its positions depend on the width of the input"
    return _images(trainer)


def casts_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why PEFT must cast the inputs of adapter layers."""
    return casts_needed_by(trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator)


def decode_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why transformers' own loop must generate."""
    policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if reason := _images(trainer):
        return reason
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "the model is sharded (DeepSpeed or FSDP)"
    if is_peft_model(policy) and policy.active_peft_config.is_prompt_learning:
        return "the adapter is a learned prompt"
    return decoding.unsupported_reason(trainer.generation_config)


def one_autocast_blocked_by(trainer: GRPOMathTrainer) -> str | None:
    """Why generation must leave autocast after each token."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "the model is sharded (DeepSpeed or FSDP)"
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(policy):  # whose own generation has no autocast, so that nothing is cast today
        frozen = (
            n for n, p in policy.named_parameters() if not p.requires_grad and p.dtype == torch.float32 and p.ndim > 1
        )
        if name := next(frozen, None):
            return f"autocast would cast frozen float32 weights ({name} and others) at every token"
    return None


def _auxiliary_loss(trainer: GRPOMathTrainer) -> str | None:
    if trainer.aux_loss_enabled:
        coefficient = f"router_aux_loss_coef={trainer.router_aux_loss_coef:g}"
        return f"{coefficient} (0 for none) is a loss over all rows of a micro-batch"
    return None


def _images(trainer: GRPOMathTrainer) -> str | None:
    if trainer._is_vlm:  # not whether this batch has images: all processes must decide alike
        return f"the processing_class {type(trainer.processing_class).__name__} takes images"
    return None


def refuse_continuous_batching(trainer: GRPOMathTrainer) -> None:
    """
    Raises ValueError where TRL's continuous batching would change the dtype of the trained weights: before it generates,
    TRL 1.16 calls `model.to(torch.bfloat16)` with `bf16`, and nothing turns them back.
    """
    args = trainer.args
    half = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    if not args.use_transformers_continuous_batching or half is None:
        return
    name = next(
        (name for name, p in trainer.model.named_parameters() if p.requires_grad and p.dtype == torch.float32), None
    )
    if name is not None:
        raise ValueError(
            f"use_transformers_continuous_batching=True and {half}=True would turn the trained float32 weights ({name} and "
            "others) into 16 bits for the rest of the run: TRL casts the model itself before it generates. Updates of "
            f"the usual size round to nothing there. Set use_transformers_continuous_batching=False, or {half}=False."
        )


def refuse_blocked_savings(trainer: GRPOMathTrainer, args: GRPOMathConfig) -> None:
    """Raises ValueError for a saving that is set to `True` and ruled out; what options alone rule out, the config refuses."""
    checks = {
        "skip_zero_advantage": skip_blocked_by,
        "pack_groups": pack_blocked_by,
        "trim_padding": trim_blocked_by,
        "sort_by_length": sort_blocked_by,
        "skip_input_casts": casts_blocked_by,
        "cast_weights_once": one_autocast_blocked_by,
        "share_prefill": decode_blocked_by,
        "drop_finished": decode_blocked_by,
    }
    for name, blocked_by in checks.items():
        if getattr(args, name) and (reason := blocked_by(trainer)):
            raise ValueError(f"{name}=True is not exact here: {reason}. Leave {name} out, which disables it.")
