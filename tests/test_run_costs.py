"""Seconds by phase and peak memory of a run: phases exclude each other, and the trainer is left as it was."""

import time

import pytest

from grpo_math.run import costs


class Trainer:
    """The methods that are clocked, with one inside another as in TRL."""

    def __init__(self):
        self.callbacks, self.called = [], []

    def training_step(self):
        self._prepare_inputs()
        self.called.append("step")
        return "loss"

    def _prepare_inputs(self):
        self._generate_single_turn()
        self._calculate_rewards()

    def _generate_single_turn(self):
        time.sleep(0.02)

    def _calculate_rewards(self):
        raise_if = getattr(self, "broken", False)
        if raise_if:
            raise RuntimeError("a reward function fails")

    def evaluate(self):
        self._generate_single_turn()

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def remove_callback(self, callback):
        self.callbacks.remove(callback)


def test_phases_exclude_each_other_and_add_up():
    trainer = Trainer()
    started = time.perf_counter()
    with costs.clocked(trainer) as clock:
        assert trainer.training_step() == "loss"
        trainer.evaluate()
        clock.on_pre_optimizer_step(None, None, None)
        clock.on_optimizer_step(None, None, None)
        taken = clock.take()
    whole = time.perf_counter() - started
    times = {name: value for name, value in taken.items() if name.startswith("time/")}
    assert set(times) == {
        f"time/{name}" for name in ("generation", "rewards", "scoring", "training", "optimizer", "held-out")
    }
    assert times["time/generation"] >= 0.04 > times["time/scoring"]
    assert sum(times.values()) <= whole
    assert clock.take().keys() == costs.peak_memory().keys()  # taken once
    assert taken["memory/process_peak"] > 1e6


def test_the_trainer_is_as_before_also_after_an_error():
    trainer = Trainer()
    trainer.broken = True
    kept = trainer._generate_single_turn = lambda: None  # an override of the trainer's own
    with pytest.raises(RuntimeError, match="a reward function fails"), costs.clocked(trainer) as clock:
        trainer.training_step()
    assert trainer._generate_single_turn is kept
    assert not {"training_step", "evaluate", "_prepare_inputs", "_calculate_rewards"} & set(vars(trainer))
    assert trainer.callbacks == []
    with clock.phase("generation"):  # nothing of the broken step is still running
        pass
    assert clock._running == []
