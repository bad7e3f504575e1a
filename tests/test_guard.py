"""The guard by hand: each fault ends in its documented state."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hagane.guard import Envelope, Guard, GuardedAction, Limit, State, bounds_of, load_envelope, start_of
from hagane.terms import ActionChunk, Channel, ConfigError, Embodiment, GuardError, Reading

STEP = 100_000_000
CAR = Embodiment(
    "car", "vehicle", "member-cars", 10.0, 4, (Channel("ego"),),
    (Channel("drive", shape=(2,), low=(-6.0, -0.3), high=(3.0, 0.3)),), execute=2,
)  # fmt: skip
DRIVE = Limit(
    channel="drive",
    low=(-5.0, -0.2),
    high=(2.0, 0.2),
    max_rate_per_s=(10.0, 0.5),
    start=(0.0, 0.0),
    hold=(0.0, float("nan")),
    safe=(-2.0, 0.0),
    safe_rate_per_s=(5.0, 0.1),
)
ENVELOPE = Envelope("car", "brake", max_observation_age_s=0.3, max_chunk_age_s=0.5, watchdog_s=1.0, act=(DRIVE,))


def chunk(rows: Any, at_ns: int = 0) -> ActionChunk:
    return ActionChunk(np.array([rows], np.float32), np.array([at_ns], np.int64), STEP, "w")


def steady(accel: float = 0.5, curve: float = 0.01, at_ns: int = 0) -> ActionChunk:
    return chunk([[accel, curve]] * 4, at_ns)


def kinds(action: GuardedAction) -> list[str]:
    return [i.kind for i in action.interventions]


def test_a_good_chunk_passes_unchanged_row_by_row() -> None:
    guard = Guard(ENVELOPE, CAR)
    assert guard.offer(chunk([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.4, 0.0]]), now_ns=0)
    seen = [guard.tick(k * STEP) for k in range(4)]
    np.testing.assert_allclose([a.values_A[0] for a in seen], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert all(a.state is State.NOMINAL and not a.interventions for a in seen)


def test_range_and_rate_are_kept_and_reported() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(accel=9.0, curve=0.05), now_ns=0)
    first, second = guard.tick(0), guard.tick(STEP)
    np.testing.assert_allclose(first.values_A, [1.0, 0.05], rtol=1e-6)
    np.testing.assert_allclose(second.values_A, [2.0, 0.05], rtol=1e-6)
    assert kinds(first) == ["range", "rate"] and kinds(second) == ["range"]
    assert first.interventions[0].column == "drive.0" and first.interventions[0].asked == 9.0
    assert first.state is State.DEGRADED


def test_a_late_tick_earns_no_larger_step_and_time_never_runs_back() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.tick(0)
    guard.offer(steady(2.0, 0.0, at_ns=4 * STEP), now_ns=4 * STEP)
    assert guard.tick(4 * STEP).values_A[0] == pytest.approx(1.0)
    assert guard.tick(STEP).values_A[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (steady(accel=float("nan")), "not-finite"),
        (steady(accel=float("inf")), "not-finite"),
        (chunk([[0.0, 0.0]] * 3), "schema"),
        (chunk([[0.0]] * 4), "schema"),
        (replace(steady(), step_ns=STEP // 2), "schema"),
        (None, "schema"),
        (replace(steady(), start_ns=np.zeros(0, np.int64)), "schema"),
        (steady(at_ns=-4 * STEP), "stale-observation"),
        (steady(at_ns=9 * STEP), "time"),
    ],
)
def test_a_bad_chunk_is_refused_whole_and_the_old_one_goes_on(bad: Any, kind: str) -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(), now_ns=0)
    guard.tick(0)
    assert not guard.offer(bad, now_ns=STEP)
    action = guard.tick(STEP)
    assert kinds(action) == [kind] and action.state is State.DEGRADED
    assert action.values_A[0] == pytest.approx(0.5)


def test_a_gap_holds_then_stops_and_only_an_operator_resumes() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(1.0, 0.02), now_ns=0)
    seen = [guard.tick(k * STEP) for k in range(40)]
    states = [a.state for a in seen]
    assert states[:4] == [State.NOMINAL] * 4
    assert states[4:11] == [State.HOLD] * 7 and kinds(seen[4]) == ["exhausted"]
    assert states[11:] == [State.SAFE_STOP] * 29 and kinds(seen[11]) == ["watchdog"]
    np.testing.assert_allclose(seen[10].values_A, [0.0, 0.02], atol=1e-7)
    # gently: 5 m/s2 a second, and the wheel 0.1 1/m a second
    np.testing.assert_allclose(seen[11].values_A, [-0.5, 0.01], atol=1e-7)
    np.testing.assert_allclose(seen[-1].values_A, [-2.0, 0.0], atol=1e-7)
    assert not guard.offer(steady(at_ns=40 * STEP), now_ns=40 * STEP)
    with pytest.raises(GuardError, match="operator"):
        guard.resume(" ")
    guard.resume("operator at the desk")
    assert guard.tick(40 * STEP).state is State.HOLD
    assert guard.offer(steady(at_ns=41 * STEP), now_ns=41 * STEP)
    assert guard.tick(41 * STEP).state is State.DEGRADED  # on its way back, limited in rate


def test_a_short_gap_ends_by_itself() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(), now_ns=0)
    assert [guard.tick(k * STEP).state for k in range(6)][-1] is State.HOLD
    guard.offer(steady(at_ns=6 * STEP), now_ns=6 * STEP)
    assert guard.tick(6 * STEP).state in (State.NOMINAL, State.DEGRADED)


def test_nothing_from_the_start_holds_and_then_stops() -> None:
    guard = Guard(ENVELOPE, CAR)
    assert [guard.tick(k * STEP).state for k in (0, 1, 10, 11)] == [State.HOLD] * 3 + [State.SAFE_STOP]


def test_estop_is_latched_and_replays_nothing() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(2.0), now_ns=0)
    guard.tick(0)
    guard.estop("button")
    first = guard.tick(STEP)
    assert first.state is State.ESTOP and kinds(first) == ["estop"]
    assert not guard.offer(steady(at_ns=STEP), now_ns=STEP)
    assert all(guard.tick(k * STEP).state is State.ESTOP for k in range(2, 50))
    with pytest.raises(GuardError):
        guard.resume("operator")
    guard.reset_estop("operator")
    assert guard.tick(50 * STEP).state is State.HOLD


def test_chunks_are_spliced_by_actions_consumed() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(0.0, 0.0), now_ns=0)
    guard.tick(0)
    observed = guard.ticks  # observation at tick 1; its answer comes two ticks later
    guard.tick(STEP)
    guard.tick(2 * STEP)
    late = chunk([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.4, 0.0]], STEP)
    assert guard.offer(late, observed_tick=observed, now_ns=int(2.5 * STEP))
    assert guard.tick(3 * STEP).values_A[0] == pytest.approx(0.3)
    assert guard.consumed == 3
    assert not guard.offer(late, observed_tick=0, now_ns=3 * STEP)
    assert kinds(guard.tick(4 * STEP)) == ["stale-chunk"]


def test_what_was_checked_cannot_be_changed_afterwards() -> None:
    guard, given = Guard(ENVELOPE, CAR), steady()
    guard.offer(given, now_ns=0)
    given.actions_NHA[:] = np.nan
    assert np.isfinite(guard.tick(0).values_A).all()


def test_every_tick_is_recorded() -> None:
    seen: list[GuardedAction] = []
    guard = Guard(ENVELOPE, CAR, record=seen.append)
    guard.tick(0)
    guard.tick(STEP)
    assert [a.time_ns for a in seen] == [0, STEP]


def limit(**changes: Any) -> Envelope:
    return replace(ENVELOPE, act=(replace(ENVELOPE.act[0], **changes),))


CONTRADICTIONS = {
    "low above high": (limit(low=(3.0, -0.2)), "not below"),
    "beyond the machine": (limit(high=(4.0, 0.2)), "machine only"),
    "negative rate": (limit(max_rate_per_s=(-1.0, 0.5)), "positive"),
    "no rate": (limit(max_rate_per_s=()), "0 entries"),
    "rate not finite": (limit(max_rate_per_s=(float("inf"), 1.0)), "finite"),
    "safe outside": (limit(safe=(-5.5, 0.0)), "outside"),
    "safe rate too fast": (limit(safe_rate_per_s=(50.0, 0.1)), "exceeds"),
    "brake without safe": (limit(safe=()), "needs safe"),
    "brake without hold": (limit(hold=()), "needs hold"),
    "three columns": (limit(start=(0.0, 0.0, 0.0)), "3 entries"),
    "start from nowhere": (limit(start_from=("ego.0", "ego.1")), "not observed"),
    "start from one": (limit(start_from=("ego.0",)), "1 entries"),
    "other machine": (replace(ENVELOPE, embodiment="arm"), "made for"),
    "unknown channel": (limit(channel="drve"), "drive"),
    "channel twice": (replace(ENVELOPE, act=ENVELOPE.act * 2), "exactly one"),
    "watchdog before hold": (replace(ENVELOPE, watchdog_s=0.4), "HOLD"),
    "watchdog within a chunk": (replace(ENVELOPE, watchdog_s=0.1, max_chunk_age_s=0.1), "between two chunks"),
    "no age": (replace(ENVELOPE, max_observation_age_s=0.0), "positive"),
    "zero with a command": (replace(ENVELOPE, fallback="zero"), "only 0"),
    "hold with a command": (replace(ENVELOPE, fallback="hold-position"), "leave hold"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_envelope_that_contradicts_itself_is_refused(name: str) -> None:
    envelope, words = CONTRADICTIONS[name]
    with pytest.raises(GuardError, match=words):
        Guard(envelope, CAR)


def test_the_start_is_where_the_machine_stands() -> None:
    envelope = limit(start_from=("ego.0", "ego.0"))
    ego = Reading(np.array([[0.1]]), np.array([True]), np.zeros(1, np.float32))
    np.testing.assert_allclose(start_of(envelope, CAR, {"ego": ego}), [0.1, 0.1])
    unseen = replace(ego, valid=np.array([False]))
    np.testing.assert_allclose(start_of(envelope, CAR, {"ego": unseen}), [0.0, 0.0])


def test_to_keep_a_delta_command_is_refused() -> None:
    kept = replace(limit(hold=(), safe=()), fallback="hold-position")
    bounds_of(kept, CAR)
    with pytest.raises(GuardError, match="keeps it moving"):
        Guard(kept, replace(CAR, convention="delta"))


def test_an_envelope_file_names_its_unknown_key_and_line(tmp_path: Any) -> None:
    file = tmp_path / "car.toml"
    file.write_text('embodiment = "car"\nfallback = "brake"\nwatchdog = 1.0\n')
    with pytest.raises(ConfigError, match="watchdog_s") as e:
        load_envelope(CAR, file)
    assert "car.toml:3" in str(e.value)
    with pytest.raises(GuardError, match="--envelope"):
        load_envelope(CAR)


@pytest.mark.parametrize("name", ["arm", "road", "mill"])
def test_the_worlds_have_envelopes_that_fit(name: str) -> None:
    worlds = pytest.importorskip("hagane.worlds")
    try:
        embodiment = worlds.make(name).embodiment
    except ConfigError as e:
        pytest.skip(str(e))
    guard = Guard(load_envelope(embodiment), embodiment)
    assert guard.tick(0).state is State.HOLD


def test_a_tick_is_quick() -> None:
    guard = Guard(ENVELOPE, CAR)
    guard.offer(steady(9.0), now_ns=0)
    spent = []
    for k in range(400):
        guard.offer(steady(9.0, at_ns=k * STEP), now_ns=k * STEP)
        begin = time.perf_counter()
        guard.tick(k * STEP)
        spent.append(time.perf_counter() - begin)
    assert np.median(spent) < 1e-3
