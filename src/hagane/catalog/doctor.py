"""The doctor: examines episodes one by one and says what is wrong with the whole of them.

What the checks of intake found is kept with the data and taken as it is; streams without a finding are checked again
only where nobody knows that they were (data sets of a catalog). The rest is what no single stream shows: lags from
commands to states, labels that leak, streams that are absent, lengths, and metadata against what lies on disk.
Memory depends on the number of columns and episodes, not on their length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hagane.catalog.contents import stored_of
from hagane.catalog.counts import count_set, count_stored
from hagane.catalog.lag import Lag, LagEstimator
from hagane.catalog.relations import Relations, align_numbers
from hagane.catalog.stream_sums import Lengths, StreamSums
from hagane.catalog.symptoms import MOST_FINDINGS, SEVERITIES, Diagnosis, Symptom, severity_of
from hagane.intake import check_episode
from hagane.intake.lerobot_grid import Grid
from hagane.terms import Embodiment, Episode, Finding, LogError

if TYPE_CHECKING:
    from hagane.catalog.catalog import Catalog


class Watcher(Protocol):
    """Looks at the episodes as the doctor passes them, so that data is read once."""

    def add(self, episode: Episode, grid: Grid) -> None:
        """Take one episode, findings included, and its control grid (pictures are zeros there)."""


@dataclass
class _Tally:
    """Findings of one kind in one stream."""

    first: Finding
    worst: Finding
    count: int = 0
    places: int = 0
    episodes: int = 0
    last_episode: str = ""


def examine_set(catalog: Catalog, name: str, watchers: Sequence[Watcher] = ()) -> Diagnosis:
    """Examine a data set of a catalog (purpose "view").

    Raises:
        Refused: the contract does not permit it.
        CorruptError: stored bytes differ from their digest.
    """
    episodes = catalog.episodes(name, "view")
    record, embodiment = catalog.record(name), catalog.embodiment(name)
    doctor = Doctor(embodiment, recheck=True, watchers=watchers)
    for episode in episodes:
        doctor.add(episode)
    more = count_stored(stored_of(catalog, name).shelf, embodiment, record, doctor.steps)
    return doctor.diagnosis(name, record.digest, more)


def examine_log(
    path: Path, embodiment: Embodiment, episodes: Iterable[Episode], watchers: Sequence[Watcher] = ()
) -> Diagnosis:
    """Examine a log before it comes in; `episodes` are what `read_logs` gives. A log that is refused on the way is
    examined up to that place.

    Raises:
        LogError: nothing could be read, and the log's own metadata does not say why.
    """
    doctor = Doctor(embodiment, recheck=False, watchers=watchers)
    more = count_set(path)
    try:
        for episode in episodes:
            doctor.add(episode)
    except LogError as e:
        if not doctor.steps and not more:
            raise
        where = f"{e.where}: " if e.where else ""
        more.append(Symptom("serious", "refused", "*", 0, 0, 0.0, doctor.last, 0, f"{where}{e.what}"))
    return doctor.diagnosis(str(path), "", more)


class Doctor:
    """Takes episodes one by one.

    Args:
        embodiment: the machine.
        recheck: run intake's checks again on streams without a finding.
        watchers: look at every episode, too.
    """

    def __init__(self, embodiment: Embodiment, *, recheck: bool = False, watchers: Sequence[Watcher] = ()) -> None:
        self.embodiment, self.recheck, self.watchers = embodiment, recheck, watchers
        self.last = ""
        """Id of the newest episode."""
        self._lag, self._relations = LagEstimator(embodiment), Relations(embodiment)
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._streams, self._lengths = StreamSums(embodiment), Lengths(embodiment)
        self._findings: list[Finding] = []
        self._left_out = 0
        self._outcomes: Counter[str] = Counter()

    @property
    def steps(self) -> list[int]:
        """Control steps of every episode so far."""
        return self._lengths.steps

    def add(self, episode: Episode) -> None:
        """Examine one episode.

        Raises:
            LogError: its streams do not fit the machine.
        """
        if self.recheck:
            episode = episode.with_findings(*_unknown(episode, self.embodiment))
        grid = align_numbers(episode, self.embodiment)
        self._relations.add(grid)
        self._lag.add(episode)
        self._streams.add(episode)
        self._lengths.add(episode, len(grid))
        for finding in episode.findings:
            self._tally(finding)
        self.last = episode.id
        self._outcomes[episode.outcome] += 1
        for watcher in self.watchers:
            watcher.add(episode, grid)

    def diagnosis(self, source: str, digest: str = "", more: Iterable[Symptom] = ()) -> Diagnosis:
        """What is wrong, the worst first."""
        leaks = {column for _, column, _, _ in self._relations.leaks()}
        lags = self._lag.estimates(leave_out=leaks)
        symptoms = [*more, *self._told(), *self._streams.symptoms(), *self._relations.symptoms()]
        symptoms += [*self._lengths.symptoms(), *self._moves_first(lags)]
        symptoms.sort(key=lambda s: (SEVERITIES.index(s.severity), -s.share, s.kind, s.channel))
        lengths_s = tuple(self._lengths.seconds)
        return Diagnosis(
            source,
            self.embodiment.name,
            digest,
            len(lengths_s),
            sum(lengths_s),
            tuple(symptoms),
            self._streams.facts(),
            lags,
            lengths_s,
            dict(sorted(self._outcomes.items())),
            tuple(self._findings),
            self._left_out,
        )

    def _tally(self, f: Finding) -> None:
        if len(self._findings) < MOST_FINDINGS:
            self._findings.append(f)
        else:
            self._left_out += 1
        if f.kind == "unmapped":  # told as absent streams
            return
        tally = self._tallies.setdefault((f.kind, f.stream), _Tally(f, f))
        tally.worst = f if f.count > tally.worst.count else tally.worst
        tally.count, tally.places = tally.count + f.count, tally.places + 1
        tally.episodes += f.episode != tally.last_episode
        tally.last_episode = f.episode

    def _told(self) -> Iterator[Symptom]:
        """Findings of intake, one row for each kind and stream."""
        for (kind, name), t in self._tallies.items():
            whole = self._streams.samples(name) + (t.count if kind == "missing" else 0)
            share = min(t.count / whole, 1.0) if whole else t.episodes / len(self.steps)
            text = t.first.detail
            if t.places > 1 and kind == "note":
                text += f"; and {t.places - 1} more notes, shown by --each"
            elif t.places > 1:
                text = f"{t.places} places, {t.count} samples in all; the largest: {t.worst.detail}"
            where = t.first.episode, t.first.time_ns
            yield Symptom(severity_of(kind, name, share), kind, name, t.episodes, t.count, share, *where, text)

    def _moves_first(self, lags: Sequence[Lag]) -> Iterator[Symptom]:
        step_s = 1 / self.embodiment.rate_hz
        for lag in lags:
            if lag.lag_s is not None and lag.lag_s < -0.5 * step_s:
                text = f"{lag.response}.{lag.response_column} moves {-lag.lag_s:.3f} s before {lag.action}.{lag.column}"
                text += f" (r = {lag.correlation:.2f})"
                yield Symptom("warning", "moves-first", lag.response, 0, 0, abs(lag.correlation), "", 0, text)


def _unknown(episode: Episode, embodiment: Embodiment) -> list[Finding]:
    """Findings in streams that carry none: data added without checks, or before a check existed.

    A stream with a finding was checked, and its flags are lowered; checking it again would tell other figures.
    """
    told = {f.stream for f in episode.findings}
    again = check_episode(replace(episode, findings=()), embodiment)
    return [f for f in again.findings if f.stream not in told]
