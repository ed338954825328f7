"""A recipe is valid YAML, a Python script and nothing but known fields; what is wrong in it is said before anything loads."""

import ast
import dataclasses
import types
import typing

import pytest
import yaml
from conftest import RECIPES, ROOT

from grpo_math.errors import RecipeError
from grpo_math.recipe import dump, fields, load_recipe, read_yaml, schema
from grpo_math.recipe.sources import checked_values
from grpo_math.tasks import TASKS, TaskConfig

ids = [path.stem for path in RECIPES]


def write(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


# --- the shipped recipes ----------------------------------------------------------------------------------------------


def test_there_are_recipes():
    assert {"countdown_tiny", "gsm8k", "countdown", "gsm8k_full", "report_gsm8k", "report_countdown"} <= set(ids)


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_yaml_and_python_see_the_same_recipe(path):
    tree = ast.parse(path.read_text())
    # Python sees: an annotation `launch: <string>`, an import, a call.
    annotation, imported, call = tree.body
    assert annotation.target.id == "launch"
    assert imported.module == "grpo_math.cli"
    assert ast.unparse(call) == "launch(__file__, __name__)"
    # The string that Python skips is YAML for exactly the values that YAML reads from the whole file.
    assert yaml.safe_load(annotation.annotation.value) == read_yaml(path)
    assert yaml.safe_load(path.read_text())["launch"] == 'r"""'


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_every_field_is_known_and_its_value_fits(path):
    assert set(checked_values(path)) == set(read_yaml(path))


@pytest.mark.parametrize("path", RECIPES, ids=ids)
def test_every_value_is_on_a_line_with_a_reason_or_under_a_heading(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"accelerate launch recipes/{path.name}" in lines[0]
    assert any(line.startswith("# What to expect") for line in lines)
    commented = sum(" #" in line for line in lines if line[:1].isalpha())
    assert commented >= 10


def test_a_recipe_that_is_imported_does_nothing(monkeypatch):
    called = []
    monkeypatch.setattr("grpo_math.cli.main", lambda argv: called.append(argv))
    code = compile((ROOT / "recipes" / "gsm8k.yaml").read_text(), "gsm8k.yaml", "exec")
    exec(code, {"__name__": "__mp_main__", "__file__": "gsm8k.yaml"})
    assert called == []
    monkeypatch.setattr("sys.argv", ["gsm8k.yaml", "--max_steps", "3"])
    with pytest.raises(SystemExit):
        exec(code, {"__name__": "__main__", "__file__": "gsm8k.yaml"})
    assert called == [["train", "gsm8k.yaml", "--max_steps", "3"]]


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--max_steps", "7"], "max_steps", 7),
        (["--max-steps=7"], "max_steps", 7),
        (["--learning_rate", "1e-6"], "learning_rate", 1e-6),
        (
            ["--rewards", "countdown_accuracy", "think_answer_format"],
            "rewards",
            ["countdown_accuracy", "think_answer_format"],
        ),
        (["--rewards", "countdown_accuracy"], "rewards", ["countdown_accuracy"]),
        (["--countdown_operands", "2", "3"], "countdown_operands", [2, 3]),
        (["--reward_weights", "1.0", "0.5"], "reward_weights", [1.0, 0.5]),
        (["--run_name", "5"], "run_name", "5"),
        (["--use_peft"], "use_peft", True),
        (["--bf16", "false"], "bf16", False),
        (["--train_size", "null"], "train_size", None),
        (["--generation_kwargs", "{min_new_tokens: 2}"], "generation_kwargs", {"min_new_tokens": 2}),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint", True),
        (["--resume_from_checkpoint", "some/folder"], "resume_from_checkpoint", "some/folder"),
        (["--warmup_steps", "0.1"], "warmup_steps", 0.1),
        (["--scale_rewards", "false"], "scale_rewards", False),
        (["--beta", "-0.5"], "beta", -0.5),
        (["--lora_target_modules", "q_proj"], "lora_target_modules", ["q_proj"]),
    ],
)
def test_an_override_takes_the_fields_type(tiny_recipe, argv, field, value):
    got = checked_values(tiny_recipe, argv)[field]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--num_generations", "3.5"], ["num_generations", "3.5", "whole number"]),
        (["--loss_type", "dpao"], ["loss_type", "dpao", "did you mean dapo"]),
        (["--learning_rat", "1"], ["learning_rat", "did you mean learning_rate"]),
        (["--bf16", "perhaps"], ["bf16", "perhaps", "true or false"]),
        (["--optim", "adamw_trch"], ["optim", "did you mean adamw_torch"]),
        (["--prompt_style", "thnk"], ["prompt_style", "did you mean think"]),
        (["--dtype", "bf16"], ["dtype", "bfloat16"]),
        (["--max_steps"], ["max_steps", "no value"]),
        (["--output_dir", "--max_steps", "5"], ["--output_dir has no value"]),
        (["--max_steps", "3", "--max_steps", "4"], ["--max_steps", "twice"]),
        (["recipes"], ["recipes", "--field value"]),
        (["--lr_scheduler_type", "cosin"], ["did you mean cosine"]),
        (["--learning_rate", "fast"], ["learning_rate", "fast", "number"]),
        (["--lora_dropout", "{a: 1}"], ["lora_dropout", "a number"]),
        (["--countdown_operands", "two"], ["countdown_operands", "two", "list of a whole number"]),
    ],
)
def test_a_wrong_override_names_the_value_and_the_fix(tiny_recipe, argv, says):
    with pytest.raises(RecipeError) as caught:
        checked_values(tiny_recipe, argv)
    assert all(word in str(caught.value) for word in ["command line", *says][1 if argv[-1] == "4" else 0 :])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_steps: 1\nmax_steps: 2\n", ["line 2", "max_steps", "duplicate key"]),
        ("- a\n- b\n", ["keys and values", "list"]),
        ("a: [1\n", ["not valid YAML"]),
        ("a: 2026-99-99\n", ["not valid YAML", "month must be in 1..12"]),
        ("max_step: 3\n", ["max_step", "did you mean max_steps"]),
        ("loss_type: dpao\n", ["loss_type", "dapo"]),
        ("num_generations: 3.5\n", ["num_generations", "3.5"]),
        ("max_steps: yes\n", ["max_steps", "True", "whole number"]),
        ("launch: x\nheldout_size: -1\n", ["heldout_size", "-1"]),
        ("num_generations: 3\nper_device_train_batch_size: 4\n", ["generation_batch_size (4)", "num_generations (3)"]),
        ("report_to: wandbb\n", ["report_to", "did you mean wandb"]),
        ("temperature: 0\n", ["temperature: 0", "above 0"]),
    ],
)
def test_a_wrong_recipe_names_the_file_and_the_fix(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert all(word in str(caught.value) for word in [str(path), *says])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--learning_rate", "-1"], ["learning_rate: -1", "at least 0"]),
        (["--learning_rate", "nan"], ["learning_rate: nan", "at least 0"]),
        (["--beta", ".nan"], ["beta: nan", "at least 0"]),
        (["--warmup_steps", "-3"], ["warmup_steps: -3", "at least 0"]),
        (["--per_device_train_batch_size", "0"], ["per_device_train_batch_size: 0", "at least 1"]),
        (["--gradient_accumulation_steps", "-2"], ["gradient_accumulation_steps: -2", "at least 1"]),
        (["--num_generations", "0"], ["num_generations: 0", "2 or more"]),
        (["--steps_per_generation", "0"], ["steps_per_generation: 0", "at least 1"]),
        (["--use_peft", "--lora_r", "0"], ["lora_r: 0", "at least 1"]),
        (["--use_peft", "--lora_dropout", "1"], ["lora_dropout: 1", "below 1"]),
        (["--max_steps", "0"], ["max_steps: 0", "grpo-math eval", "-1"]),
        (["--reward_weights", "inf"], ["reward_weights: [inf]", "finite"]),
        (["--seed", "-1"], ["seed: -1", "4294967295"]),
        (["--temperature", "0"], ["temperature: 0", "above 0"]),
        (["--num_generations", "3"], ["num_generations (3)"]),
        (["--report_to", "wandbb"], ["did you mean wandb"]),
        (["--load_in_4bit", "true"], ["load_in_4bit: true", "use_peft: true"]),
        (["--lora_r", "8"], ["lora_r: 8", "without use_peft: true"]),
        (["--lora_dropout", "0"], ["lora_dropout: 0", "without use_peft: true"]),
        (["--use_dora", "true"], ["use_dora: True", "without use_peft: true"]),
    ],
)
def test_a_value_that_no_run_can_use_is_refused_and_the_command_line_is_named(tiny_recipe, argv, says):
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe, argv)
    assert str(caught.value).startswith("command line: ")
    assert all(word in str(caught.value) for word in says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argv", [["--max_steps", "-1"], ["--learning_rate", "0"], ["--save_total_limit", "null"]])
def test_values_on_the_edge_of_what_a_run_can_use_are_taken(tiny_recipe, argv):
    assert load_recipe(tiny_recipe, argv).overrides == {argv[0][2:]}


def test_the_file_is_named_for_its_own_values(tmp_path, tiny_recipe):
    path = write(tmp_path, "learning_rate: -1\nbeta: 0.1\n")
    with pytest.raises(RecipeError, match=rf"^{path}: learning_rate: -1"):
        load_recipe(path, ["--beta", "0.2"])
    recipe = load_recipe(tiny_recipe, ["--beta", "0.2"])
    assert recipe.place("beta", "learning_rate") == "command line"
    assert recipe.place("learning_rate") == str(tiny_recipe)


def test_a_recipes_adapter_can_be_switched_off_and_the_dumped_recipe_loads(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "gsm8k.yaml", ["--use_peft", "false"])
    assert not recipe.model.use_peft
    assert not load_recipe(write(tmp_path, dump(recipe.values, "a run"))).model.use_peft
    with pytest.raises(RecipeError, match=r"r\.yaml: lora_r: 8 has no effect without use_peft"):
        load_recipe(write(tmp_path, "lora_r: 8\n"))


def test_the_settings_class_is_that_of_the_recipes_task(tiny_recipe):
    countdown = load_recipe(tiny_recipe).task
    assert (type(countdown).__name__, countdown.countdown_max) == ("CountdownConfig", 50)
    gsm8k = load_recipe(ROOT / "recipes" / "gsm8k.yaml").task
    assert type(gsm8k).__name__ == "TaskConfig"
    assert not hasattr(gsm8k, "countdown_max")


@pytest.mark.parametrize("text", ["task: gsm8k\n", ""])
def test_a_field_of_another_task_is_rejected(tmp_path, text):
    path = write(tmp_path, f"{text}countdown_min: 5\n")
    fix = "countdown_min: 5 has no effect with task gsm8k: leave it out, or set task: countdown"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}: {fix}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(ROOT / "recipes" / "gsm8k.yaml", ["--countdown_min", "5"])
    assert str(caught.value) == f"command line: {fix}"
    assert load_recipe(path, ["--task", "countdown"]).task.countdown_min == 5


