"""CommonRoad scenarios: equal to the same scenarios as tables, 2020a by hand, and XML that attacks or is damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.cli import main
from hagane.intake import read_logs
from hagane.intake.commonroad_lines import LOOK_M, line_through
from hagane.intake.commonroad_xml import load_scenario
from hagane.intake.detect import format_of
from hagane.terms import Channel, Embodiment, LogError, load_toml
from tests.conftest import shared_data

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "ngsim-traffic.toml"
SCENES = ("USA_US101-1_1_T-1", "USA_Lanker-1_1_T-1")


def machine() -> Embodiment:
    return load_toml(EXAMPLE, Embodiment)


@pytest.mark.parametrize("scene", SCENES)
def test_tracks_equal_the_tables(scene: str) -> None:
    """Every number of every recorded vehicle, bit for bit, and the others seen from it."""
    path = shared_data("road", f"{scene}.xml")
    tracks = pq.read_table(shared_data("road", "ngsim", "tracks.parquet"), filters=[("scene", "==", scene)]).to_pandas()
    found = {e.id.rpartition("-")[2]: e for e in read_logs(path, machine())}
    assert set(found) == {str(k) for k in tracks.track_id.unique()}
    by_step = dict(iter(tracks.groupby("step")))
    for key, e in found.items():
        own = tracks[tracks.track_id == int(key)]
        np.testing.assert_array_equal(e.streams["pose"].values, own[["x_m", "y_m", "heading_rad"]].to_numpy())
        np.testing.assert_array_equal(e.streams["ego"].values[:, 0], own.speed_mps.to_numpy())
        first = int(own.step.iloc[0])
        assert e.streams["pose"].times_ns.tolist() == [(s - first) * 100_000_000 for s in own.step]
        assert e.streams["pose"].clock_offset_ns == -first * 100_000_000
        for n in (0, len(own) // 2, len(own) - 1):
            me = own.iloc[n]
            others = by_step[me.step][by_step[me.step].track_id != int(key)]
            far = np.hypot(others.x_m - me.x_m, others.y_m - me.y_m)
            others = others[far < 80].assign(far=far).nsmallest(12, "far")
            seen, valid = e.streams["agents"].values[n], e.streams["agents"].valid[n]
            assert valid.sum() == len(others)
            c, s = np.cos(me.heading_rad), np.sin(me.heading_rad)
            back = np.stack([me.x_m + c * seen[:, 0] - s * seen[:, 1], me.y_m + s * seen[:, 0] + c * seen[:, 1]], -1)
            order = np.lexsort(back[valid].round(6).T)
            want = others[["x_m", "y_m"]].to_numpy()
            np.testing.assert_allclose(back[valid][order], want[np.lexsort(want.round(6).T)], atol=1e-9)
            assert sorted(seen[valid][:, 6]) == sorted(others.length_m)


@pytest.mark.parametrize("scene", SCENES)
def test_lanelets_equal_the_tables(scene: str) -> None:
    lanes = load_scenario(shared_data("road", f"{scene}.xml")).lanelets
    table = pq.read_table(
        shared_data("road", "ngsim", "lanelets.parquet"), filters=[("scene", "==", scene)]
    ).to_pylist()
    assert len(table) == len(lanes)
    for row in table:
        lane = lanes[str(row["lanelet_id"])]
        # the table keeps four decimals
        np.testing.assert_array_equal(lane.left_P2.reshape(-1).round(4), row["left_xy_m"])
        np.testing.assert_array_equal(lane.right_P2.reshape(-1).round(4), row["right_xy_m"])
        assert [int(k) for k in lane.after] == list(row["successors"])
        assert np.isnan(lane.limit_mps) or lane.limit_mps == float(row["speed_limit"])


def test_the_lane_ahead_lies_on_the_map() -> None:
    """Lane points of a recorded car are points of lanelets' middles, at the distances asked for."""
    path = shared_data("road", "USA_US101-1_1_T-1.xml")
    middles = [(lane.left_P2 + lane.right_P2) / 2 for lane in load_scenario(path).lanelets.values()]
    for e in read_logs(path, machine()):
        lane, pose, place = e.streams["lane"], e.streams["pose"].values, e.streams["place"].values
        assert lane.valid[:, 0].all() and (np.abs(place[:, 0]) < 2.5).all() and (np.abs(place[:, 1]) < 0.2).all()
        assert ((place[:, 2] > 2.5) & (place[:, 2] < 5.5)).all()
        for n in range(0, len(pose), 10):
            c, s = np.cos(pose[n, 2]), np.sin(pose[n, 2])
            seen = lane.values[n][lane.valid[n]]
            world = pose[n, :2] + np.stack([c * seen[:, 0] - s * seen[:, 1], s * seen[:, 0] + c * seen[:, 1]], -1)
            off = np.min([np.abs(line_through(m).project(world)[1]) for m in middles], axis=0)
            assert off.max() < 0.05  # a point a metre cuts the corners of the bounds
            steps = np.hypot(*np.diff(world, axis=0).T)
            np.testing.assert_allclose(steps, np.diff(LOOK_M)[: len(steps)], rtol=0.02)
            assert np.hypot(*seen[0, :2]) == pytest.approx(abs(place[n, 0]), abs=0.05)


