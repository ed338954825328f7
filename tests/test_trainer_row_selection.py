"""Training a weighted draw of the rows: every outcome enumerated, the expected gradient is that of all rows."""

import pytest
import torch
from trainer_fixtures import ALL_OFF, config, live_reward, logged, relative_difference, train

from grpo_math.trainer.losses import LOSS_TYPES
from grpo_math.trainer.micro_batches import lay_out_generation
from grpo_math.trainer.row_selection import inclusion_probabilities, row_sizes, select, systematic_sample


def outcomes(probabilities):
    """Every set of rows that systematic sampling can take, as an interval of the uniform number: (middle, width)."""
    edges = (-probabilities.masked_fill(probabilities >= 1, 0).cumsum(0)) % 1
    edges = torch.cat([edges, torch.tensor([0.0, 1.0], dtype=edges.dtype)]).sort().values
    widths = edges.diff()
    return [(m, w) for m, w in zip((edges[:-1] + widths / 2).tolist(), widths.tolist(), strict=True) if w > 1e-12]


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([4.0, 2.0, 1.0, 1.0], 2, [1.0, 0.5, 0.25, 0.25]),
        ([1.0, 1.0, 1.0, 1.0], 3, [0.75, 0.75, 0.75, 0.75]),
        ([100.0, 10.0, 1.0, 1.0], 3, [1.0, 1.0, 0.5, 0.5]),
        ([3.0, 0.0, 1.0, 0.0], 2, [1.0, 0.0, 1.0, 0.0]),
        ([3.0, 0.0, 1.0, 0.0], 3, [1.0, 0.0, 1.0, 0.0]),
        ([0.0, 0.0], 1, [0.0, 0.0]),
    ],
)
def test_probabilities_are_proportional_to_size_and_at_most_one(sizes, count, expected):
    assert inclusion_probabilities(torch.tensor(sizes), count).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 5, 11])
def test_each_row_is_taken_with_its_probability_and_the_number_is_fixed(count):
    torch.manual_seed(count)
    probabilities = inclusion_probabilities(torch.rand(12) ** 3, count)
    share = torch.zeros(12, dtype=torch.float64)
    for middle, width in outcomes(probabilities):
        taken = systematic_sample(probabilities, middle)
        assert taken.sum() == count
        share += width * taken
    assert torch.allclose(share, probabilities, atol=1e-12)
    assert ((probabilities > 0) & (probabilities < 1)).any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer for each loss type with TRL's own micro-batches of one generation, 16 rows of which half are dead."""
    made = {}

    def of(loss_type, **options):
        key = (loss_type, *options)
        if key not in made:
            folder = tmp_path_factory.mktemp("trained")
            made[key] = train(True, folder, loss_type=loss_type, learning_rate=0.0, **ALL_OFF, **options)
        return made[key]

    return of