def test_unknown_task_is_rejected_with_its_place(tmp_path, tiny_recipe):
    says = r"task: 'gsm9k' is not known; did you mean gsm8k\? \(choices: gsm8k, countdown, or a file, my_task\.py\)"
    with pytest.raises(RecipeError, match=f"^command line: {says}$"):
        load_recipe(tiny_recipe, ["--task", "gsm9k"])
    path = write(tmp_path, "task: gsm9k\n")
    with pytest.raises(RecipeError, match=f"^{path}: {says}$"):
        load_recipe(path, ["--max_steps", "3"])


def test_an_own_task_brings_recipe_fields_of_its_own(tmp_path, monkeypatch):
    @dataclasses.dataclass
    class ParityConfig(TaskConfig):
        parity_max: int = 9

    parity = types.ModuleType("parity")
    parity.CONFIG = ParityConfig
    monkeypatch.setitem(TASKS, "parity", parity)
    path = write(tmp_path, "task: parity\nparity_max: 5\nheldout_size: 7\n")
    assert load_recipe(path).task == ParityConfig(task="parity", parity_max=5, heldout_size=7)
    with pytest.raises(RecipeError, match=r"parity_max: 5 has no effect with task countdown: .* set task: parity$"):
        load_recipe(path, ["--task", "countdown"])


