"""What the tests of answers and rewards share: markers, messages and the data of the environment."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import strategies as st

from grpo_math.answers import extract

MARKERS = ["\\boxed{{{}}}", "<answer>{}</answer>", "#### {}", "The answer is {}.", "**{}**"]
short_texts = st.text(max_size=80)


def value(text, **options):
    """The value of the final answer, or None."""
    return extract(text, **options).value


def message(text):
    """A conversational completion."""
    return [{"role": "assistant", "content": text}]


def data_folder(variable):
    """The folder that an environment variable names; skips the test without one."""
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to the folder that contains the data")
    return Path(os.environ[variable])


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
