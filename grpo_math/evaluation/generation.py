"""Completions for measuring: prompts as TRL's trainer tokenises them, batches by length, the training run's sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import StoppingCriteriaList, StopStringCriteria
from trl.data_utils import is_conversational

from grpo_math.decoding import decode


def prompt_ids(
    tokenizer: Any, prompts: Sequence[str | list[dict]], chat_template_kwargs: dict | None = None
) -> list[list[int]]:
    """Token ids of TRL prompts, tokenised as TRL's trainer does it (conversations through the chat template)."""
    if not prompts:
        return []
    if is_conversational({"prompt": prompts[0]}):
        return tokenizer.apply_chat_template(
            list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    return tokenizer(text=list(prompts))["input_ids"]


def sampling_of(args: Any) -> dict[str, Any]:
    """The sampling settings of TRL's training, so that the measured policy is the trained one."""
    return {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        **(args.generation_kwargs or {}),
    }


def _can_write(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer can write a text inside another word, where `StopStringCriteria` looks for it."""
    written = f"abcdef{text}"
    return written in tokenizer.decode(tokenizer(text=written, add_special_tokens=False)["input_ids"])


class Completion(NamedTuple):
    """A completion's text, its tokens (the end token counts), and whether `max_new_tokens` cut it off."""

    text: str
    length: int
    truncated: bool


def generate(
    model: Any,
    tokenizer: Any,
    ids: Sequence[list[int]],
    batch_size: int,
    stop_strings: Sequence[str] = (),
    progress: str | None = None,
    **generation,
) -> list[str]:
    """Completions of tokenised prompts, in order.

    Prompts are generated longest first, in batches of similar length: little padding, and a batch that does not fit
    fails at once.

    Args:
        model: a causal language model, already in evaluation mode.
        tokenizer: its tokenizer, padding on the left.
        ids: token ids of each prompt.
        batch_size: completions generated at once.
        stop_strings: a completion ends after one of these.
        progress: label of the progress bar; None for none.
        generation: arguments of `model.generate`: `max_new_tokens`, `do_sample`, `temperature`, ...
    """
    texts = [""] * len(ids)
    for i, text, _ in _generated(model, tokenizer, ids, batch_size, stop_strings, progress, generation):
        texts[i] = text
    return texts


def generate_completions(
    model: Any,
    tokenizer: Any,
    ids: Sequence[list[int]],
    batch_size: int,
    stop_strings: Sequence[str] = (),
    progress: str | None = None,
    **generation,
) -> list[Completion]:
    """`generate` with the length of each completion, and whether it was cut off; `max_new_tokens` is needed."""
    ends = generation.get("eos_token_id") or model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    made: list[Any] = [None] * len(ids)
    for i, text, new in _generated(model, tokenizer, ids, batch_size, stop_strings, progress, generation):
        tokens = new.tolist()
        end = next((at for at, token in enumerate(tokens) if token in ends), None)
        # Padding without an end token before it follows a stop string
        padding = next((at for at, token in enumerate(tokens) if token == tokenizer.pad_token_id), len(tokens))
        length = padding if end is None else end + 1
        stopped = end is not None or padding < len(tokens) or any(stop in text for stop in stop_strings)
        made[i] = Completion(text, length, not stopped and length >= generation["max_new_tokens"])
    return made


@torch.no_grad()
def _generated(
    model: Any,
    tokenizer: Any,
    ids: Sequence[list[int]],
    batch_size: int,
    stop_strings: Sequence[str],
    progress: str | None,
    generation: dict,
) -> Iterator[tuple[int, str, torch.Tensor]]:
    """The number of each prompt, its completion's text, and its completion's tokens, of shape (T,), padded."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    device = next(model.parameters()).device
    # transformers' criterion fails on a text that the tokenizer cannot write, such as white space in a word tokenizer.
    # Leaving the text out only makes completions longer: what follows it is never read.
    stop_strings = [text for text in stop_strings if _can_write(tokenizer, text)]
    criteria = [StopStringCriteria(tokenizer, stop_strings)] if stop_strings else []
    hidden = True if progress is None else None  # None: only in a terminal
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=hidden, leave=False):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        out = model.generate(
            **batch.to(device),
            pad_token_id=tokenizer.pad_token_id,
            custom_generate=decode,  # samples of one prompt stand side by side and share its prefill
            stopping_criteria=StoppingCriteriaList(criteria),
            **generation,
        )
        new = out[:, batch["input_ids"].shape[1] :]
        yield from zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), new, strict=True)
