"""Rows become prompts and columns; generated problems are solvable, reproducible and split by content."""

import itertools
import json
import random
import shlex
import types
from collections import Counter
from fractions import Fraction

import pytest
from conftest import GSM8K_ROWS, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math import cli, rewards
from grpo_math.errors import TaskError
from grpo_math.expressions import evaluate
from grpo_math.tasks import TASKS, TaskConfig, countdown, gsm8k, load_problems, resolve_rewards
from grpo_math.tasks.base import build_prompt, split_rows
from grpo_math.tiny_model import tiny_task_config

pytestmark = pytest.mark.usefixtures("no_local_data")


def generated(**overrides):
    base = dict(task="countdown", dataset_path="generated", train_size=60, heldout_size=20)
    return TaskConfig(**{**base, **overrides})


# --- GSM8K ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(GSM8K_ROWS[0]["answer"], "72"), ("so\n#### 1,450,000", "1450000"), ("#### -2", "-2"), ("#### 2.5", "2.5"),
     ("18", "18"), ("#### $40", "40"), ("#### ", None), ("many", None), ("#### 3 or 4", None)],
)  # fmt: skip
def test_the_gold_number_is_what_follows_the_last_hashes(answer, gold):
    assert gsm8k.gold_number(answer) == gold


def test_gsm8k_rows_from_a_folder_golden(gsm8k_folder):
    problems = load_problems(TaskConfig(dataset_path=str(gsm8k_folder), prompt_style="hash", heldout_size=3))
    row = problems.train[0]
    assert row["answer"] == "72"
    assert row["question"].startswith("Natalia sold clips to 48")
    assert row["prompt"] == [
        {
            "role": "user",
            "content": row["question"] + " The answer is a number. Reason step by step and end with a line that holds "
            "'#### ' and the final answer.",
        }
    ]
    assert set(row) == {"prompt", "answer", "question"}
    assert len(problems.heldout) == 3
    assert {r["question"] for r in problems.heldout}.isdisjoint(r["question"] for r in problems.train)


def test_gsm8k_is_found_through_the_environment(gsm8k_folder, monkeypatch):
    monkeypatch.setenv("GRPO_MATH_GSM8K", str(gsm8k_folder))
    assert len(load_problems(TaskConfig(heldout_size=2)).train) == len(GSM8K_ROWS)


@pytest.mark.parametrize("given_by", ["dataset_path", "environment"])
def test_gsm8k_from_one_file_is_split_by_content(gsm8k_folder, monkeypatch, given_by):
    path = gsm8k_folder / "train.jsonl"
    if given_by == "environment":
        monkeypatch.setenv("GRPO_MATH_GSM8K", str(path))
    path.write_text(path.read_text() * 2)  # every row twice: the copies must not straddle the split
    problems = load_problems(TaskConfig(dataset_path=str(path) if given_by == "dataset_path" else None, heldout_size=5))
    assert len(problems.heldout) == 5
    assert {r["question"] for r in problems.heldout}.isdisjoint(r["question"] for r in problems.train)


def test_gsm8k_reads_parquet(gsm8k_folder, tmp_path):
    from datasets import Dataset

    Dataset.from_list(GSM8K_ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    assert (
        len(load_problems(TaskConfig(dataset_path=str(tmp_path / "rows.parquet"), heldout_size=4)).train)
        == len(GSM8K_ROWS) - 4
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [({"question": "x", "answer": "#### many"}, ["row 1", "answer", "many"]),
     ({"question": None, "answer": "#### 3"}, ["row 1", "question", "None"])],
)  # fmt: skip
def test_a_row_that_does_not_parse_is_named(tmp_path, row, says):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [GSM8K_ROWS[0], row]))
    with pytest.raises(TaskError) as caught:
        load_problems(TaskConfig(dataset_path=str(path), heldout_size=1))
    assert all(word in str(caught.value) for word in [str(path), *says])


def test_missing_data_says_what_was_tried_and_what_to_do():
    with pytest.raises(TaskError) as caught:
        load_problems(TaskConfig())
    assert all(w in str(caught.value) for w in ["openai/gsm8k", "--dataset_path", "GRPO_MATH_GSM8K"])
    assert "\n" not in str(caught.value)


