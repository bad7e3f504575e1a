"""`hagane jail test`: every attempt to leak, unprotected, in a jail, and in a jail without the layers that stop it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import tyro

import hagane
from hagane.cli.table import print_table
from hagane.jail import LAYERS, probe
from hagane.jail.attempts import ATTEMPTS, NOT_COVERED, Attempt
from hagane.jail.trial import LEAKS, UNPROVED, Row, Run, open_trial, would_pass
from hagane.jail.trial_keeper import OUTPUT
from hagane.terms import ConfigError


@dataclass(frozen=True)
class Test:
    """Try to leak a secret out of a jail on this host, in every way there is an attempt for. A listener outside, which
    a jail cannot reach by design, is the judge. Exit code 1 when anything leaked, or an attempt proved nothing."""

    only: tuple[str, ...] = ()
    """Names of attempts to make; all when empty."""
    as_user: Annotated[str, tyro.conf.arg(name="as")] = ""
    """As root: make the trial as this user instead, like nobody."""
    without: tuple[str, ...] = ()
    """Layers that every jail of the trial lacks, to see that leaks are found."""
    partial: bool = False
    """Where the kernel gives less than a whole jail: go on with what it gives, instead of refusing."""
    control: bool = False
    """Only without protection: what would leak on this host."""
    json: bool = False
    """One JSON map instead of the table."""


def main(argv: list[str]) -> int:
    """Run `hagane jail test`."""
    o = tyro.cli(Test, args=argv, prog="hagane jail test")
    chosen = _chosen(o.only)
    layers = frozenset({*LAYERS, OUTPUT})
    if unknown := set(o.without) - layers:
        raise ConfigError(
            f"no layers {sorted(unknown)}", where="--without", next_step=f"of {', '.join(sorted(layers))}"
        )
    if o.as_user:
        return _as_user(o.as_user, argv)
    lacking = frozenset(o.without) | (frozenset() if o.control else _missing(o.partial))
    if lacking and not o.json:
        names = ", ".join(attempt.name for attempt in would_pass(lacking)) or "none of those that are tried"
        print(f"without {', '.join(sorted(lacking))} these pass: {names}\n")
    rows = []
    with open_trial(layers - lacking) as trial:
        for attempt in chosen:
            if not o.json and sys.stderr.isatty():
                print(f"\r\033[K{attempt.name}", end="", file=sys.stderr, flush=True)
            rows.append(trial.row(attempt, jails=not o.control))
    if not o.json and sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if o.json:
        print(json.dumps(report(rows), indent=1))
    else:
        show(rows)
    return int(any(row.verdict in (LEAKS, UNPROVED) for row in rows))


def report(rows: list[Row]) -> dict[str, object]:
    """The whole trial as plain values."""
    return {
        "hagane": hagane.__version__,
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "user": os.geteuid(),
        "totals": dict(Counter(row.verdict for row in rows)),
        "control_leaks": sum(bool(row.control.channels) for row in rows),
        "attempts": [_plain(row) for row in rows],
        "not_covered": dict(NOT_COVERED),
    }


def show(rows: list[Row]) -> None:
    """Print the table, its totals and what is not covered."""
    heading = ("attempt", "control", "jailed", "without", "its layers", "verdict")
    print_table([heading, *(_words(row) for row in rows)])
    print()
    for row in rows:
        if row.reason:
            print(f"{row.attempt.name}: {row.verdict}: {row.reason.splitlines()[0]}")
    who = "root" if os.geteuid() == 0 else f"user {os.geteuid()}, without privileges"
    leaking, totals = sum(bool(row.control.channels) for row in rows), Counter(row.verdict for row in rows)
    print(f"\n{len(rows)} attempts as {who} on Linux {os.uname().release}: {leaking} leak without protection; ", end="")
    print(", ".join(f"{n} {verdict}" for verdict, n in totals.items()))
    print("\nnot covered:")
    print_table([*NOT_COVERED], indent="  ")


def _missing(partial: bool) -> frozenset[str]:
    """Layers that this kernel does not give to this user; refuses to go on with less than all unless `partial`."""
    kernel = probe()
    if not partial:
        kernel.demand_all()
    return frozenset(m.layer for m in kernel.missing)


def _plain(row: Row) -> dict[str, object]:
    return {
        "name": row.attempt.name,
        "tries": row.attempt.words,
        "layers": list(row.without),
        "control": list(row.control.channels),
        "jailed": None if row.jailed is None else list(row.jailed.channels),
        "opened": None if row.opened is None else list(row.opened.channels),
        "verdict": row.verdict,
        "reason": row.reason,
    }


def _words(row: Row) -> tuple[str, ...]:
    layers = " ".join(row.without) or "-"
    return (row.attempt.name, _leaked(row.control), _leaked(row.jailed), _leaked(row.opened), layers, row.verdict)


def _leaked(run: Run | None) -> str:
    if run is None or run.failed:
        return "-"
    return "leaks" if run.channels else "no"


def _chosen(names: tuple[str, ...]) -> list[Attempt]:
    known = {attempt.name: attempt for attempt in ATTEMPTS}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no attempts {unknown}", where="--only", next_step=f"of {', '.join(known)}")
    return [known[name] for name in names] if names else list(ATTEMPTS)


def _as_user(name: str, argv: list[str]) -> int:
    """The same trial in a program that is run as a user for good: nothing of root's is left in it."""
    if os.geteuid() != 0:
        raise ConfigError("only root can make the trial as another user", where="--as", next_step="leave it out")
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"no user {name!r} on this host", where="--as") from None
    with tempfile.TemporaryDirectory(prefix="hagane-trial-home-", dir="/var/tmp") as home:
        os.chown(home, user.pw_uid, user.pw_gid)
        env = {**os.environ, "HOME": home, "USER": name, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        env.pop("XDG_RUNTIME_DIR", None)
        command = [sys.executable, "-m", "hagane", "jail", "test", *_without_as(argv)]
        try:
            done = subprocess.run(
                command, env=env, cwd=home, user=user.pw_uid, group=user.pw_gid, extra_groups=[], check=False
            )
        except PermissionError:
            raise ConfigError(
                f"{name} may not run {sys.executable}",
                where="--as",
                next_step="use an interpreter in a folder that every user may open",
            ) from None
    return done.returncode


def _without_as(argv: list[str]) -> list[str]:
    for k, word in enumerate(argv):
        if word == "--as":
            return argv[:k] + argv[k + 2 :]
        if word.startswith("--as="):
            return argv[:k] + argv[k + 1 :]
    return argv
