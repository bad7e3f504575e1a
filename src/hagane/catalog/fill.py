"""Filling the staging area of a data set: packed episodes in journals, from which a run after a crash goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hagane import __version__
from hagane.catalog.convert import Entry, LogJob, packed_in, read_log
from hagane.catalog.episode_io import episode_digest, pack_episode, unpack_facts
from hagane.catalog.store import Progress
from hagane.catalog.workers import Mapper
from hagane.intake.detect import find_logs, refuse_twice
from hagane.intake.lerobot_grid import control_times
from hagane.intake.lerobot_journal import Journal
from hagane.intake.options import Options
from hagane.terms import Embodiment, Episode, LogError, digest_value, dump_toml


def fill_journal(path: Path, embodiment: Embodiment, episodes: Iterable[Episode], progress: Progress) -> list[Entry]:
    """Append the episodes that the journal does not hold yet; begin again where they differ from it.

    Raises:
        LogError: no episode, an id used twice, an episode of another machine, streams that do not fit it.
        StoreError: the disk refuses.
    """
    journal = Journal(path)
    held = [unpack_facts(p)["content"] for p in journal.records()]
    seen: set[str] = set()
    count = 0
    try:
        for episode in episodes:
            if episode.embodiment != embodiment.name:
                raise LogError(f"is of {episode.embodiment!r}, not of {embodiment.name!r}", where=episode.id)
            refuse_twice(episode.id, seen, Path(embodiment.name))
            control_times(episode, embodiment)
            if count >= len(held) or held[count] != episode_digest(episode):
                journal.cut(count)
                held = held[:count]
                journal.append(pack_episode(episode))
            count += 1
            progress("read", count)
        journal.cut(count)
        if not count:
            raise LogError("there is no episode to add", next_step="check what the log holds")
        return [p.entry for p in packed_in(journal)]
    finally:
        journal.close()


def log_jobs(work: Path, path: Path, embodiment: Embodiment, options: Options) -> list[LogJob]:
    """A job a log. Journals are named by what decides their content (the log, definitions given or beside it, what
    people told, our version), so that a log is read again when any of it changed.

    Raises:
        LogError: there is no log, or one of no known format.
    """
    jobs = []
    given = [_stamps(p) for p in (options.dbc, options.messages) if p is not None]
    told = digest_value([__version__, dump_toml(embodiment), options, given])
    for number, (log, kind) in enumerate(find_logs(path)):
        beside = [_stamps(p) for p in sorted(log.parent.glob("*.dbc"))]
        key = digest_value([told, kind, _stamps(log), beside])[:16]
        jobs.append(LogJob(log, kind, embodiment, options, work / "logs" / f"{number:06d}-{key}"))
    return jobs


def _stamps(path: Path) -> list[list[str | int]]:
    """Name, size and time of change of a file, or of every file in a folder; nothing where there is none."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def fill_from_logs(
    jobs: Sequence[LogJob],
    path: Path,
    mapper: Mapper,
    seen: Callable[[Mapping[str, Any]], None],
    progress: Progress,
) -> list[Entry]:
    """Read logs into a journal each; returns all their episodes in the order of the logs.

    Raises:
        LogError: as `hagane.intake.read_logs`, or no episode in any of them.
        StoreError: the disk refuses, or a worker died.
    """
    entries: list[Entry] = []
    ids: set[str] = set()
    for packed in mapper(read_log, jobs):
        for one in packed:
            refuse_twice(one.facts["id"], ids, path)
            seen(one.facts)
            entries.append(one.entry)
            progress("read", len(entries))
    if not entries:
        raise LogError("there is no episode to add", where=str(path), next_step="check what the log holds")
    return entries
