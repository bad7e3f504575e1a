"""Write LeRobot v3.0 sets that survive a crash.

`LeRobotWriter` appends each closed episode to a journal (`hagane.intake.lerobot_journal`), so that at most the open
episode is lost; `finish` turns the journal into the set and puts `meta/` in place last, by a rename: a folder with
`meta/info.json` is a complete set, one without is not yet a set.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hagane.intake.lerobot_journal import Journal, disk_error, replace_file, sync_folder
from hagane.intake.lerobot_layout import (
    CHUNK_SIZE,
    DATA_PATH,
    EPISODES_PATH,
    FILE_BYTES,
    Feature,
    arrow_schema,
    check_features,
    info_table,
    tasks_table,
)
from hagane.intake.lerobot_stats import STATS, Stats, StatsBuilder, plain
from hagane.intake.picture import encode_png, is_encoded, plain_pictures
from hagane.terms import ConfigError, StoreError

Rows = Mapping[str, NDArray[Any]]
"""One episode: feature to [K, width], [K] for scalars, [K, H, W, 3] uint8 for images."""


class LeRobotWriter:
    """Records a set, episode by episode. Opening it again after a crash goes on after the last closed episode.

    Args:
        root: folder of the set; made if absent.
        features: columns by name, without timestamp and the indices; dtype "video" is read, not written.
        fps: frames a second (LeRobot wants a whole number).
        robot_type: name of the machine.
        extra: JSON facts kept in info.json under "hagane".

    Raises:
        StoreError: a finished set lies there already, or the disk refuses.
        ConfigError: features that LeRobot cannot hold.
    """

    def __init__(
        self,
        root: Path,
        features: Mapping[str, Feature],
        fps: int,
        *,
        robot_type: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        check_writable(features, fps)
        if (root / "meta" / "info.json").exists():
            raise StoreError(
                "a finished LeRobot set lies here already", where=str(root), next_step="choose a new folder"
            )
        self.root, self.features, self.fps = root, dict(features), fps
        self.robot_type, self.extra = robot_type, dict(extra or {})
        self._journal = Journal(root / ".journal")

    @property
    def episodes(self) -> int:
        """Closed episodes so far, those recovered after a crash included."""
        return len(self._journal)

    def add_episode(self, rows: Rows, task: str) -> None:
        """Close one episode: when this returns it is on disk.

        Raises:
            ConfigError: a missing feature, or one of another shape.
            StoreError: the disk refuses; earlier episodes are safe.
        """
        batch = _batch(rows, self.features, task)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_table(batch)
        self._journal.append(sink.getvalue().to_pybytes())

    def finish(self) -> Path:
        """Write the set out of the journal; returns its folder. A crash on the way loses nothing: finish again.

        Raises:
            StoreError: the disk refuses, or there is no episode.
            CorruptError: the journal was damaged.
        """
        work = self.root / ".work"
        shutil.rmtree(work, ignore_errors=True)
        write_set(work, self.features, self.fps, self._rows(), robot_type=self.robot_type, extra=self.extra)
        for name in ("data", "meta"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (work / name).rename(self.root / name)
        sync_folder(self.root)
        self._journal.close()
        shutil.rmtree(work, ignore_errors=True)
        (self.root / ".journal").unlink()
        return self.root

    def _rows(self) -> Iterator[tuple[Rows, str]]:
        for payload in self._journal.records():
            table = pa.ipc.open_stream(payload).read_all()
            yield _unbatch(table, self.features), table.schema.metadata[b"task"].decode()


def write_set(
    root: Path,
    features: Mapping[str, Feature],
    fps: int,
    episodes: Iterable[tuple[Rows, str]],
    *,
    robot_type: str = "",
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Write a whole set into a folder that nobody reads yet; returns the number of frames.

    info.json is written last. The caller renames the folder (or its parts) into place.

    Raises:
        ConfigError: features that LeRobot cannot hold, rows of another shape.
        StoreError: no episode, or the disk refuses.
    """
    check_writable(features, fps)
    data = _DataFiles(root, features)
    tasks: dict[str, int] = {}
    builder = StatsBuilder(features)
    index: list[dict[str, Any]] = []
    stats: list[Stats] = []
    try:
        for number, (rows, task) in enumerate(episodes):
            length = len(next(iter(rows.values())))
            task_index = tasks.setdefault(task, len(tasks))
            full = {**rows, **_frame_columns(length, number, data.frames, task_index, fps)}
            stats.append(builder.add({k: plain_pictures(v) if is_encoded(v) else v for k, v in full.items()}))
            start = data.frames
            chunk, file = data.write(full)
            index.append(_index_row(number, task, length, chunk, file, start))
        data.close()
        if not index:
            raise StoreError("there is no episode to write", where=str(root))
        _write_table(root / EPISODES_PATH.format(chunk_index=0, file_index=0), _episodes_table(index, stats))
        _write_table(root / "meta" / "tasks.parquet", tasks_table(list(tasks)))
    except OSError as e:
        raise disk_error(e, root) from None
    replace_file(root / "meta" / "stats.json", json.dumps(plain(builder.total()), indent=1).encode())
    info = info_table(features, fps, robot_type, len(index), data.frames, len(tasks), extra or {})
    replace_file(root / "meta" / "info.json", json.dumps(info, indent=4).encode())
    return data.frames


