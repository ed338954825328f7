"""The savings of GRPOMathTrainer leave TRL's accumulated gradient as it is, to float32 round-off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from trainer_fixtures import (
    ALL_OFF,
    STOCK_GENERATION,
    live_reward,
    logged,
    prompts,
    relative_difference,
    sampling_by_noise,
    tiny_model,
    tiny_tokenizer,
    train,
)
from transformers import GPT2Config, GPT2LMHeadModel, set_seed
from trl import GRPOTrainer

TOLERANCE = 1e-5
LOSS_TYPES = ["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]


def compare(tmp_path, model=tiny_model, **options):
    """The same run by TRL and by us; the larger relative L2 difference of the gradients, and both trainers."""
    ours_only = {name: options.pop(name) for name in list(options) if name in ALL_OFF}
    theirs = train(False, tmp_path / "trl", model=model(), **options)
    ours = train(True, tmp_path / "ours", model=model(), **(STOCK_GENERATION | options | ours_only))
    return relative_difference(ours.gradients, theirs.gradients), ours, theirs


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_half_dead_groups_give_the_same_gradient(tmp_path, loss_type, accumulation):
    difference, ours, theirs = compare(tmp_path, loss_type=loss_type, gradient_accumulation_steps=accumulation)
    assert difference <= TOLERANCE
    assert logged(ours, "skipped_rows") == [4 * accumulation]  # half of 8 rows a micro-batch
    assert logged(ours, "frac_reward_zero_std") == logged(theirs, "frac_reward_zero_std") == [0.5]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_stored_old_logps_and_several_iterations_give_the_same_gradients(tmp_path, loss_type):
    # Generation every second optimizer step, each batch used twice: TRL stores old log-probabilities
    options = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 5}
    difference, ours, _ = compare(tmp_path, loss_type=loss_type, learning_rate=0.001, **options)
    assert len(ours.gradients) == 5
    assert difference <= TOLERANCE


def test_old_logps_are_those_of_live_rows_alone(tmp_path, monkeypatch):
    """Also where the dead row that fills an empty micro-batch has none of its own."""
    rows, score = [], GRPOTrainer._get_per_token_logps_and_entropies

    def spy(self, model, input_ids, *args, **kwargs):
        if not torch.is_grad_enabled():
            rows.append(len(input_ids))
        return score(self, model, input_ids, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", spy)
    options = {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.01, "pack_groups": False, "trim_padding": False}
    difference, ours, _ = compare(tmp_path, **options)
    assert rows == [16, 8]  # TRL's, ours
    assert difference <= TOLERANCE
    live = torch.cat([batch["live"] for batch in ours._buffered_inputs])
    assert live.all()
    one_live_group = lambda completions, **kwargs: [0.0, 0.0, 0.0, 1.0] + [0.5] * 12  # noqa: E731
    rows.clear()
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "sort_by_length": False}
    difference, ours, _ = compare(tmp_path, **options, reward_funcs=one_live_group)
    assert rows == [16, 4]
    assert difference <= TOLERANCE
    assert sum(int((~batch["live"]).sum()) for batch in ours._buffered_inputs) > 0


def test_a_truncated_completion_that_is_masked_is_not_run(tmp_path):
    options = {"mask_truncated_completions": True, "reward_funcs": live_reward, "max_completion_length": 24}
    difference, ours, theirs = compare(tmp_path, **options, seed=5)
    masked = sum(int((batch["completion_mask"].sum(1) == 0).sum()) for batch in theirs._buffered_inputs)
    assert 0 < masked < 16
    assert logged(ours, "skipped_rows") == [masked]
    assert difference <= TOLERANCE


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_adapter_gets_the_same_gradient(tmp_path, loss_type, checkpointing):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    difference, ours, _ = compare(
        tmp_path,
        loss_type=loss_type,
        gradient_checkpointing=checkpointing,
        trainer_kwargs={"peft_config": adapter},
        max_steps=2,
        learning_rate=0.05,
    )
    assert difference <= TOLERANCE
    assert logged(ours, "skipped_rows")[0] == 8


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_checkpointing_gives_the_same_gradient(tmp_path, loss_type):
    difference, _, _ = compare(tmp_path, loss_type=loss_type, gradient_checkpointing=True)
    assert difference <= TOLERANCE


def test_every_saving_together_gives_the_same_completions_and_gradient(tmp_path):
    options = {"generation_kwargs": {"do_sample": False}, "max_steps": 3, "learning_rate": 0.02}
    theirs = train(False, tmp_path, model=sampling_by_noise(tiny_model()), **options)
    ours = train(True, tmp_path, model=sampling_by_noise(tiny_model()), **options)
    assert list(ours._logs["completion"]) == list(theirs._logs["completion"])
    assert len(set(theirs._logs["completion"])) > 8
    assert relative_difference(ours.gradients, theirs.gradients) <= TOLERANCE


@pytest.mark.parametrize(
    "option", ["skip_zero_advantage", "pack_groups", "trim_padding", "sort_by_length", "compact_lm_head"]
)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_each_saving_alone_is_exact(tmp_path, option, loss_type):
    alone = ALL_OFF | {option: True}
    assert compare(tmp_path, loss_type=loss_type, **alone)[0] <= TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"importance_sampling_level": "sequence", "loss_type": "luspo"},
        {"delta": 1.5, "epsilon_high": 0.28},
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"mask_truncated_completions": True},
        {"off_policy_mask_threshold": 0.1, "num_iterations": 2},
        {"pad_to_multiple_of": 8},
        {"temperature": 0.7},
        {"multi_objective_aggregation": "normalize_then_sum"},
        # Optimizer steps that do not end with a generation batch, and an epoch that ends in the middle of one
        {"steps_per_generation": 2, "gradient_accumulation_steps": 4, "dataset": prompts(12), "max_steps": 5},
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "num_generations": 6, "max_steps": 5},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items() if k != "dataset"),
)
def test_trl_options_keep_the_same_gradient(tmp_path, options):
    difference, _, _ = compare(tmp_path, **({"max_steps": 2, "learning_rate": 0.02} | options))
    assert difference <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"entropy_coef": 0.1}, "entropy bonus"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile"),
    ],
)
def test_skipping_alone_is_disabled_where_every_row_counts(tmp_path, caplog, options, reason):
    difference, ours, _ = compare(tmp_path, max_steps=2, learning_rate=0.05, **options)
    assert difference <= TOLERANCE
    assert not logged(ours, "skipped_rows")
    assert logged(ours, "padding_fraction")  # the other savings stay on
    said = [record.message for record in caplog.records if "skip_zero_advantage is disabled because" in record.message]
    assert len(said) == 1
    assert reason in said[0]


def test_beta_keeps_every_row_and_the_same_gradient(tmp_path, saved_model, caplog):
    load = lambda: str(saved_model)  # noqa: E731  TRL reads the reference from the policy's path
    difference, ours, theirs = compare(tmp_path, model=load, beta=0.1, max_steps=3, learning_rate=0.05)
    assert difference <= TOLERANCE
    assert logged(ours, "skipped_rows") == [0, 0, 0]
    assert logged(ours, "kl") == pytest.approx(logged(theirs, "kl"), rel=0.2)  # TRL's is a mean of means
    assert sum("skip_zero_advantage is disabled because beta" in record.message for record in caplog.records) == 1


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_nothing_is_skipped_where_every_group_is_live(tmp_path):
    difference, ours, _ = compare(tmp_path, reward_funcs=live_reward)
    assert difference <= TOLERANCE
    assert logged(ours, "skipped_rows") == [0]


def test_one_row_is_run_where_every_group_is_dead_and_the_weights_stay(tmp_path):
    always = lambda completions, **kwargs: [0.1] * len(completions)  # noqa: E731
    before = torch.cat([p.detach().flatten() for p in tiny_model().parameters()])
    ours = train(True, tmp_path, reward_funcs=always)
    assert logged(ours, "skipped_rows") == [16 - 2]  # one row in each of the two micro-batches
    # TRL's advantages of 0.1, 0.1, 0.1, 0.1 are round-off, here they are zero
    assert torch.equal(torch.cat([p.detach().flatten() for p in ours.model.parameters()]), before)


def test_equal_rewards_of_a_tenth_are_dead_although_their_advantages_are_not_zero(tmp_path):
    tenth = lambda completions, **kwargs: [0.1] * len(completions)  # noqa: E731
    stock = train(False, tmp_path, reward_funcs=tenth, num_generations=8)
    assert any(a != 0 for a in stock._logs["advantages"])
    assert logged(train(True, tmp_path, reward_funcs=tenth, num_generations=8), "skipped_rows") == [14]


def test_groups_with_equal_sums_are_live_where_each_reward_is_normalized_on_its_own(tmp_path):
    """Three rewards that sum to 4 in every row, but not after each is divided by its own standard deviation."""
    first = lambda completions, **kwargs: [float(i % 4) for i in range(len(completions))]  # noqa: E731
    second = lambda completions, **kwargs: [float(i % 4 == 0) for i in range(len(completions))]  # noqa: E731
    third = lambda completions, **kwargs: [4.0 - i % 4 - (i % 4 == 0) for i in range(len(completions))]  # noqa: E731
    functions = {"reward_funcs": [first, second, third]}
    ours = train(True, tmp_path, multi_objective_aggregation="normalize_then_sum", **functions)
    assert logged(ours, "skipped_rows") == [0]
    assert logged(train(True, tmp_path, **functions), "skipped_rows") == [14]
    dead = train(True, tmp_path, multi_objective_aggregation="normalize_then_sum")
    assert logged(dead, "skipped_rows") == [8]  # each function's rewards are equal


def test_absolute_positions_keep_the_left_padding_and_the_gradient(tmp_path):
    """GPT-2 numbers padding columns too, so taking them away would change what it computes."""

    def gpt2():
        set_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)
        )

    assert compare(tmp_path, model=gpt2, disable_dropout=True)[0] <= TOLERANCE


def test_clip_ratios_count_skipped_rows_as_unclipped(tmp_path):
    # One micro-batch, so that TRL's ratio is over the same tokens; second pass over the batch, so that ratios move
    options = {
        "num_iterations": 2,
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 16,
        "epsilon": 1e-3,
    }
    _, ours, theirs = compare(tmp_path, **options)
    assert logged(ours, "skipped_rows") == [8]
    for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max"):
        found, expected = logged(ours, f"clip_ratio/{name}"), logged(theirs, f"clip_ratio/{name}")
        assert found == pytest.approx(expected, rel=1e-4), name
    assert logged(theirs, "clip_ratio/region_mean")[1] > 0.1


def test_entropy_is_the_mean_over_the_tokens_of_the_scored_rows(tmp_path):
    """With two sorted micro-batches the logged value is still the mean over tokens, not a mean of means."""
    one = train(True, tmp_path, **STOCK_GENERATION, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    two = train(True, tmp_path, **STOCK_GENERATION)
    assert logged(two, "entropy") == pytest.approx(logged(one, "entropy"), rel=1e-5)


def test_metric_names_are_trls_plus_two(tmp_path):
    _, ours, theirs = compare(tmp_path)
    assert set(ours.state.log_history[0]) - set(theirs.state.log_history[0]) == {"skipped_rows", "padding_fraction"}
    assert not set(theirs.state.log_history[0]) - set(ours.state.log_history[0])


def test_with_every_option_off_nothing_differs_in_a_single_bit(tmp_path):
    options = {"max_steps": 3, "loss_type": "dapo"}
    theirs = train(False, tmp_path, **options)
    ours = train(True, tmp_path, **options, **ALL_OFF)
    assert all(torch.equal(a, b) for a, b in zip(ours.gradients, theirs.gradients, strict=True))
    timing = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for a, b in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert {k: v for k, v in a.items() if k not in timing} == {k: v for k, v in b.items() if k not in timing}


def test_two_processes_give_the_same_gradient(tmp_path):
    """Rows of one group lie on both processes, which keep the same number of rows in each micro-batch."""
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(here / "two_processes.py"), str(tmp_path), *LOSS_TYPES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        assert result["world_size"] == 2
        assert set(result["differences"]) >= {*LOSS_TYPES, "uneven"}
        assert max(result["differences"].values()) <= TOLERANCE, result["differences"]
    assert results[0]["skipped"] == results[1]["skipped"]
    assert results[0]["dynamic_sampling"] == results[1]["dynamic_sampling"]
    assert results[0]["dynamic_sampling"]["dead_groups_left"] == [0, 0]
    assert results[0]["dynamic_sampling"]["live"] == sum(results[0]["dynamic_sampling"]["rows"]) == 16
    spread = torch.arange(4.0).repeat(8).std().item() + 1e-4  # over both processes
    assert results[0]["dynamic_sampling"]["advantages"] == pytest.approx([0.5 / spread, 1.5 / spread], rel=1e-6)
    assert results[0]["train_rows"] == results[1]["train_rows"]
    assert results[0]["train_rows"]["rows"] == [2, 2]
    assert results[0]["train_rows"]["skipped"] == [24, 24]
    assert results[0]["skipped"]["dapo"] == 16
    # Only rank 0 has live rows in the uneven case: rank 1 runs as many of its dead ones
    assert results[0]["skipped"]["uneven"] == 16


def test_prompts_alternate_between_live_and_dead():
    assert prompts(4)["dead"] == [False, True, False, True]
