"""Pictures in and out of bytes: JPEG through libjpeg-turbo, the rest (PNG, video) through PyAV.

An image stream holds its pictures plain ([N, H, W, 3] uint8) or as the log had them: [N] objects, each the bytes of
a JPEG or a PNG. Encoded pictures stay encoded until a sample needs them, so an hour of camera fits into memory.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.terms import LogError

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 1 << 26
"""A picture that claims more pixels is refused before a byte of it is decoded."""


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
        raise LogError(f"a picture cannot be read: {e}", where=where) from None
    if not 0 < height * width <= MOST_PIXELS:
        raise LogError(f"a picture claims {width} x {height} pixels", where=where)
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
        raise LogError("pictures of different sizes in one stream", where=where)
    return np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)


def decode_picture(data: bytes, where: str = "picture") -> NDArray[np.uint8]:
    """[H, W, 3] uint8 from the bytes of a still picture.

    Raises:
        LogError: they are no picture.
    """
    import av
    import simplejpeg

    if data.startswith((JPEG, PNG)):
        picture_size(data, where)
    try:
        if data.startswith(JPEG):
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
            return decoded
        with av.open(io.BytesIO(data)) as container:
            frame = next(iter(container.decode(video=0)))
            image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
            return image
    except (av.FFmpegError, StopIteration, IndexError, ValueError) as e:
        raise LogError(f"a picture cannot be decoded: {e}", where=where) from None


def read_video(path: Path, times_s: NDArray[np.float64], tolerance_s: float) -> NDArray[np.uint8]:
    """[K, H, W, 3] frames of a video nearest to K ascending times.

    Raises:
        LogError: the file is no video, or has no frame within the tolerance of some time.
    """
    import av

    stamps: list[float] = []
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first = max(float(times_s[0]) - tolerance_s, 0)
            container.seek(int(first / float(stream.time_base or 1)), stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < times_s[0] - tolerance_s:
                    continue
                if frame.time > times_s[-1] + tolerance_s:
                    break
                stamps.append(frame.time)
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError, OSError) as e:
        raise LogError(f"the video cannot be decoded: {e}", where=str(path)) from None
    if not frames:
        raise LogError(f"no frame between {times_s[0]:.3f} and {times_s[-1]:.3f} s", where=str(path))
    at = np.abs(np.asarray(stamps)[None] - times_s[:, None]).argmin(1)
    worst = float(np.abs(np.asarray(stamps)[at] - times_s).max())
    if worst > tolerance_s:
        raise LogError(f"a frame is {worst:.4f} s away from its time (tolerance {tolerance_s:g} s)", where=str(path))
    return np.stack([frames[i] for i in at])
