"""Private names of other libraries that this package overrides, reads, sets or patches: what an upgrade can break.

A test checks that each name still exists in its owner, and that the package uses no other. `grpo_math/memory/patches.py`
has the list of what the memory prediction patches.
"""

PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "trl.GRPOTrainer": (
        # overridden
        "_calculate_rewards",
        "_compute_loss",
        "_generate_and_score_completions",
        "_generate_single_turn",
        "_get_per_token_logps_and_entropies",
        "_load_optimizer_and_scheduler",
        "_prepare_inputs",
        "_save_checkpoint",
        # read
        "_entropy_bonus_enabled",
        "_get_output_dir",
        "_is_vlm",
        "_step",
        # changed
        "_buffered_inputs",
        "_logs",
        "_metrics",
    ),
    "transformers.generation.GenerationMixin": ("_update_model_kwargs_for_generation",),
    "transformers.PreTrainedConfig": ("_name_or_path",),
    "torch.ops.mkldnn": ("_is_mkldnn_bf16_supported",),
}
