"""What a car's sensors and map give to its controller, in the car's own frame (rear axle, x forward, y left)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Embodiment, Reading
from hagane.worlds.road_drive import Drive
from hagane.worlds.road_geometry import B, F

LOOK_M = (0.0, 3.0, 7.0, 12.0, 18.0, 25.0, 33.0, 42.0, 52.0, 63.0, 75.0, 90.0)
"""Distances along the route at which its line is reported."""
PLACES = 12
RANGE_M = 80.0


class Tracker:
    """Gives the nearest actors a place each, and lets an actor keep its place while it stays in view.

    So a place's history is one actor's history, as in a car's own object list.
    """

    def __init__(self, copies: int) -> None:
        self.who_NK: NDArray[np.int64] = np.full((copies, PLACES), -1)

    def update(self, drive: Drive) -> None:
        """Take in where everybody is, once a step; only actors within `RANGE_M` count."""
        actors = drive.actors
        distance = np.hypot(actors.x_m - drive.x[:, None], actors.y_m - drive.y[:, None])
        self.assign(np.where(actors.present & (distance < RANGE_M), distance, np.inf))

    def assign(self, far: F) -> None:
        """Hand out places by distance in metres, [N, M]; infinite for actors out of view."""
        n, m = far.shape
        rank = np.argsort(np.argsort(far, 1, kind="stable"), 1, kind="stable")
        wanted = np.isfinite(far) & (rank < PLACES)
        row = np.arange(n)[:, None]
        keeps = (self.who_NK >= 0) & wanted[row, np.maximum(self.who_NK, 0)]
        self.who_NK = np.where(keeps, self.who_NK, -1)
        held = np.zeros((n, m + 1), bool)
        held[row, np.where(self.who_NK >= 0, self.who_NK, m)] = True
        fresh = wanted & ~held[:, :m]
        if not fresh.any():
            return
        # the k-th newcomer (nearest first) takes the k-th empty place
        order = np.argsort(np.where(fresh, far, np.inf), 1, kind="stable")
        count = fresh.sum(1)
        empty = self.who_NK < 0
        nth = np.cumsum(empty, 1) - 1
        take = empty & (nth < count[:, None])
        pick = order[row, np.clip(nth, 0, m - 1)]
        self.who_NK = np.where(take, pick, self.who_NK)


def look(drive: Drive, who_NK: NDArray[np.int64], embodiment: Embodiment) -> dict[str, Reading]:
    """Readings of all observed channels, clipped to their ranges; `who_NK` holds the actor of each place or -1."""
    n = len(drive.x)
    found = {
        "ego": (_ego(drive), np.ones(n, bool)),
        "agents": _agents(drive, who_NK),
        "lane": (_lane(drive), np.ones((n, len(LOOK_M)), bool)),
    }
    out = {}
    for name, (values, valid) in found.items():
        channel = embodiment.channel(name)
        kept = np.where(valid[..., None], np.clip(values, channel.low, channel.high), 0.0)
        out[name] = Reading(kept.astype(np.float32), valid, np.zeros(n, np.float32))
    return out


def _ego(drive: Drive) -> F:
    stage = drive.stage
    columns = (drive.speed, drive.accel, drive.curvature, stage.limit_N, drive.offset, drive.heading_error(),
               stage.lane_width_N)  # fmt: skip
    return np.stack(columns, -1)


def _agents(drive: Drive, who_NK: NDArray[np.int64]) -> tuple[F, B]:
    valid, at = who_NK >= 0, np.maximum(who_NK, 0)
    actors = drive.actors

    def pick(values: F) -> F:
        return np.asarray(np.take_along_axis(values, at, 1))

    x, y = pick(actors.x_m), pick(actors.y_m)
    heading, speed = pick(actors.heading_rad), pick(actors.speed_mps)
    dx, dy = x - drive.x[:, None], y - drive.y[:, None]
    c, s = np.cos(drive.heading)[:, None], np.sin(drive.heading)[:, None]
    turn = heading - drive.heading[:, None]
    box = drive.box()
    s_NK, across = drive.stage.route.project(np.stack([x, y], -1))
    middle = drive.s + (drive.stage.length_N * 0.3)
    ahead = s_NK - middle[:, None]
    gap = np.sign(ahead) * np.maximum(np.abs(ahead) - (pick(actors.length_m) + box.length_m[:, None]) / 2, 0.0)
    columns = (c * dx + s * dy, c * dy - s * dx, speed * np.cos(turn) - drive.speed[:, None], speed * np.sin(turn),
               np.cos(turn), np.sin(turn), gap, across)  # fmt: skip
    return np.stack(columns, -1), valid


def _lane(drive: Drive) -> F:
    x, y, heading, curvature = drive.stage.route.at(drive.s[:, None] + np.array(LOOK_M))
    dx, dy = x - drive.x[:, None], y - drive.y[:, None]
    c, s = np.cos(drive.heading)[:, None], np.sin(drive.heading)[:, None]
    turn = heading - drive.heading[:, None]
    turn = (turn + np.pi) % (2 * np.pi) - np.pi
    return np.stack([c * dx + s * dy, c * dy - s * dx, turn, curvature], -1)
