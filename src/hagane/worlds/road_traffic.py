"""Reactive traffic: cars in road coordinates (s along, d to the left) that follow by IDM and change lanes by MOBIL.

Sources: Treiber, Hennecke, Helbing, "Congested traffic states", Phys. Rev. E 62 (2000) for the Intelligent
Driver Model; Kesting, Treiber, Helbing, "General lane-changing model MOBIL", TRR 1999 (2007).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hagane.worlds.road_geometry import B, F, Paths
from hagane.worlds.road_score import Actors

FAR_M = 1e3
CHANGE_S = 3.0
HARDEST_BRAKE_MPS2 = 8.0
MARGIN_M = 0.3
MOBIL_EVERY = 10
MOBIL_GAIN_MPS2 = 0.3
MOBIL_SAFE_MPS2 = 2.0
FORCED_SAFE_MPS2 = 5.0


def idm(
    speed: F,
    desired: F | float,
    gap: F,
    closing: F,
    *,
    headway_s: F | float = 1.4,
    accel: F | float = 1.6,
    brake: F | float = 2.0,
    standstill_m: F | float = 2.0,
) -> F:
    """IDM acceleration in m/s^2 (not limited below), any shape.

    Args:
        speed: own speed, m/s, at least 0.
        desired: speed wanted on a free road, m/s.
        gap: bumper to bumper distance to the leader, m (`FAR_M` for none).
        closing: own speed minus the leader's, m/s.
        headway_s: time gap wanted.
        accel: largest acceleration.
        brake: comfortable deceleration, positive.
        standstill_m: gap wanted at rest.
    """
    want = standstill_m + np.maximum(0.0, speed * headway_s + speed * closing / (2 * np.sqrt(accel * brake)))
    free = (speed / np.maximum(desired, 0.1)) ** 4
    return np.asarray(accel * (1.0 - free - (want / np.maximum(gap, 0.1)) ** 2))


@dataclass(eq=False)
class Cars:
    """State and plans of M actors in N copies, [N, M] each, in road coordinates."""

    s: F
    """Arc length of the centre, m."""
    d: F
    """Offset of the centre to the left of the road's reference line, m."""
    speed: F
    """m/s, at least 0."""
    way: F
    """+1 along the reference line, -1 oncoming."""
    length: F
    width: F
    desired: F
    """Speed wanted on a free road, m/s."""
    headway: F
    """IDM time gap, s."""
    lane_d: F
    """Offset of the lane it drives in, or is changing to, m."""
    from_d: F
    """Offset of the lane that it leaves, m."""
    change_s: F
    """Seconds since the lane change began; `CHANGE_S` or more when none goes on."""
    plan_s: F
    """Time from which a planned lane change is wanted, s; infinite for none."""
    plan_d: F
    """Offset of the lane it plans to change to, m."""
    slow_s: F
    """Time of a planned braking, s; infinite for none."""
    slow_mps: F
    """Speed it brakes to."""
    slow_brake: F
    """How hard, m/s^2."""
    resume_s: F
    """Time at which it wants its old speed again, s."""
    end_s: F
    """Arc length where its lane ends unless it changes; infinite for none."""
    free: B
    """May change lanes of its own will."""
    present: B
    is_object: B

    def copy(self) -> Cars:
        """An independent copy."""
        return Cars(**{f.name: getattr(self, f.name).copy() for f in fields(self)})


@dataclass(frozen=True, eq=False)
class EgoShadow:
    """The ego as the traffic sees it: [N] each, road coordinates."""

    s: F
    d: F
    wanted_d: F
    """Offset that it signals to reach in a moment: others see its indicator."""
    speed: F
    length: F
    width: F


