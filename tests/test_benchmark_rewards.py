"""The benchmark of the rewards: scorers that hang or crash, and the error rates of each style."""

import os
import time

from benchmarks.reward_styles import error_rates, labelled_cases
from benchmarks.rewards import judged


def moody(texts, rows):
    if texts[0] == "hang":
        time.sleep(60)
    if texts[0] == "crash":
        os._exit(3)
    return [texts[0] == rows[0]]


def test_scorer_that_hangs_or_crashes_loses_that_case_alone():
    texts = ["18", "hang", "20", "crash", "18", "crash"]
    assert judged(moody, texts, ["18"] * 6, patience=0.5) == [True, None, False, None, True, None]


def test_error_rates_count_wrongly_paid_and_refused_of_each_style():
    cases = [
        {"completion": text, "gold": "18", "style": style, "label": label}
        for text, style, label in (("18", "hash", 0), ("20", "hash", 0), ("18", "hash", 1), ("20", "tag", 1))
    ]
    header, rows = error_rates(cases, lambda case: case["gold"], {"moody": (all_at_once, None)}, None, "moody")
    assert header == ["scorer", "all", "hash (2 / 1)", "tag (0 / 1)"]
    assert rows == [["moody", "50 % / 50 %", "50 % / 0 %", "- / 100 %"]]


def all_at_once(texts, rows):
    return [text == row for text, row in zip(texts, rows, strict=True)]


def test_every_labelled_case_is_in_the_benchmark():
    assert len(labelled_cases("gsm8k", "fresh")) > 1000
    assert len(labelled_cases("countdown")) > 200
