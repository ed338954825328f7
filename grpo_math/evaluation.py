"""Accuracy on held-out problems, with confidence intervals: sampled pass@1, pass@k, greedy.

Sampled completions of one problem are not independent, so the interval of the sampled accuracy is that of the mean over
problems.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import StoppingCriteriaList, StopStringCriteria
from trl.data_utils import is_conversational

from grpo_math.decoding import decode

Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal


class Interval(NamedTuple):
    """A share in [0, 1] with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(value: float, n: float) -> Interval:
    """The Wilson score interval of a share `value` among `n` independent trials (Wilson 1927, JASA 22).

    Raises:
        ValueError: for n <= 0 or a share outside [0, 1].
    """
    if n <= 0 or not 0 <= value <= 1:
        raise ValueError(f"a share in [0, 1] of n > 0 trials is needed, not value={value}, n={n}")
    centre = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2))
    # At 0 and 1 a bound equals the share; round-off must not push it past.
    return Interval(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)))


def clustered(correct: Sequence[Sequence[float]]) -> Interval:
    """Mean accuracy over problems with k samples each, and its 95 % interval.

    The standard error is that of the mean of the per-problem means, SE^2 = var(means) / n, which counts the dependence
    of samples of one problem (Miller 2024, arXiv 2411.00640, eq. 4 for equal clusters). It enters the Wilson interval
    as an effective number of trials p (1 - p) / SE^2, at least the number of problems where all means agree.

    Args:
        correct: per problem its k outcomes in {0, 1}; at least one problem.
    """
    means = [sum(c) / len(c) for c in correct]
    n = len(means)
    value = sum(means) / n
    variance = sum((m - value) ** 2 for m in means) / max(n - 1, 1) / n
    return wilson(value, value * (1 - value) / variance if variance > 0 else n)


