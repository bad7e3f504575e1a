"""An episode on its machine's control grid: what was known at each control time, how old it was, and if it counts.

Alignment is causal by default (latest before). Nothing is silently carried forward: the age travels with the
value, and a value older than the channel's `max_age_s` is not valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.picture import picture_size
from hagane.terms import APPLIED, Channel, Embodiment, Episode, LogError, Reading, Stream

JITTER = 0.05
"""Part of a control step by which a stamp may lie after its control time (rounded stamps) and still belong to it."""
_LEAD_STEPS = 10
_MOST_STEPS = 10_000_000


@dataclass(frozen=True, eq=False)
class Grid:
    """K control steps of one episode; every Reading has K rows. Values are 0 where not valid.

    Encoded pictures stay so: values [K] of bytes, b"" where not valid.
    """

    times_ns: NDArray[np.int64]
    """[K] control times."""
    observe: Mapping[str, Reading]
    """Observed channels by name, without text."""
    command: Mapping[str, Reading]
    """Commands by action channel; not valid where the log has none. Between commands the last one holds."""
    applied: Mapping[str, Reading]
    """What the actuators did, by action channel; the command where the log does not say."""

    def __len__(self) -> int:
        return len(self.times_ns)


def align(episode: Episode, embodiment: Embodiment) -> Grid:
    """Put every stream of an episode on the control grid of its machine.

    The grid runs in phase with the commands where there are any, so that the command of step k is the one given
    at control time k. Streams that the embodiment does not know are ignored.

    Raises:
        LogError: no samples at all, or a stream whose shape is not its channel's.
    """
    times_ns = control_times(episode, embodiment)
    step_ns = embodiment.step_ns
    observe, command, applied = {}, {}, {}
    for channel in embodiment.observe:
        if channel.kind != "text":
            observe[channel.name] = _observed(episode.streams.get(channel.name), channel, times_ns, step_ns)
    for channel in embodiment.act:
        given = episode.streams.get(channel.name)
        done = episode.streams.get(channel.name + APPLIED)
        command[channel.name] = _acted(given, channel, times_ns, step_ns)
        applied[channel.name] = command[channel.name] if done is None else _acted(done, channel, times_ns, step_ns)
    return Grid(times_ns, observe, command, applied)


def control_times(episode: Episode, embodiment: Embodiment) -> NDArray[np.int64]:
    """[K] control times of an episode, in nanoseconds. Cheap: it also tells whether `align` will succeed.

    Raises:
        LogError: no sample of any channel, a stream whose shape is not its channel's, or a span of more steps
            than any log can have.
    """
    for channel in embodiment.channels():
        for name in (channel.name, channel.name + APPLIED):
            if name in episode.streams and channel.kind != "text":
                _check(episode, channel, name)
    step_ns = embodiment.step_ns
    known = {c.name for c in embodiment.channels()} | {c.name + APPLIED for c in embodiment.act}
    streams = [s for name, s in episode.streams.items() if name in known and len(s)]
    if not streams:
        raise LogError(
            "the episode has no sample of any channel",
            where=episode.id,
            next_step="check the channels' source, or take the log out",
        )
    first = min(int(s.times_ns.min()) for s in streams)
    last = max(int(s.times_ns.max()) for s in streams)
    given = [episode.streams[c.name] for c in embodiment.act if len(episode.streams.get(c.name, ()))]
    if given:
        # control begins with the first command; a sensor's older sample must not open steps of its own
        began = min(int(s.times_ns.min()) for s in given)
        lead = (began - first) // step_ns
        first = began if lead <= _LEAD_STEPS else began - lead * step_ns
    count = (last - first + _slack(step_ns)) // step_ns + 1
    if count > _MOST_STEPS:
        raise LogError(
            f"spans {count} control steps: its clock cannot be right",
            where=episode.id,
            next_step="repair its time stamps, or take the log out",
        )
    return np.asarray(first + step_ns * np.arange(max(count, 1), dtype=np.int64))


def instruction(episode: Episode, embodiment: Embodiment) -> str:
    """The episode's instruction: its task, or the first text of a text channel, or ""."""
    if episode.task:
        return episode.task
    for channel in embodiment.observe:
        stream = episode.streams.get(channel.name)
        if channel.kind == "text" and stream is not None and len(stream):
            return str(stream.values[0])
    return ""


def _slack(step_ns: int) -> int:
    return int(step_ns * JITTER)


def _check(episode: Episode, channel: Channel, name: str) -> None:
    stream = episode.streams[name]
    if channel.kind == "image" and stream.values.dtype == object:
        for data in stream.values[:1]:
            if picture_size(data, f"{episode.id} {name}") != channel.shape[:2]:
                found = "x".join(map(str, picture_size(data)))
                raise LogError(
                    f"pictures of {found}, the channel has {channel.shape[0]}x{channel.shape[1]}",
                    where=f"{episode.id} {name}",
                )
        return
    flags = (channel.places,) if channel.kind == "set" else ()
    if stream.values.shape[1:] != channel.shape or stream.valid.shape[1:] != flags:
        raise LogError(
            f"values of shape {stream.values.shape[1:]} with flags {stream.valid.shape[1:]}, "
            f"the channel has {channel.shape} with {flags}",
            where=f"{episode.id} {name}",
        )


