"""Pictures in and out of bytes: JPEG through libjpeg-turbo, the rest (PNG, video) through PyAV.

An image stream holds its pictures plain ([N, H, W, 3] uint8) or as the log had them: [N] objects, each the bytes of
a JPEG or a PNG. Encoded pictures stay encoded until a sample needs them, so an hour of camera fits into memory.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import LogError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 1 << 26
"""A picture that claims more pixels is refused before a byte of it is decoded."""
PLAIN_BYTES = 1 << 27
"""Decoded pictures of one stream of one episode that would take more memory are kept as JPEG (quality 95)."""


def is_encoded(values: NDArray[Any]) -> bool:
    """True for arrays of objects that are bytes: pictures that are already encoded."""
    return values.dtype == object and len(values) > 0 and isinstance(values[0], bytes)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] uint8 as PNG, without loss."""
    import av

    codec: Any = av.CodecContext.create("png", "w")
    codec.height, codec.width = image.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.pts = 0
    packets = [*codec.encode(frame), *codec.encode(None)]
    return b"".join(bytes(p) for p in packets)


def encode_jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    """[H, W, 3] uint8 as JPEG, colours at half resolution."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorsubsampling="420")
    return data


def picture_size(data: bytes, where: str = "picture") -> tuple[int, int]:
    """Height and width out of the header of a JPEG or a PNG.

    Raises:
        LogError: neither of the two, or of absurd size.
    """
    import simplejpeg

    try:
        if data.startswith(JPEG):
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        elif data.startswith(PNG) and len(data) > 24:
            width, height = struct.unpack(">II", data[16:24])
        else:
            raise ValueError("neither JPEG nor PNG")
    except (ValueError, OSError) as e:
        raise LogError(
            f"a picture cannot be read: {e}",
            where=where,
            next_step="give JPEG or PNG; a damaged one: copy the log again",
        ) from None
    if not 0 < height * width <= MOST_PIXELS:
        raise LogError(
            f"a picture claims {width} x {height} pixels", where=where, next_step="copy the log again from its source"
        )
    return int(height), int(width)


def plain_pictures(values: NDArray[Any], where: str = "picture") -> NDArray[np.uint8]:
    """[N, H, W, 3] uint8, decoded where they are encoded.

    Raises:
        LogError: bytes that are no picture, or pictures of different sizes.
    """
    if values.dtype != object:
        return values
    images = [decode_picture(v, where) for v in values]
    if len({i.shape for i in images}) > 1:
        raise LogError("pictures of different sizes in one stream", where=where, next_step="give pictures of one size")
    return np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)


def decode_picture(data: bytes, where: str = "picture") -> NDArray[np.uint8]:
    """[H, W, 3] uint8 from the bytes of a still picture.

    Raises:
        LogError: they are no JPEG or PNG, or a damaged one.
    """
    import av
    import simplejpeg

    # anything else would make FFmpeg guess, and a playlist make it open other files
    picture_size(data, where)
    try:
        if data.startswith(JPEG):
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
            return decoded
        with av.open(io.BytesIO(data), format="png_pipe") as container:
            frame = next(iter(container.decode(video=0)))
            image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
            return image
    except (av.FFmpegError, StopIteration, IndexError, ValueError) as e:
        raise LogError(
            f"a picture cannot be decoded: {e}", where=where, next_step="copy the log again from its source"
        ) from None


def keep_pictures(frames: Iterator[NDArray[np.uint8]], count: int) -> NDArray[Any]:
    """Pictures of one size as they come: plain, or as JPEG where `count` of them plain would take `PLAIN_BYTES`.

    Returns:
        [K, H, W, 3] uint8, or [K] objects of bytes; only one plain picture at a time is held then.
    """
    first = next(frames, None)
    if first is None:
        return np.zeros((0, 1, 1, 3), np.uint8)
    rest = itertools.chain((first,), frames)
    if count * first.nbytes <= PLAIN_BYTES:
        return np.stack(list(rest))
    encoded = [encode_jpeg(f) for f in rest]
    return np.fromiter(encoded, object, len(encoded))


def count_frames(path: Path) -> int:
    """Frames of a video by its header, 0 where that does not say; nothing is decoded.

    Raises:
        LogError: the file is no video, or claims absurd sizes.
    """
    with _opened(path) as (_, stream):
        return int(stream.frames)


def read_video(path: Path, times_s: NDArray[np.float64], tolerance_s: float) -> NDArray[Any]:
    """The frames of a video nearest to K times, decoded in one pass: see `keep_pictures`.

    Raises:
        LogError: the file is no video, or has no frame within the tolerance of some time.
    """
    order = np.argsort(times_s, kind="stable")
    with _opened(path) as (container, stream):
        nearest = _nearest_frames(container, stream, times_s[order], tolerance_s, str(path))
        kept = keep_pictures(nearest, len(times_s))
    return kept[np.argsort(order, kind="stable")]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A video's container and stream; what goes wrong inside becomes a LogError."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # a stream whose codec is damaged has neither
            width, height = getattr(stream, "width", 0), getattr(stream, "height", 0)
            if not 0 < width * height <= MOST_PIXELS:
                raise LogError(
                    f"the video claims {width} x {height} pixels",
                    where=str(path),
                    next_step="copy the set again from its source",
                )
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError:
        raise LogError("the video is missing", where=str(path), next_step="copy the set again") from None
    except (av.FFmpegError, IndexError, OSError, ValueError) as e:
        raise LogError(
            f"the video cannot be decoded: {e}", where=str(path), next_step="copy it again from its source"
        ) from None


def _nearest_frames(
    container: Any, stream: Any, times_s: NDArray[np.float64], tolerance_s: float, where: str
) -> Iterator[NDArray[np.uint8]]:
    """The frame nearest to each of K ascending times; frames are converted only when they are given."""
    container.seek(int(max(times_s[0] - tolerance_s, 0) / float(stream.time_base or 1)), stream=stream, backward=True)
    given, image = None, np.zeros((0,), np.uint8)

    def pick(before: Any, after: Any, time_s: float) -> NDArray[np.uint8]:
        nonlocal given, image
        there = [f for f in (before, after) if f is not None]
        best = min(there, key=lambda f: abs(f.time - time_s), default=None)
        if best is None or abs(best.time - time_s) > tolerance_s:
            away = "" if best is None else f", the nearest is at {best.time:.4f} s"
            raise LogError(
                f"no frame at {time_s:.4f} s (tolerance {tolerance_s:g} s){away}",
                where=where,
                next_step="the set is truncated or mixed up: copy it again",
            )
        if best is not given:
            given, image = best, best.to_ndarray(format="rgb24")
        return image

    at, before = 0, None
    for frame in container.decode(stream):
        if frame.time is None:
            continue
        while at < len(times_s) and frame.time >= times_s[at]:
            yield pick(before, frame, float(times_s[at]))
            at += 1
        if at == len(times_s):
            return
        before = frame
    for time_s in times_s[at:]:
        yield pick(before, None, float(time_s))
