"""Who steers the car: the simplest rules, IDM on the route, and the expert that the model learns from.

All but the expert read `observe()` only. The expert looks at the world's own state, but uses nothing that its
channels do not show: the model can imitate it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hagane.terms import ConfigError, Reading
from hagane.worlds.base import World
from hagane.worlds.road_drive import Drive
from hagane.worlds.road_geometry import F, wrap
from hagane.worlds.road_traffic import FAR_M, idm

Commands = NDArray[np.float32]


class HasDrive(Protocol):
    """A world whose inner state an expert may see."""

    drive: Drive


def track(speed: F, offset: F, heading_error: F, curvature_ahead: F) -> F:
    """Curvature command that brings the rear axle back onto the route, 1/m.

    With distance as the independent variable the offset e obeys e'' = curvature - curvature of the route;
    gains 2/L and 1/L^2 make it critically damped with length L, which grows with speed.
    """
    length = np.clip(0.9 * speed, 5.0, 18.0)
    return np.asarray(curvature_ahead - 2.0 / length * np.sin(heading_error) - offset / length**2)


def track_observed(readings: dict[str, Reading]) -> F:
    """`track` from the channels."""
    ego = readings["ego"].values.astype(np.float64)
    bend = readings["lane"].values[:, :2, 3].astype(np.float64)
    part = np.clip(ego[:, 0] * 0.1 / 3.0, 0.0, 1.0)
    return track(ego[:, 0], ego[:, 4], ego[:, 5], bend[:, 0] + part * (bend[:, 1] - bend[:, 0]))


class ConstantVelocity:
    """Goes straight on at its present speed."""

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> Commands:
        """[N, 2] zeros."""
        return np.zeros((len(world.alive()), 2), np.float32)


class LaneConstantSpeed:
    """Follows the route at the speed it started with, whoever is in the way."""

    def reset(self, world: World) -> None:
        """Remember the speeds at the start."""
        self.speed = world.observe()["ego"].values[:, 0].astype(np.float64)

    def act(self, world: World) -> Commands:
        """[N, 2]."""
        readings = world.observe()
        accel = np.clip(self.speed - readings["ego"].values[:, 0], -2.0, 2.0)
        return np.stack([accel, track_observed(readings)], 1).astype(np.float32)


class IdmOnRoute:
    """The Intelligent Driver Model behind the nearest car on the route; parameters of nuPlan's IDM planner."""

    HALF_PATH_M = 1.9
    """An actor whose centre is nearer to the route is on it."""

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> Commands:
        """[N, 2]."""
        readings = world.observe()
        ego = readings["ego"].values.astype(np.float64)
        agents = readings["agents"]
        gap, across, x = agents.values[..., 6], agents.values[..., 7], agents.values[..., 0]
        on_path = agents.valid & (np.abs(across) < self.HALF_PATH_M) & (gap >= 0) & (x > 0)
        gap = np.where(on_path, gap, FAR_M).astype(np.float64)
        nearest = gap.argmin(1)
        row = np.arange(len(gap))
        closing = -agents.values[row, nearest, 2].astype(np.float64)
        accel = idm(
            ego[:, 0], ego[:, 3], gap[row, nearest], closing, headway_s=1.5, accel=1.0, brake=3.0, standstill_m=1.0
        )
        return np.stack([np.clip(accel, -6.0, 1.0), track_observed(readings)], 1).astype(np.float32)


@dataclass(frozen=True)
class Manner:
    """How the expert drives."""

    headway_s: float = 1.3
    accel_mps2: float = 1.8
    brake_mps2: float = 1.6
    standstill_m: float = 2.5
    lateral_mps2: float = 2.2
    """Lateral acceleration up to which it takes bends."""
    yield_mps2: float = 3.0
    """Hardest braking for someone who is not on the route yet."""
    hardest_mps2: float = 5.5
    press_mps2: float = 1.3
    """How strongly a gap shorter than wanted brakes, in IDM's place of the largest acceleration."""
    side_m: float = 2.0
    """Someone beside the end of our lane goes first unless his middle is this far behind ours."""


CALM = Manner()
BRISK = Manner(headway_s=1.0, accel_mps2=2.2, standstill_m=2.0, press_mps2=1.1)
FORESEE_S = (0.0, 0.7, 1.4, 2.1, 2.8)
SWAY_S = 1.4


