"""Read LeRobot sets (v3.0, v2.1, v2.0): Parquet rows, still pictures and video, into Episodes.

A channel is found by its `source` ("observation.state", or a column each: "observation.state.3", "action.grip"),
else as "observation.<channel>" or "<channel>"; see hagane.intake.columns. Still pictures pass through as the set
has them (JPEG, PNG). Frames of a video are decoded in one pass, and kept as JPEG of quality 95 where an episode of
them would take more than 128 MiB: 10,000 frames of 480 x 640 are about 1 GB then instead of 9.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hagane.intake.columns import Plan, absent_actions, features_of, make_stream, plan_channels
from hagane.intake.files import head_of, read_bytes, refuse_outside
from hagane.intake.lerobot_layout import AGE, FRAME_FEATURES, VALID, VERSION, feature_name
from hagane.intake.lerobot_open import Entry, OpenedSet, open_v30, read_about, read_table
from hagane.intake.lerobot_v21 import VERSIONS, open_v21
from hagane.intake.options import Options
from hagane.intake.picture import count_frames, read_video
from hagane.intake.sources import nearest
from hagane.intake.streams import MOST_S, note
from hagane.terms import APPLIED, Embodiment, Episode, Finding, LogError, digest_file, digest_value

_TOLERANCE_S = 1e-3
_MOST_INFO = 16 << 20


def sniff(path: Path) -> bool:
    """True for the folder of a LeRobot set (of any version: `read` says which it can read)."""
    try:
        info = json.loads(head_of(path / "meta" / "info.json", _MOST_INFO))
        return isinstance(info, dict) and "codebase_version" in info
    except (ValueError, RecursionError):
        return False


def read(path: Path, embodiment: Embodiment, options: Options | None = None) -> Iterator[Episode]:
    """The episodes of a LeRobot set; `options.split` takes those of one split.

    Raises:
        LogError: another version, files missing, truncated or outside the folder, row counts that differ from the
            metadata, videos with fewer frames than rows, channels that the set does not have.
    """
    told = options or Options()
    opened = open_set(path)
    plan = plan_channels(
        opened.features, embodiment, lambda name: (feature_name(name), name), "action", str(opened.root)
    )
    extra = _count_videos(opened, plan)
    return _episodes(opened, plan, embodiment, told, extra)


def open_set(root: Path) -> OpenedSet:
    """Read `meta/` and check that every file it names is there and whole.

    Raises:
        LogError: as `read`.
    """
    about = read_about(root)
    if about.version == VERSION:
        return open_v30(about)
    if about.version in VERSIONS:
        return open_v21(about)
    raise LogError(
        f"this is LeRobot {about.version}; {', '.join((*VERSIONS, VERSION))} are read",
        where=about.where,
        next_step="convert it with lerobot's own tools",
    )


def _count_videos(opened: OpenedSet, plan: Plan) -> dict[tuple[str, Path], int]:
    """Frames that no row refers to, by feature and video file; fewer frames than rows are refused."""
    rows: dict[tuple[str, Path], int] = {}
    for key in features_of(plan):
        for entry in opened.entries if opened.features[key].dtype == "video" else ():
            video = entry.videos[key][0]
            rows[key, video] = rows.get((key, video), 0) + entry.length
    extra = {}
    for (key, video), wanted in rows.items():
        frames = count_frames(video)
        if 0 < frames < wanted:
            what = f"the video holds {frames} frames, {wanted} rows refer to it"
            raise LogError(what, where=str(video), next_step="the set is truncated or mixed up: copy it again")
        if frames > wanted:
            extra[key, video] = frames - wanted
    return extra


def _episodes(
    opened: OpenedSet, plan: Plan, embodiment: Embodiment, options: Options, extra: dict[tuple[str, Path], int]
) -> Iterator[Episode]:
    bases = [f.removesuffix(APPLIED) for f in features_of(plan)]
    wanted = {*features_of(plan), *(b + VALID for b in bases), *(b + AGE for b in bases)}
    names = [*(n for n, f in opened.features.items() if n in wanted and f.dtype != "video"), *FRAME_FEATURES]
    for path, entries in itertools.groupby(_chosen(opened, options.split), lambda e: e.data):
        table, source = read_table(path, names), digest_file(path)
        if missing := sorted(set(names) - set(table.column_names)):
            raise LogError(
                f"has no column {', '.join(missing)}", where=str(path), next_step="copy the set again from its source"
            )
        numbers = table.column("episode_index").to_numpy()
        for entry in entries:
            rows = np.flatnonzero(numbers == entry.number)
            if len(rows) != entry.length or not len(rows) or int(rows[-1]) - int(rows[0]) != len(rows) - 1:
                what = f"episode {entry.number} has {len(rows)} rows, its metadata says {entry.length}"
                raise LogError(what, where=str(path), next_step="the set is truncated or mixed up: copy it again")
            frames = _Frames(opened, table.slice(int(rows[0]), len(rows)), entry)
            episode = _episode(frames, plan, embodiment, options, source)
            yield episode.with_findings(*_unused_frames(entry, plan, extra, episode.id))


def _unused_frames(entry: Entry, plan: Plan, extra: dict[tuple[str, Path], int], episode: str) -> list[Finding]:
    """Findings for videos with frames that no row refers to, once a video."""
    found = []
    for stream, parts in plan.items():
        key = parts[0].feature
        video = entry.videos[key][0] if key in entry.videos else Path()
        if count := extra.pop((key, video), 0):
            found.append(note(episode, stream, f"{video.name} holds {count} frames that no row refers to"))
    return found


def _chosen(opened: OpenedSet, split: str) -> tuple[Entry, ...]:
    if not split:
        return opened.entries
    where = str(opened.root / "meta" / "info.json")
    if split not in opened.splits:
        raise LogError(f"the set has no split {split!r}", where=where, next_step=nearest(split, opened.splits))
    first, _, after = opened.splits[split].partition(":")
    try:
        return tuple(e for e in opened.entries if int(first) <= e.number < int(after))
    except ValueError:
        raise LogError(
            f"split {split!r} is {opened.splits[split]!r}, not first:last", where=where, next_step="correct info.json"
        ) from None


class _Frames:
    """The rows of one episode, and the pictures that belong to them."""

    def __init__(self, opened: OpenedSet, table: pa.Table, entry: Entry) -> None:
        self.opened, self.table, self.entry = opened, table, entry
        self.frame, stamps = (table.column(n).to_numpy() for n in ("frame_index", "timestamp"))
        if self.frame.dtype.kind not in "iu" or stamps.dtype.kind not in "iuf":
            raise LogError(
                "frame_index or timestamp holds no numbers",
                where=f"{entry.data}, episode {entry.number}",
                next_step="copy the set again from its source",
            )
        # whatever integers the set has: times do not fit into 32 bits
        self.frame, self.stamp_s = self.frame.astype(np.int64), stamps.astype(np.float64)
        right = np.abs(self.stamp_s) < MOST_S
        if not right.all():
            where = f"{entry.data}, episode {entry.number}, row {int(np.argmin(right))}"
            raise LogError("a time stamp is not a number of seconds", where=where, next_step="repair the set")

    def times_ns(self) -> NDArray[np.int64]:
        """Exact multiples of the step where the stamps are that; else the stamps (float32 seconds) themselves."""
        if np.abs(self.stamp_s - self.frame / self.opened.fps).max() < _TOLERANCE_S:
            return np.asarray(self.frame * round(1e9 / self.opened.rate_hz), np.int64)
        return np.asarray(np.rint(self.stamp_s * 1e9), np.int64)

    def columns(self, name: str) -> NDArray[Any]:
        """[K, width] of a numeric feature; of a picture [K] objects of bytes, or [K, H, W, 3] frames of a video."""
        feature = self.opened.features[name]
        if feature.dtype == "video":
            path, start_s = self.entry.videos[name]
            return read_video(path, self.stamp_s + start_s, 0.5 / self.opened.fps)
        column = self.table.column(name).combine_chunks()
        if feature.dtype == "image":
            pictures = [self._picture(p, name) for p in column.to_pylist()]
            return np.fromiter(pictures, object, len(pictures))
        while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        kind = column.type
        if column.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            column = column.cast(pa.float64(), safe=False)
        elif column.null_count and pa.types.is_boolean(kind):
            column = column.fill_null(False)
        values = np.asarray(column.to_numpy(zero_copy_only=False))
        if values.size != len(self.table) * feature.width or values.dtype.kind not in "biuf":
            what = f"{name} holds {values.size} values in {len(self.table)} rows, not {feature.width} a row"
            raise LogError(what, where=str(self.entry.data), next_step="the set is damaged: copy it again")
        return values.reshape(len(self.table), -1)

    def _picture(self, cell: Any, name: str) -> bytes:
        """The bytes of a picture in a cell {"bytes", "path"}; a path is one in the set's folder."""
        if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes) and cell["bytes"]:
            data: bytes = cell["bytes"]
            return data
        if isinstance(cell, dict) and isinstance(cell.get("path"), str) and cell["path"]:
            path = self.opened.root / cell["path"]
            refuse_outside(path, self.opened.root)
            return read_bytes(path)
        raise LogError(
            f"a row has no picture in {name}",
            where=str(self.entry.data),
            next_step="copy the set again from its source",
        )


def _episode(frames: _Frames, plan: Plan, embodiment: Embodiment, options: Options, source: str) -> Episode:
    number, times_ns, opened = frames.entry.number, frames.times_ns(), frames.opened
    name = f"{opened.root.resolve().name}/{number:06d}"
    streams = {}
    for key, parts in plan.items():
        channel = embodiment.channel(key.removesuffix(APPLIED))
        streams[key] = make_stream(parts, frames.columns, opened.features, channel, times_ns, f"{opened.root} {key}")
    index = frames.table.column("task_index")[0].as_py()
    task = opened.tasks.get(index, "") if isinstance(index, int) else ""
    digest = digest_value({"file": source, "episode": number})
    return Episode(
        name, embodiment.name, streams, task or options.task, "", digest, absent_actions(plan, embodiment, name)
    )
