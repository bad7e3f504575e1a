"""How long after a command the machine's state follows: cross-correlation at native rate, summed over episodes.

Commands are held between their stamps (as a controller holds them), states are drawn as lines between theirs, both
on one common grid. What is correlated are differences, so that trends and set points at rest say nothing; longer
differences are triangular sums of the shortest ones (r_h(k) = sum over |j| < h of (h - |j|) r(k + j)), so one pass
serves all bands. A state may follow the command itself or integrate it: both are tried. Whether a peak is more than
chance is judged by Bartlett's formula for the variance of a cross-correlation of independent series (Box, Jenkins,
"Time Series Analysis", 1970, section 11.1.3), and by whether parts of the data agree.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hagane.terms import Channel, Embodiment, Episode, Stream

GROUPS = 8
"""Parts of the data whose own estimates must agree."""
_FINEST = 8  # grid steps a control step, at most
_SPAN_STEPS, _SPAN_S = 40, 2.0  # lags that are looked at: control steps, and seconds at least
_WIDEST = 16  # control steps that the longest difference spans, about
_CHUNK = 1 << 15
_MOST_STEPS = 2_000_000  # grid steps; more data adds nothing to an estimate
_MOST_COLUMNS = 64  # columns of state that are compared
_LEAST_CHANGES = 16
_LEAST_R, _LEAST_SURE, _LEAST_AGREEMENT = 0.2, 4.0, 0.5
_CLEAR_R, _CLEARLY = 0.9, 0.9  # of a state that moves before its command
_LEADS = 1.25  # by how much a further response must beat the match on the other side of zero
_STATES = ("state", "pv")
_LEVEL, _RATE = 0, 1  # a state follows a command, or integrates it

Column = tuple[str, int]
"""A stream's name and the number of a column."""


@dataclass(frozen=True)
class Lag:
    """What is known about one action column and one channel that may follow it."""

    action: str
    """Action channel."""
    column: int
    """Its column."""
    lag_s: float | None
    """Seconds from command to response, negative when the state moves first; None when not identifiable."""
    response: str
    """Observed channel that follows it best; "" when not identifiable."""
    response_column: int
    """Its column."""
    follows: str
    """"level" (the state goes where the command says), "rate" (the command says how fast it goes), or ""."""
    correlation: float
    """Correlation of the best match, -1 to 1."""
    confidence: float
    """Share of the parts of the data whose own peak lies within half a control step of lag_s (or a tenth of it)."""
    why: str
    """Why it is not identifiable, in words; "" when it is."""
    seconds: float
    """Seconds of data that were compared."""


class _Peak(NamedTuple):
    r: float
    z: float
    sure: float
    lag: float
    """Grid steps."""
    band: int
    relation: int
    y: int


