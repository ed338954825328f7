"""A folder with random weights of the published Qwen2.5-0.5B shape and the real tokenizer: everything but the weights.

`python -m benchmarks random_qwen FOLDER TOKENIZER_FOLDER` writes it, so that a recipe can be run as written where the
real weights cannot be had: `accelerate launch recipes/gsm8k.yaml --model_name_or_path FOLDER --max_steps 2`.
Shape: https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/config.json
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from grpo_math import memory

SHAPE = {**memory.SHAPES["Qwen/Qwen2.5-0.5B"], "rope_theta": 1e6}


def make_random_qwen(folder: Path, tokenizer_folder: str | Path, seed: int = 0) -> Path:
    """Write the model (bfloat16, about 1 GB) and the tokenizer to `folder`, and return it."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = Qwen2Config(**SHAPE, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks random_qwen", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("tokenizer", type=Path, help="folder of the Qwen2.5 tokenizer")
    args = parser.parse_args(argv)
    print(f"Wrote {make_random_qwen(args.folder, args.tokenizer)}")
    return 0
