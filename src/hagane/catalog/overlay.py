"""Two curves laid over each other at the lag where they agree best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.signature import POINTS, Signature

_LEAST_OVERLAP = 0.7
_ROUNDS = 3


@dataclass(frozen=True)
class Overlay:
    """How two episodes agree at their best lag."""

    worst: float
    """RMS difference of the worst column over the overlap, in units of the column's usual spread."""
    unexplained: float
    """RMS difference of all columns as a part of what the first one moves about its own mean."""
    lag_s: float
    """Where the second begins on the first one's clock, seconds."""
    overlap: float
    """Part of the longer one that both cover."""


def overlay(a: Signature, b: Signature) -> Overlay:
    """Compare two signatures of the same columns: all lags that leave 70% of the longer one covered."""
    step = max(a.seconds, b.seconds, 1e-9) / (POINTS - 1)
    first, second = _at_step(a, step), _at_step(b, step)
    least = _LEAST_OVERLAP * max(len(first), len(second))
    lags = np.arange(-(len(second) - 1), len(first), dtype=np.float64)
    cover = np.minimum(len(first), lags + len(second)) - np.maximum(0, lags)
    lags = lags[cover >= least - 1e-9]
    if not len(lags):
        return Overlay(np.inf, np.inf, 0.0, 0.0)
    best = lags[int(np.argmin([_error(first, second, lag) for lag in lags]))]
    width = 1.0
    for _ in range(_ROUNDS):
        near = best + width * np.array([-0.5, 0.0, 0.5])
        best, width = near[int(np.argmin([_error(first, second, lag) for lag in near]))], width / 2
    x, y = _laid(first, second, best)
    squares_D = ((x - y) ** 2).mean(0)
    spread = float(np.sqrt(((x - x.mean(0)) ** 2).mean()))
    total = float(np.sqrt(squares_D.mean()))
    return Overlay(
        float(np.sqrt(squares_D.max(initial=0.0))),
        total / spread if spread > 1e-6 else (0.0 if total < 1e-6 else np.inf),
        float(best * step),
        len(x) / max(len(first), len(second)),
    )


def _at_step(s: Signature, step_s: float) -> NDArray[np.float32]:
    """The curve at a common step of time."""
    count = max(int(round(s.seconds / step_s)) + 1, 2)
    curve = s.curve_PD.astype(np.float32)
    if count == len(curve):
        return curve
    return _interpolated(curve, np.linspace(0, len(curve) - 1, count))


def _interpolated(curve_PD: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    low = np.clip(at.astype(int), 0, len(curve_PD) - 2)
    part = (at - low).astype(np.float32)[:, None]
    return np.asarray(curve_PD[low] * (1 - part) + curve_PD[low + 1] * part, np.float32)


def _laid(a: NDArray[np.float32], b: NDArray[np.float32], lag: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of a, and of b `lag` rows later, where both are."""
    begin, end = int(np.ceil(max(0.0, lag) - 1e-9)), int(np.floor(min(len(a) - 1, len(b) - 1 + lag) + 1e-9))
    at = np.arange(begin, end + 1)
    return a[begin : end + 1], _interpolated(b, at - lag)


def _error(a: NDArray[np.float32], b: NDArray[np.float32], lag: float) -> float:
    x, y = _laid(a, b, lag)
    return float(((x - y) ** 2).mean()) if len(x) else np.inf
