"""One drive of N egos: bicycle motion, traffic, and the running terms of the score.

Scored drives and the proposals that set the progress bar run through the same class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hagane.worlds import road_score as score
from hagane.worlds.road_geometry import B, Boxes, F, Paths, wrap
from hagane.worlds.road_score import Actors
from hagane.worlds.road_traffic import EgoShadow

RATE_HZ = 10.0
DT_S = 1.0 / RATE_HZ
STEPS = 80
ACCEL_MPS2 = (-6.0, 3.0)
CURVATURE_RADPM = 0.2
CURVATURE_STEP_RADPM = 0.02
"""Largest change of curvature in one control step: the steering motor."""
GRIP_MPS2 = 7.0
"""Largest lateral acceleration that the tyres give."""
REAR_TO_CENTRE = 0.3
"""Rear axle to centre of the car, in car lengths."""
SIGNAL_S = 2.0


class Traffic(Protocol):
    """A source of actors: reactive cars or a recording."""

    def actors(self) -> Actors:
        """Where everybody is now."""

    def step(self, ego: EgoShadow) -> None:
        """Move on by one control step."""

    def copy(self) -> Traffic:
        """An independent copy in the same state."""


class Ground(Protocol):
    """Where a car may drive."""

    def inside(self, xy_NK2: F, s_NK: F, d_NK: F) -> B:
        """[N, K] whether points lie on the drivable area, given in the plane and along the stage's road lines."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Everything N drives start from."""

    road: Paths
    """Lines that lane numbers are counted from."""
    route: Paths
    """The line each ego is to follow."""
    route_d_NP: F
    """Offset of the route from the road line at the road's points, m."""
    lane_width_N: F
    limit_N: F
    """Speed limit, m/s."""
    start_N4: F
    """Rear axle x, y, heading and speed at the start."""
    length_N: F
    width_N: F
    ground: Ground
    traffic: Traffic
    log_TN4: F | None = None
    """Rear axle x, y, heading and speed of the recorded driver after each step; None without a recording."""

    def route_offset(self, s_NK: F) -> F:
        """Offset of the route from the road line at arc lengths, [N, K]."""
        at = np.clip(np.rint(s_NK - self.road.first_s_m), 0, self.route_d_NP.shape[1] - 1).astype(np.int64)
        return np.asarray(np.take_along_axis(self.route_d_NP, at, 1))


