"""Order without memory: which sample stands at a position, as a pure function.

A Feistel network over the smallest even number of bits that holds n, with cycle-walking, is a permutation of
0..n-1 for any key (Luby and Rackoff, 1988; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). One
key an epoch gives epochs without replacement that can be entered anywhere.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_U64 = np.uint64


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: a bijection of 64-bit words that looks random (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> _U64(31)))


def word(*parts: object) -> np.uint64:
    """A 64-bit word from text and numbers, the same on every machine."""
    text = "\x1f".join(str(p) for p in parts).encode()
    return _U64(int.from_bytes(hashlib.sha256(text).digest()[:8], "little"))


def permute(index_N: NDArray[np.int64], size: int, key_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[N] images of indices in 0..size-1, each under its own key's permutation of 0..size-1.

    Raises:
        ValueError: size is not positive, or an index lies outside.
    """
    if size < 1 or (len(index_N) and not (int(index_N.min()) >= 0 and int(index_N.max()) < size)):
        raise ValueError(f"indices must lie in 0..{size - 1}")
    half = max((size - 1).bit_length() + 1, 2) // 2
    out = index_N.astype(_U64)
    left = np.arange(len(out))
    while len(left):
        out[left] = _feistel(out[left], half, key_N[left])
        # outside 0..size-1: walk on along the cycle, which must come back inside
        left = left[out[left] >= size]
    return out.astype(np.int64)


def positions(first: int, count: int, size: int, key: np.uint64) -> NDArray[np.int64]:
    """[count] samples in 0..size-1 at stream positions first, first + 1, ...: epoch after epoch, each a new order."""
    at = first + np.arange(count, dtype=np.int64)
    epoch, index = np.divmod(at, size)
    with np.errstate(over="ignore"):
        keys = mix(mix(epoch.astype(_U64) + _U64(1)) ^ key)
    return permute(index, size, keys)


def _feistel(x: NDArray[np.uint64], half: int, key_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask, shift = _U64((1 << half) - 1), _U64(half)
    left, right = x >> shift, x & mask
    with np.errstate(over="ignore"):
        for r in range(_ROUNDS):
            left, right = right, left ^ (mix(right + key_N + _U64(r) * _U64(0x9E3779B97F4A7C15)) & mask)
    return np.asarray((left << shift) | right)
