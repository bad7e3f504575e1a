"""A TopicLog into an Episode: vectors, texts and images by their sources, whatever the messages are encoded as.

`/joint_states.position.3` is one place of an array; `/joint_states.position[elbow]` is the place at which the message's
own field of names (`name`, `joint_names`: the nearest one before the array) says elbow, so that an order that changes
does no harm. The first column's messages are the samples of a vector; other topics join by nearest time, within half
a period. An image's source is its topic. Times follow `ros_stamps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.options import Options
from hagane.intake.ros_image import picture_paths, pictures_of
from hagane.intake.ros_stamps import Times, stamp_paths, times_of
from hagane.intake.ros_types import Types, types_of
from hagane.intake.sources import column_sources, nearest, units_of
from hagane.intake.streams import nearest_within
from hagane.intake.topic_fields import Column, columns, unpacked
from hagane.intake.topic_log import FieldPath, Topic, TopicLog, image_source, split_source
from hagane.intake.topic_pieces import Remark, pieces_of
from hagane.terms import Channel, Embodiment, Episode, LogError, Stream


@dataclass
class _Job:
    """What is wanted of one topic."""

    topic: Topic
    types: Types
    where: str
    paths: list[FieldPath] = field(default_factory=list)
    fields: dict[FieldPath, Column] = field(default_factory=dict)
    times: Times = field(default_factory=lambda: Times(np.zeros(0, np.int64)))

    def run(self) -> None:
        """Decode all wanted fields at once, then let the raw messages go."""
        stamps = stamp_paths(self.topic, self.types)
        paths = list(dict.fromkeys([*self.paths, *stamps]))
        unpacked(self.topic, self.where)
        self.fields = columns(self.topic, self.types, paths, self.where)
        self.times = times_of(np.array(self.topic.times_ns, np.int64), self.fields)
        self.topic.payloads.clear()


def episodes_of(log: TopicLog, embodiment: Embodiment, options: Options, name: str, digest: str) -> list[Episode]:
    """The episode in a log of topics; several where `options.gap_s` says so.

    Args:
        log: its messages.
        embodiment: whose channels are read.
        options: task, folder of message definitions, the silence that starts another episode.
        name: id of the episode.
        digest: sha256 of the log.

    Raises:
        LogError: no message of any channel, a source that the log lacks, types that nobody defines, broken messages.
    """
    where = str(log.path)
    if not any(t.count for t in log.topics.values()):
        raise LogError("the log holds no message", where=where, next_step="take it out")
    jobs: dict[str, _Job] = {}
    plan = {c.name: _planned(c, log, options, jobs) for c in embodiment.channels()}
    for job in jobs.values():
        job.topic.sort()
        job.run()
    streams: dict[str, Stream] = {}
    remarks: list[Remark] = []
    missing: dict[str, str] = {}
    for channel in embodiment.channels():
        parts = plan[channel.name]
        if any(not len(j.times.times_ns) for j, _ in parts):
            missing[channel.name] = "its topic has no message"
        elif parts:
            streams[channel.name] = _stream(channel, parts, remarks)
        elif channel.kind != "text":
            sets = "sets come from our own recordings only"
            missing[channel.name] = sets if channel.kind == "set" else "no message of it in the log"
    if not streams:
        raise LogError(
            f"none of the topics asked for is in the file: {', '.join(_asked(embodiment)[:5])}",
            where=where,
            next_step=f"the file has {', '.join(sorted(log.topics)[:8]) or 'none'}: set the channels' source",
        )
    whole = Episode(name, embodiment.name, streams, log.about.get("task", "") or options.task, "", digest)
    if log.cut:
        remarks.append(Remark("truncated", "*", whole.span_ns[1], 1, log.cut))
    return pieces_of(whole, remarks, missing, options.gap_s)


_Part = tuple[_Job, FieldPath]


def _planned(channel: Channel, log: TopicLog, options: Options, jobs: dict[str, _Job]) -> list[_Part]:
    """Topic and field of each column of a channel; none when the log lacks it."""
    if channel.kind == "set" or (channel.kind == "text" and not channel.source):
        return []
    sources: Sequence[str] = column_sources(channel) if channel.kind != "image" else ()
    sources = sources or (image_source(channel.name, channel.source),)
    parts: list[_Part] = []
    for source in sources:
        topic, path = split_source(source, log.topics)
        if not topic or (channel.kind != "image" and not path):
            if channel.source:
                raise LogError(
                    f"no topic for source {source!r}",
                    where=f"{log.path}, channel {channel.name!r}",
                    next_step=nearest(source, [t.lstrip("/") for t in log.topics]),
                )
            return []
        job = jobs.get(topic) or _job(log, log.topics[topic], options)
        jobs[topic] = job
        below = picture_paths(job.topic, job.types, path, job.where) if channel.kind == "image" else ((),)
        job.paths += [path + more for more in below]
        parts.append((job, path))
    return parts


def _job(log: TopicLog, topic: Topic, options: Options) -> _Job:
    where = f"{log.path}, topic {topic.name!r}"
    binary = topic.encoding in ("cdr", "ros1")
    return _Job(topic, types_of(topic, options.messages, log.distro, str(log.path)) if binary else {}, where)


def _stream(channel: Channel, parts: list[_Part], remarks: list[Remark]) -> Stream:
    for job in {id(j): j for j, _ in parts}.values():
        t = job.times
        if t.remark:
            text = f"topic {job.topic.name}: {t.remark}"
            remarks.append(Remark("clock-jump", channel.name, int(t.times_ns[t.row]), t.count, text))
    job, path = parts[0]
    if channel.kind == "image":
        found = pictures_of({p[len(path) :]: c for p, c in job.fields.items() if p[: len(path)] == path}, job.where)
        if found.lost:
            at_ns = int(job.times.times_ns[found.first_lost])
            text = f"{found.lost} pictures cannot be read and are left out"
            remarks.append(Remark("missing", channel.name, at_ns, found.lost, text))
        times_ns, there = job.times.times_ns[found.rows], np.ones(len(found.rows), bool)
        return Stream(times_ns, found.values, there, latency_ns=job.times.latency_ns)
    if channel.kind == "text":
        column = job.fields[path]
        texts = np.array([_text(v, path, job.where) for v in column.values] or [], object)
        times_ns, there = job.times.times_ns[column.rows], np.ones(len(texts), bool)
        return Stream(times_ns, texts, there, latency_ns=job.times.latency_ns)
    return _vector(channel, parts)


def _vector(channel: Channel, parts: list[_Part]) -> Stream:
    first, path = parts[0]
    rows = first.fields[path].rows
    times_ns = first.times.times_ns[rows]
    values = np.full((len(times_ns), len(parts)), np.nan)
    present = np.zeros(values.shape, bool)
    for k, (job, path) in enumerate(parts):
        column = job.fields[path]
        index, near = nearest_within(job.times.times_ns[column.rows], times_ns)
        values[:, k], present[:, k] = _numbers(column.values, path, job.where)[index], near
    values[~present] = np.nan
    valid = np.asarray(present.all(1))
    return Stream(times_ns, values, valid, units_of(channel), latency_ns=first.times.latency_ns)


def _numbers(values: NDArray[Any], path: FieldPath, where: str) -> NDArray[np.float64]:
    if values.dtype == object:
        raise LogError(
            f"the field of {'.'.join(path)!r} is no number",
            where=where,
            next_step="check source: of an array name one place, as in position.3 or position[elbow]",
        )
    return values


def _text(value: Any, path: FieldPath, where: str) -> str:
    if not isinstance(value, str):
        raise LogError(f"the field of {'.'.join(path)!r} is no text", where=where, next_step="check source")
    return value


def _asked(embodiment: Embodiment) -> list[str]:
    return [c.source[0] if c.source else f"/{c.name}" for c in embodiment.channels()]
