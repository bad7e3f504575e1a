"""The files of a LeRobot v3.0 set while it is written: rows in data/, a row an episode in meta/episodes/."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hagane.intake.lerobot_layout import CHUNK_SIZE, DATA_PATH, EPISODES_PATH, FILE_BYTES, Feature, arrow_schema
from hagane.intake.lerobot_stats import STATS, Stats
from hagane.intake.picture import encode_png, is_encoded

Rows = Mapping[str, NDArray[Any]]
"""One episode: feature to [K, width], [K] for scalars, [K, H, W, 3] uint8 or [K] encoded bytes for images."""
_ROWS = 100  # episodes whose statistics wait in memory


class DataFiles:
    """data/chunk-*/file-*.parquet, one row group an episode, a new file when one is full."""

    def __init__(self, root: Path, features: Mapping[str, Feature]) -> None:
        self.root, self.features, self.schema = root, features, arrow_schema(features)
        self.frames, self.files = 0, 0
        self._path = root
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    def write(self, own: pa.Table, frames: Rows) -> tuple[int, int]:
        """Append an episode: its own features, and those that every set has; returns its chunk and file."""
        if self._writer is not None and self._file.tell() > FILE_BYTES:
            self.close()
        if self._writer is None:
            self._open()
        columns = [
            own.column(f.name) if f.name in self.features else array(frames[f.name], f.type) for f in self.schema
        ]
        table = pa.table(columns, schema=self.schema)
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        self.frames += len(table)
        return divmod(self.files - 1, CHUNK_SIZE)

    def close(self) -> None:
        """Sync and close the open file."""
        if self._writer is not None:
            self._writer.close()
            sync_and_close(self._file)
            self._writer = None

    def _open(self) -> None:
        chunk, file = divmod(self.files, CHUNK_SIZE)
        self._path = self.root / DATA_PATH.format(chunk_index=chunk, file_index=file)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._writer = pq.ParquetWriter(self._file, self.schema, compression="snappy", use_dictionary=False)
        self.files += 1


class IndexFile:
    """meta/episodes/chunk-000/file-000.parquet: a row an episode, written as they come so that memory stays flat."""

    def __init__(self, root: Path) -> None:
        self.path, self.episodes = root / EPISODES_PATH.format(chunk_index=0, file_index=0), 0
        self._rows: list[dict[str, Any]] = []
        self._stats: list[Stats] = []
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    def add(self, task: str, length: int, chunk: int, file: int, start: int, stats: Stats) -> None:
        """Append an episode of `length` frames from frame `start` on, that lies in a data file."""
        self._rows.append(
            {
                "episode_index": self.episodes,
                "tasks": [task],
                "length": length,
                "data/chunk_index": chunk,
                "data/file_index": file,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self._stats.append(stats)
        self.episodes += 1
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Write what has not been written, sync and close."""
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()
            sync_and_close(self._file)
            self._writer = None

    def _flush(self) -> None:
        table = _episodes_table(self._rows, self._stats)
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
            self._writer = pq.ParquetWriter(self._file, table.schema, compression="snappy")
        self._writer.write_table(table.cast(self._writer.schema))
        self._rows, self._stats = [], []


def sync_and_close(file: Any) -> None:
    """Make a written file durable."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def frame_columns(length: int, number: int, first: int, task_index: int, fps: int) -> dict[str, NDArray[Any]]:
    """`FRAME_FEATURES` of episode `number`, whose first frame is frame `first` of the set."""
    frames = np.arange(length, dtype=np.int64)
    return {
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(length, number, np.int64),
        "index": first + frames,
        "task_index": np.full(length, task_index, np.int64),
    }


def write_table(path: Path, table: pa.Table) -> None:
    """Write a small table, synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        pq.write_table(table, f, compression="snappy")
        sync_and_close(f)


def array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """A feature's values as Arrow has them; plain pictures become PNG."""
    if pa.types.is_struct(kind):
        pictures = values if is_encoded(values) else [encode_png(v) for v in values]
        return pa.array([{"bytes": p, "path": None} for p in pictures], kind)
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(np.ascontiguousarray(values).reshape(-1), kind)


def _episodes_table(index: Sequence[Mapping[str, Any]], stats: Sequence[Stats]) -> pa.Table:
    columns: dict[str, Any] = {key: [row[key] for row in index] for key in index[0]}
    for name, one in stats[0].items():
        for stat in STATS:
            nested = one[stat].ndim == 3
            values = [s[name][stat] for s in stats]
            columns[f"stats/{name}/{stat}"] = [v.tolist() for v in values] if nested else _lists(values)
    return pa.table(columns)


def _lists(values: Sequence[NDArray[Any]]) -> pa.Array:
    offsets = np.cumsum([0, *(len(v) for v in values)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))
