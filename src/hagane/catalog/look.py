"""What a page shows of a data set, gathered while the doctor reads it: pictures, curves, distributions, ages.

Nothing here grows with the length of the data: pictures and curves are those of a few episodes, evenly spread;
distributions are mergeable sketches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_grid import Grid
from hagane.intake.lerobot_sketch import Sketch, empty_sketch, merge, sketch_rows
from hagane.intake.picture import JPEG, decode_picture, encode_jpeg
from hagane.terms import APPLIED, Channel, Embodiment, Episode, LogError, Stream

T = TypeVar("T")
EPISODES_SHOWN, EPISODES_PICTURED, PICTURES_EACH = 3, 4, 6
COLUMNS_SHOWN = 6
_THUMB_PX, _THUMB_QUALITY = 150, 72
_MOST_POINTS, _ALL_POINTS = 600, 150_000
_BUFFER = 200_000
_HOLE = 3.0  # periods


@dataclass(frozen=True, eq=False)
class Curve:
    """One stream of one episode, thinned to what a screen can show: each bucket keeps its lowest and highest."""

    stream: str
    """Stream name."""
    columns: tuple[int, ...]
    """Columns that are shown."""
    left_out: int
    """Columns that are not."""
    times_s: NDArray[np.float64]
    """[P] seconds from the start of the episode."""
    values: NDArray[np.float64]
    """[P, C], NaN where not valid."""
    gaps_s: tuple[tuple[float, float], ...]
    """Spans without a valid sample: holes, and runs of samples that are not valid."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One episode in curves."""

    episode: str
    """Episode id."""
    seconds: float
    """Length."""
    task: str
    """Instruction."""
    outcome: str
    """success, failure or ""."""
    curves: tuple[Curve, ...]
    """One a stream."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures of one camera in one episode."""

    episode: str
    """Episode id."""
    camera: str
    """Channel name."""
    pictures: tuple[tuple[float, bytes], ...]
    """(seconds, JPEG), evenly spread; no bytes where the picture cannot be decoded."""


class Look:
    """A watcher of the doctor.

    Args:
        embodiment: the machine.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self.cameras = [c for c in embodiment.observe if c.kind == "image"]
        self._numeric = [c for c in embodiment.channels() if c.kind in ("vector", "set")]
        drawn = sum(min(c.columns, COLUMNS_SHOWN) for c in self._numeric if c.kind == "vector") + len(embodiment.act)
        self._points = int(np.clip(_ALL_POINTS / (EPISODES_SHOWN * max(drawn, 1)), 60, _MOST_POINTS))
        self._shown, self._sheets = _Evenly[Shown](EPISODES_SHOWN), _Evenly[list[Sheet]](EPISODES_PICTURED)
        self._values = {c.name: _Buffered(c.columns) for c in self._numeric}
        self._ages = {c.name: _Buffered(1) for c in embodiment.channels() if c.kind != "text"}
        self._steps: dict[str, tuple[int, int]] = {}

    def add(self, episode: Episode, grid: Grid) -> None:
        """Take one episode."""
        if self._shown.wants():
            self._shown.put(self._curves(episode))
        if self.cameras and self._sheets.wants():
            self._sheets.put([s for c in self.cameras if (s := _sheet(episode, c)) is not None])
        for c in self._numeric:
            if c.name in episode.streams and len(episode.streams[c.name]):
                self._values[c.name].add(_valid_rows(episode.streams[c.name], c))
        for name, reading in {**grid.observe, **grid.command}.items():
            known = reading.valid.reshape(len(grid), -1).any(1)
            self._ages[name].add(reading.age_s[known][:, None])
            good, steps = self._steps.get(name, (0, 0))
            self._steps[name] = good + int(known.sum()), steps + len(grid)

    def shown(self) -> list[Shown]:
        """A few episodes as curves."""
        return self._shown.chosen()

    def sheets(self) -> list[Sheet]:
        """Pictures of a few episodes."""
        return [s for sheets in self._sheets.chosen() for s in sheets]

    def values(self) -> dict[str, Sketch]:
        """Distribution of every numeric channel's valid samples at native rate, by column."""
        return {name: b.total() for name, b in self._values.items()}

    def ages(self) -> dict[str, tuple[Sketch, float]]:
        """Age (seconds) of what is known of a channel at control times, and the share of steps that know it."""
        return {
            n: (b.total(), self._steps[n][0] / max(self._steps[n][1], 1))
            for n, b in self._ages.items()
            if n in self._steps
        }

    def _curves(self, episode: Episode) -> Shown:
        start_ns, end_ns = episode.span_ns
        curves = []
        for c in self.embodiment.channels():
            for name in (c.name, c.name + APPLIED):
                stream = episode.streams.get(name)
                if c.kind == "vector" and stream is not None and len(stream):
                    period_ns = 1e9 / (c.rate_hz or self.embodiment.rate_hz)
                    curves.append(_curve(name, stream, start_ns, period_ns, self._points))
        return Shown(episode.id, (end_ns - start_ns) / 1e9, episode.task, episode.outcome, tuple(curves))


