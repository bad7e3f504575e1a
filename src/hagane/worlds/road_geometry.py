"""Plane geometry of the road world: many polylines at once, and oriented boxes.

Axes: x forward or east, y left or north, headings counter-clockwise from x, curvature positive to the left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F = NDArray[np.float64]
B = NDArray[np.bool_]

COARSE = 8


def wrap(angle: F) -> F:
    """Angle in radians brought into [-pi, pi)."""
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True, eq=False)
class Paths:
    """N polylines with points one metre apart; arc length `first_s_m` at their first points.

    Beyond either end a path goes on straight.
    """

    xy_NP2: F
    """Points, metres."""
    heading_NP: F
    """Direction at the points, unwrapped, radians."""
    curvature_NP: F
    """Curvature at the points, 1/m."""
    first_s_m: float = 0.0
    """Arc length of the first point."""

    def project(self, xy_NK2: F) -> tuple[F, F]:
        """Arc length and signed distance (left positive) of K points a path: [N, K] each, metres."""
        coarse = self.xy_NP2[:, None, ::COARSE]
        near = _squared(coarse, xy_NK2[:, :, None]).argmin(-1) * COARSE
        spread = np.arange(-COARSE, COARSE + 1)
        index = np.clip(near[..., None] + spread, 0, self.xy_NP2.shape[1] - 1)
        row = np.arange(len(index))[:, None, None]
        best = _squared(self.xy_NP2[row, index], xy_NK2[:, :, None]).argmin(-1)
        index_NK = np.take_along_axis(index, best[..., None], -1)[..., 0]
        row_NK = row[..., 0]
        heading = self.heading_NP[row_NK, index_NK]
        away = xy_NK2 - self.xy_NP2[row_NK, index_NK]
        along = np.cos(heading) * away[..., 0] + np.sin(heading) * away[..., 1]
        across = np.cos(heading) * away[..., 1] - np.sin(heading) * away[..., 0]
        # the foot of the perpendicular moves faster on the inside of a bend
        bend = np.maximum(1.0 - self.curvature_NP[row_NK, index_NK] * across, 0.3)
        s_NK = self.first_s_m + index_NK + along / bend
        x, y, h, _ = self.at(s_NK)
        d_NK = np.cos(h) * (xy_NK2[..., 1] - y) - np.sin(h) * (xy_NK2[..., 0] - x)
        return s_NK, d_NK

    def at(self, s_NK: F, d_NK: F | float = 0.0) -> tuple[F, F, F, F]:
        """x, y, heading and curvature of the path at arc length s, shifted d metres to the left; [N, K] each."""
        last = self.xy_NP2.shape[1] - 1
        u = s_NK - self.first_s_m
        index = np.clip(np.floor(u), 0, last - 1).astype(np.int64)
        part = u - index
        inside = np.clip(part, 0.0, 1.0)
        row = np.arange(len(index))[:, None]
        xy = self.xy_NP2[row, index]
        step = self.xy_NP2[row, index + 1] - xy
        h0, h1 = self.heading_NP[row, index], self.heading_NP[row, index + 1]
        k0, k1 = self.curvature_NP[row, index], self.curvature_NP[row, index + 1]
        heading = h0 + inside * (h1 - h0)
        curvature = k0 + inside * (k1 - k0)
        x = xy[..., 0] + part * step[..., 0] - d_NK * np.sin(heading)
        y = xy[..., 1] + part * step[..., 1] + d_NK * np.cos(heading)
        return x, y, heading, curvature


def paths_through(xy_NP2: F, first_s_m: float) -> Paths:
    """Paths with headings and curvatures by central differences; points must be about one metre apart."""
    step = np.gradient(xy_NP2, axis=1)
    heading = np.unwrap(np.arctan2(step[..., 1], step[..., 0]), axis=1)
    length = np.maximum(np.hypot(step[..., 0], step[..., 1]), 1e-6)
    return Paths(xy_NP2, heading, np.gradient(heading, axis=1) / length, first_s_m)


def resample(xy_P2: F, step_m: float, count: int) -> F:
    """`count` points `step_m` apart along one polyline, going on straight past its end: [count, 2]."""
    keep = np.concatenate([[True], np.hypot(*np.diff(xy_P2, axis=0).T) > 1e-6])
    xy = xy_P2[keep]
    direction = (xy[-1] - xy[-2]) / np.hypot(*(xy[-1] - xy[-2]))
    xy = np.concatenate([xy, [xy[-1] + direction * step_m * count]])
    s = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
    want = np.arange(count) * step_m
    return np.stack([np.interp(want, s, xy[:, 0]), np.interp(want, s, xy[:, 1])], -1)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Oriented rectangles; all arrays broadcast against each other. Metres and radians."""

    x_m: F
    y_m: F
    heading_rad: F
    length_m: F
    width_m: F

    def corners(self) -> F:
        """[..., 4, 2]: front left, front right, rear right, rear left."""
        c, s = np.cos(self.heading_rad), np.sin(self.heading_rad)
        out = []
        for forward, left in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5)):
            u, v = forward * self.length_m, left * self.width_m
            out.append(np.stack([self.x_m + c * u - s * v, self.y_m + s * u + c * v], -1))
        return np.stack(out, -2)

    def front_edge(self) -> Boxes:
        """The front bumper as a box of no length."""
        half = self.length_m / 2
        x = self.x_m + np.cos(self.heading_rad) * half
        y = self.y_m + np.sin(self.heading_rad) * half
        return Boxes(x, y, self.heading_rad, np.zeros_like(half), self.width_m)

    def moved(self, along_m: F) -> Boxes:
        """The boxes shifted along their own headings."""
        x = self.x_m + np.cos(self.heading_rad) * along_m
        y = self.y_m + np.sin(self.heading_rad) * along_m
        return Boxes(x, y, self.heading_rad, self.length_m, self.width_m)

    def column(self) -> Boxes:
        """The same boxes with one more axis at the end, to meet [N, M] others."""
        parts = (self.x_m, self.y_m, self.heading_rad, self.length_m, self.width_m)
        return Boxes(*(np.asarray(p)[..., None] for p in parts))


def overlap(a: Boxes, b: Boxes) -> B:
    """Whether rectangles meet, by the separating axis theorem (Gottschalk et al., SIGGRAPH 1996)."""
    dx, dy = b.x_m - a.x_m, b.y_m - a.y_m
    turn = b.heading_rad - a.heading_rad
    c, s = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    meet = np.ones(np.broadcast(dx, turn).shape, bool)
    for one, other in ((a, b), (b, a)):
        ch, sh = np.cos(one.heading_rad), np.sin(one.heading_rad)
        reach_l = one.length_m / 2 + (other.length_m * c + other.width_m * s) / 2
        reach_w = one.width_m / 2 + (other.length_m * s + other.width_m * c) / 2
        meet &= (np.abs(ch * dx + sh * dy) <= reach_l) & (np.abs(ch * dy - sh * dx) <= reach_w)
    return meet


def _squared(a: F, b: F) -> F:
    return np.asarray((a[..., 0] - b[..., 0]) ** 2 + (a[..., 1] - b[..., 1]) ** 2)
