"""The galvanising line's physics and its coil schedule, N lines side by side.

Coating weight behind the air knives is W = K V^a d^b / P^c: strip speed V, knife distance d, knife pressure P.
It is the power-law form used in the literature on air-knife wiping; the exponents here are round numbers of the
usual size, not a fit to a plant. Each line has its own K and its exponents differ a little from the nominal ones,
which is what a controller's model knows. K drifts as the zinc bath and the knives' lips do: smoothly, over
minutes, never measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F = NDArray[np.float64]

STEP_S = 1.0
STEPS = 400
PAST = 64
"""Control steps before the start that a line has already run; the gauge still shows them."""
AHEAD = 32
"""Control steps after the end that the coil schedule knows."""

GRADES_GPM2 = (90.0, 100.0, 110.0, 125.0)
"""Minimum coating weights on order, both sides together."""
NOMINAL_GPM2 = 105.0
NOMINAL_MPS = 2.0
NOMINAL_KPA = 35.0
NOMINAL_MM = 12.0
SPEED_EXP, DISTANCE_EXP, PRESSURE_EXP = 0.5, 0.8, 0.6
RAMP_MPS2 = 0.03
"""How fast the line changes speed."""
PRESSURE_LAG_S, DISTANCE_LAG_S = 1.5, 2.0
DISTANCE_RATE_MMPS = 0.8
FLUTTER = 0.006
"""Standard deviation of what strip vibration does to log coating from second to second."""
GAUGE_NOISE = 0.012
"""Standard deviation of the gauge's relative error."""


@dataclass(frozen=True, eq=False)
class Lines:
    """What seeds decide. Row 0 of a [T, N] array is PAST steps before the start."""

    log_gain_TN: F
    """log of K over its nominal value."""
    speed_exp_N: F
    distance_exp_N: F
    pressure_exp_N: F
    minimum_TN: F
    """Minimum coating weight of the coil at the knives, g/m2."""
    speed_TN: F
    """Strip speed, m/s."""
    flutter_TN: F
    """Added to log coating."""
    gauge_TN: F
    """Relative error of the gauge at the time of reading."""

    def log_coating(self, row: int, pressure_N: F, distance_N: F) -> F:
        """[N] log of the true coating weight in g/m2 at a row of the schedule, without flutter."""
        return np.asarray(
            np.log(NOMINAL_GPM2)
            + self.log_gain_TN[row]
            + self.speed_exp_N * np.log(self.speed_TN[row] / NOMINAL_MPS)
            + self.distance_exp_N * np.log(distance_N / NOMINAL_MM)
            - self.pressure_exp_N * np.log(pressure_N / NOMINAL_KPA)
        )


def nominal_log_coating(speed_N: F, pressure_N: F, distance_N: F) -> F:
    """[N] what every controller's model says: nominal gain and exponents; m/s, kPa, mm in, log g/m2 out."""
    return np.asarray(
        np.log(NOMINAL_GPM2)
        + SPEED_EXP * np.log(speed_N / NOMINAL_MPS)
        + DISTANCE_EXP * np.log(distance_N / NOMINAL_MM)
        - PRESSURE_EXP * np.log(pressure_N / NOMINAL_KPA)
    )


def nominal_pressure(speed_N: F, distance_N: F, log_aim_N: F) -> F:
    """[N] kPa: the nominal model solved for pressure."""
    at_one = nominal_log_coating(speed_N, np.full_like(distance_N, NOMINAL_KPA), distance_N)
    return np.asarray(NOMINAL_KPA * np.exp((at_one - log_aim_N) / PRESSURE_EXP))


def practice_distance(minimum_N: F) -> F:
    """[N] mm: knife distance from the mill's practice table, which all pilots follow: thick coats from afar."""
    return np.asarray(NOMINAL_MM * np.sqrt(minimum_N / NOMINAL_GPM2))


def draw_lines(seeds: Sequence[int]) -> Lines:
    """N lines, each a function of its own seed."""
    rows = [_draw_line(int(seed)) for seed in seeds]
    columns = [np.stack(c, -1) for c in zip(*rows, strict=True)]
    return Lines(*columns)


def _draw_line(seed: int) -> tuple[F, ...]:
    rng = np.random.default_rng([seed, 0x6D696C6C])
    time_s = STEP_S * np.arange(-PAST, STEPS + AHEAD)
    offset = 0.15 * np.clip(rng.standard_normal(), -2.0, 2.0)
    swing, period_s, phase = rng.uniform(0.08, 0.17), rng.uniform(260, 560), rng.uniform(0, 2 * np.pi)
    log_gain = offset + swing * np.sin(2 * np.pi * time_s / period_s + phase)
    exponents = np.array([SPEED_EXP, DISTANCE_EXP, PRESSURE_EXP]) * (1 + 0.06 * rng.uniform(-1.7, 1.7, 3))
    minimum, speed = _schedule(rng, len(time_s))
    flutter = FLUTTER * rng.standard_normal(len(time_s))
    gauge = GAUGE_NOISE * rng.standard_normal(len(time_s))
    return log_gain, *(np.asarray(e) for e in exponents), minimum, speed, flutter, gauge


def _schedule(rng: np.random.Generator, rows: int) -> tuple[F, F]:
    """Minimum coating and speed of each row: coils of 50 to 110 s, each of another grade than the one before.

    Thick coats run slower. The line ramps so that it passes the mean of both speeds when the weld does.
    """
    minimum, wanted = np.empty(rows), np.empty(rows)
    at, grade = 0, -1
    welds: list[int] = []
    while at < rows:
        # no weld before the start: the line has run steadily
        length = PAST + int(rng.integers(20, 90)) if at == 0 else int(rng.integers(50, 111))
        grade = int(rng.choice([g for g in range(len(GRADES_GPM2)) if g != grade]))
        minimum[at : at + length] = GRADES_GPM2[grade]
        speed = 2.1 * (NOMINAL_GPM2 / GRADES_GPM2[grade]) ** 0.35 * rng.uniform(0.93, 1.07)
        wanted[at : at + length] = np.clip(speed, 1.5, 2.6)
        at += length
        welds.append(at)
    # the fastest chase of a ramp that starts early enough: centred on the weld, within the rate
    half = round((wanted.max() - wanted.min()) / RAMP_MPS2 / STEP_S / 2)
    kernel = np.ones(2 * half + 1) / (2 * half + 1)
    padded = np.concatenate([np.full(half, wanted[0]), wanted, np.full(half, wanted[-1])])
    return minimum, np.convolve(padded, kernel, "valid")
