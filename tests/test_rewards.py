"""The reward functions as TRL and other projects call them."""

import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math import rewards
from grpo_math.rewards import (
    REWARDS,
    countdown_accuracy,
    countdown_proximity,
    get_countdown_accuracy,
    get_countdown_proximity,
    get_gsm8k_accuracy,
    get_gsm8k_exact_match,
    gold_value,
    gsm8k_accuracy,
    gsm8k_exact_match,
    normalise,
    think_answer_format,
)


def message(text):
    return [{"role": "assistant", "content": text}]


# --- the callables ---------------------------------------------------------------------------------------------------


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
def test_a_completion_without_text_earns_nothing_and_raises_nothing(completion):
    assert gsm8k_accuracy([completion], answer=["0"]) == [0.0]
    assert countdown_accuracy([completion], nums=[[0]], target=[0]) == [0.0]
    assert think_answer_format([completion]) == [0.0]


def test_the_last_message_of_a_conversation_counts():
    turns = [{"role": "assistant", "content": "#### 9"}, {"role": "tool", "content": "9"}, *message("#### 7")]
    assert gsm8k_accuracy([turns], answer=["7"]) == [1.0]


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("18", 18),
        (18, 18),
        (18.5, Fraction(37, 2)),
        ("1,450", 1450),
        ("9 * 2 = $<<9*2=18>>18.\n#### 18", 18),
        ("#### -1,450", -1450),
        ("$\\frac{3}{4}$", Fraction(3, 4)),
        ("so \\boxed{7}", 7),
        ("", None),
        (None, None),
        ("none", None),
        (float("nan"), None),
        ("18 or 20", None),
    ],
)
def test_golds_are_numbers_texts_or_raw_solutions(gold, expected):
    assert gold_value(gold) == expected
    rewarded = gsm8k_accuracy(["#### 18"], answer=[gold])
    assert rewarded == ([None] if expected is None else [1.0 if expected == 18 else 0.0])


def test_the_column_solution_stands_in_for_answer():
    assert gsm8k_accuracy(["#### 18", "#### 9"], solution=["#### 18", "#### 18"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="gsm8k_accuracy needs a column `answer` or `solution`"):
        gsm8k_accuracy(["#### 18"])


def test_exact_match_compares_strings_and_accuracy_values():
    completions = [
        "#### 18",
        "#### $18.",
        "#### 18.0",
        "The answer is **18** eggs",
        "#### 1,800",
        "#### 18 or 20",
        "18",
    ]
    golds = ["18", "18", "18", "#### 18", "1800", "18", "18"]
    assert gsm8k_exact_match(completions, answer=golds) == [1, 1, 0, 1, 1, 0, 0]
    assert gsm8k_accuracy(completions, answer=golds) == [1, 1, 1, 1, 1, 0, 0]
    assert get_gsm8k_exact_match(allow_bare=True)(["18"], answer=["18"]) == [1.0]
    assert normalise(" \\$1,450.") == "1450"


def test_countdown_reads_expressions_in_boxes_tags_and_after_hashes():
    completions = [
        "<answer>(3+5)*7</answer>",
        "so $\\boxed{(3+5) \\times 7}$",
        "#### (3+5)*7 = 56\n",
        "<answer>\\boxed{(3+5)*7}</answer>",
        "<answer>3+5+7</answer> no, that is 15. <answer>(3+5)*7</answer>",
        "<think><answer>3+5+7</answer></think><answer>(3+5)*7</answer>",
        "<answer>(3+5)*7</answer> no, better: <answer>3+5+7</answer>",
        "<answer>(3+5)*7</answer>\n<answer>3+5+7</answer>",
        "<answer>3+5+7 or (3+5)*7</answer>",
        "<think><answer>(3+5)*7</answer></think>",
        "<answer>(3+5)*7",
        "<answer>56</answer>",
        "<answer></answer>",
        "The answer is (3+5)*7.",
    ]
    columns = {"nums": [[3, 5, 7]] * len(completions), "target": [56] * len(completions)}
    assert countdown_accuracy(completions, **columns) == [1.0] * 6 + [0.0] * 8
    phrase = get_countdown_accuracy(forms=("phrase",))
    assert phrase(completions[-1:], nums=[[3, 5, 7]], target=[56]) == [1.0]


def test_countdown_spellings():
    for spellings, expected in ((True, 1.0), (False, 0.0)):
        reward = get_countdown_accuracy(spellings=spellings, allow_bare=True)
        assert reward(["<answer>3×5</answer>", "3×5"], nums=[[3, 5]] * 2, target=[15] * 2) == [expected] * 2
        assert reward(["<answer>3*5</answer>", "3*5"], nums=[[3, 5]] * 2, target=[15] * 2) == [1.0] * 2


def test_countdown_modes():
    for mode, expected in (("all", 0.0), ("subset", 1.0)):
        assert get_countdown_accuracy(mode=mode)(["<answer>3*5</answer>"], nums=[[3, 5, 7]], target=[15]) == [expected]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("17 - 5", 1.0),
        (" 17 - 5 = 12\n", 1.0),
        ("17 - 5\n\nProblem: use 3 4\nSolution: 3 + 4", 1.0),
        ("Let me see.\n5 - 17\nno, the other way round\n17 - 5", 1.0),
        ("17 - 5\n5 - 17", 0.0),
        ("5 - 17\n17 - 5", 0.0),
        ("17 - 5 or 5 - 17", 0.0),
        ("I think 17 - 5", 0.0),
        ("12", 0.0),
        ("<answer>17 + 5</answer>\n17 - 5", 0.0),
        ("<answer></answer>\n17 - 5", 0.0),
        ("", 0.0),
    ],
)
def test_a_bare_expression_counts_only_where_it_is_allowed(completion, expected):
    columns = {"nums": [[17, 5]], "target": [12]}
    assert countdown_accuracy([completion], **columns) == [0.0]
    assert get_countdown_accuracy(allow_bare=True)([completion], **columns) == [expected]


