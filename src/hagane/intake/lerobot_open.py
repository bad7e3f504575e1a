"""What a LeRobot set says about itself: its features, its episodes and where their rows and videos lie.

The two layouts in use, v3.0 (`open_v30`, many episodes a file) and v2.0/v2.1 (hagane.intake.lerobot_v21, a file an
episode), open into the same `OpenedSet`. Statistics in `meta/` are never read: they are recomputed from the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hagane.intake.files import refuse_outside
from hagane.intake.lerobot_layout import Feature, check_template, read_features
from hagane.terms import LogError

_MOST_PLAIN_BYTES = 16 << 30


@dataclass(frozen=True)
class Entry:
    """One episode of a set."""

    number: int
    """Its index in the set."""
    length: int
    """Rows."""
    data: Path
    """Parquet file with its rows."""
    videos: Mapping[str, tuple[Path, float]]
    """By video feature: the file, and the time in it, seconds, at which the episode begins."""


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
    entries: tuple[Entry, ...]
    """Episodes in order."""
    tasks: Mapping[int, str]
    """Instruction by task index."""
    splits: Mapping[str, str]
    """Episodes of each split, as "first:after the last"."""


@dataclass(frozen=True)
class About:
    """info.json, as far as both layouts have it."""

    root: Path
    """Folder of the set."""
    version: str
    """codebase_version: "v3.0"."""
    fps: float
    """Frames a second."""
    rate_hz: float
    """True rate, where hagane wrote it down."""
    frames: int
    """Rows of all episodes together."""
    chunk_size: int
    """Episodes a chunk folder (v2)."""
    features: dict[str, Feature]
    """Features by name."""
    data_path: object
    """Template of a data file's path, unchecked."""
    video_path: object
    """Template of a video's path, unchecked."""
    splits: Mapping[str, str]
    """Episodes of each split."""

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.root / "meta" / "info.json")

    @property
    def videos(self) -> list[str]:
        """Names of the video features."""
        return [n for n, f in self.features.items() if f.dtype == "video"]


def read_about(root: Path) -> About:
    """info.json of a set.

    Raises:
        LogError: it cannot be read, or says what cannot be.
    """
    path = root / "meta" / "info.json"
    refuse_outside(path, root)
    try:
        info = json.loads(path.read_bytes())
        fps = float(info["fps"])
        rate_hz = float(info.get("hagane", {}).get("rate_hz", fps))
        if not 0 < fps < 1e6 or not 0 < rate_hz < 1e6:
            raise ValueError("fps must be positive")
        splits = {str(k): str(v) for k, v in (info.get("splits") or {}).items()}
        chunk = int(info.get("chunks_size", 1000))
        facts = (str(info["codebase_version"]), fps, rate_hz, int(info["total_frames"]), max(chunk, 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        what = f"info.json cannot be read: {e!r}"
        raise LogError(what, where=str(path), next_step="copy the set again from its source") from None
    features = read_features(info, str(path))
    return About(root, *facts, features, info.get("data_path"), info.get("video_path") or "videos", splits)


def open_v30(about: About) -> OpenedSet:
    """Episodes of a LeRobot v3.0 set: rows of many episodes a file, videos of many episodes end to end.

    Raises:
        LogError: metadata that is damaged, that leads out of the folder, or that counts other rows than there are.
    """
    places = ("chunk_index", "file_index")
    data = check_template(about.data_path, places, about.where)
    video = check_template(about.video_path, (*places, "video_key"), about.where)
    paths = sorted((about.root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise LogError(
            "the set has no meta/episodes: it was not finished",
            where=str(about.root),
            next_step="copy the set again from its source",
        )
    entries: list[Entry] = []
    for path in paths:
        refuse_outside(path, about.root)
        table = read_table(path)
        try:
            for row in table.select([n for n in table.column_names if not n.startswith("stats/")]).to_pylist():
                at = {p: int(row[f"data/{p}"]) for p in places}
                videos = {}
                for key in about.videos:
                    of = f"videos/{key}/"
                    seek = {p: int(row[of + p]) for p in places}
                    file = about.root / video.format(video_key=key, **seek)
                    videos[key] = (file, float(row[of + "from_timestamp"]))
                file = about.root / data.format(**at)
                entries.append(Entry(int(row["episode_index"]), int(row["length"]), file, videos))
        except KeyError as e:
            raise LogError(
                f"has no column {e.args[0]}", where=str(path), next_step="copy the set again from its source"
            ) from None
        except (TypeError, ValueError, OverflowError) as e:
            raise LogError(
                f"an episode is not described as LeRobot does: {e}",
                where=str(path),
                next_step="copy the set again from its source",
            ) from None
    return checked_set(about, entries, _tasks(about.root))


def checked_set(about: About, entries: list[Entry], tasks: Mapping[int, str]) -> OpenedSet:
    """The set, when its files lie in its folder and hold as many rows as the metadata says.

    Raises:
        LogError: they do not.
    """
    entries.sort(key=lambda e: e.number)
    if len({e.number for e in entries}) < len(entries):
        raise LogError(
            "two episodes have one number",
            where=str(about.root / "meta"),
            next_step="copy the set again from its source",
        )
    files = {e.data: 0 for e in entries}
    for path in [*files, *{v for e in entries for v, _ in e.videos.values()}]:
        refuse_outside(path, about.root)
    for path in files:
        footer = read_footer(path)
        files[path] = footer.num_rows
        # a claim only: but one that no honest set makes, and that would take the memory
        claimed = sum(footer.row_group(k).total_byte_size for k in range(footer.num_row_groups))
        if max(claimed, 8 * footer.num_rows * footer.num_columns) > _MOST_PLAIN_BYTES:
            what = "a Parquet file claims more than 16 GiB of rows"
            raise LogError(what, where=str(path), next_step="copy the set again from its source")
    rows = sum(files.values())
    if rows != about.frames:
        raise LogError(
            f"data files hold {rows} rows, the metadata says {about.frames}",
            where=about.where,
            next_step="copy the set again from its source",
        )
    return OpenedSet(about.root, about.features, about.fps, about.rate_hz, tuple(entries), tasks, about.splits)


def read_footer(path: Path) -> Any:
    """Metadata of a Parquet file.

    Raises:
        LogError: missing, truncated or damaged.
    """
    try:
        return pq.read_metadata(path)
    except (OSError, ValueError, pa.ArrowException) as e:
        raise _unreadable(path, e) from None


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, or the named columns of it.

    Raises:
        LogError: missing, truncated or damaged.
    """
    try:
        table = pq.ParquetFile(path).read(columns=columns)
        table.validate(full=True)  # offsets and text, where Parquet has no checksum
        return table
    except (OSError, ValueError, pa.ArrowException) as e:
        raise _unreadable(path, e) from None


def _unreadable(path: Path, e: Exception) -> LogError:
    reason = "is missing" if isinstance(e, FileNotFoundError) else f"is truncated or damaged: {str(e).splitlines()[0]}"
    return LogError(f"a Parquet file {reason}", where=str(path), next_step="copy the set again from its source")


def _tasks(root: Path) -> dict[int, str]:
    path = root / "meta" / "tasks.parquet"
    if not path.exists():
        return {}
    refuse_outside(path, root)
    table = read_table(path)
    text = next((f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)), "")
    numbered = "task_index" in table.column_names and pa.types.is_integer(table.schema.field("task_index").type)
    if not text or not numbered:
        return {}
    return dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))
