"""GRPOMathConfig and GRPOMathTrainer: a drop-in for TRL's pair, and bad rewards."""

import dataclasses
import math

import pytest
import torch
from peft import LoraConfig
from trainer_fixtures import (
    ALL_OFF,
    STOCK_GENERATION,
    config,
    logged,
    prompts,
    reward,
    tiny_model,
    tiny_tokenizer,
    train,
    weights,
)
from transformers import HfArgumentParser
from trl import GRPOConfig, TrlParser

from grpo_math.trainer import GRPOMathConfig, GRPOMathTrainer
from grpo_math.trainer.config import SAVINGS

# --- a drop-in ---


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_every_option_parses_from_the_command_line(parser, tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--beta", "0.1"]
    arguments += ["--skip_zero_advantage", "false", "--sort_by_length", "true", "--dynamic_sampling", "2"]
    arguments += ["--kl_estimator", "k2", "--kl_target", "0.05", "--kl_horizon", "5000", "--ref_clip_low", "1.5"]
    arguments += ["--ref_clip_high", "inf"]
    (args,) = parser([GRPOMathConfig]).parse_args_into_dataclasses(arguments)
    assert (args.skip_zero_advantage, args.sort_by_length, args.trim_padding) == (False, True, None)
    assert (args.dynamic_sampling, args.kl_estimator, args.kl_target, args.kl_horizon) == (2, "k2", 0.05, 5000)
    assert (args.ref_clip_low, args.ref_clip_high) == (1.5, math.inf)


def test_an_unknown_estimator_is_refused_by_the_parser_and_by_the_config(tmp_path, capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(GRPOMathConfig).parse_args_into_dataclasses(
            ["--output_dir", str(tmp_path), "--kl_estimator", "k4"]
        )
    assert "'k1', 'k2', 'k3'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="kl_estimator='k4'"):
        config(tmp_path, beta=0.1, kl_estimator="k4")


def test_every_option_has_a_help_text_and_a_line_in_the_docstring():
    ours = {field.name: field for field in dataclasses.fields(GRPOMathConfig)}
    ours = {name: ours[name] for name in ours.keys() - {field.name for field in dataclasses.fields(GRPOConfig)}}
    assert ours.keys() > set(SAVINGS)
    for name, option in ours.items():
        assert option.metadata["help"].endswith(".")
        assert f"{name} (`" in GRPOMathConfig.__doc__


def test_with_trls_config_every_option_is_off(tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = GRPOMathTrainer(tiny_model(), reward, args, prompts(), processing_class=tiny_tokenizer())
    assert not any(trainer._saving.values())
    head = trainer.model.forward.__func__.__code__.co_filename
    assert head.endswith("trl/trainer/utils.py")  # not the compact one


def test_without_a_config_the_savings_are_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The default precision of TRL's config is bf16, which transformers refuses on a machine without a GPU
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    trainer = GRPOMathTrainer(tiny_model(), reward, train_dataset=prompts(), processing_class=tiny_tokenizer())
    assert isinstance(trainer.args, GRPOMathConfig)
    assert all(trainer._saving.values())


def test_checkpoints_hold_the_same_files_as_trls(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 1}
    train(False, tmp_path / "theirs", **saved)
    train(True, tmp_path / "ours", **saved)
    files = [sorted(p.name for p in (tmp_path / name / "checkpoint-1").iterdir()) for name in ("theirs", "ours")]
    assert files[0] == files[1]


def test_evaluation_reports_trls_metrics(tmp_path):
    evaluation = {"do_eval": True, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    ours = train(True, tmp_path, **evaluation, trainer_kwargs={"eval_dataset": prompts(4)}, **STOCK_GENERATION)
    theirs = train(False, tmp_path, **evaluation, trainer_kwargs={"eval_dataset": prompts(4)})
    ours, theirs = ({k: v for e in t.state.log_history for k, v in e.items() if "eval_" in k} for t in (ours, theirs))
    assert theirs["eval_reward"] == ours["eval_reward"]
    assert theirs["eval_entropy"] == pytest.approx(ours["eval_entropy"], rel=1e-4)
    assert set(ours) == set(theirs)


# --- bad rewards ---


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, ALL_OFF], ids=["on", "off"])
def test_an_infinite_reward_is_an_error_that_names_the_function(tmp_path, value, options):
    def broken(completions, **kwargs):
        return [0.0] * (len(completions) - 1) + [value]

    with pytest.raises(ValueError, match=r"'broken' returned -?inf for row 15"):
        train(True, tmp_path, reward_funcs=[reward, broken], **options)


def test_a_reward_list_of_another_length_is_trls_error(tmp_path):
    with pytest.raises(ValueError, match=r"returned 3 rewards, but 16 were expected"):
        train(True, tmp_path, reward_funcs=lambda completions, **kwargs: [1.0] * 3)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_rewards_of_none_or_nan_only_leave_the_weights_as_they_are(tmp_path, nothing):
    before = torch.cat([p.detach().flatten() for p in tiny_model().parameters()])
    trainer = train(True, tmp_path, reward_funcs=lambda completions, **kwargs: [nothing] * len(completions))
    assert torch.equal(weights(trainer.model), before)
    assert logged(trainer, "skipped_rows") == [14]


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_row_without_a_reward_has_no_weight_and_the_others_train(tmp_path, nothing):
    def some(completions, **kwargs):
        scores = reward(completions, [False] * len(completions))
        return [nothing if i % 4 == 0 else score for i, score in enumerate(scores)]

    ours = train(True, tmp_path, reward_funcs=some, **STOCK_GENERATION)
    theirs = train(False, tmp_path, reward_funcs=some)
    assert weights(ours.model).isfinite().all()
    torch.testing.assert_close(ours.gradients[0], theirs.gradients[0], rtol=1e-4, atol=1e-5)
    assert logged(ours, "skipped_rows")[0] >= 4


def test_a_peft_model_trains_with_every_saving(tmp_path):
    trainer = train(True, tmp_path, trainer_kwargs={"peft_config": LoraConfig(r=4)}, max_steps=2)
    assert logged(trainer, "skipped_rows")[0] == 8
    assert trainer.gradients[0].norm() > 0
