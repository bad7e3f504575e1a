"""Sealed shelf: a folder whose files lie encrypted (hagane.seal.shards), decrypted in memory only.

Records of a cache are decrypted the first time they are looked at, into memory of the plaintext's size that the
kernel fills page by page; from then on they cost what plain ones cost. Pictures and videos are decrypted whenever
they are read, on the way into the decoder. The tag of each record takes the place of its crc32.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import mmap
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.shelf import PlainShelf, Shelf, damaged_cache, names_under
from hagane.seal import Keys, SealedFile, SealedFolder, open_folder
from hagane.seal.sealed_list import NAME as LIST
from hagane.seal.sealed_list import SUFFIX, on_disk
from hagane.terms import CorruptError, StoreError

FAULT = "is not the one that was sealed"


def open_shelf(folder: Path, dataset: str, keys: Keys | None) -> Shelf:
    """A folder of a data set: sealed when it holds a sealed.json, plain otherwise.

    Args:
        folder: of the set or of one of its caches.
        dataset: the data set's name.
        keys: gives the keys of sealed files; None gives none, and only what lies open can be read.

    Raises:
        CorruptError: the list of sealed files was changed, or is that of another data set.
    """
    if not (folder / LIST).exists():
        return PlainShelf(folder)
    return SealedShelf(open_folder(folder), dataset, keys)


class SealedShelf:
    """Files of a sealed folder.

    Args:
        folder: as `open_folder` read it.
        dataset: the data set that it must be of.
        keys: as `open_shelf`.
    """

    sealed = True

    def __init__(self, folder: SealedFolder, dataset: str, keys: Keys | None) -> None:
        self.folder, self._listed, self._keys = folder.path, folder, keys or _NoKeys(folder.path)
        self._files: dict[str, SealedFile] = {}
        self._lock = threading.Lock()
        if folder.name != dataset:
            raise CorruptError(
                f"the sealed files of data set {folder.name!r} lie where those of {dataset!r} should",
                where=str(folder.path),
                next_step="give the folder its old name again",
            )

    def names(self) -> tuple[str, ...]:
        """As `Shelf`; the list itself is none of them."""
        listed = self._listed.listed.files
        plain = ((n, n.removesuffix(SUFFIX)) for n in names_under(self.folder) if n != LIST)
        return tuple(sorted(short if short != n and short in listed else n for n, short in plain))

    def has(self, name: str) -> bool:
        """As `Shelf`."""
        sealed = name in self._listed.listed.files
        known = sealed or name in self._listed.listed.plain
        return known and on_disk(self.folder, name, sealed=sealed).is_file()

    def size(self, name: str) -> int:
        """As `Shelf`."""
        plain = self._listed.listed.plain.get(name)
        return plain.size if plain is not None else self._file(name).size

    def sha256(self, name: str) -> str:
        """As `Shelf`."""
        if name in self._listed.listed.plain:
            return hashlib.sha256(self.read(name)).hexdigest()
        digest = hashlib.sha256()
        for block in self._file(name).blocks():
            digest.update(block)
        return digest.hexdigest()

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """As `Shelf`; of a sealed file only the records that are needed are decrypted."""
        if name in self._listed.listed.plain:
            self._there(name)
            return self._listed.read(name, self._keys)[first:end]
        file = self._file(name)
        end = file.size if end is None else min(end, file.size)
        # the first record that ends after the first byte
        at = bisect.bisect_right(range(len(file)), first, key=lambda i: file.span(i)[1])
        parts, begin = [], file.span(at)[0] if at < len(file) else 0
        while at < len(file) and file.span(at)[0] < end:
            parts.append(file.record(at))
            at += 1
        return b"".join(parts)[first - begin : end - begin]

    def open(self, name: str) -> BinaryIO:
        """As `Shelf`, whole in memory."""
        return io.BytesIO(self.read(name))

    def map(self, name: str) -> NDArray[np.uint8]:
        """As `Shelf`, whole in memory."""
        return np.frombuffer(self.read(name), np.uint8)

    def rows(self, name: str, stride: int) -> SealedRows:
        """As `Shelf`."""
        file = self._file(name)
        if file.size and (not file.stride or file.stride % stride or file.size % stride):
            raise damaged_cache(file.path, "was not sealed by whole control steps")
        return SealedRows(file, stride)

    def blobs(self, name: str) -> SealedBlobs:
        """As `Shelf`."""
        return SealedBlobs(self._file(name))

    def _there(self, name: str) -> None:
        if not self.has(name):
            raise FileNotFoundError(str(self.folder / name))

    def _file(self, name: str) -> SealedFile:
        self._there(name)
        with self._lock:
            if name not in self._files:
                self._files[name] = self._listed.open(name, self._keys)
            return self._files[name]


class SealedRows:
    """Some neighbouring control steps a sealed record: a sample is a window of them, and each call has its price."""

    fault = FAULT

    def __init__(self, file: SealedFile, stride: int) -> None:
        self._sealed, self.together = file, max(file.stride // stride, 1)
        # private and anonymous: memory of its own, no file behind it, no page until it is written
        arena = mmap.mmap(-1, file.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if file.size else bytearray()
        self._plaintext = memoryview(arena)
        self.data = np.frombuffer(arena, np.uint8)
        self.data.flags.writeable = False

    def check(self, block_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `Rows`: decrypts them."""
        try:
            self._sealed.fill(block_N.tolist(), self._plaintext)
        except CorruptError:
            return np.array([b for b in block_N.tolist() if not _sound(self._sealed, b)], np.int64)
        return block_N[:0]


class SealedBlobs:
    """One sealed record a picture or video; its tag is checked each time it is read."""

    fault = FAULT

    def __init__(self, file: SealedFile) -> None:
        self._record = file.record

    def get(self, number: int, offset: int, length: int, crc32: int) -> bytes | None:
        """As `Blobs`."""
        try:
            blob = self._record(number)
        except (CorruptError, IndexError):
            return None
        return blob if len(blob) == length else None


@dataclass(frozen=True)
class _NoKeys:
    """Nobody gives keys to this process."""

    folder: Path

    def key(self, dataset: str, shard: str) -> bytes:
        """As `Keys.key`: refuses."""
        raise StoreError(
            f"data set {dataset!r} is sealed, and no keys come to this process",
            where=str(self.folder),
            next_step="read it with a hagane verb under its contract: the verb starts the jail itself",
        )


def _sound(file: SealedFile, record: int) -> bool:
    try:
        file.record(record)
    except CorruptError:
        return False
    return True
