"""Jails for tests: run a program inside and read what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hagane.jail import Jailed, Plan, python_env, python_reads, start, system_reads

AS_NOBODY = "HAGANE_TEST_AS_NOBODY"
# nobody must reach the interpreter and this tree even where a home folder is closed to others: their folders are
# bound over open ones, in a mount namespace of the test's own
_OPEN_UP = """
set -e
for home in "$@"; do
  hold=$(mktemp -d); mount --rbind "$home" "$hold"; top="/$(echo "$home" | cut -d/ -f2)"
  if [ "$(stat -c %a "$top" | tail -c 2)" = 0 ]; then mount -t tmpfs -o mode=755 open "$top"; fi
  mkdir -p "$home"; mount --rbind "$hold" "$home"
done
"""


@dataclass(frozen=True)
class Said:
    """What came out of a jail."""

    code: int
    out: str
    err: str


def plan_of(*command: str, **fields: object) -> Plan:
    """A plan in which tools of the system run."""
    return Plan(command, **{"reads": system_reads(), "env": {"PATH": "/usr/bin:/bin"}, **fields})  # type: ignore[arg-type]


def python_plan(code: str, **fields: object) -> Plan:
    """A plan in which this interpreter runs some code."""
    given = {"reads": python_reads(), "env": python_env(), **fields}
    return Plan((sys.executable, "-c", code), **given)  # type: ignore[arg-type]


@contextmanager
def running(plan: Plan, **how: object) -> Iterator[tuple[Jailed, int, int]]:
    """A started jail, and where its two outputs are read."""
    out, err = os.pipe(), os.pipe()
    try:
        jailed = start(plan, out[1], err[1], **how)  # type: ignore[arg-type]
    finally:
        os.close(out[1])
        os.close(err[1])
    try:
        with jailed:
            yield jailed, out[0], err[0]
    finally:
        os.close(out[0])
        os.close(err[0])


def read_all(fd: int) -> str:
    """Everything until the writers are gone."""
    parts = []
    while part := os.read(fd, 65536):
        parts.append(part)
    return b"".join(parts).decode()


def said(plan: Plan, **how: object) -> Said:
    """Run a jail to its end. Little is written to stderr, so the pipes are read one after the other."""
    with running(plan, **how) as (jailed, out, err):
        text, errors = read_all(out), read_all(err)
        return Said(jailed.wait(), text, errors)


def why_not() -> str:
    """Why jails cannot be made here at all; "" where they can."""
    try:
        start(plan_of("/bin/true"), *(os.open(os.devnull, os.O_WRONLY),) * 2).kill()
    except Exception as e:
        return str(e)
    return ""


def as_nobody(*args: str) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments as an unprivileged user; root only."""
    tree = Path(__file__).parents[1]
    base = Path(sys.base_prefix)
    command = [sys.executable, *args]
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", *command]
    folder = tempfile.mkdtemp(prefix="nobody-")
    os.chown(folder, 65534, 65534)
    env = {**os.environ, AS_NOBODY: "1", "HOME": folder, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    script = _OPEN_UP.replace('"$@"', f'"{base}"') + '\nexec "$@"'
    shell = ["unshare", "--mount", "bash", "-c", script, "bash", *drop]
    return subprocess.run(shell, cwd=tree, env=env, capture_output=True, text=True, check=False)
