"""The container MCAP, read from front to back: messages of the wanted topics, with every checksum checked.

One pass serves whole and cut files, JSON and ROS. Records are bounded by the file, chunks by `Inflater`.
Format: https://mcap.dev/spec
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import IO, Any

from hagane.intake.inflate import Inflater
from hagane.intake.topic_log import Topic, TopicLog, Wanted
from hagane.terms import LogError

MAGIC = b"\x89MCAP0\r\n"
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _METADATA, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x0C, 0x0F
_HEAD, _MESSAGE_HEAD, _CHUNK_HEAD = struct.Struct("<BQ"), struct.Struct("<HIQQ"), struct.Struct("<QQQI")
_DIALECTS = {"ros2msg": "msg", "ros1msg": "msg", "ros2idl": "idl", "omgidl": "idl"}


class _Damaged(Exception):
    """Bytes that contradict themselves."""


class _Scan:
    """State of one pass: schemas and channels by their numbers in this file."""

    def __init__(self, log: TopicLog, wanted: Wanted, inflater: Inflater, zstd: bool) -> None:
        self.log, self.wanted, self.inflater, self.zstd = log, wanted, inflater, zstd
        self.schemas: dict[int, tuple[str, str, str]] = {}
        self.channels: dict[int, tuple[Topic, bool]] = {}
        self.count = 0

    def record(self, kind: int, body: bytes) -> None:
        """Take one record of the data section."""
        if kind == _MESSAGE:
            self.message(body, 0, len(body))
        elif kind == _CHUNK:
            self.chunk(body)
        elif kind == _SCHEMA:
            schema = _read("Schema", body)
            self.schemas[schema.id] = (schema.name, schema.encoding, schema.data.decode("utf-8", "replace"))
        elif kind == _CHANNEL:
            self.channel(_read("Channel", body))
        elif kind == _METADATA:
            record = _read("Metadata", body)
            self.log.about.update(record.metadata if record.name == "hagane" else {})

    def channel(self, channel: Any) -> None:
        if channel.id in self.channels:
            return
        name, encoding, text = self.schemas.get(channel.schema_id, ("", "", ""))
        if channel.schema_id and channel.schema_id not in self.schemas:
            raise _Damaged(f"topic {channel.topic!r} names a schema that is not there")
        dialect = _DIALECTS.get(encoding, "") if text.strip() else ""
        new = Topic(channel.topic, channel.message_encoding, name, dialect, text if dialect else "", self.zstd)
        self.channels[channel.id] = (self.log.topic(new), self.wanted(channel.topic))

    def message(self, data: bytes, start: int, end: int) -> None:
        if end - start < _MESSAGE_HEAD.size:
            raise _Damaged("a message shorter than its head")
        number, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(data, start)
        if number not in self.channels:
            raise _Damaged(f"a message of channel {number}, which is not there")
        if log_ns >= 1 << 63:
            raise _Damaged(f"a message at {log_ns} ns")
        topic, wanted = self.channels[number]
        topic.count += 1
        self.count += 1
        if wanted:
            topic.put(log_ns, data[start + _MESSAGE_HEAD.size : end])

    def chunk(self, body: bytes) -> None:
        try:
            _, _, claimed, crc = _CHUNK_HEAD.unpack_from(body)
            (size,) = struct.unpack_from("<I", body, _CHUNK_HEAD.size)
            at = _CHUNK_HEAD.size + 4 + size
            kind = body[at - size : at].decode("ascii", "replace")
            (size,) = struct.unpack_from("<Q", body, at)
        except struct.error:
            raise _Damaged("a chunk shorter than its head") from None
        if at + 8 + size > len(body):
            raise _Damaged("a chunk beyond its record")
        data = self.inflater.block(kind, body[at + 8 : at + 8 + size], claimed)
        if crc and zlib.crc32(data) != crc:
            raise _Damaged("a chunk differs from its checksum")
        at, end = 0, len(data)
        while at < end:
            if at + _HEAD.size > end:
                raise _Damaged("a chunk ends within a record")
            number, size = _HEAD.unpack_from(data, at)
            start, at = at + _HEAD.size, at + _HEAD.size + size
            if at > end:
                raise _Damaged("a record beyond its chunk")
            if number == _MESSAGE:
                self.message(data, start, at)
            elif number in (_SCHEMA, _CHANNEL):
                self.record(number, data[start:at])


def _read(name: str, body: bytes) -> Any:
    import mcap.records
    from mcap.data_stream import ReadDataStream

    try:
        return getattr(mcap.records, name).read(ReadDataStream(io.BytesIO(body)))
    except Exception as e:
        # the library raises struct.error, EndOfFile, UnicodeDecodeError and more for damaged bytes
        raise _Damaged(f"a broken {name.lower()}: {e or type(e).__name__}") from None


def scan_mcap(file: IO[bytes], size: int, log: TopicLog, wanted: Wanted, keep: bool, zstd: bool = False) -> None:
    """Put the messages of an MCAP file into `log`.

    Args:
        file: open at its beginning.
        size: its bytes.
        log: where messages, metadata and words for a missing end go.
        wanted: which topics are kept.
        keep: True takes what lies whole before the cut of a file without its end.
        zstd: messages are compressed one by one, as rosbag2's message mode does.

    Raises:
        LogError: damaged, without its end (unless `keep`), or a compressed block that claims too much.
    """
    try:
        import mcap.records  # noqa: F401
    except ImportError:
        raise LogError(
            "reading MCAP needs mcap", where=str(log.path), next_step='pip install "hagane[intake]"'
        ) from None
    file.seek(max(0, size - len(MAGIC)))
    cut = "" if file.read() == MAGIC and size > 2 * len(MAGIC) else "the file has no end mark"
    if cut and not keep:
        raise LogError(
            f"truncated file: {cut}",
            where=str(log.path),
            next_step="copy it again, or pass --keep-whole to take the messages before the cut",
        )
    scan = _Scan(log, wanted, Inflater(size, str(log.path)), zstd)
    try:
        whole = _records(file, size, scan)
    except _Damaged as e:
        raise LogError(
            f"damaged MCAP after {scan.count} messages: {e}",
            where=str(log.path),
            next_step="copy it again from the machine",
        ) from None
    if not whole and not cut:
        raise LogError(
            f"damaged MCAP after {scan.count} messages: a record reaches beyond the file",
            where=str(log.path),
            next_step="copy it again from the machine",
        )
    if cut and not scan.count:
        raise LogError(f"{cut}, and no whole message before the cut", where=str(log.path), next_step="copy it again")
    log.cut = log.cut or cut


def _records(file: IO[bytes], size: int, scan: _Scan) -> bool:
    """Take the records up to the end of the data section; False when the file ends before it."""
    file.seek(0)
    crc = zlib.crc32(file.read(len(MAGIC)))
    at = len(MAGIC)
    while at + _HEAD.size <= size:
        head = file.read(_HEAD.size)
        kind, length = _HEAD.unpack(head)
        at += _HEAD.size + length
        if at > size or not kind:
            return False
        body = file.read(length)
        if kind == _DATA_END:
            (told,) = struct.unpack_from("<I", body) if len(body) >= 4 else (0,)
            if told and told != crc:
                raise _Damaged("the messages differ from their checksum")
            return True
        crc = zlib.crc32(body, zlib.crc32(head, crc))
        scan.record(kind, body)
    return False
