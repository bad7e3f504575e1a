"""Episodes out as a plant historian's wide CSV: TIME (ISO 8601), EPISODE, TASK, OUTCOME, then one tag a column.

Headers carry units ("COATING [g/m2]"), actions as applied stand beside commands (ending "_APPLIED"), invalid
samples and tags without a sample in a row are empty cells.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.files import write_atomic
from hagane.intake.historian import APPLIED_HEADER
from hagane.intake.sources import column_sources, set_sources, units_of
from hagane.terms import APPLIED, Channel, ConfigError, Embodiment, Episode, Stream

_START_NS = 1_767_571_200_000_000_000  # 2026-01-05 00:00 UTC
_BETWEEN_NS = 3_600_000_000_000


def write_historian(
    episodes: Iterable[Episode], embodiment: Embodiment, path: Path, *, start_ns: int = _START_NS
) -> Path:
    """Write one CSV of all episodes, an hour of silence between two; gives the path.

    Raises:
        ConfigError: an image channel, or sources that do not fit a channel.
        LogError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    out = io.BytesIO()
    at_ns = start_ns
    runs = list(episodes)
    columns = _columns(embodiment, runs)
    text = pa.string()
    for number, episode in enumerate(runs):
        grid_ns = np.unique(np.concatenate([s.times_ns for s in episode.streams.values()] or [np.zeros(0, np.int64)]))
        if not len(grid_ns):
            continue
        stamps = grid_ns - grid_ns[0] + at_ns
        at_ns = (int(stamps[-1]) + _BETWEEN_NS) // _BETWEEN_NS * _BETWEEN_NS + _BETWEEN_NS
        n = len(grid_ns)
        table: dict[str, Any] = {
            "TIME": pa.array(stamps, pa.timestamp("ns")).cast(pa.timestamp(_resolution(stamps))),
            "EPISODE": pa.array([_label(episode.id)] * n, text),
            "TASK": pa.array([episode.task or None] * n, text),
            "OUTCOME": pa.array([episode.outcome or None] * n, text),
        }
        for header, stream, place, column in columns:
            values = _cells(episode.streams.get(stream), grid_ns, place, column)
            table[header] = pa.array(values, mask=np.isnan(values))
        options = pa_csv.WriteOptions(include_header=number == 0, quoting_style="needed")
        pa_csv.write_csv(pa.table(table), out, options)
    write_atomic(path, [out.getvalue()])
    return path


def _label(name: str) -> str:
    """The last part of an episode's id, as a plant would number its coils."""
    return name.rsplit("/", 1)[-1]


def _columns(embodiment: Embodiment, episodes: list[Episode]) -> list[tuple[str, str, int, int]]:
    """Header, stream, place (-1 for a vector) and column of every tag."""
    found: list[tuple[str, str, int, int]] = []
    for channel in (*embodiment.observe, *embodiment.act):
        if channel.kind == "text":
            continue
        if channel.kind == "image":
            raise ConfigError(
                "images do not go into a CSV", where=f"channel {channel.name!r}", next_step="take the channel out"
            )
        found += _tags(channel, channel.name, "")
        if channel in embodiment.act and any(channel.name + APPLIED in e.streams for e in episodes):
            found += _tags(channel, channel.name + APPLIED, APPLIED_HEADER)
    return found


def _tags(channel: Channel, stream: str, ending: str) -> list[tuple[str, str, int, int]]:
    units = units_of(channel)
    rows = set_sources(channel) if channel.kind == "set" else (column_sources(channel),)
    tags = []
    for place, row in enumerate(rows):
        for k, source in enumerate(row):
            unit = f" [{units[k]}]" if units[k] not in ("", "1") else ""
            tags.append((f"{source}{ending}{unit}", stream, place if channel.kind == "set" else -1, k))
    return tags


def _cells(stream: Stream | None, grid_ns: NDArray[np.int64], place: int, column: int) -> NDArray[Any]:
    """[rows] values of one tag, NaN for an empty cell; keeps the stream's precision."""
    if stream is None or not len(stream):
        return np.full(len(grid_ns), np.nan)
    dtype = stream.values.dtype if stream.values.dtype in (np.float32, np.float64) else np.float64
    cells = np.full(len(grid_ns), np.nan, dtype)
    valid = stream.valid if place < 0 else stream.valid[:, place]
    values = (stream.values if place < 0 else stream.values[:, place])[valid, column]
    cells[np.searchsorted(grid_ns, stream.times_ns[valid])] = values
    return cells


def _resolution(stamps: NDArray[np.int64]) -> str:
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if not (stamps % size).any():
            return unit
    return "ns"
