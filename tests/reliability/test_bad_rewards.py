"""Reward functions that fail: one line names the function, the row and the cause; the steps until then are kept."""

import asyncio
import itertools
import json
import textwrap
from types import SimpleNamespace

import pytest
from conftest import run

from grpo_math import cli, models, report
from grpo_math.run.rewards import RewardError, named
from grpo_math.tasks.rewards import resolve_reward

pytestmark = pytest.mark.usefixtures("no_local_data")

# What a module holds -> what is said about it before the model is loaded
EARLY = {
    "def reward(completions:\n    pass": "cannot be imported: SyntaxError",
    "1 / 0": "cannot be imported: ZeroDivisionError: division by zero",
    "import sys\nsys.exit(3)": "cannot be imported: SystemExit: 3",
    "raise RuntimeError('no\\nlicence')": "cannot be imported: RuntimeError: no licence",
    "import no_such_package": "cannot be imported: No module named 'no_such_package'",
    "x = 1": "has no attribute 'reward'",
    "reward = 1": "is 1, not a function",
    "reward = None": "is None, not a function",
    "import functools\nreward = functools.partial(print)": "not a function (callable, with a __name__",
    "class reward:\n    def __init__(self, **kwargs): pass": "reward is a class, which a call would only construct",
    "def reward(completions, **kwargs):\n    yield 0.0": "reward is a generator function",
    "def reward():\n    return []": "reward has no **kwargs",
    "def reward(completions):\n    return [0.0]": "reward has no **kwargs, and TRL also passes prompts, completions",
    "def reward(completions, nums, target):\n    return [0.0]": "write `def reward(completions, **kwargs)`",
    "def reward(completions, /, **kwargs):\n    return [0.0]": "takes completions by position only",
    "def reward(completions, steps, **kwargs):\n    return [0.0]": "needs the column steps, and rows of task countdown",
}


NUMBERS = itertools.count()  # Python imports a module of one name once


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes the text of a module, which a recipe then finds as `own_N.reward`, and gives that name."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modules").mkdir()

    def write(text):
        name = f"own_{next(NUMBERS)}"
        (tmp_path / "modules" / f"{name}.py").write_text(text)
        return f"{name}.reward"

    return write