def check_writable(features: Mapping[str, Feature], fps: int) -> None:
    """Raise ConfigError for what this writer cannot write."""
    check_features(features)
    if fps < 1:
        raise ConfigError(f"LeRobot needs a whole number of frames a second, not {fps}")
    if any(f.dtype == "video" for f in features.values()):
        raise ConfigError("video features are read, not written", next_step='use dtype "image"')


class _DataFiles:
    """data/chunk-*/file-*.parquet, one row group an episode, a new file when one is full."""

    def __init__(self, root: Path, features: Mapping[str, Feature]) -> None:
        self.root, self.features, self.schema = root, features, arrow_schema(features)
        self.frames, self.files = 0, 0
        self._path = root
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    def write(self, rows: Rows) -> tuple[int, int]:
        if self._writer is not None and self._file.tell() > FILE_BYTES:
            self.close()
        if self._writer is None:
            self._open()
        table = _table(rows, self.schema)
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=max(len(table), 1))
        self.frames += len(table)
        return divmod(self.files - 1, CHUNK_SIZE)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._writer = None

    def _open(self) -> None:
        chunk, file = divmod(self.files, CHUNK_SIZE)
        self._path = self.root / DATA_PATH.format(chunk_index=chunk, file_index=file)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._writer = pq.ParquetWriter(self._file, self.schema, compression="snappy", use_dictionary=False)
        self.files += 1


def _frame_columns(length: int, number: int, first: int, task_index: int, fps: int) -> dict[str, NDArray[Any]]:
    frames = np.arange(length, dtype=np.int64)
    return {
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(length, number, np.int64),
        "index": first + frames,
        "task_index": np.full(length, task_index, np.int64),
    }


def _index_row(number: int, task: str, length: int, chunk: int, file: int, start: int) -> dict[str, Any]:
    return {
        "episode_index": number,
        "tasks": [task],
        "length": length,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": start,
        "dataset_to_index": start + length,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }


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


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        pq.write_table(table, f, compression="snappy")
        f.flush()
        os.fsync(f.fileno())


def _table(rows: Rows, schema: pa.Schema) -> pa.Table:
    return pa.table([_array(rows[f.name], f.type) for f in schema], schema=schema)


def _array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_struct(kind):
        pictures = values if is_encoded(values) else [encode_png(v) for v in values]
        return pa.array([{"bytes": p, "path": None} for p in pictures], kind)
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(np.ascontiguousarray(values).reshape(-1), kind)


def _batch(rows: Rows, features: Mapping[str, Feature], task: str) -> pa.Table:
    """The journal's form of an episode; checks it against the features."""
    lengths = set()
    for name, f in features.items():
        if name not in rows:
            raise ConfigError(f"the episode has no feature {name!r}")
        shape = rows[name].shape[1:] or (1,)
        if shape != f.shape and not (f.is_picture and is_encoded(rows[name])):
            raise ConfigError(f"feature {name!r} has shape {shape}, not {f.shape}")
        lengths.add(len(rows[name]))
    if len(lengths) != 1 or 0 in lengths:
        raise ConfigError(f"features of one episode differ in length, or are empty: {sorted(lengths)}")
    schema = arrow_schema(features)
    schema = pa.schema([schema.field(n) for n in features], metadata={"task": task})
    return _table(rows, schema)


def _unbatch(table: pa.Table, features: Mapping[str, Feature]) -> Rows:
    out: dict[str, NDArray[Any]] = {}
    for name, f in features.items():
        column = table.column(name).combine_chunks()
        if f.dtype == "image":
            out[name] = np.array([p["bytes"] for p in column.to_pylist()], object)
        elif f.shape == (1,):
            out[name] = column.to_numpy(zero_copy_only=False)
        else:
            out[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, f.width)
    return out
