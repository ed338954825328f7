"""`grpo-math rewards`: every verdict with the rule that decided, and what math-verify reads otherwise."""

import json
import sys
import types

import pytest

from grpo_math.answers import RULES
from grpo_math.cli import main

RECORDS = [
    {"completion": "9 * 2 = 18\n#### 18", "rewards": {"gsm8k_accuracy": 1.0}, "prompt": "How much?", "step": 1},
    {"completion": "\\boxed{18}\n\\boxed{20}", "rewards": {"gsm8k_accuracy": 0.0}},
    {"completion": "She gets 18", "answer": "18", "rewards": {"gsm8k_accuracy": 1.0}},
    {"completion": [{"role": "assistant", "content": "The answer is \u001b[31m18."}], "solution": "9 * 2\n#### 20"},
    {"completion": "<answer>3+5*7</answer>", "nums": [3, 5, 7], "target": 38},
    {"completion": "<answer>3*5+7 = 22</answer>", "rewards": {"countdown_accuracy": 0.0}},
    {"completion": "Count.</think>#### 18", "prompt": "How much?\n<think>\n", "answer": 18},
]


@pytest.fixture
def completions(tmp_path):
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


@pytest.fixture
def other_reader(monkeypatch):
    """A stand-in for math-verify: it reads the last word of a text."""
    module = types.ModuleType("math_verify")
    module.parse = lambda text: [word.strip("$.") for word in text.split()[-1:]]
    module.verify = lambda gold, target: gold[-1:] == target[-1:]
    monkeypatch.setitem(sys.modules, "math_verify", module)


def rows(output):
    return {int(line.split()[0]): line for line in output.split("\n\n")[0].splitlines()[1:]}


def test_each_completion_is_printed_with_its_verdict_and_rule(completions, other_reader, capsys):
    assert main(["rewards", str(completions)]) == 0
    output = capsys.readouterr().out
    lines = rows(output)
    assert lines[1].split() == ["1", "?", "1", "ok", "hash", "last", "marker", "18"]
    assert lines[2].split() == ["2", "?", "0", "hedged", "boxed", "two", "markers", "20"]
    assert lines[3].split() == ["3", "no", "1", "none", "no", "marker"]
    assert lines[4].split()[:4] == ["4", "no", "malformed", "phrase"]
    assert "\u001b" not in output
    assert lines[5].split()[:3] == ["5", "yes", "ok"]
    assert lines[6].split()[:4] == ["6", "?", "0", "ok"]
    assert lines[7].split()[:3] == ["7", "yes", "ok"]
    for rule in ("last marker", "two markers", "no marker"):
        assert RULES[rule] in output
    assert "rewarded otherwise (other forms or --allow-bare?): 3\n" in output


def test_a_bare_answer_counts_only_with_the_option(completions, other_reader, capsys):
    assert main(["rewards", str(completions), "--allow-bare"]) == 0
    output = capsys.readouterr().out
    assert rows(output)[3].split() == ["3", "yes", "1", "ok", "bare", "last", "number", "18"]
    assert "rewarded otherwise" not in output


def test_readings_of_math_verify_that_differ_are_listed(completions, other_reader, capsys):
    main(["rewards", str(completions)])
    listed = capsys.readouterr().out.split("math-verify disagrees on ")[1]
    assert listed.splitlines()[0] == "2 of 5 lines:"
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["2", "3"]


def test_without_math_verify_the_verdicts_stand_alone(completions, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert main(["rewards", str(completions)]) == 0
    assert "math-verify is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "has no records"),
        ("nonsense\n{}\n", "line 1 is not a JSON object"),
        ('{"text": "#### 18"}\n', "line 1 has no 'completion', only 'text'"),
        ('{"completion": "#### 18", "answer": "none"}\n', "line 1: the gold answer 'none' states no number"),
        ('{"completion": "#### 3+5", "nums": "3, 5"}\n', "line 1: 'nums' is '3, 5'; it must be a list of integers"),
    ],
)
def test_wrong_files_are_one_line_that_names_the_place(tmp_path, content, message, capsys):
    path = tmp_path / "file.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main(["rewards", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
