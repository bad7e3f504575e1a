"""Making training columns: an episode's part anywhere, then the parts end to end in a folder that nobody reads yet."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hagane.catalog.columns import VERSION, PictureMode
from hagane.catalog.flat import FlatFile
from hagane.catalog.pictures import PictureWriter, as_jpegs
from hagane.catalog.rows import RowLayout, last_command, pack_rows, step_flags
from hagane.catalog.video import VideoWriter, encode_video
from hagane.intake.lerobot_grid import Grid
from hagane.intake.lerobot_journal import disk_error, replace_file
from hagane.terms import Embodiment, canonical_json, digest_bytes


@dataclass(frozen=True, eq=False)
class EpisodeRows:
    """What the cache holds of one episode: made anywhere, appended by `ColumnsWriter`."""

    id: str
    """Episode id."""
    task: str
    """Instruction."""
    records: NDArray[Any]
    """[K] records."""
    pictures: Mapping[str, Sequence[bytes]]
    """By image channel: JPEGs, or the one video of the episode (none without a picture)."""
    counts: Mapping[str, int]
    """By image channel: distinct pictures."""


def prepare_rows(
    episode_id: str, task: str, grid: Grid, embodiment: Embodiment, mode: PictureMode = "jpeg"
) -> EpisodeRows:
    """The cache's part of one aligned episode.

    Raises:
        LogError: a picture that cannot be read, or of another size than its channel's.
    """
    layout = RowLayout(embodiment)
    pictures: dict[str, Sequence[bytes]] = {}
    numbers: dict[str, NDArray[np.int64]] = {}
    counts: dict[str, int] = {}
    for c in layout.seen:
        if c.kind == "image":
            jpegs, numbers[c.name] = as_jpegs(grid.observe[c.name].values, grid.observe[c.name].valid, c)
            counts[c.name] = len(jpegs)
            pictures[c.name] = jpegs if mode == "jpeg" or not jpegs else [encode_video(jpegs, embodiment.rate_hz)]
    return EpisodeRows(episode_id, task, pack_rows(grid, layout, numbers), pictures, counts)


class ColumnsWriter:
    """Appends episodes to a folder that nobody reads yet."""

    def __init__(
        self, folder: Path, name: str, digest: str, embodiment: Embodiment, mode: PictureMode = "jpeg"
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.name, self.digest, self.mode = folder, name, digest, mode
        self._layout = RowLayout(embodiment)
        self._rows, self._flags, self._last = (FlatFile(folder / f"{n}.bin") for n in ("rows", "flags", "last"))
        make = PictureWriter if mode == "jpeg" else VideoWriter
        self._pictures = {
            c.name: make(folder, f"pictures-{i:03d}") for i, c in enumerate(self._layout.seen) if c.kind == "image"
        }
        self._first: dict[str, list[int]] = {name: [] for name in self._pictures}
        self._total = dict.fromkeys(self._pictures, 0)
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._ids: list[str] = []
        self._tasks: list[str] = []

    def add(self, rows: EpisodeRows) -> None:
        """Append one episode."""
        self._starts.append(sum(self._lengths[-1:]) + sum(self._starts[-1:]))
        self._lengths.append(len(rows.records))
        self._ids.append(rows.id)
        self._tasks.append(rows.task)
        self._rows.append(rows.records.tobytes())
        self._flags.append(step_flags(rows.records, self._layout).tobytes())
        self._last.append(last_command(rows.records).tobytes())
        for name, writer in self._pictures.items():
            writer.append(rows.pictures[name], rows.counts[name])
            self._first[name].append(self._total[name])
            self._total[name] += rows.counts[name]

    def close(self) -> None:
        """Sync the files and write their index, last."""
        files = {f.path.name: f.close() for f in (self._rows, self._flags, self._last)}
        for writer in self._pictures.values():
            files |= writer.close()
        facts = {
            "version": VERSION,
            "name": self.name,
            "digest": self.digest,
            "mode": self.mode,
            "files": files,
            "starts": self._starts,
            "lengths": self._lengths,
            "ids": self._ids,
            "tasks": self._tasks,
            "first_picture": self._first,
        }
        facts["sha256"] = digest_bytes(canonical_json(facts))
        replace_file(self.folder / "index.json", canonical_json(facts))


def write_columns(
    folder: Path, name: str, digest: str, embodiment: Embodiment, episodes: Iterable[EpisodeRows], mode: PictureMode
) -> None:
    """Build a folder of columns, complete or absent.

    Raises:
        StoreError: the disk refuses.
    """
    part = folder.with_name(folder.name + ".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        writer = ColumnsWriter(part, name, digest, embodiment, mode)
        for rows in episodes:
            writer.add(rows)
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as e:
        raise disk_error(e, folder) from None
