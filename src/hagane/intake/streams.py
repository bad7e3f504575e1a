"""Small steps that all importers share: the episode's clock, findings of absent channels, matching of times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Episode, Finding


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


def nearest_index(times_ns: NDArray[np.int64], at_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each time of `at_ns` the index of the nearest of `times_ns` (sorted, not empty), and the distance."""
    right = np.clip(np.searchsorted(times_ns, at_ns), 1, max(len(times_ns) - 1, 1))
    right = np.minimum(right, len(times_ns) - 1)
    left = np.maximum(right - 1, 0)
    index = np.where(at_ns - times_ns[left] <= times_ns[right] - at_ns, left, right)
    return index.astype(np.int64), np.abs(times_ns[index] - at_ns)
