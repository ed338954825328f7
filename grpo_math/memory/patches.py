"""Every patch that the memory prediction makes to TRL, transformers, accelerate, bitsandbytes and torch.

Three kinds of patches let the recipe's real step run without its card and its data:

- [`cuda_stand_ins`]: the fused LM head and the optimizers allocate on a CPU as they do on CUDA.
- [`fake_stand_ins`]: code that reads a tensor's values or address works on fake tensors.
- Replaced trainer methods: every prompt and completion has the full length, and two micro-batches stand for all.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch._subclasses.fake_tensor import FakeTensor
from trl.kernels import chunked_logprob
from trl.trainer import utils

from grpo_math import blocked_weights, decoding
from grpo_math.memory.host_activations import HostActivations
from grpo_math.memory.model import base_model
from grpo_math.memory.tracker import Tracker
from grpo_math.trainer import micro_batches, offloading, packing

# Every private name of another library that this package overrides, patches, reads or sets, and every public one that it
# replaces, as library -> `module:name`. A test checks that each still exists and that the package uses no other, so that an
# upgrade that renames one fails there and not in a user's prediction.
PRIVATE_NAMES = {
    "trl": (
        "trl.kernels.chunked_logprob:_addmm_fp32",
        "trl.kernels.chunked_logprob:_backward_kernel",
        "trl.kernels.chunked_logprob:_forward_kernel",
        "trl.kernels.chunked_logprob:_use_triton",
        "trl.trainer.grpo_trainer:GRPOTrainer._generate_and_score_completions",
        "trl.trainer.grpo_trainer:GRPOTrainer._generate_single_turn",
        "trl.trainer.grpo_trainer:GRPOTrainer._step",
        "trl.trainer.grpo_trainer:GRPOTrainer._tokenize_prompts",
        "trl.trainer.grpo_trainer:GRPOTrainer.training_step",
        "trl.trainer.grpo_trainer:create_model_from_path",
        "trl.trainer.utils:_use_triton",
    ),
    "transformers": (
        "transformers:GenerationMixin._update_model_kwargs_for_generation",
        "transformers:PreTrainedConfig._attn_implementation",
        "transformers:PreTrainedModel.forward",
    ),
    "accelerate": (
        "accelerate:Accelerator.pad_across_processes",
        "accelerate.state:AcceleratorState._shared_state",
        "accelerate.state:GradientState._shared_state",
        "accelerate.state:PartialState._shared_state",
    ),
    "bitsandbytes": (
        "bitsandbytes.optim.optimizer:Optimizer8bit.fill_qmap",
        "bitsandbytes.optim.optimizer:Optimizer8bit.get_state_buffer",
    ),
    "datasets": ("datasets.config:HF_HUB_OFFLINE",),
    "torch": (
        "torch:is_autocast_enabled",
        "torch._C:_TorchDispatchModeKey",
        "torch._C:_current_autograd_node",
        "torch._C:_current_graph_task_id",
        "torch.autograd:Variable._execution_engine",
        "torch._C:_get_dispatch_mode",
        "torch._subclasses.fake_tensor:FakeTensor",
        "torch._subclasses.fake_tensor:FakeTensor.__deepcopy__",
        "torch._subclasses.fake_tensor:FakeTensor.data_ptr",
        "torch._subclasses.fake_tensor:FakeTensorMode",
        "torch._subclasses.fake_tensor:unset_fake_temporarily",
        "torch.nn:Module._apply",
        "torch.nn:Module._buffers",
        "torch.nn:Module._parameters",
        "torch:ops.aten._local_scalar_dense",
        "torch.optim:Optimizer.add_param_group",
        "torch.utils._python_dispatch:TorchDispatchMode",
        "torch.utils._pytree:tree_leaves",
    ),
}


class _NoKernel:
    """A Triton kernel whose launch does nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def no_data_download() -> contextlib.AbstractContextManager:
    """Inside the context `datasets` reads what is on this machine and asks no hub."""
    return mock.patch("datasets.config.HF_HUB_OFFLINE", True)


