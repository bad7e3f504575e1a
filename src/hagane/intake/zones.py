"""Local stamps of a named zone to UTC, with the hours that a change of summer time drops or repeats.

A local time that the clock jumped over never was: the zone is wrong, and the log is refused. A local time that
happened twice is told apart where the rows show the step back (they go on an hour earlier); where they do not, the
log is refused too: one hour of error is worse than a file to export again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from hagane.terms import LogError

_DAY_S = 86_400
_FIRST_S, _LAST_S = -9_223_372_000, 9_223_372_000  # what int64 nanoseconds hold: 1677 to 2262
Changes = tuple[NDArray[np.int64], NDArray[np.int64]]


def zone_of(name: str) -> tzinfo:
    """The zone of an IANA name; "" means UTC.

    Raises:
        LogError: no zone of that name.
    """
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, ValueError, OSError):
        what = f"unknown time zone {name!r}"
        raise LogError(what, next_step='give an IANA name: --read timezone="Asia/Tokyo"') from None


def wall_clock_ns(start: datetime, zone: str) -> int:
    """Nanoseconds since 1970 of a recording's start, where it has no zone of its own: in `zone`, "" meaning UTC.

    Of an hour that a zone has twice the first is meant: only the episode's offset from 1970 hangs on it.

    Raises:
        ValueError: a year that leaves no room for the recording's own stamps.
    """
    if not 1900 <= start.year <= 2200:
        raise ValueError(f"the year {start.year}")
    own = start if start.tzinfo is not None else start.replace(tzinfo=zone_of(zone))
    return (own - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def utc_from_local(
    local_ns: NDArray[np.int64], zone: str, place: Callable[[int], str]
) -> tuple[NDArray[np.int64], str]:
    """[N] UTC nanoseconds of local stamps, in the order of the file, and a note when an hour was repeated.

    Raises:
        LogError: a stamp that never was, or one that happened twice and the rows do not tell which it is.
    """
    if not len(local_ns):
        return local_ns, ""
    steps = np.diff(local_ns)
    if (steps < 0).sum() > (steps > 0).sum():
        back_ns, note = utc_from_local(local_ns[::-1], zone, lambda row: place(len(local_ns) - 1 - row))
        return back_ns[::-1], note
    at_s, offset_s = changes_of(zone, int(local_ns.min() // 10**9), int(local_ns.max() // 10**9))
    at_ns, offset_ns = at_s * 10**9, offset_s * 10**9
    before_ns, after_ns = offset_ns[:-1], offset_ns[1:]
    span = np.searchsorted(at_ns + np.maximum(before_ns, after_ns), local_ns, side="right")
    utc_ns = local_ns - offset_ns[span]
    if not len(at_ns):
        return utc_ns, ""
    coming = np.minimum(span, len(at_ns) - 1)
    inside = (span < len(at_ns)) & (local_ns >= (at_ns + np.minimum(before_ns, after_ns))[coming])
    gap = inside & (after_ns > before_ns)[coming]
    if gap.any():
        row = int(np.argmax(gap))
        raise LogError(
            f"{_words(local_ns[row])} never was in {zone}: clocks were set forward",
            where=place(row),
            next_step="pass the zone that the stamps are in: --read timezone=...",
        )
    twice = np.flatnonzero(inside)
    if not len(twice):
        return utc_ns, ""
    for rows in np.split(twice, np.flatnonzero(np.diff(twice) > 1) + 1):
        second = rows[_step_back(local_ns[rows], zone, place(int(rows[0]))) :]
        utc_ns[second] = local_ns[second] - offset_ns[coming[second] + 1]
    note = f"{len(twice)} stamps lie in an hour that {zone} has twice; the step back of the clock tells them apart"
    return utc_ns, note


def _step_back(local_ns: NDArray[np.int64], zone: str, where: str) -> int:
    """Of rows within a repeated hour, the first of the second pass."""
    steps = np.diff(local_ns)
    back = np.flatnonzero(steps < 0)
    if len(back) == 0 and len(steps) == 1 and steps[0] == 0:
        back = np.zeros(1, np.int64)  # an hourly log: the same stamp, twice
    if len(back) != 1:
        raise LogError(
            f"{_words(local_ns[0])} was twice in {zone}, and the rows do not tell which of the two it is",
            where=where,
            next_step="export the stamps with their offset (+02:00) or in UTC, or leave that hour out",
        )
    return int(back[0]) + 1


def changes_of(zone: str, first_s: int, last_s: int) -> Changes:
    """Changes of a zone's offset around a span of time: [K] UTC seconds, and the [K + 1] offsets between them.

    Raises:
        LogError: no zone of that name.
    """
    info, epoch = zone_of(zone), datetime(1970, 1, 1, tzinfo=UTC)

    def offset(seconds: int) -> int:
        shift = info.utcoffset((epoch + timedelta(seconds=seconds)).astimezone(info))
        return round(shift.total_seconds()) if shift else 0

    low = max(first_s - 2 * _DAY_S, _FIRST_S)
    days = list(range(low, min(last_s + 2 * _DAY_S, _LAST_S) + _DAY_S, _DAY_S))
    offsets = [offset(s) for s in days]
    at, kept = [], [offsets[0]]
    for k in range(1, len(days)):
        if offsets[k] == offsets[k - 1]:
            continue
        a, b = days[k - 1], days[k]
        while b - a > 1:
            middle = (a + b) // 2
            a, b = (middle, b) if offset(middle) == offsets[k - 1] else (a, middle)
        at.append(b)
        kept.append(offsets[k])
    return np.array(at, np.int64), np.array(kept, np.int64)


def _words(local_ns: np.int64) -> str:
    return str(np.datetime64(int(local_ns) // 10**9, "s")).replace("T", " ")
