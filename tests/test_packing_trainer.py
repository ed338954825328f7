"""Packed groups in the trainer: TRL's gradient, which rows share a micro-batch, and where packing is disabled and why."""

import pytest
import torch
from peft import LoraConfig
from trainer_fixtures import (
    STOCK_GENERATION,
    config,
    live_reward,
    prompts,
    relative_difference,
    reward,
    tiny_model,
    tiny_tokenizer,
    train,
)
from transformers import GPT2Config, GPT2LMHeadModel

from grpo_math.trainer import GRPOMathTrainer


@pytest.mark.parametrize("options", [
    {},
    {"loss_type": "bnpo"},
    {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.02},
    {"steps_per_generation": 4, "max_steps": 2},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
    {"mask_truncated_completions": True},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    pytest.param({"torch_compile": True}, marks=pytest.mark.slow),
    {"trainer_kwargs": {"peft_config": LoraConfig(r=4, lora_dropout=0.0)}},
], ids=str)  # fmt: skip
def test_groups_are_packed_and_the_gradient_is_trls(tmp_path, options):
    theirs = train(False, tmp_path / "trl", **options)
    ours = train(True, tmp_path / "ours", **STOCK_GENERATION, **options)
    assert ours._packing is not None
    assert relative_difference(ours.gradients, theirs.gradients) <= 1e-5


def test_the_rows_of_a_prompt_share_a_micro_batch_where_the_loss_allows_it(tmp_path):
    def prompts_per_micro_batch(loss_type):
        trainer = train(True, tmp_path, loss_type=loss_type, skip_zero_advantage=False)
        return [len(batch["prompt_ids"].unique(dim=0)) for batch in trainer._buffered_inputs]

    assert prompts_per_micro_batch("dapo") == [2, 2]  # two groups of four in a micro-batch of eight
    assert max(prompts_per_micro_batch("bnpo")) > 2  # TRL's own micro-batches


def test_fewer_positions_are_run(tmp_path):
    def positions(**option):
        """Positions that the policy is trained on, as its embeddings see them."""
        seen = []
        args = config(tmp_path, per_device_train_batch_size=8, num_generations=4, max_completion_length=6, max_steps=1,
                      save_strategy="no", gradient_checkpointing=False, **option)  # fmt: skip
        trainer = GRPOMathTrainer(tiny_model(), live_reward, args, prompts(), processing_class=tiny_tokenizer())
        trainer.model.get_input_embeddings().register_forward_hook(
            lambda module, inputs, output: seen.append(inputs[0].numel()) if torch.is_grad_enabled() else None
        )
        trainer.train()
        return sum(seen)

    assert 0 < positions() < positions(pack_groups=False) <= positions(pack_groups=False, trim_padding=False)


GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 23, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: {"model": tiny_model(attention_dropout=0.1)}, "dropout of 0.1"),
        (lambda: {"model": GPT2LMHeadModel(GPT2Config(**GPT2))}, "not rotary"),
        (lambda: {"peft_config": LoraConfig(r=4, lora_dropout=0.05)}, "dropout of 0.05"),
    ],
    ids=["dropout", "absolute positions", "dropout of the adapter"],
)
def test_packing_is_disabled_with_the_reason_where_it_is_not_exact(tmp_path, caplog, make, reason):
    def build(**options):
        parts = {"model": tiny_model(), "peft_config": None} | make()
        return GRPOMathTrainer(parts["model"], reward, config(tmp_path, **options), prompts(),
                               processing_class=tiny_tokenizer(), peft_config=parts["peft_config"])  # fmt: skip

    assert build()._packing is None
    (warning,) = {record.message for record in caplog.records if "pack_groups is disabled" in record.message}
    assert reason in warning
    with pytest.raises(ValueError, match=rf"pack_groups=True is not exact here: .*{reason}.*Leave pack_groups out"):
        build(pack_groups=True)
