"""Flat files: appended with a running sha256."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


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


def view_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
