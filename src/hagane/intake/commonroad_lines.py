"""Lanelets as lines: which one a car is in, and where the lane goes from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.intake.commonroad_xml import F, Lanelet

LOOK_M = (0.0, 3.0, 7.0, 12.0, 18.0, 25.0, 33.0, 42.0, 52.0, 63.0, 75.0, 90.0)
"""Distances ahead at which a lane is reported."""
_TURN_M = 4.0  # a lane one radian askew is as unlikely as one 4 m aside
_FAR_M = 6.0
_STEP_M = 1.0
_PAIRS = 1 << 22  # of points and pieces of a line that are looked at together


@dataclass(frozen=True, eq=False)
class Line:
    """A polyline."""

    xy_P2: F
    """Points, metres."""
    s_P: F
    """Arc length at the points, metres."""

    def project(self, xy_N2: F) -> tuple[F, F, F]:
        """Arc length, distance to the left (signed) and direction of the line, at the nearest point of N points."""
        rows = max(1, _PAIRS // len(self.xy_P2))
        if len(xy_N2) > rows:
            parts = [self.project(xy_N2[k : k + rows]) for k in range(0, len(xy_N2), rows)]
            arc, aside, direction = (np.concatenate(p) for p in zip(*parts, strict=True))
            return arc, aside, direction
        a, ab = self.xy_P2[:-1], np.diff(self.xy_P2, axis=0)
        away = xy_N2[:, None] - a
        part = np.clip((away * ab).sum(-1) / np.maximum((ab**2).sum(-1), 1e-12), 0.0, 1.0)
        gap = away - part[..., None] * ab
        at = np.argmin((gap**2).sum(-1), 1)
        row = np.arange(len(xy_N2))
        heading = np.arctan2(ab[at, 1], ab[at, 0])
        side = np.sign(ab[at, 0] * gap[row, at, 1] - ab[at, 1] * gap[row, at, 0])
        s = self.s_P[at] + part[row, at] * np.diff(self.s_P)[at]
        return s, side * np.hypot(*gap[row, at].T), heading


def line_through(xy_P2: F) -> Line:
    """A line through points; repeated ones are dropped."""
    keep = np.r_[True, np.hypot(*np.diff(xy_P2, axis=0).T) > 1e-6]
    xy = xy_P2[keep] if keep.sum() > 1 else xy_P2[:2] + np.array([[0.0, 0.0], [1e-3, 0.0]])
    return Line(xy, np.r_[0.0, np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])


def middle_of(lane: Lanelet) -> Line:
    """The centre line, half way between the bounds at equal parts of their lengths."""
    if len(lane.left_P2) == len(lane.right_P2):
        return line_through((lane.left_P2 + lane.right_P2) / 2)
    parts = np.linspace(0.0, 1.0, max(len(lane.left_P2), len(lane.right_P2)))
    sides = []
    for bound in (line_through(lane.left_P2), line_through(lane.right_P2)):
        s = parts * bound.s_P[-1]
        sides.append(np.stack([np.interp(s, bound.s_P, bound.xy_P2[:, k]) for k in (0, 1)], -1))
    return line_through((sides[0] + sides[1]) / 2)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a car is on the map, over N samples. NaN, and "" as the lanelet, where it is on none."""

    lanelets: tuple[str, ...]
    """[N] id of the lanelet."""
    offset_m: F
    """[N] to the left of the lane's middle."""
    heading_error_rad: F
    """[N] heading against the lane's direction."""
    width_m: F
    """[N] width of the lane."""
    limit_mps: F
    """[N] speed limit."""


