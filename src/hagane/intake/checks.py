"""Checks on the way in: what is wrong in an Episode, as Findings that stay with the data.

Nothing is changed silently. Samples that are not numbers, out of range, repeated, behind the clock, or in a unit
other than the declared one become invalid, and a finding says so; suspicions (stuck, missing) leave the flags alone.
Faults in a row are one finding: its time is where they begin, its count how many samples they concern.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hagane.intake.check_case import Case, Result, few, runs
from hagane.intake.check_pictures import look
from hagane.intake.check_units import same_unit, unit_by_magnitude
from hagane.intake.sources import units_of
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, Stream

_STILL_ROLES = ("state", "pv")  # roles whose readings live; set points and commands may rest
_STUCK_S, _STUCK_SAMPLES = 5.0, 30
_JUMP_S = 2.0


def check_episode(episode: Episode, embodiment: Embodiment) -> Episode:
    """Run all checks on every stream but text; the episode with findings, and flags lowered where that is right.

    Streams whose clock goes backwards come out in time order, the samples that were behind being invalid.
    """
    streams: dict[str, Stream] = {}
    leap_ends_ns, leap_ns = _leaps(episode, embodiment)
    findings = few(
        [
            Finding("clock-jump", episode.id, "*", int(t), 1, f"the clock goes forward {dt / 1e9:.3f} s in all streams")
            for t, dt in zip(leap_ends_ns, leap_ns, strict=True)
        ]
    )
    behind_ns = np.concatenate([[0], np.cumsum(leap_ns)])
    for name, stream in episode.streams.items():
        base = name.removesuffix(APPLIED)
        channel = next((c for c in embodiment.channels() if c.name == base), None)
        if channel is None or channel.kind == "text" or not len(stream):
            streams[name] = stream
            continue
        steady_ns = stream.times_ns - behind_ns[np.searchsorted(leap_ends_ns, stream.times_ns, side="right")]
        rate_hz = channel.rate_hz or embodiment.rate_hz
        if channel.kind == "image":
            case, results = look(episode, name, stream, channel, rate_hz, steady_ns, embodiment)
            results += [check(case) for check in TIME_CHECKS]
        else:
            case = _case(episode, name, stream, channel, rate_hz, steady_ns)
            results = [check(case) for check in CHECKS]
        bad = np.zeros(case.values.shape, bool)
        for seen, invalid in results:
            findings += seen
            if invalid is not None:
                bad |= invalid
        streams[name] = _lowered(stream, bad)
    findings.sort(key=lambda f: (f.time_ns, f.stream))
    return replace(episode, streams=streams, findings=(*episode.findings, *findings))


def _case(
    episode: Episode, name: str, stream: Stream, channel: Channel, rate_hz: float, steady_ns: NDArray[np.int64]
) -> Case:
    n = len(stream)
    values = np.asarray(stream.values, np.float64).reshape(n, -1)
    valid = stream.valid.reshape(n, -1)
    flags = np.repeat(valid, values.shape[1] // max(valid.shape[1], 1), 1)
    unit = stream.unit * channel.columns if len(stream.unit) == 1 else stream.unit
    return Case(episode.id, name, channel, rate_hz, stream.times_ns, values, flags, unit, steady_ns)


def _leaps(episode: Episode, embodiment: Embodiment) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ends and lengths, nanoseconds, of long silences of all streams: a clock set forward, or a logger that paused."""
    times_ns = np.sort(np.concatenate([s.times_ns for s in episode.streams.values()] or [np.zeros(0, np.int64)]))
    rate_hz = max(c.rate_hz or embodiment.rate_hz for c in embodiment.channels())
    steps_ns = np.diff(times_ns)
    at = np.flatnonzero(steps_ns > 1e9 * max(_JUMP_S, 20 / rate_hz))
    return times_ns[at + 1], steps_ns[at] - round(1e9 / rate_hz)


def _lowered(stream: Stream, bad: NDArray[np.bool_]) -> Stream:
    """The stream with bad samples invalid, in time order."""
    valid = stream.valid
    if bad.any():
        n = len(stream)
        valid = valid & (~bad.reshape(n, *valid.shape[1:], -1).any(-1)).reshape(valid.shape)
        stream = replace(stream, valid=valid)
    if (np.diff(stream.times_ns) < 0).any():
        order = np.argsort(stream.times_ns, kind="stable")
        stream = replace(
            stream, times_ns=stream.times_ns[order], values=stream.values[order], valid=stream.valid[order]
        )
    return stream


