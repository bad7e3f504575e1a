"""Alignment on the control grid: causal, with ages, and no silent forward fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hagane.intake.lerobot_grid import align, instruction
from hagane.terms import APPLIED, Channel, Embodiment, Episode, LogError, Stream

S = 1_000_000_000


def machine(*observe: Channel, act: Channel | None = None, rate_hz: float = 10.0) -> Embodiment:
    return Embodiment("m", "plant", "member-steel", rate_hz, 4, observe, (act or Channel("u"),))


def stream(times_s: list[float], values: list[float], valid: list[bool] | None = None) -> Stream:
    times = np.array([round(t * S) for t in times_s], np.int64)
    flags = np.ones(len(times), bool) if valid is None else np.array(valid, bool)
    return Stream(times, np.array(values, np.float32)[:, None], flags)


def episode(**streams: Stream) -> Episode:
    return Episode("e", "m", {k.replace("_applied", APPLIED): v for k, v in streams.items()})


def test_latest_before_with_age_and_limit() -> None:
    slow = Channel("t", max_age_s=0.25)
    e = episode(t=stream([0.0, 0.55], [1, 2]), u=stream([i / 10 for i in range(10)], range(10)))
    r = align(e, machine(slow)).observe["t"]
    assert r.valid.tolist() == [True, True, True, False, False, False, True, True, True, False]
    assert r.values[:, 0].tolist() == [1, 1, 1, 0, 0, 0, 2, 2, 2, 0]
    np.testing.assert_allclose(r.age_s[[0, 1, 2, 6, 8]], [0, 0.1, 0.2, 0.05, 0.25], atol=1e-6)
    unlimited = align(e, machine(Channel("t"))).observe["t"]
    assert unlimited.valid.all() and unlimited.age_s[5] == pytest.approx(0.5)


def test_nothing_comes_from_the_future() -> None:
    e = episode(t=stream([0.31], [1]), u=stream([i / 10 for i in range(6)], range(6)))
    assert align(e, machine(Channel("t"))).observe["t"].valid.tolist() == [False] * 4 + [True] * 2


def test_rounded_stamps_still_belong_to_their_step() -> None:
    times = [round(i / 30, 3) for i in range(300)]  # whole milliseconds of a 30 Hz recorder
    e = episode(t=stream(times, range(300)), u=stream(times, range(300)))
    g = align(e, machine(Channel("t"), rate_hz=30.0))
    assert g.observe["t"].values[:, 0].tolist() == list(range(300)) == g.command["u"].values[:, 0].tolist()


def test_refused_samples_keep_the_last_good_one_with_its_age() -> None:
    e = episode(t=stream([0, 0.1, 0.2], [5, np.nan, 7], [True, True, False]), u=stream([0, 0.1, 0.2], [0, 0, 0]))
    r = align(e, machine(Channel("t"))).observe["t"]
    assert r.values[:, 0].tolist() == [5, 5, 5] and r.valid.all()
    np.testing.assert_allclose(r.age_s, [0, 0.1, 0.2], atol=1e-6)


def test_a_set_is_taken_as_a_whole() -> None:
    times = np.array([0, S // 10], np.int64)
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    streams = {"a": Stream(times, values, np.array([[1, 1], [0, 1]], bool)), "u": stream([0, 0.1], [0, 0])}
    r = align(Episode("e", "m", streams), machine(Channel("a", kind="set", shape=(2, 2)))).observe["a"]
    assert r.valid.tolist() == [[True, True], [False, True]] and not r.values[1, 0].any()


def test_commands_hold_between_and_end_with_the_log() -> None:
    e = episode(t=stream([i / 10 for i in range(8)], range(8)), u=stream([0.2, 0.5], [3, 4]))
    g = align(e, machine(Channel("t")))
    assert g.times_ns[0] == S // 5 and g.observe["t"].values[:, 0].tolist() == [2, 3, 4, 5, 6, 7]
    assert g.command["u"].valid.tolist() == [True, True, True, True, False, False]
    assert g.command["u"].values[:, 0].tolist() == [3, 3, 3, 4, 0, 0]
    assert g.applied["u"] is g.command["u"]
    e = episode(t=stream([0, 0.1], [0, 1]), u=stream([0, 0.1], [1, 2]), u_applied=stream([0, 0.1], [1.5, 2.5]))
    assert align(e, machine(Channel("t"))).applied["u"].values[:, 0].tolist() == [1.5, 2.5]


def test_the_grid_starts_with_the_commands_not_with_an_old_reading() -> None:
    e = episode(t=stream([-0.07, 0.02], [1, 2]), u=stream([0, 0.1, 0.2], [0, 0, 0]))
    g = align(e, machine(Channel("t")))
    assert g.times_ns.tolist() == [0, S // 10, S // 5]
    assert g.observe["t"].age_s[0] == pytest.approx(0.07)
    late = episode(t=stream([i / 10 for i in range(40)], range(40)), u=stream([3.05], [1]))
    g = align(late, machine(Channel("t")))
    assert g.times_ns[0] == S // 20 and len(g) == 39  # in phase with the command, but nothing is cut off


def test_delay_is_age() -> None:
    e = episode(t=stream([0, 0.1], [1, 2]), u=stream([0, 0.1], [0, 0]))
    np.testing.assert_allclose(align(e, machine(Channel("t", delay_s=2.5))).observe["t"].age_s, 2.5)


def test_linear_and_nearest() -> None:
    e = episode(t=stream([0, 0.28], [0, 28]), u=stream([0, 0.1, 0.2, 0.3], [0] * 4))
    assert align(e, machine(Channel("t", align="linear"))).observe["t"].values[:3, 0].tolist() == pytest.approx(
        [0, 10, 20]
    )
    assert align(e, machine(Channel("t", align="nearest"))).observe["t"].values[:, 0].tolist() == [0, 0, 28, 28]


def test_unsorted_and_repeated_stamps() -> None:
    e = episode(t=stream([0.2, 0, 0.1, 0.1], [3, 1, 2, 9]), u=stream([0, 0.1, 0.2], [0, 0, 0]))
    assert align(e, machine(Channel("t"))).observe["t"].values[:, 0].tolist() == [1, 9, 3]


def test_what_cannot_be_aligned() -> None:
    with pytest.raises(LogError, match="no sample"):
        align(episode(), machine(Channel("t")))
    with pytest.raises(LogError, match="clock cannot be right"):
        align(episode(t=stream([0, 4e9], [0, 1])), machine(Channel("t")))
    assert instruction(episode(), machine(Channel("t"))) == ""


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 3 * S), min_size=1, max_size=30), st.lists(st.integers(0, 3 * S), max_size=10))
def test_any_stamps(seen: list[int], given_ns: list[int]) -> None:
    t = Stream(np.array(seen, np.int64), np.array(seen, np.float32)[:, None] / S, np.ones(len(seen), bool))
    u = Stream(np.array(given_ns, np.int64), np.zeros((len(given_ns), 1), np.float32), np.ones(len(given_ns), bool))
    g = align(Episode("e", "m", {"t": t, "u": u}), machine(Channel("t")))
    r, slack = g.observe["t"], S // 10 // 20
    for k, now in enumerate(g.times_ns):
        past = [s for s in seen if s <= now + slack]
        assert bool(r.valid[k]) == bool(past)
        if past:
            assert r.values[k, 0] == np.float32(max(past)) / np.float32(S)
            assert r.age_s[k] == pytest.approx(max(now - max(past), 0) / S, abs=1e-5)
    assert len(np.unique(np.diff(g.times_ns))) <= 1 and (r.age_s >= 0).all()
