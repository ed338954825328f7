"""Private names of other libraries that this package overrides, reads or sets: what an upgrade can break.

Library -> `module:name`. `grpo_math/memory/patches.py` has the same list of what the memory prediction patches. A test
checks that each name still exists, and that the package uses no other.
"""

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "trl": (
        # overridden
        "trl:GRPOTrainer._calculate_rewards",
        "trl:GRPOTrainer._compute_loss",
        "trl:GRPOTrainer._finalize_training",
        "trl:GRPOTrainer._generate_and_score_completions",
        "trl:GRPOTrainer._generate_single_turn",
        "trl:GRPOTrainer._get_per_token_logps_and_entropies",
        "trl:GRPOTrainer._load_optimizer_and_scheduler",
        "trl:GRPOTrainer._maybe_log_save_evaluate",
        "trl:GRPOTrainer._prepare_inputs",
        "trl:GRPOTrainer._save_checkpoint",
        "trl:GRPOTrainer._save_rng_state",
        # read
        "trl:GRPOTrainer._entropy_bonus_enabled",
        "trl:GRPOTrainer._get_output_dir",
        "trl:GRPOTrainer._is_vlm",
        "trl:GRPOTrainer._load_from_checkpoint",
        "trl:GRPOTrainer._step",
        # changed
        "trl:GRPOTrainer._buffered_inputs",
        "trl:GRPOTrainer._globalstep_last_logged",
        "trl:GRPOTrainer._logs",
        "trl:GRPOTrainer._metrics",
        "trl:GRPOTrainer._tr_loss",
        "trl.trainer.utils:_ChunkedLogProbFunction",
    ),
    "transformers": (
        "transformers:GenerationMixin._optimize_model_for_decode",
        "transformers:GenerationMixin._update_model_kwargs_for_generation",
        "transformers:PreTrainedConfig._name_or_path",
    ),
    "torch": (
        "torch:Tensor._make_wrapper_subclass",
        "torch:ops.mkldnn._linear_pointwise",
        "torch:ops.mkldnn._reorder_linear_weight",
        "torch._C:DisableTorchFunctionSubclass",
        "torch.utils._pytree:tree_map_only",
    ),
}