def test_empty_data_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(TaskError, match="empty"):
        load_problems(TaskConfig(dataset_path=str(tmp_path / "rows.jsonl")))
    with pytest.raises(TaskError, match="no file or folder"):
        load_problems(TaskConfig(dataset_path=str(tmp_path / "other.jsonl")))
    with pytest.raises(TaskError, match=r"train\.jsonl"):
        load_problems(TaskConfig(dataset_path=str(tmp_path)))


def test_unknown_task_and_reward_are_named_with_the_known():
    with pytest.raises(TaskError, match=r"'gsm9k'.*gsm8k, countdown"):
        load_problems(TaskConfig(task="gsm9k"))
    with pytest.raises(TaskError, match=r"'accuracy'.*gsm8k_accuracy"):
        resolve_rewards(["accuracy"], TaskConfig())
    with pytest.raises(TaskError, match=r"no_such_module\.reward"):
        resolve_rewards(["no_such_module.reward"], TaskConfig())


# --- Countdown: the solver --------------------------------------------------------------------------------------------


def brute_force(nums, operators="+-*/"):
    """Every reachable value, by the plainest recursion: replace two numbers by their combination."""
    if len(nums) == 1:
        return {Fraction(nums[0])}
    values = set()
    for i, j in itertools.permutations(range(len(nums)), 2):
        rest = [n for k, n in enumerate(nums) if k not in (i, j)]
        a, b = Fraction(nums[i]), Fraction(nums[j])
        joined = {"+": a + b, "-": a - b, "*": a * b}
        if b:
            joined["/"] = a / b
        for operator, value in joined.items():
            if operator in operators:
                values |= brute_force([*rest, value], operators)
    return values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.sampled_from(["+-*/", "+-*", "+-"]))
def test_the_solver_reaches_exactly_what_brute_force_reaches(nums, operators):
    assert set(countdown.reachable(tuple(sorted(nums)), operators)) == brute_force(nums, operators)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=4), st.integers(1, 100))
def test_a_solution_is_right_by_the_evaluator_that_rewards_use(nums, target):
    expression = countdown.solve(nums, target)
    if expression is None:
        assert Fraction(target) not in brute_force(nums)
    else:
        assert evaluate(expression, nums).value == target


def test_classic_puzzles():
    assert countdown.solve([3, 3, 8, 8], 24) is not None
    assert countdown.solve([1, 1, 1, 1], 24) is None
    with pytest.raises(ValueError, match="at most 6"):
        countdown.solve([1] * 7, 7)


# --- Countdown: the generator -----------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    setting=st.sampled_from(
        [
            ([2], "numbers", True),
            ([2], "classes", True),
            ([2], "none", False),
            ([3], "none", False),
            ([3, 4], "none", False),
        ]
    ),
)
def test_generated_problems_are_reproducible_solvable_in_range_and_disjoint(seed, setting):
    operands, balance, unique = setting
    config = generated(task_seed=seed, countdown_operands=operands, countdown_balance=balance, countdown_unique=unique,
                       countdown_operators="+-*")  # fmt: skip
    train, heldout = countdown.load_rows(config)
    assert (train, heldout) == countdown.load_rows(config)
    assert len(train) == 60
    assert len(heldout) == 20
    held = {countdown.content_key(row) for row in heldout}
    assert len(held) == 20
    assert held.isdisjoint(countdown.content_key(row) for row in train)
    for row in train + heldout:
        assert len(row["nums"]) in operands
        assert all(1 <= n <= 99 for n in row["nums"])
        assert 1 <= row["target"] <= 100
        ways = countdown.reachable(tuple(sorted(row["nums"])), "+-*")[Fraction(row["target"])]
        assert row["kind"] in ways
        assert len(ways) == 1 or not unique


def test_no_seed_or_size_moves_a_problem_across_the_split():
    held = {countdown.content_key(r) for r in countdown.load_rows(tiny_task_config(heldout_size=150))[1]}
    for seed, size in ((1, 500), (2, 1700), (0, 900)):
        train, _ = countdown.load_rows(tiny_task_config(task_seed=seed, train_size=size, heldout_size=0))
        assert held.isdisjoint(countdown.content_key(r) for r in train)


