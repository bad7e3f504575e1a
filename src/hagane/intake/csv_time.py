"""Time columns of exports: ISO 8601 with and without zone, day/month/year of spreadsheets, numbers of all scales."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.csv_table import CsvTable
from hagane.terms import LogError

_NAMES = (
    *("timestamp", "datetime", "date_time", "date/time", "date time", "fechahora", "fecha_hora", "zeitstempel", "日時"),
    *("date", "fecha", "datum", "日付", "time", "ts", "t", "time_s", "zeit", "時刻", "hora", "seconds", "elapsed"),
)
_CLOCKS = ("time", "hora", "zeit", "uhrzeit", "時刻")
_DATE = r"(?P<a>\d{1,4})[-/.](?P<b>\d{1,2})[-/.](?P<c>\d{1,4})"
_CLOCK = r"(?P<h>\d{1,2}):(?P<m>\d{1,2})(?::(?P<s>\d{1,2})(?:[.,](?P<f>\d{1,9})\d*)?)?"
_STAMP = rf"^\s*{_DATE}(?:[ T]+{_CLOCK})?\s*(?P<p>[aApP][mM])?\s*(?P<z>Z|[-+]\d{{2}}:?\d{{2}})?\s*$"
_NUMBER = re.compile(r"^\s*[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?\s*$")
_DAY_NS = 86_400_000_000_000


def time_columns(table: CsvTable, wanted: str) -> tuple[str, ...]:
    """Name of the time column, or of a date and a clock column.

    Raises:
        LogError: `wanted` is not there, or nothing looks like a time.
    """
    if wanted:
        if wanted not in table.names:
            known = ", ".join(table.names[:8])
            raise LogError(f"no column {wanted!r}", where=f"{table.where}:1", next_step=f"there are: {known}")
        return (wanted,)
    by_name = {n.lower(): n for n in reversed(table.names)}
    for word in _NAMES:
        if word in by_name:
            name = by_name[word]
            first = _first(table, name)
            if re.match(rf"^\s*{_DATE}\s*$", first):
                clock = next((by_name[w] for w in _CLOCKS if w in by_name and by_name[w] != name), "")
                if clock and re.match(rf"^\s*{_CLOCK}", _first(table, clock)):
                    return (name, clock)
            return (name,)
    for name in table.names:
        if re.match(_STAMP, _first(table, name)):
            return (name,)
    raise LogError(
        f"no time column among {', '.join(table.names[:8])}",
        where=f"{table.where}:1",
        next_step="pass --read time=HEADER",
    )


def _first(table: CsvTable, name: str) -> str:
    column = table.table[name]
    return next((str(v.as_py()) for v in column.slice(0, 50) if v.as_py() is not None), "")


def parse_times(table: CsvTable, columns: tuple[str, ...], day_first: bool | None) -> NDArray[np.int64]:
    """[N] nanoseconds since 1970 (or since the log's own zero, for plain numbers).

    Raises:
        LogError: an empty or unreadable cell, day and month that cannot be told apart, zones in some rows only.
    """
    import pyarrow.compute as pc

    text = table.strings(columns[0])
    if len(columns) == 2:
        text = pc.binary_join_element_wise(text, table.strings(columns[1]), " ")
    empty = text.is_null().to_numpy(zero_copy_only=False)
    if empty.any():
        row = int(np.argmax(empty))
        raise LogError("a row has no time", where=table.place(row, columns[0]), next_step="repair or remove the row")
    if _NUMBER.match(text[0].as_py()):
        return _numbers(table, columns[0])
    return _stamps(table, text, columns[0], day_first)


def _numbers(table: CsvTable, name: str) -> NDArray[np.int64]:
    import pyarrow as pa

    column = table.table[name].combine_chunks()
    values, _, unit = table.numbers(name)
    if not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values)))
        raise LogError("a time is not a number", where=table.place(row, name), next_step="repair or remove the row")
    scale = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
    size = float(np.abs(values).max())
    factor = scale.get(unit.lower())
    if factor is None:
        factor = 1 if size > 1e17 else 1_000 if size > 1e14 else 1_000_000 if size > 1e11 else 10**9
    dateish = any(w in name.lower() for w in ("date", "fecha", "datum", "timestamp", "日"))
    if not unit and dateish and values.min() > 20_000 and values.max() < 80_000:
        # serial days of a spreadsheet, counted from 1899-12-30; they resolve about a microsecond
        return np.asarray(np.round((values - 25_569) * 86_400e3).astype(np.int64) * 1_000_000)
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy().astype(np.int64) * factor)
    if size * factor > 9e18:
        raise LogError("times are beyond the year 2262", where=f"{table.where}, column {name!r}")
    whole = np.floor(values)
    return np.asarray(whole.astype(np.int64) * factor + np.round((values - whole) * factor).astype(np.int64))


def _stamps(table: CsvTable, text: Any, name: str, day_first: bool | None) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    parts = pc.extract_regex(text, _STAMP)
    bad = parts.is_null().to_numpy(zero_copy_only=False)
    if bad.any():
        row = int(np.argmax(bad))
        cell = text[row].as_py()
        raise LogError(f"not a time: {cell[:40]!r}", where=table.place(row, name), next_step="pass --read time=HEADER")

    def whole(key: str) -> NDArray[np.int64]:
        field = pc.struct_field(parts, key)
        filled = pc.if_else(pc.equal(pc.utf8_length(field), 0), "0", field).fill_null("0")
        return np.array(filled.cast("int64").to_numpy(zero_copy_only=False), np.int64)

    a, b, c = whole("a"), whole("b"), whole("c")
    year_first = pc.utf8_length(pc.struct_field(parts, "a"))[0].as_py() == 4
    if year_first:
        year, month, day = a, b, c
    else:
        year = np.where(c < 100, c + 2000, c)
        month, day = (b, a) if _day_first(table, name, a, b, day_first) else (a, b)
    days = _days(table, name, year, month, day)
    hour = whole("h")
    half = np.array(pc.utf8_lower(pc.struct_field(parts, "p")).fill_null("").to_pylist())
    hour = np.where(half == "pm", hour % 12 + 12, np.where(half == "am", hour % 12, hour))
    padded = pc.utf8_rpad(pc.struct_field(parts, "f").fill_null(""), 9, "0")
    fraction = np.array(padded.cast("int64").to_numpy(zero_copy_only=False), np.int64)
    offset_ns = _zones(table, name, pc.struct_field(parts, "z").fill_null(""))
    seconds = hour * 3600 + whole("m") * 60 + whole("s")
    if (seconds >= 86_401).any():
        row = int(np.argmax(seconds >= 86_401))
        raise LogError("no such time of day", where=table.place(row, name))
    return np.asarray(days * _DAY_NS + seconds * 10**9 + fraction - offset_ns)


def _day_first(table: CsvTable, name: str, a: NDArray[np.int64], b: NDArray[np.int64], told: bool | None) -> bool:
    if told is not None:
        return told
    if (a > 12).any() or (b > 12).any():
        return bool((a > 12).any())
    raise LogError(
        f"{a[0]}/{b[0]} may be day/month or month/day",
        where=table.place(0, name),
        next_step="pass --read day-first=yes or --read day-first=no",
    )


def _days(
    table: CsvTable, name: str, year: NDArray[np.int64], month: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Days since 1970, each a day that exists."""
    possible = (year >= 1678) & (year < 2262) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    months = np.where(possible, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    bad = ~possible | (days.astype("datetime64[M]") != months)
    if bad.any():
        row = int(np.argmax(bad))
        raise LogError(f"no such day: {year[row]}-{month[row]}-{day[row]}", where=table.place(row, name))
    return np.asarray(days.astype(np.int64))


def _zones(table: CsvTable, name: str, text: Any) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    kinds = {str(v) for v in pc.unique(text).to_pylist()}
    if "" in kinds and len(kinds) > 1:
        row = int(np.argmax(np.array(text.to_pylist()) != text[0].as_py()))
        raise LogError("some times have a zone, others none", where=table.place(row, name))
    offsets = {"": 0, "Z": 0}
    for kind in kinds - {"", "Z"}:
        sign = -1 if kind[0] == "-" else 1
        offsets[kind] = sign * (int(kind[1:3]) * 3600 + int(kind[-2:]) * 60) * 10**9
    if len(kinds) == 1:
        return np.full(len(text), offsets[kinds.pop()], np.int64)
    return np.array([offsets[v] for v in text.to_pylist()], np.int64)
