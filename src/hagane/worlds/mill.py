"""The mill world: galvanising lines with hidden, drifting gain and a coating gauge many steps downstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.terms import ConfigError, Embodiment, Reading, load_toml
from hagane.worlds.base import Drawing, Pilot
from hagane.worlds.mill_line import (
    AHEAD,
    DISTANCE_LAG_S,
    DISTANCE_RATE_MMPS,
    PAST,
    PRESSURE_LAG_S,
    STEP_S,
    STEPS,
    F,
    draw_lines,
    nominal_pressure,
    practice_distance,
)
from hagane.worlds.mill_pilots import Constant, Expert, Pi, Smith
from hagane.worlds.rollout import Noise

COATING_PREVIEW = tuple(range(0, 21, 2))
SPEED_PREVIEW = (4, 8, 12, 16, 20)
"""Steps ahead that the coil schedule shows; see mill.toml."""
OVER, UNDER, WORST = 8.0, 60.0, -3.0
"""Return lost a second and share of coating above, and below, the minimum; the least return of a second."""


def make() -> MillWorld:
    """The world behind the entry point "mill"."""
    return MillWorld()


class MillWorld:
    """N galvanising lines. See `hagane.worlds.base.World`.

    Args:
        delays: control steps from knives to gauge, one case each ("delay-25").
    """

    embodiment: Embodiment
    cases: tuple[str, ...]
    measure = "economic return over 400 s, at most 400, higher is better"
    step_limit = STEPS
    default_noise = Noise("ar", (4.0, 0.4), 0.9)
    """On executed knife pressure (kPa) and distance (mm) in demonstrations."""
    pilots: Mapping[str, Callable[[], Pilot]]

    def __init__(self, delays: Sequence[int] = (25,)) -> None:
        if not delays or not all(1 <= d <= PAST for d in delays):
            raise ConfigError(f"delays must be from 1 to {PAST} steps, not {list(delays)}", where="world 'mill'")
        self.embodiment = load_toml(Path(__file__).with_name("mill.toml"), Embodiment)
        self._delays = {f"delay-{d}": d for d in delays}
        self.cases = tuple(self._delays)
        self.pilots = {
            "constant: nominal set points": Constant,
            "classical: PI": Pi,
            "classical: Smith predictor": Smith,
            "expert": Expert,
        }
        (knife,) = self.embodiment.act
        self._low, self._high = (np.array(limits, np.float32) for limits in (knife.low, knife.high))

    def reset(self, case: str, seeds_N: Sequence[int]) -> None:
        """Start N lines that have run their first coil for a while on the nominal model's set points.

        Raises:
            ConfigError: no such case, or a negative seed.
        """
        if case not in self._delays:
            raise ConfigError(
                f"no case {case!r}", where="world 'mill'", next_step=f"use one of {', '.join(self.cases)}"
            )
        if any(seed < 0 for seed in seeds_N):
            raise ConfigError("seeds must not be negative", where="world 'mill'")
        self.case, self.delay, self.t = case, self._delays[case], 0
        n = len(seeds_N)
        self.lines = lines = draw_lines(seeds_N)
        minimum_N, speed_N = lines.minimum_TN[PAST], lines.speed_TN[PAST]
        self.distance_N = practice_distance(minimum_N)
        self.pressure_N = nominal_pressure(speed_N, self.distance_N, np.log(1.05 * minimum_N))
        self.applied_NA = np.stack([self.pressure_N, self.distance_N], 1).astype(np.float32)
        self.coating_TN = np.zeros((PAST + STEPS + AHEAD, n))
        for row in range(PAST + 1):
            self.coating_TN[row] = self._coating(row)
        self.return_N, self.over_N, self.under_N, self.miss_N = (np.zeros(n) for _ in range(4))

    def observe(self) -> dict[str, Reading]:
        """Gauge, line and coil schedule; see mill.toml."""
        row, lines = self.t + PAST, self.lines
        parts = {
            "pv": self.measured()[:, None],
            "line": np.stack([lines.speed_TN[row], self.pressure_N, self.distance_N], 1),
            "sp": np.concatenate(
                [
                    lines.minimum_TN[[row + k for k in COATING_PREVIEW]].T,
                    lines.speed_TN[[row + k for k in SPEED_PREVIEW]].T,
                ],
                1,
            ),
        }
        n = len(self.pressure_N)
        return {
            name: Reading(part.astype(np.float32), np.ones(n, np.bool_), np.zeros(n, np.float32))
            for name, part in parts.items()
        }

    def measured(self) -> F:
        """[N] g/m2: the gauge now, which shows the strip that passed the knives `delay` steps ago."""
        row = self.t + PAST
        return np.asarray(self.coating_TN[row - self.delay] * (1 + self.lines.gauge_TN[row]))

    def step(self, commands_NA: NDArray[np.float32]) -> NDArray[np.float32]:
        """One second. [N, 2] set points in (kPa, mm); out: within their limits, the last one where not finite."""
        if self.t >= STEPS:
            return self.applied_NA.copy()
        wanted_NA = np.where(np.isfinite(commands_NA), commands_NA, self.applied_NA).astype(np.float32)
        self.applied_NA = np.clip(wanted_NA, self._low, self._high)
        pressure_sp_N, distance_sp_N = self.applied_NA.T.astype(np.float64)
        self.pressure_N = self.pressure_N + (1 - np.exp(-STEP_S / PRESSURE_LAG_S)) * (pressure_sp_N - self.pressure_N)
        most_mm = DISTANCE_RATE_MMPS * STEP_S
        moved_N = (1 - np.exp(-STEP_S / DISTANCE_LAG_S)) * (distance_sp_N - self.distance_N)
        self.distance_N = self.distance_N + np.clip(moved_N, -most_mm, most_mm)
        self.t += 1
        row = self.t + PAST
        self.coating_TN[row] = self._coating(row)
        excess_N = self.coating_TN[row] / self.lines.minimum_TN[row] - 1
        self.return_N += second_return(excess_N)
        self.over_N += np.maximum(excess_N, 0)
        self.under_N += excess_N < 0
        self.miss_N += np.maximum(-excess_N, 0)
        return self.applied_NA.copy()

    def tasks(self) -> tuple[str, ...]:
        """The instruction of each copy."""
        text = f"coat each coil just above its minimum; the gauge is {self.delay} s after the knives"
        return (text,) * len(self.pressure_N)

    def alive(self) -> NDArray[np.bool_]:
        """[N] True until the time is over: a line does not stop for bad coating."""
        return np.full(len(self.pressure_N), self.t < STEPS)

    def scores(self) -> NDArray[np.float64]:
        """[N] return so far."""
        return self.return_N.copy()

    def details(self) -> dict[str, NDArray[np.float64]]:
        """So far: zinc above the minimum (%), time below it (%), and how far below, averaged over all time (%)."""
        seconds = max(1, self.t)
        terms = {"over_percent": self.over_N, "under_time_percent": self.under_N, "under_percent": self.miss_N}
        return {name: 100 * value / seconds for name, value in terms.items()}

    def draw(self, copy: int) -> Drawing:
        """Trend values of this second: weights in g/m2, pressure kPa, distance mm, speed m/s."""
        row = self.t + PAST
        values = {
            "t": self.t,
            "minimum": self.lines.minimum_TN[row, copy],
            "coating": self.coating_TN[row, copy],
            "measured": self.measured()[copy],
            "pressure": self.pressure_N[copy],
            "distance": self.distance_N[copy],
            "speed": self.lines.speed_TN[row, copy],
            "return": self.return_N[copy],
        }
        plain: dict[str, object] = {name: round(float(value), 2) for name, value in values.items()}
        if self.t == 0:
            plain["static"] = {"delay": self.delay, "over_limit": 1 + 1 / OVER}
        return Drawing("mill", plain)

    def _coating(self, row: int) -> F:
        log_coating_N = self.lines.log_coating(row, self.pressure_N, self.distance_N)
        return np.asarray(np.exp(log_coating_N + self.lines.flutter_TN[row]))


def second_return(excess_N: F) -> F:
    """[N] return of one second at a coating of (1 + excess) times the minimum.

    1 exactly at the minimum; zinc above it costs, coating below it costs much more (claims, recoating), and a
    second never returns less than -3: such strip is scrapped anyway.
    """
    lost_N = np.where(excess_N >= 0, OVER * excess_N, -UNDER * excess_N)
    return np.asarray(np.maximum(1 - lost_N, WORST))
