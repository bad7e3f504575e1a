"""Native-rate streams as plain Parquet, for tools that know nothing of hagane: one file an episode, int64 ns.

    episodes.parquet             one row an episode: file, id, task, outcome, digests, counts
    episodes/000000.parquet      wide: one row a time stamp, one column a channel column ("arm.0"), and "arm.valid":
                                 null where the stream has no sample at that time, False where a check refused it.
                                 Nothing is carried forward. Units stand in the columns' metadata.
                                 long: one row a value: time_ns, stream, sample, column, valid, unit, and the value.

Samples that share a stamp within a stream get rows of their own. Long keeps the order of arrival; wide is by time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hagane.catalog.catalog import Catalog
from hagane.catalog.contents import EpisodeFacts, episodes_of
from hagane.intake.picture import encode_png
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Stream

Layout = Literal["wide", "long"]

LONG = pa.schema(
    [
        pa.field("time_ns", pa.int64()),
        pa.field("stream", pa.dictionary(pa.int32(), pa.string())),
        pa.field("sample", pa.int64()),
        pa.field("column", pa.int32()),
        pa.field("valid", pa.bool_()),
        pa.field("unit", pa.dictionary(pa.int32(), pa.string())),
        pa.field("value", pa.float64()),
        pa.field("integer", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("picture", pa.binary()),
    ]
)
"""Of a long file. One of value, integer, text and picture is set; `column` counts a sample's values row-major."""
EPISODES = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("file", pa.string()),
        pa.field("id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("outcome", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("findings", pa.list_(pa.string())),
        pa.field("content_digest", pa.string()),
        pa.field("source_digest", pa.string()),
    ]
)
"""Of episodes.parquet."""


def write_parquet(catalog: Catalog, name: str, folder: Path, layout: Layout) -> None:
    """Write the episodes of a data set into a folder, one at a time.

    Raises:
        Refused: the contract does not grant "export".
        CorruptError: stored bytes differ from their digest.
        OSError: the disk refuses.
    """
    machine = catalog.embodiment(name)
    facts = episodes_of(catalog, name)
    (folder / "episodes").mkdir()
    for fact, episode in zip(facts, catalog.episodes(name, "export"), strict=True):
        table = wide_table(episode, machine) if layout == "wide" else long_table(episode, machine)
        told = {"episode": fact.id, "task": fact.task, **_clocks(episode)}
        _save(table.replace_schema_metadata({"hagane": json.dumps(told)}), folder / file_of(fact))
    rows = [
        {
            "number": f.number,
            "file": file_of(f),
            "id": f.id,
            "task": f.task,
            "outcome": f.outcome,
            "seconds": f.seconds,
            "findings": list(f.findings),
            "content_digest": f.content,
            "source_digest": f.source,
        }
        for f in facts
    ]
    _save(pa.Table.from_pylist(rows, EPISODES), folder / "episodes.parquet")


def file_of(fact: EpisodeFacts) -> str:
    """Path of an episode's file: a number, so that no id of a member's log becomes a file name."""
    return f"episodes/{fact.number:06d}.parquet"


def stream_channels(machine: Embodiment) -> Iterator[tuple[str, Channel]]:
    """Streams that a machine may have, with the channel of each; applied actions after their commands."""
    for c in machine.channels():
        yield c.name, c
        if c in machine.act:
            yield c.name + APPLIED, c


def value_columns(stream: str, channel: Channel) -> tuple[str, ...]:
    """Names of a stream's value columns in a wide file."""
    if channel.kind in ("image", "text") or channel.shape == (1,):
        return (stream,)
    return tuple(f"{stream}.{'.'.join(map(str, at))}" for at in np.ndindex(*channel.shape))


def wide_table(episode: Episode, machine: Embodiment) -> pa.Table:
    """An episode with one row a time stamp; streams that the machine does not know are left out."""
    streams = [(n, c, episode.streams[n]) for n, c in stream_channels(machine) if n in episode.streams]
    keys = [_keys(s) for _, _, s in streams]
    rows = np.unique(np.concatenate(keys), axis=0) if keys else np.zeros((0, 2), np.int64)
    fields, columns = [pa.field("time_ns", pa.int64(), metadata={"unit": "ns"})], [pa.array(rows[:, 0])]
    order = _ranks(rows, keys)
    for (name, channel, stream), at in zip(streams, order, strict=True):
        units = stream.unit or ("1",)
        parts = _parts(stream, channel)
        for k, (label, part) in enumerate(zip(value_columns(name, channel), parts, strict=True)):
            told = {"unit": units[k % len(units)], "role": channel.role, "kind": channel.kind}
            fields.append(pa.field(label, part.type, metadata=told))
            columns.append(_spread(part, at, len(rows)))
        flags = _flags(stream)
        for k in range(flags.shape[1]):
            fields.append(pa.field(f"{name}.valid" if stream.valid.ndim == 1 else f"{name}.{k}.valid", pa.bool_()))
            columns.append(_spread(pa.array(flags[:, k]), at, len(rows)))
    return pa.table(columns, schema=pa.schema(fields))


