"""`python -m benchmarks runs`: the page of finished runs, a supervised one among them."""

import json

from conftest import SHORT, run

from benchmarks import runs
from grpo_math import cli


def test_a_page_of_a_warm_up_and_the_run_after_it(tmp_path, monkeypatch, tiny_recipe):
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    words = [
        "--heldout_size",
        "4",
        "--heldout_generations",
        "2",
        "--disable_tqdm",
        "true",
        "--output_dir",
        str(tmp_path),
    ]
    assert cli.main(["sft", str(tiny_recipe), *words, "--sft_size", "8"]) == 0
    start = ["--model_name_or_path", str(tmp_path / "sft")]
    assert run(tiny_recipe, tmp_path / "grpo", *SHORT, *start, "--seed", "7") == 0

    assert runs.main(["pair", str(tmp_path / "sft"), str(tmp_path / "grpo")]) == 0

    page = (tmp_path / "results" / "pair.md").read_text(encoding="utf-8")
    overview = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in page.splitlines() if line[:3] != "| -"
    }
    summary = json.loads((tmp_path / "grpo" / "summary.json").read_text(encoding="utf-8"))
    assert overview["sft"][0] == "supervised"
    assert overview["grpo"][:2] == ["GRPO", "2"]
    assert f"{summary['accuracy_after']['value']:.3f}" in overview["grpo"]
    assert "## grpo: countdown_tiny.yaml, sft, seed 7" in page
    assert (tmp_path / "results" / "pair_grpo.png").read_bytes() == (
        tmp_path / "grpo" / "reward_curve.png"
    ).read_bytes()
    assert "pair_sft.png" not in page  # a warm-up has no curve
    samples = [line for line in page.splitlines() if line.startswith("- step ")]
    assert [line.split(",")[0] for line in samples] == ["- step 1", "- step 2"]
    assert all("(countdown_accuracy " in line for line in samples)
