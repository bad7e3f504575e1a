"""Procedural roads and the situations on them: everything of a copy is drawn from its own seed.

A road is a reference line through the middle of the kerb lane; lane k lies k widths towards the middle of
the road. `side` +1 is right-hand traffic; -1 mirrors the whole scene for left-hand traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hagane.worlds.road_geometry import F, Paths, paths_through
from hagane.worlds.road_traffic import CHANGE_S, Cars

FIRST_S_M, POINTS = -100.0, 480
CARS = 12
MAX_LANES = 3
EGO_LENGTH_M, EGO_WIDTH_M = 4.8, 1.9
SHOULDER_M = 0.4
MERGE_LENGTH_M = 45.0
INF = np.inf
SITUATIONS = ("free", "slow leader", "braking leader", "queue", "cut-in", "merging car", "lane end", "roadworks")
WEIGHTS = (0.07, 0.16, 0.16, 0.10, 0.21, 0.06, 0.12, 0.12)


@dataclass
class Plan:
    """One actor as it is drawn; lanes count from the kerb, oncoming ones are negative ways."""

    s: float
    speed: float
    lane: int
    desired: float
    length: float = 4.6
    width: float = 1.9
    way: int = 1
    headway: float = 1.4
    plan_s: float = INF
    plan_lane: int = -1
    slow_s: float = INF
    slow_mps: float = 0.0
    slow_brake: float = 3.0
    resume_s: float = INF
    end_s: float = INF
    free: bool = False
    is_object: bool = False


@dataclass
class Scene:
    """One copy's road, start and actors, for right-hand traffic and not yet mirrored."""

    situation: str
    lanes: int
    width_m: float
    limit_mps: float
    bend_P: F
    """Curvature of the reference line at its points, 1/m."""
    ego_lane: int
    ego_speed: float
    route_P: F
    """Lane number that the route follows at each point (not whole in a merge)."""
    kerb_P: F
    """Lane number of the kerb-side edge of the carriageway at each point: -0.5, rising where a lane ends."""
    actors: list[Plan] = field(default_factory=list)


def _points() -> F:
    return FIRST_S_M + np.arange(POINTS, dtype=np.float64)


def _ramp(s: F, start: float, length: float) -> F:
    u = np.clip((s - start) / length, 0.0, 1.0)
    return np.asarray(u**3 * (10 - 15 * u + 6 * u**2))


def draw_scene(seed: int) -> Scene:
    """Draw one scene from its seed."""
    rng = np.random.default_rng([seed, 20_261])
    situation = str(rng.choice(SITUATIONS, p=np.array(WEIGHTS) / sum(WEIGHTS)))
    lanes = int(rng.integers(2, MAX_LANES + 1))
    limit = float(rng.choice([11.1, 13.9, 16.7, 19.4]))
    s = _points()
    bend = np.zeros(POINTS)
    if rng.random() < 0.65:
        peak = rng.uniform(0.3, 1.0) * min(2.0 / limit**2, 1 / 60) * rng.choice([-1.0, 1.0])
        bend = peak * np.sin(2 * np.pi * s / rng.uniform(180, 450) + rng.uniform(0, 2 * np.pi))
    lane = int(rng.integers(lanes))
    if situation in ("lane end", "roadworks"):
        lane = 0
    elif situation == "merging car":
        lane = 1
    scene = Scene(
        situation, lanes, float(rng.uniform(3.3, 3.7)), limit, bend, lane, limit * float(rng.uniform(0.6, 1.0)),
        np.full(POINTS, float(lane)), np.full(POINTS, -0.5),
    )  # fmt: skip
    _situate(scene, rng)
    _fill(scene, rng)
    return scene


def _safe_gap(ego: float, leader: float, brake: float) -> float:
    """Bumper gap from which the ego can settle behind a leader without braking harder than `brake`."""
    return 4.0 + 0.8 * ego + max(0.0, ego**2 - leader**2) / (2 * brake)


