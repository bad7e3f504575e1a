"""The road world: a car among reactive cars on drawn roads, or among recorded ones on a recorded map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import ConfigError, Embodiment, Reading, load_toml
from hagane.worlds import road_score
from hagane.worlds.base import Drawing, Pilot
from hagane.worlds.road_drive import DT_S, STEPS, Drive, Stage
from hagane.worlds.road_geometry import B, F
from hagane.worlds.road_map import EGO_LENGTH_M, EGO_WIDTH_M, FIRST_S_M, Roads, draw_scene, lay_out, park_cars
from hagane.worlds.road_pilots import (
    BRISK,
    CALM,
    ConstantVelocity,
    Expert,
    IdmOnRoute,
    LaneConstantSpeed,
    RecordedDriver,
    drive_ahead,
)
from hagane.worlds.road_traffic import ReactiveTraffic
from hagane.worlds.road_view import Tracker, look
from hagane.worlds.rollout import Noise

RIGHT, LEFT = "right-hand", "left-hand"
MIRROR_SEEDS = 500_000_000
"""The left-hand scene of seed s is the mirrored right-hand scene of seed s + MIRROR_SEEDS."""
TASKS = {
    RIGHT: "drive on the right: keep your lane, keep clear of others and make progress",
    LEFT: "drive on the left: keep your lane, keep clear of others and make progress",
}
default_noise = Noise("ar", (0.4, 0.002), 0.9)
"""On executed acceleration (m/s^2) and curvature (1/m) in demonstrations."""


class RoadWorld:
    """N drives side by side. `stages` makes what a case starts from; see `make` and `make_recorded`."""

    measure = "PDM-style driving score, 0..1, higher is better"
    step_limit = STEPS
    default_noise = default_noise

    def __init__(
        self,
        cases: Mapping[str, str],
        stages: Callable[[str, Sequence[int]], tuple[Stage, Callable[[int], list[Any]]]],
        pilots: Mapping[str, Callable[[], Pilot]],
    ) -> None:
        self.embodiment = load_toml(Path(__file__).with_name("road.toml"), Embodiment)
        self.cases = tuple(cases)
        self.pilots = pilots
        self._texts, self._stages = dict(cases), stages
        self._set: tuple[str, tuple[int, ...]] = ("", ())

    def reset(self, case: str, seeds_N: Sequence[int]) -> None:
        """Start one copy a seed.

        Raises:
            ConfigError: the world has no such case.
        """
        if case not in self._texts:
            raise ConfigError(f"no case {case!r}", where="world road", next_step=f"use one of {', '.join(self.cases)}")
        wanted = case, tuple(int(s) for s in seeds_N)
        if wanted != self._set:  # a stage does not change: the next pilot on the same seeds meets it again
            self.stage, self._lines = self._stages(case, seeds_N)
            self._best_TN: F | None = None
        self.case, self._set = case, wanted
        self.drive = Drive(self.stage)
        self._tracker = Tracker(len(seeds_N))
        self._tracker.update(self.drive)
        self._seen: dict[str, Reading] = {}

    def observe(self) -> dict[str, Reading]:
        """Newest readings; see road.toml."""
        if not self._seen:
            self._seen = look(self.drive, self._tracker.who_NK, self.embodiment)
        return self._seen

    def step(self, commands_NA: NDArray[np.float32]) -> NDArray[np.float32]:
        """One tenth of a second: [N, 2] acceleration and curvature in, the same as applied out."""
        applied_NA = self.drive.step(commands_NA)
        self._tracker.update(self.drive)
        self._seen = {}
        return applied_NA

    def tasks(self) -> tuple[str, ...]:
        """The instruction of each copy."""
        return (self._texts[self.case],) * len(self.drive.x)

    def alive(self) -> B:
        """[N] False after the time, an at-fault collision, or leaving the road."""
        return self.drive.alive.copy()

    def scores(self) -> F:
        """[N] PDMS so far."""
        terms = self.details()
        return road_score.pdm_score(terms["nc"], terms["dac"], terms["ep"], terms["ttc"], terms["comfort"])

    def details(self) -> dict[str, F]:
        """nc, dac, ep, ttc, comfort so far, and the progress in metres."""
        d = self.drive
        if self._best_TN is None:
            self._best_TN = best_progress(self.stage)
        ep = road_score.progress_term(d.progress_m, self._best_TN[d.steps])
        terms = {"nc": d.nc, "dac": d.dac, "ep": ep, "ttc": d.ttc, "comfort": d.comfort, "progress_m": d.progress_m}
        return {k: v.copy() for k, v in terms.items()}

    def draw(self, copy: int) -> Drawing:
        """Ego, near actors, speed, limit and score; lane lines under "static" at the start."""
        d, i = self.drive, copy
        box, a = d.box(), d.actors
        near = a.present[i] & (np.hypot(a.x_m[i] - d.x[i], a.y_m[i] - d.y[i]) < 90.0)
        ego = np.array([box.x_m[i], box.y_m[i], d.heading[i], box.length_m[i], box.width_m[i]])
        others = np.stack([a.x_m[i], a.y_m[i], a.heading_rad[i], a.length_m[i], a.width_m[i]], -1)[near]
        values: dict[str, Any] = {
            "ego": ego.round(2).tolist(),
            "agents": others.round(2).tolist(),
            "objects": np.flatnonzero(a.is_object[i][near]).tolist(),
            "speed": round(float(d.speed[i]), 2),
            "limit": round(float(self.stage.limit_N[i]), 2),
            "terms": {k: round(float(v[i]), 2) for k, v in self.details().items()},
        }
        if d.steps == 0:
            values["static"] = {"lines": self._lines(i), "side": "left" if self.case == LEFT else "right"}
        return Drawing("road", values)


def best_progress(stage: Stage) -> F:
    """[T + 1, N] metres: the bar for EP at each step.

    The best route progress of the safe proposals: the expert's rule driven calmly and briskly through the same
    traffic, and the recorded driver where there is one. A proposal is safe when its whole drive keeps NC and
    DAC at 1; where none is, the bar is the 5 m floor and EP is 1.
    """
    best = np.zeros((STEPS + 1, len(stage.limit_N)))
    if stage.log_TN4 is not None:
        s_NT, _ = stage.route.project(stage.log_TN4[..., :2].transpose(1, 0, 2))
        best = np.maximum(best, (s_NT - s_NT[:, :1]).T)
    for manner in (CALM, BRISK):
        drive = Drive(stage)
        progress = [drive.progress_m]
        while drive.steps < STEPS:
            drive.step(drive_ahead(drive, manner).astype(np.float32))
            progress.append(drive.progress_m)
        safe = (drive.nc == 1) & (drive.dac == 1)
        best = np.maximum(best, np.where(safe, np.stack(progress), 0.0))
    return best


PILOTS: dict[str, Callable[[], Pilot]] = {
    "simplest: constant velocity": ConstantVelocity,
    "simplest: lane + constant speed": LaneConstantSpeed,
    "classical: IDM": IdmOnRoute,
    "expert": Expert,
}


def make() -> RoadWorld:
    """The procedural road: cases "right-hand" and "left-hand"."""
    return RoadWorld(TASKS, _drawn, PILOTS)


def make_recorded(path: Path, *, scenes: Sequence[str] = ()) -> RoadWorld:
    """The road of recorded traffic (NGSIM Parquet files in the folder `path`), case "recorded".

    A seed picks one of the recorded cars as the ego; the others drive as recorded and do not react.

    Args:
        path: folder with tracks.parquet and lanelets.parquet.
        scenes: names of the scenes to use; empty for all.

    Raises:
        LogError: a file is missing or lacks a column.
    """
    from hagane.worlds.road_replay import Recording  # pyarrow only where it is needed

    recording = Recording(path, scenes)
    text = "drive on the right: follow the recorded route, keep clear of others and make progress"
    return RoadWorld(
        {"recorded": text}, lambda _case, seeds: recording.stage(seeds), PILOTS | {"recorded driver": RecordedDriver}
    )


class StripGround:
    """A carriageway between two edges along a reference line."""

    def __init__(self, first_s_m: float, edges_d_NP2: F) -> None:
        self.first_s_m, self.edges_d_NP2 = first_s_m, edges_d_NP2

    def inside(self, xy_NK2: F, s_NK: F, d_NK: F) -> B:
        """[N, K] whether points lie between the edges."""
        at = np.clip(np.rint(s_NK - self.first_s_m), 0, self.edges_d_NP2.shape[1] - 1).astype(np.int64)
        edges = self.edges_d_NP2[np.arange(len(at))[:, None], at]
        return np.asarray((d_NK >= edges[..., 0]) & (d_NK <= edges[..., 1]))


def _drawn(case: str, seeds_N: Sequence[int]) -> tuple[Stage, Callable[[int], list[Any]]]:
    """The stage of a procedural case, and its lane lines a copy."""
    side = 1.0 if case == RIGHT else -1.0
    scenes = [draw_scene(int(s) + (0 if case == RIGHT else MIRROR_SEEDS)) for s in seeds_N]
    roads = lay_out(scenes, np.full(len(scenes), side))
    n = len(scenes)
    x, y, heading, _ = roads.route.at(np.full((n, 1), -0.0))
    route_d = np.stack([s.route_P for s in scenes]) * (side * roads.width_N)[:, None]
    start = np.stack([x[:, 0], y[:, 0], heading[:, 0], [s.ego_speed for s in scenes]], 1)
    stage = Stage(
        road=roads.road,
        route=roads.route,
        route_d_NP=route_d,
        lane_width_N=roads.width_N,
        limit_N=roads.limit_N,
        start_N4=start,
        length_N=np.full(n, EGO_LENGTH_M),
        width_N=np.full(n, EGO_WIDTH_M),
        ground=StripGround(FIRST_S_M, roads.edges_d_NP2),
        traffic=ReactiveTraffic(roads.road, park_cars(roads), roads.lanes_d_NL, DT_S),
    )
    return stage, lambda copy: _lane_lines(roads, copy)


def _lane_lines(roads: Roads, copy: int) -> list[Any]:
    """Lines of one copy as [kind, [[x, y], ...]]: edges, dashes between lanes, and the route."""
    scene, every = roads.scenes[copy], slice(40, 400, 5)
    xy, heading = roads.road.xy_NP2[copy], roads.road.heading_NP[copy]
    normal = np.stack([-np.sin(heading), np.cos(heading)], -1)
    unit = roads.side_N[copy] * scene.width_m
    offsets: list[tuple[str, F]] = [("edge", roads.edges_d_NP2[copy, :, k]) for k in (0, 1)]
    offsets += [("dash", np.maximum(k + 0.5, scene.kerb_P) * unit) for k in range(scene.lanes - 1)]
    offsets += [("edge", np.full(len(xy), (scene.lanes + 0.5) * unit)), ("route", scene.route_P * unit)]
    return [[kind, (xy + normal * d[:, None])[every].round(2).tolist()] for kind, d in offsets]
