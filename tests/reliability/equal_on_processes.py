"""The tiny model trained with every saving on, on as many processes as it is launched with: the same 16 rows at each step.

    python tests/reliability/equal_on_processes.py FILE dapo grpo ...

The main process saves, by loss type, the accumulated gradients, the weights at the end and what the savings have done.
"""

import os
import sys
from functools import partial

import torch
from trainer_fixtures import logged, prompts, tiny_model, train, weights
from transformers import LogitsProcessor, LogitsProcessorList

GENERATIONS = 4


class NoiseByText(LogitsProcessor):
    """Gumbel noise that only the row's tokens and its place in its group decide, so that it is the same on any process."""

    def __call__(self, input_ids, scores):
        noisy = scores.clone()
        for row, tokens in enumerate(input_ids.tolist()):
            text = tuple(token for token in tokens if token != 0)
            generator = torch.Generator().manual_seed(hash((row % GENERATIONS, text)) % 2**63)
            noisy[row] -= torch.empty_like(noisy[row]).exponential_(generator=generator).log()
        return noisy


def main(path: str, loss_types: list[str]) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # before the trainer has made the process group
    results = {}
    for loss_type in loss_types:
        model = tiny_model()
        model.generate = partial(model.generate, logits_processor=LogitsProcessorList([NoiseByText()]))
        trainer = train(
            True,
            f"{path}.run",
            model=model,
            dataset=prompts(16),
            shuffle_dataset=False,
            loss_type=loss_type,
            num_generations=GENERATIONS,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2 // processes,
            generation_kwargs={"do_sample": False},
            max_steps=3,
            learning_rate=0.02,
        )
        results[loss_type] = {
            "processes": trainer.accelerator.num_processes,
            "gradients": trainer.gradients,
            "weights": weights(trainer.accelerator.unwrap_model(trainer.model)),
            "completions": list(trainer._logs["completion"]),
            "skipped_rows": logged(trainer, "skipped_rows"),
            "padding": logged(trainer, "padding_fraction"),
        }
    if trainer.accelerator.is_main_process:
        torch.save(results, path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
