"""One run a folder, and a full disk or a signal: one line with what is safe, and the exit code."""

import errno
import os
import signal

import pytest
from conftest import run

from grpo_math import files
from grpo_math.errors import RecipeError
from grpo_math.recipe import load_recipe
from grpo_math.run import callbacks, lock
from grpo_math.run import train as train_module
from grpo_math.trainer import GRPOMathTrainer

pytestmark = pytest.mark.usefixtures("no_local_data")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_in_the_folder_is_refused_and_touches_nothing(tiny_recipe, tmp_path, short, capsys):
    assert run(tiny_recipe, tmp_path / "out", *short) == 0
    recipe = load_recipe(tiny_recipe, ["--output_dir", str(tmp_path / "out")])
    with lock.only_run_in(recipe):
        left = contents(tmp_path)
        assert run(tiny_recipe, tmp_path / "out", *short) == 2
        assert contents(tmp_path) == left
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"output_dir: {tmp_path / 'out'} is in use by another run (process {os.getpid()} on " in error
    assert run(tiny_recipe, tmp_path / "out", *short) == 0
    assert not (tmp_path / "out" / lock.LOCK).exists()


def test_the_lock_leaves_no_folder_and_no_file(tiny_recipe, tmp_path):
    recipe = load_recipe(tiny_recipe, ["--output_dir", str(tmp_path / "a" / "b")])
    with lock.only_run_in(recipe):
        assert (tmp_path / "a" / "b" / lock.LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_a_killed_run_left_is_no_hindrance(tiny_recipe, tmp_path):
    (tmp_path / lock.LOCK).write_text("process 1 on elsewhere, which was killed a long time ago")
    with lock.only_run_in(load_recipe(tiny_recipe, ["--output_dir", str(tmp_path)])):
        assert (tmp_path / lock.LOCK).read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("gone", ["folder", "file"])
def test_a_run_that_ends_while_another_starts_is_no_hindrance(tiny_recipe, tmp_path, monkeypatch, gone):
    """Its end removes the lock file, and the folder where that is empty, between two calls of the start."""
    path = tmp_path / "out" / lock.LOCK
    calls = []

    def just_after_a_removal(function):
        def call(*args, **kwargs):
            if not calls:
                path.unlink(missing_ok=True)
                if gone == "folder":
                    path.parent.rmdir()
            calls.append(args)
            return function(*args, **kwargs)

        return call

    if gone == "folder":
        monkeypatch.setattr(lock, "open", just_after_a_removal(open), raising=False)
    else:
        monkeypatch.setattr(lock.os, "fstat", just_after_a_removal(os.fstat))
    with lock.only_run_in(load_recipe(tiny_recipe, ["--output_dir", str(tmp_path / "out")])):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(RecipeError, match="is in use by another run"):
            lock._locked_file(load_recipe(tiny_recipe, ["--output_dir", str(tmp_path / "out")]), path)


def test_a_file_system_without_locks_is_said(tiny_recipe, tmp_path, monkeypatch, capsys):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with lock.only_run_in(load_recipe(tiny_recipe, ["--output_dir", str(tmp_path)])):
        pass
    assert "file system without locks (No locks available): start no second run in it." in capsys.readouterr().out


def full_disk(name):
    raise OSError(errno.ENOSPC, "No space left on device", str(name))


@pytest.mark.parametrize("failing", ["metrics", "checkpoint", "summary"])
def test_a_full_disk_is_one_line_with_what_is_safe(tiny_recipe, tmp_path, monkeypatch, capsys, failing):
    folder = tmp_path / "out"
    words = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--heldout_size", "0"]
    if failing == "metrics":
        on_log = callbacks.RunRecorder.on_log

        def log(self, args, state, control, **kwargs):
            return full_disk(folder) if state.global_step == 3 else on_log(self, args, state, control, **kwargs)

        monkeypatch.setattr(callbacks.RunRecorder, "on_log", log)
    elif failing == "checkpoint":
        save = GRPOMathTrainer._save_rng_state

        def save_rng_state(self, output_dir):
            if self.state.global_step == 4:
                raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")
            return save(self, output_dir)

        monkeypatch.setattr(GRPOMathTrainer, "_save_rng_state", save_rng_state)
    else:
        monkeypatch.setattr(
            train_module, "write_whole",
            lambda path, text: full_disk(path) if path.name == "summary.json" else files.write_whole(path, text),
        )  # fmt: skip
    assert run(tiny_recipe, folder, *words) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"grpo-math: error: output_dir: {folder}: ")
    safe = folder / ("checkpoint-4" if failing == "summary" else "checkpoint-2")
    assert f"Safe: {safe}. Then go on with: grpo-math train {folder / 'recipe.yaml'} --resume" in error
    monkeypatch.undo()
    assert run(tiny_recipe, folder, *words, "--resume_from_checkpoint", "true") == 0


def test_an_error_that_is_not_the_disks_is_not_hidden(tiny_recipe, tmp_path, short, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(train_module, "measured_before", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(tiny_recipe, tmp_path / "out", *short)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def heard():
    """SIGHUP is not ignored, as it would be where the tests themselves run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_measuring_ends_with_a_word_and_the_exit_code(
    tiny_recipe, tmp_path, short, monkeypatch, capsys, number
):
    handler = signal.getsignal(number)
    monkeypatch.setattr(train_module, "measured_before", lambda *args: os.kill(os.getpid(), number))
    assert run(tiny_recipe, tmp_path / "out", *short) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped."
    assert signal.getsignal(number) == handler
    assert not (tmp_path / "out").exists()


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with callbacks.signals_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
            assert callbacks.ending_signals() == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_training_ends_it_with_a_checkpoint(tiny_recipe, tmp_path, monkeypatch, number):
    step = GRPOMathTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GRPOMathTrainer, "training_step", training_step)
    assert run(tiny_recipe, tmp_path / "out", "--max_steps", "5", "--heldout_size", "0") == 130
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").exists()
