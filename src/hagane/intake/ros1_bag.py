"""ROS 1 bags (.bag, format 2.0), one file an episode; read from front to back, so that a cut bag gives what is whole.

The index at a bag's end is not needed; it is walked all the same, for a bag that lacks part of it is cut.
Format: http://wiki.ros.org/Bags/Format/2.0
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hagane.intake.files import head_of
from hagane.intake.inflate import Inflater
from hagane.intake.options import Options
from hagane.intake.ros_types import full_name
from hagane.intake.topic_episode import episodes_of
from hagane.intake.topic_log import Topic, TopicLog, Wanted, wanted_topics
from hagane.terms import Embodiment, Episode, LogError, digest_file

MAGIC = b"#ROSBAG V2.0\n"
_MESSAGE, _HEADER, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION = 2, 3, 4, 5, 6, 7
_KNOWN = {_MESSAGE, _HEADER, _INDEX, _CHUNK, _CHUNK_INFO, _CONNECTION}
_U4, _U8, _TIME = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<II")


def sniff(path: Path) -> bool:
    """True for a file that begins as a ROS 1 bag does, of any version."""
    return head_of(path, len(MAGIC)).startswith(b"#ROSBAG V")


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episode of a ROS 1 bag.

    Raises:
        LogError: another version, damaged, without its end (unless `keep_whole`), or as `episodes_of` says.
    """
    log = TopicLog(path)
    with path.open("rb") as file:
        scan_ros1(file, path.stat().st_size, log, wanted_topics(embodiment), options.keep_whole)
    return iter(
        episodes_of(log, embodiment, options, path.name.removesuffix(".active").removesuffix(".bag"), digest_file(path))
    )


class _Damaged(Exception):
    """Bytes that contradict themselves."""


class _Scan:
    """State of one pass: connections by their numbers, and what the file says it holds."""

    def __init__(self, log: TopicLog, wanted: Wanted, inflater: Inflater) -> None:
        self.log, self.wanted, self.inflater = log, wanted, inflater
        self.connections: dict[int, tuple[Topic, bool]] = {}
        self.count = 0
        self.index_at = 0
        self.chunks_told = self.chunks_listed = 0

    def record(self, head: dict[bytes, bytes], data: bytes, inside: bool = False) -> None:
        """Take one record, of the file or (`inside`) of a chunk."""
        kind = _op(head)
        if kind == _MESSAGE:
            self.message(head, data)
        elif kind == _CONNECTION:
            self.connection(head, data)
        elif kind == _CHUNK and not inside:
            raw = self.inflater.block(head.get(b"compression", b"").decode("latin1"), data, _number(head, b"size"))
            for below, body in _records_in(raw):
                self.record(below, body, True)
        elif kind == _HEADER and not inside:
            self.index_at = _number(head, b"index_pos", _U8)
            self.chunks_told = _number(head, b"chunk_count")
            if head.get(b"encryptor"):
                raise _Damaged(f"it is encrypted by {head[b'encryptor'].decode('latin1')!r}")
        elif kind == _CHUNK_INFO and not inside:
            self.chunks_listed += 1
        elif kind not in _KNOWN or inside:
            raise _Damaged(f"a record of kind {kind}")

    def connection(self, head: dict[bytes, bytes], data: bytes) -> None:
        number, name = _number(head, b"conn"), head.get(b"topic", b"").decode("utf-8", "replace")
        if number in self.connections:
            return
        about = _fields(data)
        text = about.get(b"message_definition", b"").decode("utf-8", "replace")
        schema = full_name(about.get(b"type", b"").decode("utf-8", "replace"))
        topic = self.log.topic(Topic(name, "ros1", schema, "msg" if text.strip() else "", text))
        self.connections[number] = (topic, self.wanted(name))

    def message(self, head: dict[bytes, bytes], data: bytes) -> None:
        number = _number(head, b"conn")
        if number not in self.connections:
            raise _Damaged(f"a message of connection {number}, which is not there")
        topic, wanted = self.connections[number]
        topic.count += 1
        self.count += 1
        if wanted:
            try:
                seconds, nanoseconds = _TIME.unpack(head[b"time"])
            except (KeyError, struct.error):
                raise _Damaged("a message without a time") from None
            topic.put(seconds * 10**9 + nanoseconds, data)


