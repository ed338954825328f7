"""One training step of a recipe without its data: on fake tensors to predict its memory, or on real ones to measure it.

[`run_one_step`] builds the policy from its configuration, without weights, and hands it to the trainer with prompts and
completions of the greatest lengths. TRL's, transformers', peft's and bitsandbytes' own code then runs one steady step:
generation, reference log-probabilities, forward and backward passes, the optimizer, and the held-out generation. On fake
tensors (`FakeTensorMode`) nothing is computed, and [`Tracker`] follows every storage.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import get_peft_config

from grpo_math import models, tiny_model
from grpo_math.evaluation import generate, sampling_of
from grpo_math.memory import patches
from grpo_math.memory.model import (
    add_saved_adapter,
    build_model,
    quantization_tensors,
    vocabulary_size,
    weights_dtype,
)
from grpo_math.memory.results import PHASES, StepMemory
from grpo_math.memory.tracker import Tracker
from grpo_math.recipe import Recipe
from grpo_math.trainer import GRPOMathTrainer, host_embeddings

Phase = Callable[[str], contextlib.AbstractContextManager]  # name of a phase -> a context around it


class _SteadyStep(TrainerCallback):
    """Gives the optimizer its states before the first step on fakes, and labels gradients and optimizer states."""

    trainer: Any = None

    def __init__(self, tracker: Tracker, during: Phase, fake_tensors: bool):
        self.tracker, self.during, self.fake_tensors = tracker, during, fake_tensors

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.fake_tensors:  # the first of two real steps makes the states
            return
        trainer = self.trainer
        with self.during("optimizer"):
            self.tracker.take_workspace(backward=True)  # a steady step's predecessor had a backward pass
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            self._label_gradients()
            # Not accelerate's wrapper: its loss scaler refuses a step before the first loss
            getattr(trainer.optimizer, "optimizer", trainer.optimizer).step()
            trainer.optimizer.zero_grad()
        self._label_states()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._label_gradients()
        self._optimizer_phase = self.during("optimizer")
        self._optimizer_phase.__enter__()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._optimizer_phase.__exit__(None, None, None)
        self._label_states()

    def _label_gradients(self):
        for parameter in self.trainer.model.parameters():
            self.tracker.label(parameter.grad, "gradients")

    def _label_states(self):
        for state in self.trainer.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    self.tracker.label(value, "optimizer states")


def stand_in_tokenizer() -> Any:
    """A tokenizer of one word, `a`, which is token 2."""
    return tiny_model.word_tokenizer(["<pad>", "<eos>", "a"], unk_token="<pad>")


def alternating_reward(completions: list, **columns) -> list[float]:
    """The rewards 1, 0, 1, 0, ..., with which no group is dead."""
    return [float(i % 2) for i in range(len(completions))]


def run_one_step(
    recipe: Recipe,
    config: Any,
    prompt_length: int,
    *,
    fake_tensors: bool = True,
    cuda: bool = True,
    device: torch.device | None = None,
    meter: Phase | None = None,
    workspace: int = 0,
) -> StepMemory:
    """
    One steady step of a recipe, with every prompt and completion of the greatest length.

    On fake tensors it is the first step, with an optimizer that already has its states. On real ones it is the second.

    Args:
        recipe: The result of `load_recipe`.
        config: The model's configuration.
        prompt_length: Tokens of the longest prompt.
        fake_tensors: Fake tensors predict. Real ones, with random weights, let `meter` measure.
        cuda: Whether a prediction allocates as CUDA does.
        device: Where real tensors are; the CPU when `None`.
        meter: Called with the name of each phase; returns a context around it.
        workspace: Bytes of cuBLAS's workspace for a thread, which a prediction for CUDA counts.

    Returns:
        `StepMemory`: the prediction; of no use when `fake_tensors` is false.
    """
    task, args = recipe.task, copy.copy(recipe.training)
    device = torch.device("cpu") if device is None else device
    labelled: dict[tuple[int, ...], int] = {}  # of packed batches
    tracker = Tracker(
        512 if cuda else 1,
        _masked_rows(prompt_length, args.max_completion_length, labelled) if fake_tensors else None,
        workspace if fake_tensors and cuda else 0,
    )
    tracker.group_size = args.num_generations
    _worst_case(args)
    args.max_steps = 1 if fake_tensors else 2
    meter = meter or (lambda phase: contextlib.nullcontext())

    @contextlib.contextmanager
    def during(phase: str):
        with tracker.during(phase), meter(phase):
            yield

    with contextlib.ExitStack() as stack:
        stack.enter_context(_frozen_heap())
        args.output_dir = stack.enter_context(tempfile.TemporaryDirectory())
        tokenizer = stand_in_tokenizer()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        stack.enter_context(patches.no_blocked_weights())
        if fake_tensors:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(patches.fake_stand_ins())
            stack.enter_context(patches.full_length_packing(args, labelled))
            if cuda:
                stack.enter_context(patches.cuda_stand_ins(tracker))
            stack.enter_context(tracker)
        dtype = weights_dtype(recipe, config)
        stack.enter_context(patches.reference_model_from(lambda: build_model(recipe, config, dtype, device)))
        callback = _SteadyStep(tracker, during, fake_tensors)
        with meter("load"):
            model = _build_and_follow(recipe, config, dtype, device, tracker, fake_tensors, cuda)
            trainer = _make_trainer(recipe, args, model, tokenizer, callback)
            del model
        callback.trainer = trainer
        for name in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(name)
        _label_weights(tracker, trainer)
        _train(trainer, tracker, during, prompt_length, fake_tensors, generates=not recipe.training.use_vllm)
        if task.heldout_size:
            with during("held-out"), torch.no_grad():
                _generate_heldout(trainer, tracker, prompt_length, task.heldout_batch_size, fake_tensors)
        phases = [phase for phase in PHASES if phase in tracker.peaks]
        result = StepMemory(
            {phase: tracker.peaks[phase].bytes for phase in phases},
            {phase: tracker.peaks[phase].op for phase in phases},
            {phase: tracker.parts(phase) for phase in phases},
            tracker.paged,
        )
        del trainer, callback.trainer
        gc.collect()
    return result


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Inside the context garbage collection passes over what was there before, which is all imports at every collection."""
    if gc.get_freeze_count():  # somebody else's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _masked_rows(
    prompt_length: int, completion_length: int, labelled: dict[tuple[int, ...], int]
) -> Callable[[torch.Size], int]:
    """Number of true elements in the boolean mask of a shape: of sequences, those at completion tokens."""

    def count(shape: torch.Size) -> int:
        if tuple(shape) in labelled:
            return labelled[tuple(shape)]
        if len(shape) == 2 and shape[1] >= prompt_length + completion_length - 1:
            return shape[0] * completion_length  # the labelled positions of a micro-batch
        return math.prod(shape)

    return count


