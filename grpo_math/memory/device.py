"""The CUDA device and this process: free memory, cuBLAS's workspace, out-of-memory errors, accelerate's shared state."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from unittest import mock

from grpo_math.memory.results import DEFAULT_VRAM, GIB

logger = logging.getLogger(__name__)

# torch is imported inside the functions: the face of this package must import in milliseconds

# cuBLAS's workspace for a thread, as torch asks its allocator for it (aten/src/ATen/cuda/CublasHandlePool.cpp): before
# Hopper (compute capability 9), and from Hopper on
WORKSPACE_BYTES, WORKSPACE_BYTES_FROM_9 = 8320 * 1024, 32 * 2**20
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device is out of memory: torch's own class, or CUDA's and cuBLAS's messages."""
    import torch

    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "CUDA error: out of memory" in text or "ALLOC_FAILED" in text


def cublas_workspace() -> int:
    """Bytes of cuBLAS's workspace for a thread on the CUDA device; without a device, the larger of the two sizes."""
    import torch

    known = torch.cuda.is_available()
    return WORKSPACE_BYTES if known and torch.cuda.get_device_capability()[0] < 9 else WORKSPACE_BYTES_FROM_9


def available_vram() -> tuple[float, str]:
    """Free GiB of the CUDA device and where the number comes from; 8 GiB without a device."""
    import torch

    if not torch.cuda.is_available():
        return DEFAULT_VRAM, "no CUDA device found; --vram GIB sets another size"
    device = torch.cuda.get_device_properties(0)
    try:
        # torch's own query makes a CUDA context, which would be counted twice: as taken and in the overhead
        command = ["nvidia-smi", f"--id=GPU-{device.uuid}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        free = min(int(done.stdout.split()[0]) * 2**20, device.total_memory)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        logger.info("nvidia-smi gave no answer: %s", error)
        free, _ = torch.cuda.mem_get_info()
    return free / GIB, f"free on {device.name}"


@contextlib.contextmanager
def single_cpu_process() -> Iterator[None]:
    """
    Inside the context accelerate sees one process on the CPU, whatever this process has set up before.

    accelerate's shared state is put aside and restored afterwards, and so is the environment.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [cls._shared_state for cls in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        with mock.patch.dict(os.environ, ACCELERATE_USE_CPU="true"):
            for name in LAUNCHER:  # accelerate would wait for the launcher's other processes
                os.environ.pop(name, None)
            PartialState(cpu=True)  # accelerate's logger refuses to warn without a state
            yield
    finally:
        for state, before in zip(shared, kept, strict=True):
            state.clear()
            state.update(before)
