"""What every part of this benchmark shares: a figure and what was asked, intervals, CPU of a tree of processes."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from hagane.terms import HaganeError

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
       2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
"""Student's t, 97.5%, by degrees of freedom from 1; beyond the table its last value, which is too wide."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    """What was measured."""
    unit: str
    """Of all numbers here; "x" for a ratio."""
    measured: float | None
    """The figure; None where it could not be measured here, and `how` says why."""
    how: str
    """Number of runs, what was compared, which clock."""
    limit: float | None = None
    """The most that was asked for; None where nothing was."""
    low: float | None = None
    """Lower end of the 95% interval, or of the middle half where `how` says so."""
    high: float | None = None
    """Upper end."""

    @property
    def verdict(self) -> str:
        """holds, misses, or open where the interval lies on both sides of the limit; "" where nothing was asked."""
        if self.limit is None or self.measured is None:
            return ""
        low, high = (self.measured if end is None else end for end in (self.low, self.high))
        return "holds" if high <= self.limit else "misses" if low > self.limit else "open"

    def row(self) -> str:
        """As a row of a table in Markdown."""
        asked = "" if self.limit is None else f"<= {number(self.limit)} {self.unit}"
        found = "not measured" if self.measured is None else f"{number(self.measured)} {self.unit}"
        if self.low is not None and self.high is not None:
            found += f" [{number(self.low)}, {number(self.high)}]"
        return f"| {self.what} | {asked} | {found} | {self.verdict} | {self.how} |"


def number(value: float) -> str:
    """Four digits at most behind the first one that counts; whole numbers whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Spent:
    """What a command and all that it started took."""

    cpu_s: float
    """CPU seconds, user and system, of every process that was waited for."""
    wall_s: float
    """Seconds on the clock."""
    out: str
    """What it printed."""


def spend(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> Spent:
    """Run a command to its end, and count the CPU of its whole tree (wait4(2) adds up what was reaped below it).

    Raises:
        HaganeError: it did not end with 0.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, env=dict(env), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout is not None
        out = child.stdout.read().decode(errors="replace")
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise HaganeError(f"ended with {child.returncode}: {out[-2000:]}", where=" ".join(command))
    return Spent(used.ru_utime + used.ru_stime, time.perf_counter() - start, out)


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Geometric mean of second / first over pairs, and its 95% interval (Student's t on the logarithms)."""
    logs = [math.log(second / first) for first, second in pairs]
    mean, low, high = mean_of(logs)
    return math.exp(mean), math.exp(low), math.exp(high)


def mean_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    error = statistics.stdev(values) / math.sqrt(len(values)) * T95[min(len(values) - 1, len(T95)) - 1]
    return mean, mean - error, mean + error


def middle_half(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def machine() -> dict[str, Any]:
    """Where and when."""
    model = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "date": str(date.today()),
        "cpu": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def as_table(figure: Figure) -> dict[str, Any]:
    """A figure as JSON."""
    return {**asdict(figure), "verdict": figure.verdict}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
