"""Figures come with honest intervals, and measuring leaves the model and the random state as they were."""

import itertools
import random

import pytest
import torch

from grpo_math import tiny_model
from grpo_math.evaluation import changes, clustered, generate, measure, pass_at_k, prompt_ids, wilson
from grpo_math.tasks import load_problems, resolve_rewards


def test_wilson_against_published_values():
    # Agresti & Coull 1998: 0 of 10 -> [0, 0.2775]; 5 of 10 -> [0.2366, 0.7634]
    assert wilson(0.0, 10).low == 0.0
    assert wilson(0.0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(0.5, 10)[1:] == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_an_interval_always_holds_its_value():
    for n in range(1, 400):
        for value in (0.0, 1.0, 1 / 3):
            interval = wilson(value, n)
            assert 0.0 <= interval.low <= value <= interval.high <= 1.0


@pytest.mark.parametrize(("value", "n"), [(1.2, 5), (-0.1, 5), (0.5, 0)])
def test_wilson_rejects_values_outside_a_share(value, n):
    with pytest.raises(ValueError, match="share"):
        wilson(value, n)


def test_samples_of_one_problem_do_not_count_as_independent():
    identical = [[1.0] * 8] * 10 + [[0.0] * 8] * 10  # 20 facts, not 160
    mixed = [[1.0, 0.0] * 4] * 20
    assert clustered(identical).value == clustered(mixed).value == 0.5
    assert clustered(identical).high - clustered(identical).low > 0.35
    assert clustered([[1.0]] * 10 + [[0.0]] * 10)[1:] == pytest.approx(wilson(0.5, 19)[1:], abs=0.01)


def test_the_interval_covers():
    """In simulated experiments with known accuracy the 95 % interval holds the truth about as often as it says."""
    rng = random.Random(0)
    held = 0
    for _ in range(300):
        difficulty = [rng.betavariate(1, 2) for _ in range(60)]  # mean 1/3
        interval = clustered([[float(rng.random() < p) for _ in range(4)] for p in difficulty])
        held += interval.low <= 1 / 3 <= interval.high
    assert 0.91 <= held / 300 <= 0.99


def test_pass_at_k_equals_counting_subsets():
    outcomes = [1, 0, 0, 1, 0]
    for k in range(1, 6):
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))
    with pytest.raises(ValueError, match="k"):
        pass_at_k(3, 1, 4)


def test_more_equal_than_chance_is_no_evidence():
    """Problems whose means agree by luck do not make the interval narrower than independent completions would."""
    agreeing = [[1.0, 0.0, 0.0, 0.0] * 2] * 9 + [[1.0, 0.0, 1.0, 0.0] * 2]
    value = sum(map(sum, agreeing)) / 80
    assert clustered(agreeing) == wilson(value, 80)


@pytest.fixture(scope="module")
def tiny():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_model.tiny_model_folder()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_generation_does_not_depend_on_batching(tiny):
    model, tokenizer = tiny
    ids = prompt_ids(tokenizer, ["17 5 = 12 :", "3 4 = 7 :", "9 9 = 81 :", "50 2 = 52 :", "8 : 1"])
    one = generate(model, tokenizer, ids, batch_size=1, max_new_tokens=8, do_sample=False)
    all_at_once = generate(model, tokenizer, ids, batch_size=5, max_new_tokens=8, do_sample=False)
    assert one == all_at_once
    assert all(text.startswith("<answer>") for text in one[:4])


def test_a_completion_may_end_at_a_stop_string(small_chat_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(small_chat_model),
        AutoTokenizer.from_pretrained(small_chat_model),
    )
    ids = prompt_ids(tokenizer, ["one", "and two"])
    (whole, other) = generate(model, tokenizer, ids, batch_size=2, max_new_tokens=12, do_sample=False)
    mark = whole[5]
    stopped = generate(model, tokenizer, ids, batch_size=2, stop_strings=[mark], max_new_tokens=12, do_sample=False)
    assert stopped[0] == whole[: whole.index(mark) + 1]
    assert other.startswith(stopped[1])


def test_measuring_changes_neither_the_random_state_nor_the_mode(tiny):
    model, tokenizer = tiny
    config = tiny_model.tiny_task_config(train_size=10, heldout_size=12)
    problems = load_problems(config)
    (reward,) = resolve_rewards(["countdown_accuracy"], config)

    def run(**sampling):
        return measure(
            model, tokenizer, problems.heldout, problems.kinds, reward, generations=3, batch_size=16, seed=1,
            max_new_tokens=8, sampling={"temperature": 1.0, "top_k": 0, "top_p": 1.0, **sampling},
        )  # fmt: skip

    plain = run()
    model.generation_config.repetition_penalty = 5.0  # what training overrides is overridden here too
    try:
        assert run(repetition_penalty=1.0).sampled == plain.sampled
        assert run().records != plain.records
    finally:
        model.generation_config.repetition_penalty = None

    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    second = run()
    assert first.sampled == second.sampled
    assert [r["row"] for r in first.records] == list(range(12))
    assert first.n == 12
    assert first.k == 3
    assert set(first.by_kind) == {"+", "-", "*"}
    # Every figure is counted from the records, which hold each completion
    assert first.strict.value <= first.sampled.value <= first.lenient.value
    assert sum(first.outcomes.values()) == pytest.approx(1.0)
    assert list(first.pass_at) == [2, 3]
    assert first.sampled.value <= first.pass_at[2].value <= first.pass_at[3].value
    assert 1 < first.mean_length <= 8
    assert all(len(r[name]) == 3 for r in first.records for name in ("completions", "answers", "lengths", "truncated"))
    unchanged = changes(first.records, second.records)
    assert unchanged["sampled"].value == unchanged["greedy"].value == unchanged["by_kind"]["+"].value == 0.0
    for record, row in zip(first.records, problems.heldout, strict=True):
        texts = [record["sampled_completion"], record["greedy_completion"]]
        scores = reward(completions=texts, nums=[row["nums"]] * 2, target=[row["target"]] * 2)
        assert scores == [record["correct"][0], record["greedy"]]
