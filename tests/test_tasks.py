"""Rows become prompts and columns; a task is found by its name and brings settings of its own."""

import json
import types
from dataclasses import dataclass

import pytest
from conftest import GSM8K_ROWS, ROOT

from grpo_math.errors import TaskError
from grpo_math.tasks import TASKS, TaskConfig, config_class, config_classes, gsm8k, load_problems, resolve_rewards
from grpo_math.tasks.base import build_prompt, split_rows
from grpo_math.tasks.countdown_problems import CountdownConfig

pytestmark = pytest.mark.usefixtures("no_local_data")


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_has_its_own_settings_class_or_that_of_every_task():
    assert config_class("gsm8k") is TaskConfig
    assert config_class("countdown") is CountdownConfig
    assert config_classes() == (TaskConfig, CountdownConfig)
    with pytest.raises(TaskError, match=r"task: 'countdwn' is not known; did you mean countdown\?"):
        config_class("countdwn")


def test_a_script_can_add_a_task_with_or_without_settings_of_its_own(monkeypatch):
    @dataclass
    class ParityConfig(TaskConfig):
        parity_max: int = 9

    monkeypatch.setitem(TASKS, "plain_parity", types.ModuleType("plain_parity"))
    assert config_class("plain_parity") is TaskConfig
    assert config_classes() == (TaskConfig, CountdownConfig)
    parity = types.ModuleType("parity")
    parity.CONFIG = ParityConfig
    monkeypatch.setitem(TASKS, "parity", parity)
    assert config_class("parity") is ParityConfig
    assert config_classes() == (TaskConfig, CountdownConfig, ParityConfig)


def test_settings_of_another_task_are_rejected():
    with pytest.raises(TaskError, match="task: countdown needs the settings CountdownConfig, not TaskConfig"):
        load_problems(TaskConfig(task="countdown", dataset_path="generated"))


def test_the_documented_own_task_has_rows_examples_and_a_reward(monkeypatch):
    page = (ROOT / "docs" / "your-own.md").read_text(encoding="utf-8")
    (source,) = (block for block in page.split("```python\n") if "Parity" in block.split("```")[0])
    parity = types.ModuleType("parity")
    exec(source.split("```")[0], parity.__dict__)
    monkeypatch.setitem(TASKS, "parity", parity)
    config = TaskConfig(task="parity", heldout_size=50, fewshot=1)
    problems = load_problems(config)
    assert len(problems.train) == 10_000 - 50 - 1
    assert len(problems.heldout) == 50
    (reward,) = resolve_rewards(None, config)
    row = problems.train[0]
    completion = [{"role": "assistant", "content": f"<think>x</think><answer>{row['answer']}</answer>"}]
    assert reward(completions=[completion], answer=[row["answer"]]) == [1.0]


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
    path.write_text(path.read_text() * 2)  # duplicate rows must not straddle the split
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
def test_unparsable_row_is_rejected_with_its_place(tmp_path, row, says):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [GSM8K_ROWS[0], row]))
    with pytest.raises(TaskError) as caught:
        load_problems(TaskConfig(dataset_path=str(path), heldout_size=1))
    assert all(word in str(caught.value) for word in [str(path), *says])


def test_missing_data_error_names_what_was_tried_and_the_fix():
    with pytest.raises(TaskError) as caught:
        load_problems(TaskConfig())
    assert all(w in str(caught.value) for w in ["openai/gsm8k", "--dataset_path", "GRPO_MATH_GSM8K"])
    assert "\n" not in str(caught.value)


def test_empty_or_missing_file_is_rejected(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(TaskError, match="empty"):
        load_problems(TaskConfig(dataset_path=str(tmp_path / "rows.jsonl")))
    with pytest.raises(TaskError, match="no file or folder"):
        load_problems(TaskConfig(dataset_path=str(tmp_path / "other.jsonl")))
    with pytest.raises(TaskError, match=r"train\.jsonl"):
        load_problems(TaskConfig(dataset_path=str(tmp_path)))


def test_unknown_task_is_rejected_with_the_known_ones():
    with pytest.raises(TaskError, match=r"'gsm9k'.*gsm8k, countdown"):
        load_problems(TaskConfig(task="gsm9k"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"question": "x", "answer"\n', "Missing a colon after a name of object member"),
        ('{"question": "caf\udce9", "answer": "#### 1"}\n', "could not read .*json"),
        ('{"q": 1, "a": 2}\n', "there is no column question, answer; the row has q, a"),
    ],
)
def test_malformed_file_is_rejected_with_the_reason(tmp_path, capfd, text, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TaskError, match=says) as raised:
        load_problems(TaskConfig(task="gsm8k", dataset_path=str(path)))
    assert str(path) in str(raised.value)
    assert capfd.readouterr().err == ""  # `datasets` logs nothing beside it


def test_split_that_leaves_no_training_rows_is_rejected():
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


def test_think_prefill_without_a_chat_template_is_rejected():
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


def test_compact_is_for_countdown_only(gsm8k_folder):
    with pytest.raises(TaskError, match="compact"):
        load_problems(TaskConfig(dataset_path=str(gsm8k_folder), prompt_style="compact"))
