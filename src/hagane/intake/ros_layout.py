"""Where the values of a ROS message lie in its bytes: one walk for a layout, not one for a message.

Messages of a topic mostly differ in their numbers only: strings and arrays keep their lengths. So one message is
walked by its type, giving offsets of the wanted values and the places of all length words before them; every other
message of the same size whose length words are equal has its values at the same offsets, and a block of thousands is
read by NumPy at once. No length that a message claims is believed beyond the bytes it has.

CDR (ROS 2): https://www.omg.org/spec/DDSI-RTPS (OMG CDR, version 1: a value of n bytes is aligned to n).
ROS 1: http://wiki.ros.org/msg (little-endian, nothing is aligned, strings without a final zero).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.ros_types import SIZES, Kind, Types, full_name
from hagane.intake.topic_log import NAMES, FieldPath

_CDR_HEAD = 4
Want = dict[str, Any]
"""Wanted paths as a tree of their parts; the key "" holds the paths that end there."""


class BadMessage(Exception):
    """A message whose bytes contradict its type."""


@dataclass(frozen=True)
class Slot:
    """Where one value lies."""

    at: int
    """Offset in the message."""
    kind: str
    """A number type, or "string"."""
    count: int | None
    """Elements of a whole array (for strings, bytes); None for a single number."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the wanted values lie, and what must be equal for that to hold."""

    slots: dict[FieldPath, Slot]
    places: NDArray[np.int64]
    """Offsets of the bytes that decide."""
    bytes_there: NDArray[np.uint8]
    """What they are."""
    end: int
    """Bytes from the front that hold all of it."""


def want_tree(paths: Iterable[FieldPath]) -> Want:
    """Paths as a tree."""
    tree: Want = {}
    for path in paths:
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at.setdefault("", []).append(path)
    return tree


def layout_of(types: Types, schema: str, data: bytes, want: Want, *, cdr: bool) -> Layout:
    """The layout of one message.

    Args:
        types: all types that it is made of.
        schema: its own type.
        data: its bytes; CDR with its head of four.
        want: tree of the wanted paths.
        cdr: True for CDR, False for ROS 1.

    Raises:
        BadMessage: shorter or longer than its type says, lengths that are not there, an encoding that is not read.
    """
    walk = _Walk(types, data, cdr, _asks_by_name(want))
    try:
        walk.message(full_name(schema), want, ())
    except RecursionError:
        raise BadMessage("its type is nested too deeply") from None
    # CDR messages may be filled up to a multiple of four
    rest = len(data) - walk.at
    if rest < 0 or rest > (3 if cdr else 0):
        raise BadMessage(f"{len(data)} bytes, its type says {walk.at}")
    ranges = [np.arange(a, b) for a, b in walk.fixed if a < walk.last]
    places = np.concatenate([np.zeros(0, np.int64), *ranges])
    return Layout(walk.slots, places, np.frombuffer(data, np.uint8)[places], walk.last)


