"""ROS 2 bags into Episodes: a folder with metadata.yaml (one or several files), or a bare .db3 file; one an episode.

Storage is SQLite or MCAP, plain or compressed with zstd (whole files, or message by message). The folder's files are
those that metadata.yaml lists; none outside the folder is opened. Bare MCAP files are read by `mcap_log`.
Format: https://github.com/ros2/rosbag2 (rosbag2_storage, metadata versions 1 to 9)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hagane.intake.files import head_of, read_bytes, refuse_outside
from hagane.intake.inflate import ZSTD, zstd_file, zstd_head
from hagane.intake.mcap_scan import MAGIC as MCAP
from hagane.intake.mcap_scan import scan_mcap
from hagane.intake.options import Options
from hagane.intake.ros2_sqlite import is_ros2_sqlite, scan_sqlite
from hagane.intake.topic_episode import episodes_of
from hagane.intake.topic_log import TopicLog, Wanted, wanted_topics
from hagane.terms import Embodiment, Episode, Finding, LogError, digest_file, digest_value

_META, _KEY = "metadata.yaml", "rosbag2_bagfile_information"
_HEAD = 1 << 16
_MOST_META, _NEWEST = 16 << 20, 9


@dataclass(frozen=True)
class _Meta:
    """What metadata.yaml says."""

    files: tuple[Path, ...]
    zstd_messages: bool
    distro: str
    counts: Mapping[str, int]
    """Messages a topic, over all files."""
    cut: str = ""
    """Words for files that are missing."""


def sniff(path: Path) -> bool:
    """True for a folder whose metadata.yaml is rosbag2's, and for a file with its tables (compressed or not)."""
    if path.is_dir():
        return _KEY.encode() in head_of(path / _META, _HEAD)
    head = head_of(path, _HEAD)
    head = zstd_head(path, _HEAD) if head.startswith(ZSTD) else head
    return is_ros2_sqlite(head) or (head.startswith(MCAP) and not head_of(path, 8).startswith(MCAP))


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episode of a ROS 2 bag.

    Raises:
        LogError: metadata that cannot be read or names files that are not there, files that are damaged or without
            their end (unless `keep_whole`), or as `episodes_of` says.
    """
    meta = _meta(path, options.keep_whole) if path.is_dir() else _Meta((path,), False, "", {})
    log = TopicLog(path, cut=meta.cut)
    wanted = wanted_topics(embodiment)
    for file in meta.files:
        _scan(file, log, wanted, options.keep_whole, meta.zstd_messages)
    log.distro = meta.distro or log.distro
    counted = {name: t.count for name, t in log.topics.items()}
    digests = [digest_file(f) for f in meta.files]
    digest = digests[0] if len(digests) == 1 else digest_value(digests)
    episodes = episodes_of(log, embodiment, options, _name(meta.files[0]), digest)
    fewer = {t: n - counted.get(t, 0) for t, n in meta.counts.items() if n > counted.get(t, 0)}
    if fewer and not log.cut:
        text = f"{_META} counts {sum(fewer.values())} more messages, of {', '.join(sorted(fewer))}"
        episodes = [e.with_findings(Finding("missing", e.id, "*", 0, sum(fewer.values()), text)) for e in episodes]
    return iter(episodes)


def _name(file: Path) -> str:
    """A bag's name, which its files keep when the folder is renamed: drive_0.db3.zstd is of "drive"."""
    stem = file.name
    for ending in (".zstd", ".db3", ".mcap", "_0"):
        stem = stem.removesuffix(ending)
    return stem or file.name


