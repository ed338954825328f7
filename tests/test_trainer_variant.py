"""The variant: KL estimators, a coefficient that follows a target KL, reference clipping. Limits are TRL's loss."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trainer_fixtures import (
    ALL_OFF,
    STOCK_GENERATION,
    logged,
    prompts,
    relative_difference,
    tiny_model,
    tiny_tokenizer,
    train,
    weights,
)

from grpo_math.trainer import losses, micro_batches
from grpo_math.trainer.checkpoints import OWN_STATE, own_state

LOSS_TYPES = ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
# Ratios, divergences and clips all differ from their starting values from the second step on
SEVERAL = {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A path, since TRL reads the reference of a full model from where the policy came from."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_infinite_bounds_and_k3_are_trls_loss_and_gradient_exactly(tmp_path, saved, loss_type):
    options = {"loss_type": loss_type, "beta": 0.1, "model": saved} | SEVERAL
    theirs = train(False, tmp_path, **options)
    variant = {"kl_estimator": "k3", "ref_clip_low": math.inf, "ref_clip_high": math.inf}
    ours = train(True, tmp_path, **options, **variant, **ALL_OFF)
    assert all(torch.equal(a, b) for a, b in zip(ours.gradients, theirs.gradients, strict=True))
    assert logged(ours, "loss") == logged(theirs, "loss")
    assert logged(ours, "kl") == logged(theirs, "kl")
    assert max(logged(ours, "kl/k3")) > 1e-4
    assert set(logged(ours, "ref_clip_ratio/region_mean")) == {0.0}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_infinite_bounds_without_beta_are_trls_gradient_with_every_saving_on(tmp_path, loss_type):
    theirs = train(False, tmp_path, loss_type=loss_type, max_steps=2, learning_rate=0.02)
    ours = train(
        True,
        tmp_path,
        loss_type=loss_type,
        max_steps=2,
        learning_rate=0.02,
        ref_clip_high=math.inf,
        **STOCK_GENERATION,
    )
    assert relative_difference(ours.gradients, theirs.gradients) <= 1e-5
    assert logged(ours, "skipped_rows")[0] == 8


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_zero_bounds_switch_the_policy_term_off_at_the_reference(tmp_path, loss_type, level):
    zero = {"ref_clip_low": 0.0, "ref_clip_high": 0.0, "importance_sampling_level": level}
    trainer = train(True, tmp_path, loss_type=loss_type, **zero, **ALL_OFF)
    inputs = dict(trainer._buffered_inputs[0])
    trainer.model.load_state_dict(trainer.ref_model.state_dict())

    def gradient(inputs):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    with torch.no_grad():  # the same forward as the loss's, so that the drift is zero and not round-off
        inputs["ref_per_token_logps"], _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
        )
    assert gradient(inputs).norm() == 0
    open_bounds = dict(inputs)
    trainer._variant.clip_low = trainer._variant.clip_high = math.inf
    assert gradient(open_bounds).norm() > 0.01


def test_zero_bounds_keep_the_policy_at_the_reference_and_open_ones_do_not(tmp_path):
    options = {"max_steps": 20, "learning_rate": 0.05, "dataset": prompts(64)}
    drift = {}
    for bound in (0.0, math.inf):
        trainer = train(True, tmp_path, ref_clip_low=bound, ref_clip_high=bound, **options)
        drift[bound] = sum(logged(trainer, "kl/k2")[-5:]) / 5
    # Not zero: tokens share parameters, so one token's update moves others
    assert drift[0.0] < 0.5 * drift[math.inf]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_our_own_kl_term_is_aggregated_as_trls(tmp_path, saved, loss_type, estimator):
    """Loss(estimator) - loss(beta 0) is the aggregated term; for k3 it is also what TRL adds."""
    trainer = train(True, tmp_path, model=saved, loss_type=loss_type, beta=0.3, kl_estimator=estimator, **SEVERAL)
    inputs = trainer._buffered_inputs[0]
    beta, mask = trainer.beta, micro_batches.loss_mask(inputs)

    def loss(beta, estimator):
        trainer.beta, trainer._variant.kl_estimator = beta, estimator
        value = trainer._compute_loss(trainer.model, inputs)
        trainer.model.zero_grad()
        value.backward()
        return value.detach(), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    with_term, without = loss(beta, estimator), loss(0.0, None)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        inputs["completion_ids"].size(1),
    )
    kl = losses.kl_estimate(logps, inputs["ref_per_token_logps"], estimator)
    ratio = (logps - inputs["old_per_token_logps"]).exp()
    kl = losses.importance_corrected_kl(kl, ratio, estimator)
    items = inputs["num_items_in_batch"] / 2  # two micro-batches in the generation batch
    term = beta * losses.aggregate(kl, mask, loss_type, items, 12) / 2
    trainer.model.zero_grad()
    term.backward()
    expected = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(with_term[0] - without[0], term.detach(), rtol=1e-3, atol=1e-6)
    assert (with_term[1] - without[1] - expected).norm() <= 1e-4 * expected.norm()


def test_every_estimator_is_logged_and_kl_is_the_one_in_the_loss(tmp_path, saved):
    trainer = train(
        True, tmp_path, model=saved, beta=0.1, kl_estimator="k2", use_bias_correction_kl=False, max_steps=3,
        learning_rate=0.02,
    )  # fmt: skip
    assert logged(trainer, "kl") == logged(trainer, "kl/k2")
    for name in ("kl/k1", "kl/k2", "kl/k3"):
        assert logged(trainer, name)[0] == pytest.approx(0.0, abs=1e-6)
        assert abs(logged(trainer, name)[2]) > 1e-6
    assert logged(trainer, "beta") == [0.1] * 3


def test_beta_follows_the_target(tmp_path, saved):
    options = {"kl_target": 1e-3, "kl_horizon": 64.0, "max_steps": 5, "learning_rate": 0.05}
    trainer = train(True, tmp_path, model=saved, beta=0.1, **options)
    beta, kl = logged(trainer, "beta"), logged(trainer, "kl")
    assert beta[0] == 0.1
    for i in range(4):  # 16 completions an optimizer step
        assert beta[i + 1] == pytest.approx(losses.adapted_beta(beta[i], kl[i], 1e-3, 64.0, 16))
    assert beta[1] == pytest.approx(0.1 * (1 - 0.2 * 16 / 64))  # no drift yet
    assert beta[-1] > beta[-2]  # too far


def test_the_adapted_beta_is_saved_and_restored(tmp_path, saved):
    options = {"model": saved, "beta": 0.1, "kl_target": 1e-3, "kl_horizon": 64.0, "learning_rate": 0.05}
    options |= {"save_strategy": "steps", "save_steps": 2, "dataset": prompts(64)}
    whole = train(True, tmp_path / "whole", max_steps=4, **options)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert own_state(checkpoint) == {"files": [], "beta": pytest.approx(logged(whole, "beta")[2])}
    resumed = train(True, tmp_path / "resumed", max_steps=4, resume_from=str(checkpoint), **options)
    assert logged(resumed, "beta")[2] == pytest.approx(logged(whole, "beta")[2])
    assert resumed.beta != 0.1

    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["stateful_callbacks"][OWN_STATE] = {"beta": 0.07}  # of a run without dynamic sampling
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    other = train(True, tmp_path / "other", max_steps=3, dynamic_sampling=1, resume_from=str(checkpoint), **options)
    assert logged(other, "beta")[2] == 0.07


def test_without_beta_a_full_model_gets_a_frozen_copy_of_itself(tmp_path):
    model = tiny_model()
    before = weights(model).clone()
    trainer = train(True, tmp_path, model=model, ref_clip_high=0.5, max_steps=2)
    assert torch.equal(weights(trainer.ref_model), before)
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())
    assert not torch.equal(weights(trainer.model), before)
    assert trainer.beta == trainer.args.beta == 0.0
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(
        trainer.ref_model(ids).logits, tiny_model()(ids).logits
    )  # its own layers, not the policy's
    assert logged(trainer, "kl/k3")[0] == pytest.approx(0.0, abs=1e-6)
    assert logged(trainer, "kl/k3")[1] > 1e-5


def test_without_beta_a_model_given_by_its_path_gets_a_frozen_copy_too(tmp_path, saved):
    trainer = train(True, tmp_path, model=saved, ref_clip_low=0.5)
    assert torch.equal(weights(trainer.ref_model), weights(tiny_model()))


def test_without_beta_a_new_adapter_is_compared_with_the_base_model(tmp_path):
    adapter = {"peft_config": LoraConfig(r=4)}
    trainer = train(True, tmp_path, ref_clip_high=0.5, max_steps=3, trainer_kwargs=adapter)
    assert trainer.ref_model is None
    assert logged(trainer, "kl/k3")[0] == pytest.approx(0.0, abs=1e-6)
    assert logged(trainer, "kl/k3")[2] > 1e-6


def test_without_beta_a_trained_adapter_is_compared_with_itself(tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(r=4, init_lora_weights=False))
    trainer = train(True, tmp_path, model=model, ref_clip_high=0.5, max_steps=2)
    assert "ref" in model.peft_config
    assert trainer.beta == trainer.args.beta == 0.0
    assert logged(trainer, "kl/k3")[0] == pytest.approx(0.0, abs=1e-6)  # not with the base model, which is far away


def test_tokens_clipped_by_either_rule_are_counted_once(tmp_path):
    options = {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.05, "epsilon": 0.01}
    trainer = train(True, tmp_path, ref_clip_low=0.02, ref_clip_high=0.02, skip_zero_advantage=False, **options)
    either, by_reference = logged(trainer, "clip_ratio/either_mean"), logged(trainer, "ref_clip_ratio/region_mean")
    for i in range(4):
        low, high = logged(trainer, "ref_clip_ratio/low_mean")[i], logged(trainer, "ref_clip_ratio/high_mean")[i]
        assert by_reference[i] == pytest.approx(low + high)
        assert either[i] == pytest.approx(by_reference[i] + logged(trainer, "clip_ratio/region_mean")[i])
    assert by_reference[-1] > 0.05
    assert either[-1] <= 1


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_advantages_may_be_per_token(tmp_path, loss_type):
    trainer = train(True, tmp_path, loss_type=loss_type, ref_clip_high=math.inf, **STOCK_GENERATION)
    inputs = trainer._buffered_inputs[0]
    wide = inputs["advantages"].unsqueeze(1).expand_as(inputs["completion_mask"]).contiguous()
    values = [
        trainer._compute_loss(trainer.model, {**inputs, "advantages": advantages})
        for advantages in (inputs["advantages"], wide)
    ]
    assert values[0] == values[1]
    batch = {**inputs, "advantages": wide, "live": torch.arange(len(wide)) % 2 == 0}
    rows = int(batch["live"].sum())
    (kept,) = micro_batches.lay_out(batch, [rows], loss_type, arrange=None)
    assert kept["advantages"].shape == (rows, wide.size(1))
