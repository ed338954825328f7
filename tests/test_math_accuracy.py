"""The metric of the `evaluate` library loads from its packaged file, offline, and scores by the rewards' rules."""

import doctest
import sys

import evaluate
import pytest

from grpo_math import math_accuracy
from grpo_math.evaluation import wilson
from grpo_math.rewards import gsm8k_accuracy


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Folders of the test for what `evaluate` keeps, as HF_MODULES_CACHE and HF_METRICS_CACHE set them before import."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(sys, "path", [*sys.path])  # `evaluate` adds the folder of its modules
    for name in [name for name in sys.modules if name.split(".")[0] == evaluate.config.MODULE_NAME_FOR_DYNAMIC_MODULES]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.fixture
def metric(caches):
    return evaluate.load(math_accuracy.__file__)


def test_the_packaged_file_loads_offline_into_the_given_caches(metric, caches):
    assert metric.name == "math_accuracy"
    assert sys.modules[type(metric).__module__].__file__.startswith(str(caches / "modules"))
    metric.add(prediction="#### 4", reference="4")
    assert list((caches / "metrics").rglob("*.arrow"))


def test_the_metric_scores_by_the_rules_of_the_reward(metric):
    predictions = ["First 20. #### 18", "The answer is 1,450.", "18 or 20", "\\boxed{7}"]
    references = ["18", "1450", "18", "8"]
    result = metric.compute(predictions=predictions, references=references)
    assert result["accuracy"] == 0.5
    assert result["low"] < 0.5 < result["high"]
    assert (result["low"], result["high"]) == wilson(0.5, 4)[1:]
    assert sum(gsm8k_accuracy(completions=predictions, answer=references)) == 2


def test_the_metric_takes_batches_and_raw_gsm8k_solutions(metric):
    metric.add(prediction="#### 72", reference="48 + 24 = <<48+24=72>>72 clips.\n#### 72")
    metric.add_batch(predictions=["#### 4", "#### 5"], references=["5", "5"])
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        (["#### 4", "#### 4"], ["4", "many"], "references, row 1: 'many' states no number; give the gold number"),
        ([], [], "predictions: .* has no completions; give at least one"),
    ],
)
def test_unusable_inputs_are_named_with_the_fix(metric, predictions, references, says):
    with pytest.raises(ValueError, match=says):
        metric.compute(predictions=predictions, references=references)


def test_the_example_in_the_docstring_is_right(caches):
    failures, tried = doctest.testmod(math_accuracy)
    assert (failures, tried) == (0, 4)
