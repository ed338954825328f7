"""One real training step without its data: on fake tensors, to count the memory that it takes, or on real ones, to measure.

[`dry_run`] builds the policy of a recipe from its configuration (no weights are read), hands it to the trainer with
prompts and completions of the greatest lengths and runs one steady step: generation, reference log-probabilities, forward
and backward passes, the optimizer, and the held-out generation. TRL's, transformers', peft's and bitsandbytes' own code
runs; with fake tensors (`torch._subclasses.FakeTensorMode`) nothing is computed and [`Tracker`] follows every storage from
its allocation to its release. What a fake tensor cannot tell is answered for the worst case (every completion of full
length, no group dead), and what a CPU would do otherwise than a CUDA device is stood in for, each in its place below.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import logging
import math
import tempfile
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import bitsandbytes as bnb  # before its operations can be named
import torch
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging
from trl import get_peft_config, get_quantization_config

from grpo_math import models, tiny_model
from grpo_math.memory import PHASES, DryRun
from grpo_math.recipe import Recipe
from grpo_math.trainer import GRPOMathTrainer, host_embeddings

CATEGORIES = (
    "weights",
    "adapter",
    "gradients",
    "optimizer states",
    "kv cache",
    "activations",
    "temporaries",
)

aten = torch.ops.aten
# What goes through a cuBLAS handle, which brings a workspace
MATRIX_PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    torch.ops.bitsandbytes.gemm_4bit.default,
}


# --- following the storages -------------------------------------------------------------------------------------------


class Peak(NamedTuple):
    """The most that was live at once in a phase."""

    bytes: int
    event: int  # number of the allocation that reached it
    op: str  # the operation that asked for it


class Tracker(TorchDispatchMode):
    """
    Follows the storages that torch operations allocate, from allocation to release.

    Args:
        rounding (`int`): Every storage counts as a multiple of so many bytes: 512 in torch's CUDA allocator, 1 on a CPU.
        masked_rows (`Callable[[torch.Size], int] | None`): How many elements of a boolean mask of this shape are true
            (what fake tensors cannot know). `None` follows real tensors.
        workspace (`int`, *optional*, defaults to 0): Bytes that a thread's first matrix product asks torch's allocator for
            and keeps: cuBLAS's workspace. Forward and backward passes run in two threads on CUDA.
    """

    def __init__(self, rounding: int, masked_rows: Callable[[torch.Size], int] | None, workspace: int = 0):
        super().__init__()
        self.rounding, self.masked_rows, self.workspace = rounding, masked_rows, workspace
        self._workspaces: dict[bool, torch.Tensor] = {}  # of the backward thread, of the other one
        self.group_size = 1  # equal rows that `unique` finds
        self.boolean = False  # what a fake condition is
        self.live = self.event = 0
        self.paged = 0  # bytes in managed memory, which is not followed
        self.phase = "load"
        self.peaks: dict[str, Peak] = {}
        self.sizes: list[int] = []  # of every storage ever followed, and when it came, went and what it is
        self.born: list[int] = []
        self.died: list[float] = []
        self.kind: list[str] = []
        self._index: dict[int, int] = {}  # id of a live storage -> its number
        self._alive: dict[int, weakref.ref] = {}
        self._paused = False

    # What the tracker sees ---------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.workspace and func in MATRIX_PRODUCTS and not self._paused:
            self.take_workspace(torch._C._current_graph_task_id() != -1)
        result = self._stand_in(func, args, kwargs) if self.masked_rows is not None else NotImplemented
        if result is NotImplemented:
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result) if isinstance(result, (tuple, list)) else (result,):
            if isinstance(leaf, torch.Tensor):
                self.follow(leaf, func)
        return result

    def take_workspace(self, backward: bool) -> None:
        """Counts cuBLAS's workspace of the backward or of the other thread, if it is the thread's first."""
        if self.workspace and backward not in self._workspaces:
            with self.unseen():
                self._workspaces[backward] = torch.empty(self.workspace, dtype=torch.uint8)
            self.follow(self._workspaces[backward], "cuBLAS's workspace", "temporaries")

    def follow(self, tensor: torch.Tensor, op: Any, kind: str | None = None) -> None:
        """Counts the storage of a tensor, if it is new."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._index or self._paused:
            return
        size = math.ceil(storage.nbytes() / self.rounding) * self.rounding
        if not size:
            return
        number = len(self.sizes)
        self.event += 1
        self.sizes.append(size)
        self.born.append(self.event)
        self.died.append(math.inf)
        self.kind.append(kind or self._guess())
        self._index[key] = number
        self._alive[key] = weakref.ref(storage, lambda _: self._release(key))
        self.live += size
        if self.live > self.peaks.get(self.phase, Peak(0, 0, "")).bytes:
            shape = "x".join(map(str, tensor.shape))
            name = str(getattr(op, "__name__", op)).removesuffix(".default")
            where = "" if torch._C._current_graph_task_id() == -1 else "backward: "
            dtype = str(tensor.dtype).removeprefix("torch.")
            self.peaks[self.phase] = Peak(self.live, self.event, f"{where}{name} -> {shape} {dtype}")

    def _release(self, key: int) -> None:
        number = self._index.pop(key)
        self._alive.pop(key, None)
        self.event += 1
        self.died[number] = self.event
        self.live -= self.sizes[number]

    def _guess(self) -> str:
        # Forward passes run with gradients, recomputed ones too; backward and optimizer without
        inference = self.phase in ("generation", "scoring", "held-out") and torch._C._current_graph_task_id() == -1
        return "activations" if torch.is_grad_enabled() or inference else "temporaries"

    def label(self, tensor: torch.Tensor | None, kind: str) -> None:
        """Says what the storage of a tensor is."""
        if tensor is not None:
            number = self._index.get(id(tensor.untyped_storage()))
            if number is not None:
                self.kind[number] = kind

    @contextlib.contextmanager
    def during(self, phase: str):
        """Inside the context peaks count for `phase`; it starts at what is live."""
        before, self.phase = self.phase, phase
        if self.live > self.peaks.get(phase, Peak(0, 0, "")).bytes:
            self.peaks[phase] = Peak(self.live, self.event, "what was there before")
        try:
            yield
        finally:
            self.phase = before

    @contextlib.contextmanager
    def unseen(self):
        """Inside the context nothing is counted."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def parts(self, phase: str) -> dict[str, int]:
        """Bytes of each category at the peak of a phase."""
        event = self.peaks[phase].event
        found = dict.fromkeys(CATEGORIES, 0)
        for size, born, died, kind in zip(self.sizes, self.born, self.died, self.kind, strict=True):
            if born <= event < died:
                found[kind] += size
        return found

    # What a fake tensor cannot answer ----------------------------------------

    def _stand_in(self, func, args, kwargs):
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return self.boolean if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten.equal.default:
            return True  # `quantile` of torch 2.11 checks its share so
        if func is aten.nonzero.default:
            (mask,) = args
            return mask.new_empty((self.masked_rows(mask.shape), mask.ndim), dtype=torch.int64)
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            indices = []
            for index in args[1]:
                if index is not None and index.dtype == torch.bool:
                    rows = self.masked_rows(index.shape)
                    indices += [index.new_empty((rows,), dtype=torch.int64) for _ in range(index.ndim)]
                else:
                    indices.append(index)
            return func(args[0], indices)
        if func is aten.unique_dim.default:
            tensor = args[0]
            distinct = max(len(tensor) // self.group_size, 1)
            inverse, counts = (tensor.new_empty((n,), dtype=torch.int64) for n in (len(tensor), distinct))
            return tensor.new_empty((distinct, *tensor.shape[1:])), inverse, counts
        if func is aten.multinomial.default:
            # It draws one exponential variable for every probability
            scratch = torch.empty_like(args[0])
            self.follow(scratch, func, "temporaries")
            return func(*args, **kwargs)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            tensor, _, shape = args[:3]
            # The weight is dequantized for the product and released after it
            scratch = [torch.empty(shape, dtype=tensor.dtype), torch.empty(math.prod(shape) // args[4])]
            for part in scratch:
                self.follow(part, func, "temporaries")
            return func(*args, **kwargs)
        return NotImplemented


# --- the model, from its configuration --------------------------------------------------------------------------------


def build_model(recipe: Recipe, config: Any, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """
    A model of the recipe's shape, precision and quantization with random weights.

    Args:
        recipe: `load_in_4bit`, `attn_implementation` and so on come from it.
        config: The model's configuration.
        dtype: Of the weights that are not quantized.
        device: Where to put it. Under a `FakeTensorMode` quantized weights are fakes of the right sizes.
    """
    config = type(config).from_dict(config.to_dict())
    if recipe.model.attn_implementation:
        config._attn_implementation = recipe.model.attn_implementation
    quantization = get_quantization_config(recipe.model)
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
    if quantization is None or fake:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:  # as a load does it, which never holds the whole model on the card before it is quantized
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
    if recipe.training.embeddings_on_host:
        host_embeddings.embeddings_to_host(model)
    if quantization is not None:
        _quantize(model, quantization, dtype, device, fake)
    return model


def _quantize(model: torch.nn.Module, quantization: Any, dtype: torch.dtype, device: torch.device, fake: bool) -> None:
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
    with unset_fake_temporarily():  # which layers become 4-bit ones is its decision; they start on the meta device
        quantizer.preprocess_model(model=model, device_map={"": device}, dtype=dtype)
    for module in model.modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        shape, like = (module.out_features, module.in_features), module.weight
        if fake:
            module.weight = fake_4bit_weight(shape, dtype, like)
        else:
            values = torch.empty(shape, dtype=dtype, device=device).normal_(std=0.02)
            module.weight = bnb.nn.Params4bit(
                values, compress_statistics=like.compress_statistics, quant_type=like.quant_type, module=module
            ).to(device)
            del values
        module.quant_state = module.weight.quant_state
        if module.bias is not None:
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=device))
    models.keep_4bit_trainable(model)
    if not fake:
        _fill_on(model, device)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


@torch.no_grad()
def _fill_on(model: torch.nn.Module, device: torch.device) -> None:
    """Moves what is not quantized to the device, with random matrices, norms of one and biases of zero."""
    for name, parameter in model.named_parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(device)
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
        if isinstance(module, host_embeddings.HostEmbedding):
            module.weight.normal_(std=0.02)


def fake_4bit_weight(shape: tuple[int, int], dtype: torch.dtype, like: Any) -> torch.nn.Parameter:
    """
    What bitsandbytes keeps of a 4-bit weight, as fake tensors (`Params4bit` itself cannot wrap one).

    Two weights a byte and one scale for 64 of them: float32, or, quantized again (`compress_statistics`), one byte and a
    float32 for 256 scales (QLoRA, arXiv 2305.14314, section 3). Code tables are kept by every layer.
    """
    from bitsandbytes.functional import QuantState

    def table(size, dtype=torch.float32):
        return torch.empty(size, dtype=dtype)

    count, blocksize = math.prod(shape), 64
    blocks = math.ceil(count / blocksize)
    nested = like.compress_statistics
    state2 = QuantState(table(math.ceil(blocks / 256)), code=table(256), blocksize=256, dtype=torch.float32)
    weight = torch.nn.Parameter(table((math.ceil(count / 2), 1), torch.uint8), requires_grad=False)
    weight.quant_state = QuantState(
        table(blocks, torch.uint8 if nested else torch.float32),
        shape=torch.Size(shape),
        code=table(16),
        blocksize=blocksize,
        quant_type=like.quant_type,
        dtype=dtype,
        offset=table(()) if nested else None,
        state2=state2 if nested else None,
    )
    weight.compress_statistics, weight.quant_type, weight.bnb_quantized = nested, like.quant_type, True
    weight.blocksize, weight.quant_storage = blocksize, torch.uint8
    return weight


def quantization_tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The scales and tables beside the 4-bit weights of a model."""
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            if part is not None:
                yield from (t for t in (part.absmax, part.code, part.offset) if t is not None)


