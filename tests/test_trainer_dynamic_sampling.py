"""Dynamic sampling: fresh prompts in the place of dead groups, and the place among them after a resume."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from trainer_fixtures import logged, prompts, tiny_model, tiny_tokenizer, train
from trl import GRPOTrainer

from grpo_math.trainer import losses
from grpo_math.trainer.checkpoints import OWN_STATE
from grpo_math.trainer.dynamic_sampling import _overwrite_rows


def words_only(completions, prompts, dead, **kwargs):
    """Groups of the data set's dead prompts have equal rewards, the others never."""
    return [0.5 if is_dead else float(i % 4) for i, is_dead in enumerate(dead)]


def test_dead_groups_are_replaced_by_fresh_prompts(tmp_path):
    dataset = prompts(64)
    trainer = train(
        True, tmp_path, dataset=dataset, shuffle_dataset=False, dynamic_sampling=10, reward_funcs=words_only
    )
    assert logged(trainer, "dynamic_sampling/replaced_groups") == [2]
    assert logged(trainer, "dynamic_sampling/dead_groups_left") == [0]
    assert logged(trainer, "skipped_rows") == [0]
    assert logged(trainer, "frac_reward_zero_std") == [0.5]  # TRL's metrics describe the first draw
    rows = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs])
    assert rows.sort().values.view(4, 4).std(dim=1).max() < 1e-5  # four groups with advantages of 0 1 2 3
    tokens = sum(batch["completion_mask"].sum() for batch in trainer._buffered_inputs)
    assert trainer._buffered_inputs[0]["num_items_in_batch"] == tokens


def of_two_scales(completions, prompts, dead, **kwargs):
    """Unequal in live groups, whose spread grows with the length of the prompt; `None` for a row of each."""
    rows = zip(dead, prompts, range(len(dead)), strict=True)
    return [0.5 if is_dead else None if i % 4 == 2 else len(prompt) * float(i % 4) for is_dead, prompt, i in rows]


SCALES = [{"scale_rewards": "group"}, {"scale_rewards": "batch"}, {"scale_rewards": "none"}]
SCALES.append({"multi_objective_aggregation": "normalize_then_sum"})


@pytest.mark.parametrize("options", SCALES, ids=lambda options: "-".join(options.values()))
def test_our_advantages_of_a_batch_are_trls(tmp_path, monkeypatch, options):
    seen, calculate = [], GRPOTrainer._calculate_rewards
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda *args: seen.append(calculate(*args)) or seen[-1])
    trainer = train(False, tmp_path, reward_funcs=[words_only, of_two_scales], reward_weights=[1.0, 0.3], **options)
    settings = (trainer.num_generations, trainer.scale_rewards, trainer.multi_objective_aggregation)
    found = losses.batch_advantages(seen[0], trainer.reward_weights, *settings)
    assert torch.allclose(found, torch.tensor(list(trainer._logs["advantages"])), atol=1e-6)
    assert found.std() > 0.3


@pytest.mark.parametrize("options", [SCALES[1], SCALES[3]], ids=lambda options: "-".join(options.values()))
def test_advantages_scaled_over_the_batch_are_those_of_the_replaced_one(tmp_path, options):
    trainer = train(
        True,
        tmp_path,
        dataset=prompts(64),
        shuffle_dataset=False,
        dynamic_sampling=10,
        reward_funcs=words_only,
        **options,
    )
    assert logged(trainer, "dynamic_sampling/replaced_groups") == [2]
    assert "rewards_per_func" not in trainer._buffered_inputs[0]
    found = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs]).sort().values
    rewards = torch.arange(4.0).repeat(4).view(16, 1)  # of four live groups, where TRL drew two
    settings = (4, trainer.scale_rewards, trainer.multi_objective_aggregation)
    expected = losses.batch_advantages(rewards, torch.ones(1), *settings)
    assert torch.allclose(found, expected.sort().values, atol=1e-6)
    first_draw = losses.batch_advantages(torch.cat([rewards[:8], torch.full((8, 1), 0.5)]), torch.ones(1), *settings)
    assert not torch.allclose(first_draw.max(), expected.max(), rtol=0.1)


