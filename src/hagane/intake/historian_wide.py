"""Plant historian tables in the wide form, one tag a column.

Episodes are told apart by a column (COIL, HEAT, EPISODE, ...), or by silences of more than ten minutes. An empty
cell is an invalid sample, and so is one whose quality column (TAG.Q, TAG_quality, TAG_STATUS) says bad or uncertain.
Sparse tags: where the embodiment declares a rate well below the file's, empty cells are no samples, and a value held
from row to row counts once, when it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.intake.historian_long import stem_of
from hagane.intake.options import Options
from hagane.intake.quality import GOOD, grades, quality_finding, quality_header
from hagane.intake.series import APPLIED_ENDING, GAP_S, sources_of
from hagane.intake.sources import nearest, units_of
from hagane.intake.streams import episode_ids, known_outcome, note, on_episode_clock, pieces, unmapped, with_cut
from hagane.intake.table import Table, TableFile, find_name
from hagane.intake.table_time import parse_times
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, LogError, Stream

_HELD = 5.0  # a file this many times faster than the declared rate holds values


@dataclass(frozen=True, eq=False)
class _Cells:
    """A tag's column."""

    values: NDArray[np.float64]
    present: NDArray[np.bool_]
    grade: NDArray[np.int8]
    unit: str


@dataclass(frozen=True, eq=False)
class _Wide:
    """All tags of a file that channels ask for, by source."""

    table: Table
    times_ns: NDArray[np.int64]
    cells: dict[str, _Cells]
    notes: tuple[str, ...]


def read_wide(
    file: TableFile,
    times: tuple[str, ...],
    episode_columns: Mapping[str, str],
    embodiment: Embodiment,
    options: Options,
) -> Iterator[Episode]:
    """Episodes of a wide table.

    Args:
        file: the opened table.
        times: its time column, or date and clock.
        episode_columns: headers of the columns "episode", "task" and "outcome", where there are.
        embodiment: whose channels are read.
        options: how.

    Raises:
        LogError: a header that the file lacks, a cell that is no number, two units in one column, a time that
            cannot be read, or a file that is cut (unless `keep_whole`: then its whole rows are given).
    """
    headers, missing = _headers(file, embodiment)
    taken = set(headers.values())
    qualities = {n: q for n in taken if (q := quality_header(n, file.names)) is not None and q not in taken}
    columns = dict.fromkeys((*times, *taken, *qualities.values(), *episode_columns.values()))
    table = file.load(sorted(columns, key=file.names.index))
    times_ns, notes = parse_times(table, times, options)
    notes = (*table.notes, *notes)
    steps = np.diff(times_ns)
    if len(steps) and (steps <= 0).all() and (steps < 0).any():
        table, times_ns = table.newest_first(), times_ns[::-1]
        notes = (*notes, "its rows come newest first: read from its end")
    cells = {}
    for source, name in headers.items():
        cells[source], notes = _cells(table, name, qualities.get(name, ""), notes)
    rows = _split(table, times_ns, options, episode_columns.get("episode", ""))
    return _episodes(_Wide(table, times_ns, cells, notes), missing, rows, episode_columns, embodiment, options)


def _headers(file: TableFile, embodiment: Embodiment) -> tuple[dict[str, str], set[str]]:
    """Headers by source, and the action channels that the file lacks."""
    headers: dict[str, str] = {}
    missing: set[str] = set()
    for channel in embodiment.channels():
        for source in sources_of(channel):
            name = find_name(source, file.names)
            if name is None and channel in embodiment.observe:
                raise LogError(
                    f"channel {channel.name!r} needs a column {source!r}",
                    where=f"{file.where}:1",
                    next_step=nearest(source, file.names),
                )
            if name is None:
                missing.add(channel.name)
                continue
            headers[source] = name
            applied = find_name(source + APPLIED_ENDING, file.names)
            if applied is not None and channel in embodiment.act:
                headers[source + APPLIED_ENDING] = applied
    return headers, missing


def _cells(table: Table, name: str, quality: str, notes: tuple[str, ...]) -> tuple[_Cells, tuple[str, ...]]:
    numbers = table.numbers(name)
    grade = None
    if quality:
        grade = grades(table.column(quality), quality, f"{table.where}, column {quality!r}")
        if grade is None:
            notes = (*notes, f"the column {quality!r} beside {name!r} holds no qualities: not used")
    if grade is None:
        grade = np.full(len(table), GOOD, np.int8)
    return _Cells(numbers.values, numbers.present & table.sure(), grade, numbers.unit), notes


