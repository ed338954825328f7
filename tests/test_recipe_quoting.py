"""A run's recipe.yaml holds values and no code, whatever the values are; and reading a recipe runs none of its code."""

import ast
import itertools
import json
import subprocess
import sys

import pytest
from conftest import ROOT, SHORT, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo_math import cli, models
from grpo_math.recipe import dump, load_recipe, read_yaml
from grpo_math.recipe.sources import LAUNCH_HEAD, LAUNCH_TAIL
from grpo_math.tasks import resolve_rewards

pytestmark = pytest.mark.usefixtures("no_local_data")

BREAKS = ['"""', "'''", '\\"""', "\\", "\n", "\r", "\x0c", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "# ", ": ", "- ", "\t",
          "coding: utf-7", "+ACIAIgAi-", '"', "'", "{", "[",
          "&a ", "*a", "!!python/object/apply:os.system", "%YAML", "---", "..."]  # fmt: skip
NUMBERS = itertools.count()
CODE = '\n""";import os;os.mkdir("ran")\nx = r"""'
hostile = st.lists(st.one_of(st.sampled_from(BREAKS), st.just(CODE), st.text(max_size=3)), max_size=6).map("".join)
plain = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.none(), hostile)
names = st.sampled_from(
    ["model_name_or_path", "output_dir", "dataset_path", "rewards", "run_name", "optim_args", "seed"]
)
some_values = st.dictionaries(
    names, st.one_of(plain, st.lists(plain, max_size=3), st.dictionaries(hostile, plain, max_size=3)), max_size=4
)


@settings(max_examples=300, deadline=None)
@given(some_values, hostile)
@example({"output_dir": CODE}, CODE)
@example({"output_dir": 'x"""'}, "out\\")
@example({"run_name": "no"}, "coding=utf-7 +ACIAIgAi-;import os")
@example({"rewards": ["1e5", "0x1f", "12:30:45", "2001-01-01", "~", "null", "", " ", "="]}, "")
def test_python_sees_one_string_and_one_call_and_yaml_the_values(tmp_path_factory, values, comment):
    text = dump(values, comment)
    parsed = ast.parse(text.encode())
    string, *others = parsed.body
    assert isinstance(string, ast.AnnAssign)
    assert isinstance(string.annotation, ast.Constant)
    assert ast.dump(ast.Module(others, [])) == ast.dump(
        ast.Module(ast.parse(f"{LAUNCH_HEAD}\n{LAUNCH_TAIL}").body[1:], [])
    )
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path) == values


def test_a_hostile_value_does_not_run_when_the_recipe_is_launched(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump({"output_dir": CODE, "run_name": CODE}, f"What {CODE} ran with"))
    done = subprocess.run([sys.executable, path, "--nosuch"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert "nosuch is not a field" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_in_a_hostile_folder_writes_a_recipe_that_goes_on(tiny_recipe, tmp_path):
    folder = tmp_path / 'a """ [1]::b\n"""; x'
    assert run(tiny_recipe, folder, *SHORT[:4], "--heldout_size", "0") == 0
    assert read_yaml(folder / "recipe.yaml")["output_dir"] == str(folder)
    again = ["--max_steps", "3", "--resume_from_checkpoint", "true"]
    assert cli.main(["train", str(folder / "recipe.yaml"), *again]) == 0
    assert json.loads((folder / "summary.json").read_text())["resumed_at"] == 2


@pytest.fixture
def trap_name():
    """A module's name that no other test has: Python imports a module of one name once."""
    return f"trap_{next(NUMBERS)}"


@pytest.fixture
def trap(tmp_path, monkeypatch, trap_name):
    """A recipe whose reward function and model would leave the file `ran` if their code were run."""
    monkeypatch.chdir(tmp_path)
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (tmp_path / f"{trap_name}.py").write_text(
        f"{code}def reward(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    from grpo_math.tiny_model import tiny_model_folder

    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model_folder().iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "trap_model.Config", "AutoModelForCausalLM": "trap_model.Model"}
    (model / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    (model / "trap_model.py").write_text(
        f"{code}from transformers import LlamaConfig, LlamaForCausalLM\nclass Config(LlamaConfig): pass\n"
        "class Model(LlamaForCausalLM): config_class = Config\n"
    )
    recipe = tmp_path / "trap.yaml"
    values = read_yaml(ROOT / "recipes" / "countdown_tiny.yaml")
    values.update(
        model_name_or_path=str(model), rewards=[f"{trap_name}.reward"], trust_remote_code=True, reward_weights=[2.0]
    )
    values.update(output_dir=str(tmp_path / "out"), heldout_size=4)
    recipe.write_text(dump(values, "a trap"))
    return recipe


@pytest.mark.parametrize("command", ["eval", "memory"])
def test_reading_a_recipe_runs_none_of_its_code(trap, tmp_path, command):
    assert cli.main([command, str(trap), "--disable_tqdm", "true"]) == 0
    assert not (tmp_path / "ran").exists()


def test_the_command_line_may_ask_for_the_models_code(trap):
    """And says what was left out otherwise."""
    (note,) = load_recipe(trap, reading=True).notes
    assert (
        note
        == "trust_remote_code of the recipe is left out, since it is only read: give --trust_remote_code to run that code."
    )
    given_too = load_recipe(trap, ["--trust_remote_code", "true"], reading=True)
    assert (given_too.training.trust_remote_code or given_too.model.trust_remote_code, given_too.notes) == (True, [])


@pytest.mark.parametrize("command", ["eval", "memory"])
def test_a_task_in_a_file_is_run_only_where_the_command_line_names_it(trap, trap_name, tmp_path, capsys, command):
    values = {"task": f"{trap_name}.py", "rewards": ["gsm8k_accuracy"]}
    (tmp_path / "task.yaml").write_text(dump(values, "a trap"))
    assert cli.main([command, "task.yaml"]) == 2
    assert (
        f"task: {trap_name}.py is a program, and reading a recipe runs none of its own: give --task"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "ran").exists()
    assert cli.main([command, "task.yaml", "--task", f"{trap_name}.py"]) == 2  # it is no task
    assert (tmp_path / "ran").exists()


def test_launching_a_recipe_is_running_a_program(trap, tmp_path):
    """The counterpart, which shows that both traps work."""
    recipe = load_recipe(trap)
    models.load_model(recipe.model, "float32", trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    resolve_rewards(recipe.task.rewards, recipe.task)
    assert (tmp_path / "ran").exists()