def test_one_target_module_is_a_name_and_not_a_pattern(tiny_recipe):
    def targets(*words):
        return load_recipe(tiny_recipe, ["--use_peft", "--lora_target_modules", *words]).model.lora_target_modules

    assert targets("q_proj") == ["q_proj"]
    assert targets("q_proj", "v_proj") == ["q_proj", "v_proj"]
    assert targets("all-linear") == "all-linear"
    assert targets(".*q_proj") == ".*q_proj"


def test_every_range_is_that_of_a_field():
    assert set(schema.RANGES) <= set(fields())


def test_a_missing_recipe_is_named_with_the_nearest(tiny_recipe):
    with pytest.raises(RecipeError, match=r"did you mean .*countdown_tiny\.yaml"):
        load_recipe(tiny_recipe.with_name("countdown_tny.yaml"))


def test_non_recipe_file_is_rejected(tmp_path, tiny_recipe):
    with pytest.raises(RecipeError, match=r"is a folder, not a recipe; it holds .*countdown_tiny\.yaml"):
        load_recipe(tiny_recipe.parent)
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=rf"{path} is not valid YAML"):
        load_recipe(path)


def test_what_is_dumped_reads_back(tmp_path, tiny_recipe):
    values = checked_values(tiny_recipe, ["--countdown_operators", "+-"])
    path = write(tmp_path, dump({**values, "resume_from_checkpoint": True}, "a run"))
    assert read_yaml(path) == values
    ast.parse(path.read_text())