def _empty(channel: Channel, count: int) -> Reading:
    if channel.kind == "image":  # no picture at all costs no memory
        return Reading(np.full(count, b"", object), np.zeros(count, np.bool_), np.zeros(count, np.float32))
    dtype = np.float32
    flags = (count, channel.places) if channel.kind == "set" else (count,)
    return Reading(np.zeros((count, *channel.shape), dtype), np.zeros(flags, np.bool_), np.zeros(count, np.float32))


def _sorted(stream: Stream, channel: Channel) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.bool_]]:
    """Times in order, values, and flags that are False for non-finite values too."""
    times, values, valid = stream.times_ns, stream.values, stream.valid
    if channel.kind != "image":
        valid = valid & np.isfinite(values).all(-1)
    if len(times) > 1 and bool((np.diff(times) < 0).any()):
        order = np.argsort(times, kind="stable")
        times, values, valid = times[order], values[order], valid[order]
    return times, values, valid


def _observed(stream: Stream | None, channel: Channel, times_ns: NDArray[np.int64], step_ns: int) -> Reading:
    if stream is None or not len(stream):
        return _empty(channel, len(times_ns))
    times, values, valid = _sorted(stream, channel)
    if channel.kind != "set":
        # the last good reading stands, and its age says how long ago; a set is always taken as a whole
        times, values, valid = times[valid], values[valid], valid[valid]
        if not len(times):
            return _empty(channel, len(times_ns))
    reading = _pick(times, values, valid, channel, times_ns, step_ns)
    if channel.max_age_s > 0:
        fresh = reading.age_s <= channel.max_age_s + JITTER * step_ns / 1e9
        reading = _masked(reading, fresh)
    return reading


def _acted(stream: Stream | None, channel: Channel, times_ns: NDArray[np.int64], step_ns: int) -> Reading:
    if stream is None or not len(stream):
        return _empty(channel, len(times_ns))
    times, values, valid = _sorted(stream, channel)
    reading = _pick(times, values, valid, channel, times_ns, step_ns)
    usable = times_ns < times[-1] + step_ns - _slack(step_ns)
    if channel.max_age_s > 0:
        usable &= reading.age_s <= channel.max_age_s + JITTER * step_ns / 1e9
    return _masked(reading, usable)


def _pick(
    times: NDArray[np.int64],
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    channel: Channel,
    times_ns: NDArray[np.int64],
    step_ns: int,
) -> Reading:
    """Latest before, nearest, or linear between valid neighbours; rows before the first sample are not valid."""
    after = np.searchsorted(times, times_ns + _slack(step_ns), side="right")
    index, known = np.maximum(after - 1, 0), after > 0
    if channel.align == "nearest":
        later = np.minimum(after, len(times) - 1)
        index = np.where(np.abs(times[later] - times_ns) < np.abs(times[index] - times_ns), later, index)
        known = np.ones(len(times_ns), np.bool_)
    # a delayed reading arrives stamped with its arrival: it was true `delay_s` before
    late_s = np.maximum(times_ns - times[index], 0) / 1e9 + channel.delay_s
    flags = valid[index]
    rows = values[index]
    if channel.align == "linear" and channel.kind == "vector" and len(times) > 1:
        rows = _between(times, values, index, times_ns)
    reading = Reading(_as_channel(rows, channel), flags, np.where(known, late_s, 0).astype(np.float32))
    return _masked(reading, known)


def _between(
    times: NDArray[np.int64], values: NDArray[Any], index: NDArray[np.int64], times_ns: NDArray[np.int64]
) -> NDArray[Any]:
    later = np.minimum(index + 1, len(times) - 1)
    gap = np.maximum(times[later] - times[index], 1)
    part = np.clip((times_ns - times[index]) / gap, 0, 1)[:, None]
    mixed: NDArray[Any] = values[index] * (1 - part) + values[later] * part
    # a neighbour without a value must not poison the other
    return np.where(np.isfinite(mixed), mixed, values[index])


def _as_channel(rows: NDArray[Any], channel: Channel) -> NDArray[Any]:
    return (
        rows if rows.dtype == object else rows.astype(np.uint8 if channel.kind == "image" else np.float32, copy=False)
    )


def _masked(reading: Reading, keep_K: NDArray[np.bool_]) -> Reading:
    """The reading with some rows made invalid, and zeros wherever it is not valid."""
    valid = reading.valid & keep_K.reshape(-1, *[1] * (reading.valid.ndim - 1))
    mask = valid.reshape(valid.shape + (1,) * (reading.values.ndim - valid.ndim))
    nothing = np.array(b"", object) if reading.values.dtype == object else np.zeros((), reading.values.dtype)
    values = np.where(mask, reading.values, nothing)
    return Reading(values, valid, reading.age_s)
