"""Tags that each have their own stamps (a long table, an OPC UA history) into Episodes.

Every tag is a series at its native stamps. A channel of several tags has the stamps of its first one; the others
meet them where they have a reading within half a period. Nothing is filled: where a tag is silent, nothing is valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hagane.intake.quality import GOOD, quality_finding
from hagane.intake.sources import column_sources, set_sources, units_of
from hagane.intake.streams import episode_ids, known_outcome, nearest_within, note, on_episode_clock, pieces, unmapped
from hagane.terms import APPLIED, Channel, Embodiment, Episode, Finding, LogError, Stream

APPLIED_ENDING = "_APPLIED"
"""Ending of the name of a tag that holds an action as applied."""
GAP_S = 600.0
"""A silence of all tags longer than this starts a new episode, unless `Options.gap_s` says otherwise."""
_VANISHED = 20  # a tag silent for so many of its usual steps, up to the end, is said to have vanished


@dataclass(frozen=True, eq=False)
class Series:
    """Readings of one tag, in order of time."""

    times_ns: NDArray[np.int64]
    """[N] nanoseconds since 1970, or on the log's own clock."""
    values: NDArray[np.float64]
    """[N] readings; NaN where there is none."""
    present: NDArray[np.bool_]
    """[N] where there is a reading, of whatever quality."""
    grade: NDArray[np.int8]
    """[N] quality: `quality.GOOD`, UNCERTAIN, BAD or UNKNOWN."""
    unit: str = ""
    """Unit that the log gives; "" when it gives none."""
    latency_ns: int = 0
    """Median time from measurement to arrival, where the log tells both."""

    def __len__(self) -> int:
        return len(self.times_ns)

    def count(self, first_ns: int, last_ns: int) -> int:
        """How many readings `between` would give."""
        a, b = np.searchsorted(self.times_ns, [first_ns, last_ns + 1])
        return int(b - a)

    def between(self, first_ns: int, last_ns: int) -> Series:
        """The readings from first_ns to last_ns, both included."""
        a, b = np.searchsorted(self.times_ns, [first_ns, last_ns + 1])
        rows = slice(int(a), int(b))
        return replace(
            self,
            times_ns=self.times_ns[rows],
            values=self.values[rows],
            present=self.present[rows],
            grade=self.grade[rows],
        )


@dataclass(frozen=True)
class Span:
    """One episode's part of a log."""

    id: str
    """Episode id."""
    first_ns: int
    """Its first stamp."""
    last_ns: int
    """Its last stamp."""
    task: str = ""
    """Instruction that the log gives."""
    outcome: str = ""
    """Outcome that the log gives."""


def sources_of(channel: Channel) -> tuple[str, ...]:
    """All tags of a vector or set channel, place by place; none for the other kinds."""
    if channel.kind not in ("vector", "set"):
        return ()
    return sum(set_sources(channel), ()) if channel.kind == "set" else column_sources(channel)


def tags_of(embodiment: Embodiment) -> tuple[str, ...]:
    """All tags that an embodiment asks for, those of actions as applied included."""
    observed = [s for c in embodiment.observe for s in sources_of(c)]
    commanded = [s for c in embodiment.act for s in sources_of(c)]
    return tuple(dict.fromkeys((*observed, *commanded, *(s + APPLIED_ENDING for s in commanded))))


def spans_by_silence(series: Mapping[str, Series], gap_s: float, stem: str) -> list[Span]:
    """Episodes between silences of all tags."""
    times_ns = np.unique(np.concatenate([s.times_ns for s in series.values()] or [np.zeros(0, np.int64)]))
    if not len(times_ns):
        return []
    found = pieces(np.diff(times_ns) > round((gap_s or GAP_S) * 1e9))
    names = episode_ids(stem, len(found))
    return [Span(name, int(times_ns[a]), int(times_ns[b - 1])) for name, (a, b) in zip(names, found, strict=True)]


def told_spans(
    series: Mapping[str, Series], spans: Sequence[Span], embodiment: Embodiment, where: str
) -> tuple[list[Span], tuple[str, ...]]:
    """The spans in which some channel has a reading, and a note that says how many others there are.

    Raises:
        LogError: no span is one of these.
    """
    wanted = _wanted(embodiment)
    told = [s for s in spans if not all(_why_silent(series, s, channel, ending) for channel, ending in wanted)]
    if not told:
        raise LogError("no channel has readings of its tags", where=where, next_step="check the channels' source")
    lost = len(spans) - len(told)
    return told, (f"{lost} episodes without a reading of any channel are left out",) if lost else ()


