"""Values of fields out of raw messages: one way in for JSON, CDR (ROS 2) and ROS 1.

`columns` gives, for each wanted path, the messages that have it and its values. A message in which an array is too
short for the path, or in which the name it asks for is missing, has no sample of it: two publishers may share a topic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.inflate import Inflater
from hagane.intake.ros_layout import BadMessage, Layout, Slot, Want, layout_of, want_tree
from hagane.intake.ros_types import SIZES, Types, kind_of
from hagane.intake.topic_log import NAMES, FieldPath, Topic
from hagane.terms import LogError

_BLOCK_BYTES = 32 << 20
_MOST_LAYOUTS = 64
_NUMPY = {"bool": "u1", "byte": "i1", "char": "u1", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"}
_NUMPY |= {"int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float32": "f4", "float64": "f8"}


@dataclass(frozen=True, eq=False)
class Column:
    """One field of a topic."""

    rows: NDArray[np.int64]
    """[M] which messages have it, ascending."""
    values: NDArray[Any]
    """[M] float64; of strings and whole arrays [M] objects: str, or the array's bytes."""


def columns(topic: Topic, types: Types, paths: Sequence[FieldPath], where: str) -> dict[FieldPath, Column]:
    """Fields of all messages of a topic.

    Args:
        topic: the messages.
        types: what they are made of (for JSON: nothing).
        paths: the wanted fields.
        where: log and topic, for messages to people.

    Raises:
        LogError: a field that no message has, one that is no value, or a message that contradicts its type.
    """
    if topic.encoding == "json":
        found = _json_columns(topic, paths, where)
    elif topic.encoding in ("cdr", "ros1"):
        for path in paths:
            kind = kind_of(types, topic.schema, path, where)
            if kind.is_message:
                below = ", ".join(name for name, _ in types[kind.name])
                raise LogError(
                    f"the field of {'.'.join(path)!r} is no value but a {kind.name}",
                    where=where,
                    next_step=f"name one of its fields: {below}",
                )
        found = _binary_columns(topic, types, paths, where)
    else:
        raise LogError(
            f"messages are encoded as {topic.encoding!r}",
            where=where,
            next_step="JSON, ROS 2 (cdr) and ROS 1 (ros1) are read",
        )
    for path in paths:
        if topic.payloads and not len(found[path].rows):
            raise LogError(
                f"a message lacks the field of {'.'.join(path)!r}",
                where=where,
                next_step="check source: no message of the topic has it",
            )
    return found


def _binary_columns(topic: Topic, types: Types, paths: Sequence[FieldPath], where: str) -> dict[FieldPath, Column]:
    want, cdr = want_tree(paths), topic.encoding == "cdr"
    rows: dict[FieldPath, list[NDArray[np.int64]]] = {p: [np.zeros(0, np.int64)] for p in paths}
    parts: dict[FieldPath, list[NDArray[Any]]] = {p: [] for p in paths}
    for at, block, layout in _layouts(topic, types, want, cdr, where):
        if not len(at):
            continue
        big = cdr and not block[0, 1]
        for path, slot in layout.slots.items():
            rows[path].append(at)
            parts[path].append(_values(block, slot, big))
    found = {}
    for path in paths:
        index = np.concatenate(rows[path])
        values = np.concatenate(parts[path]) if parts[path] else np.zeros(0)
        order = np.argsort(index)
        found[path] = Column(index[order], values[order])
    return found


_Block = tuple[NDArray[np.int64], NDArray[np.uint8], Layout]
"""Messages of one layout: which ones, their first bytes [M, end], and where the values lie."""


