"""Shelf: a folder of files to read from, whatever form they have on disk.

Everything in the catalog that reads files reads them through a shelf: `PlainShelf` here (memory maps, crc32), and
`hagane.catalog.sealed.SealedShelf` for folders that lie encrypted. Names are paths relative to the folder, with
forward slashes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.flat import view_of
from hagane.terms import CorruptError, digest_file


class Rows(Protocol):
    """A file of R records of `stride` bytes, the last 4 of each the crc32 of those before."""

    @property
    def data(self) -> NDArray[np.uint8]:
        """[R * stride] where the records lie. Those that were never checked may be anything."""
        ...

    @property
    def together(self) -> int:
        """How many neighbouring records are checked at once: block b is those from b * together on."""
        ...

    @property
    def fault(self) -> str:
        """Words for what is wrong with a damaged record."""
        ...

    def check(self, block_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Make blocks of records readable; returns the numbers of those that are damaged."""
        ...


class Blobs(Protocol):
    """A file of blobs of any length, end to end."""

    @property
    def fault(self) -> str:
        """Words for what is wrong with a damaged blob."""
        ...

    def get(self, number: int, offset: int, length: int, crc32: int) -> bytes | memoryview | None:
        """A blob; None when it is damaged.

        Args:
            number: how many blobs of the file come before it.
            offset: where it begins in the plaintext file.
            length: its bytes.
            crc32: of its bytes.
        """
        ...


class Shelf(Protocol):
    """A folder of files. Reading a damaged or missing file raises CorruptError or OSError."""

    @property
    def folder(self) -> Path:
        """Where it is, for messages."""
        ...

    @property
    def sealed(self) -> bool:
        """True where reading takes keys."""
        ...

    def names(self) -> tuple[str, ...]:
        """All files there are, sorted; listed or not."""
        ...

    def has(self, name: str) -> bool:
        """True for a file that is there, damaged or not."""
        ...

    def size(self, name: str) -> int:
        """Bytes of its plaintext."""
        ...

    def sha256(self, name: str) -> str:
        """Of its plaintext."""
        ...

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """Its plaintext, or bytes first .. end - 1 of it."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Its plaintext, to be read from and closed."""
        ...

    def map(self, name: str) -> NDArray[np.uint8]:
        """Its plaintext as an array that may not be written; an empty one for an empty file."""
        ...

    def rows(self, name: str, stride: int) -> Rows:
        """A file of records."""
        ...

    def blobs(self, name: str) -> Blobs:
        """A file of blobs."""
        ...


class PlainShelf:
    """Files as they are.

    Args:
        folder: where they lie.
    """

    sealed = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """As `Shelf`."""
        return names_under(self.folder)

    def has(self, name: str) -> bool:
        """As `Shelf`."""
        return (self.folder / name).is_file()

    def size(self, name: str) -> int:
        """As `Shelf`."""
        return (self.folder / name).stat().st_size

    def sha256(self, name: str) -> str:
        """As `Shelf`."""
        return digest_file(self.folder / name)

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """As `Shelf`."""
        with self.open(name) as f:
            f.seek(first)
            return f.read(-1 if end is None else end - first)

    def open(self, name: str) -> BinaryIO:
        """As `Shelf`."""
        return (self.folder / name).open("rb")

    def map(self, name: str) -> NDArray[np.uint8]:
        """As `Shelf`."""
        if not self.size(name):
            return np.zeros(0, np.uint8)
        return np.memmap(self.folder / name, np.uint8, "r").view(np.ndarray)

    def rows(self, name: str, stride: int) -> PlainRows:
        """As `Shelf`."""
        return PlainRows(self.map(name), stride)

    def blobs(self, name: str) -> PlainBlobs:
        """As `Shelf`."""
        return PlainBlobs(view_of(self.map(name)))


class PlainRows:
    """Records in a memory map, compared with their crc32."""

    fault, together = "differs from its crc32", 1

    def __init__(self, data: NDArray[np.uint8], stride: int) -> None:
        self.data, self._stride = data, stride

    def check(self, block_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `Rows`; a block is a record."""
        size, data, crc32 = self._stride, view_of(self.data), zlib.crc32
        found = [crc32(data[at : at + size - 4]) for at in (block_N * size).tolist()]
        told = self.data.reshape(-1, size)[block_N, size - 4 :].copy().view("<u4").reshape(-1)
        bad: NDArray[np.int64] = block_N[told != np.array(found, np.uint32)]
        return bad


class PlainBlobs:
    """Blobs in a memory map, compared with their crc32 each time they are read."""

    fault = "differs from its crc32"

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def get(self, number: int, offset: int, length: int, crc32: int) -> memoryview | None:
        """As `Blobs`."""
        blob = self._data[offset : offset + length]
        return blob if zlib.crc32(blob) == crc32 else None


def names_under(folder: Path) -> tuple[str, ...]:
    """Paths of all files below a folder, relative to it, sorted."""
    return tuple(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()))


def check_size(shelf: Shelf, name: str, told: Mapping[str, Any]) -> None:
    """Compare presence and size of a file of a cache with its facts; cheap at any size.

    Raises:
        CorruptError: it is missing or of another size.
    """
    if not shelf.has(name) or shelf.size(name) != told["bytes"]:
        raise damaged_cache(shelf.folder / name)


def check_digest(shelf: Shelf, name: str, told: Mapping[str, Any]) -> None:
    """Compare all bytes of a file of a cache with its facts.

    Raises:
        CorruptError: it is missing or differs.
    """
    check_size(shelf, name, told)
    if shelf.sha256(name) != told["sha256"]:
        raise damaged_cache(shelf.folder / name)


def damaged_cache(path: Path, what: str = "a file of the training cache differs from its digest") -> CorruptError:
    """The error of a cache file that differs from its facts, or of the part of it that does."""
    return CorruptError(
        what,
        where=str(path),
        next_step=f"remove {path.parent}: it is built again from the canonical set",
    )
