"""The movement of an episode as one matrix: its vector columns side by side on the control grid.

Between two valid samples the values run straight, so that a slow sensor gives no stairs. This is for judging
movements (smoothness, near-duplicates), never for training: it looks ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_grid import control_times
from hagane.intake.lerobot_rows import column_names
from hagane.terms import Channel, ChannelStats, Embodiment, Episode, Stream

MOVING = ("state", "pv")
"""Roles of observed channels that the machine itself moves."""


@dataclass(frozen=True, eq=False)
class Motion:
    """K control steps of D columns. A column without a valid sample is 0 throughout."""

    step_s: float
    """Seconds between two rows."""
    names: tuple[str, ...]
    """[D] column names, as in a LeRobot set; of a set of places "agents.mean.0" and "agents.count"."""
    values_KD: NDArray[np.float64]
    """[K, D] values in the channels' units; scaled ones have none."""
    state_D: NDArray[np.bool_]
    """[D] True for what the machine moves: vectors of role state or pv."""
    action_D: NDArray[np.bool_]
    """[D] True for commands."""


def motion_of(episode: Episode, embodiment: Embodiment) -> Motion:
    """Vectors, commands and summaries of sets; pictures and text are left out.

    Raises:
        LogError: the episode has no samples, or streams that do not fit the embodiment.
    """
    times_ns = control_times(episode, embodiment)
    acts = {c.name for c in embodiment.act}
    names: list[str] = []
    columns: list[NDArray[np.float64]] = []
    state: list[bool] = []
    action: list[bool] = []
    for channel in embodiment.channels():
        labels = column_labels(channel)
        if not labels:
            continue
        names += labels
        columns.append(_columns(episode.streams.get(channel.name), channel, times_ns))
        moves = channel.kind == "vector" and channel.role in MOVING and channel.name not in acts
        state += [moves] * len(labels)
        action += [channel.name in acts] * len(labels)
    values_KD = np.concatenate(columns, axis=1)
    return Motion(embodiment.step_ns / 1e9, tuple(names), values_KD, np.array(state, bool), np.array(action, bool))


def column_labels(channel: Channel) -> tuple[str, ...]:
    """Names of the columns that a channel has in a `Motion`; none for pictures and text."""
    if channel.kind == "vector":
        return column_names(channel)
    if channel.kind == "set":
        return (*(f"{channel.name}.mean.{k}" for k in range(channel.columns)), f"{channel.name}.count")
    return ()


def scales(embodiment: Embodiment, stats: Mapping[str, ChannelStats]) -> NDArray[np.float64]:
    """[D] what one column usually varies by over a data set, to compare columns of different units; 0 for constants.

    The standard deviation, unless single wild samples made it larger than half the span of q01 to q99.
    """
    out: list[float] = []
    for channel in embodiment.channels():
        labels = column_labels(channel)
        if not labels:
            continue
        s = stats.get(channel.name)
        if s is None:
            out += [0.0] * len(labels)
            continue
        half = (s.q99 - s.q01) / 2
        scale = np.where((half > 0) & (half < s.std), half, s.std)
        out += [*scale.tolist(), *([max(channel.places / 4, 1.0)] if channel.kind == "set" else [])]
    return np.array(out)


def _columns(stream: Stream | None, channel: Channel, times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    rows = list(_series(stream, channel)) if stream is not None and len(stream) else []
    if not rows:
        return np.zeros((len(times_ns), len(column_labels(channel))))
    assert stream is not None
    order = np.argsort(stream.times_ns, kind="stable")
    at = (times_ns - times_ns[0]).astype(np.float64)
    out = []
    for values, valid in rows:
        keep = order[valid[order]]
        known = (stream.times_ns[keep] - times_ns[0]).astype(np.float64)
        out.append(np.interp(at, known, values[keep]) if len(keep) else np.zeros(len(times_ns)))
    return np.stack(out, axis=1)


def _series(stream: Stream, channel: Channel) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Each column of a stream with the samples that count."""
    values = stream.values.astype(np.float64)
    if channel.kind == "vector":
        finite = stream.valid & np.isfinite(values).all(1)
        for k in range(channel.columns):
            yield values[:, k], finite
        return
    there = stream.valid & np.isfinite(values).all(2)
    count = there.sum(1)
    total = np.where(there[..., None], values, 0.0).sum(1)
    for k in range(channel.columns):
        yield total[:, k] / np.maximum(count, 1), count > 0
    yield count.astype(np.float64), np.ones(len(count), np.bool_)
