"""The form of a sealed file: its head, its nonces, its table of ends (see shards.py)."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable

MAGIC, VERSION = b"HAGANE\0S", 1
STRIDE = 65_536
"""Plaintext bytes of a record, unless a layout says otherwise."""
KEY, TAG, SHARD = 32, 16, 16
"""Bytes of a key, of a tag, of a shard id."""
HEAD = struct.Struct(">8sHHI16s32sQQ")
EVEN, TABLE = 0, 1
HEAD_NONCE, TABLE_NONCE = b"\xff" * 12, b"\xff" * 11 + b"\xfe"


def bytes_of(ends: Iterable[int]) -> bytes:
    """Numbers as little-endian unsigned integers of 8 bytes."""
    table = array("Q", ends)
    if sys.byteorder == "big":
        table.byteswap()
    return table.tobytes()


def numbers_of(data: bytes) -> array[int]:
    """The numbers of `bytes_of`."""
    table = array("Q")
    table.frombytes(data)
    if sys.byteorder == "big":
        table.byteswap()
    return table
