"""The CUDA device: free memory, cuBLAS's workspace and the allocator's setting, as torch and nvidia-smi would report them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from grpo_math import memory, startup
from grpo_math.memory import GIB


class FakeDevice:
    """Replaces what torch and nvidia-smi report with the answers of a CUDA device of 8 GiB."""

    def __init__(self, monkeypatch, capability=(8, 6), smi="5120\n"):
        self.commands = []
        properties = SimpleNamespace(name="Some RTX", uuid="1-2", total_memory=8 * GIB)
        cuda = {
            "is_available": lambda: True,
            "get_device_properties": lambda device: properties,
            "get_device_capability": lambda: capability,
            "mem_get_info": lambda: (4 * GIB, 8 * GIB),
        }
        self.smi = smi
        for name, function in cuda.items():
            monkeypatch.setattr(torch.cuda, name, function)
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, command, **kwargs):
        self.commands.append(command)
        if self.smi is None:
            raise FileNotFoundError("nvidia-smi")
        return SimpleNamespace(stdout=self.smi)


def test_free_memory_is_queried_without_a_cuda_context(monkeypatch):
    device = FakeDevice(monkeypatch)
    assert memory.available_vram() == (5.0, "free on Some RTX")
    assert device.commands[0][:2] == ["nvidia-smi", "--id=GPU-1-2"]
    device.smi = "81559\n"  # of the whole card, of which this device is a part
    assert memory.available_vram()[0] == 8.0
    for device.smi in (None, "[N/A]\n", ""):
        assert memory.available_vram()[0] == 4.0  # torch's own answer


def test_cublas_workspace_depends_on_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.cublas_workspace() == 32 * 2**20
    FakeDevice(monkeypatch, capability=(8, 6))
    assert memory.cublas_workspace() == 8.125 * 2**20
    FakeDevice(monkeypatch, capability=(12, 0))
    assert memory.cublas_workspace() == 32 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="expandable segments exist on Linux only")
def test_users_allocator_setting_is_kept(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    startup.prefer_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    startup.prefer_expandable_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    startup.prefer_expandable_segments()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
