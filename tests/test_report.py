"""What a run leaves behind can be read again, and nothing of an earlier run is lost."""

import io
import json
import math

import pytest
from rich.console import Console

from grpo_math import report
from grpo_math.run import callbacks
from grpo_math.run.folder import set_aside


def metrics(folder, steps):
    lines = [
        json.dumps({"step": s, "reward": s / 10, "reward_std": 0.1, "frac_reward_zero_std": 0.5,
                    "completions/mean_length": 6.0, "kl": 0.01 * s}) + "\n"
        for s in steps
    ]  # fmt: skip
    (folder / report.METRICS).write_text("".join(lines))


def test_the_curve_is_a_png_and_needs_metrics(tmp_path):
    assert report.draw_curve(tmp_path) is None
    metrics(tmp_path, [1, 2, 3])
    path = report.draw_curve(tmp_path, blind=0.3)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_band_is_the_standard_error_of_the_mean():
    records = [{"step": 10, "reward_std": 0.4}, {"step": 20, "reward_std": 0.4}, {"step": 21, "reward_std": None}]
    values = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    assert report.rows_of_a_step(values, processes=1) == 16
    assert report.standard_errors(records, 16) == pytest.approx([0.4 / 160**0.5, 0.4 / 160**0.5, 0.0])
    assert report.standard_errors(records, report.rows_of_a_step({})) == [0.0] * 3


def test_the_running_mean_lies_over_its_own_points():
    assert report.running_mean([0.0, 0.0, 3.0, 0.0, 0.0], 3) == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert report.running_mean([1.0, 2.0], 1) == [1.0, 2.0]


def test_heldout_accuracy_is_drawn_before_along_and_after(tmp_path):
    figures = [{"value": v, "low": v - 0.1, "high": v + 0.1} for v in (0.2, 0.3, 0.5)]
    (tmp_path / report.BEFORE).write_text(json.dumps({"figures": {"accuracy": figures[0]}, "records": []}))
    (tmp_path / report.LOOKS).write_text(json.dumps({"step": 5, "accuracy": figures[1]}) + "\n")
    assert report.heldout_points(tmp_path, {}, 9) == [(0, figures[0]), (5, figures[1])]  # the run goes on
    summary = {"accuracy_before": figures[0], "accuracy_after": figures[2], "steps": 10}
    assert report.heldout_points(tmp_path, summary, 10) == [(0, figures[0]), (5, figures[1]), (10, figures[2])]


def test_a_title_shows_any_name_of_a_model(tmp_path):
    """No formula is read between dollars, and a character that no font has does not stop the drawing."""
    metrics(tmp_path, [1, 2])
    (tmp_path / report.SUMMARY).write_text(json.dumps({"model": "a$\\b{$ \ud800 \x1b[31m"}))
    assert report.draw_curve(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_a_line_cut_off_by_a_crash_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    assert report.read_jsonl(path) == [{"step": 1}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        report.read_jsonl(path)


def test_values_that_json_has_not_become_null():
    import torch

    assert callbacks.json_value(float("nan")) is None
    assert callbacks.json_value(torch.tensor(math.inf)) is None
    assert callbacks.json_value(torch.tensor(2.0)) == 2.0
    assert json.loads(callbacks.json_line({"a": 1, "b": "é"})) == {"a": 1, "b": "é"}


def test_an_earlier_runs_files_are_set_aside_and_kept(tmp_path):
    assert set_aside(tmp_path) is None
    for text in ("first", "second"):
        (tmp_path / report.SUMMARY).write_text(text)
        (tmp_path / report.EVAL).write_text(text)
        (tmp_path / "checkpoint-5").mkdir()
        set_aside(tmp_path)
    assert not (tmp_path / report.SUMMARY).exists()
    assert (tmp_path / "earlier-1" / report.SUMMARY).read_text() == "first"
    assert (tmp_path / "earlier-2" / report.SUMMARY).read_text() == "second"
    assert (tmp_path / "earlier-2" / report.EVAL).read_text() == "second"
    assert not (tmp_path / report.EVAL).exists()
    assert (tmp_path / "earlier-2" / "checkpoint-5").is_dir()


def test_the_table_shows_before_after_change_classes_and_the_blind_policy():
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    change = {"value": 0.1, "low": -0.02, "high": 0.22}
    summary = {
        "heldout_n": 200, "heldout_generations": 4, "blind": 0.333,
        "accuracy_before": figure, "accuracy_after": None, "greedy_before": figure, "greedy_after": figure,
        "pass_at_before": {"4": figure}, "pass_at_after": {"4": figure}, "by_kind_before": {"+": figure, "-": figure},
        "by_kind_after": None, "change": {"greedy": change},
        "verdict": {"text": "no change shown: +0.100 [-0.020, +0.220]"},
        "outcomes_before": {"ok": 0.75, "none": 0.25}, "mean_length_before": 12.3, "truncated_before": 0.125,
    }  # fmt: skip
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(report.table_before_after(summary))
    text = console.export_text()
    assert "0.500 [0.400, 0.600]" in text
    assert "+0.100 [-0.020, +0.220]" in text
    assert "pass@4" in text
    assert "sampled, +" in text
    assert "0.333" in text
    assert report.outcome_lines(summary) == [
        "Verdict: no change shown: +0.100 [-0.020, +0.220] (sampled; this interval holds however often one looks).",
        "Outcomes before: ok 0.75, none 0.25; 12 tokens on average, 0.12 cut off.",
    ]


def test_samples_show_hostile_text_as_it_is():
    """Markup, escapes and long lines in a completion neither break nor colour the table."""
    record = {"prompt": "[bold]P[/nope]", "correct": [1.0], "sampled_completion": "[red]\x1b[31m" + "x" * 5000}
    console = Console(width=200, record=True, file=io.StringIO())
    report.print_samples(console, [record], None)
    text = console.export_text()
    assert "[bold]P[/nope]" in text
    assert "\x1b" not in text
    assert len(text) < 2000
