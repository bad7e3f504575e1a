"""Episodes as Arrow tables, at their native rates and without loss: one row a stream.

Columns: times in int64 ns, values in a column of their own type, validity, unit and clock offset a stream.
The digest of an episode covers its content, not the bytes of a Parquet file, so it stays the same
over versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hagane.intake.picture import decode_picture, encode_png, is_encoded
from hagane.terms import CorruptError, Episode, Finding, Stream, canonical_json

SCHEMA = pa.schema(
    [
        ("episode", pa.string()),
        ("stream", pa.string()),
        ("times_ns", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("float32", pa.list_(pa.float32())),
        ("float64", pa.list_(pa.float64())),
        ("int64", pa.list_(pa.int64())),
        ("text", pa.list_(pa.string())),
        ("picture", pa.list_(pa.binary())),
        ("valid", pa.list_(pa.bool_())),
        ("valid_shape", pa.list_(pa.int64())),
        ("unit", pa.list_(pa.string())),
        ("clock_offset_ns", pa.int64()),
        ("latency_ns", pa.int64()),
    ]
)
"""Of the sidecar files. Exactly one of float32, float64, int64, text and picture holds a stream's values, row-major.
Pictures stay as they came: plain ones are PNG (dtype uint8), encoded ones keep their bytes (dtype object)."""


_DTYPES = {pa.int64(): np.int64, pa.float32(): np.float32, pa.float64(): np.float64, pa.bool_(): np.bool_}


def episode_digest(episode: Episode) -> str:
    """sha256 over all that an episode says: facts, findings, and every stream's bytes."""
    h = hashlib.sha256(canonical_json(episode_facts(episode)))
    for name in sorted(episode.streams):
        s = episode.streams[name]
        head = [name, str(s.values.dtype), s.values.shape, s.valid.shape, s.unit, s.clock_offset_ns, s.latency_ns]
        h.update(canonical_json(head))
        h.update(np.ascontiguousarray(s.times_ns, "<i8").tobytes())
        h.update(_content(s.values))
        h.update(np.ascontiguousarray(s.valid, np.bool_).tobytes())
    return h.hexdigest()


def episode_facts(episode: Episode) -> dict[str, Any]:
    """Everything but the streams, as JSON."""
    return {
        "id": episode.id,
        "embodiment": episode.embodiment,
        "task": episode.task,
        "outcome": episode.outcome,
        "digest": episode.digest,
        "findings": [asdict(f) for f in episode.findings],
    }


def told_facts(episode: Episode) -> dict[str, Any]:
    """`episode_facts`, with what is told of an episode on the way in: its span, and [samples, valid] by stream."""
    counts = {}
    for name, s in episode.streams.items():
        counts[name] = [len(s), int(s.valid.any(tuple(range(1, s.valid.ndim))).sum())]
    return {**episode_facts(episode), "span_ns": list(episode.span_ns), "samples": counts}


def episode_table(episode: Episode) -> pa.Table:
    """The streams of an episode, one row each, in `SCHEMA`."""
    streams = list(episode.streams.values())
    kinds = [_kind(s.values) for s in streams]
    columns: dict[str, Any] = {
        "episode": pa.array([episode.id] * len(streams), pa.string()),
        "stream": pa.array(list(episode.streams), pa.string()),
        "times_ns": _lists([s.times_ns for s in streams], pa.int64()),
        "dtype": pa.array([str(s.values.dtype) for s in streams], pa.string()),
        "shape": pa.array([list(s.values.shape[1:]) for s in streams], pa.list_(pa.int64())),
        "valid": _lists([s.valid.reshape(-1) for s in streams], pa.bool_()),
        "valid_shape": pa.array([list(s.valid.shape[1:]) for s in streams], pa.list_(pa.int64())),
        "unit": pa.array([list(s.unit) for s in streams], pa.list_(pa.string())),
        "clock_offset_ns": pa.array([s.clock_offset_ns for s in streams], pa.int64()),
        "latency_ns": pa.array([s.latency_ns for s in streams], pa.int64()),
    }
    for kind in ("float32", "float64", "int64"):
        flat = [s.values.reshape(-1) if k == kind else None for s, k in zip(streams, kinds, strict=True)]
        columns[kind] = _lists(flat, SCHEMA.field(kind).type.value_type)
    for kind, encode in (("text", str), ("picture", _encoded)):
        rows = [[encode(v) for v in s.values] if k == kind else None for s, k in zip(streams, kinds, strict=True)]
        columns[kind] = pa.array(rows, SCHEMA.field(kind).type)
    return pa.table([columns[f.name] for f in SCHEMA], schema=SCHEMA)


