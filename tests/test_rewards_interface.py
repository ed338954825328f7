"""The rewards as TRL and other projects call them: completions, options, logs, pickles, imports, a real step."""

import pickle
import subprocess
import sys

import pytest
from conftest import ROOT
from reward_texts import message

from grpo_math import rewards
from grpo_math.rewards import (
    REWARDS,
    countdown_accuracy,
    get_countdown_accuracy,
    get_countdown_proximity,
    get_gsm8k_accuracy,
    get_gsm8k_exact_match,
    gsm8k_accuracy,
    think_answer_format,
)


@pytest.mark.parametrize("wrap", [str, message, lambda text: [{"role": "assistant", "content": [{"text": text}]}]])
def test_completions_may_be_texts_or_conversations(wrap):
    completions = [wrap("so 9 * 2 = 18.\n#### 18"), wrap("#### 18 or 20"), wrap("18")]
    assert gsm8k_accuracy(completions, answer=["18"] * 3) == [1.0, 0.0, 0.0]
    completions = [wrap("<answer>(3+5)*7</answer>"), wrap("<answer>7*8</answer>"), wrap("(3+5)*7")]
    assert countdown_accuracy(completions, nums=[[3, 5, 7]] * 3, target=[56] * 3) == [1.0, 0.0, 0.0]
    assert think_answer_format([wrap("<think>a</think>\n<answer>b</answer>"), wrap("b")]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "completion", [None, [], [None], [{}], [{"content": None}], [{"content": [1, {"text": 2}]}], 7]
)
def test_completion_without_text_is_rewarded_zero(completion):
    assert gsm8k_accuracy([completion], answer=["0"]) == [0.0]
    assert countdown_accuracy([completion], nums=[[0]], target=[0]) == [0.0]
    assert think_answer_format([completion]) == [0.0]


def test_the_last_message_of_a_conversation_counts():
    turns = [{"role": "assistant", "content": "#### 9"}, {"role": "tool", "content": "9"}, *message("#### 7")]
    assert gsm8k_accuracy([turns], answer=["7"]) == [1.0]


def test_completion_begins_in_thinking_if_the_prompt_opens_it():
    prompts = ["Question\n<think>\n", "Question", message("hello <think>")]
    completions = ["#### 7"] * 3
    assert gsm8k_accuracy(completions, answer=["7"] * 3, prompts=prompts) == [0.0, 1.0, 0.0]
    completions = ["9?</think>#### 7"] * 3
    assert gsm8k_accuracy(completions, answer=["7"] * 3, prompts=prompts) == [1.0, 1.0, 1.0]


def test_wrong_options_raise_errors_that_name_the_valid_ones():
    with pytest.raises(ValueError, match="mode is 'some'; it must be one of 'all', 'subset'"):
        get_countdown_accuracy(mode="some")
    with pytest.raises(
        ValueError, match="unknown answer form 'bold'; the forms are boxed, answer, hash, phrase, a_colon"
    ):
        get_countdown_accuracy(forms=("bold",))
    with pytest.raises(ValueError, match="unknown answer form 'tag'"):
        get_gsm8k_accuracy(forms=["tag"])
    for options in ({"forms": ()}, {"forms": None}, {"forms": True}, {"allow_bare": "no"}):
        for make in (get_gsm8k_accuracy, get_gsm8k_exact_match, get_countdown_accuracy, get_countdown_proximity):
            with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
                make(**options)
    for spellings in ((), "some", None):
        with pytest.raises(ValueError, match=r"spellings is .*; it must be True .* or False"):
            get_countdown_accuracy(spellings=spellings)


def test_outcomes_are_logged_under_the_name_of_the_reward():
    columns, metrics = {}, {}
    log = {"log_extra": columns.__setitem__, "log_metric": metrics.__setitem__}
    gsm8k_accuracy(["#### $18", "18", "#### 1 or 2", "####"], answer=["18"] * 4, **log)
    countdown_accuracy(["<answer>3+4</answer>", "<answer>3+5</answer>"], nums=[[3, 4]] * 2, target=[7] * 2, **log)
    think_answer_format(["<think>a</think><answer>b</answer>", "b"], **log)
    assert columns["gsm8k_accuracy_answer"][:2] == ["18", None]
    assert columns["gsm8k_accuracy_status"] == ["ok", "none", "hedged", "malformed"]
    assert columns["countdown_accuracy_answer"] == ["3+4", "3+5"]
    assert columns["countdown_accuracy_status"] == ["ok", "numbers"]
    for status in ("ok", "none", "hedged", "malformed"):
        assert metrics[f"gsm8k_accuracy/{status}"] == 0.25
    assert metrics["countdown_accuracy/ok"] == metrics["countdown_accuracy/numbers"] == 0.5
    assert metrics["think_answer_format/ok"] == 0.5


def test_rewards_are_found_by_name_and_survive_pickling():
    made = [
        get_gsm8k_accuracy(forms=("hash",), allow_bare=True),
        get_countdown_accuracy(mode="subset", allow_bare=True),
    ]
    for reward in [*REWARDS.values(), *made]:
        again = pickle.loads(pickle.dumps(reward))
        assert again.__name__ == reward.__name__
        assert vars(again) == vars(reward)
    for name, reward in REWARDS.items():
        assert getattr(rewards, name) is reward
        assert reward.__name__ == name
    assert get_countdown_accuracy(name="subset_accuracy").__name__ == "subset_accuracy"


def test_importing_the_rewards_imports_only_the_standard_library():
    program = (
        "import sys, grpo_math.rewards\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(n for n in names if not n.startswith('_') and n not in ('grpo_math', 'sitecustomize')))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_trl_trains_a_step_with_three_rewards(tmp_path):
    """TRL's own trainer takes three rewards at once and logs their means and metrics."""
    pytest.importorskip("torch")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    words = ["<pad>", "<eos>", *map(str, range(20)), "+", "-", "####", "=", "use"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="use"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    rows = [{"prompt": "use 3 4", "nums": [3, 4], "target": 7, "answer": "7"} for _ in range(4)]
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        logging_steps=1,
        log_completions=True,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    functions = [get_countdown_accuracy(allow_bare=True), get_countdown_proximity(allow_bare=True), gsm8k_accuracy]
    trainer = GRPOTrainer(
        Qwen2ForCausalLM(config), functions, arguments, Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {f"rewards/{function.__name__}/mean" for function in functions} <= logged
    assert {"countdown_accuracy/ok", "countdown_proximity/ok", "gsm8k_accuracy/none"} <= logged
