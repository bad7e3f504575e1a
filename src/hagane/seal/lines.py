"""A ledger's file: opened, locked, read in blocks of whole lines, written to so that a crash loses nothing."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from hagane.terms import CorruptError, StoreError, digest_bytes

_BLOCK = 256  # lines in a block: few enough to stay in a core's cache (4096 took 2.5 times the CPU seconds)
_BUFFER = 1 << 18


class TornError(CorruptError):
    """The last line has no end, as after a crash: it was never acknowledged."""

    def __init__(self, torn: bytes, where: str) -> None:
        super().__init__(
            f"the last line is torn ({len(torn)} bytes without an end), as after a crash",
            where=where,
            next_step="the next append sets it aside and says so in the ledger",
        )
        self.torn = torn


@contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The file, and how many of its bytes were whole under the lock: another process may be writing now."""
    try:
        file: IO[bytes] = path.open("rb", _BUFFER)
    except FileNotFoundError:
        file = io.BytesIO()
    except OSError as e:
        raise StoreError(f"the ledger cannot be read: {e.strerror}", where=str(path)) from None
    with file:
        if isinstance(file, io.BytesIO):
            yield file, 0
            return
        fcntl.flock(file, fcntl.LOCK_SH)
        until = os.fstat(file.fileno()).st_size
        fcntl.flock(file, fcntl.LOCK_UN)
        yield file, until


def blocks(file: IO[bytes], left: int, index: int, path: Path, stops: Sequence[int] = ()) -> Iterator[list[bytes]]:
    """Lines of the next `left` bytes in blocks, which end at multiples of the block's size and at `stops`.

    Raises:
        TornError: the last line has no end; whole lines before it came out.
    """
    while left > 0:
        end = min([index - index % _BLOCK + _BLOCK, *(s for s in stops if s > index)])
        lines = list(islice(file, end - index))
        left -= sum(map(len, lines))
        while lines and left < 0:  # written after we looked
            left += len(lines.pop())
        torn = b"" if lines and lines[-1].endswith(b"\n") else lines.pop() if lines else b""
        if lines:
            yield lines
        index += len(lines)
        if torn:
            raise TornError(torn, f"{path}:{index + 1}")
        if not lines:
            return


def write_at(fd: int, offset: int, line: bytes, path: Path) -> None:
    """Write and sync a line at the end of the file; whole, or not at all.

    Raises:
        StoreError: the disk refuses; the file is as it was.
    """
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        view = memoryview(line)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError as e:
        cut(fd, offset, path)
        raise StoreError(
            f"the entry could not be written: {e.strerror}",
            where=str(path),
            next_step="free some disk and try again; the ledger is as it was",
        ) from None


def set_aside(torn: bytes, path: Path) -> None:
    """Keep the bytes of a torn line in a file of their own."""
    aside = path.with_name(f"{path.name}.torn-{digest_bytes(torn)[:16]}")
    try:
        with aside.open("wb") as f:
            f.write(torn)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise StoreError(f"a torn line could not be set aside: {e.strerror}", where=str(aside)) from None


def cut(fd: int, size: int, path: Path) -> None:
    """Cut the file back to its whole lines."""
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    except OSError as e:
        raise StoreError(f"the ledger cannot be cut back to its last entry: {e.strerror}", where=str(path)) from None


def damaged(path: Path, index: int) -> CorruptError:
    """The error that names a line."""
    return CorruptError(
        "the ledger is damaged here: this line is not the one that was written",
        where=f"{path}:{index + 1}",
        next_step="restore the ledger from a copy; entries above this line are sound",
    )
