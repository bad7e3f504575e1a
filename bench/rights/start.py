"""From asking for a jail to its end, with /bin/true inside: milliseconds on the clock, and CPU of all its processes.

As whoever runs this, and, started by root, as nobody too where an interpreter is found that nobody may run.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from bench.rights.measured import Figure, middle_half

from hagane.jail import Plan, start, system_reads

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
INTERPRETERS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")
LIMIT_MS = 100.0


def starts(count: int) -> list[tuple[float, float]]:
    """(ms until the command runs, CPU ms of the whole jail) of so many jails in turn, after one to warm up."""
    null = os.open(os.devnull, os.O_WRONLY)
    plan = Plan(("/bin/true",), {"PATH": "/usr/bin:/bin"}, system_reads())
    found = []
    for _ in range(count + 1):
        used, begin = cpu_s(), time.perf_counter()
        with start(plan, null, null) as jailed:
            ready = time.perf_counter() - begin
            code = jailed.wait()
            jailed.release()
        if code:
            raise SystemExit("/bin/true did not end with 0 in the jail")
        found.append((ready * 1e3, (cpu_s() - used) * 1e3))
    os.close(null)
    return found[1:]


def cpu_s() -> float:
    """CPU seconds of this process and of all below it that were waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def as_nobody(count: int) -> list[tuple[float, float]] | str:
    """`starts` in a process of nobody's; or why there is none."""
    path = os.pathsep.join(str(p) for p in (ROOT, ROOT / "src", *sys.path) if str(p))
    why = "no interpreter"
    for python in INTERPRETERS:
        command = (python, "-m", "bench.rights.start", str(count))
        try:
            done = subprocess.run(
                command, env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, cwd="/", capture_output=True,
                text=True, user=NOBODY, group=NOBODY, extra_groups=(), timeout=60 + 5 * count,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as e:
            why = str(e)
            continue
        if done.returncode == 0:
            return [(ms, cpu) for ms, cpu in json.loads(done.stdout)]
        why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return why


def measure(count: int = 20) -> list[Figure]:
    """Rows of the table."""
    root = os.geteuid() == 0
    rows = [figure("as root" if root else "without privileges", starts(count))]
    if root:
        found = as_nobody(count)
        what = "start of a jail, as nobody"
        rows.append(
            Figure(what, "ms", None, f"{found}", LIMIT_MS) if isinstance(found, str) else figure("as nobody", found)
        )
    return rows


def figure(who: str, found: list[tuple[float, float]]) -> Figure:
    """The row of one user."""
    (middle, low, high), (cpu, *_) = (middle_half(column) for column in zip(*found, strict=True))
    how = f"wall until /bin/true runs, median of {len(found)} and its middle half; {cpu:.0f} ms of CPU, end with it"
    return Figure(f"start of a jail, {who}", "ms", middle, how, LIMIT_MS, low, high)


if __name__ == "__main__":
    print(json.dumps(starts(int(sys.argv[1]))))
