"""Held-out accuracy along the run: looks on a fixed subset, at a bounded cost; the best checkpoint is chosen by it."""

import json
import shutil
from types import SimpleNamespace

import pytest
from conftest import run
from transformers import TrainerControl, TrainerState

from grpo_math import report
from grpo_math.evaluation import summarise
from grpo_math.run.along import LooksAlong, subset_of

pytestmark = pytest.mark.usefixtures("no_local_data")


def record(correct):
    return {
        "kind": "all", "correct": correct, "strict": correct, "lenient": correct, "greedy": correct[0], "majority": correct[0],
        "statuses": ["ok"] * len(correct), "lengths": [5] * len(correct), "truncated": [False] * len(correct),
    }  # fmt: skip


@pytest.fixture
def looks(tmp_path):
    """Looks of 10 s each at two of four problems, with a clock that the test moves."""
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=1, is_main_process=True),
        state=SimpleNamespace(global_step=5), log=lambda metrics: None,
    )  # fmt: skip
    now = [0.0]

    def measure(numbers, label):
        now[0] += 10
        return summarise([record([1.0, 1.0]) for _ in numbers])

    made = LooksAlong(
        trainer, tmp_path, measure, [record([0.0, 1.0])] * 4, [1, 3], 10.0, share=0.05, clock=lambda: now[0]
    )
    made.on_train_begin(SimpleNamespace(report_to=[]), TrainerState(global_step=0), TrainerControl())
    return made, now


def test_a_look_is_left_out_while_it_would_take_more_than_its_share(looks):
    made, now = looks
    due = []
    for second in range(0, 1000, 50):
        now[0] = max(now[0], second)
        control = TrainerControl(should_evaluate=True)
        made.on_step_end(None, TrainerState(global_step=second, max_steps=10_000), control)
        if control.should_evaluate:
            made.look()
            due.append(second)
    assert due == [200, 400, 600, 800]
    assert made.as_dict() == {"problems": 2, "looks": 4, "left_out": 16, "seconds": 40.0}


def test_every_look_is_made_where_the_best_checkpoint_is_chosen_by_them(looks):
    made, _ = looks
    made.always = True
    control = TrainerControl(should_evaluate=True)
    made.on_step_end(None, TrainerState(global_step=10, max_steps=10), control)
    assert control.should_evaluate


def test_a_look_writes_the_paired_change_and_its_number(looks):
    made, _ = looks
    metrics = made.look()
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_change"] == 0.5
    made.look()
    first, second = report.read_jsonl(made.folder / report.LOOKS)
    assert (first["step"], first["look"], second["look"]) == (5, 1, 2)
    assert first["change"]["value"] == 0.5


@pytest.mark.parametrize(("step", "number"), [(0, 1), (100, 2), (150, 2), (200, 3), (300, 4)])
def test_a_resumed_run_counts_the_looks_that_the_resumed_one_had_made(looks, tmp_path, step, number):
    """Neither those of an earlier run in the output folder, nor those that it makes again."""
    made, _ = looks
    lines = [{"step": 100, "look": 1}, {"step": 200, "look": 2}, {"step": 250, "look": 3}, {"step": None}, {"look": 9}]
    made.resumed = tmp_path / "resumed"
    for folder, found in ((made.resumed, lines), (made.folder, [{"step": 1, "look": 7}])):
        folder.mkdir(exist_ok=True)
        (folder / report.LOOKS).write_text("".join(json.dumps(line) + "\n" for line in found))
    made.on_train_begin(SimpleNamespace(report_to=[]), TrainerState(global_step=step), TrainerControl())
    made.look()
    assert report.read_jsonl(made.folder / report.LOOKS)[-1]["look"] == number


def test_the_subset_is_fixed():
    assert subset_of(100, 10, seed=3) == subset_of(100, 10, seed=3) == sorted(set(subset_of(100, 10, seed=3)))
    assert subset_of(5, 10, seed=3) == [0, 1, 2, 3, 4]


def test_a_run_keeps_the_checkpoint_with_the_best_heldout_accuracy(tiny_recipe, tmp_path, capsys):
    """At a learning rate far too high the last weights are not the best ones."""
    words = [
        "--max_steps", "4", "--eval_steps", "1", "--save_steps", "1", "--heldout_size", "60",
        "--heldout_generations", "4", "--eval_size", "40", "--load_best_model_at_end", "true", "--learning_rate", "0.3",
        "--lr_scheduler_type", "constant", "--logging_steps", "1", "--save_total_limit", "2",
    ]  # fmt: skip
    assert run(tiny_recipe, tmp_path, *words) == 0
    looks = report.read_jsonl(tmp_path / report.LOOKS)
    assert [look["step"] for look in looks] == [1, 2, 3, 4]
    best = max(looks, key=lambda look: look["accuracy"]["value"])["step"]
    state = json.loads((max(tmp_path.glob("checkpoint-*")) / "trainer_state.json").read_text())
    assert state["best_metric"] == max(look["accuracy"]["value"] for look in looks)
    assert (tmp_path / f"checkpoint-{best}").is_dir()
    from safetensors.torch import load_file

    kept, saved = (load_file(f / "model.safetensors") for f in (tmp_path / f"checkpoint-{best}", tmp_path))
    assert all(kept[name].equal(saved[name]) for name in saved)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["along"]["looks"] == 4
    assert summary["verdict"]["problems"] == 20  # those that chose no checkpoint
    assert "on the 20 problems that chose no checkpoint" in capsys.readouterr().out
    # Made again by a resume of the finished run, it is the best model too, also where the folder was moved
    assert best < 4
    moved = shutil.move(tmp_path, tmp_path.with_name("moved"))
    (moved / "model.safetensors").unlink()
    assert run(tiny_recipe, moved, *words, "--resume_from_checkpoint", "true") == 0
    assert "nothing is trained" in capsys.readouterr().out
    again = load_file(moved / "model.safetensors")
    assert all(again[name].equal(saved[name]) for name in saved)


def test_a_run_on_a_plateau_stops(tiny_recipe, tmp_path, capsys):
    code = run(
        tiny_recipe, tmp_path, "--max_steps", "9", "--eval_steps", "1", "--early_stopping_patience", "2",
        "--learning_rate", "0", "--heldout_size", "8", "--heldout_generations", "1",
        "--load_best_model_at_end", "true", "--save_steps", "1",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 3  # the first look is the best one
    assert [look["step"] for look in report.read_jsonl(tmp_path / report.LOOKS)] == [1, 2, 3]
    assert "Stopped at step 3 of 9: the last 2 look(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval_steps", "1", "--heldout_size", "0"], "heldout_size: 0 holds nothing out"),
        (["--early_stopping_patience", "2"], "early_stopping_patience: 2 has no effect without looks"),
        (["--eval_steps", "1", "--metric_for_best_model", "loss"], "metric_for_best_model: loss is not measured"),
        (["--eval_share", "0"], "eval_share: 0 must be above 0"),
    ],
)
def test_looks_that_cannot_be_are_refused(tiny_recipe, tmp_path, capsys, words, message):
    assert run(tiny_recipe, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
