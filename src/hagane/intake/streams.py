"""Small steps that all importers share: the episode's clock, findings of absent channels, matching of times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Episode, Finding, LogError


def on_episode_clock(episode: Episode) -> Episode:
    """The episode with its first sample at 0 ns; `clock_offset_ns` of each stream remembers the move."""
    start_ns = episode.span_ns[0]
    streams = {
        name: replace(s, times_ns=s.times_ns - start_ns, clock_offset_ns=s.clock_offset_ns - start_ns)
        for name, s in episode.streams.items()
    }
    return replace(episode, streams=streams)


def unmapped(episode: str, stream: str, why: str) -> Finding:
    """The finding that a channel has no samples in an episode."""
    return Finding("unmapped", episode, stream, 0, 0, why)


def note(episode: str, stream: str, text: str, count: int = 0) -> Finding:
    """The finding that a reader had to find out, derive or keep something otherwise; no fault."""
    return Finding("note", episode, stream, 0, count, text)


def nearest_index(times_ns: NDArray[np.int64], at_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each time of `at_ns` the index of the nearest of `times_ns` (sorted, not empty), and the distance."""
    right = np.clip(np.searchsorted(times_ns, at_ns), 1, max(len(times_ns) - 1, 1))
    right = np.minimum(right, len(times_ns) - 1)
    left = np.maximum(right - 1, 0)
    index = np.where(at_ns - times_ns[left] <= times_ns[right] - at_ns, left, right)
    return index.astype(np.int64), np.abs(times_ns[index] - at_ns)


def number_times(stamps: NDArray[Any], where: str) -> NDArray[np.int64]:
    """[N] nanoseconds out of numeric stamps: seconds, or by their size whole ms, us or ns since 1970.

    Raises:
        LogError: a stamp that is no number, or beyond the year 2262.
    """
    if not np.isfinite(stamps).all():
        row = int(np.argmax(~np.isfinite(stamps)))
        raise LogError(
            "a time stamp is not a number", where=f"{where}, row {row}", next_step="repair or remove the row"
        )
    size = float(np.abs(stamps).max()) if len(stamps) else 0.0
    factor = 1 if size > 1e17 else 1_000 if size > 1e14 else 1_000_000 if size > 1e11 else 10**9
    if size * factor > 9e18:
        raise LogError("times are beyond the year 2262", where=where)
    if stamps.dtype.kind in "iu":
        return np.asarray(stamps.astype(np.int64) * factor)
    whole = np.floor(stamps)
    return np.asarray(whole.astype(np.int64) * factor + np.rint((stamps - whole) * factor).astype(np.int64))