def _situate(scene: Scene, rng: np.random.Generator) -> None:
    """Add the actors that make the situation."""
    v, limit, lane = scene.ego_speed, scene.limit_mps, scene.ego_lane
    name = scene.situation
    if name == "free" and rng.random() < 0.5:
        speed = limit * rng.uniform(0.9, 1.1)
        scene.actors.append(Plan(rng.uniform(25, 60), speed, lane, speed))
    elif name == "slow leader":
        speed = limit * rng.uniform(0.15, 0.6)
        gap = _safe_gap(v, speed, 2.0) + rng.uniform(0, 15)
        length, width = (8.5, 2.4) if rng.random() < 0.3 else (4.6, 1.9)
        scene.actors.append(Plan(gap + EGO_LENGTH_M / 2 + length / 2, speed, lane, speed, length, width))
    elif name == "braking leader":
        speed = v * rng.uniform(0.9, 1.05)
        start, last = rng.uniform(0.5, 4.0), rng.uniform(2.0, 6.0)
        slow, at = limit * rng.uniform(0, 0.4), 10 + v * rng.uniform(1.0, 1.8)
        brake = rng.uniform(2.0, 4.0)
        leader = Plan(
            at, speed, lane, limit, slow_s=start, slow_mps=slow, slow_brake=brake, resume_s=start + last
        )  # fmt: skip
        scene.actors.append(leader)
    elif name == "queue":
        at = _safe_gap(v, 0.0, rng.uniform(1.6, 2.2)) + 5 + rng.uniform(0, 25)
        wait = rng.uniform(4.0, 12.0)
        for k in range(int(rng.integers(1, 4))):
            plan = Plan(at, 0.0, lane, limit, slow_s=0.0, slow_mps=0.0, resume_s=wait + 1.2 * k)
            scene.actors.append(plan)
            at += rng.uniform(6.5, 9.0)
    elif name == "cut-in":
        beside = lane - 1 if lane + 1 >= scene.lanes or (lane > 0 and rng.random() < 0.5) else lane + 1
        speed = v * rng.uniform(0.4, 0.8)
        at = rng.uniform(8.0, 12.0) + (v - speed) * rng.uniform(1.2, 3.0)
        scene.actors.append(Plan(at, speed, beside, speed, plan_s=rng.uniform(0.3, 3.0), plan_lane=lane))
        scene.actors.append(Plan(at + rng.uniform(30, 50), limit * 0.9, lane, limit * 0.9))
    elif name == "merging car":
        end = rng.uniform(60, 110)
        _end_kerb_lane(scene, end)
        at = rng.uniform(-2, 14)
        for k in range(int(rng.integers(1, 3))):
            scene.actors.append(
                Plan(at, v * rng.uniform(0.75, 1.0), 0, limit * 0.85, plan_s=0.5 + 0.8 * k, plan_lane=1, end_s=end)
            )
            at -= rng.uniform(11, 16)
    elif name in ("lane end", "roadworks"):
        start = rng.uniform(35, 80)
        scene.route_P = _ramp(_points(), start, MERGE_LENGTH_M)
        if name == "lane end":
            _end_kerb_lane(scene, start + MERGE_LENGTH_M - 5)
        else:
            at = start + MERGE_LENGTH_M + rng.uniform(0, 10)
            for k in range(4):
                scene.actors.append(Plan(at + 9 * k, 0.0, 0, 0.0, 1.0, 1.0, is_object=True))
        at = rng.uniform(-12, 14)
        speed = v * rng.uniform(0.75, 1.0)
        for _ in range(int(rng.integers(1, 4))):
            scene.actors.append(Plan(at, speed, 1, limit * 0.9, headway=1.2))
            at += rng.uniform(16, 30)


def _end_kerb_lane(scene: Scene, end: float) -> None:
    """Narrow the carriageway by the kerb lane, behind arc length `end`."""
    scene.kerb_P = -0.5 + _ramp(_points(), end, 25.0)


def _fill(scene: Scene, rng: np.random.Generator) -> None:
    """Add background cars, a follower, and oncoming traffic where there is room; shuffle the places."""
    v, limit = scene.ego_speed, scene.limit_mps
    if rng.random() < 0.6:
        back = -(5.0 + 6.0 + v * rng.uniform(0.8, 1.6))
        _try_add(scene, Plan(back, v * rng.uniform(0.85, 1.0), scene.ego_lane, limit * rng.uniform(0.85, 1.05)))
    ends = scene.situation in ("lane end", "roadworks", "merging car")
    for lane in range(scene.lanes):
        if lane == scene.ego_lane or (lane == 0 and ends):
            continue
        pace = limit * rng.uniform(0.55, 1.0)
        for _ in range(int(rng.integers(0, 4))):
            at, own = rng.uniform(-35, 90), pace * rng.uniform(0.92, 1.08)
            length, width = (9.5, 2.4) if rng.random() < 0.15 else (4.6, 1.9)
            free = bool(rng.random() < 0.4) and not ends
            _try_add(scene, Plan(at, own, lane, own * rng.uniform(1.0, 1.2), length, width, free=free))
    for _ in range(int(rng.integers(0, 4))):
        pace = limit * 0.9
        _try_add(scene, Plan(rng.uniform(20, 220), pace, scene.lanes, pace, way=-1), 20.0)
    order = rng.permutation(len(scene.actors))
    scene.actors = [scene.actors[i] for i in order]


