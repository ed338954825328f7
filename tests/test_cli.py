"""The commands explain themselves, and say what is wrong with their words."""

import io
import os
import subprocess
import sys

import pytest

from grpo_math import cli
from grpo_math.recipe import fields
from grpo_math.recipe.names import field_names


def test_commands_explain_themselves(capsys, tmp_path):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert cli.main(["trian"]) == 2
    assert "there is no command 'trian'; did you mean train?" in capsys.readouterr().err
    assert cli.main(["fields", "num_generations_eval"]) == 0
    assert "num_generations_eval: int | None = null   (GRPOMathConfig)" in capsys.readouterr().out
    assert cli.main(["fields", "scale_rewards"]) == 0
    printed = capsys.readouterr().out
    assert "= group   (GRPOMathConfig)\n    choices: group, batch, none, true, false\n" in printed
    assert cli.main(["fields", "learning_rat_"]) == 2
    assert "no field has 'learning_rat_' in its name or help; did you mean learning_rate?" in capsys.readouterr().err
    assert cli.main(["report", os.devnull]) == 2
    (tmp_path / "metrics.jsonl").write_text("not json\n{}\n")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl, line 1 is not a JSON object" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--json"]) == 2
    for name, content in {"metrics.jsonl": '{"reward": 1}\n', "summary.json": "[]"}.items():
        (tmp_path / name).write_text(content)
        assert cli.main(["report", str(tmp_path)]) == 2
        assert "contains a malformed run file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train", ["grpo-math train RECIPE", "--resume_from_checkpoint", "130"]),
        ("eval", ["grpo-math eval RECIPE|FOLDER|MODEL", "--model_name_or_path MODEL", "--heldout_size", "--protocol"]),
        (
            "memory",
            ["--vram GIB", "--prompt_length TOKENS", "--solve", "--measure", "--json", "0 it fits", "1 it does not"],
        ),
        ("sft", ["grpo-math sft RECIPE", "--sft_learning_rate", "OUTPUT_DIR/sft"]),
        ("merge", ["grpo-math merge RUN OUT", "--dtype", "--gguf FILE"]),
        ("chat", ["grpo-math chat RUN", "--problem N", "--raw", "--greedy"]),
        ("report", ["grpo-math report RUN [RUN ...]", "--out FILE", "--no-memory"]),
        ("fields", ["grpo-math fields [TEXT]"]),
    ],
)
def test_each_command_explains_its_options(capsys, command, says):
    assert cli.main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in says)
    if command != "fields":
        assert cli.main([command]) == 2
        assert f"usage: grpo-math {command}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--max_steps", "5", "r.yaml"],
        ["eval", "--use_peft", "true", "r.yaml"],
        ["memory", "--beta=0", "r.yaml"],
    ],
)
def test_overrides_before_the_recipe_are_refused_with_the_right_order(capsys, argv):
    assert cli.main(argv) == 2
    assert f"RECIPE comes first: grpo-math {argv[0]} RECIPE {argv[1]} ..." in capsys.readouterr().err


def test_options_of_a_command_may_come_before_the_recipe(capsys, tmp_path):
    assert cli.main(["memory", "--vram", "8", str(tmp_path / "r.yaml")]) == 2
    assert f"there is no recipe {tmp_path / 'r.yaml'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["memory", "r.yaml", "--vram", "8", "--vram=9"], "--vram is given twice on the command line"),
        (["train", "r.yaml", "--max_steps", "5", "--max-steps", "6"], "--max-steps is given twice"),
        (["chat", "out", "--greedy", "--greedy"], "--greedy is given twice"),
    ],
)
def test_an_option_that_is_given_twice_is_refused(capsys, argv, says):
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err


def test_a_misspelt_field_is_an_error_before_torch_is_imported(tiny_recipe, tmp_path):
    code = (
        "import sys; from grpo_math import cli; code = cli.main(sys.argv[1:]);"
        "sys.exit(9 if 'torch' in sys.modules or 'trl' in sys.modules else code)"
    )

    def said(*argv):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "command line: max_step is not a field of a recipe; did you mean max_steps?" in said(
        "train", str(tiny_recipe), "--max_step", "3"
    )
    assert "loss_type: 'dapoo' is not a choice; did you mean dapo?" in said(
        "train", str(tiny_recipe), "--use_cpu", "--scale_rewards", "false", "--loss_type", "dapoo"
    )
    path = tmp_path / "r.yaml"
    path.write_text("task: countdown\nheldout_size: many\n")
    assert f"{path}: heldout_size: 'many' is a str, but the field takes a whole number" in said("train", str(path))
    path.write_text("task: countdown\nlearning_rat: 1e-5\n")
    assert f"{path}: learning_rat is not a field of a recipe; did you mean learning_rate?" in said("memory", str(path))


def test_the_names_that_are_checked_early_are_those_of_the_schema():
    assert field_names() == set(fields())


def test_a_closed_pipe_ends_a_command_quietly(monkeypatch, tmp_path, capsys):
    """`grpo-math fields | head`"""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return file.fileno()

    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr("sys.stdout", Closed())
        assert cli.main(["fields", "seed"]) == 141
        os.write(file.fileno(), b"into nothing")
    assert (tmp_path / "stdout").read_bytes() == b""
    assert capsys.readouterr().err == ""


def test_a_negative_number_and_a_value_behind_an_equals_sign_reach_the_overrides():
    args, overrides = cli.build_parser()[0].parse_known_args(
        ["train", "r.yaml", "--a", "-0.5", "--b=c d", "--list", "x", "-1"]
    )
    assert args.recipe == "r.yaml"
    assert overrides == ["--a", "-0.5", "--b=c d", "--list", "x", "-1"]


def test_making_the_tiny_model_leaves_standard_output_to_the_answer(tmp_path, monkeypatch, capsys):
    from grpo_math import tiny_model

    def stop():
        raise RuntimeError("far enough")

    monkeypatch.setenv("GRPO_MATH_CACHE", str(tmp_path))
    monkeypatch.setattr(tiny_model, "make_tiny_model", stop)
    with pytest.raises(RuntimeError, match="far enough"):
        tiny_model.tiny_model_folder()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Making builtin/countdown-tiny" in printed.err
