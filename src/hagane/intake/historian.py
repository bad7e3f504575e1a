"""Plant historian exports (wide CSV, one tag a column) into Episodes.

Episodes are told apart by a column (COIL, HEAT, EPISODE, ...), or by silences of more than ten minutes
(`Options.gap_s`). An empty cell is an invalid sample. Sparse tags: where the embodiment declares a rate well below
the file's, empty cells are no samples, and a value held from row to row counts once, when it changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hagane.intake.csv_table import EPISODE_HEADERS, OUTCOME_HEADERS, TASK_HEADERS, CsvTable, delimiter_of, load_csv
from hagane.intake.csv_time import parse_times, time_columns
from hagane.intake.files import head_of
from hagane.intake.options import Options
from hagane.intake.sources import column_sources, nearest, set_sources, units_of
from hagane.intake.streams import on_episode_clock, unmapped
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, LogError, Stream

APPLIED_HEADER = "_APPLIED"
"""Ending of the header of a tag that holds an action as applied."""
_GAP_S = 600.0
_HELD = 5.0  # a file this many times faster than the declared rate holds values

Cells = tuple[NDArray[np.float64], NDArray[np.bool_], str]


def sniff(path: Path) -> bool:
    """True for text whose first lines are cells of equal number, with words in the first."""
    head = head_of(path, 1 << 15)
    if not head or (b"\0" in head and head[:2] not in (b"\xff\xfe", b"\xfe\xff")) or head.lstrip()[:1] in b"{[(<":
        return False
    lines = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").splitlines()
    d = delimiter_of(lines)
    words = lines[0].count(d) >= 1 and any(c.isalpha() for c in lines[0])
    whole = lines[1:3] if head.endswith(b"\n") or len(lines) > 3 else lines[1:2]
    utf16 = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    return utf16 or (words and all(d in line for line in whole if line.strip()))


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """Episodes of a historian CSV.

    Raises:
        LogError: not text, a cell that is no number, two units in one column, a header that the file lacks, a time
            that cannot be read, or a file that is cut (unless `keep_whole`: then its whole rows are given).
    """
    table = load_csv(path, options)
    time_names = time_columns(table, options.time_column)
    times_ns = parse_times(table, time_names, options.day_first)
    cells: dict[str, Cells] = {}
    missing: list[str] = []
    for channel in (*embodiment.observe, *embodiment.act):
        if channel.kind not in ("vector", "set"):
            continue
        for source in _sources(channel):
            name = _header_of(source, table)
            if name is None and channel in embodiment.observe:
                raise LogError(
                    f"channel {channel.name!r} needs a column {source!r}",
                    where=f"{table.where}:1",
                    next_step=nearest(source, table.names),
                )
            if name is None:
                missing.append(channel.name)
                continue
            cells[source] = table.numbers(name)
            applied = _header_of(source + APPLIED_HEADER, table)
            if applied is not None and channel in embodiment.act:
                cells[source + APPLIED_HEADER] = table.numbers(applied)
    rows = _split(table, times_ns, options, path.stem, {n.lower() for n in cells})
    return _episodes(table, times_ns, cells, set(missing), rows, embodiment, options)


def _episodes(
    table: CsvTable,
    times_ns: NDArray[np.int64],
    cells: Mapping[str, Cells],
    missing: set[str],
    rows: list[tuple[str, int, int]],
    embodiment: Embodiment,
    options: Options,
) -> Iterator[Episode]:
    steps = np.diff(times_ns)
    period_s = float(np.median(steps[steps > 0])) / 1e9 if (steps > 0).any() else 1.0
    outside = len(table) - sum(b - a for _, a, b in rows)
    for number, (name, a, b) in enumerate(rows):
        streams: dict[str, Stream] = {}
        findings = [unmapped(name, m, "no column of that name") for m in sorted(missing)]
        for channel in (*embodiment.observe, *embodiment.act):
            if channel.kind not in ("vector", "set") or channel.name in missing:
                continue
            streams[channel.name] = _stream(channel, cells, times_ns[a:b], slice(a, b), "", period_s)
            if channel in embodiment.act and all(s + APPLIED_HEADER in cells for s in _sources(channel)):
                stream = _stream(channel, cells, times_ns[a:b], slice(a, b), APPLIED_HEADER, period_s)
                streams[channel.name + APPLIED] = stream
        if number == 0 and outside:
            findings.append(Finding("unmapped", name, "*", 0, outside, f"{outside} rows belong to no episode"))
        if number == len(rows) - 1 and table.cut:
            findings.append(Finding("truncated", name, "*", int(times_ns[b - 1] - times_ns[a]), 1, table.cut))
            if table.cut.startswith("no line break"):
                streams = {k: _without_last(s, int(times_ns[b - 1])) for k, s in streams.items()}
        outcome = _word(table, OUTCOME_HEADERS, a)
        outcome = outcome if outcome in ("success", "failure") else ""
        task = _word(table, TASK_HEADERS, a) or options.task
        yield on_episode_clock(Episode(name, embodiment.name, streams, task, outcome, table.digest, tuple(findings)))


def _without_last(stream: Stream, last_ns: int) -> Stream:
    """The last row may be cut in the middle of a number: its samples are not valid."""
    valid = stream.valid.copy()
    valid[stream.times_ns == last_ns] = False
    return Stream(stream.times_ns, stream.values, valid, stream.unit)


def _stream(
    channel: Channel, cells: Mapping[str, Cells], times_ns: NDArray[np.int64], rows: slice, ending: str, period_s: float
) -> Stream:
    picked = [cells[s + ending] for s in _sources(channel)]
    values = np.stack([v[rows] for v, _, _ in picked], 1)
    present = np.stack([p[rows] for _, p, _ in picked], 1)
    units = tuple(
        unit or declared for (_, _, unit), declared in zip(picked[: channel.columns], units_of(channel), strict=True)
    )
    if channel.kind == "set":
        values = values.reshape(-1, *channel.shape)
        present = present.reshape(-1, *channel.shape)
        # an absent object is an empty first cell; a hole in a present one stays a NaN for the checks to find
        valid = present[:, :, 0]
        values[~valid] = 0.0
        return Stream(times_ns, values, valid, units)
    valid = np.asarray(present.all(1))
    if channel.rate_hz > 0 and 1 / period_s > 1.5 * channel.rate_hz:
        keep = present.any(1)
        values, valid, times_ns = values[keep], valid[keep], times_ns[keep]
        span_s = (times_ns[-1] - times_ns[0]) / 1e9 if len(times_ns) > 1 else 0.0
        if span_s > 0 and (len(times_ns) - 1) / span_s > _HELD * channel.rate_hz:
            changed = np.r_[True, (np.diff(values, axis=0) != 0).any(1)]
            values, valid, times_ns = values[changed], valid[changed], times_ns[changed]
    return Stream(times_ns, values, valid, units)


def _sources(channel: Channel) -> tuple[str, ...]:
    return sum(set_sources(channel), ()) if channel.kind == "set" else column_sources(channel)


def _header_of(source: str, table: CsvTable) -> str | None:
    """The header that a source means: exactly, or but for capitals."""
    if source in table.names:
        return source
    same = [n for n in table.names if n.lower() == source.lower()]
    return same[0] if len(same) == 1 else None


def _word(table: CsvTable, headers: tuple[str, ...], row: int) -> str:
    """Text in a row of the first column with one of these names; "" when there is none."""
    name = next((n for n in table.names if n.lower() in headers), None)
    return "" if name is None else str(table.table[name][row].as_py() or "")


def _split(
    table: CsvTable, times_ns: NDArray[np.int64], options: Options, stem: str, used: set[str]
) -> list[tuple[str, int, int]]:
    """Episodes as (id, first row, row after the last)."""
    name = options.episode_column or next(
        (n for n in table.names if n.lower() in EPISODE_HEADERS and n.lower() not in used), ""
    )
    if name and name not in table.names:
        raise LogError(f"no column {name!r}", where=f"{table.where}:1", next_step=nearest(name, table.names))
    if name:
        column = table.strings(name).fill_null("")
        codes = column.dictionary_encode().indices.to_numpy()
        borders = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
        found: list[tuple[str, int, int]] = []
        seen: dict[str, int] = {}
        for a, b in itertools.pairwise(borders):
            label = str(column[a].as_py())
            if label:
                seen[label] = seen.get(label, 0) + 1
                again = f"-{seen[label]}" if seen[label] > 1 else ""
                found.append((f"{stem}-{label}{again}", a, b))
        if not found:
            raise LogError("the column names no episode", where=f"{table.where}, column {name!r}")
        return found
    gap_ns = round((options.gap_s or _GAP_S) * 1e9)
    borders = [0, *(np.flatnonzero(np.diff(times_ns) > gap_ns) + 1).tolist(), len(times_ns)]
    pairs = list(itertools.pairwise(borders))
    return [(f"{stem}-{k:05d}" if len(pairs) > 1 else stem, a, b) for k, (a, b) in enumerate(pairs)]
