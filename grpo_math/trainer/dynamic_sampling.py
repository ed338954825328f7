"""Dynamic sampling: fresh prompts replace groups whose rewards are all equal (DAPO, arXiv 2503.14476, section 3.2)."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset

from grpo_math.trainer.micro_batches import Batch, loss_mask, pad_columns


class DynamicSampling:
    """
    Replaces dead groups of a generation batch, in a bounded number of rounds.

    Fresh prompts come from endless shuffled passes of their own over the training set. `state_dict` holds the place in
    them, so that a resumed run continues there.

    Args:
        rounds (`int`): Most rounds a generation batch.
        seed (`int`): Of the run; the passes are shuffled by the seeds that follow it.
    """

    def __init__(self, rounds: int, seed: int):
        self.rounds, self.seed = rounds, seed
        self.load_state_dict({"pass": 0, "offset": 0})

    def state_dict(self) -> dict[str, int]:
        """The place among the fresh prompts: the number of the pass, and the prompts drawn from it."""
        return {"pass": self._pass, "offset": self._offset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from the place of another [`state_dict`]."""
        self._pass, self._offset = state["pass"], state["offset"]
        self._fresh: Iterator[dict] | None = None

    def _prompts(self, dataset: Dataset | IterableDataset) -> Iterator[dict]:
        while True:
            rows = dataset.shuffle(seed=self.seed + 1 + self._pass)
            # A streamed data set has no length, and `Dataset.skip` refuses its own length
            if not isinstance(rows, Dataset) or self._offset < len(rows):
                for row in rows.skip(self._offset):
                    self._offset += 1
                    yield row
            self._pass, self._offset = self._pass + 1, 0

    def replace_dead_groups(
        self,
        batch: Batch,
        dead: torch.Tensor,
        generate: Callable[[list[dict]], tuple[Batch, torch.Tensor]],
        dataset: Dataset | IterableDataset,
        num_generations: int,
        accelerator: Accelerator,
    ) -> tuple[Batch, dict[str, int]]:
        """
        A generation batch whose dead groups are replaced as far as the rounds allow.

        Args:
            batch (`dict`): This process's rows, B / processes of them.
            dead (`torch.Tensor` of shape `(B / G,)`): Which groups over all processes are dead, bool.
            generate (`Callable`): Rows of this process -> a scored batch of them, and which groups over all processes are
                dead. Every process calls it as often.
            dataset: The training set.
            num_generations (`int`): G.
            accelerator ([`~accelerate.Accelerator`]): Of the trainer.

        Returns:
            `tuple[dict, dict]`: The batch, and the figures `rounds`, `replaced_groups` and `dead_groups_left`.
        """
        if self._fresh is None:
            self._fresh = self._prompts(dataset)
        dead = dead.clone()
        first_dead, rounds, size = int(dead.sum()), 0, num_generations
        first_row = accelerator.process_index * len(batch["live"])
        while dead.any() and rounds < self.rounds:
            rounds += 1
            # Every process generates the same number of rows, in whole groups over all of them
            unit = accelerator.num_processes // math.gcd(size, accelerator.num_processes)
            groups = math.ceil(int(dead.sum()) / unit) * unit
            rows = [dict(example) for example in itertools.islice(self._fresh, groups) for _ in range(size)]
            share = len(rows) // accelerator.num_processes
            fresh, fresh_dead = generate(rows[accelerator.process_index * share :][:share])
            fresh_live = (~fresh_dead).nonzero().squeeze(1)
            targets = dead.nonzero().squeeze(1)[: len(fresh_live)]
            offsets = torch.arange(size, device=dead.device)
            source = (fresh_live[: len(targets), None] * size + offsets).view(-1)
            target = (targets[:, None] * size + offsets).view(-1) - first_row
            here = (target >= 0) & (target < len(batch["live"]))
            batch = _overwrite_rows(batch, target[here], _gather_rows(accelerator, fresh), source[here])
            dead[targets] = False
        left = int(dead.sum())
        batch = {**batch, "num_items_in_batch": accelerator.gather(loss_mask(batch).sum()).sum()}
        return batch, {"rounds": rounds, "replaced_groups": first_dead - left, "dead_groups_left": left}


@contextmanager
def metrics_of_the_first_draw(metrics: dict[str, list], logs: dict[str, object]) -> Iterator[None]:
    """Inside the context TRL may log further draws: afterwards its metrics and logs hold the first alone, and all tokens."""
    first_metrics, first_logs = copy.deepcopy(metrics), copy.deepcopy(logs)
    yield
    first_metrics["num_tokens"] = metrics["num_tokens"]
    metrics.clear()
    metrics.update(first_metrics)
    logs.update(first_logs)


def padding_value(key: str) -> int:
    """
    What widens a tensor of a generation batch: 0, which the masks leave out. VESPO sums the logarithms of vLLM's ratios
    without a mask, so a column without a token needs a ratio of 1.
    """
    return 1 if key == "importance_sampling_ratio" else 0


def _gather_rows(accelerator: Accelerator, batch: Batch) -> Batch:
    """The rows of all processes, in order, of every tensor with a row axis."""
    gathered = {}
    for key, value in batch.items():
        if value.ndim:
            if value.ndim > 1:
                left, fill = key.startswith("prompt"), padding_value(key)
                value = accelerator.pad_across_processes(value, dim=1, pad_index=fill, pad_first=left)
            gathered[key] = accelerator.gather(value)
    return gathered


def _overwrite_rows(batch: Batch, target: torch.Tensor, other: Batch, source: torch.Tensor) -> Batch:
    """`batch` with rows `target` replaced by rows `source` of `other`; both widened to the wider of the two."""
    result = dict(batch)
    for key, rows in other.items():
        mine = batch[key]
        if mine.ndim > 1:
            columns, left = max(mine.size(1), rows.size(1)), key.startswith("prompt")
            mine, rows = (pad_columns(part, columns, left, padding_value(key)) for part in (mine, rows))
        result[key] = mine.index_copy(0, target, rows[source])
    return result
