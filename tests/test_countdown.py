"""Countdown rows come from a file or the generator; the policy that ignores the target is the best of its kind."""

import json
from collections import Counter

import pytest

from grpo_math.errors import TaskError
from grpo_math.evaluation.accuracy import by_kind
from grpo_math.tasks import countdown, load_problems, resolve_rewards
from grpo_math.tasks.countdown_problems import CountdownConfig
from grpo_math.tiny_model import tiny_task_config

pytestmark = pytest.mark.usefixtures("no_local_data")


def test_held_out_rows_are_classed_by_numbers_and_operators_where_both_differ():
    settings = {"task": "countdown", "dataset_path": "generated", "heldout_size": 12, "train_size": 4}
    several = load_problems(countdown.CONFIG(**settings, countdown_operands=[2, 3]))
    assert {kind.split(": ")[0] for kind in several.kinds} == {"2 numbers", "3 numbers"}
    assert all(len(kind.split(": ")[1]) == int(kind[0]) - 1 for kind in several.kinds)
    assert set(load_problems(countdown.CONFIG(**settings, countdown_operands=[2])).kinds) <= set("+-*/")
    both = [{"kind": "2 numbers: +"}, {"kind": "3 numbers: +-"}, {"kind": "3 numbers: ++"}]
    found = by_kind(both, lambda item: item["kind"])
    assert {kind: len(rows) for kind, rows in found.items()} == {
        "2 numbers": 1, "3 numbers": 2, "2 numbers: +": 1, "3 numbers: ++": 1, "3 numbers: +-": 1,
    }  # fmt: skip
    assert list(found)[:2] == ["2 numbers", "3 numbers"]


def test_countdown_rows_from_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"nums": [44, 19, 35], "target": 98},
        {"nums": [63, 95, 96], "target": 64},
        {"nums": [95, 11, 56], "target": 28},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = load_problems(CountdownConfig(dataset_path=str(path), heldout_size=1, prompt_style="boxed"))
    assert len(problems.train) == 2
    assert set(problems.train[0]) == {"prompt", "nums", "target"}
    path.write_text(
        json.dumps({"nums": [1, 2], "target": 3}) + "\n" + json.dumps({"nums": [1, 2], "target": None}) + "\n"
    )
    with pytest.raises(TaskError, match=r"row 1: column `target`.*None"):
        load_problems(CountdownConfig(dataset_path=str(path), heldout_size=1))


@pytest.mark.parametrize("style", ["think", "boxed", "hash", "plain"])
def test_countdown_examples_pay_full_reward(style):
    config = CountdownConfig(dataset_path="generated", prompt_style=style, fewshot=1, train_size=60, heldout_size=20)
    prompt = load_problems(config).train[0]["prompt"]
    shown = prompt.split("Solution:")[1].split("\n\nProblem:")[0] if style == "plain" else prompt[-2]["content"]
    nums, target = next(
        (row["nums"], row["target"])
        for row in countdown.load_rows(config)[0]
        if countdown.problem_text(row) in (prompt.split("Solution:")[0] if style == "plain" else prompt[-3]["content"])
    )
    completion = shown if style == "plain" else [{"role": "assistant", "content": shown}]
    assert resolve_rewards(None, config)[0](completions=[completion], nums=[nums], target=[target]) == [1.0]


@pytest.mark.parametrize("balance", ["numbers", "classes", "none"])
def test_the_blind_policy_is_the_best_one_without_the_target(balance):
    """No policy over the numbers alone, even one fitted to fresh problems of the generator, beats the stated accuracy."""
    config = tiny_task_config(countdown_balance=balance, train_size=600, heldout_size=150)
    train, heldout = countdown.load_rows(config)
    stated, how = countdown.blind_accuracy(heldout, train, config)
    assert how
    table = {}
    for row in train:
        key = min(row["nums"]) * max(row["nums"]) > 199, max(row["nums"]) > 20
        table.setdefault(key, Counter())[row["kind"]] += 1
    overall = Counter(row["kind"] for row in train)  # the guess for what no training row is like
    fitted = 0
    for row in heldout:
        features = min(row["nums"]) * max(row["nums"]) > 199, max(row["nums"]) > 20
        kind = table.get(features, overall).most_common(1)[0][0]
        a, b = sorted(row["nums"], reverse=True)
        fitted += {"+": a + b, "-": a - b, "*": a * b}[kind] == row["target"]
    assert fitted / len(heldout) <= stated + 0.12  # two standard errors of 150 problems
    if balance == "numbers":
        assert stated == pytest.approx(1 / 3, abs=0.1)


def test_the_blind_policy_of_dataset_rows_is_a_rule_chosen_on_training_rows():
    rows = [{"nums": [n, 2], "target": n + 2, "kind": "2 numbers"} for n in range(5, 15)]
    config = CountdownConfig(dataset_path="somewhere.jsonl")
    assert countdown.blind_accuracy(rows[:5], rows[5:], config)[0] == 1.0
    other = [{"nums": [n, 2], "target": n * 2, "kind": "2 numbers"} for n in range(5, 15)]
    assert countdown.blind_accuracy(other, rows, config)[0] == 0.0


def test_a_row_with_more_numbers_than_the_solver_takes_is_refused_before_anything_is_solved(tmp_path):
    """Sixty numbers would take 4^59 rules."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"nums": [1, 2], "target": 3}) + "\n" + json.dumps({"nums": [1] * 60, "target": 3}) + "\n"
    )
    with pytest.raises(TaskError, match=r"row 1: column `nums` holds 60 numbers.*at most 6: drop the row"):
        load_problems(CountdownConfig(dataset_path=str(path), heldout_size=1, prompt_style="boxed"))
