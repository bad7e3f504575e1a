"""Statistics that merge: moments by Chan's update, quantiles by a fixed-size digest, per column.

Averaging the quantiles of parts is wrong (a part of ten episodes would weigh as much as one of ten thousand, and
no average of q99 is a q99). A sketch keeps the distribution's shape instead, so parts, data sets and members can
be summed in any grouping.

Moments: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm", 1979. Quantiles: t-digest, Dunning and
Ertl, arXiv 1902.04023, with the log-odds scale (its k2), which is finest where q01 and q99 lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 1024
_EDGE = 1e-6
_BLOCK = 1 << 18
_VALUES = 1 << 17


@dataclass(frozen=True, eq=False)
class Sketch:
    """Statistics of C columns over any number of samples. Make with `sketch_rows`, add up with `merge`."""

    count: NDArray[np.int64]
    """[C] samples seen."""
    mean: NDArray[np.float64]
    """[C] mean; 0 without samples."""
    m2: NDArray[np.float64]
    """[C] sum of squared differences from the mean."""
    low: NDArray[np.float64]
    """[C] minimum; +inf without samples."""
    high: NDArray[np.float64]
    """[C] maximum; -inf without samples."""
    centre: NDArray[np.float64]
    """[C, bins] mean of the samples in each bin of the digest, ascending where weights are positive."""
    weight: NDArray[np.float64]
    """[C, bins] samples in each bin."""

    @property
    def std(self) -> NDArray[np.float64]:
        """[C] population standard deviation; 0 without samples."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))

    def quantile(self, q: float) -> NDArray[np.float64]:
        """[C] quantile of order q in [0, 1]; NaN without samples."""
        out = np.full(len(self.count), np.nan)
        for c, n in enumerate(self.count):
            if n == 0:
                continue
            keep = self.weight[c] > 0
            w = self.weight[c, keep]
            # sample k of n stands at k / (n - 1), as NumPy's quantile has it: exact while bins hold one sample
            middle = (np.cumsum(w) - w / 2 - 0.5) / max(w.sum() - 1, 1)
            at = np.concatenate([[0.0], middle, [1.0]])
            out[c] = np.interp(q, at, np.concatenate([[self.low[c]], self.centre[c, keep], [self.high[c]]]))
        return out


def empty_sketch(columns: int) -> Sketch:
    """A sketch of nothing."""
    zeros, inf = np.zeros(columns), np.full(columns, np.inf)
    bins = np.zeros((columns, _BINS))
    return Sketch(np.zeros(columns, np.int64), zeros, zeros.copy(), inf, -inf, bins, bins.copy())


def sketch_rows(rows: NDArray[Any]) -> Sketch:
    """Sketch of [N, C] samples; NaN entries are absent. Large inputs are taken in blocks of rows and of columns."""
    columns = rows.shape[1]
    total = empty_sketch(columns)
    for at in range(0, len(rows), _BLOCK):
        # columns are independent: a few at a time keep what is copied and sorted small
        block = rows[at : at + _BLOCK]
        step = max(1, _VALUES // max(len(block), 1))
        total = merge(
            total, _beside([_sketch_block(np.asarray(block[:, c : c + step])) for c in range(0, columns, step)])
        )
    return total


def _beside(parts: list[Sketch]) -> Sketch:
    """Sketches of different columns as one."""
    if len(parts) == 1:
        return parts[0]
    return Sketch(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Sketch)))


def sketch_pixels(images: Iterable[NDArray[np.uint8]]) -> Sketch:
    """Sketch of [height, width, 3] images per colour, over all pixels, in 0..255: exact, by counting levels."""
    counts = np.zeros((3, 256), np.int64)
    for image in images:
        for colour in range(3):
            counts[colour] += np.bincount(image[..., colour].ravel(), minlength=256)
    n = counts.sum(1)
    levels = np.arange(256.0)
    seen = counts > 0
    mean = counts @ levels / np.maximum(n, 1)
    m2 = (counts * (levels - mean[:, None]) ** 2).sum(1)
    low = np.where(seen, levels, np.inf).min(1)
    high = np.where(seen, levels, -np.inf).max(1)
    centre, weight = _compress(np.tile(levels, (3, 1)), counts.astype(np.float64))
    return Sketch(n, mean, m2, low, high, centre, weight)


