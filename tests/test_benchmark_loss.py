"""The loss benchmark: its contenders run, and agree, on the tiny model's batch."""

import pytest
import torch

from benchmarks import loss
from grpo_math import tiny_model


def test_trl_and_ours_agree_on_the_same_batch(tmp_path):
    folder = tmp_path / "tiny"
    folder.symlink_to(tiny_model.tiny_model_folder())
    torch.save(loss.make_batch("tiny", folder, tmp_path), tmp_path / "tiny.pt")
    found = {contender: loss.contend("tiny", contender, 0.0, tmp_path) for contender in ("TRL", "ours")}
    assert found["ours"]["loss"] == pytest.approx(found["TRL"]["loss"], abs=1e-6)
    theirs, ours = (torch.load(tmp_path / f"tiny-{contender}-0.0.pt") for contender in ("TRL", "ours"))
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
    assert theirs.norm() > 0
