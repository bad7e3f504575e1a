"""MDF measurements (ASAM MDF 4, and version 3) into Episodes, one file an episode; read through asammdf.

Sources are channel names, "Speed" or "Group.Speed": the group by its acquisition name or comment, or by its number
("#3.Speed"), which is needed where several groups hold the name. A stream keeps the times of its first column's
group; other groups match by nearest time. Values are physical by the file's own conversions; a value table of words
gives its raw numbers, as a DBC's does. Invalidation bits make samples invalid.
Raw CAN traffic that a file has logged (CAN_DataFrame) is decoded with a DBC, as in `hagane.intake.can`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hagane.intake.can import dbc_beside, episodes_of
from hagane.intake.can_dbc import load_dbc
from hagane.intake.files import head_of
from hagane.intake.mdf_bus import holds_can, recording_of
from hagane.intake.mdf_file import Measurement, Place, opened
from hagane.intake.mdf_guard import cut_of, looks_like_mdf
from hagane.intake.options import Options
from hagane.intake.sources import column_sources, nearest, set_sources, units_of
from hagane.intake.streams import nearest_within, on_episode_clock, unmapped, with_cut
from hagane.terms import Channel, Embodiment, Episode, Finding, LogError, Stream, digest_file


def sniff(path: Path) -> bool:
    """True for a file that begins as MDF does."""
    return looks_like_mdf(head_of(path, 8))


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episode of an MDF file, or the episodes of the CAN traffic in it.

    Raises:
        LogError: damaged, cut (unless `keep_whole` and asammdf can still read it), a source that the file lacks or
            that several groups hold, or asammdf is not installed.
    """
    cut = cut_of(path)
    if cut and not options.keep_whole:
        raise LogError(
            f"truncated file: {cut}",
            where=str(path),
            next_step="copy it again, or pass --keep-whole to take what lies whole before the cut",
        )
    with opened(path, cut) as file:
        measured = Measurement(path, file, options.timezone, cut)
        if _asks_for_signals(measured, embodiment) or not holds_can(measured):
            return iter((_episode(measured, embodiment, options.task),))
        recording = recording_of(measured)
    definitions = load_dbc(options.dbc or dbc_beside(path))
    return episodes_of(recording, path, embodiment, options, definitions)


def _sources(channel: Channel) -> tuple[tuple[str, ...], ...]:
    return set_sources(channel) if channel.kind == "set" else (column_sources(channel),)


def _asks_for_signals(measured: Measurement, embodiment: Embodiment) -> bool:
    """Whether the file has at least one source of the embodiment as a channel of its own."""
    channels = [c for c in embodiment.channels() if c.kind in ("vector", "set")]
    return any(measured.find(s, str(measured.path)) for c in channels for row in _sources(c) for s in row)


def _episode(measured: Measurement, embodiment: Embodiment, task: str) -> Episode:
    streams: dict[str, Stream] = {}
    name = measured.path.stem
    findings: list[Finding] = []
    channels = [c for c in embodiment.channels() if c.kind in ("vector", "set")]
    places = {c.name: _places(measured, c) for c in channels}
    measured.load(place for found in places.values() for place in found)
    for channel in channels:
        stream = _stream(measured, channel, places[channel.name])
        if stream is not None:
            streams[channel.name] = stream
        else:
            findings.append(unmapped(name, channel.name, "the file has no samples of it"))
    if not streams:
        wanted = [s for c in embodiment.channels() if c.kind == "vector" for s in column_sources(c)]
        raise LogError(
            f"none of the channels asked for is in the file: {', '.join(wanted[:5])}",
            where=str(measured.path),
            next_step=f"set the channels' source; {nearest(wanted[0] if wanted else '', measured.file.channels_db)}",
        )
    digest = digest_file(measured.path)
    episode = Episode(name, embodiment.name, streams, task, digest=digest, findings=tuple(findings))
    return with_cut(on_episode_clock(episode), measured.cut)


def _places(measured: Measurement, channel: Channel) -> list[Place]:
    """Where the columns of a channel are; none when the file lacks one that no source asks for."""
    where = f"{measured.path}, channel {channel.name!r}"
    places: list[Place] = []
    for source in (s for row in _sources(channel) for s in row):
        place = measured.find(source, where)
        if place is None and channel.source:
            raise LogError(
                f"the file has no channel {source!r}",
                where=where,
                next_step=nearest(source.rpartition(".")[2], measured.file.channels_db),
            )
        if place is None:
            return []
        places.append(place)
    return places


def _stream(measured: Measurement, channel: Channel, places: list[Place]) -> Stream | None:
    """The stream of a channel, None when there are no samples of it."""
    where = f"{measured.path}, channel {channel.name!r}"
    times_ns = measured.times_ns(places[0][0]) if places else np.zeros(0, np.int64)
    if not len(times_ns):
        return None
    values = np.full((len(times_ns), len(places)), np.nan)
    present = np.zeros(values.shape, bool)
    units: list[str] = []
    for k, place in enumerate(places):
        column, good, unit = measured.column(place, where)
        units.append(unit)
        index, near = nearest_within(measured.times_ns(place[0]), times_ns)
        if near.any():
            values[:, k], present[:, k] = column[index], good[index] & near
    unit_of_column = tuple(u or declared for u, declared in zip(units, units_of(channel), strict=False))
    if channel.kind == "set":
        shape = (len(times_ns), channel.places, channel.columns)
        valid = np.asarray(present.reshape(shape).all(2))
        values = np.where(valid[..., None], values.reshape(shape), 0.0)
        return Stream(times_ns, values, valid, unit_of_column)
    values[~present] = np.nan
    return Stream(times_ns, values, np.asarray(present.all(1)), unit_of_column)
