"""CommonRoad scenario files (2018b, 2020a and later 2020 formats): recorded traffic and the lanelets under it.

The XML is read in one pass with limits: no document type, no entities, a bounded depth and size; one lanelet or one
obstacle at a time is held as a tree. Source of the format: commonroad.in.tum.de, documentation of the XML format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from hagane.intake.streams import MOST_S
from hagane.terms import LogError

F = NDArray[np.float64]

STATE = ("x", "y", "heading", "speed", "acceleration", "yaw_rate", "steering_angle")
"""Columns of a trajectory."""
_TAGS = ("orientation", "velocity", "acceleration", "yawRate", "steeringAngle")
_LIMIT_SIGNS = ("274", "R2-1")  # maximum speed in Germany's and the United States' catalogues
_MOST_BYTES, _MOST_DEPTH, _MOST_ELEMENTS = 1 << 28, 32, 2_000_000
_MOST_LANE_M = 100_000.0


@dataclass(frozen=True, eq=False)
class Obstacle:
    """One road user or thing."""

    name: str
    """Its id in the file."""
    kind: str
    """CommonRoad type: "car", "truck", "pedestrian", ..."""
    moves: bool
    """True for dynamic obstacles."""
    length_m: float
    """Length of its box, NaN when unknown."""
    width_m: float
    """Width of its box, NaN when unknown."""
    steps_N: NDArray[np.int64]
    """Time steps of its states, in file order."""
    states_NC: F
    """States by `STATE`: metres, radians, m/s, m/s2, rad/s, rad; NaN where the file gives none, or an interval."""


@dataclass(frozen=True, eq=False)
class Lanelet:
    """A piece of one lane."""

    name: str
    """Its id in the file."""
    left_P2: F
    """Left bound in driving direction, metres."""
    right_P2: F
    """Right bound, metres."""
    after: tuple[str, ...]
    """Ids of the lanelets that follow."""
    limit_mps: float
    """Speed limit, NaN when none is given."""


@dataclass(eq=False)
class Scenario:
    """What a file holds."""

    name: str
    """benchmarkID, or the file's name without it."""
    step_s: float
    """Seconds a time step."""
    obstacles: list[Obstacle] = field(default_factory=list)
    """In file order."""
    lanelets: dict[str, Lanelet] = field(default_factory=dict)
    """By id."""
    untold: int = 0
    """Dynamic obstacles without a trajectory (occupancy sets)."""


def load_scenario(path: Path) -> Scenario:
    """Read a CommonRoad file.

    Raises:
        LogError: no well-formed XML, a document type, another root or version, too large, or values that are none.
    """
    where = str(path)
    if path.stat().st_size > _MOST_BYTES:
        raise LogError("is larger than 256 MiB", where=where, next_step="split the scenario")
    found: list[Scenario] = []
    signs: dict[str, float] = {}
    limits: dict[str, tuple[str, ...]] = {}

    def begin(tag: str, attributes: dict[str, str]) -> None:
        found.append(_scenario(tag, attributes, path))

    def take(element: Element) -> None:
        try:
            if element.tag == "lanelet":
                lane = _lanelet(element)
                found[0].lanelets[lane.name] = lane
                limits[lane.name] = tuple(r.get("ref", "") for r in element.findall("trafficSignRef"))
            elif element.tag == "trafficSign":
                signs[element.get("id", "")] = _sign_limit(element)
            elif element.tag in ("obstacle", "dynamicObstacle", "staticObstacle"):
                _take_obstacle(element, found[0])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            what = f"{element.tag} {element.get('id', '')} is not as CommonRoad describes it: {e}"
            raise LogError(what, where=where, next_step="write the scenario again") from None

    _parse(path, begin, take)
    scenario = found[0]
    for name, refs in limits.items():
        lane = scenario.lanelets[name]
        told = [signs[r] for r in refs if not math.isnan(signs.get(r, math.nan))]
        if math.isnan(lane.limit_mps) and told:
            parts = (lane.left_P2, lane.right_P2, lane.after)
            scenario.lanelets[name] = Lanelet(name, *parts, min(told))
    return scenario


def _parse(path: Path, begin: Callable[[str, dict[str, str]], None], take: Callable[[Element], None]) -> None:
    """Give the root's attributes, then each of its children as a tree."""
    where = str(path)
    parser, builder = expat.ParserCreate(), TreeBuilder()
    depth = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        if depth == 0:
            begin(tag, attributes)
        else:
            builder.start(tag, attributes)
        depth, elements = depth + 1, elements + 1
        if depth > _MOST_DEPTH or elements > _MOST_ELEMENTS:
            raise LogError(
                "is nested deeper, or one item is larger, than any scenario",
                where=where,
                next_step="write the scenario again",
            )

    def end(tag: str) -> None:
        nonlocal depth, elements, builder
        depth -= 1
        if depth:
            builder.end(tag)
        if depth == 1:
            take(builder.close())
            builder, elements = TreeBuilder(), 0

    def data(text: str) -> None:
        if depth > 1:
            builder.data(text)

    def refuse(*_: object) -> NoReturn:
        raise LogError(
            "has a document type or entities, which scenarios have no use for",
            where=where,
            next_step="remove the <!DOCTYPE ...> if you trust the file",
        )

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                parser.Parse(block, False)
        parser.Parse(b"", True)
    except (expat.ExpatError, LookupError, ValueError) as e:
        raise LogError(
            f"is no whole XML: {e}", where=where, next_step="the file is truncated or damaged: copy it again"
        ) from None


