"""Read LeRobot v3.0 sets: Parquet rows, still pictures and video, into Episodes.

A channel is found by its `source` ("observation.state", or a column each: "observation.state.3", "action.grip"),
else as "observation.<channel>" or "<channel>". A feature "<feature>.valid" flags its rows and "<feature>.age_s"
dates them. Commands that no source names are cut from "action" in the order of the action channels, what the
actuators did from "action.applied".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hagane.intake.lerobot_layout import VERSION, Feature, check_template, feature_name, read_features
from hagane.intake.options import Options
from hagane.intake.picture import decode_picture, read_video
from hagane.intake.sources import nearest
from hagane.terms import APPLIED, Channel, Embodiment, Episode, LogError, Stream, digest_file, digest_value

_TOLERANCE_S = 1e-3


def sniff(path: Path) -> bool:
    """True for the folder of a LeRobot set (of any version: `read` says which it can read)."""
    try:
        info = json.loads((path / "meta" / "info.json").read_bytes())
        return isinstance(info, dict) and "codebase_version" in info
    except (OSError, ValueError):
        return False


def read(path: Path, embodiment: Embodiment, options: Options | None = None) -> Iterator[Episode]:
    """The episodes of a LeRobot v3.0 set.

    Raises:
        LogError: not v3.0, files missing or truncated, row counts that differ from the metadata, channels that
            the set does not have.
    """
    opened = open_set(path)
    plan = _plan(opened, embodiment)
    for (chunk, file), episodes in opened.files.items():
        data = opened.data_path(chunk, file)
        table = _read_table(data)
        source = digest_file(data)
        numbers = table.column("episode_index").to_numpy()
        for e in episodes:
            rows = np.flatnonzero(numbers == e["episode_index"])
            if len(rows) != e["length"] or int(rows[-1]) - int(rows[0]) != len(rows) - 1:
                what = f"episode {e['episode_index']} has {len(rows)} rows, its metadata says {e['length']}"
                raise LogError(what, where=str(data), next_step="the set is truncated or mixed up: copy it again")
            frames = _Frames(opened, table.slice(int(rows[0]), len(rows)), e)
            yield _episode(frames, plan, embodiment, options or Options(), source)


@dataclass(frozen=True, eq=False)
class OpenedSet:
    """A set's metadata, read and checked."""

    root: Path
    """Its folder."""
    features: dict[str, Feature]
    """Features by name, without those that every set has."""
    fps: float
    """Frames a second that time stamps count in."""
    rate_hz: float
    """The machine's true rate; fps unless hagane wrote the set."""
    data_template: str
    """Path of a data file."""
    video_template: str
    """Path of a video file."""
    files: dict[tuple[int, int], list[dict[str, Any]]]
    """Rows of meta/episodes by (chunk, file)."""
    tasks: dict[int, str]
    """Instruction by task index."""

    def data_path(self, chunk: int, file: int) -> Path:
        """A data file."""
        return self.root / self.data_template.format(chunk_index=chunk, file_index=file)

    def video_path(self, key: str, chunk: int, file: int) -> Path:
        """A video file."""
        return self.root / self.video_template.format(video_key=key, chunk_index=chunk, file_index=file)


def open_set(root: Path) -> OpenedSet:
    """Read `meta/` and check that every file it names is there and whole.

    Raises:
        LogError: as `read`.
    """
    where = str(root / "meta" / "info.json")
    try:
        info = json.loads((root / "meta" / "info.json").read_bytes())
        version = info["codebase_version"]
        if version != VERSION:
            raise LogError(
                f"this is LeRobot {version}, and {VERSION} is read",
                where=where,
                next_step="convert it with lerobot's own convert_dataset_v21_to_v30",
            )
        fps = float(info["fps"])
        rate_hz = float(info.get("hagane", {}).get("rate_hz", fps))
        total = int(info["total_frames"])
        if not fps > 0 or not rate_hz > 0:
            raise ValueError("fps must be positive")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise LogError(f"info.json cannot be read: {e!r}", where=where) from None
    features = read_features(info, where)
    data = check_template(info.get("data_path"), where)
    video = check_template(info.get("video_path") or "videos", where)
    files: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in _episode_rows(root):
        files.setdefault((row["data/chunk_index"], row["data/file_index"]), []).append(row)
    opened = OpenedSet(root, features, fps, rate_hz, data, video, files, _tasks(root))
    rows = sum(_footer(opened.data_path(*key)).num_rows for key in files)
    if rows != total:
        raise LogError(f"data files hold {rows} rows, the metadata says {total}", where=where)
    return opened


