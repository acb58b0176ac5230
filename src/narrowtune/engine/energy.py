"""Energy measured while something runs, by codecarbon (the extra `carbon`), without a network.

Only its energy is used: emissions need a grid's factor, which is the user's to give. Nothing that
goes wrong here stops a run; `EnergyMeter.source` says then why there is no figure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_EVERY_SECONDS = 15

NOT_INSTALLED = "not measured: codecarbon is not installed (pip install narrowtune[carbon])"


class EnergyMeter:
    """Energy of the whole machine between `start` and `stop`, other processes' share included.

    Where codecarbon finds no counters it takes powers from tables and the load; `source` names
    what it found. Under several machines only the one of the main process is measured.

    Args:
        make_tracker: makes the tracker, given what wants to hear of its figures.

    Attributes:
        source: what measures, or why nothing does.
    """

    def __init__(self, make_tracker: Callable[[Any], Any] | None = None) -> None:
        self.source = "not measured: it was not started"
        self._make_tracker = make_tracker or _offline_tracker
        self._tracker: Any = None
        self._listener = _Listener()

    def start(self) -> None:
        """Begin to measure."""
        try:
            self._tracker = self._make_tracker(self._listener)
            self._tracker.start()
            self.source = _describe(self._tracker)
        except ImportError:
            self._fail(NOT_INSTALLED)
        except Exception as error:  # whatever it is, training matters more
            self._fail(f"not measured: {type(error).__name__}: {error}")

    def read(self) -> float | None:
        """Return the energy since `start` in kWh; None if it is not known."""
        return self._ask("flush")

    def stop(self) -> float | None:
        """Stop measuring; return the energy since `start` in kWh, None if it is not known."""
        return self._ask("stop")

    def _ask(self, method: str) -> float | None:
        if self._tracker is None:
            return None
        self._listener.kwh = None
        try:
            getattr(self._tracker, method)()
        except Exception as error:
            self._fail(f"not measured: {type(error).__name__}: {error}")
            return None
        # codecarbon hides its own errors: it shows in what it does not say.
        if self._listener.kwh is None:
            self._fail("not measured: codecarbon gave no figure")
        return self._listener.kwh

    def _fail(self, why: str) -> None:
        tracker, self._tracker, self.source = self._tracker, None, why
        # Its threads would go on.
        with suppress(Exception):
            tracker.stop()


class _Listener:
    """Takes the tracker's figures; the interface is codecarbon's `BaseOutput`."""

    def __init__(self) -> None:
        self.kwh: float | None = None

    def out(self, total: Any, delta: Any) -> None:
        self.kwh = float(total.energy_consumed)

    def live_out(self, total: Any, delta: Any) -> None:
        pass

    def task_out(self, data: Any, experiment_name: str) -> None:
        pass

    def exit(self) -> None:
        pass


def _offline_tracker(listener: _Listener) -> Any:
    """Make a tracker that writes no file and asks no server, whatever a settings file says."""
    # It speaks before its own level is set.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    from codecarbon import OfflineEmissionsTracker

    return OfflineEmissionsTracker(
        # Both only for emissions, which are not used: with a given intensity none is looked up.
        country_iso_code="USA",
        force_carbon_intensity_g_co2e_kwh=0.0,
        cloud_provider=None,
        cloud_region=None,
        electricitymaps_api_token=None,
        emissions_endpoint=None,
        output_methods=[],
        output_handlers=[listener],
        api_call_interval=-1,
        # Without this it takes a lock and the handlers of signals.
        allow_multiple_runs=True,
        measure_power_secs=_EVERY_SECONDS,
        tracking_mode="machine",
        pue=1.0,
        log_level="critical",
    )


def _describe(tracker: Any) -> str:
    """Name the tracker and the parts that it found, such as `CPU(Cpu Load)`: load, not counters."""
    known = getattr(tracker, "_conf", {})
    version = known.get("codecarbon_version", "of an unknown version")
    parts = ", ".join(map(str, known.get("hardware", []))) or "parts unknown"
    return f"codecarbon {version}, the whole machine: {parts}"