def drive_ahead(drive: Drive, manner: Manner) -> F:
    """[N, 2] commands: IDM behind all who are, or are about to be, on the route.

    Each actor within view is foreseen up to 1.8 s (lane-following, constant sideways speed) and weighs in by
    how far it will reach into the car's path, so a car that begins to cut in, or one beside the end of our
    lane, is yielded to before it is ahead. The weights are smooth: the command has one mode.
    """
    stage, actors = drive.stage, drive.actors
    box = drive.box()
    s, d = stage.road.project(np.stack([actors.x_m, actors.y_m], -1))
    own, _ = stage.road.project(np.stack([box.x_m, box.y_m], -1)[:, None])
    _, _, along, _ = stage.road.at(s, d)
    turn = wrap(actors.heading_rad - along)
    v_along, v_across = actors.speed_mps * np.cos(turn), actors.speed_mps * np.sin(turn)
    half = (actors.width_m + box.width_m[:, None]) / 2
    weight = np.zeros(s.shape)
    for t in FORESEE_S:
        clear = np.abs(d + v_across * min(t, SWAY_S) - stage.route_offset(s + v_along * t)) - half
        late = 1.0 - 0.15 * t
        weight = np.maximum(weight, late * np.clip((0.7 - clear) / 0.6, 0.0, 1.0))
    ahead = s - own
    size = (actors.length_m + box.length_m[:, None]) / 2
    gap = np.maximum(ahead - size, 0.3)
    now = np.abs(d - stage.route_offset(s)) - half < 0.1
    in_front = np.clip((ahead + manner.side_m) / 3.0, 0.0, 1.0)
    speed = drive.speed[:, None]
    want = manner.standstill_m + np.maximum(
        0.0,
        speed * manner.headway_s + speed * (speed - v_along) / (2 * np.sqrt(manner.accel_mps2 * manner.brake_mps2)),
    )
    press = manner.press_mps2 * (want / gap) ** 2
    press = np.where(now, press, np.minimum(press, manner.yield_mps2 + manner.accel_mps2)) * weight * in_front
    press = np.where(actors.present & (np.abs(ahead) < 80.0), press, 0.0)
    _, _, _, bend = stage.route.at(drive.s[:, None] + np.arange(0.0, 50.0, 5.0))
    slack = np.sqrt(manner.lateral_mps2 / np.maximum(np.abs(bend), 1e-4))
    # a bend further on may be approached faster: braking at 1 m/s^2 until there
    bend_speed = np.sqrt(slack**2 + 2.0 * np.arange(0.0, 50.0, 5.0)).min(1)
    desired = np.minimum(stage.limit_N, bend_speed)
    free = manner.accel_mps2 * (1.0 - (drive.speed / np.maximum(desired, 0.5)) ** 4)
    accel = np.clip(np.maximum(free, -2.0) - press.max(1), -manner.hardest_mps2, manner.accel_mps2)
    _, _, _, here = stage.route.at((drive.s + drive.speed * 0.1)[:, None])
    return np.stack([accel, track(drive.speed, drive.offset, drive.heading_error(), here[:, 0])], 1)


class Expert:
    """`drive_ahead` in a calm manner."""

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> Commands:
        """[N, 2]."""
        return drive_ahead(cast(HasDrive, world).drive, CALM).astype(np.float32)


class RecordedDriver:
    """Follows the recording of its own car: pure pursuit of where that will be, about a second on.

    A yardstick for recorded cases, not a policy: it knows the future. (Coulter, CMU-RI-TR-92-01, 1992.)
    """

    AHEAD_STEPS = 8

    def reset(self, world: World) -> None:
        """Nothing to forget."""

    def act(self, world: World) -> Commands:
        """[N, 2].

        Raises:
            ConfigError: the world has no recording.
        """
        drive = cast(HasDrive, world).drive
        log = drive.stage.log_TN4
        if log is None:
            raise ConfigError("no recorded driver to follow", where="world road", next_step="use make_recorded")
        last = len(log) - 1
        now, soon = log[min(drive.steps, last)], log[min(drive.steps + 5, last)]
        c, s = np.cos(drive.heading), np.sin(drive.heading)
        lag = c * (now[:, 0] - drive.x) + s * (now[:, 1] - drive.y)
        accel = (soon[:, 3] - drive.speed) / 0.8 + 0.4 * lag
        goal = log[min(drive.steps + self.AHEAD_STEPS, last)]
        over = max(0, drive.steps + self.AHEAD_STEPS - last) * 0.1 * goal[:, 3]
        x = goal[:, 0] + over * np.cos(goal[:, 2]) - drive.x
        y = goal[:, 1] + over * np.sin(goal[:, 2]) - drive.y
        reach = np.maximum(np.hypot(x, y), 3.0)
        return np.stack([accel, 2.0 * (c * y - s * x) / reach**2], 1).astype(np.float32)
