"""Paired changes and the verdict: what changed on the same problems, and whether chance explains it."""

import json
import random
import statistics

import pytest
from conftest import run

from grpo_math.evaluation import betting_interval, majority_right, paired_difference, verdict


def test_a_paired_difference_is_what_the_issue_of_two_intervals_hides():
    """27 problems got better and 12 worse of 150: separate intervals overlap, the paired one does not hold zero."""
    before = [0.0] * 27 + [1.0] * 12 + [0.0] * 62 + [1.0] * 49
    after = [1.0] * 27 + [0.0] * 12 + [0.0] * 62 + [1.0] * 49
    found = paired_difference(before, after)
    assert found.value == pytest.approx(0.1)
    # Agresti & Min 2005: (27 - 12) / 152 +- 1.96 sqrt((40 / 152 - (15 / 152)^2) / 152)
    assert found[1:] == pytest.approx((0.0987 - 0.0800, 0.0987 + 0.0800), abs=2e-4)
    assert str(found) == "+0.100 [+0.019, +0.179]"


def test_no_change_at_all_is_not_certainty():
    found = paired_difference([1.0] * 20, [1.0] * 20)
    assert found.low < 0.0 < found.high
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([1.0], [])


def test_the_paired_interval_covers():
    rng = random.Random(1)
    held = 0
    for _ in range(400):
        pairs = [(p := rng.betavariate(1, 2), min(1.0, p + 0.1)) for _ in range(60)]
        before, after = (
            [sum(rng.random() < p for _ in range(4)) / 4 for p in side] for side in zip(*pairs, strict=True)
        )
        truth = statistics.fmean(b - a for a, b in pairs)
        found = paired_difference(before, after)
        held += found.low <= truth <= found.high
    assert held / 400 >= 0.93


def test_the_betting_interval_covers_whatever_the_distribution():
    rng = random.Random(2)
    for draw, mean in (
        (lambda: float(rng.random() < 0.05), 0.05),
        (rng.random, 0.5),
        (lambda: rng.betavariate(5, 1), 5 / 6),
    ):
        intervals = [betting_interval([draw() for _ in range(50)], 0.05) for _ in range(200)]
        assert sum(low <= mean <= high for low, high in intervals) / 200 >= 0.93
    low, high = betting_interval([0.5] * 1000, 0.05)
    assert 0.4 < low <= 0.5 <= high < 0.6


def test_the_verdict_names_the_direction_and_shows_the_interval():
    better, same, worse = (verdict(d, look=1) for d in ([0.25] * 60 + [0.0] * 40, [0.0] * 100, [-0.5] * 100))
    assert (better.word, same.word, worse.word) == ("improved", "no change shown", "worse")
    assert str(better).startswith("improved by 0.150 [+0.0")
    assert str(same).startswith("no change shown: +0.000 [-0.0")
    assert str(worse).startswith("worse by 0.500 [-0.")
    with pytest.raises(ValueError, match="at least one problem"):
        verdict([], look=1)


def test_each_further_look_needs_more_evidence():
    differences = [0.25] * 60 + [0.0] * 40
    lows = [verdict(differences, look=look).change.low for look in (1, 2, 10, 100)]
    assert lows == sorted(lows, reverse=True)
    assert verdict(differences, look=1, along=True).change.low < lows[0]


def test_the_majority_counts_an_answer_however_it_is_written():
    assert majority_right(["1,450", "$1450", "7"], [1.0, 1.0, 0.0]) == 1.0
    assert majority_right(["7", "1450", "7", None, None, None], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]) == 0.0
    assert majority_right([None, None], [0.0, 0.0]) == 0.0


@pytest.mark.usefixtures("no_local_data")
def test_a_run_on_random_rewards_shows_no_change(tiny_recipe, tmp_path):
    code = run(
        tiny_recipe, tmp_path, "--rewards", "benchmarks.false_alarms.coin", "--max_steps", "5", "--learning_rate", "2e-5",
        "--heldout_size", "60", "--heldout_generations", "4", "--logging_steps", "1", "--save_strategy", "no",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"]["word"] == "no change shown"