class Roads:
    """The lanelets of a scenario, ready for look-ups."""

    def __init__(self, lanelets: Mapping[str, Lanelet]) -> None:
        self.lanelets = lanelets
        self.middles = {name: middle_of(lane) for name, lane in lanelets.items()}
        self._ahead: dict[tuple[str, ...], tuple[Line, F, F]] = {}

    def locate(self, xy_N2: F, heading_N: F) -> Place:
        """The lanelet of each sample: near, and in its direction."""
        count, names = len(xy_N2), list(self.lanelets)
        best = np.full(count, np.inf)
        found, values = np.full(count, -1), np.full((4, count), np.nan)
        for k, name in enumerate(names):
            _, offset, direction = self.middles[name].project(xy_N2)
            turn = _wrap(heading_N - direction)
            cost = np.abs(offset) + _TURN_M * np.abs(turn)
            better = (cost < best) & (np.abs(offset) < _FAR_M)
            if not better.any():
                continue
            lane = self.lanelets[name]
            aside = np.stack([np.sin(direction), -np.cos(direction)], -1) * offset[:, None]
            foot = (xy_N2 + aside)[better]  # on the middle, so that the bounds lie on either side
            width = sum(np.abs(line_through(b).project(foot)[1]) for b in (lane.left_P2, lane.right_P2))
            limit = np.full(better.sum(), lane.limit_mps)
            values[:, better] = np.stack([offset[better], turn[better], width, limit])
            found[better], best[better] = k, cost[better]
        return Place(tuple(names[k] if k >= 0 else "" for k in found), *values)

    def ahead(self, place: Place, xy_N2: F, heading_N: F, count: int) -> tuple[F, NDArray[np.bool_]]:
        """[N, count, 4] the lane ahead in the car's axes: x, y, heading, curvature; [N, count] where there is one.

        Where the lane forks, the branch that the car took later is the one, else the straightest.
        """
        values = np.full((len(xy_N2), count, 4), np.nan)
        visited = set(place.lanelets)
        for n, name in enumerate(place.lanelets):
            if not name:
                continue
            line, heading, curvature = self._line(self._chain(name, visited))
            s = line.project(xy_N2[n : n + 1])[0] + np.array(LOOK_M[:count])
            x, y = (np.interp(s, line.s_P, line.xy_P2[:, k]) for k in (0, 1))
            dx, dy = x - xy_N2[n, 0], y - xy_N2[n, 1]
            c, d = np.cos(heading_N[n]), np.sin(heading_N[n])
            turn = _wrap(np.interp(s, line.s_P, heading) - heading_N[n])
            rows = np.stack([c * dx + d * dy, c * dy - d * dx, turn, np.interp(s, line.s_P, curvature)], -1)
            values[n] = np.where((s <= line.s_P[-1])[:, None], rows, np.nan)
        return values, np.isfinite(values).all(-1)

    def _chain(self, name: str, visited: set[str]) -> tuple[str, ...]:
        chain, length = [name], 0.0
        while length < LOOK_M[-1] + self.middles[name].s_P[-1]:
            length += float(self.middles[chain[-1]].s_P[-1])
            ahead = [k for k in self.lanelets[chain[-1]].after if k in self.lanelets and k not in chain]
            if not ahead:
                break
            end = self.middles[chain[-1]].xy_P2
            heading = np.arctan2(*(end[-1] - end[-2])[::-1])
            chain.append(min(ahead, key=lambda k: (k not in visited, abs(_turn_at_start(self.middles[k], heading)))))
        return tuple(chain)

    def _line(self, chain: tuple[str, ...]) -> tuple[Line, F, F]:
        """A chain's line with a point a metre, and its heading and curvature there."""
        if chain not in self._ahead:
            whole = line_through(np.concatenate([self.middles[k].xy_P2 for k in chain]))
            s = np.linspace(0.0, whole.s_P[-1], max(3, int(whole.s_P[-1] / _STEP_M) + 1))
            line = line_through(np.stack([np.interp(s, whole.s_P, whole.xy_P2[:, k]) for k in (0, 1)], -1))
            step = np.gradient(line.xy_P2, axis=0)
            heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
            self._ahead[chain] = line, heading, np.gradient(heading, line.s_P)
        return self._ahead[chain]


def _turn_at_start(line: Line, heading: float) -> float:
    step = line.xy_P2[1] - line.xy_P2[0]
    return float(_wrap(np.arctan2(step[1], step[0]) - heading))


def _wrap(angle: F) -> F:
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)
