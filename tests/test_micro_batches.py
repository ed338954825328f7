"""The micro-batches of a generation batch as functions of tensors: rows, normalisers, columns, metrics, by hand."""

import math

import pytest
import torch
from accelerate import Accelerator

from grpo_math.trainer.micro_batches import (
    Columns,
    concatenate,
    lay_out,
    lay_out_generation,
    loss_mask,
    normaliser_share,
    pad_columns,
    padding_fraction,
    prompt_numbers,
    row_lengths,
    rows_per_micro_batch,
    score_by_length,
    select_rows,
    used_columns,
    weigh_metrics,
    window_size,
)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def right_padded(*lengths, width):
    return torch.tensor([[1] * n + [0] * (width - n) for n in lengths])


def left_padded(*lengths, width):
    return right_padded(*lengths, width=width).flip(1)


def batch_of(lengths, live, prompts=None, width=9):
    """Rows numbered by their advantage 1, 2, ...: prompts of two tokens, completions of `lengths`."""
    rows = len(lengths)
    names = torch.tensor(prompts or [0] * rows)
    return {
        "prompt_ids": torch.stack([names, names + 5], dim=1),
        "prompt_mask": torch.ones(rows, 2, dtype=torch.long),
        "completion_mask": right_padded(*lengths, width=width),
        "advantages": torch.arange(1.0, rows + 1),
        "live": torch.tensor(live, dtype=torch.bool),
        "num_items_in_batch": torch.tensor(7),
        "old_per_token_logps": None,
    }


def numbers(micro_batch):
    return micro_batch["completion_mask"].sum(1).tolist()


def test_rows_are_selected_and_joined_and_scalars_stay():
    batch = batch_of([3, 1, 2], [1, 0, 1])
    chosen = select_rows(batch, torch.tensor([2, 0]))
    assert numbers(chosen) == [2, 3]
    assert (chosen["num_items_in_batch"], chosen["old_per_token_logps"]) == (7, None)
    joined = concatenate([chosen, select_rows(batch, torch.tensor([1]))])
    assert numbers(joined) == [2, 3, 1]
    assert (joined["num_items_in_batch"], joined["old_per_token_logps"]) == (7, None)


def test_what_a_tool_wrote_is_not_in_the_loss():
    batch = {"completion_mask": torch.tensor([[1, 1, 1, 0]]), "tool_mask": torch.tensor([[1, 0, 1, 1]])}
    assert loss_mask(batch).tolist() == [[1, 0, 1, 0]]
    assert loss_mask({"completion_mask": batch["completion_mask"]}).tolist() == [[1, 1, 1, 0]]


def test_lengths_count_the_prompt_and_the_completion():
    assert row_lengths(batch_of([3, 1, 2], [1, 1, 1])).tolist() == [5, 3, 4]


@pytest.mark.parametrize(("steps", "accumulation", "size"), [(4, 4, 4), (8, 4, 4), (2, 4, 2), (3, 2, 1), (6, 4, 2)])
def test_a_window_never_spans_two_optimizer_steps(steps, accumulation, size):
    assert window_size(steps, accumulation) == size


@pytest.mark.parametrize(
    ("live", "micro_batches", "capacity", "group", "counts"),
    [
        (4, 2, 4, 1, [2, 2]),
        (5, 2, 4, 1, [3, 2]),
        (0, 3, 4, 1, [1, 1, 1]),
        (2, 3, 4, 1, [1, 1, 1]),
        (8, 2, 8, 4, [4, 4]),
        (12, 2, 8, 4, [8, 4]),
        (10, 2, 8, 4, [4, 6]),
        (4, 2, 4, 4, [2, 2]),  # fewer groups than micro-batches
        (8, 2, 6, 4, [4, 4]),  # groups of 4 do not fill 6 rows
        (9, 2, 6, 4, [5, 4]),
    ],
)
def test_live_rows_are_dealt_out_evenly(live, micro_batches, capacity, group, counts):
    assert rows_per_micro_batch(live, micro_batches, capacity, group) == counts
    if group == 1:
        assert rows_per_micro_batch(live, micro_batches, capacity) == counts