def histogram(sketch: Sketch, column: int, bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[bins + 1] edges and [bins] shares of a sketch's column, from its 0.1% to its 99.9% quantile (what lies beyond
    is in the outer bins); empty arrays without samples."""
    if not sketch.count[column]:
        return np.zeros(0), np.zeros(0)
    low, high = (float(sketch.quantile(q)[column]) for q in (0.001, 0.999))
    if not high > low:
        low, high = low - 0.5 * max(abs(low), 1) * 1e-3, high + 0.5 * max(abs(high), 1) * 1e-3
    weight, centre = sketch.weight[column], sketch.centre[column]
    keep = weight > 0
    edges = np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(np.clip(centre[keep], low, high), edges, weights=weight[keep])
    return edges, counts / weight.sum()


class _Evenly(Generic[T]):
    """Keeps a few of a stream of unknown length, evenly spread: the distance doubles when twice as many are held."""

    def __init__(self, most: int) -> None:
        self.most, self._step, self._seen = most, 1, -1
        self._kept: list[tuple[int, T]] = []

    def wants(self) -> bool:
        """Whether the next item is to be put; call once for each."""
        self._seen += 1
        return self._seen % self._step == 0

    def put(self, item: T) -> None:
        """Keep it."""
        self._kept.append((self._seen, item))
        if len(self._kept) > 2 * self.most:
            self._step *= 2
            self._kept = [k for k in self._kept if k[0] % self._step == 0]

    def chosen(self) -> list[T]:
        """At most so many, the first one among them."""
        at = np.unique(np.linspace(0, len(self._kept) - 1, min(self.most, len(self._kept))).round().astype(int))
        return [self._kept[i][1] for i in at.tolist()]


class _Buffered:
    """A sketch that is fed in pieces of a useful size."""

    def __init__(self, columns: int) -> None:
        self._sketch, self._rows, self._held = empty_sketch(columns), list[NDArray[Any]](), 0

    def add(self, rows: NDArray[Any]) -> None:
        self._rows.append(rows)
        self._held += rows.size
        if self._held > _BUFFER:
            self.total()

    def total(self) -> Sketch:
        if self._rows:
            self._sketch = merge(self._sketch, sketch_rows(np.concatenate(self._rows).astype(np.float64)))
            self._rows, self._held = [], 0
        return self._sketch


def _valid_rows(stream: Stream, channel: Channel) -> NDArray[Any]:
    values = stream.values.reshape(len(stream), channel.places, channel.columns)
    rows = values[stream.valid.reshape(len(stream), -1)[:, : channel.places]]
    return np.where(np.isfinite(rows), rows, np.nan)


def _sheet(episode: Episode, camera: Channel) -> Sheet | None:
    stream = episode.streams.get(camera.name)
    if stream is None or not len(stream):
        return None
    start_ns = episode.span_ns[0]
    at = np.unique(np.linspace(0, len(stream) - 1, min(PICTURES_EACH, len(stream))).round().astype(int))
    pictures = tuple(((int(stream.times_ns[i]) - start_ns) / 1e9, _thumb(stream.values[i])) for i in at.tolist())
    return Sheet(episode.id, camera.name, pictures)


def _thumb(value: bytes | NDArray[np.uint8]) -> bytes:
    """A small JPEG of a picture; b"" when it cannot be decoded."""
    if isinstance(value, bytes):
        import simplejpeg

        try:
            if value.startswith(JPEG):
                value = np.asarray(simplejpeg.decode_jpeg(value, min_height=_THUMB_PX, min_width=1))
            else:
                value = decode_picture(value)
        except (LogError, ValueError):
            return b""
    every = max(1, round(value.shape[0] / _THUMB_PX))
    h, w = (n // every * every for n in value.shape[:2])
    mean = value[:h, :w].reshape(h // every, every, w // every, every, 3).mean((1, 3))
    return encode_jpeg(mean.astype(np.uint8), _THUMB_QUALITY)


def _curve(name: str, stream: Stream, start_ns: int, period_ns: float, points: int) -> Curve:
    values = stream.values.reshape(len(stream), -1)[:, :COLUMNS_SHOWN].astype(np.float64)
    values[~(stream.valid & np.isfinite(values).all(1))] = np.nan
    times_s = (stream.times_ns - start_ns) / 1e9
    gaps = _gaps(times_s, ~np.isnan(values[:, 0]), _HOLE * period_ns / 1e9)
    width = stream.values[0].size
    left_out = max(width - COLUMNS_SHOWN, 0)
    at_s, drawn = _thinned(times_s, values, points)
    # a point without values in each gap, so that no line is drawn across
    middles = np.array([(a + b) / 2 for a, b in gaps])
    places = np.searchsorted(at_s, middles)
    at_s, drawn = np.insert(at_s, places, middles), np.insert(drawn, places, np.nan, axis=0)
    return Curve(name, tuple(range(values.shape[1])), left_out, at_s, drawn, gaps)


def _gaps(times_s: NDArray[np.float64], good: NDArray[np.bool_], hole_s: float) -> tuple[tuple[float, float], ...]:
    """Spans between valid samples that are longer than a hole, or have samples in between that are not valid."""
    at = np.flatnonzero(good)
    if not len(at):
        return ((float(times_s[0]), float(times_s[-1])),)
    found = [(times_s[0], times_s[at[0]])] if at[0] > 0 else []
    cut = np.flatnonzero((np.diff(times_s[at]) > hole_s) | (np.diff(at) > 1))
    found += [(times_s[at[i]], times_s[at[i + 1]]) for i in cut.tolist()]
    found += [(times_s[at[-1]], times_s[-1])] if at[-1] < len(times_s) - 1 else []
    return tuple((float(a), float(b)) for a, b in found[:200])


def _thinned(
    times_s: NDArray[np.float64], values: NDArray[np.float64], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two points a bucket: the lower and the higher end, in the order in which they came. A bucket without a valid
    sample stays NaN."""
    if len(times_s) <= points:
        return times_s, values
    border = np.linspace(0, len(times_s), points // 2 + 1).astype(int)
    starts = border[:-1]
    empty = np.isnan(values)
    low = np.minimum.reduceat(np.where(empty, np.inf, values), starts)
    high = np.maximum.reduceat(np.where(empty, -np.inf, values), starts)
    none = np.isinf(low)
    low, high = np.where(none, np.nan, low), np.where(none, np.nan, high)
    rising = values[border[1:] - 1] >= values[starts]
    pair = np.stack([np.where(rising, low, high), np.where(rising, high, low)], 1)
    middle = (starts + border[1:] - 1) // 2
    at = np.stack([times_s[starts], np.maximum(times_s[middle], times_s[starts])], 1)
    return at.reshape(-1), pair.reshape(-1, values.shape[1])
