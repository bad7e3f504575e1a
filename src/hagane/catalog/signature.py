"""A small picture of an episode's movement, to find its copies: see `duplicates`.

A signature is a curve of 96 points by D columns (at most 64) in units of each column's usual spread, in half
precision: 8 KB for a machine of 43 columns, so those of 100,000 episodes fit in memory. Beside it stand digests of
what the streams hold, whatever the episode is called and whenever it was recorded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.motion import Motion
from hagane.terms import Embodiment, Episode, canonical_json, digest_value

POINTS = 96
MOST_COLUMNS = 64
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FEATURES = 64
CUTS = (
    (0.0, 1.0), (0.05, 1.0), (0.1, 1.0), (0.2, 1.0), (0.0, 0.95), (0.0, 0.9), (0.0, 0.8), (0.05, 0.95), (0.1, 0.9)
)  # fmt: skip
"""Parts of an episode whose features are kept: a copy that lost up to a fifth looks like one of them."""


@dataclass(frozen=True, eq=False)
class Signature:
    """What is kept of one episode."""

    dataset: str
    """Data set name."""
    id: str
    """Episode id."""
    source: str
    """Digest of the bytes the episode was read from."""
    streams: str
    """Digest of what its streams hold, times counted from the first sample."""
    layout: str
    """Digest of the machine's columns: only the same are compared."""
    seconds: float
    """Length of the curve."""
    curve_PD: NDArray[np.float16]
    """[POINTS, D] the movement, each column in units of its usual spread."""


def signature(
    dataset: str, episode: Episode, embodiment: Embodiment, motion: Motion, scale_D: NDArray[np.float64]
) -> Signature:
    """The signature of an episode.

    Args:
        dataset: name of its data set.
        episode: the episode.
        embodiment: its machine.
        motion: from `motion_of`.
        scale_D: [D] from `scales`, the same for all episodes that are to be compared.
    """
    safe_D = np.where(scale_D > 0, scale_D, 1.0)
    curve = _points(np.where(scale_D > 0, motion.values_KD / safe_D, 0.0))
    seconds = motion.step_s * (len(motion.values_KD) - 1)
    layout = digest_value([motion.names, [list(c.unit) for c in embodiment.channels()]])
    kept = np.clip(_narrow(curve), -6e4, 6e4).astype(np.float16)
    return Signature(dataset, episode.id, episode.digest, streams_digest(episode), layout, seconds, kept)


def streams_digest(episode: Episode) -> str:
    """sha256 of times (from the first sample), values and validity: the same for a copy under another name."""
    first = episode.span_ns[0]
    h = hashlib.sha256()
    for name in sorted(episode.streams):
        s = episode.streams[name]
        h.update(canonical_json([name, s.values.shape, s.unit]))
        h.update(np.ascontiguousarray(s.times_ns - first, "<i8").tobytes())
        if s.values.dtype == object:
            for v in s.values:
                h.update(hashlib.sha256(v if isinstance(v, bytes) else str(v).encode()).digest())
        else:
            h.update(np.ascontiguousarray(s.values).tobytes())
        h.update(np.ascontiguousarray(s.valid, np.bool_).tobytes())
    return h.hexdigest()


def features(curve_PD: NDArray[np.float32], begin: float, end: float) -> NDArray[np.float32]:
    """[64] a point for a part of a curve: quantiles of each column, which know no time and hardly feel noise."""
    part = np.sort(curve_PD[int(begin * POINTS) : int(np.ceil(end * POINTS))], axis=0)
    flat = part[[int(q * (len(part) - 1)) for q in _QUANTILES]].ravel()
    return np.asarray(flat @ _projection(len(flat), _FEATURES) / np.sqrt(len(flat)), np.float32)


def _points(rows_KD: NDArray[np.float64]) -> NDArray[np.float32]:
    """K rows as POINTS: averages of neighbours where there are more, straight lines where there are fewer."""
    count = len(rows_KD)
    if count > POINTS:
        total = np.concatenate([np.zeros((1, rows_KD.shape[1])), np.cumsum(rows_KD, axis=0)])
        edges = np.linspace(0, count, POINTS + 1)
        low = np.minimum(edges.astype(int), count - 1)
        at = total[low] + (edges - low)[:, None] * rows_KD[low]
        return np.asarray(np.diff(at, axis=0) * POINTS / count, np.float32)
    where = np.linspace(0, count - 1, POINTS)
    low = np.minimum(where.astype(int), max(count - 2, 0))
    part = (where - low)[:, None]
    return np.asarray(rows_KD[low] * (1 - part) + rows_KD[np.minimum(low + 1, count - 1)] * part, np.float32)


def _narrow(curve_PD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Machines of more than 64 columns: fixed random mixtures of them, which keep distances."""
    columns = curve_PD.shape[1]
    if columns <= MOST_COLUMNS:
        return curve_PD
    return np.asarray(curve_PD @ _projection(columns, MOST_COLUMNS) / np.sqrt(columns), np.float32)


_PROJECTIONS: dict[tuple[int, int], NDArray[np.float32]] = {}


def _projection(rows: int, columns: int) -> NDArray[np.float32]:
    if (rows, columns) not in _PROJECTIONS:
        draws = np.random.default_rng([rows, columns]).standard_normal((rows, columns))
        _PROJECTIONS[rows, columns] = draws.astype(np.float32)
    return _PROJECTIONS[rows, columns]
