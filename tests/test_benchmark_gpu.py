"""The GPU benchmark, as far as a CPU can try it: arguments, tiny parts, children that end, the Markdown of a result."""

import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import RECIPES

from benchmarks import gpu
from benchmarks.gpu import gradients as gradients_part
from benchmarks.gpu.children import Children, workers
from benchmarks.gpu.command_line import parse
from benchmarks.gpu.configurations import CLEARLY, OUT_OF_MEMORY, PARTS, TINY_SIZES, configurations, judge
from benchmarks.gpu.report import card_name, failed, markdown
from benchmarks.gpu.run import read_run, real_steps
from benchmarks.gpu.throughput import throughput
from benchmarks.gpu.trainers import fixed_completions
from grpo_math import memory
from grpo_math.memory import GIB
from grpo_math.recipe import load_recipe

TINY = {"device": "cpu", "tiny": True, "cap": 8.0, "steps": 2}


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_nothing_is_written(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 2
    output = capsys.readouterr().err
    assert "no CUDA device" in output
    assert "--device cpu --tiny" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device", "cpu"], "add --tiny"),
        (["--minutes", "0"], "0 is not a number above 0"),
        (["--cap", "nan"], "nan is not a number above 0"),
        (["--steps", "0"], "--steps 0: write a whole number of at least 1"),
        (["--parts", "memroy"], "memroy"),
        (["--model", "/nowhere/model"], "--model /nowhere/model: there is no such folder"),
        (["--model", "."], "--model without --data"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(argv, message, capsys, no_local_data):
    with pytest.raises(SystemExit) as stopped:
        parse(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_keep_their_order_and_folders_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    args = parse(["--parts", "real", "memory", "--model", "model", "--data", ".", "--out", "results"])
    assert args.parts == ["memory", "real"]
    assert (args.model, args.data, args.out) == (str(tmp_path / "model"), str(tmp_path), tmp_path / "results")


# --- what is run ------------------------------------------------------------------------------------------------------


def test_every_8_gb_recipe_is_measured_and_small_models_come_first():
    found = configurations(["memory"])
    on_a_cpu = {"countdown_tiny.yaml", "countdown_135m_cpu.yaml"}
    assert {c.name for c in found} == {p.name for p in RECIPES} - on_a_cpu
    assert found[-1].name == "gsm8k_7b_qlora.yaml"
    assert all(c.changes == {} for c in found)
    assert {c.prompt_length for c in found if "countdown" in c.name} == {memory.LONGEST_PROMPT["countdown"]}
    assert [c.kind for c in configurations(["oom"])] == ["oom"] * len(OUT_OF_MEMORY)


@pytest.mark.parametrize("configuration", configurations(["oom"]), ids=lambda c: c.name)
def test_overrides_that_run_out_of_memory_are_a_valid_recipe(configuration):
    recipe = load_recipe(configuration.path, memory.as_arguments(configuration.changes), planned=True)
    kept = {**vars(recipe.task), **vars(recipe.model), **vars(recipe.training)}
    assert {name: getattr(kept[name], "value", kept[name]) for name in configuration.changes} == configuration.changes


@pytest.mark.slow
@pytest.mark.parametrize("configuration", configurations(["oom"]), ids=lambda c: c.name)
def test_oom_configurations_need_clearly_more_than_the_cap(configuration):
    argv = memory.as_arguments(configuration.changes)
    predicted = memory.predict(configuration.path, argv, configuration.prompt_length)
    assert predicted.peak >= CLEARLY * memory.DEFAULT_VRAM * GIB


def test_large_card_measures_several_at_once_and_small_card_one():
    assert workers(16, 79.0, 8.0) == (8, 7)
    assert workers(8, 7.6, 7.6) == (1, 6)
    assert workers(2, 79.0, 8.0) == (1, 1)
    assert workers(4, None, 8.0) == (1, 2)
    assert workers(16, 79.0, 8.0, requested=2) == (2, 13)


def test_real_run_has_the_steps_that_fit_into_the_time():
    timed = {"contenders": {"ours": {"steps": [{"generation": 5.0, "rest": 2.0}] * 3}}}
    assert real_steps(20, 1000.0, timed, heldout_batches=4) == 20
    assert real_steps(20, 40 + 4 * 5 + 7 * 6 + 1, timed, heldout_batches=4) == 6
    assert real_steps(20, 30.0, timed, heldout_batches=4) == 0
    assert real_steps(20, 30.0, {"error": "exit code 1"}, heldout_batches=4) == 20


# --- verdicts ---------------------------------------------------------------------------------------------------------


def prediction(gib):
    return {"peak": int(gib * GIB), "total": int((1.03 * gib + 0.7) * GIB), "phase": "training",
            "peaks": {"load": GIB, "generation": 2 * GIB, "training": int(gib * GIB)}}  # fmt: skip


def measurement(gib, ran_out=None, device="Some GPU"):
    peaks = {"load": GIB, "generation": 2 * GIB, "training": int(gib * GIB)}
    return {"device": device, "peaks": peaks, "reserved": 6 * GIB, "out_of_memory": ran_out}


@pytest.mark.parametrize(
    ("predicted", "ran_out", "right"),
    [(4.0, None, True), (4.0, "training", False), (9.0, "generation", True), (9.0, None, False)],
)
def test_verdict_is_right_when_it_matches_the_measurement(predicted, ran_out, right):
    verdict = judge(prediction(predicted), measurement(5.0, ran_out), 8.0)
    assert verdict["right"] is right
    assert (verdict["ratio"] is None) == (ran_out is not None)


def test_the_ratio_is_of_the_highest_peaks_and_of_each_phase():
    verdict = judge(prediction(4.0), measurement(5.0), 8.0)
    assert verdict["ratio"] == pytest.approx(0.8)
    assert verdict["phases"] == pytest.approx({"load": 1.0, "generation": 1.0, "training": 0.8})
    assert judge(prediction(4.0), measurement(5.0, device="cpu"), 8.0)["right"] is None


# --- children ---------------------------------------------------------------------------------------------------------


def test_stopping_ends_a_child_and_what_it_has_started(tmp_path):
    children = Children(600, {})
    code = (
        "import pathlib, subprocess, sys\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "grandchild.wait()"
    )
    found = []
    thread = threading.Thread(target=lambda: found.append(children.run([sys.executable, "-c", code])))
    thread.start()
    while not (tmp_path / "started").exists():
        thread.join(0.05)
        assert thread.is_alive()
    children.stop()
    thread.join(60)  # the output ends only when the grandchild, which has inherited it, ends
    assert not thread.is_alive()
    assert found == [(None, "", "")]
    assert children.run([sys.executable, "-c", "print(1)"]) == (None, "", "")


def test_when_the_time_is_up_a_child_is_ended_and_no_other_begun():
    children = Children(1.0, {})
    assert children.run([sys.executable, "-c", "import time; time.sleep(600)"])[0] is None
    assert children.ask({"part": "machine"}) == {"skipped": "no time left"}


def test_failed_part_answers_with_its_last_error_line(capfd):
    answer = Children(600, {}).ask({"part": "nothing"})
    assert answer == {"error": "exit code 1: KeyError: 'nothing'"}
    assert "Traceback" in capfd.readouterr().err


# --- the parts, tiny --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gradients():
    return gradients_part.gradients(TINY)


def lines(found):
    return {(line["kind"], line["against"]): line for line in found["lines"]}


def test_gradient_of_ours_is_stocks_in_float32(gradients):
    line = lines(gradients)["ours in float32", "stock in float32"]
    assert line["relative"] < 1e-5
    assert line["cosine"] == pytest.approx(1, abs=1e-6)
    assert gradients["norm"] > 0
    assert gradients["skipped_rows"] == TINY_SIZES.rows / 2


def test_half_precision_gradients_differ_no_more_than_between_row_orders(gradients):
    noise = lines(gradients)["stock, rows in another order", "stock"]["relative"]
    # On a CPU without bfloat16 both are round-off of float32
    assert lines(gradients)["ours", "stock"]["relative"] < max(3 * noise, 1e-5)
    assert lines(gradients)["ours", "stock in float32"]["relative"] < 0.03


def test_gradients_of_other_completions_are_told_apart(tmp_path, monkeypatch):
    job = {**TINY, "part": "gradients"}
    gradient, _ = gradients_part.accumulated_gradient(False, job, tmp_path, float32=True)
    completions = fixed_completions(TINY_SIZES)
    monkeypatch.setattr(gradients_part, "fixed_completions", lambda sizes: completions[::-1])
    other, _ = gradients_part.accumulated_gradient(False, job, tmp_path, float32=True)
    assert (other - gradient).norm() / gradient.norm() > 0.1


def test_throughput_times_each_step_of_stock_and_ours():
    found = throughput(TINY)
    assert list(found["contenders"]) == ["stock", "ours", "stock again"]
    for contender in found["contenders"].values():
        assert len(contender["steps"]) == TINY["steps"]  # the first one is not counted
        assert all(step["generation"] > 0 and step["rest"] > 0 for step in contender["steps"])
        assert contender["mean_length"] == TINY_SIZES.completion
    assert found["contenders"]["ours"]["skipped_rows"] == TINY_SIZES.rows / 2
    assert found["contenders"]["stock"]["skipped_rows"] is None


@pytest.mark.slow
def test_everything_runs_on_a_cpu_and_is_written(tmp_path, small_chat_model, gsm8k_folder):
    argv = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "results"), "--real-steps", "2", "--steps", "1"]
    assert gpu.main([*argv, "--model", str(small_chat_model), "--data", str(gsm8k_folder)]) == 0
    result = json.loads((tmp_path / "results" / "gpu-cpu-tiny.json").read_text())
    (record,) = result["configurations"]
    assert record["verdict"]["fits"]
    assert set(record["predicted"]["peaks"]) == set(record["measured"]["peaks"])
    assert result["real"]["summary"]["steps"] == 2
    assert len(result["real"]["rewards"]) == 2
    assert str(tmp_path) not in json.dumps(result["real"])
    assert [skipped["what"] for skipped in result["skipped"]] == ["oom"]
    text = (tmp_path / "results" / "gpu-cpu-tiny.md").read_text()
    assert text == markdown(result) + "\n"
    for title in ("The 8 GB recipes", "Gradients of ours", "Tokens a second", "A short real run", "Skipped"):
        assert f"## {title}" in text


# --- the Markdown of a result -----------------------------------------------------------------------------------------


def recipe_record(name, predicted, measured):
    record = {"name": name, "kind": "recipe", "path": name, "changes": {}, "predicted": predicted, "measured": measured}
    return {**record, "verdict": judge(predicted, measured, 8.0)}


def a_result():
    """A card's result with a peak that is 20 % off, a wrong verdict, and a failed and an unfinished configuration."""
    steps = [{"generation": g, "rest": r} for g, r in ((8.0, 4.0), (6.0, 2.0), (7.0, 3.0))]
    half = [{"generation": s["generation"] / 2, "rest": s["rest"]} for s in steps]
    contender = {"peak": 2 * GIB, "mean_length": 256.0, "skipped_rows": None}
    figure = {"value": 0.1, "low": 0.05, "high": 0.2}
    figures = {f"{name}_{when}": figure for name in ("accuracy", "greedy") for when in ("before", "after")}
    changes = {"optim": "adamw_torch", "gradient_checkpointing": False}
    over = {**recipe_record("32-bit AdamW", prediction(9.5), measurement(8.0, "optimizer")), "kind": "oom"}
    near = {**recipe_record("nearly", prediction(8.1), measurement(7.9)), "kind": "oom"}
    return {
        "card": "NVIDIA GeForce RTX 4060",
        "line": "NVIDIA GeForce RTX 4060, Python 3.12.",
        "parts": list(PARTS),
        "cap": 8.0,
        "measured_at_once": 1,
        "seconds": 500,
        "configurations": [
            recipe_record("good.yaml", prediction(4.0), measurement(4.0)),
            recipe_record("off.yaml", prediction(4.0), measurement(5.0)),
            {"name": "broken.yaml", "kind": "recipe", "predicted": {"error": "exit code 1: PredictionError: no"}},
            {"name": "late.yaml", "kind": "recipe"},
            {**over, "path": "report_gsm8k.yaml", "changes": changes},
            near,
        ],
        "gradients": {
            "precision": "bf16", "adapter": "float32", "parameters": 8_800_000, "rows": 64, "skipped_rows": 32.0,
            "padding_fraction": 0.1, "norm": 1.0,
            "lines": [{"kind": "ours", "against": "stock", "relative": 2.5e-3, "cosine": 0.999997}],
        },
        "throughput": {
            "rows": 64, "micro": 8, "generations": 8, "prompt": 128, "completion": 256, "outside": GIB // 2,
            "contenders": {"stock": {**contender, "steps": steps}, "ours": {**contender, "steps": half}},
        },
        "real": {
            "model": "SmolLM2", "planned_steps": 4, "rewards": [0.0, 0.1, 0.2, 0.3],
            "summary": {**figures, "steps": 4, "seconds": 40.0, "heldout_n": 64},
        },
        "skipped": [{"what": "late.yaml", "why": "no time left"}],
    }  # fmt: skip


def test_markdown_holds_the_figures_of_every_part():
    text = markdown(a_result())
    assert "1 of 2 peaks within 5 % of the measured one (ratios 0.800 to 1.000)" in text
    assert "| `off.yaml` | 4.00 | 5.00 | **0.800** | 1.000 | 0.800 | 6.00 | 4.82 | fits | right |" in text
    assert "| `broken.yaml` | exit code 1: PredictionError: no |" in text
    assert "| `late.yaml` | not finished |" in text
    overrides = "`report_gsm8k.yaml --optim adamw_torch --gradient_checkpointing false`"
    assert f"| 32-bit AdamW | {overrides} | 9.50 | training | optimizer | right |" in text
    assert "| it ran, 7.90 | **wrong** |" in text
    assert "less than 1.1 x the cap, and so not sure to run out: nearly." in text
    assert "right 3 times of 4" in text
    assert "| ours | stock | 2.50e-03 | 0.99999700 |" in text
    # Medians 7 and 3 s for 64 x 256 and 64 x 384 tokens
    assert "| stock | 7.00 | 2,341 | x1.00 | 3.00 | 8,192 | x1.00 | **x1.00** | 2.00 |" in text
    assert "| ours | 3.50 | 4,681 | x2.00 | 3.00 | 8,192 | x1.00 | **x1.54** | 2.00 |" in text
    assert "0.50 GiB (CUDA context" in text
    assert "| sampled accuracy | 0.100 [0.050, 0.200] | 0.100 [0.050, 0.200] |" in text
    assert "| training reward, first and second half | 0.050 | 0.250 |" in text
    assert "- late.yaml: no time left" in text
    assert "allocator alone" in text
    assert all(line.count("|") == 0 or line.endswith("|") for line in text.splitlines())


def test_markdown_of_a_result_that_has_only_begun_or_failed():
    whole = a_result()
    begun = {name: whole[name] for name in ("card", "line", "cap", "seconds", "skipped")}
    assert "##" not in markdown({**begun, "skipped": []})
    cut = {**begun, "real": {**whole["real"], "summary": None}}
    assert "stopped after 4 of 4 steps, mean reward 0.150" in markdown(cut)
    broken = {**whole, "gradients": {"error": "exit code 1: OutOfMemoryError: CUDA out of memory"}}
    assert "exit code 1: OutOfMemoryError" in markdown(broken)
    assert failed(broken) == ["broken.yaml (predicted)", "gradients"]
    assert failed(begun) == []


def test_a_run_is_read_whether_it_ended_or_not(tmp_path):
    assert read_run(tmp_path) == {"summary": None, "rewards": []}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "loss": 0.0}\n')
    (tmp_path / "summary.json").write_text(json.dumps({"model": str(Path("/some/where/SmolLM2")), "steps": 2}))
    assert read_run(tmp_path) == {"summary": {"model": "SmolLM2", "steps": 2}, "rewards": [0.5]}


def test_a_card_names_its_file():
    assert card_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert card_name("NVIDIA GeForce RTX 4060 (Laptop)") == "nvidia-geforce-rtx-4060-laptop"
