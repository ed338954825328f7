"""Out of memory in a run: the phase is named, a checkpoint is kept, and the printed commands go on from it."""

import json
import shlex

import pytest
import torch
from conftest import run

from grpo_math import cli, report
from grpo_math.recipe import load_recipe
from grpo_math.run import heldout
from grpo_math.trainer import GRPOMathTrainer

pytestmark = pytest.mark.usefixtures("no_local_data")


def fail_at(monkeypatch, name, step):
    """Makes the trainer's method `name` run out of memory once `step` steps are done."""
    method = getattr(GRPOMathTrainer, name)

    def failing(self, *args, **kwargs):
        if self.state.global_step == step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB.\nGPU 0 has ...")
        return method(self, *args, **kwargs)

    failing.__name__ = failing.__qualname__ = name
    failing.__code__ = failing.__code__.replace(co_name=name)
    monkeypatch.setattr(GRPOMathTrainer, name, failing)


def memory_command(printed):
    """The `grpo-math memory` command among what was printed, as its parser reads it, with its recipe loaded."""
    (line,) = [line for line in printed.splitlines() if line.strip().startswith("grpo-math memory ")]
    args, overrides = cli.build_parser()[0].parse_known_args(shlex.split(line)[1:])
    return args, load_recipe(args.recipe, overrides)


@pytest.mark.parametrize(("name", "phase"), [("training_step", "training"), ("_generate_single_turn", "generation")])
def test_a_checkpoint_is_left_and_the_commands_go_on(tiny_recipe, tmp_path, capsys, monkeypatch, name, phase):
    with monkeypatch.context() as patched:
        fail_at(patched, name, 3)
        code = run(tiny_recipe, tmp_path, "--max_steps", "6", "--heldout_size", "0")
    assert code == 1
    printed = capsys.readouterr().err
    assert f"Out of memory in the phase {phase}" in printed
    assert "Tried to allocate 1.16 GiB" in printed
    assert str(tmp_path / "checkpoint-3") in printed
    assert f"accelerate launch {tmp_path / 'recipe.yaml'} --resume_from_checkpoint true [--field value ...]" in printed
    assert "other optim, use_peft or load_in_4bit: start afresh" in printed
    args, recipe = memory_command(printed)
    assert args.recipe == str(tmp_path / "recipe.yaml")
    assert args.prompt_length > 1
    assert recipe.training.max_steps == 6
    # The run goes on from there
    resumed = ["--max_steps", "6", "--heldout_size", "0", "--resume_from_checkpoint", "true"]
    assert run(tiny_recipe, tmp_path, *resumed) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["resumed_at"] == 3


@pytest.mark.parametrize("spread", [1, 2], ids=["one step a generation", "two steps a generation"])
def test_what_is_saved_in_the_middle_of_a_step_goes_on_like_a_run_left_alone(
    tiny_recipe, tmp_path, monkeypatch, spread
):
    """Four micro-batches a step; memory ends in the second step, for which a generation is made or still in use."""
    from safetensors.torch import load_file

    words = [
        "--heldout_size", "0", "--num_generations", "4", "--per_device_train_batch_size", "4", "--max_steps", "3",
        "--gradient_accumulation_steps", "4", "--steps_per_generation", str(4 * spread), "--logging_steps", "3",
    ]  # fmt: skip
    assert run(tiny_recipe, tmp_path / "whole", *words) == 0
    method = GRPOMathTrainer.training_step

    def failing(self, *args, **kwargs):
        if self._step == 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return method(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(GRPOMathTrainer, "training_step", failing)
        assert run(tiny_recipe, tmp_path / "out", *words) == 1
    kept = tmp_path / "out" / "checkpoint-1" / "generation_0.pt"
    assert kept.exists() == (spread == 2)
    assert run(tiny_recipe, tmp_path / "out", *words, "--resume_from_checkpoint", "true") == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["resumed_at"] == 1
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys()
    if spread == 2:  # else what is generated anew follows from random numbers that the broken-off step has used
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        logged = [report.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("out", "whole")]
        ours, theirs = (
            [{k: v for k, v in m.items() if "time" not in k and "memory" not in k} for m in lines] for lines in logged
        )
        assert ours == theirs  # the first step, too, was not logged when it was saved


def test_right_after_a_resume_the_checkpoint_is_named(tiny_recipe, tmp_path, capsys, monkeypatch):
    words = ["--max_steps", "2", "--save_steps", "1", "--heldout_size", "2", "--learning_rate", "1e-4"]
    assert run(tiny_recipe, tmp_path, *words) == 0
    (tmp_path / "checkpoint-2").rename(tmp_path / "gone")

    def measure(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(heldout, "measure", measure)
    (tmp_path / "heldout_before.json").unlink()
    assert run(tiny_recipe, tmp_path, *words, "--resume_from_checkpoint", "true") == 1
    printed = capsys.readouterr().err
    assert "in the phase held-out" in printed
    assert f"{tmp_path / 'checkpoint-1'} still holds the run" in printed
    assert f"accelerate launch {tiny_recipe} " in printed
    assert printed.count("--resume_from_checkpoint true") == 1
    args, recipe = memory_command(printed)
    assert args.recipe == str(tiny_recipe)
    assert recipe.training.learning_rate == 1e-4
    assert not recipe.training.resume_from_checkpoint


def test_before_the_first_step_there_is_nothing_to_save(tiny_recipe, tmp_path, capsys, monkeypatch):
    fail_at(monkeypatch, "training_step", 0)
    assert run(tiny_recipe, tmp_path, "--max_steps", "2", "--heldout_size", "0") == 1
    printed = capsys.readouterr().err
    assert "there is nothing to save" in printed
    assert "accelerate launch" not in printed
    assert memory_command(printed)[1].training.max_steps == 2
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_step_that_fails_right_after_a_resume_saves_nothing(tiny_recipe, tmp_path, capsys, monkeypatch):
    words = ["--max_steps", "4", "--heldout_size", "0"]
    with monkeypatch.context() as patched:
        fail_at(patched, "training_step", 2)
        assert run(tiny_recipe, tmp_path / "first", *words) == 1
        capsys.readouterr()
        checkpoint = tmp_path / "first" / "checkpoint-2"
        assert run(tiny_recipe, tmp_path / "second", *words, "--resume_from_checkpoint", str(checkpoint)) == 1
    printed = capsys.readouterr().err
    assert f"No step was finished since the resume: {checkpoint} still holds the run." in printed
    assert f"--resume_from_checkpoint {checkpoint}" in printed
    assert not (tmp_path / "second" / "checkpoint-2").exists()


def test_a_finished_run_whose_results_are_made_elsewhere_saves_no_checkpoint(
    tiny_recipe, tmp_path, capsys, monkeypatch
):
    """Nothing is trained there, and its trainer has no optimizer that a checkpoint could hold."""
    words = ["--max_steps", "2", "--save_steps", "2", "--heldout_size", "2", "--heldout_generations", "1"]
    assert run(tiny_recipe, tmp_path / "first", *words) == 0
    capsys.readouterr()
    checkpoint, measure = tmp_path / "first" / "checkpoint-2", heldout.measure

    def measure_before(*args, **kwargs):
        if (tmp_path / "second" / "recipe.yaml").exists():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return measure(*args, **kwargs)

    monkeypatch.setattr(heldout, "measure", measure_before)
    assert run(tiny_recipe, tmp_path / "second", *words, "--resume_from_checkpoint", str(checkpoint)) == 1
    assert f"No step was finished since the resume: {checkpoint} still holds the run." in capsys.readouterr().err
    assert not list((tmp_path / "second").glob("checkpoint-*"))