def test_different_seeds_give_different_problems():
    assert countdown.load_rows(generated(task_seed=1))[0] != countdown.load_rows(generated(task_seed=2))[0]


def test_balanced_classes_have_equal_shares():
    train, _ = countdown.load_rows(tiny_task_config(train_size=900, heldout_size=0))
    shares = Counter(row["kind"] for row in train)
    assert set(shares) == {"+", "-", "*"}
    assert all(230 < n < 370 for n in shares.values())


def test_settings_that_admit_too_few_problems_are_an_error():
    with pytest.raises(TaskError, match=r"distinct held-out Countdown problems of 200 .*countdown_operands=\[2\]"):
        countdown.load_rows(generated(countdown_operands=[2], countdown_max=9, heldout_size=200, countdown_unique=True))
    with pytest.raises(TaskError, match=r"heldout_size: 5000 is more than there are different problems \(at most 270"):
        countdown.load_rows(generated(countdown_operands=[2], countdown_max=9, heldout_size=5000))
    with pytest.raises(TaskError, match="countdown_operators"):
        countdown.load_rows(generated(countdown_operators="+^"))
    with pytest.raises(TaskError, match="countdown_operands"):
        countdown.load_rows(generated(countdown_operands=[7]))


@pytest.mark.parametrize(
    ("operands", "smallest", "largest", "target_max"),
    [([2], 1, 9, 100), ([2], -3, 4, 3), ([3], 1, 4, 20), ([2, 3], 2, 2, 5), ([4], 1, 2, 6)],
)
def test_there_are_no_more_problems_than_the_bound_says(operands, smallest, largest, target_max):
    config = generated(
        countdown_operands=operands,
        countdown_min=smallest,
        countdown_max=largest,
        countdown_target_min=-2,
        countdown_target_max=target_max,
    )
    problems = {
        (nums, target)
        for k in operands
        for nums in itertools.combinations_with_replacement(range(smallest, largest + 1), k)
        for targets in countdown._problems_of(nums, config).values()
        for target in targets
    }
    assert 0 < len(problems) <= countdown.most_problems(config)


@pytest.mark.parametrize(("delay", "shown"), [(0, True), (60, False)])
def test_only_a_generation_that_lasts_shows_how_far_it_is(monkeypatch, capsys, delay, shown):
    bar = countdown.tqdm
    monkeypatch.setattr(countdown, "tqdm", lambda *args, **kwargs: bar(*args, **{**kwargs, "delay": delay}))
    countdown.load_rows(generated(train_size=3, heldout_size=0))
    assert ("generating problems" in capsys.readouterr().err) == shown


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


def test_the_blind_policy_of_other_rows_is_a_rule_chosen_on_training_rows():
    rows = [{"nums": [n, 2], "target": n + 2, "kind": "2 numbers"} for n in range(5, 15)]
    config = TaskConfig(task="countdown", dataset_path="somewhere.jsonl")
    assert countdown.blind_accuracy(rows[:5], rows[5:], config)[0] == 1.0
    other = [{"nums": [n, 2], "target": n * 2, "kind": "2 numbers"} for n in range(5, 15)]
    assert countdown.blind_accuracy(other, rows, config)[0] == 0.0


def test_countdown_rows_from_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"nums": [44, 19, 35], "target": 98},
        {"nums": [63, 95, 96], "target": 64},
        {"nums": [95, 11, 56], "target": 28},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = load_problems(TaskConfig(task="countdown", dataset_path=str(path), heldout_size=1, prompt_style="boxed"))
    assert len(problems.train) == 2
    assert set(problems.train[0]) == {"prompt", "nums", "target"}
    path.write_text(
        json.dumps({"nums": [1, 2], "target": 3}) + "\n" + json.dumps({"nums": [1, 2], "target": None}) + "\n"
    )
    with pytest.raises(TaskError, match=r"row 1: column `target`.*None"):
        load_problems(TaskConfig(task="countdown", dataset_path=str(path), heldout_size=1))


