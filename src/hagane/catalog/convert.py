"""Conversion as pure functions, so that it runs anywhere: logs to packed episodes, and those to all that is stored.

Workers hand large things over through files: `read_log` appends a log's episodes to a journal of its own, and
`prepare` reads records out of journals by their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hagane.catalog.columns_write import EpisodeRows, prepare_rows
from hagane.catalog.episode_io import pack_episode, unpack_episode, unpack_facts
from hagane.intake.detect import read_checked
from hagane.intake.lerobot_grid import Grid, align, control_times, instruction
from hagane.intake.lerobot_journal import Journal, read_record
from hagane.intake.lerobot_layout import feature_name
from hagane.intake.lerobot_rows import embodiment_features, grid_rows
from hagane.intake.lerobot_sketch import Sketch, empty_sketch, sketch_rows
from hagane.intake.lerobot_write import SetPart, set_part
from hagane.intake.options import Options
from hagane.terms import ConfigError, CorruptError, Embodiment, LogError

_END = b"hagane: end of the log"


@dataclass(frozen=True)
class LogJob:
    """One log to be read."""

    log: Path
    """File or folder."""
    kind: str
    """Its format."""
    embodiment: Embodiment
    """Whose channels are read."""
    options: Options
    """What people told about it."""
    journal: Path
    """Where its episodes are appended."""


Place = tuple[str, int]
"""A journal's path and the offset of a record in it."""


@dataclass(frozen=True)
class Entry:
    """A packed episode in a journal."""

    place: Place
    """Where it lies."""
    bytes: int
    """Its size."""
    content: str
    """Digest of its content."""


@dataclass(frozen=True)
class Packed:
    """A packed episode and what is told of it on the way in."""

    entry: Entry
    """Where it lies."""
    facts: dict[str, Any]
    """As `unpack_facts`."""


def read_log(job: LogJob) -> list[Packed]:
    """Append the checked episodes of a log to its journal, unless a finished one lies there.

    Raises:
        LogError: as `hagane.intake.read_logs`, and streams that do not fit the embodiment; the journal is removed.
        StoreError: the disk refuses.
    """
    held = _finished(job.journal)
    if held is not None:
        return held
    job.journal.unlink(missing_ok=True)
    journal = Journal(job.journal)
    try:
        for episode in read_checked(job.log, job.kind, job.embodiment, job.options):
            control_times(episode, job.embodiment)
            journal.append(pack_episode(episode))
        journal.append(_END)
    except (LogError, ConfigError):
        journal.close()
        job.journal.unlink(missing_ok=True)
        raise
    packed = packed_in(journal)[:-1]
    journal.close()
    return packed


def packed_in(journal: Journal) -> list[Packed]:
    """What a journal holds, in order; an end mark has no facts."""
    out = []
    for number, offset in enumerate(journal.offsets):
        payload = journal.record(number)
        facts = {} if payload == _END else unpack_facts(payload)
        out.append(Packed(Entry((str(journal.path), offset), len(payload), facts.get("content", "")), facts))
    return out


def _finished(path: Path) -> list[Packed] | None:
    """Episodes of a journal whose log was read to its end; None where it was not, or is damaged."""
    if not path.exists():
        return None
    try:
        journal = Journal(path)
        packed = packed_in(journal)
        journal.close()
    except CorruptError:
        return None
    return packed[:-1] if packed and not packed[-1].facts else None


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that is stored of some consecutive episodes."""

    facts: tuple[dict[str, Any], ...]
    """Of each, as `unpack_facts`, with "steps"."""
    streams: tuple[pa.Table, ...]
    """Native-rate streams of each."""
    rows: tuple[EpisodeRows, ...]
    """Training rows of each."""
    lerobot: SetPart
    """The peers' view."""
    sketches: dict[str, Sketch]
    """Statistics by channel, over all of them."""


@dataclass(frozen=True)
class PrepareJob:
    """Some consecutive episodes to be prepared."""

    places: tuple[Place, ...]
    """Where they lie."""
    embodiment: Embodiment
    """Their machine."""


def prepare(job: PrepareJob) -> Prepared:
    """Align episodes, and make all that is stored of them.

    Raises:
        LogError: an episode whose streams do not fit the embodiment, a picture that cannot be read.
        CorruptError: a journal was damaged.
    """
    machine = job.embodiment
    facts, tables, rows, cells, grids = [], [], [], [], []
    for path, offset in job.places:
        fact, table, episode = unpack_episode(read_record(Path(path), offset))
        grid, task = align(episode, machine), instruction(episode, machine)
        facts.append({**fact, "steps": len(grid)})
        tables.append(table)
        rows.append(prepare_rows(episode.id, task, grid, machine))
        cells.append((grid_rows(grid, machine), task))
        grids.append(grid)
    part = set_part(embodiment_features(machine), cells)
    return Prepared(tuple(facts), tuple(tables), tuple(rows), part, _sketches(grids, machine, part))


def _sketches(grids: Sequence[Grid], machine: Embodiment, part: SetPart) -> dict[str, Sketch]:
    """One sketch a channel over valid samples on the control grid; action channels by their commands.

    A set's columns are taken over all its valid places, a picture's colours over all pixels (0..255).
    """
    out: dict[str, Sketch] = {}
    for c in machine.observe:
        if c.kind == "image":
            out[c.name] = part.stats.colours.get(feature_name(c.name), empty_sketch(3))
        elif c.kind != "text":
            out[c.name] = sketch_rows(
                np.concatenate([g.observe[c.name].values[g.observe[c.name].valid] for g in grids])
            )
    usable = [np.all([g.command[c.name].valid for c in machine.act], axis=0) for g in grids]
    for c in machine.act:
        picked = [g.command[c.name].values[ok] for g, ok in zip(grids, usable, strict=True)]
        out[c.name] = sketch_rows(np.concatenate(picked))
    return out
