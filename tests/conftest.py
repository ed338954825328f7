"""Shared fixtures. Nothing here needs a GPU, a hub or data outside the repository."""

import contextlib
import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
GSM8K = ROOT / "recipes" / "gsm8k.yaml"
LOCAL_DATA = ("GRPO_MATH_GSM8K", "GRPO_MATH_COUNTDOWN")  # environment variables that name data sets


@pytest.fixture(autouse=True)
def _imports_are_no_garbage():
    """Every `train()` collects garbage, which takes ten times as long as a tiny step if it walks all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _tiny_cache(tmp_path_factory):
    """The built-in model is made for the whole test run, in a folder of its own that parallel workers share."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["GRPO_MATH_CACHE"] = str(base / "cache")


@pytest.fixture
def no_local_data(monkeypatch):
    """The data sets that the caller's environment names do not reach the test."""
    for name in LOCAL_DATA:
        monkeypatch.delenv(name, raising=False)


GSM8K_ROWS = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    },
    {"question": "A car costs $1,450,000. What does it cost?", "answer": "It costs $1,450,000.\n#### 1,450,000"},
    {"question": "What is 3 minus 5?", "answer": "3 - 5 = <<3-5=-2>>-2\n#### -2"},
    {"question": "What is half of 5?", "answer": "5 / 2 = <<5/2=2.5>>2.5\n#### 2.5"},
    *({"question": f"What is {n} plus {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(20)),
]


@pytest.fixture
def gsm8k_folder(tmp_path):
    """A folder with train.jsonl and test.jsonl in GSM8K's form."""
    import json

    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for name, rows in (
        ("train", GSM8K_ROWS),
        ("test", [{**row, "question": "Again: " + row["question"]} for row in GSM8K_ROWS[:6]]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextlib.contextmanager
def own_files_forgotten():
    """Takes out again the tasks and modules that a test's own files bring."""
    from grpo_math.tasks import TASKS

    kept = dict(TASKS), dict(sys.modules), list(sys.path)
    try:
        yield
    finally:
        for name in set(TASKS) - set(kept[0]):
            sys.modules.pop(TASKS.pop(name).__name__, None)
        for name in set(sys.modules) - set(kept[1]):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if str(Path(file).parent) in set(sys.path) - set(kept[2]):
                del sys.modules[name]
        sys.path[:] = kept[2]


SHORT = ["--max_steps", "2", "--logging_steps", "1", "--heldout_size", "4", "--heldout_generations", "2"]


def run(recipe, folder, *overrides):
    """`grpo-math train RECIPE --output_dir FOLDER ...` in this process; its exit code."""
    from grpo_math import cli

    return cli.main(["train", str(recipe), "--output_dir", str(folder), "--disable_tqdm", "true", *overrides])


@pytest.fixture
def tiny_recipe():
    return ROOT / "recipes" / "countdown_tiny.yaml"


@pytest.fixture
def short():
    """Overrides that make a run of any recipe take seconds."""
    return SHORT


@pytest.fixture(scope="session")
def small_shape(tmp_path_factory):
    """A folder with the configuration of a model of two small layers."""
    from benchmarks.memory import shape_folder

    return shape_folder(tmp_path_factory.mktemp("shape"))


@pytest.fixture
def small_values(small_shape):
    """Overrides that give gsm8k.yaml the small shape and 4 x 4 rows of 32 + 24 tokens, on a CPU."""
    from benchmarks.memory import COMMON

    return {**COMMON, "model_name_or_path": small_shape, "gradient_accumulation_steps": 4, "heldout_size": 0}


@pytest.fixture(scope="session")
def shallow_shape(small_shape, tmp_path_factory):
    """The small shape with one layer, for tests that compare predictions with each other."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("shallow")
    AutoConfig.from_pretrained(small_shape, num_hidden_layers=1, layer_types=["full_attention"]).save_pretrained(folder)
    return folder


@pytest.fixture
def small_argv(small_values, shallow_shape):
    """The words of `small_values` for a prediction, with one layer and without `--use_cpu`."""
    from grpo_math.memory import as_arguments

    values = {**small_values, "model_name_or_path": shallow_shape}
    return as_arguments({name: value for name, value in values.items() if name != "use_cpu"})


@pytest.fixture(scope="session")
def _made_predictions():
    return {}


@pytest.fixture
def kept_predictions(monkeypatch, _made_predictions):
    """The advice makes each prediction once for the whole test run: equal arguments give equal predictions."""
    import copy
    import json

    from grpo_math.memory import advice, command, predict

    def kept(*args, **kwargs):
        key = json.dumps([args, kwargs], default=str)
        if key not in _made_predictions:
            _made_predictions[key] = predict(*args, **kwargs)
        return copy.deepcopy(_made_predictions[key])

    monkeypatch.setattr(advice, "predict", kept)
    monkeypatch.setattr(command, "predict", kept)


@pytest.fixture(scope="session")
def saved_adapter(tmp_path_factory, small_shape):
    """The folder of an adapter on the small shape, with a higher rank than the recipe's own."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    base = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small_shape)).save_pretrained(base)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=64, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_chat_model(tmp_path_factory):
    """A folder with a randomly initialised Llama of two small layers and a character tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", "<start>", *letters]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<start>"
    )
    fast.chat_template = (
        "{% for m in messages %}<start>{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<start>assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
                         pad_token_id=0, eos_token_id=1, bos_token_id=2)  # fmt: skip
    folder = tmp_path_factory.mktemp("small-chat-model")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
