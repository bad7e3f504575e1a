"""Packing: samples of different lengths side by side in rows of a fixed token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Packing:
    """Where every token of a batch lies in rows [R, T]; M is the number of real tokens.

    Tokens are counted part by part, sample by sample.
    """

    rows: int
    """R."""
    tokens: int
    """T: token budget of a row."""
    place_M: NDArray[np.int64]
    """[M] index into the flattened rows [R * T]."""
    segment_RT: NDArray[np.int64]
    """[R, T] number of the sample that a place belongs to; -1 - place for padding (which sees only itself)."""


@lru_cache(maxsize=64)
def pack(counts: tuple[int, ...], lengths: tuple[int, ...], budget: int) -> Packing:
    """Pack counts[i] samples of lengths[i] tokens, longest first, each into the first row with room.

    The plan depends only on its arguments, so shapes are static while the mixture is.
    """
    tokens = max(budget, *lengths)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    free: list[int] = []
    start: list[list[int]] = [[] for _ in lengths]
    for part in order:
        row = 0
        for _ in range(counts[part]):
            while row < len(free) and free[row] < lengths[part]:
                row += 1
            if row == len(free):
                free.append(tokens)
            start[part].append(row * tokens + tokens - free[row])
            free[row] -= lengths[part]
    places = [np.add.outer(np.array(s, np.int64), np.arange(n)) for s, n in zip(start, lengths, strict=True)]
    segment = -1 - np.arange(len(free) * tokens)
    sample = 0
    for place in places:
        if place.size:
            segment[place] = sample + np.arange(len(place))[:, None]
        sample += len(place)
    flat: Sequence[NDArray[np.int64]] = [p.reshape(-1) for p in places]
    return Packing(len(free), tokens, np.concatenate(flat), segment.reshape(len(free), tokens))
