"""The container of older ROS 2 bags: an SQLite file with tables `topics` and `messages` (rosbag2_storage_sqlite3).

Only plain tables are read (a view or a computed column would run a stranger's SQL), nothing in the file may claim more
bytes than the file has, and the structure is checked first. SQLite has no checksums: a flipped byte within a message
is seen where it breaks a length, else not.
Schema: https://github.com/ros2/rosbag2 (rosbag2_storage_sqlite3); file format: https://www.sqlite.org/fileformat.html
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hagane.intake.ros_types import full_name
from hagane.intake.topic_log import Topic, TopicLog, Wanted
from hagane.terms import LogError

MAGIC = b"SQLite format 3\0"
_DIALECTS = {"ros2msg": "msg", "ros2idl": "idl"}
_MOST_FILL = 1 << 30
_LOST = "some pages of the file are missing"


def is_ros2_sqlite(head: bytes) -> bool:
    """True for the first bytes of an SQLite file with the tables of a ROS 2 bag."""
    return head.startswith(MAGIC) and b"CREATE TABLE topics" in head and b"CREATE TABLE messages" in head


def scan_sqlite(path: Path, log: TopicLog, wanted: Wanted, keep: bool, zstd: bool = False) -> None:
    """Put the messages of a .db3 file into `log`.

    Args:
        path: the file.
        log: where messages and words for a missing end go; its path is what messages to people name.
        wanted: which topics are kept.
        keep: True takes what can be read of a file that has lost pages.
        zstd: messages are compressed one by one.

    Raises:
        LogError: damaged, not of this format, or without its end (unless `keep`).
    """
    cut = _cut(path)
    where = str(log.path)
    if cut and not keep:
        raise LogError(
            f"truncated bag: {cut}",
            where=where,
            next_step="copy it again, or pass --keep-whole to take the messages that are whole",
        )
    before = sum(t.count for t in log.topics.values())
    try:
        with _opened(path, cut) as db:
            _check_tables(db, where)
            if not cut and (fault := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(str(fault).replace("\n", " ")[:120])
            topics = _topics(db, log, wanted, zstd)
            rows = _rows(db, topics)
            if cut.startswith(_LOST):
                with _filled(path) as other:
                    _take(_in_both(rows, _rows(other, topics)), topics, where)
            else:
                _take(rows, topics, where)
    except (sqlite3.Error, sqlite3.Warning, UnicodeDecodeError, OverflowError) as e:
        if not cut:
            raise LogError(f"damaged bag: {e}", where=where, next_step="copy it again from the machine") from None
    if cut and sum(t.count for t in log.topics.values()) == before:
        raise LogError(f"{cut}, and no whole message in the rest", where=where, next_step="copy it again")
    log.cut = log.cut or cut


def _cut(path: Path) -> str:
    """Words for a file that is shorter than it says, or that was not closed; "" for one that is whole."""
    with path.open("rb") as f:
        head = f.read(100)
    if len(head) < 100:
        return "it has no whole first page"
    size, told = path.stat().st_size, _told_bytes(head)
    if told > size:
        return f"{_LOST} ({size} bytes of {told})"
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        return f"the recorder did not close it: {log.name} holds messages of its own"
    return ""


def _told_bytes(head: bytes) -> int:
    """Bytes that the file says it has; 0 when it does not say (its two change counters differ)."""
    (page,), (pages,) = struct.unpack(">H", head[16:18]), struct.unpack(">I", head[28:32])
    return int(pages * (65536 if page == 1 else page)) if head[24:28] == head[92:96] else 0


@contextmanager
def _opened(path: Path, cut: str) -> Iterator[sqlite3.Connection]:
    """The database, read only, with nothing in it trusted."""
    with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)) as db:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA query_only=ON")
        if cut:
            # without this SQLite refuses a file that is shorter than its first page says
            db.execute("PRAGMA writable_schema=ON")
        # the limit itself is an int of C: a message of a larger bag is below it all the same
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(max(path.stat().st_size, 1 << 16), (1 << 31) - 1))
        yield db


def _check_tables(db: sqlite3.Connection, where: str) -> None:
    """Refuse what is no table of plain columns: views, and virtual tables, have no page of their own."""
    query = "SELECT name, type FROM sqlite_master WHERE name IN ('topics', 'messages') AND rootpage > 0"
    kinds = dict(db.execute(query))
    hidden = [c for t in kinds for c in db.execute(f"PRAGMA table_xinfo({t})") if c[6]]
    if kinds != {"topics": "table", "messages": "table"} or hidden:
        what = "no ROS 2 bag: tables `topics` and `messages` are not plain tables"
        raise LogError(what, where=where, next_step="copy it again from the machine")


def _topics(db: sqlite3.Connection, log: TopicLog, wanted: Wanted, zstd: bool) -> dict[int, tuple[Topic, bool]]:
    """Topics by their numbers, with the definitions that newer bags carry."""
    definitions: dict[str, tuple[str, str]] = {}
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "message_definitions" in tables:
        query = "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
        definitions = {str(t): (_DIALECTS.get(str(e), ""), str(d)) for t, e, d in db.execute(query)}
    if "schema" in tables and any(c[1] == "ros_distro" for c in db.execute("PRAGMA table_info(schema)")):
        log.distro = str((db.execute("SELECT ros_distro FROM schema").fetchone() or ("",))[0])
    found: dict[int, tuple[Topic, bool]] = {}
    for number, name, schema, encoding in db.execute("SELECT id, name, type, serialization_format FROM topics"):
        if not isinstance(number, int):
            raise sqlite3.DatabaseError(f"a topic of number {number!r}"[:120])
        dialect, text = definitions.get(str(schema), ("", ""))
        text = text if dialect and text.strip() else ""
        topic = Topic(str(name), str(encoding), full_name(str(schema)), dialect if text else "", text, zstd)
        found[number] = (log.topic(topic), wanted(str(name)))
    return found


_Row = tuple[Any, Any, Any]
"""Number of the topic, log time, and the message where its topic is wanted (else None)."""


def _rows(db: sqlite3.Connection, topics: dict[int, tuple[Topic, bool]]) -> Iterator[_Row]:
    """All messages in the order of the file, which is the order of recording."""
    names = ",".join(str(n) for n, (_, wanted) in topics.items() if wanted)
    data = f"CASE WHEN topic_id IN ({names}) THEN data END"
    return iter(db.execute(f"SELECT topic_id, timestamp, {data} FROM messages ORDER BY rowid"))


def _take(rows: Iterator[_Row], topics: dict[int, tuple[Topic, bool]], where: str) -> None:
    for number, time_ns, data in rows:
        topic, wanted = topics.get(number, (None, False))
        if topic is None or (wanted and not (isinstance(time_ns, int) and isinstance(data, bytes))):
            what = "a message of no topic" if topic is None else "a message without time or bytes"
            raise LogError(f"damaged bag: {what}", where=where, next_step="copy it again from the machine")
        topic.count += 1
        if wanted:
            topic.put(time_ns, data)


def _in_both(rows: Iterator[_Row], others: Iterator[_Row]) -> Iterator[_Row]:
    """SQLite reads a lost page as zeros: a message is whole when other bytes in its place change nothing."""
    for row, other in zip(rows, others, strict=False):
        if row == other:
            yield row


@contextmanager
def _filled(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy whose lost pages are full of ones."""
    with tempfile.TemporaryDirectory(prefix="hagane-") as folder:
        copy = Path(folder) / "bag"
        with path.open("rb") as source, copy.open("wb") as out:
            head = source.read(100)
            source.seek(0)
            shutil.copyfileobj(source, out)
            left = _told_bytes(head) - path.stat().st_size
            if left > max(_MOST_FILL, 16 * path.stat().st_size):
                raise sqlite3.DatabaseError(f"{left} bytes are missing")
            for k in range(0, left, 1 << 20):
                out.write(b"\xff" * min(1 << 20, left - k))
        with _opened(copy, "filled") as db:
            yield db
