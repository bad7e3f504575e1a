"""CommonRoad scenarios into Episodes: one episode a recorded vehicle, which then is the ego.

Planning problems have a start and a goal but no recording: they give no episode. Positions are those of the middle
of the box, as the file has them. Sources, with their units:

    ego.x ego.y [m], ego.heading [rad], ego.speed [m/s], ego.acceleration [m/s2], ego.yaw_rate [rad/s],
    ego.steering_angle [rad], ego.length ego.width [m]     as recorded
    derived.acceleration [m/s2], derived.yaw_rate [rad/s], derived.curvature [1/m]
                                                            differences of the recorded speed and heading: backward in
                                                            an observed channel, forward in an action channel
    lane.offset [m] (left +), lane.heading_error [rad], lane.width [m], lane.limit [m/s]     the lanelet it is in
    agents.{i}.x y [m], vx vy [m/s] (relative), cos sin [1], length width [m]      others within 80 m, in the ego's axes
    lane.{i}.x y [m], heading [rad], curvature [1/m]    the lane 0, 3, 7, 12, ... 90 m on, in the ego's axes

An agent keeps its place while it is in view, so that a place's history is one agent's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.commonroad_lines import LOOK_M, Place, Roads
from hagane.intake.commonroad_xml import STATE, F, Obstacle, Scenario, load_scenario
from hagane.intake.files import head_of
from hagane.intake.options import Options
from hagane.intake.sources import column_sources, nearest
from hagane.intake.streams import note, on_episode_clock
from hagane.terms import Channel, Embodiment, Episode, LogError, Stream, digest_file, digest_value

RANGE_M = 80.0
_VEHICLES = ("car", "truck", "bus", "motorcycle", "taxi", "priorityVehicle")
_SLOW_MPS = 1.0  # below it, curvature is yaw rate over this speed: a car at rest has none
_ONE = {
    **dict(zip((f"ego.{c}" for c in STATE), ("m", "m", "rad", "m/s", "m/s2", "rad/s", "rad"), strict=True)),
    **{"ego.length": "m", "ego.width": "m"},
    **{"derived.acceleration": "m/s2", "derived.yaw_rate": "rad/s", "derived.curvature": "1/m"},
    **{"lane.offset": "m", "lane.heading_error": "rad", "lane.width": "m", "lane.limit": "m/s"},
}
_AGENT = {"x": "m", "y": "m", "vx": "m/s", "vy": "m/s", "cos": "1", "sin": "1", "length": "m", "width": "m"}
_LANE = {"x": "m", "y": "m", "heading": "rad", "curvature": "1/m"}


def sniff(path: Path) -> bool:
    """True for XML whose first element is <commonRoad>."""
    head = re.sub(rb"<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^<]*", b"", head_of(path, 1 << 14), flags=re.DOTALL)
    return b"<commonRoad" in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<commonRoad", b"<!", b"]>"))


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The recorded vehicles of a scenario file, each as the ego of an episode.

    Raises:
        LogError: damaged or truncated XML, a document type, another version, sources that no scenario has, or no
            vehicle with a trajectory.
    """
    for channel in embodiment.channels():
        _check_sources(channel)
    scenario = load_scenario(path)
    if not _egos(scenario):
        raise LogError(
            "no vehicle has a trajectory", where=str(path), next_step="give a scenario with recorded traffic"
        )
    return _episodes(scenario, digest_file(path), embodiment, options)


def _check_sources(channel: Channel) -> None:
    """Refuse sources that no scenario has."""
    where = f"channel {channel.name!r}"
    if channel.kind == "text":
        return
    if channel.kind == "set":
        _set_columns(channel)
        return
    for source in column_sources(channel) if channel.kind == "vector" else ("pictures",):
        if source not in _ONE:
            raise LogError(f"a CommonRoad scenario has no {source!r}", where=where, next_step=nearest(source, _ONE))


def _set_columns(channel: Channel) -> tuple[str, tuple[str, ...]]:
    """ "agents" or "lane", and the columns of each place."""
    found = [re.fullmatch(r"(agents|lane)\.\{i(?::\w+)?\}\.(\w+)", s) for s in channel.source]
    names = {m[1] for m in found if m}
    known = {"agents": _AGENT, "lane": _LANE}.get(next(iter(names), ""), {})
    columns = tuple(m[2] for m in found if m and m[2] in known)
    where = f"channel {channel.name!r}"
    if len(names) != 1 or len(columns) != channel.columns:
        raise LogError(
            f"sources {', '.join(channel.source) or '(none)'} are not those of a set in a scenario",
            where=where,
            next_step='write a column each of "agents.{i}.x" (y, vx, vy, cos, sin, length, width) or "lane.{i}.x"',
        )
    if names == {"lane"} and channel.places > len(LOOK_M):
        raise LogError(f"a lane has at most {len(LOOK_M)} places", where=where, next_step="correct `shape`")
    return next(iter(names)), columns


def _egos(scenario: Scenario) -> list[Obstacle]:
    return [o for o in scenario.obstacles if o.moves and o.kind in _VEHICLES and len(o.steps_N) > 1]


@dataclass(frozen=True, eq=False)
class _View:
    """One ego in its scenario."""

    scenario: Scenario
    ego: Obstacle
    roads: Roads
    others: dict[int, list[tuple[Obstacle, F]]]
    """States of moving obstacles by step."""
    place: Place

    @property
    def xy_N2(self) -> F:
        return self.ego.states_NC[:, :2]

    @property
    def heading_N(self) -> F:
        return self.ego.states_NC[:, 2]

    @property
    def times_ns(self) -> NDArray[np.int64]:
        return np.asarray(np.rint(self.ego.steps_N * (self.scenario.step_s * 1e9)), np.int64)