def gradient(trainer, micro_batches):
    trainer.model.zero_grad()
    for micro_batch in micro_batches:
        trainer._compute_loss(trainer.model, micro_batch).backward()
    return torch.cat([p.grad.double().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("reward_funcs", [None, live_reward], ids=["half dead", "all live"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_expected_gradient_is_that_of_all_rows(trained, loss_type, reward_funcs):
    trainer = trained(loss_type, **({} if reward_funcs is None else {"reward_funcs": reward_funcs}))
    batches = [{**batch, "live": batch["advantages"] != 0} for batch in trainer._buffered_inputs]
    every_row = gradient(trainer, batches)
    arrange = None if loss_type == "bnpo" else "length"  # whose micro-batches are windows of their own
    windows = 2 if arrange is None else 1
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in ("advantages", "live", "completion_mask")}
    sizes = row_sizes(joined, joined["live"], loss_type)
    expected, number, spread = 0, 6 // windows, []

    def layout(uniform, only=None):
        def choose(batch, live, window):
            return select(batch, live, loss_type, number, uniform if only in (None, window) else 0.5)

        return lay_out_generation(batches, trainer.accelerator, loss_type, 2, True, arrange, 4, choose)[0]

    parts = [sizes] if windows == 1 else sizes.split(8)
    fixed = gradient(trainer, layout(0.5))
    for window, part in enumerate(parts):  # windows draw independently, so one may be varied at a time
        ordered = inclusion_probabilities(part.abs(), number)[part.argsort(stable=True)]
        mean = 0
        for middle, width in outcomes(ordered):
            found = layout(middle, only=window)
            kept = torch.cat([batch["live"] for batch in found])
            assert len(kept) == 6
            assert kept.all()
            drawn = gradient(trainer, found)
            spread.append((drawn - every_row).norm() / every_row.norm())
            mean = mean + width * drawn
        expected = expected + (mean - fixed)
    assert ((expected + fixed) - every_row).norm() / every_row.norm() < 2e-6
    assert max(spread) > 0.05  # a single draw is not the full gradient


def test_with_as_many_rows_as_are_live_nothing_is_drawn(tmp_path):
    """Half of the 16 rows are dead: the 8 others are trained, each with its own weight."""
    options = {"share_prefill": False, "drop_finished": False}
    whole = train(True, tmp_path, **options)
    drawn = train(True, tmp_path, train_rows=8, **options)
    assert relative_difference(drawn.gradients, whole.gradients) < 1e-6
    assert logged(drawn, "skipped_rows") == logged(whole, "skipped_rows") == [8]


def test_a_run_trains_so_many_rows_and_a_resumed_one_draws_the_same(tmp_path):
    options = {"train_rows": 4, "reward_funcs": live_reward, "max_steps": 3, "learning_rate": 0.02}
    saved = {"save_strategy": "steps", "save_steps": 1}
    whole = train(True, tmp_path, **options, **saved)
    assert logged(whole, "skipped_rows") == [12, 12, 12]
    assert [len(batch["live"]) for batch in whole._buffered_inputs] == [2, 2]
    again = train(True, tmp_path / "again", resume_from=str(tmp_path / "checkpoint-2"), **options)
    assert torch.equal(again.gradients[-1], whole.gradients[-1])
    rows = train(True, tmp_path / "whole", **(options | {"train_rows": 0}))
    assert not torch.equal(rows.gradients[0], whole.gradients[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"train_rows": -1}, "train_rows=-1: write a number"),
        ({"train_rows": True}, "train_rows=True: write a number"),
        ({"train_rows": 4, "beta": 0.1}, "train_rows=4 and beta=0.1"),
        ({"train_rows": 4, "entropy_coef": 0.1}, "train_rows=4 and entropy_coef=0.1"),
        ({"train_rows": 4, "skip_zero_advantage": False}, "train_rows=4 and skip_zero_advantage=False"),
        ({"train_rows": 4, "num_iterations": 2}, "train_rows=4 and num_iterations=2"),
    ],
)
def test_options_under_which_a_draw_would_be_biased_are_errors(tmp_path, options, named):
    with pytest.raises(ValueError, match=named):
        config(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "range_"),
    [
        ({"train_rows": 1}, "a multiple of 1 from 2 .* to 15"),
        ({"train_rows": 16}, "to 15"),
        ({"train_rows": 3, "loss_type": "bnpo"}, "a multiple of 2 from 2 .* to 14"),
        ({"train_rows": 3, "steps_per_generation": 4}, "a multiple of 2 from 4 .* to 30"),
    ],
)
def test_rows_that_cannot_be_shared_out_are_an_error_that_names_the_range(tmp_path, options, range_):
    with pytest.raises(ValueError, match=f"train_rows={options['train_rows']}: .*{range_}"):
        train(True, tmp_path, max_steps=0, **options)


def test_sizes_count_tokens_where_the_loss_sums_over_them():
    batch = {"advantages": torch.tensor([2.0, -1.0, 3.0]), "completion_mask": torch.tensor([[1, 1], [1, 0], [1, 1]])}
    live = torch.tensor([True, True, False])
    for loss_type in LOSS_TYPES:
        expected = [2.0, -1.0, 0.0] if loss_type in ("grpo", "sapo") else [4.0, -1.0, 0.0]
        assert row_sizes(batch, live, loss_type).tolist() == expected
    chosen = select(batch, live, "grpo", 1, 0.5)
    assert chosen["advantages"].tolist() == pytest.approx([3.0, 0.0, 0.0])
    assert chosen["live"].tolist() == [True, False, False]
