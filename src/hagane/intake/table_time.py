"""Time columns of exports: ISO 8601 with and without zone, day/month/year of spreadsheets, numbers of all scales."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.options import Options
from hagane.intake.streams import ns_a_unit, scaled_times
from hagane.intake.table import Table, same_name
from hagane.intake.zones import utc_from_local
from hagane.terms import LogError

_NAMES = (
    *("timestamp", "datetime", "date_time", "date/time", "date time", "fechahora", "fecha_hora", "zeitstempel", "日時"),
    *("time stamp", "タイムスタンプ", "収集日時", "測定日時", "計測日時", "記録日時"),
    *("date", "fecha", "datum", "日付", "time", "ts", "t", "time_s", "zeit", "時刻", "hora", "seconds", "elapsed"),
)
_CLOCKS = ("time", "hora", "zeit", "uhrzeit", "時刻")
_DATE = r"(?P<a>\d{1,4})[-/.年](?P<b>\d{1,2})[-/.月](?P<c>\d{1,4})日?"
_CLOCK = r"(?P<h>\d{1,2})[:時](?P<m>\d{1,2})(?:[:分](?P<s>\d{1,2})(?:[.,](?P<f>\d{1,9})\d*)?秒?|分)?"
_ZONE = r"(?P<z>Z|UTC|GMT|JST|[-+]\d{2}(?::?\d{2})?)?"
_STAMP = rf"^\s*{_DATE}(?:[ T]*{_CLOCK})?\s*(?P<p>[aApP][mM])?\s*{_ZONE}\s*$"
_NUMBER = re.compile(r"^\s*[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?\s*$")
_DAY_NS = 86_400_000_000_000


def time_columns(peek: Table, wanted: str) -> tuple[str, ...]:
    """Name of the time column, or of a date and a clock column, from a table's first rows.

    Raises:
        LogError: `wanted` is not there, or nothing looks like a time.
    """
    names = [n for n in peek.names if n in peek.columns.column_names]
    if wanted:
        if wanted not in names:
            known = ", ".join(names[:8])
            raise LogError(f"no column {wanted!r}", where=f"{peek.where}:1", next_step=f"there are: {known}")
        return (wanted,)
    by_name = {same_name(n): n for n in reversed(names)}
    for word in _NAMES:
        if word in by_name:
            name = by_name[word]
            if re.match(rf"^\s*{_DATE}\s*$", _first(peek, name)):
                clock = next((by_name[w] for w in _CLOCKS if w in by_name and by_name[w] != name), "")
                if clock and re.match(rf"^\s*{_CLOCK}", _first(peek, clock)):
                    return (name, clock)
            return (name,)
    for name in names:
        if re.match(_STAMP, _first(peek, name)):
            return (name,)
    raise LogError(
        f"no time column among {', '.join(peek.names[:8])}",
        where=f"{peek.where}:1",
        next_step="pass --read time=HEADER",
    )


def _first(table: Table, name: str) -> str:
    column = table.columns[name]
    return next((str(v.as_py()) for v in column.slice(0, 50) if v.as_py() is not None), "")


def parse_times(table: Table, columns: tuple[str, ...], options: Options) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """[N] nanoseconds since 1970 (or since the log's own zero, for plain numbers), and what had to be found out.

    Stamps without a zone are in `Options.timezone`; without that they are taken as they stand.

    Raises:
        LogError: an empty or unreadable cell, day and month that cannot be told apart, zones in some rows only, a
            local time that never was or that was twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(columns[0])
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise LogError("a row has no time", where=table.place(row, columns[0]), next_step="repair or remove the row")
    if pa.types.is_timestamp(column.type):
        return _of_arrow(table, column, columns[0], options)
    text = table.strings(columns[0])
    if len(columns) == 2:
        clock = table.strings(columns[1])
        if clock.null_count:
            row = int(np.argmax(clock.is_null().to_numpy(zero_copy_only=False)))
            raise LogError("a row has no time", where=table.place(row, columns[1]), next_step="repair or remove it")
        text = pc.binary_join_element_wise(text, clock, " ")
    if not len(text):
        return np.zeros(0, np.int64), ()
    if _NUMBER.match(text[0].as_py()):
        return _numbers(table, columns[0]), ()
    local_ns, zoned = _iso(text) or _stamps(table, text, columns[0], options)
    return _to_utc(table, local_ns, ~zoned, columns[0], options)


def _of_arrow(table: Table, column: Any, name: str, options: Options) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Times of a column that holds times: instants where its type has a zone, else local ones."""
    import pyarrow as pa

    zone = column.type.tz
    try:
        times_ns = column.cast(pa.timestamp("ns", zone)).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise LogError(
            "times are beyond the year 2262",
            where=f"{table.where}, column {name!r}",
            next_step="repair the time stamps",
        ) from None
    return _to_utc(table, np.array(times_ns, np.int64), np.full(len(times_ns), zone is None), name, options)


def _to_utc(
    table: Table, times_ns: NDArray[np.int64], local: NDArray[np.bool_], name: str, options: Options
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Stamps without a zone moved to UTC, if their zone was told; a log that has some of either must be told it."""
    if options.timezone and local.any():
        rows = np.flatnonzero(local)
        times_ns[rows], note = utc_from_local(
            times_ns[rows], options.timezone, lambda k: table.place(int(rows[k]), name)
        )
        return times_ns, (note,) if note else ()
    if local.any() and not local.all():
        row = int(np.argmax(local != local[0]))
        raise LogError(
            "some times have a zone, others none",
            where=table.place(row, name),
            next_step="say in which zone the others are: --read timezone=Asia/Tokyo",
        )
    return times_ns, ()


def _iso(text: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """The fast way for ISO 8601: times, and whether a zone was given; None for stamps of other kinds."""
    import pyarrow as pa

    for zone in (None, "UTC"):
        try:
            times_ns = text.cast(pa.timestamp("ns", zone)).cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            continue
        return np.array(times_ns, np.int64), np.full(len(text), zone is not None)
    return None


def _numbers(table: Table, name: str) -> NDArray[np.int64]:
    import pyarrow as pa

    column = table.column(name)
    numbers = table.numbers(name)
    values, unit = numbers.values, numbers.unit
    if not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values)))
        raise LogError("a time is not a number", where=table.place(row, name), next_step="repair or remove the row")
    scale = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
    dateish = any(w in name.lower() for w in ("date", "fecha", "datum", "timestamp", "日"))
    if not unit and dateish and values.min() > 20_000 and values.max() < 80_000:
        # serial days of a spreadsheet, counted from 1899-12-30; they resolve about a microsecond
        return np.asarray(np.round((values - 25_569) * 86_400e3).astype(np.int64) * 1_000_000)
    stamps = column.to_numpy() if pa.types.is_integer(column.type) else values
    return scaled_times(stamps, scale.get(unit.lower()) or ns_a_unit(values), f"{table.where}, column {name!r}")