def _worst_case(args: Any) -> None:
    """Turns off files and logs, the options that save memory only when rows are short or dead, and the CPU's head."""
    args.save_strategy, args.report_to = "no", []
    args.disable_tqdm, args.logging_steps, args.logging_first_step = True, 1, False
    args.log_completions = args.push_to_hub = False
    args.resume_from_checkpoint = None
    for name in ("skip_zero_advantage", "trim_padding", "sort_by_length", "compact_lm_head"):
        setattr(args, name, False)
    args.dynamic_sampling, args.train_rows, args.reward_weights = 0, 0, None
    args.use_vllm = False  # `memory.vllm` adds its part


def _build_and_follow(
    recipe: Recipe,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    tracker: Tracker,
    fake_tensors: bool,
    cuda: bool,
) -> torch.nn.Module:
    """The policy; the tracker counts what its load holds."""
    with tracker.untracked():  # a real load reads one weight after the other
        model = build_model(recipe, config, dtype, device)
    for tensor in itertools.chain(model.parameters(), model.buffers(), quantization_tensors(model)):
        tracker.follow(tensor, "load", "weights")
    for module in model.modules() if not cuda else ():  # on a CPU host memory is measured
        if isinstance(module, host_embeddings.HostEmbedding):
            tracker.follow(module.weight, "load", "weights")
    if fake_tensors and recipe.model.load_in_4bit:
        _follow_4bit_load(tracker, model, dtype)
    return model


def _make_trainer(
    recipe: Recipe, args: Any, model: torch.nn.Module, tokenizer: Any, callback: TrainerCallback
) -> GRPOMathTrainer:
    """The trainer of a policy, with the saved adapter or the recipe's own where there is one."""
    name = recipe.model.model_name_or_path or ""
    saved_adapter = name if models.adapter_base(name) else None
    if saved_adapter is not None:
        model = add_saved_adapter(model, saved_adapter)
    loaded = models.adapter_weights(model)
    rows = args.per_device_train_batch_size * args.steps_per_generation
    trainer = GRPOMathTrainer(
        model=model,
        reward_funcs=alternating_reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * rows),
        processing_class=tokenizer,
        peft_config=None if saved_adapter is not None else get_peft_config(recipe.model),
        callbacks=[callback],
    )
    if hasattr(trainer.model, "peft_config"):
        models.float32_adapter(trainer.model, loaded)
    return trainer


