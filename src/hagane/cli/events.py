"""What code in a jail may say to a person outside: numbers under names that are known beforehand, few a second.

Free text could carry anything, so none comes out. A word comes out only where it is one of those that the keeper
itself knows (a machine, a case of a world, a data set); a number comes out rounded. This narrows the channel; it
does not close it: see docs/rights.md on covert channels.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DIGITS = 4
"""Significant decimal digits of a number that comes out: what a person reads off a curve."""
METRICS = re.compile(
    r"step|loss|gradient_norm|lr|seconds|samples_per_s|"
    r"(?:loss|next|held_out|busiest)/(?P<word>[a-z0-9_-]+)"
)
"""Names of metrics; what stands behind the stroke must be a word that the keeper knows."""
EVENTS: Mapping[str, Mapping[str, str]] = {
    "metrics": {},
    "checkpoint": {"step": "number"},
    "ended": {"step": "number"},
    "row": {"case": "word", "who": "word", "score": "number", "n": "number"},
    "episodes": {"count": "number"},
    "findings": {"kind": "word", "count": "number"},
    "failed": {"error": "word"},
}
"""Fields of each event and their kinds; the fields of metrics are those of `METRICS`."""


@dataclass
class Allowance:
    """A token bucket: so many events a second, and so many at once."""

    per_s: float = 20.0
    """Events a second in the long run."""
    at_once: int = 200
    """Events that may come together."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, monotonic."""
    dropped: int = 0
    """Events that did not pass."""
    _left: float = field(init=False)
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._last = float(self.at_once), self.clock()

    def take(self) -> bool:
        """True when one more may pass now."""
        now = self.clock()
        self._left = min(float(self.at_once), self._left + (now - self._last) * self.per_s)
        self._last = now
        if self._left < 1:
            self.dropped += 1
            return False
        self._left -= 1
        return True


def passed(event: str, fields: Mapping[str, Any], words: frozenset[str]) -> dict[str, float | str] | None:
    """What comes out of an event: only known fields, numbers rounded; None when nothing of it may.

    Args:
        event: its name.
        fields: as the jail told them.
        words: what the keeper knows: machines, cases, controllers, data sets, kinds of findings and errors.
    """
    if event not in EVENTS:
        return None
    kinds = EVENTS[event]
    out: dict[str, float | str] = {}
    for name, value in fields.items():
        kind = _metric(name, words) if event == "metrics" else kinds.get(name, "")
        if kind == "number" and (number := rounded(value)) is not None:
            out[name] = number
        elif kind == "word" and type(value) is str and value in words:
            out[name] = value
    return out or None


def rounded(value: object) -> float | None:
    """A finite number with `DIGITS` significant digits (whole numbers below ten million as they are); else None."""
    if type(value) is int and abs(value) < 10_000_000:
        return value
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        return None
    return float(f"{value:.{DIGITS}g}")


def _metric(name: str, words: frozenset[str]) -> str:
    found = METRICS.fullmatch(name)
    if found is None or (found["word"] is not None and found["word"] not in words):
        return ""
    return "number"
