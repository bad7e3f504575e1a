"""Sealed files read: any record alone, from a memory map (their form: shards.py)."""

from __future__ import annotations

import mmap
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hagane.seal.shard_form import (
    HEAD,
    HEAD_NONCE,
    MAGIC,
    TABLE,
    TABLE_NONCE,
    TAG,
    VERSION,
    numbers_of,
)
from hagane.terms import CorruptError, StoreError

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    Buffer = bytes | bytearray | memoryview


class SealedFile:
    """A sealed file, memory-mapped; made by `open_sealed`. Records may be read by several threads."""

    def __init__(self, path: Path, data: memoryview, key: bytes, *, shard: str = "", contract: str = "") -> None:
        self.path, self._data = path, data
        self._gcm = AESGCM(key)
        if len(data) < HEAD.size + TAG:
            raise self._damaged("it is cut")
        self._head = bytes(data[: HEAD.size])
        magic, version, kind, stride, shard_id, contract_id, size, count = HEAD.unpack(self._head)
        self.stride: int = stride
        """Bytes of a record of an even layout; 0 for uneven ones."""
        self.size: int = size
        """Bytes of the plaintext."""
        self.count: int = count
        """Records."""
        self.shard: str = shard_id.hex()
        """Shard id, 32 hex digits."""
        self.contract: str = contract_id.hex()
        """Digest of the contract under which it was sealed, 64 hex digits."""
        if magic != MAGIC or version != VERSION:
            raise self._damaged(f"it is no sealed file of version {VERSION}")
        self._unlock(HEAD_NONCE, data[HEAD.size : HEAD.size + TAG], self._head, "its head (or this is another key)")
        if (shard and shard != self.shard) or (contract and contract != self.contract):
            raise self._damaged("it is another shard, or was sealed under another contract, than the list says")
        self._base = HEAD.size + TAG
        self._ends: array[int] | None = self._read_table() if kind == TABLE else None
        if len(data) != self._base + self.size + TAG * self.count:
            raise self._damaged("it is cut, or something was added")

    def __len__(self) -> int:
        return self.count

    def span(self, i: int) -> tuple[int, int]:
        """First byte and end of record i in the plaintext.

        Raises:
            IndexError: no such record.
        """
        if not 0 <= i < self.count:
            raise IndexError(f"record {i} of {self.count}: {self.path}")
        if self._ends is not None:
            return (self._ends[i - 1] if i else 0), self._ends[i]
        return i * self.stride, min((i + 1) * self.stride, self.size)

    def record(self, i: int) -> bytes:
        """Plaintext of record i.

        Raises:
            CorruptError: these are not the bytes that were sealed here; names file and record.
            IndexError: no such record.
        """
        nonce, data = self._stored(i)
        try:
            return self._gcm.decrypt(nonce, data, self._head + nonce)
        except InvalidTag:
            raise self._damaged(f"record {i}") from None

    def into(self, i: int, buffer: Buffer) -> int:
        """Plaintext of record i into the beginning of a buffer, without another copy; returns its bytes.

        Raises:
            CorruptError, IndexError: as `record`; what is in the buffer then is not to be used.
            ValueError: the buffer is too short.
        """
        nonce, data = self._stored(i)
        view, size = memoryview(buffer).cast("B"), len(data) - TAG
        if len(view) < size:
            raise ValueError(f"record {i} has {size} bytes, the buffer {len(view)}")
        try:
            return self._gcm.decrypt_into(nonce, data, self._head + nonce, view[:size])
        except InvalidTag:
            raise self._damaged(f"record {i}") from None

    def fill(self, indices: Sequence[int], plaintext: Buffer) -> None:
        """Decrypt records of an even layout, each to its own place in a buffer as large as the plaintext.

        Raises:
            CorruptError: as `record`; what is in that record's place then is not to be used.
            IndexError: no such record.
            ValueError: an uneven layout, or a buffer of another size.
        """
        view, stride = memoryview(plaintext).cast("B"), self.stride
        if self._ends is not None or len(view) != self.size:
            raise ValueError(f"{len(view)} bytes are no place for the {self.size} of a file of even records")
        if len(indices) and not 0 <= min(indices) <= max(indices) < self.count:
            raise IndexError(f"records {min(indices)} to {max(indices)} of {self.count}: {self.path}")
        # names of this function's own: it is called for every few control steps of a pass over the data
        decrypt, data, head, base, width = self._gcm.decrypt_into, self._data, self._head, self._base, stride + TAG
        i = 0
        try:
            for i in indices:
                nonce, start, at = i.to_bytes(12, "big"), base + i * width, i * stride
                decrypt(nonce, data[start : start + width], head + nonce, view[at : at + stride])
        except InvalidTag:
            raise self._damaged(f"record {i}") from None

    def blocks(self) -> Iterator[bytes]:
        """All records in order.

        Raises:
            CorruptError: as `record`.
        """
        return map(self.record, range(self.count))

    def read(self) -> bytes:
        """The whole plaintext.

        Raises:
            CorruptError: as `record`.
        """
        return b"".join(self.blocks())

    def _stored(self, i: int) -> tuple[bytes, memoryview]:
        """Nonce and sealed bytes of record i."""
        first, end = self.span(i)
        at = self._base + first + TAG * i
        return i.to_bytes(12, "big"), self._data[at : at + end - first + TAG]

    def _read_table(self) -> array[int]:
        end = self._base + 8 * self.count + TAG
        if end > len(self._data):
            raise self._damaged("its table is cut")
        ends = numbers_of(self._unlock(TABLE_NONCE, self._data[self._base : end], self._head, "its table"))
        self._base = end
        return ends

    def _unlock(self, nonce: bytes, data: memoryview, more: bytes, what: str) -> bytes:
        try:
            return self._gcm.decrypt(nonce, data, more)
        except InvalidTag:
            raise self._damaged(what) from None

    def _damaged(self, what: str) -> CorruptError:
        return CorruptError(
            f"not the bytes that were sealed: {what}",
            where=str(self.path),
            next_step="restore the file from a copy, or bring the data in again",
        )


def open_sealed(path: Path, key: bytes, *, shard: str = "", contract: str = "") -> SealedFile:
    """Map a sealed file and check its head.

    Args:
        path: the file.
        key: its 32 bytes.
        shard: the shard id that it must have, hex; "" takes any.
        contract: the contract that it must be sealed under, hex; "" takes any.

    Raises:
        CorruptError: another key, shard or contract; a cut or changed file.
        StoreError: it cannot be read.
    """
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            data = memoryview(mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
    except OSError as e:
        raise StoreError(f"the sealed file cannot be read: {e.strerror}", where=str(path)) from None
    return SealedFile(path, data, key, shard=shard, contract=contract)
