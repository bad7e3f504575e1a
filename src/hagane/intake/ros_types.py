"""ROS message types: from the definition that a log carries, else from .msg files, else the standard ones.

`rosbags` parses the definitions; no code is made from them. Formats: http://wiki.ros.org/msg and
https://design.ros2.org/articles/interface_definition.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.intake.files import refuse_outside
from hagane.intake.sources import nearest
from hagane.intake.topic_log import Topic
from hagane.terms import LogError

SIZES = {
    **{"bool": 1, "byte": 1, "char": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4},
    **{"int64": 8, "uint64": 8, "float32": 4, "float64": 8},
}
"""Bytes of each number type."""
_MOST_TEXT = 4 << 20
_MOST_MSG_FILES = 20_000


@dataclass(frozen=True)
class Kind:
    """Type of one field."""

    name: str
    """A number type, "string", or a message type: "geometry_msgs/msg/Pose"."""
    is_message: bool = False
    many: int | None = None
    """None for one, n for an array of exactly n, -1 for a sequence."""


Types = Mapping[str, tuple[tuple[str, Kind], ...]]
"""Fields of each message type, in their order."""


def types_of(topic: Topic, messages: Path | None, distro: str, where: str) -> Types:
    """The types that the messages of a topic are made of, its own (`topic.schema`) among them.

    Args:
        topic: whose messages.
        messages: folder or file of .msg definitions, for what the log does not carry.
        distro: ROS distribution of the log, "" when unknown.
        where: the log, for messages to people.

    Raises:
        LogError: a type that nobody defines, one that contains itself, or a definition that cannot be read.
    """
    own = _parse(topic.definition, topic.schema, topic.dialect, where) if topic.definition else {}
    files = _MsgFiles(messages) if messages is not None else None
    standard: Types | None = None
    found: dict[str, tuple[tuple[str, Kind], ...]] = {}
    open_names = [full_name(topic.schema)]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        fields = own.get(name)
        if fields is None and files is not None:
            fields = files.fields(name)
        if fields is None:
            standard = _standard(distro, topic.encoding, where) if standard is None else standard
            fields = standard.get(name)
        if fields is None:
            raise LogError(
                f"the definition of message type {name!r} is missing (topic {topic.name!r})",
                where=where,
                next_step="give the folder of its .msg files: --read messages=FOLDER",
            )
        found[name] = fields
        open_names += [kind.name for _, kind in fields if kind.is_message]
    _refuse_circles(found, where)
    return found


def full_name(name: str) -> str:
    """A type's name as ROS 2 writes it: "std_msgs/Header" becomes "std_msgs/msg/Header"."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else name


def kind_of(types: Types, schema: str, path: tuple[str, ...], where: str) -> Kind:
    """Type of the field that a path names within messages of a type.

    Raises:
        LogError: there is no such field.
    """
    kind = Kind(full_name(schema), True)
    for at, part in enumerate(path):
        if kind.many is not None:
            if not (part.isdecimal() or part[:1] == "["):
                raise LogError(
                    f"{'.'.join(path[:at])!r} is an array, and {part!r} is no place in it",
                    where=where,
                    next_step="write its number (from 0), or [name] where the message has a field of names",
                )
            kind = Kind(kind.name, kind.is_message)
            continue
        fields = dict(types[kind.name]) if kind.is_message else {}
        if part not in fields:
            raise LogError(
                f"{kind.name} has no field {part!r}", where=where, next_step=f"check source: {nearest(part, fields)}"
            )
        kind = fields[part]
    return kind


def _parse(text: str, name: str, dialect: str, where: str) -> Types:
    """Types in a definition as ROS concatenates them: the first is `name`, the others have a head of their own."""
    try:
        from rosbags.typesys import get_types_from_idl, get_types_from_msg
    except ImportError:
        raise LogError("reading ROS needs rosbags", where=where, next_step='pip install "hagane[intake]"') from None
    text = text.replace("\r\n", "\n").rstrip("\0")
    found: dict[str, Any] = {}
    try:
        if len(text) > _MOST_TEXT:
            raise ValueError(f"{len(text)} characters")
        if dialect == "idl":
            for part in _idl_parts(text):
                found.update(get_types_from_idl(part))
        else:
            found.update(get_types_from_msg(text, full_name(name)))
        return {full_name(k): _fields(fields) for k, (_, fields) in found.items()}
    except Exception as e:
        # the parser has an error of its own, and ValueError, RecursionError and others for odd text
        reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise LogError(
            f"the definition of message type {name!r} cannot be read: {reason}",
            where=where,
            next_step="give the folder of its .msg files: --read messages=FOLDER",
        ) from None


