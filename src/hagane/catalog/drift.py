"""How far two data sets' channels differ, from their mergeable statistics alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_rows import column_names
from hagane.intake.lerobot_sketch import Sketch
from hagane.terms import Channel

RESOLUTION = 0.01
"""Distances below this are within what a sketch of 1024 bins can tell."""
_FACTORS = {
    "rad and deg": 180 / np.pi,
    "m/s and km/h": 3.6,
    "m/s and mph": 1 / 0.44704,
    "km/h and mph": 1.609344,
    "1 and % (or m and cm)": 100.0,
    "a unit and its thousandth": 1000.0,
    "a unit and its millionth": 1e6,
    "seconds and minutes": 60.0,
    "m and ft": 1 / 0.3048,
    "g and m/s2": 9.80665,
    "bar and psi": 14.5038,
    "rad/s and rpm": 30 / np.pi,
}
_OFFSETS = {"K and Cel": 273.15}
_CLOSE = 0.02


@dataclass(frozen=True)
class Drift:
    """One column of both sets."""

    column: str
    """Its name, as in a LeRobot set."""
    distance: float
    """Kolmogorov-Smirnov distance of the two distributions: 0 the same, 1 no value in common; NaN without values."""
    means: tuple[float, float]
    """Mean in the first and in the second set."""
    stds: tuple[float, float]
    """Standard deviation in each."""
    hint: str
    """What might explain the difference in words, or ""."""


def drifts(channel: Channel, a: Sketch, b: Sketch) -> list[Drift]:
    """Compare one channel's columns in two sets."""
    labels = column_names(channel) if channel.kind == "vector" else ()
    names = labels or tuple(f"{channel.name}.{k}" for k in range(channel.columns))
    return [_column(name, a, b, k) for k, name in enumerate(names)]


def _column(name: str, a: Sketch, b: Sketch, k: int) -> Drift:
    means, stds = (float(a.mean[k]), float(b.mean[k])), (float(a.std[k]), float(b.std[k]))
    if not a.count[k] or not b.count[k]:
        one = "the first" if not a.count[k] else "the second"
        hint = "" if not (a.count[k] or b.count[k]) else f"{one} set has no value"
        return Drift(name, float("nan"), means, stds, hint)
    distance = ks_distance(a, b, k)
    return Drift(name, distance, means, stds, _hint(a, b, k) if distance > RESOLUTION else "")


def ks_distance(a: Sketch, b: Sketch, column: int) -> float:
    """Largest difference of the two cumulative distributions, exact while a sketch's bins hold one sample each."""
    xa, fa = _steps(a, column)
    xb, fb = _steps(b, column)
    at = np.union1d(xa, xb)
    return max(
        float(np.abs(fa[np.searchsorted(xa, at, side)] - fb[np.searchsorted(xb, at, side)]).max())
        for side in ("left", "right")
    )


def _steps(s: Sketch, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a distribution, and the share below each (one more than there are points)."""
    keep = s.weight[column] > 0
    weight = s.weight[column, keep]
    return s.centre[column, keep], np.concatenate([[0.0], np.cumsum(weight) / weight.sum()])


def _hint(a: Sketch, b: Sketch, k: int) -> str:
    """A constant on one side, another unit, another zero, another sign, or values outside the first one's range."""
    std_a, std_b = float(a.std[k]), float(b.std[k])
    if std_a == 0 or std_b == 0:
        return "constant in both" if std_a == std_b else f"constant in the {'first' if std_a == 0 else 'second'} set"
    qa, qb = (np.array([s.quantile(q)[k] for q in (0.01, 0.25, 0.5, 0.75, 0.99)]) for s in (a, b))
    size = float(np.abs(qa).max())
    for what, factor in _FACTORS.items():
        for times in (factor, 1 / factor):
            if np.allclose(qb, qa * times, rtol=_CLOSE, atol=_CLOSE * size * times):
                return f"values {times:.4g} times the first one's: {what}?"
    for what, offset in _OFFSETS.items():
        for more in (offset, -offset):
            alike = abs(std_a - std_b) < 0.2 * max(std_a, std_b)
            if alike and abs(float(np.median(qb - qa)) - more) < 0.05 * std_a + 1.0:
                return f"values {more:+g} from the first one's: {what}?"
    if np.allclose(qb, -qa[::-1], rtol=_CLOSE, atol=_CLOSE * size) and not np.allclose(qb, qa, atol=_CLOSE * size):
        return "the sign is turned?"
    if b.low[k] > a.high[k] or b.high[k] < a.low[k]:
        return "no value in the first one's range"
    return ""
