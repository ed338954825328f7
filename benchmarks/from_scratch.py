"""GRPO in one file, without TRL: the yardstick that TRL and our trainer are held to.

How it differs from textbook policy gradients:
1. There is no critic. The baseline of a completion is the mean reward of the G completions of its prompt.
2. The gradient is the score function's: advantage times grad log pi, per token. The ratio pi / pi_old is 1 because
   every batch is used once, so PPO's clip never acts and only its gradient, grad log pi, remains.
3. The KL to a frozen reference is Schulman's k3, per token, added to the loss with coefficient beta. By default it is
   multiplied by that same ratio (DeepSeek-V3.2), which turns its gradient into the reverse KL's.
4. All tokens of the batch weigh the same (DAPO, TRL's default `loss_type`).

Sources: DeepSeekMath (arXiv 2402.03300), DAPO (arXiv 2503.14476). Shapes: B rows = prompts x G, P prompt and T
completion tokens.

    python -m benchmarks from_scratch --steps 200        # two-number Countdown, 0.1 M parameters, a few seconds
"""

import argparse
import copy
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Settings:
    """The names are TRL's."""

    num_generations: int = 16  # G
    prompts_per_step: int = 8
    micro_batch_size: int = 128  # rows of one forward and backward
    max_completion_length: int = 8
    temperature: float = 1.0
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_steps: int = 200
    linear_decay: bool = True
    seed: int = 0


# --- 1. sample ---


def left_padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token lists as one tensor, padded on the left, and its mask, both (B, P)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def sample(model, prompt_ids, prompt_mask, settings: Settings, pad: int, eos: int) -> dict:
    """One completion of every row, token by token; everything after the first end token is masked."""
    model.eval()
    batch, past = prompt_ids, None
    mask = prompt_mask  # (B, P + t)
    running = torch.ones(len(prompt_ids), dtype=torch.bool)
    completion, completion_mask = [], []
    for _ in range(settings.max_completion_length):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -batch.size(1) :]
        output = model(
            input_ids=batch, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
        )
        past = output.past_key_values
        probabilities = (output.logits[:, -1].float() / settings.temperature).softmax(-1)  # (B, V)
        token = torch.multinomial(probabilities, 1).squeeze(1).masked_fill(~running, pad)  # (B,)
        completion.append(token)
        completion_mask.append(running.long())
        running = running & (token != eos)
        if not running.any():
            break
        batch = token.unsqueeze(1)
        mask = torch.cat([mask, torch.ones_like(batch)], dim=1)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.stack(completion, dim=1),  # (B, T)
        "completion_mask": torch.stack(completion_mask, dim=1),  # (B, T)
    }


# --- 2. advantage ---


def group_advantages(rewards: torch.Tensor, num_generations: int) -> torch.Tensor:
    """(reward - mean) / (std + 1e-4) within each group of G rows, (B,)."""
    grouped = rewards.view(-1, num_generations)  # (B/G, G)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    return (centred / (grouped.std(dim=1, keepdim=True) + 1e-4)).view(-1)


# --- 3. loss ---


