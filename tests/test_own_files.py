"""One's own task, rewards and columns, by the names of files and columns; nothing of the package is edited."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GSM8K_ROWS, ROOT, SHORT, own_files_forgotten, run

from grpo_math.errors import RecipeError, TaskError
from grpo_math.recipe import dump, load_recipe, read_yaml
from grpo_math.recipe.sources import checked_values
from grpo_math.tasks import TaskConfig, get_task, load_problems, resolve_rewards

pytestmark = pytest.mark.usefixtures("no_local_data")
TINY = ROOT / "recipes" / "countdown_tiny.yaml"

REWARD = """
def shouting(completions, **columns):
    return [float(text.isupper()) for text in completions]

number = 3
"""
TASK = '''
"""The next number."""
from dataclasses import dataclass
from grpo_math.tasks.base import Example, TaskConfig, split_rows

ACCURACY, DEFAULT_REWARDS = "successor.is_next", ["successor.is_next"]
ANSWER_NOTE = "A number."

@dataclass
class CONFIG(TaskConfig):
    successor_max: int = 30

def load_rows(config):
    rows = [{"n": n} for n in range(config.successor_max)]
    return split_rows(rows, lambda row: row["n"], config, "numbers")

def problem_text(row):
    return f"After {row['n']} comes?"

def example(row):
    return None

def columns(row):
    return {"n": row["n"]}

def is_next(completions, n, **columns):
    return [float(str(k + 1) in text) for text, k in zip(completions, n, strict=True)]
'''


@pytest.fixture(autouse=True)
def _forgotten():
    with own_files_forgotten():
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "shout_rewards.py").write_text(REWARD)
    (tmp_path / "successor.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_with_a_task_and_a_reward_from_files(folder, capsys):
    code = run(TINY, folder / "out", *SHORT, "--task", "successor.py")
    assert code == 2  # the recipe's fields of Countdown are not this task's
    assert "has no effect with task" in capsys.readouterr().err
    recipe = folder / "r.yaml"
    kept = {name: value for name, value in read_yaml(TINY).items() if not name.startswith("countdown_")}
    recipe.write_text(dump({**kept, "task": "successor.py", "prompt_style": "plain", "dataset_path": None,
                            "successor_max": 40, "train_size": 16,
                            "rewards": ["successor.is_next", "shout_rewards.py:shouting"]}, "mine"))  # fmt: skip
    assert run(recipe, folder / "out", *SHORT) == 0
    metrics = json.loads((folder / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"rewards/is_next/mean", "rewards/shouting/mean"} <= set(metrics)
    kept = read_yaml(folder / "out" / "recipe.yaml")  # what the run keeps works from any folder
    assert kept["task"] == str(folder / "successor.py")
    assert kept["rewards"][1] == f"{folder / 'shout_rewards.py'}:shouting"
    assert str(folder) not in (folder / "out" / "README.md").read_text()


def test_a_file_is_looked_for_here_and_beside_the_recipe(folder, tmp_path_factory, monkeypatch):
    recipe = folder / "r.yaml"
    recipe.write_text("task: successor.py\nrewards: shout_rewards.py:shouting\nsuccessor_max: 9\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    values = checked_values(recipe)
    assert values["task"] == str(folder / "successor.py")
    assert values["rewards"] == [f"{folder / 'shout_rewards.py'}:shouting"]
    assert values["successor_max"] == 9
    assert checked_values(recipe, ["--rewards", "[countdown_accuracy, gsm8k_accuracy]"])["rewards"] == [
        "countdown_accuracy", "gsm8k_accuracy"]  # fmt: skip
    with pytest.raises(
        RecipeError, match=r"command line: there is no file no_task\.py, neither in .*elsewhere.* nor in"
    ):
        load_recipe(recipe, ["--task", "no_task.py"])
    with pytest.raises(RecipeError, match=r"command line: there is no file no\.py"):
        load_recipe(recipe, ["--rewards", "no.py:f"])


def test_what_is_wrong_with_a_file_is_named(folder):
    def says(text, call, *args):
        with pytest.raises(TaskError, match=text):
            call(*args)

    says(
        r"has no function 'whispering'; it has shouting", resolve_rewards, ["shout_rewards.py:whispering"], TaskConfig()
    )
    says("has no function 'number'", resolve_rewards, ["shout_rewards.py:number"], TaskConfig())
    (folder / "half_task.py").write_text("ACCURACY = 'gsm8k_accuracy'\n")
    says("is no task: it has no DEFAULT_REWARDS, no ANSWER_NOTE, no load_rows", get_task, "half_task.py")
    (folder / "broken_task.py").write_text("1 / 0\n")
    says("broken_task.py cannot be imported: ZeroDivisionError: division by zero", get_task, "broken_task.py")
    assert "broken_task" not in sys.modules
    (folder / "syntax_task.py").write_text("def f(:\n")
    says("cannot be imported: SyntaxError", get_task, "syntax_task.py")
    for name in ("json.py", "plistlib.py"):  # one that is loaded, one that need not be
        (folder / name).write_text(TASK)
        says("Python has another module with the name", get_task, name)
    (folder / "my-task.py").write_text(TASK)
    says("must be a Python name", get_task, "my-task.py")


def test_a_reward_from_a_file_reaches_worker_processes(folder):
    for style in ("think", "plain"):
        (reward,) = resolve_rewards(["shout_rewards.py:shouting"], TaskConfig(prompt_style=style))
        assert pickle.loads(pickle.dumps(reward))(completions=["A", "a"]) == [1.0, 0.0]
    code = f"import sys, pickle; sys.path.append({str(folder)!r}); f = pickle.loads({pickle.dumps(reward)!r})"
    code += "; assert f(completions=['A']) == [1.0]"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_of_ones_own_are_read_under_their_names(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"text": row["question"], "label": row["answer"], "answer": "not this one"} for row in GSM8K_ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = dict(dataset_path=str(path), heldout_size=4, prompt_style="hash")
    mine = load_problems(TaskConfig(question_column="text", answer_column="label", **named))
    path.write_text("".join(json.dumps(row) + "\n" for row in GSM8K_ROWS))
    assert mine == load_problems(TaskConfig(**named))
    with pytest.raises(TaskError, match=r"mine\.jsonl, row 0: there is no column label; the row has question, answer"):
        load_problems(TaskConfig(answer_column="label", **named))


def test_columns_that_a_task_does_not_read_are_refused(tmp_path):
    from grpo_math.tasks.countdown_problems import CountdownConfig

    path = tmp_path / "mine.jsonl"
    path.write_text('{"nums": [1, 2], "target": 3}\n')
    with pytest.raises(
        TaskError, match="question_column: nums has no effect with task countdown, which reads the columns"
    ):
        load_problems(CountdownConfig(dataset_path=str(path), question_column="nums"))


# --- a YAML file without the two lines --------------------------------------------------------------------------------


def test_a_recipe_that_accelerate_cannot_launch_says_so(tmp_path):
    path = Path(tmp_path / "mine.yaml")
    path.write_text("model_name_or_path: builtin/countdown-tiny\ntask: countdown\ndataset_path: generated\n")
    (note,) = (note for note in load_recipe(path).notes if "accelerate" in note)
    assert note == (
        f"`accelerate launch {path}` would not run this file, which lacks the two lines of docs/your-own.md; "
        f"`accelerate launch -m grpo_math {path}` does."
    )
    path.write_text(dump(read_yaml(path), "mine"))
    assert not any("accelerate" in note for note in load_recipe(path).notes)
