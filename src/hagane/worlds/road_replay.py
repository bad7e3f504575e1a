"""Recorded traffic as the source of actors: NGSIM scenes (US-101, Lankershim) from Parquet, read and replayed.

Every car that is recorded for the whole drive may be the ego. It then follows the lane it started in; the
others move as they did, whatever the ego does (non-reactive, as in NAVSIM).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hagane.terms import LogError
from hagane.worlds.road_drive import REAR_TO_CENTRE, STEPS, Stage
from hagane.worlds.road_geometry import B, F, paths_through, resample, wrap
from hagane.worlds.road_score import Actors
from hagane.worlds.road_traffic import EgoShadow

POINTS = 420
BACK_M = 30.0
CELL_M = 0.25
EXTEND_M = 80.0
FREEWAY_LIMIT_MPS = 29.06
"""65 mph, where the map names no limit (US-101)."""
SMOOTH_M = 4.0
COLUMNS = {
    "tracks.parquet": ("scene", "track_id", "length_m", "width_m", "step", "x_m", "y_m", "heading_rad", "speed_mps"),
    "lanelets.parquet": ("scene", "lanelet_id", "left_xy_m", "right_xy_m", "successors", "speed_limit"),
}


@dataclass(frozen=True, eq=False)
class Lanelet:
    """A piece of lane: bounds with equally many points, [K, 2] metres each."""

    left: F
    right: F
    after: tuple[int, ...]
    limit_mps: float

    @property
    def middle(self) -> F:
        """Its centre line."""
        return (self.left + self.right) / 2


@dataclass(frozen=True, eq=False)
class RecordedScene:
    """One scene: K tracks over T = STEPS + 1 times, and the map."""

    name: str
    pose_TK4: F
    """x, y of the centre, heading, speed; NaN where not recorded."""
    size_K2: F
    """Length and width, m."""
    lanelets: dict[int, Lanelet]


class ReplayTraffic:
    """Actors that move as recorded."""

    def __init__(self, pose_TNM4: F, size_NM2: F) -> None:
        self.pose_TNM4, self.size_NM2, self.steps = pose_TNM4, size_NM2, 0

    def copy(self) -> ReplayTraffic:
        """An independent copy in the same state."""
        twin = ReplayTraffic(self.pose_TNM4, self.size_NM2)
        twin.steps = self.steps
        return twin

    def actors(self) -> Actors:
        """Poses at the present step."""
        pose = self.pose_TNM4[min(self.steps, len(self.pose_TNM4) - 1)]
        present = np.isfinite(pose).all(-1)
        x, y, heading, speed = np.moveaxis(np.where(present[..., None], pose, 1e6), -1, 0)
        turned = np.where(present, heading, 0.0)
        length, width = self.size_NM2[..., 0], self.size_NM2[..., 1]
        return Actors(x, y, turned, np.where(present, speed, 0.0), length, width, present, np.zeros_like(present))

    def step(self, ego: EgoShadow) -> None:
        """One step on; the ego is not looked at."""
        self.steps += 1


class RasterGround:
    """Drivable areas as grids of 0.25 m cells, one a scene."""

    def __init__(self, grids: Sequence[tuple[B, F]], which_N: NDArray[np.int64]) -> None:
        high, wide = (max(g.shape[k] for g, _ in grids) for k in (0, 1))
        self.grid_SHW = np.zeros((len(grids), high + 1, wide + 1), bool)
        for k, (grid, _) in enumerate(grids):
            self.grid_SHW[k, : grid.shape[0], : grid.shape[1]] = grid
        self.origin_S2 = np.stack([origin for _, origin in grids])
        self.which_N = which_N

    def inside(self, xy_NK2: F, s_NK: F, d_NK: F) -> B:
        """[N, K] whether the cells under the points are drivable."""
        cell = np.floor((xy_NK2 - self.origin_S2[self.which_N][:, None]) / CELL_M).astype(np.int64)
        high, wide = self.grid_SHW.shape[1:]
        # the last row and column are never painted
        column = np.where((cell[..., 0] >= 0) & (cell[..., 0] < wide), cell[..., 0], wide - 1)
        row = np.where((cell[..., 1] >= 0) & (cell[..., 1] < high), cell[..., 1], high - 1)
        return np.asarray(self.grid_SHW[self.which_N[:, None], row, column])


class Recording:
    """All scenes of a folder, and the egos in them.

    Args:
        path: folder with tracks.parquet and lanelets.parquet.
        names: scenes to use; empty for all. Of scenes that repeat the same tracks only the first is used.

    Raises:
        LogError: a file is missing, is no Parquet, lacks a column, or no car is recorded long enough.
    """

    def __init__(self, path: Path, names: Sequence[str] = ()) -> None:
        tracks, lanelets = (_columns(path / name) for name in COLUMNS)
        self.scenes = [s for s in _scenes(tracks, lanelets) if not names or s.name in names]
        egos = [(k, i) for k, s in enumerate(self.scenes) for i in np.flatnonzero(np.isfinite(s.pose_TK4).all((0, 2)))]
        if not egos:
            raise LogError("no car is recorded for the whole drive", where=str(path), next_step="name other scenes")
        order = np.random.default_rng(0).permutation(len(egos))
        self.egos = [egos[i] for i in order]
        """(scene number, track number) by seed; a seed counts modulo their number."""
        self._routes: dict[tuple[int, int], tuple[F, float, float]] = {}
        self._grids: dict[int, tuple[B, F]] = {}

    def stage(self, seeds_N: Sequence[int]) -> tuple[Stage, Callable[[int], list[Any]]]:
        """The stage for some egos, and a function that gives one copy's map lines."""
        picked = [self.egos[int(s) % len(self.egos)] for s in seeds_N]
        for ego in picked:
            if ego not in self._routes:
                self._routes[ego] = _route(self.scenes[ego[0]], ego[1])
        routes = [self._routes[ego] for ego in picked]
        route = paths_through(np.stack([r[0] for r in routes]), 0.0)
        centre_TN4 = np.stack([self.scenes[k].pose_TK4[:, i] for k, i in picked], 1)
        size = np.stack([self.scenes[k].size_K2[i] for k, i in picked])
        driven = _rear_axle(centre_TN4, size[:, 0])
        used = sorted({k for k, _ in picked})
        which = np.array([used.index(k) for k, _ in picked])
        for k in used:
            if k not in self._grids:
                self._grids[k] = _paint(self.scenes[k])
        stage = Stage(
            road=route,
            route=route,
            route_d_NP=np.zeros((len(picked), POINTS)),
            lane_width_N=np.array([r[1] for r in routes]),
            limit_N=np.array([r[2] for r in routes]),
            start_N4=driven[0],
            length_N=size[:, 0],
            width_N=size[:, 1],
            ground=RasterGround([self._grids[k] for k in used], which),
            traffic=self._others(picked),
            log_TN4=driven,
        )
        return stage, lambda copy: self._lines(picked[copy], route.xy_NP2[copy])

    def _others(self, picked: Sequence[tuple[int, int]]) -> ReplayTraffic:
        most = max(self.scenes[k].pose_TK4.shape[1] for k, _ in picked)
        pose = np.full((STEPS + 1, len(picked), most, 4), np.nan)
        size = np.ones((len(picked), most, 2))
        for n, (k, i) in enumerate(picked):
            scene = self.scenes[k]
            count = scene.pose_TK4.shape[1]
            pose[:, n, :count], size[n, :count] = scene.pose_TK4, scene.size_K2
            pose[:, n, i] = np.nan
        return ReplayTraffic(pose, size)

    def _lines(self, ego: tuple[int, int], route_P2: F) -> list[Any]:
        lines: list[Any] = []
        for lane in self.scenes[ego[0]].lanelets.values():
            lines += [["bound", side.round(2).tolist()] for side in (lane.left, lane.right)]
        return [*lines, ["route", route_P2[::5].round(2).tolist()]]


