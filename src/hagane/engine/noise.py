"""Noise that is a function of (seed, step, sample id): the same however samples are spread over ranks.

A counter-based generator: SplitMix64's finaliser (Steele, Lea and Flood 2014) over a hashed counter, made normal
by the Box-Muller transform. No state, no order.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 finaliser: a bijection of 64 bits that passes avalanche tests."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, step: int, ids_N: NDArray[np.uint64], name: str, width: int) -> NDArray[np.float64]:
    """[N, width] numbers in (0, 1), one stream a `name`."""
    with np.errstate(over="ignore"):
        key = mix(np.array([seed], np.uint64) * GOLDEN + np.uint64(step))
        key = mix(key + np.uint64(zlib.crc32(name.encode())) * GOLDEN)
        base = mix(ids_N.astype(np.uint64) ^ key)[:, None]
        bits = mix(base + GOLDEN * (np.arange(width, dtype=np.uint64) + np.uint64(1)))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(seed: int, step: int, ids_N: NDArray[np.uint64], name: str, width: int) -> NDArray[np.float32]:
    """[N, width] standard normal numbers."""
    half = (width + 1) // 2
    u = uniform(seed, step, ids_N, name, 2 * half)
    radius = np.sqrt(-2.0 * np.log(u[:, :half]))
    angle = 2.0 * np.pi * u[:, half:]
    both = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), 1)
    return both[:, :width].astype(np.float32)
