"""A journal of closed episodes: what makes a recording survive a crash.

A Parquet file without its footer is lost as a whole, which is how recordings die elsewhere. So episodes are first
appended here, one checked record each (length, crc32, bytes); Parquet files are written from
the journal when the recording is complete, under other names, and renamed. Whatever the moment of a crash, only
the record that was being written can be lost: its torn bytes are cut off when the journal is opened again. A
killed process loses nothing that was appended; of a machine that loses power, records younger than `SYNC_S` too.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hagane.terms import CorruptError, StoreError
from hagane.terms.files import sync_folder, write_whole

SYNC_S = 0.25
"""Records are synced to the disk when the last sync is older than this, and at the end."""
_MAGIC = b"HAGANEJ1"
_HEAD = struct.Struct("<QI")


class Journal:
    """An append-only file of byte records.

    Opening an existing one keeps its whole records and cuts a torn last one off.

    Args:
        path: the file; made if absent.

    Raises:
        CorruptError: a record in the middle is damaged, or the file is no journal.
        StoreError: the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: list[int] = []
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("a+b")
            self._end = self._recover()
        except OSError as e:
            raise disk_error(e, path) from None

    def __len__(self) -> int:
        return len(self.offsets)

    def append(self, payload: bytes) -> None:
        """Add a record: handed to the system when this returns, and synced within `SYNC_S` of further work.

        Raises:
            StoreError: the disk refuses (full); the journal is as it was.
        """
        head = _HEAD.pack(len(payload), zlib.crc32(payload))
        try:
            self._file.write(head + payload)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_S:
                self.sync()
        except OSError as e:
            self._reopen()
            raise disk_error(e, self.path) from None
        self.offsets.append(self._end)
        self._end += len(head) + len(payload)

    def sync(self) -> None:
        """Make all records durable."""
        os.fdatasync(self._file.fileno())
        self._synced = time.monotonic()

    def records(self) -> Iterator[bytes]:
        """All records in order, each checked.

        Raises:
            CorruptError: bytes changed since they were written.
        """
        for number in range(len(self.offsets)):
            yield self.record(number)

    def record(self, number: int) -> bytes:
        """One record by its number.

        Raises:
            CorruptError: its bytes changed since they were written.
        """
        return _read(self._file, self.offsets[number], self.path)

    def cut(self, count: int) -> None:
        """Keep the first `count` records only."""
        if count < len(self.offsets):
            self._end = self.offsets[count]
            del self.offsets[count:]
            os.ftruncate(self._file.fileno(), self._end)
            self._reopen()

    def close(self) -> None:
        """Sync and close the file; records stay."""
        self.sync()
        self._file.close()

    def _reopen(self) -> None:
        """After a failed write: forget what the buffer holds, and cut the file back to its last whole record."""
        with contextlib.suppress(OSError):
            self._file.close()
        os.truncate(self.path, self._end)
        self._file = self.path.open("a+b")

    def _recover(self) -> int:
        size = os.fstat(self._file.fileno()).st_size
        if size < len(_MAGIC):
            self._file.truncate(0)
            self._file.write(_MAGIC)
            self._file.flush()
            return len(_MAGIC)
        self._file.seek(0)
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise CorruptError("this is no journal of episodes", where=str(self.path))
        at = len(_MAGIC)
        while at + _HEAD.size <= size:
            length, crc = _HEAD.unpack(self._file.read(_HEAD.size))
            end = at + _HEAD.size + length
            if end > size:
                break
            if zlib.crc32(self._file.read(length)) != crc:
                if end < size:
                    raise CorruptError(
                        f"record {len(self.offsets)} of the journal is damaged",
                        where=str(self.path),
                        next_step="remove the folder of this unfinished recording and record again",
                    )
                break
            self.offsets.append(at)
            at = end
        if at < size:
            self._file.truncate(at)
        return at


def read_record(path: Path, offset: int) -> bytes:
    """One record of a closed journal, by its offset: for readers beside the writer.

    Raises:
        CorruptError: its bytes changed since they were written.
    """
    with path.open("rb") as f:
        return _read(f, offset, path)


def _read(f: BinaryIO, offset: int, path: Path) -> bytes:
    f.seek(offset)
    head = f.read(_HEAD.size)
    size, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 1)
    payload = f.read(size)
    if len(payload) != size or zlib.crc32(payload) != crc:
        raise CorruptError(f"the record at byte {offset} of the journal is damaged", where=str(path))
    return payload


def disk_error(e: OSError, path: Path) -> StoreError:
    """One message for a disk that refuses, with the next step; `path` where the error names no file itself."""
    closed = isinstance(e, PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError)
    remedy = "see that it is there and may be read and written" if closed else "free some disk"
    return StoreError(
        f"the disk refused: {e.strerror or e}",
        where=str(e.filename or path),
        next_step=f"{remedy}, and run the same command again: finished episodes are kept",
    )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that it is complete or absent: temporary name, sync, rename.

    Raises:
        StoreError: the disk refuses; the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [data])
    except OSError as e:
        raise disk_error(e, path) from None


def sync_tree(path: Path) -> None:
    """Make the names of all that lies in a folder durable, before the folder itself is renamed."""
    for folder in (*(p for p in path.rglob("*") if p.is_dir()), path):
        sync_folder(folder)
