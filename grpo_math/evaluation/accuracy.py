"""Accuracy on held-out problems, with confidence intervals: sampled pass@1, pass@k, majority, greedy; and what changed.

Sampled completions of one problem are not independent, so the interval of the sampled accuracy is that of the mean over
problems. A change is that of each problem, over the problems that both measurements share.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object

from grpo_math.evaluation.generation import generate_completions, prompt_ids
from grpo_math.evaluation.intervals import (
    Difference,
    Interval,
    clustered,
    paired_difference,
    pass_shares,
    share_of_problems,
    wilson,
)
from grpo_math.evaluation.scoring import Scorers, majority_right, score


@dataclass
class Accuracy:
    """What was measured on the held-out problems.

    Attributes:
        sampled: accuracy of a completion drawn at the training temperature (pass@1).
        greedy: accuracy of the greedy completion.
        strict, lenient: sampled accuracy of the prompt's own answer form alone, and of any form.
        majority: accuracy of the answer that most of the k sampled completions give (maj@k).
        pass_at: P(at least one of j sampled completions is right) for j = 2, 4, ... and k; unbiased.
        k: samples per problem.
        by_kind: sampled accuracy per class of problem.
        outcomes: share of the sampled completions with each status of the reward (ok, none, hedged, ...).
        mean_length: of the sampled completions, in tokens.
        truncated: share of the sampled completions that the length limit cut off.
        n: number of problems.
        records: one dict a problem, see `measure`.
    """

    sampled: Interval
    greedy: Interval
    strict: Interval
    lenient: Interval
    majority: Interval
    pass_at: dict[int, Interval]
    k: int
    by_kind: dict[str, Interval]
    outcomes: dict[str, float]
    mean_length: float
    truncated: float
    n: int
    records: list[dict]

    @property
    def pass_at_k(self) -> float:
        return self.pass_at[self.k].value if self.k in self.pass_at else self.sampled.value


def summarise(records: list[dict]) -> Accuracy:
    """The records of `measure` as figures; at least one."""
    correct = [r["correct"] for r in records]
    k = len(correct[0])
    statuses = Counter(status for r in records for status in r["statuses"] if status is not None)
    completions = sum(map(len, correct))
    return Accuracy(
        sampled=clustered(correct),
        greedy=_share([r["greedy"] for r in records]),
        strict=clustered([r["strict"] for r in records]),
        lenient=clustered([r["lenient"] for r in records]),
        majority=_share([r["majority"] for r in records]),
        pass_at={j: share_of_problems(pass_shares(correct, j), len(records) * (k // j)) for j in pass_sizes(k)},
        k=k,
        by_kind={
            kind: clustered([r["correct"] for r in rows])
            for kind, rows in by_kind(records, lambda r: r["kind"]).items()
        },
        outcomes={status: count / completions for status, count in statuses.most_common()},
        mean_length=sum(length for r in records for length in r["lengths"]) / completions,
        truncated=sum(cut for r in records for cut in r["truncated"]) / completions,
        n=len(records),
        records=records,
    )


def changes(before: list[dict], after: list[dict]) -> dict[str, Any]:
    """
    The paired differences of two measurements of the same problems, by the names of `Accuracy`'s figures.

    Args:
        before, after: Records of `measure`, of the same problems in the same order.
    """

    def change(share: Callable[[dict], float], rows: list[tuple[dict, dict]]) -> Difference:
        return paired_difference([share(a) for a, _ in rows], [share(b) for _, b in rows])

    def mean_of(name: str) -> Callable[[dict], float]:
        return lambda record: sum(record[name]) / len(record[name])

    pairs = list(zip(before, after, strict=True))
    k = len(before[0]["correct"])
    kinds = by_kind(pairs, lambda pair: pair[1]["kind"])
    return {
        "sampled": change(mean_of("correct"), pairs),
        "strict": change(mean_of("strict"), pairs),
        "lenient": change(mean_of("lenient"), pairs),
        "greedy": change(lambda r: r["greedy"], pairs),
        "majority": change(lambda r: r["majority"], pairs),
        "pass_at": {j: change(lambda r, j=j: pass_shares([r["correct"]], j)[0], pairs) for j in pass_sizes(k)},
        "by_kind": {kind: change(mean_of("correct"), rows) for kind, rows in kinds.items()},
    }


def sampled_differences(before: list[dict], after: list[dict]) -> list[float]:
    """Sampled accuracy after minus before of each problem, for a verdict; records of `measure` in the same order."""
    pairs = zip(before, after, strict=True)
    return [sum(b["correct"]) / len(b["correct"]) - sum(a["correct"]) / len(a["correct"]) for a, b in pairs]


def pass_sizes(k: int) -> list[int]:
    """The k of pass@k that k samples are reported for: powers of two, and all of them."""
    return sorted({j for j in (2, 4, 8, 16, 32, 64) if j < k} | ({k} if k > 1 else set()))


def _share(outcomes: Sequence[float]) -> Interval:
    return wilson(sum(outcomes) / len(outcomes), len(outcomes))


def by_kind(items: list, kind_of: Callable[[Any], str]) -> dict[str, list]:
    """The items of each class, the wider classes first: "3 numbers: +-" counts for "3 numbers" too."""
    kinds = defaultdict(list)
    for item in items:
        kind = kind_of(item)
        for name in {kind, kind.partition(": ")[0]}:
            kinds[name].append(item)
    return dict(sorted(kinds.items(), key=lambda found: (": " in found[0], found[0])))


def measure(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict],
    kinds: Sequence[str],
    scorers: Scorers | Callable,
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
    greedy: bool = True,
) -> Accuracy:
    """Accuracy on held-out rows, sampled and greedy.

    The caller's random state is kept: measuring does not change a training run.

    Args:
        model: the policy (unwrapped).
        tokenizer: its tokenizer.
        rows: `{"prompt", **columns}`, at least one.
        kinds: class of each row.
        scorers: what counts as right, or the accuracy reward alone.
        generations: sampled completions per row; 0: nothing is sampled, and the greedy completion stands for one sample.
        batch_size: completions generated at once.
        seed: of the sampling.
        max_new_tokens: longest completion.
        sampling: `temperature`, `top_p`, `top_k`, `repetition_penalty`, ... of the training run. The
            model's generation_config supplies the rest, so give what training overrides.
        chat_template_kwargs: arguments of the chat template.
        stop_strings: a completion may end after one of these, since the rest is not read.
        process: this process's rank and the number of processes; rows are shared out and gathered.
        label: shown on the progress bars.
        greedy: whether to measure the greedy completion too; without it, the first sample stands for it.

    Returns:
        The figures. Their `records` have one dict a row: `row`, `kind`, `prompt`; one value a sample in `correct`, `strict`,
        `lenient`, `statuses`, `answers`, `lengths`, `truncated`, `completions`; `greedy`, `majority` in {0, 1};
        `sampled_completion` (the first) and `greedy_completion`.
    """
    scorers = scorers if isinstance(scorers, Scorers) else Scorers(scorers)
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
        sampled = (
            generate_completions(
                model,
                tokenizer,
                [ids[i] for i in repeated],
                do_sample=True,
                progress=progress("sampled"),
                **shared,
                **sampling,
            )
            if generations
            else []
        )
        # Greedy decoding keeps the repetition penalty, which shapes the distribution, and drops what only shapes sampling.
        unused = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
        best = (
            generate_completions(
                model, tokenizer, ids, do_sample=False, progress=progress("greedy"), **shared, **{**sampling, **unused}
            )
            if greedy or not generations
            else sampled[::generations]
        )
    if not generations:
        generations, repeated, sampled = 1, list(range(len(mine))), best
    model.train(was_training)
    scores = score(scorers, [rows[mine[i]] for i in repeated], [c.text for c in sampled])
    best_scores = score(scorers, [rows[i] for i in mine], [c.text for c in best])
    results = []
    for j, i in enumerate(mine):
        its = slice(j * generations, (j + 1) * generations)
        results.append(
            {
                "row": i,
                "kind": kinds[i],
                "correct": scores.correct[its],
                "strict": scores.strict[its],
                "lenient": scores.lenient[its],
                "greedy": best_scores.correct[j],
                "majority": majority_right(scores.answers[its], scores.correct[its]),
                "statuses": scores.statuses[its],
                "answers": scores.answers[its],
                "lengths": [c.length for c in sampled[its]],
                "truncated": [c.truncated for c in sampled[its]],
                "prompt": rows[i]["prompt"],
                "sampled_completion": sampled[its.start].text,
                "greedy_completion": best[j].text,
                "completions": [c.text for c in sampled[its]],
            }
        )
    if world > 1:
        results = gather_object(results)
    results.sort(key=lambda r: r["row"])
    return summarise(results)
