"""MCAP files into Episodes, one file an episode: our own recordings, other people's JSON, and ROS (1 and 2).

Our own recorder writes topic "/" + stream name, schema "hagane.Stream", {"values": [...], "valid": true or [...]}
at the time (`log_time`) on the episode's clock, and a metadata record "hagane". Everything else is read by sources
"topic.field" (see `topic_episode`). Sets come from our recorder only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hagane.intake.files import head_of
from hagane.intake.mcap_scan import MAGIC, scan_mcap
from hagane.intake.options import Options
from hagane.intake.sources import units_of
from hagane.intake.streams import unmapped, with_cut
from hagane.intake.topic_episode import episodes_of
from hagane.intake.topic_fields import json_messages
from hagane.intake.topic_log import Topic, TopicLog, wanted_topics
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, LogError, Stream, digest_file

STREAM_SCHEMA = "hagane.Stream"


def sniff(path: Path) -> bool:
    """True for a file that begins as MCAP does."""
    return head_of(path, len(MAGIC)) == MAGIC


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episode of an MCAP file.

    Raises:
        LogError: damaged, of another embodiment, none of the topics asked for, messages that cannot be decoded, a
            wrong number of values, or a file without its end (unless `keep_whole`: then the messages before the cut
            are given).
    """
    log = TopicLog(path)
    with path.open("rb") as file:
        scan_mcap(file, path.stat().st_size, log, wanted_topics(embodiment), options.keep_whole)
    made_for = log.about.get("embodiment", embodiment.name)
    if made_for != embodiment.name:
        raise LogError(
            f"recorded on embodiment {made_for!r}, not {embodiment.name!r}",
            where=str(path),
            next_step="pass the embodiment file it was recorded with",
        )
    name = log.about.get("episode") or log.about.get("episode_id") or path.stem
    if any(t.schema == STREAM_SCHEMA for t in log.topics.values()):
        return iter((_own_episode(log, embodiment, options, name),))
    return iter(episodes_of(log, embodiment, options, name, digest_file(path)))


def _own_episode(log: TopicLog, embodiment: Embodiment, options: Options, name: str) -> Episode:
    """An episode as our recorder wrote it."""
    streams: dict[str, Stream] = {}
    findings: list[Finding] = []
    for topic in log.topics.values():
        topic.sort()
    for channel in embodiment.channels():
        stream = _own_stream(log.topics, channel, "", log.path)
        if stream is not None:
            streams[channel.name] = stream
        elif channel.kind != "text":
            findings.append(unmapped(name, channel.name, "no message of it in the file"))
        applied = _own_stream(log.topics, channel, APPLIED, log.path) if channel in embodiment.act else None
        if applied is not None:
            streams[channel.name + APPLIED] = applied
    if not streams:
        wanted = [f"/{c.name}" for c in embodiment.channels()]
        raise LogError(
            f"none of the topics asked for is in the file: {', '.join(wanted[:5])}",
            where=str(log.path),
            next_step=f"the file has {', '.join(sorted(log.topics)[:8]) or 'none'}: set the channels' source",
        )
    task, outcome = log.about.get("task", "") or options.task, log.about.get("outcome", "")
    episode = Episode(name, embodiment.name, streams, task, outcome, digest_file(log.path), tuple(findings))
    return with_cut(episode, log.cut)


def _own_stream(topics: Mapping[str, Topic], channel: Channel, ending: str, path: Path) -> Stream | None:
    """A stream as our recorder wrote it."""
    name = f"/{channel.name}{ending}"
    topic = topics.get(name)
    if topic is None or channel.kind == "image":
        return None
    where = f"{path}, topic {name!r}"
    messages = json_messages(topic, where)
    times_ns = np.array(topic.times_ns, np.int64)
    try:
        rows = [m["values"] for m in messages]
        flags = [m.get("valid", True) for m in messages]
        if channel.kind == "text":
            texts = np.fromiter((_text(r) for r in rows), object, len(rows))
            return Stream(times_ns, texts, np.array([bool(np.all(f)) for f in flags], bool))
        values = np.array(rows, np.float64).reshape(len(rows), *channel.shape)
        if channel.kind == "set":
            valid = np.stack([np.broadcast_to(np.array(f, bool), (channel.places,)) for f in flags])
        else:
            valid = np.array([bool(np.all(f)) for f in flags], bool)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as e:
        raise LogError(
            f"messages do not hold {channel.shape} values: {e}",
            where=where,
            next_step="pass the embodiment file it was recorded with",
        ) from None
    # JSON has no NaN: our recorder writes null, and such a sample of a vector is not valid
    if channel.kind == "vector":
        nulls = np.array([_has_null(r) for r in rows], bool)
        valid &= ~nulls
    return Stream(times_ns, values, valid, units_of(channel))


def _text(row: Any) -> str:
    text = row if isinstance(row, str) else row[0]
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text"[:80])
    return text


def _has_null(row: Any) -> bool:
    return row is None or (isinstance(row, list) and None in row)
