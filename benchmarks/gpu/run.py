"""One run of the GPU benchmark: parts, child processes, and a result that is written after every part."""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.gpu.children import Children, last_words, workers
from benchmarks.gpu.configurations import PARTS, TINY_CHANGES, TINY_SIZES, configurations, judge
from benchmarks.gpu.report import card_name, in_words, markdown, medians
from benchmarks.plain import RECIPES
from grpo_math import memory
from grpo_math.files import read_jsonl


def real_steps(requested: int, left: float, timed: dict | None, heldout_batches: int) -> int:
    """
    Steps of the real run that fit into the time, at most `requested`.

    Args:
        requested: Steps when time does not matter.
        left: Seconds that are left.
        timed: The answer of the throughput part, whose 0.5B steps stand for the real ones; without it `requested`.
        heldout_batches: Generations of held-out problems, before and after training together.
    """
    if not timed or "contenders" not in timed:
        return requested
    seconds = medians(timed["contenders"]["ours"])
    fixed = 40 + heldout_batches * seconds["generation"]  # the process's start, loading and writing
    return max(0, min(requested, int((left - fixed) / (seconds["generation"] + seconds["rest"]))))


class Run:
    """
    One run of the benchmark: the arguments, the children, and the result, which is written after every part.

    Attributes:
        result: The content of the JSON file.
    """

    def __init__(self, args: argparse.Namespace, children: Children, scratch: Path):
        self.args, self.children, self.scratch = args, children, scratch
        self.free: float | None = None
        self.workspace: int | None = None  # bytes; predictions run where the card is out of sight
        self.shared = {"device": args.device, "tiny": args.tiny, "cap": args.cap, "steps": args.steps}
        self.result: dict[str, Any] = {"parts": list(args.parts), "cap": args.cap, "skipped": []}

    def say(self, text: str) -> None:
        """Prints a line of progress with the seconds so far."""
        print(f"[{self.children.seconds - self.children.left():4.0f} s] {text}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Notes that something was not run."""
        self.result["skipped"].append({"what": what, "why": why})
        self.say(f"{what}: skipped, {why}")

    def write(self) -> Path:
        """Writes the JSON and the Markdown; returns the path of the latter."""
        self.result["seconds"] = round(self.children.seconds - self.children.left())
        some = "" if list(self.args.parts) == list(PARTS) else "-" + "-".join(self.args.parts)
        name = f"gpu-{card_name(self.result['card'])}{'-tiny' * self.args.tiny}{some}"
        self.args.out.mkdir(parents=True, exist_ok=True)
        path = self.args.out / f"{name}.md"
        path.with_suffix(".json").write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        path.write_text(markdown(self.result) + "\n", encoding="utf-8")
        return path

    def identify(self) -> str | None:
        """Notes the machine; returns the child process's error when even that fails."""
        found = self.children.ask({"part": "machine", **self.shared})
        if "line" not in found:
            return found.get("error") or found["skipped"]
        self.free, self.workspace = found.pop("free"), found.pop("workspace")
        self.result.update(found)
        if found["total"] is not None:
            self.result["cap"] = self.shared["cap"] = min(self.args.cap, found["total"])
        return None

    def tiny_model(self) -> Path:
        """A folder with the tiny shape's configuration."""
        folder = self.scratch / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], **TINY_SIZES.shape}))
        return folder

    def memory(self, kinds: Sequence[str]) -> None:
        """Predicts and measures configurations, both at the same time, in two pools of child processes."""
        tiny = self.args.tiny
        planned = configurations(kinds, self.tiny_model() if tiny else None)
        cores = os.cpu_count() or 1
        at_once, beside = workers(cores, self.free, self.shared["cap"], self.args.jobs)
        records = [{**dataclasses.asdict(c), "path": c.path.name} for c in planned]
        self.result.update(configurations=records, measured_at_once=at_once)
        off_card = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        on_card = {"OMP_NUM_THREADS": str(max(1, cores // (2 * at_once)))}
        with ThreadPoolExecutor(at_once) as measuring, ThreadPoolExecutor(beside) as predicting:
            waiting: dict[Future, tuple[dict, str]] = {}
            for configuration, record in zip(planned, records, strict=True):
                job = {
                    "path": str(configuration.path),
                    "argv": memory.as_arguments(configuration.changes),
                    "prompt_length": configuration.prompt_length,
                    "cap": self.shared["cap"],
                }
                predicted = predicting.submit(
                    self._timed, {"part": "predict", "workspace": self.workspace, **job}, off_card
                )
                measured = measuring.submit(self._timed, {"part": "measure", **job}, on_card)
                waiting |= {predicted: (record, "predicted"), measured: (record, "measured")}
            try:
                for done in as_completed(waiting):
                    record, half = waiting[done]
                    record[half] = done.result()
                    self._compare(record)
            except BaseException:
                self.children.stop()  # the pools wait for what they have begun
                raise

    def _timed(self, job: dict, environment: dict[str, str] | None) -> dict:
        started = time.monotonic()
        return {**self.children.ask(job, environment), "wall": round(time.monotonic() - started, 1)}

    def _compare(self, record: dict) -> None:
        both = [record.get("predicted"), record.get("measured")]
        if None in both:
            return
        if any("skipped" in half for half in both):
            self.skip(record["name"], "no time left")
        elif errors := [half["error"] for half in both if "error" in half]:
            self.say(f"{record['name']}: {'; '.join(errors)}")
        else:
            record["verdict"] = judge(*both, self.shared["cap"])
            self.say(in_words(record))
        self.write()

    def part(self, name: str) -> None:
        """One part that is one child process."""
        self.say(f"{name} ...")
        found = self.children.ask({"part": name, **self.shared})
        if "skipped" in found:
            self.skip(name, found["skipped"])
        else:
            self.result[name] = found
            self.say(f"{name}: {found.get('error', 'done')}")
        self.write()

    def real(self) -> None:
        """Trains gsm8k.yaml with the given model; keeps what exists when the time is up."""
        args, out = self.args, self.scratch / "real"
        if args.model is None:
            return self.skip("real", "no --model given")
        heldout = 4 if args.tiny else 64  # one batch sampled and one greedy, before and after
        steps = real_steps(args.real_steps, self.children.left(), self.result.get("throughput"), 4)
        if steps < min(3, args.real_steps):
            return self.skip("real", f"the time left allows {steps} steps")
        values: dict[str, Any] = {
            "model_name_or_path": args.model,
            "max_steps": steps,
            "heldout_size": heldout,
            "heldout_generations": 1,
            "heldout_batch_size": heldout,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "output_dir": out,
        }
        if args.data is not None:
            values["dataset_path"] = args.data
        if args.tiny:
            values.update({name: v for name, v in TINY_CHANGES.items() if name != "heldout_batch_size"})
        self.say(f"real: {steps} steps ...")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", RECIPES / "gsm8k.yaml"]
        code, _, error = self.children.run([*launch, *memory.as_arguments(values)])
        self.result["real"] = {"model": Path(args.model).name, "planned_steps": steps, **read_run(out)}
        if code is None:
            self.skip("the end of the real run", "no time left")
        elif code:
            self.result["real"]["error"] = last_words(code, error)
            self.say(self.result["real"]["error"])
        self.write()
        return None


def read_run(folder: Path) -> dict:
    """`{"summary": dict or None, "rewards": one of each step}` of a run's folder, finished or not."""
    summary, metrics = folder / "summary.json", folder / "metrics.jsonl"
    rewards = [line.get("reward") for line in read_jsonl(metrics)] if metrics.exists() else []
    kept = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None
    if kept is not None:
        kept["model"] = Path(kept["model"]).name
    return {"summary": kept, "rewards": [reward for reward in rewards if reward is not None]}