def _stamps(table: Table, text: Any, name: str, options: Options) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Stamps of any kind that is known, their offsets taken off, and whether each has one."""
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
        month, day = (b, a) if _day_first(table, name, a, b, options.day_first) else (a, b)
    days = _days(table, name, year, month, day)
    hour = whole("h")
    half = np.array(pc.utf8_lower(pc.struct_field(parts, "p")).fill_null("").to_pylist())
    hour = np.where(half == "pm", hour % 12 + 12, np.where(half == "am", hour % 12, hour))
    padded = pc.utf8_rpad(pc.struct_field(parts, "f").fill_null(""), 9, "0")
    fraction = np.array(padded.cast("int64").to_numpy(zero_copy_only=False), np.int64)
    offset_ns, zoned = _offsets(pc.struct_field(parts, "z").fill_null(""))
    minute, second = whole("m"), whole("s")
    seconds = hour * 3600 + minute * 60 + second
    # 24:00:00 is the end of a day, and 23:59:60 a leap second
    bad = (minute > 59) | (second > 60) | (seconds > 86_400)
    if bad.any():
        row = int(np.argmax(bad))
        raise LogError("no such time of day", where=table.place(row, name), next_step="repair or remove the row")
    return np.asarray(days * _DAY_NS + seconds * 10**9 + fraction - offset_ns), zoned


def _day_first(table: Table, name: str, a: NDArray[np.int64], b: NDArray[np.int64], told: bool | None) -> bool:
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
    table: Table, name: str, year: NDArray[np.int64], month: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Days since 1970, each a day that exists."""
    possible = (year >= 1678) & (year < 2262) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    months = np.where(possible, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    bad = ~possible | (days.astype("datetime64[M]") != months)
    if bad.any():
        row = int(np.argmax(bad))
        raise LogError(
            f"no such day: {year[row]}-{month[row]}-{day[row]}",
            where=table.place(row, name),
            next_step="repair or remove the row; or pass --read day-first=yes or no",
        )
    return np.asarray(days.astype(np.int64))


def _offsets(text: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """[N] offset from UTC in nanoseconds, and where one was given."""
    coded = text.dictionary_encode()
    words = [str(w) for w in coded.dictionary.to_pylist()]
    codes = coded.indices.to_numpy()
    offsets = np.array([_offset_ns(w) for w in words], np.int64)
    return offsets[codes], np.array([bool(w) for w in words], bool)[codes]


def _offset_ns(word: str) -> int:
    if word[:1] not in ("+", "-"):
        return 9 * 3600 * 10**9 if word == "JST" else 0
    digits = word[1:].replace(":", "")
    seconds = int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60
    return (-seconds if word[0] == "-" else seconds) * 10**9