# --- what a CPU does otherwise than CUDA ------------------------------------------------------------------------------


class _NoKernel:
    """A Triton kernel that is launched and computes nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@contextlib.contextmanager
def cuda_stand_ins(tracker: Tracker) -> Iterator[None]:
    """
    Inside the context TRL's fused LM head and the optimizers allocate as they do on CUDA: the head scores labelled
    positions only, in tiles that Triton folds in place; torch's optimizers work on all tensors of a group at once
    (`foreach`); bitsandbytes' paged states lie in managed memory, which is not torch's.
    """
    from bitsandbytes.optim.optimizer import Optimizer8bit
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    def get_state_buffer(optimizer, p, dtype=torch.float32):
        if optimizer.is_paged and p.numel() >= 1e5:  # as bitsandbytes has it
            with tracker.unseen():
                buffer = torch.zeros_like(p, dtype=dtype)
            tracker.paged += buffer.nbytes
            return buffer
        return torch.zeros_like(p, dtype=dtype)

    # Functions, not mocks: a mock would remember the tensors that it is called with
    def use_triton(device):
        return True

    def add_in_place(accumulator, a, b):
        return None

    autocast_enabled = torch.is_autocast_enabled

    def is_autocast_enabled(*device_type):
        return autocast_enabled(*device_type or ("cpu",))  # without a device it asks about CUDA

    triton = types.SimpleNamespace(cdiv=lambda a, b: -(-a // b))
    with contextlib.ExitStack() as stack:
        for module in (chunked_logprob, utils):
            stack.enter_context(mock.patch.object(module, "_use_triton", use_triton))
        for name in ("_forward_kernel", "_backward_kernel"):
            stack.enter_context(mock.patch.object(chunked_logprob, name, _NoKernel()))
        stack.enter_context(mock.patch.object(chunked_logprob, "_addmm_fp32", add_in_place))
        stack.enter_context(mock.patch.object(chunked_logprob, "triton", triton, create=True))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", is_autocast_enabled))
        stack.enter_context(mock.patch.object(Optimizer8bit, "get_state_buffer", get_state_buffer))
        default = torch.optim.Optimizer.add_param_group

        def add_param_group(optimizer, group):
            default(optimizer, group)
            for added in optimizer.param_groups:
                if added.get("foreach", False) is None and not added.get("fused"):
                    added["foreach"] = True

        stack.enter_context(mock.patch.object(torch.optim.Optimizer, "add_param_group", add_param_group))
        yield


@contextlib.contextmanager
def fake_stand_ins() -> Iterator[None]:
    """Inside the context what reads a tensor's values or address outside of torch's operations works on fakes."""
    from bitsandbytes.optim.optimizer import Optimizer8bit
    from torch._subclasses.fake_tensor import FakeTensor

    def apply(module, fn, recurse=True):
        # torch swaps a fake parameter with its converted self, which fails while anything else refers to it weakly
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
        # What fails is reported once, by whoever asked
        stack.enter_context(mock.patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", apply))
        stack.enter_context(mock.patch.object(Optimizer8bit, "fill_qmap", fill_qmap))
        stack.enter_context(mock.patch.object(FakeTensor, "data_ptr", lambda tensor: id(tensor)))
        # torch's own would copy a storage that is not there
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", deepcopy, create=True))
        yield


# --- the step ---------------------------------------------------------------------------------------------------------


class _Steady(TrainerCallback):
    """Makes the first step on fakes a steady one, whose optimizer has its states; notes what is a gradient and a state."""

    trainer: Any = None

    def __init__(self, tracker: Tracker, during: Callable[[str], contextlib.AbstractContextManager], fake: bool):
        self.tracker, self.during, self.fake = tracker, during, fake

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.fake:  # the first of two real steps makes the states
            return
        trainer = self.trainer
        with self.during("optimizer"):
            self.tracker.take_workspace(backward=True)  # the steps before had a backward pass
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            self._label_gradients()
            # The optimizer itself: a loss scaler, which has seen no loss yet, would refuse
            getattr(trainer.optimizer, "optimizer", trainer.optimizer).step()
            trainer.optimizer.zero_grad()
        self._label_states()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._label_gradients()
        self._step = self.during("optimizer")
        self._step.__enter__()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._step.__exit__(None, None, None)
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
    """1, 0, 1, 0, ...: no group is dead."""
    return [float(i % 2) for i in range(len(completions))]


def dry_run(
    recipe: Recipe,
    config: Any,
    prompt_length: int,
    *,
    fake: bool = True,
    cuda: bool = True,
    device: torch.device | None = None,
    meter: Callable[[str], contextlib.AbstractContextManager] | None = None,
    workspace: int = 0,
) -> DryRun:
    """
    One steady step of a recipe, with every prompt and completion of the greatest length.

    On fake tensors that is the first step, with an optimizer that has its states already; on real ones it is the second.

    Args:
        recipe: As `load_recipe` gives it.
        config: The model's configuration.
        prompt_length: Tokens of the longest prompt.
        fake: Fake tensors and a prediction; else real ones, random weights, and figures from `meter`.
        cuda: Whether to allocate as CUDA does (of a prediction).
        device: Where real tensors are.
        meter: Called with the phase, a context manager around it (of a measurement).
        workspace: Bytes of cuBLAS's workspace for a thread (of a prediction for CUDA).

    Returns:
        `DryRun`: empty but for what `meter` notes itself when not `fake`.
    """
    task, args = recipe.task, copy.copy(recipe.training)
    device = torch.device("cpu") if device is None else device
    length = args.max_completion_length
    rows = args.per_device_train_batch_size * args.steps_per_generation

    def masked_rows(shape: torch.Size) -> int:
        if len(shape) == 2 and shape[1] >= prompt_length + length - 1:
            return shape[0] * length  # the labelled positions of a micro-batch
        return math.prod(shape)

    tracker = Tracker(512 if cuda else 1, masked_rows if fake else None, workspace if fake and cuda else 0)
    tracker.group_size = args.num_generations
    dtype = _dtype(recipe, config)
    _quiet(args)
    args.max_steps = 1 if fake else 2
    name = recipe.model.model_name_or_path or ""
    saved_adapter = name if models.adapter_base(name) else None
    meter = meter or (lambda phase: contextlib.nullcontext())

    @contextlib.contextmanager
    def during(phase: str):
        with tracker.during(phase), meter(phase):
            yield

    with contextlib.ExitStack() as stack:
        args.output_dir = stack.enter_context(tempfile.TemporaryDirectory())
        tokenizer = stand_in_tokenizer()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(transformers_logging.set_verbosity, transformers_logging.get_verbosity())
        transformers_logging.set_verbosity_error()
        if fake:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(fake_stand_ins())
            if cuda:
                stack.enter_context(cuda_stand_ins(tracker))
            stack.enter_context(tracker)
        with meter("load"):
            with tracker.unseen():  # a real load reads weight after weight
                model = build_model(recipe, config, dtype, device)
            for tensor in itertools.chain(model.parameters(), model.buffers(), quantization_tensors(model)):
                tracker.follow(tensor, "load", "weights")
            for module in model.modules() if not cuda else ():  # on a CPU the host's memory is what is measured
                if isinstance(module, host_embeddings.HostEmbedding):
                    tracker.follow(module.weight, "load", "weights")
            if fake and recipe.model.load_in_4bit:
                _follow_a_4bit_load(tracker, model, dtype)
            if saved_adapter is not None:
                model = _with_adapter(model, saved_adapter)
            loaded = models.adapter_weights(model)
            stack.enter_context(_reference_from(recipe, config, dtype, device))
            callback = _Steady(tracker, during, fake)
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
            del loaded  # it holds the weights of the load
        callback.trainer = trainer
        for name in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(name)
        _label_weights(tracker, trainer)
        _run_step(trainer, tracker, during, prompt_length, fake)
        if task.heldout_size:
            with during("held-out"), torch.no_grad():
                _held_out(trainer, tracker, prompt_length, task.heldout_batch_size, fake)
        result = DryRun(
            {phase: tracker.peaks[phase].bytes for phase in PHASES if phase in tracker.peaks},
            {phase: tracker.peaks[phase].op for phase in PHASES if phase in tracker.peaks},
            {phase: tracker.parts(phase) for phase in PHASES if phase in tracker.peaks},
            tracker.paged,
        )
        del trainer, model, callback.trainer
    gc.collect()
    return result


def _follow_a_4bit_load(tracker: Tracker, model: torch.nn.Module, dtype: torch.dtype) -> None:
    """What a load has on the card for a while: one weight that is not quantized yet, and embeddings that move to the host."""
    passing = {
        "embeddings on their way": [
            m.weight.numel() for m in model.modules() if isinstance(m, host_embeddings.HostEmbedding)
        ],
        "a weight before it is quantized": [
            p.quant_state.shape.numel() for p in model.parameters() if hasattr(p, "quant_state")
        ],
    }
    held = []  # both at once
    for name, sizes in passing.items():
        with tracker.unseen():
            held.append(torch.empty(max(sizes, default=0), dtype=dtype))
        tracker.follow(held[-1], name, "temporaries")


def _with_adapter(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    """The model with the adapter of a folder on it, to be trained further: its shape, with random weights."""
    adapter = PeftConfig.from_pretrained(folder)
    adapter.inference_mode = False
    return get_peft_model(model, adapter)


def _dtype(recipe: Recipe, config: Any) -> torch.dtype:
    name = recipe.model.dtype or "float32"
    if name == "auto":  # what the checkpoint was saved in
        name = getattr(config, "dtype", None) or "float32"
    return name if isinstance(name, torch.dtype) else getattr(torch, name)


def _quiet(args: Any) -> None:
    """No files, no logs; the savings off, since nothing is to be saved in the worst case."""
    args.save_strategy, args.report_to = "no", []
    args.disable_tqdm, args.logging_steps, args.logging_first_step = True, 1, False
    args.log_completions = args.push_to_hub = False
    args.resume_from_checkpoint = None
    for name in ("skip_zero_advantage", "trim_padding", "sort_by_length", "compact_lm_head"):
        setattr(args, name, False)
    args.dynamic_sampling, args.reward_weights = 0, None


@contextlib.contextmanager
def _reference_from(recipe: Recipe, config: Any, dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside the context TRL's reference model is built as the policy is, since there is no path to load it from."""

    def build(*args, **kwargs):
        return build_model(recipe, config, dtype, device)

    with mock.patch("trl.trainer.grpo_trainer.create_model_from_path", build):
        yield


