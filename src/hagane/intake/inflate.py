"""Inflate: compressed bytes of a log under a limit, so that a small file cannot take the machine's memory or disk.

What a block claims to inflate to is judged before a byte of it is inflated, and never is more inflated than it
claimed. Sensor data compress 2 to 20 times; what claims more than `MOST_RATIO` times its size, and more than
`ALWAYS_BYTES`, is a bomb or damage.
"""

from __future__ import annotations

import bz2
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hagane.terms import LogError

ALWAYS_BYTES = 64 << 20
"""Blocks of up to so much are inflated whatever their ratio: black pictures compress well."""
MOST_BYTES = 2 << 30
"""The largest block that is ever inflated into memory."""
MOST_RATIO = 200
_DEFLATE_BYTES = 64 << 20
"""A deflated block of a measurement file that claims more is refused: MDF asks for 4 MiB, BLF has 128 KiB."""
_DEFLATE_RATIO = 1032  # deflate cannot do better: zlib's technical notes
_STEP = 4096
"""Compressed bytes taken at once: a zstd block of 4 bytes may be 128 KiB of zeros, so this is 128 MiB at most."""
ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass
class Inflater:
    """Inflates the blocks of one file, and no more in all than a file of its size can mean.

    Args:
        file_bytes: size of the file.
        where: the file, for messages.
    """

    file_bytes: int
    where: str

    def __post_init__(self) -> None:
        self._left = max(16 * ALWAYS_BYTES, MOST_RATIO * self.file_bytes)

    def block(self, kind: str, data: bytes, claimed: int | None = None) -> bytes:
        """A block's bytes.

        Args:
            kind: "", "none", "zstd", "lz4" or "bz2".
            data: the block as it is stored.
            claimed: bytes it shall have; None takes what its own frame says.

        Raises:
            LogError: an unknown kind, damaged bytes, a claim beyond the limits, or another size than claimed.
        """
        if kind in ("", "none"):
            if claimed is not None and claimed != len(data):
                raise self._bad(f"a block claims {claimed} bytes and has {len(data)}")
            return data
        if kind not in ("zstd", "lz4", "bz2"):
            raise LogError(f"compressed as {kind!r}", where=self.where, next_step="zstd, lz4 and bz2 are read")
        told = claimed if claimed is not None else _frame_size(kind, data)
        most = min(most_from(len(data)), self._left) if told is None else told
        if most > min(most_from(len(data)), self._left):
            raise self._bad(f"a compressed block of {len(data)} bytes claims to hold {most}")
        open_block = _opener(kind)
        try:
            with open_block(io.BytesIO(data)) as reader:
                raw: bytes = reader.read(most + 1)
        except Exception as e:
            # each library has errors of its own for damaged bytes
            raise self._bad(f"a compressed block is damaged: {e}") from None
        if len(raw) > most or (told is not None and len(raw) != told):
            more = f"more than {most}" if len(raw) > most else f"{len(raw)}, not {told}"
            raise self._bad(f"a compressed block of {len(data)} bytes inflates to {more} bytes")
        self._left -= len(raw)
        return raw

    def _bad(self, what: str) -> LogError:
        return LogError(what, where=self.where, next_step="copy it again from the machine, or take it out")


def refuse_deflated(claimed: int, packed: int | None, what: str, where: str) -> None:
    """Refuse a deflated block of BLF or MDF by what it claims.

    Args:
        claimed: bytes that it says it inflates to.
        packed: bytes that it has; None when the file's end cuts it, so that they prove nothing.
        what: words for the block.
        where: the file.

    Raises:
        LogError: it claims more than deflate can make of its bytes, or than any tool writes.
    """
    if claimed > _DEFLATE_BYTES or (packed is not None and claimed > _DEFLATE_RATIO * packed + 64):
        raise LogError(
            f"{what} claims {claimed:,} bytes" + ("" if packed is None else f" out of {packed:,}"),
            where=where,
            next_step=f"no tool writes that (at most {_DEFLATE_BYTES:,}): the file is damaged or made to fill memory",
        )


def most_from(size: int) -> int:
    """Bytes that a block of `size` bytes may claim to hold."""
    return min(MOST_BYTES, max(ALWAYS_BYTES, MOST_RATIO * size))


def zstd_file(source: IO[bytes], size: int, where: str) -> Iterator[bytes]:
    """The bytes of a zstd file in blocks.

    Args:
        source: the open file.
        size: its bytes.
        where: the file, for messages.

    Raises:
        LogError: damaged, or larger than a file of its size can mean.
        EOFError: it ends before its frame does.
    """
    most = max(ALWAYS_BYTES, MOST_RATIO * size)
    told = _frame_size("zstd", source.read(64))
    source.seek(0)
    advice = "copy it again from the machine, or take it out"
    if told is not None and told > most:
        raise LogError(f"a compressed file of {size} bytes claims to hold {told}", where=where, next_step=advice)
    done, unpack = 0, None
    try:
        while data := source.read(_STEP):
            while data:
                unpack = unpack or _zstd().ZstdDecompressor().decompressobj()
                raw: bytes = unpack.decompress(data)
                done += len(raw)
                if done > most:
                    what = f"a compressed file of {size} bytes holds more than {most}"
                    raise LogError(what, where=where, next_step=advice)
                yield raw
                # one frame may follow another
                data, unpack = (unpack.unused_data, None) if unpack.eof else (b"", unpack)
    except _zstd().ZstdError as e:
        raise LogError(f"damaged zstd: {e}", where=where, next_step="copy it again from the machine") from None
    if unpack is not None:
        raise EOFError


def zstd_head(path: Path, size: int = 1 << 16) -> bytes:
    """First inflated bytes of a zstd file; b"" when it is none."""
    try:
        with path.open("rb") as f:
            if f.read(4) != ZSTD:
                return b""
            f.seek(0)
            return bytes(_zstd().ZstdDecompressor().stream_reader(f).read(size))
    except Exception:
        # no such file, no library, damaged bytes: not for us to say
        return b""


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError:
        raise LogError("inflating zstd needs zstandard", next_step='pip install "hagane[intake]"') from None
    return zstandard


def _frame_size(kind: str, data: bytes) -> int | None:
    """What the frame itself claims; None when it does not say."""
    if kind == "zstd":
        try:
            size = int(_zstd().frame_content_size(data))
        except _zstd().ZstdError:
            return None
        return size if size >= 0 else None
    return None


def _opener(kind: str) -> Callable[[IO[bytes]], Any]:
    """What opens a block of this kind for reading."""
    if kind == "zstd":
        unpack = _zstd().ZstdDecompressor()
        return lambda data: unpack.stream_reader(data, read_across_frames=True)
    if kind == "lz4":
        try:
            import lz4.frame
        except ImportError:
            raise LogError("inflating lz4 needs lz4", next_step='pip install "hagane[intake]"') from None
        return lambda data: lz4.frame.open(data)
    return lambda data: bz2.open(data)