class LagEstimator:
    """Takes episodes one by one; memory depends on the machine's columns only.

    Args:
        embodiment: whose action columns are asked about; vectors of role state or pv may answer.
    """

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self._u: list[Column] = [(c.name, k) for c in embodiment.act for k in range(c.columns)]
        span_s = max(_SPAN_STEPS / embodiment.rate_hz, _SPAN_S)
        able = [c for c in embodiment.observe if c.kind == "vector" and c.role in _STATES]
        able = [c for c in able if (c.rate_hz or embodiment.rate_hz) * span_s >= 4]
        self._y: list[Column] = [(c.name, k) for c in able for k in range(c.columns)][:_MOST_COLUMNS]
        fastest_hz = max([embodiment.rate_hz, *(c.rate_hz for c in (*able, *embodiment.act))])
        self.step_ns = round(1e9 / min(fastest_hz, _FINEST * embodiment.rate_hz))
        self._span = round(span_s * 1e9 / self.step_ns)
        widest = _WIDEST * 1e9 / embodiment.rate_hz / self.step_ns
        self._bands = tuple(1 << k for k in range(round(np.log2(widest)) + 1))
        self._keep = self._span + 2 * self._bands[-1]
        lags = 2 * self._keep + 1
        self._uy = np.zeros((GROUPS, len(self._u), len(self._y), lags))
        self._coincide = np.zeros((len(self._u), len(self._y), lags))
        self._uu = np.zeros((GROUPS, len(self._u), lags))
        self._yy = np.zeros((GROUPS, len(self._y), lags))
        self._changes = np.zeros(len(self._u), np.int64)
        self._steps = self._chunks = 0

    def add(self, episode: Episode) -> None:
        """Take an episode; does nothing where it has no commands, or once enough was seen."""
        given = [episode.streams[n] for n in {n for n, _ in self._u} if len(episode.streams.get(n, ()))]
        if not given or not self._y or self._steps >= _MOST_STEPS:
            return
        first, last = (int(f(s.times_ns[i] for s in given)) for f, i in ((min, 0), (max, -1)))
        count = min((last - first) // self.step_ns + 1, _MOST_STEPS - self._steps)
        length = int(np.clip(count // GROUPS + 1, min(4 * self._span, _CHUNK), _CHUNK))
        for at in range(0, count, length):
            rest = min(length, count - at)
            if rest >= 8:
                self._take(episode, first + (at + np.arange(rest, dtype=np.int64)) * self.step_ns)

    def estimates(self, leave_out: Collection[Column] = ()) -> tuple[Lag, ...]:
        """For each action column the best response in every channel that has one, the clearest first; or one `Lag`
        that says why there is none. Columns of state in `leave_out` may not answer."""
        asked = [k for k, column in enumerate(self._y) if column not in set(leave_out)]
        return tuple(lag for a in range(len(self._u)) for lag in self._estimate(a, asked))

    @property
    def _seconds(self) -> float:
        return self._steps * self.step_ns / 1e9

    def _take(self, episode: Episode, times_ns: NDArray[np.int64]) -> None:
        u, changes = self._moves(episode, self._u, times_ns, held=True)
        y, _ = self._moves(episode, self._y, times_ns, held=False)
        self._changes += changes
        size = 1 << int(np.ceil(np.log2(u.shape[1] + self._keep + 1)))
        fu, fy = np.fft.rfft(u, size, 1), np.fft.rfft(y, size, 1)
        fu2, fy2 = np.fft.rfft(u**2, size, 1), np.fft.rfft(y**2, size, 1)
        group = self._chunks % GROUPS
        reach = min(self._keep, size - 1)
        here = slice(self._keep - reach, self._keep + reach + 1)

        def lags(spectrum: NDArray[np.complex128]) -> NDArray[np.float64]:
            r = np.fft.irfft(spectrum, size, -1)
            return np.concatenate([r[..., -reach:], r[..., : reach + 1]], -1)

        for a in range(len(u)):
            self._uy[group, a, :, here] += lags(np.conj(fu[a]) * fy)
            self._coincide[a, :, here] += lags(np.conj(fu2[a]) * fy2)
        self._uu[group, :, here] += lags(np.abs(fu) ** 2 + 0j)
        self._yy[group, :, here] += lags(np.abs(fy) ** 2 + 0j)
        self._chunks += 1
        self._steps += len(times_ns)

    def _moves(
        self, episode: Episode, columns: list[Column], times_ns: NDArray[np.int64], *, held: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """[C, N] differences from one grid time to the next, 0 across holes, without their mean; changes a column."""
        out = np.zeros((len(columns), len(times_ns)))
        changes = np.zeros(len(columns), np.int64)
        for i, (name, k) in enumerate(columns):
            stream = episode.streams.get(name)
            if stream is None or not len(stream):
                continue
            channel = self.embodiment.channel(name)
            values, known = _on_grid(stream, k, times_ns, self._hole_ns(channel), held)
            both = known[1:] & known[:-1]
            moves = np.where(both, np.diff(values), 0.0)
            changes[i] = np.count_nonzero(moves)
            out[i, 1:] = np.where(both, moves - moves.sum() / max(both.sum(), 1), 0.0)
        return out, changes

    def _hole_ns(self, channel: Channel) -> int:
        return 4 * max(round(1e9 / (channel.rate_hz or self.embodiment.rate_hz)), self.step_ns)

    def _estimate(self, a: int, asked: list[int]) -> list[Lag]:
        """What follows action column `a`: the best of every channel that does, the clearest first."""
        name, column = self._u[a]

        def unknown(why: str, r: float = 0.0, confidence: float = 0.0) -> list[Lag]:
            return [Lag(name, column, None, "", 0, "", r, confidence, why, self._seconds)]

        if self._changes[a] < _LEAST_CHANGES:
            return unknown(f"no excitation: the command changes {self._changes[a]} times")
        sides = [self._sides(a, y) for y in asked]
        after, before = [p for s in sides for p in s[0]], [p for s in sides for p in s[1]]
        if not after and not before:
            return unknown("no observed state moves beside it")
        first = max(before, key=lambda p: abs(p.r), default=None)
        if first is not None and abs(first.r) > max(_CLEAR_R, max((abs(p.r) for p in after), default=0) / _CLEARLY):
            # a feedback law correlates so, too, but never this well: here the clocks or the columns are mixed up
            return [self._lag(a, first, self._agreement(a, first))]
        # what moves as much before the command as after it is rather its cause or its slope than its response
        led = {y: max((abs(p.r) for p in before if p.y == y), default=0.0) for y in asked}
        best: dict[str, Lag] = {}
        found = [p for p in after if abs(p.r) >= _LEAST_R and p.sure >= _LEAST_SURE]
        found.sort(key=_clarity, reverse=True)
        found = [p for p in found if p is found[0] or abs(p.r) >= _LEADS * led[p.y]]
        doubts = 0
        for peak in found:
            if self._y[peak.y][0] not in best:
                agree = self._agreement(a, peak)
                if agree >= _LEAST_AGREEMENT:
                    best[self._y[peak.y][0]] = self._lag(a, peak, agree)
                doubts += agree < _LEAST_AGREEMENT
        if best:
            return list(best.values())
        if doubts:
            return unknown("parts of the data disagree on the lag", found[0].r)
        strongest = max(after or before, key=lambda p: abs(p.r))
        response, k = self._y[strongest.y]
        return unknown(f"no observed state follows it (best: {response}.{k}, r = {strongest.r:.2f})", strongest.r)

    def _lag(self, a: int, peak: _Peak, agree: float) -> Lag:
        words = "rate" if peak.relation == _RATE else "level"
        lag_s = peak.lag * self.step_ns / 1e9
        return Lag(*self._u[a], lag_s, *self._y[peak.y], words, peak.r, agree, "", self._seconds)

    def _sides(self, a: int, y: int) -> tuple[list[_Peak], list[_Peak]]:
        """Peaks of a pair after the command and before it; none after it that a match at the command's own time, of
        a law that reacts to this state, explains as its shadow."""
        after = [p for r in (_LEVEL, _RATE) if (p := self._peak(a, y, r, causal=True)) is not None]
        before = [p for r in (_LEVEL, _RATE) if (p := self._peak(a, y, r, causal=False)) is not None]
        near = 1.5 * 1e9 / self.embodiment.rate_hz / self.step_ns
        law = max((abs(p.r) for p in before if -near <= p.lag), default=0.0)
        return [p for p in after if abs(p.r) >= law], before

    def _peak(self, a: int, y: int, relation: int, causal: bool) -> _Peak | None:
        """The best lag of one pair over all groups, in the band where it is clearest."""
        sums = self._uy[:, a, y].sum(0), self._uu[:, a].sum(0), self._yy[:, y].sum(0)
        found = [self._peak_in(a, y, sums, band, relation, causal) for band in self._bands]
        return max((p for p in found if p is not None), key=_clarity, default=None)

    def _peak_in(
        self, a: int, y: int, sums: tuple[NDArray[np.float64], ...], band: int, relation: int, causal: bool
    ) -> _Peak | None:
        """The largest local maximum on one side of zero; None when there is none, or a column never moves."""
        uy, uu, yy = sums
        together = self._coincide[a, y] / max(uu[len(uu) // 2] * yy[len(yy) // 2], 1e-300)
        if relation == _RATE:
            uy, yy = np.roll(uy, -1) - uy, 2 * yy - np.roll(yy, 1) - np.roll(yy, -1)
        uy, uu, yy = (_banded(r, band) for r in (uy, uu, yy))
        middle = len(uy) // 2
        power = uu[middle] * yy[middle]
        if not power > 0:
            return None
        r = uy / np.sqrt(power)
        # what is held from now on shows in the next rate, and in a level one step later at the earliest
        border = middle + (0 if relation == _RATE else 1)
        place = np.arange(border, middle + self._span) if causal else np.arange(middle - self._span + 1, border)
        size = np.abs(r)
        top = place[(size[place] >= size[place - 1]) & (size[place] >= size[place + 1])]
        if not len(top):
            return None
        at = int(top[size[top].argmax()])
        chance = max(float((uu / uu[middle] * (yy / yy[middle])).sum()), 1.0) / max(self._steps, 1)
        z = np.arctanh(min(size[at], 0.9999)) / np.sqrt(chance)
        # few large movements at the same time are few pieces of evidence, however many steps lie between them
        few = float(together[max(at - band, 0) : at + band + 1].max())
        sure = z * np.sqrt(chance / max(chance, few))
        lag = at - middle + _vertex(size[at - 1 : at + 2])
        return _Peak(float(r[at]), float(z), float(sure), lag, band, relation, y)

    def _agreement(self, a: int, best: _Peak) -> float:
        """Share of the groups with data whose peak, in the same band, lies where the whole's does."""
        control = 1e9 / self.embodiment.rate_hz / self.step_ns
        near = max(0.5 * control, 1.0, 0.1 * abs(best.lag))
        votes = []
        for g in range(GROUPS):
            part = self._uy[g, a, best.y], self._uu[g, a], self._yy[g, best.y]
            peak = self._peak_in(a, best.y, part, best.band, best.relation, best.lag > 0)
            if peak is not None:
                votes.append(abs(peak.lag - best.lag) <= near)
        return float(np.mean(votes)) if votes else 0.0


def _clarity(peak: _Peak) -> float:
    """How far a match is from chance, times how much of the movement it explains."""
    return peak.z * abs(peak.r)


def _on_grid(
    stream: Stream, column: int, times_ns: NDArray[np.int64], hole_ns: int, held: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """[N] values of one column at grid times, and where they are known: no hole longer than `hole_ns` is crossed."""
    values = stream.values.reshape(len(stream), -1)[:, column].astype(np.float64)
    good = stream.valid & np.isfinite(values)
    at_ns, values = stream.times_ns[good], values[good]
    if len(at_ns) < 2:
        return np.zeros(len(times_ns)), np.zeros(len(times_ns), np.bool_)
    left = np.searchsorted(at_ns, times_ns, side="right") - 1
    right = np.clip(left + 1, 0, len(at_ns) - 1)
    inside = (left >= 0) & (times_ns <= at_ns[-1])
    left = np.clip(left, 0, None)
    known = inside & (at_ns[right] - at_ns[left] <= hole_ns)
    if held:
        return values[left], known
    return np.interp(times_ns - at_ns[0], at_ns - at_ns[0], values), known


def _banded(r: NDArray[np.float64], band: int) -> NDArray[np.float64]:
    """The correlation of differences over `band` steps, from that of single steps."""
    if band == 1:
        return r
    box = np.ones(band)
    return np.convolve(r, np.convolve(box, box), "same")


def _vertex(three: NDArray[np.float64]) -> float:
    """Place of the top of a parabola through a peak and its neighbours, -0.5 to 0.5 steps from the middle."""
    if len(three) < 3:
        return 0.0
    bend = three[0] - 2 * three[1] + three[2]
    return float(np.clip(0.5 * (three[0] - three[2]) / bend, -0.5, 0.5)) if bend < 0 else 0.0
