"""What the tests of curation share: smooth made-up runs, quick runs of the demo's machines, and planted copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.motion import motion_of, scales
from hagane.catalog.signature import Signature, signature
from hagane.catalog.sketch import channel_stats
from hagane.demo.members import demonstrations
from hagane.intake.lerobot_sketch import sketch_rows
from hagane.terms import APPLIED, ChannelStats, Embodiment, Episode, Stream
from hagane.worlds import make

Change = Callable[[Episode], Episode]


@cache
def demos(world: str, count: int) -> tuple[Embodiment, tuple[Episode, ...]]:
    """Expert runs of a demo machine, as `hagane demo` records them; a seed each."""
    made = make(world)
    return made.embodiment, tuple(demonstrations(made, count))


def stats_of(machine: Embodiment, episodes: tuple[Episode, ...]) -> dict[str, ChannelStats]:
    """Statistics over whole episodes, as a catalog would give them."""
    out = {}
    for c in machine.channels():
        streams = [e.streams[c.name] for e in episodes if c.name in e.streams]
        if c.kind in ("vector", "set") and streams:
            out[c.name] = channel_stats(sketch_rows(np.concatenate([s.values[s.valid] for s in streams])))
    return out


def signatures(
    machine: Embodiment, episodes: tuple[Episode, ...], stats: Mapping[str, ChannelStats], dataset: str = "a"
) -> list[Signature]:
    scale_D = scales(machine, stats)
    return [signature(dataset, e, machine, motion_of(e, machine), scale_D) for e in episodes]


def changed(episode: Episode, change: Callable[[str, Stream], Stream], **more: Any) -> Episode:
    return replace(episode, streams={n: change(n, s) for n, s in episode.streams.items()}, **more)


def noisy(level: float, stats: Mapping[str, ChannelStats], rng: np.random.Generator) -> Change:
    """White noise on every value, `level` of the standard deviation of its column over the set."""

    def change(name: str, s: Stream) -> Stream:
        std = stats[name.removesuffix(APPLIED)].std if s.values.dtype != object else 0
        noise = rng.normal(size=s.values.shape) * std * level if s.values.dtype != object else 0
        return s if s.values.dtype == object else replace(s, values=(s.values + noise).astype(np.float32))

    return lambda e: changed(e, change)


def shifted(by_ns: int) -> Change:
    return lambda e: changed(e, lambda _, s: replace(s, times_ns=s.times_ns + by_ns))


def trimmed(front: float, back: float) -> Change:
    """Without parts of its beginning and end."""

    def trim(e: Episode) -> Episode:
        first, last = e.span_ns
        low, high = first + front * (last - first), last - back * (last - first)
        return changed(e, lambda _, s: _where(s, (s.times_ns >= low) & (s.times_ns <= high)))

    return trim


def resampled(factor: float) -> Change:
    """At another rate, by straight lines between samples."""

    def change(_: str, s: Stream) -> Stream:
        if len(s) < 2 or s.values.dtype == object:
            return s
        times = np.linspace(s.times_ns[0], s.times_ns[-1], int(len(s) * factor)).astype(np.int64)
        at = np.clip(np.searchsorted(s.times_ns, times, side="right") - 1, 0, len(s) - 2)
        part = (times - s.times_ns[at]) / (s.times_ns[at + 1] - s.times_ns[at])
        part = part.reshape(-1, *[1] * (s.values.ndim - 1))
        values = (s.values[at] * (1 - part) + s.values[at + 1] * part).astype(np.float32)
        return replace(s, times_ns=times, values=values, valid=s.valid[at])

    return lambda e: changed(e, change)


def _where(s: Stream, keep: NDArray[np.bool_]) -> Stream:
    return s if len(s) < 2 else replace(s, times_ns=s.times_ns[keep], values=s.values[keep], valid=s.valid[keep])


def reach(machine: Embodiment, number: int, steps: int = 60, tremor: float = 0.0) -> Episode:
    """A minimum-jerk reach of every vector column from one random place to another; commands follow the states."""
    rng = np.random.default_rng([number, 77])
    t = np.linspace(0, 1, steps)
    times = np.arange(steps, dtype=np.int64) * machine.step_ns
    path = 10 * t**3 - 15 * t**4 + 6 * t**5
    shake = tremor * np.sin(2 * np.pi * 6.0 * times / 1e9)

    def stream(columns: int, unit: tuple[str, ...]) -> Stream:
        begin, end = rng.normal(size=(2, columns))
        values = begin + path[:, None] * (end - begin) + shake[:, None]
        return Stream(times, values.astype(np.float32), np.ones(steps, bool), unit)

    streams = {c.name: stream(c.columns, c.unit) for c in machine.channels() if c.kind == "vector"}
    return Episode(f"{machine.name}/reach/{number:06d}", machine.name, streams, "reach", "success")
