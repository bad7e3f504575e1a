"""candump text logs: `(1436509053.249713) can0 123#0011223344556677`, parsed by NumPy.

Form: `candump -L` of can-utils (SocketCAN); `123##1...` is a CAN FD frame, its first digit the flags. Lines of one
layout (equal width, separators at equal places) are parsed together as a matrix of bytes; a log of our own writer is
one such matrix.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hagane.intake.frames import EXTENDED, Frames, Recording, in_order, join, width_of
from hagane.terms import LogError

LINE = re.compile(
    rb"\((\d{1,12})\.(\d{1,9})\) (\S{1,16}) ([0-9A-Fa-f]{3}|[0-9A-Fa-f]{8})#"
    rb"((?:[0-9A-Fa-f]{2}){0,8}|#[0-9A-Fa-f](?:[0-9A-Fa-f]{2}){0,64})( [RT])?"
)
_REMOTE = re.compile(rb"\(\d+\.\d+\) \S+ [0-9A-Fa-f]+#R[0-9A-Fa-f]?( [RT])?")
_ERROR = 1 << 29  # SocketCAN marks an error frame in its id: CAN_ERR_FLAG
_BLOCK_LINES = 500_000
_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789ABCDEF", np.uint8)] = np.arange(16)
_NIBBLE[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_HEX = np.frombuffer(b"0123456789ABCDEF", np.uint8)


@dataclass
class _State:
    """What is learnt on the way through a log."""

    where: str
    names: dict[bytes, int] = field(default_factory=dict)
    """Numbers of the interfaces, by name."""
    skipped: Counter[str] = field(default_factory=Counter)


def looks_like_candump(head: bytes) -> bool:
    """True when the first line is a candump frame."""
    line = head.split(b"\n", 1)[0].strip()
    return bool(re.match(rb"\(\d+\.\d+\) \S+ [0-9A-Fa-f]+#", line))


def parse_candump(text: bytes, where: str = "candump log") -> Recording:
    """Frames of a log; remote frames (`123#R`) and error frames are counted and left out.

    Raises:
        LogError: a line that is no frame (its number is in the message).
    """
    cut = ""
    if text and not text.endswith(b"\n"):
        last = text[text.rfind(b"\n") + 1 :].rstrip()
        # a cut inside the payload leaves a shorter but well-formed frame: nobody can tell, so the line is not used
        cut = f"the last line ends without a line break: {last[:60].decode('ascii', 'replace')!r}"
        text = text[: text.rfind(b"\n") + 1]
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    parts: list[Frames] = []
    state = _State(where)
    bytes_all = np.frombuffer(text, np.uint8)
    begin, line_number = 0, 1
    while begin < len(bytes_all):
        width = text.find(b"\n", begin) + 1 - begin
        count = min((len(bytes_all) - begin) // width, _BLOCK_LINES)
        block_WL = bytes_all[begin : begin + count * width].reshape(count, width)
        same = _same_layout(block_WL)
        if same < min(count, 64):
            frames, used, lines = _mixed(text, begin, line_number, state)
        else:
            frames, used, lines = _equal(block_WL[:same], line_number, state), same * width, same
        parts.append(frames)
        begin, line_number = begin + used, line_number + lines
    frames = join(parts)
    errors = (frames.ids >= EXTENDED) & (frames.ids & _ERROR != 0)
    if errors.any():
        state.skipped["error"] += int(errors.sum())
        frames = frames.take(np.flatnonzero(~errors))
    return Recording(frames, cut, dict(state.skipped))


def _same_layout(block_WL: NDArray[np.uint8]) -> int:
    """Leading rows that have the first row's separators at the first row's places."""
    first = block_WL[0]
    fixed = np.flatnonzero(np.isin(first, np.frombuffer(b"(.) #\n", np.uint8)))
    good = np.ones(len(block_WL), bool)
    for k in fixed:
        good &= block_WL[:, k] == first[k]
    bad = np.flatnonzero(~good)
    return int(bad[0]) if len(bad) else len(block_WL)


def _equal(block_WL: NDArray[np.uint8], number: int, state: _State) -> Frames:
    """Parse rows whose separators stand at the same columns."""
    first = block_WL[0].tobytes()
    match = LINE.fullmatch(first.rstrip(b"\n"))
    if not match:
        return _one_by_one(block_WL, number, state)
    seconds, ok = _decimal(block_WL[:, match.start(1) : match.end(1)])
    fraction, ok2 = _decimal(block_WL[:, match.start(2) : match.end(2)])
    times_ns = seconds * 1_000_000_000 + fraction * 10 ** (9 - len(match[2]))
    ids, ok3 = _hexadecimal(block_WL[:, match.start(4) : match.end(4)])
    begin, n_bytes = _payload(match)
    high = _NIBBLE[block_WL[:, begin : match.end(5) : 2]]
    low = _NIBBLE[block_WL[:, begin + 1 : match.end(5) : 2]]
    name_WL = block_WL[:, match.start(3) : match.end(3)]
    same_name = (name_WL == name_WL[0]).all(1)
    good = ok & ok2 & ok3 & (high < 16).all(1) & (low < 16).all(1) & same_name & _directions(block_WL, match)
    if not good.all():
        return _one_by_one(block_WL, number, state)
    data = np.zeros((len(block_WL), width_of(n_bytes)), np.uint8)
    data[:, :n_bytes] = (high << 4) | low
    if len(match[4]) == 8:
        ids = ids | EXTENDED
    bus = np.full(len(block_WL), _bus(match[3], state.names), np.uint8)
    return Frames(times_ns, ids.astype(np.uint32), data, np.full(len(block_WL), n_bytes, np.uint8), bus)


def _payload(match: re.Match[bytes]) -> tuple[int, int]:
    """Column where the payload of a line begins, and its bytes."""
    fd = 2 if match[5][:1] == b"#" else 0
    return match.start(5) + fd, (len(match[5]) - fd) // 2


def _directions(block_WL: NDArray[np.uint8], match: re.Match[bytes]) -> NDArray[np.bool_]:
    """Whether each line ends as the first does: with a direction (R or T), or without one."""
    return np.isin(block_WL[:, -2], (82, 84)) if match[6] else np.ones(len(block_WL), bool)


def _one_by_one(block_WL: NDArray[np.uint8], number: int, state: _State) -> Frames:
    return _by_line([row.tobytes().rstrip(b"\n") for row in block_WL], number, state)


def _mixed(text: bytes, begin: int, number: int, state: _State) -> tuple[Frames, int, int]:
    """A block of lines of several layouts: lines of one layout are parsed together, then put back in order."""
    end = text.rfind(b"\n", begin, begin + 40 * _BLOCK_LINES) + 1 or len(text)
    flat = np.frombuffer(text, np.uint8)[begin:end]
    ends = np.flatnonzero(flat == 10)
    starts = np.concatenate([[0], ends[:-1] + 1])
    # of the two marks of a CAN FD frame the first counts
    hashes = np.flatnonzero(flat == 35)
    marks = [np.flatnonzero(flat == 41), hashes[flat[hashes - 1] != 35]]
    spaces = np.flatnonzero(flat == 32)
    lines = len(ends)
    # a third space comes before the direction that some tools add
    space = np.searchsorted(spaces, starts)
    if any(len(m) != lines for m in marks) or (space + 1 >= len(spaces)).any():
        return _by_line(text[begin:end].split(b"\n")[:-1], number, state), end - begin, lines
    places = np.stack([ends, *marks, spaces[space], spaces[space + 1]], 1) - starts[:, None]
    if (places < 0).any() or (places > 200).any() or (places[:, 1:] > places[:, :1]).any():
        return _by_line(text[begin:end].split(b"\n")[:-1], number, state), end - begin, lines
    key = places @ (201 ** np.arange(places.shape[1], dtype=np.int64))
    order = np.argsort(key, kind="stable")
    borders = np.flatnonzero(np.diff(key[order])) + 1
    parts, rows = [], []
    for group in np.split(order, borders):
        width = int(places[group[0], 0]) + 1
        block_WL = flat[starts[group][:, None] + np.arange(width)]
        # names differ within a group (can0, can1): split by the name's last character, which is what differs
        last = block_WL[:, places[group[0], 4] - 1]
        for value in np.unique(last):
            at = last == value
            chosen = block_WL[at]
            numbers = group[at]
            same = _same_layout(chosen) == len(chosen) and _uniform(chosen)
            if same:
                parts.append(_equal(chosen, number, state))
                rows.append(numbers)
            else:
                for k, row in enumerate(chosen):
                    one = _by_line([row.tobytes().rstrip(b"\n")], number + int(numbers[k]), state)
                    parts.append(one)
                    rows.append(numbers[k : k + len(one)])
    return in_order(parts, rows), end - begin, lines


def _uniform(block_WL: NDArray[np.uint8]) -> bool:
    match = LINE.fullmatch(block_WL[0].tobytes().rstrip(b"\n"))
    if not match:
        return False
    payload = range(_payload(match)[0], match.end(5))
    digits = [*range(*match.span(1)), *range(*match.span(2)), *range(*match.span(4)), *payload]
    decimal = [*range(*match.span(1)), *range(*match.span(2))]
    name_WL = block_WL[:, match.start(3) : match.end(3)]
    good = (_NIBBLE[block_WL[:, digits]] < 16).all() and (_NIBBLE[block_WL[:, decimal]] < 10).all()
    return bool(good and (name_WL == name_WL[0]).all() and _directions(block_WL, match).all())


def _by_line(lines: list[bytes], number: int, state: _State) -> Frames:
    """The slow, exact path; raises for the first line that is no frame."""
    rows: list[tuple[int, int, bytes, int]] = []
    for k, line in enumerate(lines):
        line = line.strip()
        if not line:
            continue
        match = LINE.fullmatch(line)
        if not match:
            if _REMOTE.fullmatch(line):
                state.skipped["remote"] += 1
                continue
            raise _no_frame(line, number + k, state.where)
        ident = int(match[4], 16) | (EXTENDED if len(match[4]) == 8 else 0)
        time_ns = int(match[1]) * 1_000_000_000 + int(match[2].ljust(9, b"0"))
        if time_ns >= 1 << 63 or ident >= 1 << 32:
            raise _no_frame(line, number + k, state.where)
        payload = bytes.fromhex(line[_payload(match)[0] : match.end(5)].decode())
        rows.append((time_ns, ident, payload, _bus(match[3], state.names)))
    width = width_of(max((len(r[2]) for r in rows), default=0))
    data = np.frombuffer(b"".join(r[2].ljust(width, b"\0") for r in rows), np.uint8).reshape(-1, width)
    return Frames(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.uint32),
        data,
        np.array([len(r[2]) for r in rows], np.uint8),
        np.array([r[3] for r in rows], np.uint8),
    )


def _no_frame(line: bytes, number: int, where: str) -> LogError:
    shown = line[:60].decode("ascii", "replace")
    return LogError(
        f"no CAN frame: {shown!r}",
        where=f"{where}:{number}",
        next_step="candump -L writes lines like (1436509053.249713) can0 123#0011223344556677",
    )


def _bus(name: bytes, names: dict[bytes, int]) -> int:
    """can0 is 0, can1 is 1: names get their digits; without them, or where those are taken, the lowest free number."""
    if name not in names:
        digits, taken = re.search(rb"(\d{1,3})$", name), set(names.values())
        free = [int(digits[1])] if digits and int(digits[1]) < 256 and int(digits[1]) not in taken else []
        names[name] = next((n for n in (*free, *range(256)) if n not in taken), 255)
    return names[name]


def _decimal(digits_WK: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    value = np.zeros(len(digits_WK), np.int64)
    ok = np.ones(len(digits_WK), bool)
    for k in range(digits_WK.shape[1]):
        digit = digits_WK[:, k] - np.uint8(48)
        ok &= digit < 10
        value = value * 10 + digit
    return value, ok & (value < 9_000_000_000)


def _hexadecimal(digits_WK: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    value = np.zeros(len(digits_WK), np.int64)
    ok = np.ones(len(digits_WK), bool)
    for k in range(digits_WK.shape[1]):
        digit = _NIBBLE[digits_WK[:, k]]
        ok &= digit < 16
        value = (value << 4) | digit
    return value, ok & (value < EXTENDED)


def format_candump(frames: Frames, interface: str = "can0") -> bytes:
    """Text of a log; all frames must have 8 bytes and ids of 11 bits, so that every line has the same width.

    Raises:
        LogError: another frame.
    """
    n = len(frames)
    if n and ((frames.ids >= 0x800).any() or (frames.lengths != 8).any() or (frames.times_ns < 0).any()):
        raise LogError("only frames of 8 bytes with 11-bit ids after 1970 are written")
    name = interface.encode()
    template = b"(0000000000.000000) " + name + b" 000#" + b"0" * 16 + b"\n"
    out = np.empty((n, len(template)), np.uint8)
    out[:] = np.frombuffer(template, np.uint8)
    micro = frames.times_ns // 1000
    seconds, micro = micro // 1_000_000, micro % 1_000_000
    for k in range(10):
        out[:, 10 - k] = 48 + seconds // 10**k % 10
    for k in range(6):
        out[:, 17 - k] = 48 + micro // 10**k % 10
    at = 21 + len(name)
    for k in range(3):
        out[:, at + 2 - k] = _HEX[(frames.ids >> (4 * k)) & 15]
    out[:, at + 4 : at + 20 : 2] = _HEX[frames.data >> 4]
    out[:, at + 5 : at + 20 : 2] = _HEX[frames.data & 15]
    return out.tobytes()