def test_a_split_that_leaves_nothing_is_an_error():
    with pytest.raises(TaskError, match=r"heldout_size: 5.*3 distinct rows"):
        split_rows([{"n": i % 3} for i in range(9)], lambda r: r["n"], TaskConfig(heldout_size=5), "here")


# --- prompts ----------------------------------------------------------------------------------------------------------


class Template:
    """The part of a tokenizer that think_prefill uses."""

    chat_template = "yes"
    bos_token, bos_token_id = "<s>", 1

    def apply_chat_template(self, messages, tokenize, continue_final_message):
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in messages)

    def __call__(self, text):
        return {"input_ids": [1, 5]}


def test_prompt_styles_golden():
    assert build_prompt("compact", "17 5 = 12 :", "note") == "17 5 = 12 :"
    assert build_prompt("plain", "What is 1 + 1?", "note") == "Problem: What is 1 + 1?\nSolution:"
    boxed = build_prompt("boxed", "P", "N")
    assert boxed == [{"role": "user", "content": "P N Reason step by step and put the final answer within \\boxed{}."}]
    think = build_prompt("think", "P", "N")
    assert [m["role"] for m in think] == ["system", "user"]
    assert "<think>" in think[1]["content"]
    assert "<answer>" in think[1]["content"]


def test_think_prefill_ends_in_an_open_think_and_has_one_bos():
    prompt = build_prompt("think_prefill", "P", "N", tokenizer=Template())
    assert isinstance(prompt, str)
    assert prompt.endswith("[assistant]<think>")
    assert not prompt.startswith("<s>")  # the tokenizer adds it


def test_think_prefill_without_a_chat_template_is_an_error():
    with pytest.raises(TaskError, match=r"think_prefill.*chat template"):
        build_prompt("think_prefill", "P", "N", tokenizer=None)


@pytest.mark.parametrize("style", ["think", "boxed", "hash", "plain"])
def test_examples_are_taken_from_training_rows_and_pay_full_reward(gsm8k_folder, style):
    config = TaskConfig(dataset_path=str(gsm8k_folder), prompt_style=style, fewshot=2, heldout_size=2)
    problems = load_problems(config)
    assert len(problems.train) == len(GSM8K_ROWS) - 2
    prompt = problems.train[0]["prompt"]
    if style == "plain":
        assert prompt.count("Problem:") == 3
        shown = prompt.split("Solution:")[1].split("\n\nProblem:")[0]
    else:
        assert [m["role"] for m in prompt[-5:]] == ["user", "assistant", "user", "assistant", "user"]
        shown = prompt[-2]["content"] if style != "think" else prompt[-4]["content"]
    assert "<<" not in shown
    reward = resolve_rewards(None, config)[0]
    example_answers = [row["answer"].split("#### ")[1].replace(",", "") for row in GSM8K_ROWS]
    completion = shown if style == "plain" else [{"role": "assistant", "content": shown}]
    assert max(reward(completions=[completion], answer=[gold])[0] for gold in example_answers) == 1.0


@pytest.mark.parametrize("style", ["think", "boxed", "hash", "plain"])
def test_countdown_examples_pay_full_reward(style):
    config = generated(prompt_style=style, fewshot=1)
    prompt = load_problems(config).train[0]["prompt"]
    shown = prompt.split("Solution:")[1].split("\n\nProblem:")[0] if style == "plain" else prompt[-2]["content"]
    nums, target = next(
        (row["nums"], row["target"])
        for row in countdown.load_rows(config)[0]
        if countdown.problem_text(row) in (prompt.split("Solution:")[0] if style == "plain" else prompt[-3]["content"])
    )
    completion = shown if style == "plain" else [{"role": "assistant", "content": shown}]
    assert resolve_rewards(None, config)[0](completions=[completion], nums=[nums], target=[target]) == [1.0]


def test_compact_is_for_countdown_only(gsm8k_folder):
    with pytest.raises(TaskError, match="compact"):
        load_problems(TaskConfig(dataset_path=str(gsm8k_folder), prompt_style="compact"))


