"""What the trainer's tests share: a tiny model and tokenizer built on the spot, prompts, rewards, gradient capture."""

from functools import partial

import torch
from datasets import Dataset
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

from grpo_math.tiny_model import word_tokenizer
from grpo_math.trainer import GRPOMathConfig, GRPOMathTrainer
from grpo_math.trainer.config import SAVINGS

WORDS = [f"w{i}" for i in range(20)]
ALL_OFF = dict.fromkeys(SAVINGS, False)
# Sampling draws other random numbers with these, so gradients can only be compared without them
STOCK_GENERATION = {"share_prefill": False, "drop_finished": False}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(["<pad>", "<eos>", "<unk>", *WORDS], clean_up_tokenization_spaces=False)


def tiny_model(seed: int = 0, **overrides) -> Qwen2ForCausalLM:
    set_seed(seed)
    config = Qwen2Config(
        **{
            "vocab_size": len(WORDS) + 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "initializer_range": 0.3,  # far from uniform, so that ratios and divergences are not all near zero
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": None,
        }
        | overrides
    )
    return Qwen2ForCausalLM(config)


class RowNoise(LogitsProcessor):
    """Gumbel noise for every row and token: the greatest sum is a sample, and the same in whichever loop it is found."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, input_ids, scores):
        return scores - torch.empty_like(scores).exponential_(generator=self.generator).log()


def sampling_by_noise(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """A model whose greedy completions are samples: its own loop and ours draw other random numbers."""
    model.generate = partial(model.generate, logits_processor=LogitsProcessorList([RowNoise()]))
    return model


def prompts(count: int = 16) -> Dataset:
    """Prompts of 2 to 9 words. Every second one has equal rewards for all completions (`"dead"`)."""
    rows = [
        {"prompt": " ".join(WORDS[(i * 7 + j) % 20] for j in range(2 + (i * 3) % 8)), "dead": bool(i % 2)}
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def reward(completions, dead, **kwargs):
    """Between 0 and 1, a function of the words alone; always 0.5 on a dead prompt."""
    scores = [len(set(text.split())) / 16 + (len(text) % 5) / 8 for text in completions]
    return [0.5 if is_dead else score for score, is_dead in zip(scores, dead, strict=True)]


def live_reward(completions, **kwargs):
    return reward(completions, [False] * len(completions))


class Gradients(TrainerCallback):
    """The accumulated gradient at every optimizer step, as one float64 vector each."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        self.steps.append(torch.cat([torch.zeros(1) if g is None else g.detach().double().flatten() for g in grads]))


def train(
    math: bool,
    output_dir,
    model=None,
    dataset=None,
    reward_funcs=reward,
    trainer_kwargs=None,
    resume_from=None,
    **options,
):
    """Trains the tiny model with TRL's pair or ours; returns the trainer, with `gradients` on it."""
    arguments = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 12,
        "max_steps": 1,
        "optim": "sgd",  # Adam would turn round-off in a small gradient into a step of full size
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 3,
    } | options
    config, kwargs = (GRPOMathConfig if math else GRPOConfig)(**arguments), dict(trainer_kwargs or {})
    gradients = Gradients()
    trainer = (GRPOMathTrainer if math else GRPOTrainer)(
        model=tiny_model() if model is None else model,
        reward_funcs=reward_funcs,
        args=config,
        train_dataset=prompts() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
        callbacks=[gradients, *kwargs.pop("callbacks", [])],
        **kwargs,
    )
    trainer.gradients = gradients.steps
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def relative_difference(ours, theirs) -> float:
    """Largest relative L2 difference over the optimizer steps."""
    assert len(ours) == len(theirs) > 0
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))


def logged(trainer, name):
    """The values of a metric, in the order in which they were logged."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(model):
    """All weights of a model, as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def config(tmp_path, **options):
    """Our config on a CPU, with nothing reported."""
    return GRPOMathConfig(
        **({"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"} | options)
    )