class ReactiveTraffic:
    """Steps `Cars` of N copies on their roads; the ego counts as one more car to follow or to yield to."""

    def __init__(self, road: Paths, cars: Cars, lanes_d_NL: F, dt_s: float) -> None:
        self.road, self.cars, self.lanes_d_NL, self.dt_s = road, cars, lanes_d_NL, dt_s
        self.steps = 0

    def copy(self) -> ReactiveTraffic:
        """An independent copy in the same state."""
        twin = ReactiveTraffic(self.road, self.cars.copy(), self.lanes_d_NL, self.dt_s)
        twin.steps = self.steps
        return twin

    def actors(self) -> Actors:
        """Poses in the plane."""
        c = self.cars
        x, y, heading, _ = self.road.at(c.s, c.d)
        sway = np.arctan2(_glide_rate(c), np.maximum(c.speed, 1.0)) * c.way
        heading = heading + np.where(c.way < 0, np.pi, 0.0) + sway
        return Actors(x, y, heading, c.speed.copy(), c.length, c.width, c.present, c.is_object)

    def step(self, ego: EgoShadow) -> None:
        """Move every car by one step, given the ego at its start."""
        c, t = self.cars, self.steps * self.dt_s
        self._plan(ego, t)
        if self.steps % MOBIL_EVERY == 0:
            self._wish(ego)
        desired = np.where((c.slow_s <= t) & (t < c.resume_s), c.slow_mps, c.desired)
        gap, closing = _leader(c, ego, c.d, c.lane_d)
        to_end = np.where(np.abs(c.d - c.plan_d) > 0.5, c.end_s - c.s - c.length / 2, FAR_M)
        gap, closing = np.where(to_end < gap, to_end, gap), np.where(to_end < gap, c.speed, closing)
        free = np.maximum(idm(c.speed, desired, np.full_like(gap, FAR_M), closing), -c.slow_brake)
        accel = np.minimum(free, idm(c.speed, c.desired, gap, closing, headway_s=c.headway))
        accel = np.clip(accel, -HARDEST_BRAKE_MPS2, None)
        fixed = c.is_object | ~c.present
        speed = np.where(fixed, c.speed, np.maximum(0.0, c.speed + accel * self.dt_s))
        _, _, _, bend = self.road.at(c.s)
        c.s += c.way * (c.speed + speed) / 2 * self.dt_s / np.maximum(1.0 - bend * c.d, 0.3)
        c.speed = speed
        c.change_s = c.change_s + self.dt_s
        c.d = _glide(c)
        self.steps += 1

    def _plan(self, ego: EgoShadow, t: float) -> None:
        """Start planned lane changes once they are wanted and neither the ego nor another must brake hard."""
        c = self.cars
        want = (c.plan_s <= t) & (c.change_s >= CHANGE_S) & (np.abs(c.lane_d - c.plan_d) > 0.5) & c.present
        if want.any():
            room = _safe(c, ego, c.plan_d, FORCED_SAFE_MPS2)
            _begin(c, want & room & (c.speed > 1.0), c.plan_d)

    def _wish(self, ego: EgoShadow) -> None:
        """Lane changes for one's own gain (MOBIL without politeness), to the neighbour lanes."""
        c = self.cars
        can = c.free & c.present & (c.change_s >= CHANGE_S) & (c.speed > 3.0) & (c.way > 0)
        if not can.any():
            return
        gap, closing = _leader(c, ego, c.d, c.lane_d)
        now = idm(c.speed, c.desired, gap, closing, headway_s=c.headway)
        best, best_d = np.full(now.shape, MOBIL_GAIN_MPS2), c.lane_d.copy()
        width = np.abs(self.lanes_d_NL[:, 1] - self.lanes_d_NL[:, 0])[:, None]
        for k in range(self.lanes_d_NL.shape[1]):
            lane = np.broadcast_to(self.lanes_d_NL[:, k, None], now.shape)
            away = np.abs(lane - c.lane_d)
            beside = (away > 0.5 * width) & (away < 1.5 * width)
            gap, closing = _leader(c, ego, lane, lane)
            gain = idm(c.speed, c.desired, gap, closing, headway_s=c.headway) - now
            better = can & beside & (gain > best) & _safe(c, ego, lane, MOBIL_SAFE_MPS2)
            best, best_d = np.where(better, gain, best), np.where(better, lane, best_d)
        _begin(c, best_d != c.lane_d, best_d)