def _layouts(topic: Topic, types: Types, want: Want, cdr: bool, where: str) -> Iterator[_Block]:
    """All messages, in blocks of one layout."""
    sizes = np.fromiter(map(len, topic.payloads), np.int64, len(topic.payloads))
    order = np.argsort(sizes, kind="stable")

    def layout(row: int) -> Layout:
        try:
            return layout_of(types, topic.schema, topic.payloads[row], want, cdr=cdr)
        except BadMessage as e:
            raise LogError(
                f"message {row + 1} (at {topic.times_ns[row]} ns) is no {topic.schema}: {e}",
                where=where,
                next_step="the log is damaged, or the definition of the type is another",
            ) from None

    for left in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1):
        for _ in range(_MOST_LAYOUTS):
            if not len(left):
                break
            one = layout(int(left[0]))
            others = []
            step = max(1, _BLOCK_BYTES // max(one.end, 1))
            for k in range(0, len(left), step):
                some = left[k : k + step]
                block = _fronts(topic, some, one.end)
                same = (block[:, one.places] == one.bytes_there).all(1)
                yield some[same], block[same], one
                others.append(some[~same])
            left = np.concatenate(others)
        # too many layouts of one size to look for equal ones
        for row in left.tolist():
            one = layout(row)
            at = np.array([row])
            yield at, _fronts(topic, at, one.end), one


def _fronts(topic: Topic, rows: NDArray[np.int64], end: int) -> NDArray[np.uint8]:
    """[M, end] first bytes of messages that are long enough."""
    joined = b"".join([topic.payloads[k][:end] for k in rows.tolist()])
    return np.frombuffer(joined, np.uint8).reshape(len(rows), end)


def _values(block: NDArray[np.uint8], slot: Slot, big: bool) -> NDArray[Any]:
    """[M] values at one slot."""
    if slot.kind == "string" or slot.count is not None:
        size = (slot.count or 0) * SIZES.get(slot.kind, 1)
        found = np.empty(len(block), object)
        raw = [row[slot.at : slot.at + size].tobytes() for row in block]
        found[:] = [r.decode("utf-8", "replace") for r in raw] if slot.kind == "string" else raw
        return found
    kind = np.dtype((">" if big else "<") + _NUMPY[slot.kind])
    taken = np.ascontiguousarray(block[:, slot.at : slot.at + kind.itemsize])
    return taken.view(kind)[:, 0].astype(np.float64)


def unpacked(topic: Topic, where: str) -> None:
    """Inflate messages that are compressed one by one, in place.

    Raises:
        LogError: damaged, or larger than their size can mean.
    """
    if topic.zstd:
        inflater = Inflater(sum(map(len, topic.payloads)), where)
        topic.payloads = [inflater.block("zstd", p) for p in topic.payloads]
        topic.zstd = False


def json_messages(topic: Topic, where: str) -> list[Any]:
    """Decoded JSON of all messages.

    Raises:
        LogError: a message that is none, or that is encoded otherwise.
    """
    import msgspec

    if topic.encoding != "json":
        raise LogError(
            f"messages are encoded as {topic.encoding!r}, not as JSON",
            where=where,
            next_step="record them with hagane's recorder",
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
            except (ValueError, RecursionError) as e:
                raise LogError(
                    f"message at {time_ns} ns is no JSON: {e}", where=where, next_step="copy it again from the machine"
                ) from None
    return found


def _json_columns(topic: Topic, paths: Sequence[FieldPath], where: str) -> dict[FieldPath, Column]:
    messages = json_messages(topic, where)
    found = {}
    for path in paths:
        rows, values = [], []
        for k, message in enumerate(messages):
            value = _json_value(message, path)
            if value is not _MISSING:
                rows.append(k)
                values.append(_plain(value, path, where))
        texts = any(isinstance(v, str) for v in values)
        found[path] = Column(np.array(rows, np.int64), np.array(values, object if texts else np.float64))
    return found


_MISSING: Any = object()


def _json_value(message: Any, path: FieldPath) -> Any:
    """The value at a path, `_MISSING` where the message has none."""
    names: Any = None
    for part in path:
        if isinstance(message, dict):
            names = next((v for k, v in message.items() if NAMES.search(k) and isinstance(v, list)), names)
            message = message.get(part, _MISSING)
        elif isinstance(message, list) and part[:1] == "[":
            label = part[1:-1]
            message = message[names.index(label)] if names and label in names[: len(message)] else _MISSING
        elif isinstance(message, list) and part.isdecimal() and int(part) < len(message):
            message = message[int(part)]
        else:
            return _MISSING
        if message is _MISSING:
            return message
    return message


def _plain(value: Any, path: FieldPath, where: str) -> Any:
    if value is None:
        return float("nan")
    if isinstance(value, str):
        return value
    # a whole number of more than 308 digits is none for us
    if isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 1024):
        return float(value)
    raise LogError(f"the field of {'.'.join(path)!r} is no value", where=where, next_step="check source")
