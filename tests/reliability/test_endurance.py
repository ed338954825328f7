"""A long run keeps its memory and its open files; `python -m benchmarks endurance` does it for 5,000 steps."""

import sys

import pytest

from benchmarks import endurance


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_stay_flat():
    seen = endurance.measure(steps=300, every=10)
    assert endurance.growth(seen) < 0.03
    warm = seen[len(seen) // 5 :]
    assert len({look["open_files"] for look in warm}) == 1
    assert max(look["checkpoints"] for look in seen) == 2
    records = [look["records"] for look in seen]  # a line and a group of four completions at each log: linear in steps
    assert records[-1] < 1.2 * records[len(seen) // 2] * 2
