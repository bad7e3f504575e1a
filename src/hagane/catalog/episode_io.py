"""Episodes as Arrow tables, at their native rates and without loss: one row a stream.

Columns: times in int64 ns, values in a column of their own type, validity, unit and clock offset a stream.
Pictures are PNG. The digest of an episode covers its content, not the bytes of a Parquet file, so it stays the same
over versions of the libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hagane.intake.lerobot_picture import decode_picture, encode_png
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
        ("png", pa.list_(pa.binary())),
        ("valid", pa.list_(pa.bool_())),
        ("valid_shape", pa.list_(pa.int64())),
        ("unit", pa.list_(pa.string())),
        ("clock_offset_ns", pa.int64()),
    ]
)
"""Of the sidecar files. Exactly one of float32, float64, int64, text and png holds a stream's values, row-major."""


def episode_digest(episode: Episode) -> str:
    """sha256 over all that an episode says: facts, findings, and every stream's bytes."""
    h = hashlib.sha256(canonical_json(episode_facts(episode)))
    for name in sorted(episode.streams):
        s = episode.streams[name]
        text = s.values.dtype == object
        head = [name, str(s.values.dtype), s.values.shape, s.valid.shape, s.unit, s.clock_offset_ns]
        h.update(canonical_json(head))
        h.update(np.ascontiguousarray(s.times_ns, "<i8").tobytes())
        h.update(canonical_json([str(v) for v in s.values]) if text else np.ascontiguousarray(s.values).tobytes())
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


def episode_table(episode: Episode) -> pa.Table:
    """The streams of an episode, one row each, in `SCHEMA`."""
    rows = [_row(episode.id, name, stream) for name, stream in episode.streams.items()]
    return pa.table([pa.concat_arrays([r[f.name] for r in rows]) for f in SCHEMA], schema=SCHEMA)


def read_episode(facts: Mapping[str, Any], table: pa.Table, where: str) -> Episode:
    """The episode again, equal to what was stored.

    Raises:
        CorruptError: table and facts do not belong together.
    """
    streams = {}
    for at in range(table.num_rows):
        row = table.slice(at, 1)
        if row.column("episode")[0].as_py() != facts["id"]:
            raise CorruptError(f"holds another episode than {facts['id']!r}", where=where)
        streams[row.column("stream")[0].as_py()] = _stream(row)
    findings = tuple(Finding(**f) for f in facts["findings"])
    words = (facts["task"], facts["outcome"], facts["digest"])
    return Episode(facts["id"], facts["embodiment"], streams, *words, findings)


def pack_episode(episode: Episode) -> bytes:
    """An episode as bytes, for the journal."""
    head = canonical_json({**episode_facts(episode), "content": episode_digest(episode)})
    table = episode_table(episode).replace_schema_metadata({"facts": head})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack_facts(payload: bytes) -> dict[str, Any]:
    """Facts of a packed episode, with its digest under "content"."""
    facts: dict[str, Any] = json.loads(pa.ipc.open_stream(payload).schema.metadata[b"facts"])
    return facts


def unpack_episode(payload: bytes) -> tuple[dict[str, Any], pa.Table, Episode]:
    """Facts, table and episode of `pack_episode`."""
    table = pa.ipc.open_stream(payload).read_all()
    facts = json.loads(table.schema.metadata[b"facts"])
    table = table.replace_schema_metadata(None)
    return facts, table, read_episode(facts, table, "journal")


def _row(episode: str, name: str, s: Stream) -> dict[str, pa.Array]:
    values, kind = s.values, _kind(s.values)
    row = {f.name: pa.nulls(1, f.type) for f in SCHEMA}
    row["episode"], row["stream"] = pa.array([episode]), pa.array([name])
    row["times_ns"] = _list(np.ascontiguousarray(s.times_ns, np.int64), pa.int64())
    row["dtype"] = pa.array([str(values.dtype)])
    row["shape"] = _list(np.array(values.shape[1:], np.int64), pa.int64())
    if kind == "png":
        row[kind] = pa.array([[encode_png(v) for v in values]], SCHEMA.field(kind).type)
    elif kind == "text":
        row[kind] = pa.array([[str(v) for v in values]], SCHEMA.field(kind).type)
    else:
        flat = np.ascontiguousarray(values.reshape(-1), kind)
        row[kind] = _list(flat, SCHEMA.field(kind).type.value_type)
    row["valid"] = _list(np.ascontiguousarray(s.valid).reshape(-1).astype(np.bool_), pa.bool_())
    row["valid_shape"] = _list(np.array(s.valid.shape[1:], np.int64), pa.int64())
    row["unit"] = pa.array([list(s.unit)], pa.list_(pa.string()))
    row["clock_offset_ns"] = pa.array([s.clock_offset_ns], pa.int64())
    return row


def _kind(values: NDArray[Any]) -> str:
    if values.dtype == object:
        return "text"
    if values.dtype == np.uint8 and values.ndim == 4 and values.shape[3] == 3:
        return "png"
    if values.dtype in (np.float32, np.float64):
        return str(values.dtype)
    return "int64" if values.dtype.kind in "iub" else "float64"


def _list(flat: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), pa.array(flat, kind))


def _stream(row: pa.Table) -> Stream:
    def flat(name: str) -> NDArray[Any]:
        column = row.column(name).combine_chunks().flatten()
        # a copy: Arrow's memory may not be written, and readers may
        return np.array(column.to_numpy(zero_copy_only=False))

    dtype = np.dtype(row.column("dtype")[0].as_py())
    times = flat("times_ns").astype(np.int64, copy=False)
    shape = (len(times), *flat("shape").astype(int))
    kind = next(k for k in ("float32", "float64", "int64", "text", "png") if row.column(k)[0].is_valid)
    if kind == "png":
        pictures = [decode_picture(p) for p in row.column(kind)[0].as_py()]
        values = np.stack(pictures) if pictures else np.zeros(shape, np.uint8)
    elif kind == "text":
        values = np.array(row.column(kind)[0].as_py(), object)
    else:
        values = flat(kind).astype(dtype, copy=False).reshape(shape)
    valid = flat("valid").astype(np.bool_, copy=False).reshape((len(times), *flat("valid_shape").astype(int)))
    unit = tuple(row.column("unit")[0].as_py())
    return Stream(times, values, valid, unit, int(row.column("clock_offset_ns")[0].as_py()))
