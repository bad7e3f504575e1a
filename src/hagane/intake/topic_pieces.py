"""An episode of a log, cut where all its topics were silent, with what was odd told on each piece's own clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hagane.intake.streams import episode_ids, on_episode_clock, pieces, unmapped
from hagane.terms import Episode, Finding, Stream
from hagane.terms.episode import FindingKind

_GONE_S, _GONE_PERIODS = 2.0, 10


@dataclass(frozen=True)
class Remark:
    """A finding before its episode has a name and a clock."""

    kind: FindingKind
    """What was seen."""
    stream: str
    """Stream name, "*" for all."""
    time_ns: int
    """Where it begins, on the clock of the log."""
    count: int
    """Samples concerned."""
    detail: str
    """In words, with figures."""


def pieces_of(whole: Episode, remarks: Sequence[Remark], missing: Mapping[str, str], gap_s: float) -> list[Episode]:
    """Episodes of a log, each on its own clock, with findings.

    Args:
        whole: all streams, on the clock of the log.
        remarks: what was odd, on that clock.
        missing: channels without a stream, and why.
        gap_s: a longer silence of all streams starts another episode; 0 never does.
    """
    times_ns = np.unique(np.concatenate([s.times_ns for s in whole.streams.values()]))
    if not len(times_ns):
        return [whole.with_findings(*(unmapped(whole.id, name, why) for name, why in missing.items()))]
    breaks = np.diff(times_ns) > round(gap_s * 1e9) if gap_s > 0 else np.zeros(len(times_ns) - 1, bool)
    # what was odd about a sample that is no sample of a channel (a lost picture) may lie before or after all of them
    first_ns, last_ns = int(times_ns[0]), int(times_ns[-1])
    told = [replace(r, time_ns=min(max(r.time_ns, first_ns), last_ns)) for r in remarks]
    starts_ns = [int(times_ns[a]) for a, _ in pieces(breaks)]
    spans = zip(starts_ns, [*starts_ns[1:], last_ns + 1], strict=True)
    ids = episode_ids(whole.id, len(starts_ns))
    return [_piece(replace(whole, id=name), told, missing, a, b) for name, (a, b) in zip(ids, spans, strict=True)]


def _piece(
    whole: Episode, remarks: Sequence[Remark], missing: Mapping[str, str], start_ns: int, end_ns: int
) -> Episode:
    """What lies in [start_ns, end_ns)."""
    streams = {name: _between(s, start_ns, end_ns) for name, s in whole.streams.items()}
    absent = dict(missing) | {name: "no sample in this part of the log" for name, s in streams.items() if not len(s)}
    streams = {name: s for name, s in streams.items() if len(s)}
    seen = [r for r in remarks if start_ns <= r.time_ns < end_ns] + _vanished(streams)
    found = [Finding(r.kind, whole.id, r.stream, r.time_ns - start_ns, r.count, r.detail) for r in seen]
    missed = [unmapped(whole.id, name, why) for name, why in absent.items()]
    return on_episode_clock(replace(whole, streams=streams)).with_findings(*missed, *found)


def _between(stream: Stream, start_ns: int, end_ns: int) -> Stream:
    rows = (stream.times_ns >= start_ns) & (stream.times_ns < end_ns)
    if rows.all():
        return stream
    return replace(stream, times_ns=stream.times_ns[rows], values=stream.values[rows], valid=stream.valid[rows])


def _vanished(streams: Mapping[str, Stream]) -> list[Remark]:
    """Streams that begin long after the others, or end long before them."""
    first_ns = min(int(s.times_ns.min()) for s in streams.values())
    last_ns = max(int(s.times_ns.max()) for s in streams.values())
    found = []
    for name, stream in streams.items():
        if len(stream) < 3:
            continue
        times_ns = np.sort(stream.times_ns)
        period_ns = float(np.median(np.diff(times_ns)))
        for at_ns, gap_ns, words in (
            (int(times_ns[-1]), last_ns - int(times_ns[-1]), "ends {} s before the log does"),
            (int(times_ns[0]), int(times_ns[0]) - first_ns, "begins {} s after the log does"),
        ):
            if gap_ns > max(_GONE_S * 1e9, _GONE_PERIODS * period_ns):
                lost = round(gap_ns / max(period_ns, 1.0))
                found.append(Remark("missing", name, at_ns, lost, f"it {words.format(f'{gap_ns / 1e9:.3f}')}"))
    return found
