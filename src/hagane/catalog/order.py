"""Order without memory: which sample stands at a position, as a pure function.

A Feistel network over two digits whose bases multiply to just above n, with cycle-walking, is a permutation of
0..n-1 for any key (Luby and Rackoff, 1988; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). One
key an epoch gives epochs without replacement that can be entered anywhere.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_U64 = np.uint64
_ROUND_WORDS = [_U64((r * 0x9E3779B97F4A7C15) % 2**64) for r in range(1, _ROUNDS + 1)]


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: a bijection of 64-bit words that looks random (Steele et al., 2014)."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)  # arrays wrap around in silence
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
    low = math.isqrt(size - 1) + 1
    high = -(-size // low)
    out = index_N.astype(_U64)
    left = np.arange(len(out))
    while len(left):
        out[left] = _feistel(out[left], _U64(low), _U64(high), key_N[left])
        # beyond size (fewer than `low` numbers are): walk on along the cycle, which must come back inside
        left = left[out[left] >= size]
    return out.astype(np.int64)


def positions(first: int, count: int, size: int, key: np.uint64) -> NDArray[np.int64]:
    """[count] samples in 0..size-1 at stream positions first, first + 1, ...: epoch after epoch, each a new order."""
    at = first + np.arange(count, dtype=np.int64)
    epoch, index = np.divmod(at, size)
    keys = mix(mix(epoch.astype(_U64) + _U64(1)) ^ key)
    return permute(index, size, keys)


def _feistel(x: NDArray[np.uint64], low: np.uint64, high: np.uint64, key_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 0..low*high-1: the two digits of x take turns to be shifted by a hash of the other."""
    right, left = np.divmod(x, low)
    for r in range(0, _ROUNDS, 2):
        left = (left + mix(right + key_N + _ROUND_WORDS[r]) % low) % low
        right = (right + mix(left + key_N + _ROUND_WORDS[r + 1]) % high) % high
    return np.asarray(left + low * right)


class PoolOrder:
    """An order in which neighbours come from a pool of few episodes, so that each is opened once an epoch.

    In every epoch the episodes are permuted and cut into pools of `pool` of them, and the samples of a pool are
    permuted among themselves. A position's sample is still a pure function of (key, position).

    Args:
        episode_N: [N] ascending episode of each sample.
        pool: episodes in a pool.
        key: of the order.
    """

    def __init__(self, episode_N: NDArray[np.int64], pool: int, key: np.uint64) -> None:
        self._size, self._pool, self._key = len(episode_N), pool, key
        starts = np.flatnonzero(np.diff(episode_N, prepend=-1))
        self._first_E, self._count_E = starts, np.diff(np.append(starts, len(episode_N)))
        self._epoch = (-1, np.zeros(0, np.int64), np.zeros(0, np.int64))

    def at(self, first: int, count: int) -> NDArray[np.int64]:
        """[count] sample numbers at positions first .. first + count - 1."""
        out = []
        while count > 0:
            epoch, inside = divmod(first, self._size)
            take = min(count, self._size - inside)
            out.append(self._within(epoch, np.arange(inside, inside + take)))
            first, count = first + take, count - take
        return np.concatenate(out) if out else np.zeros(0, np.int64)

    def _within(self, epoch: int, at_N: NDArray[np.int64]) -> NDArray[np.int64]:
        order_E, begin_P = self._plan(epoch)
        pool_N = np.searchsorted(begin_P, at_N, side="right") - 1
        out = np.empty(len(at_N), np.int64)
        for p in np.unique(pool_N).tolist():
            members = order_E[p * self._pool : (p + 1) * self._pool]
            numbers = np.concatenate([self._first_E[e] + np.arange(self._count_E[e]) for e in members.tolist()])
            pick = pool_N == p
            key = np.full(int(pick.sum()), word(self._key, epoch, p), np.uint64)
            out[pick] = numbers[permute(at_N[pick] - begin_P[p], len(numbers), key)]
        return out

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episodes in this epoch's order, and the position at which each pool begins; kept for the last epoch."""
        plan = self._epoch
        if plan[0] != epoch:
            episodes = len(self._count_E)
            key = np.full(episodes, word(self._key, epoch), np.uint64)
            order_E = permute(np.arange(episodes), episodes, key)
            ends = np.cumsum(self._count_E[order_E])
            begin_P = np.concatenate([[0], ends[self._pool - 1 : -1 : self._pool]])
            plan = self._epoch = (epoch, order_E, begin_P)
        return plan[1], plan[2]