@contextlib.contextmanager
def cuda_stand_ins(tracker: Tracker) -> Iterator[None]:
    """
    Inside the context TRL's fused LM head and the optimizers allocate as they do on CUDA.

    - The head scores labelled positions only, in tiles that Triton folds in place.
    - torch's optimizers work on all tensors of a group at once (`foreach`).
    - bitsandbytes' paged states are in managed memory, outside of torch's allocator.
    - Tokens are drawn by torch's multinomial kernel.
    - Packed rows have a dense mask.
    """

    def draw(scores):
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)

    def get_state_buffer(optimizer, p, dtype=torch.float32):
        if optimizer.is_paged and p.numel() >= 1e5:  # bitsandbytes' own limit
            with tracker.untracked():
                buffer = torch.zeros_like(p, dtype=dtype)
            tracker.paged += buffer.nbytes
            return buffer
        return torch.zeros_like(p, dtype=dtype)

    # A function, since a mock keeps the tensors that it is called with
    def nothing(*args):
        return None

    autocast_enabled = torch.is_autocast_enabled

    def is_autocast_enabled(*device_type):
        return autocast_enabled(*device_type or ("cpu",))  # without a device torch answers for CUDA

    def to_the_host(model, active):
        return HostActivations(model, tracker) if active else contextlib.nullcontext()

    # Without Triton the module has no such name, so `PRIVATE_NAMES` cannot list it
    triton = types.SimpleNamespace(cdiv=lambda a, b: -(-a // b))
    with contextlib.ExitStack() as stack:
        for module in (chunked_logprob, utils):
            stack.enter_context(mock.patch.object(module, "_use_triton", mock.Mock(return_value=True)))
        for name in ("_forward_kernel", "_backward_kernel"):
            stack.enter_context(mock.patch.object(chunked_logprob, name, _NoKernel()))
        stack.enter_context(mock.patch.object(chunked_logprob, "_addmm_fp32", nothing))
        stack.enter_context(mock.patch.object(offloading, "activation_offloading", to_the_host))
        stack.enter_context(mock.patch.object(offloading, "check_accelerator"))
        stack.enter_context(mock.patch.object(chunked_logprob, "triton", triton, create=True))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled))
        stack.enter_context(mock.patch.object(Optimizer8bit, "get_state_buffer", get_state_buffer))
        stack.enter_context(mock.patch.object(decoding, "draw", draw))
        stack.enter_context(mock.patch.object(packing, "takes_units", nothing))
        default = torch.optim.Optimizer.add_param_group

        def add_param_group(optimizer, group):
            default(optimizer, group)
            for added in optimizer.param_groups:
                if added.get("foreach", False) is None and not added.get("fused"):
                    added["foreach"] = True

        stack.enter_context(mock.patch.object(torch.optim.Optimizer, "add_param_group", add_param_group))
        yield


def no_blocked_weights() -> contextlib.AbstractContextManager:
    """Inside the context decoding makes no copies of weights, which it does on a CPU only."""
    return mock.patch.object(blocked_weights, "MOST_BYTES", 0)


