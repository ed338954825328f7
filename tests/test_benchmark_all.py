"""`python -m benchmarks all`: what it runs and leaves out, failures that show, stored results that stay; learning's parts."""

import itertools

import pytest

from benchmarks import all as everything
from benchmarks import learning, learning_questions, pictures
from benchmarks.__main__ import available
from benchmarks.learning_questions import QUESTIONS


def test_a_quick_run_names_only_benchmarks_that_exist_and_says_what_it_leaves_out():
    names = available()
    run, left_out = everything.plan(quick=True)
    assert set(run) | set(left_out) == set(names)
    assert not set(run) & set(left_out)
    assert {"estimators", "learning", "memory", "rewards"} <= set(run)
    assert "needs a GPU" in left_out["gpu"]
    assert all(left_out.values())
    whole, _ = everything.plan(quick=False)
    assert "trainer" in whole
    assert whole["estimators"] == []
    assert everything.plan(quick=True, only=["rewards"]) == ({"rewards": ["--quick"]}, {})


def test_a_failure_is_shown_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    # These two need no torch
    monkeypatch.setattr(everything, "QUICK", {"rewards": ["--no-such-option"], "all": ["--help"]})
    monkeypatch.setattr(everything, "NOT_RUN", {})
    code = everything.main(["--quick", "--only", "rewards", "all", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 1
    assert "unrecognized arguments: --no-such-option" in printed
    assert "| rewards | exit code 2 |" in printed
    assert "| all | ok |" in printed
    assert "usage: python -m benchmarks all" in (tmp_path / "all.log").read_text()


def test_a_quick_run_leaves_the_stored_results_alone(tmp_path, monkeypatch):
    stored = everything.ROOT / "benchmarks" / "results" / "advantage_share.md"
    before = stored.read_bytes()
    monkeypatch.setitem(everything.QUICK, "advantage_share", ["--groups", "50"])
    assert everything.main(["--quick", "--only", "advantage_share", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "advantage_share.md").read_text() != before.decode()
    assert stored.read_bytes() == before


# --- learning ---


def test_sft_stops_at_the_compute_of_grpo_and_both_learn_from_the_same_start(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_questions, "HELDOUT", 40)
    grpo = learning_questions.learn({}, 0, 5, tmp_path)
    sft = learning_questions.learn({"method": "SFT"}, 0, 5, tmp_path, budget=grpo[-1]["seconds"])
    assert [point["step"] for point in grpo] == [0, 1, 2, 3, 4, 5]
    assert {name: grpo[0][name] for name in ("sampled", "greedy")} == {n: sft[0][n] for n in ("sampled", "greedy")}
    assert sft[-1]["seconds"] >= grpo[-1]["seconds"] > sft[-2]["seconds"]


def test_equal_settings_run_once(monkeypatch, tmp_path):
    asked = []

    def learn(setting, seed, steps, out, budget=None):
        asked.append((setting, seed, budget))
        start, end = points(0.2, 0.5)
        return [start, {**end, "seconds": 3.0 + seed}]

    monkeypatch.setattr(learning_questions, "learn", learn)
    found = learning_questions.ask(list(QUESTIONS), 2, 10, tmp_path)
    assert len(asked) == 2 * 7  # four group sizes, one more temperature, reward and method
    assert found["temperature"]["1"] is found["group size"]["G = 16"] is found["method"]["GRPO"]
    assert [budget for setting, _, budget in asked if setting.get("method") == "SFT"] == [3.0, 4.0]


def points(*accuracies):
    return [{"step": 10 * i, "seconds": float(i), "sampled": a, "greedy": a} for i, a in enumerate(accuracies)]


def test_the_page_says_whether_seeds_overlap_and_what_is_above_the_blind_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(learning.common, "RESULTS", tmp_path)
    apart = {"0.5": [points(0.2, 0.3), points(0.2, 0.35)], "1": [points(0.2, 0.6), points(0.2, 0.7)]}
    overlap = {"GRPO": [points(0.2, 0.3), points(0.2, 0.6)], "SFT": [points(0.2, 0.5), points(0.2, 0.55)]}
    assert "no seed of one reaches" in learning.what_it_shows("temperature", apart, 0.5)
    assert "(0.500): 1." in learning.what_it_shows("temperature", apart, 0.5)
    assert "the seeds overlap" in learning.what_it_shows("method", overlap, 0.9)
    assert "(0.900): none." in learning.what_it_shows("method", overlap, 0.9)
    learning.draw({"temperature": apart, "method": overlap}, 0.5, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_names_beside_lines_do_not_overlap_in_a_picture():
    figure = pictures.new_figure(4, 3)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1])
    pictures.label_ends(axis, {"a": 0.5, "b": 0.5, "c": 0.51}, dict.fromkeys("abc", "black"))
    figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axis.texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))
    assert pictures.spread([1.0, 1.0], 2.0) == pytest.approx([0.0, 2.0])