def pass_at_k(n: int, c: int, k: int) -> float:
    """P(at least one of k completions is right), unbiased from n samples of which c are right.

    1 - C(n - c, k) / C(n, k)      (Chen et al. 2021, arXiv 2107.03374, eq. 1)
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"0 <= c <= n and 1 <= k <= n are needed, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@dataclass
class Accuracy:
    """What was measured on the held-out problems.

    Attributes:
        sampled: accuracy of a completion drawn at the training temperature (pass@1).
        greedy: accuracy of the greedy completion.
        pass_at_k: P(at least one of k sampled completions is right), k samples a problem.
        k: samples per problem.
        by_kind: sampled accuracy per class of problem.
        n: number of problems.
        records: one dict a problem: prompt, its first sampled completion, the greedy one, and their outcomes.
    """

    sampled: Interval
    greedy: Interval
    pass_at_k: float
    k: int
    by_kind: dict[str, float]
    n: int
    records: list[dict]


def summarise(
    kinds: Sequence[str], correct: Sequence[Sequence[float]], greedy: Sequence[float], records: list[dict]
) -> Accuracy:
    """Outcomes -> figures. `correct` is (problems, k) and `greedy` (problems,), both in {0, 1}."""
    k = len(correct[0])
    per_kind = defaultdict(list)
    for kind, outcomes in zip(kinds, correct, strict=True):
        per_kind[kind] += outcomes
    return Accuracy(
        sampled=clustered(correct),
        greedy=wilson(sum(greedy) / len(greedy), len(greedy)),
        pass_at_k=sum(pass_at_k(k, round(sum(c)), k) for c in correct) / len(correct),
        k=k,
        by_kind={kind: sum(v) / len(v) for kind, v in sorted(per_kind.items())},
        n=len(correct),
        records=records,
    )


# --- generation -------------------------------------------------------------------------------------------------------


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


@torch.no_grad()
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
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    texts = [""] * len(ids)
    device = next(model.parameters()).device
    # transformers' criterion fails on a text that the tokenizer cannot write, such as white space in a word tokenizer.
    # Leaving the text out only makes completions longer: what follows it is never read.
    stop_strings = [text for text in stop_strings if _can_write(tokenizer, text)]
    criteria = [StopStringCriteria(tokenizer, stop_strings)] if stop_strings else []
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=progress is None, leave=False):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        out = model.generate(
            **batch.to(device),
            pad_token_id=tokenizer.pad_token_id,
            custom_generate=decode,  # samples of one prompt stand side by side and share its prefill
            stopping_criteria=StoppingCriteriaList(criteria),
            **generation,
        )
        completions = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, completions, strict=True):
            texts[i] = text
    return texts


def measure(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict],
    kinds: Sequence[str],
    reward: Callable,
    *,
    generations: int,
    batch_size: int,
    seed: int,
    max_new_tokens: int,
    sampling: dict[str, Any],
    chat_template_kwargs: dict | None = None,
    stop_strings: Sequence[str] = (),
    process: tuple[int, int] = (0, 1),
    label: str = "",
) -> Accuracy:
    """Accuracy on held-out rows, sampled and greedy.

    The caller's random state is kept: measuring does not change a training run.

    Args:
        model: the policy (unwrapped).
        tokenizer: its tokenizer.
        rows: `{"prompt", **columns}`, at least one.
        kinds: class of each row.
        reward: a reward function; a completion is right when it pays 1.
        generations: sampled completions per row.
        batch_size: completions generated at once.
        seed: of the sampling.
        max_new_tokens: longest completion.
        sampling: `temperature`, `top_p`, `top_k`, `repetition_penalty`, ... of the training run. The
            model's generation_config supplies the rest, so give what training overrides.
        chat_template_kwargs: arguments of the chat template.
        stop_strings: a completion may end after one of these, since the rest is not read.
        process: this process's rank and the number of processes; rows are shared out and gathered.
        label: shown on the progress bars.
    """
    rank, world = process
    mine = list(range(rank, len(rows), world))
    ids = prompt_ids(tokenizer, [rows[i]["prompt"] for i in mine], chat_template_kwargs)
    repeated = [i for i in range(len(mine)) for _ in range(generations)]
    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    progress = (lambda kind: f"{label} {kind}") if rank == 0 and label else (lambda kind: None)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed * world + rank)
        shared = dict(batch_size=batch_size, max_new_tokens=max_new_tokens, stop_strings=stop_strings)
        sampled = generate(
            model,
            tokenizer,
            [ids[i] for i in repeated],
            do_sample=True,
            progress=progress("sampled"),
            **shared,
            **sampling,
        )
        # Greedy decoding keeps the repetition penalty, which shapes the distribution, and drops what only shapes sampling.
        unused = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
        greedy = generate(
            model, tokenizer, ids, do_sample=False, progress=progress("greedy"), **shared, **{**sampling, **unused}
        )
    model.train(was_training)
    sampled_ok = _outcomes(reward, [rows[mine[i]] for i in repeated], sampled)
    greedy_ok = _outcomes(reward, [rows[i] for i in mine], greedy)
    results = [
        {
            "row": i,
            "correct": sampled_ok[j * generations : (j + 1) * generations],
            "greedy": greedy_ok[j],
            "prompt": rows[i]["prompt"],
            "sampled_completion": sampled[j * generations],
            "greedy_completion": greedy[j],
        }
        for j, i in enumerate(mine)
    ]
    if world > 1:
        results = gather_object(results)
    results.sort(key=lambda r: r["row"])
    return summarise(kinds, [r["correct"] for r in results], [r["greedy"] for r in results], results)


def _outcomes(reward: Callable, rows: Sequence[dict], completions: Sequence[str]) -> list[float]:
    if not rows:
        return []
    conversational = is_conversational({"prompt": rows[0]["prompt"]})
    shaped = [[{"role": "assistant", "content": text}] for text in completions] if conversational else list(completions)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    prompts = columns.pop("prompt")
    scores = reward(completions=shaped, prompts=prompts, **columns)
    return [1.0 if score is not None and score >= 1.0 else 0.0 for score in scores]