def exact(tag: str, value: object) -> str:
    return f"<{tag}><exact>{value}</exact></{tag}>"


def state(tag: str, step: object, x: object, v: object = 10.0, more: str = "") -> str:
    point = f"<position><point><x>{x}</x><y>0</y></point></position>"
    return f"<{tag}>{point}{exact('orientation', 0.0)}{exact('time', step)}{exact('velocity', v)}{more}</{tag}>"


def car(name: int, steps: list[object], speed: float = 10.0, start: float = 0.0, kind: str = "car") -> str:
    box = "<shape><rectangle><length>4.5</length><width>1.8</width></rectangle></shape>"
    states = [
        state("initialState" if k == 0 else "state", s, start + k * speed / 10, speed) for k, s in enumerate(steps)
    ]
    tail = f"<trajectory>{''.join(states[1:])}</trajectory>"
    return f'<dynamicObstacle id="{name}"><type>{kind}</type>{box}{states[0]}{tail}</dynamicObstacle>'


def lanelet(name: int, x0: float, x1: float, after: int = 0) -> str:
    def bound(tag: str, y: float) -> str:
        return f"<{tag}>" + "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x in (x0, x1)) + f"</{tag}>"

    follows = f'<successor ref="{after}"/>' if after else ""
    inner = bound("leftBound", 2) + bound("rightBound", -2) + follows + '<trafficSignRef ref="9"/>'
    return f'<lanelet id="{name}">{inner}</lanelet>'


SIGN = (
    '<trafficSign id="9"><trafficSignElement><trafficSignID>274</trafficSignID><additionalValue>13.9</additionalValue>'
    "</trafficSignElement></trafficSign>"
)
PARKED = (
    '<staticObstacle id="5"><type>parkedVehicle</type><shape><circle><radius>1</radius></circle></shape>'
    + state("initialState", 0, 30.0)
    + "</staticObstacle>"
)
SET_BASED = (
    '<dynamicObstacle id="6"><type>car</type><shape/>'
    + state("initialState", 0, 3.0)
    + "<occupancySet/></dynamicObstacle>"
)
HEAD = '<commonRoad benchmarkID="ZAM_Test-1" commonRoadVersion="2020a" timeStepSize="0.1">'
ROAD = lanelet(1, -10, 50, 2) + lanelet(2, 50, 120) + SIGN


def write(path: Path, *items: str, head: str = HEAD, before: str = "") -> Path:
    path.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{before}{head}{ROAD}{"".join(items)}</commonRoad>\n')
    return path


