"""A run resumes from the newest whole checkpoint, as the same training, and a finished one trains no step more."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run
from trainer_fixtures import train

from grpo_math import report
from grpo_math.errors import RecipeError
from grpo_math.recipe import dump, load_recipe
from grpo_math.run import checkpoints
from grpo_math.run.folder import check_nothing_is_overwritten, set_aside
from grpo_math.trainer import GRPOMathTrainer
from grpo_math.trainer.checkpoints import own_state

pytestmark = pytest.mark.usefixtures("no_local_data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a tiny run of four steps with checkpoints at 2 and 4, and the words that started it."""
    from conftest import SHORT

    folder = tmp_path_factory.mktemp("finished") / "out"
    words = [*SHORT, "--max_steps", "4", "--save_steps", "2"][2:]
    assert run(ROOT / "recipes" / "countdown_tiny.yaml", folder, *words) == 0
    return folder, words


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of that run, to damage and to resume."""
    folder, words = finished
    shutil.copytree(folder, tmp_path / "out")
    return tmp_path / "out", [*words, "--resume_from_checkpoint", "true"]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def flip_last_value(path):
    """One bit in the middle of an archive's data."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "no state": lambda f: (f / "trainer_state.json").unlink(),
    "empty state": lambda f: cut(f / "trainer_state.json", 0),
    "half a state": lambda f: cut(f / "trainer_state.json", 200),
    "a state that is a list": lambda f: (f / "trainer_state.json").write_text("[]"),
    "a state without its step": lambda f: (f / "trainer_state.json").write_text("{}"),
    "a state of nested lists": lambda f: (f / "trainer_state.json").write_text("[" * 100_000),
    "a state of zeros": lambda f: (f / "trainer_state.json").write_bytes(bytes(500)),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "empty weights": lambda f: cut(f / "model.safetensors", 0),
    "half the weights": lambda f: cut(f / "model.safetensors", 40_000),
    "weights without their last byte": lambda f: cut(f / "model.safetensors", -1),
    "weights of zeros": lambda f: (f / "model.safetensors").write_bytes(bytes(90_000)),
    "no optimizer": lambda f: (f / "optimizer.pt").unlink(),
    "half an optimizer": lambda f: cut(f / "optimizer.pt", 50_000),
    "an empty optimizer": lambda f: cut(f / "optimizer.pt", 0),
    "a bit of the optimizer": lambda f: flip_last_value(f / "optimizer.pt"),
    "no schedule": lambda f: (f / "scheduler.pt").unlink(),
    "half a schedule": lambda f: cut(f / "scheduler.pt", 300),
    "no random state": lambda f: (f / "rng_state.pth").unlink(),
    "half a random state": lambda f: cut(f / "rng_state.pth", 900),
    "half a configuration": lambda f: cut(f / "config.json", 100),
    "half the arguments": lambda f: cut(f / "training_args.bin", 500),
    "nothing": lambda f: [path.unlink() for path in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_named(finished, tmp_path, damage):
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(finished[0] / name, tmp_path / name)
    words = ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"]
    recipe = load_recipe(ROOT / "recipes" / "countdown_tiny.yaml", words)
    assert checkpoints.checkpoint_of(recipe) == str(tmp_path / "checkpoint-4")
    assert checkpoints.damage_of(tmp_path / "checkpoint-4") is None
    DAMAGE[damage](tmp_path / "checkpoint-4")
    reason = checkpoints.damage_of(tmp_path / "checkpoint-4")
    assert checkpoints.checkpoint_of(recipe) == str(tmp_path / "checkpoint-2")
    (note,) = (note for note in recipe.notes if note.startswith("Resumed from"))
    assert note == f"Resumed from checkpoint-2, the newest whole checkpoint. Not whole: checkpoint-4 ({reason})."


def test_an_adapter_in_a_folder_of_its_own_is_looked_at_too(finished, tmp_path):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(finished[0] / "checkpoint-4", folder)
    (folder / "ref").mkdir()
    (folder / "ref" / "adapter_model.safetensors").write_bytes(b"torn")
    assert checkpoints.damage_of(folder).startswith("ref/adapter_model.safetensors is torn")


@pytest.mark.parametrize("lost", ["generation_0.pt", "unlogged_0.pt", "trainer_state.json"])
def test_each_file_that_a_checkpoint_has_beside_trls_is_missed(tiny_recipe, tmp_path, lost):
    """The names stand in `trainer_state.json`, with the state of the options: none of it is lost without being noticed."""
    words = ["--max_steps", "2", "--save_steps", "2", "--logging_steps", "3", "--heldout_size", "0"]
    words += ["--kl_target", "0.02", "--beta", "0.1", "--steps_per_generation", "3"]
    assert run(tiny_recipe, tmp_path, *words) == 0
    folder = tmp_path / "checkpoint-2"
    assert checkpoints.damage_of(folder) is None
    (folder / lost).unlink()
    assert checkpoints.damage_of(folder) == f"{lost} is missing"


def test_a_checkpoint_of_trls_own_trainer_is_whole(tmp_path):
    train(False, tmp_path, max_steps=2, save_strategy="steps", save_steps=2, logging_steps=3)
    assert own_state(tmp_path / "checkpoint-2") == {}
    assert checkpoints.damage_of(tmp_path / "checkpoint-2") is None


@pytest.mark.parametrize(
    "option", [["--kl_target", "0.02", "--beta", "0.1"], ["--dynamic_sampling", "1"], ["--steps_per_generation", "3"]]
)
def test_checkpoints_stay_whole_when_an_option_is_switched_on_and_the_run_killed_before_it_saves(
    copy, tiny_recipe, option
):
    """The folder's recipe has the option then, the checkpoints are of a run without it."""
    folder, words = copy
    recipe = load_recipe(tiny_recipe, ["--output_dir", str(folder), *words, *option])
    (folder / "recipe.yaml").write_text(dump(recipe.values, "What a run ran with"))
    assert checkpoints.checkpoint_of(recipe) == str(folder / "checkpoint-4")


def test_each_process_has_a_random_state_unless_one_process_saved_for_all(finished, tmp_path):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(finished[0] / "checkpoint-4", folder)
    assert checkpoints.damage_of(folder, world_size=2) is None
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert checkpoints.damage_of(folder, world_size=2) == "rng_state_1.pth is missing"
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert checkpoints.damage_of(folder, world_size=2) is None
    assert checkpoints.damage_of(folder, world_size=1) is None


def test_the_newest_whole_checkpoint_is_used_and_the_torn_one_named(copy, finished, tiny_recipe, capsys):
    from safetensors.torch import load_file

    folder, words = copy
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    assert run(tiny_recipe, folder, *words) == 0
    note = "Resumed from checkpoint-2, the newest whole checkpoint. Not whole: checkpoint-4 (optimizer.pt is missing)."
    assert note in capsys.readouterr().out
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, finished[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert checkpoints.damage_of(folder / "checkpoint-4") is None


def test_no_whole_checkpoint_is_one_line(copy, tiny_recipe, capsys):
    folder, words = copy
    for step in (2, 4):
        cut(folder / f"checkpoint-{step}" / "model.safetensors", 1000)
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(tiny_recipe, folder, *words) == 2
    error = capsys.readouterr().err
    assert "holds no checkpoint that is whole: checkpoint-4 (model.safetensors is torn" in error
    assert error.count("\n") == 1
    assert run(tiny_recipe, folder, *words[:-1], str(folder / "checkpoint-2")) == 2
    assert "checkpoint-2 is not whole: model.safetensors is torn" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == left


def test_a_finished_run_trains_no_step_more(copy, tiny_recipe, capsys):
    folder, words = copy
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(tiny_recipe, folder, *words) == 0
    assert "is finished at 4 of 4 steps: nothing is trained. To train on, raise --max_steps." in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == left


@pytest.mark.parametrize("lost", ["model.safetensors", "summary.json", "heldout_after.json", "heldout_before.json"])
def test_what_a_finished_run_lacks_is_made_again(copy, finished, tiny_recipe, lost):
    folder, words = copy
    cut(folder / lost, 100)
    if lost == "heldout_before.json":  # of no use alone: it is made again beside the summary
        (folder / "summary.json").unlink()
    assert run(tiny_recipe, folder, *words) == 0
    for name in (
        "model.safetensors",
        "heldout_before.json",
        "heldout_after.json",
        "metrics.jsonl",
        "completions.jsonl",
    ):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, finished[0])]
    assert [s["accuracy_after"] for s in summaries] == [summaries[1]["accuracy_after"]] * 2
    assert summaries[0]["steps"] == 4


