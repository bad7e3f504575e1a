"""The guard itself: chunks in, one safe command a tick out.

    NOMINAL    a fresh chunk, commanded as it is
    DEGRADED   a fresh chunk, but something had to be changed or refused
    HOLD       no usable action just now; ends by itself with the next good chunk
    SAFE_STOP  no good chunk for `watchdog_s`; ends only by `resume(operator)`
    ESTOP      asked for by `estop`; latched until `reset_estop(operator)`

All times are the receiver's own clock. A chunk is used by actions consumed: row k of a chunk is the command of
the k-th tick after its observation, however long the answer took (splicing by latency makes machines jump).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.guard.bounds import bounds_of
from hagane.guard.envelope import Envelope
from hagane.terms import ActionChunk, Embodiment, GuardError


class State(Enum):
    """States of a guard, from best to worst."""

    NOMINAL = "NOMINAL"
    DEGRADED = "DEGRADED"
    HOLD = "HOLD"
    SAFE_STOP = "SAFE_STOP"
    ESTOP = "ESTOP"


@dataclass(frozen=True)
class Intervention:
    """One thing that the guard did not let through."""

    kind: str
    """range, rate, not-finite, schema, time, stale-observation, stale-chunk, exhausted, watchdog or estop."""
    column: str
    """Action column, "drive.0"; "" when it is about a whole chunk."""
    asked: float
    """What was asked for, or the age or width that was wrong."""
    given: float
    """What was commanded instead, or the limit."""


@dataclass(frozen=True, eq=False)
class GuardedAction:
    """The command of one tick."""

    values_A: NDArray[np.float32]
    """[A] finite, in range and in rate."""
    state: State
    """State that it was commanded in."""
    interventions: tuple[Intervention, ...]
    """What was changed or refused since the tick before."""
    time_ns: int
    """Time of the tick."""


class Guard:
    """Stands between a policy and one machine; nothing else commands the machine.

    Args:
        envelope: limits.
        embodiment: the machine.
        clock: the receiver's monotonic clock, ns; used where no time is given.
        start_A: [A] what the machine is commanded now; None takes the envelope's `start`.
        record: called with every tick's result; must not block.

    Raises:
        GuardError: the envelope does not fit.
    """

    def __init__(
        self,
        envelope: Envelope,
        embodiment: Embodiment,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        start_A: NDArray[Any] | None = None,
        record: Callable[[GuardedAction], None] | None = None,
    ) -> None:
        self.envelope, self.embodiment, self.bounds = envelope, embodiment, bounds_of(envelope, embodiment)
        self._clock, self._record = clock, record
        start = self.bounds.start_A if start_A is None else np.asarray(start_A, np.float64)
        if start.shape != self.bounds.start_A.shape or not np.isfinite(start).all():
            raise GuardError(f"start_A must be {len(self.bounds.start_A)} finite numbers", where=embodiment.name)
        self._last_A = np.clip(start, self.bounds.low_A, self.bounds.high_A)
        self._rows_HA: NDArray[np.float64] | None = None
        self._observed_ns = 0
        self._observed_tick = 0
        self._tick_ns = 0
        self._fed_ns: int | None = None
        self._now_ns: int | None = None
        self._pending: list[Intervention] = []
        self.state = State.HOLD
        """State of the last tick; HOLD before the first chunk."""
        self.ticks = 0
        """Ticks so far: pass it as `observed_tick` with the chunk that this moment's observation leads to."""

    @property
    def consumed(self) -> int:
        """Ticks since the observation of the present chunk; the whole horizon when there is none."""
        return self.embodiment.horizon if self._rows_HA is None else self.ticks - self._observed_tick

    def offer(self, chunk: ActionChunk, *, observed_tick: int | None = None, now_ns: int | None = None) -> bool:
        """Take a chunk into use, if it is well formed, finite and fresh; never raises for a bad one.

        Args:
            chunk: N = 1; `start_ns` is the time of its observation on this guard's clock.
            observed_tick: `ticks` at the time of the observation; None means now.
            now_ns: time on this guard's clock; None asks the clock.

        Returns:
            Whether it was taken. The next tick reports why not; a stopped guard takes none and says nothing.
        """
        now_ns = self._forward(self._clock() if now_ns is None else now_ns)
        if self.state in (State.SAFE_STOP, State.ESTOP):
            return False
        tick = self.ticks if observed_tick is None else observed_tick
        refusal = self._refusal(chunk, now_ns) or self._late(tick)
        if refusal is not None:
            self._pending.append(refusal)
            return False
        # a copy: nobody may change what was checked
        self._rows_HA = np.array(chunk.actions_NHA[0], np.float64)
        self._observed_ns, self._observed_tick, self._fed_ns = int(chunk.start_ns[0]), tick, now_ns
        return True

    def tick(self, now_ns: int | None = None) -> GuardedAction:
        """The command of this control step. Always finite, in range, and within rate of the one before."""
        now_ns = self._forward(self._clock() if now_ns is None else now_ns)
        step_s = self.embodiment.step_ns / 1e9
        # a late tick earns no larger step
        passed_s = step_s if self.ticks == 0 else min((now_ns - self._tick_ns) / 1e9, step_s)
        self._tick_ns = now_ns
        if self._fed_ns is None:
            self._fed_ns = now_ns
        asked_A = self._asked(now_ns)
        if asked_A is None:
            given_A = self._fall_back(passed_s)
        else:
            given_A = self._limit(asked_A, passed_s)
            self.state = State.DEGRADED if self._pending else State.NOMINAL
        values_A = given_A.astype(np.float32)
        self._last_A = values_A.astype(np.float64)
        self.ticks += 1
        action = GuardedAction(values_A, self.state, tuple(self._pending), now_ns)
        self._pending = []
        if self._record is not None:
            self._record(action)
        return action

    def estop(self, reason: str = "") -> None:
        """Stop now and stay stopped: every chunk is refused until `reset_estop`."""
        del reason  # the caller's ledger keeps it; a stop must not depend on it
        self.state, self._rows_HA = State.ESTOP, None
        self._note("estop", 1.0, 0.0)

    def reset_estop(self, operator: str) -> None:
        """An operator ends ESTOP; the guard holds until the next fresh chunk.

        Raises:
            GuardError: no ESTOP, or no name.
        """
        self._release(State.ESTOP, operator)

    def resume(self, operator: str) -> None:
        """An operator ends SAFE_STOP; the guard holds until the next fresh chunk.

        Raises:
            GuardError: no SAFE_STOP, or no name.
        """
        self._release(State.SAFE_STOP, operator)

    def _release(self, state: State, operator: str) -> None:
        if self.state is not state or not operator.strip():
            raise GuardError(f"only a named operator ends {state.value}; the state is {self.state.value}")
        # nothing that was asked before the stop is replayed, and the watchdog starts anew
        self.state, self._rows_HA, self._fed_ns = State.HOLD, None, None

    def _forward(self, now_ns: int) -> int:
        """Time never runs backwards here, whatever the clock says."""
        self._now_ns = now_ns if self._now_ns is None else max(now_ns, self._now_ns)
        return self._now_ns

    def _note(self, kind: str, asked: float, given: float, column: str = "") -> None:
        self._pending.append(Intervention(kind, column, float(asked), float(given)))

    def _refusal(self, chunk: ActionChunk, now_ns: int) -> Intervention | None:
        """Why a chunk cannot be used; None when it can."""
        e = self.embodiment
        try:
            actions = np.asarray(chunk.actions_NHA)
            if actions.shape != (1, e.horizon, e.action_width) or actions.dtype.kind != "f":
                return Intervention("schema", "", float(actions.ndim), 3.0)
            if chunk.step_ns != e.step_ns:
                return Intervention("schema", "", float(chunk.step_ns), float(e.step_ns))
            age_s = (now_ns - int(chunk.start_ns[0])) / 1e9
        except (AttributeError, TypeError, ValueError, IndexError, OverflowError):
            return Intervention("schema", "", float("nan"), 0.0)
        if not np.isfinite(actions).all():
            return Intervention("not-finite", "", float(np.count_nonzero(~np.isfinite(actions))), 0.0)
        if age_s < -1e-9 * e.step_ns:
            return Intervention("time", "", age_s, 0.0)
        if age_s > self.envelope.max_observation_age_s:
            return Intervention("stale-observation", "", age_s, self.envelope.max_observation_age_s)
        return None

    def _late(self, tick: int) -> Intervention | None:
        """Refuse a chunk for ticks that are over or not yet counted, or older than the one in use."""
        used = self.ticks - tick
        if used < 0 or used >= self.embodiment.horizon or (self._rows_HA is not None and tick < self._observed_tick):
            return Intervention("stale-chunk", "", float(used), float(self.embodiment.horizon))
        return None

    def _asked(self, now_ns: int) -> NDArray[np.float64] | None:
        """What the present chunk asks for at this tick; None for the fallback, with the state set."""
        if self.state in (State.SAFE_STOP, State.ESTOP):
            return None
        assert self._fed_ns is not None
        unfed_s = (now_ns - self._fed_ns) / 1e9
        if unfed_s > self.envelope.watchdog_s:
            self._note("watchdog", unfed_s, self.envelope.watchdog_s)
            self.state, self._rows_HA = State.SAFE_STOP, None
            return None
        if self._rows_HA is None:
            self.state = State.HOLD
            return None
        age_s = (now_ns - self._observed_ns) / 1e9
        if self.consumed >= self.embodiment.horizon:
            self._note("exhausted", self.consumed, self.embodiment.horizon)
        elif age_s > self.envelope.max_chunk_age_s:
            self._note("stale-chunk", age_s, self.envelope.max_chunk_age_s)
        else:
            asked_A: NDArray[np.float64] = self._rows_HA[self.consumed]
            return asked_A
        self.state = State.HOLD
        return None

    def _limit(self, asked_A: NDArray[np.float64], passed_s: float) -> NDArray[np.float64]:
        """The nearest allowed command to what was asked."""
        b = self.bounds
        ranged_A = np.clip(asked_A, b.low_A, b.high_A)
        room_A = b.rate_A * passed_s
        # both this and the last command are in range, so what lies between them is too
        given_A = np.clip(ranged_A, self._last_A - room_A, self._last_A + room_A)
        grain_A = 1e-6 * (b.high_A - b.low_A)
        for kind, wanted_A, got_A in (("range", asked_A, ranged_A), ("rate", ranged_A, given_A)):
            for i in np.flatnonzero(np.abs(wanted_A - got_A) > grain_A):
                self._note(kind, wanted_A[i], got_A[i], b.names_A[i])
        return given_A

    def _fall_back(self, passed_s: float) -> NDArray[np.float64]:
        """One step towards the command of the present state."""
        b = self.bounds
        stopped = self.state in (State.SAFE_STOP, State.ESTOP)
        target_A = b.safe_A if stopped else b.hold_A
        room_A = (b.safe_rate_A if stopped else b.rate_A) * passed_s
        target_A = np.where(np.isnan(target_A), self._last_A, target_A)
        return np.clip(np.clip(target_A, self._last_A - room_A, self._last_A + room_A), b.low_A, b.high_A)
