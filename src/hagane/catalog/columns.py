"""Training columns: all episodes of a data set end to end on the control grid, flat files, memory-mapped.

They are a cache: derived from the canonical set, checked against their sha256 when opened, and built again when
they are absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hagane.intake.lerobot_grid import Grid
from hagane.intake.lerobot_journal import disk_error, replace_file
from hagane.intake.lerobot_rows import side_by_side
from hagane.terms import CorruptError, Embodiment, Reading, canonical_json, digest_bytes, digest_file

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Columns:
    """T control steps of E episodes, end to end. Values are 0 where not valid."""

    name: str
    """Name of the data set."""
    digest: str
    """Content digest of the data set."""
    embodiment: Embodiment
    """The machine."""
    times_ns: NDArray[np.int64]
    """[T] control times."""
    observe: Mapping[str, Reading]
    """Observed channels (no text): values [T, *shape], valid [T] or [T, n], age_s [T]."""
    commands_TA: NDArray[np.float32]
    """[T, A] commands, action channels side by side."""
    command_valid_T: NDArray[np.bool_]
    """[T] True where every action channel has a usable command."""
    applied: Mapping[str, Reading]
    """What the actuators did, by action channel."""
    start_E: NDArray[np.int64]
    """[E] first index of each episode."""
    length_E: NDArray[np.int64]
    """[E] control steps of each episode."""
    episode_ids: tuple[str, ...]
    """E ids."""
    tasks: tuple[str, ...]
    """E instructions."""

    def __len__(self) -> int:
        return len(self.times_ns)


class ColumnsWriter:
    """Appends aligned episodes to flat files in a folder that nobody reads yet."""

    def __init__(self, folder: Path, name: str, digest: str, embodiment: Embodiment) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.name, self.digest, self.embodiment = folder, name, digest, embodiment
        self._files: dict[str, _File] = {}
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._ids: list[str] = []
        self._tasks: list[str] = []

    def add(self, episode_id: str, task: str, grid: Grid) -> None:
        """Append one episode."""
        self._starts.append(sum(self._lengths[-1:]) + sum(self._starts[-1:]))
        self._lengths.append(len(grid))
        self._ids.append(episode_id)
        self._tasks.append(task)
        self._put("times_ns", grid.times_ns)
        for i, c in enumerate(c for c in self.embodiment.observe if c.kind != "text"):
            reading = grid.observe[c.name]
            self._put(f"observe-{i:03d}.values", reading.values)
            self._put(f"observe-{i:03d}.valid", reading.valid)
            self._put(f"observe-{i:03d}.age_s", reading.age_s)
        self._put("commands", side_by_side(grid.command, self.embodiment))
        self._put("command_valid", np.all([grid.command[c.name].valid for c in self.embodiment.act], axis=0))
        for i, c in enumerate(self.embodiment.act):
            self._put(f"applied-{i:03d}.values", grid.applied[c.name].values)
            self._put(f"applied-{i:03d}.valid", grid.applied[c.name].valid)

    def close(self) -> None:
        """Sync the files and write their index, last."""
        facts = {
            "version": _VERSION,
            "name": self.name,
            "digest": self.digest,
            "files": {name: file.close() for name, file in sorted(self._files.items())},
            "starts": self._starts,
            "lengths": self._lengths,
            "ids": self._ids,
            "tasks": self._tasks,
        }
        facts["sha256"] = digest_bytes(canonical_json(facts))
        replace_file(self.folder / "index.json", canonical_json(facts))

    def _put(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._files:
            self._files[name] = _File(self.folder / f"{name}.bin", values)
        self._files[name].append(values)


def write_columns(
    folder: Path, name: str, digest: str, embodiment: Embodiment, grids: Iterable[tuple[str, str, Grid]]
) -> None:
    """Build a folder of columns from (episode id, task, grid), complete or absent.

    Raises:
        StoreError: the disk refuses.
    """
    part = folder.with_name(folder.name + ".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        writer = ColumnsWriter(part, name, digest, embodiment)
        for episode_id, task, grid in grids:
            writer.add(episode_id, task, grid)
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as e:
        raise disk_error(e, folder) from None


def open_columns(folder: Path, embodiment: Embodiment) -> Columns:
    """Memory-map the columns of a folder, after checking every file against its sha256.

    Raises:
        CorruptError: a file is missing or differs; the message names it.
    """
    facts = _facts(folder)
    arrays: dict[str, NDArray[Any]] = {}
    for name, f in facts["files"].items():
        path = folder / f"{name}.bin"
        if not path.exists() or path.stat().st_size != f["bytes"] or digest_file(path) != f["sha256"]:
            raise _corrupt(path)
        mapped = np.memmap(path, np.dtype(f["dtype"]), "r", shape=tuple(f["shape"]))
        arrays[name] = mapped.view(np.ndarray)
    return _columns(facts, arrays, embodiment)


def _columns(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], embodiment: Embodiment) -> Columns:
    seen = [c for c in embodiment.observe if c.kind != "text"]
    parts = ("values", "valid", "age_s")
    observe = {c.name: Reading(*(arrays[f"observe-{i:03d}.{p}"] for p in parts)) for i, c in enumerate(seen)}
    fresh = np.broadcast_to(np.float32(0), (len(arrays["times_ns"]),))
    applied = {
        c.name: Reading(arrays[f"applied-{i:03d}.values"], arrays[f"applied-{i:03d}.valid"], fresh)
        for i, c in enumerate(embodiment.act)
    }
    return Columns(
        facts["name"],
        facts["digest"],
        embodiment,
        arrays["times_ns"],
        observe,
        arrays["commands"],
        arrays["command_valid"],
        applied,
        np.array(facts["starts"], np.int64),
        np.array(facts["lengths"], np.int64),
        tuple(facts["ids"]),
        tuple(facts["tasks"]),
    )


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        told = facts.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _corrupt(path) from None
    if digest_bytes(canonical_json(facts)) != told or facts["version"] != _VERSION:
        raise _corrupt(path)
    return facts


def _corrupt(path: Path) -> CorruptError:
    return CorruptError(
        "a training column differs from its digest",
        where=str(path),
        next_step=f"remove {path.parent}: it is built again from the canonical set",
    )


class _File:
    """One growing flat file with its digest."""

    def __init__(self, path: Path, first: NDArray[Any]) -> None:
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()
        self._dtype, self._tail, self._rows = first.dtype, first.shape[1:], 0

    def append(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, self._dtype).tobytes()
        self._hash.update(data)
        self._file.write(data)
        self._rows += len(values)

    def close(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        shape = [self._rows, *self._tail]
        return {"sha256": self._hash.hexdigest(), "bytes": size, "dtype": self._dtype.str, "shape": shape}
