"""What every check takes and gives: one stream under test, its findings, and which samples become invalid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Channel, Finding
from hagane.terms.episode import FindingKind

MOST_FINDINGS = 20
"""Findings of one kind in one stream; more are summed up in one."""


@dataclass(frozen=True, eq=False)
class Case:
    """One stream under test. Values are [N, D] (sets: places and columns flattened; pictures: a fingerprint)."""

    episode: str
    name: str
    channel: Channel
    rate_hz: float
    times_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    flags: NDArray[np.bool_]
    """[N, D] valid on arrival, one flag a column."""
    unit: tuple[str, ...]
    steady_ns: NDArray[np.int64]
    """[N] times without the silences of all streams, which are the clock's doing and no stream's."""

    def finding(self, kind: FindingKind, at: int, count: int, detail: str) -> Finding:
        """What was seen, beginning at sample `at`."""
        return Finding(kind, self.episode, self.name, int(self.times_ns[at]), count, detail)

    def column(self, k: int) -> str:
        """Words for column k, "" when the stream has but one."""
        d = self.channel.columns
        if self.values.shape[1] == 1:
            return ""
        place = f"place {k // d + 1} " if self.channel.kind == "set" else ""
        source = self.channel.source[k % d] if len(self.channel.source) == d else str(k % d)
        source = source.format(i=k // d + 1) if "{i" in source else source
        return f"{place}column {source}: "


Result = tuple[list[Finding], NDArray[np.bool_] | None]
"""Findings and, [N, D], what becomes invalid."""


def runs(mask: NDArray[np.bool_], join: int = 1) -> list[tuple[int, int]]:
    """Runs [first, last] of True; runs at most `join` samples apart are one."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return []
    cut = np.flatnonzero(np.diff(rows) > join)
    return list(zip(rows[np.r_[0, cut + 1]].tolist(), rows[np.r_[cut, len(rows) - 1]].tolist(), strict=True))


def few(findings: Sequence[Finding]) -> list[Finding]:
    """At most `MOST_FINDINGS`; the rest as one."""
    if len(findings) <= MOST_FINDINGS:
        return list(findings)
    rest = findings[MOST_FINDINGS - 1 :]
    count = sum(f.count for f in rest)
    summary = replace(rest[0], count=count, detail=f"{len(rest)} more such places, {count} samples")
    return [*findings[: MOST_FINDINGS - 1], summary]