@pytest.mark.parametrize("text", EARLY)
def test_what_cannot_be_called_is_refused_before_the_model_loads(
    module, tiny_recipe, tmp_path, monkeypatch, capsys, text
):
    def no_model(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(models, "load_model", no_model)
    assert run(tiny_recipe, tmp_path / "out", "--rewards", module(text)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("grpo-math: error: ")
    assert EARLY[text] in error
    assert not (tmp_path / "out").exists()


# What a function does at its third batch -> what is said about it
LATE = {
    "return [1 / 0 for _ in completions]": "raised ZeroDivisionError: division by zero on row 0 (completion '<answer>",
    "return [1.0 if i < 5 else {}['x'] for i, c in enumerate(completions)]": "raised KeyError: 'x' on all 128 rows together",
    "return [float(c) for c in completions]": "raised ValueError: could not convert string to float",
    "raise SystemError('a\\nb')": "raised SystemError: a b on row 0",
    "import sys; sys.exit(3)": "raised SystemExit: 3 on row 0 (completion '<answer>",
    "raise GeneratorExit": "raised GeneratorExit on row 0",
    "raise Odd": "raised Odd: (RuntimeError when its message is read) on row 0",
    "return None": "returned None, not a list",
    "return 1.0": "returned 1.0, not a list",
    "return 'x' * len(completions)": "returned 'xxx",
    "return {c: 1.0 for c in completions}": "not a list of one number a completion",
    "return []": "returned 0 values for 128 completions",
    "return [0.0] * 127": "returned 127 values for 128 completions",
    "return [0.0] * 64 + ['1.0'] * 64": "returned '1.0' for row 64 (completion '<answer>",
    "return [[0.0]] * len(completions)": "returned [0.0] for row 0",
    "import numpy; return numpy.zeros((len(completions), 1))": "returned [0.0] for row 0",
    "return [float('inf')] + [0.0] * 127": "returned inf for row 0",
    "return [0.0] * 127 + [-float('inf')]": "returned -inf for row 127",
    "return [10 ** 400] * 128": "raised OverflowError",
    "return [1j] * 128": "returned 1j for row 0",
    "return [hostile] * 128": "returned a Hostile (RuntimeError when it is shown) for row 0",
    "import torch; return torch.zeros(3)": "returned 3 values for 128 completions",
}


def write_late(module, body):
    return module(
        textwrap.dedent("""
            batch = 0
            class Hostile:
                def __repr__(self):
                    raise RuntimeError
                __str__ = __repr__
            class Odd(Exception):
                __str__ = Hostile.__repr__
            hostile = Hostile()
            def reward(completions, **kwargs):
                global batch
                batch += len(completions) == 128
                if batch >= 3:
                    BODY
                return [float(len(c) % 7) for c in completions]
        """).replace("BODY", body)
    )


@pytest.mark.parametrize("body", LATE)
def test_a_failure_names_the_function_the_row_and_the_cause(module, body):
    reward = named(resolve_reward(write_late(module, body), "compact"))
    completions = [f"<answer> {i} + 1 </answer>" for i in range(128)]
    for _ in range(2):
        assert reward(completions=completions, nums=[[1, 2]] * 128)[:2] == [float(len(c) % 7) for c in completions[:2]]
    with pytest.raises(RewardError) as caught:
        reward(completions=completions, nums=[[1, 2]] * 128)
    assert str(caught.value).startswith("rewards: reward r")
    assert LATE[body] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_steps_until_a_failure_are_kept_and_once_mended_the_run_goes_on(module, tiny_recipe, tmp_path, capsys):
    folder = tmp_path / "out"
    words = ["--max_steps", "3", "--logging_steps", "1", "--heldout_size", "0"]
    assert run(tiny_recipe, folder, *words, "--rewards", write_late(module, "return None")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("grpo-math: error: rewards: reward returned None, not a list of one number a completion. ")
    assert (
        f"Safe: {folder / 'checkpoint-2'}. Then go on with: grpo-math train {folder / 'recipe.yaml'} --resume" in error
    )
    assert [m["step"] for m in report.read_jsonl(folder / "metrics.jsonl")] == [1, 2]
    resume = ["--resume_from_checkpoint", "true", "--rewards", "countdown_accuracy"]
    assert cli.main(["train", str(folder / "recipe.yaml"), *resume]) == 0
    assert json.loads((folder / "summary.json").read_text())["resumed_at"] == 2


def test_an_asynchronous_function_is_named_too(module, tiny_recipe, tmp_path, capsys):
    name = module("async def reward(completions, **kwargs):\n    return [0.0]")
    assert run(tiny_recipe, tmp_path / "out", "--max_steps", "1", "--heldout_size", "0", "--rewards", name) == 2
    assert "rewards: reward returned 1 values for 128 completions. No step is saved" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["SystemExit", "GeneratorExit"])
def test_an_asynchronous_function_that_ends_the_program_is_named(module, kind):
    reward = named(resolve_reward(module(f"async def reward(completions, **kwargs):\n    raise {kind}"), "compact"))
    reward.accelerator = SimpleNamespace(num_processes=1)
    with pytest.raises(RewardError, match=f"rewards: reward raised {kind}"):
        asyncio.run(reward(completions=["a"]))


@pytest.mark.parametrize("form", ["def", "async def"])
def test_ctrl_c_in_a_function_stays_what_it_is(module, form):
    reward = named(
        resolve_reward(module(f"{form} reward(completions, **kwargs):\n    raise KeyboardInterrupt"), "compact")
    )
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(reward(completions=["a"])) if form != "def" else reward(completions=["a"])


@pytest.mark.parametrize("kind", ["list", "tuple", "torch.tensor", "numpy.array"])
def test_numbers_of_every_kind_are_rewards(module, kind):
    name = module(f"import numpy, torch\ndef reward(completions, **kwargs):\n    return {kind}([1, 0.5, True, 0])")
    assert named(resolve_reward(name, "compact"))(completions=["a"] * 4) == [1.0, 0.5, 1.0, 0.0]


def test_none_and_fractions_are_rewards(module):
    text = "from fractions import Fraction\ndef reward(completions, **kwargs):\n    return [None, Fraction(1, 4)]"
    assert named(resolve_reward(module(text), "compact"))(completions=["a", "b"]) == [None, 0.25]
