"""A trial of the jail: each attempt unprotected, in the jail, and in a jail without the layers that stop it.

Unprotected it must leak, or it proves nothing on this host and is not counted. In the jail it must not. Without its
layers it must leak again: a jail that holds only because an attempt is broken would show there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from hagane.jail.attempts import ATTEMPTS, Attempt
from hagane.jail.listener import DEADLY, Listener

OF_USERNS = ("mountns", "pidns", "netns", "ipcns", "utsns", "cgroupns", "timens", "caps")
LIMIT_S = 20.0
"""No run of an attempt takes longer; what has not arrived by then has not leaked."""
HOLD_S = 1.0
HOLDS, LEAKS, UNPROVED, NOT_COUNTED, OPEN = "holds", "LEAKS", "UNPROVED", "not counted", "open, listed"
"""Verdicts: stopped, and leaking without its layers; leaked from the jail; does not leak without its layers; does not
leak on this host without any protection; no layer claims to stop it, and none does."""


@dataclass(frozen=True)
class Run:
    """One run of an attempt."""

    channels: tuple[str, ...]
    """Where the judge saw the token; empty when nowhere."""
    code: int | None
    """Exit code that the keeper saw; None when the run was cut off at its limit."""
    failed: str = ""
    """Why the run did not take place."""


@dataclass(frozen=True)
class Row:
    """An attempt's runs and verdict."""

    attempt: Attempt
    """What was tried."""
    control: Run
    """The run without protection."""
    jailed: Run | None
    """The run in the jail; None when there was none."""
    opened: Run | None
    """The run in a jail without the attempt's layers; None when there was none."""
    verdict: str
    """One of the words of this file."""
    reason: str = ""
    """Of the verdict, where it needs one."""
    without: tuple[str, ...] = ()
    """Those layers, as they were taken away."""


@dataclass(frozen=True)
class Trial:
    """The judge, and the layers of the jails that it judges; made by `open_trial`."""

    listener: Listener
    """The judge."""
    layers: frozenset[str]
    """Layers of the whole jail; fewer only to see that a leak is found."""

    def row(self, attempt: Attempt, *, jails: bool = True) -> Row:
        """All runs of one attempt, and the verdict."""
        missing = self.listener.missing.get(attempt.name)
        if missing:
            return Row(attempt, Run((), None), None, None, NOT_COUNTED, missing)
        control = self.run(attempt, None)
        if not control.channels:
            why = control.failed or "it does not leak on this host without protection either"
            return Row(attempt, control, None, None, NOT_COUNTED, why)
        if not jails:
            return Row(attempt, control, None, None, "not tried in a jail")
        jailed = self.run(attempt, self.layers)
        without = stops_here(attempt)
        opened = self.run(attempt, self.layers - set(without)) if without else None
        return Row(attempt, control, jailed, opened, *judge(attempt, jailed, opened, without), without)

    def run(self, attempt: Attempt, layers: frozenset[str] | None) -> Run:
        """Run an attempt once, in a jail of these layers or (None) unprotected, and listen."""
        token = self.listener.token()
        prefix = f"hagane-trial-{token.decode()[:8]}-"
        with ExitStack() as stack:
            stack.callback(self.listener.clear, token, prefix)
            terminal, other = (stack.enter_context(self.listener.terminal()) for _ in range(2))
            at = {**self.listener.at, "prefix": prefix, "hold_s": HOLD_S, "terminal_other": os.ttyname(other)}
            words = [sys.executable, "-I", str(attempt.file), attempt.name, token.decode(), json.dumps(at)]
            output = stack.enter_context(self.listener.output())
            status = stack.enter_context(_keeper(self.listener, layers, words, terminal, output))
            told = self._listen(attempt, token, prefix, status)
            self.listener.drain()
            self.listener.look(token, prefix, ended=bool(told))
        return self._result(token, told)

    def _listen(self, attempt: Attempt, token: bytes, prefix: str, status: int) -> str:
        """Listen until the keeper tells how the attempt ended, or the limit."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if self.listener.hear(0.02 if attempt.holds else 0.25, status):
                return os.read(status, 4096).decode("utf-8", "replace").strip()
            if attempt.holds:
                self.listener.look_live(token, prefix)
                if self.listener.seen(token):
                    break  # it is out: no need to wait for the end
        return ""

    def _result(self, token: bytes, told: str) -> Run:
        if told.startswith("!"):
            return Run(tuple(self.listener.seen(token)), None, told[1:])
        code = int(told) if told else None
        byte = int(token[:2], 16)
        if code in (byte, -DEADLY[byte % len(DEADLY)]):
            self.listener.note(token, "exit code")
        return Run(tuple(self.listener.seen(token)), code)


@contextlib.contextmanager
def open_trial(layers: frozenset[str]) -> Iterator[Trial]:
    """A judge that listens, for jails of these layers; everything it made on the host is removed after use."""
    with ExitStack() as stack:
        yield Trial(Listener(stack), layers)


def stops_here(attempt: Attempt) -> tuple[str, ...]:
    """The layers to take away from a jail of the running user, that an attempt may leak again.

    Without privileges and without a user namespace no other namespace can be made, and the bounding set cannot be
    cut: they all go with it.
    """
    rest = OF_USERNS if "userns" in attempt.stops and os.geteuid() != 0 else ()
    return (*attempt.stops, *(layer for layer in rest if layer not in attempt.stops))


def would_pass(lacking: frozenset[str]) -> list[Attempt]:
    """The attempts that get out of a jail which lacks these layers."""
    return [attempt for attempt in ATTEMPTS if attempt.stops and lacking.issuperset(attempt.stops)]


def judge(attempt: Attempt, jailed: Run, opened: Run | None, without: tuple[str, ...]) -> tuple[str, str]:
    """Verdict and reason, of an attempt that leaked without protection."""
    if jailed.failed:
        return UNPROVED, f"there was no jail: {jailed.failed}"
    if jailed.channels:
        return (OPEN, attempt.known_open) if attempt.known_open else (LEAKS, ", ".join(jailed.channels))
    if opened is None:
        return HOLDS, ""
    if not opened.channels:
        return UNPROVED, opened.failed or f"does not leak without {' + '.join(without)} either"
    return HOLDS, ""


@contextlib.contextmanager
def _keeper(
    listener: Listener, layers: frozenset[str] | None, command: list[str], terminal: int, output: int
) -> Iterator[int]:
    """Start a keeper for one attempt; yields where it tells the end. It and its session are gone after use."""
    status, tells = os.pipe()
    waits, go = os.pipe()
    places = listener.places
    order = {
        "status": tells,
        "wait": waits,
        "layers": None if layers is None else sorted(layers),
        "here": str(places.here),
        "data": str(places.data),
        "runs": str(places.runs),
        "command": command,
    }
    keeper = subprocess.Popen(
        [sys.executable, "-m", "hagane.jail.trial_keeper"],
        stdin=terminal,
        stdout=output,
        stderr=output,
        pass_fds=(tells, waits, *listener.inherit),
        env={**os.environ, "HAGANE_TRIAL": json.dumps(order), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    os.close(tells)
    os.close(waits)
    try:
        yield status
    finally:
        os.close(go)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(keeper.pid, signal.SIGKILL)  # its session's first group: what did not end by itself
        keeper.wait()
        os.close(status)
