"""A watchdog over ranks: a run that hangs is ended, and the message names who is missing and what the others wait in.

A thread in every rank writes a beat into the store where the ranks meet: what it is at, and how long it has not come
forward (neither a step, nor a collective queued or done). A rank that has stood still for the deadline reads the beats
of all, twice: who did not beat in between is stopped or gone; who beats but waits in no collective is the one that the
others wait for; and if all wait, they wait in different collectives. Beats carry counts, not times: no clock of another
machine is believed.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Protocol

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from hagane.engine import flight
from hagane.engine.agree import rank_list
from hagane.terms import TrainingError

EXIT_STUCK = 75
"""Exit code of a rank that the watchdog ended: trying again may help, so torchrun's restart acts on it."""
BEATS = 10
"""Beats in a deadline."""
VERDICT = "verdict"
"""Key of the first verdict: one rank speaks for all."""


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself."""

    count: int
    """Beats so far."""
    step: int
    """Optimiser steps done."""
    doing: str
    """What it is at: "a step", "saving" ..."""
    still_s: float
    """Seconds without coming forward."""
    process: str
    """Process id and machine."""
    patient: bool = False
    """At honest work of unknown length that no collective marks; nothing is stuck as long as it beats."""
    waits: str = ""
    """The collective that it waits in; only said by a rank that stands still."""
    at: str = ""
    """Where its main thread is; only said by a rank that stands still and waits in no collective."""


class Watch(Protocol):
    """What the loop tells a watchdog."""

    def at(self, step: int, doing: str, *, patient: bool = False) -> None:
        """The rank came forward: it is at this step, doing this; `patient` when that may take any time."""


class Unwatched:
    """A process that is alone waits for nobody."""

    def at(self, step: int, doing: str, *, patient: bool = False) -> None:
        """Nothing to tell."""


class Watchdog:
    """Watch this rank and, once it stands still, the others. A context: the thread lives inside `with`."""

    def __init__(
        self,
        store: Store,
        rank: int,
        ranks: int,
        deadline_s: float,
        end: Callable[[TrainingError | None], None],
    ) -> None:
        """Make a watchdog.

        Args:
            store: where the ranks meet; the watchdog has it for itself.
            rank: this process's.
            ranks: how many there are.
            deadline_s: seconds without a step or a collective after which a run is stuck. Longer than the longest
                stretch of honest work without one, such as compiling.
            end: ends this process; gets the message in the one rank that speaks, None in the others.
        """
        self._store, self._rank, self._ranks, self._end = store, rank, ranks, end
        self._deadline_s = deadline_s
        self._pause_s = min(deadline_s / BEATS, 15.0)
        self._now: tuple[int, str, bool] = (0, "starting", False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        store.set_timeout(timedelta(seconds=max(5.0, deadline_s)))

    def at(self, step: int, doing: str, *, patient: bool = False) -> None:
        """The rank came forward: it is at this step, doing this; `patient` when that may take any time."""
        self._now = (step, doing, patient)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        count, moved, mark, woke, first = 0, time.monotonic(), "", time.monotonic(), dict[int, Beat]()
        while not self._closed.wait(self._pause_s):
            now = time.monotonic()
            if now - woke > 3 * self._pause_s + 1:
                # this process itself was stopped, as the whole job may have been: that is not standing still
                moved += now - woke
            woke, count = now, count + 1
            if (latest := f"{self._now} {flight.progress()}") != mark:
                mark, moved, first = latest, now, {}
            try:
                self._beat(count, now - moved)
                if now - moved <= self._deadline_s:
                    continue
                if not first:
                    first, asked = self._read(), count
                elif count >= asked + 3:
                    self._judge(first, self._read())
                    first = {}
            except DistError as e:
                if not self._closed.is_set():
                    self._end(_unreachable(self._rank, e))
                return

    def _beat(self, count: int, still_s: float) -> None:
        step, doing, patient = self._now
        waits = flight.waiting() if still_s > self._deadline_s / 2 else None
        place = flight.whereabouts() if still_s > self._deadline_s / 2 and waits is None else ""
        process = f"process {os.getpid()} on {platform.node()}"
        beat = Beat(count, step, doing, still_s, process, patient, str(waits or ""), place)
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))

    def _read(self) -> dict[int, Beat]:
        return read_beats(self._store, self._ranks)

    def _judge(self, first: Mapping[int, Beat], second: Mapping[int, Beat]) -> None:
        what = judge(first, second, self._ranks, self._deadline_s)
        if what or self._store.check([VERDICT]):
            mine = f"{self._rank} {what}"
            speaks = self._store.compare_set(VERDICT, "", mine).decode() == mine
            self._end(stuck(what) if speaks else None)


def stuck(what: str) -> TrainingError:
    """The message of a run that the watchdog ended."""
    return TrainingError(what, next_step="look at that rank and its machine; the run goes on with `--resume`")


def verdict(store: Store) -> TrainingError | None:
    """What a watchdog found, if one did."""
    return stuck(store.get(VERDICT).decode().split(" ", 1)[1]) if store.check([VERDICT]) else None


def read_beats(store: Store, ranks: int) -> dict[int, Beat]:
    """The last beat of every rank that has one."""
    there = [rank for rank in range(ranks) if store.check([f"beat/{rank}"])]
    texts = store.multi_get([f"beat/{rank}" for rank in there]) if there else []
    return {rank: Beat(**json.loads(text)) for rank, text in zip(there, texts, strict=True)}


def judge(first: Mapping[int, Beat], second: Mapping[int, Beat], ranks: int, deadline_s: float) -> str:
    """Who keeps the others waiting, in one sentence; empty when somebody still comes forward.

    Args:
        first: beats of a moment.
        second: beats of a moment some beats later.
        ranks: how many there should be.
        deadline_s: seconds after which standing still counts.
    """
    silent = [r for r in range(ranks) if r not in second or (r in first and first[r].count == second[r].count)]
    alive = {r: b for r, b in second.items() if r not in silent}
    if any(b.patient or b.still_s <= deadline_s / 2 for b in alive.values()):
        return ""
    away = {r: b for r, b in alive.items() if not b.waits}
    waits = {r: b.waits for r, b in alive.items() if b.waits}
    step = max((b.step for b in second.values()), default=0)
    parts = [f"no rank has come forward for {deadline_s:g} s, at step {step}"]
    if silent:
        named = [f"{rank_list([r])} ({second[r].process})" if r in second else rank_list([r]) for r in silent]
        parts.append(f"{_some(named)} gave no sign of life: stopped, or its machine is gone")
    if away:
        named = [f"{rank_list([r])} ({b.process}) is alive, at {b.doing}, in {b.at}" for r, b in away.items()]
        parts.append(_some(named))
    groups = {text: [r for r, w in waits.items() if w == text] for text in waits.values()}
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))
    if largest:
        parts.append(_some([f"{rank_list(who)} wait{'s' if len(who) == 1 else ''} in {text}" for text, who in largest]))
    return "; ".join(parts)


def _some(texts: list[str], most: int = 4) -> str:
    """The first few, so that a message about thousands of ranks stays one."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _unreachable(rank: int, error: DistError) -> TrainingError:
    said = str(error).splitlines()[0]
    return TrainingError(
        f"the place where the ranks meet does not answer: {said}",
        where=f"rank {rank}",
        next_step="the process or machine that hosts it is gone; the run goes on with `--resume`",
    )