def _columns(path: Path) -> dict[str, list[Any]]:
    """The needed columns of a Parquet file as lists."""
    need = COLUMNS[path.name]
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise LogError(f"cannot be read as Parquet: {e}", where=str(path), next_step="check the path") from None
    missing = [c for c in need if c not in table.column_names]
    if missing:
        raise LogError(f"lacks the columns {', '.join(missing)}", where=str(path))
    return {c: table[c].to_pylist() for c in need}


def _scenes(tracks: dict[str, list[Any]], lanelets: dict[str, list[Any]]) -> list[RecordedScene]:
    maps: dict[str, dict[int, Lanelet]] = {}
    for i, name in enumerate(lanelets["scene"]):
        bounds = [np.array(lanelets[k][i], np.float64).reshape(-1, 2) for k in ("left_xy_m", "right_xy_m")]
        limit = float(lanelets["speed_limit"][i] or FREEWAY_LIMIT_MPS)
        after = tuple(lanelets["successors"][i])
        maps.setdefault(name, {})[lanelets["lanelet_id"][i]] = Lanelet(bounds[0], bounds[1], after, limit)
    poses: dict[str, dict[int, tuple[F, F]]] = {}
    columns = zip(*(tracks[k] for k in COLUMNS["tracks.parquet"]), strict=True)
    for name, track, length, width, step, *pose in columns:
        if step > STEPS:
            continue
        scene = poses.setdefault(name, {})
        if track not in scene:
            scene[track] = np.full((STEPS + 1, 4), np.nan), np.array([length, width])
        scene[track][0][step] = pose
    found, known = [], set()
    for name, cars in sorted(poses.items()):
        mark = tuple(sorted((t, round(float(np.nanmax(p[0][:, 3])), 3)) for t, p in cars.items()))
        if mark not in known and name in maps:
            known.add(mark)
            stacked = np.stack([p[0] for p in cars.values()], 1)
            found.append(RecordedScene(name, stacked, np.stack([p[1] for p in cars.values()]), maps[name]))
    return found


