"""Kills runs of the tiny recipe, resumes them, and compares what they leave with a run that was left alone.

Run as a script, since each run is a forked process: torch is imported once, and no thread is there yet.

    python tests/reliability/killing.py FOLDER writes 1 2 ... -- --beta 0.1      kills at the N-th change of a file
    python tests/reliability/killing.py FOLDER writes 3::5 -- --beta 0.1           at each fifth one, from the third on
    python tests/reliability/killing.py FOLDER moments 0.1 0.5 ... -- --beta 0.1   kills after that share of the run's time

Prints one JSON object: the number of changes in a whole run, how often a run was killed and went on from a checkpoint, and
the differences found.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = [
    "--max_steps", "6", "--save_steps", "2", "--logging_steps", "1", "--heldout_size", "2", "--heldout_generations", "2",
    "--num_generations", "4", "--per_device_train_batch_size", "16", "--disable_tqdm", "true",
]  # fmt: skip


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch_writes(folder, at):
    """Counts changes of files in a folder, from now on; the process dies at number `at`, half-way through a library's file."""
    import safetensors.torch
    import torch

    count = itertools.count(1)
    inside = os.path.realpath(folder) + os.sep

    def is_inside(path):
        return isinstance(path, (str, os.PathLike)) and (os.path.realpath(path) + os.sep).startswith(inside)

    def changes(event, args):
        if event == "open":
            return bool(args[2] & (os.O_WRONLY | os.O_RDWR)) and is_inside(args[0])
        return event in ("os.rename", "os.remove", "os.mkdir", "shutil.rmtree", "os.truncate") and is_inside(args[0])

    def hook(event, args):
        if changes(event, args) and next(count) == at:
            die()

    def torn(save, position):
        def saving(*args, **kwargs):
            save(*args, **kwargs)
            path = args[position] if len(args) > position else kwargs.get("filename", kwargs.get("f"))
            if is_inside(path) and next(count) == at:
                with open(path, "r+b") as file:
                    file.truncate(os.path.getsize(path) // 2)
                die()

        return saving

    torch.save = torn(torch.save, 1)
    safetensors.torch.save_file = torn(safetensors.torch.save_file, 1)
    from transformers import modeling_utils

    modeling_utils.safe_save_file = torn(modeling_utils.safe_save_file, 1)
    sys.addaudithook(hook)
    return count


def forked(job, log):
    """Runs a job in a process of its own and gives its process id."""
    child = os.fork()
    if child == 0:
        code = 99
        with contextlib.suppress(BaseException), open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            code = job()
        os._exit(code)
    return child


def ended(child):
    """Exit code of a child; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(folder, words, at=None, total=None):
    def job():
        from grpo_math import cli

        count = watch_writes(folder, at)
        given = dict(zip(WORDS[::2], WORDS[1::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
        named = [part for pair in given.items() for part in pair]
        code = cli.main(["train", str(ROOT / "recipes/countdown_tiny.yaml"), "--output_dir", str(folder), *named])
        if total is not None:
            total.write_text(str(next(count) - 1))
        return code

    return forked(job, folder.parent / "log")


def finish(folder, words):
    """Resumes a run, or starts it again where no checkpoint was finished yet."""
    code = ended(train(folder, [*words, "--resume_from_checkpoint", "true"]))
    return ended(train(folder, words)) if code == 2 and not any(map(is_finished, folder.glob("checkpoint-*"))) else code


def is_finished(checkpoint):
    """Whether the saving came to its end: `trainer_state.json` is written last, and a kill may leave it in half."""
    try:
        return bool(json.loads((checkpoint / "trainer_state.json").read_bytes()))
    except (OSError, ValueError):
        return False


def kill_after(share, folder, words, seconds):
    """Kills a run after that share of the seconds that a whole one takes; its exit code and those seconds.

    Where the run was over before that, the seconds were those of a busier moment: they become its own, and the kill is
    tried again.
    """
    while True:
        started = time.monotonic()
        child = train(folder, words)
        while time.monotonic() < started + share * seconds and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.002)
        took = time.monotonic() - started
        os.kill(child, signal.SIGKILL)
        code = ended(child)
        if code:
            return code, seconds
        seconds = took
        shutil.rmtree(folder)


def result_of(folder):
    """What a run leaves, without what is measured of the machine: times, memory."""
    import torch
    from safetensors.torch import load_file

    def lines(name):
        with open(folder / name, "rb") as file:
            records = [json.loads(line) for line in file]
        return [{k: v for k, v in record.items() if not re.search("time|memory", k)} for record in records]

    weights = next(path for path in ("model.safetensors", "adapter_model.safetensors") if (folder / path).exists())
    last = folder / "checkpoint-6"
    return {
        "weights": load_file(folder / weights),
        "optimizer": torch.load(last / "optimizer.pt", weights_only=True)["state"],
        "schedule": torch.load(last / "scheduler.pt", weights_only=True),
        "options": json.loads((last / "trainer_state.json").read_bytes())["stateful_callbacks"],
        "metrics": lines("metrics.jsonl"),
        "completions": lines("completions.jsonl"),
        **{name: (folder / name).read_bytes() for name in ("heldout_before.json", "heldout_after.json")},
    }


def difference(one, other):
    """The first part in which two results differ, to the last bit; None where there is none."""
    import torch

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return a == b

    return next((part for part in one if not same(one[part], other[part])), None)


def main(folder, mode, *rest):
    rest = list(rest)
    points, words = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    folder = Path(folder)
    from grpo_math import cli  # noqa: F401  (once, before the first fork)
    from grpo_math.run import train as _  # noqa: F401

    whole, total = folder / "whole", folder / "total"
    started = time.monotonic()
    code = ended(train(whole, words, total=total))
    seconds = time.monotonic() - started
    assert code == 0, (folder / "log").read_text()[-2000:]
    expected, found = result_of(whole), {"writes": int(total.read_text()), "killed": 0, "resumed": 0, "differences": {}}
    if "::" in points[0]:
        first, step = map(int, points[0].split("::"))
        points = [str(n) for n in range(first, found["writes"] + 1, step)]
    found["points"] = len(points)
    for point in points:
        killed = folder / "killed"
        shutil.rmtree(killed, ignore_errors=True)
        if mode == "writes":
            code = ended(train(killed, words, at=int(point)))
        else:
            code, seconds = kill_after(float(point), killed, words, seconds)
        found["killed"] += code == -signal.SIGKILL
        code = finish(killed, words)
        wrong = f"exit code {code}" if code else difference(expected, result_of(killed))
        if not code:
            found["resumed"] += json.loads((killed / "summary.json").read_bytes())["resumed_at"] > 0
        if wrong:
            found["differences"][point] = wrong
        print(f"{mode} {point}: {wrong or 'the same'}", file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
