"""Forty states that a folder may be in: a run starts and loses nothing of the user's, or one line says what to change."""

import os
import shutil

import pytest
from conftest import ROOT, run

from grpo_math import cli
from grpo_math.errors import RecipeError
from grpo_math.recipe import dump, load_recipe
from grpo_math.run import along
from grpo_math.run import folder as run_folder
from grpo_math.run.checkpoints import checkpoint_of

pytestmark = pytest.mark.usefixtures("no_local_data")
RECIPE = ROOT / "recipes" / "countdown_tiny.yaml"
CARD = "---\nlibrary_name: transformers\ntags:\n- grpo\n- trl\n---\n# out\n"
RUNS = dump({"max_steps": 1}, "What a run ran with")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# Files of the user's that are in the folder when a run starts. They stay as they are.
USERS = {
    "a README": {"README.md": "# My project\n"},
    "a README with metadata of its own": {"README.md": "---\ntitle: mine\n---\n# My project\n"},
    "an empty README": {"README.md": ""},
    "text files": {"notes.txt": "mine", "requirements.txt": "torch", "LICENSE.txt": ""},
    "tokens": {"token": "secret", "token.json": "{}", "tokens.csv": "a", "tokenizer_notes.md": "mine"},
    "configurations": {"myconfig.json": "{}", "pyproject.toml": "", "app_config.json": "{}"},
    "adapters of others": {"adapter_notes": "mine", "adapter_v2.safetensors": "mine"},
    "weights under other names": {"best.safetensors": "mine", "model-final.safetensors": "mine"},
    "templates": {"page.jinja": "mine"},
    "folders that look like checkpoints": {
        "checkpoint-best/x": "mine",
        "checkpoint-1a/x": "mine",
        "checkpoint-/x": "mine",
    },
    "a file that looks like a checkpoint": {"checkpoint-7": "mine"},
    "folders that look like earlier runs": {"earlier-backup/x": "mine", "earlier-/x": "mine", "earlier-1b/x": "mine"},
    "a file that looks like an earlier run": {"earlier-1": "mine"},
    "hidden files": {".env": "mine", ".git/HEAD": "mine", ".recipe.yaml": "mine"},
    "source code": {"train.py": "mine", "rewards/own.py": "mine"},
    "recipes under other names": {"my.yaml": "mine", "recipe.yml": "mine"},
    "temporary files of a run that was killed": {".notes.tmp": "mine"},
}


@pytest.mark.parametrize("state", USERS)
@pytest.mark.parametrize("with_run", [False, True], ids=["alone", "beside a run"])
def test_the_users_files_stay_where_they_are(tmp_path, state, with_run):
    fill(tmp_path, USERS[state])
    if with_run:
        fill(tmp_path, {"recipe.yaml": RUNS, "metrics.jsonl": "", "model.safetensors": "w", "checkpoint-3/x": "w"})
    before = contents(tmp_path)
    run_folder.check_nothing_is_overwritten(load_recipe(RECIPE, ["--output_dir", str(tmp_path)]))
    aside = run_folder.set_aside(tmp_path)
    left = contents(tmp_path)
    assert {name: left[name] for name in USERS[state]} == {name: text.encode() for name, text in USERS[state].items()}
    assert (aside is not None) == with_run
    if with_run:
        assert contents(aside) == {name: data for name, data in before.items() if name not in USERS[state]}
        assert not (tmp_path / "recipe.yaml").exists()


def test_a_whole_run_beside_a_readme_and_a_folder_named_earlier_backup(tmp_path):
    users = {"README.md": "# My project\n", "notes.txt": "mine", "token": "secret", "earlier-backup/x": "mine"}
    fill(tmp_path, users)
    words = ["--max_steps", "1", "--heldout_size", "0", "--logging_steps", "1"]
    for _ in range(2):
        assert run(RECIPE, tmp_path, *words) == 0
    left = contents(tmp_path)
    assert {name: left[name].decode() for name in users} == users
    assert (tmp_path / "earlier-1" / "model.safetensors").exists()
    assert not (tmp_path / "earlier-1" / "README.md").exists()


