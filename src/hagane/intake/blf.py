"""BLF logs (Vector's binary logging format): containers inflated one at a time, objects decoded by NumPy.

A file header ("LOGG", 144 bytes) is followed by objects ("LOBJ"); most are containers (type 10) whose content, raw
or deflated, is a stream of more objects that may run on from one container into the next. Layouts as in python-can's
`can.io.blf` (LGPL; compared frame by frame in the tests) and in Tobias Lorenz' description of the format: Vector
publishes none. What a container claims is checked before memory is taken, and inflation stops at the claim.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hagane.intake.frames import EXTENDED, Frames, Recording, in_order, join, width_of
from hagane.intake.inflate import refuse_deflated
from hagane.intake.zones import wall_clock_ns
from hagane.terms import LogError, digest_file

MAGIC = b"LOGG"
_MOST_BYTES = 64 << 20  # of an object; Vector's tools write containers of 128 KiB
_BATCH = 4 << 20
_MOST_TICKS_NS = 1 << 60  # 36 years of one recording
_HEADER, _BASE, _CONTAINER = struct.Struct("<4sL8xQ"), struct.Struct("<4sHHLL"), struct.Struct("<H6xL4x")
_CLASSIC, _FD, _FD64 = (1, 86), 100, 101
_ERRORS = (2, 73, 104)
_CUT_AT = "the file ends inside an object at byte {}"


def looks_like_blf(head: bytes) -> bool:
    """True when a file begins as BLF does."""
    return head[:4] == MAGIC


def read_blf(path: Path, timezone: str = "") -> Recording:
    """Frames of a BLF file.

    Times are the header's start (a wall clock without zone: UTC unless `timezone` names one; 0 when the header has
    none) plus each object's stamp. Remote and error frames are counted; other objects are passed over.

    Raises:
        LogError: no BLF header, a damaged object or container, or a container that claims more than it can hold.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(144)
        if not looks_like_blf(head) or len(head) < 72:
            raise _damaged(path, 0, "no whole BLF header")
        _, header_bytes, claimed = _HEADER.unpack_from(head)
        if header_bytes < 72:
            raise _damaged(path, 4, f"a header of {header_bytes} bytes")
        state = _State(str(path), _start_ns(head, path, timezone))
        f.seek(header_bytes)
        parts = list(_decoded(_chunks(f, size, state), state))
    if not state.cut and claimed <= 144 < size:
        state.cut = "its writer never closed it: the header counts no bytes"
    if not state.cut and claimed > size:
        state.cut = f"the header says {claimed} bytes, the file has {size}"
    return Recording(join(parts), state.cut, dict(state.skipped), digest=digest_file(path))


@dataclass
class _State:
    """What is learnt on the way through a file."""

    where: str
    start_ns: int
    cut: str = ""
    skipped: Counter[str] = field(default_factory=Counter)


def _damaged(where: object, at: int, what: str) -> LogError:
    return LogError(f"damaged BLF at byte {at}: {what}", where=str(where), next_step="copy it again from the machine")


def _start_ns(head: bytes, path: Path, timezone: str) -> int:
    """The header's SYSTEMTIME as nanoseconds since 1970."""
    year, month, _, day, hour, minute, second, milli = struct.unpack_from("<8H", head, 40)
    if year == 0:
        return 0
    try:
        return wall_clock_ns(datetime(year, month, day, hour, minute, second), timezone) + int(milli) * 1_000_000
    except ValueError:
        raise _damaged(path, 40, f"a start time of {year}-{month}-{day} {hour}:{minute}:{second}") from None


def _chunks(f: BinaryIO, size: int, state: _State) -> Iterator[bytes]:
    """The stream of objects, a container (or an object outside of any) at a time."""
    while True:
        at = f.tell()
        head = f.read(_BASE.size + 8)
        skip = head.find(b"LOBJ", 0, 12)
        if len(head) < _BASE.size and not head.strip(b"\0"):
            return
        if skip < 0 and len(head) >= 12:
            raise _damaged(state.where, at, "no object begins here")
        if skip < 0 or len(head) < skip + _BASE.size:
            state.cut = _CUT_AT.format(at)
            return
        at += skip
        _, header_bytes, _, object_bytes, kind = _BASE.unpack_from(head, skip)
        if object_bytes < _BASE.size:
            raise _damaged(state.where, at, f"an object of {object_bytes} bytes")
        f.seek(at)
        if object_bytes > _MOST_BYTES:
            raise _damaged(state.where, at, f"an object of {object_bytes} bytes")
        body = f.read(min(object_bytes, size - at))
        whole = len(body) == object_bytes
        if not whole:
            state.cut = _CUT_AT.format(at)
        if kind != 10:
            yield body
        elif len(body) >= header_bytes + _CONTAINER.size:
            yield _inflated(body, header_bytes, whole, at, state)
        if not whole:
            return


def _inflated(body: bytes, header_bytes: int, whole: bool, at: int, state: _State) -> bytes:
    """Content of a container; of one that the file's end cuts, what lies before the cut."""
    method, claimed = _CONTAINER.unpack_from(body, header_bytes)
    packed = memoryview(body)[header_bytes + _CONTAINER.size :]
    if method == 0:
        return bytes(packed)
    if method != 2:
        raise _damaged(state.where, at, f"a container of unknown compression {method}")
    refuse_deflated(claimed, len(packed) if whole else None, f"the container at byte {at}", state.where)
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(packed, claimed + 1)
    except zlib.error as e:
        raise _damaged(state.where, at, f"a container that cannot be inflated: {e}") from None
    if len(data) > claimed or (whole and len(data) < claimed):
        raise _damaged(state.where, at, f"a container that holds other than the {claimed} bytes it claims")
    return data


