"""Peak memory of a step on fake tensors: [`Tracker`] follows every storage from its allocation to its release.

A fake tensor has a shape and no values. Where TRL or transformers read a value, the tracker answers with the worst case:
every completion has the full length and no group is dead.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import bitsandbytes  # noqa: F401  registers torch.ops.bitsandbytes
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
# These go through a cuBLAS handle, which brings a workspace
MATRIX_PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    torch.ops.bitsandbytes.gemm_4bit.default,
}


class Peak(NamedTuple):
    """The most bytes that were live at once in a phase."""

    bytes: int
    event: int  # number of the allocation that reached the peak
    op: str  # the operation that allocated


class Tracker(TorchDispatchMode):
    """
    Follows the storages that torch operations allocate, from allocation to release.

    Args:
        rounding (`int`): Every storage counts as a multiple of so many bytes: 512 in torch's CUDA allocator, 1 on a CPU.
        masked_rows (`Callable[[torch.Size], int] | None`): Number of true elements in a boolean mask of this shape, which
            fake tensors do not know. `None` follows real tensors.
        workspace (`int`, *optional*, defaults to 0): Bytes of cuBLAS's workspace. A thread's first matrix product
            allocates and keeps it. Forward and backward passes run in two threads on CUDA.

    Attributes:
        live (`int`): Bytes that are allocated now.
        peaks (`dict[str, Peak]`): The peak of each phase.
        paged (`int`): Bytes in managed memory, which are not part of `live`.
        group_size (`int`): Equal rows in a group, which `unique` would find.
        boolean (`bool`): The value of a fake condition.
    """

    def __init__(self, rounding: int, masked_rows: Callable[[torch.Size], int] | None, workspace: int = 0):
        super().__init__()
        self.rounding, self.masked_rows, self.workspace = rounding, masked_rows, workspace
        self._workspaces: dict[bool, torch.Tensor] = {}  # key: whether it is the backward thread's
        self.group_size = 1
        self.boolean = False
        self.live = self.event = self.paged = 0
        self.phase = "load"
        self.peaks: dict[str, Peak] = {}
        # One entry for each storage ever followed: bytes, the events of allocation and release, the category
        self.sizes: list[int] = []
        self.born: list[int] = []
        self.died: list[float] = []
        self.category: list[str] = []
        self._index: dict[int, int] = {}  # id of a live storage -> its entry
        self._alive: dict[int, weakref.ref] = {}
        self._paused = False

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
        """Counts cuBLAS's workspace of the backward or the forward thread, unless the thread already has one."""
        if self.workspace and backward not in self._workspaces:
            with self.untracked():
                self._workspaces[backward] = torch.empty(self.workspace, dtype=torch.uint8)
            self.follow(self._workspaces[backward], "cuBLAS's workspace", "temporaries")

    def follow(self, tensor: torch.Tensor, op: Any, category: str | None = None) -> None:
        """Counts the storage of a tensor, unless it is counted already."""
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
        self.category.append(category or self._guess())
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
        # Forward passes run with gradients enabled, recomputed ones too; backward and optimizer without
        inference = self.phase in ("generation", "scoring", "held-out") and torch._C._current_graph_task_id() == -1
        return "activations" if torch.is_grad_enabled() or inference else "temporaries"

    def label(self, tensor: torch.Tensor | None, category: str) -> None:
        """Sets the category of a tensor's storage."""
        if tensor is not None:
            number = self._index.get(id(tensor.untyped_storage()))
            if number is not None:
                self.category[number] = category

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside the context allocations count for `phase`, whose peak starts at what is live."""
        before, self.phase = self.phase, phase
        if self.live > self.peaks.get(phase, Peak(0, 0, "")).bytes:
            self.peaks[phase] = Peak(self.live, self.event, "live at the start of the phase")
        try:
            yield
        finally:
            self.phase = before

    @contextlib.contextmanager
    def untracked(self) -> Iterator[None]:
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
        for size, born, died, category in zip(self.sizes, self.born, self.died, self.category, strict=True):
            if born <= event < died:
                found[category] += size
        return found

    def _stand_in(self, func, args, kwargs):
        """The result of an operation that depends on values, which a fake tensor lacks; else `NotImplemented`."""
        if func is aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return self.boolean if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is aten.equal.default:
            return True  # `quantile` of torch 2.11 checks its argument this way
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
            # The kernel draws one exponential variable for every probability
            scratch = torch.empty_like(args[0])
            self.follow(scratch, func, "temporaries")
            return func(*args, **kwargs)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            tensor, _, shape = args[:3]
            # The kernel dequantizes the weight for the product and releases it afterwards
            scratch = [torch.empty(shape, dtype=tensor.dtype), torch.empty(math.prod(shape) // args[4])]
            for part in scratch:
                self.follow(part, func, "temporaries")
            return func(*args, **kwargs)
        return NotImplemented
