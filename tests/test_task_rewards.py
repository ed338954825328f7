"""Reward names of a recipe become callables that suit its prompt style."""

import pickle

import pytest

from grpo_math import rewards
from grpo_math.errors import TaskError
from grpo_math.tasks import TaskConfig, resolve_rewards


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


def test_rewards_of_a_recipe_survive_pickling():
    for style in ("think", "plain", "compact"):
        for name in ("countdown_accuracy", "think_answer_format"):
            (reward,) = resolve_rewards([name], TaskConfig(task="countdown", prompt_style=style))
            again = pickle.loads(pickle.dumps(reward))
            columns = {"completions": ["<think>a</think>\n<answer>3 + 4</answer>"], "nums": [[3, 4]], "target": [7]}
            assert again(**columns) == reward(**columns) == [1.0]


def test_unknown_rewards_are_rejected_with_the_known_ones():
    with pytest.raises(TaskError, match=r"'accuracy'.*gsm8k_accuracy"):
        resolve_rewards(["accuracy"], TaskConfig())
    with pytest.raises(TaskError, match=r"no_such_module\.reward"):
        resolve_rewards(["no_such_module.reward"], TaskConfig())
