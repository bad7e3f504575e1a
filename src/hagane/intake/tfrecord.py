"""TFRecord files and the Example messages in them, without TensorFlow or protobuf.

A record is its length (uint64, little endian), the masked CRC-32C of those 8 bytes, the payload, and the masked
CRC-32C of the payload. An Example (tensorflow/core/example/{example,feature}.proto) is a map from names to lists of
bytes, float32 or int64; unknown fields are skipped, as protobuf asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.crc32c import crc32c, masked
from hagane.intake.files import head_of
from hagane.terms import LogError

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
"""Values of one feature of an Example, in order."""
_HEAD, _TAIL = 12, 4


def is_tfrecord(path: Path) -> bool:
    """True for a file that begins with a record's length and its right checksum."""
    head = head_of(path, _HEAD)
    return len(head) == _HEAD and masked(crc32c(head[:8])) == struct.unpack("<I", head[8:])[0]


def scan_records(path: Path) -> tuple[list[tuple[int, int]], str]:
    """Offset and length of each payload, and words for a missing end; payloads are not read.

    Raises:
        LogError: a length that differs from its checksum.
    """
    found: list[tuple[int, int]] = []
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(_HEAD)
            if len(head) < _HEAD:
                return found, f"record {len(found)} has no whole head"
            length, crc = struct.unpack("<QI", head)
            if masked(crc32c(head[:8])) != crc:
                raise _damaged("the length", len(found), path)
            if length > size - at - _HEAD - _TAIL:
                return found, f"record {len(found)} claims {length} bytes, {size - at - _HEAD} are left"
            found.append((at + _HEAD, length))
            at += _HEAD + length + _TAIL
    return found, ""


def read_records(path: Path, places: list[tuple[int, int]]) -> Iterator[bytes]:
    """Payloads at the places of `scan_records`, each checked.

    Raises:
        LogError: a payload that differs from its checksum.
    """
    with path.open("rb") as file:
        for number, (at, length) in enumerate(places):
            file.seek(at)
            payload, tail = file.read(length), file.read(_TAIL)
            if len(payload) != length or len(tail) != _TAIL or masked(crc32c(payload)) != struct.unpack("<I", tail)[0]:
                raise _damaged("the content", number, path)
            yield payload


def _damaged(what: str, number: int, path: Path) -> LogError:
    return LogError(
        f"{what} of record {number} differs from its checksum",
        where=str(path),
        next_step="the file is damaged: copy it again from its source",
    )


def parse_example(payload: bytes) -> dict[str, Feature]:
    """The features of an Example by name.

    Raises:
        ValueError: bytes that are no Example.
    """
    features: dict[str, Feature] = {}
    for number, field in _fields(memoryview(payload)):
        for inner, entry in _fields(_message(field)) if number == 1 else ():
            if inner != 1:
                continue
            name, value = "", memoryview(b"")
            for key, part in _fields(_message(entry)):
                name = bytes(_message(part)).decode() if key == 1 else name
                value = _message(part) if key == 2 else value
            features[name] = _feature(value)
    return features


def _feature(message: memoryview) -> Feature:
    values: Feature = []
    for kind, field in _fields(message):
        parts = [part for number, part in _fields(_message(field)) if number == 1] if kind in (1, 2, 3) else []
        if kind == 1:
            values = [bytes(_message(p)) for p in parts]
        elif kind == 2:
            values = np.frombuffer(b"".join(_message(p) for p in parts), "<f4").astype(np.float32)
        elif kind == 3:
            packed = [_varints(p) if isinstance(p, memoryview) else np.array([p], np.uint64) for p in parts]
            values = np.concatenate([np.zeros(0, np.uint64), *packed]).astype(np.int64)
    return values


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int for a varint, else the bytes (4 and 8 byte numbers too)."""
    at, size = 0, len(message)
    while at < size:
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("field number 0")
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if length > size - at:
            raise ValueError(f"field {number} claims {length} bytes, {size - at} are left")
        yield number, message[at : at + length]
        at += length


def _message(value: object) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where a message should be")
    return value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for k in range(10):
        if at + k >= len(message):
            raise ValueError("a number is cut off")
        byte = message[at + k]
        value |= (byte & 127) << 7 * k
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at + k + 1
    raise ValueError("a number of more than 10 bytes")


def _varints(packed: memoryview) -> NDArray[np.uint64]:
    """All varints of a packed field at once."""
    data = np.frombuffer(packed, np.uint8)
    if not len(data):
        return np.zeros(0, np.uint64)
    if data[-1] >= 128:
        raise ValueError("a number is cut off")
    ends = np.flatnonzero(data < 128)
    if len(ends) == len(data):
        return data.astype(np.uint64)
    starts = np.r_[0, ends[:-1] + 1]
    if (ends - starts).max() >= 10:
        raise ValueError("a number of more than 10 bytes")
    place = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((data & np.uint8(127)).astype(np.uint64) << (7 * place).astype(np.uint64), starts)