def completion_logps(model, batch: dict, temperature: float) -> torch.Tensor:
    """Log-probability of every completion token under the model at this temperature, (B, T)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)  # (B, P + T)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    tokens = batch["completion_ids"].size(1)
    hidden = model(input_ids=ids, attention_mask=mask, logits_to_keep=tokens + 1)
    logits = hidden.logits[:, :-1].float() / temperature  # (B, T, V): position t predicts token t + 1
    return torch.gather(logits.log_softmax(-1), 2, batch["completion_ids"].unsqueeze(2)).squeeze(2)


def grpo_loss(model, batch: dict, settings: Settings, total_tokens: torch.Tensor) -> torch.Tensor:
    """
    Policy gradient plus beta times k3 over one micro-batch, divided by the tokens of the whole batch.

    Args:
        batch: `prompt_ids`, `prompt_mask` (B, P); `completion_ids`, `completion_mask` (B, T); `advantages` (B,); with
            beta also `ref_per_token_logps` (B, T).
        total_tokens: completion tokens of all micro-batches of this step.
    """
    logps = completion_logps(model, batch, settings.temperature)  # (B, T)
    ratio = torch.exp(logps - logps.detach())  # 1, with the gradient of log pi
    per_token = -ratio * batch["advantages"].unsqueeze(1)
    if settings.beta:
        difference = batch["ref_per_token_logps"] - logps
        k3 = torch.exp(difference) - difference - 1
        per_token = per_token + settings.beta * (k3 * ratio if settings.use_bias_correction_kl else k3)
    return (per_token * batch["completion_mask"]).sum() / total_tokens


def rows_of(batch: dict, start: int, count: int) -> dict:
    """A micro-batch: `count` rows of every tensor."""
    return {key: value[start : start + count] for key, value in batch.items()}


def backward(model, batch: dict, settings: Settings) -> float:
    """Accumulates the gradient of one batch, micro-batch by micro-batch; returns the loss."""
    total_tokens, loss = batch["completion_mask"].sum(), 0.0
    model.train()
    for start in range(0, len(batch["advantages"]), settings.micro_batch_size):
        part = grpo_loss(model, rows_of(batch, start, settings.micro_batch_size), settings, total_tokens)
        part.backward()
        loss += part.item()
    return loss


# --- 4. train ---


def train(model, tokenizer, rows: list[dict], reward: Callable, settings: Settings, on_step: Callable) -> None:
    """
    Trains in place.

    Args:
        rows: data set rows with a text `prompt` and the columns that the reward needs.
        reward: `f(completions, **columns) -> list[float]`, TRL's form.
        on_step: called after every step with `{"step", "reward", "loss", "length", "seconds"}`.
    """
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    reference = copy.deepcopy(model).eval().requires_grad_(False) if settings.beta else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    order = []
    for step in range(settings.max_steps):
        started = time.perf_counter()
        if len(order) < settings.prompts_per_step:
            order = random.sample(range(len(rows)), len(rows))
        chosen = [rows[order.pop()] for _ in range(settings.prompts_per_step)]
        chosen = [row for row in chosen for _ in range(settings.num_generations)]  # a group side by side

        prompts = tokenizer([row["prompt"] for row in chosen])["input_ids"]
        batch = sample(model, *left_padded(prompts, pad), settings, pad, eos)
        texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        columns = {key: [row[key] for row in chosen] for key in chosen[0] if key != "prompt"}
        rewards = torch.tensor(reward(completions=texts, **columns), dtype=torch.float32)  # (B,)
        batch["advantages"] = group_advantages(rewards, settings.num_generations)
        if reference is not None:
            with torch.no_grad():
                batch["ref_per_token_logps"] = completion_logps(reference, batch, settings.temperature)

        optimizer.zero_grad()
        loss = backward(model, batch, settings)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            left = 1 - step / settings.max_steps if settings.linear_decay else 1.0
            group["lr"] = settings.learning_rate * left
        optimizer.step()
        on_step(
            {
                "step": step + 1,
                "reward": rewards.mean().item(),
                "loss": loss,
                "length": batch["completion_mask"].sum(1).float().mean().item(),
                "seconds": time.perf_counter() - started,
            }
        )


def main(argv: list[str]) -> int:
    """Trains the built-in tiny Countdown model and prints the mean reward."""
    from benchmarks.common import tiny_countdown

    parser = argparse.ArgumentParser(prog="python -m benchmarks from_scratch", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    model, tokenizer, rows, reward = tiny_countdown()
    recent: list[float] = []

    def show(entry: dict) -> None:
        recent.append(entry["reward"])
        if entry["step"] % 20 == 0:
            print(f"step {entry['step']:4d}   mean reward of the last 20 steps {sum(recent[-20:]) / 20:.3f}")

    settings = Settings(max_steps=args.steps, beta=args.beta, seed=args.seed)
    train(model, tokenizer, rows, reward, settings, show)
    return 0
