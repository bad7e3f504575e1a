"""Pictures of a training cache: JPEG blobs end to end, an index of where each lies, a crc32 for each.

Reading is batched: the pictures of a whole batch are checked and decoded into one buffer.
"""

from __future__ import annotations

import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.flat import FlatFile
from hagane.catalog.shelf import Blobs, Shelf, damaged_cache
from hagane.intake.picture import JPEG, decode_picture, encode_jpeg, is_encoded, picture_size
from hagane.terms import Channel, CorruptError, LogError

INDEX = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4"), ("shard", "<u4"), ("_", "<u4")])
"""One picture: where its bytes lie in which shard, and their crc32."""
SHARD_BYTES = 1 << 30
FAST = {"fastdct": True, "fastupsample": True}
"""How libjpeg-turbo decodes: 15% faster; the loss is far below that of JPEG itself (LOG.md)."""


def as_jpegs(
    values: NDArray[Any], valid_K: NDArray[np.bool_], channel: Channel
) -> tuple[list[bytes], NDArray[np.int64]]:
    """Distinct pictures of an episode as JPEG, and [K] which of them each control step shows (0 where none is valid).

    JPEGs of the log pass through; other pictures are encoded at quality 95.

    Raises:
        LogError: a picture of another size than the channel's, or one that cannot be read.
    """
    encoded = is_encoded(values)
    blobs: list[bytes] = []
    number_K = np.zeros(len(valid_K), np.int64)
    last: Any = None
    for k in np.flatnonzero(valid_K):
        value = values[k]
        same = last is not None and (value == last if encoded else np.array_equal(value, last))
        if not same:
            blobs.append(_as_jpeg(value, channel))
            last = value
        number_K[k] = len(blobs) - 1
    return blobs, number_K


def _as_jpeg(value: Any, channel: Channel) -> bytes:
    if isinstance(value, bytes):
        size = picture_size(value, f"channel {channel.name!r}")
        if size != channel.shape[:2]:
            raise LogError(f"a picture of {size[0]}x{size[1]}, the channel has {channel.shape[0]}x{channel.shape[1]}")
        return value if value.startswith(JPEG) else encode_jpeg(decode_picture(value))
    return encode_jpeg(value)


class PictureWriter:
    """Appends the pictures of one channel to shards and their index.

    Args:
        folder: of the cache.
        stem: "pictures-003" for channel 3.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self.stem = folder, stem
        self._index = FlatFile(folder / f"{stem}.index.bin")
        self._shards: list[FlatFile] = []

    def append(self, blobs: Sequence[bytes], count: int) -> None:
        """Add the pictures of one episode: one blob each of `count`."""
        assert len(blobs) == count
        rows = np.zeros(len(blobs), INDEX)
        for row, blob in zip(rows, blobs, strict=True):
            if not self._shards or self._shards[-1].bytes > SHARD_BYTES:
                self._shards.append(FlatFile(self.folder / _shard(self.stem, len(self._shards))))
            row["offset"], row["length"] = self._shards[-1].bytes, len(blob)
            row["crc32"], row["shard"] = zlib.crc32(blob), len(self._shards) - 1
            self._shards[-1].append(blob)
        self._index.append(rows.tobytes())

    def close(self) -> dict[str, dict[str, Any]]:
        """Sync; returns facts by file name."""
        return {f.path.name: f.close() for f in (self._index, *self._shards)}


class Pictures:
    """Pictures of one channel. Every blob is checked each time it is read.

    Args:
        shelf: of the cache.
        stem: as `PictureWriter`.
        shape: [height, width, 3] of the channel.
        shards: how many shards there are.
        owner: words for the episode of a picture number, for messages.
    """

    def __init__(
        self, shelf: Shelf, stem: str, shape: tuple[int, ...], shards: int, owner: Callable[[int], str]
    ) -> None:
        self.shelf, self.stem, self.shape, self._owner = shelf, stem, shape, owner
        self._index = shelf.map(f"{stem}.index.bin").view(INDEX)
        self._shards: list[Blobs] = [shelf.blobs(_shard(stem, i)) for i in range(shards)]
        self._first_S = np.searchsorted(self._index["shard"], np.arange(shards)).tolist()
        self._buffers = Buffers()

    def __len__(self) -> int:
        return len(self._index)

    def take(self, number_N: NDArray[np.int64], out: NDArray[np.uint8], at_N: NDArray[np.int64]) -> None:
        """Decode pictures into rows `at_N` of [*, height, width, 3] `out`; a repeated picture is decoded once.

        Raises:
            CorruptError: stored bytes are damaged; names file and episode.
        """
        import simplejpeg

        decode = simplejpeg.decode_jpeg
        done: dict[int, int] = {}
        where_N = self._index[number_N]
        for number, at, (offset, length, crc, shard, _) in zip(
            number_N.tolist(), at_N.tolist(), where_N.tolist(), strict=True
        ):
            if number in done:
                out[at] = out[done[number]]
                continue
            blob = self._shards[shard].get(number - self._first_S[shard], offset, length, crc)
            if blob is None:
                raise self._damaged(number, shard, self._shards[shard].fault)
            try:
                decode(blob, buffer=out[at], **FAST)
            except ValueError as e:
                raise self._damaged(number, shard, f"cannot be decoded: {e}") from None
            done[number] = at

    def buffer(self, rows: int) -> NDArray[np.uint8]:
        """[rows, height, width, 3] to decode into; its contents are whatever was there before."""
        return self._buffers.take((rows, *self.shape))

    def check(self) -> None:
        """Check every picture.

        Raises:
            CorruptError: as `take`.
        """
        for number, (offset, length, crc, shard, _) in enumerate(self._index.tolist()):
            if self._shards[shard].get(number - self._first_S[shard], offset, length, crc) is None:
                raise self._damaged(number, shard, self._shards[shard].fault)

    def _damaged(self, number: int, shard: int, what: str) -> CorruptError:
        path = self.shelf.folder / _shard(self.stem, shard)
        return damaged_cache(path, f"picture {number} of {self._owner(number)} {what}")


def _shard(stem: str, number: int) -> str:
    return f"{stem}.{number:03d}.bin"


class Buffers:
    """Large arrays used again once nobody looks at them: fresh memory would cost as much as a tenth of the decoding.

    CPython counts references, and a view holds its base, so an array with no holder but this list is free.
    """

    _MOST = 8

    def __init__(self) -> None:
        self._made: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of that shape that nobody else holds."""
        with self._lock:
            for i in range(len(self._made)):
                # the list's reference and getrefcount's own argument
                if self._made[i].shape == shape and sys.getrefcount(self._made[i]) == 2:
                    return self._made[i].view()
            made = np.empty(shape, np.uint8)
            self._made = [*self._made[-self._MOST + 1 :], made]
            return made.view()