def _follow_4bit_load(tracker: Tracker, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Counts what a load has on the card for a while: an unquantized weight, and embeddings that move to the host."""
    passing = {
        "embeddings before their move to the host": [
            m.weight.numel() for m in model.modules() if isinstance(m, host_embeddings.HostEmbedding)
        ],
        "a weight before its quantization": [
            p.quant_state.shape.numel() for p in model.parameters() if hasattr(p, "quant_state")
        ],
    }
    held = []  # both at once
    for name, sizes in passing.items():
        with tracker.untracked():
            held.append(torch.empty(max(sizes, default=0), dtype=dtype))
        tracker.follow(held[-1], name, "temporaries")


def _label_weights(tracker: Tracker, trainer: Any) -> None:
    for model in (trainer.model, trainer.ref_model):
        for tensor in itertools.chain(model.parameters(), model.buffers()) if model is not None else ():
            tracker.follow(tensor, "load", "weights")
            tracker.label(tensor, "weights")
    if hasattr(trainer.model, "peft_config"):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                tracker.label(parameter, "adapter")


def make_prompts(length: int, rows: int, group: int, vocabulary: int = 3) -> list[list[int]]:
    """
    Token ids of prompts of `length` tokens. The `group` rows of a prompt are equal.

    Prompts differ as far as the vocabulary's size lets them. All but the first lack a token, so that there is padding.
    """
    words = vocabulary - 2  # without padding and end

    def prompt(number: int, size: int) -> list[int]:
        return [2 + number % words, *[2 + number // words % words] * (size - 1)]

    numbers = [row // group for row in range(rows)]
    return [prompt(number, length if number == 0 else max(length - 1, 1)) for number in numbers]


def _second_micro_batch(micro_batches: int, generate_every: int) -> tuple[int, int]:
    """
    The micro-batch to run beside the first, and TRL's counter of micro-batches at the first one.

    It is the last one, which runs beside gradients. Where TRL generates in the middle of an optimizer step, it is the one
    that generates.

    Args:
        micro_batches: Micro-batches in an optimizer step.
        generate_every: Micro-batches between two generations.
    """
    if generate_every < micro_batches:
        return generate_every, 0
    if generate_every % micro_batches:  # some steps have no generation: begin with one that has
        second = math.gcd(generate_every, micro_batches)
        return second, generate_every - second
    return micro_batches - 1, 0


def _train(
    trainer: Any, tracker: Tracker, during: Phase, prompt_length: int, fake_tensors: bool, generates: bool
) -> None:
    """`trainer.train()` with marked phases, prompts and completions of full length, and two micro-batches a step."""
    args, group = trainer.args, trainer.num_generations
    vocabulary = vocabulary_size(trainer.accelerator.unwrap_model(trainer.model))

    def prompts(rows: int) -> list[list[int]]:
        return make_prompts(prompt_length, rows, group, vocabulary)

    second, first_step = _second_micro_batch(
        args.gradient_accumulation_steps, args.steps_per_generation * args.num_iterations
    )
    patches.generate_full_length(trainer, tracker, during, prompts, fake_tensors, generates)
    patches.run_two_micro_batches(trainer, during, second, first_step)
    with tracker.during("training"):  # what lies between the phases
        trainer.train()


def _generate_heldout(trainer: Any, tracker: Tracker, prompt_length: int, rows: int, fake_tensors: bool) -> None:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    policy.eval()
    # The greedy half of an evaluation has every prompt once
    ids = make_prompts(prompt_length, rows, 1, vocabulary_size(policy))
    tracker.group_size, length = 1, trainer.max_completion_length
    settings = {**sampling_of(trainer.args), "do_sample": True, "max_new_tokens": length, "eos_token_id": None}
    passes = patches.two_forward_passes(policy, tracker, length) if fake_tensors else contextlib.nullcontext()
    with passes, trainer.autocast():  # as held-out accuracy is measured
        generate(policy, trainer.processing_class, ids, rows, **settings)
