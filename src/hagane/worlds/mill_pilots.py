"""Who runs the knives beside the model: fixed set points, PI, Smith predictor, and the expert.

All but the expert see `observe()` only, and share the practice table for the distance, the nominal model as feed-
forward on speed and coil schedule, and the known delay. Feedback works on the log of the coating: the power law
is linear there, so one gain fits every grade and speed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hagane.worlds.base import World
from hagane.worlds.mill_line import (
    NOMINAL_KPA,
    NOMINAL_MM,
    PAST,
    F,
    Lines,
    nominal_log_coating,
    nominal_pressure,
    practice_distance,
)

Commands = NDArray[np.float32]
LEAD = 4
"""Steps before a thicker coil at which every pilot begins to aim at it: the knives need them."""
EXPERT_MARGIN = 0.04
"""How far above the minimum the expert aims. For itself 0.01 would be best (`hagane.worlds.mill_tuning` prints the
table); whoever imitates it inherits the margin, sees less, and earns most with about this one."""


class HasLines(Protocol):
    """A mill whose hidden state an expert may see."""

    lines: Lines
    delay: int
    t: int


@dataclass(frozen=True)
class Gains:
    """Parameters of a feedback controller on log coating."""

    proportional: float
    """Log of trim a log of error."""
    integral: float
    """The same, a control step."""
    margin: float
    """Aim above the minimum, as a share of it."""


PI_GAINS = Gains(0.46, 0.0395, 0.0506)
SMITH_GAINS = Gains(0.424, 0.663, 0.0494)
"""Found by `python -m hagane.worlds.mill_tuning`: the best of 200 trials on 100 lines each, tuning seeds only."""


def aim_at(minimum_preview_NM: F, margin: float) -> F:
    """[N] log aim: the highest minimum now and LEAD steps ahead (columns 0, 2, 4 s), and the margin above it."""
    highest = minimum_preview_NM[:, : LEAD // 2 + 1].max(1)
    return np.asarray(np.log(highest * (1 + margin)))


class Constant:
    """Nominal set points, whatever happens."""

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> Commands:
        """[N, 2] kPa, mm."""
        return np.tile(np.array([NOMINAL_KPA, NOMINAL_MM], np.float32), (len(world.alive()), 1))


class Pi:
    """Feed-forward and a PI trim on the gauge's error against the aim of the strip that is under the gauge."""

    def __init__(self, gains: Gains = PI_GAINS) -> None:
        self.gains = gains

    def reset(self, world: World) -> None:
        """No trim; the line has run steadily on its feed-forward."""
        self.delay = cast(HasLines, world).delay
        self.sum_N = np.zeros(len(world.alive()))
        self.past: deque[F] = deque(maxlen=self.delay + 1)

    def remembered(self, value_N: F) -> F:
        """The value of `delay` steps ago; before the start it was the same as at the start."""
        while len(self.past) < self.past.maxlen - 1:  # type: ignore[operator]
            self.past.append(value_N)
        self.past.append(value_N)
        return self.past[0]

    def error(self, aim_N: F, coating_N: F, line_N3: F) -> F:
        """[N] log aim less log coating, of the strip under the gauge."""
        return self.remembered(aim_N) - coating_N

    def act(self, world: World) -> Commands:
        """[N, 2] kPa, mm."""
        seen = {name: r.values.astype(np.float64) for name, r in world.observe().items()}
        aim_N = aim_at(seen["sp"], self.gains.margin)
        error_N = self.error(aim_N, np.log(np.maximum(seen["pv"][:, 0], 1.0)), seen["line"])
        self.sum_N = np.clip(self.sum_N + self.gains.integral * error_N, -0.6, 0.6)
        trim_N = self.gains.proportional * error_N + self.sum_N
        minimum_N = seen["sp"][:, : LEAD // 2 + 1].max(1)
        return command(seen["line"][:, 0], minimum_N, aim_N + trim_N)


class Smith(Pi):
    """A Smith predictor (O. J. M. Smith 1957): PI on the model's present output plus the measured mismatch.

    The nominal model runs on the knives' measured pressure and distance; the gauge is compared with what the
    model said when that strip passed, so the delay is outside the loop.
    """

    def __init__(self, gains: Gains = SMITH_GAINS) -> None:
        super().__init__(gains)

    def error(self, aim_N: F, coating_N: F, line_N3: F) -> F:
        """[N] log aim less the predicted log coating at the knives."""
        model_N = nominal_log_coating(line_N3[:, 0], line_N3[:, 1], line_N3[:, 2])
        mismatch_N = coating_N - self.remembered(model_N)
        return aim_N - (model_N + mismatch_N)


class Expert:
    """Knows the line's true gain and exponents at this moment: no delay, no noise. Aims a margin above the minimum."""

    def __init__(self, margin: float = EXPERT_MARGIN) -> None:
        self.margin = margin

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> Commands:
        """[N, 2] kPa, mm."""
        mill = cast(HasLines, world)
        row = mill.t + PAST
        sp_NM = world.observe()["sp"].values.astype(np.float64)
        minimum_N = sp_NM[:, : LEAD // 2 + 1].max(1)
        distance_N = practice_distance(minimum_N)
        at_one_N = mill.lines.log_coating(row + 1, np.full_like(distance_N, NOMINAL_KPA), distance_N)
        excess_N = at_one_N - aim_at(sp_NM, self.margin)
        pressure_N = NOMINAL_KPA * np.exp(excess_N / mill.lines.pressure_exp_N)
        return np.stack([pressure_N, distance_N], 1).astype(np.float32)


def command(speed_N: F, minimum_N: F, log_aim_N: F) -> Commands:
    """[N, 2] kPa, mm: distance from the practice table, pressure from the nominal model."""
    distance_N = practice_distance(minimum_N)
    return np.stack([nominal_pressure(speed_N, distance_N, log_aim_N), distance_N], 1).astype(np.float32)