def _meta(folder: Path, keep: bool) -> _Meta:
    where = str(folder / _META)
    refuse_outside(folder / _META, folder)
    about = _yaml(folder / _META)
    try:
        version, storage = int(about["version"]), str(about["storage_identifier"])
        names = [str(name) for name in about["relative_file_paths"]]
        mode, how = (str(about.get(f"compression_{k}") or "").lower() for k in ("mode", "format"))
        counts: dict[str, int] = {}
        for entry in about.get("topics_with_message_count") or ():
            name = str(entry["topic_metadata"]["name"])
            counts[name] = counts.get(name, 0) + int(entry["message_count"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise LogError(f"not as rosbag2 writes it: {e!r}", where=where, next_step="run ros2 bag reindex") from None
    if version > _NEWEST or storage not in ("sqlite3", "mcap") or (mode not in ("", "none") and how != "zstd"):
        raise LogError(
            f"version {version}, storage {storage!r}, compression {how or 'none'!r} are not read",
            where=where,
            next_step=f"versions up to {_NEWEST}, sqlite3 and mcap, plain or zstd are: ros2 bag convert",
        )
    files = [_file(folder, name) for name in names]
    missing = [f.name for f in files if not f.exists()]
    if not files or len(missing) == len(files) or (missing and not keep):
        raise LogError(
            f"files of the bag are missing: {', '.join(missing[:5]) or 'none is listed'}",
            where=where,
            next_step="copy the whole folder again" + ("" if len(missing) == len(files) else ", or pass --keep-whole"),
        )
    there = tuple(f for f in files if f.exists())
    cut = f"files of the bag are missing: {', '.join(missing[:5])}" if missing else ""
    return _Meta(there, mode == "message", str(about.get("ros_distro") or ""), counts, cut)


def _file(folder: Path, name: str) -> Path:
    """A file that metadata.yaml lists. Bags before version 4 put the folder's own name before it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise LogError(
            f"names a file outside of the folder: {name!r}",
            where=str(folder / _META),
            next_step="copy the file into the folder, and run ros2 bag reindex",
        )
    path = folder / parts
    path = path if path.exists() else folder / parts.name
    refuse_outside(path, folder)
    return path


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        from ruamel.yaml import YAML
    except ImportError:
        raise LogError("ROS 2 bags need rosbags", where=str(path), next_step='pip install "hagane[intake]"') from None
    if path.stat().st_size > _MOST_META:
        raise LogError("larger than any metadata.yaml", where=str(path), next_step="run ros2 bag reindex")
    try:
        found = YAML(typ="safe", pure=True).load(read_bytes(path).decode("utf-8"))[_KEY]
        if not isinstance(found, dict):
            raise TypeError("no map")
        return found
    except LogError:
        raise
    except Exception as e:
        # the parser has errors of its own, and odd text gives ValueError, RecursionError and others
        reason = " ".join(str(e).split())[:120]
        raise LogError(f"cannot be read: {reason}", where=str(path), next_step="run ros2 bag reindex") from None


def _scan(file: Path, log: TopicLog, wanted: Wanted, keep: bool, zstd: bool) -> None:
    with _plain(file, keep) as (plain, cut):
        log.cut = log.cut or cut
        head = head_of(plain, _HEAD)
        # messages to people name the file they have
        part = TopicLog(file, log.topics)
        if head.startswith(MCAP):
            with plain.open("rb") as f:
                scan_mcap(f, plain.stat().st_size, part, wanted, keep, zstd)
        elif is_ros2_sqlite(head):
            scan_sqlite(plain, part, wanted, keep, zstd)
        else:
            raise LogError("neither an SQLite bag nor MCAP", where=str(file), next_step="copy it again")
        log.cut, log.distro = log.cut or part.cut, log.distro or part.distro
        log.about.update(part.about)


@contextmanager
def _plain(file: Path, keep: bool) -> Iterator[tuple[Path, str]]:
    """The file itself, or its inflated copy while it is needed; words for a missing end."""
    if not head_of(file, 4).startswith(ZSTD):
        yield file, ""
        return
    with tempfile.TemporaryDirectory(prefix="hagane-") as folder:
        plain, cut = Path(folder) / "bag", ""
        try:
            with file.open("rb") as source, plain.open("wb") as out:
                for block in zstd_file(source, file.stat().st_size, str(file)):
                    out.write(block)
        except EOFError:
            cut = "the compressed file ends before its end"
        except OSError as e:
            raise LogError(f"cannot be inflated: {e.strerror}", where=folder, next_step="free space") from None
        if cut and not keep:
            raise LogError(
                f"truncated bag: {cut}",
                where=str(file),
                next_step="copy it again, or pass --keep-whole to take the messages before the cut",
            )
        yield plain, cut
