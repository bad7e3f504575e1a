"""Sealed files: records under AES-256-GCM (NIST SP 800-38D), each readable alone from a memory map.

    head    80 bytes: magic, version, kind of layout, stride, shard id, contract, plaintext size, records
    tag     16 bytes: authenticates the head (GCM without plaintext), so a file of no record is one too
    table   only for records of uneven length: the end of each in the plaintext, sealed as one record
    records ciphertext and 16 bytes of tag each, end to end

Every file has a key of its own, so the number of a record is a nonce that never repeats; the two highest numbers are
those of the head and of the table. Additional data of a record: the head and its number.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hagane.seal.shard_form import (
    EVEN,
    HEAD,
    HEAD_NONCE,
    MAGIC,
    SHARD,
    STRIDE,
    TABLE,
    TABLE_NONCE,
    VERSION,
    bytes_of,
)
from hagane.terms import StoreError
from hagane.terms.files import write_whole

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    Buffer = bytes | bytearray | memoryview

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How a file's plaintext is cut into records."""

    stride: int = STRIDE
    """Bytes of every record but the last, which may be shorter."""
    sizes: Sequence[int] | None = None
    """Bytes of each record, where they are uneven (pictures); `stride` then says nothing."""


@dataclass(frozen=True)
class Ciphertext:
    """What was written: enough to check the file without a key."""

    sha256: str
    """Of the whole sealed file, hex."""
    bytes: int
    """Of the whole sealed file."""


def seal_bytes_to(
    target: Path, source: bytes | Path | BinaryIO, key: bytes, shard: str, contract: str, layout: Layout | None = None
) -> Ciphertext:
    """Seal a file's plaintext; the target is whole or absent, and no plaintext is written.

    Args:
        target: the file to write.
        source: the plaintext, a file, or an open file (read from where it stands).
        key: 32 fresh bytes, never used for another file: with the same key twice, GCM gives everything away.
        shard: id of this file, 32 hex digits.
        contract: sha256 of the contract that it lies under, 64 hex digits.
        layout: how it is cut into records; default even records of `STRIDE` bytes.

    Raises:
        StoreError: the source cannot be read, changes meanwhile or is not of the layout; the disk refuses.
    """
    digest, written = hashlib.sha256(), 0

    def counted(blocks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal written
        for block in blocks:
            digest.update(block)
            written += len(block)
            yield block

    try:
        if isinstance(source, Path):
            with source.open("rb") as f:
                size = os.fstat(f.fileno()).st_size
                write_whole(target, counted(_sealed(f.read, size, key, shard, contract, layout or Layout())))
        else:
            read, size = _reader(source)
            write_whole(target, counted(_sealed(read, size, key, shard, contract, layout or Layout())))
    except OSError as e:
        raise StoreError(f"cannot be sealed: {e.strerror}", where=str(e.filename or target)) from None
    except _Uneven as e:
        raise StoreError(f"cannot be sealed: {e}", where=str(target)) from None
    return Ciphertext(digest.hexdigest(), written)


class _Uneven(Exception):
    """The source is not what its size or its layout said."""


def _sealed(
    read: Callable[[int], bytes], size: int, key: bytes, shard: str, contract: str, layout: Layout
) -> Iterator[bytes]:
    """The blocks of a sealed file."""
    sizes = layout.sizes
    if not 0 < layout.stride < 1 << 32 or (sizes is not None and (sum(sizes) != size or min(sizes, default=0) < 0)):
        raise _Uneven("the records of the layout are not the file")
    count = -(-size // layout.stride) if sizes is None else len(sizes)
    kind, stride = (EVEN, layout.stride) if sizes is None else (TABLE, 0)
    gcm, ids = AESGCM(key), (bytes.fromhex(shard), bytes.fromhex(contract))
    if len(ids[0]) != SHARD or len(ids[1]) != hashlib.sha256().digest_size:
        raise ValueError(f"a shard id has 32 hex digits and a contract 64, not {shard!r} and {contract!r}")
    head = HEAD.pack(MAGIC, VERSION, kind, stride, *ids, size, count)
    yield head + gcm.encrypt(HEAD_NONCE, b"", head)
    if sizes is not None:
        yield gcm.encrypt(TABLE_NONCE, bytes_of(itertools.accumulate(sizes)), head)
    kept, waiting = [], 0
    for i in range(count):
        want = sizes[i] if sizes is not None else min(layout.stride, size - i * layout.stride)
        data = _exactly(read, want)
        nonce = i.to_bytes(12, "big")
        kept.append(gcm.encrypt(nonce, data, head + nonce))
        waiting += want
        if waiting >= _BLOCK:
            yield b"".join(kept)
            kept, waiting = [], 0
    yield b"".join(kept)
    if read(1):
        raise _Uneven("the file grew meanwhile")


def _reader(source: bytes | BinaryIO) -> tuple[Callable[[int], bytes], int]:
    if not isinstance(source, bytes):
        return source.read, os.fstat(source.fileno()).st_size - source.tell()
    at, view = 0, memoryview(source)

    def read(n: int) -> bytes:
        nonlocal at
        at += n
        return bytes(view[at - n : at])

    return read, len(source)


def _exactly(read: Callable[[int], bytes], n: int) -> bytes:
    data = read(n)
    while len(data) < n:
        if not (more := read(n - len(data))):
            raise _Uneven("the file became shorter meanwhile")
        data += more
    return data
