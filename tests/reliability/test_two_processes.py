"""Two processes: they train as one does; a killed one ends the other, and the resumed run ends like one left alone."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import LOCAL_DATA, ROOT
from killing import WORDS, difference, result_of

pytestmark = pytest.mark.slow


def launch(folder, *words):
    """A run on two processes, in a process group of its own."""
    env = {name: value for name, value in os.environ.items() if name not in LOCAL_DATA} | {"OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "accelerate", "launch", "--multi_gpu", "--num_processes", "2",
               "--main_process_port", "0", "-m", "grpo_math", ROOT / "recipes" / "countdown_tiny.yaml", *WORDS,
               "--output_dir", folder, *words]  # fmt: skip
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [str(word) for word in command], env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(process):
    """Process ids of the launcher's two workers, in no order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


@pytest.fixture
def whole(tmp_path):
    process = launch(tmp_path / "whole")
    assert process.wait(timeout=400) == 0, (tmp_path / "whole.log").read_text()[-2000:]
    return result_of(tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers through /proc")
def test_a_killed_worker_ends_the_other_and_the_resumed_run_ends_like_one_left_alone(whole, tmp_path):
    killed = tmp_path / "killed"
    process = launch(killed)
    wait_for(killed / "checkpoint-4" / "trainer_state.json", process)
    pair = workers(process)
    os.kill(pair[-1], signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - started < 30
    for worker in pair:
        with contextlib.suppress(FileNotFoundError):  # gone, or a zombie that nobody has waited for
            assert Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z"
    process = launch(killed, "--resume_from_checkpoint", "true")
    assert process.wait(timeout=400) == 0, (tmp_path / "killed.log").read_text()[-2000:]
    assert difference(whole, result_of(killed)) is None


# Not bnpo, which is another loss for each division of the rows into micro-batches
LOSS_TYPES = ["grpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]


def test_two_processes_have_the_gradients_and_weights_of_one_with_every_saving_on(tmp_path):
    script = Path(__file__).with_name("equal_on_processes.py")
    places = [ROOT, ROOT / "tests", os.environ.get("PYTHONPATH", "")]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    launch_two = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    results = []
    for name, launcher in (("one", []), ("two", launch_two)):
        command = [sys.executable, *launcher, script, tmp_path / name, *LOSS_TYPES]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(tmp_path / name))
    for loss_type in LOSS_TYPES:
        one, two = (result[loss_type] for result in results)
        assert (one["processes"], two["processes"]) == (1, 2)
        assert one["completions"] == two["completions"], loss_type
        # Both processes run as many rows as the one that has more to run
        assert all(0 <= a - b <= 1 for a, b in zip(one["skipped_rows"], two["skipped_rows"], strict=True)), loss_type
        assert min(two["skipped_rows"]) > 0
        for a, b in zip([*one["gradients"], one["weights"]], [*two["gradients"], two["weights"]], strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm(), loss_type