def test_the_normaliser_is_the_kept_share_of_what_the_loss_divides_by():
    kept = right_padded(3, 1, width=4)
    for loss_type in ("grpo", "sapo", "dr_grpo", "luspo"):
        assert normaliser_share(loss_type, kept, 8, torch.tensor(10.0)) == 2 / 8, loss_type
    assert normaliser_share("bnpo", kept, 8, torch.tensor(10.0)) == pytest.approx(4 / 10)
    assert normaliser_share("bnpo", kept * 0, 8, torch.tensor(0.0)) == 1.0
    for loss_type in ("dapo", "cispo", "vespo"):
        assert normaliser_share(loss_type, kept, 8, torch.tensor(10.0)) == 1.0, loss_type


def test_equal_prompts_have_equal_numbers_and_padding_has_none():
    ids = torch.tensor([[9, 1, 2], [0, 1, 2], [5, 1, 2], [5, 1, 2], [0, 2, 1]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]])
    a, b, c, d, e = prompt_numbers(ids, mask).tolist()
    assert a == b
    assert c == d
    assert len({a, c, e}) == 3
    assert len(set(prompt_numbers(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0, 1], [1, 1]])).tolist())) == 2


def test_live_rows_are_sorted_cut_and_dead_ones_left_out():
    batch = batch_of([9, 2, 7, 3, 8, 4, 5, 6], [1, 1, 1, 1, 0, 0, 0, 0])
    first, second = lay_out(batch, [2, 2], "grpo", "length")
    assert (numbers(first), numbers(second)) == ([9, 7], [3, 2])
    # Two of four rows are kept, and TRL divides by four
    assert first["advantages"].tolist() == [0.5, 1.5]
    assert second["advantages"].tolist() == [2.0, 1.0]


def test_the_shortest_dead_rows_fill_up_and_weigh_nothing():
    batch = batch_of([9, 2, 7, 3], [0, 0, 1, 0])
    first, second = lay_out(batch, [1, 1], "dapo", "length")
    assert (numbers(first), numbers(second)) == ([7], [2])
    assert (first["advantages"].tolist(), second["advantages"].tolist()) == ([3.0], [0.0])
    per_token = {**batch, "advantages": batch["advantages"].unsqueeze(1).expand(4, 9)}
    first, second = lay_out(per_token, [1, 1], "dapo", "length")
    assert (first["advantages"][0, 0], second["advantages"].abs().sum()) == (3.0, 0.0)
    (both,) = lay_out(per_token, [2], "dapo", "length")
    assert both["advantages"].tolist() == [[3.0] * 9, [0.0] * 9]


def test_rows_stay_in_their_order_where_nothing_may_be_arranged():
    batch = batch_of([2, 9, 3, 7, 5], [1, 1, 0, 1, 0])
    (only,) = lay_out(batch, [4], "bnpo", None)
    assert numbers(only) == [2, 9, 7, 3]
    share = (2 + 9 + 7 + 3) / (2 + 9 + 3 + 7 + 5)
    assert only["advantages"].tolist() == pytest.approx([share, 2 * share, 4 * share, 0.0])


def test_rows_of_a_prompt_stay_together_by_length():
    batch = batch_of([2, 9, 3, 7, 5, 4], [1] * 6, prompts=[1, 0, 1, 0, 1, 0])
    first, second = lay_out(batch, [3, 3], "dapo", "prompt")
    assert (numbers(first), numbers(second)) == ([9, 7, 4], [5, 3, 2])


