"""Pictures in HDF5 datasets: plain frames, or JPEG/PNG bytes, padded with zeros or of their own length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.picture import JPEG, PNG, keep_pictures
from hagane.terms import LogError

_BLOCK_BYTES = 1 << 24


def is_encoded(dataset: Any) -> bool:
    """True for one row of bytes a picture: [K, padded] uint8 that begins as a picture does, or [K] byte strings."""
    if dataset.dtype == np.uint8 and dataset.ndim == 2 and dataset.shape[0] and dataset.shape[1] > len(PNG):
        return bytes(dataset[0, : len(PNG)]).startswith((JPEG, PNG))
    if dataset.ndim != 1 or not dataset.shape[0] or dataset.dtype.kind not in "OSV" or dataset.dtype.names:
        return False
    return _bytes(dataset[0]).startswith((JPEG, PNG))


def encoded_pictures(dataset: Any, first: int, after: int, lengths: Any = None, where: str = "") -> NDArray[np.object_]:
    """[after - first] objects, each the bytes of a picture without its padding.

    A JPEG ends with FF D9 and a PNG with AE 42 60 82, so zeros at the end are padding. `lengths` (ALOHA's
    compress_len, [cameras, K]) does not tell which row is which camera's: a length must be that of some camera.

    Raises:
        LogError: a length that no camera has.
    """
    found = []
    for a in range(first, after, block := _rows_a_block(dataset)):
        found += [_bytes(row) for row in dataset[a : min(a + block, after)]]
    if lengths is not None and lengths.ndim == 2 and lengths.shape[1] >= after and dataset.ndim == 2:
        told = np.asarray(lengths[:, first:after], np.float64)  # written as float32, exact to 16 MiB
        own = np.array([len(p) for p in found], np.float64)
        if (wrong := ~(told == own).any(0)).any():
            n = int(np.argmax(wrong))
            sizes = ", ".join(f"{v:g}" for v in told[:, n])
            raise LogError(
                f"frame {first + n} of {dataset.name} has {len(found[n])} bytes, compress_len says {sizes}",
                where=where,
                next_step="the file is damaged: copy it again from the machine",
            )
    return np.fromiter(found, object, len(found))


def plain_frames(dataset: Any) -> NDArray[Any]:
    """Frames of a [K, H, W, 3] uint8 dataset; see `hagane.intake.picture.keep_pictures`."""

    def frames() -> Iterator[NDArray[np.uint8]]:
        for a in range(0, dataset.shape[0], block := _rows_a_block(dataset)):
            yield from dataset[a : a + block]

    return keep_pictures(frames(), int(dataset.shape[0]))


def _rows_a_block(dataset: Any) -> int:
    """Rows read at once: about 16 MiB, and whole chunks, so that none is unpacked twice."""
    row_bytes = max(1, int(np.prod(dataset.shape[1:], dtype=object)) * max(dataset.dtype.itemsize, 1))
    chunk = dataset.chunks[0] if dataset.chunks else 1
    return int(max(1, _BLOCK_BYTES // row_bytes // chunk) * chunk)


def _bytes(row: Any) -> bytes:
    data = row.tobytes() if isinstance(row, np.ndarray | np.void) else row
    data = data.encode("latin-1", "replace") if isinstance(data, str) else data
    return data.rstrip(b"\0") if isinstance(data, bytes) else b""