def _episodes(
    log: _Wide,
    missing: set[str],
    rows: list[tuple[str, int, int]],
    episode_columns: Mapping[str, str],
    embodiment: Embodiment,
    options: Options,
) -> Iterator[Episode]:
    table, times_ns = log.table, log.times_ns
    steps = np.diff(times_ns)
    period_s = float(np.median(steps[steps > 0])) / 1e9 if (steps > 0).any() else 1.0
    outside = len(table) - sum(b - a for _, a, b in rows)
    for number, (name, a, b) in enumerate(rows):
        streams: dict[str, Stream] = {}
        findings = [unmapped(name, m, "no column of that name") for m in sorted(missing)]
        if number == 0:
            findings += [note(name, "*", text) for text in log.notes]
        for channel, ending in _asked(embodiment, missing, log.cells):
            stream_name = channel.name + (APPLIED if ending else "")
            picked = [log.cells[s + ending] for s in sources_of(channel)]
            streams[stream_name] = _stream(channel, picked, times_ns[a:b], slice(a, b), period_s)
            findings += _quality(name, stream_name, picked, times_ns[a:b], slice(a, b))
        if number == 0 and outside:
            findings.append(unmapped(name, "*", f"{outside} rows belong to no episode", outside))
        words = {key: table.word(n, a) for key, n in episode_columns.items()}
        task, outcome = words.get("task", "") or options.task, known_outcome(words.get("outcome", ""))
        episode = Episode(name, embodiment.name, streams, task, outcome, table.digest, tuple(findings))
        yield with_cut(on_episode_clock(episode), table.cut if number == len(rows) - 1 else "")


def _asked(embodiment: Embodiment, missing: set[str], cells: Mapping[str, _Cells]) -> Iterator[tuple[Channel, str]]:
    """Channels that the file has, and the ending of their tags: action channels twice, where actions as applied are."""
    for channel in embodiment.channels():
        sources = sources_of(channel)
        if not sources or channel.name in missing:
            continue
        yield channel, ""
        if channel in embodiment.act and all(s + APPLIED_ENDING in cells for s in sources):
            yield channel, APPLIED_ENDING


def _quality(name: str, stream: str, picked: list[_Cells], times_ns: NDArray[np.int64], rows: slice) -> list[Finding]:
    grade = np.concatenate([c.grade[rows] for c in picked])
    if not grade.any():
        return []
    present = np.concatenate([c.present[rows] for c in picked])
    since_ns = np.tile(times_ns - times_ns[0], len(picked))
    return quality_finding(name, stream, since_ns, grade, present)


def _stream(
    channel: Channel, picked: list[_Cells], times_ns: NDArray[np.int64], rows: slice, period_s: float
) -> Stream:
    values = np.stack([c.values[rows] for c in picked], 1)
    present = np.stack([c.present[rows] & (c.grade[rows] == GOOD) for c in picked], 1)
    units = tuple(c.unit or declared for c, declared in zip(picked[: channel.columns], units_of(channel), strict=True))
    if channel.kind == "set":
        values = values.reshape(-1, *channel.shape)
        present = present.reshape(-1, *channel.shape)
        # an absent object is an empty first cell; a hole in a present one stays a NaN for the checks to find
        valid = present[:, :, 0]
        values[~valid] = 0.0
        return Stream(times_ns, values, valid, units)
    valid = np.asarray(present.all(1))
    if channel.rate_hz > 0 and 1 / period_s > 1.5 * channel.rate_hz:
        keep = np.stack([c.present[rows] for c in picked], 1).any(1)
        values, valid, times_ns = values[keep], valid[keep], times_ns[keep]
        span_s = (times_ns[-1] - times_ns[0]) / 1e9 if len(times_ns) > 1 else 0.0
        if span_s > 0 and (len(times_ns) - 1) / span_s > _HELD * channel.rate_hz:
            changed = np.r_[True, (np.diff(values, axis=0) != 0).any(1) | (np.diff(valid) != 0)]
            values, valid, times_ns = values[changed], valid[changed], times_ns[changed]
    return Stream(times_ns, values, valid, units)


def _split(table: Table, times_ns: NDArray[np.int64], options: Options, name: str) -> list[tuple[str, int, int]]:
    """Episodes as (id, first row, row after the last)."""
    stem = stem_of(table.where)
    if name:
        coded = table.strings(name).fill_null("").dictionary_encode()
        codes, labels = coded.indices.to_numpy(), coded.dictionary.to_pylist()
        found: list[tuple[str, int, int]] = []
        seen: dict[str, int] = {}
        for a, b in pieces(np.diff(codes) != 0):
            label = str(labels[codes[a]])
            if label:
                seen[label] = seen.get(label, 0) + 1
                again = f"-{seen[label]}" if seen[label] > 1 else ""
                found.append((f"{stem}-{label}{again}", a, b))
        if not found:
            raise LogError(
                "the column names no episode",
                where=f"{table.where}, column {name!r}",
                next_step="pass --read episode=HEADER",
            )
        return found
    whole = pieces(np.diff(times_ns) > round((options.gap_s or GAP_S) * 1e9))
    return [(name, a, b) for name, (a, b) in zip(episode_ids(stem, len(whole)), whole, strict=True)]
