"""The checks see each planted fault at its place, and nothing on clean data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hagane.intake import check_episode
from hagane.terms import Channel, Embodiment, Episode, Finding, Stream
from tests.intake_cases import CAR, LINE, noise

S = 10**9


def planted(name: str = "coating", steps: int = 600) -> tuple[Episode, Stream]:
    episode = noise(LINE, 3, steps)
    stream = episode.streams[name]
    copy = Stream(stream.times_ns.copy(), stream.values.copy(), stream.valid.copy(), stream.unit)
    return episode, copy


def checked(episode: Episode, name: str, stream: Stream) -> tuple[list[Finding], Stream]:
    done = check_episode(replace(episode, streams={**episode.streams, name: stream}), LINE)
    return list(done.findings), done.streams[name]


@pytest.mark.parametrize("embodiment", [CAR, LINE])
@pytest.mark.parametrize("seed", range(5))
def test_clean_data_has_no_findings(embodiment: Embodiment, seed: int) -> None:
    episode = noise(embodiment, seed, 400, start_ns=5 * S)
    done = check_episode(episode, embodiment)
    assert done.findings == ()
    assert all(np.array_equal(done.streams[k].valid, s.valid) for k, s in episode.streams.items())


@pytest.mark.parametrize("seed", range(5))
def test_jitter_bursts_are_clean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    episode, stream = planted(steps=3000)
    # stamped by a reader that wakes every 1.1 s: samples come late and in bursts, none is lost
    late = np.ceil((stream.times_ns + rng.integers(0, S // 20, 3000)) / (1.1 * S)) * 1.1 * S
    late = late.astype(np.int64) + rng.integers(1, 1000, 3000).cumsum()
    assert checked(episode, "coating", replace(stream, times_ns=late))[0] == []


def test_duplicates() -> None:
    episode, s = planted()
    rows = np.r_[0:101, 100, 101:600]
    stream = Stream(s.times_ns[rows], s.values[rows], s.valid[rows], s.unit)
    (finding,), after = checked(episode, "coating", stream)
    assert (finding.kind, finding.time_ns, finding.count) == ("duplicate", 100 * S, 1)
    assert np.flatnonzero(~after.valid).tolist() == [101] and "the same values" in finding.detail
    stream.values[101] += 1
    (finding,), _ = checked(episode, "coating", stream)
    assert "other values" in finding.detail


def test_missing_samples() -> None:
    episode, s = planted()
    keep = np.ones(600, bool)
    keep[200:204] = False
    keep[400] = False
    found, _ = checked(episode, "coating", Stream(s.times_ns[keep], s.values[keep], s.valid[keep], s.unit))
    assert [(f.kind, f.time_ns, f.count) for f in found] == [("missing", 199 * S, 4), ("missing", 399 * S, 1)]


def test_a_rate_below_the_declared_one() -> None:
    episode, s = planted()
    slow = Stream(s.times_ns[::4], s.values[::4], s.valid[::4], s.unit)
    found, _ = checked(episode, "coating", slow)
    assert [f.kind for f in found] == ["missing"] and "0.25 samples a second" in found[0].detail


def test_the_clock_goes_back() -> None:
    episode, s = planted()
    s.times_ns[300:] -= 10 * S
    (finding, *rest), after = checked(episode, "coating", s)
    assert (finding.kind, finding.time_ns, finding.count) == ("clock-jump", 290 * S, 10)
    assert "back 9.000 s" in finding.detail and not [f for f in rest if f.kind != "duplicate"]
    assert (np.diff(after.times_ns) >= 0).all() and int((~after.valid).sum()) == 10


def test_the_clock_goes_forward_in_all_streams() -> None:
    episode = noise(LINE, 3, 600)
    streams = {
        k: replace(s, times_ns=np.where(s.times_ns > 250 * S, s.times_ns + 3600 * S, s.times_ns))
        for k, s in episode.streams.items()
    }
    found = check_episode(replace(episode, streams=streams), LINE).findings
    (finding,) = found
    assert (finding.kind, finding.stream, finding.time_ns) == ("clock-jump", "*", 3851 * S)
    assert "forward 3600.000 s in all streams" in finding.detail


def test_one_silent_stream_is_missing_not_a_jump() -> None:
    episode, s = planted()
    keep = (s.times_ns < 100 * S) | (s.times_ns >= 200 * S)
    found, _ = checked(episode, "coating", Stream(s.times_ns[keep], s.values[keep], s.valid[keep], s.unit))
    assert [(f.kind, f.time_ns, f.count) for f in found] == [("missing", 99 * S, 100)]


def test_stuck() -> None:
    episode, s = planted()
    s.values[250:320, 1] = s.values[250, 1]
    (finding,), after = checked(episode, "coating", s)
    assert (finding.kind, finding.time_ns, finding.count) == ("stuck", 250 * S, 70)
    assert "COATING_BOTTOM" in finding.detail and after.valid.all()


def test_a_smooth_signal_is_stuck_when_it_jumps_on_and_not_when_it_was_held() -> None:
    episode, s = planted("speed")
    wave = 100 + 50 * np.sin(np.arange(600) / 40)
    frozen = wave.copy()
    frozen[230:300] = frozen[230]
    (finding,), _ = checked(episode, "speed", replace(s, values=frozen[:, None]))
    assert (finding.kind, finding.time_ns, finding.count) == ("stuck", 230 * S, 70)
    held = np.interp(np.arange(600), [0, 200, 280, 599], [50, 100, 100, 180])
    assert checked(episode, "speed", replace(s, values=held[:, None]))[0] == []


def test_what_may_stand_still() -> None:
    episode, s = planted()
    s.values[100:200, 0] = 0.0  # at rest
    s.values[300:400, 1] = s.values[:, 1].max()  # at its end stop
    assert checked(episode, "coating", s)[0] == []
    episode, s = planted("gap")
    s.values[100:300] = 12.5  # a command may hold
    assert checked(episode, "gap", s)[0] == []


def test_not_numbers() -> None:
    episode, s = planted()
    s.values[10, 0] = np.nan
    s.values[12, 1] = np.inf
    s.values[500, 1] = -np.inf
    found, after = checked(episode, "coating", s)
    assert [(f.kind, f.time_ns, f.count) for f in found] == [("nan", 10 * S, 2), ("nan", 500 * S, 1)]
    assert np.flatnonzero(~after.valid).tolist() == [10, 12, 500]
    assert np.isnan(after.values[10, 0])


def test_out_of_range() -> None:
    episode, s = planted()
    s.values[70:75, 0] = 400.0
    s.values[90, 1] = -3.0
    found, after = checked(episode, "coating", s)
    assert [(f.kind, f.time_ns, f.count) for f in found] == [("out-of-range", 70 * S, 5), ("out-of-range", 90 * S, 1)]
    assert "farthest 400" in found[0].detail and "COATING_TOP" in found[0].detail
    assert np.flatnonzero(~after.valid).tolist() == [70, 71, 72, 73, 74, 90] and after.values[70, 0] == 400.0


def test_out_of_range_in_a_set_hits_its_place_only() -> None:
    episode = noise(CAR, 1, 100)
    s = episode.streams["agents"]
    s.valid[50] = True
    s.values[50, 1, 3] = 1e6
    done = check_episode(episode, CAR)
    assert [(f.kind, f.stream, f.time_ns) for f in done.findings] == [("out-of-range", "agents", 5 * S)]
    assert done.streams["agents"].valid[50].tolist() == [True, False, True]


def test_units_declared_and_seen() -> None:
    episode, s = planted("speed")
    found, after = checked(episode, "speed", replace(s, unit=("ft/min",)))
    assert [f.kind for f in found] == ["unit-mismatch"] and not after.valid.any()
    assert checked(episode, "speed", replace(s, unit=("M/min",)))[0] == []
    for declared, other, factor, high in (
        ("rad", "deg", 180 / np.pi, 0.6),
        ("m/s", "km/h", 3.6, 40.0),
        ("bar", "kpa", 100.0, 10.0),
    ):
        channel = Channel("speed", unit=(declared,), low=(0.0,), high=(high,))
        machine = replace(LINE, observe=(channel,))
        values = np.random.default_rng(0).uniform(0.3 * high, high, (600, 1)) * factor
        stream = Stream(s.times_ns, values, s.valid, (declared,))
        done = check_episode(replace(episode, streams={"speed": stream}), machine)
        assert [f.kind for f in done.findings] == ["unit-mismatch"]
        assert f"look like {other}, not {declared}" in done.findings[0].detail


def test_many_faults_are_few_findings() -> None:
    episode, s = planted(steps=4000)
    s.values[::20, 0] = 1000.0
    found, after = checked(episode, "coating", s)
    assert len(found) == 20 and sum(f.count for f in found) == 200
    assert "181 more such places" in found[-1].detail and int((~after.valid).sum()) == 200


def test_all_faults_at_once_and_a_broken_sample_or_two() -> None:
    for steps in (0, 1, 2, 3):
        episode = noise(LINE, 0, 10)
        streams = {
            k: Stream(s.times_ns[:steps], s.values[:steps], s.valid[:steps], s.unit) for k, s in episode.streams.items()
        }
        assert check_episode(replace(episode, streams=streams), LINE).findings == ()
