"""A killed run that is resumed ends like one that was left alone: weights, optimizer, metrics and completions, to the bit."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import killing
import pytest
from conftest import ROOT

UNLOGGED = ["--logging_steps", "3"]  # the checkpoints at steps 2 and 4 lie between two logs
KL_TARGET = ["--beta", "0.1", "--kl_target", "0.02"]
VARIANTS = {
    "plain": [],
    "LoRA": ["--use_peft", "true"],
    "a KL target and packed groups": [*KL_TARGET, "--pack_groups", "true"],
    "dynamic sampling": ["--dynamic_sampling", "2", *UNLOGGED],
    "several steps a generation": ["--steps_per_generation", "3", *UNLOGGED],
    "all of it": [
        "--use_peft", "true", "--lora_dropout", "0", *KL_TARGET, "--pack_groups", "true", "--dynamic_sampling", "2", *UNLOGGED,
    ],
}  # fmt: skip
# Long ones: every change of a file instead of every fifth, and twenty moments a variant instead of four
ALL = bool(os.environ.get("GRPO_MATH_ALL_KILLS"))


def kill(folder, mode, points, words=()):
    """What `killing.py` has found, in a process of its own."""
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, script, folder, mode, *map(str, points), "--", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_that_is_killed_while_it_saves_a_checkpoint_ends_like_one_left_alone(tmp_path):
    """One of the changes of files in the second checkpoint; the slow tests take those of the whole run."""
    found = kill(tmp_path, "writes", [47])
    assert (found["killed"], found["resumed"], found["differences"]) == (1, 1, {})


@pytest.mark.parametrize(
    ("files", "starts"),
    [([], 2), (["checkpoint-2/optimizer.pt"], 2), (["checkpoint-2/trainer_state.json"], 1)],
    ids=["nothing", "half a checkpoint", "a checkpoint"],
)
def test_a_resume_that_refuses_a_finished_checkpoint_is_no_success(tmp_path, monkeypatch, files, starts):
    """The comparison would hold for a run that is started afresh, too."""
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"global_step": 2}')
    codes = iter([2, 0])
    monkeypatch.setattr(killing, "train", lambda folder, words: None)
    monkeypatch.setattr(killing, "ended", lambda child: next(codes))
    assert killing.finish(tmp_path, []) == (0 if starts == 2 else 2)
    assert len(list(codes)) == 2 - starts


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_killed_at_any_change_of_a_file_ends_like_one_left_alone(tmp_path, variant):
    """Every fifth change here, other ones in each variant; GRPO_MATH_ALL_KILLS=1 takes all."""
    points = "1::1" if ALL else f"{1 + list(VARIANTS).index(variant) % 5}::5"
    found = kill(tmp_path, "writes", [points], VARIANTS[variant])
    assert found["differences"] == {}
    assert found["killed"] == found["points"] >= 20
    assert found["resumed"] >= found["points"] / 3  # the others were killed before the first checkpoint was whole


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_killed_at_random_moments_ends_like_one_left_alone(tmp_path, variant):
    draw = random.Random(variant)
    moments = [round(draw.uniform(0.1, 0.95), 3) for _ in range(20 if ALL else 4)]
    found = kill(tmp_path, "moments", moments, VARIANTS[variant])
    assert found["differences"] == {}
    assert found["killed"] == len(moments)