# States in which no run may start -> what is said
REFUSED = {
    "a recipe.yaml of the user's": ({"recipe.yaml": "max_steps: 5\n"}, "holds recipe.yaml, which no run wrote"),
    "an empty recipe.yaml": ({"recipe.yaml": ""}, "holds recipe.yaml, which no run wrote"),
    "a recipe.yaml of the user's beside a run": (
        {"recipe.yaml": "max_steps: 5\n", "metrics.jsonl": ""}, "holds recipe.yaml, which no run wrote"),
    "a model that no run wrote": ({"config.json": "{}", "model.safetensors": "w"}, "holds config.json, which no run wrote"),
    "an adapter that no run wrote": ({"adapter_config.json": "{}"}, "holds adapter_config.json, which no run wrote"),
    "a shard that no run wrote": ({"model-00001-of-00002.safetensors": "w"}, "holds model-00001-of-00002.safetensors"),
    "a tokenizer that no run wrote": ({"tokenizer.json": "{}"}, "holds tokenizer.json, which no run wrote"),
    "a summary.json of another program": ({"summary.json": "{}"}, "holds summary.json, which no run wrote"),
}  # fmt: skip


@pytest.mark.parametrize("state", REFUSED)
def test_a_folder_whose_files_would_be_replaced_is_refused(tmp_path, capsys, state):
    files, says = REFUSED[state]
    fill(tmp_path, files)
    before = contents(tmp_path)
    assert run(RECIPE, tmp_path) == 2
    error = capsys.readouterr().err
    assert f"output_dir: {tmp_path} {says}" in error
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_the_folder_of_the_model_is_refused(tmp_path, capsys):
    from grpo_math.tiny_model import tiny_model_folder

    shutil.copytree(tiny_model_folder(), tmp_path / "model")
    before = contents(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "model")
    for folder in (tmp_path / "model", link, tmp_path / "model" / ".." / "model"):
        assert run(RECIPE, folder, "--model_name_or_path", str(tmp_path / "model")) == 2
        assert "is the folder of the model that is trained" in capsys.readouterr().err.splitlines()[-1]
    assert contents(tmp_path / "model") == {name.removeprefix("model/"): data for name, data in before.items()}


def test_a_file_and_a_dangling_link_are_no_folders(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "file/out", "link", "link/out"):
        assert run(RECIPE, tmp_path / name) == 2
        assert f"output_dir: {tmp_path / name}" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


# Checkpoint folders of a folder that is resumed -> which is taken
@pytest.mark.parametrize(
    "names",
    [[], ["checkpoint-best"], ["checkpoint-"], ["checkpoint-3a"], ["xcheckpoint-3"], ["earlier-1/checkpoint-3"]],
    ids=str,
)
def test_what_is_no_checkpoint_is_not_resumed_from(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    recipe = load_recipe(RECIPE, ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"])
    with pytest.raises(RecipeError, match="holds no checkpoint; leave it out to start afresh"):
        checkpoint_of(recipe)


@pytest.mark.parametrize("name", ["[/x] [1] [bold]", "-x::b * #c", "$HOME %s {x} \\b ü 'a' \"b\""])
def test_a_folder_of_any_name_is_trained_in_reported_and_resumed(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    words = [f"--output_dir={name}", "--heldout_size", "2", "--logging_steps", "1", "--disable_tqdm", "true"]
    assert cli.main(["train", str(RECIPE), *words, "--max_steps", "1"]) == 0
    assert cli.main(["train", str(RECIPE), *words, "--max_steps", "2", "--resume_from_checkpoint", "true"]) == 0
    assert cli.main(["report", os.path.join(".", name)]) == 0
    assert f"Model, metrics and completions: {name}" in capsys.readouterr().out
    assert (tmp_path / name / "summary.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name.split("/")[0]]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_training_that_deletes_its_old_checkpoints_leaves_folders_with_like_names(tmp_path, monkeypatch, limit):
    """Checkpoints at steps 1, 2 and 3; with the lower limit that of step 1 is the best one, which is kept."""
    users = {f"checkpoint-{name}/mine.txt": "mine" for name in ("best", "0-mine", "1a", "")}
    fill(tmp_path, users)
    for path in tmp_path.iterdir():
        os.utime(path, (1e9, 1e9))
    words = ["--max_steps", "3", "--save_steps", "1", "--save_total_limit", str(limit), "--heldout_size", "4"]
    if limit == 1:
        accuracies = iter([0.9, 0.1, 0.2])
        monkeypatch.setattr(
            along.LooksAlong, "_metrics", staticmethod(lambda *args: {"eval_accuracy": next(accuracies)})
        )
        words += ["--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end", "true"]
        words += ["--metric_for_best_model", "accuracy", "--heldout_generations", "2"]
    assert run(RECIPE, tmp_path, *words) == 0
    left = contents(tmp_path)
    assert {name: left.get(name) for name in users} == dict.fromkeys(users, b"mine")
    found = {path.name for path in tmp_path.glob("checkpoint-*")} - {name.split("/")[0] for name in users}
    assert found == ({"checkpoint-1"} if limit == 1 else {"checkpoint-2", "checkpoint-3"})
