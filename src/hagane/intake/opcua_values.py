"""OPC UA data values as arrays, page by page; pages that overlap in their first stamp are joined without repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import LogError

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class Readings:
    """History of one node, in the order of the server."""

    source_ns: NDArray[np.int64]
    """[N] time of the reading at its source; the server's where the source gives none."""
    server_ns: NDArray[np.int64]
    """[N] time at the server; the source's where the server gives none."""
    from_source: NDArray[np.bool_]
    """[N] whether the source gave a time."""
    values: NDArray[np.float64]
    """[N] NaN where there is none."""
    status: NDArray[np.uint32]
    """[N] OPC UA status codes."""
    unit: str
    """Engineering unit of the node; "" when it has none."""


class Pages:
    """Pages of one node, in the order they came. asyncua's objects are let go at once: arrays are a tenth of them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.count = 0
        self.last = _NEVER
        """Stamp of the last reading."""
        self._tail: list[tuple[Any, ...]] = []
        self._parts: list[Readings] = []

    def add(self, page: Sequence[Any]) -> int:
        """Take a page; gives how many of its readings are new: it may begin with those that ended the one before."""
        tail = list(self._tail)
        fresh = []
        for value in page:
            key = _key(value)
            if key in tail:
                tail.remove(key)
            else:
                fresh.append(value)
        if fresh:
            last = _stamp(fresh[-1])
            same = [_key(v) for v in fresh if _stamp(v) == last]
            self._tail = same + (self._tail if last == self.last else [])
            self.last = last
            self._parts.append(_arrays(fresh, self.where))
            self.count += len(fresh)
        return len(fresh)

    def readings(self, unit: str) -> Readings:
        """All pages as one."""
        parts = self._parts or [_arrays((), self.where)]
        return Readings(
            np.concatenate([p.source_ns for p in parts]),
            np.concatenate([p.server_ns for p in parts]),
            np.concatenate([p.from_source for p in parts]),
            np.concatenate([p.values for p in parts]),
            np.concatenate([p.status for p in parts]),
            unit,
        )


def _given(stamp: datetime | None) -> datetime | None:
    """A stamp in UTC; None where there is none: OPC UA has the year 1601 for that (Part 6, 5.2.2.5), and nanoseconds
    hold the years to 2262."""
    if stamp is None or not 1678 <= stamp.year < 2262:
        return None
    return stamp.astimezone(UTC) if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def _stamp(value: Any) -> datetime:
    return _given(value.SourceTimestamp) or _given(value.ServerTimestamp) or _NEVER


def _code(value: Any) -> int:
    """Status code of a reading; a server may leave out what is good."""
    return int(value.StatusCode.value) if value.StatusCode is not None else 0


def _key(value: Any) -> tuple[Any, ...]:
    return (_stamp(value), _code(value), repr(value.Value.Value if value.Value is not None else None))


def _arrays(page: Sequence[Any], where: str) -> Readings:
    """asyncua makes an object of every reading, so this is a loop.

    Raises:
        LogError: a value that is no number.
    """
    values = np.full(len(page), np.nan)
    for k, value in enumerate(page):
        number = value.Value.Value if value.Value is not None else None
        if isinstance(number, bool | int | float):
            values[k] = number
        elif number is not None:
            kind = "arrays" if isinstance(number, list) else type(number).__name__
            raise LogError(f"the node holds {kind}, not numbers", where=where, next_step="take it out of the sources")
    own = np.array([_given(v.SourceTimestamp) is not None for v in page], bool)
    source = _ns([_stamp(v) for v in page])
    server = _ns([_given(v.ServerTimestamp) or _stamp(v) for v in page])
    return Readings(source, server, own, values, np.array([_code(v) for v in page], np.uint32), "")


def _ns(stamps: Sequence[datetime]) -> NDArray[np.int64]:
    """Nanoseconds since 1970; a reading without any stamp is at 0."""
    plain = [s.replace(tzinfo=None) for s in stamps]
    return np.array(plain, "datetime64[us]").astype("datetime64[ns]").astype(np.int64)