def _episode_rows(root: Path) -> list[dict[str, Any]]:
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise LogError("the set has no meta/episodes: it was not finished", where=str(root))
    rows: list[dict[str, Any]] = []
    for path in paths:
        table = _read_table(path)
        keep = [n for n in table.column_names if not n.startswith("stats/")]
        if missing := {"episode_index", "length", "data/chunk_index", "data/file_index"} - set(keep):
            raise LogError(f"has no column {', '.join(sorted(missing))}", where=str(path))
        rows += table.select(keep).to_pylist()
    return sorted(rows, key=lambda r: int(r["episode_index"]))


def _tasks(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.parquet"
    if not path.exists():
        return {}
    table = _read_table(path)
    text = next((f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)), "")
    if not text or "task_index" not in table.column_names:
        return {}
    return dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))


def _footer(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as e:
        raise _unreadable(path, e) from None


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as e:
        raise _unreadable(path, e) from None


def _unreadable(path: Path, e: Exception) -> LogError:
    reason = "is missing" if isinstance(e, FileNotFoundError) else f"is truncated or damaged: {str(e).splitlines()[0]}"
    return LogError(f"a Parquet file {reason}", where=str(path), next_step="copy the set again from its source")


class _Frames:
    """The rows of one episode, and the pictures that belong to them."""

    def __init__(self, opened: OpenedSet, table: pa.Table, row: dict[str, Any]) -> None:
        self.opened, self.table, self.row = opened, table, row
        self.frame = table.column("frame_index").to_numpy()
        self.stamp_s = table.column("timestamp").to_numpy().astype(np.float64)

    def times_ns(self) -> NDArray[np.int64]:
        """Exact multiples of the step where the stamps are that; else the stamps (float32 seconds) themselves."""
        if np.abs(self.stamp_s - self.frame / self.opened.fps).max() < _TOLERANCE_S:
            return np.asarray(self.frame * round(1e9 / self.opened.rate_hz), np.int64)
        return np.asarray(np.rint(self.stamp_s * 1e9), np.int64)

    def columns(self, name: str) -> NDArray[Any]:
        """[K, width] of a numeric feature, [K, H, W, 3] of a picture."""
        feature = self.opened.features[name]
        if feature.dtype == "video":
            key = f"videos/{name}/"
            path = self.opened.video_path(name, self.row[key + "chunk_index"], self.row[key + "file_index"])
            return read_video(path, self.stamp_s + self.row[key + "from_timestamp"], 0.5 / self.opened.fps)
        column = self.table.column(name).combine_chunks()
        if feature.dtype == "image":
            base = self.opened.root
            pictures = [p["bytes"] or (base / Path(p["path"]).name).read_bytes() for p in column.to_pylist()]
            return np.stack([decode_picture(p, f"{self.opened.root} {name}") for p in pictures])
        while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        if column.null_count:
            column = column.cast(pa.float64()) if not pa.types.is_boolean(column.type) else column.fill_null(False)
        return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(len(self.table), -1)


@dataclass(frozen=True)
class _Column:
    feature: str
    index: tuple[int, ...]
    """Columns of the feature; () for all."""


def _plan(opened: OpenedSet, embodiment: Embodiment) -> dict[str, tuple[_Column, ...]]:
    """Stream name to the feature columns that it is made of."""
    plan: dict[str, tuple[_Column, ...]] = {}
    for channel in embodiment.observe:
        if channel.kind != "text":
            names = (feature_name(channel.name), channel.name)
            if found := _find(opened, channel, names):
                plan[channel.name] = found
    at = 0
    for channel in embodiment.act:
        index = tuple(range(at, at + channel.columns))
        at += channel.columns
        # "action" holds all action channels side by side, whatever the source says about the whole
        cut = opened.features.get("action")
        whole = cut is not None and cut.width == embodiment.action_width
        direct = () if whole and channel.source in ((), ("action",)) else _find(opened, channel, (channel.name,))
        if direct:
            plan[channel.name] = direct
        elif whole:
            plan[channel.name] = (_Column("action", index),)
        done = opened.features.get("action.applied")
        if done is not None and done.width == embodiment.action_width:
            plan[channel.name + APPLIED] = (_Column("action.applied", index),)
    lacking = [c.name for c in embodiment.observe if c.kind != "text" and c.name not in plan]
    if lacking:
        raise LogError(
            f"the set has no feature for channel {', '.join(map(repr, lacking))}",
            where=str(opened.root),
            next_step=f"set `source` in the embodiment file; {nearest('observation.' + lacking[0], opened.features)}",
        )
    return plan


def _find(opened: OpenedSet, channel: Channel, names: tuple[str, ...]) -> tuple[_Column, ...]:
    if channel.source and (found := [_resolve(opened, s) for s in _expanded(channel)]) and all(found):
        return tuple(c for c in found if c is not None)
    size = channel.shape if channel.kind == "image" else (channel.places * channel.columns,)
    return next((((_Column(n, ())),) for n in names if n in opened.features and opened.features[n].shape == size), ())


def _expanded(channel: Channel) -> list[str]:
    if channel.kind != "set" or not any("{i" in s for s in channel.source):
        return list(channel.source)
    return [s.format(i=i) for i in range(1, channel.places + 1) for s in channel.source]


def _resolve(opened: OpenedSet, source: str) -> _Column | None:
    if source in opened.features:
        return _Column(source, ())
    feature, _, column = source.rpartition(".")
    if (f := opened.features.get(feature)) is None or f.is_picture:
        return None
    if column in f.names:
        return _Column(feature, (f.names.index(column),))
    return _Column(feature, (int(column),)) if column.isdecimal() and int(column) < f.width else None


def _episode(
    frames: _Frames, plan: dict[str, tuple[_Column, ...]], embodiment: Embodiment, options: Options, source: str
) -> Episode:
    number, times_ns = int(frames.row["episode_index"]), frames.times_ns()
    streams = {}
    for name, columns in plan.items():
        channel = embodiment.channel(name.removesuffix(APPLIED))
        streams[name] = _stream(frames, columns, channel, times_ns, name)
    task = frames.opened.tasks.get(int(frames.table.column("task_index")[0].as_py()), "")
    digest = digest_value({"file": source, "episode": number})
    name = f"{frames.opened.root.name}/{number:06d}"
    return Episode(name, embodiment.name, streams, task or options.task, "", digest)


def _stream(
    frames: _Frames, columns: tuple[_Column, ...], channel: Channel, times_ns: NDArray[np.int64], name: str
) -> Stream:
    parts = [frames.columns(c.feature) for c in columns]
    if channel.kind == "image":
        values = parts[0]
    else:
        cut = [p[:, list(c.index)] if c.index else p for p, c in zip(parts, columns, strict=True)]
        values = np.concatenate(cut, 1)
    if values[0].size != int(np.prod(channel.shape)):
        what = f"the set gives {values[0].shape} a frame, channel {name!r} has {channel.shape}"
        raise LogError(what, where=str(frames.opened.root), next_step="correct `shape` or `source` of the channel")
    values = values.reshape(-1, *channel.shape)
    flags = (channel.places,) if channel.kind == "set" else ()
    valid = np.ones((len(values), *flags), np.bool_)
    feature = columns[0].feature.removesuffix(APPLIED)
    if feature + ".valid" in frames.opened.features:
        given = frames.columns(feature + ".valid").astype(np.bool_)
        valid &= (
            given.reshape(valid.shape)
            if given[0].size == valid[0].size
            else given.all(1).reshape(-1, *[1] * len(flags))
        )
    if feature + ".age_s" in frames.opened.features:
        age_s = frames.columns(feature + ".age_s")[:, 0].astype(np.float64)
        # whole microseconds: float32 ages would jitter the stamps; one row a sample, however often it was shown
        times_ns = times_ns - 1000 * np.maximum(np.rint((age_s - channel.delay_s) * 1e6), 0).astype(np.int64)
        new = np.diff(times_ns, prepend=times_ns[:1] - 1) != 0
        times_ns, values, valid = times_ns[new], values[new], valid[new]
    if channel.kind != "image":
        values = values.astype(np.float32, copy=False)
    return Stream(times_ns, values, valid, channel.unit)
