"""Flat files: appended with a running sha256, read by memory map."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hagane.terms import CorruptError, digest_file


class FlatFile:
    """One growing file with its digest.

    Args:
        path: the file; replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.bytes = path, 0
        self._file: BinaryIO = path.open("wb", buffering=1 << 20)
        self._hash = hashlib.sha256()

    def append(self, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        self._hash.update(data)
        self._file.write(data)
        self.bytes += len(data)

    def close(self) -> dict[str, Any]:
        """Sync and close; returns sha256 and size."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"sha256": self._hash.hexdigest(), "bytes": self.bytes}


def map_bytes(path: Path) -> NDArray[np.uint8]:
    """A file's bytes, memory-mapped; an empty array for an empty file."""
    if not path.stat().st_size:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def map_view(path: Path) -> memoryview:
    """As `map_bytes`, to be sliced without copies."""
    return view_of(map_bytes(path))


def view_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]


def check_size(path: Path, told: Mapping[str, Any]) -> None:
    """Compare a file's presence and size with its facts; cheap at any size.

    Raises:
        CorruptError: it is missing or of another size.
    """
    if not path.is_file() or path.stat().st_size != told["bytes"]:
        raise damaged_cache(path)


def check_digest(path: Path, told: Mapping[str, Any]) -> None:
    """Compare all bytes of a file with its facts.

    Raises:
        CorruptError: it is missing or differs.
    """
    check_size(path, told)
    if digest_file(path) != told["sha256"]:
        raise damaged_cache(path)


def damaged_cache(path: Path, what: str = "a file of the training cache differs from its digest") -> CorruptError:
    """The error of a cache file that differs from its facts, or of the part of it that does."""
    return CorruptError(
        what,
        where=str(path),
        next_step=f"remove {path.parent}: it is built again from the canonical set",
    )