def read_episode(facts: Mapping[str, Any], table: pa.Table, where: str) -> Episode:
    """The episode again, equal to what was stored.

    Raises:
        CorruptError: table and facts do not belong together.
    """
    streams = {}
    columns = {name: table.column(name) for name in table.column_names}
    for at in range(table.num_rows):
        row = {name: column[at] for name, column in columns.items()}
        if row["episode"].as_py() != facts["id"]:
            raise CorruptError(f"holds another episode than {facts['id']!r}", where=where)
        streams[row["stream"].as_py()] = _stream(row)
    findings = tuple(Finding(**f) for f in facts["findings"])
    words = (facts["task"], facts["outcome"], facts["digest"])
    return Episode(facts["id"], facts["embodiment"], streams, *words, findings)


def pack_episode(episode: Episode) -> bytes:
    """An episode as bytes, for the journal."""
    head = canonical_json({**told_facts(episode), "content": episode_digest(episode)})
    table = episode_table(episode).replace_schema_metadata({"facts": head})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack_facts(payload: bytes) -> dict[str, Any]:
    """`told_facts` of a packed episode, with its digest under "content"."""
    facts: dict[str, Any] = json.loads(pa.ipc.open_stream(payload).schema.metadata[b"facts"])
    return facts


def unpack_episode(payload: bytes) -> tuple[dict[str, Any], pa.Table, Episode]:
    """Facts, table and episode of `pack_episode`."""
    table = pa.ipc.open_stream(payload).read_all()
    facts = json.loads(table.schema.metadata[b"facts"])
    table = table.replace_schema_metadata(None)
    return facts, table, read_episode(facts, table, "journal")


def _content(values: NDArray[Any]) -> bytes:
    """The bytes that a digest covers."""
    if values.dtype != object:
        return np.ascontiguousarray(values).tobytes()
    if is_encoded(values):
        return b"".join(hashlib.sha256(v).digest() for v in values)
    return canonical_json([str(v) for v in values])


def _encoded(picture: bytes | NDArray[np.uint8]) -> bytes:
    return picture if isinstance(picture, bytes) else encode_png(picture)


def _kind(values: NDArray[Any]) -> str:
    if values.dtype == object:
        return "picture" if is_encoded(values) else "text"
    if values.dtype == np.uint8 and values.ndim == 4 and values.shape[3] == 3:
        return "picture"
    if values.dtype in (np.float32, np.float64):
        return str(values.dtype)
    return "int64" if values.dtype.kind in "iub" else "float64"


def _lists(rows: Sequence[NDArray[Any] | None], kind: pa.DataType) -> pa.Array:
    """A list array, null where a row is None."""
    there = [r for r in rows if r is not None]
    if not there:
        return pa.nulls(len(rows), pa.list_(kind))
    offsets = np.cumsum([0, *(0 if r is None else len(r) for r in rows)]).astype(np.int32)
    flat = pa.array(np.concatenate(there).astype(_DTYPES[kind], copy=False))
    return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array([r is None for r in rows]))


def _stream(row: Mapping[str, Any]) -> Stream:
    def flat(name: str) -> NDArray[Any]:
        # a copy: Arrow's memory may not be written, and readers may
        return np.array(row[name].values.to_numpy(zero_copy_only=False))

    dtype = np.dtype(row["dtype"].as_py())
    times = flat("times_ns").astype(np.int64, copy=False)
    shape = (len(times), *row["shape"].as_py())
    kind = next(k for k in ("float32", "float64", "int64", "text", "picture") if row[k].is_valid)
    if kind == "picture" and dtype.hasobject:
        values = np.array(row[kind].as_py(), object)
    elif kind == "picture":
        pictures = [decode_picture(p) for p in row[kind].as_py()]
        values = np.stack(pictures) if pictures else np.zeros(shape, np.uint8)
    elif kind == "text":
        values = np.array(row[kind].as_py(), object)
    else:
        values = flat(kind).astype(dtype, copy=False).reshape(shape)
    valid = flat("valid").astype(np.bool_, copy=False).reshape((len(times), *row["valid_shape"].as_py()))
    clock_ns, latency_ns = (int(row[name].as_py()) for name in ("clock_offset_ns", "latency_ns"))
    return Stream(times, values, valid, tuple(row["unit"].as_py()), clock_ns, latency_ns)
