"""README and docs: links exist, snippets run as pasted, every figure is in the results file that the page names."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import RECIPES, ROOT, own_files_forgotten

from grpo_math import cli

RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GIB = 2**30


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row, without markup."""
    rows = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.replace("*", "").replace("`", "").strip() for cell in row] for row in rows]


def decimals(text: str) -> list[str]:
    return re.findall(r"\d[\d,]*\.\d+(?:e-?\d+)?", text)


# --- form ---


def test_the_front_page_is_short():
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_or_heading(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(linked), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


# --- figures ---


def test_every_recipe_and_the_front_page_state_the_predicted_peak_of_the_results_file():
    predicted = json.loads((RESULTS / "predicted.json").read_text(encoding="utf-8"))["recipes"]
    readme = {row[0]: row[-1] for row in table_rows(text_of(ROOT / "README.md")) if row[0].endswith(".yaml")}
    assert set(readme) == set(predicted) == {path.name for path in RECIPES}
    for path in RECIPES:
        if path.stem in ("countdown_tiny", "countdown_135m_cpu"):  # no GPU to fit on
            continue
        one = predicted[path.name]
        peak, paged = f"{one['total'] / GIB:.2f}", f"{one['paged'] / GIB:.2f}"
        assert re.search(r"Predicted peak ([\d.]+) GiB", text_of(path))[1] == peak, path.name
        assert decimals(readme[path.name]) == ([peak, paged] if one["paged"] else [peak]), path.name
        assert one["fits"]
        assert peak in text_of(RESULTS / "predicted.md")


def test_the_front_pages_demo_table_is_that_of_the_first_seed():
    stored = text_of(RESULTS / "countdown_tiny.md").split("\n## ")[1]
    section = text_of(ROOT / "README.md").split("\n## Start")[1].split("\n## ")[0]
    rows = [row for row in table_rows(section) if decimals(row[1])]
    assert len(rows) == 6
    figures = [[decimals(cell) for cell in row[1:]] for row in table_rows(stored)]
    for row in rows:
        assert [decimals(cell) for cell in row[1:]] in figures, row


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT / "docs"], ids=lambda page: page.stem)
def test_every_decimal_in_a_section_with_a_results_file_is_in_that_file(page):
    checked = 0
    for section in re.split(r"\n(?=## )", text_of(page)):
        names = re.findall(r"benchmarks/results/(\w+\.(?:md|json))\)", section)
        cells = " ".join(" ".join(row) for row in table_rows(section))
        if not names or "command |" in section:  # results.md's list of files holds no figures
            continue
        stored = " ".join(text_of(RESULTS / name) for name in names)
        for figure in decimals(cells):
            assert figure in stored, f"{page.name}: {section.splitlines()[0]}: {figure}"
            checked += 1
    assert checked or page.stem in ("your-own", "runs")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "memory.md"], ids=lambda page: page.stem)
def test_the_printed_memory_table_is_that_of_the_results_file(page):
    one = json.loads((RESULTS / "predicted.json").read_text(encoding="utf-8"))["recipes"]["gsm8k.yaml"]
    stored = {name: [parts[name] for parts in one["parts"].values()] for name in one["parts"]["load"]}
    stored["peak"] = list(one["peaks"].values())
    lines = [line.strip() for block in code_blocks(page, "text") for line in block.splitlines()]
    shown = [(name, line) for line in lines for name in stored if line.startswith(f"{name} ")]
    assert len(shown) >= 4
    for name, line in shown:
        assert decimals(line) == [f"{size / GIB:.2f}" for size in stored[name]], name


# --- snippets ---

TRAINING_SNIPPETS = [
    (page.stem, block) for page in PAGES for block in code_blocks(page, "python") if ".train()" in block
]


def test_two_snippets_train():
    assert [name for name, _ in TRAINING_SNIPPETS] == ["rewards", "trainer"]


@pytest.mark.parametrize(
    "snippet", [block for _, block in TRAINING_SNIPPETS], ids=[name for name, _ in TRAINING_SNIPPETS]
)
def test_a_training_snippet_runs_as_pasted(snippet, tmp_path, monkeypatch, small_chat_model):
    monkeypatch.chdir(tmp_path)
    assert snippet.count("Qwen/Qwen2.5-0.5B-Instruct") == 1
    exec(snippet.replace("Qwen/Qwen2.5-0.5B-Instruct", str(small_chat_model)), {})
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_the_front_pages_reward_snippet_makes_a_trainer(tmp_path, monkeypatch, small_chat_model):
    from datasets import Dataset
    from trl import GRPOTrainer

    (snippet,) = code_blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_list([{"prompt": "1 + 1 =", "answer": "2"}] * 8)
    names = {"model": str(small_chat_model), "rows": rows}
    exec(snippet.replace('GRPOConfig("out")', 'GRPOConfig("out", bf16=False, use_cpu=True)'), names)
    assert type(names["trainer"]) is GRPOTrainer
    assert names["trainer"].reward_func_names == ["gsm8k_accuracy", "think_answer_format"]


YOUR_OWN = ROOT / "docs" / "your-own.md"


def test_the_recipe_of_ones_own_is_yaml_and_python():
    (recipe,) = code_blocks(YOUR_OWN, "yaml")
    assert yaml.safe_load(recipe)["task"] == "gsm8k"
    exec(compile(recipe, "mine.yaml", "exec"), {"__name__": "__mp_main__", "__file__": "mine.yaml"})


def test_the_reward_of_ones_own_pays_as_described():
    (source,) = (block for block in code_blocks(YOUR_OWN, "python") if "def brevity" in block)
    names, logged = {}, {}
    exec(source, names)
    completions = ["a" * 200, [{"role": "assistant", "content": "a" * 600}], "a" * 1000]
    assert names["brevity"](completions, answer=["1", "2", "3"], log_metric=logged.__setitem__) == [1.0, 0.5, 0.0]
    assert logged == {"brevity/characters": 600.0}


def test_the_task_of_ones_own_trains_as_printed(monkeypatch, tmp_path, capsys):
    (source,) = (block for block in code_blocks(YOUR_OWN, "python") if "parity" in block)
    (tmp_path / "parity.py").write_text(source, encoding="utf-8")
    (command,) = (block for block in code_blocks(YOUR_OWN, "sh") if "parity.py" in block)
    program, train, recipe, *words = shlex.split(command.replace("\\\n", " "))
    assert (program, train, words[-2]) == ("grpo-math", "train", "--output_dir")
    monkeypatch.chdir(tmp_path)
    with own_files_forgotten():
        assert cli.main([train, str(ROOT / recipe), *words[:-1], str(tmp_path / "out")]) == 0
    assert "cannot read the task" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("command", ["train", "sft", "eval", "memory", "chat", "merge", "report", "fields"])
def test_every_command_that_the_pages_name_explains_itself(command, capsys):
    assert f"grpo-math {command}" in " ".join(map(text_of, PAGES))
    assert cli.main([command, "--help"]) == 0
    assert "exit code" in capsys.readouterr().out
