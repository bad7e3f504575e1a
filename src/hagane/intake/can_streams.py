"""Streams of channels out of CAN traffic.

A vector whose columns come from several messages has the times of the first column's message; the other columns
take the frame nearest in time, at most half a period away. A set has one message (or several continuations) a
place; its cycles are the frames of a vector message of the same rate, and a place without a frame in a cycle is
not valid there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hagane.intake.frames import Frames
from hagane.intake.signals import Message, Signal, decode, find_signal
from hagane.intake.sources import column_sources, set_sources, units_of
from hagane.intake.streams import nearest_index, nearest_within
from hagane.terms import Channel, Embodiment, Stream

_SILENCE_S = 2.0  # steps that say nothing about a message's rate
_MOST_EMPTY = 100  # cycles for each frame of a set
Column = list[tuple[Message, Signal]]
"""The signals of one message whose sum is the column; mostly one."""


def applied_message(name: str) -> str:
    """Message of the actions as applied, beside the message of the commands."""
    return name.replace("COMMAND", "ACTUATOR") if "COMMAND" in name else f"{name}_ACT"


class Traffic:
    """All frames of a log, indexed by message."""

    def __init__(self, frames: Frames, messages: Mapping[str, Message], where: str, bus: int | None) -> None:
        self.frames, self.messages, self.where, self.bus = frames, messages, where, bus
        self._order = np.argsort(frames.ids, kind="stable")
        self._sorted = frames.ids[self._order]
        self._rows: dict[int, NDArray[np.int64]] = {}
        self._tables: dict[str, list[list[Column]]] = {}

    def rows(self, ident: int, first: int, last: int) -> NDArray[np.int64]:
        """Rows in [first, last) of one message, in the log's order, on one bus."""
        if ident not in self._rows:
            a, b = np.searchsorted(self._sorted, [ident, ident + 1])
            rows = self._order[a:b]
            buses = self.frames.buses[rows]
            if self.bus is not None:
                rows = rows[buses == self.bus]
            elif len(rows) and buses.min() != buses.max():
                # the lowest bus: on comma's logs 128 and above repeat what the device itself sent
                rows = rows[buses == buses.min()]
            self._rows[ident] = rows
        rows = self._rows[ident]
        a, b = np.searchsorted(rows, [first, last])
        return rows[a:b]

    def table(self, channel: Channel) -> list[list[Column]]:
        """Messages and signals of a channel: a row a place (one row for a vector), a column a column.

        Raises:
            LogError: the DBC lacks a message or a signal.
        """
        if channel.name not in self._tables:
            named = can_names(channel)
            rows = set_sources(named) if channel.kind == "set" else (column_sources(named),)
            where = f"{self.where}, channel {channel.name!r}"
            self._tables[channel.name] = [[find_signal(s, self.messages, where) for s in row] for row in rows]
        return self._tables[channel.name]

    def ids_of(self, channels: Iterable[Channel]) -> set[int]:
        """Identifiers of all messages of these channels.

        Raises:
            LogError: the DBC lacks a message or a signal.
        """
        return {m.id for c in channels for row in self.table(c) for column in row for m, _ in column}


def can_names(channel: Channel) -> Channel:
    """The channel with CAN sources, MESSAGE.SIGNAL: its own, or by default NAME.V0, NAME.V1, ..."""
    if channel.source:
        return channel
    place = "_{i:02d}" if channel.kind == "set" else ""
    return replace(channel, source=tuple(f"{channel.name.upper()}{place}.V{k}" for k in range(channel.columns)))


def vector_sources(channel: Channel, *, applied: bool) -> tuple[str, ...]:
    """Sources of a vector's columns; of the applied actions with `applied`."""
    sources = column_sources(can_names(channel))
    if not applied:
        return sources
    parts = [s.partition(".") for s in sources]
    return tuple(f"{applied_message(m.strip())}.{signal}" for m, _, signal in parts)


def stream_of_channel(
    traffic: Traffic, channel: Channel, embodiment: Embodiment, first: int, last: int, *, applied: bool = False
) -> Stream | None:
    """The stream of one channel in frames [first, last); None when the log has none of it."""
    if channel.kind == "set":
        return _set_stream(traffic, channel, embodiment, first, last)
    if not applied:
        columns = traffic.table(channel)[0]
    else:
        sources = vector_sources(channel, applied=True)
        if any("+" in s or s.partition(".")[0] not in traffic.messages for s in sources):
            return None
        columns = [find_signal(s, traffic.messages, f"{traffic.where}, channel {channel.name!r}") for s in sources]
    frames = traffic.frames
    rows = traffic.rows(columns[0][0][0].id, first, last)
    if not len(rows):
        return None
    times_ns = frames.times_ns[rows]
    values = np.full((len(rows), len(columns)), np.nan)
    present = np.zeros(values.shape, bool)
    for k, column in enumerate(columns):
        own = traffic.rows(column[0][0].id, first, last)
        index, near = nearest_within(frames.times_ns[own], times_ns)
        if near.any():
            values[:, k], present[:, k] = _decode_sum(frames.data[own[index]], frames.lengths[own[index]], column)
            present[:, k] &= near
    values[~present] = np.nan
    some = np.asarray(present.any(1))
    units = _units(channel, columns)
    return Stream(times_ns[some], values[some], np.asarray(present[some].all(1)), units)


