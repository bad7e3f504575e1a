"""An independent judge of what leaves the guard, and planted faults in the guard that it must catch."""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hagane.guard.guard as real
from hagane.guard import Envelope, Limit
from hagane.terms import ActionChunk, Channel, Embodiment

STEP_S, STEP = 0.1, 100_000_000
LOW, HIGH, RATE = np.array([-5.0, -0.2]), np.array([2.0, 0.2]), np.array([10.0, 0.5])
SAFE, WATCHDOG_S, AGE_S, CHUNK_AGE_S, HORIZON = np.array([-2.0, 0.0]), 1.0, 0.3, 0.5, 4
CAR = Embodiment("car", "vehicle", "member-cars", 10.0, HORIZON, (Channel("ego"),), (Channel("drive", shape=(2,)),))
DRIVE = Limit(
    channel="drive",
    low=tuple(LOW),
    high=tuple(HIGH),
    max_rate_per_s=tuple(RATE),
    start=(0.0, 0.0),
    hold=(0.0, math.nan),
    safe=tuple(SAFE),
    safe_rate_per_s=(5.0, 0.1),
)
ENVELOPE = Envelope("car", "brake", AGE_S, CHUNK_AGE_S, WATCHDOG_S, (DRIVE,))


Event = tuple[str, Any, float]
"""What happens before a tick ("chunk", "estop", "reset", "resume" or ""), its matter, seconds since the last tick."""


def judge(make: Callable[[], Any], events: list[Event]) -> list[str]:
    """Run a guard through events; what it did wrong, found without its own code."""
    guard, bad = make(), []
    now, last, latched, good_ns, good_rows = 0, np.zeros(2), False, 0, None
    good_tick = 0
    for k, (kind, matter, passed_s) in enumerate(events):
        before, now = now, now + int(passed_s * 1e9)
        if k == 0:
            good_ns = now  # the watchdog starts with the first tick
        if kind == "estop":
            guard.estop()
            latched = True
        elif kind == "reset" and latched:
            guard.reset_estop("operator")
            latched, good_ns, good_rows = False, now, None
        elif kind == "resume" and guard.state.value == "SAFE_STOP":
            guard.resume("operator")
            good_ns, good_rows = now, None
        elif kind == "chunk":
            rows, age_s = matter
            start = np.array([now - int(age_s * 1e9)], np.int64)
            taken = guard.offer(ActionChunk(rows, start, STEP, "w"), now_ns=now)
            fine = rows.shape == (1, HORIZON, 2) and bool(np.isfinite(rows).all()) and 0 <= age_s <= AGE_S
            if taken and (not fine or latched):
                bad.append(f"{k}: took a chunk it must refuse")
            if taken:
                good_ns, good_rows, good_tick, good_age = now, rows[0], k, age_s
        action = guard.tick(now)
        out, state = action.values_A.astype(float), action.state.value
        room = RATE * min((now - before) / 1e9 if k else STEP_S, STEP_S)
        if not np.isfinite(out).all():
            bad.append(f"{k}: not finite")
        elif (out < LOW).any() or (out > HIGH).any():
            bad.append(f"{k}: out of range {out}")
        elif (np.abs(out - last) > room + 1e-5).any():
            bad.append(f"{k}: faster than the rate {out - last}")
        unfed_s = (now - good_ns) / 1e9
        if latched and state != "ESTOP":
            bad.append(f"{k}: ESTOP was not kept")
        if not latched and unfed_s > WATCHDOG_S and state != "SAFE_STOP":
            bad.append(f"{k}: no SAFE_STOP after {unfed_s} s")
        if state in ("SAFE_STOP", "ESTOP") and (np.abs(out - SAFE) > np.abs(last - SAFE) + 1e-5).any():
            bad.append(f"{k}: moves away from the safe command")
        if state in ("NOMINAL", "DEGRADED"):
            row = k - good_tick
            stale = good_rows is None or row >= HORIZON or unfed_s + good_age > CHUNK_AGE_S + 1e-9
            if stale:
                bad.append(f"{k}: used a chunk that is over")
            else:
                allowed = np.clip(np.clip(good_rows[row], LOW, HIGH), last - room, last + room)
                if (np.abs(out - allowed) > 1e-5).any():
                    bad.append(f"{k}: {out} is not the nearest to {good_rows[row]}")
        if state == "HOLD" and np.abs(out[0]) > np.abs(last[0]) + 1e-5:
            bad.append(f"{k}: HOLD accelerates")
        if state == "NOMINAL" and action.interventions:
            bad.append(f"{k}: NOMINAL with interventions")
        last = out
    return bad


def guard_of(module: Any) -> Callable[[], Any]:
    return lambda: module.Guard(ENVELOPE, CAR)


