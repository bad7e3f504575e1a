"""Statistics in the shape that LeRobot keeps them: an episode's exactly, a whole set's from mergeable sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_layout import FRAME_FEATURES, Feature
from hagane.intake.lerobot_sketch import Sketch, empty_sketch, merge, sketch_pixels, sketch_rows
from hagane.intake.picture import decode_picture

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
STATS = ("min", "max", "mean", "std", "count", *QUANTILES)

Stats = dict[str, dict[str, NDArray[Any]]]
"""Feature, then statistic, to [width] (pictures: [3, 1, 1] in 0..1)."""


@dataclass(frozen=True, eq=False)
class StatsPart:
    """Statistics of some consecutive episodes of a set: made anywhere, added up in order by `StatsBuilder`."""

    episodes: tuple[Stats, ...]
    """Each episode's own, exact."""
    numbers: Sketch
    """All numeric features side by side, in the order of the features."""
    colours: Mapping[str, Sketch]
    """Pictures by feature, in 0..255."""


def stats_part(features: Mapping[str, Feature], episodes: Sequence[Mapping[str, NDArray[Any]]]) -> StatsPart:
    """Statistics of episodes given as columns ([K, width], [K], or pictures).

    Rows that a feature "x.valid" marks as not valid do not count for "x". The peer's own averages quantiles over
    episodes and overflows on pictures (0.4.4); these are computed from the values.
    """
    numeric = numeric_features(features)
    own: list[Stats] = []
    colours: dict[str, Sketch] = {}
    blocks = []
    for columns in episodes:
        rows = np.concatenate([_rows(columns, n) for n in numeric], 1)
        blocks.append(rows)
        out = _split(features, numeric, _exact(rows))
        for name in (n for n, f in features.items() if f.is_picture and n in columns):
            pictures = columns[name][columns[name + ".valid"]] if name + ".valid" in columns else columns[name]
            one = sketch_pixels(map(decode_picture, pictures) if pictures.dtype == object else pictures)
            colours[name] = merge(colours[name], one) if name in colours else one
            out[name] = _pictures(one)
        own.append(out)
    together = np.concatenate(blocks)
    blocks.clear()  # the largest thing here, twice
    return StatsPart(tuple(own), sketch_rows(together), colours)


def numeric_features(features: Mapping[str, Feature]) -> list[str]:
    """Names of the features that are numbers."""
    return [n for n, f in features.items() if not f.is_picture and f.dtype != "string"]


class StatsBuilder:
    """Adds up the statistics of a set, part by part and in order."""

    def __init__(self, features: Mapping[str, Feature]) -> None:
        self._features = dict(features)
        self._numeric = numeric_features(features)
        self._total = empty_sketch(sum(features[n].width for n in self._numeric))
        self._colours: dict[str, Sketch] = {}
        self._frames = empty_sketch(len(FRAME_FEATURES))

    def add(self, part: StatsPart) -> None:
        """Take a part."""
        self._total = merge(self._total, part.numbers)
        for name, sketch in part.colours.items():
            self._colours[name] = merge(self._colours[name], sketch) if name in self._colours else sketch

    def add_frames(self, columns: Mapping[str, NDArray[Any]]) -> Stats:
        """Take an episode's `FRAME_FEATURES`, which depend on where it lies in the set; returns their statistics."""
        rows = np.stack([columns[n].astype(np.float64) for n in FRAME_FEATURES], 1)
        self._frames = merge(self._frames, sketch_rows(rows))
        return _split(FRAME_FEATURES, list(FRAME_FEATURES), _exact(rows))

    def total(self) -> Stats:
        """Statistics over all episodes so far."""
        out: Stats = {}
        groups = ((self._features, self._numeric, self._total), (FRAME_FEATURES, list(FRAME_FEATURES), self._frames))
        for features, names, sketch in groups:
            out |= _split(features, names, {k: _finite(v) for k, v in _from_sketch(sketch).items()})
        return out | {name: _pictures(s) for name, s in self._colours.items() if s.count.any()}


def _rows(columns: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float64]:
    values = columns[name].reshape(len(columns[name]), -1).astype(np.float64)
    flags = columns.get(name + ".valid")
    if flags is not None:
        flags = flags.reshape(len(flags), -1)
        values = np.where(np.repeat(flags, values.shape[1] // flags.shape[1], 1), values, np.nan)
    return values


def _split(features: Mapping[str, Feature], names: Sequence[str], stats: Mapping[str, NDArray[Any]]) -> Stats:
    out: Stats = {}
    at = 0
    for name in names:
        width = features[name].width
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
    stats = {k: v if k == "count" else _finite(v / 255.0) for k, v in _from_sketch(s).items()}
    count = stats.pop("count").max(keepdims=True)
    return {**{k: v.reshape(3, 1, 1) for k, v in stats.items()}, "count": count}


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isfinite(values), values, 0) if values.dtype.kind == "f" else values