def _decoded(chunks: Iterator[bytes], state: _State) -> Iterator[Frames]:
    """Frames batch by batch; an object that a chunk cuts goes on in the next."""
    held: list[bytes] = []
    count, base = 0, 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count >= _BATCH:
            frames, left = _batch(b"".join(held), base, state)
            base += count - len(left)
            held, count = [left], len(left)
            yield frames
    frames, left = _batch(b"".join(held), base, state)
    yield frames
    if left.strip(b"\0") and not state.cut:
        state.cut = f"the last object is cut ({len(left)} of its bytes are there)"


def _batch(data: bytes, base: int, state: _State) -> tuple[Frames, bytes]:
    """Frames of the whole objects in `data`, and the bytes of a last one that goes on."""
    found: list[int] = []
    at, end, unpack = 0, len(data), _BASE.unpack_from
    while at + 16 <= end:
        # objects are padded, by a rule that differs from kind to kind
        begin = at if data.startswith(b"LOBJ", at) else data.find(b"LOBJ", at, at + 12)
        if begin < 0:
            raise _damaged(state.where, base + at, "no object begins here (counted in the inflated stream)")
        if begin + 16 > end:
            break
        object_bytes = unpack(data, begin)[3]
        if not 16 <= object_bytes <= _MOST_BYTES:
            raise _damaged(state.where, base + begin, f"an object of {object_bytes} bytes (in the inflated stream)")
        if begin + object_bytes > end:
            at = begin
            break
        found.append(begin)
        at = begin + object_bytes
    return _frames(np.frombuffer(data, np.uint8), np.array(found, np.int64), base, state), data[at:]


def _frames(buffer: NDArray[np.uint8], at: NDArray[np.int64], base: int, state: _State) -> Frames:
    kinds = _field(buffer, at, 12, "<u4")
    for kind in _ERRORS:
        state.skipped["error"] += int((kinds == kind).sum())
    parts, order = [], []
    for chosen, kind in ((np.isin(kinds, _CLASSIC), 1), (kinds == _FD, _FD), (kinds == _FD64, _FD64)):
        rows = np.flatnonzero(chosen)
        if len(rows):
            frames, kept = _of_kind(buffer, at[rows], kind, base, state)
            parts.append(frames)
            order.append(rows[kept])
    return in_order(parts, order)


def _field(buffer: NDArray[np.uint8], at: NDArray[np.int64], offset: int, dtype: str) -> NDArray[np.int64]:
    """One number of every object, as int64."""
    width = np.dtype(dtype).itemsize
    chosen = buffer[(at + offset)[:, None] + np.arange(width)].view(dtype)
    return np.asarray(chosen[:, 0].astype(np.int64))


_LAYOUT = {
    # kind: bytes before the data, and where channel, id, flags and the number of valid bytes stand
    1: (8, (0, "<u2"), (4, "<u4"), (2, "u1"), (3, "u1")),
    _FD: (20, (0, "<u2"), (4, "<u4"), (2, "u1"), (14, "u1")),
    _FD64: (40, (0, "u1"), (4, "<u4"), (12, "<u4"), (2, "u1")),
}


def _of_kind(
    buffer: NDArray[np.uint8], at: NDArray[np.int64], kind: int, base: int, state: _State
) -> tuple[Frames, NDArray[np.bool_]]:
    """Data frames among objects of one layout, and which of the objects they are."""
    fixed, channel, ident, flags, valid = _LAYOUT[kind]
    header, ends = _field(buffer, at, 4, "<u2"), at + _field(buffer, at, 8, "<u4")
    bad = (header < 32) | (at + header + fixed > ends)
    if bad.any():
        raise _damaged(state.where, base + int(at[bad][0]), "an object too short for its kind (in the inflated stream)")
    body = at + header
    unit = np.where(_field(buffer, at, 16, "<u4") == 1, 10_000, 1)
    ticks = _field(buffer, at, 24, "<u8")
    if ((ticks < 0) | (ticks > _MOST_TICKS_NS // unit)).any():
        raise _damaged(state.where, base, "a time stamp beyond all years (in the inflated stream)")
    marks = _field(buffer, body, *flags)
    remote = (marks & (0x10 if kind == _FD64 else 0x80)) != 0
    state.skipped["remote"] += int(remote.sum())
    lengths = np.minimum(_field(buffer, body, *valid), 8 if kind == 1 else 64)
    stored = lengths
    if kind == _FD64:
        # newer tools count bytes that they did not store; those are zero (python-can issue 1905)
        tail = _field(buffer, body, 35, "u1")
        stored = np.minimum(lengths, np.where(tail > 0, at + tail, ends) - body - fixed)
    elif (body + fixed + lengths > ends).any():
        raise _damaged(state.where, base, "a frame longer than its object (in the inflated stream)")
    width = width_of(int(lengths.max(initial=0)))
    columns = np.arange(width)
    places = np.minimum((body + fixed)[:, None] + columns, len(buffer) - 1)
    data = np.where(columns < stored[:, None], buffer[places], np.uint8(0))
    raw = _field(buffer, body, *ident)
    ids = (raw & 0x1FFFFFFF) | (raw & EXTENDED)
    frames = Frames(
        ticks * unit + state.start_ns,
        ids.astype(np.uint32),
        data,
        lengths.astype(np.uint8),
        # channels count from 1
        np.clip(_field(buffer, body, *channel) - 1, 0, 255).astype(np.uint8),
    )
    return frames.take(np.flatnonzero(~remote)), ~remote