def test_a_generation_is_laid_out_window_by_window(accelerator):
    made = [
        batch_of(lengths, live)
        for lengths, live in [([9, 2], [1, 1]), ([7, 3], [0, 1]), ([4, 5], [1, 0]), ([8, 6], [0, 0])]
    ]
    arguments = dict(accelerator=accelerator, loss_type="dapo", num_generations=2)
    laid_out, skipped = lay_out_generation(
        made, gradient_accumulation_steps=2, skip=True, arrange="length", **arguments
    )
    assert list(map(numbers, laid_out)) == [[9, 3], [2], [5], [4]]
    assert skipped == 3
    unsorted, skipped = lay_out_generation(made, gradient_accumulation_steps=2, skip=True, arrange=None, **arguments)
    assert list(map(numbers, unsorted)) == [[9, 2], [3], [4], [6]]
    assert skipped == 3
    kept, skipped = lay_out_generation(made, gradient_accumulation_steps=4, skip=False, arrange="length", **arguments)
    assert list(map(numbers, kept)) == [[9, 8], [7, 6], [5, 4], [3, 2]]
    assert skipped == 0


def test_groups_stay_whole_only_where_rows_are_arranged_by_prompt(accelerator):
    made = [batch_of([9, 8, 7, 6], [1, 1, 1, 1]), batch_of([5, 4, 3, 2], [1, 1, 0, 0], prompts=[1, 1, 1, 1])]
    for arrange, rows in (("length", [[9, 8, 7], [6, 5, 4]]), ("prompt", [[9, 8, 7, 6], [5, 4]])):
        laid_out, skipped = lay_out_generation(made, accelerator, "grpo", 2, True, arrange, 2)
        assert (list(map(numbers, laid_out)), skipped) == (rows, 2)
        # TRL divides by the four rows of a micro-batch
        kept = [batch["advantages"] * 4 / len(batch["live"]) for batch in laid_out]
        assert torch.cat(kept).tolist() == pytest.approx([1, 2, 3, 4, 1, 2])


def test_a_selection_sees_each_window_with_its_number(accelerator):
    made = [batch_of([3, 1], [1, 1]), batch_of([2, 4], [1, 1])]
    seen = []

    def select(batch, live, number):
        seen.append((numbers(batch), live.tolist(), number))
        return {**batch, "live": torch.tensor([True, False])}

    laid_out, skipped = lay_out_generation(made, accelerator, "dapo", 1, True, "length", 2, select)
    assert seen == [([3, 1], [True, True], 0), ([2, 4], [True, True], 1)]
    assert (list(map(numbers, laid_out)), skipped) == ([[3], [2]], 2)


@pytest.mark.parametrize(
    ("trim_left", "multiple", "columns"),
    [(True, None, (2, 7)), (False, None, (0, 7)), (True, 2, (2, 8)), (True, 3, (1, 7)), (True, 8, (0, 9))],
)
def test_columns_that_no_row_attends_to_are_trimmed(trim_left, multiple, columns):
    mask = torch.cat([left_padded(2, 1, width=4), right_padded(1, 3, width=5)], dim=1)
    used = used_columns(mask, 4, trim_left, multiple)
    assert (used.start, used.stop) == columns


def test_a_column_of_either_side_stays():
    completion_only = torch.cat([torch.zeros(1, 4), right_padded(2, width=5)], dim=1).long()
    assert used_columns(completion_only, 4, True, None) == slice(3, 6)
    prompt_only = torch.cat([left_padded(2, width=4), torch.zeros(1, 5)], dim=1).long()
    assert used_columns(prompt_only, 4, True, None) == slice(2, 5)
    assert used_columns(torch.zeros(2, 9), 4, True, None) == slice(0, 9)
    assert Columns(False, True, None).used(completion_only, 4) == slice(None)
    assert Columns(True, True, None).used(completion_only, 4) == slice(3, 6)


def test_positions_are_the_tokens_and_the_cells_that_are_run():
    batch = {"prompt_mask": left_padded(2, 1, width=4), "completion_mask": right_padded(1, 3, width=5)}
    assert Columns(True, True, None).positions(batch) == (7, 10)
    assert Columns(False, True, None).positions(batch) == (7, 18)


