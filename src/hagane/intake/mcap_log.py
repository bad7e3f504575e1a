"""MCAP files with JSON messages into Episodes, one file an episode.

Our own recorder writes topic "/" + stream name, schema "hagane.Stream", {"values": [...], "valid": true or [...]}
at the time (`log_time`) on the episode's clock, and a metadata record "hagane". Other JSON recordings are read by
sources "topic.field", where field may go deeper ("pose.position.x", "joints.3"). Sets come from our recorder only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hagane.intake.files import head_of
from hagane.intake.options import Options
from hagane.intake.sources import column_sources, nearest, units_of
from hagane.intake.streams import nearest_index, on_episode_clock, unmapped
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, LogError, Stream, digest_file

MAGIC = b"\x89MCAP0\r\n"
STREAM_SCHEMA = "hagane.Stream"


@dataclass
class _Topic:
    encoding: str
    schema: str
    times_ns: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)


def sniff(path: Path) -> bool:
    """True for a file that begins as MCAP does."""
    return head_of(path, len(MAGIC)) == MAGIC


def read(path: Path, embodiment: Embodiment, options: Options) -> Iterator[Episode]:
    """The episode of an MCAP file.

    Raises:
        LogError: damaged, of another embodiment, none of the topics asked for, messages that are no JSON (ROS 2's
            CDR is not read yet), a wrong number of values, or a file without its end (unless `keep_whole`: then
            the messages before the cut are given).
    """
    topics, about, cut = _load(path, options.keep_whole)
    made_for = about.get("embodiment", embodiment.name)
    if made_for != embodiment.name:
        raise LogError(
            f"recorded on embodiment {made_for!r}, not {embodiment.name!r}",
            where=str(path),
            next_step="pass the embodiment file it was recorded with",
        )
    name = about.get("episode") or about.get("episode_id") or path.stem
    streams: dict[str, Stream] = {}
    findings: list[Finding] = []
    own = any(t.schema == STREAM_SCHEMA for t in topics.values())
    for channel in embodiment.channels():
        stream = _own_stream(topics, channel, "", path) if own else _foreign_stream(topics, channel, path)
        if stream is not None:
            streams[channel.name] = stream
        elif channel.kind != "text":
            findings.append(unmapped(name, channel.name, "no message of it in the file"))
        applied = _own_stream(topics, channel, APPLIED, path) if own and channel in embodiment.act else None
        if applied is not None:
            streams[channel.name + APPLIED] = applied
    if not streams:
        wanted = [f"/{c.name}" for c in embodiment.channels()]
        raise LogError(
            f"none of the topics asked for is in the file: {', '.join(wanted[:5])}",
            where=str(path),
            next_step=f"the file has {', '.join(sorted(topics)[:8]) or 'none'}: set the channels' source",
        )
    episode = Episode(
        name,
        embodiment.name,
        streams,
        about.get("task", "") or options.task,
        about.get("outcome", ""),
        digest_file(path),
        tuple(findings),
    )
    if cut:
        episode = episode.with_findings(Finding("truncated", name, "*", episode.span_ns[1], 1, cut))
    return iter((episode if own else on_episode_clock(episode),))


def _load(path: Path, keep: bool) -> tuple[dict[str, _Topic], dict[str, str], str]:
    """Messages by topic, the "hagane" metadata, and words for a missing end."""
    try:
        import mcap.reader  # noqa: F401
    except ImportError:
        raise LogError("reading MCAP needs mcap", where=str(path), next_step='pip install "hagane[intake]"') from None
    topics: dict[str, _Topic] = {}
    about: dict[str, str] = {}
    cut = "" if _tail(path) == MAGIC else "the file has no end mark"
    if cut and not keep:
        raise LogError(
            f"truncated file: {cut}",
            where=str(path),
            next_step="copy it again, or pass --keep-whole to take the messages before the cut",
        )
    count = 0
    try:
        with path.open("rb") as f:
            for schema, channel, record in _whole_records(f) if not cut else _records_before_cut(f):
                if channel is None:
                    about.update(record.metadata if record.name == "hagane" else {})
                    continue
                topic = topics.setdefault(channel.topic, _Topic(channel.message_encoding, schema))
                topic.times_ns.append(int(record.log_time))
                topic.payloads.append(record.data)
                count += 1
    except Exception as e:
        # mcap raises its own errors, struct.error, lz4 and zstd errors and more for damaged bytes
        if not cut:
            raise LogError(
                f"damaged MCAP after {count} messages: {str(e) or type(e).__name__}",
                where=str(path),
                next_step="copy it again from the machine",
            ) from None
    if cut and not count:
        raise LogError(f"{cut}, and no whole message before the cut", where=str(path), next_step="copy it again")
    return topics, about, cut


_Record = tuple[str, Any, Any]
"""Schema name, channel and message; or "", None and a metadata record."""


def _whole_records(f: BinaryIO) -> Iterator[_Record]:
    """All messages in the order of their times, then the metadata; every checksum is checked."""
    from mcap.reader import make_reader

    reader = make_reader(f, validate_crcs=True)
    for schema, channel, message in reader.iter_messages():
        yield (schema.name if schema is not None else "", channel, message)
    for record in reader.iter_metadata():
        yield "", None, record


def _records_before_cut(f: BinaryIO) -> Iterator[_Record]:
    """What can be read from the front of a file that has lost its end, in the order of the file."""
    from mcap.records import Channel, Message, Metadata, Schema
    from mcap.stream_reader import StreamReader

    names: dict[int, str] = {}
    channels: dict[int, Any] = {}
    for record in StreamReader(f, validate_crcs=True).records:
        if isinstance(record, Schema):
            names[record.id] = record.name
        elif isinstance(record, Channel):
            channels[record.id] = record
        elif isinstance(record, Message):
            channel = channels[record.channel_id]
            yield names.get(channel.schema_id, ""), channel, record
        elif isinstance(record, Metadata):
            yield "", None, record


def _tail(path: Path) -> bytes:
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - len(MAGIC)))
        return f.read()


def _json(topic: _Topic, name: str, path: Path) -> list[Any]:
    import msgspec

    if topic.encoding != "json":
        raise LogError(
            f"topic {name!r} is encoded as {topic.encoding!r}",
            where=str(path),
            next_step="only JSON messages are read today; ROS 2 (cdr) recordings come with a later importer",
        )
    decoder = msgspec.json.Decoder()
    found = []
    for time_ns, payload in zip(topic.times_ns, topic.payloads, strict=True):
        try:
            found.append(decoder.decode(payload))
        except (msgspec.DecodeError, UnicodeDecodeError):
            try:
                # other writers spell NaN and Infinity, which strict JSON lacks
                found.append(json.loads(payload))
            except ValueError as e:
                raise LogError(f"message at {time_ns} ns is no JSON: {e}", where=f"{path}, topic {name!r}") from None
    return found


def _own_stream(topics: Mapping[str, _Topic], channel: Channel, ending: str, path: Path) -> Stream | None:
    """A stream as our recorder wrote it."""
    name = f"/{channel.name}{ending}"
    topic = topics.get(name)
    if topic is None or channel.kind == "image":
        return None
    where = f"{path}, topic {name!r}"
    messages = _json(topic, name, path)
    times_ns = np.array(topic.times_ns, np.int64)
    try:
        rows = [m["values"] for m in messages]
        flags = [m.get("valid", True) for m in messages]
        if channel.kind == "text":
            texts = np.array([r if isinstance(r, str) else r[0] for r in rows], object)
            return Stream(times_ns, texts, np.array(flags, bool))
        values = np.array(rows, np.float64).reshape(len(rows), *channel.shape)
        if channel.kind == "set":
            valid = np.stack([np.broadcast_to(np.array(f, bool), (channel.places,)) for f in flags])
        else:
            valid = np.array([bool(np.all(f)) for f in flags], bool)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
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


def _has_null(row: Any) -> bool:
    return row is None or (isinstance(row, list) and None in row)


def _foreign_stream(topics: Mapping[str, _Topic], channel: Channel, path: Path) -> Stream | None:
    """A vector by its sources "topic.field"; other topics than the first column's match by nearest time."""
    if channel.kind != "vector":
        return None
    where = f"{path}, channel {channel.name!r}"
    columns: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for source in column_sources(channel):
        name, parts = _topic_of(source, topics)
        if not name:
            if channel.source:
                known = [t.lstrip("/") for t in topics]
                raise LogError(f"no topic for source {source!r}", where=where, next_step=nearest(source, known))
            return None
        messages = _json(topics[name], name, path)
        times_ns = np.array(topics[name].times_ns, np.int64)
        columns.append((times_ns, np.array([_value(m, parts, source, where) for m in messages], np.float64)))
    times_ns = columns[0][0]
    values = np.full((len(times_ns), len(columns)), np.nan)
    present = np.ones(values.shape, bool)
    period_ns = float(np.median(np.diff(times_ns))) if len(times_ns) > 1 else 1e9
    for k, (own_ns, column) in enumerate(columns):
        index, distance = nearest_index(own_ns, times_ns)
        values[:, k] = column[index]
        present[:, k] = distance <= period_ns / 2
    values[~present] = np.nan
    return Stream(times_ns, values, np.asarray(present.all(1)), units_of(channel))


def _topic_of(source: str, topics: Mapping[str, _Topic]) -> tuple[str, list[str]]:
    """The longest topic that begins a source, and the parts of the field after it."""
    wanted = source.lstrip("/")
    for name in sorted(topics, key=len, reverse=True):
        plain = name.lstrip("/")
        if wanted.startswith(plain + "."):
            return name, wanted[len(plain) + 1 :].split(".")
    return "", []


def _value(message: Any, parts: list[str], source: str, where: str) -> float:
    for part in parts:
        try:
            message = message[int(part)] if isinstance(message, list) else message[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise LogError(f"a message lacks the field of {source!r}", where=where, next_step="check source") from None
    if message is None:
        return float("nan")
    if not isinstance(message, int | float):
        raise LogError(f"the field of {source!r} is no number", where=where, next_step="check source")
    return float(message)
