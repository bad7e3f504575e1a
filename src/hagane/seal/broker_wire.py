"""What a jail and its broker say to each other: length-prefixed JSON maps, decoded strictly.

A frame is 4 bytes of length (big endian, at most 1 MiB) and a JSON map. Requests have a fixed set of keys and types; a
map that our encoder would not have written byte for byte (a key twice, spaces, an unknown key) is refused.

    {"do": "ask",  "dataset", "purpose"}   {"allowed": true|false, "reason"}
    {"do": "key",  "dataset", "shard"}     {"key": base64}
    {"do": "note", "kind", "body"}         {"index": place in the ledger}
    {"do": "tell", "event", "fields"}      {"told": true}

Any of them may be answered by {"refused": reason}; a frame that is not well formed by {"error": what}, and the end.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from typing import Any, TypeVar

import msgspec

from hagane.terms import WireError

T = TypeVar("T")
LIMIT = 1 << 20
"""Bytes of a frame without its length."""
DEPTH = 8
"""Maps and lists in one another, at most."""
_LENGTH = struct.Struct(">I")


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Ask(_Frame, frozen=True, tag_field="do", tag="ask"):
    """May this jail use a data set for a purpose?"""

    dataset: str
    """Data set name."""
    purpose: str
    """One of `PURPOSES`."""


class Key(_Frame, frozen=True, tag_field="do", tag="key"):
    """The key of one sealed file."""

    dataset: str
    """Data set whose `Ask` was allowed."""
    shard: str
    """Shard id, 32 hex digits."""


class Note(_Frame, frozen=True, tag_field="do", tag="note"):
    """An entry for the ledger."""

    kind: str
    """What happened."""
    body: dict[str, Any]
    """The facts."""


class Tell(_Frame, frozen=True, tag_field="do", tag="tell"):
    """Something for the person outside."""

    event: str
    """What."""
    fields: dict[str, Any]
    """Numbers under known names."""


Request = Ask | Key | Note | Tell


class Answer(_Frame, frozen=True):
    """The answer to `Ask`."""

    allowed: bool
    """As `Decision.allowed`."""
    reason: str
    """As `Decision.reason`."""


class Given(_Frame, frozen=True):
    """The answer to `Key`."""

    key: bytes
    """32 bytes."""


class Noted(_Frame, frozen=True):
    """The answer to `Note`."""

    index: int
    """Place in the ledger."""


class Told(_Frame, frozen=True):
    """The answer to `Tell`."""

    told: bool = True
    """Always."""


class Refusal(_Frame, frozen=True):
    """No, and why."""

    refused: str
    """The reason."""


class Fault(_Frame, frozen=True):
    """The request was none; the connection ends."""

    error: str
    """What was wrong with it."""


Reply = Answer | Given | Noted | Told | Refusal | Fault
REPLIES: dict[str, type[msgspec.Struct]] = {
    "allowed": Answer,
    "key": Given,
    "index": Noted,
    "told": Told,
    "refused": Refusal,
    "error": Fault,
}
"""The type of a reply by its first key."""


def decode_request(data: bytes) -> Request:
    """A request out of a frame.

    Raises:
        WireError: anything but exactly what our encoder writes for one.
    """
    request: Request = _decode(data, Request)
    if isinstance(request, Note | Tell) and _depth(request) > DEPTH:
        raise WireError(f"more than {DEPTH} maps and lists in one another", where="broker")
    return request


def decode_reply(data: bytes) -> Reply:
    """A reply out of a frame.

    Raises:
        WireError: as `decode_request`.
    """
    first = next((kind for word, kind in REPLIES.items() if data.startswith(b'{"%s":' % word.encode())), Fault)
    reply: Reply = _decode(data, first)
    return reply


def encode(message: Request | Reply) -> bytes:
    """The bytes of a frame without its length.

    Raises:
        WireError: no JSON, or too long.
    """
    try:
        data = msgspec.json.encode(message)
    except (TypeError, ValueError, RecursionError) as e:
        raise WireError(f"cannot be said in JSON: {e}", where="broker") from None
    if len(data) > LIMIT:
        raise WireError(f"{len(data)} bytes are more than the {LIMIT} of a message", where="broker")
    return data


def send_frame(link: socket.socket, data: bytes) -> None:
    """Send a frame.

    Raises:
        OSError: the other side is gone.
    """
    link.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(link: socket.socket, most: int = LIMIT, end_s: float = math.inf) -> bytes | None:
    """The next frame; None when the other side ended between two.

    Args:
        link: the connection.
        most: bytes that a frame may have.
        end_s: when it must be there whole, on the monotonic clock; a peer that sends byte by byte gains nothing.

    Raises:
        WireError: an empty frame, one too long, or one that ends early.
        TimeoutError: it was not there in time.
        OSError: the connection broke.
    """
    head = _exactly(link, _LENGTH.size, end_s)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise WireError("a frame ends early", where="broker")
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= most:
        raise WireError(f"a frame of {length} bytes (1 to {most} are allowed)", where="broker")
    data = _exactly(link, length, end_s)
    if len(data) < length:
        raise WireError("a frame ends early", where="broker")
    return data


def _exactly(link: socket.socket, size: int, end_s: float) -> bytes:
    parts, left = [], size
    while left:
        if end_s < math.inf:
            # a timeout of 0 would mean not to wait at all, and be another error
            link.settimeout(max(end_s - time.monotonic(), 1e-3))
        part = link.recv(min(left, 1 << 16))
        if not part:
            break
        parts.append(part)
        left -= len(part)
        if left and time.monotonic() > end_s:
            raise TimeoutError
    return b"".join(parts)


def _decode(data: bytes, kind: Any) -> Any:
    try:
        message = msgspec.json.decode(data, type=kind)
        exact = msgspec.json.encode(message) == data
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise WireError(f"not a message of the broker: {str(e)[:200]}", where="broker") from None
    if not exact:
        raise WireError("not a message of the broker: not written as our encoder does", where="broker")
    return message


def _depth(request: Note | Tell) -> int:
    """Maps and lists in one another, counted level by level."""
    level: list[Any] = [request.body if isinstance(request, Note) else request.fields]
    depth = 0
    while level:
        depth += 1
        inner = [v for value in level for v in (value.values() if isinstance(value, dict) else value)]
        level = [v for v in inner if isinstance(v, dict | list)]
    return depth
