"""ASC logs (Vector's text format): the words of a block of lines are found at once, each column parsed by NumPy.

    date Wed Nov 24 09:15:02.440 am 2021
    base hex  timestamps absolute
    Begin Triggerblock Wed Nov 24 09:15:02.440 am 2021
       0.015991 1  2C1             Rx   d 8 00 14 DF 14 BB CA 3A 91  Length = 230000 BitCount = 119
       0.016104 CANFD   2 Rx        1A3  EngineData  1 0 9 12 00 01 02 03 04 05 06 07 08 09 0A 0B ...

Form: Vector's "CAN Log and Trigger ASC format"; compared with python-can's reader frame by frame in the tests.
Stamps count from the first trigger block's date (the header's without one), or with "timestamps relative" each from
the one before. Events that are no CAN frames are passed over.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from hagane.intake.asc_words import Words, number, stamps_ns
from hagane.intake.frames import EXTENDED, Frames, Recording, in_order, join, width_of
from hagane.intake.zones import wall_clock_ns
from hagane.terms import LogError

_BLOCK = 8 << 20
_MOST_NS = 1e18  # 31 years, as much as an absolute stamp of nine digits says
_HEADER = re.compile(rb"(//.*|(no\s+)?internal\s+events\s+logged.*|previous\s+log\s*file.*|split\s.*|[#;*].*)?", re.I)
_DATE = re.compile(rb"(date|begin\s+triggerblock)\s+(.*)", re.I)
_BASE = re.compile(rb"base\s+(hex|dec)(?:\s+timestamps\s+(absolute|relative))?.*", re.I)
_FIRST = re.compile(rb"(//[^\n]*\n|\s)*(date\s+\S+\s[^\n]*\d{4}\s*\n|base\s+(hex|dec)\b|begin\s+triggerblock)", re.I)
_MONTHS = {"jan": 1, "feb": 2, "mar": 3, "mär": 3, "mrz": 3, "apr": 4, "may": 5, "mai": 5, "jun": 6, "jul": 7}
_MONTHS |= {"aug": 8, "sep": 9, "oct": 10, "okt": 10, "nov": 11, "dec": 12, "dez": 12}


def looks_like_asc(head: bytes) -> bool:
    """True when a file begins with an ASC header: a date, a base, or a trigger block."""
    return bool(_FIRST.match(head.removeprefix(b"\xef\xbb\xbf")))


@dataclass
class _State:
    """What the lines so far have said."""

    where: str
    base: int = 16
    relative: bool = False
    date: bytes = b""
    from_trigger: bool = False
    open_block: bool = False
    clock_ns: int = 0
    """Stamp of the last event, where stamps are relative."""
    skipped: Counter[str] = field(default_factory=Counter)


def parse_asc(text: bytes, where: str = "ASC log", timezone: str = "") -> Recording:
    """Frames of an ASC log; its dates carry no zone: UTC unless `timezone` names one.

    Raises:
        LogError: a line that is neither header, event nor frame, or a frame with a bad number (with its line).
    """
    text = text.removeprefix(b"\xef\xbb\xbf")
    last = text[text.rfind(b"\n") + 1 :]
    cut = ""
    if last.strip():
        if not re.fullmatch(rb"end\s+triggerblock", last.strip(), re.I):
            cut = f"the last line ends without a line break: {last.strip()[:60].decode('ascii', 'replace')!r}"
            text = text[: len(text) - len(last)]
        else:
            text += b"\n"
    state = _State(where)
    parts: list[Frames] = []
    begin, line = 0, 1
    while begin < len(text):
        end = text.find(b"\n", min(begin + _BLOCK, len(text) - 1)) + 1 or len(text)
        words = Words(text[begin:end])
        parts.append(_block(words, line, state))
        begin, line = end, line + words.lines
    frames = join(parts)
    if state.open_block and not cut:
        cut = "no End TriggerBlock"
    start_ns, note = _start_ns(state.date, timezone)
    frames = Frames(frames.times_ns + start_ns, frames.ids, frames.data, frames.lengths, frames.buses)
    return Recording(frames, cut, dict(state.skipped), (note,) if note else ())


def _block(words: Words, number_of_first: int, state: _State) -> Frames:
    """Frames of a block of whole lines."""
    timed = words.timed()
    classic = timed & words.is_classic()
    fd = timed & words.is_fd()
    for k in np.flatnonzero(~(classic | fd) & (words.counts > 0)).tolist():
        _other_line(words.line(k), bool(timed[k]), number_of_first + k, state)
    times_ns, good = stamps_ns(words, np.flatnonzero(timed))
    _refuse(words, np.flatnonzero(timed), good, number_of_first, state)
    if state.relative and len(times_ns):
        if state.clock_ns + float(times_ns.sum(dtype=np.float64)) > _MOST_NS:
            what = "its relative time stamps add up to centuries"
            raise LogError(what, where=f"{state.where}:{number_of_first}", next_step="copy it again from the machine")
        times_ns = state.clock_ns + np.cumsum(times_ns)
        state.clock_ns = int(times_ns[-1])
    at_ns = np.zeros(words.lines, np.int64)
    at_ns[timed] = times_ns
    parts, order = [], []
    for lines, parse in ((np.flatnonzero(classic), _classic), (np.flatnonzero(fd), _fd)):
        if len(lines):
            frames, kept = parse(words, lines, at_ns[lines], number_of_first, state)
            parts.append(frames)
            order.append(kept)
    return in_order(parts, order)


def _other_line(line: bytes, timed: bool, line_number: int, state: _State) -> None:
    """A line that holds no frame: header words change the state, events are passed over."""
    if timed:
        if re.match(rb"\S+\s+(\d+|CANFD\s+\d+\s+\S+)\s+ErrorFrame", line, re.I):
            state.skipped["error"] += 1
        elif re.match(rb"\S+\s+\d+\s+[0-9A-Fa-f]+x?\s+(Rx|Tx)\b", line):
            raise _no_frame(line, line_number, state)
        return
    if base := _BASE.fullmatch(line):
        state.base = 16 if base[1].lower() == b"hex" else 10
        state.relative = (base[2] or b"").lower() == b"relative"
    elif date := _DATE.fullmatch(line):
        trigger = date[1][:1] in b"bB"
        state.open_block |= trigger
        if not state.from_trigger:
            state.date, state.from_trigger = date[2], trigger
    elif re.fullmatch(rb"end\s+triggerblock.*", line, re.I):
        state.open_block = False
    elif not _HEADER.fullmatch(line):
        raise _no_frame(line, line_number, state)


def _classic(
    words: Words, lines: NDArray[np.int64], at_ns: NDArray[np.int64], first: int, state: _State
) -> tuple[Frames, NDArray[np.int64]]:
    """Frames of lines `time channel id dir d dlc bytes`; remote frames (r) are counted and left out."""
    remote = words.starts_with(lines, 4, b"rR")
    state.skipped["remote"] += int(remote.sum())
    lines, at_ns = lines[~remote], at_ns[~remote]
    length, good = words.numbers(lines, 5, state.base)
    good &= length <= 15  # a data length code of 9 to 15 means 8 bytes on classic CAN
    return _payload(words, lines, at_ns, (1, 2, 6), (np.minimum(length, 8), good), first, state), lines


def _fd(
    words: Words, lines: NDArray[np.int64], at_ns: NDArray[np.int64], first: int, state: _State
) -> tuple[Frames, NDArray[np.int64]]:
    """Frames of lines `time CANFD channel dir id [name] brs esi dlc length bytes`: those with a name come last."""
    named = ~words.starts_with(lines, 5, b"01")
    frames, kept = [], []
    for chosen, shift in ((lines[~named], 0), (lines[named], 1)):
        if not len(chosen):
            continue
        code, good = words.numbers(chosen, 7 + shift, state.base)
        length, also = words.numbers(chosen, 8 + shift, 10)
        remote = good & also & (length == 0) & (code > 0)
        state.skipped["remote"] += int(remote.sum())
        rows = np.flatnonzero(~remote)
        good = good & also & (length <= 64)
        times_ns = at_ns[np.searchsorted(lines, chosen[rows])]
        counted = length[rows], good[rows]
        frames.append(_payload(words, chosen[rows], times_ns, (2, 4, 9 + shift), counted, first, state))
        kept.append(chosen[rows])
    return join(frames), np.concatenate(kept)


def _payload(
    words: Words,
    lines: NDArray[np.int64],
    times_ns: NDArray[np.int64],
    places: tuple[int, int, int],
    counted: tuple[NDArray[np.int64], NDArray[np.bool_]],
    first: int,
    state: _State,
) -> Frames:
    """Frames of lines whose channel, id and first byte are words `places`."""
    length, good = counted
    channel, ok = words.numbers(lines, places[0], 10)
    extended = words.ends_with(lines, places[1], b"xX")
    ident, ok2 = words.numbers(lines, places[1], state.base, without_last=extended)
    good = good & ok & ok2 & (ident < np.where(extended, 1 << 29, 1 << 11)) & (channel < 256)
    good &= words.counts[lines] >= places[2] + length
    _refuse(words, lines, good, first, state)
    data = np.zeros((len(lines), width_of(int(length.max(initial=0)))), np.uint8)
    rows, column = np.nonzero(np.arange(data.shape[1]) < length[:, None])
    token = words.first[lines[rows]] + places[2] + column
    value, fine = number(words, token, state.base)
    fine &= value < 256
    data[rows, column] = value
    whole = np.ones(len(lines), bool)
    whole[rows[~fine]] = False
    _refuse(words, lines, whole, first, state)
    ids = (ident | np.where(extended, EXTENDED, 0)).astype(np.uint32)
    return Frames(times_ns, ids, data, length.astype(np.uint8), np.maximum(channel - 1, 0).astype(np.uint8))


def _refuse(words: Words, lines: NDArray[np.int64], good: NDArray[np.bool_], first: int, state: _State) -> None:
    if not good.all():
        k = int(lines[np.flatnonzero(~good)[0]])
        raise _no_frame(words.line(k), first + k, state)


def _no_frame(line: bytes, line_number: int, state: _State) -> LogError:
    return LogError(
        f"no ASC line: {line[:70].decode('ascii', 'replace')!r}",
        where=f"{state.where}:{line_number}",
        next_step="export it again; frames look like: 0.015991 1  2C1  Rx  d 8 00 14 DF 14 BB CA 3A 91",
    )


def _start_ns(date: bytes, timezone: str) -> tuple[int, str]:
    """Nanoseconds since 1970 of a date as Vector's tools write it, in English or German; else 0 and words why."""
    if not date:
        return 0, "the log has no date: its clock starts at 0"
    text = date.decode("utf-8", "ignore") if b"\xc3" in date else date.decode("cp1252", "ignore")
    clock = r"(\d{1,2}):(\d{1,2}):(\d{1,2})(?:\.(\d{1,9}))?(?:\s+([ap])m)?"
    found = re.fullmatch(rf"(?:\w+\.?\s+)?([^\W\d]{{3}})\w*\.?\s+(\d{{1,2}})\s+{clock}\s+(\d{{4}})", text.strip(), re.I)
    month = _MONTHS.get(found[1].lower()) if found else None
    unknown = 0, f"the log's date {text.strip()[:40]!r} cannot be read: its clock starts at 0"
    if not found or month is None:
        return unknown
    hour = int(found[3]) % 12 + (12 if found[7].lower() == "p" else 0) if found[7] else int(found[3])
    try:
        start = datetime(int(found[8]), month, int(found[2]), hour, int(found[4]), int(found[5]))
        return wall_clock_ns(start, timezone) + int((found[6] or "0").ljust(9, "0")), ""
    except ValueError:
        return unknown