def _route(scene: RecordedScene, track: int) -> tuple[F, float, float]:
    """Line [POINTS, 2], lane width and speed limit of the lane that a car started in and its best continuation.

    Of all chains of lanelets from where the car is at the start, the one nearest to its recorded positions.
    """
    log = scene.pose_TK4[:, track]
    xy, heading = log[0, :2], log[0, 2]
    starts: list[tuple[float, int]] = []
    for key, lane in scene.lanelets.items():
        line = resample(lane.middle, 1.0, max(2, int(_length(lane.middle))))
        away = np.hypot(*(line - xy).T)
        at = min(int(away.argmin()), len(line) - 2)
        turn = np.arctan2(*(line[at + 1] - line[at])[::-1]) - heading
        starts.append((float(away.min()) + 4.0 * float(np.abs(wrap(np.asarray(turn)))), key))
    first = min(starts)[1]
    chains, done = [[first]], []
    while chains:
        chain = chains.pop()
        ahead = [k for k in scene.lanelets[chain[-1]].after if k in scene.lanelets and k not in chain]
        if not ahead or sum(_length(scene.lanelets[k].middle) for k in chain) > 300.0:
            done.append(chain)
        chains += [[*chain, k] for k in ahead if chain not in done]
    lines = [np.concatenate([scene.lanelets[k].middle for k in chain]) for chain in done]

    def error(line: F) -> float:
        dense = resample(line, 2.0, 160)
        return float(np.hypot(*(log[::10, None, :2] - dense[None]).transpose(2, 0, 1)).min(1).mean())

    best = min(lines, key=error)
    back = (best[0] - best[1]) / np.hypot(*(best[0] - best[1]))
    line = resample(np.concatenate([[best[0] + back * BACK_M], best]), 1.0, POINTS + 40)
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / SMOOTH_M) ** 2)
    smooth = np.stack([np.convolve(line[:, k], kernel / kernel.sum(), "valid") for k in (0, 1)], -1)
    lane = scene.lanelets[first]
    width = float(np.hypot(*(lane.left - lane.right).T).mean())
    return resample(smooth, 1.0, POINTS), width, lane.limit_mps


def _length(line: F) -> float:
    return float(np.hypot(*np.diff(line, axis=0).T).sum())


def _rear_axle(pose_TN4: F, length_N: F) -> F:
    """Poses of the rear axle out of those of the centre."""
    out = pose_TN4.copy()
    out[..., 0] -= REAR_TO_CENTRE * length_N * np.cos(pose_TN4[..., 2])
    out[..., 1] -= REAR_TO_CENTRE * length_N * np.sin(pose_TN4[..., 2])
    return out


def _paint(scene: RecordedScene) -> tuple[B, F]:
    """Grid [rows, columns] of a scene's drivable cells and its origin; open ends go on straight."""
    quads: list[F] = []
    followed = {k for lane in scene.lanelets.values() for k in lane.after}
    for key, lane in scene.lanelets.items():
        sides = [lane.left, lane.right]
        if not any(k in scene.lanelets for k in lane.after):
            sides = [np.concatenate([b, [b[-1] + EXTEND_M * _unit(b[-1] - b[-2])]]) for b in sides]
        if key not in followed:
            sides = [np.concatenate([[b[0] + EXTEND_M * _unit(b[0] - b[1])], b]) for b in sides]
        left, right = sides
        quads += [np.stack([left[i], right[i], right[i + 1], left[i + 1]]) for i in range(len(left) - 1)]
    corners = np.concatenate(quads)
    origin = corners.min(0) - 1.0
    columns, rows = np.ceil((corners.max(0) + 1.0 - origin) / CELL_M).astype(int)
    grid = np.zeros((rows, columns), bool)
    for quad in quads:
        low = np.floor((quad.min(0) - origin) / CELL_M).astype(int)
        high = np.ceil((quad.max(0) - origin) / CELL_M).astype(int) + 1
        x = origin[0] + (np.arange(low[0], high[0]) + 0.5) * CELL_M
        y = origin[1] + (np.arange(low[1], high[1])[:, None] + 0.5) * CELL_M
        turn = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
            for a, b in zip(quad, np.roll(quad, -1, 0), strict=True)
        ]
        grid[low[1] : high[1], low[0] : high[0]] |= np.stack(turn).min(0) >= -0.3 * CELL_M * _span(quad)
    return grid, origin


def _span(quad: F) -> float:
    return float(np.hypot(*(quad.max(0) - quad.min(0))))


def _unit(v: F) -> F:
    return np.asarray(v / max(float(np.hypot(*v)), 1e-9))
