"""The cache for little disk: the pictures of an episode as one video, about a tenth of the bytes of JPEGs.

A single frame out of a video costs the decoding of all frames since the last key frame, so samples are drawn from a
pool of whole episodes (`hagane.catalog.order.PoolOrder`), each decoded once for all its samples, in sequence. AV1 by
SVT-AV1, a key frame every 30: free of patents and fees, read everywhere, and no slower to decode than H.264 here.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.flat import FlatFile
from hagane.catalog.pictures import Buffers
from hagane.catalog.shelf import Blobs, Shelf, damaged_cache
from hagane.intake.picture import decode_picture
from hagane.terms import CorruptError, StoreError

INDEX = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4"), ("first", "<i8"), ("frames", "<i8")])
"""One episode: where its video lies, its crc32, the number of its first picture, and how many there are."""
KEY_FRAMES = 30
POOL_EPISODES = 8
"""Episodes whose samples are mixed with each other."""
_HELD_BYTES = 1 << 30
_ENCODER = {"preset": "10", "crf": "26", "svtav1-params": "lp=1"}  # one thread: the same bytes everywhere


def encode_video(jpegs: Sequence[bytes], rate_hz: float) -> bytes:
    """Pictures of one size as an MP4 with a key frame every 30.

    Raises:
        LogError: a picture that cannot be read.
        StoreError: there is no encoder, or it refuses such pictures.
    """
    # the encoder writes its settings to the terminal unless it is told not to
    os.environ.setdefault("SVT_LOG", "1")
    import av

    out = io.BytesIO()
    try:
        with av.open(out, "w", format="mp4") as container:
            stream: Any = container.add_stream("libsvtav1", rate=max(1, round(rate_hz)), options=_ENCODER)
            stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", KEY_FRAMES
            for number, jpeg in enumerate(jpegs):
                image = decode_picture(jpeg)
                if number == 0:
                    stream.height, stream.width = image.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as e:
        raise StoreError(
            f"pictures cannot be kept as video: {e}", next_step='keep them as JPEGs: pictures = "jpeg"'
        ) from None
    return out.getvalue()


class VideoWriter:
    """Appends the videos of one channel, one an episode.

    Args:
        folder: of the cache.
        stem: "pictures-003" for channel 3.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._index, self._data = FlatFile(folder / f"{stem}.index.bin"), FlatFile(folder / f"{stem}.000.bin")
        self._frames = 0

    def append(self, videos: Sequence[bytes], count: int) -> None:
        """Add the one video of an episode, of `count` pictures; none for an episode without pictures."""
        for data in videos:
            row = np.zeros(1, INDEX)
            row[0] = (self._data.bytes, len(data), zlib.crc32(data), self._frames, count)
            self._data.append(data)
            self._index.append(row.tobytes())
        self._frames += count

    def close(self) -> dict[str, dict[str, Any]]:
        """Sync; returns facts by file name."""
        return {f.path.name: f.close() for f in (self._index, self._data)}


class VideoPictures:
    """Pictures of one channel out of videos; whole episodes are decoded and held, the longest unused go first.

    Args: as `hagane.catalog.pictures.Pictures`.
    """

    def __init__(
        self, shelf: Shelf, stem: str, shape: tuple[int, ...], shards: int, owner: Callable[[int], str]
    ) -> None:
        self.shape, self._owner = shape, owner
        self._path = shelf.folder / f"{stem}.000.bin"
        self._index = shelf.map(f"{stem}.index.bin").view(INDEX)
        self._data: Blobs = shelf.blobs(self._path.name)
        self._buffers = Buffers()
        self._held: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, number_N: NDArray[np.int64], out: NDArray[np.uint8], at_N: NDArray[np.int64]) -> None:
        """Copy pictures into rows `at_N` of `out`, decoding the episodes that are not held.

        Raises:
            CorruptError: stored bytes are damaged, or are no video; names file and episode.
        """
        episode_N = np.searchsorted(self._index["first"], number_N, side="right") - 1
        for e in np.unique(episode_N).tolist():
            pick = episode_N == e
            out[at_N[pick]] = self._frames(e)[number_N[pick] - self._index["first"][e]]

    def buffer(self, rows: int) -> NDArray[np.uint8]:
        """[rows, height, width, 3]."""
        return self._buffers.take((rows, *self.shape))

    def check(self) -> None:
        """Check every video.

        Raises:
            CorruptError: as `take`.
        """
        for e in range(len(self._index)):
            self._bytes(e)

    def _frames(self, episode: int) -> NDArray[np.uint8]:
        with self._lock:
            if episode in self._held:
                self._held.move_to_end(episode)
                return self._held[episode]
            frames = self._decode(episode)
            self._held[episode] = frames
            while len(self._held) > 1 and sum(f.nbytes for f in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            return frames

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        import av

        count = int(self._index["frames"][episode])
        frames = np.empty((count, *self.shape), np.uint8)
        seen = 0
        try:
            with av.open(io.BytesIO(self._bytes(episode))) as container:
                container.streams.video[0].codec_context.thread_count = 1
                for seen, frame in enumerate(container.decode(video=0), 1):
                    if seen <= count:
                        frames[seen - 1] = frame.to_ndarray(format="rgb24")
        except (av.FFmpegError, ValueError) as e:
            raise self._damaged(episode, f"cannot be decoded: {e}") from None
        if seen != count:
            raise self._damaged(episode, f"has {seen} pictures, not {count}")
        return frames

    def _bytes(self, episode: int) -> bytes | memoryview:
        row = self._index[episode]
        data = self._data.get(episode, int(row["offset"]), int(row["length"]), int(row["crc32"]))
        if data is None:
            raise self._damaged(episode, self._data.fault)
        return data

    def _damaged(self, episode: int, what: str) -> CorruptError:
        return damaged_cache(self._path, f"the video of {self._owner(int(self._index['first'][episode]))} {what}")