def series_episodes(
    series: Mapping[str, Series],
    spans: Sequence[Span],
    embodiment: Embodiment,
    digest: str,
    task: str,
    notes: Sequence[str],
) -> Iterator[Episode]:
    """The episodes of a log of tags, one at a time; its notes go with the first.

    Args:
        series: readings by source.
        spans: episodes, in order of time, as `told_spans` gives them.
        embodiment: whose channels are built.
        digest: sha256 of the source.
        task: instruction where the log has none.
        notes: what had to be found out about the whole log.
    """
    for number, span in enumerate(spans):
        streams: dict[str, Stream] = {}
        findings = [note(span.id, "*", text) for text in notes] if number == 0 else []
        for channel, ending in _wanted(embodiment):
            name = channel.name + (APPLIED if ending else "")
            if why := _why_silent(series, span, channel, ending):
                findings += [unmapped(span.id, name, why)] if not ending else []
                continue
            whole = [series.get(s + ending) for s in sources_of(channel)]
            parts = [p if p is None else p.between(span.first_ns, span.last_ns) for p in whole]
            found = [p for p in parts if p is not None]
            streams[name] = _stream(channel, parts)
            findings += _quality(span, name, found)
            findings += _vanished(span, name, found)
        moved = tuple(_on_clock(findings, streams))
        outcome = known_outcome(span.outcome)
        yield on_episode_clock(Episode(span.id, embodiment.name, streams, span.task or task, outcome, digest, moved))


def _wanted(embodiment: Embodiment) -> list[tuple[Channel, str]]:
    """Channels that tags can hold, and the ending of their tags: action channels twice, as commanded and applied."""
    numeric = [c for c in embodiment.channels() if c.kind in ("vector", "set")]
    return [(c, e) for c in numeric for e in (("", APPLIED_ENDING) if c in embodiment.act else ("",))]


def _why_silent(series: Mapping[str, Series], span: Span, channel: Channel, ending: str) -> str:
    """Why a channel has no stream in a span; "" when it has one."""
    parts = [series.get(s + ending) for s in sources_of(channel)]
    if not any(p is not None and p.count(span.first_ns, span.last_ns) for p in parts):
        return "no reading of its tags in the episode"
    if channel.kind == "vector" and None in parts:
        return "some of its tags have no reading in the log"
    return ""


def _on_clock(findings: Sequence[Finding], streams: Mapping[str, Stream]) -> Iterator[Finding]:
    """Findings with times of the log, moved to the episode's clock."""
    start_ns = min(int(s.times_ns.min()) for s in streams.values() if len(s))
    for f in findings:
        yield replace(f, time_ns=max(0, f.time_ns - start_ns)) if f.time_ns else f


def _stream(channel: Channel, parts: Sequence[Series | None]) -> Stream:
    """A stream of the stamps of the first tag that has readings."""
    lead = next(p for p in parts if p is not None and len(p))
    times_ns = lead.times_ns
    values = np.full((len(times_ns), len(parts)), np.nan)
    present = np.zeros(values.shape, bool)
    for k, part in enumerate(parts):
        if part is None or not len(part):
            continue
        index, near = nearest_within(part.times_ns, times_ns)
        values[:, k] = np.where(near, part.values[index], np.nan)
        present[:, k] = near & part.present[index] & (part.grade[index] == GOOD)
    declared = units_of(channel) * (channel.places if channel.kind == "set" else 1)
    units = tuple((p.unit if p is not None else "") or u for p, u in zip(parts, declared, strict=True))
    if channel.kind == "vector":
        return Stream(times_ns, values, np.asarray(present.all(1)), units, latency_ns=lead.latency_ns)
    values, present = values.reshape(-1, *channel.shape), present.reshape(-1, *channel.shape)
    # an absent object is an empty first cell; a hole in a present one stays a NaN for the checks to find
    valid = present[:, :, 0]
    values[~valid] = 0.0
    return Stream(times_ns, values, valid, units[: channel.columns], latency_ns=lead.latency_ns)


def _quality(span: Span, name: str, parts: Sequence[Series]) -> list[Finding]:
    times_ns = np.concatenate([p.times_ns for p in parts])
    grade = np.concatenate([p.grade for p in parts])
    return quality_finding(span.id, name, times_ns, grade, np.concatenate([p.present for p in parts]))


def _vanished(span: Span, name: str, parts: Sequence[Series]) -> list[Finding]:
    """A finding for a channel one of whose tags falls silent long before the others do, or speaks late."""
    found = []
    for part in parts:
        if len(part) < 8:
            continue
        steps_ns = np.diff(part.times_ns)
        usual_ns = max(float(np.median(steps_ns)), float(steps_ns.max()) / 2, 1.0)
        first_ns, last_ns = int(part.times_ns[0]), int(part.times_ns[-1])
        for silence_ns, at_ns, words in (
            (span.last_ns - last_ns, last_ns, "after"),
            (first_ns - span.first_ns, first_ns, "before"),
        ):
            if silence_ns > _VANISHED * usual_ns:
                text = f"no reading {words} {(at_ns - span.first_ns) / 1e9:.3f} s, {silence_ns / 1e9:.3f} s long"
                found.append(Finding("missing", span.id, name, at_ns, round(silence_ns / usual_ns), text))
    return found[:1]
