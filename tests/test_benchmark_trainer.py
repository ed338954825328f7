"""The page of `python -m benchmarks trainer`: every measured part, with its own machine, and no other."""

from functools import partial

from trainer_fixtures import prompts, tiny_model, tiny_tokenizer, train
from transformers import LogitsProcessorList

from benchmarks import forward_backward, trainer

FIGURES = {"cpu": 8.0, "wall": 8.0, "sampling_cpu": 2.0, "mean_length": 9.0, "max_length": 20.0}


def measured():
    """What a run of two rounds stores, with ours four times as fast in the passes and twice in a whole step."""
    cpu = {"stock": 8.0, "ours": 2.0, "stock again": 8.0, forward_backward.NO_HEAD: 4.0}
    times = [
        {"case": case, "contender": who, "cpu": seconds, "positions": 10, "gradient": 1e-6}
        for case in forward_backward.CASES
        for who, seconds in cpu.items()
        for _ in range(2)
    ]
    bf16 = dict.fromkeys(
        ("ours", "stock with micro-batches of 2", "stock against float32", "ours against float32"), 3e-3
    )
    differences = [
        {"setting": "loss `grpo`", "precision": "float32", "ours": 4e-6},
        {"setting": "loss `dapo`", "precision": "bfloat16 autocast", **bf16},
    ]
    steps = {"stock": FIGURES, "ours": FIGURES | {"cpu": 4.0, "wall": 4.0}, "stock again": FIGURES}
    return {
        "passes": {"machine": "machine of the passes", "times": times},
        "gradients": {"machine": "machine of the gradients", "differences": differences},
        "steps": {"machine": "machine of the steps", "bf16": False, "rounds": {"gold": [steps, steps]}},
    }


def test_each_part_names_its_machine_and_its_ratios():
    page = trainer.page(measured())
    passes, gradients, steps = page.split("\n## ")[1:]
    assert "machine of the passes" in passes
    assert "**x4.00 (4.00 to 4.00)**" in passes
    assert "x2.00" in passes
    assert "machine of the gradients" in gradients
    assert "4.0e-06" in gradients
    assert "3.0e-03" in gradients
    assert "machine of the steps" in steps
    assert "**x2.00** (2.00 to 2.00)" in steps
    assert "float32" in steps
    assert "9 / 20" in steps


def test_a_part_that_was_not_measured_is_not_on_the_page():
    data = measured()
    del data["steps"]
    assert "Whole steps" not in trainer.page(data)


def test_given_completions_are_sampled(tmp_path):
    """All contenders sample the same tokens, whatever the model thinks of them."""
    given = [[3, 4, 5, 1], [6, 1], [7, 8, 9, 10, 11, 1], [12, 13, 1]]
    for ours in (True, False):
        model = tiny_model()
        model.generate = partial(model.generate, logits_processor=LogitsProcessorList([trainer.Forced(given)]))
        found = train(
            ours,
            tmp_path,
            model=model,
            dataset=prompts(1),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=1,
        )
        completions = found._logs["completion"]
        assert list(completions) == [tiny_tokenizer().decode(row, skip_special_tokens=True) for row in given]
