"""What a run shows: a line per update in a log file, few completions, and no folder that holds nothing."""

import sys

import pytest
from conftest import SHORT, run
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_math import cli
from grpo_math.run.checks import no_folder_left
from grpo_math.run.progress import LogLines, ShortProgress, progress_callback

pytestmark = pytest.mark.usefixtures("no_local_data")


def test_a_log_file_gets_a_line_per_update_and_a_terminal_a_bar(monkeypatch, capsys, tmp_path):
    assert isinstance(progress_callback(), LogLines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress_callback(), ShortProgress)
    args, control = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), TrainerControl()
    state = TrainerState(global_step=10, max_steps=1500, is_world_process_zero=True)
    lines = LogLines()
    lines.on_train_begin(args, state, control)
    for logs in ({"reward": 0.25, "completions/mean_length": 5.9, "loss": 0.1}, {"loss": 0.5}, {"train_runtime": 3.0}):
        lines.on_log(args, state, control, logs=logs)
    state.is_world_process_zero = False
    lines.on_log(args, state, control, logs={"reward": 1.0})
    printed = capsys.readouterr().out.splitlines()
    assert [line.rsplit("  ", 1)[0] for line in printed] == [
        "step 10/1500  reward 0.250  length 6",
        "step 10/1500  loss 0.500",
    ]


def test_log_completions_does_not_flood_the_terminal(tiny_recipe, tmp_path, capsys):
    assert run(tiny_recipe, tmp_path, *SHORT[:4], "--heldout_size", "0", "--log_completions", "true") == 0
    printed = capsys.readouterr().out
    assert printed.count("Step 1") == 1
    assert len(printed.splitlines()) < 60  # of 128 completions a step
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) >= 32


def test_measuring_alone_leaves_no_folder(tiny_recipe, tmp_path):
    folder = tmp_path / "a" / "b"
    assert cli.main(["eval", str(tiny_recipe), "--heldout_size", "2", "--output_dir", str(folder)]) == 0
    assert not (tmp_path / "a").exists()


def test_an_empty_folder_goes_and_one_with_files_stays(tmp_path):
    def interrupted():
        with no_folder_left(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "a").exists()
    with no_folder_left(tmp_path / "a"):
        (tmp_path / "a").mkdir()
    assert (tmp_path / "a").exists()
    with no_folder_left(tmp_path / "c", only_after_errors=False):
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "file").touch()
    assert (tmp_path / "c" / "file").exists()