def merge(a: Sketch, b: Sketch) -> Sketch:
    """The sketch of both sample sets together."""
    if not b.count.any():
        return a
    if not a.count.any():
        return b
    n = a.count + b.count
    safe = np.maximum(n, 1)
    step = b.mean - a.mean
    mean = a.mean + step * b.count / safe
    m2 = a.m2 + b.m2 + step**2 * a.count * b.count / safe
    # an empty side has mean 0, which must not move the other
    mean = np.where(a.count == 0, b.mean, np.where(b.count == 0, a.mean, mean))
    m2 = np.where(a.count == 0, b.m2, np.where(b.count == 0, a.m2, m2))
    centre = np.concatenate([a.centre, b.centre], 1)
    weight = np.concatenate([a.weight, b.weight], 1)
    centre, weight = _compress(np.where(weight > 0, centre, np.inf), weight)
    return Sketch(n, mean, m2, np.minimum(a.low, b.low), np.maximum(a.high, b.high), centre, weight)


def _sketch_block(rows: NDArray[Any]) -> Sketch:
    values = np.ascontiguousarray(rows.T)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    values.sort(axis=1)  # NaN goes last
    n = values.shape[1] - np.isnan(values).sum(1)
    columns = len(values)
    out = empty_sketch(columns)
    mean, m2, low, high = out.mean, out.m2, out.low, out.high
    for count in np.unique(n[n > 0]):
        # columns with equally many samples share their bins, so one pass serves them all
        those = np.flatnonzero(n == count)
        # all columns at once are a view, not a copy
        picked = values[:, :count] if len(those) == columns else values[those, :count]
        ordered = picked.astype(np.float64, copy=False)
        mean[those] = ordered.mean(1)
        apart = ordered - mean[those, None]
        m2[those] = np.einsum("cn,cn->c", apart, apart)
        low[those], high[those] = ordered[:, 0], ordered[:, -1]
        first, bins, sizes = _bins_of(int(count))
        out.centre[np.ix_(those, bins)] = np.add.reduceat(ordered, first, axis=1) / sizes
        out.weight[np.ix_(those, bins)] = sizes
    return Sketch(n.astype(np.int64), mean, m2, low, high, out.centre, out.weight)


def _bins_of(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """For `count` ordered samples: first sample of each used bin, the bins, and their sizes."""
    bin_of = _bin((np.arange(count) + 0.5) / count)
    bins, first, sizes = np.unique(bin_of, return_index=True, return_counts=True)
    return first.astype(np.int64), bins, sizes.astype(np.float64)


def _bin(order: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of a quantile order in 0..1: even steps of its log-odds."""
    q = np.clip(order, _EDGE, 1 - _EDGE)
    scale = np.log(q / (1 - q)) / (2 * np.log((1 - _EDGE) / _EDGE)) + 0.5
    return np.asarray(np.minimum((scale * _BINS).astype(np.int64), _BINS - 1))


def _compress(
    centre: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum [C, M] weighted points into [C, bins]; absent points have weight 0 and lie at +inf."""
    order = np.argsort(centre, axis=1, kind="stable")
    centre, weight = np.take_along_axis(centre, order, 1), np.take_along_axis(weight, order, 1)
    total = np.maximum(weight.sum(1, keepdims=True), 1e-300)
    bins = _bin((np.cumsum(weight, 1) - weight / 2) / total)
    flat = (bins + _BINS * np.arange(len(centre))[:, None]).ravel()
    size = len(centre) * _BINS
    mass = np.where(weight > 0, centre, 0) * weight
    sums = np.bincount(flat, mass.ravel(), size).reshape(len(centre), _BINS)
    weights = np.bincount(flat, weight.ravel(), size).reshape(len(centre), _BINS).astype(np.float64)
    return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0), weights
