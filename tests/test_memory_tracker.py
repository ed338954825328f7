"""The tracker follows storages from allocation to release and splits peaks into categories."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from grpo_math.memory.tracker import Tracker


def test_tracker_counts_storages_from_allocation_to_release():
    with FakeTensorMode(), Tracker(512, lambda shape: 1) as tracker:
        first = torch.empty(1000)  # 4,000 bytes are 8 blocks
        assert tracker.live == 4096
        view = first[10:]
        view.add_(1)
        assert tracker.live == 4096  # a view and an operation in place allocate nothing
        del first
        assert tracker.live == 4096  # the view still holds the storage
        second = torch.empty(100, dtype=torch.uint8)
        del view
        assert tracker.live == 512
        third = second.float()
        del second, third
        assert tracker.live == 0
    assert tracker.peaks["load"].bytes == 4096 + 512
    assert "empty" in tracker.peaks["load"].op


def test_each_thread_counts_one_cublas_workspace():
    def product():
        return (torch.empty(2, 3, requires_grad=True) @ torch.empty(3, 4)).sum()

    with FakeTensorMode(), Tracker(1, lambda shape: 1, workspace=1000) as tracker:
        torch.empty(5)
        assert tracker.live == 0
        with torch.no_grad():
            product()
            product()
        assert tracker.live == 1000
        product().backward()  # runs in a thread of its own on CUDA
        product().backward()
        assert tracker.live == 2000
    assert tracker.parts("load")["temporaries"] >= 2000


def test_tracker_splits_the_peak_of_each_phase_into_categories():
    with FakeTensorMode(), Tracker(1, lambda shape: 1) as tracker:
        weight = torch.nn.Parameter(torch.empty(10, 10))
        tracker.label(weight, "weights")
        with tracker.during("training"):
            loss = (torch.empty(5, 10) @ weight).square().sum()
            loss.backward()
            tracker.label(weight.grad, "gradients")
        with tracker.during("optimizer"):
            del loss
            torch.empty(7)
    parts = tracker.parts("training")
    assert parts["weights"] == 400
    assert sum(parts.values()) == tracker.peaks["training"].bytes
    assert parts["activations"] > 0
    assert tracker.parts("optimizer")["gradients"] == 400
    assert tracker.peaks["optimizer"].bytes == 400 + 400 + 28
