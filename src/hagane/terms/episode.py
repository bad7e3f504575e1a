"""Episode: one run of one machine, as timed streams with provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hagane.terms.errors import LogError

APPLIED = ".applied"
"""Suffix of the stream that holds what an actuator really did, beside the command of an action channel."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Samples of one channel at their own times.

    Raises:
        LogError: lengths differ.
    """

    times_ns: NDArray[np.int64]
    """[N] nanoseconds, on the episode's clock, in arrival order."""
    values: NDArray[Any]
    """[N, *shape]; text channels hold [N] objects of type str. Images are [N, H, W, 3] uint8, or [N] objects of
    type bytes, each a JPEG or PNG as the log had it."""
    valid: NDArray[np.bool_]
    """[N], or [N, n] for sets: False where the reading is missing or was refused by a check."""
    unit: tuple[str, ...] = ("1",)
    """Unit of the values, one for all columns or one a column."""
    clock_offset_ns: int = 0
    """Added to the source's own stamps to reach the episode's clock."""
    latency_ns: int = 0
    """Median time from measurement to arrival, where the log tells both; 0 where it does not."""

    def __post_init__(self) -> None:
        if not len(self.times_ns) == len(self.values) == len(self.valid):
            raise LogError(
                f"a stream has {len(self.times_ns)} times, {len(self.values)} values, {len(self.valid)} flags"
            )

    def __len__(self) -> int:
        return len(self.times_ns)


FindingKind = Literal[
    "duplicate",
    "missing",
    "clock-jump",
    "stuck",
    "nan",
    "out-of-range",
    "unit-mismatch",
    "truncated",
    "unmapped",
    "bad-quality",
    "frozen",
    "black",
    "saturated",
    "blank",
    "unreadable",
    "note",
]
"""What a check can see. "note" is no fault: something the reader had to find out or measure, and says."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw in a log; printed, and kept with the data."""

    kind: FindingKind
    """What was seen."""
    episode: str
    """Episode id."""
    stream: str
    """Stream name."""
    time_ns: int
    """Where it begins, on the episode's clock."""
    count: int
    """Samples concerned."""
    detail: str
    """In words, with figures."""

    def __str__(self) -> str:
        return f"{self.episode} {self.stream} at {self.time_ns / 1e9:.3f} s: {self.kind}, {self.detail}"


@dataclass(frozen=True, eq=False)
class Episode:
    """One run of one machine.

    Streams are named as the embodiment's channels; an action channel `a` holds commands under "a" and, where
    the log has them, actions as applied under "a.applied". An episode without action streams is still useful
    (next-observation loss).
    """

    id: str
    """Unique in its data set; stable over repeated intake of the same bytes."""
    embodiment: str
    """Name of the embodiment."""
    streams: Mapping[str, Stream]
    """Streams by channel name."""
    task: str = ""
    """Instruction in words."""
    outcome: str = ""
    """"success", "failure" or "" when unknown."""
    digest: str = ""
    """sha256 of the source bytes this episode came from (provenance)."""
    findings: tuple[Finding, ...] = field(default=())
    """What the checks saw on the way in."""

    def with_findings(self, *more: Finding) -> Episode:
        """A copy with findings added."""
        return replace(self, findings=(*self.findings, *more))

    @property
    def span_ns(self) -> tuple[int, int]:
        """First and last time over all streams; (0, 0) when empty."""
        times = [s.times_ns for s in self.streams.values() if len(s)]
        if not times:
            return (0, 0)
        return (min(int(t.min()) for t in times), max(int(t.max()) for t in times))
