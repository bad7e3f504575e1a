"""Checks of camera streams: pictures that cannot be read, that show nothing, or that show the past.

A real camera never gives the same picture twice, a rendered one does whenever nothing moves. So pictures that repeat
are a fault only where the machine moved meanwhile, at half its usual pace or more. Each picture is looked at small
(JPEG is decoded at an eighth of its size), one at a time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.intake.check_case import Case, Result, few, runs
from hagane.intake.picture import JPEG, decode_picture, picture_size
from hagane.terms import APPLIED, Channel, Embodiment, Episode, LogError, Stream
from hagane.terms.episode import FindingKind

_SMALL = 32  # pixels a side that a picture is looked at with, at least
_BLACK, _WHITE, _FLAT = 12, 250, 2  # levels of 255
_WASHED_OUT, _USUALLY, _BLOWN = 0.5, 0.1, 0.9  # shares of white pixels
_ALIKE = 0.05  # of the usual difference: what a lossy video makes of a picture that stands still
_FROZEN_S, _FROZEN_PICTURES = 1.0, 10
_PACE = 0.5


@dataclass(frozen=True, eq=False)
class _Seen:
    """What N pictures look like."""

    readable: NDArray[np.bool_]
    print_: NDArray[np.float64]
    """Checksum of the whole picture."""
    step: NDArray[np.float64]
    """Mean difference to the picture before, in levels; 0 for the first."""
    darkest: NDArray[np.float64]
    brightest: NDArray[np.float64]
    white: NDArray[np.float64]
    """Share of pixels at the upper end."""


def look(
    episode: Episode,
    name: str,
    stream: Stream,
    channel: Channel,
    rate_hz: float,
    steady_ns: NDArray[np.int64],
    embodiment: Embodiment,
) -> tuple[Case, list[Result]]:
    """A camera stream as a case for the checks of times, and what its pictures themselves tell."""
    seen = _see(stream.values)
    flags = stream.valid.reshape(len(stream), -1)[:, :1]
    values = seen.print_[:, None]
    case = Case(episode.id, name, channel, rate_hz, stream.times_ns, values, flags, stream.unit, steady_ns)
    nothing, empty = _nothing_to_see(case, seen)
    return case, [
        _unreadable(case, seen),
        nothing,
        _the_past(case, seen, ~empty, _pace(episode, embodiment, case.times_ns)),
    ]


def _see(values: NDArray[Any]) -> _Seen:
    n = len(values)
    readable = np.ones(n, bool)
    facts = np.zeros((5, n))
    before: NDArray[np.float64] | None = None
    for i, value in enumerate(values):
        facts[0, i] = zlib.crc32(value if isinstance(value, bytes) else np.ascontiguousarray(value).data)
        small = _small(value)
        if small is None:
            readable[i] = False
            continue
        if before is not None:
            facts[1, i] = np.abs(small - before).mean() if before.shape == small.shape else 255.0
        facts[2:4, i] = np.percentile(small, (0.5, 99.5))
        facts[4, i] = (small >= _WHITE).mean()
        before = small
    return _Seen(readable, *facts)


def _small(value: bytes | NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """Brightness of a picture with few pixels; None when it cannot be decoded."""
    if isinstance(value, bytes) and value.startswith(JPEG):
        import simplejpeg

        try:
            picture_size(value)
            gray = simplejpeg.decode_jpeg(value, colorspace="GRAY", min_height=_SMALL, min_width=_SMALL, fastdct=True)
        except (LogError, ValueError):
            return None
        return np.asarray(gray[:, :, 0], np.float64)
    if isinstance(value, bytes):
        try:
            value = decode_picture(value)
        except LogError:
            return None
    every = max(1, min(value.shape[:2]) // _SMALL)
    return np.asarray(value[::every, ::every].mean(2))


def _found(case: Case, kind: FindingKind, rows: NDArray[np.bool_], what: str) -> Result:
    found = []
    for a, b in runs(rows, 5):
        count = int(rows[a : b + 1].sum())
        found.append(case.finding(kind, a, count, f"{count} pictures {what}"))
    return few(found), None


def _unreadable(case: Case, seen: _Seen) -> Result:
    """Bytes that no decoder takes, or only after guessing: invalid."""
    found, _ = _found(case, "unreadable", ~seen.readable & case.flags[:, 0], "cannot be decoded")
    return found, ~seen.readable[:, None]


def _nothing_to_see(case: Case, seen: _Seen) -> tuple[Result, NDArray[np.bool_]]:
    """Black, washed out, or of one colour, and which pictures that are. A white wall is no fault: half a picture of
    white pixels counts only where the stream has few of them else."""
    live = seen.readable & case.flags[:, 0]
    usual = float(np.median(seen.white[live])) if live.any() else 0.0
    black = live & (seen.brightest <= _BLACK)
    white = live & (seen.white >= (_WASHED_OUT if usual <= _USUALLY else _BLOWN))
    flat = live & ~black & ~white & (seen.brightest - seen.darkest <= _FLAT)
    worst = f"are washed out (up to {100 * seen.white[white].max(initial=0):.0f}% white)"
    found = _found(case, "black", black, "are black")[0] + _found(case, "saturated", white, worst)[0]
    found += _found(case, "blank", flat, "are of one colour")[0]
    return (found, None), black | white | flat


def _the_past(case: Case, seen: _Seen, full: NDArray[np.bool_], pace: NDArray[np.float64]) -> Result:
    """Pictures that repeat while the machine moves: a frozen camera, or single pictures stored again."""
    new_time = np.diff(case.times_ns) > 0
    usual = float(np.median(seen.step[1:][seen.step[1:] > 0])) if (seen.step[1:] > 0).any() else 0.0
    alike = (np.diff(seen.print_) == 0) | (seen.step[1:] < _ALIKE * usual)
    # pictures that show nothing have a finding of their own
    alike &= new_time & (seen.readable & full)[1:]
    if not alike.any():
        return [], None
    typical = float(np.median(pace[~alike])) if (~alike).sum() >= 5 else float(pace.mean())
    found, again, first = [], 0, 0
    for a, b in runs(alike):
        if not pace[a : b + 1].mean() >= max(_PACE * typical, 1e-9):
            continue
        count, seconds = b - a + 1, (case.times_ns[b + 1] - case.times_ns[a]) / 1e9
        if count >= _FROZEN_PICTURES or (seconds >= _FROZEN_S and count > 1):
            text = f"{count} pictures repeat the one before for {seconds:.1f} s while the machine moves"
            found.append(case.finding("frozen", a + 1, count, text))
        else:
            first = first or a + 1
            again += count
    if again:
        text = f"{again} pictures ({100 * again / len(case.times_ns):.1f}%) show what the one before shows"
        found.append(case.finding("duplicate", first, again, text))
    return few(found), None


def _pace(episode: Episode, embodiment: Embodiment, times_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N - 1] how much the machine's numbers move from picture to picture, each column against its own range;
    ones where the log has no numbers to tell."""
    moved = np.zeros(max(len(times_ns) - 1, 0))
    told = False
    for channel in embodiment.channels():
        for name in (channel.name, channel.name + APPLIED):
            stream = episode.streams.get(name)
            if channel.kind != "vector" or stream is None or len(stream) < 2:
                continue
            for k in range(channel.columns):
                values = np.asarray(stream.values.reshape(len(stream), -1)[:, k], np.float64)
                good = np.isfinite(values) & stream.valid
                span = np.ptp(values[good]) if good.any() else 0.0
                if span > 0:
                    at_ns = stream.times_ns[good]
                    moved += np.abs(np.diff(np.interp(times_ns, at_ns, values[good]))) / span
                    told = True
    return moved if told else np.ones_like(moved)