@contextlib.contextmanager
def fake_stand_ins() -> Iterator[None]:
    """Inside the context code that reads a tensor's values or address outside of torch's operations works on fakes."""

    def apply(module, fn, recurse=True):
        # torch swaps a fake parameter with its converted version, which fails while weak references to it exist
        for child in module.children() if recurse else ():
            child._apply(fn)
        for tensor in itertools.chain(module._parameters.values(), module._buffers.values()):
            if tensor is not None:
                with torch.no_grad():
                    converted = fn(tensor)
                if converted is not tensor:
                    tensor.data = converted
        return module

    def deepcopy(tensor, memo):
        with torch.no_grad():
            copied = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, tensor.requires_grad)
        memo[id(tensor)] = copied
        return copied

    def fill_qmap(optimizer):
        optimizer.name2qmap["dynamic"], optimizer.name2qmap["udynamic"] = torch.empty(256), torch.empty(256)

    with contextlib.ExitStack() as stack:
        # The caller reports a failure, so torch need not log it too
        stack.enter_context(mock.patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", apply))
        stack.enter_context(mock.patch.object(Optimizer8bit, "fill_qmap", fill_qmap))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", lambda tensor: id(tensor)))
        # torch's own method would copy a storage that does not exist
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", deepcopy, create=True))
        yield


@contextlib.contextmanager
def full_length_packing(args: Any, labelled: dict[tuple[int, ...], int]) -> Iterator[None]:
    """
    Inside the context packing works on fakes, whose lengths cannot be read: every prompt and completion has the full length.

    Args:
        args: The trainer's arguments.
        labelled: Gets the shape of each packed batch and how many of its positions have a label.
    """
    real_pack = packing.pack

    def read_lengths(input_ids, attention_mask, width):
        rows = len(input_ids)
        prompts = rows // args.num_generations
        if rows == args.per_device_train_batch_size:
            prompts = most_prompts_of_a_micro_batch(args)
        numbers = [row * max(prompts, 1) // rows for row in range(rows)]
        return packing.Lengths(numbers, [input_ids.size(1) - width] * rows, [width] * rows)

    def pack(*arguments):
        packed = real_pack(*arguments)
        labelled[tuple(packed.targets.shape)] = len(packed.source)
        return packed

    def lay_out_generation(batches, *arguments):
        return batches, 0

    with (
        mock.patch.object(packing, "read_lengths", read_lengths),
        mock.patch.object(packing, "pack", pack),
        mock.patch.object(micro_batches, "lay_out_generation", lay_out_generation),
    ):
        yield


def most_prompts_of_a_micro_batch(args: Any) -> int:
    """
    From how many prompts the rows of a micro-batch come at most, where groups are brought together ([`lay_out_generation`]).

    Groups are whole in a window that holds the whole generation. They come apart where an option keeps TRL's micro-batches,
    or where a generation is shuffled over several optimizer steps.
    """
    rows, group = args.per_device_train_batch_size, args.num_generations
    generated = rows * args.steps_per_generation // group
    whole = micro_batches.window_size(args.steps_per_generation, args.gradient_accumulation_steps)
    if args.row_mixing_option() or whole < args.steps_per_generation:
        return min(rows, generated)
    if group % rows == 0:
        return 1
    return rows // group if rows % group == 0 else min(-(-(rows - 1) // group) + 1, generated)


@contextlib.contextmanager
def reference_model_from(build: Callable[[], torch.nn.Module]) -> Iterator[None]:
    """Inside the context TRL's reference model comes from `build`, since there is no path to load it from."""

    def create(*args, **kwargs):
        return build()

    with mock.patch("trl.trainer.grpo_trainer.create_model_from_path", create):
        yield


def generate_full_length(
    trainer: Any,
    tracker: Tracker,
    during: Callable[[str], contextlib.AbstractContextManager],
    make_prompts: Callable[[int], list[list[int]]],
    fake_tensors: bool,
    generates: bool = True,
) -> None:
    """
    Replaces methods of a trainer so that it generates completions of full length, and marks generation and scoring.

    Args:
        trainer: A `GRPOTrainer`.
        tracker: It follows the generation's storages.
        during: The context of a phase.
        make_prompts: Number of rows -> token ids of so many prompts, used in place of the tokenized ones.
        fake_tensors: Whether the generation runs on fakes and stops after two forward passes.
        generates: False where something else generates (vLLM): the phase then has what is live at its start.
    """
    length = trainer.max_completion_length
    generate, score = trainer._generate_single_turn, trainer._generate_and_score_completions
    trainer.eos_token_ids = trainer.eos_token_ids or [1]
    trainer.generation_config.eos_token_id = None  # no completion ends early
    trainer.generation_kwargs["eos_token_id"] = None
    base = base_model(trainer.accelerator.unwrap_model(trainer.model))
    end = trainer.eos_token_ids[0]

    def generate_full(prompt_ids, *args, **kwargs):
        base.generation_config.eos_token_id = None  # `generate` falls back to the model's own configuration
        with during("generation"):
            if generates:
                short = two_forward_passes(trainer.model, tracker, length) if fake_tensors else contextlib.nullcontext()
                with short:
                    generate(prompt_ids, *args, **kwargs)
        return [[2] * (length - 1) + [end] for _ in prompt_ids], None

    def score_all(inputs):
        with during("scoring"):
            return score(inputs)

    if fake_tensors:  # for one process it returns its input, but reads the length from a tensor
        trainer.accelerator.pad_across_processes = lambda tensor, **kwargs: tensor
    trainer._tokenize_prompts = lambda prompts: (make_prompts(len(prompts)), None, {})
    trainer._generate_single_turn, trainer._generate_and_score_completions = generate_full, score_all


def run_two_micro_batches(
    trainer: Any, during: Callable[[str], contextlib.AbstractContextManager], second: int, first_step: int
) -> None:
    """
    Replaces `training_step` so that an optimizer step runs its first and one more micro-batch, and marks their phase.

    Args:
        trainer: A `GRPOTrainer`.
        during: The context of a phase.
        second: Number of the other micro-batch; 0 runs the first one only.
        first_step: What TRL's counter of micro-batches, which decides when to generate, is set to at the first one.
    """
    step, count = trainer.training_step, itertools.count()
    micro_batches = trainer.args.gradient_accumulation_steps

    def run_or_skip(model, inputs, num_items_in_batch=None):
        number = next(count) % micro_batches
        if number == 0:
            trainer._step = first_step
        if number not in (0, second):  # the others would repeat these two
            trainer._step += 1
            return torch.zeros((), device=trainer.accelerator.device)
        with during("training"):
            return step(model, inputs, num_items_in_batch)

    trainer.training_step = run_or_skip


@contextlib.contextmanager
def two_forward_passes(model: torch.nn.Module, tracker: Tracker, length: int) -> Iterator[None]:
    """
    Inside the context `model.generate` runs its first and its last forward pass only.

    After the first pass the cache and the attention mask grow to their size before the last of `length` tokens.
    """
    base = base_model(model)
    update, forward = base._update_model_kwargs_for_generation, base.forward
    calls = itertools.count(1)

    def update_and_skip(outputs, model_kwargs, *args, **kwargs):
        model_kwargs = update(outputs, model_kwargs, *args, **kwargs)
        if not skipped:
            skipped.append(True)
            missing = length - 2
            mask, cache = model_kwargs.get("attention_mask"), model_kwargs.get("past_key_values")
            if missing > 0:
                if mask is not None:
                    model_kwargs["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), missing)], dim=1)
                if (positions := model_kwargs.get("position_ids")) is not None:
                    model_kwargs["position_ids"] = positions + missing
                for layer in cache.layers:
                    _lengthen(layer, missing)
        return model_kwargs

    def forward_and_label(*args, **kwargs):
        number = next(calls)
        output = forward(*args, **kwargs)
        cache = output.past_key_values
        for layer in getattr(cache, "layers", ()):
            tracker.label(layer.keys, "kv cache")
            tracker.label(layer.values, "kv cache")
        tracker.boolean = number >= 2  # `generate` asks whether every row has finished
        return output

    skipped: list[bool] = []
    forward_and_label.__wrapped__ = forward
    with (
        mock.patch.object(base, "_update_model_kwargs_for_generation", update_and_skip),
        mock.patch.object(base, "forward", forward_and_label),
    ):
        try:
            yield
        finally:
            tracker.boolean = False


def _lengthen(layer: Any, missing: int) -> None:
    """Makes a dynamic cache's layer `missing` tokens longer; a sliding window of W tokens keeps W - 1 of them."""
    window = getattr(layer, "sliding_window", None)
    for name in ("keys", "values"):
        kept = getattr(layer, name)  # (B, heads, tokens, head_dim)
        length = kept.shape[2] + missing
        longer = kept.new_empty((*kept.shape[:2], length if window is None else min(length, window), kept.shape[3]))
        setattr(layer, name, longer if window is None else longer[:, :, -window + 1 :])
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length += missing
