"""What an MDF file claims, compared with what it holds, before the reading library follows it.

ASAM MDF 4: blocks "##XX" with a length and links to others; version 3: blocks with 32-bit links. The library trusts
links and sizes: a list that runs in a circle would never end, and a compressed block is inflated whatever it claims.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path

from hagane.intake.inflate import refuse_deflated
from hagane.terms import LogError

MAGIC, UNFINISHED = b"MDF     ", b"UnFinMF "
MOST_SAMPLES = 1 << 31
_BLOCK, _ZIPPED = struct.Struct("<4s4xQQ"), struct.Struct("<2sBxIQQ")
_ZIPPED_HEAD = _BLOCK.size + _ZIPPED.size
_MEMBERS = {
    # places of the links that make a block a member of a list: the first of the list, and the next
    **{b"##HD": (0, 1, 2, 3, 4), b"##DG": (0, 1), b"##CG": (0, 1), b"##CN": (0, 1), b"##HL": (0,)},
    **dict.fromkeys((b"##DL", b"##FH", b"##AT", b"##EV", b"##CH", b"##LD"), (0,)),
}


def looks_like_mdf(head: bytes) -> bool:
    """True when a file begins as MDF does, finished or not."""
    return head[:8] in (MAGIC, UNFINISHED)


def cut_of(path: Path) -> str:
    """Words that say how a file's end is cut, "" when it is whole.

    Raises:
        LogError: damaged blocks, lists in a circle, a compressed block that claims more than it can hold.
    """
    size = path.stat().st_size
    if size < 128:
        return f"the file has {size} bytes, less than its header"
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:8] == UNFINISHED:
            return "its writer never finished it"
        return _walk_4(data, path) if data[8:9] >= b"4" else _walk_3(data, path)


def _damaged(path: Path, at: int, what: str) -> LogError:
    return LogError(f"damaged MDF at byte {at}: {what}", where=str(path), next_step="copy it again from the machine")


def _walk_4(data: mmap.mmap, path: Path) -> str:
    """Follow every link of a version 4 file."""
    size = len(data)
    waiting, seen, members = [64], set[int](), set[int]()
    while waiting:
        at = waiting.pop()
        if at in seen or at == 0:
            continue
        seen.add(at)
        if at + _BLOCK.size > size:
            return f"a block at byte {at} is missing: the file has {size}"
        kind, length, links = _BLOCK.unpack_from(data, at)
        if kind[:2] != b"##" or length < 24 + 8 * links:
            raise _damaged(path, at, "no block begins here")
        if at + length > size:
            return f"the block {kind[2:].decode('ascii', 'replace')} at byte {at} goes beyond the file's {size} bytes"
        targets = struct.unpack_from(f"<{links}Q", data, at + 24)
        for place in _MEMBERS.get(kind, ()):
            target = targets[place] if place < links else 0
            if target in members:
                raise _damaged(path, at, "its blocks are linked in a circle")
            members |= {target} - {0}
        if kind == b"##DZ":
            _claim(data, at, length, path)
        waiting += targets
    return ""


def _claim(data: mmap.mmap, at: int, length: int, path: Path) -> None:
    """Refuse a compressed block by what it claims."""
    if length < _ZIPPED_HEAD:
        raise _damaged(path, at, "a compressed block shorter than its head")
    _, method, _, claimed, packed = _ZIPPED.unpack_from(data, at + 24)
    if method not in (0, 1):
        raise LogError(
            f"the block at byte {at} is compressed by method {method}",
            where=str(path),
            next_step="only deflate is read: save it again with deflate, or without compression",
        )
    refuse_deflated(claimed, min(packed, length - _ZIPPED_HEAD), f"the compressed block at byte {at}", str(path))
    if packed + _ZIPPED_HEAD > length:
        raise _damaged(path, at, f"a compressed block claims {packed:,} packed bytes and has {length - _ZIPPED_HEAD:,}")


def refuse_inflated(path: Path, blocks: list[tuple[int, int, int]]) -> None:
    """Inflate compressed blocks (byte, packed bytes, claimed bytes) no further than they claim.

    Raises:
        LogError: one that holds other than it claims, or cannot be inflated.
    """
    with path.open("rb") as f:
        for at, packed, claimed in blocks:
            f.seek(at)
            try:
                held = len(zlib.decompressobj().decompress(f.read(packed), claimed + 1))
            except zlib.error as e:
                raise _damaged(path, at, f"a block that cannot be inflated: {e}") from None
            if held != claimed:
                raise _damaged(path, at, f"a compressed block holds other than the {claimed:,} bytes it claims")


def sorted_out(path: Path) -> list[tuple[int, int, int]]:
    """Compressed blocks of the groups that the library sorts, hence inflates, as it opens a version 4 file.

    Raises:
        LogError: a list of data groups that is none.
    """
    found: list[tuple[int, int, int]] = []
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[8:9] < b"4":
            return found
        group, seen = struct.unpack_from("<Q", data, 64 + 24)[0], {0}
        while group:
            # next, channel groups, data, comment; then the size of record ids, 0 where records are sorted
            if _BLOCK.unpack_from(data, group)[0] != b"##DG" or group + 24 + 8 * 4 >= len(data):
                raise _damaged(path, group, "no data group begins here")
            following, _, content = struct.unpack_from("<QQQ", data, group + 24)
            waiting = [content] if data[group + 24 + 8 * 4] else []
            while waiting:
                at = waiting.pop()
                if at in seen:
                    continue
                seen.add(at)
                kind, _, links = _BLOCK.unpack_from(data, at)
                waiting += struct.unpack_from(f"<{links}Q", data, at + 24)
                if kind == b"##DZ":
                    _, _, _, claimed, packed = _ZIPPED.unpack_from(data, at + 24)
                    found.append((at + _ZIPPED_HEAD, packed, claimed))
            group = following
    return found


def all_zipped(path: Path) -> list[tuple[int, int, int]]:
    """Compressed blocks that lie whole in a file whose links cannot be trusted: cut, or never finished.

    Raises:
        LogError: one that claims more than it can hold.
    """
    found: list[tuple[int, int, int]] = []
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(b"##DZ", 64)
        while 0 <= at <= len(data) - _ZIPPED_HEAD:
            length = _BLOCK.unpack_from(data, at)[1]
            if at + length <= len(data):
                _claim(data, at, length, path)
                _, _, _, claimed, packed = _ZIPPED.unpack_from(data, at + 24)
                found.append((at + _ZIPPED_HEAD, packed, claimed))
            at = data.find(b"##DZ", at + 4)
    return found


def _walk_3(data: mmap.mmap, path: Path) -> str:
    """Follow data and channel groups of a version 3 file."""
    size = len(data)
    order = ">" if data[24:26] != b"\0\0" else "<"
    seen = set[int]()

    def within(*places: int) -> None:
        for at in places:
            if at and (at + 4 > size or at + struct.unpack_from(order + "H", data, at + 2)[0] > size):
                raise EOFError(f"the block at byte {at} goes beyond the file's {size} bytes")

    def block(at: int, kind: bytes, form: str) -> tuple[int, ...]:
        if at + 4 + struct.calcsize(order + form) > size:
            raise EOFError(f"a block at byte {at} is missing: the file has {size}")
        if data[at : at + 2] != kind or at in seen:
            raise _damaged(path, at, "no block begins here" if at not in seen else "its blocks are linked in a circle")
        within(at)
        seen.add(at)
        return struct.unpack_from(order + form, data, at + 4)

    try:
        group, *texts = block(64, b"HD", "III")
        within(*texts)
        while group:
            group, first, trigger, content, _, id_bytes = block(group, b"DG", "IIIIHH")
            within(trigger)
            claimed = 0
            while first:
                first, channel, comment, _, _, record, count = block(first, b"CG", "IIIHHHI")
                within(comment)
                claimed += (record + id_bytes) * count
                while channel:
                    channel, *texts = block(channel, b"CN", "IIIII")
                    within(*texts)
            if claimed and content + claimed > size:
                return f"the data at byte {content} claim {claimed} bytes, the file has {size}"
    except EOFError as e:
        return str(e)
    return ""