def _glide(c: Cars) -> F:
    """Offset during a lane change: a smooth step of fifth order over `CHANGE_S`."""
    u = np.clip(c.change_s / CHANGE_S, 0.0, 1.0)
    return np.asarray(c.from_d + (c.lane_d - c.from_d) * u**3 * (10 - 15 * u + 6 * u**2))


def _glide_rate(c: Cars) -> F:
    """Its sideways speed, m/s to the left."""
    u = np.clip(c.change_s / CHANGE_S, 0.0, 1.0)
    return np.asarray((c.lane_d - c.from_d) * 30 * u**2 * (1 - u) ** 2 / CHANGE_S)


def _begin(c: Cars, which: B, lane_d: F) -> None:
    c.from_d = np.where(which, c.d, c.from_d)
    c.lane_d = np.where(which, lane_d, c.lane_d)
    c.change_s = np.where(which, 0.0, c.change_s)


def _with_ego(c: Cars, ego: EgoShadow) -> tuple[F, F, F, F, F, B]:
    """s, d, signed speed, length, width, present of the M cars and twice the ego: here, and as signalled.

    [N, 1, M + 2] each.
    """

    def join(a: NDArray[np.float64], here: F, signalled: F) -> F:
        return np.concatenate([a, here[:, None], signalled[:, None]], 1)[:, None]

    present = np.concatenate([c.present, np.ones((len(ego.s), 2), bool)], 1)[:, None]
    d = join(c.d, ego.d, ego.wanted_d)
    length, width = join(c.length, ego.length, ego.length), join(c.width, ego.width, ego.width)
    return join(c.s, ego.s, ego.s), d, join(c.speed * c.way, ego.speed, ego.speed), length, width, present


def _leader(c: Cars, ego: EgoShadow, *lanes_d: F) -> tuple[F, F]:
    """Gap and closing speed of each car to the nearest one ahead in any of the lanes; [N, M]."""
    s, d, speed, length, width, present = _with_ego(c, ego)
    ahead = (s - c.s[:, :, None]) * c.way[:, :, None]
    in_way = np.zeros(ahead.shape, bool)
    for lane in lanes_d:
        in_way |= np.abs(d - lane[:, :, None]) < (width + c.width[:, :, None]) / 2 + MARGIN_M
    gap = ahead - (length + c.length[:, :, None]) / 2
    gap = np.where(in_way & (ahead > 0) & present, gap, FAR_M)
    nearest = gap.argmin(-1)[..., None]
    other = np.take_along_axis(np.broadcast_to(speed, gap.shape), nearest, -1)[..., 0] * c.way
    return np.take_along_axis(gap, nearest, -1)[..., 0], c.speed - other


def _safe(c: Cars, ego: EgoShadow, lane_d: F, brake_mps2: float) -> B:
    """[N, M] whether a car may enter a lane: nobody there has to brake harder than `brake_mps2`, nor it itself."""
    s, d, speed, length, width, present = _with_ego(c, ego)
    ahead = s - c.s[:, :, None]
    there = present & (np.abs(d - lane_d[:, :, None]) < (width + c.width[:, :, None]) / 2 + MARGIN_M)
    there &= ~np.eye(c.s.shape[1], c.s.shape[1] + 2, dtype=bool)
    gap = np.abs(ahead) - (length + c.length[:, :, None]) / 2
    mine = c.speed[:, :, None]
    as_follower = idm(mine, FAR_M, gap, mine - speed, headway_s=0.8)
    as_leader = idm(np.maximum(speed, 0.0), FAR_M, gap, speed - mine, headway_s=0.8)
    needed = np.where(ahead > 0, as_follower, as_leader)
    return np.asarray(~(there & ((gap < 2.0) | (needed < -brake_mps2))).any(-1))
