"""Statistics in the shape that LeRobot keeps them: an episode's exactly, a whole set's from mergeable sketches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_layout import FRAME_FEATURES, Feature
from hagane.intake.lerobot_sketch import Sketch, empty_sketch, merge, sketch_pixels, sketch_rows

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
STATS = ("min", "max", "mean", "std", "count", *QUANTILES)
_BUFFER_VALUES = 8_000_000

Stats = dict[str, dict[str, NDArray[Any]]]
"""Feature, then statistic, to [width] (pictures: [3, 1, 1] in 0..1)."""


class StatsBuilder:
    """Collects the statistics of a set, one episode at a time.

    Rows that a feature "x.valid" marks as not valid do not count for "x". The peer's own averages quantiles over
    episodes and overflows on pictures (0.4.4); these are computed from the values.
    """

    def __init__(self, features: Mapping[str, Feature]) -> None:
        self._features = {**features, **FRAME_FEATURES}
        self._numeric = [n for n, f in self._features.items() if not f.is_picture and f.dtype != "string"]
        self._pictures = [n for n, f in self._features.items() if f.is_picture]
        self._total = empty_sketch(sum(self._features[n].width for n in self._numeric))
        self._colours = {n: empty_sketch(3) for n in self._pictures}
        self._waiting: list[NDArray[np.float64]] = []
        self._held = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> Stats:
        """Take an episode's columns ([K, width] or [K]); returns the episode's own statistics."""
        rows = np.concatenate([self._rows(columns, n) for n in self._numeric], 1)
        self._waiting.append(rows)
        self._held += rows.size
        if self._held > _BUFFER_VALUES:
            self._flush()
        out = self._split(_exact(rows))
        for name in self._pictures:
            if name in columns:
                one = sketch_pixels(columns[name])
                self._colours[name] = merge(self._colours[name], one)
                out[name] = _pictures(one)
        return out

    def total(self) -> Stats:
        """Statistics over all episodes so far."""
        self._flush()
        stats = {k: _finite(v) for k, v in _from_sketch(self._total).items()}
        out = self._split(stats)
        return out | {name: _pictures(s) for name, s in self._colours.items() if s.count.any()}

    def _flush(self) -> None:
        if self._waiting:
            self._total = merge(self._total, sketch_rows(np.concatenate(self._waiting)))
            self._waiting, self._held = [], 0

    def _rows(self, columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float64]:
        values = columns[name].reshape(len(columns[name]), -1).astype(np.float64)
        flags = columns.get(name + ".valid")
        if flags is not None:
            flags = flags.reshape(len(flags), -1)
            values = np.where(np.repeat(flags, values.shape[1] // flags.shape[1], 1), values, np.nan)
        return values

    def _split(self, stats: Mapping[str, NDArray[Any]]) -> Stats:
        out: Stats = {}
        at = 0
        for name in self._numeric:
            width = self._features[name].width
            out[name] = {k: v[at : at + width] for k, v in stats.items()}
            # one count a feature, as the peer has it
            out[name]["count"] = out[name]["count"].max(keepdims=True)
            at += width
        return out


def plain(stats: Stats) -> dict[str, dict[str, Any]]:
    """As JSON lists."""
    return {name: {k: v.tolist() for k, v in s.items()} for name, s in stats.items()}


def _exact(rows: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Statistics of [K, D] rows; NaN entries do not count; zeros where a column has none."""
    ordered = np.sort(rows, axis=0)
    count = (~np.isnan(rows)).sum(0)
    safe = np.maximum(count, 1)
    mean = np.nansum(rows, 0) / safe
    spread = np.sqrt(np.nansum((rows - mean) ** 2, 0) / safe)
    column = np.arange(rows.shape[1])
    out = {"min": ordered[0], "max": ordered[safe - 1, column], "mean": mean, "std": spread, "count": count}
    for name, q in QUANTILES.items():
        at = q * (safe - 1)
        low = at.astype(np.int64)
        high = np.minimum(low + 1, safe - 1)
        out[name] = ordered[low, column] + (at - low) * (ordered[high, column] - ordered[low, column])
    return {k: _finite(v) for k, v in out.items()}


def _from_sketch(s: Sketch) -> dict[str, NDArray[Any]]:
    out = {"min": s.low, "max": s.high, "mean": s.mean, "std": s.std, "count": s.count}
    return out | {name: s.quantile(q) for name, q in QUANTILES.items()}


def _pictures(s: Sketch) -> dict[str, NDArray[Any]]:
    stats = {k: v if k == "count" else v / 255.0 for k, v in _from_sketch(s).items()}
    count = stats.pop("count").max(keepdims=True)
    return {**{k: v.reshape(3, 1, 1) for k, v in stats.items()}, "count": count}


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isfinite(values), values, 0) if values.dtype.kind == "f" else values
