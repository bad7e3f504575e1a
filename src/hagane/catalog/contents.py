"""What a stored set says of itself without its streams: episodes, files, site, sketches. Read anew, checked."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hagane.catalog.catalog import Catalog
from hagane.catalog.stored import StoredSet
from hagane.intake.lerobot_sketch import Sketch


@dataclass(frozen=True)
class EpisodeFacts:
    """One line about an episode."""

    number: int
    """Place in its set, from 0."""
    id: str
    """Unique in its set."""
    content: str
    """Digest of all that the episode says."""
    source: str
    """Digest of the bytes it was read from; several episodes of one log share it."""
    task: str
    """Instruction in words."""
    outcome: str
    """success, failure or "" when unknown."""
    steps: int
    """Control steps."""
    seconds: float
    """From the first to the last sample."""
    findings: tuple[str, ...]
    """Kinds of the findings."""


@dataclass(frozen=True)
class FileFacts:
    """One file of a set."""

    path: str
    """Relative to the set's folder, with forward slashes."""
    sha256: str
    """As the manifest has it."""
    size: int
    """Bytes."""


def folder_of(catalog: Catalog, name: str) -> Path:
    """Folder of a data set.

    Raises:
        StoreError: there is none; CorruptError: its record is damaged.
    """
    catalog.record(name)
    return catalog.root / "sets" / name


def stored_of(catalog: Catalog, name: str) -> StoredSet:
    """A data set, read anew.

    Raises:
        StoreError: as `folder_of`.
    """
    return StoredSet(catalog.shelf(folder_of(catalog, name), name))


def episodes_of(catalog: Catalog, name: str) -> tuple[EpisodeFacts, ...]:
    """Facts of every episode, in order. Nothing of the data is read.

    Raises:
        StoreError: as `folder_of`.
    """
    facts = stored_of(catalog, name).facts()
    return tuple(
        EpisodeFacts(
            number,
            f["id"],
            f["content"],
            f["digest"],
            f["task"],
            f["outcome"],
            f["steps"],
            (f["span_ns"][1] - f["span_ns"][0]) / 1e9,
            tuple(x["kind"] for x in f["findings"]),
        )
        for number, f in enumerate(facts)
    )


def files_of(catalog: Catalog, name: str) -> tuple[FileFacts, ...]:
    """Every file that the manifest lists, by path.

    Raises:
        StoreError: as `folder_of`.
    """
    listed = stored_of(catalog, name).files()
    return tuple(FileFacts(path, f["sha256"], f["bytes"]) for path, f in sorted(listed.items()))


def sketches_of(catalog: Catalog, name: str, purpose: str) -> dict[str, Sketch]:
    """Mergeable statistics by channel.

    Raises:
        Refused: the contract does not permit it; CorruptError: stored bytes differ from their digest.
    """
    catalog.ask(name, purpose)
    return stored_of(catalog, name).sketches()


def disk_bytes(folder: Path) -> int:
    """Bytes of all files under a folder; 0 when it is absent. What goes meanwhile counts not."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                told = (Path(top) / name).lstat()
                total += told.st_size if stat.S_ISREG(told.st_mode) else 0
    return total
