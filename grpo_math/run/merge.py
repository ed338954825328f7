"""A run's model as one plain folder: the adapter merged into its base, and checked against the adapter itself.

>>> check = merge(Path("outputs/gsm8k"), Path("outputs/gsm8k-merged"))
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import ModelConfig

from grpo_math import models
from grpo_math.errors import ModelError, RecipeError
from grpo_math.evaluation import generate, prompt_ids
from grpo_math.recipe import load_recipe
from grpo_math.run.folder import model_files
from grpo_math.run.heldout import AFTER
from grpo_math.run.saved import end_tokens, recipe_file
from grpo_math.trainer.checkpoints import CARD

CONVERTER = "convert_hf_to_gguf.py"  # of llama.cpp
CHECK_TOKENS = 32
CHECK_PROMPTS = 8
# Of the adapter's own effect on the log-probabilities: what rounding the merged weights may change
ALLOWED_SHARE = 0.1
ROUND_OFF = 1e-4  # nats; below it a difference is arithmetic in another order
FALLBACK_PROMPTS = ("The answer is", "Question: What is 12 plus 30?\nAnswer:", "2 3 = 6 :")


@dataclass
class MergeCheck:
    """
    The saved model against the adapter on its base, over the adapter's own greedy completions.

    Attributes:
        error: Mean absolute difference of the log-probabilities, in nats.
        effect: The same between the adapter and its base without it.
        same, prompts: How many greedy completions are identical, of how many.
    """

    error: float
    effect: float
    same: int
    prompts: int

    @property
    def passed(self) -> bool:
        return self.error <= max(ROUND_OFF, ALLOWED_SHARE * self.effect)

    def __str__(self) -> str:
        return (
            f"{self.same} of {self.prompts} greedy completions are the same; log-probabilities differ by {self.error:.2g} on "
            f"average, and the adapter changed them by {self.effect:.2g}"
        )


def merge(folder: Path, out: Path, dtype: str | None = None) -> MergeCheck | None:
    """Writes a run's model as a plain folder of weights, configuration and tokenizer.

    Args:
        folder: The output_dir of a run or a checkpoint; an adapter is merged, a full model is copied.
        out: A folder that is not there yet; it appears whole or not at all.
        dtype: Of the merged weights; None for the recipe's, else for that in which the base is stored.

    Returns:
        The check of a merged adapter, None for a copy.

    Raises:
        RecipeError, ModelError: where the folder holds no model, `out` exists, or the merged weights are too coarse for
            what the adapter has learned.
    """
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}; name the output_dir of a run")
    if os.path.lexists(out):
        raise RecipeError(f"{out} is there already; name a folder that is not")
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merging-") as temporary:
        target = Path(temporary) / "model"
        if models.adapter_base(str(folder)):
            check = _merge_adapter(folder, target, dtype)
        else:
            check = _copy_model(folder, target, dtype)
        os.replace(target, out)
    return check


def _copy_model(folder: Path, target: Path, dtype: str | None) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds neither an adapter nor a model; name the output_dir of a run that has ended")
    if dtype is not None:
        raise RecipeError(f"--dtype {dtype}: {folder} holds a full model, which is copied as it is")
    target.mkdir()
    for path in [*model_files(folder), *filter(Path.exists, [folder / CARD])]:
        if path.name != "training_args.bin":
            shutil.copy2(path, target)


def _merge_adapter(folder: Path, target: Path, dtype: str | None) -> MergeCheck:
    arguments, stored, trust = _arguments_of(folder)
    tokenizer = models.load_tokenizer(arguments, trust)
    base = ModelConfig(model_name_or_path=models.adapter_base(str(folder)), load_in_4bit=arguments.load_in_4bit,
                       load_in_8bit=arguments.load_in_8bit)  # fmt: skip
    model = models.load_model(base, dtype or stored, trust)
    if arguments.load_in_4bit or arguments.load_in_8bit:
        # The adapter has learned to correct these rounded weights: they are kept, in 16 or 32 bits
        model = model.dequantize()
    model = PeftModel.from_pretrained(model, str(folder)).eval()
    ids = prompt_ids(tokenizer, _prompts(folder))
    greedy = _greedy(model, tokenizer, ids)
    trained = _logps(model, tokenizer, ids, greedy)
    with model.disable_adapter():
        untrained = _logps(model, tokenizer, ids, greedy)
    merged = model.merge_and_unload(safe_merge=True)
    merged.config.use_cache = True
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    del model, merged
    # What counts is what was written
    saved = AutoModelForCausalLM.from_pretrained(target, dtype="auto", trust_remote_code=trust).eval()
    again, texts = _logps(saved, tokenizer, ids, greedy), _greedy(saved, tokenizer, ids)
    check = MergeCheck(
        error=(again - trained).abs().mean().item(),
        effect=(untrained - trained).abs().mean().item(),
        same=sum(a == b for a, b in zip(texts, greedy, strict=True)),
        prompts=len(ids),
    )
    if not check.passed:
        raise ModelError(
            f"merged weights in {str(saved.dtype).removeprefix('torch.')} are too coarse for this adapter ({check}). Nothing "
            "was written; merge with --dtype float32"
        )
    return check


def _arguments_of(folder: Path) -> tuple[ModelConfig, str, bool]:
    """The model settings of the run, the dtype of its base, and whether to trust its code."""
    try:
        recipe = load_recipe(recipe_file(folder))
    except RecipeError:  # an adapter from elsewhere
        return ModelConfig(model_name_or_path=str(folder)), "auto", False
    recipe.model.model_name_or_path = str(folder)
    return recipe.model, recipe.model.dtype, recipe.training.trust_remote_code


def _prompts(folder: Path) -> list:
    """Held-out prompts of the run, where it has kept some."""
    for place in (folder, folder.absolute().parent):
        if (place / AFTER).is_file():
            records = json.loads((place / AFTER).read_text(encoding="utf-8"))["records"]
            if records:
                return [record["prompt"] for record in records[:CHECK_PROMPTS]]
    return list(FALLBACK_PROMPTS)


def _greedy(model: Any, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]]) -> list[str]:
    unused = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
    end = end_tokens(model, tokenizer)
    return generate(
        model, tokenizer, ids, len(ids), max_new_tokens=CHECK_TOKENS, do_sample=False, eos_token_id=end, **unused
    )


@torch.no_grad()
def _logps(model: Any, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]], texts: Sequence[str]) -> Any:
    """Log-probabilities (N,) of all tokens of completions, float32."""
    found = []
    for prompt, text in zip(ids, texts, strict=True):
        completion = tokenizer(text, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        row = torch.tensor([[*prompt, *completion]], device=next(model.parameters()).device)  # (1, P + T)
        logps = model(row).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)  # (T, V)
        found.append(logps.gather(1, row[0, len(prompt) :, None])[:, 0])
    return torch.cat(found)


# --- GGUF -------------------------------------------------------------------------------------------------------------


def gguf_command(folder: Path, file: Path) -> list[str]:
    """llama.cpp's conversion of a plain model's folder to a GGUF file, as words of a command."""
    return [CONVERTER, str(folder), "--outfile", str(file), "--outtype", "auto"]


def convert_to_gguf(folder: Path, file: Path) -> None:
    """Runs llama.cpp's converter.

    Raises:
        ModelError: where it is not on the PATH, with the command; or with its last line where it fails.
    """
    command = gguf_command(folder, file)
    if shutil.which(CONVERTER) is None:
        raise ModelError(
            f"--gguf needs {CONVERTER} of llama.cpp on the PATH. The merged model is in {folder}. Get the converter with\n"
            "  git clone https://github.com/ggml-org/llama.cpp && pip install -r llama.cpp/requirements.txt\nand run\n"
            f"  python llama.cpp/{' '.join(command)}"
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ModelError(f"{CONVERTER} exited with {done.returncode}: {lines[-1]}. The merged model is in {folder}")