def test_padding_goes_to_the_right_unless_left_is_asked_for():
    tensor = torch.tensor([[1.0, 2.0]])
    assert pad_columns(tensor, 4).tolist() == [[1, 2, 0, 0]]
    assert pad_columns(tensor, 4, left=True, value=7.0).tolist() == [[7, 7, 1, 2]]


@pytest.mark.parametrize("with_entropies", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_rows_are_scored_in_chunks_of_like_length_and_come_back_in_order(with_entropies, batch_size):
    mask = torch.cat([left_padded(1, 3, 2, 3, 1, width=3), right_padded(2, 4, 1, 4, 2, width=6)], dim=1)
    ids = torch.arange(5).unsqueeze(1) * 10 + torch.arange(9)
    calls = []

    def score(input_ids, attention_mask, logits_to_keep):
        assert torch.equal(attention_mask.sum(1), mask[input_ids[:, 0] // 10].sum(1))
        calls.append((len(input_ids), input_ids.size(1), logits_to_keep))
        logps = input_ids[:, -logits_to_keep:].float()
        return logps, logps + 0.5 if with_entropies else None, None

    logps, entropies = score_by_length(score, ids, mask, 6, batch_size, Columns(True, True, None))
    assert [rows for rows, _, _ in calls] == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[batch_size]
    if batch_size == 2:  # both longest, then the next ones: of equal length, the earlier row first
        assert [(width, kept) for _, width, kept in calls] == [(7, 4), (4, 2), (3, 2)]
    for row, tokens in enumerate([2, 4, 1, 4, 2]):
        assert logps[row, :tokens].tolist() == ids[row, 3 : 3 + tokens].tolist()
        if with_entropies:
            assert entropies[row, :tokens].tolist() == (ids[row, 3 : 3 + tokens] + 0.5).tolist()
    assert logps.shape == (5, 6)
    assert (entropies is not None) == with_entropies


def test_metric_weights_turn_means_over_micro_batches_into_means_over_tokens_and_rows(accelerator):
    made = [batch_of([9, 2], [1, 1]), batch_of([7, 3], [0, 1])]
    laid_out, _ = lay_out_generation(made, accelerator, "dapo", 2, True, "length", 2)
    assert list(map(numbers, laid_out)) == [[9, 3], [2]]
    first, second = (batch["metric_weights"].tolist() for batch in laid_out)
    assert first == pytest.approx([12 * 2 / 14, 2 * 2 / 3, 14 / 21, 3 / 4])
    assert second == pytest.approx([2 * 2 / 14, 1 * 2 / 3, 14 / 21, 3 / 4])
    empty = [batch_of([0], [1])]
    (only,), _ = lay_out_generation(empty, accelerator, "dapo", 1, True, None, 1)
    assert only["metric_weights"].tolist() == [0, 1, 0, 1]


def test_metrics_are_weighed_by_what_they_are_means_of():
    weights = torch.tensor([2.0, 3.0, 0.5, 0.25])

    def weighed(by_row, weights=weights):
        names = ("entropy", "kl", "vespo/phi_seq_mean", "clip_ratio/low_mean", "clip_ratio/low_min", "reward")
        metrics = {name: [5.0, 1.0] for name in names} | {"kl/k3": []}
        weigh_metrics(metrics, weights, by_row)
        assert all(values[0] == 5.0 for name, values in metrics.items() if name != "kl/k3")
        assert metrics["reward"] == [5.0, 1.0]
        return [metrics[name][-1] for name in names[:-1]]

    assert weighed(by_row=False) == [2, 2, 3, 1.0, 0]
    assert weighed(by_row=True) == [2, 2, 3, 0.75, 0]
    assert weighed(False, torch.tensor([2.0, 3.0, 0.5, 1.0]))[-1] == 1.0  # no row is skipped: the least ratio stays


def test_the_padding_fraction_is_that_of_all_positions(accelerator):
    batches = [{"used": 3, "run": 4}, {"used": 1, "run": 6}]
    found = padding_fraction(batches, lambda batch: (batch["used"], batch["run"]), accelerator)
    assert math.isclose(found, 0.6, rel_tol=1e-6)
