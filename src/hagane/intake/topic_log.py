"""TopicLog: what MCAP files and ROS bags have in common, raw messages by topic.

Containers (`mcap_scan`, `ros1_scan`, `ros2_sqlite`) fill it, `topic_fields` takes values out of the messages,
`topic_episode` makes the episode. A source is "topic.field.sub.3"; topics and sources may begin with "/" or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hagane.intake.sources import column_sources
from hagane.terms import APPLIED, Embodiment, LogError

FieldPath = tuple[str, ...]
"""Parts of a field: ("pose", "position", "x"), ("position", "3"), ("position", "[elbow]")."""
Wanted = Callable[[str], bool]
NAMES = re.compile(r"(^|_)names?$")
"""Fields whose texts name the places of the arrays after them: `name`, `joint_names`."""
_PART = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


@dataclass
class Topic:
    """The messages of one topic, raw, in the order of the file."""

    name: str
    encoding: str
    """How messages are encoded: "json", "cdr" (ROS 2) or "ros1"."""
    schema: str = ""
    """Type of its messages: "sensor_msgs/msg/JointState"."""
    dialect: str = ""
    """Language of the definition: "msg", "idl", or "" when the file carries none."""
    definition: str = ""
    """Definition of the type with all types it is made of, as ROS concatenates them."""
    zstd: bool = False
    """True when every message is compressed by itself."""
    times_ns: list[int] = field(default_factory=list)
    """Log time of each message that was kept."""
    payloads: list[bytes] = field(default_factory=list)
    count: int = 0
    """Messages of it in the file; those of unwanted topics are counted but not kept."""

    def put(self, time_ns: int, data: bytes) -> None:
        """Keep one message."""
        self.times_ns.append(time_ns)
        self.payloads.append(data)

    def sort(self) -> None:
        """Messages in the order of their log times; equal times stay in the order of the file."""
        order = sorted(range(len(self.times_ns)), key=self.times_ns.__getitem__)
        if order != list(range(len(order))):
            self.times_ns = [self.times_ns[k] for k in order]
            self.payloads = [self.payloads[k] for k in order]


@dataclass
class TopicLog:
    """All that one log holds of the topics that somebody wants."""

    path: Path
    topics: dict[str, Topic] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    """The metadata record "hagane" of our own recordings."""
    cut: str = ""
    """Words for a missing end; "" for a log that is whole."""
    distro: str = ""
    """ROS distribution that wrote it, where it says so."""

    def topic(self, new: Topic) -> Topic:
        """The topic of that name, added when it is new.

        Raises:
            LogError: it is there with messages of another type.
        """
        known = self.topics.setdefault(new.name, new)
        if (known.encoding, known.schema) != (new.encoding, new.schema):
            raise LogError(
                f"topic {new.name!r} has messages of two types: {known.schema} ({known.encoding}) and "
                f"{new.schema} ({new.encoding})",
                where=str(self.path),
                next_step="record them under two names",
            )
        known.definition, known.dialect = known.definition or new.definition, known.dialect or new.dialect
        return known


def image_source(name: str, source: tuple[str, ...]) -> str:
    """The topic of an image channel: its only source, or its name."""
    return source[0] if source else name


def split_source(source: str, topics: dict[str, Topic]) -> tuple[str, FieldPath]:
    """The longest topic that begins a source, and the parts of the field after it; ("", ()) when there is none."""
    wanted = source.lstrip("/")
    for name in sorted(topics, key=len, reverse=True):
        plain = name.lstrip("/")
        if wanted == plain:
            return name, ()
        if wanted.startswith(plain + "."):
            return name, parse_path(wanted[len(plain) + 1 :])
    return "", ()


def parse_path(text: str) -> FieldPath:
    """Parts of a field as people write it: a.b.3, a[3].b or position[elbow]."""
    parts = _PART.findall(text)
    return tuple(p[1:-1] if p[:1] == "[" and p[1:-1].isdecimal() else p for p in parts)


def wanted_topics(embodiment: Embodiment) -> Wanted:
    """Whether a topic is one that the channels of an embodiment ask for, ours or foreign."""
    exact: set[str] = set()
    for channel in embodiment.channels():
        exact |= {channel.name, channel.name + APPLIED}
        # sources of another format may lie here too: our own recordings need none, and others are judged when read
        sources = channel.source or (column_sources(channel) if channel.kind == "vector" else ())
        exact |= {s.lstrip("/") for s in sources}

    def wanted(topic: str) -> bool:
        plain = topic.lstrip("/")
        return plain in exact or any(s.startswith(plain + ".") for s in exact)

    return wanted
