"""Two curves laid over each other at the lag where they agree best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.signature import POINTS, Signature

_LEAST_OVERLAP = 0.7
_COARSE = 4
_SEGMENTS = 8
_HOPELESS = 0.7
_LIMITS = (0.35, 0.35, 0.065, 0.02)


@dataclass(frozen=True)
class Overlay:
    """How two episodes agree at their best lag. Differences are RMS, in units of each column's usual spread."""

    worst: float
    """Of the worst column."""
    unexplained: float
    """Of all columns together, as a part of what the first episode moves about its own mean."""
    drift: float
    """Of the worst column after averaging over eighths of the overlap: noise is gone, another path is not."""
    offset: float
    """Of the worst column's mean."""
    lag_s: float
    """Where the second begins on the first one's clock, seconds."""
    overlap: float
    """Part of the longer one that both cover."""

    @property
    def is_copy(self) -> bool:
        """True when every difference is within what noise, another rate and cut ends leave.

        The limits lie between copies and different runs of the demo's machines. Of planted copies (noise of 2% of
        the usual spread, 0.8 times the rate, a tenth cut), 98% stay below .29, .13, .066 and .02; the nearest two
        of 481 different runs of the arm differ by .08, .05, .07 and .023: the last limit is the one that tells.
        """
        found = (self.worst, self.unexplained, self.drift, self.offset)
        return all(a <= b for a, b in zip(found, _LIMITS, strict=True))


EQUAL = Overlay(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
_APART = Overlay(np.inf, np.inf, np.inf, np.inf, 0.0, 0.0)


def overlay(a: Signature, b: Signature) -> Overlay:
    """Compare two signatures of the same columns: all lags that leave 70% of the longer one covered."""
    step = max(a.seconds, b.seconds, 1e-9) / (POINTS - 1)
    first, second = _at_step(a, step), _at_step(b, step)
    longest = max(len(first), len(second))
    rough = _rough_lag(first, second, _LEAST_OVERLAP * longest)
    if rough is None:
        return _APART
    lag, width = float(rough), float(_COARSE)
    while width > 0.2:
        near = [lag - width / 2, lag, lag + width / 2]
        lag, width = near[int(np.argmin([_error(first, second, at) for at in near]))], width / 2
    x, y = _laid(first, second, lag)
    difference = x - y
    parts = np.stack([part.mean(0) for part in np.array_split(difference, _SEGMENTS)])
    spread, total = _rms(x - x.mean(0)), _rms(difference)
    return Overlay(
        _worst_rms(difference),
        total / spread if spread > 1e-6 else (0.0 if total < 1e-6 else np.inf),
        _worst_rms(parts),
        float(np.abs(difference.mean(0)).max(initial=0.0)),
        lag * step,
        len(x) / longest,
    )


def _rough_lag(a: NDArray[np.float32], b: NDArray[np.float32], least: float) -> int | None:
    """The best lag on curves of a quarter of the points; None where no lag brings them near each other."""
    x, y = _shorter(a), _shorter(b)
    lags = np.arange(-(len(y) - 1), len(x))
    cover = np.minimum(len(x), lags + len(y)) - np.maximum(0, lags)
    lags = lags[cover * _COARSE >= least - _COARSE]
    if not len(lags):
        return None
    at_LP = np.arange(len(x)) - lags[:, None]
    both_LP = (at_LP >= 0) & (at_LP < len(y))
    squares_LP = ((x - y[np.clip(at_LP, 0, len(y) - 1)]) ** 2).mean(2)
    error_L = (squares_LP * both_LP).sum(1) / both_LP.sum(1)
    best = int(np.argmin(error_L))
    if error_L[best] > (_HOPELESS * _rms(x - x.mean(0))) ** 2 + 1e-9:
        return None
    return int(lags[best]) * _COARSE


def _shorter(curve_PD: NDArray[np.float32]) -> NDArray[np.float32]:
    count = max(len(curve_PD) // _COARSE, 1)
    return np.asarray(curve_PD[: count * _COARSE].reshape(count, -1, curve_PD.shape[1]).mean(1), np.float32)


def _rms(rows: NDArray[np.float32]) -> float:
    return float(np.sqrt((rows**2).mean()))


def _worst_rms(rows_KD: NDArray[np.float32]) -> float:
    return float(np.sqrt((rows_KD**2).mean(0).max(initial=0.0)))


def _at_step(s: Signature, step_s: float) -> NDArray[np.float32]:
    """The curve at a common step of time."""
    count = max(round(s.seconds / step_s) + 1, 2)
    curve = s.curve_PD.astype(np.float32)
    if count == len(curve):
        return curve
    return _interpolated(curve, np.linspace(0, len(curve) - 1, count))


def _interpolated(curve_PD: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    low = np.clip(at.astype(int), 0, len(curve_PD) - 2)
    part = (at - low).astype(np.float32)[:, None]
    return np.asarray(curve_PD[low] * (1 - part) + curve_PD[low + 1] * part, np.float32)


def _laid(
    a: NDArray[np.float32], b: NDArray[np.float32], lag: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of a, and of b `lag` rows later, where both are."""
    begin, end = int(np.ceil(max(0.0, lag) - 1e-9)), int(np.floor(min(len(a) - 1, len(b) - 1 + lag) + 1e-9))
    at = np.arange(begin, end + 1, dtype=np.float64)
    return a[begin : end + 1], _interpolated(b, at - lag)


def _error(a: NDArray[np.float32], b: NDArray[np.float32], lag: float) -> float:
    x, y = _laid(a, b, lag)
    return float(((x - y) ** 2).mean()) if len(x) else np.inf