def hostile(seed: int, ticks: int = 60) -> list[Event]:
    """A seeded run of good, wild, broken, late and missing chunks, stops and late ticks."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    quiet = 0
    for _ in range(ticks):
        passed = float(rng.choice([STEP_S, STEP_S, STEP_S, 0.02, 0.35, 0.0]))
        if quiet:
            quiet -= 1
            events.append(("", None, passed))
            continue
        shape = (1, HORIZON, 2) if rng.random() < 0.9 else (1, int(rng.integers(0, 6)), int(rng.integers(1, 4)))
        rows = (rng.standard_normal(shape) * rng.choice([0.2, 3.0, 1e6])).astype(np.float32)
        if rng.random() < 0.25 and rows.size:
            rows.flat[int(rng.integers(rows.size))] = rng.choice([np.nan, np.inf, -np.inf])
        age = float(rng.choice([0.0, 0.0, 0.1, 0.25, 0.6, 5.0]))
        kind = str(rng.choice(["chunk"] * 14 + ["", "estop", "reset", "reset", "resume"]))
        events.append((kind, (rows, age) if kind == "chunk" else None, passed))
        quiet = int(rng.choice([0, 0, 0, 3, 7, 16]))
    return events


def all_bad(module: Any, seeds: range) -> list[str]:
    found: list[str] = []
    for seed in seeds:
        try:
            found += judge(guard_of(module), hostile(seed))
        except Exception as e:
            found.append(f"raised {type(e).__name__}: {e}")
        if found:
            break
    return found


def test_no_hostile_run_gets_through() -> None:
    assert all_bad(real, range(120)) == []


rows = st.lists(
    st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 3e38, 0.1]), min_size=8, max_size=8
)
event = st.tuples(
    st.sampled_from(["chunk", "chunk", "chunk", "", "estop", "reset", "resume"]),
    st.tuples(rows, st.sampled_from([(1, 4, 2), (1, 4, 2), (1, 2, 4), (2, 2, 2), (8,)]), st.floats(-0.1, 0.6)),
    st.sampled_from([STEP_S, STEP_S, 0.03, 0.5, 2.0]),
)


@given(st.lists(event, max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_sequence_of_chunks_stays_in_the_envelope(drawn: list[Any]) -> None:
    events: list[Event] = [
        (kind, (np.array(values, np.float32).reshape(shape), age), passed)
        for kind, (values, shape, age), passed in drawn
    ]
    # a chunk from up to one step ahead is a clock's grain, not a fault: the judge does not count it as one
    events = [(k, (m[0], max(m[1], 0.0)), p) for k, m, p in events]
    assert judge(guard_of(real), events) == []


MUTANTS: dict[str, tuple[str, str]] = {
    "range not kept": ("ranged_A = np.clip(asked_A, b.low_A, b.high_A)", "ranged_A = asked_A"),
    "rate not kept": ("room_A = b.rate_A * passed_s\n        # both", "room_A = b.rate_A * 1e9\n        # both"),
    "rate doubled": ("b.rate_A * passed_s\n        # both", "b.rate_A * passed_s * 2\n        # both"),
    "late ticks earn more": ("min((now_ns - self._tick_ns) / 1e9, step_s)", "(now_ns - self._tick_ns) / 1e9"),
    "NaN taken": ("if not np.isfinite(actions).all():", "if False:"),
    "any shape taken": ("if actions.shape != (1, e.horizon, e.action_width) or", "if"),
    "stale observation taken": ("if age_s > self.envelope.max_observation_age_s:", "if False:"),
    "no watchdog": ("if unfed_s > self.envelope.watchdog_s:", "if False:"),
    "watchdog too slow": ("unfed_s > self.envelope.watchdog_s:", "unfed_s > 3 * self.envelope.watchdog_s:"),
    "chunk used too long": ("elif age_s > self.envelope.max_chunk_age_s:", "elif False:"),
    "chunk used past its end": (
        'if self.consumed >= self.embodiment.horizon:\n            self._note("exhausted"',
        'if self.consumed > self.embodiment.horizon:\n            self._note("exhausted"',
    ),
    "last row for ever": ("self._rows_HA[self.consumed]", "self._rows_HA[-1]"),
    "row too far": ("self._rows_HA[self.consumed]", "self._rows_HA[min(self.consumed + 1, 3)]"),
    "estop not latched": (
        "if self.state in (State.SAFE_STOP, State.ESTOP):\n            return False",
        "if False:\n            return False",
    ),
    "estop ignored": ("self.state, self._rows_HA = State.ESTOP, None", "pass"),
    "stop goes the wrong way": ("b.safe_A if stopped", "b.high_A if stopped"),
    "stop jumps": ("room_A = (b.safe_rate_A if stopped else b.rate_A) * passed_s", "room_A = b.rate_A * 1e9"),
    "limits from the wrong start": ("self._last_A = values_A.astype(np.float64)", "pass"),
    "NaN target kept": ("target_A = np.where(np.isnan(target_A), self._last_A, target_A)", "pass"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str) -> None:
    before, after = MUTANTS[name]
    source = inspect.getsource(real)
    assert source.count(before) == 1, "the guard changed: write this mutant anew"
    mutant = types.ModuleType(f"mutant_{name.replace(' ', '_')}")
    # dataclasses look their module up
    sys.modules[mutant.__name__] = mutant
    try:
        exec(compile(source.replace(before, after), mutant.__name__, "exec"), mutant.__dict__)
        assert all_bad(mutant, range(120)), f"nobody noticed: {name}"
    finally:
        del sys.modules[mutant.__name__]