# --- the schema -------------------------------------------------------------------------------------------------------


def test_choices_are_those_of_trl():
    """The values that TRL lists in a field's help are the ones we allow."""
    known = fields()
    for name in (
        "loss_type",
        "importance_sampling_level",
        "multi_objective_aggregation",
        "vllm_importance_sampling_mode",
    ):
        text = known[name][1].metadata["help"]
        for choice in schema.CHOICES[name]:
            assert f"'{choice}'" in text, (name, choice)
    for choice in known["loss_type"][1].metadata["help"].split("Supported values are ")[1].split(". ")[0].split(","):
        assert choice.replace("and", "").strip(" '") in schema.CHOICES["loss_type"]


def test_no_field_belongs_to_two_classes():
    classes = schema.config_classes()
    names = []
    for cls in classes:
        inherited = {f.name for base in cls.__bases__ if base in classes for f in dataclasses.fields(base)}
        names += [f.name for f in dataclasses.fields(cls) if f.init and f.name not in inherited]
    assert len(names) == len(set(names))


def test_a_field_is_owned_by_the_class_that_brings_it():
    owners = {name: cls.__name__ for name, (cls, *_) in fields().items()}
    assert owners["task"] == owners["heldout_size"] == "TaskConfig"
    assert {owner for name, owner in owners.items() if name.startswith("countdown_")} == {"CountdownConfig"}
    assert owners["dynamic_sampling"] == owners["learning_rate"] == "GRPOMathConfig"
    assert owners["lora_r"] == "ModelConfig"


def test_every_default_passes_its_own_check():
    for name, (_, field, hint) in fields().items():
        if field.default is not dataclasses.MISSING and name not in ("parallelism_config",):
            default = field.default.value if hasattr(field.default, "value") else field.default
            if default is None and type(None) not in typing.get_args(hint):
                continue  # a few fields of transformers are None until __post_init__ fills them
            assert schema.coerce(name, default, hint, field, "defaults", from_text=False) in (default, [default])


def test_broken_yaml_is_named_by_its_line(tmp_path):
    path = write(tmp_path, "task: countdown\nmax_steps 1500\nseed: 1\n")
    with pytest.raises(RecipeError, match=r"r\.yaml, line 2 is not valid YAML: could not find expected ':'"):
        read_yaml(path)


def test_groups_that_do_not_divide_a_generation_come_with_sizes_that_do(tiny_recipe):
    words = ["--num_generations", "7", "--per_device_train_batch_size", "24"]
    with pytest.raises(RecipeError, match=r"has 24 completions; num_generations may be 2, 3, 4, 6, 8, 12, 24\."):
        load_recipe(tiny_recipe, words)
    with pytest.raises(RecipeError, match=r"num_generations may be 67\."):
        load_recipe(tiny_recipe, ["--num_generations", "7", "--per_device_train_batch_size", "67"])
    with pytest.raises(RecipeError, match="one completion makes no group"):
        load_recipe(tiny_recipe, ["--num_generations", "2", "--per_device_train_batch_size", "1"])


def test_fields_of_an_adapter_beside_a_saved_one_are_refused_from_the_command_line(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "builtin/countdown-tiny"}')
    words = ["--model_name_or_path", str(folder)]
    assert load_recipe(ROOT / "recipes" / "gsm8k.yaml", words).model.lora_r == 32  # the recipe's own may stand
    load_recipe(ROOT / "recipes" / "gsm8k.yaml", [*words, "--use_dora", "false"])  # asks for nothing
    with pytest.raises(RecipeError, match=r"command line: lora_r: 64 has no effect: .*adapter is a saved adapter"):
        load_recipe(ROOT / "recipes" / "gsm8k.yaml", [*words, "--lora_r", "64"])