# --- rewards of a recipe ----------------------------------------------------------------------------------------------


def test_short_names_and_dotted_paths_resolve():
    config = TaskConfig()
    assert resolve_rewards(["gsm8k_accuracy"], config) == [rewards.gsm8k_accuracy]
    assert resolve_rewards(["grpo_math.rewards.gsm8k_accuracy"], config) == [rewards.gsm8k_accuracy]
    (trl_reward,) = resolve_rewards(["trl.rewards.think_format_reward"], config)
    assert trl_reward.__name__ == "think_format_reward"
    assert [r.__name__ for r in resolve_rewards(None, TaskConfig(task="countdown"))] == ["countdown_accuracy"]


def test_a_plain_completion_ends_where_the_next_problem_begins():
    (reward,) = resolve_rewards(["gsm8k_exact_match"], TaskConfig(prompt_style="plain"))
    assert reward.__name__ == "gsm8k_exact_match"
    completion = " 3 + 4 = 7. The answer is 7.\n\nProblem: What is 2 + 2?\nSolution: The answer is 4."
    assert reward(completions=[completion, completion], answer=["7", "4"]) == [1.0, 0.0]
    assert reward(completions=[" 7"], answer=["7"]) == [1.0]  # no marker is asked for in this style


def test_rewards_of_a_recipe_can_be_sent_to_worker_processes():
    import pickle

    for style in ("think", "plain", "compact"):
        for name in ("countdown_accuracy", "think_answer_format"):
            (reward,) = resolve_rewards([name], TaskConfig(task="countdown", prompt_style=style))
            again = pickle.loads(pickle.dumps(reward))
            columns = {"completions": ["<think>a</think>\n<answer>3 + 4</answer>"], "nums": [[3, 4]], "target": [7]}
            assert again(**columns) == reward(**columns) == [1.0]


def test_shuffled_numbers_are_the_same_problem():
    rng = random.Random(0)
    nums = [3, 8, 5]
    shuffled = rng.sample(nums, 3)
    assert countdown.content_key({"nums": nums, "target": 9}) == countdown.content_key({"nums": shuffled, "target": 9})


def test_the_readmes_task_of_ones_own_works_as_printed(monkeypatch, tmp_path, capsys):
    readme = (ROOT / "README.md").read_text()
    source = readme.split("## A task of your own")[1].split("```python\n")[1].split("```")[0]
    parity = types.ModuleType("parity")
    exec(source, parity.__dict__)
    monkeypatch.setitem(TASKS, "parity", parity)
    config = TaskConfig(task="parity", heldout_size=50, fewshot=1)
    problems = load_problems(config)
    assert len(problems.train) == 10_000 - 50 - 1
    assert len(problems.heldout) == 50
    (reward,) = resolve_rewards(None, config)
    row = problems.train[0]
    completion = [{"role": "assistant", "content": f"<think>x</think><answer>{row['answer']}</answer>"}]
    assert reward(completions=[completion], answer=[row["answer"]]) == [1.0]

    command = readme.split("## A task of your own")[1].split("```sh\n")[1].split("```")[0]
    launcher, launch, recipe, *words = shlex.split(command.replace("\\\n", " "))
    assert (launcher, launch) == ("accelerate", "launch")
    assert cli.main(["train", str(ROOT / recipe), *words[:-1], str(tmp_path), "--disable_tqdm", "true"]) == 0
    assert "cannot read the task" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"question": "x", "answer"\n', "Missing a colon after a name of object member"),
        ('{"question": "caf\udce9", "answer": "#### 1"}\n', "could not read .*json"),
        ('{"q": 1, "a": 2}\n', "there is no column question, answer; the row has q, a"),
    ],
)
def test_a_file_that_is_no_data_set_is_named_with_what_is_wrong_in_it(tmp_path, capfd, text, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TaskError, match=says) as raised:
        load_problems(TaskConfig(task="gsm8k", dataset_path=str(path)))
    assert str(path) in str(raised.value)
    assert capfd.readouterr().err == ""  # `datasets` logs nothing beside it