def _try_add(scene: Scene, plan: Plan, room_m: float = 12.0) -> None:
    """Add an actor unless its lane is taken there or all places are."""
    taken = any(abs(a.s - plan.s) < room_m and plan.lane in (a.lane, a.plan_lane) for a in scene.actors)
    if len(scene.actors) < CARS and not taken:
        scene.actors.append(plan)


@dataclass(frozen=True, eq=False)
class Roads:
    """N scenes side by side in the plane, mirrored where traffic keeps left."""

    scenes: tuple[Scene, ...]
    side_N: F
    road: Paths
    """Reference lines."""
    route: Paths
    """The line that the ego is to follow."""
    lanes_d_NL: F
    """Offsets of the lanes' middles; lanes that a road lacks repeat its last."""
    edges_d_NP2: F
    """Right and left edge of the carriageway of our direction at the reference points, m."""
    width_N: F
    limit_N: F


def lay_out(scenes: Sequence[Scene], side_N: F) -> Roads:
    """Put scenes into the plane: the ego starts near (0, 0), heading along x."""
    bend = np.stack([x.bend_P for x in scenes]) * side_N[:, None]
    heading = np.concatenate([np.zeros((len(scenes), 1)), np.cumsum((bend[:, 1:] + bend[:, :-1]) / 2, 1)], 1)
    zero = int(-FIRST_S_M)
    heading = heading - heading[:, zero : zero + 1]
    middle = (heading[:, 1:] + heading[:, :-1]) / 2
    xy = np.stack([np.cos(middle), np.sin(middle)], -1).cumsum(1)
    xy = np.concatenate([np.zeros((len(scenes), 1, 2)), xy], 1)
    xy = xy - xy[:, zero : zero + 1]
    road = Paths(xy, heading, bend, FIRST_S_M)
    width = np.array([x.width_m for x in scenes])
    unit = (side_N * width)[:, None]
    normal = np.stack([-np.sin(heading), np.cos(heading)], -1)
    route_d = np.stack([x.route_P for x in scenes]) * unit
    route = paths_through(xy + normal * route_d[..., None], FIRST_S_M)
    lanes = np.stack([np.minimum(np.arange(MAX_LANES), x.lanes - 1) for x in scenes]) * unit
    kerb = np.stack([x.kerb_P for x in scenes]) * unit - (side_N * SHOULDER_M)[:, None]
    inner = np.array([x.lanes - 0.5 for x in scenes])[:, None] * unit + np.zeros_like(kerb)
    edges = np.sort(np.stack([kerb, inner], -1), -1)
    return Roads(
        tuple(scenes), side_N, road, route, lanes, edges, width, np.array([x.limit_mps for x in scenes])
    )  # fmt: skip


def park_cars(roads: Roads) -> Cars:
    """The scenes' actors as `Cars` in road coordinates."""
    n = len(roads.scenes)
    table: dict[str, Any] = {k: np.zeros((n, CARS)) for k in Cars.__dataclass_fields__}
    table["slow_s"][:] = table["plan_s"][:] = table["end_s"][:] = table["resume_s"][:] = INF
    table["length"][:], table["width"][:], table["way"][:] = 4.6, 1.9, 1.0
    table["headway"][:] = table["desired"][:] = table["slow_brake"][:] = 1.4
    table["change_s"][:] = CHANGE_S
    same = ("s", "speed", "way", "length", "width", "desired", "headway", "plan_s", "slow_s", "slow_mps",
            "slow_brake", "resume_s", "end_s", "free", "is_object")  # fmt: skip
    for i, scene in enumerate(roads.scenes):
        unit = roads.side_N[i] * scene.width_m
        for j, plan in enumerate(scene.actors[:CARS]):
            for key in same:
                table[key][i, j] = getattr(plan, key)
            for key in ("d", "lane_d", "from_d"):
                table[key][i, j] = plan.lane * unit
            table["plan_d"][i, j] = (plan.plan_lane if plan.plan_lane >= 0 else plan.lane) * unit
            table["present"][i, j] = 1.0
    table |= {k: table[k] > 0.5 for k in ("free", "present", "is_object")}
    return Cars(**table)