def long_table(episode: Episode, machine: Embodiment) -> pa.Table:
    """An episode with one row a value, stream by stream."""
    tables = [_long(n, c, episode.streams[n]) for n, c in stream_channels(machine) if n in episode.streams]
    return pa.concat_tables(tables).unify_dictionaries() if tables else LONG.empty_table()


def _long(name: str, channel: Channel, stream: Stream) -> pa.Table:
    parts = _parts(stream, channel)
    samples, width = len(stream), len(parts)
    count = samples * width
    flags = _flags(stream)
    units = stream.unit or ("1",)
    kind = parts[0].type
    slot = {pa.string(): "text", pa.binary(): "picture", pa.int64(): "integer"}.get(kind, "value")
    whole = pa.chunked_array(parts).combine_chunks() if count else pa.array([], kind)
    # column by column as they lie, then back to row-major
    values = whole.take(pa.array(np.arange(count).reshape(width, samples).T.ravel()))
    columns: dict[str, Any] = {
        "time_ns": np.repeat(stream.times_ns, width),
        "stream": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [name]),
        "sample": np.repeat(np.arange(samples), width),
        "column": np.tile(np.arange(width, dtype=np.int32), samples),
        "valid": np.repeat(flags, width // flags.shape[1], axis=1).ravel(),
        "unit": pa.DictionaryArray.from_arrays(
            np.tile(np.arange(width, dtype=np.int32) % len(units), samples), [*units]
        ),
        slot: values.cast(LONG.field(slot).type),
    }
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in LONG], schema=LONG)


def _parts(stream: Stream, channel: Channel) -> list[pa.Array]:
    """A stream's values, one array a column, in the type they have."""
    if channel.kind == "text":
        return [pa.array([str(v) for v in stream.values], pa.string())]
    if channel.kind == "image":
        return [pa.array([v if isinstance(v, bytes) else encode_png(v) for v in stream.values], pa.binary())]
    flat = stream.values.reshape(len(stream), int(np.prod(channel.shape)))
    if flat.dtype.kind in "iub":
        flat = flat.astype(np.int64)
    return [pa.array(np.ascontiguousarray(flat[:, k])) for k in range(flat.shape[1])]


def _flags(stream: Stream) -> NDArray[np.bool_]:
    """[N, places] validity."""
    return stream.valid.reshape(len(stream), int(np.prod(stream.valid.shape[1:])))


def _keys(stream: Stream) -> NDArray[np.int64]:
    """[N, 2] stamp of each sample, and how many samples of the stream with that stamp came before."""
    order = np.argsort(stream.times_ns, kind="stable")
    times = stream.times_ns[order]
    new = np.concatenate([[True], times[1:] != times[:-1]]) if len(times) else np.zeros(0, bool)
    at = np.arange(len(times))
    before = np.empty(len(times), np.int64)
    before[order] = at - np.maximum.accumulate(np.where(new, at, 0)) if len(times) else at
    return np.stack([stream.times_ns, before], axis=1)


def _ranks(rows: NDArray[np.int64], keys: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Row of each sample, by stream."""
    if not keys:
        return []
    _, where = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    return np.split(where.reshape(-1), np.cumsum([len(k) for k in keys])[:-1])


def _spread(part: pa.Array, at: NDArray[np.int64], count: int) -> pa.Array:
    """Values at their rows, null elsewhere."""
    index = np.full(count, -1, np.int64)
    index[at] = np.arange(len(part))
    return part.take(pa.array(index, mask=index < 0))


def _clocks(episode: Episode) -> dict[str, dict[str, int]]:
    """Offset of each stream's clock, and how late its readings came."""
    told = ("clock_offset_ns", "latency_ns")
    return {what: {name: int(getattr(s, what)) for name, s in episode.streams.items()} for what in told}


def _save(table: pa.Table, path: Path) -> None:
    with path.open("xb") as f:
        pq.write_table(table, f, compression="zstd", compression_level=3)
        f.flush()
        os.fsync(f.fileno())