def test_proximity_grows_towards_the_target_and_is_nothing_for_an_invalid_expression():
    completions = [f"<answer>{e}</answer>" for e in ("2*6", "2+6", "6-2", "2-6", "6/2", "12", "2**6")]
    scores = countdown_proximity(completions, nums=[[2, 6]] * 7, target=[12] * 7)
    assert scores[0] == 1.0
    assert 1 > scores[1] > scores[2] > scores[4] > scores[3] > 0
    assert scores[5:] == [0.0, 0.0]
    assert countdown_proximity(["<answer>6-6</answer>"], nums=[[6, 6]], target=[0]) == [1.0]
    assert get_countdown_proximity(allow_bare=True)(["6 - 6"], nums=[[6, 6]], target=[1]) == [0.5]


def test_after_a_prompt_that_opens_thinking_a_completion_begins_in_thinking():
    prompts = ["Question\n<think>\n", "Question", message("hello <think>")]
    completions = ["#### 7"] * 3
    assert gsm8k_accuracy(completions, answer=["7"] * 3, prompts=prompts) == [0.0, 1.0, 0.0]
    completions = ["9?</think>#### 7"] * 3
    assert gsm8k_accuracy(completions, answer=["7"] * 3, prompts=prompts) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("<think>a</think><answer>b</answer>", "q", 1.0),
        ("\n<think>a</think>\n\n<answer>b</answer>\n", "q", 1.0),
        ("a</think><answer>b</answer>", "q <think>\n", 1.0),
        ("a</think><answer>b</answer>", "q", 0.0),
        ("<think>a</think><answer>b</answer>", "q <think>\n", 0.0),
        ("<think></think><answer>b</answer>", "q", 0.0),
        ("<think>a</think><answer> </answer>", "q", 0.0),
        ("so <think>a</think><answer>b</answer>", "q", 0.0),
        ("<think>a</think>so<answer>b</answer>", "q", 0.0),
        ("<think>a</think><answer>b</answer>.", "q", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", "q", 0.0),
        ("<answer>b</answer><think>a</think>", "q", 0.0),
        ("<think>a<answer>b</answer></think>", "q", 0.0),
        ("", "q", 0.0),
    ],
)
def test_the_format_is_one_thought_then_one_answer(completion, prompt, expected):
    assert think_answer_format([completion], prompts=[prompt]) == [expected]


def test_without_prompts_the_opening_tag_may_have_been_in_the_prompt():
    assert think_answer_format(["a</think><answer>b</answer>"]) == [1.0]


# --- how they fit into TRL -------------------------------------------------------------------------------------------


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


def test_wrong_options_are_errors_that_name_the_right_ones():
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


def test_without_any_form_only_a_bare_answer_counts():
    reward = get_gsm8k_accuracy(forms=(), allow_bare=True)
    assert reward(completions=["so 18", "so #### 18 of 20"], answer=["18", "18"]) == [1.0, 0.0]


def test_outcomes_are_logged_under_names_of_their_own():
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


def test_importing_the_rewards_imports_only_the_standard_library():
    program = (
        "import sys, grpo_math.rewards\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(n for n in names if not n.startswith('_') and n not in ('grpo_math', 'sitecustomize')))"
    )
    root = Path(rewards.__file__).parent.parent
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_trl_calls_them_in_a_real_step(tmp_path):
    """TRL's own trainer runs a step on three of them at once and logs their columns and metrics."""
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


# --- properties ------------------------------------------------------------------------------------------------------

junk = st.text(max_size=80)


@given(st.lists(st.tuples(junk, st.one_of(junk, st.integers(), st.none())), max_size=5))
def test_gsm8k_rewards_never_raise_and_are_zero_one_or_none(rows):
    completions, golds = [c for c, _ in rows], [g for _, g in rows]
    for reward in (gsm8k_accuracy, gsm8k_exact_match, get_gsm8k_accuracy(allow_bare=True)):
        paid = reward(completions, answer=golds)
        assert len(paid) == len(rows)
        assert all(p in (0.0, 1.0, None) for p in paid)