def _idl_parts(text: str) -> list[str]:
    line = "=" * 80 + "\n"
    if not text.startswith(line + "IDL: "):
        return [text]
    return [part.split("\n", 1)[1] for part in text.split(line)[1:]]


def _fields(fields: list[Any]) -> tuple[tuple[str, Kind], ...]:
    """Fields as rosbags describes them, as ours."""
    return tuple((str(name), _kind(*desc)) for name, desc in fields)


def _kind(node: int, desc: Any) -> Kind:
    from rosbags.interfaces import Nodetype

    if node == Nodetype.BASE:
        return Kind(str(desc[0]))
    if node == Nodetype.NAME:
        return Kind(full_name(str(desc)), True)
    inner = _kind(*desc[0])
    return Kind(inner.name, inner.is_message, int(desc[1]) if node == Nodetype.ARRAY else -1)


def _standard(distro: str, encoding: str, where: str) -> Types:
    """The messages that ROS itself brings; of Humble, where the log does not say."""
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise LogError("reading ROS needs rosbags", where=where, next_step='pip install "hagane[intake]"') from None
    name = f"ROS2_{distro.upper()}"
    store = Stores.ROS1_NOETIC if encoding == "ros1" else getattr(Stores, name, Stores.ROS2_HUMBLE)
    return {name: _fields(fields) for name, (_, fields) in get_typestore(store).fielddefs.items()}


class _MsgFiles:
    """The .msg files of a folder, by type."""

    def __init__(self, root: Path) -> None:
        if not root.exists():
            raise LogError("no such file or folder", where=str(root), next_step="check --read messages=")
        self.root = root
        files = [root] if root.is_file() else sorted(root.rglob("*.msg"))
        if not files or len(files) > _MOST_MSG_FILES:
            raise LogError(f"{len(files)} .msg files in it", where=str(root), next_step="check --read messages=")
        self.by_name: dict[str, list[Path]] = {}
        for file in files:
            self.by_name.setdefault(file.stem, []).append(file)

    def fields(self, name: str) -> tuple[tuple[str, Kind], ...] | None:
        """Fields of a type; None when no file is called so."""
        package, short = name.split("/")[0], name.split("/")[-1]
        files = self.by_name.get(short, [])
        own = [f for f in files if package in (f.parent.name, f.parent.parent.name)]
        if not own and len(files) != 1:
            return None
        file = (own or files)[0]
        refuse_outside(file, self.root if self.root.is_dir() else self.root.parent)
        try:
            text = file.read_bytes().decode("utf-8", "replace")
        except OSError as e:
            raise LogError(f"cannot be read: {e.strerror}", where=str(file), next_step="check the file") from None
        # a file may be empty: a message without fields. The type that it defines comes first
        return next(iter(_parse(text, name, "msg", str(file)).values()))


def _refuse_circles(types: Types, where: str) -> None:
    """A type that contains itself has no end."""
    done: set[str] = set()
    for start in types:
        trail: list[tuple[str, int]] = [(start, 0)]
        inside = {start}
        while trail:
            name, at = trail.pop()
            below = [kind.name for _, kind in types[name] if kind.is_message]
            if at >= len(below):
                inside.discard(name)
                done.add(name)
                continue
            trail.append((name, at + 1))
            if below[at] in inside:
                raise LogError(
                    f"message type {below[at]!r} contains itself",
                    where=where,
                    next_step="give the folder of its .msg files: --read messages=FOLDER",
                )
            if below[at] not in done:
                trail.append((below[at], 0))
                inside.add(below[at])
