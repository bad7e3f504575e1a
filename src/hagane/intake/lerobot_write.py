"""Write LeRobot v3.0 sets that survive a crash.

`LeRobotWriter` appends each closed episode to a journal (`hagane.intake.lerobot_journal`), so that at most the open
episode is lost; `finish` turns the journal into the set and puts `meta/` in place last, by a rename: a folder with
`meta/info.json` is a complete set, one without is not yet a set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hagane.intake.lerobot_files import DataFiles, IndexFile, Rows, array, frame_columns, write_table
from hagane.intake.lerobot_journal import Journal, disk_error, replace_file
from hagane.intake.lerobot_layout import (
    Feature,
    arrow_schema,
    check_features,
    info_table,
    tasks_table,
)
from hagane.intake.lerobot_stats import StatsBuilder, StatsPart, plain, stats_part
from hagane.intake.picture import is_encoded
from hagane.terms import ConfigError, StoreError
from hagane.terms.files import sync_folder

T = TypeVar("T")
GROUP_BYTES = 4 << 20
"""Bytes of episodes that are prepared together."""


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
        write_set(work, self.features, self.fps, self._parts(), robot_type=self.robot_type, extra=self.extra)
        for name in ("data", "meta"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (work / name).rename(self.root / name)
        sync_folder(self.root)
        self._journal.close()
        shutil.rmtree(work, ignore_errors=True)
        (self.root / ".journal").unlink()
        return self.root

    def _parts(self) -> Iterator[SetPart]:
        for payloads in grouped(self._journal.records(), len):
            tables = [pa.ipc.open_stream(p).read_all() for p in payloads]
            rows = [(_unbatch(t, self.features), t.schema.metadata[b"task"].decode()) for t in tables]
            yield set_part(self.features, rows)


@dataclass(frozen=True, eq=False)
class SetPart:
    """Some consecutive episodes of a set, ready to be written: made anywhere by `set_part`, laid down in order."""

    tables: tuple[pa.Table, ...]
    """Each episode's own features."""
    tasks: tuple[str, ...]
    """Each episode's instruction."""
    stats: StatsPart
    """Their statistics."""


def set_part(features: Mapping[str, Feature], episodes: Sequence[tuple[Rows, str]]) -> SetPart:
    """The heavy half of writing: Arrow tables, encoded pictures, statistics.

    Raises:
        ConfigError: rows of another shape.
        LogError: a picture that cannot be decoded.
    """
    tables = tuple(_batch(rows, features, task) for rows, task in episodes)
    return SetPart(tables, tuple(task for _, task in episodes), stats_part(features, [rows for rows, _ in episodes]))


def write_set(
    root: Path,
    features: Mapping[str, Feature],
    fps: int,
    parts: Iterable[SetPart],
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
    data = DataFiles(root, features)
    tasks: dict[str, int] = {}
    builder = StatsBuilder(features)
    index = IndexFile(root)
    try:
        for part in parts:
            builder.add(part.stats)
            for table, task, own in zip(part.tables, part.tasks, part.stats.episodes, strict=True):
                number, length, start = index.episodes, len(table), data.frames
                frames = frame_columns(length, number, start, tasks.setdefault(task, len(tasks)), fps)
                stats = {**own, **builder.add_frames(frames)}
                chunk, file = data.write(table, frames)
                index.add(task, length, chunk, file, start, stats)
        data.close()
        index.close()
        if not index.episodes:
            raise StoreError("there is no episode to write", where=str(root))
        write_table(root / "meta" / "tasks.parquet", tasks_table(list(tasks)))
    except OSError as e:
        raise disk_error(e, root) from None
    replace_file(root / "meta" / "stats.json", json.dumps(plain(builder.total()), indent=1).encode())
    info = info_table(features, fps, robot_type, index.episodes, data.frames, len(tasks), extra or {})
    replace_file(root / "meta" / "info.json", json.dumps(info, indent=4).encode())
    return data.frames


def check_writable(features: Mapping[str, Feature], fps: int) -> None:
    """Raise ConfigError for what this writer cannot write."""
    check_features(features)
    if fps < 1:
        raise ConfigError(f"LeRobot needs a whole number of frames a second, not {fps}")
    if any(f.dtype == "video" for f in features.values()):
        raise ConfigError("video features are read, not written", next_step='use dtype "image"')


def grouped(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive items in groups of about `GROUP_BYTES`: a rule of the items alone, whoever works on them."""
    group: list[T] = []
    held = 0
    for item in items:
        group.append(item)
        held += size(item)
        if held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _table(rows: Rows, schema: pa.Schema) -> pa.Table:
    return pa.table([array(rows[f.name], f.type) for f in schema], schema=schema)


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
