"""`grpo-math eval`: of a recipe, a run's folder or any model; resumed; as lm-evaluation-harness measures."""

import json
import random

import pytest
from conftest import GSM8K_ROWS, run
from trl import ModelConfig

from grpo_math import cli, evaluation, models
from grpo_math.evaluation import lm_eval
from grpo_math.run import evaluating

pytestmark = pytest.mark.usefixtures("no_local_data")


SETTINGS = ["--max_steps", "2", "--logging_steps", "1", "--heldout_size", "30", "--heldout_generations", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps of the tiny recipe."""
    from conftest import ROOT

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert run(ROOT / "recipes" / "countdown_tiny.yaml", folder, *SETTINGS) == 0
    return folder


def test_a_runs_folder_is_measured_as_its_recipe_says_and_goes_on_after_a_stop(finished, capsys, monkeypatch):
    words = ["eval", str(finished), "--disable_tqdm", "true"]
    assert cli.main([*words, "--ood"]) == 0
    summary = json.loads((finished / "summary.json").read_text())
    figures = json.loads((finished / "eval.json").read_text())
    assert figures["accuracy"] == summary["accuracy_after"]
    assert figures["problems"] == 30
    assert set(figures["ood"]) == {"3 numbers", "4 numbers"}
    printed = capsys.readouterr().out
    assert "out of distribution, 3 numbers" in printed
    lines = (finished / "eval_completions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines[1:]]
    assert [len(record["completions"]) for record in records] == [2] * 30

    # Stopped after 20 problems: the other 10 are measured, and the figures have all
    (finished / "eval_completions.jsonl").write_text("\n".join([*lines[:21], lines[21][:40]]))
    measured = []
    measure = evaluating.measure_heldout

    def noted(run, label, rows, **options):
        measured.append(rows)
        return measure(run, label, rows, **options)

    monkeypatch.setattr(evaluating, "measure_heldout", noted)
    assert cli.main(words) == 0
    assert measured == [list(range(20, 30))]
    assert json.loads((finished / "eval.json").read_text())["problems"] == 30
    # Other settings are another evaluation
    assert cli.main([*words, "--heldout_generations", "1", "--size", "6"]) == 0
    assert measured[1:] == [list(range(6))]


def test_what_a_run_saves_generates_with_its_cache(finished, tmp_path):
    """And a configuration that another trainer saved with the cache off predicts and measures as one with it."""
    saved = json.loads((finished / "config.json").read_text())
    assert saved["use_cache"] is True
    (tmp_path / "config.json").write_text(json.dumps({**saved, "use_cache": False}))
    assert models.load_config(ModelConfig(model_name_or_path=str(tmp_path))).use_cache is True


def test_any_model_is_measured_on_a_named_task(small_chat_model, gsm8k_folder, tmp_path, capsys):
    words = ["--dataset_path", str(gsm8k_folder), "--max_completion_length", "8", "--heldout_generations", "2",
             "--use_cpu", "true", "--disable_tqdm", "true", "--out", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(["eval", str(small_chat_model), "--task", "gsm8k", *words, "--split", "train", "--size", "3"]) == 0
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["split"] == "train"
    assert cli.main(["eval", str(small_chat_model), "--task", "gsm8k", *words, "--protocol", "lm-eval"]) == 0
    printed = capsys.readouterr().out
    assert "exact_match,strict-match 0.000" in printed
    record = json.loads((tmp_path / "out" / "eval_completions.jsonl").read_text().splitlines()[1])
    assert record["prompt"].count("Question:") == 6
    assert record["completions"] == [record["greedy_completion"]]


def test_gsm8k_out_of_distribution_is_procedural(small_chat_model, gsm8k_folder, tmp_path, capsys):
    pytest.importorskip("reasoning_gym")
    words = ["--dataset_path", str(gsm8k_folder), "--max_completion_length", "8", "--heldout_generations", "2",
             "--use_cpu", "true", "--disable_tqdm", "true", "--out", str(tmp_path / "out"), "--size", "4"]  # fmt: skip
    assert cli.main(["eval", str(small_chat_model), "--task", "gsm8k", *words, "--ood"]) == 0
    assert "out of distribution, reasoning-gym gsm_symbolic: sampled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "name its task: grpo-math eval nowhere --task gsm8k"),
        (["RECIPE", "--protocol", "lm-eval"], "--protocol lm-eval is defined for task gsm8k, not countdown"),
        (["RECIPE", "--size", "0"], "heldout_size: 0 leaves nothing to measure on"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, tiny_recipe, capsys):
    assert cli.main(["eval", *[str(tiny_recipe) if word == "RECIPE" else word for word in words]]) == 2
    assert message in capsys.readouterr().err


# --- the harness ---

TEXTS = [
    " 48/2=24. 24+48=72\n#### 72", " So it is $1,450,000.", "#### 1,450,000.", "The answer is -2", "#### -2 or so",
    "no number", "", "10 apples. #### 3\n\nQuestion: What is 7?\nAnswer: 7", "2.5", "#### ",
]  # fmt: skip


def test_the_two_filters_read_as_the_harness_documents():
    numbers = ["72", "1,450,000", "1,450,000", "-2", "-2", "1", "1", "3", "2.5", "1"]
    gold = [f"The solution.\n#### {number}" for number in numbers]
    assert evaluation.lm_eval.lm_eval_strict(TEXTS, answer=gold) == [1, 0, 1, 0, 1, 0, 0, 1, 0, 0]
    assert evaluation.lm_eval.lm_eval_flexible(TEXTS, answer=gold) == [1, 1, 1, 1, 1, 0, 0, 1, 1, 0]


def test_each_problem_gets_examples_of_its_own_from_one_seeded_generator():
    test = [{"question": f"Q{i}?", "answer": f"#### {i}"} for i in range(3)]
    made = lm_eval.prompts(test, GSM8K_ROWS)
    drawn = random.Random(1234)
    for row, prompt in zip(test, made, strict=True):
        shown = "".join(f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in drawn.sample(GSM8K_ROWS, 5))
        assert prompt == f"{shown}Question: {row['question']}\nAnswer:"


def test_the_harness_gives_the_same_scores():
    """Where lm-evaluation-harness is installed: its filters and its metric on the same texts."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    answers = ["#### 72", "#### 1,450,000", "#### -2", "#### 3", "#### 2.5"]
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]
    filters = {
        lm_eval.lm_eval_strict: RegexFilter("#### (\\-?[0-9\\.\\,]+)"),
        lm_eval.lm_eval_flexible: RegexFilter("(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    }
    for ours, theirs in filters.items():
        for text in TEXTS:
            (extracted,) = theirs.apply([[lm_eval.cut(text)]], [{}])[0]
            for answer in answers:
                score = exact_match_hf_evaluate([extracted], [answer], ignored, ignore_case=True)["exact_match"]
                assert ours([text], answer=[answer]) == [score], (text, answer)