def _label_weights(tracker: Tracker, trainer: Any) -> None:
    for model in (trainer.model, trainer.ref_model):
        for tensor in itertools.chain(model.parameters(), model.buffers()) if model is not None else ():
            tracker.follow(tensor, "load", "weights")
            tracker.label(tensor, "weights")
    if hasattr(trainer.model, "peft_config"):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                tracker.label(parameter, "adapter")


def prompts_of(length: int, rows: int, group: int, vocabulary: int = 3) -> list[list[int]]:
    """
    Token ids of prompts, the `group` rows of each alike and the prompts as different as the vocabulary's size lets them be:
    the first row of `length` tokens, the others of one less, so that there is padding.
    """
    words = vocabulary - 2  # without padding and end

    def prompt(number: int, size: int) -> list[int]:
        return [2 + number % words, *[2 + number // words % words] * (size - 1)]

    return [prompt(row // group, length if row == 0 else max(length - 1, 1)) for row in range(rows)]


def _run_step(trainer: Any, tracker: Tracker, during: Callable, prompt_length: int, fake: bool) -> None:
    """`trainer.train()` with the phases marked, prompts and completions of full length and two micro-batches."""
    length = trainer.max_completion_length
    generate, score, step = (
        trainer._generate_single_turn,
        trainer._generate_and_score_completions,
        trainer.training_step,
    )
    trainer.eos_token_ids = trainer.eos_token_ids or [1]
    trainer.generation_config.eos_token_id = None  # no completion ends early
    trainer.generation_kwargs["eos_token_id"] = None
    base = _base_model(trainer.accelerator.unwrap_model(trainer.model))
    end = trainer.eos_token_ids[0]

    def generate_full(prompt_ids, *args, **kwargs):
        base.generation_config.eos_token_id = None  # which stands in for what a call leaves open
        with during("generation"):
            if fake:
                with two_tokens(trainer.model, tracker, length):
                    generate(prompt_ids, *args, **kwargs)
            else:
                generate(prompt_ids, *args, **kwargs)
        return [[2] * (length - 1) + [end] for _ in prompt_ids], None

    def score_all(inputs):
        with during("scoring"):
            return score(inputs)

    count = itertools.count()
    args, group = trainer.args, trainer.num_generations
    vocabulary = _vocabulary(base)
    # The first micro-batch, and one beside its gradients: where a new generation falls into some step, that one
    micro_batches, generate_every = args.gradient_accumulation_steps, args.steps_per_generation * args.num_iterations
    second, first_of_step = micro_batches - 1, 0
    if generate_every < micro_batches:
        second = generate_every
    elif generate_every % micro_batches:  # not into every step: begin with one into which it falls
        second = math.gcd(generate_every, micro_batches)
        first_of_step = generate_every - second

    def two_steps(model, inputs, num_items_in_batch=None):
        number = next(count) % micro_batches
        if number == 0:
            trainer._step = first_of_step
        if number not in (0, second):  # the others would only repeat them
            trainer._step += 1
            return torch.zeros((), device=trainer.accelerator.device)
        with during("training"):
            return step(model, inputs, num_items_in_batch)

    if fake:  # of one process it gives back what it gets, but reads the length from a tensor
        trainer.accelerator.pad_across_processes = lambda tensor, **kwargs: tensor
    trainer._tokenize_prompts = lambda prompts: (prompts_of(prompt_length, len(prompts), group, vocabulary), None, {})
    trainer._generate_single_turn, trainer._generate_and_score_completions = generate_full, score_all
    trainer.training_step = two_steps
    with tracker.during("training"):  # what lies between the phases
        trainer.train()


def _base_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model without the adapter around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _vocabulary(model: torch.nn.Module) -> int:
    return model.config.get_text_config().vocab_size


@contextlib.contextmanager
def two_tokens(model: torch.nn.Module, tracker: Tracker, length: int) -> Iterator[None]:
    """
    Inside the context `model.generate` stops after its first and last forward pass: after the first the cache and the
    attention mask grow to what they are before the last of `length` tokens.
    """
    base = _base_model(model)
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
        tracker.boolean = number >= 2  # every row has finished
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
    """A layer of a dynamic cache as it is `missing` tokens later; one with a sliding window keeps all but one of its tokens."""
    window = getattr(layer, "sliding_window", None)
    for name in ("keys", "values"):
        kept = getattr(layer, name)
        length = kept.shape[2] + missing
        more = kept.new_empty((*kept.shape[:2], length if window is None else min(length, window), kept.shape[3]))
        setattr(layer, name, more if window is None else more[:, :, -window + 1 :])
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length += missing


def _held_out(trainer: Any, tracker: Tracker, prompt_length: int, rows: int, fake: bool) -> None:
    from grpo_math.evaluation import generate, sampling_of

    policy = trainer.accelerator.unwrap_model(trainer.model)
    policy.eval()
    # As the greedy half of the measuring has it: every prompt once
    ids, length = prompts_of(prompt_length, rows, 1, _vocabulary(policy)), trainer.max_completion_length
    tracker.group_size = 1
    settings = {**sampling_of(trainer.args), "do_sample": True, "max_new_tokens": length, "eos_token_id": None}
    with two_tokens(policy, tracker, length) if fake else contextlib.nullcontext():
        generate(policy, trainer.processing_class, ids, rows, **settings)