def _episodes(scenario: Scenario, source: str, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    roads = Roads(scenario.lanelets)
    others: dict[int, list[tuple[Obstacle, F]]] = {}
    for o in scenario.obstacles:
        for step, state in zip(o.steps_N.tolist(), o.states_NC, strict=True) if o.moves else ():
            others.setdefault(step, []).append((o, state))
    for number, ego in enumerate(_egos(scenario)):
        name = f"{scenario.name}-{ego.name}"
        place = roads.locate(ego.states_NC[:, :2], ego.states_NC[:, 2])
        view = _View(scenario, ego, roads, others, place)
        streams, findings = {}, []
        for channel in embodiment.channels():
            if channel.kind == "text":
                continue
            acts = channel in embodiment.act
            streams[channel.name] = _set(view, channel) if channel.kind == "set" else _vector(view, channel, acts)
            if acts and any(s.startswith("derived.") for s in channel.source):
                why = "derived from the recorded motion: the file has no commands"
                findings.append(note(name, channel.name, why))
        if number == 0 and scenario.untold:
            text = f"{scenario.untold} obstacles have no trajectory and are left out"
            findings.append(note(name, "*", text, scenario.untold))
        digest = digest_value({"file": source, "episode": ego.name})
        yield on_episode_clock(Episode(name, embodiment.name, streams, options.task, "", digest, tuple(findings)))


def _vector(view: _View, channel: Channel, acts: bool) -> Stream:
    sources = column_sources(channel)
    values = np.stack([_column(view, s, acts) for s in sources], 1)
    # a difference has one sample less than what it is of: there is no reading then, rather than an empty one
    keep = np.ones(len(values), bool)
    if any(s.startswith("derived.") for s in sources):
        keep[-1 if acts else 0] = False
    valid = np.asarray(~np.isnan(values).all(1))
    return Stream(view.times_ns[keep], values[keep], valid[keep], tuple(_ONE[s] for s in sources))


def _column(view: _View, source: str, acts: bool) -> F:
    group, _, name = source.partition(".")
    states, count = view.ego.states_NC, len(view.ego.steps_N)
    if group == "lane":
        place = view.place
        return {
            "offset": place.offset_m,
            "heading_error": place.heading_error_rad,
            "width": place.width_m,
            "limit": place.limit_mps,
        }[name]
    if group == "ego":
        if name in STATE:
            return states[:, STATE.index(name)]
        return np.full(count, view.ego.length_m if name == "length" else view.ego.width_m)
    speed = states[:, STATE.index("speed")]
    what = speed if name == "acceleration" else np.unwrap(view.heading_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.diff(what) / (np.diff(view.ego.steps_N) * view.scenario.step_s)
    rate = np.r_[rate, np.nan] if acts else np.r_[np.nan, rate]
    return np.asarray(rate / np.maximum(speed, _SLOW_MPS)) if name == "curvature" else rate


def _set(view: _View, channel: Channel) -> Stream:
    group, columns = _set_columns(channel)
    if group == "lane":
        values, valid = view.roads.ahead(view.place, view.xy_N2, view.heading_N, channel.places)
        units = _LANE
    else:
        values, valid = _agents(view, channel.places)
        units = _AGENT
    picked = values[..., [list(units).index(c) for c in columns]]
    picked = np.where(valid[..., None], picked, 0.0)
    return Stream(view.times_ns, picked, valid, tuple(units[c] for c in columns))


def _agents(view: _View, places: int) -> tuple[F, NDArray[np.bool_]]:
    """[N, places, 8] the nearest others by `_AGENT`, in the ego's axes, and [N, places] whether there is one."""
    count = len(view.ego.steps_N)
    values, valid = np.zeros((count, places, len(_AGENT))), np.zeros((count, places), bool)
    parked = [(o, o.states_NC[0]) for o in view.scenario.obstacles if not o.moves]
    held: list[str] = [""] * places
    for n, step in enumerate(view.ego.steps_N.tolist()):
        near: dict[str, tuple[float, F]] = {}
        for other, state in (*view.others.get(step, ()), *parked):
            distance = float(np.hypot(*(state[:2] - view.xy_N2[n])))
            if other is not view.ego and distance < RANGE_M:
                near[other.name] = distance, _relative(view.ego.states_NC[n], other, state)
        wanted = sorted(near, key=lambda k: near[k][0])[:places]
        held = [k if k in wanted else "" for k in held]
        for fresh in (k for k in wanted if k not in held):
            held[held.index("")] = fresh
        for i, name in enumerate(held):
            if name:
                values[n, i], valid[n, i] = near[name][1], True
    return values, valid


def _relative(ego: F, other: Obstacle, state: F) -> F:
    """Position, velocity and heading of another in the ego's axes, and its box."""
    c, s = np.cos(ego[2]), np.sin(ego[2])
    dx, dy = state[:2] - ego[:2]
    turn = state[2] - ego[2]
    speed = state[3] if other.moves else 0.0
    with np.errstate(invalid="ignore"):  # an infinite value is for the checks to find
        motion = (speed * np.cos(turn) - ego[3], speed * np.sin(turn), np.cos(turn), np.sin(turn))
    return np.array([c * dx + s * dy, c * dy - s * dx, *motion, other.length_m, other.width_m])
