"""TRL's own GRPO tests with stock TRL, then with our trainer in its place, every option at its default: what is lost?

`python -m benchmarks trl_tests FOLDER` takes a checkout of TRL, whose `tests/test_grpo_trainer.py` it runs with the installed
TRL. The tests name small models and data sets on the hub. Stand-ins of the same kinds are made here, so that no hub is asked. A
test that needs anything else (images, vLLM, a model without a stand-in) fails with both trainers and says nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import transformers
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import common

ORGANISATION = "trl-internal-testing"
TEST_FILE = "test_grpo_trainer.py"
REVISION = "0" * 40
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
# Name on the hub -> class, chat template of TRL's, further settings
STAND_INS = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2ForCausalLM", "qwen2_5", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2ForSequenceClassification", "qwen2_5", {"num_labels": 1}),
    "tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 8}),
    "tiny-Qwen3ForSequenceClassification": (
        "Qwen3ForSequenceClassification",
        "qwen3",
        {"num_labels": 1, "head_dim": 8},
    ),
    "tiny-Qwen3MoeForCausalLM": ("Qwen3MoeForCausalLM", "qwen3", {**EXPERTS, "head_dim": 8}),
    "tiny-LlamaForCausalLM-3.2": ("LlamaForCausalLM", "llama3", {}),
    "tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", "llama3", {"num_labels": 1}),
    "tiny-MistralForCausalLM-0.2": ("MistralForCausalLM", "qwen2_5", {"head_dim": 8}),
    "tiny-Gemma2ForCausalLM": ("Gemma2ForCausalLM", "gemma", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "tiny-Cohere2ForCausalLM": ("Cohere2ForCausalLM", "cohere2", {}),
    "tiny-GptOssForCausalLM": ("GptOssForCausalLM", "gptoss", {**EXPERTS, "head_dim": 8}),
    "tiny-Glm4MoeForCausalLM": ("Glm4MoeForCausalLM", "glm4moe", {"n_routed_experts": 4, "moe_intermediate_size": 16}),
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template of TRL's."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=[SPECIAL[1]],
    )
    fast.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text(
        encoding="utf-8"
    )
    return fast


def make_stand_ins(cache: Path) -> None:
    """Writes every stand-in into a folder that is laid out as the hub's cache."""
    for name, (kind, template, settings) in STAND_INS.items():
        folder = cache / f"models--{ORGANISATION}--{name}"
        fast = tokenizer(template)
        model_class = getattr(transformers, kind)
        model_class(model_class.config_class(**SHAPE, vocab_size=len(fast), **settings)).save_pretrained(
            folder / "snapshots" / REVISION
        )
        fast.save_pretrained(folder / "snapshots" / REVISION)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(REVISION, encoding="utf-8")


def run_tests(work: Path, ours: bool, selection: str | None) -> dict[str, str]:
    """Test -> passed, failed or skipped."""
    results = work / f"{'ours' if ours else 'stock'}.xml"
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(work / "hub"),
        "HF_HUB_OFFLINE": "1",
        "GRPO_MATH_TRL_TESTS": "ours" if ours else "stock",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(common.RESULTS.parents[1]), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.trl_tests_plugin", "-p", "no:cacheprovider"]
    command += ["--junitxml", str(results), f"tests/{TEST_FILE}", "-c", os.devnull, "--rootdir", str(work)]
    command += ["-k", selection] if selection else []
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # not even collected
        raise SystemExit(done.stdout[-4000:] + done.stderr[-4000:])
    found = {}
    for case in ET.parse(results).iter("testcase"):
        failed = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        found[f"{case.get('classname')}::{case.get('name')}"] = (
            "failed" if failed else "skipped" if skipped else "passed"
        )
    return found


def report(stock: dict[str, str], ours: dict[str, str], version: str) -> str:
    """Counts, and the tests that stock passes and ours does not."""
    lost = sorted(test for test, outcome in stock.items() if outcome == "passed" and ours.get(test) != "passed")
    rows = [
        [o, *(sum(x == o for x in found.values()) for found in (stock, ours))] for o in ("passed", "failed", "skipped")
    ]
    rows = [[str(cell) for cell in row] for row in rows]
    text = ["# TRL's own GRPO tests", "", common.machine_line(), ""]
    text += [
        f"`tests/{TEST_FILE}` of TRL {version}, with stand-ins for the models and data sets that the hub would give. Tests "
        "that fail with both need images, vLLM, or what this TRL does not have.",
        "",
        common.table(["outcome", "stock TRL", "ours, every option at its default"], rows),
        "",
        f"Lost: {len(lost)} of the tests that stock passes{':' if lost else '.'}",
    ]
    return "\n".join([*text, *(["", *(f"- `{test}`" for test in lost)] if lost else [])])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks trl_tests", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkout of TRL, with its folder `tests` and its file VERSION")
    parser.add_argument("-k", dest="selection", help="only tests with this expression, as in pytest; writes no results")
    args = parser.parse_args(argv)
    if not (args.folder / "tests" / TEST_FILE).exists():
        raise SystemExit(f"{args.folder}: there is no tests/{TEST_FILE}; give a checkout of github.com/huggingface/trl")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        shutil.copytree(args.folder / "tests", work / "tests")
        make_stand_ins(work / "hub")
        stock, ours = (run_tests(work, mine, args.selection) for mine in (False, True))
    version = (args.folder / "VERSION").read_text(encoding="utf-8").strip()
    if args.selection:
        print(report(stock, ours, version))
        print(json.dumps({"stock": stock, "ours": ours}, indent=1))
    else:
        common.save("trl_tests", report(stock, ours, version), {"stock": stock, "ours": ours})
    return 0