def _decode_sum(
    data: NDArray[np.uint8], lengths: NDArray[np.uint8], column: Column
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, present = decode(data, lengths, *column[0])
    for message, signal in column[1:]:
        more, also = decode(data, lengths, message, signal)
        values, present = values + more, present & also
    return values, present


def _units(channel: Channel, columns: list[Column]) -> tuple[str, ...]:
    """The DBC's unit a column; the declared one where the DBC gives none."""
    return tuple(column[0][1].unit or unit for column, unit in zip(columns, units_of(channel), strict=True))


def _set_stream(traffic: Traffic, channel: Channel, embodiment: Embodiment, first: int, last: int) -> Stream | None:
    table = traffic.table(channel)
    rate_hz = channel.rate_hz or embodiment.rate_hz
    clock_ns = _cycles(traffic, embodiment, rate_hz, first, last)
    if not len(clock_ns):
        return None
    frames = traffic.frames
    parts = max(len(_messages(row)) for row in table)
    data = np.zeros((len(clock_ns), len(table), parts, frames.data.shape[1]), np.uint8)
    lengths = np.zeros(data.shape[:3], np.uint8)
    times_ns = clock_ns.copy()
    # all messages of all places at once: one search in time instead of one a message
    found = [
        (traffic.rows(message.id, first, last), i, part)
        for i, row in enumerate(table)
        for part, message in enumerate(_messages(row))
    ]
    counts = [len(rows) for rows, _, _ in found]
    rows = np.concatenate([rows for rows, _, _ in found])
    if len(rows):
        place = np.repeat([i for _, i, _ in found], counts)
        part_of_row = np.repeat([part for _, _, part in found], counts)
        index, distance = nearest_index(clock_ns, frames.times_ns[rows])
        near = distance <= 0.75e9 / rate_hz
        rows, index, place, part_of_row = rows[near], index[near], place[near], part_of_row[near]
        data[index, place, part_of_row] = frames.data[rows]
        lengths[index, place, part_of_row] = frames.lengths[rows]
        np.maximum.at(times_ns, index, frames.times_ns[rows])
    values = np.zeros((*data.shape[:2], channel.columns))
    present = np.zeros(values.shape, bool)
    alike = len({_layout(row) for row in table}) == 1
    for group in [slice(0, len(table))] if alike else [slice(i, i + 1) for i in range(len(table))]:
        row = table[group.start]
        part_of = {m.name: k for k, m in enumerate(_messages(row))}
        for k, column in enumerate(row):
            part = part_of[column[0][0].name]
            values[:, group, k], present[:, group, k] = _decode_sum(
                data[:, group, part], lengths[:, group, part], column
            )
    valid = np.asarray(present.all(2))
    values[~valid] = 0.0
    return Stream(times_ns, values, valid, _units(channel, table[0]))


def _layout(row: list[Column]) -> tuple[tuple[int, int, int, float, float], ...]:
    names = [m.name for m in _messages(row)]
    return tuple((names.index(m.name), s.start, s.length, s.scale, s.offset) for column in row for m, s in column)


def _messages(row: list[Column]) -> list[Message]:
    """The messages of one place, in order of first use."""
    return list({m.name: m for column in row for m, _ in column}.values())


def _cycles(traffic: Traffic, embodiment: Embodiment, rate_hz: float, first: int, last: int) -> NDArray[np.int64]:
    """Times of the cycles of a set: those of an observed vector's message of about that rate, else a plain grid."""
    for channel in embodiment.observe:
        if channel.kind != "vector":
            continue
        message = traffic.table(channel)[0][0][0][0]
        times_ns = traffic.frames.times_ns[traffic.rows(message.id, first, last)]
        steps_s = np.diff(times_ns) / 1e9
        steps_s = steps_s[(steps_s > 0) & (steps_s < _SILENCE_S)]
        if len(steps_s) > 1 and 0.7 < 1 / float(steps_s.mean()) / rate_hz < 1.4:
            return np.maximum.accumulate(times_ns)
    ids = np.array(sorted(traffic.ids_of([c for c in embodiment.observe if c.kind == "set"])))
    rows = np.flatnonzero(np.isin(traffic.frames.ids[first:last], ids)) + first
    if not len(rows):
        return np.zeros(0, np.int64)
    times_ns, step_ns = traffic.frames.times_ns[rows], round(1e9 / rate_hz)
    start_ns, end_ns = int(times_ns.min()), int(times_ns.max())
    if (end_ns - start_ns) // step_ns > _MOST_EMPTY * len(rows):
        # a clock that was set by years: no grid over them
        return start_ns + step_ns * np.unique((times_ns - start_ns) // step_ns)
    return np.arange(start_ns, end_ns + 1, step_ns, dtype=np.int64)