def _scenario(tag: str, attributes: dict[str, str], path: Path) -> Scenario:
    version = attributes.get("commonRoadVersion", "")
    if tag != "commonRoad" or not version.startswith(("2018b", "2020")):
        raise LogError(
            f"is <{tag}> of version {version!r}; CommonRoad 2018b and 2020 are read",
            where=str(path),
            next_step="convert it with commonroad-io",
        )
    try:
        step_s = float(attributes["timeStepSize"])
    except (KeyError, ValueError):
        step_s = math.nan
    if not 1e-6 <= step_s <= 1e3:
        raise LogError("timeStepSize is no time in seconds", where=str(path), next_step="write the scenario again")
    return Scenario(attributes.get("benchmarkID") or path.stem, step_s)


def _take_obstacle(element: Element, scenario: Scenario) -> None:
    role = element.findtext("role", "").strip()
    moves = element.tag == "dynamicObstacle" or role == "dynamic"
    states = [s for s in (element.find("initialState"), *element.findall("trajectory/state")) if s is not None]
    if not states or (moves and element.find("trajectory") is None):
        scenario.untold += 1
        return
    steps = [_step(s) for s in states]
    if max(steps) * scenario.step_s > MOST_S:
        raise ValueError(f"time step {max(steps)} of {scenario.step_s:g} s")
    length_m, width_m = _box(element.find("shape"))
    scenario.obstacles.append(
        Obstacle(
            str(int(element.get("id", ""))),
            element.findtext("type", "").strip(),
            moves,
            length_m,
            width_m,
            np.array(steps, np.int64),
            np.array([[*_point(s.find("position/point")), *(_exact(s, t) for t in _TAGS)] for s in states], np.float64),
        )
    )


def _step(state: Element) -> int:
    step = int(state.findtext("time/exact", "").strip() or "none")
    if not 0 <= step < 1 << 31:
        raise ValueError(f"time step {step}")
    return step


def _exact(state: Element, tag: str) -> float:
    text = state.findtext(f"{tag}/exact")
    return math.nan if text is None else float(text)


def _point(point: Element | None) -> tuple[float, float]:
    if point is None:
        return math.nan, math.nan
    return float(point.findtext("x", "none")), float(point.findtext("y", "none"))


def _box(shape: Element | None) -> tuple[float, float]:
    """Length and width of the first part of a shape."""
    if shape is None:
        return math.nan, math.nan
    if (box := shape.find("rectangle")) is not None:
        return float(box.findtext("length", "none")), float(box.findtext("width", "none"))
    if (radius := shape.findtext("circle/radius")) is not None:
        return 2 * float(radius), 2 * float(radius)
    corners = np.array(list(_points(shape.find("polygon"))), np.float64).reshape(-1, 2)
    return (math.nan, math.nan) if not len(corners) else (float(np.ptp(corners[:, 0])), float(np.ptp(corners[:, 1])))


def _points(parent: Element | None) -> Iterator[tuple[float, float]]:
    yield from (_point(p) for p in (() if parent is None else parent.findall("point")))


def _lanelet(element: Element) -> Lanelet:
    left, right = (np.array(list(_points(element.find(b))), np.float64) for b in ("leftBound", "rightBound"))
    if min(len(left), len(right)) < 2 or not np.isfinite(left).all() or not np.isfinite(right).all():
        raise ValueError("a bound needs two points at least")
    # the lane ahead has a point a metre
    if any(not np.hypot(*np.diff(bound, axis=0).T).sum() < _MOST_LANE_M for bound in (left, right)):
        raise ValueError(f"a bound is longer than {_MOST_LANE_M / 1000:g} km")
    after = tuple(s.get("ref", "") for s in element.findall("successor"))
    limit = element.findtext("speedLimit")
    return Lanelet(str(int(element.get("id", ""))), left, right, after, math.nan if limit is None else float(limit))


def _sign_limit(sign: Element) -> float:
    """Speed limit of a traffic sign, m/s; NaN for other signs."""
    for part in sign.findall("trafficSignElement"):
        if part.findtext("trafficSignID", "").strip() in _LIMIT_SIGNS and part.findtext("additionalValue"):
            return float(part.findtext("additionalValue", "nan"))
    return math.nan
