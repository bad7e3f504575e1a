"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) of large byte strings, by whole rows of words.

A CRC is linear: the words of a message may be taken as L rows of K words, and all K columns carried through the rows
at once, each by "K words further" (two table look-ups a word); what is left is a message of K words. This runs at
about 1 GB/s in NumPy, so no compiled module is needed beside it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, lowest bit first
_WIDE, _NARROW = 4096, 64

Words = NDArray[np.uint32]


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of a byte string."""
    view = memoryview(data).cast("B")
    state, at = 0xFFFFFFFF, 0
    for columns in (_WIDE, _NARROW):
        rows = (len(view) - at) // (4 * columns)
        if rows > 1:
            words = np.frombuffer(view, "<u4", rows * columns, at).reshape(rows, columns)
            left = _fold(words, state).reshape(-1, _NARROW)
            state = _bytewise(_fold(left).tobytes(), 0)
            at += rows * columns * 4
    return _bytewise(view[at:], state) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """The checksum as TFRecord files store it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fold(words: Words, state: int = 0) -> Words:
    """[L, K] words to the [K] words whose checksum, begun at 0, is that of all of them, begun at `state`."""
    low, high = _further(4 * words.shape[1])
    carried = words[0].copy()
    carried[0] ^= np.uint32(state)
    for row in words[1:]:
        halves = carried.view("<u2")
        carried = low.take(halves[0::2]) ^ high.take(halves[1::2]) ^ row
    return np.asarray(carried, "<u4")


def _bytewise(data: bytes | memoryview, state: int) -> int:
    table = _byte_table()
    for byte in data:
        state = state >> 8 ^ table[(state ^ byte) & 255]
    return state


@cache
def _byte_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [v >> 1 ^ (_POLYNOMIAL if v & 1 else 0) for v in table]
    return table


@cache
def _further(count: int) -> tuple[Words, Words]:
    """What `count` zero bytes make of the lower and of the upper half of a state: two tables of 65,536 words."""
    images = np.array([_zeros(1 << bit, count) for bit in range(32)], "<u4")
    tables = []
    for half in (images[:16], images[16:]):
        table = np.zeros(1, "<u4")
        for image in half:
            table = np.concatenate([table, table ^ image])
        tables.append(table)
    return tables[0], tables[1]


def _zeros(state: int, count: int) -> int:
    """A state after `count` zero bytes, by repeated squaring of "one byte further"."""
    for power in range(count.bit_length()):
        if count >> power & 1:
            state = _apply(_power(power), state)
    return state


@cache
def _power(power: int) -> tuple[int, ...]:
    """Images of the 32 bits after 2^power zero bytes."""
    if power == 0:
        table = _byte_table()
        return tuple((1 << bit) >> 8 ^ table[(1 << bit) & 255] for bit in range(32))
    half = _power(power - 1)
    return tuple(_apply(half, image) for image in half)


def _apply(images: tuple[int, ...], state: int) -> int:
    out = 0
    for bit, image in enumerate(images):
        out ^= image if state >> bit & 1 else 0
    return out