@given(st.lists(st.tuples(junk, st.lists(st.integers(0, 99), max_size=4), st.integers(-99, 99)), max_size=5))
def test_countdown_rewards_never_raise_and_lie_between_zero_and_one(rows):
    columns = {"nums": [n for _, n, _ in rows], "target": [t for *_, t in rows]}
    completions = [f"<answer>{c}</answer>" for c, *_ in rows]
    for reward in (countdown_accuracy, countdown_proximity, get_countdown_accuracy(allow_bare=True, mode="subset")):
        assert all(0.0 <= p <= 1.0 for p in reward(completions, **columns))


@given(junk, st.integers(0, 99), st.integers(0, 99))
def test_the_gold_number_in_the_text_does_not_pay_a_wrong_answer(prose, gold, stated):
    prose = "".join(c for c in prose if c.isalpha() or c in " .\n").replace("A", "a")
    text = f"{prose} {gold} {prose}\n#### {stated}\nI also thought of {gold} for a while."
    assert gsm8k_accuracy([text], answer=[str(gold)]) == [1.0 if gold == stated else 0.0]


# --- time ------------------------------------------------------------------------------------------------------------

UNITS = [
    *(
        "\\boxed{",
        "\\boxed{1}",
        "{",
        "}",
        "<answer>",
        "</answer>",
        "<answer>1</answer>",
        "<think>",
        "</think>",
        "#",
        "####",
    ),
    *(
        "#### 1\n",
        "The answer is ",
        "The answer is 1. ",
        "answer ",
        "Answer:",
        "A: ",
        "\nA: 1",
        "**",
        "**1**",
        "*1",
        "`1`",
    ),
    *(
        "|1",
        "1",
        "1,",
        "1.",
        "1 or ",
        "-",
        "1-",
        "(",
        "((1",
        "[",
        ")",
        "\\frac{",
        "\\frac{1}{",
        "\\",
        "$",
        "<<1=1>>",
        "<",
        "&",
    ),
    *(
        "½",
        "²",
        "１",
        "答案：",
        "\u200b",
        "İ",
        "\n",
        " ",
        "\t",
        "\n\n",
        "\nQuestion:",
        "~~",
        "one hundred ",
        "x",
        "3+4\n",
        "=",
        "1=1;",
    ),
]


def seconds(unit, size):
    text = (unit * (size // len(unit) + 1))[:size]
    cases = [
        text,
        f"<answer>{text}</answer>",
        f"#### {text}",
        f"\\boxed{{{text}}}",
        f"<think>{text}",
        f"{text}\n#### 7",
    ]
    accuracy, countdown = get_gsm8k_accuracy(allow_bare=True), get_countdown_accuracy(allow_bare=True)
    started = time.process_time()
    accuracy(cases, answer=["7"] * len(cases))
    countdown(cases, nums=[[3, 4]] * len(cases), target=[7] * len(cases))
    return time.process_time() - started


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_time_is_linear_in_length(unit):
    """Eight times the text takes far less than 64 times the time, which a quadratic rule would take."""
    small = min(seconds(unit, 4_000) for _ in range(3))
    large = min(seconds(unit, 32_000) for _ in range(2))
    assert large < 24 * small + 0.02


# --- the data, where there is some -----------------------------------------------------------------------------------


def folder(variable):
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to the folder that holds the data")
    return Path(os.environ[variable])


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_hard_cases_of_gsm8k():
    cases = [c for c in lines(folder("GRPO_MATH_HARD_CASES") / "gsm8k.jsonl") if not c.get("debatable")]
    paid = gsm8k_accuracy([c["completion"] for c in cases], answer=[c["gold"] for c in cases])
    wrong = [(c["id"], p) for c, p in zip(cases, paid, strict=True) if p != c["label"]]
    assert len(wrong) <= 0.03 * len(cases), wrong
    assert sum(p for _, p in wrong) <= 1, wrong


def test_hard_cases_of_countdown():
    cases = [c for c in lines(folder("GRPO_MATH_HARD_CASES") / "countdown.jsonl") if not c.get("debatable")]
    scored = [
        (c, get_countdown_accuracy(mode=c["mode"])([c["completion"]], nums=[c["nums"]], target=[c["target"]])[0])
        for c in cases
    ]
    wrong = [(c["id"], p) for c, p in scored if p != c["label"]]
    assert len(wrong) <= 0.02 * len(cases), wrong
    assert not any(p for _, p in wrong), wrong


def test_every_gold_solution_of_gsm8k_pays_itself():
    solutions = [row["answer"] for row in lines(folder("GRPO_MATH_GSM8K") / "test.jsonl")]
    assert set(gsm8k_accuracy(solutions, answer=solutions)) == {1.0}
    shuffled = random.Random(0).sample(solutions, len(solutions))
    same = [gold_value(a) == gold_value(b) for a, b in zip(solutions, shuffled, strict=True)]
    assert gsm8k_accuracy(solutions, answer=shuffled) == [1.0 if s else 0.0 for s in same]


def test_the_fuzz_target_runs_clean():
    # by its path: `tests` is no package
    spec = importlib.util.spec_from_file_location("fuzz_rewards", Path(__file__).parent / "fuzz_rewards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.fuzz(seconds=1.0, seed=1) > 20
