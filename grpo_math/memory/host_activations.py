"""TRL's activation offloading as the memory prediction sees it: which tensors leave the card, and when they are there again.

TRL's `OffloadActivations` needs a device with streams. This stand-in keeps its rules: what is copied, what stays, and that the
last few copied tensors stay on the card until their copies are done.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from grpo_math.memory.tracker import Tracker

# TRL's defaults
MIN_OFFLOAD_BYTES = 1024
MAX_FORWARD_STASH = 5


class _Copy(NamedTuple):
    tensor: torch.Tensor  # on the host
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class HostActivations(saved_tensors_hooks):
    """
    Inside the context saved tensors move to the host, whose memory is not counted, and return in the backward pass.

    Args:
        model: Its parameters stay.
        tracker: Counts what is on the card.
    """

    def __init__(self, model: torch.nn.Module, tracker: Tracker):
        self.tracker = tracker
        self.parameters = {id(parameter.untyped_storage()) for parameter in model.parameters()}
        self.saved: dict[int, torch.Tensor | _Copy] = {}
        self.number = 0
        self.forward_stash: dict[int, torch.Tensor] = {}  # being copied to the host
        self.copied_storages: dict[int, int] = {}  # id of a stashed tensor's storage -> its number
        self.backward_stash: dict[int, torch.Tensor] = {}  # in use by the node that runs
        self.node = None
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> int:
        self.number += 1
        storage = id(tensor.untyped_storage())
        small = tensor.numel() * tensor.element_size() < MIN_OFFLOAD_BYTES
        if storage in self.copied_storages or storage in self.parameters or small:
            self.saved[self.number] = tensor
            return self.number
        if 0 not in tensor.stride() and (not tensor.is_contiguous() or tensor.storage_offset()):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        for number in [n for n in self.forward_stash if n <= self.number - MAX_FORWARD_STASH]:
            self._forget(number)
        source = tensor
        if 0 in tensor.stride():  # broadcast: only what is stored is copied
            source = tensor.as_strided((tensor.untyped_storage().size() // tensor.element_size(),), (1,), 0)
        with self.tracker.untracked():
            host = source.clone()
        self.saved[self.number] = _Copy(host, tensor.shape, tensor.stride(), tensor.storage_offset())
        self.forward_stash[self.number] = tensor
        self.copied_storages[id(tensor.untyped_storage())] = self.number
        return self.number

    def _unpack(self, number: int) -> torch.Tensor:
        saved = self.saved.pop(number)
        if isinstance(saved, torch.Tensor):
            return saved
        node = torch._C._current_autograd_node()
        if self.node is None:
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
        if node is not self.node:
            self.node = node
            self.backward_stash.clear()
        stashed = self.forward_stash.get(number)
        for other in list(self.forward_stash):  # the backward pass has begun
            self._forget(other)
        if stashed is None:
            stashed = saved.tensor.clone().as_strided(saved.shape, saved.stride, saved.offset)
            self.backward_stash[number] = stashed
        return stashed

    def _end_backward(self) -> None:
        self.node = None
        self.backward_stash.clear()

    def _forget(self, number: int) -> None:
        storage = id(self.forward_stash.pop(number).untyped_storage())
        if self.copied_storages.get(storage) == number:
            del self.copied_storages[storage]