def clock(case: Case) -> Result:
    """The clock goes back: samples behind the latest time so far, or at it once more, are invalid."""
    latest_ns = np.maximum.accumulate(case.times_ns)
    # a stamp equal to the latest is behind too once the clock went back; in a row it is a duplicate
    again = np.r_[False, (case.times_ns[1:] == latest_ns[:-1]) & (case.times_ns[1:] != case.times_ns[:-1])]
    behind = (case.times_ns < latest_ns) | again
    found = []
    for a, b in runs(behind):
        back_s = (latest_ns[a - 1] - case.times_ns[a]) / 1e9
        found.append(case.finding("clock-jump", a, b - a + 1, f"the clock goes back {back_s:.3f} s"))
    return few(found), behind[:, None] | np.zeros(case.values.shape, bool) if behind.any() else None


def duplicates(case: Case) -> Result:
    """Samples with the time stamp of the sample before: invalid."""
    again = np.asarray(np.r_[False, np.diff(case.times_ns) == 0])
    if not again.any():
        return [], None
    found = []
    for a, b in runs(again, 5):
        rows = np.flatnonzero(again[a : b + 1]) + a
        same = all(np.array_equal(case.values[k], case.values[k - 1], equal_nan=True) for k in rows[:100])
        what = "the same values again" if same else "other values at the same time"
        found.append(case.finding("duplicate", a, len(rows), f"{len(rows)} samples, {what}"))
    return few(found), again[:, None] | np.zeros(case.values.shape, bool)


def missing(case: Case) -> Result:
    """Holes against the declared rate, a rate below it, and readings that arrived empty.

    A late message is caught up by short intervals after it, a lost one is not: a gap beyond 1.6 periods counts when
    the seven intervals around it take longer than their number of periods, too.
    """
    found = []
    t_s = (case.steady_ns - case.steady_ns[0]) / 1e9
    steps_s = np.diff(t_s)
    forward = steps_s[steps_s > 0]
    if len(forward) >= 3:
        # over eight intervals, so that stamps taken in bursts do not count
        usual_s = float(np.median(t_s[8:] - t_s[:-8])) / 8 if len(t_s) > 24 else float(np.median(forward))
        usual_s = usual_s if usual_s > 0 else float(np.median(forward))
        declared_s = 1 / case.rate_hz
        if len(forward) >= 10 and usual_s > 1.3 * declared_s:
            lost = round(float(forward.sum()) / declared_s) - len(forward)
            text = f"{1 / usual_s:.4g} samples a second, the embodiment says {case.rate_hz:g}"
            found.append(case.finding("missing", 0, lost, text))
        period_s = max(usual_s, declared_s)
        at = np.arange(len(steps_s))
        low, high = np.maximum(at - 3, 0), np.minimum(at + 4, len(t_s) - 1)
        behind = (t_s[high] - t_s[low]) / usual_s - (high - low)
        holes = (steps_s > 1.6 * period_s) & (behind > 0.6)
        for a, b in runs(holes, 5):
            gaps_s = steps_s[a : b + 1][holes[a : b + 1]]
            lost = int(sum(max(1, round(g / period_s) - 1) for g in gaps_s))
            text = f"about {lost} samples, longest hole {gaps_s.max():.3f} s"
            found.append(case.finding("missing", a, lost, text))
    if case.channel.kind != "set":
        empty = np.asarray(~case.flags.any(1))
        for a, b in runs(empty, 5):
            count = int(empty[a : b + 1].sum())
            found.append(case.finding("missing", a, count, f"{count} empty readings"))
    return few(found), None


def not_numbers(case: Case) -> Result:
    """NaN or infinite values that arrived as valid: invalid."""
    bad = case.flags & ~np.isfinite(case.values)
    if not bad.any():
        return [], None
    rows = np.asarray(bad.any(1))
    found = []
    for a, b in runs(rows, 5):
        count = int(rows[a : b + 1].sum())
        which = case.column(int(np.flatnonzero(bad[a])[0]))
        found.append(case.finding("nan", a, count, f"{which}{count} samples are not numbers"))
    return few(found), bad