class Drive:
    """N egos under way. All arrays are [N] unless their names say otherwise."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.traffic = stage.traffic.copy()
        self.x, self.y, self.heading, self.speed = stage.start_N4.T.copy()
        n = len(self.x)
        self.accel, self.curvature = np.zeros(n), np.zeros(n)
        self.steps = 0
        self.alive = np.ones(n, bool)
        self.nc, self.dac, self.ttc, self.comfort = np.ones(n), np.ones(n), np.ones(n), np.ones(n)
        self._felt_N3W = np.zeros((n, 3, score.SMOOTH_STEPS))
        self.actors = self.traffic.actors()
        self.touched_NM = score.touching(self.box(), self.actors)
        # recorded cars may start with a wheel off the map: they are judged once they have been wholly on it
        self._settled = self.footing()[0].all(1)
        self.s, self.offset = self._locate()
        self._s0 = self.s.copy()
        self.progress_m = np.zeros(n)

    def box(self) -> Boxes:
        """The egos' outlines."""
        shift = REAR_TO_CENTRE * self.stage.length_N
        x, y = self.x + np.cos(self.heading) * shift, self.y + np.sin(self.heading) * shift
        return Boxes(x, y, self.heading, self.stage.length_N, self.stage.width_N)

    def step(self, commands_N2: NDArray[np.float32]) -> NDArray[np.float32]:
        """Carry out acceleration (m/s^2) and curvature (1/m) for one control step; [N, 2] as applied.

        Kinematic bicycle about the rear axle, exact for constant curvature (Kong et al., IV 2015). Limits:
        `ACCEL_MPS2`, `CURVATURE_RADPM`, `CURVATURE_STEP_RADPM`, tyre grip, and no driving backwards. Egos that
        are no longer alive stand still in time.
        """
        live = self.alive
        accel = np.clip(np.nan_to_num(commands_N2[:, 0].astype(np.float64)), *ACCEL_MPS2)
        accel = np.maximum(accel, -self.speed / DT_S)
        most = np.minimum(CURVATURE_RADPM, GRIP_MPS2 / np.maximum(self.speed, 1.0) ** 2)
        want = np.clip(np.nan_to_num(commands_N2[:, 1].astype(np.float64)), -most, most)
        near = np.clip(want, self.curvature - CURVATURE_STEP_RADPM, self.curvature + CURVATURE_STEP_RADPM)
        self.accel = np.where(live, accel, self.accel)
        self.curvature = np.where(live, np.clip(near, -most, most), self.curvature)
        ego = self._shadow()
        after = np.maximum(0.0, self.speed + self.accel * DT_S)
        way = np.where(live, (self.speed + after) / 2 * DT_S, 0.0)
        turn = way * self.curvature
        self.x = self.x + way * np.cos(self.heading + turn / 2)
        self.y = self.y + way * np.sin(self.heading + turn / 2)
        self.heading = self.heading + turn
        self.speed = np.where(live, after, self.speed)
        self.traffic.step(ego)
        self.actors = self.traffic.actors()
        self.s, self.offset = self._locate()
        self.steps += 1
        self._judge(live)
        if self.steps >= STEPS:
            self.alive = np.zeros_like(live)
        return np.stack([self.accel, self.curvature], 1).astype(np.float32)

    def footing(self) -> tuple[B, B]:
        """Whether each corner is on the drivable area, [N, 4]; whether the car straddles lanes or leaves it, [N]."""
        corners = self.box().corners()
        s, d = self.stage.road.project(corners)
        inside = self.stage.ground.inside(corners, s, d)
        lane = np.rint(d / self.stage.lane_width_N[:, None])
        return inside, np.asarray((lane != lane[:, :1]).any(1) | ~inside.all(1))

    def heading_error(self) -> F:
        """Heading relative to the route, radians."""
        _, _, along, _ = self.stage.route.at(self.s[:, None])
        return wrap(self.heading - along[:, 0])

    def _locate(self) -> tuple[F, F]:
        s, d = self.stage.route.project(np.stack([self.x, self.y], -1)[:, None])
        return s[:, 0], d[:, 0]

    def _shadow(self) -> EgoShadow:
        box = self.box()
        s, d = self.stage.road.project(np.stack([box.x_m, box.y_m], -1)[:, None])
        wanted = self.stage.route_offset(s + SIGNAL_S * self.speed[:, None])
        return EgoShadow(s[:, 0], d[:, 0], wanted[:, 0], self.speed, box.length_m, box.width_m)

    def _judge(self, live: B) -> None:
        """Update the terms of the copies that were alive in this step."""
        box, actors = self.box(), self.actors
        inside, straddling = self.footing()
        meet = score.touching(box, actors)
        fresh = meet & ~self.touched_NM
        if fresh.any():
            fault = score.at_fault(box, self.x, self.y, self.speed, straddling, actors)
            term = score.collision_term(fresh, fault, actors.is_object)
            self.nc = np.where(live, np.minimum(self.nc, term), self.nc)
        clear = score.ttc_clear(box, self.x, self.y, self.speed, straddling, actors, self.touched_NM)
        self.touched_NM = self.touched_NM | meet
        self.ttc = np.where(live & ~clear, 0.0, self.ttc)
        self.dac = np.where(live & self._settled, np.minimum(self.dac, score.drivable_term(inside)), self.dac)
        self._settled = self._settled | inside.all(1)
        yaw = self.speed * self.curvature
        felt = np.stack([self.accel, self.speed * yaw, yaw], 1)
        self._felt_N3W = np.concatenate([self._felt_N3W[..., 1:], felt[..., None]], -1)
        window = self._felt_N3W
        if self.steps < score.SMOOTH_STEPS:  # too short for a derivative: judge the newest values only
            window = np.repeat(felt[..., None], score.SMOOTH_STEPS, -1)
        smooth = score.comfortable(window[:, 0], window[:, 1], window[:, 2], DT_S)
        self.comfort = np.where(live & ~smooth, 0.0, self.comfort)
        self.progress_m = np.where(live, np.maximum(0.0, self.s - self._s0), self.progress_m)
        self.alive = live & (self.nc > 0) & (self.dac > 0)