def test_replaced_rows_carry_their_own_prompt_and_gradient(tmp_path):
    """The gradient is that of a batch that held the live prompts from the start."""
    trainer = train(
        True,
        tmp_path,
        dataset=prompts(64),
        shuffle_dataset=False,
        dynamic_sampling=10,
        reward_funcs=words_only,
        generation_kwargs={"do_sample": False},
    )
    decode = lambda ids, mask: tiny_tokenizer().decode(ids[mask.bool()])  # noqa: E731
    live = {row["prompt"] for row in prompts(64) if not row["dead"]}
    generated = {}
    for batch in trainer._buffered_inputs:
        for row in range(len(batch["live"])):
            prompt = decode(batch["prompt_ids"][row], batch["prompt_mask"][row])
            generated[prompt] = decode(batch["completion_ids"][row], batch["completion_mask"][row])
    assert len(generated) == 4
    assert set(generated) <= live
    model = tiny_model().eval()
    for prompt, completion in generated.items():
        ids = tiny_tokenizer()(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[
            0, ids["input_ids"].size(1) :
        ]
        assert tiny_tokenizer().decode(output[output != 0]) == completion


def test_a_group_without_a_loss_token_is_replaced(tmp_path):
    """Of one-token completions nearly all are truncated, and truncated ones are masked."""
    options = {"mask_truncated_completions": True, "max_completion_length": 1, "dynamic_sampling": 2}
    by_position = lambda completions, **kwargs: [float(i % 4) for i in range(len(completions))]  # noqa: E731
    trainer = train(True, tmp_path, reward_funcs=by_position, **options)
    assert logged(trainer, "frac_reward_zero_std") == [0.0]
    assert logged(trainer, "dynamic_sampling/rounds") == [2]
    assert logged(trainer, "dynamic_sampling/dead_groups_left")[0] > 0


def test_columns_without_a_token_do_not_change_vespos_weight():
    """VESPO multiplies the importance ratios of a row, of every column."""
    short = {"importance_sampling_ratio": torch.tensor([[1.2, 0.9], [0.8, 1.1]])}
    long = {"importance_sampling_ratio": torch.tensor([[1.1, 0.7, 1.3, 0.9]])}

    def weights(ratio):
        rows = len(ratio)
        zeros, mask = torch.zeros(rows, ratio.size(1)), torch.ones(rows, ratio.size(1))
        return GRPOTrainer.get_gamma_weights(torch.ones(rows, 1), zeros, mask, ratio)

    expected = torch.cat([weights(long["importance_sampling_ratio"]), weights(short["importance_sampling_ratio"][1:])])
    widened = _overwrite_rows(short, torch.tensor([0]), long, torch.tensor([0]))
    assert torch.equal(weights(widened["importance_sampling_ratio"]), expected)


def test_after_n_rounds_the_batch_goes_on_as_it_is(tmp_path):
    always = lambda completions, **kwargs: [1.0] * len(completions)  # noqa: E731
    calls = []

    def counted(completions, **kwargs):
        calls.append(len(completions))
        return always(completions)

    trainer = train(True, tmp_path, dynamic_sampling=3, reward_funcs=counted)
    assert calls == [16] * 4
    assert logged(trainer, "dynamic_sampling/rounds") == [3]
    assert logged(trainer, "dynamic_sampling/replaced_groups") == [0]
    assert logged(trainer, "dynamic_sampling/dead_groups_left") == [4]


def test_dynamic_sampling_works_with_a_streamed_data_set_and_several_updates_a_batch(tmp_path):
    streamed = IterableDataset.from_generator(lambda: iter(prompts(64)))
    trainer = train(
        True,
        tmp_path,
        dataset=streamed,
        dynamic_sampling=10,
        reward_funcs=words_only,
        num_iterations=2,
        max_steps=4,
        beta=0.0,
    )
    assert logged(trainer, "dynamic_sampling/dead_groups_left") == [0, 0]
    assert "old_per_token_logps" in trainer._buffered_inputs[0]


def test_columns_of_the_data_set_reach_the_reward_of_replaced_rows(tmp_path):
    seen = []

    def spy(completions, prompts, dead, tag, **kwargs):
        seen.extend(zip(prompts, tag, strict=True))
        return words_only(completions, prompts, dead)

    rows = [dict(row, tag=f"tag of {row['prompt']}") for row in prompts(32)]
    train(True, tmp_path, dataset=Dataset.from_list(rows), dynamic_sampling=2, reward_funcs=spy)
    assert len(seen) > 16
    assert all(tag == f"tag of {prompt}" for prompt, tag in seen)


def test_dynamic_sampling_with_tools_is_an_error(tmp_path):
    def rollout(prompts, trainer):
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"dynamic_sampling=1.*rollout_func"):
        train(True, tmp_path, dynamic_sampling=1, trainer_kwargs={"rollout_func": rollout})


@pytest.mark.parametrize("streamed", [False, True], ids=["indexed", "streamed"])
@pytest.mark.parametrize("rows", [6, 8, 16], ids=["second pass", "end of a pass", "first pass"])
def test_a_resumed_run_draws_the_fresh_prompts_that_follow(tmp_path, rows, streamed):
    """Every group is dead, so each step draws its 4 prompts and then 4 fresh ones, 8 of these before the checkpoint."""

    def run(folder, **resume):
        drawn = []

        def spy(completions, prompts, **kwargs):
            drawn.append(prompts[::4])
            return [1.0] * len(completions)

        dataset = prompts(rows)
        if streamed:
            dataset = IterableDataset.from_generator(lambda: iter(prompts(rows)))
        saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        train(True, folder, dataset=dataset, dynamic_sampling=1, reward_funcs=spy, **saved, **resume)
        return drawn[1::2]  # TRL's own draws after the first pass do not depend on us

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", resume_from=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed == whole[2:]
    assert resumed != whole[:2]  # what a run that starts anew would draw


def test_a_checkpoint_without_our_state_loads(tmp_path):
    train(False, tmp_path, save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "checkpoint-1"
    assert OWN_STATE not in (checkpoint / "trainer_state.json").read_text()
    resumed = train(
        True, tmp_path, max_steps=2, dynamic_sampling=10, reward_funcs=words_only, resume_from=str(checkpoint)
    )
    assert resumed.state.global_step == 2
    assert logged(resumed, "dynamic_sampling/dead_groups_left") == [0]
