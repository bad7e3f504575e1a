"""Small steps that all importers share: clocks and times, matching of times, ids of episodes, findings of their own."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Episode, Finding, LogError

MOST_S = 9e9
"""Seconds that fit, as nanoseconds, into int64: to the year 2255, counted from 1970."""


def on_episode_clock(episode: Episode) -> Episode:
    """The episode with its first sample at 0 ns; `clock_offset_ns` of each stream remembers the move.

    Raises:
        LogError: its stamps lie centuries apart.
    """
    start_ns, end_ns = episode.span_ns
    if end_ns - start_ns > MOST_S * 1e9:
        raise LogError("its time stamps lie centuries apart", where=episode.id, next_step="repair the time stamps")
    streams = {
        name: replace(s, times_ns=s.times_ns - start_ns, clock_offset_ns=s.clock_offset_ns - start_ns)
        for name, s in episode.streams.items()
    }
    return replace(episode, streams=streams)


def unmapped(episode: str, stream: str, why: str, count: int = 0) -> Finding:
    """The finding that a channel has no samples in an episode, or that rows of a log belong to none."""
    return Finding("unmapped", episode, stream, 0, count, why)


def note(episode: str, stream: str, text: str, count: int = 0) -> Finding:
    """The finding that a reader had to find out, derive or keep something otherwise; no fault."""
    return Finding("note", episode, stream, 0, count, text)


def with_cut(episode: Episode, why: str) -> Episode:
    """The episode, whose end the log lacks; "" as `why` means that it lacks nothing."""
    if not why:
        return episode
    return episode.with_findings(Finding("truncated", episode.id, "*", episode.span_ns[1], 1, why))


def known_outcome(text: str) -> str:
    """The outcome that a log tells, "" when it is none of ours."""
    return text if text in ("success", "failure") else ""


def episode_ids(stem: str, count: int) -> list[str]:
    """Ids of the episodes of a log that has no names for them: its own name, numbered where there are several."""
    return [stem] if count == 1 else [f"{stem}-{k:05d}" for k in range(count)]


def pieces(breaks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Rows [first, after) of the pieces of N rows; `breaks` [N - 1] is True where one ends and another begins."""
    borders = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(breaks) + 1]
    return list(itertools.pairwise(borders))


def nearest_index(times_ns: NDArray[np.int64], at_ns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each time of `at_ns` the index of the nearest of `times_ns` (sorted, not empty), and the distance."""
    right = np.clip(np.searchsorted(times_ns, at_ns), 1, max(len(times_ns) - 1, 1))
    right = np.minimum(right, len(times_ns) - 1)
    left = np.maximum(right - 1, 0)
    index = np.where(at_ns - times_ns[left] <= times_ns[right] - at_ns, left, right)
    return index.astype(np.int64), np.abs(times_ns[index] - at_ns)


def nearest_within(
    times_ns: NDArray[np.int64], at_ns: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How the columns of another clock join a stream: for each of its times `at_ns` the nearest of `times_ns`.

    Neither needs to be in order. Equal clocks join row by row, repeated stamps too.

    Returns:
        [N] index into `times_ns` (0 where that is empty), and [N] whether it is at most half a usual step of the
        stream away.
    """
    if np.array_equal(times_ns, at_ns):
        return np.arange(len(at_ns), dtype=np.int64), np.ones(len(at_ns), bool)
    if not len(times_ns):
        return np.zeros(len(at_ns), np.int64), np.zeros(len(at_ns), bool)
    order = np.argsort(times_ns, kind="stable")
    index, distance = nearest_index(times_ns[order], at_ns)
    usual_ns = float(np.median(np.diff(np.sort(at_ns)))) if len(at_ns) > 1 else 1e9
    return order[index], distance <= usual_ns / 2


def regular_times(count: int, rate_hz: float, where: str) -> NDArray[np.int64]:
    """[count] nanoseconds of rows without stamps, from 0 on.

    Raises:
        LogError: so slow a rate that they do not fit.
    """
    if count > MOST_S * rate_hz:
        raise LogError(f"{count} rows at {rate_hz:g} Hz take centuries", where=where, next_step="correct the rate")
    return np.asarray(np.rint(np.arange(count) * (1e9 / rate_hz)), np.int64)


def number_times(stamps: NDArray[Any], where: str) -> NDArray[np.int64]:
    """[N] nanoseconds out of numeric stamps: seconds, or by their size whole ms, us or ns since 1970.

    Raises:
        LogError: a stamp that is no number, or beyond the year 2255.
    """
    if not np.isfinite(stamps).all():
        row = int(np.argmax(~np.isfinite(stamps)))
        raise LogError(
            "a time stamp is not a number", where=f"{where}, row {row}", next_step="repair or remove the row"
        )
    return scaled_times(stamps, ns_a_unit(stamps), where)


def ns_a_unit(stamps: NDArray[Any]) -> int:
    """Nanoseconds a unit of numeric stamps since 1970, by their size: they are seconds, ms, us or ns."""
    size = float(np.abs(stamps.astype(np.float64)).max(initial=0.0))
    return 1 if size > 1e17 else 1_000 if size > 1e14 else 1_000_000 if size > 1e11 else 10**9


def scaled_times(stamps: NDArray[Any], factor: int, where: str) -> NDArray[np.int64]:
    """[N] nanoseconds out of finite stamps in units of `factor` nanoseconds; whole numbers are exact.

    Raises:
        LogError: beyond the year 2255.
    """
    plain = stamps.astype(np.float64)
    if float(np.abs(plain).max(initial=0.0)) * factor > MOST_S * 1e9:
        raise LogError("times are beyond the year 2255", where=where, next_step="repair the time stamps")
    if stamps.dtype.kind in "iu":
        return np.asarray(stamps.astype(np.int64) * factor)
    whole = np.floor(plain)
    return np.asarray(whole.astype(np.int64) * factor + np.rint((plain - whole) * factor).astype(np.int64))