def scan_ros1(file: IO[bytes], size: int, log: TopicLog, wanted: Wanted, keep: bool) -> None:
    """Put the messages of a ROS 1 bag into `log`.

    Args:
        file: open at its beginning.
        size: its bytes.
        log: where messages and words for a missing end go.
        wanted: which topics are kept.
        keep: True takes what lies whole before the cut of a bag without its end.

    Raises:
        LogError: another version, damaged, without its end (unless `keep`), or a compressed block that claims too much.
    """
    where = str(log.path)
    if (magic := file.read(len(MAGIC))) != MAGIC:
        told = magic.split(b"V")[-1].strip().decode("latin1")
        raise LogError(
            f"a bag of version {told}, not 2.0", where=where, next_step="convert it: rosbag fix, rosbag reindex"
        )
    scan = _Scan(log, wanted, Inflater(size, where))
    try:
        whole = _records(file, size, scan)
        cut = "" if whole else "the bag ends within a record"
        if not cut and not scan.index_at:
            cut = "the recorder did not close it: it has no index"
        if not cut and (scan.index_at > size or scan.chunks_listed != scan.chunks_told):
            cut = f"the index lists {scan.chunks_listed} of {scan.chunks_told} chunks"
    except _Damaged as e:
        raise LogError(
            f"damaged bag after {scan.count} messages: {e}", where=where, next_step="copy it again from the machine"
        ) from None
    if cut and not keep:
        raise LogError(
            f"truncated bag: {cut}",
            where=where,
            next_step="copy it again, or pass --keep-whole to take the messages before the cut",
        )
    if cut and not scan.count:
        raise LogError(f"{cut}, and no whole message before the cut", where=where, next_step="copy it again")
    log.cut = cut


def _records(file: IO[bytes], size: int, scan: _Scan) -> bool:
    """Take all records; False when the file ends within one."""
    at = len(MAGIC)
    while at < size:
        parts = []
        for _ in range(2):
            word = file.read(4)
            at += 4 + (length := int.from_bytes(word, "little"))
            if len(word) < 4 or at > size:
                return False
            parts.append(file.read(length))
        scan.record(_fields(parts[0]), parts[1])
    return True


def _records_in(data: bytes) -> Iterator[tuple[dict[bytes, bytes], bytes]]:
    """Heads and bodies of the records of a chunk."""
    at, end = 0, len(data)
    while at < end:
        parts = []
        for _ in range(2):
            if at + 4 > end:
                raise _Damaged("a chunk ends within a record")
            (length,) = _U4.unpack_from(data, at)
            start, at = at + 4, at + 4 + length
            if at > end:
                raise _Damaged("a record beyond its chunk")
            parts.append(data[start:at])
        yield _fields(parts[0]), parts[1]


def _fields(data: bytes) -> dict[bytes, bytes]:
    """Fields of a head: a length, then name=value, each."""
    found: dict[bytes, bytes] = {}
    at, end = 0, len(data)
    while at < end:
        if at + 4 > end:
            raise _Damaged("a head ends within a field")
        (length,) = _U4.unpack_from(data, at)
        start, at = at + 4, at + 4 + length
        name, equals, value = data[start:at].partition(b"=")
        if at > end or not equals:
            raise _Damaged("a field that is none")
        found[name] = value
    return found


def _op(head: dict[bytes, bytes]) -> int:
    value = head.get(b"op", b"")
    if len(value) != 1:
        raise _Damaged("a record that does not say what it is")
    return value[0]


def _number(head: dict[bytes, bytes], name: bytes, kind: struct.Struct = _U4) -> int:
    try:
        return int(kind.unpack(head[name])[0])
    except (KeyError, struct.error):
        raise _Damaged(f"a record without its {name.decode()}") from None