def test_a_2020_scenario(tmp_path: Path) -> None:
    steps: list[object] = list(range(8))
    walker = car(3, steps, 1.0, 8.0, "pedestrian")
    path = write(tmp_path / "odd.name", car(1, steps), car(2, steps[:5], 20.0, -5.0), walker, PARKED, SET_BASED)
    assert format_of(path) == "commonroad"
    channels = (
        Channel("v", shape=(2,), unit=("m/s",), source=("ego.speed", "lane.limit")),
        Channel("a", unit=("m/s2",), source=("derived.acceleration",)),
        Channel(
            "near",
            kind="set",
            shape=(4, 3),
            role="agents",
            unit=("m", "m/s", "m"),
            source=("agents.{i}.x", "agents.{i}.vx", "agents.{i}.length"),
        ),
        Channel("lane", kind="set", shape=(12, 2), role="map", unit=("m",), source=("lane.{i}.x", "lane.{i}.y")),
    )
    act = Channel("u", unit=("m/s2",), source=("derived.acceleration",))
    car_like = Embodiment("c", "vehicle", "member-cars", 10.0, 4, channels, (act,))
    one, two = read_logs(path, car_like)  # the pedestrian, the parked car and the occupancy set are no egos
    assert (one.id, two.id) == ("ZAM_Test-1-1", "ZAM_Test-1-2")
    assert one.streams["v"].values.tolist() == [[10.0, 13.9]] * 8
    near = one.streams["near"]
    assert near.valid.sum(1).tolist() == [3] * 5 + [2] * 3
    held = near.values[:, 0]  # the car behind, nearest at first, keeps its place until it is gone
    np.testing.assert_allclose(held[:5], np.stack([-5 + np.arange(5.0), np.full(5, 10.0), np.full(5, 4.5)], -1))
    parked = next(i for i in range(4) if near.valid[0, i] and near.values[0, i, 2] == 2.0)
    np.testing.assert_allclose(near.values[:, parked, :2], np.stack([30.0 - np.arange(8), np.full(8, -10.0)], -1))
    np.testing.assert_allclose(one.streams["lane"].values[:, :, 0][0], LOOK_M, atol=1e-6)
    assert one.streams["lane"].valid.all()
    # differences look back where they are observed, ahead where they are acted
    assert one.streams["a"].times_ns.tolist() == [100_000_000 * k for k in range(1, 8)]
    assert one.streams["u"].times_ns.tolist() == [100_000_000 * k for k in range(7)]
    assert {f.detail for f in one.findings} >= {
        "1 obstacles have no trajectory and are left out",
        "derived from the recorded motion: the file has no commands",
    }


def test_differences_are_of_the_recorded_speed() -> None:
    path = shared_data("road", "USA_US101-1_1_T-1.xml")
    for e in read_logs(path, machine()):
        speed = e.streams["ego"].values[:, 0]
        np.testing.assert_allclose(e.streams["drive"].values[:, 0], np.diff(speed) / 0.1, atol=1e-9)


def test_unsorted_steps_and_values_that_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", car(1, [0, 1, 3, 2, 4, 4, 5]))
    (e,) = read_logs(path, machine())
    kinds = {f.kind for f in e.findings if f.stream == "ego"}
    assert {"clock-jump", "duplicate"} <= kinds
    text = path.read_text().replace("<exact>10.0</exact>", "<exact>nan</exact>", 1)
    path.write_text(text)
    (e,) = read_logs(path, machine())
    assert not e.streams["ego"].valid[0]
    interval = "<intervalStart>9</intervalStart><intervalEnd>11</intervalEnd>"
    path.write_text(text.replace("<exact>nan</exact>", interval, 1))
    (e,) = read_logs(path, machine())
    assert not e.streams["ego"].valid[0]  # an interval is no measurement


LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>\n"
)
REMOTE = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>\n'


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write(p, car(1, [0, 1]), before=LAUGHS), "has a document type or entities"),
        (lambda p: write(p, car(1, [0, 1]), before=REMOTE), "has a document type or entities"),
        (lambda p: write(p, car(1, [0, 1]), before='<!DOCTYPE commonRoad SYSTEM "http://x/y.dtd">\n'), "document type"),
        (lambda p: write(p, "&lol;"), "is no whole XML: undefined entity"),
        (lambda p: write(p, "<a>" * 40 + "</a>" * 40), "nested deeper"),
        (lambda p: p.write_text(write(p, car(1, [0, 1])).read_text()[:-30]), "is no whole XML(.|\n)*copy it again"),
        (lambda p: write(p), "no vehicle has a trajectory"),
        (lambda p: write(p, car(1, [0])), "no vehicle has a trajectory"),
        (lambda p: write(p, car(1, [0, "x"])), "dynamicObstacle 1 is not as CommonRoad describes it"),
        (lambda p: write(p, car(1, [0, 1 << 40])), "time step 1099511627776"),
        (lambda p: write(p, car(1, [0, 1]), lanelet(7, 0, 5).replace("<y>2</y>", "<y>east</y>")), "lanelet 7 is not"),
        (lambda p: write(p, car(1, [0, 1]), lanelet(7, -5, 1e12)), "a bound is longer than 100 km"),
        (lambda p: write(p, car(1, [0, 2**31 - 1]), head=HEAD.replace('"0.1"', '"900"')), "time step 2147483647 of"),
        (lambda p: write(p, car(1, [0, 1]), head=HEAD.replace("2020a", "2016a")), "version '2016a'; CommonRoad 2018b"),
        (lambda p: write(p, car(1, [0, 1]), head=HEAD.replace('"0.1"', '"-1"')), "timeStepSize is no time"),
    ],
)
def test_what_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "a.xml")
    assert format_of(tmp_path / "a.xml") == "commonroad"
    with pytest.raises(LogError, match=message):
        read_logs(tmp_path / "a.xml", machine())


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (Channel("v", source=("ego.sped",)), "has no 'ego.sped'(.|\n)*did you mean ego.speed"),
        (Channel("n", kind="set", shape=(2, 1), source=("agents.x",)), "not those of a set in a scenario"),
        (Channel("n", kind="set", shape=(2, 2), source=("agents.{i}.x", "lane.{i}.x")), "not those of a set"),
        (Channel("n", kind="set", shape=(13, 1), source=("lane.{i}.x",)), "a lane has at most 12 places"),
        (Channel("c", kind="image", shape=(8, 8, 3)), "has no 'pictures'"),
    ],
)
def test_sources_that_no_scenario_has(tmp_path: Path, channel: Channel, message: str) -> None:
    path = write(tmp_path / "a.xml", car(1, [0, 1]))
    act = Channel("u", source=("derived.acceleration",))
    with pytest.raises(LogError, match=message):
        read_logs(path, Embodiment("c", "vehicle", "member-cars", 10.0, 4, (channel,), (act,)))


def test_a_wrong_unit_is_found(tmp_path: Path) -> None:
    """The format has its units: an embodiment that declares others gets a finding."""
    path = write(tmp_path / "a.xml", car(1, [0, 1, 2]))
    speed, act = Channel("v", unit=("km/h",), source=("ego.speed",)), Channel("u", source=("derived.acceleration",))
    (e,) = read_logs(path, Embodiment("c", "vehicle", "member-cars", 10.0, 4, (speed,), (act,)))
    assert "the log says m/s, the embodiment km/h" in {f.detail for f in e.findings if f.kind == "unit-mismatch"}


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_damaged_xml_never_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("xml") / "a.xml"
    data = bytearray(write(path, car(1, [0, 1, 2]), car(2, [1, 2]), PARKED).read_bytes())
    for at in rng.integers(150, len(data), rng.integers(1, 4)).tolist():
        data[at : at + int(rng.integers(0, 3))] = rng.choice([b"", b"<", b"9", b"e9", b"-", b'"', b"\xff"])
    path.write_bytes(bytes(data))
    with contextlib.suppress(LogError):
        list(read_logs(path, machine()))


def test_other_xml_is_not_claimed(tmp_path: Path) -> None:
    for n, text in enumerate(('<osm version="0.6"></osm>', "<!-- <commonRoad> --><x/>", "a <commonRoad>, b\n1,2\n")):
        (tmp_path / f"{n}").write_text(text)
        assert format_of(tmp_path / f"{n}") != "commonroad"


def test_the_verb_looks_at_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_data("road", "USA_Lanker-1_1_T-1.xml")
    assert main(["intake", str(path), "--embodiment", str(EXAMPLE), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "24 episodes" in out and "938 samples" in out
