"""Agreement with the labelled cases in `reward_cases/`: completions in the styles that small models write.

`gsm8k_*.jsonl` and `fresh*.jsonl` have completion, gold and style (the marker of the final answer), `countdown*.jsonl`
nums, target and mode. The cases of the fresh files were labelled before any scorer had read them.
`label` is 1 for a completion to pay. `why` begins with the convention: V value, X other value, F final statement, H hedge,
T thinking, P percent is a unit, N no answer.
"""

from collections import Counter
from pathlib import Path

from reward_texts import read_jsonl

from grpo_math.rewards import get_countdown_accuracy, gsm8k_accuracy

CASES = Path(__file__).parent / "reward_cases"
WRONGLY_PAID = ["label228"]  # Answer: 60\nCorrection: 52
WRONGLY_REFUSED = [
    *("box263", "hash061", "hash104", "hash218", "hash230", "hash235"),
    *("label035", "phrase091", "phrase108", "phrase220", "phrase248", "phrase_b56", "phrase_c37"),
]


def cases(*names):
    return [case for name in names for path in sorted(CASES.glob(f"{name}.jsonl")) for case in read_jsonl(path)]


GSM8K = cases("gsm8k_*", "fresh*")
COUNTDOWN = cases("countdown*")


def test_gsm8k_accuracy_agrees_with_the_labelled_cases():
    paid = gsm8k_accuracy([case["completion"] for case in GSM8K], answer=[case["gold"] for case in GSM8K])
    misread = [case for case, p in zip(GSM8K, paid, strict=True) if p != case["label"]]
    assert sorted(case["id"] for case in misread if not case["label"]) == WRONGLY_PAID
    assert sorted(case["id"] for case in misread if case["label"]) == WRONGLY_REFUSED
    assert len(WRONGLY_REFUSED) < 0.02 * len(GSM8K)


def test_countdown_accuracy_agrees_with_the_labelled_cases():
    rewards = {mode: get_countdown_accuracy(mode=mode) for mode in ("all", "subset")}
    for case in COUNTDOWN:
        columns = {"nums": [case["nums"]], "target": [case["target"]]}
        assert rewards[case["mode"]]([case["completion"]], **columns) == [case["label"]], case["id"]


def test_labelled_cases_hold_both_labels_in_every_style_with_a_marker():
    labels = Counter((case["style"], case["label"]) for case in GSM8K)
    for style in ("hash", "box", "tag", "bold", "phrase", "label"):
        assert labels[style, 0] >= 8, style
        assert labels[style, 1] >= 8, style
    assert labels["none", 0] >= 8
