"""The doctor finds each planted fault, once, with its channel, place and count; and nothing in clean data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from hagane.catalog.doctor import Doctor, examine_log
from hagane.demo.members import demonstrations
from hagane.intake import check_episode
from hagane.intake.picture import encode_jpeg, encode_png
from hagane.terms import Channel, Embodiment, Episode, LogError, Stream
from hagane.worlds import make
from tests.doctor_cases import MACHINES, PICKER, STEPS, S, clean, cut, diagnose, edit, one, picker
from tests.intake_cases import CAR, LINE, noise

Change = Callable[[Stream], Stream]


@dataclass(frozen=True)
class Planted:
    """One fault in one stream of episode 1 of three."""

    kind: str
    machine: str
    stream: str
    change: Change
    at: int
    """Sample where it begins."""
    count: int


def drop(a: int, b: int) -> Change:
    return lambda s: cut(s, np.r_[0:a, b : len(s)])


def again(a: int, b: int) -> Change:
    return lambda s: cut(s, np.sort(np.r_[0 : len(s), a:b]))


def put(rows: slice, column: Any, value: Any) -> Change:
    def change(s: Stream) -> Stream:
        s.values[rows, column] = value
        return s

    return change


def speed_of_a_neighbour(s: Stream) -> Stream:
    s.valid[50:60, 1] = True
    s.values[50:60, 1, 3] = np.nan
    return s


def pictures(rows: slice, value: bytes) -> Change:
    def change(s: Stream) -> Stream:
        for k in range(*rows.indices(len(s))):
            s.values[k] = value
        return s

    return change


def held(a: int, b: int) -> Change:
    """Pictures a+1 .. b show what picture a shows."""

    def change(s: Stream) -> Stream:
        for k in range(a + 1, b + 1):
            s.values[k] = s.values[a]
        return s

    return change


def back(at: int, by_s: float) -> Change:
    return lambda s: replace(s, times_ns=s.times_ns - np.where(np.arange(len(s)) >= at, round(by_s * S), 0))


def flat(level: int) -> bytes:
    return encode_jpeg(np.full((48, 64, 3), level, np.uint8))


GREEN = encode_png(np.broadcast_to(np.array([0, 135, 0], np.uint8), (48, 64, 3)))
HALF_WHITE = encode_jpeg(
    np.where(np.arange(64)[None, :, None] < 40, 255, 120).repeat(48, 0).repeat(3, 2).astype(np.uint8)
)
FAULTS = (
    Planted("missing", "road", "ego", drop(200, 204), 199, 4),
    Planted("missing", "mill", "coating", drop(300, 310), 299, 10),
    Planted("missing", "picker", "joints", drop(50, 53), 49, 3),
    Planted("missing", "picker", "wrist", drop(60, 66), 59, 6),
    Planted("duplicate", "road", "agents", again(100, 103), 100, 3),
    Planted("duplicate", "mill", "gap", again(100, 101), 100, 1),
    Planted("duplicate", "picker", "front", again(70, 71), 70, 1),
    Planted("clock-jump", "road", "drive", back(300, 0.55), 300, 5),
    Planted("clock-jump", "picker", "wrist", back(80, 0.23), 80, 4),
    Planted("stuck", "road", "ego", put(slice(100, 180), 1, 0.3), 100, 80),
    Planted("stuck", "mill", "coating", put(slice(250, 320), 1, 77.0), 250, 70),
    Planted("nan", "road", "agents", speed_of_a_neighbour, 50, 10),
    Planted("nan", "mill", "speed", put(slice(10, 12), 0, np.inf), 10, 2),
    Planted("nan", "picker", "target", put(slice(30, 31), 2, np.nan), 30, 1),
    Planted("out-of-range", "road", "drive", put(slice(90, 95), 0, -9.0), 90, 5),
    Planted("out-of-range", "mill", "coating", put(slice(70, 72), 0, 400.0), 70, 2),
    Planted("out-of-range", "picker", "joints", put(slice(20, 23), 1, 6.0), 20, 3),
    Planted("unit-mismatch", "road", "ego", lambda s: replace(s, unit=("mph", *s.unit[1:])), 0, 400),
    Planted("unit-mismatch", "mill", "speed", lambda s: replace(s, unit=("ft/min",)), 0, 600),
    Planted("black", "picker", "wrist", pictures(slice(30, 45), flat(2)), 30, 15),
    Planted("saturated", "picker", "wrist", pictures(slice(30, 38), flat(255)), 30, 8),
    Planted("saturated", "picker", "front", pictures(slice(10, 12), HALF_WHITE), 10, 2),
    Planted("blank", "picker", "front", pictures(slice(60, 61), GREEN), 60, 1),
    Planted("frozen", "picker", "wrist", held(40, 79), 41, 39),
    Planted("frozen", "picker", "front", held(0, 119), 1, 119),
    Planted("duplicate", "picker", "wrist", held(50, 53), 51, 3),
    Planted("unreadable", "picker", "front", pictures(slice(20, 22), b"\xff\xd8\xff\xe0 no picture"), 20, 2),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}-{f.machine}-{f.stream}")
def test_a_planted_fault_is_the_only_thing_found(fault: Planted) -> None:
    machine, episodes = MACHINES[fault.machine], clean(fault.machine)
    sick = edit(episodes[1], fault.stream, fault.change)
    d = diagnose(machine, [episodes[0], sick, episodes[2]])
    kinds = {s.kind for s in d.symptoms}
    # a unit that no sample has leaves no valid sample, which is told, too
    allowed = {"no-samples"} if fault.kind == "unit-mismatch" else set()
    (symptom,) = [s for s in d.symptoms if s.kind not in allowed]
    assert kinds - allowed == {fault.kind} and symptom.channel == fault.stream
    assert (symptom.episode, symptom.episodes) == (sick.id, 1)
    assert symptom.count == fault.count and symptom.advice
    period_ns = 1e9 / machine.rate_hz
    wanted_ns = fault.at * period_ns
    # where a clock goes back, the stamp itself is what is wrong
    slack = 12 * period_ns if fault.kind == "clock-jump" else 0
    assert abs(symptom.time_ns - wanted_ns) <= slack + 1


@pytest.mark.parametrize("name", MACHINES)
def test_clean_machines_have_nothing(name: str) -> None:
    d = diagnose(MACHINES[name], clean(name, 10))
    assert d.symptoms == () and not d.serious
    assert d.episodes == 10 and len(d.lengths_s) == 10 and d.findings == ()


def test_plain_pictures_and_a_rendered_camera_at_rest_are_clean() -> None:
    assert diagnose(PICKER, [picker(n, encoded=False) for n in range(2)]).symptoms == ()
    # a renderer gives the same picture as long as nothing moves
    episode = picker(0, encoded=False)
    resting = {}
    for name, s in episode.streams.items():
        values = s.values.copy()
        values[60:] = values[60]
        resting[name] = replace(s, values=values)
    found = {s.kind for s in diagnose(PICKER, [replace(episode, streams=resting)]).symptoms}
    assert found <= {"stuck"}


@pytest.mark.parametrize("name", ["road", "mill"])
def test_the_demos_own_data_is_clean(name: str) -> None:
    world = make(name)
    d = diagnose(world.embodiment, list(demonstrations(world, 12)))
    assert d.symptoms == ()


def test_the_arms_expert_is_clipped_and_nothing_else_is_said() -> None:
    pytest.importorskip("metaworld")
    world = make("arm")
    d = diagnose(world.embodiment, list(demonstrations(world, 10)))
    assert {(s.severity, s.kind) for s in d.symptoms} <= {("note", "at-limit")}


def test_a_clock_set_forward_in_all_streams() -> None:
    episodes = clean("mill")
    moved = {
        k: replace(s, times_ns=s.times_ns + np.where(s.times_ns > 250 * S, 3600 * S, 0))
        for k, s in episodes[1].streams.items()
    }
    s = one(diagnose(LINE, [episodes[0], replace(episodes[1], streams=moved)]))
    assert (s.kind, s.channel, s.severity, s.time_ns) == ("clock-jump", "*", "warning", 3851 * S)


def test_a_stream_that_is_absent() -> None:
    episodes = clean("road")
    streams = {k: s for k, s in episodes[2].streams.items() if k != "ego"}
    s = one(diagnose(CAR, [*episodes[:2], replace(episodes[2], streams=streams)]))
    assert (s.kind, s.channel, s.episodes, s.episode) == ("no-samples", "ego", 1, episodes[2].id)
    assert s.severity == "warning" and "absent in 1" in s.detail
    none = [replace(e, streams={k: v for k, v in e.streams.items() if k != "ego"}) for e in episodes]
    s = one(diagnose(CAR, none))
    assert s.severity == "serious" and "in no episode" in s.detail


def test_a_stream_faster_than_declared() -> None:
    slow = replace(LINE, observe=(replace(LINE.observe[0], rate_hz=0.2), *LINE.observe[1:]))
    s = one(diagnose(slow, clean("mill")))
    assert (s.kind, s.channel) == ("rate", "coating") and "1 samples a second, the embodiment says 0.2" in s.detail


def test_a_column_that_never_changes() -> None:
    episodes = [edit(e, "ego", put(slice(None), 4, 0.5)) for e in clean("road")]
    s = one(diagnose(CAR, episodes))
    assert (s.kind, s.channel, s.severity) == ("constant", "ego", "warning") and "4 = 0.5" in s.detail


@pytest.mark.parametrize(("scale", "words"), [(1.0, "equals"), (180 / np.pi, "moves exactly as")])
def test_a_label_that_leaks(scale: float, words: str) -> None:
    def leak(e: Episode) -> Episode:
        command = e.streams["drive"].values[:, 1]
        return edit(e, "ego", lambda s: put(slice(None), 2, command * scale)(s))

    machine = replace(CAR, observe=(replace(CAR.observe[0], low=(), high=()), *CAR.observe[1:]))
    s = one(diagnose(machine, [leak(e) for e in clean("road")]))
    assert (s.kind, s.channel, s.severity) == ("leak", "ego", "serious")
    assert f"ego.2 {words} the command drive.1" in s.detail


def test_the_last_commands_echo_is_no_leak() -> None:
    def echo(e: Episode) -> Episode:
        command = e.streams["drive"].values[:, 1]
        return edit(e, "ego", lambda s: put(slice(1, None), 2, command[:-1])(s))

    d = diagnose(CAR, [echo(e) for e in clean("road")])
    assert d.symptoms == ()
    (lag,) = [x for x in d.lags if x.action == "drive" and x.column == 1]
    assert lag.response_column == 2 and abs((lag.lag_s or 0) - 0.1) < 0.02


def test_commands_at_their_limit_but_no_switch() -> None:
    def clipped(e: Episode) -> Episode:
        return edit(e, "drive", lambda s: replace(s, values=np.clip(2 * s.values, (-5, -0.5), (3, 0.5))))

    (s,) = {
        x.detail: x for x in diagnose(CAR, [clipped(e) for e in clean("road")]).symptoms if "drive.1" in x.detail
    }.values()
    assert s.kind == "at-limit" and abs(s.share - 0.5) < 0.06 and "low limit in 2" in s.detail
    switched = [
        edit(
            e,
            "drive",
            lambda s: replace(s, values=np.where(np.arange(len(s))[:, None] // 80 % 2, (3, 0.5), (-5, -0.5))),
        )
        for e in clean("road")
    ]
    assert [x.kind for x in diagnose(CAR, switched).symptoms] == []


def test_a_meter_as_an_action() -> None:
    meter = np.cumsum(np.ones(600))[:, None] * 0.1 - 40.0
    meter[500:] -= 50.0
    episodes = [edit(e, "gap", lambda s: replace(s, values=meter)) for e in clean("mill", 2)]
    s = one(diagnose(LINE, episodes))
    assert (s.kind, s.channel, s.severity) == ("total", "gap", "serious") and "2 resets" in s.detail


def test_episodes_of_another_length() -> None:
    episodes = [noise(LINE, n, 600) for n in range(9)] + [noise(LINE, 9, 40), noise(LINE, 10, 1)]
    d = diagnose(LINE, episodes)
    shorter, single = (
        sorted((s for s in d.symptoms if s.kind == "length"), key=lambda s: s.detail)[::-1][-1],
        d.symptoms[-1],
    )
    assert {s.kind for s in d.symptoms} == {"length"}
    assert shorter.channel == single.channel == "*" and episodes[10].id in {s.episode for s in d.symptoms}
    assert any(s.episodes == 2 and s.episode == episodes[9].id for s in d.symptoms)


def test_streams_without_a_finding_are_checked_again_and_others_are_not() -> None:
    episode = edit(clean("mill")[0], "coating", put(slice(70, 75), 0, 400.0))
    checked = check_episode(episode, LINE)
    for told in (episode, checked):
        doctor = Doctor(LINE, recheck=True)
        doctor.add(told)
        s = one(doctor.diagnosis("set"))
        assert (s.kind, s.count, s.time_ns) == ("out-of-range", 5, 70 * S)


def test_many_findings_are_one_row_and_all_stand_in_the_list() -> None:
    sick = [edit(e, "coating", put(slice(None, None, 20), 0, 1000.0)) for e in clean("mill")]
    d = diagnose(LINE, sick)
    s = one(d)
    assert (s.count, s.episodes, s.severity) == (90, 3, "serious") and "60 places" in s.detail
    assert len(d.findings) == 60 and d.findings_left_out == 0


def test_a_log_that_is_refused_on_the_way_is_examined_up_to_there(tmp_path: Any) -> None:
    def episodes() -> Any:
        yield from clean("mill")[:2]
        raise LogError("row 17 is torn", where="a.csv:17")

    d = examine_log(tmp_path, LINE, episodes())
    s = one(d)
    assert (s.kind, s.severity, d.episodes) == ("refused", "serious", 2) and "a.csv:17: row 17" in s.detail
    with pytest.raises(LogError, match="nothing"):
        examine_log(tmp_path, LINE, _refused())


def _refused() -> Any:
    raise LogError("nothing can be read")
    yield


def test_memory_does_not_grow_with_the_length_of_episodes() -> None:
    machine = Embodiment("m", "robot", "o", 10.0, 4, (Channel("q"),), (Channel("u"),))

    def sizes(steps: int) -> int:
        doctor = Doctor(machine)
        t = machine.step_ns * np.arange(steps, dtype=np.int64)
        values = np.random.default_rng(0).normal(size=(steps, 1))
        doctor.add(Episode("e", "m", {n: Stream(t, values, np.ones(steps, bool)) for n in ("q", "u")}))
        return sum(
            a.nbytes
            for part in vars(doctor).values()
            for a in getattr(part, "__dict__", {}).values()
            if isinstance(a, np.ndarray)
        )

    assert sizes(200) == sizes(20_000)


def test_every_machine_of_the_cases_is_used() -> None:
    assert {f.machine for f in FAULTS} == set(STEPS)
