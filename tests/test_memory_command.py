"""The command `grpo-math memory`: options, tables, verdict, advice, measurement and errors."""

import argparse
import json

import pytest
from conftest import GSM8K

from grpo_math import cli, memory
from grpo_math.memory import GIB, command

pytestmark = pytest.mark.usefixtures("kept_predictions")


def run_command(capsys, *words):
    code = cli.main(["memory", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_command_prints_phases_and_verdict(capsys, small_argv):
    code, out, _ = run_command(capsys, GSM8K, *small_argv, "--prompt_length", 32)
    assert code == 0
    for phase in ("load", "generation", "scoring", "training", "optimizer"):
        assert phase in out
    assert "fits in 8.00 GiB" in out
    assert "Longest prompt 32 tokens (given)" in out


def test_smallest_changes_that_fit_are_suggested(capsys, small_argv):
    need = memory.predict(GSM8K, small_argv, 32)
    halved = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    vram = memory.predict(GSM8K, small_argv, 32, halved).total / GIB
    assert need.total > vram * GIB
    code, out, _ = run_command(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--vram", vram, "--json")
    assert code == 1
    answer = json.loads(out)
    assert answer["fits"] is False
    assert answer["total"] == need.total
    assert answer["suggestions"]
    for found in answer["suggestions"]:
        assert found["total"] <= vram * GIB
        again = memory.predict(GSM8K, small_argv, 32, found["overrides"])
        assert again.total == found["total"]
    assert halved in [found["overrides"] for found in answer["suggestions"]]


def test_nothing_fits_is_stated(capsys, small_argv, monkeypatch):
    # Their answers when nothing fits, without the many predictions
    monkeypatch.setattr(command, "suggest", lambda *args: [])
    monkeypatch.setattr(command, "solve", lambda *args: (None, None))
    code, out, _ = run_command(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--vram", 0.71, "--solve")
    assert code == 1
    assert "Nothing that was tried fits into 0.71 GiB: use a smaller model" in out
    assert "not even the smallest micro-batch fits" in out
    assert "not even the smallest completion fits" in out
    code, out, _ = run_command(capsys, GSM8K, *small_argv, "--prompt_length", 32, "--vram", 0.5)
    assert code == 1
    assert "the CUDA context and libraries alone take 0.70 GiB" in out


def test_table_is_readable_in_80_columns(capsys, small_argv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    argv = [word if word != "0" else "8" for word in small_argv]  # heldout_size 8 adds the held-out phase
    _, out, _ = run_command(capsys, GSM8K, *argv, "--prompt_length", 32)
    table = out[out.index("\n") : out.index("load is highest at")]  # without the title, which contains the model's name
    for word in ("generation", "training", "optimizer", "held-out", "optimizer states", "peak"):
        assert word in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_measuring_runs_real_steps_in_a_child_process(capsys, small_argv, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    argv = [*small_argv, "--dtype", "float32", "--bf16", "false"]
    code, out, _ = run_command(capsys, GSM8K, *argv, "--prompt_length", 32, "--measure", "--json")
    assert code == 0
    answer = json.loads(out)
    measured = answer["measured"]
    assert measured["device"] == "cpu"
    assert measured["out_of_memory"] is None
    # A CPU's figures are compared with the prediction for a CPU, not for the card
    assert measured["predicted"]["training"] == pytest.approx(measured["peaks"]["training"], rel=0.01)
    assert answer["peaks"]["training"] != measured["predicted"]["training"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gradient_accumulation_steps", "1000000"], "4000000 completions at once; up to 16384"),
        (
            ["--heldout_batch_size", "1000000", "--heldout_size", "8"],
            "heldout_batch_size is 1000000 completions at once",
        ),
        (["--use_vllm", "true", "--vllm_mode", "colocate", "--measure"], "--measure does not run vLLM"),
        (["--vrma", "4"], "vrma is not a field of a recipe; did you mean vram?"),
        (["--model_name_or_path", "Qwen/Qwen2.5-0.5"], "without the hub if you mean Qwen/Qwen2.5-0.5B"),
        (["--max_completion_length", "600"], "exceed the context of 512 tokens"),
        (["--fewshot", "4"], "Give --prompt_length TOKENS"),
        (["--load_in_8bit", "true"], "load_in_8bit: true: the memory prediction does not cover this"),
        (["--use_dora", "true", "--load_in_4bit", "true"], "use_dora: true with load_in_4bit: true"),
        (["--generation_kwargs", "{num_beams: 2}"], "could not be run without the card"),
        (["--max_completion_lenght", "8"], "did you mean max_completion_length?"),
    ],
)
def test_uncovered_recipe_is_one_line_with_the_fix(capsys, small_argv, words, message):
    length = [] if {"--fewshot", "--prompt_length"} & set(words) else ["--prompt_length", "32"]
    argv = list(small_argv)
    for name in words[::2]:
        if name in argv:
            at = argv.index(name)
            del argv[at : at + 2]
    code, out, err = run_command(capsys, GSM8K, *argv, *length, *words)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def parse(*words):
    """The arguments and the left words of `memory`, from a parser with that command only."""
    parser = argparse.ArgumentParser(prog="grpo-math")
    command.add_parser(parser.add_subparsers())
    return parser.parse_known_args(["memory", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vram", "much"], "--vram: much: write a number above 0"),
        (["--vram", "-4"], "--vram: -4: write a number above 0"),
        (["--vram", "inf"], "--vram: inf: write a number above 0"),
        (["--vram="], "--vram: : write a number above 0"),
        (["--vram"], "--vram: expected one argument"),
        (["--json=1"], "--json: ignored explicit argument '1'"),
        (["--prompt_length", "1.5"], "--prompt-length: 1.5: write a whole number above 0"),
        (["--prompt-length", "0"], "--prompt-length: 0: write a whole number above 0"),
        ([], "the following arguments are required: RECIPE"),
    ],
)
def test_wrong_option_is_named_with_its_value(capsys, words, message):
    recipe = [GSM8K] if words else []
    with pytest.raises(SystemExit) as stopped:
        parse(*recipe, *words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.replace("--prompt_length/--prompt-length", "--prompt-length")


def test_options_are_parsed_and_recipe_fields_are_left(capsys):
    args, left = parse(
        GSM8K, "--max_steps", "3", "--vram", "6", "--prompt-length", "32", "--rewards", "a", "b", "--json"
    )
    assert (args.recipe, args.vram, args.prompt_length, args.json) == (str(GSM8K), 6.0, 32, True)
    assert (args.solve, args.measure, args.run) == (False, False, command.run)
    assert left == ["--max_steps", "3", "--rewards", "a", "b"]
    assert parse(GSM8K, "--vra", "6")[1] == ["--vra", "6"]  # no abbreviation, which a recipe's field may be
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for word in ("--vram GIB", "--prompt_length TOKENS", "--solve", "--measure", "--json", "exit code: 0 it fits"):
        assert word in shown
