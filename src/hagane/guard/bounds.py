"""An envelope as arrays over all action columns: what the guard computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.guard.envelope import Envelope, check_envelope, observed_column, spread
from hagane.terms import Embodiment, Reading


@dataclass(frozen=True, eq=False)
class Bounds:
    """[A] float64 each, in the columns' units; NaN in `hold_A` and `safe_A` means: keep the last command."""

    names_A: tuple[str, ...]
    """Column names, "drive.0"."""
    low_A: NDArray[np.float64]
    """Lowest command that float32 can carry."""
    high_A: NDArray[np.float64]
    """Highest command that float32 can carry."""
    rate_A: NDArray[np.float64]
    """Largest change a second."""
    start_A: NDArray[np.float64]
    """Command at rest."""
    hold_A: NDArray[np.float64]
    """Command of HOLD."""
    safe_A: NDArray[np.float64]
    """Command of SAFE_STOP and ESTOP."""
    safe_rate_A: NDArray[np.float64]
    """Largest change a second on the way to `safe_A`."""


def bounds_of(envelope: Envelope, embodiment: Embodiment) -> Bounds:
    """Arrays in the order of the embodiment's action columns.

    Raises:
        GuardError: the envelope contradicts itself or the embodiment.
    """
    check_envelope(envelope, embodiment)
    limits = {limit.channel: limit for limit in envelope.act}
    still = 0.0 if envelope.fallback == "zero" else np.nan

    def column(name: str, default: float = np.nan) -> NDArray[np.float64]:
        parts = [spread(getattr(limits[c.name], name), c.columns, default) for c in embodiment.act]
        return np.array([v for part in parts for v in part], np.float64)

    rate_A, safe_A, safe_rate_A = column("max_rate_per_s"), column("safe", still), column("safe_rate_per_s")
    start_A = column("start")
    low_A, high_A = _inward(column("low"), np.inf), _inward(column("high"), -np.inf)
    start_A = np.where(np.isnan(start_A), np.where(np.isnan(safe_A), 0.0, safe_A), start_A)
    return Bounds(
        names_A=tuple(f"{c.name}.{i}" for c in embodiment.act for i in range(c.columns)),
        low_A=low_A,
        high_A=high_A,
        rate_A=rate_A,
        start_A=np.clip(start_A, low_A, high_A),
        hold_A=column("hold", still),
        safe_A=safe_A,
        safe_rate_A=np.where(np.isnan(safe_rate_A), rate_A, safe_rate_A),
    )


def start_of(envelope: Envelope, embodiment: Embodiment, readings: Mapping[str, Reading]) -> NDArray[np.float64]:
    """[A] where one machine (N = 1) stands now: `start_from` where it is given and valid, else `start`."""
    start_A = bounds_of(envelope, embodiment).start_A.copy()
    limits = {limit.channel: limit for limit in envelope.act}
    at = 0
    for channel in embodiment.act:
        for i, source in enumerate(limits[channel.name].start_from):
            name, column = observed_column(source, embodiment)
            reading = readings.get(name)
            if reading is not None and bool(reading.valid[0]) and np.isfinite(reading.values[0, column]):
                start_A[at + i] = reading.values[0, column]
        at += channel.columns
    return start_A


def _inward(limit_A: NDArray[np.float64], towards: float) -> NDArray[np.float64]:
    """The nearest float32 value that does not lie outside: commands leave as float32."""
    near_A = limit_A.astype(np.float32)
    outside_A = near_A.astype(np.float64) < limit_A if towards > 0 else near_A.astype(np.float64) > limit_A
    return np.where(outside_A, np.nextafter(near_A, np.float32(towards)), near_A).astype(np.float64)
