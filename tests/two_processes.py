"""Run by `accelerate launch --multi_gpu --num_processes 2`: gradients of TRL and ours for each loss type, as JSON."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from trainer_fixtures import (
    STOCK_GENERATION,
    live_reward,
    prompts,
    relative_difference,
    sampling_by_noise,
    tiny_model,
    train,
)


def first_groups_only(completions, prompts, **kwargs):
    """Only the first two of a generation batch's eight groups, all on rank 0, have unequal rewards."""
    if PartialState().process_index == 1:
        return [0.5] * len(completions)
    return live_reward(completions[:8]) + [0.5] * (len(completions) - 8)


def by_position(completions, dead, **kwargs):
    return [0.5 if is_dead else float(i % 4) for i, is_dead in enumerate(dead)]


def compare(folder, **options):
    theirs = train(False, folder, model=tiny_model(), **options)
    ours = train(True, folder, model=tiny_model(), **STOCK_GENERATION, **options)
    skipped = next(entry["skipped_rows"] for entry in ours.state.log_history if "skipped_rows" in entry)
    return relative_difference(ours.gradients, theirs.gradients), skipped


def main(folder: str, loss_types: list[str]) -> None:
    differences, skipped = {}, {}
    # Unshuffled prompts alternate between live and dead, so that both processes have as many of each
    common = {"max_steps": 2, "learning_rate": 0.01, "dataset": prompts(32), "shuffle_dataset": False}
    for loss_type in loss_types:
        differences[loss_type], skipped[loss_type] = compare(folder, loss_type=loss_type, **common)
    differences["uneven"], skipped["uneven"] = compare(folder, reward_funcs=first_groups_only, **common)
    more = {"num_iterations": 2, "steps_per_generation": 4, "max_steps": 4}
    differences["stored_old_logps"], skipped["stored_old_logps"] = compare(folder, **(common | more))
    # Groups of 16 rows span both processes
    differences["wide_groups"], skipped["wide_groups"] = compare(folder, num_generations=16, **common)
    # Every saving on
    options = {**common, "generation_kwargs": {"do_sample": False}}
    theirs = train(False, folder, **options, model=sampling_by_noise(tiny_model()))
    ours = train(True, folder, **options, model=sampling_by_noise(tiny_model()))
    differences["every_saving"] = relative_difference(ours.gradients, theirs.gradients)
    sampled = train(True, folder, dynamic_sampling=10, reward_funcs=by_position, scale_rewards="batch", **common)
    left = [entry.get("dynamic_sampling/dead_groups_left") for entry in sampled.state.log_history]
    chosen = train(True, folder, train_rows=8, **(common | {"reward_funcs": live_reward}))
    state = PartialState()
    result = {"world_size": state.num_processes, "differences": differences, "skipped": skipped}
    result["dynamic_sampling"] = {
        "dead_groups_left": left[:2],
        "advantages": torch.cat([batch["advantages"] for batch in sampled._buffered_inputs]).abs().unique().tolist(),
        "rows": [len(batch["live"]) for batch in sampled._buffered_inputs],
        "live": sum(int(batch["live"].sum()) for batch in sampled._buffered_inputs),
        "weights": sum(p.double().sum().item() for p in sampled.model.parameters()),
    }
    result["train_rows"] = {
        "rows": [len(batch["live"]) for batch in chosen._buffered_inputs],
        "skipped": [entry["skipped_rows"] for entry in chosen.state.log_history if "skipped_rows" in entry],
        "weights": sum(p.double().sum().item() for p in chosen.model.parameters()),
    }
    (Path(folder) / f"rank{state.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