class _Walk:
    """One walk through one message."""

    def __init__(self, types: Types, data: bytes, cdr: bool, labels: bool) -> None:
        self.types, self.data, self.cdr, self.labels = types, data, cdr, labels
        self.at = self.origin = _CDR_HEAD if cdr else 0
        self.last = self.at
        self.order: Any = "little"
        self.slots: dict[FieldPath, Slot] = {}
        self.fixed: list[tuple[int, int]] = []
        self._least: dict[str, int] = {}
        self._plain: dict[str, bool] = {}
        self._steps: dict[tuple[str, int], int] = {}
        if cdr:
            if data[:2] not in (b"\0\0", b"\0\1"):
                raise BadMessage(f"encapsulation {data[:2].hex() or 'missing'}, only plain CDR (0000, 0001) is read")
            self.order = "little" if data[1] else "big"
            self.fixed.append((0, 2))

    def message(self, name: str, want: Want, names: tuple[str, ...]) -> None:
        fields = self.types[name]
        if not fields and self.cdr:
            # ROS 2 gives a message without fields one byte
            self.skip(1)
        for field, kind in fields:
            names = self.field(field, kind, want.get(field, {}), names)

    def field(self, field: str, kind: Kind, want: Want, names: tuple[str, ...]) -> tuple[str, ...]:
        """Walk a field; the names that label arrays from here on."""
        if kind.many is None:
            self.one(kind, want, names)
            return names
        count = self.length() if kind.many < 0 else kind.many
        least = self.least(kind)
        if count * least > len(self.data) - self.at:
            raise BadMessage(f"{field!r} claims {count} elements with {len(self.data) - self.at} bytes left")
        if not least:
            # a billion empty messages of ROS 1 take no bytes, and would take an hour
            return names
        if want:
            # whether an element is there is decided by what lies before it
            self.last = max(self.last, self.at)
        if kind.name == "string" and self.labels and NAMES.search(field):
            return tuple(self.text(want.get(str(k), {}), keep=True) for k in range(count))
        picks: dict[int, Want] = {}
        for part, below in want.items():
            k = _place(part, names)
            if k is not None and k < count:
                picks[k] = _merged(picks[k], below) if k in picks else below
        if kind.name in SIZES and not kind.is_message:
            self.numbers(kind.name, count, want, picks)
        elif kind.is_message and not picks:
            for _ in range(count):
                self.skip_message(kind.name)
        else:
            for k in range(count):
                self.one(kind, picks.get(k, {}), names)
        return names

    def one(self, kind: Kind, want: Want, names: tuple[str, ...]) -> None:
        if kind.is_message:
            self.message(kind.name, want, names) if want else self.skip_message(kind.name)
        elif kind.name == "string":
            self.text(want)
        else:
            size = self.size(kind.name)
            self.align(size)
            self.slot(want, kind.name, None)
            self.skip(size)
            self.last = max(self.last, self.at) if "" in want else self.last

    def numbers(self, name: str, count: int, want: Want, picks: dict[int, Want]) -> None:
        size = self.size(name)
        if count:
            self.align(size)
        start = self.at
        for k, below in picks.items():
            self.at = start + k * size
            self.slot(below, name, None)
            self.last = max(self.last, self.at + size)
        self.at = start
        self.slot(want, name, count)
        self.skip(count * size)
        self.last = max(self.last, self.at) if "" in want else self.last

    def text(self, want: Want, *, keep: bool = False) -> str:
        """Walk a string; `keep` it where what it says decides the layout."""
        size = self.length()
        start = self.at
        self.skip(size)
        # CDR counts the final zero
        size = max(size - 1, 0) if self.cdr else size
        for path in want.get("", ()):
            self.slots[path] = Slot(start, "string", size)
            self.last = max(self.last, self.at)
        if not keep:
            return ""
        self.fixed.append((start, start + size))
        return self.data[start : start + size].decode("utf-8", "replace")

    def length(self) -> int:
        """Walk a length word."""
        self.align(4)
        start = self.at
        self.skip(4)
        self.fixed.append((start, self.at))
        return int.from_bytes(self.data[start : self.at], self.order)

    def slot(self, want: Want, name: str, count: int | None) -> None:
        for path in want.get("", ()):
            self.slots[path] = Slot(self.at, name, count)

    def skip_message(self, name: str) -> None:
        """Walk a message of which nothing is wanted; one without lengths has one size for each alignment."""
        if not self.is_plain(name):
            self.message(name, {}, ())
            return
        key = (name, (self.at - self.origin) % 8 if self.cdr else 0)
        if key in self._steps:
            self.skip(self._steps[key])
            return
        start = self.at
        self.message(name, {}, ())
        self._steps[key] = self.at - start

    def is_plain(self, name: str) -> bool:
        """True for a message without lengths."""
        if name not in self._plain:
            self._plain[name] = all(
                k.many != -1 and (self.is_plain(k.name) if k.is_message else k.name in SIZES)
                for _, k in self.types[name]
            )
        return self._plain[name]

    def least(self, kind: Kind) -> int:
        """Bytes that one element takes at least."""
        if not kind.is_message:
            return 4 if kind.name == "string" else self.size(kind.name)
        if kind.name not in self._least:
            fields = self.types[kind.name]
            self._least[kind.name] = sum(
                4 if k.many == -1 else self.least(k) * (1 if k.many is None else k.many) for _, k in fields
            ) or (1 if self.cdr else 0)
        return self._least[kind.name]

    def size(self, name: str) -> int:
        if name not in SIZES:
            raise BadMessage(f"values of type {name!r} are not read")
        return SIZES[name]

    def align(self, size: int) -> None:
        if self.cdr:
            self.at += -(self.at - self.origin) % size

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise BadMessage(f"it ends after {len(self.data)} bytes, within a value")


def _place(part: str, names: tuple[str, ...]) -> int | None:
    """Place in an array: its number, or where a name stands among the names before it."""
    if part.isdecimal():
        return int(part)
    label = part[1:-1] if part[:1] == "[" else ""
    return names.index(label) if label in names else None


def _asks_by_name(want: Want) -> bool:
    """Whether some path names a place of an array ("[elbow]"), so that what the names say decides the layout."""
    return any(part[:1] == "[" or _asks_by_name(below) for part, below in want.items() if part)


def _merged(a: Want, b: Want) -> Want:
    """Two trees as one."""
    both = dict(a)
    for part, below in b.items():
        both[part] = below if part not in both else [*both[part], *below] if part == "" else _merged(both[part], below)
    return both