def test_a_finished_run_goes_on_when_it_is_given_more_steps(copy, tiny_recipe, capsys):
    folder, words = copy
    assert run(tiny_recipe, folder, *words, "--max_steps", "5") == 2  # given twice on the command line
    words[words.index("--max_steps") + 1] = "5"
    assert run(tiny_recipe, folder, *words) == 0
    assert "other settings than the run was started with: max_steps: 4 -> 5." in capsys.readouterr().out
    assert [m["step"] for m in report.read_jsonl(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_learning_rate_given_at_a_resume_is_said_to_have_no_effect(copy, tiny_recipe, capsys):
    """Nor has another weight decay; another schedule has, from the second step on."""
    folder, words = copy
    shutil.rmtree(folder / "checkpoint-4")
    words += ["--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "10"]
    assert run(tiny_recipe, folder, *words, "--learning_rate", "1e-4", "--weight_decay", "0.5") == 0
    printed = capsys.readouterr().out
    assert "optimizer and schedule: learning_rate: 0.0007, not 0.0001; weight_decay: 0.0, not 0.5. For other" in printed
    assert "lr_scheduler_type: linear -> constant_with_warmup, warmup_steps: 0 -> 10." in printed
    rates = [m["learning_rate"] for m in report.read_jsonl(folder / "metrics.jsonl")]
    assert rates == pytest.approx([7e-4, 7e-4 * 3 / 4, 7e-4 / 2, 7e-4 * 3 / 10])
    group = torch.load(folder / "checkpoint-4" / "optimizer.pt")["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (7e-4, 0.0)
    assert load_recipe(folder / "recipe.yaml").training.learning_rate == 7e-4


def test_a_generation_batch_is_left_where_the_resumed_run_divides_it_otherwise(tiny_recipe, tmp_path):
    """Of three micro-batches, two are used; a run with four to a generation makes its own."""
    words = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--heldout_size", "0"]
    assert run(tiny_recipe, tmp_path, *words, "--steps_per_generation", "3") == 0
    shutil.rmtree(tmp_path / "checkpoint-4")
    words += ["--steps_per_generation", "4", "--resume_from_checkpoint", "true"]
    assert run(tiny_recipe, tmp_path, *words) == 0
    assert [m["step"] for m in report.read_jsonl(tmp_path / "metrics.jsonl")] == [1, 3]  # those of generations


def test_early_stopping_can_be_switched_on_at_a_resume(copy, tiny_recipe):
    """A callback of which the checkpoint has no state."""
    folder, words = copy
    shutil.rmtree(folder / "checkpoint-4")
    words += ["--eval_steps", "1", "--early_stopping_patience", "3", "--load_best_model_at_end", "true"]
    words[words.index("--save_steps") + 1] = "1"
    assert run(tiny_recipe, folder, *words) == 0
    assert [look["step"] for look in report.read_jsonl(folder / report.LOOKS)] == [3, 4]


def test_saves_and_logs_are_as_often_as_the_resume_says(copy, tiny_recipe):
    """TRL goes on with those of the checkpoint."""
    folder, words = copy
    shutil.rmtree(folder / "checkpoint-4")
    words[words.index("--save_steps") + 1] = "1"
    words[words.index("--logging_steps") + 1] = "2"
    assert run(tiny_recipe, folder, *words) == 0
    assert (folder / "checkpoint-3").is_dir()
    assert [m["step"] for m in report.read_jsonl(folder / "metrics.jsonl")] == [1, 2, 4]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--optim", "sgd"], "optim: sgd, but the run in"),
        (["--use_peft", "true"], "use_peft: True, but the run in"),
        (["--model_name_or_path", "elsewhere"], "was trained with model_name_or_path: builtin/countdown-tiny"),
    ],
)
def test_another_model_adapter_or_optimizer_is_refused(copy, tiny_recipe, capsys, change, says):
    folder, words = copy
    assert run(tiny_recipe, folder, *words, *change) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("grpo-math: error: command line: ")
    assert error.count("\n") == 1


def test_a_default_that_is_made_at_each_start_is_told_as_a_value(tiny_recipe):
    recipe = load_recipe(tiny_recipe, ["--countdown_operands", "[2]"])
    stored = {name: value for name, value in recipe.values.items() if name != "countdown_operands"}
    checkpoints.check_same_training(recipe, stored)
    assert recipe.notes[-1].endswith("than the run was started with: countdown_operands: [3, 4] -> [2].")


def test_a_recipe_that_cannot_be_read_is_no_hindrance(copy, tiny_recipe):
    folder, words = copy
    (folder / "recipe.yaml").write_text("{")
    words[words.index("--max_steps") + 1] = "5"
    assert run(tiny_recipe, folder, *words) == 0


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_folder_is_resumed_without_mixing_the_two_runs(copy, finished, tiny_recipe, capsys):
    folder, words = copy
    words[words.index("--max_steps") + 1] = "5"
    left, elsewhere = files(folder), files(finished[0])
    assert run(tiny_recipe, folder, *words[:-1], str(finished[0] / "checkpoint-4")) == 0
    assert f"An earlier run's files are now in {folder / 'earlier-1'}" in capsys.readouterr().out
    assert files(folder / "earlier-1") == left
    assert files(finished[0]) == elsewhere
    assert [m["step"] for m in report.read_jsonl(folder / "metrics.jsonl")] == [5]
    assert json.loads((folder / "summary.json").read_text())["resumed_at"] == 4


def test_a_resume_from_another_folder_replaces_no_file_of_the_users(finished, tiny_recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("max_steps: 5\n")
    for checkpoint in (str(finished[0] / "checkpoint-4"), "false"):
        assert run(tiny_recipe, tmp_path, *finished[1], "--resume_from_checkpoint", checkpoint) == 2
        assert "holds recipe.yaml, which no run wrote" in capsys.readouterr().err
    assert files(tmp_path) == {"recipe.yaml": b"max_steps: 5\n"}


def test_a_branch_that_was_left_is_not_resumed_from(copy, tiny_recipe, monkeypatch, capsys):
    """Back to step 2, killed before the next checkpoint: the old checkpoint of step 4 belongs to no run that goes on."""
    folder, words = copy
    old = files(folder / "checkpoint-4")
    step = GRPOMathTrainer.training_step

    def killed_in_the_fourth_step(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GRPOMathTrainer, "training_step", killed_in_the_fourth_step)
    assert run(tiny_recipe, folder, *words[:-1], str(folder / "checkpoint-2")) == 130
    assert f"The checkpoints after step 2, where this run goes on, are now in {folder / 'earlier-1'}." in (
        capsys.readouterr().out
    )
    assert files(folder / "earlier-1" / "checkpoint-4") == old
    monkeypatch.undo()
    assert run(tiny_recipe, folder, *words) == 0
    assert json.loads((folder / "summary.json").read_text())["resumed_at"] == 2


def test_a_kill_while_files_are_set_aside_leaves_no_checkpoint_without_its_recipe(finished, tmp_path, monkeypatch):
    """After each of the renames: no other training takes the checkpoints for its own, and a new start moves the rest."""
    rename, original, moves, killed = Path.rename, files(finished[0]), 0, True
    while killed:
        folder, killed, left = tmp_path / str(moves), False, moves
        shutil.copytree(finished[0], folder)

        def killed_after_some(path, target):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", killed_after_some)
        try:
            set_aside(folder)
        except KeyboardInterrupt:
            killed = True
        monkeypatch.undo()

        words = ["--output_dir", str(folder), "--optim", "sgd"]
        recipe = load_recipe(ROOT / "recipes" / "countdown_tiny.yaml", [*words, "--resume_from_checkpoint", "true"])
        with pytest.raises(RecipeError, match=r"was trained with optim|holds no checkpoint"):
            checkpoints.checkpoint_of(recipe)
        check_nothing_is_overwritten(load_recipe(ROOT / "recipes" / "countdown_tiny.yaml", words))
        set_aside(folder)
        aside = sorted(folder.iterdir())
        assert {path.name for path in aside} <= {"earlier-1", "earlier-2"}
        assert {name: data for path in aside for name, data in files(path).items()} == original
        shutil.rmtree(folder)
        moves += 1
    assert moves > 10


def test_a_start_that_cannot_set_the_earlier_run_aside_calls_nothing_of_that_run_its_own(
    copy, tiny_recipe, monkeypatch, capsys
):
    folder, words = copy
    left = files(folder)

    def full_disk(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr("grpo_math.run.train.set_aside", full_disk)
    assert run(tiny_recipe, folder, *words[:-2]) == 1
    assert "No step is saved: start again" in capsys.readouterr().err.splitlines()[-1]
    assert files(folder) == left