def units_and_range(case: Case) -> Result:
    """The log's unit against the declared one, magnitudes that betray another unit, and values beyond low/high.

    Values of a column in another declared unit, and values out of range, are invalid.
    """
    found: list[Finding] = []
    bad = np.zeros(case.values.shape, bool)
    d = case.channel.columns
    live = case.flags & np.isfinite(case.values)
    declared = units_of(case.channel)
    low, high = (np.array(v * d if len(v) == 1 else v) for v in (case.channel.low, case.channel.high))
    for k in range(d):
        columns = slice(k, None, d)
        rows = np.flatnonzero(live[:, columns].any(1))
        if not len(rows):
            continue
        if not same_unit(case.unit[k], declared[k]):
            text = f"{case.column(k)}the log says {case.unit[k]}, the embodiment {declared[k]}"
            found.append(case.finding("unit-mismatch", int(rows[0]), len(rows), text))
            bad[:, columns] |= live[:, columns]
            continue
        if not len(low) and not len(high):
            continue
        a = low[k] if len(low) else -np.inf
        b = high[k] if len(high) else np.inf
        slack = 1e-6 * (b - a if np.isfinite(b - a) else max(abs(a) if len(low) else abs(b), 1e-9))
        values = case.values[:, columns]
        out = live[:, columns] & ((values < a - slack) | (values > b + slack))
        if not out.any():
            continue
        bad[:, columns] |= out
        other = unit_by_magnitude(values[live[:, columns]], declared[k], a, b)
        out_rows = np.asarray(out.any(1))
        if other:
            text = f"{case.column(k)}values look like {other}, not {declared[k]}: {out_rows.sum()} beyond {a:g}..{b:g}"
            found.append(case.finding("unit-mismatch", int(np.argmax(out_rows)), int(out_rows.sum()), text))
            continue
        beyond = []
        for first, last in runs(out_rows, 5):
            inside = values[first : last + 1][out[first : last + 1]]
            count = int(out_rows[first : last + 1].sum())
            far = inside[np.argmax(np.maximum(a - inside, inside - b))]
            text = f"{case.column(k)}{count} samples beyond {a:g}..{b:g} {declared[k]}, farthest {far:g}"
            beyond.append(case.finding("out-of-range", first, count, text))
        found += few(beyond)
    return found, bad if bad.any() else None


def stuck(case: Case) -> Result:
    """A reading that else changes at most samples, exactly equal for 30 samples and 5 s or longer.

    Left out: set points and commands, sets, values at rest (within 1% of 0, of the column's extremes or its bounds),
    columns that never change, smooth signals that go on from where they rested (a held speed), and channels whose
    samples are changes only (a held historian tag).
    """
    channel = case.channel
    if channel.kind == "set" or channel.role not in _STILL_ROLES or len(case.values) < 2 * _STUCK_SAMPLES:
        return [], None
    found = []
    for k in range(case.values.shape[1]):
        live = np.flatnonzero(case.flags[:, k] & np.isfinite(case.values[:, k]))
        values, times_ns = case.values[live, k], case.times_ns[live]
        if len(values) < 2 * _STUCK_SAMPLES:
            continue
        starts = np.r_[0, np.flatnonzero(np.diff(values) != 0) + 1]
        lengths = np.diff(np.r_[starts, len(values)])
        long = np.flatnonzero(lengths >= _STUCK_SAMPLES)
        outside = len(values) - int(lengths[long].sum())
        lively = (len(starts) - len(long)) >= 0.7 * max(outside, 1) and outside >= _STUCK_SAMPLES
        ends = np.array([values.min(), values.max(), *channel.low, *channel.high, 0.0])
        near = 0.01 * (values.max() - values.min())
        moves = np.diff(values)[np.diff(values) != 0]
        # a sensor is noisy, or has moved on when it comes back; a held speed is smooth and goes on from where it was
        noisy = len(moves) > 1 and (np.diff(np.sign(moves)) != 0).mean() >= 0.2
        for run in long.tolist() if lively else []:
            a, b = starts[run], starts[run] + lengths[run] - 1
            seconds = (times_ns[b] - times_ns[a]) / 1e9
            back = abs(values[b + 1] - values[b]) if b + 1 < len(values) else 0.0
            odd = noisy or back >= 5 * float(np.median(np.abs(moves)))
            if odd and seconds >= _STUCK_S and np.abs(ends - values[a]).min() > near:
                text = f"{case.column(k)}{lengths[run]} samples exactly {values[a]:g} for {seconds:.1f} s"
                found.append(case.finding("stuck", int(live[a]), int(lengths[run]), text))
    return few(found), None


TIME_CHECKS: tuple[Callable[[Case], Result], ...] = (clock, duplicates, missing)
"""Checks of a stream's times: pictures too."""
CHECKS: tuple[Callable[[Case], Result], ...] = (*TIME_CHECKS, not_numbers, units_and_range, stuck)
"""Every check of numbers."""
