"""Data files and models that are torn, hostile or of another kind: one line names the file, the row and the value."""

import json
import os
import shutil
import sys

import pytest
from conftest import ROOT

from grpo_math import models
from grpo_math.errors import ModelError, TaskError
from grpo_math.recipe import load_recipe
from grpo_math.tasks import TaskConfig, load_problems
from grpo_math.tasks.countdown_problems import CountdownConfig
from grpo_math.tiny_model import tiny_model_folder

pytestmark = pytest.mark.usefixtures("no_local_data")


def rows(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def gsm8k(question="What is 1 plus 1?", answer="#### 2"):
    return {"question": question, "answer": answer}


GOOD = rows(gsm8k(), gsm8k("What is 2 plus 2?", "#### 4"))
UNREADABLE = "could not read {path} as json with columns question, answer: "

GSM8K = {
    "empty": ("", "{path} is empty"),
    "blank lines": ("\n\n\n", UNREADABLE + "ValueError"),
    "no JSON": ("hello\n", UNREADABLE + "ArrowInvalid: JSON parse error: Invalid value. in row 0"),
    "half a row": (GOOD + '{"question": "x', UNREADABLE + "ArrowInvalid: JSON parse error: Missing a closing"),
    "a list": (GOOD + "[1, 2]\n", UNREADABLE + "ArrowInvalid"),
    "a number": (GOOD + "5\n", UNREADABLE + "ArrowInvalid"),
    "a text": (GOOD + '"x"\n', UNREADABLE + "ArrowInvalid"),
    "null": (GOOD + "null\n", "{path}, row 2: column `question` must be text, not None"),
    "lists nested 1,100 deep": ('{"question":' + "[" * 1100 + "]" * 1100 + ',"answer":"#### 1"}\n', UNREADABLE),
    "objects nested 1,100 deep": ('{"question":' + '{"a":' * 1100 + "1" + "}" * 1101 + "\n", UNREADABLE),
    "100,000 brackets": ("[" * 100_000, UNREADABLE),
    "UTF-16": (GOOD.encode("utf-16"), UNREADABLE + "ArrowInvalid"),
    "Latin-1": ('{"question": "é", "answer": "#### 1"}\n'.encode("latin-1") * 2, UNREADABLE),
    "zeros": (bytes(100), UNREADABLE + "ArrowInvalid"),
    "random bytes": (bytes(range(255, 0, -1)), UNREADABLE + "ArrowInvalid"),
    "another column": (rows({"q": 1, "answer": "#### 1"}), "{path}, row 0: there is no column question; the row has q, answer"),
    "no answer": (rows({"question": "x"}), "{path}, row 0: there is no column answer; the row has question"),
    "an answer that is null": (rows(gsm8k(answer=None)), "row 0: column `answer` must be a number"),
    "an answer that is a list": (rows(gsm8k(answer=["#### 1"])), "row 0: column `answer` must be a number"),
    "an answer that is an object": (rows(gsm8k(answer={"a": 1})), "row 0: column `answer` must be a number"),
    "an answer that is true": (rows(gsm8k(answer=True)), "row 0: column `answer` must be a number"),
    "an empty answer": (rows(gsm8k(answer="")), "row 0: column `answer` must be a number or end in `#### N`, not ''"),
    "an answer of marks": (rows(gsm8k(answer="####")), "row 0: column `answer`"),
    "an answer in words": (GOOD + rows(gsm8k(answer="#### many")), "row 2: column `answer` must be a number"),
    "an answer that is NaN": ('{"question": "x", "answer": NaN}\n', "row 0: column `answer`"),
    "an answer that is infinite": (rows(gsm8k(answer="#### inf")), "row 0: column `answer`"),
    "an answer over zero": (rows(gsm8k(answer="#### 1/0")), "row 0: column `answer`"),
    "a question that is null": (rows(gsm8k(None)), "row 0: column `question` must be text, not None"),
    "a question that is a number": (rows(gsm8k(5)), "row 0: column `question` must be text, not 5"),
    "a question that is a list": (rows(gsm8k(["x"])), "row 0: column `question` must be text, not ['x']"),
    "an empty question": (rows(gsm8k("")), "row 0: column `question` must be text, not ''"),
    "a question of spaces": (rows(gsm8k("  ")), "row 0: column `question` must be text, not '  '"),
    "questions of two kinds": (GOOD + rows(gsm8k({"a": 1})), "row 2: column `question` must be text, not {'a': 1}"),
    "one row": (rows(gsm8k()), "heldout_size: 1 leaves nothing to train on: {path} has 1 distinct rows"),
    "equal rows": (rows(gsm8k()) * 9, "heldout_size: 1 leaves nothing to train on: {path} has 1 distinct rows"),
    "a column twice": ('{"question": "x", "question": "y", "answer": "#### 1"}\n', UNREADABLE + "ArrowInvalid"),
    "half a surrogate pair": ('{"question": "a\\ud800b", "answer": "#### 1"}\n', UNREADABLE + "ArrowInvalid"),
    "rows within an object": (json.dumps({"data": [gsm8k()]}), "row 0: there is no column question, answer; the row has data"),
    "a comma too many": ('{"question": "x", "answer": "#### 1",}\n', UNREADABLE + "ArrowInvalid"),
    "Python instead of JSON": ("{'question': 'x', 'answer': '#### 1'}\n", UNREADABLE + "ArrowInvalid"),
    "a control character": ('{"question": "a\x01b", "answer": "#### 1"}\n', UNREADABLE + "ArrowInvalid"),
    "a table of commas": ("question,answer\nx,#### 1\n", UNREADABLE + "ArrowInvalid"),
    "a web page": ("<html>not found</html>\n", UNREADABLE + "ArrowInvalid"),
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", UNREADABLE + "ArrowInvalid"),
    "a comment": ("// rows\n" + GOOD, UNREADABLE + "ArrowInvalid"),
}  # fmt: skip


def countdown(nums=(1, 2, 3), target=6, **more):
    return {"nums": list(nums) if isinstance(nums, tuple) else nums, "target": target, **more}


NUMS, TARGET = "column `nums` must be a non-empty list of integers, not ", "column `target` must be an integer, not "
COUNTDOWN = {
    "no numbers": (rows({"target": 3}), "{path}, row 0: there is no column nums; the row has target"),
    "no target": (rows({"nums": [1, 2]}), "{path}, row 0: there is no column target; the row has nums"),
    "numbers in a text": (rows(countdown("1 2")), "row 0: " + NUMS + "'1 2'"),
    "an empty list": (rows(countdown(), countdown([])), "row 1: " + NUMS + "[]"),
    "numbers that are null": (rows(countdown(), countdown(None)), "row 1: " + NUMS + "None"),
    "a number that is null": (rows(countdown(), countdown([1, None])), "row 1: " + NUMS + "[1, None]"),
    "fractions": (rows(countdown([1.5, 2])), "row 0: " + NUMS + "[1.5, 2.0]"),
    "lists of lists": (rows(countdown([[1], [2]])), "row 0: " + NUMS + "[[1], [2]]"),
    "truth values": (rows(countdown([True, False])), "row 0: " + NUMS + "[True, False]"),
    "numbers as texts": (rows(countdown(["1", "2"])), "row 0: " + NUMS + "['1', '2']"),
    "seven numbers": (rows(countdown(), countdown([1] * 7)), "row 1: column `nums` holds 7 numbers"),
    "100,000 numbers": (rows(countdown([1] * 100_000)), "row 0: column `nums` holds 100000 numbers"),
    "a target as a text": (rows(countdown(target="3")), "row 0: " + TARGET + "'3'"),
    "a fraction as target": (rows(countdown(target=3.5)), "row 0: " + TARGET + "3.5"),
    "a target that is null": (rows(countdown(), countdown(target=None)), "row 1: " + TARGET + "None"),
    "a target that is true": (rows(countdown(target=True)), "row 0: " + TARGET + "True"),
    "a list as target": (rows(countdown(target=[3])), "row 0: " + TARGET + "[3]"),
    "a target of 30 digits": ('{"nums": [1, 2], "target": ' + "9" * 30 + "}\n", "row 0: " + TARGET),
    "a target of 5,000 digits": ('{"nums": [1, 2], "target": ' + "9" * 5000 + "}\n", "row 0: " + TARGET),
    "a kind that is a list": (rows(countdown(kind=["a"])), "row 0: column `kind` must be text, not ['a']"),
    "a kind that is a number": (rows(countdown(kind=5)), "row 0: column `kind` must be text, not 5"),
}


@pytest.mark.parametrize(("task", "case"), [*(("gsm8k", c) for c in GSM8K), *(("countdown", c) for c in COUNTDOWN)])
def test_a_bad_file_is_one_line_with_its_place(tmp_path, task, case):
    text, says = (GSM8K if task == "gsm8k" else COUNTDOWN)[case]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = TaskConfig if task == "gsm8k" else CountdownConfig
    with pytest.raises(TaskError) as caught:
        load_problems(config(task=task, dataset_path=str(path), heldout_size=1, prompt_style="boxed"))
    message = str(caught.value)
    assert says.format(path=path) in message if "{path}" in says else says in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("content", [b"", b"PAR1", bytes(1000), GOOD.encode()], ids=["empty", "half", "zeros", "JSON"])
def test_a_bad_parquet_file_is_one_line(tmp_path, content):
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    with pytest.raises(TaskError) as caught:
        load_problems(TaskConfig(dataset_path=str(path), heldout_size=1, prompt_style="boxed"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["[1]", "a::b", "a*b", "a?b", "ü x", "{1,2}", "hf:", "a#b", "-x"])
def test_rows_are_read_from_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "train.jsonl").write_text(GOOD)
    (folder / "test.jsonl").write_text(rows(gsm8k("What is 3 plus 3?", "#### 6")))
    problems = load_problems(TaskConfig(dataset_path=str(folder), heldout_size=1, prompt_style="boxed"))
    assert (len(problems.train), len(problems.heldout)) == (2, 1)


@pytest.fixture
def model(tmp_path):
    shutil.copytree(tiny_model_folder(), tmp_path / "model")
    return tmp_path / "model"


TORN = {
    "half the weights": ("model.safetensors", lambda data: data[: len(data) // 2]),
    "weights without their last byte": ("model.safetensors", lambda data: data[:-1]),
    "empty weights": ("model.safetensors", lambda data: b""),
    "weights of zeros": ("model.safetensors", lambda data: bytes(1000)),
    "half a configuration": ("config.json", lambda data: data[: len(data) // 2]),
    "a configuration that is a list": ("config.json", lambda data: b"[]"),
    "a configuration of brackets": ("config.json", lambda data: b"[" * 5000),
    "half a tokenizer": ("tokenizer.json", lambda data: data[: len(data) // 2]),
    "a tokenizer that is a list": ("tokenizer.json", lambda data: b"[]"),
    "a tokenizer of brackets": ("tokenizer.json", lambda data: b"[" * 5000),
    "tokenizer settings that are a list": ("tokenizer_config.json", lambda data: b"[]"),
    "empty tokenizer settings": ("tokenizer_config.json", lambda data: b""),
}


@pytest.mark.parametrize("case", TORN)
def test_a_torn_model_is_one_line(model, case):
    name, damage = TORN[case]
    (model / name).write_bytes(damage((model / name).read_bytes()))
    recipe = load_recipe(ROOT / "recipes" / "countdown_tiny.yaml", ["--model_name_or_path", str(model)])
    with pytest.raises(ModelError) as caught:  # noqa: PT012  (whichever of the three reads the file)
        models.load_tokenizer(recipe.model)
        models.load_config(recipe.model)
        models.load_model(recipe.model, "float32")
    assert f"the folder {model} is there, but cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"{}", b"[" * 5000, b"\xff"], ids=str)
def test_a_torn_adapter_is_one_line(tmp_path, content):
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ModelError, match="is not the configuration of an adapter") as caught:
        models.adapter_base(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, which not even root can write to, is a Linux matter")
def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch):
    monkeypatch.setitem(os.environ, "GRPO_MATH_CACHE", "/proc/cache")
    with pytest.raises(ModelError, match=r"cannot be kept in /proc/cache \(.*\): set GRPO_MATH_CACHE"):
        tiny_model_folder()
