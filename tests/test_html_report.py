"""The HTML page of runs: what it shows, that no text of a model can act in it, and how a real browser lays it out."""

import functools
import html
import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

from grpo_math import cli, html_report, report
from grpo_math.errors import RecipeError
from grpo_math.html_report.figures import seconds_by_phase, smoothed

plotly = pytest.importorskip("plotly", reason="plotly is not installed: pip install -e '.[report]'")

HOSTILE = (
    "</pre></script><script>window.hacked = 1</script><img src=x onerror='window.hacked=2'>"
    "\x1b[31m \u202e \ud800 ' \" & ${1} [link](javascript:alert(1))"
)
FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6}


def make_run(folder, steps=30, shift=0.0, lr=0.001, **summary):
    """A run's folder as training leaves it, with hostile texts; `shift` more problems are right after training."""
    folder.mkdir(parents=True)
    metrics, completions = [], []
    for step in range(1, steps + 1):
        costs = {"time/generation": 0.5, "time/training": 0.25, "memory/process_peak": 2.0**30 * step / steps}
        metrics.append({"step": step, "reward": 0.2 + step / 100, "frac_reward_zero_std": 0.5, "grad_norm": 1.0,
                        "completions/mean_length": 6.0, "kl": None, "entropy": 0.5, **costs})  # fmt: skip
        completions += [
            {"step": step, "prompt": f"prompt {step} {HOSTILE}", "completion": f"completion {i} of {step} {HOSTILE}",
             "rewards": {"acc<b>": float(i == 0)}, "advantage": 1.0 - i}
            for i in range(6)
        ]  # fmt: skip
    for name, records in ((report.METRICS, metrics), (report.COMPLETIONS, completions)):
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    before, after = (
        [{"prompt": f"P{i}", "correct": [float(i < right), 0.0], "greedy": float(i < right),
          "sampled_completion": HOSTILE} for i in range(20)]
        for right in (4, int(4 + 20 * shift))
    )  # fmt: skip
    for when, records in (("before", before), ("after", after)):
        (folder / f"heldout_{when}.json").write_text(json.dumps({"figures": {}, "records": records}))
    full = {
        "task": "countdown", "model": HOSTILE, "steps": steps, "resumed_at": 0, "seconds": 30.0, "heldout_n": 20,
        "heldout_generations": 2, "accuracy_before": FIGURE, "accuracy_after": FIGURE, "blind": 0.3, "blind_how": "guess",
        "verdict": {"text": f"improved by {shift:.3f}"}, **summary,
    }  # fmt: skip
    (folder / report.SUMMARY).write_text(json.dumps(full))
    (folder / report.LOOKS).write_text(json.dumps({"step": steps // 2, "look": 1, "accuracy": FIGURE}) + "\n")
    (folder / "recipe.yaml").write_text(f"task: countdown\nlearning_rate: {lr}\nseed: 0\nuse_cpu: true\n")
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of the same name in different folders."""
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / "a" / "run"), make_run(root / "b" / "run", shift=0.3, lr=0.002)]


@pytest.fixture(scope="module")
def comparison(two):
    runs = html_report.named([html_report.read_run(folder) for folder in two])
    path = two[0].parent.parent / "comparison.html"
    html_report.write_page(runs, path)
    return path


def visible(path):
    """The page's body without scripts, as text."""
    body = path.read_text(encoding="utf-8").split("<body>")[1]
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<script.*?</script>", "", body, flags=re.DOTALL)))


def test_a_comparison_shows_verdicts_differences_recipes_samples_time_and_memory(comparison):
    text = " ".join(visible(comparison).split())
    assert "improved by 0.000" in text
    assert "improved by 0.300" in text
    assert "a/run" in text
    assert "b/run" in text
    assert re.search(r"After training, minus a/run.*b/run \+0\.150 \[\+0\.0\d+, \+0\.2\d+\] \+0\.300 \[", text)
    assert re.search(r"learning_rate 0\.001 0\.002", text)
    differing = text.split("Recipe differences")[1].split("Samples")[0]
    assert "seed" not in differing
    for title in ("start, iteration 1;", "middle, iteration 16;", "end, iteration 30;"):
        assert text.count(title) == 2
    assert "completion 0 of 1 " in text
    assert "completion 5 of 30 " in text
    assert "generation rest" in " ".join(text.split("Time by phase")[1].split()).replace("training ", "")
    assert "15.0 s (50%)" in text
    assert "measured in main memory" in text


def test_texts_of_models_cannot_act_in_the_page(comparison):
    page = comparison.read_text(encoding="utf-8")
    assert "<script>window.hacked" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;window.hacked" in page
    assert page.count('http-equiv="Content-Security-Policy" content="default-src \'none\'') == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page.split("<body>")[1])


def test_the_command_writes_the_page_beside_the_run_and_says_where(two, capsys, tmp_path):
    assert cli.main(["report", str(two[0])]) == 0
    assert f"HTML page: {two[0] / report.PAGE}" in capsys.readouterr().out
    text = visible(two[0] / report.PAGE)
    assert "4 settings" in text
    assert "Paired differences" not in text
    assert "ran on a CPU" in text
    assert cli.main(["report", *map(str, two), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.main(["report", str(two[0]), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "--out" in capsys.readouterr().err


def test_without_plotly_the_curve_and_the_table_remain(two, capsys, monkeypatch, tmp_path):
    from grpo_math.commands import report as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main(["report", str(two[1])]) == 0
    printed = capsys.readouterr().out
    assert "pip install plotly" in printed
    assert "Held-out accuracy" in printed
    assert not (two[1] / report.PAGE).exists()
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    assert cli.main(["report", str(two[1]), "--out", str(tmp_path / "x.html")]) == 2
    assert "needs plotly" in capsys.readouterr().err


def test_a_run_that_is_not_done_has_a_page(tmp_path):
    folder = make_run(tmp_path / "run", steps=1)
    for name in (report.SUMMARY, "recipe.yaml", "heldout_before.json", "heldout_after.json", report.COMPLETIONS):
        (folder / name).unlink()
    html_report.write_page([html_report.read_run(folder)], tmp_path / "x.html")
    text = visible(tmp_path / "x.html")
    assert "not finished" in text
    assert "Mean training reward" in text
    assert "Samples" not in text


def test_what_kept_a_run_from_learning_is_beside_its_verdict(tmp_path):
    make_run(tmp_path / "run", findings=["no weight moved", HOSTILE])
    html_report.write_page([html_report.read_run(tmp_path / "run")], tmp_path / "x.html")
    assert visible(tmp_path / "x.html").split("Held-out accuracy")[0].count("no weight moved") == 1


def test_other_problems_are_not_compared(two, tmp_path):
    other = make_run(tmp_path / "other")
    stored = json.loads((other / "heldout_after.json").read_text())
    stored["records"].pop()
    (other / "heldout_after.json").write_text(json.dumps(stored))
    runs = html_report.named([html_report.read_run(folder) for folder in (two[0], other)])
    html_report.write_page(runs, tmp_path / "x.html")
    assert "other: measured on other problems." in visible(tmp_path / "x.html")


def test_predicted_memory_is_shown_and_kept(tmp_path, monkeypatch, capsys):
    from grpo_math import memory

    folder, asked = make_run(tmp_path / "run"), []
    (folder / "recipe.yaml").write_text("task: countdown\n")

    class Predicted:
        def as_dict(self):
            return {"peaks": {"generation": 2**30, "training": 3 * 2**29}, "total": 2**31}

    monkeypatch.setattr(memory, "predict", lambda path, overrides: asked.append(path) or Predicted())
    for _ in range(2):  # the second time from the folder
        assert cli.main(["report", str(folder)]) == 0
        text = " ".join(visible(folder / report.PAGE).split())
        assert "generation training predicted total measured in main memory" in text
        assert "run 1.00 1.50 2.00 1.00" in text
    assert asked == [folder / "recipe.yaml"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "{\n{}\n"),
        ("summary.json", "[]"),
        ("heldout_after.json", "{"),
        ("metrics.jsonl", '{"a": 1}\n'),
    ],
)
def test_a_malformed_file_is_one_line_with_the_folder(tmp_path, name, content):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(RecipeError, match="run"):
        html_report.read_run(folder)


def test_smoothing_and_the_rest_of_the_time(two):
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    run = html_report.read_run(two[0])
    assert seconds_by_phase(run) == pytest.approx({"generation": 15.0, "training": 7.5, "rest": 7.5})
    run.summary["resumed_at"] = 5
    assert "rest" not in seconds_by_phase(run)


# --- in a browser ---

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FIRST = """<script>window.faults = [];
addEventListener('error', e => faults.push(String(e.message)), true);
addEventListener('securitypolicyviolation', e => faults.push('policy: ' + e.violatedDirective));
for (const kind of ['error', 'warn']) console[kind] = (...words) => faults.push(kind + ': ' + words.join(' '));</script>"""
# Texts that lie on each other, leave their panel, or are hard to read
LAST = f"<script>{(ROOT / 'tests' / 'report_probe.js').read_text(encoding='utf-8')}</script>"


@functools.cache
def browser() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium: apt-get install chromium, or name one in CHROMIUM")
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (True, 520)])
def test_a_browser_shows_the_page_without_errors_or_overlap_in_light_and_dark(comparison, tmp_path, dark, width):
    page = comparison.read_text(encoding="utf-8")
    page = page.replace("<style>", FIRST + "<style>", 1).replace("</body></html>", LAST + "</body></html>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},1400", "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'page.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["dark"] == dark
    assert found["plots"] >= 6
    assert found["lines"] >= 10
    assert found["texts"] > 150
    wrong = {name: found[name] for name in ("faults", "overlaps", "faint", "outside") if found[name]}
    assert (wrong, found["hacked"], found["sideways"]) == ({}, 0, 0)
