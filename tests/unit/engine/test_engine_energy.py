"""Energy that is measured: a tracker's figure, or a reason; never an error."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from narrowtune.engine.energy import EnergyMeter


class Tracker:
    """Behaves as codecarbon's trackers do: figures go to the output handler."""

    def __init__(self, listener, fails: str = "", silent: bool = False) -> None:
        self.listener, self.fails, self.silent = listener, fails, silent
        self.called: list[str] = []
        self._conf = {"codecarbon_version": "3.9", "hardware": ["CPU(RAPL)", "RAM()"]}

    def start(self) -> None:
        self._call("start")

    def flush(self) -> None:
        self._call("flush", 0.25)

    def stop(self) -> None:
        self._call("stop", 0.5)

    def _call(self, name: str, kwh: float | None = None) -> None:
        self.called.append(name)
        if name == self.fails:
            raise OSError("no counters")
        if kwh is not None and not self.silent:
            self.listener.out(SimpleNamespace(energy_consumed=kwh), None)


def test_the_figure_and_its_source_are_the_trackers():
    meter = EnergyMeter(Tracker)
    meter.start()
    assert meter.read() == 0.25
    assert meter.stop() == 0.5
    assert meter.source == "codecarbon 3.9, the whole machine: CPU(RAPL), RAM()"


@pytest.mark.parametrize("fails", ["start", "flush", "stop"])
def test_a_tracker_that_fails_stops_nothing_and_says_why(fails):
    made: list[Tracker] = []

    def make(listener) -> Tracker:
        made.append(Tracker(listener, fails))
        return made[0]

    meter = EnergyMeter(make)
    meter.start()
    meter.read()
    assert meter.stop() is None
    assert meter.source == "not measured: OSError: no counters"
    assert "stop" in made[0].called  # its threads end


def test_a_tracker_that_hides_its_error_gives_no_figure():
    meter = EnergyMeter(lambda listener: Tracker(listener, silent=True))
    meter.start()
    assert meter.stop() is None
    assert "no figure" in meter.source


def test_without_codecarbon_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    meter = EnergyMeter()
    meter.start()
    assert meter.stop() is None
    assert "narrowtune[carbon]" in meter.source


def test_codecarbon_measures_without_a_network(monkeypatch, tmp_path):
    pytest.importorskip("codecarbon")
    import socket

    def refuse(self, address):
        raise AssertionError(f"asked {address}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    meter = EnergyMeter()
    meter.start()
    assert (meter.stop() or 0) > 0, meter.source
    assert meter.source.startswith("codecarbon 3")
    assert list(tmp_path.iterdir()) == []
