"""Sums over streams and episodes: what is there, how fast it comes, and which episodes are of another length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hagane.catalog.symptoms import ChannelFacts, Symptom, severity_of
from hagane.terms import APPLIED, Channel, Embodiment, Episode

_FASTER, _IRREGULAR = 1.5, 0.5
_LEAST_SAMPLES, _LEAST_EPISODES = 10, 8
_LENGTH_TIMES, _LENGTH_MADS = 4.0, 6.0


@dataclass
class _Sum:
    """One stream over all episodes."""

    episodes: int = 0
    samples: int = 0
    valid: int = 0
    absent: int = 0
    absent_first: str = ""
    why: str = ""
    periods_s: list[float] = field(default_factory=list)
    uneven: int = 0


class StreamSums:
    """Takes episodes one by one."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self._channels = {c.name: c for c in embodiment.channels()}
        self._sums: dict[str, _Sum] = {name: _Sum() for name in self._channels}
        self._episodes = 0

    def add(self, episode: Episode) -> None:
        """Take one episode."""
        self._episodes += 1
        why = {f.stream: f.detail for f in episode.findings if f.kind == "unmapped"}
        for name in {**self._sums, **episode.streams}:
            s = self._sums.setdefault(name, _Sum())
            stream = episode.streams.get(name)
            count = 0 if stream is None else len(stream)
            good = int(stream.valid.reshape(count, -1).any(1).sum()) if stream is not None and count else 0
            channel = self._channels.get(name)
            # a set may well be empty: no other car is near; a text is told once or not at all
            needed = channel is not None and channel.kind != "text" and not (channel.kind == "set" and count)
            if needed and not good:
                s.absent += 1
                s.absent_first = s.absent_first or episode.id
                s.why = s.why or why.get(name, "no sample is valid" if count else "")
            if stream is None or not count:
                continue
            s.episodes, s.samples, s.valid = s.episodes + 1, s.samples + count, s.valid + good
            steps_s = np.diff(stream.times_ns) / 1e9
            steps_s = steps_s[steps_s > 0]
            if len(steps_s) >= _LEAST_SAMPLES:
                low, middle, high = np.percentile(steps_s, (25, 50, 75)).tolist()
                s.periods_s.append(middle)
                s.uneven += high - low > _IRREGULAR * middle

    def samples(self, name: str) -> int:
        """Samples of a stream so far; 0 for a name that is none."""
        return self._sums[name].samples if name in self._sums else 0

    def facts(self) -> tuple[ChannelFacts, ...]:
        """Every stream: those of the machine first, in its order."""
        return tuple(self._facts(name) for name in self._sums)

    def symptoms(self) -> Iterator[Symptom]:
        """Streams that are absent, and streams faster than declared (slower ones are a finding of intake)."""
        for name, s in self._sums.items():
            if s.absent:
                share = s.absent / self._episodes
                where = "in no episode" if s.absent == self._episodes else f"absent in {s.absent} episodes"
                text = f"{where}: {s.why}" if s.why else where
                severity = severity_of("no-samples", name, share)
                yield Symptom(severity, "no-samples", name, s.absent, 0, share, s.absent_first, 0, text)
            f = self._facts(name)
            # a stream of changes has no rate that could be compared
            even = s.periods_s and s.uneven <= len(s.periods_s) / 2
            if even and f.declared_hz and f.measured_hz > _FASTER * f.declared_hz:
                text = f"{f.measured_hz:.4g} samples a second, the embodiment says {f.declared_hz:g}"
                yield Symptom("warning", "rate", name, f.episodes, f.samples, 1.0, "", 0, text)

    def _facts(self, name: str) -> ChannelFacts:
        channel: Channel | None = self._channels.get(name.removesuffix(APPLIED))
        s = self._sums[name]
        hz = 1 / float(np.median(s.periods_s)) if s.periods_s else 0.0
        declared = (channel.rate_hz or self.embodiment.rate_hz) if channel else 0.0
        kind, unit = (channel.kind, channel.unit) if channel else ("unknown", ())
        return ChannelFacts(name, kind, unit, s.episodes, s.samples, s.valid / max(s.samples, 1), declared, hz)


class Lengths:
    """Takes episodes one by one."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment
        self.seconds: list[float] = []
        """Length of every episode."""
        self.steps: list[int] = []
        """Control steps of every episode."""
        self._ids: list[str] = []

    def add(self, episode: Episode, steps: int) -> None:
        """Take one episode and its number of control steps."""
        first_ns, last_ns = episode.span_ns
        self.seconds.append((last_ns - first_ns) / 1e9)
        self.steps.append(steps)
        self._ids.append(episode.id)

    def symptoms(self) -> Iterator[Symptom]:
        """Episodes far shorter or longer than the others, and episodes of one step."""
        seconds = np.array(self.seconds)
        if len(seconds) >= _LEAST_EPISODES:
            logs = np.log(np.maximum(seconds, 0.5 / self.embodiment.rate_hz))
            middle = float(np.median(logs))
            mad = float(np.median(np.abs(logs - middle)))
            spread = max(np.log(_LENGTH_TIMES), _LENGTH_MADS * 1.4826 * mad)
            for word, odd in (("shorter", logs < middle - spread), ("longer", logs > middle + spread)):
                if odd.any():
                    far_s = float(seconds[odd].min() if word == "shorter" else seconds[odd].max())
                    text = f"far {word} than the median of {np.exp(middle):.3g} s, the farthest {far_s:.3g} s"
                    yield self._odd(np.flatnonzero(odd).tolist(), text)
        if single := [i for i, n in enumerate(self.steps) if n < 2]:
            yield self._odd(single, "a single control step")

    def _odd(self, numbers: list[int], text: str) -> Symptom:
        share = len(numbers) / len(self.steps)
        return Symptom("warning", "length", "*", len(numbers), 0, share, self._ids[numbers[0]], 0, text)
