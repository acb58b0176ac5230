"""What a run takes, in one part or in several."""

from __future__ import annotations

import torch

from narrowtune.engine.energy import EnergyMeter
from narrowtune.train.effort import Effort, EffortMeter


def test_seconds_and_energy_add_up_and_of_memory_the_most_counts():
    first, second = Effort(10.0, 300, 0.5), Effort(5.0, 200, 0.25)
    assert first.then(second) == Effort(15.0, 300, 0.75)


def test_what_is_not_known_of_every_part_is_not_known():
    assert Effort(1.0, None, None).then(Effort(1.0, 2, 3.0)) == Effort(2.0, None, None)


def test_energy_is_measured_while_it_runs_and_counted_from_the_earlier_part():
    class Tracker:
        def __init__(self, listener) -> None:
            self.listener, self.kwh = listener, 0.0

        def start(self) -> None:
            self.kwh = 1.0

        def flush(self) -> None:
            self.listener.out(self, None)

        def stop(self) -> None:
            self.kwh = 3.0
            self.flush()

        @property
        def energy_consumed(self) -> float:
            return self.kwh

    with EffortMeter(torch.device("cpu"), EnergyMeter(Tracker)) as meter:
        assert meter.read().energy_kwh == 1.0
        meter.earlier = Effort(100.0, None, 0.5)
    assert meter.read().energy_kwh == 3.5
    assert meter.read().seconds > 100
